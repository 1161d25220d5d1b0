"""Numbers, devices and places that `generate` and `evaluate` refuse by the name of their option."""

import json
import subprocess
import sys

import pytest
import torch

from musiccm.cli import main
from musiccm.commands._outputs import beside
from musiccm.device import choose_device
from musiccm.errors import MusiccmError


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--guidance-scale", ("inf", "-inf", "nan", "-1", "1e30")),
        ("--gamma", ("nan", "inf", "-0.1", "1.1")),
        ("--seconds", ("inf", "nan", "-1", "0")),
        ("--steps", ("0", "-1")),
        ("--seed", ("-1",)),
        ("--overlap", ("nan", "1", "-0.5", "inf")),
        ("--fusion", ("odd",)),
        ("--strength", ("0", "1.5", "nan", "-1", "inf")),
        ("--from", ("nan", "-1")),
        ("--to", ("inf",)),
        ("--device", ("nonsense", "", "cuda:99", "meta")),
        ("--compile", ("nonsense",)),
    ],
)
def test_the_option_is_named(option, values, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
    inpaint = {"--from": "1", "--to": "2"}
    for value in values:
        others = []
        if option == "--strength":
            others = ["--vary", "clip.wav"]
        if option in inpaint:
            others = ["--inpaint", "clip.wav", *(x for kv in inpaint.items() if kv[0] != option for x in kv)]
        if option in ("--overlap", "--fusion"):
            others = ["--seconds", "8"]
        assert main(["generate", "a tune", f"{option}={value}", *others]) == 2
        said = capsys.readouterr().err
        assert option in said.splitlines()[0], (value, said)
        assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_stream_is_not_warmed_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a tune", "--warm-up", "--stream"]) == 2
    assert "leave out --stream" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_wrong_numbers_are_refused_before_torch_is_loaded(tmp_path):
    code = "import sys; from musiccm.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "generate", "x", "--guidance-scale", "inf"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n", done.stderr


def test_a_student_that_is_told_its_scale_names_its_own_range(tmp_path, capsys):
    record = {"distillation": {"guidance": "variable", "guidance_scale": 4.0, "guidance_range": [0.0, 6.0]}}
    (tmp_path / "musiccm.json").write_text(json.dumps(record))
    for value in ("-1", "6.5"):
        assert main(["generate", "x", f"--guidance-scale={value}", "--model", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert f"from 0 to 6, the scales that this student was trained on, found {float(value)}" in said
    record["distillation"]["guidance"] = "fixed"
    (tmp_path / "musiccm.json").write_text(json.dumps(record))
    assert main(["generate", "x", "--guidance-scale=-1", "--model", str(tmp_path)]) == 2
    assert "expected a number from 0 to 100" in capsys.readouterr().err


def test_devices_that_are_here_pass():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_results_lie_beside_what_was_examined(tmp_path, monkeypatch):
    inner = tmp_path / "out" / "gen"
    inner.mkdir(parents=True)
    (tmp_path / "ref").mkdir()
    monkeypatch.chdir(inner)
    end = "-evaluation.json"
    assert beside(".", end) == beside("./", end) == tmp_path / "out" / f"gen{end}"
    assert beside("..", end) == beside("../", end) == tmp_path / f"out{end}"
    monkeypatch.chdir(tmp_path)
    for named in ("out/gen", "out/gen/", "out/gen//", "./out/gen/."):
        assert str(beside(named, end)) == f"out/gen{end}"
    for named, others in (("/", ()), ("out/gen", ("out",)), ("out/gen", (".",))):
        with pytest.raises(MusiccmError, match="--out: "):
            beside(named, end, others)
