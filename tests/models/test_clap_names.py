"""LAION's names: a random ClapModel written under them comes back whole."""

import json
import re

import pytest
import torch
from laion_clap import random_clap, write_original
from tiny_bundle import build_random_bundle
from transformers import ClapConfig, ClapModel

from musiccm.embedders.clap import conditioner_from_laion
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.conditioners.clap_names import (
    COMPUTED,
    clap_config_from_state,
    clap_state_from_original,
    load_clap_state,
    naming_clap,
)
from musiccm.models.convert.clap import clap_from_original


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "cond_stage_model.model."])
def test_round_trip(fusion, prefix):
    model = random_clap(fusion)
    original = write_original(model, prefix)
    state, dropped = clap_state_from_original(original)
    expected = {key: value for key, value in model.state_dict().items() if not COMPUTED.search(key)}
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    kinds = {name.removeprefix(prefix).split(".")[0] for name in dropped}
    assert kinds == {"audio_branch", "text_branch", "audio_transform", "text_transform"}
    assert len(dropped) + len(state) == len(original) + 2 * 2 * 3  # three blocks' weight and bias, split in three


@pytest.mark.parametrize("fusion", [False, True])
def test_a_model_built_from_the_names_alone_computes_the_same(fusion):
    model = random_clap(fusion)
    state, _ = clap_state_from_original(write_original(model))
    config = clap_config_from_state(state)
    rebuilt = ClapModel(ClapConfig(**config))
    load_clap_state(rebuilt, state)
    rebuilt.eval()
    tokens = torch.randint(5, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    mel = torch.randn(2, 4 if fusion else 1, 1001, 64, generator=torch.Generator().manual_seed(2))
    longer = torch.tensor([[True], [False]]) if fusion else None
    with torch.no_grad():
        for one, other in (
            (model.get_text_features(tokens), rebuilt.get_text_features(tokens)),
            (model.get_audio_features(mel, is_longer=longer), rebuilt.get_audio_features(mel, is_longer=longer)),
        ):
            assert torch.isfinite(one.pooler_output).all()
            assert torch.equal(one.pooler_output, other.pooler_output)


def test_published_shapes_give_the_published_configuration():
    with torch.device("meta"):
        model = ClapModel(ClapConfig(text_config={"layer_norm_eps": 1e-5}))
    state = {key: value for key, value in model.state_dict().items() if not COMPUTED.search(key)}
    rebuilt = ClapConfig(**clap_config_from_state(state))
    for part in ("text_config", "audio_config"):
        ours, theirs = getattr(rebuilt, part).to_dict(), getattr(model.config, part).to_dict()
        different = {key for key in theirs if ours.get(key) != theirs[key]}
        assert different <= {"patch_stride", "depths", "num_attention_heads"}  # lists for tuples
        assert all(list(ours[key]) == list(theirs[key]) for key in different)


def test_what_is_no_clap_is_refused():
    with pytest.raises(MusiccmError, match=r"HTSAT and RoBERTa towers\), found conv\.weight"):
        clap_state_from_original({"conv.weight": torch.zeros(1)})
    original = write_original(random_clap(), "")
    with pytest.raises(MusiccmError, match=r"1 unknown weights, first audio_branch\.mel_conv1d"):
        clap_state_from_original({**original, "audio_branch.mel_conv1d.0.weight": torch.zeros(1)})
    state, _ = clap_state_from_original(original)
    state.pop("text_model.pooler.dense.bias")
    with pytest.raises(MusiccmError, match=r"text_model\.pooler\.dense\.bias is missing"):
        load_clap_state(random_clap(), state)


@pytest.mark.parametrize("name", ["audio_branch.patch_embed.proj.weight",
                                  "text_branch.embeddings.word_embeddings.weight",
                                  "audio_branch.layers.0.blocks.0.attn.relative_position_bias_table"])
@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(3), 7, None])
def test_odd_weights_name_their_file(name, value):
    """Of a shape that no CLAP has, no tensor, or missing (None)."""
    odd = {**write_original(random_clap(), ""), name: value}
    if value is None:
        del odd[name]
    with pytest.raises(MusiccmError, match=r"^/weights/clap\.pt: CLAP checkpoint: "):
        conditioner_from_laion({"state_dict": odd}, where="/weights/clap.pt")
    with pytest.raises(MusiccmError, match=r"^/weights/clap\.pt: "), naming_clap("/weights/clap.pt"):
        clap_from_original(odd)


def test_a_bundle_whose_clap_parts_differ_is_named(tmp_path):
    folder = build_random_bundle(tmp_path / "bundle", frames=4, evaluators=False)
    config = folder / "feature_extractor" / "preprocessor_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "feature_size": 80}))
    with pytest.raises(MusiccmError, match=re.escape(f"{folder}/feature_extractor/preprocessor_config.json")):
        Bundle.from_pretrained(folder).conditioner()
