"""Every file of a folder embedded by CLAP, and saying which could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from musiccm.audio.facts import facts_of
from musiccm.audio.io import SILENCE_PEAK
from musiccm.data.audio_folder import FolderClip, read_audio_folder
from musiccm.data.corpora.report import BadItem
from musiccm.errors import MusiccmError
from musiccm.progress import Progress
from musiccm.similarity.clap_windows import ClapWindows, FileWindows, middle
from musiccm.texts import escaped

MIN_DURATION_S = 1.0


@dataclass
class FolderFeatures:
    """CLAP's features of a folder.

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


def embed_folder(
    clap: ClapWindows, folder: Path, most_windows: int | None = None, progress: bool = True
) -> FolderFeatures:
    """Embed every usable file of a folder.

    Args:
        clap: CLAP.
        folder: The folder, searched through.
        most_windows: Take only so many windows, in the middle of each file.
        progress: Whether to show a progress bar.

    Returns:
        The rows, and what was left out and why.

    Raises:
        MusiccmError: No such folder, or no file that can be used.
    """
    files = []
    found = read_audio_folder(folder, MIN_DURATION_S)
    for clip in found.clips:
        starts = clap.starts(clip.audio)
        chosen = starts[middle(len(starts), most_windows)] if most_windows else starts
        files.append(FileWindows(str(clip.path), clip.audio, chosen))
    with Progress(sum(len(file.starts) for file in files), f"embedding {folder}", "window", progress) as bar:
        rows = clap.embed(files, bar.update)
    embedded = _joined(clap, folder, found.clips, files, rows.split([len(file.starts) for file in files]))
    embedded.left_out = [*found.left_out, *found.others, *embedded.left_out]
    return _required(embedded, folder)


class WindowCollector:
    """Embeds the windows of files that someone else decodes, so that no file is decoded twice.

    Args:
        clap: CLAP.
        folder: Where the files are.
        channel: What the facts of the clips are of: where it is not the `mean` of the channels, facts are taken anew.
    """

    def __init__(self, clap: ClapWindows, folder: Path, channel: str = "mean") -> None:
        self.clap, self.folder, self.channel = clap, folder, channel
        self._clips: list[tuple[FolderClip, FileWindows]] = []
        self._left_out: list[BadItem] = []
        self._waiting: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, clip: FolderClip, whole_S: Tensor) -> None:
        """Take the windows of a file.

        Args:
            clip: The file.
            whole_S: The mean of its channels, all of it.
        """
        facts = clip.audio
        if self.channel != "mean":
            facts = facts_of(whole_S.numpy(), facts.sample_rate_hz, facts.channels)
        if facts.duration_s < MIN_DURATION_S:
            detail = f"{facts.duration_s:.2f} s, expected at least {MIN_DURATION_S:.2f} s"
            self._left_out.append(BadItem(clip.id, escaped(clip.path), "too_short", detail))
            return
        if facts.peak < SILENCE_PEAK:
            self._left_out.append(BadItem(clip.id, escaped(clip.path), "silent", "the mean of its channels"))
            return
        file = FileWindows(str(clip.path), facts, self.clap.starts(facts))
        self._clips.append((clip, file))
        for start in file.starts:
            self._waiting.append(self.clap.window(file, start, whole_S))
            if len(self._waiting) == self.clap.batch_size:
                self._embed()

    def finish(self) -> FolderFeatures:
        """What was found, in the order of the folder.

        Raises:
            MusiccmError: No file that can be used.
        """
        self._embed()
        counts = [len(file.starts) for _, file in self._clips]
        rows = torch.cat(self._rows).split(counts) if self._rows else ()
        order = sorted(range(len(self._clips)), key=lambda n: self._clips[n][0].path)
        clips, files = [self._clips[n][0] for n in order], [self._clips[n][1] for n in order]
        embedded = _joined(self.clap, self.folder, clips, files, [rows[n] for n in order])
        embedded.left_out = [*self._left_out, *embedded.left_out]
        return _required(embedded, self.folder)

    def _embed(self) -> None:
        if self._waiting:
            self._rows.append(self.clap.rows_of(self._waiting))
            self._waiting = []


def _joined(
    clap: ClapWindows, folder: Path, clips: Sequence[FolderClip], files: Sequence[FileWindows], rows: Sequence[Tensor]
) -> FolderFeatures:
    embedded, kept = FolderFeatures(), []
    for clip, file, mine in zip(clips, files, rows, strict=True):
        if not bool(mine.any()):  # only where the windows in the middle are silent, and the file is not
            embedded.left_out.append(BadItem(clip.id, escaped(file.path), "silent", "in all windows"))
            continue
        if not bool(torch.isfinite(mine).all()):
            raise MusiccmError(f"{file.path}: CLAP gave NaN; check the weights")
        embedded.ids.append(escaped(clip.path.relative_to(folder)))
        embedded.names.append(clip.id)
        embedded.paths.append(file.path)
        embedded.starts_s.append([start / clap.sample_rate_hz for start in file.starts])
        kept.append(mine)
    embedded.rows = torch.cat(kept) if kept else embedded.rows
    return embedded


def _required(embedded: FolderFeatures, folder: Path) -> FolderFeatures:
    if not embedded.ids:
        reasons = sorted({item.reason for item in embedded.left_out})
        raise MusiccmError(f"{folder}: no audio that can be used: {len(embedded.left_out)} files were left out "
                           f"({', '.join(reasons)})")
    return embedded
