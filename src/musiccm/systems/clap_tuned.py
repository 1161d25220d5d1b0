"""The CLAP term: the student's answer as sound, embedded by a frozen CLAP near its caption and the real clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musiccm.audio.resample import resample
from musiccm.data.batch import LatentBatch
from musiccm.device import sent
from musiccm.diffusion import AnyCondition
from musiccm.embedders.clap_sources import load_clap, not_to_be_scored_by, same_clap
from musiccm.errors import MusiccmError
from musiccm.losses.clap import clap_loss
from musiccm.models.bundle.bundle import DECODERS
from musiccm.systems.checkpoint_fit import plain
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.parallel import normal_like
from musiccm.systems.ranges import check_ranges

EVALUATION = "musiccm.callbacks.evaluation.Evaluation"
SAMPLES = ("drawn", "one_step")
WEIGHTINGS = ("distillation", "uniform")


@dataclass
class ClapTerm:
    """The loss by CLAP of ConsistencyTTA's last stage (arXiv 2309.10740); the defaults are those of its code.

    Args:
        weight: of the term beside the distillation loss; 0 gives none, and loads no CLAP.
        network: the CLAP: a bundle (its CLAP is taken), a file, a folder or a hub id, `clap` for LAION's published file
            in `MUSICCM_WEIGHTS`, `clap_second` for the bundle's second; null for the bundle's own, with which the
            latent cache has embedded the real clips. The CLAP that scores must be another.
        decoder: what makes sound of latents: `original` (VAE decoder and vocoder) or the `fast` decoder.
        sample: whose sound: `drawn`, the student's answers of the distillation loss, at the timesteps drawn there; or
            `one_step`, its answers to pure noise, by one more call.
        weighting: `distillation` gives each item the weight that it has in the distillation loss; `uniform` gives all
            the same. An objective whose loss weighs no items makes no difference between them.
    """

    weight: float = 0.1
    network: str | None = None
    decoder: str = "original"
    sample: str = "drawn"
    weighting: str = "distillation"

    def check(self) -> None:
        """Refuse what would only be refused once all is loaded.

        Raises:
            MusiccmError: an unknown name, a number out of range, or weights that belong to other samples.
        """
        for key, known in {"decoder": DECODERS, "sample": SAMPLES, "weighting": WEIGHTINGS}.items():
            if getattr(self, key) not in known:
                raise MusiccmError(f"clap.{key}: expected one of {', '.join(known)}, found {getattr(self, key)!r}.")
        check_ranges("clap.", vars(self), not_negative="weight")
        if self.sample == "one_step" and self.weighting != "uniform":
            raise MusiccmError("clap.weighting: expected uniform where clap.sample is one_step, whose samples are not "
                               f"at the timesteps that the distillation loss weighs, found {self.weighting!r}.")


class ClapTunedSystem(DistilledSystem):
    """A distillation with a loss by CLAP on the student's sound, which an objective adds to its own (`clap_term`).

    Latents become sound, and sound CLAP's embedding, in float32 whatever the trainer's precision is; the gradient goes
    back through CLAP's audio tower, its front end, the resampling and the decoder, all of them frozen. CLAP takes the
    first window of a clip (LAION's: 10 s), nothing at random.

    Args:
        clap: the term's settings; None for those of `default_clap`, here no term.
        **system: arguments of the class that comes next: `DistilledSystem` or a distillation over it.
    """

    #: The settings where none are given.
    default_clap: ClassVar[ClapTerm] = ClapTerm(weight=0.0)

    def __init__(self, clap: ClapTerm | None, **system: Any) -> None:
        super().__init__(**system)
        self.clap = clap or self.default_clap
        if self.clap.weight > 0:
            self.bundle.require_unet("clap.weight", "set it to 0")
            self.frozen["clap"] = self._clap_network()
            if self.clap.decoder == "fast":
                try:
                    self.frozen["clap_codec"] = self.bundle.codec("fast")
                except MusiccmError as error:
                    raise MusiccmError(f"clap.decoder: {error}") from error

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse settings of the term.

        Raises:
            MusiccmError: names the key.
        """
        super().check_settings(own)
        (own.get("clap") or self.default_clap).check()

    @classmethod
    def check_experiment(cls, experiment: Mapping[str, Any]) -> None:
        """Refuse an evaluation by the CLAP that the student is trained on, as far as names and files tell.

        Raises:
            MusiccmError: names the evaluation's option.
        """
        super().check_experiment(experiment)
        settings = experiment["model"].get("init_args") or {}
        term = ClapTerm(**settings["clap"]) if settings.get("clap") else cls.default_clap
        if term.weight == 0:
            return
        for callback in experiment["trainer"].get("callbacks") or []:
            scores_by = (callback.get("init_args") or {}).get("text_audio")
            if callback.get("class_path") == EVALUATION and same_clap(
                term.network, scores_by, settings.get("bundle", "musiccm-tiny")
            ):
                tuned_by = term.network or "null, the bundle's own"
                raise not_to_be_scored_by("evaluation.text_audio", f"model.init_args.clap.network ({tuned_by})")

    def _clap_network(self) -> nn.Module:
        """The CLAP that tunes, a `ClapConditioner`; the bundle's conditioner itself where it is the same network."""
        conditioner, named = self.conditioner, self.clap.network
        if named is None:
            if not conditioner.has_audio:
                raise MusiccmError(f"clap.network: expected the name of a CLAP, as the text encoder of "
                                   f"{self.bundle_name} embeds no audio, found none")
            return conditioner
        try:
            found = load_clap(named, self.bundle).conditioner
        except MusiccmError as error:
            raise MusiccmError(f"clap.network: {error}") from error
        return conditioner if conditioner.has_audio and found.same_network(conditioner) else found  # type: ignore[arg-type]

    @property
    def tuning_clap(self) -> Any:
        """The `ClapConditioner` that the student is trained on; None without the term."""
        return self.frozen["clap"] if "clap" in self.frozen else None

    def clap_term(
        self, batch: LatentBatch, z0: Tensor, x0_pred: Tensor, cond_BD: AnyCondition, generator: torch.Generator,
        weight_B: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the objective adds to its loss.

        Args:
            batch: the batch, with its captions.
            z0: its clean latents, normalised.
            x0_pred: the student's answers, of the same shape, attached to its graph.
            cond_BD: the student's conditions, for `clap.sample: one_step`.
            generator: draws the noise of that.
            weight_B: weight of each item in the distillation loss; None where it weighs them all alike.

        Returns:
            The term with its weight, and its parts by the names they are logged under; zero and none without the term.

        Raises:
            MusiccmError: a clip of the batch has no caption.
        """
        if self.clap.weight == 0:
            return z0.new_zeros(()), {}
        if self.clap.sample == "one_step":
            x0_pred = self.one_step(z0, cond_BD, generator)
        fake_BD = self.clap_embedding(x0_pred)
        with torch.no_grad():
            text_BD, real_BD = self._caption_embedding(batch), self._real_embedding(batch, z0)
        total, parts = clap_loss(fake_BD, text_BD, real_BD, weight_B if self.clap.weighting == "distillation" else None)
        return self.clap.weight * total, parts

    def one_step(self, like: Tensor, cond_BD: AnyCondition, generator: torch.Generator) -> Tensor:
        """The student's answers to pure noise at the last grid point, as one-step sampling asks for them.

        Args:
            like: latents of the batch, for their shape.
            cond_BD: conditions.
            generator: of the noise, which is that of the global batch.

        Returns:
            Clean latents.
        """
        t_B = sent(self.grid[-1:], like.device).repeat(len(like))
        return self.consistency("online")(normal_like(like, generator), t_B, cond_BD)

    def clap_embedding(self, z_BCTF: Tensor) -> Tensor:
        """CLAP's unit vectors [B, D] of latents made sound, in float32; gradients flow to the latents.

        Under `optimization.gradient_checkpointing` clip by clip, and a second time in the backward pass: the memory is
        that of one clip.
        """
        with torch.autocast(z_BCTF.device.type, enabled=False):
            z_BCTF = z_BCTF.float()
            if self.optimization.gradient_checkpointing and z_BCTF.requires_grad and torch.is_grad_enabled():
                clips = [checkpoint(self._embed, clip, use_reentrant=False) for clip in z_BCTF.split(1)]
                return torch.cat(clips)
            return self._embed(z_BCTF)

    def _embed(self, z_BCTF: Tensor) -> Tensor:
        # Not `ClapConditioner.audio`: it would wait for the device to tell NaN, which Divergence watches for.
        codec, clap = self.frozen["clap_codec" if self.clap.decoder == "fast" else "codec"], self.frozen["clap"]
        front, rate_hz = clap.front_end, codec.mel.sample_rate_hz
        window = -(-front.window_samples * rate_hz // front.sample_rate_hz)
        waveform_BS = resample(codec.decode(z_BCTF)[:, :window], rate_hz, front.sample_rate_hz)
        return clap.embed_features(front(waveform_BS))

    def _caption_embedding(self, batch: LatentBatch) -> Tensor:
        """CLAP's own reading of the captions, whatever the student is conditioned by."""
        if len(batch.captions) != len(batch) or not all(caption.strip() for caption in batch.captions):
            lacking = [name for name, caption in zip(batch.ids, batch.captions, strict=False) if not caption.strip()]
            raise MusiccmError(f"clap.weight: expected a caption for every clip, as CLAP compares clips with theirs, "
                               f"found none for {', '.join(lacking[:3]) or 'the batch'}; leave such clips out, or set "
                               "clap.weight to 0")
        with torch.autocast(self.device.type, enabled=False):
            return self.frozen["clap"].text(list(batch.captions))

    def _real_embedding(self, batch: LatentBatch, z0: Tensor) -> Tensor:
        """The latent cache's, where the bundle's CLAP is the one that tunes; else those of the decoded latents."""
        if self.frozen["clap"] is self.conditioner and batch.audio_BD is not None:
            return batch.audio_BD
        return self.clap_embedding(z0)

    def identity(self) -> dict[str, Any]:
        """As without the term, with its settings; the CLAP by its weights, wherever they lie."""
        found = super().identity()
        if self.clap.weight == 0:
            return {key: value for key, value in found.items() if not key.startswith("clap.") or key == "clap.weight"}
        return found | {"clap.network": f"CLAP {plain(self.frozen['clap'].clap)['weights']}"}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As without the term; one that does not state it was trained without."""
        if checkpoint.get("student"):
            checkpoint["student"] = {"clap.weight": 0.0} | checkpoint["student"]
        super().on_load_checkpoint(checkpoint)
