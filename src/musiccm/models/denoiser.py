"""Networks behind the one denoiser contract, and the consistency function built on it."""

from __future__ import annotations

from collections.abc import Mapping
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
    scale_of,
    to_eps,
    to_x0,
)
from musiccm.errors import MusiccmError

#: What `addition_embed_type` of a U-Net's configuration says where it has a guidance branch, and the name under which
#: such a U-Net is given its scale (`models/guidance_branch.py`).
GUIDANCE_BRANCH, SCALE_ARGUMENT = "guidance", "guidance_scale"


def takes_scale(config: Mapping[str, Any]) -> bool:
    """Whether a U-Net is told its guidance scale.

    Args:
        config: Its configuration.
    """
    return config.get("addition_embed_type") == GUIDANCE_BRANCH


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
    """A diffusers `UNet2DConditionModel` as `denoise(z_BCTF, t_B, cond_BD, s_B=None) -> x0_BCTF`.

    A vector goes in as class labels, which MusicLDM's U-Net projects and concatenates to the time embedding; tokens go
    in as what the network attends to, with their mask. A U-Net with `time_cond_proj_dim` takes a second time, whose
    embedding of that width it projects and adds to the first one's. One with a guidance branch is told the scale of the
    condition (`told_scale`). The output layer and the conversion to x0 and eps run in float32 under autocast too.

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
        self.second_time: int | None = getattr(getattr(unet, "config", None), "time_cond_proj_dim", None)
        self.takes_scale = takes_scale(getattr(unet, "config", None) or {})
        self.unet = unet

    def output(
        self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, s_B: Tensor | None = None
    ) -> Tensor:
        """The network's own prediction, unconverted.

        Args:
            z_BCTF: noisy latents.
            t_B: timesteps, which may lie between whole ones.
            cond_BD: vectors, or a `Condition`.
            s_B: the second time, of a network that takes one; t if left out.

        Returns:
            eps, v, x0 or the flow in float32, according to `prediction_type`.

        Raises:
            MusiccmError: a second time or a guidance scale for a network that takes none, or none for one that does.
        """
        dtype = next(self.unet.parameters()).dtype
        given = cond_BD.to(dtype)
        told: dict[str, Any] = {"encoder_hidden_states": None, "class_labels": given}
        if isinstance(given, Condition):
            told = {"encoder_hidden_states": given.tokens_BLD, "encoder_attention_mask": given.mask_BL,
                    "class_labels": given.pooled_BD}
        if (scale_B := scale_of(given)) is not None and not self.takes_scale:
            raise MusiccmError("guidance_scale: found one in the condition of a network that takes none; expected a "
                               "U-Net with a guidance branch (addition_embed_type: guidance in unet/config.json), as "
                               "distillation.guidance: variable trains one. Leave the scale out")
        if self.takes_scale and scale_B is None:
            raise MusiccmError("guidance_scale: found none in the condition of a network that must be told one (it has "
                               "a guidance branch: addition_embed_type: guidance in unet/config.json); expected "
                               "told_scale(condition, scale)")
        if scale_B is not None:
            told["added_cond_kwargs"] = {SCALE_ARGUMENT: scale_B}
        if self.second_time is not None:
            from diffusers.models.embeddings import get_timestep_embedding

            s = self.schedule.network_time(t_B if s_B is None else s_B)
            told["timestep_cond"] = get_timestep_embedding(s, self.second_time, flip_sin_to_cos=True,
                                                           downscale_freq_shift=0).to(dtype)
        elif s_B is not None:
            raise MusiccmError("denoise: found a second time for a network that takes one; expected a U-Net with "
                               "time_cond_proj_dim")
        (output,) = self.unet(z_BCTF.to(dtype), self.schedule.network_time(t_B), **told, return_dict=False)
        return output if output.dtype == torch.float64 else output.float()

    def predict(
        self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, s_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One network call, read both ways.

        Args:
            z_BCTF: noisy latents.
            t_B: timesteps, which may lie between whole ones.
            cond_BD: vectors, or a `Condition`.
            s_B: the second time, of a network that takes one; t if left out.

        Returns:
            `(x0, eps)`, float32, with `z = alpha x0 + sigma eps`.
        """
        output = self.output(z_BCTF, t_B, cond_BD, s_B)
        alpha, sigma = self.schedule.alpha(t_B), self.schedule.sigma(t_B)
        kind = self.prediction_type
        return to_x0(kind, output, z_BCTF, alpha, sigma), to_eps(kind, output, z_BCTF, alpha, sigma)

    def forward(
        self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, s_B: Tensor | None = None
    ) -> Tensor:
        """The denoiser contract.

        Args:
            z_BCTF: noisy latents.
            t_B: timesteps, which may lie between whole ones.
            cond_BD: vectors, or a `Condition`.
            s_B: the second time, of a network that takes one; t if left out.

        Returns:
            The clean estimate x0, float32.
        """
        output = self.output(z_BCTF, t_B, cond_BD, s_B)
        return to_x0(self.prediction_type, output, z_BCTF, self.schedule.alpha(t_B), self.schedule.sigma(t_B))


class Consistency(nn.Module):
    """The consistency function `f(z, t, c) = c_skip(t) z + c_out(t) x0_theta(z, t, c)` (LCM, arXiv 2310.04378).

    A network of two times is asked for the jump to clean, s = 0.

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

    def forward(self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, **told: Any) -> Tensor:
        """Map noisy latents at any timestep to the clean end of their trajectory.

        Args:
            z_BCTF: noisy latents; at t = 0 they are returned as they are.
            t_B: timesteps, which may lie between whole ones.
            cond_BD: vectors, or a `Condition`.
            **told: what such a denoiser takes beside, as `held_BT` of a `FrameDenoiser`.

        Returns:
            The clean estimate, float32 or better.
        """
        clean = [torch.zeros_like(t_B)] if getattr(self.denoiser, "second_time", None) is not None else []
        x0 = self.denoiser(z_BCTF, t_B, cond_BD, *clean, **told)
        c_skip, c_out = consistency_boundary(t_B, self.sigma_data, self.timestep_scaling)
        return expand_to(c_skip, z_BCTF) * z_BCTF + expand_to(c_out, z_BCTF) * x0
