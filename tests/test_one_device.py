"""Music in bf16 and compiled, as a server makes it: on the CPU, and marked `gpu` on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_bundle import build_random_student

from musiccm.pipeline import Pipeline

TEXTS, SEEDS = ["a calm piano melody", "slow organ chords"], [5, 0]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_student(tmp_path_factory.mktemp("bundles"))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def test_sound_in_bf16_is_near_that_in_float32(student: Path, device: str) -> None:
    plain = Pipeline.from_pretrained(student).to(device)
    half = Pipeline.from_pretrained(student).to(device).accelerate(half=True)
    assert 0 < relative(half(TEXTS, 2, SEEDS), plain(TEXTS, 2, SEEDS)) < 0.1
    assert 0 < relative(half.compose(TEXTS[0], 1.5, 2), plain.compose(TEXTS[0], 1.5, 2)) < 0.1


@pytest.mark.slow  # tracing takes twenty seconds
def test_clips_and_pieces_of_a_compiled_network_are_the_usual_ones(student: Path, device: str) -> None:
    """On a GPU by its own compiler, as one CUDA graph a batch; elsewhere by one that passes graphs through."""
    plain = Pipeline.from_pretrained(student).to(device)
    compiled = Pipeline.from_pretrained(student).to(device).accelerate(
        backend="inductor" if device == "cuda" else "eager")
    for count in (2, 1, 2):  # a graph is replayed after another one
        found = compiled(TEXTS[:count], 2, SEEDS[:count])
        assert relative(found, plain(TEXTS[:count], 2, SEEDS[:count])) < 1e-3
    assert relative(compiled.compose(TEXTS[0], 1.5, 2, batch_size=2), plain.compose(TEXTS[0], 1.5, 2)) < 1e-3
