"""What SIM_AA compares with: the experiment's own training clips, those of its teacher, and what is missing of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import TRAINING_INDEX
from musiccm.similarity.clap_windows import CLAP_PARTS
from musiccm.similarity.gallery import Gallery, RowGallery
from musiccm.similarity.index import TrainingIndex

log = logging.getLogger(__name__)

#: Names that are no corpus: everything that is known, and what the bundle says that its teacher was trained on.
ALL, TEACHER = "all", "teacher"


@dataclass
class Galleries:
    """Galleries by the name of the column, and what is said of them.

    Args:
        by_column: End of the column's name to gallery: `""` for `sim_aa_90` itself, `"_<name>"` for `sim_aa_90_<name>`.
        about: Of each column's name (`sim_aa`, `sim_aa_<name>`): `gallery`, `clips`, `windows`; of `all` how many are
            the `experiment`'s, the `teacher`'s and `both`'s; and `lacks`, a sentence or None.
        own_ND: The experiment's own embeddings, which Retrieval Max chooses from.
        teacher_samples: Hashes of the samples of the teacher's training clips.
    """

    by_column: dict[str, Gallery]
    about: dict[str, dict[str, Any]]
    own_ND: torch.Tensor | None = None
    teacher_samples: frozenset[str] = field(default_factory=frozenset)

    def digest(self) -> str:
        """A hash of all rows, ids and columns."""
        digest = hashlib.sha256()
        for column, gallery in self.by_column.items():
            digest.update(repr((column, list(gallery.ids), gallery.first_row.tolist())).encode())
            digest.update(gallery.read(0, gallery.n_rows).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def bundle_index(bundle: Bundle) -> TrainingIndex | None:
    """The index of what a bundle's teacher was trained on; a student has its base's.

    Args:
        bundle: The bundle.

    Returns:
        The index; None where the bundle brings none.

    Raises:
        MusiccmError: It is damaged, or was built with another CLAP than the bundle's.
    """
    folder = bundle.root_of(TRAINING_INDEX) / TRAINING_INDEX
    if not folder.is_dir():
        return None
    index = TrainingIndex(folder)
    index.refuse_other_clap(bundle.content_hash(CLAP_PARTS))
    return index


def galleries_of(data: Any, bundle: Bundle, names: Sequence[str] = (ALL,)) -> Galleries | None:
    """Gather what generated clips are compared with.

    Args:
        data: The data module.
        bundle: The teacher's bundle.
        names: A gallery a column: `all`, `teacher`, or one of the experiment's corpora. The first is `sim_aa_*` itself.

    Returns:
        The galleries; None, with a warning, where the data module has no embeddings of its training clips.

    Raises:
        MusiccmError: No name, one twice or unknown, or an index that cannot be used.
    """
    if not hasattr(data, "train_clap_audio"):
        log.warning("evaluation: the data module has no embeddings of the training clips; SIM_AA is left out")
        return None
    ids, rows_ND = data.train_clap_audio()
    index = bundle_index(bundle)
    corpora = corpus_names(data)
    check_names(names, corpora, index is not None)
    samples = {clip.id: clip.audio.digest for clip in getattr(data, "train_clips", ())}
    lacks = None if index is not None else (
        f"what the teacher was trained on beside this experiment's clips: {bundle.path} brings no {TRAINING_INDEX}/")
    found = Galleries({}, {}, rows_ND, frozenset() if index is None else frozenset(filter(None, index.samples)))
    for place, name in enumerate(names):
        column = "" if place == 0 else f"_{name}"
        mine = [n for n, clip_id in enumerate(ids) if name in (ALL, _corpus_of(clip_id, corpora))]
        own = (rows_ND[mine], [ids[n] for n in mine])
        gallery, counts = _joined(own, samples, index if name in (ALL, TEACHER) else None)
        about: dict[str, Any] = {"gallery": name, "clips": gallery.n_clips, "windows": gallery.n_rows, **(
            counts if name == ALL else {}), "lacks": lacks if name == ALL else (
            None if name == TEACHER else "every other clip that teacher or student were trained on")}
        found.by_column[column], found.about[f"sim_aa{column}"] = gallery, about
    return found


def corpus_names(data: Any) -> list[str]:
    """The names of a data module's corpora; none where it has no such thing."""
    corpora = getattr(data, "corpora", None)
    return [] if corpora is None else [spec.name for spec in corpora.specs]


def check_names(names: Sequence[str], corpora: Sequence[str], has_index: bool) -> None:
    """Refuse galleries that cannot be had.

    Args:
        names: What is asked for.
        corpora: The experiment's corpora.
        has_index: Whether the bundle says what its teacher was trained on.

    Raises:
        MusiccmError: No name, one twice, or one that is not there.
    """
    there = [ALL, *([TEACHER] if has_index else []), *corpora]
    if not names or len(set(names)) != len(names) or set(names) - set(there):
        hint = "" if has_index else f"; {TEACHER} needs a bundle with {TRAINING_INDEX}/"
        raise MusiccmError(f"evaluation.galleries: expected different names among {there}, found {list(names)}{hint}")


def warn_of_training_clips(found: Galleries | None, clips: Sequence[Any], what: str) -> int:
    """Count the clips that the teacher was trained on, and warn of them.

    Args:
        found: With the teacher's clips.
        clips: Clips of the corpus that are evaluated on, with the hash of their samples where they have one.
        what: What they are, for the warning.

    Returns:
        How many there are.
    """
    if found is None or not found.teacher_samples:
        return 0
    seen = sum(clip.audio.digest in found.teacher_samples for clip in clips)
    if seen:
        log.warning("evaluation: the teacher was trained on %d of the %d %s clips (the same samples); their figures "
                    "flatter", seen, len(clips), what)
    return seen


def described(about: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Sentences of what each column is compared with, for tables and cards.

    Args:
        about: See `Galleries`; `sim_aa_gallery` of a results.json.

    Yields:
        A line a column.
    """
    for column, entry in about.items():
        text = f"{column}: {entry['clips']:,} training clips, {entry['windows']:,} windows"
        if entry["gallery"] != ALL:
            text += f", of {entry['gallery']}"
        elif "teacher" in entry:
            text += (f": {entry['experiment']:,} of the experiment, {entry['teacher']:,} of its teacher, "
                     f"{entry['both']:,} of them the same")
        yield text + (f"; not compared with {entry['lacks']}" if entry["lacks"] else "")


def _corpus_of(clip_id: str, corpora: Sequence[str]) -> str:
    if len(corpora) == 1:
        return corpora[0]
    return max((name for name in corpora if clip_id.startswith(f"{name}/")), key=len, default="")


def _joined(
    own: tuple[torch.Tensor, list[str]], samples: dict[str, str], index: TrainingIndex | None
) -> tuple[Gallery, dict[str, int]]:
    """The experiment's rows and the index', a clip of both under the experiment's id, and how many clips each has."""
    rows_ND, ids = own
    if index is None:
        return RowGallery(rows_ND, ids), {"experiment": len(set(ids))}
    mine = {samples[clip_id]: clip_id for clip_id in ids if samples.get(clip_id)}
    names = [mine.get(digest) or f"{TEACHER}/{clip_id}"
             for clip_id, digest in zip(index.ids, index.samples, strict=True)]
    owners = [name for name, count in zip(names, index.first_row[1:] - index.first_row[:-1], strict=True)
              for _ in range(int(count))]
    joined = torch.cat([rows_ND.float().cpu(), index.read(0, index.n_rows)])
    both = sum(not name.startswith(f"{TEACHER}/") for name in names)
    return RowGallery(joined, [*ids, *owners]), {"experiment": len(set(ids)), "teacher": index.n_clips, "both": both}
