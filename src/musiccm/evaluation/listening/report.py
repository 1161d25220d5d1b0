"""The report of a listening test as numbers: who was left out, and what the others said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musiccm import __version__
from musiccm.evaluation.listening.answers import read_answers, read_key
from musiccm.evaluation.listening.preferences import preference_checks, preference_rows
from musiccm.evaluation.listening.ratings import rating_checks, rating_rows
from musiccm.evaluation.listening.screening import screened

SCHEMA = 1


def listening_report(
    answers: Sequence[Path], key_path: Path, allowed_misses: int = 0, seed: int = 0
) -> dict[str, Any]:
    """What the answers say.

    Args:
        answers: Files, or folders of them.
        key_path: The test's `key.json`.
        allowed_misses: Instructed checks that a listener may get wrong.
        seed: Of the resampling behind intervals.

    Returns:
        `test`, `kind`, `listeners`, `excluded` with reasons, `notes`; `pairs`, or `means` and `differences`; and
        `checks`.

    Raises:
        MusiccmError: Files that cannot be read, or do not belong together.
    """
    key = read_key(key_path)
    everyone, notes = read_answers(answers, key)
    kept, excluded = screened(everyone, key, allowed_misses)
    report: dict[str, Any] = {
        "schema": SCHEMA, "musiccm": __version__, "test": key["test"], "kind": key["kind"], "systems": key["systems"],
        "scale": key["scale"], "items": key["items"], "listeners": len(kept), "excluded": excluded,
        "incomplete": sum(not one.complete for one in kept), "allowed_misses": allowed_misses, "seed": seed,
        "notes": [*key["notes"], *notes],
    }
    if key["kind"] == "preference":
        return report | {"pairs": preference_rows(kept, key, seed), "checks": preference_checks(kept, key)}
    return report | rating_rows(kept, key, seed) | {"checks": rating_checks(kept, key)}
