"""The plagiarism report as a page that opens by a double click: no server, no network, nothing but its own folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from musiccm.files import write_text
from musiccm.texts import number_text

COLOURS = {"generated": "#b3261e", "held_out": "#2b6cb0"}
_BINS = 40

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .3em .7em; border-bottom: 1px solid #ddd; }
th { text-align: left; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
th[data-sort] { cursor: pointer; text-decoration: underline dotted; }
tr.copy td:first-child { border-left: 4px solid #b3261e; }
audio { width: 15em; height: 2em; display: block; } .id { overflow-wrap: anywhere; max-width: 18em; }
.note { background: #fff6dd; padding: .5em 1em; margin: .4em 0; } small, .quiet { color: #666; }
"""

# Sorts a table by the column whose head is clicked; a second click turns the order round.
_SCRIPT = """
document.querySelectorAll("th[data-sort]").forEach(function (head) {
  head.addEventListener("click", function () {
    var body = head.closest("table").tBodies[0], column = head.cellIndex, up = head.dataset.sort !== "up";
    head.dataset.sort = up ? "up" : "down";
    Array.from(body.rows).sort(function (a, b) {
      var x = a.cells[column].dataset.value, y = b.cells[column].dataset.value, order = x - y;
      if (isNaN(order)) order = x < y ? -1 : x > y ? 1 : 0;
      return up ? order : -order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
"""


def write_page(path: Path, content: Mapping[str, Any], maxima: Mapping[str, Sequence[float]]) -> None:
    """Write the page.

    Args:
        path: `index.html`; the audio lies beside it.
        content: What stands in `plagiarism.json`. Names of clips and files are text from outside: all are escaped.
        maxima: Highest cosine of each clip, by `generated` and `held_out`, for the histogram.
    """
    n = content["rates"]["generated"]["n"]
    index = content["index"]
    sections = [
        f"<h1>Plagiarism check</h1><p>{n} generated clips of <code>{_text(content['generated'])}</code> against "
        f"{index['clips']} training clips ({index['windows']} windows of {content['window_s']:g} s) of "
        f"<code>{_text(index['folder'])}</code>; {_text(content['search']['method'])} searched.</p>",
        _rates(content["rates"]),
        "".join(f"<p class='note'>{_text(note)}</p>" for note in content["notes"]),
        "<h2>Highest cosine with any training clip</h2>", histogram(maxima),
        "<h2>Nearest clips</h2>", _second_opinion(content["second_opinion"]), _suspects(content["suspects"]),
        "<h2>Left out</h2>", _left_out(content["left_out"]),
        f"<p class='quiet'>CLAP {_text(str(index['key']['clap'])[:16])}; all figures are in "
        f"<a href='plagiarism.json'>plagiarism.json</a>; musiccm {_text(content['musiccm'])}.</p>",
    ]
    body = "\n".join(sections)
    write_text(path, f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Plagiarism check</title>"
                     f"<style>{_STYLE}</style></head><body>\n{body}\n<script>{_SCRIPT}</script></body></html>\n")


def histogram(maxima: Mapping[str, Sequence[float]], thresholds: Sequence[float] = (0.90, 0.95)) -> str:
    """Shares of clips by their highest cosine, as an SVG picture with the thresholds marked.

    Args:
        maxima: Highest cosines by what they are of.
        thresholds: Marked by lines.

    Returns:
        The picture; each set's shares add up to 1.
    """
    width, height, base = 760, 220, 190
    finite = [value for values in maxima.values() for value in values if math.isfinite(value)]
    low = min([0.8, *finite])
    low = math.floor(low * 20) / 20
    step = (1 - low) / _BINS

    def x_of(value: float) -> float:
        return 40 + (width - 60) * (value - low) / (1 - low)

    counted = {name: [0] * _BINS for name in maxima}
    for name, values in maxima.items():
        for value in values:
            if math.isfinite(value):
                counted[name][min(_BINS - 1, max(0, int((value - low) / step)))] += 1
    shares = {name: [count / max(1, len(maxima[name])) for count in counts] for name, counts in counted.items()}
    top = max([share for row in shares.values() for share in row] + [1e-9])
    bar = (x_of(low + step) - x_of(low)) / len(shares)
    parts = [f"<svg viewBox='0 0 {width} {height}' width='{width}' role='img'>"]
    for place, (name, row) in enumerate(shares.items()):
        for number, share in enumerate(row):
            tall = (base - 20) * share / top
            parts.append(f"<rect x='{x_of(low + number * step) + place * bar:.1f}' y='{base - tall:.1f}' "
                         f"width='{bar:.1f}' height='{tall:.1f}' fill='{COLOURS[name]}'><title>{counted[name][number]} "
                         f"{name.replace('_', ' ')}</title></rect>")
        parts.append(f"<text x='{50 + 130 * place}' y='14' fill='{COLOURS[name]}' font-size='13'>"
                     f"{name.replace('_', ' ')} (n = {len(maxima[name])})</text>")
    for threshold in thresholds:
        parts.append(f"<line x1='{x_of(threshold):.1f}' x2='{x_of(threshold):.1f}' y1='20' y2='{base}' stroke='#222' "
                     f"stroke-dasharray='3 3'/>")
    for tick in sorted({low, *thresholds, 1.0}):
        parts.append(f"<text x='{x_of(tick):.1f}' y='{base + 18}' text-anchor='middle' font-size='12'>{tick:.2f}"
                     "</text>")
    return "".join([*parts, f"<line x1='40' x2='{width - 20}' y1='{base}' y2='{base}' stroke='#222'/></svg>"])


def _rates(rows: Mapping[str, Mapping[str, Any]]) -> str:
    heads = ["", "n", "SIM_AA@90", "SIM_AA@95", "5th percentile", "median", "95th percentile", "windows a clip"]
    names = {"generated": "generated clips", "held_out": "held-out real clips",
             "train_itself": "training clips, none against itself"}
    lines = []
    for name, row in rows.items():
        numbers = [row["n"], row["sim_aa_90"], row["sim_aa_95"], row["quantile_05"], row["median"], row["quantile_95"],
                   row["windows_a_clip"]]
        cells = "".join(f"<td class='number'>{number_text(v, '.3f')}</td>" for v in numbers)
        lines.append(f"<tr><td>{names[name]}</td>{cells}</tr>")
    head = "".join(f"<th class='number'>{h}</th>" for h in heads)
    return (f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table><p class='quiet'>Share of "
            "clips whose highest cosine with any training clip is above 0.90, 0.95. The lower rows say what real music "
            "comes to: only what lies above them can be a sign of copying.</p>")


def _second_opinion(second: Mapping[str, Any]) -> str:
    def shown(values: Mapping[str, Any]) -> str:
        if not values["n"]:
            return "none could be taken"
        return f"median {values['median']:.3f}, highest {values['highest']:.3f}, n = {values['n']}"

    text = (f"The second opinion correlates log-mels over all offsets, in segments of {second['segment_s']:.2g} s: 1 "
            f"is a copy, whatever its level. Above {second['threshold']:g} a pair is a likely copy: "
            f"{second['likely_copies']} here ({shown(second)}).")
    if "held_out" in second:
        text += f" Held-out clips with their nearest training clips: {shown(second['held_out'])}."
    if second["training_audio_unreadable"]:
        text += (f" For {second['training_audio_unreadable']} clips the training audio is not where the index says; "
                 "see unread in plagiarism.json.")
    return f"<p>{text}</p>"


def _suspects(suspects: Sequence[Mapping[str, Any]]) -> str:
    heads = ["generated clip", "training clip", "CLAP cosine", "log-mel", "verdict", "generated", "training"]
    head = "".join(f"<th{' data-sort' if place < 5 else ''}>{name}</th>" for place, name in enumerate(heads))
    lines = []
    for suspect in suspects:
        shown = next(near for near in suspect["nearest"] if near["id"] == suspect["shown"])
        correlation = suspect["correlation"]
        verdict = "likely copy" if suspect["likely_copy"] else "look-alike" if shown["cosine"] > 0.9 else ""
        cells = [
            _cell(suspect["id"], suspect["id"], "id"),
            _cell(shown["id"], shown["id"], "id"),
            _cell(f"{shown['cosine']:.4f}", shown["cosine"], "number"),
            _cell("-" if correlation is None else f"{correlation:.3f}", -2 if correlation is None else correlation,
                  "number"),
            _cell(verdict, verdict),
            _player(suspect["audio"][0], suspect["start_s"]), _player(suspect["audio"][1], suspect["training_start_s"]),
        ]
        lines.append(f"<tr{' class=copy' if suspect['likely_copy'] else ''}>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _player(name: str | None, start_s: float) -> str:
    if name is None:
        return "<td class='quiet'>not readable</td>"
    return (f"<td><audio controls preload='none' src='{escape(name, quote=True)}'></audio><small>from {start_s:.2f} s"
            "</small></td>")


def _left_out(items: Sequence[Mapping[str, str]]) -> str:
    if not items:
        return "<p>Nothing: every file was used.</p>"
    lines = "".join(f"<tr>{_cell(i['path'], i['path'], 'id')}{_cell(i['reason'], i['reason'])}"
                    f"{_cell(i['detail'], i['detail'])}</tr>" for i in items)
    return (f"<table><thead><tr><th data-sort>file</th><th data-sort>reason</th><th data-sort>found</th></tr></thead>"
            f"<tbody>{lines}</tbody></table>")


def _cell(shown: str, value: Any, kind: str = "") -> str:
    return f"<td class='{kind}' data-value='{_text(value)}'>{_text(shown)}</td>"


def _text(value: Any) -> str:
    return escape(value if isinstance(value, str) else json.dumps(value), quote=True)
