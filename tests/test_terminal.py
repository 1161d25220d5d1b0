"""What reaches a terminal or a log: no orders to the terminal, whole lines, and nothing of what libraries mutter."""

import io
import logging
import re
import subprocess
import sys
import warnings

import pytest

from musiccm import progress, terminal
from musiccm.progress import Lines, Progress
from musiccm.terminal import say, show_warnings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m.wav", r"\x1b[31mred\x1b[0m.wav"),
        ("a\rb\x07\x7f\x9b1m", r"a\rb\x07\x7f\x9b1m"),
        ("one\n\ttwo, ü 音 🎵 a\u200d", "one\n\ttwo, ü 音 🎵 a\u200d"),
        ("bytes \udcff", r"bytes \xff"),
    ],
    ids=["colours", "control", "letters", "bytes"],
)
def test_control_characters_are_written_out(text, shown, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("musiccm"), "propagate", False)  # pytest would keep it, and cannot send it
    assert terminal.shown(text) == shown
    say(text)
    say(text, to_stderr=True)
    assert capsys.readouterr() == (shown + "\n", shown + "\n")
    show_warnings()
    show_warnings()
    logging.getLogger("musiccm.data").warning("found %s", text)
    assert capsys.readouterr().err == f"found {shown}\n", "once, and written out"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(total, seconds_a_unit, units):
    """The lines of a loop, and the seconds at which they came."""
    clock = Clock()
    lines, found = Lines("encoding", total, "clip", clock=clock), []
    for done in range(1, units + 1):
        clock.now += seconds_a_unit
        if lines.due(done):
            found.append((clock.now, lines.line(done)))
    return found


def test_a_line_every_tenth_or_every_half_minute():
    assert [at for at, _ in run(100, 1.0, 100)] == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert [at for at, _ in run(1000, 7.0, 30)] == [35, 70, 105, 140, 175, 210]
    assert run(1000, 0.001, 1000) == [], "a loop of a second needs no line on its way"
    assert [at for at, _ in run(None, 1.0, 70)] == [30, 60]


def test_a_line_says_pace_and_time_left():
    _, line = run(100, 2.0, 100)[0]
    assert line == "encoding: 10/100 clip (10%), 0.5 clip/s, ETA 0:03:00"
    clock = Clock()
    lines = Lines("again", 100, "clip", clock=clock)
    lines.skip(50)  # done before: no part of the pace
    clock.now = 10.0
    assert lines.line(60) == "again: 60/100 clip (60%), 1 clip/s, ETA 0:00:40"
    assert Lines("\x1b[2J", None, "file").line(0) == r"\x1b[2J: 0 file, took 0:00:00"


def test_a_log_gets_whole_lines_and_a_terminal_its_bar(capsys, monkeypatch):
    with Progress(3, "packing", "part") as bar:
        for _ in range(3):
            bar.update()
    assert re.fullmatch(r"packing: 3/3 part \(100%\), .* part/s, took 0:00:00\n", capsys.readouterr().err)
    with Progress(3, "packing", "part", shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "LEAST_S", 0.0)
    with Progress(3, "packing", "part") as bar:
        bar.update(3)
    assert "\r" in sys.stderr.getvalue() and "3/3" in sys.stderr.getvalue()


NOISE = """
import logging, os, sys, warnings
from musiccm import cli, commands

def noisy(argv):
    warnings.warn("of a library", FutureWarning)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").warning("Tip: buy this")
    logging.getLogger("musiccm.x").warning("of ours")
    print(os.environ.get("NO_COLOR"), "torch" in sys.modules)
    return 0

commands.summaries = lambda: {"noise": ""}
commands.load = lambda name: noisy
cli.main(["noise"])
"""


@pytest.mark.parametrize("debug", [False, True])
def test_libraries_keep_to_themselves_unless_asked(debug, monkeypatch):
    monkeypatch.setenv("MUSICCM_DEBUG", "1" if debug else "0")
    for name in ("NO_COLOR", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", NOISE], capture_output=True, text=True, timeout=60)
    assert "of ours\n" in done.stderr
    assert ("FutureWarning" in done.stderr) == debug
    assert ("buy this" in done.stderr) == debug
    assert done.stdout == ("None False\n" if debug else "1 False\n")


def test_warnings_that_python_was_told_to_show_are_shown(monkeypatch):
    from musiccm.quiet import quiet_libraries

    monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn("asked for", UserWarning, stacklevel=1)
    assert len(shown) == 1
