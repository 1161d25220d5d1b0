"""Scoring one set of audio against another from Python: `musiccm.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from musiccm.data.audio_folder import AudioFolder, read_audio_files, read_audio_folder, read_captions
from musiccm.device import choose_device
from musiccm.embedders import Embedder, load_embedder
from musiccm.embedders.clap import ClapEmbedder
from musiccm.errors import MusiccmError
from musiccm.evaluation.folder_notes import table_text
from musiccm.evaluation.folders import FolderRun
from musiccm.evaluation.protocols import Protocol, protocol_named
from musiccm.evaluation.registry import NETWORK_SCOPES, Direction, direction, metric_row, metrics_of
from musiccm.models.bundle import Bundle
from musiccm.similarity.check import index_clap
from musiccm.similarity.clap_windows import CONDITIONER_PARTS, ClapWindows
from musiccm.similarity.index import TrainingIndex

#: What the field's tables are made with.
DEFAULT_EMBEDDERS = ("pann", "vgg")
#: A folder, or audio files.
Audio = str | Path | Sequence[str | Path]


class Scores(Mapping[str, Any]):
    """What an evaluation came to: each metric by its key, such as `scores["fd_pann"]`; None where clips are too few.

    Printed, it is the table of `musiccm evaluate`.

    Args:
        content: Everything, as `musiccm evaluate` writes it.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def __getitem__(self, key: str) -> Any:
        return self.content["figures"][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content["figures"])

    def __len__(self) -> int:
        return len(self.content["figures"])

    def __str__(self) -> str:
        return table_text(self.content)

    def __repr__(self) -> str:
        return f"Scores({self.content['figures']}, n={self.n})"

    @property
    def n(self) -> int:
        """Generated clips."""
        return self.content["n"]

    @property
    def n_reference(self) -> int:
        """Reference clips."""
        return self.content["n_reference"]

    @property
    def references(self) -> dict[str, Any]:
        """The numbers of the reference clips that put the metrics in proportion."""
        return self.content["references"]

    @property
    def notes(self) -> list[str]:
        """What a reader of the metrics should know about the two sets."""
        return self.content["notes"]

    @property
    def left_out(self) -> dict[str, list[dict[str, str]]]:
        """Files of `generated` and of `reference` that were not used, with the reason of each."""
        return self.content["left_out"]

    @staticmethod
    def better(key: str) -> Direction | None:
        """Whether `lower` or `higher` is better; None of a count."""
        return direction(key)


def evaluate(
    generated: Audio,
    reference: Audio,
    metrics: Sequence[str] | None = None,
    *,
    embedders: Sequence[str | Embedder] | Mapping[str, str | Path | None] | None = None,
    bundle: str | Path | Bundle | None = None,
    captions: str | Path | Mapping[str, str] | None = None,
    clap: str | Path | ClapEmbedder | None = None,
    train: str | Path | TrainingIndex | None = None,
    seconds: float | None = None,
    channel: str = "mean",
    batch_size: int = 16,
    device: str | torch.device = "auto",
    reference_implementation: bool = False,
    progress: bool = True,
    protocol: str | None = None,
) -> Scores:
    """Score generated audio against reference audio, whatever system made it.

    Each file is decoded once to see whether it can be used, and once for all metrics together.

    Args:
        generated: A folder, searched through, or audio files. A clip is known by its path below the folder (of files:
            below the one that they have in common) without the suffix; clips of one name on both sides are pairs.
        reference: The same, of real music.
        metrics: Names out of docs/metrics.md, such as `["fd", "kad"]`; those of two sets, of the generated clips alone
            and of pairs are taken with each embedder. If None: all that are not optional, `ta` and `ra` with
            captions and `sim_aa` with a training index.
        embedders: Networks by name (`load_embedder`), by name with the file of its weights, or loaded; `pann` and `vgg`
            if None.
        bundle: Where `tagger`, and `clap` without weights, come from.
        captions: By clip name, for `ta`: a mapping, or a .json, .csv or .tsv file.
        clap: For `ta` and `ra`; that among the embedders, else the bundle's, if None.
        train: For `sim_aa`: an index of training clips, or its folder.
        seconds: Take this much from the start of every file; all if None.
        channel: Of files with several: the `mean`, or the `first`, which published tools take.
        batch_size: Clips embedded together.
        device: Such as `cpu` or `cuda`; `auto` takes a GPU if there is one.
        reference_implementation: Add what audioldm_eval's own functions make of the same embeddings.
        progress: Whether to show progress; without, nothing is printed, but warnings still go to `logging`.
        protocol: A published one by name (`musiccm.evaluation.protocols`), which says what is taken of each file and
            which metrics and networks, where these are not given; every clip must have its partner.

    Returns:
        The metrics by key, with n and notes.

    Raises:
        MusiccmError: An argument, folder or file of weights that cannot be used, named.
    """
    rules = None if protocol is None else protocol_named(protocol)
    if rules is not None:
        _check_protocol(rules, metrics, seconds, captions, train)
        metrics, embedders = rules.metrics, rules.embedders if embedders is None else embedders
    names = _checked(list(metrics) if metrics is not None else default_metrics(captions, train), captions, train)
    if batch_size < 1:
        raise MusiccmError(f"batch_size: expected at least 1, found {batch_size}")
    where = torch.device(choose_device(str(device)))
    clap_windows = None if train is None else _opened(train, bundle, where, batch_size)
    texts = captions if captions is None or isinstance(captions, Mapping) else read_captions(captions)
    over_networks = [name for name in names if metric_row(name).scope in NETWORK_SCOPES]
    networks = _loaded(DEFAULT_EMBEDDERS if embedders is None and over_networks else embedders or (), bundle, where)
    similar = {"ta", "ra"} & set(names)
    extractor = _text_embedder(clap, networks, bundle, where) if similar else None
    shortest = max((net.min_duration_s for net in [*networks, *([extractor] if extractor else [])]), default=0.0)
    if seconds is not None and not seconds >= shortest:
        raise MusiccmError(f"seconds: expected at least the {shortest:g} s that the networks take, found {seconds:g}")
    shortest = shortest if rules is None else 0.0  # zeros follow a short clip
    folders = {name: _read(audio, shortest, channel, progress)
               for name, audio in (("generated", generated), ("reference", reference))}
    for name, folder in folders.items():
        if len(folder.clips) < 2:
            raise MusiccmError(f"{name}: {folder}: expected at least 2 clips, of which a distance can be taken")
    if rules is not None:
        rules.check_pairs({side: {clip.id for clip in folder.clips} for side, folder in folders.items()})
    run = FolderRun(
        folders, over_networks, networks, where, extractor, texts, clap_windows, seconds, channel, batch_size,
        reference_implementation, progress, None if captions is None or texts is captions else str(captions),
        "ra" in names, None if rules is None else rules.preparation,
    )
    run.hear_all()
    opened = bundle.path if isinstance(bundle, Bundle) else bundle
    content = run.result(None if opened is None else str(opened))
    if rules is not None:
        content["settings"]["protocol"] = rules.name
        content["notes"] += rules.notes(content["n"])
    return Scores(content)


def default_metrics(captions: object = None, train: object = None) -> list[str]:
    """The metrics that `evaluate` takes unless told otherwise.

    Args:
        captions: Whether captions are there.
        train: Whether a training index is.

    Returns:
        Their names.
    """
    names = [row.name for row in metrics_of(*NETWORK_SCOPES) if row.optional is None]
    return [*names, *(["ta", "ra"] if captions is not None else []), *(["sim_aa"] if train is not None else [])]


def _checked(names: list[str], captions: object, train: object) -> list[str]:
    if not names:
        raise MusiccmError("metrics: expected at least one name, found none")
    for row in [metric_row(name) for name in names]:
        if row.scope in ("attributes", "cost", "comparison", "noises"):
            raise MusiccmError(f"metrics: {row.name} needs {row.needs}, which folders of audio do not have; `musiccm "
                               "test` takes it")
    for name, argument, given in (("ta", "captions", captions), ("sim_aa", "train", train)):
        if (name in names) != (given is not None):
            raise MusiccmError(f"{argument}: needed for the metric {name}; give it" if name in names else
                               f"{argument}: given, but {name} is not among metrics {names}; leave one out, or add it")
    return names


def _check_protocol(
    rules: Protocol, metrics: object, seconds: object, captions: object, train: object
) -> None:
    """A protocol says all of this itself."""
    for name, value in (("metrics", metrics), ("seconds", seconds), ("train", train)):
        if value is not None:
            raise MusiccmError(f"{name}: the protocol {rules.name} says it itself; leave it out")
    if captions is None:
        raise MusiccmError(f"captions: the protocol {rules.name} compares clips with what they were asked for; give "
                           "them")


def _opened(
    train: str | Path | TrainingIndex, bundle: Any, device: torch.device, batch_size: int
) -> tuple[TrainingIndex, ClapWindows]:
    """The training index, and a CLAP that embeds as the index was embedded."""
    index = train if isinstance(train, TrainingIndex) else TrainingIndex(Path(train))
    whose = bundle or index.about["bundle"]
    opened = whose if isinstance(whose, Bundle) else Bundle.from_pretrained(whose, parts=CONDITIONER_PARTS)
    return index, index_clap(index, opened, str(device), batch_size, workers=2)


def _loaded(embedders: Any, bundle: Any, device: torch.device) -> list[Embedder]:
    if isinstance(embedders, str | Embedder):
        raise MusiccmError(f"embedders: expected a list or a mapping, found {embedders!r}")
    weights = dict(embedders) if isinstance(embedders, Mapping) else {}
    found: list[Embedder] = []
    for embedder in embedders:
        loaded = embedder.to(device) if isinstance(embedder, Embedder) else (
            load_embedder(embedder, weights.get(embedder), bundle, device))
        if loaded.name in [other.name for other in found]:
            raise MusiccmError(f"embedders: {loaded.name} is given twice")
        found.append(loaded)
    return found


def _text_embedder(clap: Any, networks: Sequence[Embedder], bundle: Any, device: torch.device) -> ClapEmbedder:
    if isinstance(clap, ClapEmbedder):
        return clap.to(device)
    among = [network for network in networks if isinstance(network, ClapEmbedder) and clap is None]
    loaded: Any = among[0] if among else load_embedder("clap", clap, bundle, device)
    return loaded


def _read(audio: Audio, shortest: float, channel: str, progress: bool) -> AudioFolder:
    if isinstance(audio, str | Path) and not Path(audio).is_file():
        return read_audio_folder(Path(audio), shortest, channel, progress)
    files = [audio] if isinstance(audio, str | Path) else list(audio)
    return read_audio_files(files, shortest, channel, progress)
