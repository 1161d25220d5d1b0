"""A picture of sound, drawn without axes, so that a page can lay a cursor over it."""

from __future__ import annotations

import io
import math

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.mel import LogMel, MelConfig

MAX_WIDTH = 2000
"""Pixels; of longer sound, so many frames become one that the picture is no wider."""

RANGE_DB = 80.0


def spectrogram_png(waveform_S: Tensor, sample_rate_hz: int) -> bytes:
    """The log-mel of a sound, time to the right and pitch upwards, 80 dB from the loudest.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Their rate.

    Returns:
        A PNG, 128 pixels high, at most `MAX_WIDTH` wide.
    """
    import matplotlib.image

    config = MelConfig(sample_rate_hz=sample_rate_hz, n_fft=2048, win_length=2048, hop_length=sample_rate_hz // 100,
                       n_mels=128, fmax_hz=sample_rate_hz / 2)
    short = config.n_fft // 2 + 1 - len(waveform_S)
    mel_MN = LogMel(config)(F.pad(waveform_S, (0, max(0, short))))
    every = math.ceil(len(mel_MN) / MAX_WIDTH)
    if every > 1:
        mel_MN = mel_MN[: len(mel_MN) // every * every].unflatten(0, (-1, every)).amax(dim=1)
    picture_NM = np.flipud(mel_MN.T.numpy())
    highest = float(picture_NM.max())
    file = io.BytesIO()
    matplotlib.image.imsave(file, picture_NM, vmin=highest - RANGE_DB * math.log(10) / 20, vmax=highest, cmap="magma",
                            format="png")
    return file.getvalue()
