"""Cnn14 against audioldm_eval's class with the same random weights."""

import pytest
import torch
from metrics_sounds import tones

from musiccm.embedders import cnn14
from musiccm.embedders.cnn14 import PannEmbedder
from musiccm.errors import MusiccmError


def original(model, waveform):
    with torch.no_grad():
        out = model(waveform)
    return out["2048"], out["logits"]


def assert_close(ours, theirs):
    assert theirs.abs().max() > 0.1, "the comparison would say nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_equals_the_original_at_16_khz(pann, cnn14_originals):
    waveform = tones(2.03)
    found = pann(waveform, 16000)
    embedding, logits = original(cnn14_originals[16000], waveform)
    assert_close(found.embedding_RE, embedding)
    assert_close(found.logits_BG, logits)
    assert found.counts == [1, 1]
    assert (found.embedding_RE >= 0).all() and (found.logits_BG < 0).any()


def test_equals_the_original_at_32_khz(cnn14_originals):
    state = cnn14_originals[32000].state_dict()
    pann32k = PannEmbedder("pann32k", {"iteration": 1, "model": state, "sampler": {}})
    waveform = tones(1.5, 32000)
    embedding, logits = original(cnn14_originals[32000], waveform)
    found = pann32k(waveform, 32000)
    assert_close(found.embedding_RE, embedding)
    assert_close(found.logits_BG, logits)
    assert pann32k.sample_rate_hz == 32000 and pann32k.min_duration_s == pytest.approx(0.31)


def test_the_checkpoint_has_the_84_published_names(cnn14_checkpoint):
    assert len(cnn14_checkpoint["model"]) == 84


def test_the_form_for_a_cpu_equals_the_original(cnn14_checkpoint, cnn14_originals):
    embedder = PannEmbedder("pann", cnn14_checkpoint)
    before = embedder.fingerprint
    embedder.for_cpu()
    waveform = tones(1.37)
    embedding, logits = original(cnn14_originals[16000], waveform)
    found = embedder(waveform, 16000)
    assert_close(found.embedding_RE, embedding)
    assert_close(found.logits_BG, logits)
    assert embedder.fingerprint == before


@pytest.mark.parametrize("seconds", [0.31, 1.0, 3.333])
def test_silence_and_any_length(pann, cnn14_originals, seconds):
    waveform = tones(seconds, clips=1)
    waveform[:, : waveform.shape[1] // 2] = 0.0
    assert_close(pann(waveform, 16000).embedding_RE, original(cnn14_originals[16000], waveform)[0])


def test_long_clips_in_chunks_are_heard_as_a_whole(pann, cnn14_originals, monkeypatch):
    waveform = tones(5.0, clips=1)  # 501 frames
    embedding, _ = original(cnn14_originals[16000], waveform)
    for chunk in (192, 480):  # the last leaves a rest of less than a stride behind it
        monkeypatch.setattr(cnn14, "FRAMES_PER_CHUNK", chunk)
        assert_close(pann(waveform, 16000).embedding_RE, embedding)


def test_chunks_would_show_without_their_margin(pann, cnn14_originals, monkeypatch):
    """The margin of 128 frames is what the features can see, and a smaller one changes them."""
    waveform = tones(4.0, clips=1)
    monkeypatch.setattr(cnn14, "FRAMES_PER_CHUNK", 192)
    monkeypatch.setattr(cnn14, "HALO", 32)
    embedding, _ = original(cnn14_originals[16000], waveform)
    assert (pann(waveform, 16000).embedding_RE - embedding).abs().max() > 1e-3 * embedding.max()


def test_alone_in_a_batch_or_in_small_passes(pann, monkeypatch):
    waveform = tones(1.0, clips=3)
    together = pann(waveform, 16000).embedding_RE
    alone = torch.cat([pann(clip[None], 16000).embedding_RE for clip in waveform])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(cnn14, "FRAMES_PER_PASS", 1)
    torch.testing.assert_close(pann(waveform, 16000).embedding_RE, together, atol=1e-4, rtol=1e-4)


def test_autocast_training_mode_and_gradients_change_nothing(pann):
    waveform = tones(1.0)
    plain = pann(waveform, 16000)
    pann.train()
    with torch.autocast("cpu", torch.bfloat16):
        under = pann(waveform.requires_grad_(), 16000)
    assert under.embedding_RE.dtype == torch.float32 and not under.embedding_RE.requires_grad
    assert torch.equal(under.embedding_RE, plain.embedding_RE) and torch.equal(under.logits_BG, plain.logits_BG)


def test_other_rates_are_resampled(pann):
    import torchaudio

    waveform = tones(1.0, 44100)
    by_hand = torchaudio.functional.resample(waveform, 44100, 16000)
    assert torch.equal(pann(waveform, 44100).embedding_RE, pann(by_hand, 16000).embedding_RE)


def test_a_checkpoint_for_another_rate_is_refused_by_its_shape(cnn14_originals, cnn14_checkpoint):
    with pytest.raises(MusiccmError, match=r"x\.pth: .*for 16000 Hz.*has 512 points; found 1024 points, .*for 32000"):
        PannEmbedder("pann", {"model": cnn14_originals[32000].state_dict()}, "x.pth")
    with pytest.raises(MusiccmError, match=r"for 32000 Hz.*found 512 points, which is for 16000 Hz"):
        PannEmbedder("pann32k", cnn14_checkpoint)


def test_a_checkpoint_of_another_network_is_refused(cnn14_checkpoint):
    with pytest.raises(MusiccmError, match=r"expected a Cnn14 checkpoint with .*conv_real\.weight, found a, "):
        PannEmbedder("pann", {"model": {"a": torch.zeros(1)}})
    state = dict(cnn14_checkpoint["model"])
    state["fc_audioset.weight"] = torch.zeros(10, 2048)
    with pytest.raises(MusiccmError, match=r"fc_audioset\.weight is \(10, 2048\) instead of \(527, 2048\)"):
        PannEmbedder("pann", {"model": state})


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(1, 4959), r"pann: expected clips of at least 0\.310 s \(4960 samples .*found .*\(4959 samples\)"),
        (torch.tensor([[0.0] * 16000, [float("nan")] * 16000]), "NaN or infinity in the waveform of clip 1"),
        (torch.zeros(0, 16000), r"\[B, S\], found \(0, 16000\)"),
        (torch.zeros(16000), r"\[B, S\], found \(16000,\)"),
    ],
)
def test_bad_input(pann, waveform, message):
    with pytest.raises(MusiccmError, match=message):
        pann(waveform, 16000)


def test_fingerprint_follows_weights_and_front_end(pann, cnn14_checkpoint, cnn14_originals):
    assert PannEmbedder("pann", cnn14_checkpoint["model"]).fingerprint == pann.fingerprint
    state = dict(cnn14_checkpoint["model"])
    state["logmel_extractor.melW"] = state["logmel_extractor.melW"] * 1.001
    assert PannEmbedder("pann", state).fingerprint != pann.fingerprint
