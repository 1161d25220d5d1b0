"""From a request to sound: each task by what `LongMusic` has for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from musiccm.errors import MusiccmError, naming
from musiccm.long_form import (
    ClipLength,
    Editor,
    LongMusic,
    MusicModel,
    MusicStream,
    SourceClip,
    read_clip,
    require_whole,
    seam_metrics,
)
from musiccm.samplers import Crops, Sampler, make_sampler
from musiccm.serving.at_work import ModelAtWork, Unserved, call_count
from musiccm.serving.limits import Limits
from musiccm.serving.request import DEFAULT_STRENGTH, MusicRequest

OVERLAP = 0.5  # of windows where none is asked for
BATCH = 8  # windows of one piece a network call, as `compose` has it
#: What long music calls the fields of a request.
_FIELDS = {"duration": "seconds", "range": "from, to"}


@dataclass(frozen=True)
class Made:
    """Sound that a task made.

    Args:
        waveform_CS: Its samples.
        sample_rate_hz: Their rate.
        form: Of an edit, the clip's sample format (`Original`); None for new music, which files hold with 16 bits.
        facts: What is told of it beside.
    """

    waveform_CS: Tensor
    sample_rate_hz: int
    form: str | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much work a request is.

    Args:
        request: The request, with the steps that its model takes where none were asked for.
        units: Windows times steps.
        calls: Network calls; None where that is not known beforehand.
    """

    request: MusicRequest
    units: int
    calls: int | None


def one_window(model: MusicModel, request: MusicRequest) -> bool:
    """Whether a request is a clip of the trained length, which any sampler makes."""
    return (len(request.prompts) == 1 and request.overlap is None and request.fusion is None
            and (request.seconds is None or math.isclose(request.seconds, model.duration_s, abs_tol=1e-3)))


def planned(model: MusicModel, request: MusicRequest) -> Plan:
    """Check a request against its model, before it waits.

    Args:
        model: The model.
        request: The request, checked by itself.

    Returns:
        The request as it will be made, and how much work that is.

    Raises:
        MusiccmError: The model takes no such steps, sampler, guidance or texts.
    """
    for name, (_, text) in zip(request.text_fields, request.prompts, strict=True):
        with naming({"prompt": name}):
            require_whole(model.conditioner, [text])
    steps = getattr(model, "default_steps", None) if request.steps is None else request.steps
    strength = _strength(request) if request.task == "vary" else 1.0
    rule = chosen_sampler(model, request)
    stepper = model.stepper(steps, request.guidance_scale, strength=strength, sampler=rule)
    # all that fixes the samples is stated, so that a later version with other defaults makes them again
    request = replace(request, steps=steps, sampler=rule.spec, guidance_scale=stepper.scale)
    if request.task in ("generate", "compose") and one_window(model, request):
        return Plan(request, len(stepper.timesteps), call_count(stepper, 1, BATCH))
    stepper.needs_no_memory()
    if request.is_edit:  # its windows are those beside the part that is made anew
        windows = max(2, math.ceil(2 * (request.seconds or 2 * model.duration_s) / model.duration_s))
        return Plan(request, len(stepper.timesteps) * windows, None)
    # laid out as a stream, of which nothing is computed: texts that no window would use are refused now
    seconds = model.duration_s if request.seconds is None else request.seconds
    with naming(_FIELDS):
        LongMusic.stream(Unserved(model), _entries(request), request.seconds if request.task == "stream" else seconds,
                         steps, 0, overlap=request.overlap, fusion=request.fusion,
                         guidance_scale=request.guidance_scale, sampler=rule).close()
    frames = max(model.latent_shape[1], math.ceil(round(seconds * model.sample_rate_hz) / model.frame_samples))
    shared = not getattr(model.conditioner, "draws", False)  # windows that each hold what is there have other calls
    crops = Crops.overlapping(frames, model.latent_shape[1], OVERLAP if request.overlap is None else request.overlap)
    count = crops.count or 1
    known = shared and request.task != "stream"
    return Plan(request, len(stepper.timesteps) * count, call_count(stepper, count, BATCH) if known else None)


def check_edit(model: MusicModel, request: MusicRequest, samples: int, sample_rate_hz: int, limits: Limits) -> None:
    """Refuse an edit that does not fit its clip, before it waits.

    Args:
        model: The model.
        request: The request, planned.
        samples: Samples a channel of the clip.
        sample_rate_hz: Their rate.
        limits: Bounds.

    Raises:
        MusiccmError: The range, a text or the length does not fit the clip, or the whole would be too long.
    """
    clip, entries = ClipLength.of(model, samples, sample_rate_hz), _entries(request)
    editor = _editor(Unserved(model), request)
    with naming(_FIELDS):
        if request.task == "inpaint":
            editor.mending(clip, entries, *_range(request))
        elif request.task == "vary":
            editor.variation(clip, entries, _strength(request))
        else:
            whole_s = editor.extension(clip, entries, request.seconds).length / sample_rate_hz
            if request.seconds is None and whole_s > limits.max_seconds:
                raise MusiccmError(f"seconds: expected up to {limits.max_seconds:g} of clip and continuation together, "
                                   f"found {whole_s:g}, as a window follows the clip where none are asked for; ask for "
                                   "less, or cut the clip")


def perform(model: ModelAtWork, request: MusicRequest, source: Path | None) -> Made:
    """Make what was asked for.

    Args:
        model: The model, for this job.
        request: The request, resolved.
        source: Of an edit, its clip.

    Returns:
        The sound.

    Raises:
        MusiccmError: The clip cannot be used, or the request does not fit it.
        Cancelled: The job is to end.
    """
    with naming(_FIELDS):
        return _performed(model, request, source)


def _performed(model: ModelAtWork, request: MusicRequest, source: Path | None) -> Made:
    assert request.seed is not None and request.level is not None
    if request.is_edit:
        assert source is not None
        try:
            clip = read_clip(model, source)
        except MusiccmError as error:  # messages go to clients, whom the server's paths do not concern
            raise MusiccmError(str(error).replace(str(source), "the clip")) from error
        return _edited(model, request, clip)
    options: dict[str, Any] = {"guidance_scale": request.guidance_scale, "sampler": chosen_sampler(model, request)}
    if one_window(model, request):
        sound_S = model.clip(request.text, request.steps, request.seed, level=request.level, **options)
    else:
        seconds = model.duration_s if request.seconds is None else request.seconds
        sound_S = model.compose(_entries(request), seconds, request.steps, request.seed, overlap=request.overlap,
                                fusion=request.fusion, batch_size=BATCH, level=request.level, **options)
    return Made(sound_S[None], model.sample_rate_hz, None, {})


def streamed(model: ModelAtWork, request: MusicRequest) -> MusicStream:
    """Begin a stream.

    Args:
        model: The model, for this job.
        request: The request, resolved.

    Returns:
        The stream; nothing is computed yet.
    """
    assert request.seed is not None and request.level is not None
    sampler = chosen_sampler(model, request)
    return model.stream(_entries(request), request.seconds, request.steps, request.seed, overlap=request.overlap,
                        fusion=request.fusion, guidance_scale=request.guidance_scale, sampler=sampler,
                        level=request.level)


def _edited(model: ModelAtWork, request: MusicRequest, clip: SourceClip) -> Made:
    clip, editor, entries = replace(clip, name="the clip"), _editor(model, request), _entries(request)
    if request.task == "continue":
        made = editor.extend(clip, entries, request.seconds)
    elif request.task == "inpaint":
        made = editor.inpaint(clip, entries, *_range(request))
    else:
        made = editor.vary(clip, entries, _strength(request))
    seams = seam_metrics(made.waveform_CS, made.sample_rate_hz, made.fades, made.kept)
    facts = {"says": made.says(), "kept_s": [list(span) for span in made.kept_s], "seams_s": made.seams_s,
             "audible_seams_s": [seam.at_s for seam in seams if seam.audible]}
    return Made(made.waveform_CS, made.sample_rate_hz, made.form, facts)


def _editor(model: Unserved, request: MusicRequest) -> Editor:
    return model.editor(request.steps, request.seed or 0, overlap=request.overlap, fusion=request.fusion,
                        batch_size=BATCH, guidance_scale=request.guidance_scale,
                        sampler=chosen_sampler(model, request))  # type: ignore[arg-type]


def _range(request: MusicRequest) -> tuple[float, float]:
    if request.from_s is None or request.to_s is None:
        raise MusiccmError("from, to: the task inpaint needs both")
    return request.from_s, request.to_s


def _strength(request: MusicRequest) -> float:
    return DEFAULT_STRENGTH if request.strength is None else request.strength


def _entries(request: MusicRequest) -> list[tuple[float, str]]:
    return [(start, text) for start, text in request.prompts]


def chosen_sampler(model: MusicModel, request: MusicRequest) -> Sampler:
    """The sampler that was asked for; without a name, the model's own with the fields that were.

    Args:
        model: The model.
        request: The request.

    Returns:
        The sampler.

    Raises:
        MusiccmError: There is no such sampler or field.
    """
    fields = dict(request.sampler or {})
    return make_sampler(fields if "name" in fields else {**model.stepper(1).sampler.spec, **fields})
