"""The teacher: a denoising U-Net on the latent cache, conditioned on CLAP embeddings or on tokens of captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import (
    AnyCondition,
    cat_conditions,
    check_prediction_type,
    choose_condition,
    noise_process,
    prediction_type_of,
)
from musiccm.errors import MusiccmError
from musiccm.losses.denoising import denoising_loss, stratified_timesteps
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.codec import LatentCodec
from musiccm.models.denoiser import Denoiser
from musiccm.systems.conditions import caption_or_audio, check_audio_share
from musiccm.systems.parallel import normal_like
from musiccm.systems.stages.base import Stage

# MusicLDM's (arXiv 2308.01546); timestep_spacing is how readers of the file should sample, training uses all steps.
MUSICLDM_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "trailing",
}


def make_scheduler(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The scheduler that a teacher's folder states.

    Args:
        config: its configuration, with `_class_name` unless it is a `DDIMScheduler`.

    Returns:
        `(scheduler, config)`: diffusers' object where it has the class, else the configuration itself; and the whole
        configuration as the file will hold it.
    """
    options = dict(config)
    name = options.pop("_class_name", "DDIMScheduler")
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        return dict(config), dict(config)
    scheduler = kind(**options)
    return scheduler, {**scheduler.config, "_class_name": name}


@torch.no_grad()
def scale_condition(unet: UNet2DConditionModel) -> None:
    """Let an untrained U-Net's class projection take vectors of unit length for what they are.

    CLAP embeddings have length 1, components of 1 / sqrt(D): beside the time embedding, of components near 1, a
    projection with the usual initial weights would start all but deaf to them.
    """
    projection = unet.class_embedding
    if isinstance(projection, torch.nn.Linear):
        projection.weight.mul_(projection.in_features**0.5)


@torch.no_grad()
def start_unet_at_identity(unet: UNet2DConditionModel) -> None:
    """Give an untrained U-Net weights with which it returns its input, up to its normalisation.

    At the noisiest steps epsilon is its input but for a few percent, and x0 rests on those few percent; a small U-Net
    takes long to learn to copy that well, through a normalisation and a nonlinearity. Channels of the first convolution
    become pairs +z, -z, which the last skip carries to the output, where `silu(z) - silu(-z) = z` is exact.

    Raises:
        MusiccmError: the first level has too few channels for the pairs, or none that its last block takes skips with.
    """
    first, last, block = unet.conv_in, unet.conv_out, unet.up_blocks[-1].resnets[-1]
    channels, width = first.in_channels, first.out_channels
    if width < 2 * channels or last.out_channels != channels or block.conv_shortcut is None:
        raise MusiccmError(
            f"unet: to start at identity it needs block_out_channels[0] >= {2 * channels}, twice its in_channels, and "
            f"as many out_channels; found {width}, {channels} and {last.out_channels}. Or set start_at_identity: false"
        )
    pairs = 2 * channels
    row, column = first.kernel_size[0] // 2, first.kernel_size[1] // 2
    index = torch.arange(channels)
    # the initialiser's variance is a third of what keeps the input's; groups are normalised together with the pairs
    first.weight.mul_(3.0**0.5)
    first.weight[:pairs] = 0.0
    first.weight[2 * index, index, row, column] = 1.0
    first.weight[2 * index + 1, index, row, column] = -1.0
    first.bias.zero_()
    shortcut, skip = block.conv_shortcut.weight, block.conv_shortcut.in_channels - width
    shortcut.zero_()
    shortcut[torch.arange(width), skip + torch.arange(width)] = 1.0
    for bias in (block.conv_shortcut.bias, block.conv2.bias, last.bias):
        bias.zero_()
    block.conv2.weight.zero_()
    last.weight.zero_()
    last.weight[index, 2 * index, row, column] = 1.0
    last.weight[index, 2 * index + 1, row, column] = -1.0


class TeacherStage(Stage):
    """Trains the latent diffusion model that is distilled afterwards.

    Args:
        unet: `UNet2DConditionModel` configuration.
        scheduler: configuration of a scheduler of diffusers, which says what the network predicts and, by its
            `_class_name`, the noise process (`noise_process`): `DDIMScheduler` if not given,
            `FlowMatchEulerDiscreteScheduler` for rectified flow. Null is MusicLDM's (epsilon).
        min_snr_gamma: gamma of the min-SNR weights.
        noise_emphasis: extra weight `alpha ** -noise_emphasis` of noisy steps (`denoising_loss`).
        start_at_identity: begin with weights that return the input (`start_unet_at_identity`).
        condition_dropout: share of the training items that see the null condition, for classifier-free guidance.
        audio_condition_share: share that sees the clip's audio embedding in place of its caption's; MusicLDM trains on
            audio alone, and samples with text. 0 where the bundle's text encoder gives tokens.
        **stage: arguments of `Stage`.
    """

    stage = "teacher"
    part_name = "unet"
    draws_noise = True
    part: UNet2DConditionModel
    kinds = {"positive": "min_snr_gamma", "not_negative": "noise_emphasis",
             "share": "condition_dropout audio_condition_share"}

    def __init__(
        self,
        unet: dict[str, Any],
        scheduler: dict[str, Any] | None = None,
        min_snr_gamma: float = 5.0,
        noise_emphasis: float = 0.0,
        start_at_identity: bool = False,
        condition_dropout: float = 0.1,
        audio_condition_share: float = 0.5,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.scheduler, config = make_scheduler(MUSICLDM_SCHEDULER if scheduler is None else scheduler)
        self.schedule = noise_process(config)
        self.prediction_type = check_prediction_type(prediction_type_of(config), self.schedule)
        self.part = UNet2DConditionModel(**unet)
        scale_condition(self.part)
        if start_at_identity:
            start_unet_at_identity(self.part)
        self.min_snr_gamma, self.noise_emphasis = min_snr_gamma, noise_emphasis
        self.condition_dropout, self.audio_condition_share = condition_dropout, audio_condition_share
        # outside the module tree: frozen, and no part of this stage's checkpoints
        self._codec: list[LatentCodec] = []
        self._null: list[AnyCondition] = []
        self.finish_init()

    def setup(self, stage: str) -> None:
        """Read what the bundle already holds: the latents' moments and the null condition.

        Raises:
            MusiccmError: the network does not take the tokens that the bundle's text encoder gives, or audio conditions
                are asked for that it has not.
        """
        if not self._codec:
            bundle = Bundle.from_pretrained(self.bundle, parts=["vae", "clap", "tokenizer", "feature_extractor"])
            if bundle.gives_tokens:
                bundle.check_condition(self.part.config)
            conditioner = bundle.conditioner()
            check_audio_share("model.init_args.audio_condition_share", self.audio_condition_share, conditioner)
            self._codec = [bundle.codec("none")]
            self._null = [cat_conditions([conditioner.null(1)])]  # which copies it

    def normalised(self, batch: LatentBatch) -> Tensor:
        """What the network sees of the batch's raw latents."""
        return self._codec[0].to(batch.latents_BCTF.device).normalise(batch.latents_BCTF)

    def condition(self, batch: LatentBatch, generator: torch.Generator) -> AnyCondition:
        """Caption or audio embedding of each item, or null."""
        draws = torch.rand(2, len(batch.ids), 1, generator=generator)[..., 0]
        shares = torch.tensor([self.audio_condition_share, self.condition_dropout])
        audio_B, dropped_B = sent(draws < shares[:, None], batch.latents_BCTF.device)
        cond = caption_or_audio(batch, audio_B)
        self._null[0] = self._null[0].to(cond)  # type: ignore[arg-type]
        return choose_condition(dropped_B, self._null[0], cond)

    def denoise(
        self, unet: torch.nn.Module, z0_BCTF: Tensor, t_B: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one noised batch."""
        noise_BCTF = normal_like(z0_BCTF, generator).to(z0_BCTF.dtype)
        z_BCTF = self.schedule.add_noise(z0_BCTF, noise_BCTF, t_B)
        denoiser = Denoiser(unet, self.schedule, self.prediction_type)
        _, predicted_BCTF = denoiser.predict(z_BCTF, t_B, cond_BD)
        return denoising_loss(
            predicted_BCTF, noise_BCTF, self.schedule.alpha(t_B), self.schedule.sigma(t_B), self.min_snr_gamma,
            self.noise_emphasis,
        )

    def loss(self, batch: LatentBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted error of the predicted noise, whatever the network's own output, at stratified timesteps."""
        z0_BCTF = self.normalised(batch)
        t_B = sent(stratified_timesteps(len(z0_BCTF), self.schedule.num_train_timesteps, generator), z0_BCTF.device)
        return self.denoise(self.part, z0_BCTF, t_B, self.condition(batch, generator), generator)

    def measure(self, batch: LatentBatch, generator: torch.Generator) -> dict[str, Any]:
        """Errors of held-out latents under their captions, with noise and timesteps fixed across validations."""
        z0_BCTF = self.normalised(batch)
        t_B = sent(stratified_timesteps(len(z0_BCTF), self.schedule.num_train_timesteps, generator), z0_BCTF.device)
        _, parts = self.denoise(self.best, z0_BCTF, t_B, batch.text_BD, generator)
        return {"t_B": t_B, "mse_B": parts["mse_B"]}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Epsilon error, whole and by quartile of t (0 is the least noisy)."""
        t_B, mse_B = (torch.cat([m[key] for m in measured]) for key in ("t_B", "mse_B"))
        quartile_B = 4 * t_B // self.schedule.num_train_timesteps
        quality: dict[str, Any] = {"n": len(t_B), "mse": mse_B.mean().item()}
        for quartile in range(4):
            if (quartile_B == quartile).any():
                quality[f"mse_quartile_{quartile}"] = mse_B[quartile_B == quartile].mean().item()
        return quality

    def save(self) -> None:
        """Write `unet/` and `scheduler/`."""
        save_part(self.bundle, "unet", self.best)
        save_part(self.bundle, "scheduler", self.scheduler)
