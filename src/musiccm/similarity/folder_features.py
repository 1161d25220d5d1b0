"""Hearing every file of a folder with CLAP, and saying which could not be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from musiccm.data.audio_folder import read_audio_folder
from musiccm.data.corpora.report import BadItem
from musiccm.errors import MusiccmError
from musiccm.progress import Progress
from musiccm.similarity.clap_windows import ClapWindows, FileWindows, middle
from musiccm.texts import escaped

MIN_DURATION_S = 1.0


@dataclass
class FolderFeatures:
    """What CLAP heard in a folder.

    Args:
        ids: Path of each usable file within the folder, `escaped`.
        names: The same without the suffix: what `evaluate` knows it by.
        paths: Its path, as Python opens it.
        starts_s: Where the windows of each begin.
        rows: Embeddings of all windows, clip after clip, `[W, D]`.
        left_out: What was not used, with reason and detail.
    """

    ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    starts_s: list[list[float]] = field(default_factory=list)
    rows: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    left_out: list[BadItem] = field(default_factory=list)


def embed_folder(ear: ClapWindows, folder: Path, most_windows: int | None = None) -> FolderFeatures:
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
    heard, files = FolderFeatures(), []
    found = read_audio_folder(folder, MIN_DURATION_S)
    heard.left_out += [*found.left_out, *found.others]
    for clip in found.clips:
        starts = ear.starts(clip.audio)
        chosen = starts[middle(len(starts), most_windows)] if most_windows else starts
        files.append(FileWindows(str(clip.path), clip.audio, chosen))
    with Progress(sum(len(file.starts) for file in files), f"hearing {folder}", "window") as bar:
        rows = ear.embed(files, bar.update)
    first = 0
    kept = []
    for clip, file in zip(found.clips, files, strict=True):
        mine = rows[first : first + len(file.starts)]
        first += len(file.starts)
        if not bool(mine.any()):  # only where the windows in the middle are silent, and the file is not
            heard.left_out.append(BadItem(clip.id, escaped(file.path), "silent", "in all the windows that were heard"))
            continue
        if not bool(torch.isfinite(mine).all()):
            raise MusiccmError(f"{file.path}: CLAP gave NaN; check the weights")
        heard.ids.append(escaped(clip.path.relative_to(folder)))
        heard.names.append(clip.id)
        heard.paths.append(file.path)
        heard.starts_s.append([start / ear.sample_rate_hz for start in file.starts])
        kept.append(mine)
    if not kept:
        reasons = sorted({item.reason for item in heard.left_out})
        raise MusiccmError(f"{folder}: no audio that can be used: {len(heard.left_out)} files were left out "
                           f"({', '.join(reasons)})")
    heard.rows = torch.cat(kept)
    return heard
