"""What a distillation run may be told, grouped as its YAML is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from musiccm.diffusion import GRIDS, GUIDANCE_KINDS, PREDICTION_TYPES, SOLVERS, TIMESTEP_MODES, StudentGuidance
from musiccm.errors import MusiccmError
from musiccm.losses import ADVERSARIAL_LOSSES, DISTANCES, AdversarialLoss
from musiccm.models.acceleration.networks import check_backend
from musiccm.models.bundle.student_record import LCM_SIGMA_DATA
from musiccm.models.lora import Lora
from musiccm.systems.curve import DECAYS
from musiccm.systems.ranges import check_ranges

FEATURES = ("audiomae", "clap")


def setting_of(experiment: Mapping[str, Any], group: str, key: str) -> Any:
    """What an experiment states of the model, before that is built.

    Args:
        experiment: the sections of its file.
        group: an argument of the system that holds settings, such as `distillation`.
        key: one of them.

    Returns:
        The value; None where it is not stated.
    """
    stated = (experiment["model"].get("init_args") or {}).get(group)
    return stated.get(key) if isinstance(stated, Mapping) else getattr(stated, key, None)


@dataclass
class Phase:
    """A stretch of the curriculum.

    Args:
        until: share of the run's steps, after the warm start, at which the phase ends; the last one's must be 1.
        skip: size k of a solver jump in training timesteps.
        jumps: m, the number of jumps to the target, or "to_zero".
    """

    until: float = 1.0
    skip: int = 20
    jumps: int | str = 1


@dataclass
class Distillation:
    """The consistency distillation of MusicCM (arXiv 2404.13358); the defaults are the paper's, save the prediction
    type.

    Args:
        prediction_type: the student's own: `v_prediction`, `epsilon` (the paper's), `sample` or `flow_prediction`.
        guidance_scale: usual scale of the teacher's guidance; the paper's w = 2 is 3. Of a student that takes one, the
            default that it is sampled by.
        guidance: `fixed` distils the scale into the student; `variable` draws one for each item, by which the teacher
            is guided and which the student is told, so that it can be chosen when the student is sampled; `direct`
            distils the unguided teacher, for a student that is guided itself, by two calls.
        guidance_range: lowest and highest scale of a variable student.
        weight: lambda, the weight of this loss beside the adversarial one.
        grid_points: points N of the student's grid.
        grid: `even` puts them at whole timesteps, of which N is a divisor; `linspace` at equal distances from clean to
            the noisiest timestep, mostly between whole ones, as ConsistencyTTA does (17 points and clean).
        curriculum: phases of (skip, jumps) over the run; without any, one phase of the paper's throughout.
        solver: `ddim` or `heun`.
        distance: `pseudo_huber` or `squared`; or a module of latents, prediction and target, by its `class_path`.
        huber_h: h of the pseudo-Huber distance.
        timestep_mode: `stratified` or `uniform` draws of grid points.
        tail: extra probability of the top grid point.
        sigma_data: of the boundary; 0.5, since whoever samples an exported student by diffusers' scheduler has that.
        timestep_scaling: of the boundary.
        warm_start_steps: steps of regression onto the teacher's guided prediction before distillation; 0 for none.
        warm_start_snr: gamma of min-SNR weights in the warm start, 5 in ConsistencyTTA's first stage; null weighs all
            timesteps alike.
        x0_clamp: bound of the teacher's x0 in the warm start, at the last tenth of the timesteps.
        audio_condition_share: share of items conditioned on their own audio's embedding in place of the caption's.
        continuation_share: share of items whose first chunks are held clean, as the teacher was trained to go on from
            them; of a network that takes held frames (MeLoDy's renderer).
        inpainting_share: share of items of which one chunk is made and the others are held.
        chunks: chunks of an item, as the renderer's stage has them.
        target_ema_decay: decay of the EMA that makes the targets; with 0 the student itself makes them.
        eval_ema_decay: decay of the EMA that is evaluated and exported.
        start: what the student starts from in place of the teacher's weights: a checkpoint of an earlier distillation,
            or an exported student's folder or name. A resumed run does not read it.
        lora: train a low-rank adapter on the teacher's frozen weights, `{rank, alpha, target_modules}`; null trains
            all weights.
    """

    prediction_type: str = "v_prediction"
    guidance_scale: float = 3.0
    guidance: str = "fixed"
    guidance_range: list[float] = field(default_factory=lambda: [0.0, 6.0])
    weight: float = 3.0
    grid_points: int = 50
    grid: str = "even"
    curriculum: list[Phase] = field(default_factory=list)
    solver: str = "ddim"
    distance: str | nn.Module = "pseudo_huber"
    huber_h: float = 1e-3
    timestep_mode: str = "stratified"
    tail: float = 0.0
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    warm_start_steps: int = 0
    warm_start_snr: float | None = None
    x0_clamp: float = 4.5
    audio_condition_share: float = 0.0
    continuation_share: float = 0.0
    inpainting_share: float = 0.0
    chunks: int = 4
    target_ema_decay: float = 0.95
    eval_ema_decay: float = 0.999
    start: str | None = None
    lora: Lora | None = None

    def __post_init__(self) -> None:
        # not as the field's default, which jsonargparse could not write into a run's config.yaml
        self.curriculum = self.curriculum or [Phase()]

    def phase(self, progress: float) -> Phase:
        """The phase that a share of the run, in 0..1, falls into."""
        return next((phase for phase in self.curriculum if progress < phase.until), self.curriculum[-1])

    @property
    def taught_scale(self) -> float:
        """The scale by which the teacher is guided, where items have none of their own."""
        return 1.0 if self.guidance == "direct" else self.guidance_scale

    @property
    def student_guidance(self) -> StudentGuidance:
        """How the student is guided when it is sampled."""
        low, high = self.guidance_range
        return StudentGuidance(self.guidance, self.guidance_scale, (low, high))

    def check(self) -> None:
        """Refuse at once what would only be refused once the warm start is over.

        Raises:
            MusiccmError: an unknown name, a number out of range, or phases whose ends do not ascend to 1.
        """
        for key, known in {"solver": SOLVERS, "distance": DISTANCES, "prediction_type": PREDICTION_TYPES,
                           "timestep_mode": TIMESTEP_MODES, "guidance": GUIDANCE_KINDS, "grid": GRIDS}.items():
            if getattr(self, key) not in known and not (key == "distance" and isinstance(self.distance, nn.Module)):
                raise MusiccmError(
                    f"distillation.{key}: expected one of {', '.join(known)}, found {getattr(self, key)!r}."
                )
        check_ranges(
            "distillation.", vars(self), ["warm_start_snr"],
            share="tail audio_condition_share continuation_share inpainting_share",
            decay="target_ema_decay eval_ema_decay", count="grid_points chunks", index="warm_start_steps",
            not_negative="guidance_scale weight",
            positive="huber_h timestep_scaling x0_clamp warm_start_snr",
        )
        self._check_guidance()
        held = self.continuation_share + self.inpainting_share
        if held > 1 or (held and self.chunks < 2):
            raise MusiccmError("distillation: continuation_share and inpainting_share are shares of the same items, of "
                               f"two or more chunks; expected at most 1 together, found {held:g} of {self.chunks} "
                               "chunks.")
        if self.sigma_data != LCM_SIGMA_DATA:
            raise MusiccmError(
                f"distillation.sigma_data: expected {LCM_SIGMA_DATA}, which diffusers' LCMScheduler has written into "
                f"it, found {self.sigma_data!r}: such a student could not be exported. Leave the key out."
            )
        if self.lora is not None:
            check_ranges("distillation.lora.", vars(self.lora), count="rank", positive="alpha")
            if self.start is not None:
                raise MusiccmError(f"distillation.start: expected none beside distillation.lora, found {self.start!r}: "
                                   "an adapter lies on the teacher's weights.")
        for phase in self.curriculum:
            check_ranges("distillation.curriculum: ", vars(phase), positive="until", count="skip")
            if phase.jumps != "to_zero" and not (
                isinstance(phase.jumps, int) and not isinstance(phase.jumps, bool) and phase.jumps >= 1
            ):
                raise MusiccmError(
                    "distillation.curriculum: expected jumps to be a positive whole number or 'to_zero', found "
                    f"{phase.jumps!r}."
                )
        ends = [phase.until for phase in self.curriculum]
        if ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1.0:
            raise MusiccmError(
                f"distillation.curriculum: expected phases whose `until` ascend from above 0 to 1.0, found {ends}."
            )


    def _check_guidance(self) -> None:
        found = self.guidance_range
        if len(found) != 2:
            raise MusiccmError("distillation.guidance_range: expected two numbers, the lowest and the highest scale, "
                               f"found {list(found)!r}.")
        check_ranges("distillation.guidance_range: ", {"low": found[0], "high": found[1]}, not_negative="low high")
        try:
            _ = self.student_guidance
        except MusiccmError as error:
            raise MusiccmError(f"distillation.{error}") from None
        if self.guidance == "variable" and self.lora is not None:
            raise MusiccmError("distillation.lora: expected none beside distillation.guidance: variable: the guidance "
                               "branch is new and is trained whole. Train the whole student, or one of a fixed scale.")


@dataclass
class Adversarial:
    """The adversarial loss of MusicCM (arXiv 2404.13358).

    Args:
        weight: weight of L_G; 0 gives the ablation without a discriminator, which is then neither built nor trained.
        features: the frozen feature network: `audiomae` or `clap`; or a module of the decoded mel by its `class_path`,
            with `widths`, `embed_width` and `with_embedding` (`ViTFeatures` has them).
        loss: `hinge` or `non_saturating`; or an `AdversarialLoss` by its `class_path`.
        start_step: optimizer step of the student at which the adversarial loss joins.
        crop_frames: latent frames that the discriminator sees, at one random place a step; null: whole clips.
        crop_context: latent frames on either side of the crop that are decoded with it and cut off again.
        head_width: inner width of the heads.
        r1_gamma: weight of R1 on the heads' inputs.
        lr: learning rate of the heads.
        betas: AdamW's, of the heads.
    """

    weight: float = 1.0
    features: str | nn.Module = "audiomae"
    loss: str | AdversarialLoss = "hinge"
    start_step: int = 0
    crop_frames: int | None = None
    crop_context: int = 0
    head_width: int = 64
    r1_gamma: float = 1e-5
    lr: float = 1e-4
    betas: Sequence[float] = (0.0, 0.99)

    def check(self) -> None:
        """Refuse at once what would only be refused at `start_step`, or not at all.

        Raises:
            MusiccmError: an unknown name or a number out of range.
        """
        for key, known, kind in (("features", FEATURES, nn.Module), ("loss", ADVERSARIAL_LOSSES, AdversarialLoss)):
            value = getattr(self, key)
            if not isinstance(value, kind) and value not in known:
                raise MusiccmError(f"adversarial.{key}: expected one of {', '.join(known)}, found {value!r}.")
        check_ranges(
            "adversarial.", vars(self), ["crop_frames"], not_negative="weight r1_gamma", positive="lr", betas="betas",
            index="start_step crop_context", count="head_width crop_frames",
        )


@dataclass
class Optimization:
    """The student's optimizer, what Lightning refuses to do under manual optimization, and how a step is computed.

    Args:
        lr: AdamW's learning rate; 1e-5 for the full-size model.
        betas: AdamW's.
        weight_decay: AdamW's.
        warmup_steps: steps of linear warm-up.
        decay_share: share of the run, at its end, over which the rate falls to `final_lr_share`.
        decay: how it falls: along a half `cosine`, or `linear`.
        final_lr_share: share of `lr` that is left at the end.
        clip_norm: bound of the gradient norm, of student and heads alike.
        accumulate: batches whose gradients make one step.
        half_frozen: under bf16-mixed, whether the frozen networks are also held in bf16 for the training step, which
            spares a cast at every call; the numbers are the same.
        gradient_checkpointing: whether the activations of the student, of the decoder before the discriminator, and of
            all between latents and CLAP's embeddings are computed a second time in the backward pass instead of being
            kept: a third more work there, several times less memory.
        compile: backend of `torch.compile`, such as `inductor`, for student, target and teacher, for a critic with its
            heads, and for decoder and AudioMAE before a discriminator; in a test, for teacher and student as they are
            sampled from. Null runs them as they are.
        channels_last: whether convolutions keep their channels last in memory.
    """

    lr: float = 1e-5
    betas: Sequence[float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_share: float = 0.0
    decay: str = "cosine"
    final_lr_share: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    half_frozen: bool = True
    gradient_checkpointing: bool = False
    compile: str | None = None
    channels_last: bool = False

    def check(self) -> None:
        """Refuse numbers that stop a run halfway, or stop it from learning.

        Raises:
            MusiccmError: a number out of range, an unknown name, or a backend that torch.compile does not have.
        """
        if self.decay not in DECAYS:
            raise MusiccmError(f"optimization.decay: expected one of {', '.join(DECAYS)}, found {self.decay!r}.")
        check_ranges(
            "optimization.", vars(self), positive="lr clip_norm", not_negative="weight_decay", betas="betas",
            index="warmup_steps", share="decay_share final_lr_share", count="accumulate",
        )
        check_backend("optimization.compile", self.compile)
