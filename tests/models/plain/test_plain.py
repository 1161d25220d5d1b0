"""Parts read without diffusers and transformers, against these libraries' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import ClapModel

from musiccm import MusiccmError, Pipeline
from musiccm.models.bundle import Bundle
from musiccm.models.plain import clap_text, read_plainly, unet
from musiccm.models.plain.clap_text import PlainClapText
from musiccm.models.plain.tokenizer import PlainTokenizer
from musiccm.models.plain.unet import PlainUNet

CAPTIONS = ["slow organ chords", "a loud, fast drum solo at 120 bpm; then nothing", "", "naïve café - 音楽 🎹",
            "a</s><mask>", " spaces  before", "one after another " * 60]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Bundle.from_pretrained("musiccm-tiny").path


def both(name: str) -> tuple[Bundle, Bundle]:
    return Bundle.from_pretrained(name, plain=True), Bundle.from_pretrained(name)


@pytest.mark.parametrize("name", ["musiccm-tiny", "musiccm-tiny-student"])
def test_packaged_u_nets_give_the_same_bits(name: str) -> None:
    ours, theirs = (bundle.unet for bundle in both(name))
    assert type(ours) is PlainUNet and type(theirs) is UNet2DConditionModel
    for batch, frames in ((1, 32), (3, 21)):  # 21 is odd: it is not doubled from what it was halved to
        z, cond, t = torch.randn(batch, 32, frames, 4), torch.randn(batch, 128), torch.rand(batch) * 999
        with torch.no_grad():
            assert torch.equal(ours(z, t, None, cond)[0], theirs(z, t, None, class_labels=cond).sample)
            assert torch.equal(ours(z, t[:1], None, cond)[0], theirs(z, t[:1], None, class_labels=cond).sample)


def test_a_u_net_of_more_levels_and_layers_gives_the_same_bits(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "unet" / "config.json").read_text()) | {
        "block_out_channels": [16, 32, 48, 80], "attention_head_dim": [2, 2, 3, 5], "layers_per_block": 2,
        "cross_attention_dim": [16, 32, 48, 80], "in_channels": 8, "out_channels": 8,
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
        "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"]}
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path)
    # read again: sums depend on where in memory weights begin, as a file has them or as they were drawn
    theirs: Any = UNet2DConditionModel.from_pretrained(tmp_path).eval()
    ours = read_plainly(tmp_path, "unet", json.loads((tmp_path / "config.json").read_text()), torch.float32)
    z, cond, t = torch.randn(2, 8, 20, 16), torch.randn(2, 128), torch.tensor([999.0, 19.0])
    with torch.no_grad():
        assert torch.equal(ours(z, t, None, cond)[0], theirs(z, t, None, class_labels=cond).sample)


def test_the_text_tower_gives_the_same_bits() -> None:
    ours, theirs = (bundle.conditioner() for bundle in both("musiccm-tiny-student"))
    assert type(ours.clap) is PlainClapText and type(theirs.clap) is ClapModel and not ours.has_audio
    assert (ours.width, ours.max_tokens) == (theirs.width, theirs.max_tokens)
    with torch.no_grad():
        assert torch.equal(ours.prompts(CAPTIONS), theirs.prompts(CAPTIONS))
        assert torch.equal(ours.text(CAPTIONS), theirs.text(CAPTIONS)), "padded"


def test_the_tokenizer_cuts_texts_alike() -> None:
    ours, theirs = (bundle.tokenizer for bundle in both("musiccm-tiny-student"))
    assert type(ours) is PlainTokenizer
    assert len(ours) == len(theirs)
    assert (ours.model_max_length, ours.pad_token_id) == (theirs.model_max_length, theirs.pad_token_id)
    for length in (80, 7):
        how = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        found, wanted = ours(CAPTIONS, **how), theirs(CAPTIONS, **how)
        assert torch.equal(found.input_ids, wanted.input_ids)
        assert torch.equal(found.attention_mask, wanted.attention_mask)
    for caption in CAPTIONS:  # whole, whatever was cut before
        assert ours(caption, verbose=False).input_ids == theirs(caption, verbose=False).input_ids


@pytest.mark.parametrize("name", ["musiccm-tiny", "musiccm-tiny-student"])
def test_clips_and_longer_pieces_have_the_same_samples(name: str) -> None:
    ours, theirs = (Pipeline.from_pretrained(name, plain=plain).accelerate() for plain in (True, False))
    asked = {"steps": 2, "seed": 3, "level": "none"}
    assert all(map(torch.equal, ours(["slow organ chords", "a flute"], **asked),
                   theirs(["slow organ chords", "a flute"], **asked)))
    assert torch.equal(ours.compose("a flute", 8, **asked), theirs.compose("a flute", 8, **asked))


@pytest.mark.parametrize(("part", "key", "value"), [
    ("unet", "use_linear_projection", True), ("unet", "time_cond_proj_dim", 8), ("unet", "class_embed_type", None),
    ("unet", "attention_head_dim", [5, 4]), ("unet", "cross_attention_dim", [96, 64]), ("unet", "a_new_key", 1),
    ("unet", "up_block_types", ["UpBlock2D", "UpBlock2D"]),
    ("text_encoder", "model_type", "clap_text_model"), ("text_encoder", "projection_dim", 64),
])
def test_what_is_computed_otherwise_is_left_to_the_libraries(folder: Path, part: str, key: str, value: Any) -> None:
    config = json.loads((folder / part / "config.json").read_text())
    computes = {"unet": unet.computes, "text_encoder": clap_text.computes}[part]
    assert computes(config)
    assert not computes(config | {key: value})
    assert read_plainly(folder / part, part, config | {key: value}, torch.float32) is None


def test_models_of_other_kinds_are_read_by_their_libraries() -> None:
    bundle = Bundle.from_pretrained("musiccm-tiny-tango", plain=True)
    assert isinstance(bundle.unet, UNet2DConditionModel)
    assert type(bundle.text_encoder).__module__.startswith("transformers.")


def test_a_tokenizer_that_another_class_reads_is_left_to_it(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder / "tokenizer", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert read_plainly(tmp_path, "tokenizer", config, torch.float32) is not None
    for change in ({"tokenizer_class": "T5Tokenizer"}, {"add_prefix_space": True}, {"truncation_side": "left"},
                   {"extra_special_tokens": {"a": "b"}}, {"cls_token": "<pad>"}, {"split_special_tokens": True},
                   {"model_max_length": True}, {"model_max_length": 0}):
        assert read_plainly(tmp_path, "tokenizer", config | change, torch.float32) is None, change
    path = tmp_path / "tokenizer.json"
    good = json.loads(path.read_text())
    for part, key, value in (("model", "dropout", 0.5), ("model", "end_of_word_suffix", "</w>"),
                             ("model", "merges", ["a"]), ("model", "continuing_subword_prefix", "##"),
                             ("post_processor", "cls", ["<pad>", 1])):
        path.write_text(json.dumps(good | {part: good[part] | {key: value}}))
        assert read_plainly(tmp_path, "tokenizer", config, torch.float32) is None, key
    for change in ({"added_tokens": []}, {"version": "9"}, {"model": None}):
        path.write_text(json.dumps(good | change))
        assert read_plainly(tmp_path, "tokenizer", config, torch.float32) is None, change
    path.write_text(json.dumps(good))
    assert read_plainly(tmp_path, "tokenizer", config, torch.float32) is not None
    (tmp_path / "added_tokens.json").write_text("{}")
    assert read_plainly(tmp_path, "tokenizer", config, torch.float32) is None


@pytest.mark.parametrize(("part", "key", "value"), [
    ("unet", "norm_num_groups", 7), ("unet", "attention_head_dim", [3, 0]), ("unet", "block_out_channels", None),
    ("text_encoder", "projection_hidden_act", "gelu"), ("text_encoder", "text_config", {"hidden_size": "128"}),
])
def test_what_cannot_be_is_the_librarys_to_refuse(folder: Path, part: str, key: str, value: Any) -> None:
    config = json.loads((folder / part / "config.json").read_text())
    if isinstance(value, dict):
        value = config[key] | value
    assert read_plainly(folder / part, part, config | {key: value}, torch.float32) is None


def test_weights_in_float32_give_the_same_bits(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("evaluation_features", "training_index"))
    for path in (tmp_path / "bundle/unet/diffusion_pytorch_model.safetensors",
                 tmp_path / "bundle/text_encoder/model.safetensors"):
        wide = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
        save_file(wide, path, metadata={"format": "pt"})
    ours, theirs = (Pipeline.from_pretrained(tmp_path / "bundle", plain=plain) for plain in (True, False))
    assert type(ours.denoiser.unet) is PlainUNet and type(theirs.denoiser.unet) is UNet2DConditionModel
    assert torch.equal(ours.conditioner.prompts(CAPTIONS), theirs.conditioner.prompts(CAPTIONS))
    assert torch.equal(ours(["slow organ chords"], 1, [3]), theirs(["slow organ chords"], 1, [3]))


def test_weights_that_do_not_fit_are_refused_as_ever(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("evaluation_features", "training_index"))
    path = tmp_path / "bundle" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path)
    with pytest.raises(MusiccmError, match=r"weights missing: conv_in\.bias"):
        _ = Bundle.from_pretrained(tmp_path / "bundle", plain=True).unet
    path.write_bytes(b"{}")
    with pytest.raises(MusiccmError, match="cannot be read as UNet2DConditionModel"):
        _ = Bundle.from_pretrained(tmp_path / "bundle", plain=True).unet


def test_a_codec_without_a_vae_says_that_it_encodes_nothing() -> None:
    codec: Any = Bundle.from_pretrained("musiccm-tiny-student", plain=True).codec()
    with pytest.raises(MusiccmError, match="this codec has no VAE"):
        codec.encode(torch.zeros(1, 64, 64))
    with pytest.raises(MusiccmError, match="this codec has no VAE"):
        codec.decode_mel(torch.zeros(1, 32, 4, 4))
