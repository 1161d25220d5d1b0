"""LAION's names: a random ClapModel written under them, by an inverse written on its own, comes back whole."""

import pytest
import torch
from transformers import ClapConfig, ClapModel

from musiccm.errors import MusiccmError
from musiccm.models.clap_names import COMPUTED, clap_config_from_state, clap_state_from_original, load_clap_state


def random_clap(fusion: bool = False) -> ClapModel:
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(
        projection_dim=24,
        text_config={"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
                     "intermediate_size": 96, "max_position_embeddings": 82, "layer_norm_eps": 1e-5},
        audio_config={"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [2, 1],
                      "num_attention_heads": [2, 4], "num_mel_bins": 64, "num_hidden_layers": 2,
                      "enable_fusion": fusion, "fusion_type": "aff_2d" if fusion else None},
    ))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) * 0.2 - (0.0 if name.endswith("running_var") else 0.1))
    return model.eval()


def write_original(model: ClapModel, prefix: str = "module.") -> dict[str, torch.Tensor]:
    """The state as LAION's training saves it, walked module by module as LAION's classes nest."""
    out: dict[str, torch.Tensor] = {}

    def put(name, module):
        for key, value in module.state_dict().items():
            if key not in ("position_ids", "token_type_ids"):
                out[f"{name}.{key}"] = value

    text, audio = model.text_model, model.audio_model.audio_encoder
    out["logit_scale_a"], out["logit_scale_t"] = model.logit_scale_a.data, model.logit_scale_t.data
    put("text_branch.embeddings", text.embeddings)
    out["text_branch.embeddings.position_ids"] = torch.arange(82)[None]
    for i, layer in enumerate(text.encoder.layer):
        put(f"text_branch.encoder.layer.{i}", layer)
    put("text_branch.pooler", text.pooler)
    for tower, projection in (("text", model.text_projection), ("audio", model.audio_projection)):
        put(f"{tower}_projection.0", projection.linear1)
        put(f"{tower}_projection.2", projection.linear2)
        for layer in (0, 3):
            put(f"{tower}_transform.sequential.{layer}", torch.nn.Linear(24, 24))
    out["audio_branch.spectrogram_extractor.stft.conv_real.weight"] = torch.rand(513, 1, 1024)
    out["audio_branch.spectrogram_extractor.stft.conv_imag.weight"] = torch.rand(513, 1, 1024)
    out["audio_branch.logmel_extractor.melW"] = torch.rand(513, 64)
    put("audio_branch.bn0", audio.batch_norm)
    put("audio_branch.patch_embed.proj", audio.patch_embed.proj)
    put("audio_branch.patch_embed.norm", audio.patch_embed.norm)
    if model.config.audio_config.enable_fusion:
        put("audio_branch.patch_embed.mel_conv2d", audio.patch_embed.mel_conv2d)
        put("audio_branch.patch_embed.fusion_model", audio.patch_embed.fusion_model)
    for i, stage in enumerate(audio.layers):
        for j, block in enumerate(stage.blocks):
            name = f"audio_branch.layers.{i}.blocks.{j}"
            attention = block.attention.self
            if j % 2:
                out[f"{name}.attn_mask"] = torch.rand(4, 64, 64)
            put(f"{name}.norm1", block.layernorm_before)
            out[f"{name}.attn.relative_position_bias_table"] = attention.relative_position_bias_table.data
            out[f"{name}.attn.relative_position_index"] = attention.relative_position_index
            three = (attention.query, attention.key, attention.value)
            out[f"{name}.attn.qkv.weight"] = torch.cat([part.weight.data for part in three])
            out[f"{name}.attn.qkv.bias"] = torch.cat([part.bias.data for part in three])
            put(f"{name}.attn.proj", block.attention.output.dense)
            put(f"{name}.norm2", block.layernorm_after)
            put(f"{name}.mlp.fc1", block.intermediate.dense)
            put(f"{name}.mlp.fc2", block.output.dense)
        if stage.downsample is not None:
            put(f"audio_branch.layers.{i}.downsample.reduction", stage.downsample.reduction)
            put(f"audio_branch.layers.{i}.downsample.norm", stage.downsample.norm)
    put("audio_branch.norm", audio.norm)
    put("audio_branch.tscam_conv", torch.nn.Conv2d(32, 527, (2, 3)))
    put("audio_branch.head", torch.nn.Linear(527, 527))
    return {prefix + key: value.clone() for key, value in out.items()}


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
