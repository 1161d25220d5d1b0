"""Features of semantic tokens: each source gives what its library gives, on one grid, and no code of others is run."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bundle import build_random_bundle
from transformers import (
    DacConfig,
    DacModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
)

from musiccm.audio import LogMel
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.melody.features import load_source

SPEECH: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 8,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_random_bundle(tmp_path_factory.mktemp("bundle"))
    return folder


def waves(tokens: int, rate_hz: int = 16000, count: int = 2) -> torch.Tensor:
    return 0.2 * torch.randn(count, tokens * rate_hz // 25)


def test_the_tagger_before_it_pools_on_the_grid_of_tokens(bundle: Path) -> None:
    source = load_source("tagger", bundle)
    tagger: Any = Bundle.from_pretrained(bundle, ["evaluators/tagger"]).evaluators["tagger"]
    seen: list[torch.Tensor] = []
    tagger.norm.register_forward_hook(lambda module, given, found: seen.append(found))
    sound = waves(32)
    tagger(LogMel(Bundle.from_pretrained(bundle, []).mel)(sound))
    found = source(sound, 16000)
    assert found.shape == (2, 32, source.width) and torch.equal(found, seen[0].relu().transpose(1, 2))
    # a token's place in time: later by three tokens, the same features three tokens later, away from the ends
    longer = waves(200, count=1)
    whole, later = source(longer, 16000), source(longer[:, 3 * 640 :], 16000)
    torch.testing.assert_close(later[:, 80:110], whole[:, 83:113], atol=1e-4, rtol=1e-4)
    # other rates are resampled to the network's
    assert source(waves(10, 24000), 24000).shape == (2, 10, source.width)


def test_clap_in_windows_that_lie_end_to_end(bundle: Path) -> None:
    source = load_source("clap", bundle)  # windows of a second: 25 tokens
    sound = waves(32, count=1)
    found = source(sound, 16000)
    assert found.shape == (1, 32, source.width)
    torch.testing.assert_close(found[:, :25], source(sound[:, :16000], 16000), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 25:], source(sound[:, -16000:], 16000)[:, 18:], atol=1e-5, rtol=0)
    # time runs as it does in the sound: what changes in the last fifth changes little in the first half
    for layer in (0, 1):
        finer = load_source("clap", bundle, layer)
        other = sound[:, :16000].clone()
        other[:, 13000:] = 0.2 * torch.randn(1, 3000)
        change = (finer(other, 16000) - finer(sound[:, :16000], 16000)).norm(dim=2)[0]
        assert change[21:].mean() > 10 * change[:8].mean(), layer
    with pytest.raises(MusiccmError, match="layer 3 is none of its 3"):
        load_source("clap", bundle, 3)


@pytest.mark.parametrize(
    ("name", "config", "network"),
    [("hubert", HubertConfig, HubertModel), ("wav2vec2-conformer", Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel)],
)
def test_speech_networks_are_what_transformers_says_two_frames_a_token(
    name: str, config: Any, network: Any, tmp_path: Path
) -> None:
    model = network(config(**SPEECH)).eval()
    model.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path)
    sound = waves(20)
    read = extractor(list(sound.numpy()), sampling_rate=16000, return_tensors="np").input_values
    # 400 samples see a frame and 320 lie between two: 40 more on either side are a frame for every 320
    padded = torch.from_numpy(np.pad(read, ((0, 0), (40, 40))))
    with torch.no_grad():
        states = model(padded, output_hidden_states=True).hidden_states
    for layer in (None, 2):
        source = load_source(name, tmp_path, layer)
        expected = states[1 if layer is None else layer].unflatten(1, (20, 2)).mean(2)
        torch.testing.assert_close(source(sound, 16000), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(MusiccmError, match="layer 3 is none of its 3"):
        load_source(name, tmp_path, 3)


def test_latents_of_dac_before_they_are_quantised(tmp_path: Path) -> None:
    model = DacModel(DacConfig(encoder_hidden_size=4, downsampling_ratios=[2, 4, 8, 5], decoder_hidden_size=16,
                               n_codebooks=2, codebook_size=8, codebook_dim=4, sampling_rate=16000)).eval()
    model.save_pretrained(tmp_path)
    sound = waves(20)
    source = load_source("dac", tmp_path)
    with torch.no_grad():
        latents = model.encoder(sound[:, None])
    assert latents.shape == (2, source.width, 40)
    torch.testing.assert_close(source(sound, 16000), latents.transpose(1, 2).unflatten(1, (20, 2)).mean(2))
    with pytest.raises(MusiccmError, match="features dac: have one layer alone"):
        load_source("dac", tmp_path, 1)


def test_weights_for_non_commercial_use_ask_for_a_flag_and_print_their_licence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    HubertModel(HubertConfig(**SPEECH)).save_pretrained(tmp_path)
    for name in ("mert", "muq"):
        with pytest.raises(MusiccmError, match=f"features {name}: .* CC BY-NC 4.0, for non-commercial use alone"):
            load_source(name, tmp_path)
    assert not capsys.readouterr().out
    source = load_source("mert", tmp_path, non_commercial=True)
    assert "weights under CC BY-NC 4.0" in capsys.readouterr().out
    assert source(waves(6), 16000).shape == (2, 6, 32)

    monkeypatch.setitem(sys.modules, "muq", None)
    with pytest.raises(MusiccmError, match="pip install muq"):
        load_source("muq", tmp_path, non_commercial=True)

    class MuQ(torch.nn.Module):
        """25 frames a second of 24 kHz, as the package's."""

        @classmethod
        def from_pretrained(cls, folder: str, local_files_only: bool) -> MuQ:
            assert local_files_only and folder == str(tmp_path)
            return cls()

        def forward(self, wavs: torch.Tensor, output_hidden_states: bool) -> Any:
            frames = wavs.unflatten(1, (-1, 960)).mean(2, keepdim=True)
            return types.SimpleNamespace(hidden_states=(frames, frames.repeat(1, 1, 5)))

    monkeypatch.setitem(sys.modules, "muq", types.SimpleNamespace(MuQ=MuQ))
    source = load_source("muq", tmp_path, non_commercial=True)
    sound = waves(6, 24000)
    torch.testing.assert_close(source(sound, 24000)[..., 0], sound.unflatten(1, (6, 960)).mean(2))
    assert source.width == 5


@pytest.mark.parametrize("change", [{"auto_map": {"AutoModel": "modeling.M"}}, {"model_type": "mert_model"}])
def test_what_needs_code_of_its_own_is_not_run(change: dict[str, Any], tmp_path: Path) -> None:
    HubertModel(HubertConfig(**SPEECH)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MusiccmError, match="names no code. What needs trust_remote_code is not run"):
        load_source("mert", tmp_path, non_commercial=True)


def test_what_cannot_be_read_is_said(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="features: expected one of tagger, clap, hubert, .* found 'encodec'"):
        load_source("encodec", bundle)
    with pytest.raises(MusiccmError, match="expected a local folder .* nothing is fetched"):
        load_source("hubert", "facebook/hubert-base-ls960")
    with pytest.raises(MusiccmError, match="features tagger: have one layer alone"):
        load_source("tagger", bundle, 2)
    source = load_source("tagger", bundle)
    with pytest.raises(MusiccmError, match="no whole number of tokens"):
        source(torch.zeros(1, 20481), 16000)
    for bad in (torch.zeros(20480), torch.full((1, 20480), torch.nan), torch.zeros(0, 20480)):
        with pytest.raises(MusiccmError, match=r"expected finite waveforms of shape \[B, S\]"):
            source(bad, 16000)
