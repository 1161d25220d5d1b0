"""Filling a folder with the demo corpus: whose folder it is, and all tracks in parallel."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from musiccm.data.demo.instruments import share_tones
from musiccm.errors import MusiccmError
from musiccm.failures import why_not_written
from musiccm.files import sweep_below, temporary_beside, write_json
from musiccm.locks import locked_folder
from musiccm.progress import Progress
from musiccm.signals import in_worker, leaving_queue
from musiccm.texts import load_json, read_text

#: Raised whenever the same (seed, index) would sound different.
COMPOSER_VERSION = 1
#: The same of the same music under more captions (`paraphrases`), whose words count too.
PARAPHRASED_VERSION = 1
#: And of the world of events, likewise.
EVENTS_VERSION = 1


@contextmanager
def claimed(out: Path, tracks: int, identity: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for a demo corpus while it is written.

    Args:
        out: The folder; a new one, or one that was begun with the same identity.
        tracks: Training tracks.
        identity: What decides the corpus' content.

    Raises:
        MusiccmError: It holds another corpus or something else, another process writes it, or a file cannot be written.
    """
    if tracks < 1:
        raise MusiccmError(f"--tracks must be at least 1, found {tracks}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked_folder(out):
            sweep_below(out)
            _check_owner(out, dict(identity))
            yield
    except OSError as error:
        where = Path(error.filename) if error.filename else out
        message = f"{out}: the demo corpus could not be written: {why_not_written(error, where)}"
        raise MusiccmError(message) from error


def track_counts(tracks: int, test_tracks: int | None = None, validation_tracks: int | None = None) -> dict[str, int]:
    """How many tracks each split has.

    Args:
        tracks: Training tracks.
        test_tracks: Held-out tracks, by default an eighth of `tracks` and at least 16.
        validation_tracks: By default a fifteenth of `tracks` and at least 4; 0 for no validation split.

    Returns:
        The number by split.
    """
    return {
        "train": tracks, "test": max(16, tracks // 8) if test_tracks is None else test_tracks,
        "validation": max(4, tracks // 15) if validation_tracks is None else validation_tracks,
    }


def write_all(
    write: Callable[[Path, int, str, int], Any], out: Path, seed: int, counts: Mapping[str, int], workers: int | None,
) -> None:
    """Write all tracks in parallel, with a progress bar.

    Args:
        write: `write(out, seed, split, index)` writes one; it must be importable by other processes.
        out: The folder.
        seed: Decides every byte.
        counts: Tracks by split.
        workers: Processes, by default one a core.
    """
    with temporary_beside(out / "tones") as tones, _workers(workers or os.cpu_count(), tones) as pool:
        for split, count in counts.items():
            if count:
                done = pool.map(partial(write, out, seed, split), range(count))
                with Progress(count, f"rendering {split}", "track") as bar:
                    for _ in done:
                        bar.update()


@contextmanager
def _workers(count: int | None, tones: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes that are ended at once where an exception or a signal ends the work: files are written whole."""
    tones.mkdir()
    with leaving_queue(ProcessPoolExecutor(count, initializer=_begin, initargs=(tones,))) as pool:
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin(tones: Path) -> None:
    in_worker()
    share_tones(tones)


def _check_owner(root: Path, identity: dict[str, Any]) -> None:
    manifest = root / "corpus.json"
    if not manifest.exists():
        if any(root.glob("*/*")):
            raise MusiccmError(f"{root} is not empty and has no corpus.json: choose a new folder for the demo corpus.")
        write_json(manifest, identity)
        return
    try:
        found = load_json(read_text(manifest))
    except ValueError as error:
        raise MusiccmError(f"{manifest}: not a JSON file ({error}); remove {root} or choose another --out.") from error
    if found != identity:
        raise MusiccmError(f"{manifest} says {found}, asked for {identity}: remove {root} or choose another --out.")
