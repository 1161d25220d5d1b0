"""What a job is asked to make: all that fixes its samples, as plain values that JSON holds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from musiccm.audio.output_level import check_level
from musiccm.bounds import FUSIONS, MAX_GUIDANCE_SCALE, check_text, one_of
from musiccm.errors import MusiccmError
from musiccm.long_form import PromptPlan
from musiccm.samplers import SAMPLERS, make_sampler
from musiccm.serving.limits import Limits

TASKS = ("generate", "compose", "continue", "inpaint", "vary", "stream")
EDITS = ("continue", "inpaint", "vary")
MAX_SEED = 2**63 - 1
DEFAULT_STRENGTH = 0.4

#: Fields that a task has no use for; naming one that would be ignored is refused.
_FOREIGN = {
    "generate": ("strength", "from_s", "to_s", "source"),
    "compose": ("strength", "from_s", "to_s", "source"),
    "stream": ("strength", "from_s", "to_s", "source"),
    "continue": ("strength", "from_s", "to_s"),
    "inpaint": ("strength", "seconds"),
    "vary": ("from_s", "to_s", "seconds"),
}

_TEXT, _NUMBER, _WHOLE = ("a text", str), ("a number", int | float), ("a whole number", int)
#: What JSON has for a field; fields whose default is none may be null.
_KINDS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(("model", "task", "level", "fusion", "source"), _TEXT),
    **dict.fromkeys(("seconds", "guidance_scale", "overlap", "strength", "from_s", "to_s"), _NUMBER),
    **dict.fromkeys(("steps", "seed"), _WHOLE), "sampler": ("name and fields", dict),
}


@dataclass(frozen=True)
class MusicRequest:
    """What to make.

    Args:
        model: Name of a served model.
        prompts: Texts along time, `(start_s, text)`; the first at 0.
        task: One of `TASKS`. `generate` is one text, of any length; `compose` is texts along time.
        seconds: Length; by default that of the model's clips. Of `continue`, of clip and continuation together; of
            `stream`, None goes on up to the engine's limit.
        steps: Sampling steps; None for the model's own.
        seed: Of the noise; `resolved` draws one where it is None.
        guidance_scale: See `Pipeline.__call__`.
        sampler: Name and fields, see `make_sampler`; fields alone change the model's own.
        level: `none`, `peak` or `loudness`; edits keep the level of their clip.
        overlap: See `compose`.
        fusion: See `compose`.
        strength: How much `vary` changes, above 0 and up to 1.
        from_s: Start of the range to `inpaint`.
        to_s: Its end.
        source: The clip to edit: an upload, or a job whose result it is.
    """

    model: str
    prompts: tuple[tuple[float, str], ...]
    task: str = "generate"
    seconds: float | None = None
    steps: int | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    sampler: Mapping[str, Any] | None = None
    level: str | None = None
    overlap: float | None = None
    fusion: str | None = None
    strength: float | None = None
    from_s: float | None = None
    to_s: float | None = None
    source: str | None = None

    @property
    def is_edit(self) -> bool:
        """Whether it is made out of a clip."""
        return self.task in EDITS

    @property
    def text(self) -> str:
        """The first text."""
        return self.prompts[0][1]

    @property
    def text_fields(self) -> list[str]:
        """What each text is called in messages."""
        if len(self.prompts) == 1:
            return ["prompt"]
        return [f"prompts.{number}.text" for number in range(len(self.prompts))]

    def to_json(self) -> dict[str, Any]:
        """As plain values, all of them."""
        return asdict(self) | {"prompts": [list(entry) for entry in self.prompts],
                               "sampler": None if self.sampler is None else dict(self.sampler)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> MusicRequest:
        """What `to_json` gave.

        Args:
            values: The values.
            where: What they were read from, for messages.

        Returns:
            The request, unchecked but for its shape.

        Raises:
            MusiccmError: They are no such values.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not {"model", "prompts"} <= values.keys() <= known:
            stray = sorted(set(values) - known) if isinstance(values, dict) else []
            raise MusiccmError(f"{where}: expected an object with model, prompts and what else fixes a clip, found "
                               f"{f'the unknown key {stray[0]!r}' if stray else 'something else'}")
        prompts = values["prompts"]
        if not isinstance(prompts, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in prompts):
            raise MusiccmError(f"{where}: prompts: expected a list of [seconds, text], found {str(prompts)[:60]}")
        if not all(_is(start, int | float) and isinstance(text, str) for start, text in prompts):
            raise MusiccmError(f"{where}: prompts: expected a list of [seconds, text], found {str(prompts)[:60]}")
        for field in fields(cls):
            if field.name == "prompts" or (field.default is None and values.get(field.name) is None):
                continue
            value, (wanted, kind) = values.get(field.name, field.default), _KINDS[field.name]
            if not _is(value, kind):
                raise MusiccmError(f"{where}: {field.name}: expected {wanted}, found {str(value)[:60]}")
        if values.get("sampler") is not None:
            try:
                check_sampler(values["sampler"])
            except MusiccmError as error:
                raise MusiccmError(f"{where}: {error}") from error
        return cls(**{**values, "prompts": tuple((start, text) for start, text in prompts)})

    def resolved(self) -> MusicRequest:
        """The same with the seed and the level that it will be made with."""
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        level = ("none" if self.is_edit else "loudness") if self.level is None else self.level
        return replace(self, seed=seed, level=level)

    def check(self, limits: Limits) -> None:
        """Refuse what no model could make, or what is more than the engine takes.

        Args:
            limits: Bounds.

        Raises:
            MusiccmError: Names the field, what was expected and what was found.
        """
        if self.task not in TASKS:
            raise MusiccmError(f"task: expected one of {', '.join(TASKS)}, found {self.task!r}")
        longest = limits.max_stream_s if self.task == "stream" else limits.max_seconds
        self._check_texts(limits, limits.max_at_s if self.is_edit else longest)
        for name in _FOREIGN[self.task]:
            if getattr(self, name) is not None:
                raise MusiccmError(f"{_shown(name)}: has no meaning for the task {self.task}; leave it out")
        _number("seconds", self.seconds, 0.0, longest, above=True)
        _whole("steps", self.steps, 1, limits.max_steps)
        _whole("seed", self.seed, 0, MAX_SEED)
        _number("guidance_scale", self.guidance_scale, 0.0, MAX_GUIDANCE_SCALE)
        _number("overlap", self.overlap, 0.0, math.nextafter(1.0, 0.0))
        _number("strength", self.strength, 0.0, 1.0, above=True)
        if self.fusion is not None:
            one_of("fusion", self.fusion, FUSIONS)
        if self.sampler is not None:
            check_sampler(self.sampler)
        if self.level is not None:
            check_level(self.level)
            if self.is_edit and self.level != "none":
                raise MusiccmError(f"level: the task {self.task} keeps the level of its clip; leave it out")
        if self.is_edit and not (isinstance(self.source, str) and self.source.isascii()):
            raise MusiccmError(f"source: the task {self.task} needs a clip: the id of an upload or of a finished job")
        if self.task == "inpaint":
            for name in ("from_s", "to_s"):
                if getattr(self, name) is None:
                    raise MusiccmError(f"{_shown(name)}: the task inpaint needs the range to make anew, from and to")
                _number(name, getattr(self, name), 0.0, limits.max_upload_s)
            if not self.from_s < self.to_s:  # type: ignore[operator]
                raise MusiccmError(f"from: expected less than to, found from {self.from_s:g} s to {self.to_s:g} s")

    def _check_texts(self, limits: Limits, latest_s: float) -> None:
        if not 1 <= len(self.prompts) <= limits.max_prompts:
            raise MusiccmError(f"prompts: expected 1 to {limits.max_prompts} texts, found {len(self.prompts)}")
        for number, (name, (start, text)) in enumerate(zip(self.text_fields, self.prompts, strict=True)):
            check_text(text, name)
            if len(text) > limits.max_prompt_chars:
                raise MusiccmError(f"{name}: expected at most {limits.max_prompt_chars} characters, found {len(text)}")
            _number(f"prompts.{number}.at", start, 0.0, latest_s)
        if self.task == "generate" and len(self.prompts) > 1:
            raise MusiccmError(f"prompts: the task generate takes one text, found {len(self.prompts)}; use compose")
        PromptPlan(self.prompts)


def check_sampler(given: Mapping[str, Any]) -> None:
    """Refuse what names no sampler, or is no field of one.

    Args:
        given: Name and fields; without a name, fields that some sampler has, as the model's own is not known here.

    Raises:
        MusiccmError: Names the field, what was expected and what was found.
    """
    if "name" in given:
        make_sampler(dict(given))
        return
    owners = {field.name: name for name, sampler in SAMPLERS.items() for field in fields(sampler)}
    for name, value in given.items():
        if name not in owners:
            raise MusiccmError(f"sampler.{name}: no sampler has such a field; expected name, "
                               f"{', '.join(sorted(owners))}")
        make_sampler({"name": owners[name], name: value})


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _shown(name: str) -> str:
    return name.removesuffix("_s")


def _number(name: str, value: Any, low: float, high: float, above: bool = False) -> None:
    if value is None:
        return
    fits = _is(value, int | float) and low <= value <= high  # false of NaN
    if not fits or (above and value == low):
        span = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise MusiccmError(f"{_shown(name)}: expected a number {span}, found {value!r}")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if value is None:
        return
    if not _is(value, int) or not low <= value <= high:
        raise MusiccmError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")
