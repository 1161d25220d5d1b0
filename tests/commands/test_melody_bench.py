"""`musiccm bench melody` and `melody_seams`: which bundle they take, and what they time, on a tiny one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_melody import build_random_melody

from musiccm.commands.bench import load
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.melody.kind import MelodyKind
from musiccm.pipeline import Pipeline

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_melody(tmp_path_factory.mktemp("melody")))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, bundle: str) -> ModuleType:
    module = load(BENCHMARKS / "melody.py")
    base = str(Path(bundle).with_name("base"))
    for name, value in {"SECONDS": 0.8, "REPEATS": 1, "BASELINE": base, "choose_device": lambda _: "cpu"}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_its_rows_are_of_the_bundle_that_is_named(bench: ModuleType, bundle: str) -> None:
    rows = bench.run(bundle)
    cases = [(row["case"].partition(",")[0], row["unit"]) for row in rows]
    assert cases == [("melody", unit) for unit in ("s / s", "CPU s / s") * 2 + ("s", "CPU s", "of 1")]
    assert "0.8 s by 10 guided steps, proposed angles, against" in rows[0]["case"]
    assert all(row["ours"] > 0 and row["n"] == 1 for row in rows)
    assert all(row["baseline"] > 0 for row in rows[:-1]) and "20 tokens with the cache" in rows[4]["case"]
    assert rows[-1]["ours"] == 1.0, "the cache changes no token"


def test_without_a_bundle_of_the_kind_weights_are_drawn_and_rows_say_so(
    bench: ModuleType, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(Path(bundle).with_name("base"))

    def nothing(path: str) -> Path:
        raise MusiccmError(f"{path} is not there")

    with monkeypatch.context() as at_first:
        at_first.setattr(bench, "resolve_bundle", nothing)
        at_first.setattr(bench, "random_bundle", lambda folder: folder)
        assert bench.model_of(base, tmp_path) == (str(tmp_path / "melody"), "random weights")
    monkeypatch.setattr(bench, "resolve_bundle", lambda path: Path(path))
    assert bench.model_of(base, tmp_path) == ("musiccm-tiny-melody", "musiccm-tiny-melody")
    assert bench.model_of(bundle, tmp_path) == (bundle, "melody")


@pytest.mark.slow
def test_random_weights_are_of_the_stages_sizes(tmp_path: Path) -> None:
    made = Bundle.from_pretrained(load(BENCHMARKS / "melody.py").random_bundle(tmp_path / "melody"))
    assert isinstance(made.kind, MelodyKind)
    pipeline = Pipeline.from_pretrained(made.path)
    assert pipeline.duration_s == 5.12 and pipeline.conditioner.tokens == 128
    assert sum(p.numel() for p in made.network.parameters()) == pytest.approx(5.0e6, rel=0.05)
    assert torch.isfinite(pipeline("organ", 1, guidance_scale=1.0)).all()


def test_a_model_whose_edits_are_measured_is_called_what_it_is(bundle: str) -> None:
    """A teacher that no student is packaged for is no student; it takes half of its default steps."""
    edits = load(BENCHMARKS / "edits.py")
    assert edits.models_of(bundle) == {"teacher": (bundle, 10)}
    assert edits.models_of("musiccm-tiny") == {"student": ("musiccm-tiny-student", 4), "teacher": ("musiccm-tiny", 25)}
    assert edits.models_of("musiccm-tiny-student") == {"student": ("musiccm-tiny-student", 4)}


@pytest.mark.slow
def test_seams_are_measured_by_the_edits_benchmark(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seams = load(BENCHMARKS / "melody_seams.py")
    for name, value in {"CLIPS": 1, "choose_device": lambda _: "cpu"}.items():
        monkeypatch.setattr(seams.edits, name, value)
    monkeypatch.setattr(seams, "STEPS", 1)
    figure = {row["case"]: row["ours"] for row in seams.run(bundle)}
    assert figure["melody, renderer, continued: level jump over 0.1 s, against a hard join"] > 0
    assert figure["melody, renderer, mended: spectral change over 0.1 s, against a hard join"] > 0
