"""Mel spectrograms as pictures, in seconds and kilohertz."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from musiccm.audio.mel import MelConfig, bin_centres_hz
from musiccm.files import write_atomically

# One scale of brightness for all pictures, in the natural logarithm of a mel magnitude.
BRIGHTNESS = (-11.0, 1.5)


#: Frequencies that are named beside a picture, in kilohertz.
NAMED_KHZ = (0.25, 0.5, 1, 2, 4, 8, 16)
#: Size of one picture in inches, and of the heading's line.
PICTURE, LINE = (5.0, 2.6), 0.25


def mel_figure(mels: Sequence[tuple[str, Tensor]], config: MelConfig, title: str = "", stacked: bool = False):
    """Draw mels, time to the right, low frequencies at the bottom, all on one scale of brightness.

    Args:
        mels: Label of each picture and its log-mel, `[M, N]`.
        config: What they were made by, for seconds and kilohertz.
        title: Heading of the whole.
        stacked: Whether they stand below each other, which narrow cards show larger; side by side otherwise.

    Returns:
        A matplotlib figure with an Agg canvas.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(len(mels), 1)
    rows, columns = (count, 1) if stacked else (1, count)
    figure = Figure(figsize=(PICTURE[0] * columns + 0.8, PICTURE[1] * rows + LINE), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    centres = np.array(bin_centres_hz(config)) / 1000
    named = [khz for khz in NAMED_KHZ if centres[0] <= khz <= centres[-1]]
    image = None
    for axes, (label, mel_MN) in zip(grid.flat, mels, strict=False):
        seconds = len(mel_MN) * config.hop_length / config.sample_rate_hz
        image = axes.imshow(
            mel_MN.detach().float().cpu().T.numpy(), origin="lower", aspect="auto", interpolation="nearest",
            cmap="magma", vmin=BRIGHTNESS[0], vmax=BRIGHTNESS[1], extent=(0.0, seconds, -0.5, config.n_mels - 0.5),
        )
        axes.set_title(textwrap.fill(label, 60), fontsize=10)
        axes.set_yticks(np.interp(named, centres, np.arange(len(centres))), [f"{khz:g}" for khz in named])
        axes.tick_params(labelsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("kHz", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=grid, label="ln of the mel magnitude", shrink=0.9, pad=0.01)
    figure.suptitle(title, fontsize=11, wrap=True)
    return figure


def save_mels(path: Path, mels: Sequence[tuple[str, Tensor]], config: MelConfig, title: str = "") -> None:
    """Write mels side by side as a PNG, whole or not at all.

    Args:
        path: The file.
        mels: Label of each picture and its log-mel, `[M, N]`.
        config: What they were made by.
        title: Heading of the whole.
    """
    figure = mel_figure(mels, config, title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def mel_image(mels: Sequence[tuple[str, Tensor]], config: MelConfig, title: str = "") -> np.ndarray:
    """Mels below each other as pixels, for TensorBoard.

    Args:
        mels: Label of each picture and its log-mel, `[M, N]`.
        config: What they were made by.
        title: Heading of the whole.

    Returns:
        Pixels, `[height, width, 3]`, uint8.
    """
    figure = mel_figure(mels, config, title, stacked=True)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
