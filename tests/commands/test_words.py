"""`musiccm words`, `musiccm pack words`, and the warning of `generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_corpus import write_corpus

from musiccm.cli import main
from tests.tiny_bundle import build_random_student

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose words are those of a corpus of 20 clips with three captions each."""
    folder = tmp_path_factory.mktemp("words")
    student = build_random_student(folder)
    data = {"root": "nowhere", "bundle": "elsewhere", "val_clips": 2}
    (folder / "teacher.yaml").write_text(yaml.safe_dump({"data": {"init_args": data}}))
    corpus = write_corpus(folder / "corpus")
    assert main(["pack", "words", "--to", str(student), "--config", str(folder / "teacher.yaml"), "--root", str(corpus),
                 "--captions", "12"]) == 0
    return student


def generate(model: Path, *arguments: str) -> int:
    return main(["generate", *arguments, "--model", str(model), "--device", "cpu", "--steps", "1"])


def test_words_are_listed_as_a_table_and_as_json(model: Path, capsys: Capture) -> None:
    assert main(["words", "--model", str(model), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    clips = about["clips"]
    assert clips == 18 and about["captions"] == 54 and about["measured_on"]["held_out"] == 6  # 2 and 4 are held out
    assert set(about["groups"]["instruments"]) == {"piano", "flute", "organ"}
    assert sum(about["groups"]["instruments"].values()) == 54, "each caption names its instrument"
    assert about["bpm"] is None and len(about["examples"]) == 12
    assert main(["words", "--model", str(model)]) == 0
    shown = capsys.readouterr().out
    assert f"54 training captions of {clips} clips" in shown and "for example" in shown
    for instrument, count in about["groups"]["instruments"].items():
        assert f"{instrument} {count}" in shown
    assert max(map(len, shown.splitlines())) <= 120 + len(str(model))
    assert main(["words", "--model", str(model), "--all"]) == 0
    everything = capsys.readouterr().out
    assert all(example in everything for example in about["examples"]) and about["examples"][8] not in shown


def test_a_bundle_without_words_says_how_to_make_them(tmp_path: Path, capsys: Capture) -> None:
    student = build_random_student(tmp_path)
    assert main(["words", "--model", str(student)]) == 2
    assert f"musiccm pack words --to {student} --config EXPERIMENT" in capsys.readouterr().err
    assert main(["pack", "words", "--to", "owner/name", "--config", "demo"]) == 2
    assert "--to owner/name: expected the folder of a bundle" in capsys.readouterr().err


def test_generate_warns_of_an_unfamiliar_prompt_once(model: Path, here: Path, capsys: Capture) -> None:
    assert generate(model, "heavy metal", "some piano music", "heavy metal", "--out", "a.wav") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    (line,) = said
    assert "'heavy metal' is unfamiliar" in line and "nearest to '" in line and line.count("'; '") == 2
    assert generate(model, "a piano", "--at", "0.6", "silence please", "--seconds", "1.5", "--out", "b.wav") == 0
    assert "'silence please' is unfamiliar" in capsys.readouterr().out
    Path("p.csv").write_text("id,prompt\nx,bagpipes\ny,bagpipes\nz,organ\n")
    assert generate(model, "--prompts", "p.csv", "--out", "clips") == 0
    assert capsys.readouterr().out.count("'bagpipes' is unfamiliar") == 1


def test_a_warning_stays_out_of_the_sound(model: Path, here: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert generate(model, "bagpipes", "--seconds", "1", "--stream", "--out", "-") == 0
    written = capfdbinary.readouterr()
    assert b"'bagpipes' is unfamiliar" in written.err and b"unfamiliar" not in written.out
