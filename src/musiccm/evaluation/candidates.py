"""The models that are compared: one table of them, and each at some number of steps as something that makes sound."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.diffusion import ANGLE_SCHEDULES, AnyCondition
from musiccm.errors import MusiccmError
from musiccm.evaluation.comparison import FLOOR
from musiccm.evaluation.distilled import Distilled, SystemStudent, SystemTeacher
from musiccm.evaluation.feature_cache import decoder_hashes
from musiccm.evaluation.packaged import packaged_student
from musiccm.long_form.model import MusicModel
from musiccm.models.bundle.bundle import DECODERS
from musiccm.samplers import INITIAL, Sampler, SamplerSpec, sample_noise, seeded_noise_fn

log = logging.getLogger(__name__)

#: Where the semantic tokens of a model of MeLoDy's kind come from: its language model, or the real clip.
WRITTEN, RECORDED = "written", "recorded"


@dataclass(frozen=True)
class Comparison:
    """What the models of the table are made of.

    Args:
        system: A distillation: its teacher and its student.
        sampler: The student's.
        guidance_scale: The teacher's guidance, the usual scale.
        packaged: A student's bundle to compare with: a name or a folder; None for none.
        decoders: What makes sound of everybody's latents, by the names of `Bundle.codec`; those that a bundle lacks are
            left out.
    """

    system: Distilled
    sampler: SamplerSpec = "lcm"
    guidance_scale: float = 3.0
    packaged: str | Path | None = None
    decoders: Sequence[str] = DECODERS


@dataclass(frozen=True)
class ComparedModel:
    """A model that evaluations compare: a row of `MODELS`.

    Args:
        name: What its rows of a results.json are called.
        caption: What people read: in plots and tables.
        marker: Of its line in plots, as matplotlib names it.
        generator: What makes its candidates; None where a comparison has no such model.
        teacher: Whether it is the teacher: its features rest on the bundle alone, and may be kept from run to run.
        sampler: The sampler, where it is another than the generator's own.
        guidance_scale: The guidance, where it is another than the generator's own.
        own: Whether it is made by the run itself; others' rows do not go on the card of the run's export.
        tokens: Of a model that renders semantic tokens, where these come from: `WRITTEN` by the bundle's language model
            or `RECORDED`, the real clip's own. None where nothing depends on it.
    """

    name: str
    caption: str
    marker: str
    generator: Callable[[Comparison], MusicModel | None]
    teacher: bool = False
    sampler: SamplerSpec | None = None
    guidance_scale: float | None = None
    own: bool = True
    tokens: str | None = None


def _teacher(asked: Comparison) -> MusicModel:
    return SystemTeacher(asked.system, asked.guidance_scale)


def _student(asked: Comparison) -> MusicModel:
    return SystemStudent(asked.system, asked.sampler)


def _packaged(asked: Comparison) -> MusicModel | None:
    return None if asked.packaged is None else packaged_student(asked.packaged, asked.system.device)


def _nobody(asked: Comparison) -> None:
    """Made elsewhere: `evaluation/floor.py`, or another version."""


#: The models that are compared, in the order of the table. A further one is a row here. The teacher stands there in the
#: configurations that make a fair baseline at few network calls: without guidance a step is one call and not two. A
#: teacher that renders semantic tokens stands there by where these come from and by angle schedule, too.
MODELS: dict[str, ComparedModel] = {model.name: model for model in (
    ComparedModel(FLOOR, "real clips through the decoder", "_", _nobody),
    ComparedModel("teacher", "teacher, DDIM", "o", _teacher, teacher=True),
    ComparedModel("teacher_scale2", "teacher, DDIM, scale 2", "p", _teacher, teacher=True, guidance_scale=2.0),
    ComparedModel("teacher_unguided", "teacher, DDIM, unguided", "h", _teacher, teacher=True, guidance_scale=1.0),
    ComparedModel("teacher_heun", "teacher, Heun", "P", _teacher, teacher=True, sampler="heun"),
    ComparedModel("teacher_dpm", "teacher, DPM-Solver++", "v", _teacher, teacher=True, sampler="dpm-solver++"),
    ComparedModel("teacher_dpm_scale2", "teacher, DPM-Solver++, scale 2", "<", _teacher, teacher=True,
                  sampler="dpm-solver++", guidance_scale=2.0),
    ComparedModel("teacher_dpm_unguided", "teacher, DPM-Solver++, unguided", ">", _teacher, teacher=True,
                  sampler="dpm-solver++", guidance_scale=1.0),
    *(ComparedModel(f"teacher_{name}_{schedule}", f"teacher, {said}, {schedule} angles", marker, _teacher, teacher=True,
                    sampler={"name": "ddim", "schedule": f"angle_{schedule}"}, tokens=tokens)
      for name, said, tokens, markers in (
          ("lm", "LM tokens", WRITTEN, "Hd"), ("oracle", "oracle tokens", RECORDED, "8+"))
      for schedule, marker in zip(ANGLE_SCHEDULES, markers, strict=True)),
    ComparedModel("student", "student", "s", _student),
    ComparedModel("student_scale1", "student, scale 1", "^", _student, guidance_scale=1.0),
    ComparedModel("student_scale3", "student, scale 3", "*", _student, guidance_scale=3.0),
    ComparedModel("student_scale5", "student, scale 5", "X", _student, guidance_scale=5.0),
    ComparedModel("student_packaged", "packaged student", "D", _packaged, own=False),
)}
#: Names that results of versions 0.1 and 0.2 have.
FORMER = {"student_shipped": "student_packaged", "student_fast": "student"}


def present_name(name: str) -> str:
    """The name of a model today; results of version 0.1 may have another."""
    return FORMER.get(name, name)


def compared_model(name: str) -> ComparedModel:
    """The model of a row; one that this version does not know shows under its own name, after the others.

    Args:
        name: `model` of a row of a results.json.

    Returns:
        The row of `MODELS`, or one made for the name.
    """
    name = present_name(name)
    return MODELS.get(name) or ComparedModel(name, name, "x", _nobody, own=False)


def place_of(name: str) -> int:
    """Where a model stands in tables: its place in `MODELS`, or behind them."""
    names = list(MODELS)
    name = present_name(name)
    return names.index(name) if name in MODELS else len(names)


@dataclass(frozen=True)
class Candidate:
    """A model at some number of steps: a row of an evaluation for each decoder.

    Args:
        model: Its name in `MODELS`.
        steps: Sampling steps.
        guidance_scale: None where there is none to choose, as of a student that one was distilled into.
        encode: `captions -> conditions`; `(captions, seeds) -> conditions` where these are drawn; of recorded tokens
            `ids_BL -> conditions`.
        sample: `(conditions, noise_BCTF, seeds) -> z_BCTF`.
        decoders: `z_BCTF -> waveform_BS`, by the decoder's name; latents are sampled once for all of them.
        latent_shape: `(C, T, F)` of one clip.
        calls: Counts the samples that went through the network; None where it cannot be seen.
        sampler: The rule by which it is sampled; None where it is not known.
        tokens: Tokens that are drawn for each clip, one network call each; 0 where conditions are not drawn.
        recorded: Whether it is told the semantic tokens of the real clips.
        forget: Of one that draws tokens, `(captions, seeds)` makes it write them again, so that their time is measured;
            models that are compared share what was written.
    """

    model: str
    steps: int
    guidance_scale: float | None
    encode: Callable[..., AnyCondition]
    sample: Callable[[Any, Tensor, Sequence[int]], Tensor]
    decoders: Mapping[str, Callable[[Tensor], Tensor]]
    latent_shape: tuple[int, int, int]
    calls: CallCounter | None = None
    sampler: Sampler | None = None
    tokens: int = 0
    recorded: bool = False
    forget: Callable[[Sequence[str], Sequence[int]], None] | None = None

    def condition(self, captions: list[str], seeds: Sequence[int], ids_BL: Tensor | None = None) -> AnyCondition:
        """What the network is told of captions; of one that draws it, by the seeds of the clips.

        Args:
            captions: Of the clips.
            seeds: Of the clips.
            ids_BL: Semantic tokens of the real clips, of a candidate that is told these.
        """
        if self.recorded:
            return self.encode(ids_BL)
        return self.encode(captions, seeds) if self.tokens else self.encode(captions)

    @property
    def label(self) -> str:
        """Such as `teacher@50`."""
        return f"{self.model}@{self.steps}"

    @property
    def decoder(self) -> str:
        """The decoder that is asked first, which validations and panels use."""
        return next(iter(self.decoders))

    def decode(self, z_BCTF: Tensor) -> Tensor:
        """Sound by that decoder, `waveform_BS`."""
        return self.decoders[self.decoder](z_BCTF)


class CallCounter:
    """Stands before a network function and counts the samples that pass, so that calls are measured, not assumed.

    Args:
        function: `(z_BCTF, t_B, condition) -> Tensor`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.samples = 0

    def __call__(self, z_BCTF: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Count the batch and pass it on."""
        self.samples += z_BCTF.shape[0]
        return self.function(z_BCTF, *args, **kwargs)


def clip_seed(seed: int, clip_id: str) -> int:
    """The seed of one clip's noise: the same for every model, batch and rank.

    Args:
        seed: The evaluation's seed.
        clip_id: The clip whose caption is asked for.

    Returns:
        A number of 63 bits.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{clip_id}".encode(), digest_size=8).digest(), "little") >> 1


def initial_noise(seeds: Sequence[int], latent_shape: Sequence[int], device: torch.device | str) -> Tensor:
    """The noise from which every model starts.

    Args:
        seeds: One a clip, see `clip_seed`.
        latent_shape: `(C, T, F)`.
        device: Where to put it.

    Returns:
        `noise_BCTF`, float32.
    """
    return sample_noise(seeds, latent_shape, INITIAL).to(device)


def candidate_of(
    model: MusicModel,
    name: str,
    steps: int,
    sampler: SamplerSpec | None = None,
    guidance_scale: float | None = None,
    decoders: Sequence[str] | None = None,
    tokens: str | None = None,
) -> Candidate:
    """Any model that makes music, at some number of steps.

    Args:
        model: What generates.
        name: What its row is called.
        steps: Sampling steps.
        sampler: See `MusicModel.stepper`.
        guidance_scale: See `MusicModel.stepper`.
        decoders: What makes its sound, see `codecs`; the model's own alone if not given.
        tokens: See `ComparedModel`.

    Returns:
        The candidate; a guided step counts as two network calls.

    Raises:
        MusiccmError: As `MusicModel.stepper`; or semantic tokens of a model that takes none.
    """
    if tokens is not None:
        require_tokens(model, name)
    stepper = model.stepper(steps, guidance_scale, sampler=sampler)
    counted = CallCounter(stepper.network)
    at_work, shape = replace(stepper, network=counted), model.latent_shape

    def sample(cond: AnyCondition, noise_BCTF: Tensor, seeds: Sequence[int]) -> Tensor:
        return at_work.sample(cond, noise_BCTF, seeded_noise_fn(seeds, shape))

    made_by = {kind_of(model.codec): model.codec} if decoders is None else codecs(model, decoders)
    recorded, draws = tokens == RECORDED, getattr(model.conditioner, "draws", False)
    return Candidate(
        name, steps, stepper.scale, model.conditioner.vectors if recorded else model.conditioner.text, sample,
        {kind: codec.decode for kind, codec in made_by.items()}, shape, counted, stepper.sampler,
        model.conditioner.tokens if draws and not recorded else 0, recorded,
        model.conditioner.forget if draws and not recorded else None,
    )


def require_tokens(model: MusicModel | Distilled, name: str) -> None:
    """Refuse a model without semantic tokens for a row that is about where they come from.

    Args:
        model: What generates, or the distillation that it is made of.
        name: Of the row.

    Raises:
        MusiccmError: It has none.
    """
    if not getattr(model.conditioner, "draws", False):
        bundle = getattr(model, "bundle", None)
        raise MusiccmError(f"evaluation.more_models.{name}: expected a model that renders semantic tokens "
                           f"(docs/melody.md), found {bundle.path if bundle else type(model).__name__}, which is told "
                           "captions; leave it out")


def kind_of(codec: Any) -> str:
    """Whether a codec makes sound by a fast decoder or by the original ones: `fast` or `original`."""
    return getattr(codec, "decoded_by", "original")


def codecs(model: Any, decoders: Sequence[str]) -> dict[str, Any]:
    """A model's codecs.

    Args:
        model: A `MusicModel`; one without a `bundle` has its own codec alone.
        decoders: Names that `Bundle.codec` takes.

    Returns:
        Those that its bundle has, in the order of the names.

    Raises:
        MusiccmError: It has none of them.
    """
    own, bundle = model.codec, getattr(model, "bundle", None)
    found = {}
    for name in decoders:
        if name == kind_of(own):
            found[name] = own
        elif bundle is not None and name in bundle.kind.decoding and (name != "fast" or bundle.has_fast_decoder):
            found[name] = bundle.codec(name).to(model.device).eval()
    if not found:
        raise MusiccmError(f"evaluation.decoders: {bundle.path if bundle else type(model).__name__} has none of "
                           f"{', '.join(decoders)}; add {kind_of(own)}")
    return found


def candidates(asked: Comparison, steps: Mapping[str, Sequence[int]]) -> list[Candidate]:
    """The candidates of a comparison.

    Args:
        asked: What the models are made of.
        steps: Sampling steps at which each model of `MODELS` is scored, by its name.

    Returns:
        They, in the order of `MODELS`, from the first to the last of each one's steps; none of a model that the
        comparison has not.

    Raises:
        MusiccmError: A name that is not in the table; or as the models' own.
    """
    check_models(steps)
    found = []
    for name, compared in MODELS.items():
        generator = compared.generator(asked) if steps.get(name) else None
        if generator is None:
            continue
        if not (decoders := alike_decoders(generator, asked, name)):
            continue
        found += [candidate_of(generator, name, count, compared.sampler, compared.guidance_scale, decoders,
                               compared.tokens)
                  for count in steps[name]]
    return found


def alike_decoders(model: Any, asked: Comparison, name: str) -> list[str]:
    """The decoders of a comparison by which a model may stand beside the others: those whose weights are the system's.

    Args:
        model: What generates.
        asked: The comparison.
        name: Of the model, for the warning about what is left out.

    Returns:
        Names among those that were asked for.
    """
    own, system = getattr(model, "bundle", asked.system.bundle), asked.system.bundle
    if own is system:
        return list(asked.decoders)
    mine, theirs = decoder_hashes(own), decoder_hashes(system)
    alike = [decoder for decoder in asked.decoders if mine.get(decoder) == theirs.get(decoder)]
    if other := sorted(set(asked.decoders) - set(alike)):
        log.warning("evaluation: %s is left out by %s: %s has other weights there than %s, and distances by different "
                    "decoders do not compare", name, ", ".join(other), own.path, system.path)
    return alike


def check_models(names: Mapping[str, Any]) -> None:
    """Refuse models that are not in the table.

    Raises:
        MusiccmError: Names such a one.
    """
    known = [name for name in MODELS if name != FLOOR]
    if unknown := sorted(set(names) - set(known)):
        raise MusiccmError(f"evaluation: models to compare: expected names among {', '.join(known)}, found "
                           f"{', '.join(unknown)}")
