"""What CLAP gets of a whole file: windows at a fixed hop, the same every time, on both sides of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from musiccm.audio import AudioFacts
from musiccm.audio.io import SILENCE_PEAK
from musiccm.audio.windows import PEAK, cut_window, read_window, resampled_length
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.conditioners.clap import ClapConditioner
from musiccm.signals import leaving_queue

# What of a bundle decides the embeddings of audio.
CLAP_PARTS = ("text_encoder", "feature_extractor")
#: Parts that `Bundle.conditioner` needs.
CONDITIONER_PARTS = (*CLAP_PARTS, "tokenizer")
# CLAP's mel is not indifferent to level, and its windows are cut from a levelled file, as training windows are.
PREPROCESSING = "whole file: mean removed, peak 0.5; windows padded as the feature extractor does"


def window_starts(samples: int, length: int, hop: int) -> list[int]:
    """Where windows begin: at every hop, the last shifted back so that it ends with the clip.

    Args:
        samples: Of the clip.
        length: Of a window.
        hop: Between windows.

    Returns:
        First samples, ascending; `[0]` where the clip is no longer than a window.
    """
    starts = list(range(0, max(0, samples - length) + 1, hop))
    return starts if starts[-1] + length >= samples else [*starts, samples - length]


def middle(count: int, wanted: int) -> slice:
    """The `wanted` windows in the middle of `count`, or all where there are fewer."""
    first = max(0, count - wanted) // 2
    return slice(first, first + min(count, wanted))


class FileWindows(NamedTuple):
    """One audio file to be embedded.

    Args:
        path: Where it is.
        facts: From `scan_audio`.
        starts: First sample of each window, at CLAP's rate.
    """

    path: str
    facts: AudioFacts
    starts: Sequence[int]


class ClapWindows:
    """Embeds windows of files with CLAP's audio tower.

    Args:
        clap: `(waveform_BS, sample_rate_hz) -> [B, D]`.
        fingerprint: Hash of its weights and preprocessing.
        sample_rate_hz: Its rate; windows are cut at this rate.
        window_samples: Length of a window.
        hop_samples: Between windows; half a window if not given.
        batch_size: Windows embedded at a time.
        workers: Threads that decode.

    Raises:
        MusiccmError: A window or hop that is not positive.
    """

    def __init__(
        self,
        clap: Callable[[Tensor, int], Tensor],
        fingerprint: str,
        sample_rate_hz: int,
        window_samples: int,
        hop_samples: int | None = None,
        batch_size: int = 16,
        workers: int = 2,
    ) -> None:
        self.clap, self.fingerprint, self.sample_rate_hz = clap, fingerprint, sample_rate_hz
        self.window_samples = window_samples
        self.hop_samples = window_samples // 2 if hop_samples is None else hop_samples
        self.batch_size, self.workers = batch_size, max(1, workers)
        if batch_size < 1:
            raise MusiccmError(f"batch_size: expected at least 1, found {batch_size}")
        if min(self.window_samples, self.hop_samples) < 1:
            raise MusiccmError(f"CLAP windows: expected a positive window and hop, found {window_samples} and "
                               f"{self.hop_samples} samples")

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, device: torch.device | str = "cpu", hop_s: float | None = None,
        window_samples: int | None = None, **kwargs: Any,
    ) -> ClapWindows:
        """The CLAP of a bundle.

        Args:
            bundle: The bundle.
            device: Where to compute.
            hop_s: Seconds between windows; half a window if not given.
            window_samples: Length of a window at CLAP's rate, at most its own; its own if not given.
            **kwargs: Passed to `ClapWindows`.

        Returns:
            The embedder.

        Raises:
            MusiccmError: As `of_conditioner`.
        """
        fingerprint = bundle.content_hash(CLAP_PARTS)
        return cls.of_conditioner(bundle.conditioner().to(device), fingerprint, hop_s, window_samples, **kwargs)

    @classmethod
    def of_conditioner(
        cls, conditioner: ClapConditioner, fingerprint: str, hop_s: float | None = None,
        window_samples: int | None = None, **kwargs: Any,
    ) -> ClapWindows:
        """Any CLAP.

        Args:
            conditioner: Its audio tower and the numbers of its extractor.
            fingerprint: Hash of its weights and preprocessing.
            hop_s: Seconds between windows; half a window if not given.
            window_samples: Length of a window at CLAP's rate, at most its own; its own if not given.
            **kwargs: Passed to `ClapWindows`.

        Returns:
            The embedder.

        Raises:
            MusiccmError: A hop that is not positive, or above the window: audio between windows would be left out.
        """
        front = conditioner.front_end
        rate, length = front.sample_rate_hz, window_samples or front.window_samples
        if hop_s is not None and not 0 < hop_s * rate <= length:
            raise MusiccmError(f"hop_s: expected more than 0 and at most the window of {length / rate:g} s, or audio "
                               f"would be passed over; found {hop_s:g}")
        hop_samples = None if hop_s is None else max(1, round(hop_s * rate))
        return cls(conditioner.audio, fingerprint, rate, length, hop_samples, **kwargs)

    def key(self) -> dict[str, Any]:
        """What the rows depend on."""
        return {"clap": self.fingerprint, "preprocessing": PREPROCESSING, "sample_rate_hz": self.sample_rate_hz,
                "window_samples": self.window_samples, "hop_samples": self.hop_samples}

    def starts(self, facts: AudioFacts) -> list[int]:
        """Where the windows of a file begin, in samples at CLAP's rate."""
        return window_starts(resampled_length(facts, self.sample_rate_hz), self.window_samples, self.hop_samples)

    def embed(self, files: Sequence[FileWindows], told: Callable[[int], Any] = lambda count: None) -> Tensor:
        """Embed all windows of some files, file after file.

        Args:
            files: What to embed.
            told: Told the number of windows of every batch.

        Returns:
            `[windows, D]`, float32, on the CPU; a silent window has the zero row, which is similar to nothing.

        Raises:
            BadAudio: A file changed since it was scanned, and cannot be used any more.
        """
        windows = [(file, start) for file in files for start in file.starts]
        rows = []
        for batch in self._read(windows):
            rows.append(self.rows_of(batch))
            told(len(batch))
        return torch.cat(rows) if rows else torch.empty(0, 0)

    def _read(self, windows: list[tuple[FileWindows, int]]) -> Iterator[list[Tensor]]:
        """Batches of waveforms, the next decoded while CLAP embeds the present one."""
        batches = [windows[n : n + self.batch_size] for n in range(0, len(windows), self.batch_size)]
        with leaving_queue(ThreadPoolExecutor(self.workers)) as pool:
            ahead: list[Any] = []
            for batch in batches:
                ahead.append([pool.submit(self.window, file, start) for file, start in batch])
                if len(ahead) == 2:
                    yield [future.result() for future in ahead.pop(0)]
            for futures in ahead:
                yield [future.result() for future in futures]

    def window(self, file: FileWindows, start: int, whole_S: Tensor | None = None) -> Tensor:
        """One window of a file as CLAP is to have it; zeros where it is silent.

        Args:
            file: The file.
            start: First sample, at CLAP's rate.
            whole_S: The mean of its channels where it is decoded already; None reads what is needed.

        Returns:
            The waveform.

        Raises:
            BadAudio: The file changed since it was scanned, and cannot be used any more.
        """
        # CLAP repeats clips shorter than its window, so they come to it without zeros behind them.
        length = min(self.window_samples, resampled_length(file.facts, self.sample_rate_hz))
        if whole_S is None:
            window = read_window(file.path, file.facts, length, self.sample_rate_hz, start)
        else:
            window = cut_window(lambda first, frames: whole_S[first : first + frames], file.facts, length,
                                self.sample_rate_hz, start)
        # At the file's own level, and about its own mean: a rest is constant, but the file's mean was taken from it.
        swing = float(window.max() - window.min()) / 2 * file.facts.peak / PEAK
        return window if swing >= SILENCE_PEAK else torch.zeros_like(window)

    @torch.inference_mode()
    def rows_of(self, batch: Sequence[Tensor]) -> Tensor:
        """The embeddings of some windows, `[windows, D]`; a silent one has the zero row."""
        rows: list[Tensor | None] = [None] * len(batch)
        lengths = sorted({len(waveform) for waveform in batch})
        for length in lengths:
            places = [place for place, waveform in enumerate(batch) if len(waveform) == length]
            embedded = self.clap(torch.stack([batch[place] for place in places]), self.sample_rate_hz).float().cpu()
            for place, row in zip(places, embedded, strict=True):
                rows[place] = row.clone() if bool(batch[place].any()) else torch.zeros_like(row)
        return torch.stack([row for row in rows if row is not None])
