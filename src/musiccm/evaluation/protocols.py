"""Published protocols: what is taken of each clip, by which networks, and how the numbers are printed."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from musiccm.data.audio_folder import Preparation
from musiccm.errors import MusiccmError


class ProtocolColumn(NamedTuple):
    """A column of a protocol's table.

    Args:
        head: How the paper calls it, with an arrow to where it is better.
        key: Its key in our results.
        network: The network it is taken with, as `load_embedder` names it.
        said: What it is, in words.
    """

    head: str
    key: str
    network: str
    said: str


class Published(NamedTuple):
    """A row that can be cited: the model, its network calls, and its numbers in the order of the columns."""

    model: str
    calls: int
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Protocol:
    """A published protocol.

    Args:
        name: Its name.
        preparation: Length, rate and level of every clip of both sides.
        clips: Clips of the published figures.
        metrics: Of `musiccm.evaluate`.
        embedders: Its networks.
        columns: Of its table.
        published: Rows of its authors.
        said: Where it comes from.
    """

    name: str
    preparation: Preparation
    clips: int
    metrics: tuple[str, ...]
    embedders: tuple[str, ...]
    columns: tuple[ProtocolColumn, ...]
    published: tuple[Published, ...]
    said: str

    def notes(self, n: int) -> list[str]:
        """What must be said beside the numbers.

        Args:
            n: Clips that they are of.
        """
        how = self.preparation
        found = [f"protocol {self.name}: {how.sample_rate_hz} Hz, {how.seconds:.1f} s from the start of every clip "
                 f"(zeros behind a shorter one), mean removed, peak {how.peak:g}; pairs by clip id",
                 *(f"{column.head.split()[0]}: {column.said}" for column in self.columns)]
        if n != self.clips:
            found.append(f"n = {n}, the published figures are of {self.clips} clips: FAD and FD depend on the number, "
                         "and the figures are not comparable with them")
        return found

    def check_pairs(self, ids: Mapping[str, Set[str]]) -> None:
        """Refuse sets that are not pairs throughout, as the protocol's distances are of the same clips on both sides.

        Args:
            ids: Clip ids of `generated` and `reference`.

        Raises:
            MusiccmError: A clip of either has no partner.
        """
        lacking = {side: sorted(ids[side] - ids[other]) for side, other in
                   (("generated", "reference"), ("reference", "generated"))}
        if any(lacking.values()):
            parts = [f"{len(found)} {side} clips have no partner, first {found[0]}"
                     for side, found in lacking.items() if found]
            raise MusiccmError(f"protocol {self.name}: expected the same names on both sides; {'; '.join(parts)}. Name "
                               "generated clips after their references, and leave out what has none")

    def row(self, scores: Mapping[str, Any]) -> list[float | None]:
        """The numbers of the columns, None where they were not taken."""
        return [scores.get(column.key) for column in self.columns]


_SCORE = "mean of max(cosine, 0), clamped clip by clip, times 100; CLAP's audio at 48 kHz from 16 kHz"

PROTOCOLS = {
    protocol.name: protocol for protocol in (
        Protocol(
            "consistencytta", Preparation(10.0, 16000, 0.5), 882, ("fd", "kl", "ta", "ra"), ("vgg", "pann"),
            (ProtocolColumn("CLAP_T ↑", "clap_t", "clap", f"clip against its prompt, {_SCORE}"),
             ProtocolColumn("CLAP_A ↑", "clap_a", "clap", f"clip against the real clip of its id, {_SCORE}"),
             ProtocolColumn("FAD ↓", "fd_vgg", "vgg", "Frechet distance of VGGish, without PCA and activation"),
             ProtocolColumn("FD ↓", "fd_pann", "pann", "Frechet distance of Cnn14 at 16 kHz, 2048 wide"),
             ProtocolColumn("KLD ↓", "kl_pann", "pann", "KL of Cnn14's softmax, real || generated, pair by pair")),
            (Published("light teacher, 200 guided steps", 400, (24.57, 72.79, 1.908, 19.57, 1.350)),
             Published("ConsistencyTTA with CLAP fine-tuning", 1, (24.69, 72.54, 2.406, 20.97, 1.358)),
             Published("ConsistencyTTA", 1, (22.50, 72.30, 2.575, 22.08, 1.354))),
            "arXiv 2309.10740 and its code's README",
        ),
    )
}


def protocol_named(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        MusiccmError: There is none of this name.
    """
    if name not in PROTOCOLS:
        raise MusiccmError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {name!r}")
    return PROTOCOLS[name]
