"""Audiostock's layout on disk: `train/`, `test/`, perhaps `validation/` with audio, `label/<stem>.json` with words."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from musiccm.audio.io import AUDIO_SUFFIXES
from musiccm.data.corpora.folder_scan import FolderScan, scan_folder
from musiccm.data.corpora.labels import BadLabel, Clip, read_label
from musiccm.data.corpora.reading import Entry, Listing, Rules, read_split
from musiccm.data.corpora.report import BadItem, Report
from musiccm.data.names import NamePairs, pair_names
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

SPLITS = ("train", "validation", "test")
OTHER_LAYOUT = ("A corpus of another layout says so: data.init_args.layout, such as manifest for train.csv and "
                "test.csv (docs/data.md)")


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
        The listing; an entry without a usable label says so. Audio that cannot be listed, such as that in subfolders,
        is bad; what is no audio, and labels of none, are noted.

    Raises:
        MusiccmError: A folder is missing, holds no audio, or holds two files of one name.
    """
    root = Path(root)
    scan = _scan(root, split)
    others = [scan_folder(root / name).audio for name in SPLITS if name != split and (root / name).is_dir()]
    labels = sorted(path.stem for path in (root / "label").iterdir() if path.suffix == ".json" and path.name[0] != ".")
    stems = {path.stem for audio in (scan.audio, *others) for path in audio}
    known = pair_names(stems, labels)
    listing = Listing(root, split, [_entry(root, path, known) for path in scan.audio if path.parent == root / split])
    listing.bad = [*scan.left_out, *(
        BadItem(escaped(path.relative_to(root / split).with_suffix("")), escaped(path), "in_subfolder",
                f"audio lies in {split}/ itself; move it there") for path in scan.audio if path.parent != root / split)]
    listing.notes = scan.notes(f"{split}/")
    if unused := sorted(set(labels) - set(known.pairs.values())):
        listing.notes.append(f"{len(unused)} labels are of no audio in train/ or test/, first "
                             f"label/{escaped(unused[0])}.json")
    return listing


def audiostock_has(root: str | Path, split: str) -> bool:
    """Whether a corpus has a folder for a split."""
    return (Path(root) / split).is_dir()


def _entry(root: Path, path: Path, known: NamePairs) -> Entry:
    name, label = escaped(path.stem), root / "label" / f"{known.pairs.get(path.stem, path.stem)}.json"
    if path.stem in known.ambiguous:
        detail = "no label has exactly this name, and which one is meant by another Unicode form is not clear"
        return Entry(name, path, fault=BadItem(name, escaped(label), "ambiguous_name", detail))
    try:
        captions, tags, attributes = read_label(label)
    except BadLabel as error:
        return Entry(name, path, fault=BadItem(name, escaped(error.path), error.reason, error.detail))
    return Entry(name, path, captions, tags, attributes)


def _scan(root: Path, split: str) -> FolderScan:
    if split not in SPLITS:
        raise MusiccmError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if not root.is_dir():
        raise MusiccmError(
            f"{root}: no such corpus folder; expected Audiostock's layout: train/ and test/ with audio, "
            f"label/NAME.json with the words. {OTHER_LAYOUT}"
        )
    for name in (split, "label"):
        if not (root / name).is_dir():
            raise MusiccmError(f"{root / name}: no such folder; a corpus in Audiostock's layout needs train/, test/ "
                               f"and label/. {OTHER_LAYOUT}")
    scan = scan_folder(root / split)
    here = [path for path in scan.audio if path.parent == root / split]
    if not here:
        raise MusiccmError(f"{root / split}: no audio found{scan.instead()}; expected files ending in "
                           f"{', '.join(AUDIO_SUFFIXES)}, none of them in a subfolder")
    twice = [stem for stem, n in Counter(p.stem for p in here).items() if n > 1]
    if twice:
        raise MusiccmError(f"{root / split}: {len(twice)} ids have two audio files, first {twice[0]!r}; keep one")
    return scan
