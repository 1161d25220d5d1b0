"""Several corpora of several layouts, as an experiment names them, read as one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from musiccm.data.corpora.audiocaps import audiocaps_has, list_audiocaps
from musiccm.data.corpora.audioldm import audioldm_has, list_audioldm
from musiccm.data.corpora.audiostock import audiostock_has, list_audiostock
from musiccm.data.corpora.jamendo import list_jamendo
from musiccm.data.corpora.labels import Clip
from musiccm.data.corpora.magnatagatune import list_magnatagatune
from musiccm.data.corpora.manifest import list_manifest, manifest_has
from musiccm.data.corpora.reading import KnownAudio, Listing, Rules, known_audio, read_split
from musiccm.data.corpora.report import Report
from musiccm.data.corpora.shares import Part
from musiccm.errors import MusiccmError


@dataclass(frozen=True)
class Layout:
    """How one kind of corpus lies on a disk.

    Args:
        list_split: `list_split(root, split, **options)` lists a split.
        options: Names of its options.
        has_validation: `has_validation(root, **options)`: whether the corpus has a validation split of its own.
    """

    list_split: Callable[..., Listing]
    options: tuple[str, ...] = ()
    has_validation: Callable[..., bool] = lambda root, **options: False


LAYOUTS = {
    "audiostock": Layout(list_audiostock, (), partial(audiostock_has, split="validation")),
    "magnatagatune": Layout(list_magnatagatune, ("lists", "draw", "draw_seed"), lambda root, **options: True),
    "jamendo": Layout(list_jamendo, ("tables", "subset", "splits", "tags", "captions", "audio"),
                      lambda root, **options: True),
    "audiocaps": Layout(list_audiocaps, ("files", "audio", "missing"), partial(audiocaps_has, split="validation")),
    "manifest": Layout(list_manifest, ("files",), partial(manifest_has, split="validation")),
    "audioldm": Layout(list_audioldm, ("dataset",), partial(audioldm_has, split="validation")),
}


@dataclass(frozen=True)
class CorpusSpec:
    """One corpus of an experiment.

    Args:
        layout: A key of `LAYOUTS`.
        root: Where it lies.
        weight: Its share of an epoch, relative to the others'; None where none has one.
        name: What its clip ids begin with where there are several corpora.
        options: Of the layout.
        test: How many of its test clips are evaluated on, 0 for none; all of them if not given.
        demo: Whether it is the demo corpus, which has clips for validation that the embedded teacher never met.
    """

    layout: str
    root: str
    weight: float | None = None
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    test: int | None = None
    demo: bool = False

    def list_split(self, split: str) -> Listing:
        """List a split of it."""
        return LAYOUTS[self.layout].list_split(self.root, split, **self.options)

    @property
    def has_validation(self) -> bool:
        """Whether it has a validation split of its own.

        Raises:
            MusiccmError: It is a demo corpus without one, which older versions wrote.
        """
        found = LAYOUTS[self.layout].has_validation(self.root, **self.options)
        if self.demo and not found and Path(self.root).is_dir():
            raise MusiccmError(f"{self.root}: a demo corpus without validation/, as older versions wrote it; clips "
                               "held out of its train/ are among those that the embedded teacher was trained on. "
                               "Complete it with the same --tracks and --seed: "
                               f"`musiccm prepare demo --out {self.root} ...`, and encode it again")
        return found


def parse_corpora(items: Sequence[Any]) -> list[CorpusSpec]:
    """Read `data.corpora` of an experiment.

    Args:
        items: Mappings with `layout`, `root`, and optionally `weight`, `name`, `test` and the layout's own options.

    Returns:
        A specification for each.

    Raises:
        MusiccmError: A key is missing, unknown or out of range, a name occurs twice, or only some have a weight.
    """
    specs = []
    for number, item in enumerate(items):
        where = f"data.corpora[{number}]"
        if not isinstance(item, Mapping):
            raise MusiccmError(f"{where}: expected layout, root and so on, found {item!r}")
        values = {str(key): value for key, value in item.items()}
        layout, root, weight = (values.pop(key, None) for key in ("layout", "root", "weight"))
        if layout not in LAYOUTS:
            raise MusiccmError(f"{where}.layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
        if not isinstance(root, str) or not root:
            raise MusiccmError(f"{where}.root: expected the folder of the corpus, found {root!r}")
        if weight is not None and not _is_positive(weight):
            raise MusiccmError(f"{where}.weight must be a number above 0, found {weight!r}")
        name, test = str(values.pop("name", None) or layout), values.pop("test", None)
        if test is not None and (not isinstance(test, int) or isinstance(test, bool) or test < 0):
            raise MusiccmError(f"{where}.test must be a number of test clips, 0 for none, found {test!r}")
        if unknown := set(values) - set(LAYOUTS[layout].options):
            raise MusiccmError(f"{where}: unknown {', '.join(sorted(unknown))}; {layout} takes layout, root, weight, "
                               f"name, test{''.join(f', {option}' for option in LAYOUTS[layout].options)}")
        options = {key: value for key, value in values.items() if value is not None}
        specs.append(CorpusSpec(layout, root, None if weight is None else float(weight), name, options, test))
    if not specs:
        raise MusiccmError("data.corpora: expected at least one corpus, found none")
    if all(spec.test == 0 for spec in specs):
        raise MusiccmError("data.corpora: test is 0 for every corpus; leave at least one to be evaluated on")
    if twice := sorted({spec.name for spec in specs if sum(spec.name == other.name for other in specs) > 1}):
        raise MusiccmError(f"data.corpora: {', '.join(twice)} names more than one corpus; give each a name of its own")
    if len({spec.weight is None for spec in specs}) > 1:
        raise MusiccmError("data.corpora: give every corpus a weight, or none (then each counts by its size)")
    return specs


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def first_by_hash(clips: Sequence[Clip], count: int) -> set[str]:
    """Ids of `count` clips by a hash of their ids: the same for every seed, and hardly moved by adding clips."""
    ranked = sorted(clips, key=lambda clip: hashlib.blake2b(clip.id.encode(), digest_size=8).digest())
    return {clip.id for clip in ranked[:count]}


class Corpora:
    """Reads the splits of one or several corpora.

    Where there are several, ids are `<name>/<id>`; audio of any test split is kept out of every training split, and
    audio that an earlier corpus holds out of the later ones.

    Args:
        specs: The corpora.
        rules: What is accepted of each.

    Attributes:
        reports: What reading found: by split for one corpus, by `<name>/<split>` for several.
    """

    def __init__(self, specs: Sequence[CorpusSpec], rules: Rules) -> None:
        self.specs, self.rules = list(specs), rules
        self.reports: dict[str, Report] = {}
        self._known = KnownAudio()

    @property
    def weights(self) -> list[float] | None:
        """The weight of each corpus; None where each counts by its size."""
        weights = [spec.weight for spec in self.specs if spec.weight is not None]
        return weights if len(weights) > 1 else None

    def train(self) -> list[tuple[list[Clip], list[Clip]]]:
        """`(train, validation)` of each corpus, sorted by id; validation is empty where the layout has none."""
        self._known = KnownAudio()
        tests = {spec.name: self._listen(spec) for spec in self.specs} if len(self.specs) > 1 else {}
        found = []
        for spec in self.specs:
            others = [("in_test", known) for name, known in tests.items() if name != spec.name]
            train = self._read(spec, "train", others)
            found.append((train, self._read(spec, "validation", others) if spec.has_validation else []))
        return found

    def test(self) -> list[Part]:
        """The test clips that each corpus is evaluated on, in their order, those of each sorted by id."""
        self._known = KnownAudio()
        parts = []
        for spec in self.specs:
            clips = [] if spec.test == 0 else self._read(spec, "test", [])
            stated = 0 if spec.test == 0 else self._report(spec, "test").examined
            parts.append(Part(spec.name, clips[: spec.test], stated if spec.test is None else spec.test))
        return parts

    def _listen(self, spec: CorpusSpec) -> KnownAudio:
        try:
            return known_audio(spec.list_split("test"), self.rules)
        except MusiccmError:
            return KnownAudio()  # read_split notes it in the corpus' own report

    def _read(self, spec: CorpusSpec, split: str, others: list[tuple[str, KnownAudio]]) -> list[Clip]:
        clips, report = read_split(spec.list_split, split, self.rules, None, others, self._known)
        self.reports[self._report_name(spec, split)] = report
        return clips if len(self.specs) == 1 else [replace(clip, id=f"{spec.name}/{clip.id}") for clip in clips]

    def _report_name(self, spec: CorpusSpec, split: str) -> str:
        return split if len(self.specs) == 1 else f"{spec.name}/{split}"

    def _report(self, spec: CorpusSpec, split: str) -> Report:
        return self.reports[self._report_name(spec, split)]


def layout_of(root: str | Path) -> str:
    """The layout of a corpus that an experiment names by its root alone.

    Args:
        root: Its folder, which need not be there yet.

    Returns:
        `manifest` where there is a manifest of the training clips and no `label/`, which Audiostock's layout must have;
        else `audiostock`.
    """
    labelled = (Path(root) / "label").is_dir()
    return "manifest" if not labelled and manifest_has(root, split="train") else "audiostock"


def single_corpus(root: str | Path, layout: str | None = None) -> list[CorpusSpec]:
    """The specification of one corpus, without options of its layout.

    Args:
        root: Its folder.
        layout: A key of `LAYOUTS`; looked up in the folder unless given.

    Returns:
        A list of one.

    Raises:
        MusiccmError: There is no such layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise MusiccmError(f"data.layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
    found = layout or layout_of(root)
    return [CorpusSpec(found, str(root), name=found)]


def corpora_of(settings: Mapping[str, Any]) -> list[CorpusSpec]:
    """The corpora that the data section of an experiment names.

    Args:
        settings: `root`, perhaps with `layout`, or `corpora`; and `demo_corpora`: which of their folders hold the demo
            corpus. A folder that is not among the corpora counts for nothing, so that an experiment that only names
            another `root` than its base is no longer the demo's.

    Returns:
        A specification for each.

    Raises:
        MusiccmError: Neither or both of `root` and `corpora`, or a corpus that cannot be.
    """
    root, items, demo, layout = (settings.get(key) for key in ("root", "corpora", "demo_corpora", "layout"))
    if (root is None) == (items is None):
        raise MusiccmError(f"data: expected either root, the folder of one corpus, or corpora, a list of "
                           f"them, found {'neither' if root is None else 'both'}")
    if items is not None and layout is not None:
        raise MusiccmError(f"data.layout: {layout} goes with data.root; each of data.corpora has a layout of its own")
    if demo is not None and (isinstance(demo, str) or not all(isinstance(folder, str) for folder in demo)):
        raise MusiccmError(f"data.demo_corpora: expected a list of folders, found {demo!r}")
    specs = single_corpus(root, layout) if root is not None else parse_corpora(items or [])
    folders = {Path(folder) for folder in demo or []}
    return [replace(spec, demo=Path(spec.root) in folders) for spec in specs]
