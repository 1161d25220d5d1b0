"""CLAP from LAION's names and from transformers' folders, through the same windows."""

import math
from types import SimpleNamespace

import pytest
import torch
from laion_clap import random_clap, write_original
from metrics_sounds import tones
from tiny_bundle import CAPTIONS
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

from musiccm.embedders import clap, load_embedder
from musiccm.embedders.clap import ClapEmbedder, conditioner_from_laion
from musiccm.errors import MusiccmError
from musiccm.models.bundle.tokenizer import train_tokenizer
from musiccm.models.conditioners.clap import ClapFrontEnd
from musiccm.models.conditioners.clap_names import clap_config_from_state, clap_state_from_original

RATE = 48000


@pytest.fixture(scope="module")
def model():
    return random_clap()


@pytest.fixture(scope="module")
def laion_file(model, tmp_path_factory):
    """As LAION's training saves it."""
    path = tmp_path_factory.mktemp("laion") / "random.pt"
    torch.save({"epoch": 15, "name": "random", "state_dict": write_original(model)}, path)
    return path


@pytest.fixture(scope="module")
def embedder(laion_file):
    return load_embedder("clap", laion_file)


def extracted(model, waveform, fusion=False):
    """What transformers' own extractor and model say of one window, which it does not crop."""
    extractor = ClapFeatureExtractor(frequency_min=50, truncation="fusion" if fusion else "rand_trunc")
    inputs = extractor(list(waveform.numpy()), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        out = model.get_audio_features(inputs["input_features"], is_longer=inputs["is_longer"]).pooler_output
    return torch.nn.functional.normalize(out, dim=-1)


def test_equals_transformers_own_path(model, embedder):
    waveform = tones(10.0, RATE)
    found = embedder(waveform, RATE)
    torch.testing.assert_close(found.embedding_RE, extracted(model, waveform), atol=1e-4, rtol=0)
    assert found.counts == [1, 1] and found.logits_BG is None and embedder.name == "clap"
    assert embedder.provenance["published"] is False


def test_fusion_checkpoints(tmp_path):
    model = random_clap(fusion=True)
    torch.save({"state_dict": write_original(model)}, tmp_path / "fusion.pt")
    waveform = tones(10.0, RATE, clips=1)
    found = load_embedder("clap", tmp_path / "fusion.pt")(waveform, RATE)
    theirs = extracted(model, waveform, fusion=True)
    # The extractor marks one clip of an all-short batch as longer at random: only the global branch can be compared.
    assert found.embedding_RE.shape == theirs.shape and torch.isfinite(found.embedding_RE).all()


def test_windows_are_the_same_every_time_and_lie_end_to_end(embedder, monkeypatch):
    window = 10 * RATE
    waveform = tones(24.0, RATE, clips=1)
    found = embedder(waveform, RATE).embedding_RE
    assert torch.equal(found, embedder(waveform, RATE).embedding_RE)
    parts = [waveform[:, start : start + window] for start in (0, window, 14 * RATE)]
    mean = torch.stack([embedder(part, RATE).embedding_RE for part in parts]).mean(0)
    torch.testing.assert_close(found, torch.nn.functional.normalize(mean, dim=-1), atol=1e-5, rtol=0)
    monkeypatch.setattr(clap, "WINDOWS_PER_PASS", 1)
    torch.testing.assert_close(embedder(waveform, RATE).embedding_RE, found, atol=1e-5, rtol=0)


def test_a_clip_of_10_24_s_is_its_first_10_s(embedder):
    waveform = tones(10.24, RATE)
    torch.testing.assert_close(embedder(waveform, RATE).embedding_RE,
                               embedder(waveform[:, : 10 * RATE], RATE).embedding_RE, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("share", "count"), [(0.4, 1), (1.0, 1), (1.05, 1), (1.06, 2), (2.0, 2), (2.05, 2), (2.06, 3)])
def test_number_of_windows(share, count):
    from musiccm.embedders.frozen import windows_end_to_end

    clip = torch.arange(round(1000 * share))[None].float()
    windows = windows_end_to_end(clip, 1000)
    assert windows.shape[:2] == (1, count)
    assert windows[0, 0, 0] == 0
    if count > 1:
        assert windows[0, -1, -1] == min(clip[0, -1], count * 1000 - 1) and windows.shape[2] == 1000
        starts = windows[0, :, 0]
        assert (starts.diff() <= 1000).all(), "no sample between two windows goes unheard"


def test_text_and_audio_share_a_space(model):
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300)
    embedder = ClapEmbedder(conditioner_from_laion({"state_dict": write_original(model)}, tokenizer))
    text = embedder.text(["organ", "piano"])
    assert text.shape == (2, embedder.width) and text.norm(dim=1).allclose(torch.ones(2))
    with torch.no_grad():
        tokens = tokenizer(["organ", "piano"], padding=True, return_tensors="pt")
        own = model.get_text_features(tokens.input_ids, tokens.attention_mask).pooler_output
    torch.testing.assert_close(text, torch.nn.functional.normalize(own, dim=-1), atol=1e-5, rtol=0)


def test_without_robertas_tokenizer_audio_is_heard_and_text_says_what_is_missing(embedder, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICCM_WEIGHTS", str(tmp_path))
    with pytest.raises(MusiccmError, match=r"RoBERTa's tokenizer.*its files .* into \$MUSICCM_WEIGHTS/roberta-base"):
        embedder.text(["organ"])
    train_tokenizer(CAPTIONS, vocab_size=300).save_pretrained(tmp_path / "roberta-base")
    assert embedder.text(["organ"]).shape == (1, embedder.width)


def test_a_folder_in_transformers_layout(model, embedder, tmp_path):
    model.save_pretrained(tmp_path)
    train_tokenizer(CAPTIONS, vocab_size=300).save_pretrained(tmp_path)
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(tmp_path)
    other = load_embedder("clap", tmp_path)
    waveform = tones(3.0, RATE, clips=1)
    one, two = (found(waveform, RATE).embedding_RE for found in (other, embedder))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    assert other.provenance == {"folder": tmp_path.name, "published": None}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MusiccmError, match="it could not be read"):
        load_embedder("clap", tmp_path)


def test_a_hub_out_of_reach_is_said(monkeypatch):
    with pytest.raises(MusiccmError, match="CLAP 'nobody/nothing': .*could not be read"):
        load_embedder("clap", "nobody/nothing")
    with pytest.raises(MusiccmError, match="'nobody/nothing/clap.pt': no such file here, and the hub could"):
        load_embedder("clap", "nobody/nothing/clap.pt")


def test_other_checkpoints_are_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(MusiccmError, match=r"x\.pt: CLAP checkpoint: expected audio_branch"):
        load_embedder("clap", tmp_path / "x.pt")


def test_fingerprints_follow_the_weights(model, embedder, laion_file):
    assert load_embedder("clap", laion_file).fingerprint == embedder.fingerprint
    state = write_original(model)
    state["module.audio_projection.2.bias"] += 0.1
    assert ClapEmbedder(conditioner_from_laion(state)).fingerprint != embedder.fingerprint
    other = conditioner_from_laion(write_original(model))
    other.front_end.filters = other.front_end.filters * (1 + 1e-6)  # another machine's last bits
    assert ClapEmbedder(other).fingerprint == embedder.fingerprint
    other.front_end.filters = ClapFrontEnd(ClapFeatureExtractor(frequency_min=50, truncation="fusion")).filters
    assert ClapEmbedder(other).fingerprint != embedder.fingerprint
    assert math.isclose(embedder.min_duration_s, 1024 / 48000)


def music_clap() -> ClapModel:
    """A network of LAION's music checkpoint's own sizes: HTSAT-base, RoBERTa-base, 512 numbers."""
    return ClapModel(ClapConfig(
        projection_dim=512,
        text_config={"vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                     "intermediate_size": 3072, "max_position_embeddings": 514, "layer_norm_eps": 1e-5},
        audio_config={"hidden_size": 1024, "patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2],
                      "num_attention_heads": [4, 8, 16, 32], "num_mel_bins": 64, "num_hidden_layers": 4,
                      "enable_fusion": False},
    ))


def test_the_music_checkpoints_names_and_shapes_give_its_configuration():
    """Shapes alone, without the 190 million numbers."""
    with torch.device("meta"):
        model = music_clap()
        state, _ = clap_state_from_original(write_original(model))
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in model.state_dict().items() if not name.endswith(
            ("position_ids", "token_type_ids", "relative_position_index"))}
    stated, theirs = clap_config_from_state(state), model.config.to_dict()
    for part in ("text_config", "audio_config"):
        assert all(theirs[part][key] == value for key, value in stated[part].items() if key != "fusion_type")
    config = ClapConfig(**stated)
    shape = clap.shape_of_clap(SimpleNamespace(clap=SimpleNamespace(config=config), width=config.projection_dim))
    assert shape == clap.MUSIC_CLAP


@pytest.mark.slow
def test_a_file_of_the_music_checkpoints_size(tmp_path):
    torch.manual_seed(0)
    torch.save({"epoch": 15, "state_dict": write_original(music_clap())}, tmp_path / "random.pt")
    embedder = load_embedder("clap_music", tmp_path / "random.pt")
    rows = embedder(tones(10.0, RATE, clips=1), RATE).embedding_RE
    assert embedder.name == "clap_music" and embedder.width == 512 and rows.shape == (1, 512)
    assert load_embedder("clap_music_1s", tmp_path / "random.pt")(tones(3.0, RATE), RATE).counts == [3, 3]


@pytest.mark.parametrize("name", ["clap_music", "clap_music_1s"])
def test_other_claps_do_not_bear_the_music_checkpoints_name(laion_file, name):
    with pytest.raises(MusiccmError, match=rf"random.pt: {name}: expected LAION's music checkpoint .HTSAT-base: "
                                           r"channels 128.* found a CLAP of another size .channels 16, depths 2 1,"):
        load_embedder(name, laion_file)


def test_a_row_each_second_as_fadtk_has_them(model, laion_file, monkeypatch):
    monkeypatch.setattr(clap, "MUSIC_CLAP", "channels 16, depths 2 1, embeddings 24")
    embedder = load_embedder("clap_music_1s", laion_file)
    waveform = tones(10.5, RATE, clips=1)
    found = embedder(waveform, RATE)
    assert embedder.name == "clap_music_1s" and found.counts == [11]
    # by hand, chunk for chunk: 10 s from each whole second on, zeros behind the end, samples of 16 bits
    whole = torch.from_numpy((waveform.numpy() * 32767).astype("int16").astype("float32") / 32767)
    expected = []
    for clip in whole:
        for second in range(11):
            chunk = torch.zeros(10 * RATE)
            part = clip[second * RATE : (second + 10) * RATE]
            chunk[: len(part)] = part
            expected.append(extracted(model, chunk[None]))
    torch.testing.assert_close(found.embedding_RE, torch.cat(expected), atol=1e-4, rtol=0)
    plain = load_embedder("clap_music", laion_file)
    assert plain.name == "clap_music" and plain.fingerprint != embedder.fingerprint
    assert plain(waveform[:, : 10 * RATE], RATE).counts == [1]
