"""What an edit made, what of it is the clip's own, and both in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from musiccm.audio.original import write_original, written_form


@dataclass(frozen=True)
class Edited:
    """What an edit made.

    The clip's loudness is in it already: whoever changes levels must leave the kept samples as they are.

    Args:
        waveform_CS: The sound, of the clip's channels, on the CPU: float32, or float64 where the clip has more bits.
        sample_rate_hz: The clip's rate.
        form: What holds the clip's samples without loss, see `Original`.
        kept: Stretches `(first, last)` of samples, `last` not among them, that are the clip's own, bit for bit; none in
            a variation.
        fades: Stretches in which the clip and new sound fade into each other.
        seams_s: Where new sound begins, and ends, in seconds.
        gain_db: What the new sound was multiplied by, channel by channel, to be as loud as the clip around it.
        limited_db: How far peaks of new sound were held down; 0 where none was.
        z_CTF: Latents of the part that the model looked at.
        kept_T: Its frames that are the clip's.
    """

    waveform_CS: Tensor
    sample_rate_hz: int
    form: str
    kept: list[tuple[int, int]]
    fades: list[tuple[int, int]]
    seams_s: list[float]
    gain_db: list[float]
    limited_db: float
    z_CTF: Tensor
    kept_T: Tensor

    @property
    def seconds(self) -> float:
        """Length of the whole."""
        return self.waveform_CS.shape[1] / self.sample_rate_hz

    @property
    def kept_s(self) -> list[tuple[float, float]]:
        """`kept` in seconds."""
        return [(first / self.sample_rate_hz, last / self.sample_rate_hz) for first, last in self.kept]

    def holds(self, suffix: str) -> bool:
        """Whether a file of this suffix keeps the kept samples to the bit."""
        return written_form(self.form, suffix.lower())[1]

    def write(self, path: str | Path, replace: bool = True) -> None:
        """Write it in the clip's own sample format, where the file's has it.

        Args:
            path: Where to; the suffix picks the format.
            replace: Whether a file that is there may be replaced.

        Raises:
            MusiccmError: As `write_original`.
        """
        write_original(path, self.waveform_CS, self.sample_rate_hz, self.form, replace)

    def says(self, suffix: str = ".wav") -> str:
        """One sentence: what is kept to the sample, and where the new sound is.

        Args:
            suffix: Of the file that it is written to; not all hold every sample.
        """
        if not self.kept:
            return "all of it is new sound, and no sample of the clip is kept"
        held = "is kept to the sample" if self.holds(suffix) else \
            f"is the clip's own sound, which {suffix} does not hold to the sample"
        clipped = sum(int((self.waveform_CS[:, first:last].abs() > 1).any(0).sum()) for first, last in self.kept)
        if clipped and not self.holds(suffix):
            held += f" ({clipped:,} of its samples are beyond full scale and are clipped; .wav would keep them)"
        return (f"what lies {_spans(self.kept_s)} {held}, what lies {_spans(self._new_s())} is new, and over the "
                f"{self._fade_s():.2g} s between, one fades into the other")

    def _new_s(self) -> list[tuple[float, float]]:
        """Where there is no sample of the clip at all, in seconds."""
        ends = [0, *(place for span in sorted([*self.kept, *self.fades]) for place in span), self.waveform_CS.shape[1]]
        pairs = zip(ends[::2], ends[1::2], strict=True)
        return [(first / self.sample_rate_hz, last / self.sample_rate_hz) for first, last in pairs if first < last]

    def _fade_s(self) -> float:
        return max((last - first) / self.sample_rate_hz for first, last in self.fades)


def _spans(spans_s: list[tuple[float, float]]) -> str:
    return " and ".join(f"from {first:.2f} to {last:.2f} s" for first, last in spans_s)
