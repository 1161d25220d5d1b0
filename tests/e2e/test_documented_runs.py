"""The documents' cheap commands, run as they stand, page by page and in their order.

Which commands these are is decided by `RUN` of tests/test_documented_commands.py. What is made smaller or moved is
stated in `SMALLER`; everything else is typed as the page has it.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from documented import Command, commands
from small_corpus import sound
from test_documented_commands import RUN

from musiccm import cli

pytestmark = pytest.mark.e2e

HERE = "e2e/test_documented_runs.py"
#: Arguments that take the place of a page's, or stand behind them: the last one counts.
SMALLER = {
    r"musiccm prepare demo": ("--tracks", "1", "--test-tracks", "3", "--validation-tracks", "0", "--workers", "1"),
    r"musiccm prepare index --root /music/train": ("--root", "music/train"),
    r"musiccm plagiarism": ("--train-clips", "2"),
}


def as_run(command: Command) -> list[str]:
    """The arguments behind `musiccm`."""
    return [*command.words[1:], *(word for pattern, words in SMALLER.items() if re.match(pattern, command.text)
                                  for word in words)]


def of_page(page: str) -> list[Command]:
    """The commands of a page that are run here, each once, `prepare` before what reads it."""
    found = {command.text: command for command in commands() if command.page == page and any(
        name == HERE and re.match(pattern, str(command)) for pattern, name in RUN.items())}
    assert found, page
    return sorted(found.values(), key=lambda command: "prepare" not in command.words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: somebody's clip, prompts, folders of clips, and music to train on."""
    folder = tmp_path_factory.mktemp("newcomer")
    soundfile.write(folder / "mine.flac", sound(1, 8.0), 16000)
    (folder / "prompts.csv").write_text("id,prompt\nfirst,a calm tune\nsecond,slow organ chords\n")
    for name, first in (("mine", 10), ("real", 20), ("out", 30), ("music/train", 40)):
        (folder / name).mkdir(parents=True)
        for n in range(3):
            soundfile.write(folder / name / f"{n}.wav", sound(first + n, 5.2), 16000)
    return folder


@pytest.mark.parametrize("page", ["docs/data.md", "docs/plagiarism.md", "README.md", "docs/levels.md"])
def test_the_cheap_commands_of_a_page(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for command in of_page(page):
        assert cli.main(as_run(command)) == 0, (command, capsys.readouterr().err)
        words = command.words
        if "generate" in words and words[words.index("--out") if "--out" in words else 0] == "--out":
            out = Path(words[words.index("--out") + 1])
            for path in [out] if out.suffix else sorted(out.iterdir()):
                samples, _ = soundfile.read(path)
                assert len(samples) > 16000 and np.abs(samples).max() > 1e-3, command
    capsys.readouterr()


def test_what_the_pages_say_of_what_comes_out(folder: Path) -> None:
    """After the commands above."""
    assert sorted(path.name for path in (folder / "clips").iterdir()) == ["first.wav", "second.wav"]
    lengths = {name: soundfile.info(folder / name).duration for name in ("minute.wav", "longer.wav", "mended.wav")}
    assert lengths["minute.wav"] == pytest.approx(60, abs=0.01) and lengths["longer.wav"] == pytest.approx(20, abs=0.01)
    clip, longer, mended = (soundfile.read(folder / name)[0] for name in ("mine.flac", "longer.wav", "mended.wav"))
    assert lengths["mended.wav"] == 8.0 and np.array_equal(longer[: 7 * 16000], clip[: 7 * 16000])
    assert np.array_equal(mended[: 2 * 16000], clip[: 2 * 16000]) and np.array_equal(mended[-16000:], clip[-16000:])
    assert not np.array_equal(mended[4 * 16000: 5 * 16000], clip[4 * 16000: 5 * 16000])
    for name in ("out_1.mp3", "out_2.mp3", "out_1.flac", "out_2.flac", "piano.mp3", "clip.wav"):
        assert (folder / name).is_file(), name
    assert (folder / "report/index.html").is_file() and (folder / "data/events-corpus/train").is_dir()
