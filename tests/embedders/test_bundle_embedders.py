"""The bundle's tagger and CLAP as embedders."""

import pytest
import torch
from metrics_sounds import tones
from tiny_bundle import build_random_bundle

from musiccm.audio.mel import LogMel
from musiccm.embedders import load_embedder, tagger
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.from_pretrained(build_random_bundle(tmp_path_factory.mktemp("bundle")))


def test_the_tagger_hears_as_it_does_alone(bundle, monkeypatch):
    waveform = tones(1.3, clips=3)
    alone = bundle.evaluators["tagger"]
    with torch.no_grad():
        embedding, logits = alone(LogMel(bundle.mel)(waveform))
    embedder = load_embedder("tagger", bundle=bundle)
    found = embedder(waveform, 16000)
    assert torch.equal(found.embedding_RE, embedding) and torch.equal(found.logits_BG, logits)
    assert found.counts == [1, 1, 1]
    assert embedder.name == "tagger" and embedder.tags == alone.tags and embedder.groups == alone.groups
    assert embedder.provenance["content_hash"] == bundle.content_hash(["evaluators/tagger"])
    assert load_embedder("tagger", bundle=bundle.path).fingerprint == embedder.fingerprint
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedder(waveform, 16000).embedding_RE, embedding)
    monkeypatch.setattr(tagger, "FRAMES_PER_PASS", 1)
    torch.testing.assert_close(embedder(waveform, 16000).embedding_RE, embedding, atol=1e-5, rtol=1e-5)


def test_too_short_for_the_taggers_mel(bundle):
    embedder = load_embedder("tagger", bundle=bundle)
    assert embedder(torch.zeros(1, 513), 16000).counts == [1]
    with pytest.raises(MusiccmError, match=r"tagger: .*513 samples.*found .*512 samples"):
        embedder(torch.zeros(1, 512), 16000)


def test_the_bundles_clap_is_the_conditioners_and_has_a_name_of_its_own(bundle):
    waveform, conditioner = tones(1.0, clips=2), bundle.conditioner()
    embedder = load_embedder("clap", bundle=bundle)
    assert embedder.name == "bundle_clap" and embedder.width == conditioner.width
    found = embedder(waveform, 16000)
    with torch.no_grad():
        torch.testing.assert_close(found.embedding_RE, conditioner.audio(waveform, 16000))
        torch.testing.assert_close(embedder.text(["organ"]), conditioner.text(["organ"]))
    assert found.logits_BG is None and found.counts == [1, 1]
