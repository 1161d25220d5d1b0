"""A small random CLAP, and the same under LAION's names, written by an inverse of the package's mapping."""

from __future__ import annotations

import torch
from transformers import ClapConfig, ClapModel


def random_clap(fusion: bool = False) -> ClapModel:
    torch.manual_seed(0)
    model = ClapModel(ClapConfig(
        projection_dim=24,
        text_config={"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
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
