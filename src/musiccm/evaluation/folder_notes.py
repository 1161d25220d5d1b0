"""What an evaluation of two sets of clips says about them and their metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from musiccm.data.audio_folder import AudioFolder
from musiccm.evaluation.registry import direction
from musiccm.texts import number_text

# Lengths that differ by more than this share are pointed out: distances follow them.
LENGTH_TOLERANCE = 0.05
#: Files left out that the terminal names, of each side; the JSON has all.
LISTED = 20


def notes(
    folders: dict[str, AudioFolder], paired: set[str], seconds: float | None = None, ambiguous: Sequence[str] = (),
    prepared: bool = False,
) -> list[str]:
    """What a reader of the metrics should know about the two sets; those prepared by a protocol are of one length."""
    found = []
    for side, folder in folders.items():
        if folder.left_out:
            found.append(f"{len(folder.left_out)} {side} files were left out: the figures are of the others only")
        if folder.others:
            found.append(f"{len(folder.others)} entries of {side} are hidden or no audio by their names, first "
                         f"{folder.others[0].path}")
        if brief := sum(clip.audio.duration_s < (seconds or 0) for clip in folder.clips):
            found.append(f"{brief} {side} clips are shorter than the {seconds:g} s asked for, and were taken whole")
    lengths = {side: statistics.median(min(clip.audio.duration_s, seconds or math.inf) for clip in folder.clips)
               for side, folder in folders.items()}
    short, long = sorted(lengths.values())
    if not prepared and long > short * (1 + LENGTH_TOLERANCE):
        found.append(f"generated clips last {lengths['generated']:.2f} s, references {lengths['reference']:.2f} s "
                     "(medians): distances follow length; take as many seconds of either")
    rates = {side: folder.rates_hz for side, folder in folders.items()}
    if set(rates["generated"]) != set(rates["reference"]):
        found.append("sampling rates differ: " + "; ".join(
            f"{side} {', '.join(f'{rate} Hz' for rate in rate_hz)}" for side, rate_hz in rates.items())
            + "; all are resampled, but what a low rate lacks stays lacking")
    if not paired:
        found.append("no name occurs on both sides: KL is left out")
    elif (unpaired := len(folders["generated"].clips) - len(paired)):
        found.append(f"{unpaired} generated clips have no reference of their name: KL is of the {len(paired)} pairs")
    if ambiguous:
        found.append(f"{len(ambiguous)} generated clips are not paired: their name occurs in several Unicode forms, "
                     f"first {ambiguous[0]}")
    return found


def table_text(result: dict[str, Any]) -> str:
    """The result as text: metrics with their direction, the second column, and what was left out."""
    second = result.get("reference_implementation")
    lines = [f"n = {result['n']} generated, {result['n_reference']} references, {result['n_pairs']} pairs", ""]
    heads = ["metric", "value", "better"] + (["audioldm_eval"] if second is not None else [])
    shown = partial(number_text, form=".6g", none="-")
    rows = [[key, shown(value), direction(key) or "", *([shown(second.get(key))] if second is not None else [])]
            for key, value in result["figures"].items()]
    rows += [[key, shown(value), "", *([""] if second is not None else [])]
             for key, value in result["references"].items()]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        lines.append("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())
    if result["notes"]:
        lines += ["", *(f"- {note}" for note in result["notes"])]
    for side, items in result["left_out"].items():
        named = [item for item in items if item["reason"] not in ("not_audio", "hidden")]
        lines += [f"- left out, {side}: {item['path']}: {item['reason']} ({item['detail']})"
                  for item in named[:LISTED]]
        if len(named) > LISTED:
            lines.append(f"- left out, {side}: {len(named) - LISTED} more, listed in the JSON")
    return "\n".join(lines) + "\n"
