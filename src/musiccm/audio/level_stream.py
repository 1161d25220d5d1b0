"""The level of sound that is still being made: a gain that knows what came, and half a second more."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from torch import Tensor

from musiccm.audio.limiter import limiter_context, limiting_gain
from musiccm.audio.loudness import (
    NEAR_SILENCE_LUFS,
    PEAK_CONTEXT,
    RunningLoudness,
    decibels,
    frame_samples,
    lufs_text,
    peaks_around,
)
from musiccm.audio.output_level import (
    CEILING_DBTP,
    MOST_LIMITING_DB,
    SAFE_CEILING,
    TARGET_LUFS,
    check_level,
    faded,
)

#: Frames of 0.1 s that the gain of a frame may know ahead, held back for that.
AHEAD = 5
#: Largest gain that a stream begins with: what it will be like is not known yet.
FIRST_GAIN_DB = 12.0
#: How fast the gain may move, in dB a frame: up slowly, as nobody should notice, and down before a loud passage begins.
RISE_DB, FALL_DB = 0.1, 2.0


class LevelStream:
    """Brings sound to a level while it comes, in constant memory, with the same samples for any chunks.

    The rule. Every 0.1 s the gain moves towards its aim, up by 1 dB a second at most and down by 20. `loudness` aims at
    -18 LUFS less the gated loudness of the last 60 s of what is known, which is all that was given out and the 0.5 s
    after it, and at no more than presses the peaks so far by 6 dB. `peak` aims at -1 dBTP less the highest true peak so
    far; its gain never rises. The first gain is set by the first half second that is no silence, 12 dB at most. Peaks
    that the gain would let beyond -1 dBTP are limited, 80 ms ahead. What is below -60 LUFS changes nothing.
    The ends are faded within 10 ms where they cut a wave.

    Args:
        sample_rate_hz: Rate of the sound.
        level: `loudness` or `peak`; `none` gives the samples as they are, at once, and measures them all the same.

    Raises:
        MusiccmError: The level is unknown.

    Attributes:
        loudness: Of what came so far.
        gain_db: The gain at the end of the last frame that has one.
    """

    def __init__(self, sample_rate_hz: int, level: str) -> None:
        self.level = check_level(level)
        self.loudness = RunningLoudness(sample_rate_hz)
        self.gain_db = 0.0
        self._rate, self._size = sample_rate_hz, frame_samples(sample_rate_hz)
        self._context = limiter_context(sample_rate_hz)
        self._rest = np.zeros(0)  # less than a frame
        self._taken = self._given = 0  # samples
        self._peak, self._begun = 0.0, False
        silence = np.zeros(self._size)
        self._last = silence  # the frame that came last
        # Frames with the peaks around their samples, as far as these are known: of the samples `PEAK_CONTEXT` before.
        self._raw: deque[tuple[np.ndarray, np.ndarray]] = deque()  # wait for their gain
        self._gained = deque([(silence, silence)])  # wait for the limiter, behind one that is its context

    def push(self, waveform_S: Tensor) -> Tensor:
        """Take more sound.

        Args:
            waveform_S: Any number of samples, mono.

        Returns:
            Sound that is ready, float32 on the CPU, up to 0.7 s behind; often empty.
        """
        self._taken += len(waveform_S)
        self._rest = np.concatenate([self._rest, waveform_S.detach().cpu().double().numpy()])
        made: list[np.ndarray] = []
        while len(self._rest) >= self._size:
            frame_S, self._rest = self._rest[: self._size], self._rest[self._size :]
            self.loudness.push(frame_S)
            made += [] if self.level == "none" else self._frame(frame_S)
        return waveform_S if self.level == "none" else self._out(made, ends=False)

    def finish(self) -> Tensor:
        """What is left when no more sound comes.

        Returns:
            The last samples, float32 on the CPU; none at a second call.
        """
        self.loudness.settle()
        if self.level == "none":
            return torch.empty(0)
        rest_S, self._rest = self._rest, np.zeros(0)
        made = self._frame(np.pad(rest_S, (0, self._size - len(rest_S))))
        while self._given + len(made) * self._size < self._taken:
            made += self._frame(np.zeros(self._size))
        return self._out(made, ends=True)

    def silent_so_far(self, watch_s: float, ended: bool) -> str | None:
        """What was measured, in a few words, where all so far is near silence.

        Args:
            watch_s: Seconds after which this is said.
            ended: Whether no more comes, so that it is said of anything shorter too.
        """
        loudest = self.loudness.loudest_lufs
        if loudest >= NEAR_SILENCE_LUFS or not self._taken or not (ended or self._taken >= watch_s * self._rate):
            return None
        return f"{lufs_text(loudest)} at most in the first {self._taken / self._rate:.1f} s"

    def _frame(self, frame_S: np.ndarray) -> list[np.ndarray]:
        """Take a frame in; the one that it lets out, if any."""
        peaks_S = peaks_around(np.concatenate([self._last[-2 * PEAK_CONTEXT :], frame_S]))
        self._peak, self._last = max(self._peak, float(peaks_S.max())), frame_S
        self._raw.append((frame_S, peaks_S))
        if len(self._raw) <= AHEAD:
            return []
        before_db = self._move()
        ramp_db = before_db + (self.gain_db - before_db) * (np.arange(self._size) + 1) / self._size
        gain_S = 10 ** (ramp_db / 20)
        frame_S, peaks_S = self._raw.popleft()
        self._gained.append((frame_S * gain_S, peaks_S * gain_S))
        if len(self._gained) < 3:
            return []
        shown_S = np.concatenate([peaks_S for _, peaks_S in self._gained])
        first = self._size + PEAK_CONTEXT - self._context
        shown_S = shown_S[first : first + self._size + 2 * self._context]
        self._gained.popleft()
        return [self._gained[0][0] * limiting_gain(shown_S, self._rate, SAFE_CEILING)]

    def _move(self) -> float:
        """Choose the gain at the end of a frame; the one at its beginning is returned."""
        before_db, aim_db = self.gain_db, self._aim()
        if aim_db is not None and not self._begun:
            self._begun, before_db = True, min(aim_db, FIRST_GAIN_DB)  # all before it is near silence
            self.gain_db = before_db
        elif aim_db is not None:
            rise_db = RISE_DB if self.level == "loudness" else 0.0
            self.gain_db = min(max(aim_db, before_db - FALL_DB), before_db + rise_db)
        return before_db

    def _aim(self) -> float | None:
        """The gain that what is known calls for; None while it is near silence."""
        lufs, peak_db = self.loudness.lufs(NEAR_SILENCE_LUFS), decibels(self._peak)
        if lufs == -math.inf:
            return None
        if self.level == "peak":
            return CEILING_DBTP - peak_db
        return min(TARGET_LUFS - lufs, CEILING_DBTP + MOST_LIMITING_DB - peak_db)

    def _out(self, made: list[np.ndarray], ends: bool) -> Tensor:
        """Frames as sound, the ends faded."""
        first = self._given == 0
        sound_S = torch.from_numpy(np.concatenate([np.zeros(0), *made]).astype(np.float32))
        sound_S = sound_S[: self._taken - self._given]
        self._given += len(sound_S)
        if not len(sound_S):
            return sound_S
        return faded(sound_S, self._rate, begins=first, ends=ends)
