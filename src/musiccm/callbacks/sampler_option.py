"""The `sampler` that an experiment gives to a callback, and the `gamma` that version 0.1 had in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.samplers import Sampler, suited_sampler
from musiccm.samplers.steppers import STUDENT_SAMPLER


def sampler_option(where: str, sampler: str | Mapping[str, Any] | None, gamma: float | None = None) -> Sampler:
    """A student's sampler.

    Args:
        where: The callback, for messages.
        sampler: A name, or a name and fields; None for `lcm`.
        gamma: Of `lcm`, as experiments and `config.yaml`s of version 0.1 state it.

    Returns:
        The sampler.

    Raises:
        MusiccmError: It is unknown, does not suit a student, or both are given.
    """
    if gamma is not None and sampler is not None:
        raise MusiccmError(f"{where}.gamma: is a field of the sampler, which is given too ({sampler}); write "
                           f"sampler: {{name: lcm, gamma: {gamma}}}, and leave gamma out")
    spec = {"name": "lcm", "gamma": gamma} if gamma is not None else sampler or STUDENT_SAMPLER
    try:
        return suited_sampler(spec, student=True)
    except MusiccmError as error:
        raise MusiccmError(f"{where}.{error}") from error
