"""The table of an evaluation as text: a block for each decoder, the headline figures first."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from musiccm.evaluation.registry import find, head_of, shown_keys, split_key
from musiccm.evaluation.rows import at_chance, baseline_of, by_decoder, is_floor, label_of, model_of
from musiccm.texts import number_text

#: Characters in a line; columns that do not fit go into a further block below.
WIDTH = 140
_GAP = "  "


class TextColumn(NamedTuple):
    """A column.

    Args:
        head: Its first line.
        cell: A row's text.
        chance: The key of what chance would come to, for the last line; None for other columns.
    """

    head: str
    cell: Callable[[Mapping[str, Any]], str]
    chance: str | None = None


def format_table(
    rows: Sequence[dict[str, Any]], references: dict[str, Any], evaluator: str = "tagger", notes: Sequence[str] = (),
) -> str:
    """The table as text: for each decoder its floor, then its models; ratios are within the decoder.

    Every number of the rows has a column, with an arrow to where it is better: first the excess over the floor, the
    kernel distance and coverage with their ratios to the teacher at its most steps. Attributes stand above what naming
    the commonest tag would come to; those that the tagger cannot tell are left out, and said so.

    Args:
        rows: Rows of the table.
        references: Metrics of the real clips.
        evaluator: Name of the classifier behind FD, IS and KL.
        notes: Sentences below the table.

    Returns:
        Lines of at most 140 characters, ended by a newline; a note may be longer.
    """
    lines: list[str] = []
    models = [row for row in rows if not is_floor(row)]
    hidden = at_chance(models[0], references) if models else []
    for decoder, found in by_decoder(rows).items():
        lines += [*_title(decoder, found), ""]
        for part in _parts(_columns(found, evaluator, hidden), found):
            lines += [*part, ""]
    lines += textwrap.wrap("real test clips: " + ", ".join(
        f"{key} {number_text(value, '.3f')}" for key, value in references.items()), WIDTH, break_long_words=False)
    if hidden:
        said = ", ".join(f"{group} (real clips {references[f'acc_{group}_real']:.3f}, chance "
                         f"{models[0][f'acc_{group}_chance']:.3f})" for group in hidden)
        lines.append(f"left out, for the tagger cannot tell them: {said}")
    lines += [*_about_intervals(rows), *notes]
    if any(row.get("from_cache") for row in rows):
        lines.append("* from features of its clips out of the cache or the bundle; the time was measured now, on one "
                     "batch")
    return "\n".join(lines) + "\n"


def with_interval(row: Mapping[str, Any], key: str) -> str:
    """A ratio and its 95 % interval, where a row has one, such as `0.71 [0.66, 0.77]`.

    Args:
        row: A row of results.
        key: Of the ratio.

    Returns:
        The text.
    """
    value, low, high = (row.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    digits = 2 if value is None or value < 10 else 1
    text = _number(value, digits)
    return text if value is None or low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _title(decoder: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a block is of."""
    text = f"{decoder} decoder, n = {min(row['n'] for row in rows):,}"
    baseline = baseline_of(rows)
    if baseline is not None:
        text += f"; x teacher: ratio to {label_of(baseline)}"
        if any(key.endswith("_ratio_low") for row in rows for key in row):
            text += " with its 95 % interval"
    return [text]


def _columns(rows: Sequence[dict[str, Any]], evaluator: str, hidden: Sequence[str]) -> list[TextColumn]:
    shown = shown_keys(rows)
    acc = [key for key in shown if (found := find(key)) and found.metric.scope == "attributes"]
    headline = [key for key in (f"{name}_{evaluator}" for name in ("excess_fd", "kad", "coverage")) if key in shown]
    # In every table, whether there is such a number or not.
    first = [f"fd_{evaluator}", f"is_{evaluator}_mean", f"kl_{evaluator}", "ta_similarity", "sim_aa_90", "sim_aa_95"]
    others = [key for key in shown if key not in {*headline, *first, *acc, "network_calls", "latency_s"}]
    groups = [key for key in acc if key[4:] not in hidden]
    columns = [_column("network_calls", evaluator), TextColumn(head_of("latency_s"), _time)]
    for key in headline:
        columns += _with_ratios(key, rows, evaluator)
    equal = f"excess_fd_{evaluator}_equal_calls_ratio"
    if any(row.get(equal) is not None for row in rows):
        columns += [TextColumn("x teacher at equal calls", partial(with_interval, key=equal)),
                    TextColumn("which is", lambda r: r.get(f"excess_fd_{evaluator}_equal_calls_teacher") or "-")]
    baseline = baseline_of(rows)
    for key in [*first, *others]:
        columns += _with_ratios(key, rows, evaluator)
        if key == first[0] and not any(f"excess_fd_{evaluator}" in row for row in rows):  # of versions 0.1 and 0.2
            anchor = baseline[key] if baseline else None
            columns.append(TextColumn("x teacher", partial(_over, key, anchor)))
    columns += [_column(key, evaluator)._replace(chance=f"{key}_chance") for key in groups]
    return [*columns, TextColumn("n", lambda r: str(r["n"]))]


def _over(key: str, anchor: float | None, row: Mapping[str, Any]) -> str:
    """The ratio of a number to another row's."""
    return _number(row[key] / anchor if anchor and row[key] is not None else None, 2)


def _with_ratios(key: str, rows: Sequence[dict[str, Any]], evaluator: str) -> list[TextColumn]:
    """A number, and its ratios to the baseline and to real renderings where there are such."""
    columns = [_column(key, evaluator)]
    for suffix, head in (("_ratio", "x teacher"), ("_real_ratio", "x real")):
        ratio = f"{key}{suffix}"
        if any(ratio in row for row in rows):  # null ones too: a line below says why
            columns.append(TextColumn(head, partial(with_interval, key=ratio)))
    return columns


def _column(key: str, evaluator: str) -> TextColumn:
    found = find(key)
    digits = 3 if found is None else found.column.digits
    deviation = f"{key.removesuffix('_mean')}_std" if key.endswith("_mean") else None

    def cell(row: Mapping[str, Any]) -> str:
        text = _number(row.get(key), digits)
        spread = _number(row.get(deviation), digits) if deviation else "-"
        return text if "-" in (text, spread) else f"{text} ± {spread}"

    return TextColumn(head_of(key, evaluator), cell)


def _parts(columns: Sequence[TextColumn], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The columns as tables of at most `WIDTH` characters, each with the models' names and steps before it."""
    names = [TextColumn("model", model_of), TextColumn("steps", lambda r: "-" if is_floor(r) else str(r["steps"]))]
    models = [row for row in rows if not is_floor(row)]
    has_chance = any(row.get(c.chance) is not None for row in models for c in columns if c.chance)

    def cells(column: TextColumn) -> list[str]:
        found = [column.head, *(column.cell(row) for row in rows)]
        return [*found, _number(models[0].get(column.chance), 2) if column.chance else ""] if has_chance else found

    leading = [cells(column) for column in names]
    if has_chance:
        leading[0][-1] = "chance"
    widths = [max(map(len, column)) for column in leading]
    parts: list[list[list[str]]] = [[]]
    room = WIDTH - sum(widths) - len(_GAP) * (len(widths) - 1)
    left = room
    for column in map(cells, columns):
        needed = max(map(len, column)) + len(_GAP)
        if needed > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(column)
        left -= needed
    return [_lines([*leading, *part]) for part in parts]


def _lines(columns: Sequence[Sequence[str]]) -> list[str]:
    """Cells below each other, the first column to the left, the others to the right; an empty line is left out."""
    widths = [max(map(len, column)) for column in columns]
    lines = [_GAP.join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
             for cells in zip(*columns, strict=True) if cells[0] != "chance" or any(cells[1:])]
    return [lines[0], _GAP.join("-" * width for width in widths), *lines[1:]]


def _about_intervals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why ratios are missing, and what the intervals leave out."""
    lines = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for key, why in row.items():
            if key.endswith("_ratio_why"):
                reasons.setdefault((split_key(key)[0], why), []).append(label_of(row))
    lines += [f"no ratio of {key} for {', '.join(dict.fromkeys(labels))}: {why}"
              for (key, why), labels in reasons.items()]
    biases = [abs(row[key]) for row in rows for key in row if key.endswith("_bias") and row[key] is not None]
    if biases:
        lines.append(f"the number of clips still shifts an excess by up to {max(biases):.2g} (`excess_fd_<net>_bias`); "
                     "the intervals leave that out")
    return lines


def _time(row: Mapping[str, Any]) -> str:
    text = _number(row.get("latency_s"), 3)
    return text + "*" if row.get("from_cache") and text != "-" else text


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
