"""A piece of any length, made whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.bounds import check_duration
from musiccm.errors import MusiccmError
from musiccm.long_form.direct import piece_decoder
from musiccm.long_form.layout import lay_out
from musiccm.long_form.model import MusicModel
from musiccm.long_form.prompts import PromptPlan, Prompts
from musiccm.samplers import Stepper


def check_batch(batch_size: Any) -> int:
    """Refuse batches that hold nothing.

    Args:
        batch_size: What was asked for.

    Returns:
        It.

    Raises:
        MusiccmError: Not a whole number from 1 on.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise MusiccmError(f"batch_size: expected a whole number from 1 on, found {batch_size!r}")
    return batch_size


def compose(
    pipeline: MusicModel,
    prompts: Prompts,
    duration_s: float,
    stepper: Stepper,
    noise_seed: int | Sequence[int],
    *,
    overlap: float | None = None,
    fusion: str | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Make a piece of any length, in the way of the model (`piece_kind`).

    Args:
        pipeline: The model.
        prompts: One text, or `(start_s, text)` pairs.
        duration_s: Seconds, up to `MAX_WHOLE_S`; the sound has exactly this length.
        stepper: The sampler.
        noise_seed: Of the piece's noise, or one for each text.
        overlap: Shared part of neighbouring windows, from 0 to below 1.
        fusion: `uniform`, `triangular` or `swap`.
        batch_size: Windows a network call.

    Returns:
        Waveform of shape [S] on the CPU, float32.

    Raises:
        MusiccmError: For lengths, texts, overlaps or fusions out of range.
    """
    check_batch(batch_size)
    PromptPlan(prompts).require_within(check_duration(duration_s))
    piece = lay_out(pipeline, prompts, duration_s, stepper, noise_seed, overlap, fusion)
    piece.require_used()
    with torch.inference_mode():
        sound_S = decode_whole(pipeline, piece.sample(batch_size), batch_size)
    return sound_S[: piece.samples].clone()  # outside the mode: a tensor like any other


def decode_whole(pipeline: MusicModel, z_CTF: Tensor, batch_size: int = 8) -> Tensor:
    """Sound of a whole piece's latents.

    Args:
        pipeline: The model.
        z_CTF: Latents, at least a window long.
        batch_size: Windows decoded at once where there is a GPU; a CPU is fastest with one.

    Returns:
        Waveform of shape [S] on the CPU.
    """
    batch_size = batch_size if z_CTF.device.type != "cpu" else 1
    window = pipeline.latent_shape[1]
    if pipeline.codec.decoder is not None:  # takes any length: what would be a batch is one longer stretch
        window, batch_size = window * batch_size, 1
    decoder = piece_decoder(pipeline.codec, window, z_CTF.shape[1], batch_size)
    return decoder.push(z_CTF)
