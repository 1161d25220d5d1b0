"""What bf16 changes of text and sound, on packaged bundles; of the latents see test_pipeline_export.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from musiccm.models.acceleration.half import Bf16Linear
from musiccm.pipeline import Pipeline

TEXTS = ["a calm piano melody", "slow organ chords", "a happy marimba tune with drums"]


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far the difference is below the signal, below zero."""
    return 20 * math.log10(float((found - expected).norm() / expected.norm()))


def kinds(network: nn.Module) -> dict[str, type]:
    return {name: type(layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear | Bf16Linear)}


@pytest.mark.parametrize("name", ["musiccm-tiny-student", "musiccm-tiny-tango-student", "musiccm-tiny-melody"])
def test_the_fast_decoder_in_bf16_is_50_db_below_the_signal(name: str) -> None:
    """Of every clip: it is 57 dB. With `expand` and `head` in bf16 too it would be 47."""
    plain = Pipeline.from_pretrained(name)
    with torch.inference_mode():
        z = plain.latents(plain.conditioner.prompts(TEXTS, [1, 2, 3]), [1, 2, 3], steps=1)
        expected = plain.codec.decode(z)
        half = Pipeline(plain.bundle).accelerate(half=True)
        found = half.codec.decode(z)
    assert found.dtype == torch.float32
    assert max(decibels(one, other) for one, other in zip(found, expected, strict=True)) < -50
    assert not torch.equal(found, expected)
    found_kinds = kinds(half.codec.decoder)
    assert {layer for layer, kind in found_kinds.items() if kind is nn.Linear} == {"expand", "head"}
    assert set(kinds(plain.codec.decoder).values()) == {nn.Linear}, "the bundle's own stays as it is"


@pytest.mark.parametrize(("name", "bound"), [("musiccm-tiny-student", 0.01), ("musiccm-tiny-tango-student", 0.02)])
def test_text_in_bf16_is_nearly_the_same(name: str, bound: float) -> None:
    """Relative errors are .003 of CLAP's vectors and .01 of T5's states, no more than what bf16 makes of latents."""
    plain = Pipeline.from_pretrained(name)
    ids_BL, mask_BL = plain.conditioner.tokenized(TEXTS)
    expected = plain.conditioner.features(ids_BL, mask_BL)[mask_BL[:, 0]]
    half = Pipeline(plain.bundle)
    remembered = half.conditioner.prompts(TEXTS[:1])
    half.accelerate(half=True)
    found = half.conditioner.features(ids_BL, mask_BL)
    assert 0 < float((found - expected).norm() / expected.norm()) < bound
    again = half.conditioner.prompts(TEXTS[:1])
    assert not torch.equal(*(getattr(one, "tokens_BLD", one) for one in (again, remembered))), "what was remembered"
    assert torch.equal(plain.conditioner.features(ids_BL, mask_BL), expected), "the bundle's own stays as it is"
    if half.conditioner.has_audio:
        audio = kinds(half.conditioner.clap.audio_model) | kinds(half.conditioner.clap.audio_projection)
        assert set(audio.values()) == {nn.Linear}, "what measures stays in float32"


def test_a_model_that_draws_what_it_tells_reads_in_float32() -> None:
    half = Pipeline.from_pretrained("musiccm-tiny-melody").accelerate(half=True)
    assert set(kinds(half.conditioner).values()) == {nn.Linear}
