"""A dual-path network behind the denoiser contract, with frames that are clean already."""

from __future__ import annotations

import torch
from torch import Tensor

from musiccm.diffusion import AnyCondition, Condition, compute_dtype
from musiccm.errors import MusiccmError
from musiccm.models.denoiser import Denoiser
from musiccm.models.melody.dual_path import DualPath


class FrameDenoiser(Denoiser):
    """`denoise(z_BCTF, t_B, cond, s_B=None, held_BT=None) -> x0_BCTF` of a `DualPath` that predicts velocities.

    Held frames are clean: the network is told the angle 0 for them, and they come back bit by bit.
    """

    unet: DualPath

    def velocity(self, z_BCTF: Tensor, angle_BM: Tensor, cond: AnyCondition) -> Tensor:
        """The network's velocity where the latents have angles of their own.

        Args:
            z_BCTF: Noisy latents.
            angle_BM: Angles of M equal chunks in radians; of M = T those of the frames.
            cond: Semantic tokens.

        Returns:
            The velocity, float32.

        Raises:
            MusiccmError: The condition is none of tokens.
        """
        dtype = next(self.unet.parameters()).dtype
        told = cond.to(dtype) if isinstance(cond, Condition) else Condition(pooled_BD=cond)
        (v,) = self.unet(z_BCTF.to(dtype), angle_BM[:, 0], told.tokens_BLD, told.mask_BL, told.pooled_BD,
                         angle_BM=angle_BM)
        return v

    def forward(
        self, z_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, s_B: Tensor | None = None,
        held_BT: Tensor | None = None,
    ) -> Tensor:
        """The denoiser contract.

        Args:
            z_BCTF: Noisy latents, clean where they are held.
            t_B: Timesteps of what is not held, which may lie between whole ones.
            cond_BD: Semantic tokens.
            s_B: Must not be given.
            held_BT: Frames that are held; none by default.

        Returns:
            The clean estimate x0, float32 or better.

        Raises:
            MusiccmError: A second time, a network of another prediction type with held frames, or a condition without
                tokens.
        """
        if held_BT is None:
            return super().forward(z_BCTF, t_B, cond_BD, s_B)
        if s_B is not None or self.prediction_type != "v_prediction":
            raise MusiccmError("denoise: held frames need a network of one time that predicts v")
        zero = torch.zeros((), device=z_BCTF.device)
        angle_BT = torch.where(held_BT, zero, self.schedule.network_time(t_B)[:, None])
        v = self.velocity(z_BCTF, angle_BT, cond_BD)
        dtype = compute_dtype(z_BCTF)
        alpha, sigma = (level(t_B, dtype)[:, None] for level in (self.schedule.alpha, self.schedule.sigma))
        x0 = alpha[:, :, None, None] * z_BCTF.to(dtype) - sigma[:, :, None, None] * v.to(dtype)
        return torch.where(held_BT[:, None, :, None], z_BCTF.to(dtype), x0)
