"""Looking closely at suspicious pairs: the second opinion, and the audio of both sides cut to where they match."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from musiccm.audio.io import BadAudio, read_audio, write_audio
from musiccm.errors import MusiccmError
from musiccm.similarity.mel_match import MelMatch, MelMatcher
from musiccm.texts import escaped


class Neighbour(NamedTuple):
    """A training clip near a generated one.

    Args:
        id: Its id.
        path: Its audio file.
        cosine: Highest CLAP cosine over all pairs of their windows.
        window_s: Where the generated clip's window of that pair begins.
        training_window_s: Where the training clip's begins.
    """

    id: str
    path: str
    cosine: float
    window_s: float
    training_window_s: float

    def as_dict(self) -> dict[str, Any]:
        """For `plagiarism.json`."""
        return {**self._asdict(), "path": escaped(self.path)}


@dataclass
class Suspect:
    """A generated clip with its nearest training clips, and what the second opinion says.

    Args:
        clip_id: Its id.
        path: Its audio file.
        neighbours: Nearest training clips, nearest first.
        matches: The second opinion on each; None where the training clip's audio could not be read.
        unread: Why not, for those.
        shown: Which neighbour is played on the page.
        likely_copy: Whether the correlation with any of them passes the threshold.
        audio: Cut audio within the report's folder: generated, then training; None where it could not be read.
    """

    clip_id: str
    path: str
    neighbours: list[Neighbour]
    matches: list[MelMatch | None] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    shown: int = 0
    likely_copy: bool = False
    audio: list[str | None] = field(default_factory=list)

    @property
    def correlation(self) -> float | None:
        """Of the pair that is played; None where it could not be taken."""
        match = self.matches[self.shown]
        return None if match is None else match.correlation

    @property
    def starts(self) -> tuple[float, float]:
        """Where the two sides of the pair that is played begin: for a likely copy, at the same moment of the music."""
        near, match = self.neighbours[self.shown], self.matches[self.shown]
        if match is None or not self.likely_copy:
            return near.window_s, near.training_window_s
        lead = min(match.query_s - near.window_s, match.target_s)
        return match.query_s - lead, match.target_s - lead

    def as_dict(self) -> dict[str, Any]:
        """For `plagiarism.json`."""
        mine, theirs = self.starts
        return {
            "id": self.clip_id, "path": escaped(self.path), "likely_copy": self.likely_copy,
            "correlation": self.correlation, "shown": self.neighbours[self.shown].id,
            "start_s": mine, "training_start_s": theirs, "audio": self.audio, "unread": self.unread,
            "nearest": [{**near.as_dict(), "mel": None if match is None else match._asdict()}
                        for near, match in zip(self.neighbours, self.matches, strict=True)],
        }


def examine(
    suspects: list[Suspect], matcher: MelMatcher, window_s: float, copy_above: float, out: Path | None
) -> dict[str, Any]:
    """Take a second opinion on each suspect, in place, and cut audio for the page.

    Args:
        suspects: Clips, nearest first.
        matcher: Looks for a generated window in a training clip.
        window_s: Length of CLAP's window.
        copy_above: Correlation above which a pair is a likely copy.
        out: The report's folder; None cuts no audio.

    Returns:
        How many were looked at, how many are likely copies, and the distribution of correlations.
    """
    for stale in [] if out is None else (out / "audio").glob("[0-9]*-*.flac"):
        stale.unlink()
    for number, suspect in enumerate(suspects):
        _compare(suspect, matcher, window_s, copy_above)
        if out is not None:
            suspect.audio = _cut(suspect, window_s, out, number + 1)
    taken = [s.correlation for s in suspects if s.correlation is not None]
    values = torch.tensor(taken, dtype=torch.float64)
    return {
        "threshold": copy_above, "segment_s": matcher.segment_frames * matcher.frame_s, "n": len(taken),
        "likely_copies": sum(suspect.likely_copy for suspect in suspects),
        "training_audio_unreadable": len(suspects) - len(taken),
        "median": float(values.median()) if taken else None, "highest": float(values.max()) if taken else None,
    }


def _compare(suspect: Suspect, matcher: MelMatcher, window_s: float, copy_above: float) -> None:
    for near in suspect.neighbours:
        try:
            suspect.matches.append(matcher.find(suspect.path, near.window_s, window_s, near.path))
        except BadAudio as error:
            suspect.matches.append(None)
            suspect.unread.append(str(error))
    correlations = [-1.0 if match is None else match.correlation for match in suspect.matches]
    best = max(range(len(correlations)), key=correlations.__getitem__)
    suspect.likely_copy = correlations[best] > copy_above
    # A copy is shown even where CLAP finds another clip nearer; of the others, CLAP's nearest.
    suspect.shown = best if suspect.likely_copy else 0


def _cut(suspect: Suspect, window_s: float, out: Path, number: int) -> list[str | None]:
    names: list[str | None] = []
    paths = (suspect.path, suspect.neighbours[suspect.shown].path)
    for path, start_s, side in zip(paths, suspect.starts, ("generated", "training"), strict=True):
        name = f"audio/{number:04d}-{side}.flac"
        try:
            waveform_S, rate = read_audio(path, max(0.0, start_s), window_s, allow_silent=True)
        except BadAudio as error:
            if side == "generated":
                raise MusiccmError(f"{path}: was read a moment ago, and cannot be any more: {error}") from error
            names.append(None)
            continue
        write_audio(out / name, waveform_S, rate)
        names.append(name)
    return names
