"""CLAP embeddings: the torch front end against transformers' own extractor, and determinism."""

import copy

import numpy as np
import pytest
import torch
from tiny_bundle import CAPTIONS, make_clap, make_feature_extractor
from transformers import ClapFeatureExtractor

from musiccm.errors import MusiccmError
from musiccm.models.bundle.tokenizer import train_tokenizer
from musiccm.models.conditioners.clap import ClapConditioner, ClapFrontEnd
from musiccm.models.conditioners.prompt_memory import PROMPT_LENGTHS

RATE = 16000


def tune(seconds: float, seed: int = 0) -> torch.Tensor:
    """Chords over a noise floor, as recorded sound has one."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(0.1 / k * np.sin(2 * np.pi * 220 * k * t + k) for k in range(1, 8)) * np.exp(-t)
    return torch.from_numpy(wave + 1e-3 * rng.standard_normal(len(t))).float()


@pytest.fixture(scope="module")
def conditioner() -> ClapConditioner:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS * 2, vocab_size=300)
    return ClapConditioner(make_clap(len(tokenizer)), tokenizer, make_feature_extractor())


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.0])
def test_front_end_equals_the_extractor(truncation: str, padding: str, seconds: float) -> None:
    extractor = ClapFeatureExtractor(
        feature_size=64, sampling_rate=RATE, hop_length=160, max_length_s=1, fft_window_size=512, frequency_min=50,
        frequency_max=8000, truncation=truncation, padding=padding,
    )
    waves = [tune(seconds, seed) for seed in range(2)]
    theirs = extractor([w.numpy() for w in waves], sampling_rate=RATE, return_tensors="pt").input_features[:, :1]
    ours = ClapFrontEnd(extractor)(torch.stack(waves))
    torch.testing.assert_close(ours, theirs.float(), atol=1e-3, rtol=0)


def test_audio_equals_the_library_path(conditioner: ClapConditioner, device: str) -> None:
    waves = torch.stack([tune(1.0, 1), tune(1.0, 2)])
    features = make_feature_extractor()(list(waves.numpy()), sampling_rate=RATE, return_tensors="pt").input_features
    theirs = conditioner.clap.get_audio_features(input_features=features.float()).pooler_output
    ours = copy.deepcopy(conditioner).to(device).audio(waves.to(device), RATE)
    torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=0)


def test_text_equals_the_library_path_one_by_one(conditioner: ClapConditioner, device: str) -> None:
    ours = copy.deepcopy(conditioner).to(device).text(CAPTIONS).cpu()
    for row, caption in zip(ours, CAPTIONS, strict=True):
        tokens = conditioner.tokenizer([caption], return_tensors="pt")
        theirs = conditioner.clap.get_text_features(tokens.input_ids).pooler_output[0]
        torch.testing.assert_close(row, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(ours)))


def test_padding_to_few_lengths_changes_a_text_by_rounding_alone(conditioner: ClapConditioner, device: str) -> None:
    """Positions are counted over what is no padding, and it is not attended to."""
    ours = copy.deepcopy(conditioner).to(device)
    texts = [*CAPTIONS, "", "soft strings and drums " * 5]
    expected = torch.cat([ours.text([text]) for text in texts])
    ids_BL, mask_BL = ours.tokenized(texts)
    assert ids_BL.shape[1] not in PROMPT_LENGTHS
    for length in (64, ours.max_tokens):
        padded = ours.padded(ids_BL, mask_BL, length)
        assert padded[0].shape == padded[1].shape == (len(texts), length)
        found = ours.encode(*(part.to(device) for part in padded))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    ours.few_lengths = True
    assert [ours.tokenized([text])[0].shape[1] for text in texts] == [32] * 5 + [64]
    torch.testing.assert_close(torch.cat([ours.text([text]) for text in texts]), expected, atol=1e-5, rtol=0)


def test_audio_is_deterministic_where_the_extractor_crops_at_random(conditioner: ClapConditioner) -> None:
    wave = torch.cat([tune(1.0), tune(1.5, 3)])[None]
    first = conditioner.audio(wave, RATE)
    assert torch.equal(first, conditioner.audio(wave, RATE))
    torch.testing.assert_close(first, conditioner.audio(wave[:, :RATE], RATE))


def test_mean_window_covers_the_end(conditioner: ClapConditioner) -> None:
    wave = torch.cat([tune(1.0), tune(1.5, 3)])[None]
    rows = [conditioner.audio(wave[:, start : start + RATE], RATE) for start in (0, RATE, RATE * 3 // 2)]
    mean = torch.nn.functional.normalize(torch.stack(rows).mean(0), dim=-1)
    torch.testing.assert_close(conditioner.audio(wave, RATE, windows="mean"), mean)


def test_resamples(conditioner: ClapConditioner) -> None:
    t = torch.arange(32000) / 32000
    high = 0.3 * torch.sin(2 * torch.pi * 440 * t) + 0.01 * torch.sin(2 * torch.pi * 1000 * t)
    similarity = conditioner.audio(high[None], 32000) @ conditioner.audio(high[None, ::2], RATE).T
    assert similarity.item() > 0.999


def test_null_is_the_empty_text(conditioner: ClapConditioner) -> None:
    torch.testing.assert_close(conditioner.null(3), conditioner.text([""]).expand(3, -1))


def test_gradient_reaches_the_waveform_and_training_mode_does_not(conditioner: ClapConditioner) -> None:
    conditioner.train()
    assert not conditioner.clap.training
    wave = tune(0.7)[None].requires_grad_()
    conditioner.audio(wave, RATE)[:, 0].sum().backward()
    assert wave.grad is not None and torch.isfinite(wave.grad).all() and wave.grad.abs().sum() > 0


@pytest.mark.parametrize("wave", [torch.zeros(1, 0), torch.full((1, 100), torch.nan), torch.zeros(100)])
def test_bad_waveforms_are_refused(conditioner: ClapConditioner, wave: torch.Tensor) -> None:
    with pytest.raises(MusiccmError, match="finite waveforms"):
        conditioner.audio(wave, RATE)


@pytest.mark.parametrize("texts", [[], "a string", [None]])
def test_bad_texts_are_refused(conditioner: ClapConditioner, texts: object) -> None:
    with pytest.raises(MusiccmError, match="list of texts"):
        conditioner.text(texts)  # type: ignore[arg-type]


def test_long_text_is_truncated(conditioner: ClapConditioner) -> None:
    assert conditioner.text(["piano melody " * 200]).shape == (1, 32)


def test_a_prompt_is_remembered_and_does_not_depend_on_the_others(
    conditioner: ClapConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    text = ClapConditioner.text
    monkeypatch.setattr(ClapConditioner, "text", lambda self, texts: asked.append(texts) or text(self, texts))
    conditioner.to("cpu")  # forgets
    with torch.inference_mode():
        first = conditioner.prompts([CAPTIONS[1], CAPTIONS[0], CAPTIONS[1]])
    assert asked == [[CAPTIONS[1]], [CAPTIONS[0]]], "each once, by itself and so without padding"
    for row, caption in zip(first, [CAPTIONS[1], CAPTIONS[0], CAPTIONS[1]], strict=True):
        tokens = conditioner.tokenizer([caption], return_tensors="pt")
        theirs = conditioner.clap.get_text_features(tokens.input_ids).pooler_output[0]
        torch.testing.assert_close(row, theirs, atol=1e-5, rtol=0)
    assert torch.equal(conditioner.prompts(CAPTIONS[:1]), first[1:2]) and len(asked) == 2
    assert not conditioner.prompts(CAPTIONS[:1]).is_inference(), "it may be asked for in training too"

    conditioner.to("cpu")
    conditioner.prompts(CAPTIONS[:1])
    assert len(asked) == 3, "weights that were moved or cast embed anew"
    with pytest.raises(MusiccmError, match="non-empty list"):
        conditioner.prompts([])


def test_no_more_than_a_number_of_prompts_are_remembered(
    conditioner: ClapConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musiccm.models.conditioners.prompt_memory.REMEMBERED", 2)
    asked: list[str] = []
    monkeypatch.setattr(ClapConditioner, "text",
                        lambda self, texts: asked.extend(texts) or torch.zeros(1, self.width))
    conditioner.to("cpu")
    for name in "abacab":
        conditioner.prompts([name])
    # a b | a again, b is the oldest | c drives b out | a again | b anew
    assert "".join(asked) == "abcb"
    conditioner.to("cpu")
