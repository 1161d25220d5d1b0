"""Sound as a file holds it: every channel, at its own rate, to the last bit; and the same sound written again."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from musiccm.audio.io import AUDIO_SUFFIXES, SILENCE_PEAK, BadAudio, finite_samples, open_audio, write_blocks
from musiccm.audio.mp3 import Mp3File
from musiccm.errors import MusiccmError, NotFiniteError
from musiccm.files import write_bytes

log = logging.getLogger(__name__)

#: The form that holds every sample of a kind of file, by libsndfile's names; what is decoded from any other is FLOAT.
_FORMS = {**dict.fromkeys(("PCM_U8", "PCM_S8", "PCM_16", "ULAW", "ALAW", "ALAC_16"), "PCM_16"),
          **dict.fromkeys(("PCM_24", "ALAC_20", "ALAC_24"), "PCM_24"),
          **dict.fromkeys(("PCM_32", "ALAC_32"), "PCM_32"), "DOUBLE": "DOUBLE"}
_BITS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_WIDE = ("PCM_32", "DOUBLE")  # what float32 cannot hold
# Sizes in a wav are 32-bit numbers; a little of that is header.
_MOST_WAV_BYTES = 2**32 - 4096


@dataclass(frozen=True)
class Original:
    """The sound of a file as it is.

    Args:
        waveform_CS: Its samples, exactly: float32, or float64 where that has too few bits.
        sample_rate_hz: Their rate.
        form: What holds them without loss: `PCM_16`, `PCM_24`, `PCM_32`, `FLOAT` or `DOUBLE`.
    """

    waveform_CS: Tensor
    sample_rate_hz: int
    form: str

    @property
    def channels(self) -> int:
        """Channels."""
        return len(self.waveform_CS)

    @property
    def samples(self) -> int:
        """Samples a channel."""
        return self.waveform_CS.shape[1]

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.sample_rate_hz


def read_original(path: str | Path) -> Original:
    """Decode a whole file as it is.

    Args:
        path: A wav, flac, ogg or mp3 file.

    Returns:
        Its sound.

    Raises:
        BadAudio: The file is missing, unreadable, empty, silent or holds NaN.
    """
    with open_audio(path) as file:
        form = _FORMS.get(getattr(file, "subtype", ""), "FLOAT")
        samples_SC = finite_samples(file, -1, path, "float64" if form in _WIDE else "float32")
        if isinstance(file, Mp3File) and (wrong := file.index.cut or file.index.damage):
            log.warning("%s: %s; what is there was read", path, wrong)
        rate_hz = file.samplerate
    if len(samples_SC) == 0:
        raise BadAudio(path, "empty", "0 samples")
    if np.abs(samples_SC).max() < SILENCE_PEAK:
        raise BadAudio(path, "silent")
    return Original(torch.from_numpy(np.ascontiguousarray(samples_SC.T)), rate_hz, form)


def written_form(form: str, suffix: str) -> tuple[str | None, bool]:
    """How a file of some format holds samples of some form.

    Args:
        form: Of `Original`.
        suffix: `.wav`, `.flac`, `.ogg` or `.mp3`.

    Returns:
        libsndfile's name of the kind of samples, None for the format's own; and whether every sample stays what it is.
    """
    if suffix == ".wav":
        return form, True
    if suffix == ".flac":
        return (form, True) if form in ("PCM_16", "PCM_24") else ("PCM_24", False)
    return None, False


def encoded(waveform_CS: Tensor, sample_rate_hz: int, form: str, suffix: str, name: str) -> bytes:
    """A file's bytes.

    Args:
        waveform_CS: Samples of any number of channels. Integer forms clip what is beyond [-1, 1].
        sample_rate_hz: Their rate.
        form: See `Original`; another takes its place where the format lacks it (`written_form`).
        suffix: Of the format.
        name: Of the file, for messages.

    Returns:
        The bytes.

    Raises:
        MusiccmError: The samples are not finite or of no such shape, the suffix is unknown, or the format takes no such
            rate, number of channels or length.
    """
    if suffix not in AUDIO_SUFFIXES:
        raise MusiccmError(f"{name}: expected one of the suffixes {', '.join(AUDIO_SUFFIXES)}, found {suffix!r}")
    if waveform_CS.ndim != 2:
        raise MusiccmError(f"{name}: expected samples of shape [C, S], found shape {list(waveform_CS.shape)}; nothing "
                           "was written")
    if not bool(torch.isfinite(waveform_CS).all()):
        raise NotFiniteError(f"{name}: expected finite samples, found NaN or infinity; nothing was written")
    subtype, _ = written_form(form, suffix)
    samples_SC = waveform_CS.detach().cpu().numpy().T
    if subtype in _BITS:
        # libsndfile scales float64 by 2^31 - 1, which changes samples; integers it takes as they are.
        steps = 2.0 ** (_BITS[subtype] - 1)
        whole_SC = np.rint(samples_SC.astype(np.float64) * steps).clip(-steps, steps - 1)
        samples_SC = whole_SC.astype(np.int32) << (32 - _BITS[subtype])
    elif subtype is None:
        samples_SC = samples_SC.clip(-1, 1)
    if suffix == ".wav" and samples_SC.size * {"PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}.get(form, 4) > _MOST_WAV_BYTES:
        raise MusiccmError(f"{name}: a wav holds at most 4 GiB; cut the clip, or choose a name that ends in .flac")
    buffer = io.BytesIO()
    try:
        # Through memory, so that a full disk is an OSError with its cause; soundfile would fail an assertion.
        write_blocks(buffer, samples_SC, sample_rate_hz, subtype, suffix)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        why = str(error).rpartition(">: ")[2]  # libsndfile names the buffer in memory
        raise MusiccmError(f"{name}: {suffix[1:]} does not take {samples_SC.shape[1]} channel(s) at {sample_rate_hz} "
                           f"Hz ({why.rstrip('.')}); choose another format, .wav takes any") from error
    return buffer.getvalue()


def write_original(
    path: str | Path, waveform_CS: Tensor, sample_rate_hz: int, form: str, replace: bool = True
) -> None:
    """Write sound of a file's channels, rate and form, so that a killed process leaves no half file.

    Args:
        path: Where to; the suffix picks the format.
        waveform_CS: See `encoded`.
        sample_rate_hz: See `encoded`.
        form: See `encoded`.
        replace: Whether a file that is there may be replaced.

    Raises:
        MusiccmError: As `encoded`; or a file is there that may not be replaced, or the disk is full or not writable.
    """
    path = Path(path)
    write_bytes(path, encoded(waveform_CS, sample_rate_hz, form, path.suffix.lower(), str(path)), replace)
