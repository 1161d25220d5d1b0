"""What `import musiccm` offers, and the example of the README."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import musiccm
from musiccm.audio import write_audio
from musiccm.diffusion import NoiseProcess
from musiccm.errors import MusiccmError
from musiccm.samplers import make_sampler

README = Path(__file__).parents[1] / "README.md"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, musiccm; dir(musiccm); print({'torch', 'numpy', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_every_name_is_the_one_of_its_home() -> None:
    for name in musiccm.__all__:
        home = importlib.import_module(musiccm._HOMES[name])
        assert getattr(musiccm, name) is getattr(home, name) and name in dir(musiccm)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = musiccm.Nothing


@pytest.mark.parametrize("name", ["evaluate", "load_embedder", "MusicCM"])
@pytest.mark.parametrize("module", ["torchmetrics", "torchaudio", "timm"])
def test_what_lacks_a_library_says_what_to_install(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(home: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(musiccm.importlib, "import_module", lacking)
    extra = "train" if name == "MusicCM" else "eval"
    with pytest.raises(MusiccmError, match=rf"musiccm\.{name} needs {module}.*musiccm\[{extra}\]"):
        getattr(musiccm, name)


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "real"):
        (tmp_path / name).mkdir()
        for n in range(3):
            write_audio(tmp_path / name / f"{n}.wav", 0.1 * torch.randn(16000), 16000)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.S | re.M)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["waveforms_BS"].shape == (2, 81920) and names["teacher"].shape == (1, 81920)
    assert names["minute_S"].shape == (20 * 16000,)
    assert all(torch.isfinite(names[name]).all() for name in ("waveforms_BS", "minute_S", "teacher"))
    assert names["scores"]["fd_tagger"] > 0 and names["scores"].n == 3


SOURCE = Path(musiccm.__file__).parent
WITH_EXAMPLES = sorted(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
                       for path in SOURCE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def test_the_main_objects_have_an_example() -> None:
    for thing in (musiccm.Pipeline, musiccm.Bundle, musiccm.load_embedder, make_sampler, NoiseProcess):
        assert ">>> " in (thing.__doc__ or ""), thing
        assert thing.__module__ in WITH_EXAMPLES


@pytest.mark.parametrize("scale", [float("inf"), float("-inf"), float("nan")])
def test_a_guidance_that_would_make_nan_of_all_sound_is_refused(scale: float) -> None:
    with pytest.raises(musiccm.MusiccmError, match="guidance_scale: expected a finite number, found"):
        musiccm.Pipeline.from_pretrained("musiccm-tiny")("a piano", steps=1, guidance_scale=scale)
