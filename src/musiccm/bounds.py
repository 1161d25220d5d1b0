"""What music can be asked for, whatever the model: read by the library and, before torch is loaded, by the commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musiccm.errors import MusiccmError

MAX_WHOLE_S = 3600.0
"""Longest piece that is made whole, whose latents and sound are held in memory; a stream has no such limit."""

MAX_STREAM_S = 1e9
"""Longest stream of a stated length, 32 years: far beyond any file, and its samples still are exact numbers."""

MAX_GUIDANCE_SCALE = 100.0
"""Published scales are below 10; far above, float32 overflows."""

LEVELS = ("none", "peak", "loudness")
"""How loud sound leaves (docs/levels.md)."""

FUSIONS = ("uniform", "triangular", "swap")
"""How windows of a long piece are fused: `uniform` is the plain mean over the crops that cover a frame (MusicCM,
equation 10), `triangular` weighs each crop by the distance to its edge, `swap` takes alternate frames from alternate
crops and averages nothing."""

SAMPLER_NAMES = ("ddim", "lcm", "tcd", "heun", "dpm-solver++")
"""The samplers that a file or a command names."""

ANGLE_SCHEDULES = ("uniform", "proposed")
"""How angles are walked down (`musiccm.diffusion.angles`): `uniform` steps are alike; `proposed` ones (MeLoDy, section
4.3) grow linearly with the noise: large ones first."""

SCHEDULES = ("trailing", *(f"angle_{kind}" for kind in ANGLE_SCHEDULES))
"""How a teacher's noise levels lie: at equal distances of timesteps (`trailing_timesteps`), or by the angle of signal
and noise (`angle_timesteps`)."""


def one_of(name: str, value: Any, known: Sequence[str]) -> Any:
    """Refuse what is none of the names that are known.

    Args:
        name: What it is called in the message.
        value: What was asked for.
        known: The names.

    Returns:
        The value.

    Raises:
        MusiccmError: It is another.
    """
    if value not in known:
        raise MusiccmError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
    return value


def check_duration(duration_s: Any, longest_s: float = MAX_WHOLE_S, advice: str = "stream longer music") -> float:
    """Refuse lengths that no piece can have.

    Args:
        duration_s: What was asked for.
        longest_s: The limit.
        advice: What to do about more.

    Returns:
        The seconds.

    Raises:
        MusiccmError: Not a number above 0 and up to the limit.
    """
    if isinstance(duration_s, bool) or not isinstance(duration_s, int | float) or not 0 < duration_s <= longest_s:
        raise MusiccmError(f"duration: expected seconds above 0 and up to {longest_s:g}, found {duration_s!r}; "
                           f"{advice}")
    return float(duration_s)


def check_text(text: Any, name: str = "prompt") -> str:
    """Refuse what is no description.

    Args:
        text: What was given.
        name: What it is called in the message.

    Returns:
        The text.

    Raises:
        MusiccmError: It is empty, no text, or holds characters that no text holds.
    """
    if not isinstance(text, str) or not text.strip():
        raise MusiccmError(f"{name}: expected a description such as 'a calm piano melody', found {text!r}")
    odd = next((c for c in text if "\ud800" <= c <= "\udfff" or (c < " " and c not in "\t\n\r")), None)
    if odd is not None:
        raise MusiccmError(f"{name}: expected text, found the character {odd!r} in {text[:60]!r}; was it read from "
                           "something that is not UTF-8 text?")
    return text


def check_texts(prompts: str | Sequence[str]) -> list[str]:
    """A list of descriptions from one or several.

    Args:
        prompts: One text or several.

    Returns:
        The texts.

    Raises:
        MusiccmError: There is none, or one of them is refused by `check_text`.
    """
    if isinstance(prompts, str):
        return [check_text(prompts, "prompt 1 of 1")]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise MusiccmError(f"prompts: expected a text or a list of texts, found {prompts!r}")
    texts = list(prompts)
    if not texts:
        raise MusiccmError("prompts: expected at least one text, found an empty list")
    return [check_text(text, f"prompt {i + 1} of {len(texts)}") for i, text in enumerate(texts)]


def check_steps(steps: Any, scheduler: Mapping[str, Any]) -> int:
    """Refuse more steps than a model has noise levels for.

    Args:
        steps: What was asked for.
        scheduler: The model's `scheduler_config.json`.

    Returns:
        The steps.

    Raises:
        MusiccmError: As `check_student_steps` or `check_teacher_steps`; of the first kind is what states a grid.
    """
    if "original_inference_steps" in scheduler:
        return check_student_steps(steps, int(scheduler["original_inference_steps"]))
    return check_teacher_steps(steps, int(scheduler.get("num_train_timesteps", 1000)))


def check_student_steps(steps: Any, points: int) -> int:
    """Refuse steps that the grid of a student does not have.

    Args:
        steps: What was asked for.
        points: Points of its grid.

    Returns:
        The steps.

    Raises:
        MusiccmError: Not a whole number from 1 to `points`.
    """
    return _whole_steps(steps, points, ", the size of the grid that the student was trained on")


def check_teacher_steps(steps: Any, num_train_timesteps: int) -> int:
    """Refuse steps between which a teacher has no noise levels.

    Args:
        steps: What was asked for.
        num_train_timesteps: Number of noise levels.

    Returns:
        The steps.

    Raises:
        MusiccmError: Not a whole number from 1 to half of `num_train_timesteps`.
    """
    # With more steps the lowest timestep would be 0, which as the target of a jump means clean already.
    return _whole_steps(steps, num_train_timesteps // 2, "")


def _whole_steps(steps: Any, most: int, why: str) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise MusiccmError(f"steps: expected a whole number from 1 to {most}{why}, found {steps!r}.")
    return steps


@dataclass(frozen=True)
class Bucket:
    """A shape of music that is warmed up before it is asked for.

    Args:
        batch: Clips at once; of a longer piece, windows at once.
        steps: Sampling steps; the model's own by default.
        seconds: Length; the one that the model was trained on by default.

    Raises:
        MusiccmError: A number is out of range.
    """

    batch: int = 1
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("a batch", self.batch), ("steps", self.steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise MusiccmError(f"warm_up: expected {name} of 1 or more, a whole number, found {value!r}")
        if self.seconds is not None and not 0 < self.seconds <= MAX_WHOLE_S:
            raise MusiccmError(f"warm_up: expected seconds above 0 and up to {MAX_WHOLE_S:g}, found {self.seconds!r}")

    @classmethod
    def read(cls, text: str) -> Bucket:
        """From `BATCH`, `BATCHxSTEPS` or `BATCHxSTEPSxSECONDS`, such as `8x4x60`.

        Raises:
            MusiccmError: It is none of these, or a number is out of range.
        """
        found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6})(?:x(\d{1,6}(?:\.\d+)?))?)?", text)
        if found is None:
            raise MusiccmError("warm_up: expected BATCH, BATCHxSTEPS or BATCHxSTEPSxSECONDS, such as 8x4 or 8x4x60, "
                               f"found {text!r}")
        batch, steps, seconds = found.groups()
        return cls(int(batch), None if steps is None else int(steps), None if seconds is None else float(seconds))

    def __str__(self) -> str:
        parts = [f"{self.batch} at once", *([] if self.steps is None else [f"{self.steps} steps"]),
                 *([] if self.seconds is None else [f"{self.seconds:g} s"])]
        return ", ".join(parts)
