"""MeLoDy's renderer: the dual-path network on latents of the audio VAE, conditioned on semantic tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import Condition, choose_condition, noised_at, spread_chunks
from musiccm.errors import MusiccmError
from musiccm.losses.velocity import draw_angles, si_snr, velocity_loss
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.melody.dual_path import DUAL_PATH, DualPath
from musiccm.models.melody.renderer import Renderer
from musiccm.models.melody.tokenizer import tokenizer_of
from musiccm.systems.parallel import normal_like
from musiccm.systems.stages.base import Stage, mean_of

#: How its samplers read it: the angle process, at whose timesteps the network is told the angle.
SCHEDULER: dict[str, Any] = {"_class_name": "AngleScheduler", "num_train_timesteps": 1000,
                             "prediction_type": "v_prediction"}


def no_tokens(condition: Condition) -> Condition:
    """The null condition beside one of tokens: one item without any."""
    assert condition.tokens_BLD is not None and condition.mask_BL is not None
    return Condition(torch.zeros_like(condition.tokens_BLD[:1]), torch.zeros_like(condition.mask_BL[:1]))


class DualPathStage(Stage):
    """Trains a `DualPath` on velocities, each clip cut into chunks that have noise levels of their own.

    Args:
        dual_path: `DualPathConfig` fields; `token_width` follows from the tokenizer and need not be there.
        chunks: Chunks M of a clip.
        continuation_share: Share of the items whose first chunks are clean, as a continuation has them.
        held_chunks: How many of them are, one of these numbers each time; all but the last if not given.
        inpainting_share: Share of the items of which one chunk is noisy and all others are clean.
        condition_dropout: Share of the items that see no tokens, for classifier-free guidance.
        tokenizer: The bundle whose semantic tokenizer made the tokens; the bundle that is written by default.
        **stage: Arguments of `Stage`.

    Raises:
        MusiccmError: `held_chunks` are none of the clip's, the shares are more than all, there is no tokenizer, or its
            tokens have another width than is stated.
    """

    stage = "dual_path"
    draws_noise = True
    part_name: str | None = DUAL_PATH
    part: Renderer
    #: The argument with the network's shape, and its class.
    shape_key: str = DUAL_PATH
    network_class: Callable[[dict[str, Any]], Renderer] = DualPath
    kinds = {"count": "chunks", "share": "continuation_share inpainting_share condition_dropout"}

    def __init__(
        self,
        dual_path: dict[str, Any],
        chunks: int = 4,
        continuation_share: float = 0.25,
        held_chunks: Sequence[int] | None = None,
        inpainting_share: float = 0.0,
        condition_dropout: float = 0.1,
        tokenizer: str | None = None,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        # held outside the module tree, as the audio VAE: frozen, not trained, not in this stage's checkpoints
        self._tokenizer = [tokenizer_of(self.bundle if tokenizer is None else tokenizer)]
        self._vae: list[AudioVae] = []
        self.settings["tokenizer"], width = self._tokenizer[0].fingerprint, self._tokenizer[0].width
        if dual_path.get("token_width", width) != width:
            raise MusiccmError(f"model.init_args.{self.shape_key}.token_width is {dual_path['token_width']}, and the "
                               f"tokenizer's vectors have {width}; leave it out, or name another tokenizer")
        self.part = self.network_class({**dual_path, "token_width": width})
        self.chunks = chunks
        self.held_chunks = [max(1, chunks - 1)] if held_chunks is None else list(held_chunks)
        self.continuation_share, self.inpainting_share = continuation_share, inpainting_share
        self.condition_dropout = condition_dropout
        if continuation_share + inpainting_share > 1:
            raise MusiccmError("model.init_args: continuation_share and inpainting_share are shares of the same items; "
                               f"expected at most 1 together, found {continuation_share + inpainting_share:g}")
        if continuation_share and any(not 0 < held < chunks for held in self.held_chunks or [0]):
            raise MusiccmError(f"model.init_args.held_chunks: expected numbers from 1 to below chunks = {chunks}, "
                               f"found {self.held_chunks}; with one chunk set continuation_share: 0")
        if not chunks <= self.part.shape.frames:
            raise MusiccmError(f"model.init_args.chunks: expected at most {self.part.shape.frames}, the frames of a "
                               f"clip, found {chunks}")
        self.finish_init()

    def setup(self, stage: str) -> None:
        """Refuse tokens of another tokenizer.

        Raises:
            MusiccmError: The data have none, or others.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "token_cache"):
            return
        if data.tokens_dir is None:
            raise MusiccmError("data.tokens_dir: expected the cache of semantic tokens that the network is conditioned "
                               "on (`musiccm prepare tokens`), found none")
        found, expected = data.token_cache("train").key["tokenizer"], self.settings["tokenizer"]
        if found != expected:
            raise MusiccmError(f"data.tokens_dir: {data.tokens_dir} holds tokens of another tokenizer (fingerprint "
                               f"{found}, expected {expected}); set model.init_args.tokenizer to the bundle that has "
                               "it, or make the tokens anew")

    def condition(self, batch: LatentBatch) -> Condition:
        """The semantic tokens of a batch.

        Raises:
            MusiccmError: It has none, or they do not fit the latents or the network.
        """
        if batch.semantic_BL is None:
            raise MusiccmError("data.tokens_dir: expected batches with semantic tokens, found none in them")
        tokenizer = self._tokenizer[0].to(batch.semantic_BL.device)
        vectors_BLD = tokenizer.vectors(batch.semantic_BL)
        mask_BL = torch.ones(vectors_BLD.shape[:2], dtype=torch.bool, device=vectors_BLD.device)
        return self.part.check_condition(Condition(vectors_BLD, mask_BL), batch.latents_BCTF.shape[2])

    def latents(self, batch: LatentBatch) -> Tensor:
        """The clean latents of a batch, normalised as the network sees them.

        Raises:
            MusiccmError: They are of another length than the network's clips, or the bundle's audio VAE is missing or
                does not state their moments.
        """
        frames = self.part.shape.frames
        if batch.latents_BCTF.shape[2] != frames:
            raise MusiccmError(f"model.init_args.{self.shape_key}.frames: expected clips of {frames} latent frames, "
                               f"found {batch.latents_BCTF.shape[2]} in the latent cache")
        if not self._vae:
            vae = Bundle.from_pretrained(self.bundle, ["audio_vae"]).part("audio_vae")
            if vae.config.latents_std is None:
                raise MusiccmError(f"{self.bundle}/audio_vae/config.json: has no latents_mean and latents_std, without "
                                   "which the latents' deviation is not that of the noise; its stage measures them "
                                   "when it ends: run it again from its last checkpoint (--ckpt_path)")
            self._vae = [vae]
        return self._vae[0].to(batch.latents_BCTF.device).normalise(batch.latents_BCTF)

    def predict(
        self, network: torch.nn.Module, z0_BCTF: Tensor, angle_BM: Tensor, cond: Condition, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise a batch and ask a network for its velocity.

        Returns:
            The noisy latents, the velocity that was predicted, and the true one.
        """
        eps_BCTF = normal_like(z0_BCTF, generator).to(z0_BCTF.dtype)
        angle_BM = sent(angle_BM, z0_BCTF.device)
        z_BCTF, target_BCTF = noised_at(z0_BCTF, eps_BCTF, spread_chunks(angle_BM, z0_BCTF.shape[2]))
        (v_BCTF,) = network(z_BCTF, angle_BM[:, 0], cond.tokens_BLD, cond.mask_BL, angle_BM=angle_BM)
        return z_BCTF, v_BCTF, target_BCTF

    def loss(self, batch: LatentBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the velocity where there is noise."""
        z0_BCTF, cond = self.latents(batch), self.condition(batch)
        angle_BM = sent(draw_angles(len(z0_BCTF), self.chunks, generator, self.continuation_share, self.held_chunks,
                                    self.inpainting_share), z0_BCTF.device)
        dropped_B = torch.rand(len(z0_BCTF), generator=generator) < self.condition_dropout
        seen = choose_condition(sent(dropped_B, z0_BCTF.device), no_tokens(cond), cond)
        assert isinstance(seen, Condition)
        _, v_BCTF, target_BCTF = self.predict(self.part, z0_BCTF, angle_BM, seen, generator)
        return velocity_loss(v_BCTF, target_BCTF, spread_chunks(angle_BM, z0_BCTF.shape[2]))

    def measure(self, batch: LatentBatch, generator: torch.Generator) -> dict[str, Any]:
        """Errors of held-out latents, with noise and angles fixed across validations.

        With tokens, without, and of the last chunk after clean ones.
        """
        z0_BCTF, cond = self.latents(batch), self.condition(batch)
        items, frames = len(z0_BCTF), z0_BCTF.shape[2]
        angle_BM = draw_angles(items, self.chunks, generator)
        state = generator.get_state()
        # trained mode is of no account: the network has no dropout
        z_BCTF, v_BCTF, target_BCTF = self.predict(self.best, z0_BCTF, angle_BM, cond, generator)
        angle_BT = spread_chunks(angle_BM.to(z0_BCTF.device), frames)
        cos_BT, sin_BT = (turn(angle_BT)[:, None, :, None] for turn in (torch.cos, torch.sin))
        mse_BT = velocity_loss(v_BCTF, target_BCTF, angle_BT)[1]["mse_BT"]
        found = {"mse_B": mse_BT.mean(1), "mse_BT": mse_BT, "angle_BT": angle_BT,
                 "si_snri_B": si_snr(cos_BT * z_BCTF - sin_BT * v_BCTF, z0_BCTF) - si_snr(z_BCTF, z0_BCTF)}
        generator.set_state(state)
        none = choose_condition(torch.ones(items, dtype=torch.bool), no_tokens(cond), cond)
        assert isinstance(none, Condition)
        _, v_BCTF, target_BCTF = self.predict(self.best, z0_BCTF, angle_BM, none, generator)
        found["mse_null_B"] = (v_BCTF - target_BCTF).square().flatten(1).mean(1)
        if self.chunks > 1:
            generator.set_state(state)
            going_on_BM = angle_BM.clone()
            going_on_BM[:, :-1] = 0.0
            _, v_BCTF, target_BCTF = self.predict(self.best, z0_BCTF, going_on_BM, cond, generator)
            new = slice((self.chunks - 1) * frames // self.chunks, frames)
            found["mse_continuation_B"] = (v_BCTF - target_BCTF)[:, :, new].square().flatten(1).mean(1)
        return found

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Velocity error, whole and by quarter of the angle (0 is the least noisy), and the gain in dB."""
        angle, mse = (torch.cat([m[key] for m in measured]) for key in ("angle_BT", "mse_BT"))
        quality: dict[str, Any] = {"n": sum(len(m["mse_B"]) for m in measured)}
        for key in ("mse", "mse_null", "mse_continuation", "si_snri"):
            if f"{key}_B" in measured[0]:
                quality[key] = mean_of(measured, f"{key}_B")
        quarter = (angle * (8 / math.pi)).long().clamp(max=3)
        for index in range(4):
            if (quarter == index).any():
                quality[f"mse_quarter_{index}"] = mse[quarter == index].mean().item()
        return quality

    def save(self) -> None:
        """Write `dual_path/` and `scheduler/`."""
        save_part(self.bundle, DUAL_PATH, self.best)
        save_part(self.bundle, "scheduler", SCHEDULER)
