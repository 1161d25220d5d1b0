"""Build the documentation's site: the pages of this folder, and those that are computed (make docs).

Computed are the start page from the README, sounds by the packaged student and its teacher with the curve of their
distances, and the picture of the package's rooms from what its files import. zensical lays them out; a link that leads
nowhere ends the build.
"""

from __future__ import annotations

import argparse
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

from musiccm import Bundle, Pipeline
from musiccm.audio import write_audio
from musiccm.evaluation.results import plot_metric

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the walk over the imports is that of the test

from tests.test_import_graph import ALWAYS, imported_rooms, read_table  # noqa: E402

STUDENT, TEACHER, TEACHER_STEPS = "musiccm-tiny-student", "musiccm-tiny", 50
STEPS = (1, 2, 4)
CAPTIONS = (
    "a calm piano melody over soft strings",
    "slow organ chords",
    "a fast synth lead with dance drums",
)
BOX_W, BOX_H, GAP_X, GAP_Y = 104, 34, 26, 62


def main() -> int:
    """Write the pages into `--pages` and build the site.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="docs/build_site.py", description=__doc__)
    parser.add_argument("--pages", type=Path, default=ROOT / "out/docs", help="folder to fill (default %(default)s)")
    pages = parser.parse_args().pages
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (pages / "index.md").write_text(start_page((ROOT / "README.md").read_text(encoding="utf-8")), encoding="utf-8")
    (pages / "package_map.md").write_text(package_map(imports(ROOT / "src/musiccm")), encoding="utf-8")
    (pages / "sounds.md").write_text(sounds_page(pages), encoding="utf-8")
    zensical = Path(sys.executable).with_name("zensical")
    return subprocess.run([str(zensical), "build", "--clean", "--strict"], cwd=ROOT, check=False).returncode


def start_page(readme: str) -> str:
    """The README, whose mentions of `docs/NAME.md` become links, and whose neighbours stay names."""
    beside = re.sub(r"\]\(docs/((?:images|sounds)/[\w.-]+)\)", r"](\1)", readme)
    return re.sub(r"`docs/([a-z_]+\.md)`", r"[\1](\1)", beside)


def sounds_page(pages: Path) -> str:
    """Write a clip for each caption and number of steps, and the picture of the distances; return their page."""
    student, teacher = Pipeline.from_pretrained(STUDENT), Pipeline.from_pretrained(TEACHER)
    results = Bundle.from_pretrained(STUDENT, parts=["scheduler"]).settings["results"]
    plot_metric(pages / "images/distances.png", results, "fd_tagger")
    scale = float(student.bundle.settings["distillation"]["guidance_scale"])
    text = ["# Sounds and distances", "",
            "Clips of the package's own small teacher and its student, made when this page was built: the same "
            f"initial noise (seed 0), the teacher in {TEACHER_STEPS} guided steps (guidance {scale:g}, two network "
            "calls a step), the student in one call a step. Both know the composed music of the demo corpus and no "
            "other.", ""]
    for row, caption in enumerate(CAPTIONS):
        text += [f"## “{caption}”", "", "| by | sound |", "|---|---|"]
        clips = [(f"teacher, {2 * TEACHER_STEPS} calls", f"teacher_{row}.wav",
                  teacher(caption, steps=TEACHER_STEPS, seed=0, guidance_scale=scale))]
        clips += [(f"student, {steps} {'call' if steps == 1 else 'calls'}", f"student_{row}_{steps}.wav",
                   student(caption, steps=steps, seed=0)) for steps in STEPS]
        for title, name, waveform_BS in clips:
            write_audio(pages / name, waveform_BS[0], student.sample_rate_hz)
            text.append(f'| {title} | <audio controls preload="none" src="{name}"></audio> |')
        text.append("")
    text += ["## Distances", "", "Frechet distance to held-out clips against network calls, from the results that the "
             "student's export carries; [metrics.md](metrics.md) says how it is measured.", "",
             "![Frechet distance against network calls of teacher and student](images/distances.png)", ""]
    return "\n".join(text)


def imports(source: Path) -> dict[str, set[str]]:
    """Room -> rooms that its files import, without those that everyone imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(source.rglob("*.py")):
        room = Path(path.relative_to(source).parts[0]).stem
        if room not in ALWAYS and not room.startswith("__"):
            found.setdefault(room, set()).update(imported_rooms(path, source) - ALWAYS - {room})
    return found


def floors_of(rooms: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports. A circle is an error of graphlib."""
    floor: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(rooms).static_order():
        floor[room] = 1 + max((floor[below] for below in rooms[room]), default=-1)
    return floor


def without_shortcuts(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no chain of others implies."""
    below: dict[str, set[str]] = {}
    for room in graphlib.TopologicalSorter(rooms).static_order():
        below[room] = set(rooms[room]).union(*(below[other] for other in rooms[room]))
    return {room: direct - set().union(*(below[other] for other in direct)) for room, direct in rooms.items()}


def package_map(rooms: Mapping[str, set[str]]) -> str:
    """The picture, and the same in words."""
    described = read_table((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    rows = [f"| `{room}` | {', '.join(f'`{name}`' for name in sorted(rooms[room])) or 'nothing'} |"
            for room in sorted(rooms, key=lambda room: (-floors_of(rooms)[room], room)) if room in described]
    return "\n".join([
        "# Package map", "",
        "Rooms of `src/musiccm` and what they import, as found in the source when this page was built. A room stands "
        "one floor above the highest that it imports; arrows that follow from others are left out of the picture. What "
        "each may import, and what lives in it, stands in [architecture.md](architecture.md).", "",
        picture(rooms), "", "| room | imports |", "|---|---|", *rows, ""])


def picture(rooms: Mapping[str, set[str]]) -> str:
    """An SVG of the rooms on their floors."""
    floor = floors_of(rooms)
    levels = [sorted(room for room in rooms if floor[room] == level) for level in range(max(floor.values()) + 1)]
    width = max(len(level) for level in levels) * (BOX_W + GAP_X)
    height = len(levels) * (BOX_H + GAP_Y)
    place: dict[str, tuple[float, float]] = {}
    for number, level in enumerate(levels):
        # over the rooms that they import, where these have a place already
        level.sort(key=lambda room: sum(place[below][0] for below in rooms[room]) / max(1, len(rooms[room])))
        for column, room in enumerate(level):
            place[room] = ((column + 0.5) * width / len(level), height - (number + 0.5) * (BOX_H + GAP_Y))
    drawn = []
    for room, direct in without_shortcuts(rooms).items():
        for below in sorted(direct):
            (x, y), (to_x, to_y) = place[room], place[below]
            y, to_y = y + BOX_H / 2, to_y - BOX_H / 2
            bend = (to_y - y) / 2
            drawn.append(f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} '
                         f'{to_x:.0f} {to_y - 5:.0f}" marker-end="url(#head)"/>')
    boxes = [f'<rect x="{x - BOX_W / 2:.0f}" y="{y - BOX_H / 2:.0f}" width="{BOX_W}" height="{BOX_H}" rx="5"/>'
             f'<text x="{x:.0f}" y="{y + 5:.0f}">{escape(room)}</text>' for room, (x, y) in place.items()]
    return (f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="rooms and imports" '
            'style="max-width:100%;font:14px sans-serif;color:inherit">'
            '<defs><marker id="head" markerWidth="7" markerHeight="7" refX="2" refY="3.5" orient="auto">'
            '<path d="M0 0 L7 3.5 L0 7 z" fill="#78909c"/></marker></defs>'
            f'<g fill="none" stroke="#78909c" stroke-width="1.2">{"".join(drawn)}</g>'
            '<g fill="#3f51b5" stroke="none">' + "".join(box.partition("<text")[0] for box in boxes) + "</g>"
            '<g fill="#fff" text-anchor="middle">' + "".join("<text" + box.partition("<text")[2] for box in boxes)
            + "</g></svg>")


if __name__ == "__main__":
    sys.exit(main())
