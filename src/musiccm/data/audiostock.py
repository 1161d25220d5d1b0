"""Audiostock's layout on disk: `train/` and `test/` with audio, `label/<stem>.json` with the words."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from musiccm.audio import AudioFacts, BadAudio, scan_audio
from musiccm.audio.io import AUDIO_SUFFIXES
from musiccm.data.labels import BadLabel, Clip, read_label
from musiccm.data.report import BadItem, Report
from musiccm.errors import MusiccmError
from musiccm.files import write_json

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
# Raise it when scan_audio's rules change: results of older scans are then taken again.
_SCAN_VERSION = 1


def read_audiostock(
    root: str | Path,
    split: str,
    min_duration_s: float = 1.0,
    max_bad_fraction: float = 0.05,
    report_path: str | Path | None = None,
    workers: int | None = None,
) -> tuple[list[Clip], Report]:
    """Read one split of a corpus in Audiostock's layout.

    Every audio file is decoded once, and what was found is remembered in `<root>/.scan-<split>.json`, so that a second
    call only decodes files that changed. Items with bad audio or a bad label are left out, counted and listed.

    Args:
        root: Folder with `train/`, `test/` and `label/`.
        split: `"train"` or `"test"`.
        min_duration_s: Shorter files are bad.
        max_bad_fraction: Largest share of bad items that is accepted.
        report_path: Where the report goes; `<root>/report-<split>.json` by default.
        workers: Threads that decode; one a core by default.

    Returns:
        `(clips, report)`, the clips sorted by id.

    Raises:
        MusiccmError: A folder is missing, holds no audio, holds two files of one name, or too much of it is bad.
    """
    root = Path(root)
    paths = _audio_paths(root, split)
    facts = _scan(root, split, paths, min_duration_s, workers)
    report = Report(str(root), split, found=len(paths))
    clips, converted = [], Counter[str]()
    for path in paths:
        try:
            found = facts[path.name]
            if isinstance(found, BadAudio):
                raise found
            captions, tags, attributes = read_label(root / "label" / f"{path.stem}.json")
        except (BadAudio, BadLabel) as error:
            report.bad.append(BadItem(path.stem, str(error.path), error.reason, error.detail))
            continue
        clips.append(Clip(path.stem, str(path), captions, tags, attributes, found))
        converted["mixed_to_mono"] += found.channels > 1
        converted[f"rate_{found.sample_rate_hz}_hz"] += 1
    report.converted = {key: n for key, n in sorted(converted.items()) if n}
    report_path = Path(report_path) if report_path else root / f"report-{split}.json"
    _write_if_possible(report_path, lambda: report.write(report_path))
    report.raise_if_above(max_bad_fraction, report_path)
    if report.bad:
        log.warning("%s; the list: %s", report, report_path)
    return clips, report


def _audio_paths(root: Path, split: str) -> list[Path]:
    if split not in SPLITS:
        raise MusiccmError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if not root.is_dir():
        raise MusiccmError(
            f"{root}: no such corpus folder; expected {split}/ and label/ in it. "
            f"`musiccm prepare demo --out {root}` writes one"
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


def _scan(
    root: Path, split: str, paths: list[Path], min_duration_s: float, workers: int | None
) -> dict[str, AudioFacts | BadAudio]:
    """Facts, or what is wrong, of every file by name; from the remembered scan where size and time still agree."""
    cache_path = root / f".scan-{split}.json"
    known = _read_cache(cache_path, min_duration_s)

    def stamp(path: Path) -> list[int]:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]

    def scan(path: Path) -> dict:
        remembered = known.get(path.name)
        if remembered and remembered["stamp"] == stamp(path):
            return remembered
        try:
            return {"stamp": stamp(path), "facts": asdict(scan_audio(path, min_duration_s))}
        except BadAudio as error:
            return {"stamp": stamp(path), "reason": error.reason, "detail": error.detail}

    # Threads suffice: libsndfile decodes without holding the interpreter's lock.
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        entries = dict(zip((p.name for p in paths), pool.map(scan, paths), strict=True))
    if entries != known:
        fresh = {"version": _SCAN_VERSION, "min_duration_s": min_duration_s, "files": entries}
        _write_if_possible(cache_path, lambda: write_json(cache_path, fresh))

    def result(path: Path, entry: dict) -> AudioFacts | BadAudio:
        return AudioFacts(**entry["facts"]) if "facts" in entry else BadAudio(path, entry["reason"], entry["detail"])

    return {path.name: result(path, entries[path.name]) for path in paths}


def _read_cache(path: Path, min_duration_s: float) -> dict[str, dict]:
    try:
        cache = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = isinstance(cache, dict) and (cache.get("version"), cache.get("min_duration_s")) == (
        _SCAN_VERSION, min_duration_s)
    files = cache.get("files") if same else None
    return files if isinstance(files, dict) else {}


def _write_if_possible(path: Path, write) -> None:
    """Corpora often lie on read-only storage: what is written beside them is a convenience, so say so and go on."""
    try:
        write()
    except MusiccmError as error:
        log.warning("%s", error)
