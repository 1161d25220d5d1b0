"""Hearing every file of a folder with CLAP, and saying which could not be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from musiccm.audio.io import AUDIO_SUFFIXES
from musiccm.data.audio_folder import read_audio_folder
from musiccm.errors import MusiccmError
from musiccm.metrics.clap_windows import ClapWindows, HeardFile, middle
from musiccm.progress import Progress

MIN_DURATION_S = 1.0


@dataclass
class HeardFolder:
    """What CLAP heard in a folder.

    Args:
        ids: Path of each usable file within the folder.
        paths: Its path.
        starts_s: Where the windows of each begin.
        rows: Embeddings of all windows, clip after clip, `[W, D]`.
        left_out: Files that were not used, with reason and detail.
    """

    ids: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    starts_s: list[list[float]] = field(default_factory=list)
    rows: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    left_out: list[dict[str, str]] = field(default_factory=list)


def hear_folder(ear: ClapWindows, folder: Path, most_windows: int | None = None) -> HeardFolder:
    """Hear every usable file of a folder.

    Args:
        ear: CLAP.
        folder: The folder, searched through.
        most_windows: Hear only so many windows, in the middle of each file.

    Returns:
        What was heard, and what was left out and why.

    Raises:
        MusiccmError: No such folder, or no file that can be used.
    """
    heard, files = HeardFolder(), []
    found = read_audio_folder(folder, MIN_DURATION_S)
    heard.left_out += [_left_out(path, "not_audio", f"expected {', '.join(AUDIO_SUFFIXES)}") for path in found.others]
    heard.left_out += [_left_out(Path(item.path), item.reason, item.detail) for item in found.left_out]
    for clip in found.clips:
        starts = ear.starts(clip.audio)
        chosen = starts[middle(len(starts), most_windows)] if most_windows else starts
        files.append(HeardFile(str(clip.path), clip.audio, chosen))
    with Progress(sum(len(file.starts) for file in files), f"hearing {folder}", "window") as bar:
        rows = ear.embed(files, bar.update)
    first = 0
    kept = []
    for file in files:
        mine = rows[first : first + len(file.starts)]
        first += len(file.starts)
        if not bool(mine.any()):  # only where the windows in the middle are silent, and the file is not
            heard.left_out.append(_left_out(Path(file.path), "silent", "in all the windows that were heard"))
            continue
        if not bool(torch.isfinite(mine).all()):
            raise MusiccmError(f"{file.path}: CLAP gave NaN; check the weights")
        heard.ids.append(Path(file.path).relative_to(folder).as_posix())
        heard.paths.append(file.path)
        heard.starts_s.append([start / ear.sample_rate_hz for start in file.starts])
        kept.append(mine)
    if not kept:
        reasons = sorted({item["reason"] for item in heard.left_out})
        raise MusiccmError(f"{folder}: no audio that can be used: {len(heard.left_out)} files were left out "
                           f"({', '.join(reasons)})")
    heard.rows = torch.cat(kept)
    return heard


def _left_out(path: Path, reason: str, detail: str) -> dict[str, str]:
    return {"path": str(path), "reason": reason, "detail": detail}
