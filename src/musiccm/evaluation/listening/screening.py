"""Who listened: what the pages that everybody can answer say of each listener, and who is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from musiccm.evaluation.listening.answers import Listener, chosen_file

#: Pages of a sort that a listener is judged by; one of them can be an accident.
LEAST_PAGES = 2


def screened(
    listeners: Sequence[Listener], key: Mapping[str, Any], allowed_misses: int = 0
) -> tuple[list[Listener], dict[str, str]]:
    """Those whose answers count.

    Left out is who is wrong on an instructed check, or met none though the test has some; who preferred one of two
    identical clips each time, of two or more; and who rated all of two or more degraded copies above the own median.

    Args:
        listeners: From `read_answers`.
        key: Of the test.
        allowed_misses: Checks that may be wrong.

    Returns:
        Who is kept, and why each of the others is not.
    """
    excluded: dict[str, str] = {}
    for listener in listeners:
        why = _why_not(listener, key, allowed_misses)
        if why is not None:
            excluded[listener.name] = why
    return [listener for listener in listeners if listener.name not in excluded], excluded


def _why_not(listener: Listener, key: Mapping[str, Any], allowed_misses: int) -> str | None:
    trials, files = key["trials"], key["files"]
    of: dict[str, list] = {}
    for answer in listener.answers:
        of.setdefault(trials[answer.trial]["role"], []).append(answer)
    if not listener.answers:
        return "no page was finished"
    checks = of.get("check", [])
    if not checks and any(trial["role"] == "check" for trial in trials.values()):
        return "stopped before any check"
    wrong = sum(files[chosen_file(answer, "noise")]["form"] != "noise" for answer in checks)
    if wrong > allowed_misses:
        return f"{wrong} of {len(checks)} checks wrong"
    same = of.get("same", [])
    if len(same) >= LEAST_PAGES and all(answer.answers["prefer"] != "tie" for answer in same):
        return f"preferred one of two identical clips {len(same)} of {len(same)} times"
    anchors = [answer.answers["ovl"] for answer in of.get("anchor", []) if "ovl" in answer.answers]
    clips = [answer.answers["ovl"] for answer in of.get("clip", [])]
    if len(anchors) >= LEAST_PAGES and clips and min(anchors) > median(clips):
        return f"rated all {len(anchors)} degraded copies above the own median of {median(clips):g}"
    return None
