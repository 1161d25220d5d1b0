"""MeLoDy's audio VAE: waveforms by magnitudes and, from some step on, by discriminators that are trained beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.data.batch import WaveformBatch
from musiccm.embedders import load_embedder
from musiccm.errors import MusiccmError
from musiccm.losses.reconstruction import gaussian_kl
from musiccm.losses.spectral import MagnitudeDistance, MultiResolutionStft
from musiccm.losses.waveform_adversarial import waveform_discriminator_loss, waveform_generator_loss
from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.waveform_discriminator import WaveformDiscriminator
from musiccm.systems.clock import clock_stopped
from musiccm.systems.parallel import average_gradients, mean_over_ranks, normal_like, share_weights, warn
from musiccm.systems.ranges import check_ranges
from musiccm.systems.stages.base import Stage, mean_of, warmup_cosine

CLIPPED_LIMIT = 1e-3
"""Share of the latents that the divisor may clip; the paper's clips less."""


class AudioVaeStage(Stage):
    """Trains an `AudioVae` on random crops, and a discriminator beside it; each has its own optimizer and step.

    The VAE's loss is MeLoDy's (Lam et al. 2023, arXiv 2305.15719, appendix B.1):
    `50 MR-STFT + 20 feature matching + LSGAN + 5e-3 KL`, the KL in nats per latent element. Until `adversarial_start`
    it is the first and the last of these. The decoder sees latents that are clipped to [-1, 1].

    Args:
        vae: `AudioVaeConfig` fields.
        crop_samples: Samples of a training crop, a multiple of a latent frame.
        fft_sizes: Transforms of the MR-STFT, windows of half their length; none longer than the crop.
        stft_weight: Weight of the MR-STFT.
        log_stft_weight: Weight of spectral convergence and log magnitudes at the same transforms
            (`MultiResolutionStft`). Not the paper's: quiet partials tell what plays, and linear magnitudes say little
            of them.
        matching_weight: Weight of feature matching.
        adversarial_weight: Weight of the adversarial loss. With this and `matching_weight` at 0 there is no
            discriminator.
        kl_weight: Weight of the KL.
        adversarial_start: First step of discriminator, adversarial loss and feature matching.
        discriminator: `WaveformDiscriminator` arguments.
        discriminator_lr: Peak learning rate of the discriminator, under the same curve; null for `lr`.
        clip_norm: Largest norm of either side's gradient; null leaves it as it is.
        initial_posterior_std: Standard deviation of every posterior before training.
        tagger_bundle: A bundle whose tagger reads held-out clips and their reconstructions; null measures none.
        train_encoder: Whether the encoder is trained. If not, latents stay what they are, with their divisor and
            moments: what was trained on them goes on to fit while the decoder of `start_from` becomes better.
        divisor_quantile: Share of the latents of training windows that the divisor is to leave unclipped, measured at
            the end; null keeps the configuration's.
        moments_batches: Training batches on which the size of the latents is measured at the end.
        **stage: Arguments of `Stage`.

    Raises:
        MusiccmError: A setting is out of range, or two do not fit together.
    """

    stage = "audio_vae"
    part_name = "audio_vae"
    draws_noise = True
    part: AudioVae
    kinds = {"count": "crop_samples moments_batches", "index": "adversarial_start",
             "not_negative": "stft_weight log_stft_weight matching_weight adversarial_weight kl_weight",
             "positive": "initial_posterior_std"}

    def __init__(
        self,
        vae: dict[str, Any] | None = None,
        crop_samples: int = 24000,
        fft_sizes: Sequence[int] = (8192, 4096, 2048, 512, 128, 64, 32),
        stft_weight: float = 50.0,
        log_stft_weight: float = 0.0,
        matching_weight: float = 20.0,
        adversarial_weight: float = 1.0,
        kl_weight: float = 5e-3,
        adversarial_start: int = 0,
        discriminator: dict[str, Any] | None = None,
        discriminator_lr: float | None = None,
        clip_norm: float | None = None,
        initial_posterior_std: float = 0.05,
        tagger_bundle: str | None = None,
        train_encoder: bool = True,
        divisor_quantile: float | None = None,
        moments_batches: int = 32,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.automatic_optimization = False
        optional = "discriminator_lr clip_norm"
        check_ranges("model.init_args.", self.settings, optional.split(), positive=optional)
        if divisor_quantile is not None and not 0.5 < divisor_quantile < 1.0:
            raise MusiccmError("model.init_args.divisor_quantile: expected a share between 0.5 and 1, or null, found "
                               f"{divisor_quantile!r}.")
        if not train_encoder and self.start_from is None:
            raise MusiccmError("model.init_args.train_encoder: an encoder that is not trained has to come from "
                               "somewhere; set model.init_args.start_from to the bundle that has it")
        # the decoder's first layer is scaled by the divisor, so both come from the same place
        self._start = None if self.start_from is None else Bundle.from_pretrained(
            self.start_from, ["audio_vae"]).part("audio_vae").config
        self.part = AudioVae((vae or {}) | ({} if self._start is None else {"divisor": self._start.divisor}))
        self.part.start_posterior_at(initial_posterior_std)
        self.train_encoder = train_encoder
        self.part.encoder.requires_grad_(train_encoder)
        self.crop_samples = crop_samples
        self._check_crop("fft_sizes", fft_sizes)
        self.stft = MagnitudeDistance(fft_sizes)
        self.stft_weight, self.kl_weight = stft_weight, kl_weight
        self.log_stft, self.log_stft_weight = MultiResolutionStft(fft_sizes), log_stft_weight
        self.matching_weight, self.adversarial_weight = matching_weight, adversarial_weight
        self.adversarial_start = adversarial_start
        has_discriminator = adversarial_weight > 0 or matching_weight > 0
        self.discriminator = WaveformDiscriminator(**(discriminator or {})) if has_discriminator else None
        if self.discriminator is not None:
            self._check_crop("discriminator.resolutions", self.discriminator.fft_sizes)
        self.discriminator_lr = self.lr if discriminator_lr is None else discriminator_lr
        self.clip_norm, self.divisor_quantile, self.moments_batches = clip_norm, divisor_quantile, moments_batches
        # held outside the module tree: frozen, not trained, not in this stage's checkpoints
        self._tagger: list[Any] = [] if tagger_bundle is None else [load_embedder("tagger", bundle=tagger_bundle)]
        self._curve: Callable[[int], float] = lambda step: 1.0
        self.finish_init()
        # DDP's private switch: it looks after the VAE alone, which one backward pass reaches all of
        every = [*self.named_parameters(), *self.named_buffers()]
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in every if not name.startswith("part.")]

    def _check_crop(self, key: str, fft_sizes: Sequence[int]) -> None:
        hop = self.part.frame_samples
        if self.crop_samples % hop:
            raise MusiccmError(f"model.init_args.crop_samples: expected a multiple of {hop}, the samples of a latent "
                               f"frame, found {self.crop_samples}.")
        if key == "fft_sizes" and (not fft_sizes or any(size < 2 or size % 2 for size in fft_sizes)):
            raise MusiccmError(f"model.init_args.fft_sizes: expected even numbers, found {list(fft_sizes)}.")
        long = [size for size in fft_sizes if size > self.crop_samples]
        if long:
            raise MusiccmError(f"model.init_args.{key}: {', '.join(map(str, long))} is longer than a crop of "
                               f"{self.crop_samples} samples; leave it out, or raise crop_samples")

    def setup(self, stage: str) -> None:
        """Refuse data that the VAE does not fit.

        Raises:
            MusiccmError: Of another rate, or windows of part of a latent frame or shorter than a crop.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "clip_samples"):
            return
        self.part.check_rate(data.sample_rate_hz, "data.init_args.sample_rate_hz: ")
        hop = self.part.frame_samples
        if data.clip_samples % hop or data.clip_samples < self.crop_samples:
            raise MusiccmError(f"data.init_args.clip_samples: expected a multiple of {hop}, the samples of a latent "
                               f"frame, and at least model.init_args.crop_samples ({self.crop_samples}), found "
                               f"{data.clip_samples}")

    def on_fit_start(self) -> None:
        """Start all processes with the same discriminator."""
        if self.discriminator is not None:
            share_weights(self.discriminator)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
        """AdamW for the VAE and for the discriminator; the curve of both runs over the trainer's `max_steps`."""
        self._curve = warmup_cosine(self.warmup_steps, int(self.trainer.estimated_stepping_batches))
        sides = [(self.part, self.lr)]
        if self.discriminator is not None:
            sides.append((self.discriminator, self.discriminator_lr))
        return [self._optimizer(list(module.parameters()), rate) for module, rate in sides]

    def _optimizer(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
                  {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr, self.betas, fused=True)

    # the losses

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator has begun."""
        return self.discriminator is not None and self.global_step >= self.adversarial_start

    def crop(self, waveform_BS: Tensor, generator: torch.Generator) -> Tensor:
        """One random window of `crop_samples` from each clip."""
        spare = waveform_BS.shape[1] - self.crop_samples
        starts = torch.randint(spare + 1, (len(waveform_BS),), generator=generator).tolist()
        return torch.stack([clip[start : start + self.crop_samples]
                            for clip, start in zip(waveform_BS, starts, strict=True)])

    def reconstruction(self, target_BS: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sound through one draw of the latents.

        Args:
            target_BS: Waveforms.
            generator: Draws the latents.

        Returns:
            The waveforms that came of it, the weighted sum of MR-STFT and KL, and parts to log.
        """
        posterior = self.part.posterior(target_BS)
        noise = normal_like(posterior.mean, generator).to(posterior.mean.dtype)
        raw_BCTF = posterior.mean + posterior.std * noise
        predicted_BS = self.part.decode(self.part.normalise(raw_BCTF))
        stft, _ = self.stft(predicted_BS, target_BS)
        parts = {"stft": stft, "kl": gaussian_kl(posterior.mean, posterior.logvar)}
        total = self.stft_weight * parts["stft"] + self.kl_weight * parts["kl"]
        if self.log_stft_weight:
            parts["log_stft"], _ = self.log_stft(predicted_BS, target_BS)
            total = total + self.log_stft_weight * parts["log_stft"]
        with torch.no_grad():
            parts |= {"clipped_share": self.part.clipped(raw_BCTF), "latent_std": raw_BCTF.std(),
                      "posterior_std": posterior.std.mean()}
        return predicted_BS, total, parts

    def generator_term(self, predicted_BS: Tensor, target_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's adversarial loss with feature matching, weighted, and its parts."""
        assert self.discriminator is not None
        adversarial, matching = waveform_generator_loss(self.discriminator, predicted_BS, target_BS)
        total = self.adversarial_weight * adversarial + self.matching_weight * matching
        return total, {"generator": adversarial, "matching": matching}

    def loss(self, batch: WaveformBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss of one batch."""
        target_BS = self.crop(batch.waveform_BS, generator)
        predicted_BS, total, parts = self.reconstruction(target_BS, generator)
        if not self.adversarial:
            return total, parts
        term, found = self.generator_term(predicted_BS, target_BS)
        return total + term, parts | found

    # the step

    def training_step(self, batch: WaveformBatch, batch_idx: int) -> dict[str, Any]:
        """One batch: the discriminator's step where it has begun, then the VAE's.

        Returns:
            `loss`, and `watched`, the means over all processes of everything that must stay finite.
        """
        generator = self.generator("train", self.global_step, batch_idx)
        factor = self._curve(self.global_step)
        target_BS = self.crop(batch.waveform_BS, generator)
        predicted_BS, total, parts = self.reconstruction(target_BS, generator)
        if self.adversarial:
            parts |= self._discriminator_step(predicted_BS, target_BS, factor)
            term, found = self.generator_term(predicted_BS, target_BS)
            total, parts = total + term, parts | found
        self._backward(total, self.manual_backward)
        parts["grad_norm"] = self._step(self._optimizers()[0], self.part.parameters(), self.lr * factor)
        if self.ema is not None:
            self.ema.update(self.part)
        watched = mean_over_ranks({**parts, "loss": total})
        self.step_log.write(self, watched, {"lr": self.lr * factor})
        return {"loss": total.detach(), "watched": watched}

    def _discriminator_step(self, predicted_BS: Tensor, target_BS: Tensor, factor: float) -> dict[str, Tensor]:
        assert self.discriminator is not None
        loss, parts = waveform_discriminator_loss(self.discriminator, predicted_BS, target_BS)
        # Not `manual_backward`, which would have DDP wait for gradients of the VAE.
        self._backward(loss, Tensor.backward)
        average_gradients(self.discriminator.parameters())
        optimizer = self._optimizers()[1]
        with clock_stopped(optimizer):
            norm = self._step(optimizer, self.discriminator.parameters(), self.discriminator_lr * factor)
        return parts | {"grad_norm_discriminator": norm}

    def _backward(self, loss: Tensor, backward: Callable[[Tensor], None]) -> None:
        # autocast would reach into the backward pass, also of what ran in float32
        with torch.autocast(self.device.type, enabled=False):
            backward(loss)

    def _step(self, optimizer: Any, parameters: Iterable[nn.Parameter], lr: float) -> Tensor:
        """Clip, step and clear; gives the gradient's norm before it was clipped."""
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    # what is measured

    def measure(self, batch: WaveformBatch, generator: torch.Generator) -> dict[str, Any]:
        """Whole clips through the mean of the posterior, and what a divisor clips of one draw."""
        posterior = self.best.posterior(batch.waveform_BS)
        noise = normal_like(posterior.mean, generator).to(posterior.mean.dtype)
        raw_BCTF = posterior.mean + posterior.std * noise
        sound_BS = self.best.decode(self.best.normalise(posterior.mean))
        n, (stft, parts) = len(sound_BS), self.stft(sound_BS, batch.waveform_BS)
        result: dict[str, Any] = {
            "ids": list(batch.ids), "raw_BCTF": raw_BCTF,
            "kl": gaussian_kl(posterior.mean, posterior.logvar).expand(n),
            "posterior_std": posterior.std.mean(dim=(1, 2, 3)),
            **{key: value.expand(n) for key, value in {"stft": stft, **parts}.items()},
        }
        if self._tagger:
            (tagger,), rate_hz = self._tagger, self.part.config.sample_rate_hz
            tagger.to(sound_BS.device)
            result |= {"tags_BG": self._asked(batch), "real_BG": tagger(batch.waveform_BS, rate_hz).logits_BG,
                       "read_BG": tagger(sound_BS, rate_hz).logits_BG}
        return result

    def _asked(self, batch: WaveformBatch) -> Tensor:
        """The clips' tags in the order of the tagger's outputs; 0 for those that the corpus does not know."""
        vocabulary = self.trainer.datamodule.vocabulary
        names = () if vocabulary is None else vocabulary.names
        columns = [names.index(tag) if tag in names else -1 for tag in self._tagger[0].tags]
        if max(columns, default=-1) < 0:
            raise MusiccmError("model.init_args.tagger_bundle: the corpus has none of the tags that this tagger reads; "
                               "set it to null, or to a bundle whose tagger was trained on such a corpus")
        return torch.cat([batch.tags_BG, torch.zeros_like(batch.tags_BG[:, :1])], dim=1)[:, columns]

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Held-out distances, what is clipped, the latents' spread, and accuracy by group of clips and reconstructions.

        `tagger_kept` is the mean accuracy on reconstructions over that on the clips themselves.
        """
        raw_BCTF = torch.cat([m["raw_BCTF"] for m in measured])
        keys = ("stft", *(f"stft_{size}" for size in self.stft.fft_sizes), "kl", "posterior_std")
        quality: dict[str, Any] = {"n": len(raw_BCTF)} | {key: mean_of(measured, key) for key in keys}
        quality |= {"clipped_share": self.best.clipped(raw_BCTF).item(), "latent_std": raw_BCTF.std().item(),
                    "channel_std": [round(value, 4) for value in raw_BCTF.std(dim=(0, 2, 3)).tolist()]}
        if not self._tagger:
            return quality
        ids = [name for m in measured for name in m["ids"]]
        tags_BG, groups = torch.cat([m["tags_BG"] for m in measured]), self._tagger[0].groups
        found = {}
        for name, key in {"real": "real_BG", "reconstruction": "read_BG"}.items():
            accuracy = AttributeAccuracy(groups).to(tags_BG.device)
            accuracy.update(torch.cat([m[key] for m in measured]), tags_BG, ids)
            measures = accuracy.compute()
            found[name] = {group: value for group in groups if (value := measures[f"acc_{group}"]) is not None}
            quality |= {f"{name}_{group}": value for group, value in found[name].items()}
        real, reconstructed = (sum(found[name].values()) for name in ("real", "reconstruction"))
        return quality | ({"tagger_kept": reconstructed / real} if real else {})

    @torch.no_grad()
    def raw_latents(self) -> Tensor:
        """Latents of training windows, posterior noise included, one after the other, [C, N]."""
        vae, found = self.best.eval(), []
        device = next(vae.parameters()).device
        for index, batch in enumerate(islice(self.trainer.datamodule.train_dataloader(), self.moments_batches)):
            posterior = vae.posterior(batch.waveform_BS.to(device))
            noise = normal_like(posterior.mean, self.generator("divisor", index)).to(posterior.mean.dtype)
            found.append((posterior.mean + posterior.std * noise).transpose(0, 1).flatten(1).cpu())
        return torch.cat(found, dim=1)

    def save(self) -> None:
        """Write `audio_vae/`, with the moments of its latents, and a divisor from the data where that is asked for."""
        vae = copy.deepcopy(self.best).cpu()
        if not self.train_encoder:
            assert self._start is not None
            if self._start.latents_mean is not None and self._start.latents_std is not None:
                vae.set_moments(torch.tensor(self._start.latents_mean), torch.tensor(self._start.latents_std))
            save_part(self.bundle, "audio_vae", vae)
            return
        raw_CN = self.raw_latents()
        sizes = raw_CN.abs().flatten()
        if self.divisor_quantile is not None:
            place = math.ceil(self.divisor_quantile * len(sizes))
            vae.set_divisor(sizes.kthvalue(place).values.item())
        elif (share := (sizes > vae.config.divisor).double().mean().item()) > CLIPPED_LIMIT:
            warn(f"the audio VAE's divisor of {vae.config.divisor:g} clips {share:.2%} of its latents, and the paper's "
                 f"less than {CLIPPED_LIMIT:.1%}; set model.init_args.divisor_quantile, such as 0.999")
        bounded_CN = vae.bounded(raw_CN).double()
        vae.set_moments(bounded_CN.mean(1), bounded_CN.std(1))
        save_part(self.bundle, "audio_vae", vae)
