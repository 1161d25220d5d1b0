"""Audiostock's layout on disk: `train/`, `test/`, perhaps `validation/` with audio, `label/<stem>.json` with words."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from musiccm.audio.io import AUDIO_SUFFIXES
from musiccm.data.labels import BadLabel, Clip, read_label
from musiccm.data.reading import Entry, Listing, Rules, read_split
from musiccm.data.report import BadItem, Report
from musiccm.errors import MusiccmError

SPLITS = ("train", "validation", "test")


def read_audiostock(
    root: str | Path,
    split: str,
    min_duration_s: float = 1.0,
    max_bad_fraction: float = 0.05,
    report_path: str | Path | None = None,
    workers: int | None = None,
    strict: bool = False,
) -> tuple[list[Clip], Report]:
    """Read one split of a corpus in Audiostock's layout.

    Every audio file is decoded once, and what was found is remembered in `<root>/.scan-<split>.json`, so that a second
    call only decodes files that changed. Items with bad audio or a bad label are left out, counted and listed; so are
    those whose audio occurs twice or in the test folder too.

    Args:
        root: Folder with `train/`, `test/` and `label/`.
        split: `"train"` or `"test"`.
        min_duration_s: Shorter files are bad.
        max_bad_fraction: Largest share of bad items that is accepted.
        report_path: Where the report goes; `<root>/report-<split>.json` by default.
        workers: Threads that decode; one a core by default.
        strict: Stop at the first bad item.

    Returns:
        `(clips, report)`, the clips sorted by id.

    Raises:
        MusiccmError: A folder is missing, holds no audio, holds two files of one name, or too much of it is bad.
    """
    rules = Rules(min_duration_s, max_bad_fraction, strict, workers)
    return read_split(partial(list_audiostock, root), split, rules, Path(report_path) if report_path else None)


def list_audiostock(root: str | Path, split: str) -> Listing:
    """List one split of a corpus in Audiostock's layout, with the words of the label files.

    Args:
        root: Folder with `train/`, `test/` and `label/`.
        split: `"train"`, `"test"`, or `"validation"` where there is such a folder.

    Returns:
        The listing; an entry without a usable label says so.

    Raises:
        MusiccmError: A folder is missing, holds no audio, or holds two files of one name.
    """
    root = Path(root)
    return Listing(root, split, [_entry(root, path) for path in _audio_paths(root, split)])


def audiostock_has(root: str | Path, split: str) -> bool:
    """Whether a corpus has a folder for a split."""
    return (Path(root) / split).is_dir()


def _entry(root: Path, path: Path) -> Entry:
    try:
        captions, tags, attributes = read_label(root / "label" / f"{path.stem}.json")
    except BadLabel as error:
        return Entry(path.stem, path, fault=BadItem(path.stem, str(error.path), error.reason, error.detail))
    return Entry(path.stem, path, captions, tags, attributes)


def _audio_paths(root: Path, split: str) -> list[Path]:
    if split not in SPLITS:
        raise MusiccmError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if not root.is_dir():
        raise MusiccmError(
            f"{root}: no such corpus folder; expected Audiostock's layout: train/ and test/ with audio, "
            "label/NAME.json with the words (docs/data.md)"
        )
    for name in (split, "label"):
        if not (root / name).is_dir():
            raise MusiccmError(f"{root / name}: no such folder; a corpus needs train/, test/ and label/")
    paths = sorted((p for p in (root / split).iterdir() if p.suffix.lower() in AUDIO_SUFFIXES and p.name[0] != "."),
                   key=lambda p: (p.stem, p.suffix))
    if not paths:
        raise MusiccmError(f"{root / split}: no audio found; expected files ending in {', '.join(AUDIO_SUFFIXES)}")
    twice = [stem for stem, n in Counter(p.stem for p in paths).items() if n > 1]
    if twice:
        raise MusiccmError(f"{root / split}: {len(twice)} ids have two audio files, first {twice[0]!r}; keep one")
    return paths
