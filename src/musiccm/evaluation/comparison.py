"""Rows of a table side by side: distances over the floor, their ratios, and the intervals of both.

All models answer the captions of the reference, so everything is taken from the same halves of the same clips: a ratio
has the interval of the pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.evaluation.halves import ClipSet, Halves, draws_for
from musiccm.evaluation.network import computed
from musiccm.evaluation.registry import metric_row
from musiccm.metrics.coverage import SHARES, Coverage
from musiccm.metrics.jackknife import FEWEST, Halved, Interval, Ratio, interval, ratio

#: Label of the row that says what a faultless model would come to.
FLOOR = "floor"
#: What `compare_sets` gives beside the headline figures, where it is asked for.
ALSO = ("recall", "precision", "density", "fd_inf", "mauve")


class ClipRows(NamedTuple):
    """One network's features of one set of clips.

    Args:
        ids: Clip ids.
        embedding_RE: Rows of all clips, clip after clip, `[R, E]`.
        counts: Rows of each clip: 1, or several (VGGish).
    """

    ids: list[str]
    embedding_RE: Tensor
    counts: list[int]


@dataclass(frozen=True)
class ComparedRow:
    """A row of the table.

    Args:
        label: What it is called.
        rows: Features of its clips, which have the ids of the reference.
        network_calls: Of a clip; None where they are not known.
        teacher: Whether it is a configuration of the teacher, which others are compared with at equal calls.
    """

    label: str
    rows: ClipRows
    network_calls: float | None
    teacher: bool


@dataclass(frozen=True)
class _Measured:
    """What one set came to: the figures that have intervals, those that have none, and the excess over the floor.

    The bias of the excess is known where both distances have one that falls as 1/n; `too_few` says why it is not.
    """

    halved: dict[str, Halved]
    plain: dict[str, Any]
    too_few: str | None
    excess: Halved | None


def compare_sets(
    network: str,
    real: ClipRows,
    floor: ClipRows | None,
    models: Sequence[ComparedRow],
    baseline: str | None,
    draws: int = 200,
    seed: int = 0,
    also: Sequence[str] = ("recall",),
) -> dict[str, dict[str, Any]]:
    """Compare models with each other, against one reference and within one decoder.

    Args:
        network: Whose features these are, for the keys.
        real: The reference.
        floor: Other renderings of the same captions, with the ids of the reference; or other real clips, with other
            ids. None where there are no such: then nothing is said of an excess.
        models: The rows; their clips have the ids of the reference.
        baseline: Label of the row that ratios are taken to; None for no ratio.
        draws: Halves of the clips that intervals rest on; fewer where features are wide or many, see `draws`.
        seed: Of the halves.
        also: Names among `ALSO`; `fd_inf` and `mauve` have no interval.

    Returns:
        Label, and `FLOOR` where there is one, to keys of a row of results, with `<e>` the network:

        - `fd_<e>`, `floor_fd_<e>`, `excess_fd_<e>` (their difference), `kad_<e>`, `coverage_<e>`,
          `coverage_<e>_expected`, and what `also` names;
        - `<key>_low`, `<key>_high` of excess, `kad`, `coverage` and what else has an interval; `excess_fd_<e>_bias`,
          what the number of clips still adds to the excess, which the interval leaves out;
          With too few clips for that bias to be known the excess has no interval, and `excess_fd_<e>_why` says so;
        - `<key>_ratio` to the baseline with `_ratio_low`, `_ratio_high`, of excess, `kad` and `coverage`; null where
          the denominator is not clearly above 0, and of an excess without an interval; `<key>_ratio_why` says why;
        - `excess_fd_<e>_equal_calls_ratio` with `_low`, `_high`, to the teacher's row with the lowest excess among
          those with no more network calls (chosen once, from all clips), which `equal_calls_teacher` names, and
          `excess_fd_<e>_equal_calls_teacher`, for another network may choose another;
        - `draws_<e>`, the halves that the intervals rest on; 0 where there are too few clips for any.

    Raises:
        MusiccmError: Labels twice or unknown, ids that do not fit, different widths, or rows that are not finite.
    """
    _check(network, real, floor, models, baseline, also)
    reference = ClipSet(f"{network}: reference", *real)
    sets = {row.label: ClipSet(f"{network}: {row.label}", *row.rows) for row in models}
    if floor is not None:
        sets = {FLOOR: ClipSet(f"{network}: {FLOOR}", *floor)} | sets
    _check_sets(network, reference, sets)
    others = len(sets[FLOOR].ids) if FLOOR in sets and sets[FLOOR].ids != reference.ids else 0
    fewest = min([len(reference.ids)] + ([others] if others else []))
    most_rows = max(len(found.rows_RD) for found in (reference, *sets.values()))
    count = draws_for(most_rows, reference.rows_RD.shape[1], draws) if fewest >= FEWEST and draws >= 4 else 0
    halves = Halves(reference, others, count, seed)
    measured: dict[str, _Measured] = {}
    for label, found in sets.items():
        measured[label] = _measure(network, halves, found, also, measured.get(FLOOR))
    rows = {label: _row(network, label, measured, count) for label in sets}
    _add_ratios(network, rows, measured, baseline)
    _add_equal_calls(network, rows, measured, models)
    return rows


def _measure(
    network: str, halves: Halves, found: ClipSet, also: Sequence[str], floor: _Measured | None
) -> _Measured:
    halved = {"fd": halves.frechet(found), "kad": halves.kernel(found)}
    plain: dict[str, Any] = {}
    shares = _computed(f"coverage_{network}", Coverage(), halves.real, found)
    names = [name for name in SHARES if name == "coverage" or name in also]
    parts = halves.neighbours(found, names) if shares and halves.splits else {}
    for name in names:
        if name in parts:
            halved[name] = Halved(shares[name], parts[name])
        else:
            plain[name] = shares.get(name)
    plain["expected"] = shares.get("expected")
    for name in ("fd_inf", "mauve"):
        if name in also:
            made = metric_row(name).make
            assert made is not None
            plain[name] = _computed(f"{name}_{network}", made(), halves.real, found).get(name)
    too_few = halves.too_few(found) or (None if floor is None else floor.too_few)
    return _Measured(halved, plain, too_few,
                     None if floor is None else halved["fd"] - floor.halved["fd"])


def _computed(name: str, metric: Any, real: ClipSet, found: ClipSet) -> dict[str, Any]:
    """A metric of the two sets; empty, with a warning, where there are too few clips."""
    for part, is_real in ((real, True), (found, False)):
        metric.update(part.rows_RD, list(part.ids), is_real, part.counts.tolist())
    return computed(name, metric)


def _row(network: str, label: str, measured: Mapping[str, _Measured], draws: int) -> dict[str, Any]:
    """Figures and their intervals."""
    mine, floor = measured[label], measured.get(FLOOR)
    row: dict[str, Any] = {f"fd_{network}": mine.halved["fd"].whole,
                           f"floor_fd_{network}": floor and floor.halved["fd"].whole}
    key = f"excess_fd_{network}"
    if mine.excess is None:
        row[key] = 0.0 if label == FLOOR else None
    elif mine.too_few:  # an interval about a figure that is mostly bias would not hold the truth
        row |= {key: mine.excess.whole, f"{key}_why": mine.too_few}
    else:
        row |= _interval(key, mine.excess, draws, biased=True)
    row |= _interval(f"kad_{network}", mine.halved["kad"], draws)
    for name in SHARES:
        if name in mine.halved:
            row |= _interval(f"{name}_{network}", mine.halved[name], draws, share=name != "density")
        elif name in mine.plain:
            row[f"{name}_{network}"] = mine.plain[name]
    row[f"coverage_{network}_expected"] = mine.plain["expected"]
    row |= {f"{name}_{network}": mine.plain[name] for name in ("fd_inf", "mauve") if name in mine.plain}
    return row | {f"draws_{network}": draws}


def _interval(
    key: str, figure: Halved, draws: int, biased: bool = False, share: bool | None = None
) -> dict[str, Any]:
    """A figure and its interval; `share` is None for distances, and says of neighbours whether they end at 0 and 1."""
    if not draws:
        return {key: figure.whole}
    found: Interval = interval(figure, share is None, biased)
    low, high = found.low, found.high
    if share:
        low, high = max(low, min(found.value, 0.0)), min(high, max(found.value, 1.0))
    row = {key: found.value, f"{key}_low": low, f"{key}_high": high}
    return row | ({f"{key}_bias": found.bias} if biased else {})


def ratio_keys(key: str, found: Ratio) -> dict[str, Any]:
    """The keys of a ratio.

    Args:
        key: Of the ratio.
        found: It.

    Returns:
        The key, its `_low` and `_high`, and, where there is no ratio, `_why`.
    """
    row: dict[str, Any] = {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
    return row | ({f"{key}_why": found.why} if found.why else {})


def _add_ratios(
    network: str, rows: Mapping[str, dict[str, Any]], measured: Mapping[str, _Measured], baseline: str | None
) -> None:
    """Ratios to the baseline."""
    if baseline is None:
        return
    other = measured[baseline]
    for label, row in rows.items():
        if not row[f"draws_{network}"]:
            continue
        row |= _excess_ratio(f"excess_fd_{network}_ratio", measured[label], other)
        for name, smooth in (("kad", True), ("coverage", False)):
            top, bottom = measured[label].halved.get(name), other.halved.get(name)
            if top is not None and bottom is not None:
                row |= ratio_keys(f"{name}_{network}_ratio", ratio(top, bottom, smooth, biased=False))


def _add_equal_calls(
    network: str, rows: Mapping[str, dict[str, Any]], measured: Mapping[str, _Measured], models: Sequence[ComparedRow]
) -> None:
    """Ratios of the excess to that of the best teacher with no more network calls."""
    if FLOOR not in measured:
        return
    key = f"excess_fd_{network}_equal_calls"
    teachers = [(rows[row.label][f"excess_fd_{network}"], row.label, row.network_calls) for row in models
                if row.teacher and row.network_calls is not None]
    for model in models:
        within = [(value, label) for value, label, calls in teachers
                  if model.network_calls is not None and calls <= model.network_calls]
        best = min(within)[1] if within else None
        row = rows[model.label]
        row |= {"equal_calls_teacher": best, f"{key}_teacher": best, f"{key}_ratio": None}
        if best is not None and row[f"draws_{network}"]:
            row |= _excess_ratio(f"{key}_ratio", measured[model.label], measured[best])


def _excess_ratio(key: str, top: _Measured, bottom: _Measured) -> dict[str, Any]:
    if top.excess is None or bottom.excess is None:
        return {}
    if why := top.too_few or bottom.too_few:
        return ratio_keys(key, Ratio(None, None, None, why))
    return ratio_keys(key, ratio(top.excess, bottom.excess, smooth=True, biased=True))


def _check(
    network: str, real: ClipRows, floor: ClipRows | None, models: Sequence[ComparedRow], baseline: str | None,
    also: Sequence[str],
) -> None:
    labels = [row.label for row in models]
    if len(set(labels)) != len(labels) or FLOOR in labels:
        raise MusiccmError(f"{network}: rows to compare: expected each label once and none called {FLOOR!r}, found "
                           f"{labels}")
    if baseline is not None and baseline not in labels:
        raise MusiccmError(f"{network}: baseline: expected one of {labels}, found {baseline!r}")
    if unknown := sorted(set(also) - set(ALSO)):
        raise MusiccmError(f"{network}: also: expected names among {', '.join(ALSO)}, found {', '.join(unknown)}")


def _check_sets(network: str, reference: ClipSet, sets: Mapping[str, ClipSet]) -> None:
    """Refuse sets that cannot be split alike."""
    for label, found in sets.items():
        if found.rows_RD.shape[1] != reference.rows_RD.shape[1]:
            raise MusiccmError(f"{network}: {label}: expected features of width {reference.rows_RD.shape[1]}, as the "
                               f"reference, found {found.rows_RD.shape[1]}")
        other = set(found.ids) ^ set(reference.ids)
        if other and (label != FLOOR or set(found.ids) & set(reference.ids)):
            raise MusiccmError(f"{network}: {label}: expected the {len(reference.ids)} clip ids of the reference, "
                               f"found {len(found.ids)}, and {len(other)} in one of the two only, first "
                               f"{sorted(other)[:3]}")
