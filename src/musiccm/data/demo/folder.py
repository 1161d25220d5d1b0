"""Filling a folder with the demo corpus: whose folder it is, and all tracks in parallel."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.files import write_json
from musiccm.progress import Progress

#: Raised whenever the same (seed, index) would sound different.
COMPOSER_VERSION = 1


@contextmanager
def claimed(out: Path, tracks: int, identity: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for a demo corpus while it is written.

    Args:
        out: The folder; a new one, or one that was begun with the same identity.
        tracks: Training tracks.
        identity: What decides the corpus' content.

    Raises:
        MusiccmError: It holds another corpus or something else, or a file cannot be written.
    """
    if tracks < 1:
        raise MusiccmError(f"--tracks must be at least 1, found {tracks}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_owner(out, dict(identity))
        yield
    except OSError as error:
        message = f"Cannot write the demo corpus in {out}: {error}. Free space or choose another --out."
        raise MusiccmError(message) from error


def write_all(
    write: Callable[[Path, int, str, int], Any], out: Path, seed: int, tracks: int, test_tracks: int | None,
    workers: int | None,
) -> dict[str, int]:
    """Write all tracks in parallel, with a progress bar.

    Args:
        write: `write(out, seed, split, index)` writes one; it must be importable by other processes.
        out: The folder.
        seed: Decides every byte.
        tracks: Training tracks.
        test_tracks: Held-out tracks, by default an eighth of `tracks` and at least 16.
        workers: Processes, by default one a core.

    Returns:
        The number of tracks by split.
    """
    counts = {"train": tracks, "test": max(16, tracks // 8) if test_tracks is None else test_tracks}
    for split, count in counts.items():
        with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
            done = pool.map(partial(write, out, seed, split), range(count), chunksize=8)
            with Progress(count, f"rendering {split}", "track") as bar:
                for _ in done:
                    bar.update()
    return counts


def _check_owner(root: Path, identity: dict[str, Any]) -> None:
    manifest = root / "corpus.json"
    if not manifest.exists():
        if any(root.glob("*/*")):
            raise MusiccmError(f"{root} is not empty and has no corpus.json: choose a new folder for the demo corpus.")
        write_json(manifest, identity)
        return
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MusiccmError(f"{manifest}: not a JSON file ({error}); remove {root} or choose another --out.") from error
    if found != identity:
        raise MusiccmError(f"{manifest} says {found}, asked for {identity}: remove {root} or choose another --out.")
