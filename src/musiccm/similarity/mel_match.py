"""A second opinion on two pieces of audio: does the one occur in the other? Sliding correlation of log-mels.

An embedding forgets when things happen, so music of one kind is close to all music of that kind. A copy has the same
notes at the same moments, and nothing else has: mel similarity finds copies more surely than embeddings do (Bralios et
al., arXiv 2310.10604). Each mel bin's mean over the piece is taken away first, so that neither the level nor the tone
colour that all music shares counts, and the rest is correlated over all bins at every offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from musiccm.audio.io import open_audio, read_audio
from musiccm.audio.mel import LogMel
from musiccm.audio.resample import resample
from musiccm.errors import MusiccmError

# Bins further than this below the loudest (52 dB) are raised to it: what lies there is noise or its absence.
RANGE = 6.0
# Mean square of a piece's changes below which it is a held tone or silence, which fits anywhere.
FLAT = 1e-3
# Audio that is transformed at a time; a recording may be hours long.
PIECE_S = 60.0


class MelMatch(NamedTuple):
    """The best place found.

    Args:
        correlation: In [-1, 1]; 1 for a copy, whatever its level.
        query_s: Where the matching segment begins in the query's audio.
        target_s: Where it begins in the target's.
        segment_s: Its length.
    """

    correlation: float
    query_s: float
    target_s: float
    segment_s: float


def above_floor(mel_MN: Tensor) -> Tensor:
    """Raise what lies far below the loudest bin, float64."""
    return mel_MN.double().clamp(min=float(mel_MN.max()) - RANGE)


def sliding_correlation(query_MN: Tensor, target_MN: Tensor) -> Tensor:
    """Pearson correlation, about the means of the bins, of a piece with another at every offset.

    With q and t the two pieces less each bin's own mean over the frames that are compared, this is
    `sum q t / sqrt(sum q^2 sum t^2)` over frames and bins; the sums over frames by FFT and by running sums.

    Args:
        query_MN: Log-mel of the shorter piece.
        target_MN: Log-mel of the longer.

    Returns:
        `[M_target - M_query + 1]`, float64; 0 where either piece does not change.

    Raises:
        MusiccmError: The query is longer, or the bins differ.
    """
    frames, bins = query_MN.shape
    total = target_MN.shape[0]
    if frames > total or not frames or target_MN.shape[1] != bins:
        raise MusiccmError(f"sliding correlation: expected a query no longer than its target and equal bins, found "
                           f"{list(query_MN.shape)} and {list(target_MN.shape)}")
    query = query_MN.double() - query_MN.double().mean(dim=0)
    # Any constant may be taken from a bin of the target; one near its mean keeps the running sums exact.
    target = target_MN.double() - target_MN.double().mean(dim=0)
    size = 1 << (total + frames - 1).bit_length()
    product = torch.fft.rfft(target, size, dim=0) * torch.fft.rfft(query, size, dim=0).conj()
    # The query has no mean left, so that of the target under it falls out of the product by itself.
    numerator = torch.fft.irfft(product.sum(dim=1), size)[: total - frames + 1]
    sums = torch.nn.functional.pad(torch.stack([target, target.square()]).cumsum(dim=1), (0, 0, 1, 0))
    inside = sums[:, frames:] - sums[:, :-frames]
    energy = (inside[1] - inside[0].square() / frames).sum(dim=1)
    flat = FLAT * frames * bins
    own = query.square().sum()
    moving = (energy > flat) & (own > flat)
    return torch.where(moving, numerator / (own * energy).clamp(min=flat * flat).sqrt(), 0.0).clamp(-1, 1)


class MelMatcher:
    """Looks for segments of a query's audio in another file.

    Args:
        log_mel: The front end.
        segment_s: Length of the segments that are looked for: a copy of part of a clip is one too. Shorter audio is one
            segment.
    """

    def __init__(self, log_mel: LogMel, segment_s: float = 5.0) -> None:
        self.log_mel = log_mel
        self.rate = log_mel.config.sample_rate_hz
        self.frame_s = log_mel.config.hop_length / self.rate
        self.segment_frames = max(1, round(segment_s / self.frame_s))

    @torch.no_grad()
    def mel(self, path: str | Path, start_s: float = 0.0, duration_s: float | None = None) -> Tensor:
        """Log-mel `[M, N]` of a range of a file.

        Raises:
            BadAudio: The file cannot be used.
        """
        waveform_S, rate = read_audio(path, start_s, duration_s, allow_silent=True)
        waveform_S = resample(waveform_S - waveform_S.mean(), rate, self.rate)
        short = self.log_mel.config.n_fft // 2 + 1 - len(waveform_S)
        return self.log_mel(torch.nn.functional.pad(waveform_S, (0, max(0, short)))[None])[0]

    def find(
        self, query: str | Path, start_s: float, duration_s: float | None, target: str | Path
    ) -> MelMatch:
        """Look for a window of one file anywhere in another.

        Args:
            query: The generated clip.
            start_s: Where its window begins.
            duration_s: Its length; None looks for all of the clip.
            target: The training clip; all of it is searched.

        Returns:
            The best place of any segment, half a segment apart.

        Raises:
            BadAudio: A file cannot be used.
        """
        mel = above_floor(self.mel(query, start_s, duration_s))
        frames = min(self.segment_frames, len(mel))
        best = MelMatch(-1.0, start_s, 0.0, frames * self.frame_s)
        for offset_s, piece in self._pieces(target, frames):
            for first in segment_starts(len(mel), frames):
                found = match(mel[first : first + frames], above_floor(piece))
                if found[0] > best.correlation:
                    best = MelMatch(found[0], start_s + (first + found[1]) * self.frame_s,
                                    offset_s + found[2] * self.frame_s, found[3] * self.frame_s)
        return best

    def _pieces(self, path: str | Path, frames: int) -> Iterator[tuple[float, Tensor]]:
        """Pieces of a file with their start, overlapping by a segment."""
        with open_audio(path) as file:  # the length is asked of the file itself: the index may be older than it
            total_s = file.frames / file.samplerate
        start_s, overlap_s = 0.0, frames * self.frame_s
        while True:
            yield start_s, self.mel(path, start_s, PIECE_S + overlap_s)
            start_s += PIECE_S
            if start_s + overlap_s >= total_s:  # the piece before reached the end
                return


def segment_starts(frames: int, segment: int) -> list[int]:
    """Where segments begin: half a segment apart, the last at the end."""
    return sorted({*range(0, frames - segment + 1, max(1, segment // 2)), frames - segment})


def match(query_MN: Tensor, target_MN: Tensor) -> tuple[float, int, int, int]:
    """Correlation, first frame in the query, first frame in the target, frames, of the best offset.

    The shorter of the two is slid along the longer.
    """
    if len(query_MN) <= len(target_MN):
        values = sliding_correlation(query_MN, target_MN)
        at = int(values.argmax())
        return float(values[at]), 0, at, len(query_MN)
    values = sliding_correlation(target_MN, query_MN)
    at = int(values.argmax())
    return float(values[at]), at, 0, len(target_MN)
