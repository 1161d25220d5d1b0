"""MeLoDy's audio VAE and its discriminator on two processes, and in bf16."""

from __future__ import annotations

import json
from pathlib import Path

import audio_vae_ranks
import forked
import pytest
import torch
from small_corpus import write_corpus
from tiny_bundle import build_random_bundle

from musiccm.models.melody.audio_vae import AudioVae


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bundle") / "b"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_corpus(tmp_path_factory.mktemp("corpus")))


def test_both_sides_are_one_network_on_two_processes(bundle: str, corpus: str, tmp_path: Path) -> None:
    forked.spawn(audio_vae_ranks.worker, (bundle, corpus, tmp_path, forked.free_port()), 2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = audio_vae_ranks.fit(bundle, corpus, tmp_path / "alone")
    for name, part in (("vae", alone.part), ("discriminator", alone.discriminator)):
        weights = part.state_dict()  # which have seen half of the clips
        assert any(not torch.equal(value, weights[key]) for key, value in first[name].items())
    saved = AudioVae.from_pretrained(tmp_path / "audio_vae").state_dict()
    torch.testing.assert_close(saved, first["average"], rtol=0, atol=0)
    assert json.loads((tmp_path / "quality" / "audio_vae.json").read_text())["steps"] == audio_vae_ranks.STEPS


def test_bf16_learns_as_float32_does(bundle: str, corpus: str, tmp_path: Path) -> None:
    exact, rounded = (audio_vae_ranks.fit(bundle, corpus, tmp_path / precision, precision=precision)
                      for precision in ("32-true", "bf16-mixed"))
    begun = audio_vae_ranks.stage_of("audio_vae", bundle)
    for name in ("part", "discriminator"):
        start, *ends = (getattr(stage, name).state_dict() for stage in (begun, exact, rounded))
        ways = [torch.cat([(end[key] - start[key]).flatten() for key in start]) for end in ends]
        assert all(way.dtype == torch.float32 and way.norm() > 0 for way in ways)
        assert torch.nn.functional.cosine_similarity(*ways, dim=0) > 0.8
