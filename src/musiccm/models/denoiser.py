"""Networks behind the one denoiser contract, and the consistency function built on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from musiccm.diffusion import (
    AnyCondition,
    Condition,
    NoiseProcess,
    check_prediction_type,
    consistency_boundary,
    expand_to,
    to_eps,
    to_x0,
)


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 under any autocast and for any weight type.

    The last layer of a denoiser needs it: at the noisiest timestep the conversion to x0 divides an epsilon network's
    output by alpha = 0.0119, so rounding that output to bf16 costs 0.3 of a standard deviation.
    """

    @classmethod
    def sharing(cls, layer: nn.Conv2d) -> Float32Conv2d:
        """Make one that holds the very parameters of `layer`, so that optimizers and checkpoints see no difference.

        Args:
            layer: the convolution to replace.

        Returns:
            A layer with the same parameter objects and names.
        """
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__)
        return new

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x` in float32.

        Args:
            x: `[B, C, H, W]` of any floating type.

        Returns:
            The float32 result.
        """
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias)


class Denoiser(nn.Module):
    """A diffusers `UNet2DConditionModel` as `denoise(z_BCTF, t_B, cond_BD) -> x0_BCTF`.

    A vector goes in as class labels, which MusicLDM's U-Net projects and concatenates to the time embedding; tokens go
    in as what the network attends to, with their mask. The output layer and the conversion to x0 and eps run in float32
    under autocast too.

    Args:
        unet: the network. Its `conv_out` is replaced by a float32 one that shares the parameters (and their names).
        schedule: the noise process that the network was trained with; it says what the network is told as its time.
        prediction_type: one of `PREDICTION_TYPES`.

    Raises:
        MusiccmError: if `prediction_type` is unknown, or does not suit the noise process.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseProcess, prediction_type: str) -> None:
        super().__init__()
        self.prediction_type = check_prediction_type(prediction_type, schedule)
        self.schedule = schedule
        last: Any = getattr(unet, "conv_out", None)
        if type(last) is nn.Conv2d:
            unet.conv_out = Float32Conv2d.sharing(last)
        self.unet = unet

    def output(self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> Tensor:
        """The network's own prediction, unconverted.

        Args:
            z_BCTF: noisy latents.
            t_B: integer timesteps.
            cond_BD: vectors, or a `Condition`.

        Returns:
            eps, v, x0 or the flow in float32, according to `prediction_type`.
        """
        dtype = next(self.unet.parameters()).dtype
        given = cond_BD.to(dtype)
        told: dict[str, Any] = {"encoder_hidden_states": None, "class_labels": given}
        if isinstance(given, Condition):
            told = {"encoder_hidden_states": given.tokens_BLD, "encoder_attention_mask": given.mask_BL,
                    "class_labels": given.pooled_BD}
        (output,) = self.unet(z_BCTF.to(dtype), self.schedule.network_time(t_B), **told, return_dict=False)
        return output if output.dtype == torch.float64 else output.float()

    def predict(self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> tuple[Tensor, Tensor]:
        """One network call, read both ways.

        Args:
            z_BCTF: noisy latents.
            t_B: integer timesteps.
            cond_BD: vectors, or a `Condition`.

        Returns:
            `(x0, eps)`, float32, with `z = alpha x0 + sigma eps`.
        """
        output = self.output(z_BCTF, t_B, cond_BD)
        alpha, sigma = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        kind = self.prediction_type
        return to_x0(kind, output, z_BCTF, alpha, sigma), to_eps(kind, output, z_BCTF, alpha, sigma)

    def forward(self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> Tensor:
        """The denoiser contract.

        Args:
            z_BCTF: noisy latents.
            t_B: integer timesteps.
            cond_BD: vectors, or a `Condition`.

        Returns:
            The clean estimate x0, float32.
        """
        output = self.output(z_BCTF, t_B, cond_BD)
        return to_x0(self.prediction_type, output, z_BCTF, self.schedule.alpha(t_B), self.schedule.sigma(t_B))


class Consistency(nn.Module):
    """The consistency function `f(z, t, c) = c_skip(t) z + c_out(t) x0_theta(z, t, c)` (LCM, arXiv 2310.04378).

    Args:
        denoiser: anything that satisfies the denoiser contract.
        sigma_data: see `consistency_boundary`.
        timestep_scaling: see `consistency_boundary`.
    """

    def __init__(self, denoiser: nn.Module, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigma_data = sigma_data
        self.timestep_scaling = timestep_scaling

    def forward(self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition) -> Tensor:
        """Map noisy latents at any timestep to the clean end of their trajectory.

        Args:
            z_BCTF: noisy latents; at t = 0 they are returned as they are.
            t_B: integer timesteps.
            cond_BD: vectors, or a `Condition`.

        Returns:
            The clean estimate, float32 or better.
        """
        x0 = self.denoiser(z_BCTF, t_B, cond_BD)
        c_skip, c_out = consistency_boundary(t_B, self.sigma_data, self.timestep_scaling)
        return expand_to(c_skip, z_BCTF) * z_BCTF + expand_to(c_out, z_BCTF) * x0
