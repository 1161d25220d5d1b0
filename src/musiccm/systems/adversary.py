"""The adversarial term of MusicCM: frozen features of decoded latents, light heads on them, and the heads' step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from musiccm.diffusion import AnyCondition, pool_condition
from musiccm.errors import MusiccmError
from musiccm.losses.adversarial import ADVERSARIAL_LOSSES, discriminator_loss, generator_loss
from musiccm.models.acceleration.half import half_copy
from musiccm.models.discriminator import Discriminator
from musiccm.models.features import ClapFeatures, ViTFeatures
from musiccm.systems.checkpoint_fit import identity
from musiccm.systems.clock import clock_stopped
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.parallel import average_gradients, share_weights
from musiccm.systems.settings import Adversarial


class AdversarialSystem(DistilledSystem):
    """A distillation with a discriminator on frozen features (MusicCM, arXiv 2404.13358; heads after ADD, 2311.17042).

    The features are those of an AudioMAE, of CLAP's audio tower or of a given network, of mels that the frozen VAE
    decodes.

    Args:
        adversarial: weight, features and heads; a weight of 0 builds none of them.
        **system: arguments of `DistilledSystem`.
    """

    discriminator: Discriminator | None

    def __init__(self, adversarial: Adversarial, **system: Any) -> None:
        adversarial.check()
        super().__init__(**system)
        self.adversarial = adversarial
        self.discriminator = None
        loss = adversarial.loss
        self.adversarial_loss = ADVERSARIAL_LOSSES[loss] if isinstance(loss, str) else loss
        if adversarial.weight > 0:
            self.bundle.require_unet("adversarial.weight", "set it to 0")
            features = self._feature_network()
            self.frozen["features"] = features
            cond_width = self.frozen["conditioner"].width + features.embed_width
            self.discriminator = Discriminator(features.widths, cond_width, adversarial.head_width)

    def _feature_network(self) -> nn.Module:
        kind = self.adversarial.features
        if isinstance(kind, nn.Module):
            return kind
        if kind == "clap":
            if not self.frozen["conditioner"].has_audio:
                raise MusiccmError("adversarial.features: 'clap' are those of an audio tower, which the bundle's text "
                                   "encoder has not; choose audiomae")
            return ClapFeatures(self.bundle.clap, self.bundle.feature_extractor, self.bundle.mel)
        if kind == "audiomae":
            features, frames = self.bundle.evaluators["audiomae"], self.adversarial.crop_frames
            patch, factor = features.config.patch_size, self.frozen["codec"].downsampling
            if frames is not None and frames * factor < patch:
                raise MusiccmError(
                    f"adversarial.crop_frames: expected at least {-(-patch // factor)} latent frames of {factor} mel "
                    f"frames, to fill a patch of {patch} of the audiomae features, found {frames}."
                )
            return features
        raise MusiccmError(f"adversarial.features: expected 'audiomae' or 'clap', found {kind!r}.")

    def features_of(self, z_BCTF: Tensor, crop: slice | None) -> tuple[list[Tensor], Tensor]:
        """Frozen features of decoded latents, and their embedding [B, D]; gradients flow to the latents."""
        mel_BMN = self._part("codec").decode_mel(z_BCTF, crop, self.adversarial.crop_context)
        return self._part("features").with_embedding(mel_BMN)

    def _crop(self, frames: int, generator: torch.Generator) -> slice | None:
        length = self.adversarial.crop_frames
        if length is None or length >= frames:
            return None
        start = int(torch.randint(frames - length + 1, (1,), generator=generator))
        return slice(start, start + length)

    def adversarial_term(
        self, z0: Tensor, x0_pred: Tensor, text_BD: AnyCondition, generator: torch.Generator
    ) -> dict[str, Any] | None:
        """The generator's loss, with what the discriminator's step needs; None before `adversarial.start_step`.

        Args:
            z0: clean latents, the real side.
            x0_pred: the student's, the fake side.
            text_BD: conditions of the captions; of tokens the heads are given the mean (`pool_condition`).
            generator: draws the crop.

        Returns:
            `loss_g`, and features and condition of both sides.
        """
        if self.discriminator is None or self.global_step < self.adversarial.start_step:
            return None
        return self._losses(z0, x0_pred, pool_condition(text_BD), generator)

    def _losses(self, z0: Tensor, x0_pred: Tensor, text_BD: Tensor, generator: torch.Generator) -> dict[str, Any]:
        crop = self._crop(z0.shape[2], generator)
        with torch.no_grad():
            real, audio_BD = self.features_of(z0, crop)
            cond_BD = torch.cat([text_BD, audio_BD], dim=1)
        fake, _ = self.features_of(x0_pred, crop)
        loss_g, _ = generator_loss(self.discriminator, fake, cond_BD, self.adversarial_loss)
        return {"loss_g": loss_g, "real": real, "fake": [f.detach() for f in fake], "cond": cond_BD}

    def other_steps(self, carried: dict[str, Any], last: bool) -> dict[str, Tensor]:
        """Loss and step of the heads."""
        return self._discriminator_step(carried, last)

    def _discriminator_step(self, term: dict[str, Any], last: bool) -> dict[str, Tensor]:
        assert self.discriminator is not None  # it gave the term just before
        optimizer = self._optimizers()[1]
        loss, parts = discriminator_loss(
            self.discriminator, term["real"], term["fake"], term["cond"], self.adversarial.r1_gamma,
            self.adversarial_loss,
        )
        # Not `manual_backward`, which would have DDP wait for gradients of the student.
        self._backward(loss, Tensor.backward)
        average_gradients(self.discriminator.parameters())
        if last:
            norm = nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.optimization.clip_norm)
            with clock_stopped(optimizer):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            parts["grad_norm_discriminator"] = norm.detach()
        return parts

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the student, and for the heads where there are any."""
        optimizers, a = super().configure_optimizers(), self.adversarial
        if self.discriminator is not None:
            heads = self.discriminator.parameters()
            optimizers.append(torch.optim.AdamW(heads, a.lr, (a.betas[0], a.betas[1]), weight_decay=0.0, fused=True))
        return optimizers

    def on_fit_start(self) -> None:
        """Start all processes with the same heads."""
        if self.discriminator is not None:
            share_weights(self.discriminator)
        super().on_fit_start()

    def half_parts(self) -> dict[str, nn.Module]:
        """The teacher, and codec and features where the discriminator uses them."""
        parts = super().half_parts()
        if self.discriminator is not None:
            codec, features = self.codec, self.frozen["features"]
            unused = [features.clap.text_model] if isinstance(features, ClapFeatures) else []
            parts["codec"] = half_copy(codec, [codec.vocoder, codec.vae.encoder])
            parts["features"] = half_copy(features, unused)
        return parts

    def compiled_parts(self) -> list[nn.Module]:
        """As without a discriminator; the decoder before it, and the blocks of features that are a ViT.

        Not the heads: their R1 penalty is differentiated twice, which torch does not compile.
        """
        if self.discriminator is None:
            return super().compiled_parts()
        features: Any = self._part("features")
        blocks = features.vit.blocks if isinstance(features, ViTFeatures) else []
        codec: Any = self._part("codec")
        return [*super().compiled_parts(), codec.vae.decoder, *blocks]

    def identity(self) -> dict[str, Any]:
        """As without a discriminator, with its settings."""
        own = identity(self.bundle, self.distillation, self.adversarial, self.optimization, self.seed)
        return super().identity() | own
