"""Mel spectrograms as pictures, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from musiccm.files import write_atomically

# One scale of brightness for all pictures, in the natural logarithm of a mel magnitude.
BRIGHTNESS = (-11.0, 1.5)


def mel_figure(mels: Mapping[str, Tensor], title: str = ""):
    """Draw mels side by side, time to the right, low bins at the bottom.

    Args:
        mels: Label of each picture and its log-mel, `[M, N]`.
        title: Heading of the whole.

    Returns:
        A matplotlib figure with an Agg canvas.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * max(len(mels), 1), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, max(len(mels), 1), squeeze=False, sharey=True)[0]
    for axes, (label, mel_MN) in zip(grid, mels.items(), strict=False):
        axes.imshow(
            mel_MN.detach().float().cpu().T.numpy(), origin="lower", aspect="auto", interpolation="nearest",
            cmap="magma", vmin=BRIGHTNESS[0], vmax=BRIGHTNESS[1],
        )
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("frame", fontsize=8)
        axes.tick_params(labelsize=7)
    grid[0].set_ylabel("mel bin", fontsize=8)
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure


def save_mels(path: Path, mels: Mapping[str, Tensor], title: str = "") -> None:
    """Write mels side by side as a PNG, whole or not at all.

    Args:
        path: The file.
        mels: Label of each picture and its log-mel, `[M, N]`.
        title: Heading of the whole.
    """
    figure = mel_figure(mels, title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


def mel_image(mels: Mapping[str, Tensor], title: str = "") -> np.ndarray:
    """The same picture as pixels, for TensorBoard.

    Args:
        mels: Label of each picture and its log-mel, `[M, N]`.
        title: Heading of the whole.

    Returns:
        Pixels, `[height, width, 3]`, uint8.
    """
    figure = mel_figure(mels, title)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
