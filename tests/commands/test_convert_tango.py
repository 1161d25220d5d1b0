"""`musiccm convert --tango`: five published layouts in, a bundle out; nothing is lost without a word."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from original_tango import (
    SCALE,
    UNET,
    OriginalGuidedUNet,
    TangoParts,
    consistency_model,
    make_parts,
    make_unet,
    stft_state,
    under,
    with_old_names,
    write_easy,
    write_hub,
    write_run,
)
from transformers import T5Config, T5EncoderModel

from musiccm import cli
from musiccm.diffusion import told_scale
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.convert.cross_unet import cross_unet_from_original, make_cross_unet
from musiccm.models.convert.t5 import make_t5, t5_from_original
from musiccm.models.convert.tta_layouts import read_layout
from musiccm.pipeline import Pipeline

SUMMARY = {"stage": 2, "teacher_guidance_scale": 5, "scheduler_name": "stabilityai/stable-diffusion-2-1"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> TangoParts:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def hub(parts: TangoParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(parts, tmp_path_factory.mktemp("hub") / "tango")


@pytest.fixture(scope="module")
def bundle(parts: TangoParts, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "bundle"
    convert(parts, hub, out)
    return out


def convert(parts: TangoParts, folder: Path, out: Path, *more: str) -> Path:
    assert cli.main(["convert", "--tango", str(folder), *parts.arguments, *more, "--out", str(out)]) == 0
    return out


def refused(parts: TangoParts, folder: Path, out: Path, capsys, *more: str) -> str:
    capsys.readouterr()
    assert cli.main(["convert", "--tango", str(folder), *parts.arguments, *more, "--out", str(out)]) == 2
    assert not out.exists()
    return capsys.readouterr().err


def record_of(bundle: Path) -> dict:
    return json.loads((bundle / "conversion.json").read_text())


def assert_unet(bundle: Path, expected: torch.nn.Module) -> None:
    found, expected = Bundle.from_pretrained(bundle).unet.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@torch.no_grad()
def test_the_bundle_computes_what_the_networks_in_the_files_do(parts, bundle):
    made = Bundle.from_pretrained(bundle)
    assert made.latent_shape() == (8, 16, 16) and made.prediction_type == "v_prediction" and made.gives_tokens
    z = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    condition = made.conditioner().text(["a calm piano melody", "slow"])
    text = made.tokenizer(["a calm piano melody"], return_tensors="pt")
    tokens = parts.t5(**text).last_hidden_state[0]
    assert torch.allclose(condition.tokens_BLD[0, : len(tokens)], tokens, atol=1e-5)
    arguments = {"encoder_hidden_states": condition.tokens_BLD, "encoder_attention_mask": condition.mask_BL}
    ours, theirs = (unet(z, torch.tensor(700), **arguments).sample for unet in (made.unet, parts.unet))
    assert torch.equal(ours, theirs) and made.unet.config.attention_head_dim == [5, 10]
    codec = made.codec()
    mel = codec.decode_mel(z)
    torch.testing.assert_close(mel, parts.vae.decode(z / SCALE).squeeze(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.vocode(mel), parts.vocoder(mel)[:, : 64 * 160], rtol=1e-4, atol=1e-4)
    stated = [made.scheduler_config[key] for key in ("beta_start", "beta_end", "beta_schedule")]
    assert stated == [0.00085, 0.012, "scaled_linear"]
    assert Pipeline.from_pretrained(bundle)(["slow organ chords"], steps=2).shape == (1, 64 * 160)


def test_every_name_is_kept_or_listed_and_the_licence_is_said(parts, hub, bundle, tmp_path, capsys):
    record = record_of(bundle)
    assert record["layout"] == "TANGO on the hub" and "non-commercial" in record["licence"]
    assert record["parts"]["unet"]["dropped"] == [] and record["parts"]["vae"]["scale_factor"] == SCALE
    assert record["files"]["pytorch_model_stft.bin"]["ignored"] == sorted(stft_state())
    strange = tmp_path / "strange"
    shutil.copytree(hub, strange)
    torch.save(parts.main | {"step": 7, "proj.weight": torch.ones(1)}, strange / "pytorch_model_main.bin")
    record = record_of(convert(parts, strange, tmp_path / "out"))
    said = capsys.readouterr().out
    assert record["parts"]["unet"]["dropped"] == ["proj.weight"]
    assert record["files"]["pytorch_model_main.bin"]["ignored"] == ["step"]
    assert "not used: proj (1)" in said and "nothing of them may be shipped" in said
    assert "no weights, left out of pytorch_model_main.bin: step" in said


def test_training_folders_of_tango_and_safetensors(parts, tmp_path):
    from safetensors.torch import save_file

    run = write_run(parts, tmp_path / "run" / "best", parts.main)
    out = convert(parts, run, tmp_path / "out")
    assert_unet(out, parts.unet)
    assert record_of(out)["layout"] == "a training run of TANGO"
    # a run's files do not hold the scale: that of AudioLDM-S-full is taken, and said
    assert Bundle.from_pretrained(out).vae.config.scaling_factor == 0.9227914214134216
    assert any("0.922791" in line for line in record_of(out)["assumed"])
    newer = tmp_path / "newer" / "epoch_3"
    newer.mkdir(parents=True)
    main = {name: value.clone() for name, value in parts.main.items() if "embed_tokens" not in name}  # as it is tied
    for name, state in (("model", parts.autoencoder), ("model_1", stft_state()), ("model_2", main)):
        save_file(state, newer / f"{name}.safetensors")
    out = convert(parts, newer, tmp_path / "newer-out", "--scale-factor", "0.5")
    assert_unet(out, parts.unet)
    assert Bundle.from_pretrained(out).vae.config.scaling_factor == 0.5


def test_each_network_of_a_consistency_run(parts, tmp_path):
    model = consistency_model(parts)
    run = write_run(parts, tmp_path / "run" / "best", model, SUMMARY)
    for weights, own, seed in (("ema", "student_ema_unet", 13), ("target", "student_target_unet", 12),
                               ("raw", "student_unet", 11), ("teacher", "teacher_unet", 10)):
        found, expected = read_layout(run, weights), make_unet(seed).state_dict()
        assert found.unet.keys() == expected.keys()
        assert all(torch.equal(found.unet[name], expected[name]) for name in expected)
        used = (f"{own}.", "text_encoder.", "vae.")
        assert set(found.dropped) == {name for name in model if not name.startswith(used)}
        assert (found.clean, found.guidance) == ((False, None) if weights == "teacher" else (True, 5))


def test_a_consistency_student_is_called_once_and_gives_the_clean_latent(parts, tmp_path, capsys):
    model = consistency_model(parts)
    run = write_run(parts, tmp_path / "run" / "best", model, SUMMARY)
    out = convert(parts, run, tmp_path / "out", "--weights", "ema")
    assert_unet(out, make_unet(13))
    made, record = Bundle.from_pretrained(out), record_of(out)
    assert record["parts"]["unet"]["weights"] == "ema" and made.prediction_type == "sample"
    assert made.settings["distillation"]["guidance_scale"] == 5
    # its training grid, as numpy has it, without clean
    assert made.settings["distillation"]["timesteps"] == pytest.approx(np.linspace(0, 999, 18)[1:].tolist())
    assert any("linspace(0, 999, 18)" in line for line in record["assumed"])
    pipeline = Pipeline.from_pretrained(out)
    assert pipeline.is_student and pipeline(["slow organ chords"]).shape == (1, 64 * 160)
    assert pipeline.stepper().timesteps == [999], "one call unless another number is asked for"
    assert set(pipeline.stepper(4).timesteps) <= set(made.settings["distillation"]["timesteps"])
    z, t = torch.randn(1, 8, 16, 16), torch.tensor([999])
    condition = pipeline.conditioner.text(["slow"])
    with torch.no_grad():
        direct = make_unet(13)(z, t, condition.tokens_BLD, encoder_attention_mask=condition.mask_BL).sample
        torch.testing.assert_close(pipeline.consistency(z, t, condition), direct, rtol=1e-5, atol=1e-6)
    teacher = Bundle.from_pretrained(convert(parts, run, tmp_path / "teacher", "--weights", "teacher"))
    assert teacher.prediction_type == "v_prediction" and "distillation" not in teacher.settings

    more = SUMMARY | {"use_edm": True, "use_karras": False, "num_diffusion_steps": 10}
    stated = convert(parts, write_run(parts, tmp_path / "ten" / "best", model, more), tmp_path / "ten-out", "--weights",
                     "ema")
    assert Bundle.from_pretrained(stated).settings["distillation"]["timesteps"] == pytest.approx(
        [111.0 * place for place in range(1, 10)])
    assert not any("linspace(0" in line for line in record_of(stated)["assumed"])
    for options, said in (({"use_edm": False}, "use_edm is False"), ({"use_karras": True}, "use_karras True"),
                          ({"num_diffusion_steps": 1}, "num_diffusion_steps is 1; expected")):
        (tmp_path / "ten/summary.jsonl").write_text(json.dumps(more | options))
        assert said in refused(parts, tmp_path / "ten/best", tmp_path / "none", capsys, "--weights", "ema")
    (tmp_path / "ten/summary.jsonl").write_text(json.dumps(more | {"use_edm": False}))
    convert(parts, tmp_path / "ten/best", tmp_path / "its-teacher", "--weights", "teacher")


def test_old_names_and_a_run_with_one_average(parts, tmp_path, capsys):
    model = consistency_model(parts)
    run = write_run(parts, tmp_path / "old" / "best", with_old_names(model))
    out = convert(parts, run, tmp_path / "out", "--weights", "ema")
    assert_unet(out, make_unet(13))
    record = record_of(out)
    assert record["layout"] == "a training run of ConsistencyTTA, old names"
    left = {"diffusion_unet", "consistency_unet", "consistency_ema_unet", "loss"}
    assert {name.split(".")[0] for name in record["parts"]["unet"]["dropped"]} == left
    assert any("summary.jsonl is not there" in line for line in record["assumed"])
    run = write_run(parts, tmp_path / "one" / "best", with_old_names(model, slow=False))
    out = convert(parts, run, tmp_path / "one-out", "--weights", "ema")
    assert_unet(out, make_unet(12))
    assert any("only average" in line for line in record_of(out)["assumed"])
    assert not any(name.startswith("consistency_ema") for name in record_of(out)["parts"]["unet"]["dropped"])


def test_the_easy_checkpoint(parts, tmp_path, capsys):
    parts.t5.save_pretrained(tmp_path / "t5")
    easy = write_easy(parts, tmp_path / "easy", parts.unet.state_dict())
    assert "holds no T5" in refused(parts, easy, tmp_path / "none", capsys)
    error = refused(parts, easy, tmp_path / "none", capsys, "--text-encoder", str(tmp_path / "nowhere"))
    assert f"--text-encoder {tmp_path}/nowhere: no such folder; expected one with FLAN-T5's" in error
    out = convert(parts, easy, tmp_path / "out", "--text-encoder", str(tmp_path / "t5"))
    assert_unet(out, parts.unet)
    made = Bundle.from_pretrained(out)
    assert made.vae.config.scaling_factor == SCALE and made.prediction_type == "sample"
    assert torch.equal(made.text_encoder.state_dict()["shared.weight"], parts.t5.state_dict()["shared.weight"])
    error = refused(parts, easy, tmp_path / "none", capsys, "--text-encoder", str(tmp_path / "t5"), "--scale-factor",
                    "0.5")
    assert "its scale_factor is 0.87, --scale-factor says 0.5" in error


def write_diffusers(bundle: Path, folder: Path) -> Path:
    """The pipeline of diffusers: a bundle's folders, with a class of its own for the U-Net and Heun's scheduler."""
    shutil.copytree(bundle, folder)
    for name in ("conversion.json", "musiccm.json"):
        (folder / name).unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": ["pipeline", "ConsistencyTTAPipeline"], "unet": ["pipeline", "UNet2DConditionGuidedModel"],
              "scheduler": ["diffusers", "HeunDiscreteScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = UNET | {"_class_name": "UNet2DConditionGuidedModel", "guidance_embedding_type": "fourier",
                     "guidance_embedding_dim": None, "guidance_post_act": None, "guidance_cond_proj_dim": None}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "HeunDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                 "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def test_diffusers_own_pipeline(parts, bundle, tmp_path, capsys):
    folder = write_diffusers(bundle, tmp_path / "diffusers")
    arguments = ["convert", "--tango", str(folder), "--mel-frames", "64", "--out"]
    assert cli.main([*arguments, str(tmp_path / "out")]) == 0
    assert_unet(tmp_path / "out", parts.unet)
    made = Bundle.from_pretrained(tmp_path / "out")
    assert made.prediction_type == "sample" and made.vae.config.scaling_factor == SCALE
    assert not any(key.startswith("guidance") for key in made.config("unet"))
    assert cli.main([*arguments, str(tmp_path / "no"), "--weights", "ema"]) == 2
    assert "--weights" in capsys.readouterr().err
    assert cli.main(["convert", "--tango", str(folder), "--out", str(folder), "--overwrite"]) == 2
    assert "is the bundle that is read" in capsys.readouterr().err
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.0015}')
    assert cli.main([*arguments, str(tmp_path / "no")]) == 2
    assert "expected stable-diffusion-2-1's schedule" in capsys.readouterr().err


def test_a_teacher_in_diffusers_layout_stays_one(parts, bundle, tmp_path, capsys):
    """The same folders under a pipeline and a U-Net of diffusers' own: no student, whatever is read as one."""
    folder = write_diffusers(bundle, tmp_path / "diffusers")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "AudioLDMPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "config.json").write_text(json.dumps(UNET))
    path = folder / "scheduler" / "scheduler_config.json"
    stated = json.loads(path.read_text()) | {"_class_name": "DDIMScheduler"}
    arguments = ["convert", "--tango", str(folder), "--mel-frames", "64", "--out"]
    for predicts in ("v_prediction", "epsilon"):
        path.write_text(json.dumps(stated | {"prediction_type": predicts}))
        assert cli.main([*arguments, str(tmp_path / predicts)]) == 0
        made = Bundle.from_pretrained(tmp_path / predicts)
        assert made.prediction_type == predicts and "distillation" not in made.settings
        assert not Pipeline.from_pretrained(tmp_path / predicts).is_student
    capsys.readouterr()
    for spoils, said in (({"prediction_type": "sample"}, "prediction_type 'sample'"),
                         ({"_class_name": "LCMScheduler"}, "_class_name is 'LCMScheduler'"),
                         ({"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr': True")):
        path.write_text(json.dumps(stated | spoils))
        assert cli.main([*arguments, str(tmp_path / "no")]) == 2 and not (tmp_path / "no").exists()
        error = capsys.readouterr().err
        assert said in error and str(path) in error
    assert cli.main(["convert", "--tango", str(bundle), "--out", str(tmp_path / "no")]) == 2
    assert "is a bundle already" in capsys.readouterr().err


def spoilt(hub: Path, tmp_path: Path, **files) -> Path:
    """TANGO's folder with other contents of some files."""
    folder = tmp_path / f"spoilt-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(hub, folder)
    for name, content in files.items():
        torch.save(content, folder / f"pytorch_model_{name}.bin")
    return folder


def test_what_does_not_fit_is_refused_by_name(parts, hub, tmp_path, capsys):
    unet, t5 = under("unet", parts.unet), under("text_encoder", parts.t5)
    short = {name: value for name, value in parts.main.items() if name != "unet.conv_out.bias"}
    two = t5 | {"text_encoder.shared.weight": t5["text_encoder.shared.weight"] + 1}
    for files, said in (
        ({"main": unet}, "holds no T5 .*--text-encoder google/flan-t5-large"),
        ({"main": parts.autoencoder, "vae": parts.main}, r"main.bin: holds an autoencoder .* swapped\?"),
        ({"vae": parts.main}, r"vae.bin: holds a U-Net or text encoder, .* swapped\?"),
        ({"main": short}, "main.bin: conv_out.bias is missing"),
        ({"main": parts.main | {"unet.stray": torch.ones(1)}}, "main.bin: stray is unknown"),
        ({"main": parts.main | {"unet.conv_in.bias": torch.ones(3)}}, r"conv_in.bias is \(3,\) instead of \(32,\)"),
        ({"main": parts.main | {"unet.conv_in.bias": torch.full((32,), torch.nan)}}, "infinity in conv_in.bias;"),
        ({"main": parts.main | {"unet.conv_in.bias": torch.ones(32, dtype=torch.int64)}},
         "main.bin: conv_in.bias is int64; expected floating-point"),
        ({"stft": stft_state() | {"mel_basis": torch.ones(64, 513)}}, "its mel filters are not those"),
        ({"stft": {"window": torch.ones(3)}}, "expected mel_basis"),
    ):
        folder = spoilt(hub, tmp_path, **files)
        assert re.search(said, refused(parts, folder, tmp_path / "out", capsys)), said
    for main, said in (
        (parts.main | {"group_in.0.weight": torch.ones(1)}, "was Stable Diffusion's"),
        (t5, "expected weights named unet"),
    ):
        with pytest.raises(MusiccmError, match=said):
            read_layout(spoilt(hub, tmp_path, main=main))
    plain = {name.removeprefix("text_encoder."): value for name, value in two.items()}
    with pytest.raises(MusiccmError, match="differ, which are one table in a T5"):
        t5_from_original(plain, "main.bin")
    with pytest.raises(MusiccmError, match="expected a T5 encoder"):
        t5_from_original({"embeddings.weight": torch.ones(1)}, "main.bin")
    folder = spoilt(hub, tmp_path)
    (folder / "main_config.json").write_text('{"scheduler_name": "runwayml/stable-diffusion-v1-5"}')
    assert "only stable-diffusion-2-1's schedule" in refused(parts, folder, tmp_path / "out", capsys)
    folder = spoilt(hub, tmp_path)
    (folder / "vae_config.json").write_text("{}")
    assert "expected a number under scale_factor" in refused(parts, folder, tmp_path / "out", capsys)
    for factor, shown in (("0", "0"), ("-1", "-1"), ("NaN", "nan")):
        (folder / "vae_config.json").write_text(f'{{"scale_factor": {factor}}}')
        error = refused(parts, folder, tmp_path / "out", capsys)
        assert "vae_config.json: scale_factor: expected a positive number" in error and f"found {shown}" in error
    assert "leave the option out" in refused(parts, hub, tmp_path / "out", capsys, "--weights", "ema")
    assert "has its own T5" in refused(parts, hub, tmp_path / "out", capsys, "--text-encoder", "x")
    assert "only goes with --ldm" in refused(parts, hub, tmp_path / "out", capsys, "--head-channels", "8")


def test_clips_of_no_frames_and_a_factor_of_nothing_are_refused(parts, hub, tmp_path, capsys):
    for frames in ("0", "-64"):
        error = refused(parts, hub, tmp_path / "out", capsys, "--mel-frames", frames)
        assert f"--mel-frames {frames}: expected a positive multiple of 4" in error
    run = write_run(parts, tmp_path / "run" / "best", parts.main)
    for factor in ("0", "-0.5", "nan"):
        error = refused(parts, run, tmp_path / "out", capsys, "--scale-factor", factor)
        assert "--scale-factor: expected a positive number" in error


def test_filters_that_nothing_could_be_compared_with_are_said(parts, hub, tmp_path):
    folder = spoilt(hub, tmp_path)
    assert not any("mel filters" in line for line in record_of(convert(parts, folder, tmp_path / "whole"))["assumed"])
    (folder / "pytorch_model_stft.bin").unlink()
    record = record_of(convert(parts, folder, tmp_path / "lacking"))
    assert any("mel filters" in line and "compared with none" in line for line in record["assumed"])


def test_folders_that_are_something_else(parts, tmp_path, capsys):
    run = write_run(parts, tmp_path / "run" / "best", consistency_model(parts), SUMMARY | {"stage": 1})
    error = refused(parts, run, tmp_path / "out", capsys, "--weights", "ema")
    assert "of stage 2 by its weights, and of stage 1" in error
    assert "expected one of ema, target, raw, teacher" in refused(parts, run, tmp_path / "out", capsys)
    assert "the files lie in best" in refused(parts, run.parent, tmp_path / "out", capsys)
    (tmp_path / "other").mkdir()
    error = refused(parts, tmp_path / "other", tmp_path / "out", capsys)
    assert "found nothing; expected pytorch_model_main.bin" in error
    assert "no such folder" in refused(parts, tmp_path / "nowhere", tmp_path / "o", capsys)
    state = parts.autoencoder
    torch.save(state | {"decoder.conv_in.bias": state["decoder.conv_in.bias"] + 1}, run / "pytorch_model.bin")
    (run.parent / "summary.jsonl").write_text(json.dumps(SUMMARY))
    assert "hold different weights of the vae" in refused(parts, run, tmp_path / "out", capsys, "--weights", "ema")
    out = convert(parts, run, tmp_path / "chosen", "--weights", "ema", "--prefer", "checkpoint")
    found = Bundle.from_pretrained(out).vae.decoder.conv_in.bias
    assert torch.equal(found, state["decoder.conv_in.bias"])


def test_code_in_a_file_is_not_run(parts, hub, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = spoilt(hub, tmp_path, main={"unet.conv_in.bias": Bomb()})
    assert "not a readable checkpoint" in refused(parts, folder, tmp_path / "out", capsys)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("widths", "count"), [((320, 640, 1280, 1280), 865_933_768),
                                               ((256, 512, 1024, 1024), 557_109_964)])
def test_published_sizes_are_read_off_the_weights(widths, count):
    """Names, shapes and counts of both published U-Nets and of FLAN-T5-large; no weight is drawn."""
    published = {
        "attention_head_dim": [5, 10, 20, 20], "block_out_channels": list(widths), "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "in_channels": 8, "out_channels": 8,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "layers_per_block": 2, "sample_size": [32, 2],
        "use_linear_projection": True, "upcast_attention": True, "norm_num_groups": 32,
    }
    with init_empty_weights():
        original = UNet2DConditionModel.from_config(published)
        found = cross_unet_from_original(original.state_dict(), None, [256, 16], "main.bin")
        made = make_cross_unet(found.config)
        branch = {"guidance_proj.weight": torch.zeros(widths[0] * 2)}
        guided = make_cross_unet(cross_unet_from_original(original.state_dict() | branch, None, [256, 16], "x").config)
    assert {name: value.shape for name, value in made.state_dict().items()} == {
        name: value.shape for name, value in original.state_dict().items()}
    assert sum(p.numel() for p in made.parameters()) == count
    # ConsistencyTTA counts the frequencies among the parameters
    extra = sum(value.numel() for value in guided.state_dict().values()) - count
    assert extra == 2 * widths[0] + 2 * ((4 * widths[0]) ** 2 + 4 * widths[0])
    assert widths[0] != 256 or extra == 559_209_676 - 557_109_964
    differing = {key for key, value in original.config.items() if made.config[key] != value and not key.startswith("_")}
    assert differing == {"sample_size"} and made.config.sample_size == [256, 16]
    with pytest.raises(MusiccmError, match="the attention of level 0 is .* its heads are others"):
        cross_unet_from_original(original.state_dict(), published | {"attention_head_dim": 7}, [256, 16], "main.bin")


def test_flan_t5_large_is_read_off_its_weights():
    with init_empty_weights():
        original = T5EncoderModel(T5Config(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24,
                                           num_heads=16, feed_forward_proj="gated-gelu"))
    # one table under both names, as in the file
    state = original.state_dict()
    table = torch.zeros(32128, 1024)
    found = t5_from_original(state | {"shared.weight": table, "encoder.embed_tokens.weight": table}, "main.bin")
    with init_empty_weights():
        made = make_t5(found.config)
    assert {name: value.shape for name, value in made.state_dict().items()} == {
        name: value.shape for name, value in state.items()}
    assert {key for key, value in original.config.to_dict().items() if made.config.to_dict()[key] != value} <= {
        "decoder_start_token_id"}


def test_widths_that_were_not_published_need_the_configuration():
    with pytest.raises(MusiccmError, match=r"no published U-Net has levels of \[32, 64\] channels; .*--unet-config"):
        cross_unet_from_original(make_unet(0).state_dict(), None, [16, 16], "main.bin")


@torch.no_grad()
def test_a_student_that_is_told_its_scale(parts, tmp_path, capsys):
    original = OriginalGuidedUNet(13).eval()
    parts.t5.save_pretrained(tmp_path / "t5")
    easy = write_easy(parts, tmp_path / "easy", original.state)
    out = convert(parts, easy, tmp_path / "out", "--text-encoder", str(tmp_path / "t5"))
    made = Bundle.from_pretrained(out)
    assert torch.equal(made.unet.state_dict()["guidance_proj.weight"], original.guidance_proj.weight)
    assert made.unet.state_dict().keys() == original.state.keys()
    record = made.settings["distillation"]
    assert (record["guidance"], record["guidance_scale"], record["guidance_range"]) == ("variable", 4.0, [0.0, 6.0])
    pipeline = Pipeline.from_pretrained(out)
    z, t, scales = torch.randn(2, 8, 16, 16), torch.tensor([999, 999]), torch.tensor([1.0, 5.0])
    condition = pipeline.conditioner.text(["slow", "a calm piano melody"])
    ours = pipeline.consistency(z, t, told_scale(condition, scales))
    theirs = original(z, t, scales, condition.tokens_BLD, condition.mask_BL)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - original(z, t, scales.flip(0), condition.tokens_BLD, condition.mask_BL)).abs().max() > 1e-3
    low, high = (pipeline(["slow organ chords"], guidance_scale=scale) for scale in (1.0, 5.0))
    assert low.shape == (1, 64 * 160) and not torch.equal(low, high)
    # the same of a run, whose options must say so, too
    run = write_run(parts, tmp_path / "run" / "best", consistency_model(parts, guided=True),
                    SUMMARY | {"teacher_guidance_scale": -1})
    again = Bundle.from_pretrained(convert(parts, run, tmp_path / "again", "--weights", "ema")).unet.state_dict()
    assert again.keys() == original.state.keys()
    assert all(torch.equal(again[name], value) for name, value in original.state.items())
    teacher = Bundle.from_pretrained(convert(parts, run, tmp_path / "teacher", "--weights", "teacher"))
    assert not any(name.startswith("guidance") for name in teacher.unet.state_dict())
    (run.parent / "summary.jsonl").write_text(json.dumps(SUMMARY))
    error = refused(parts, run, tmp_path / "none", capsys, "--weights", "ema")
    assert "teacher_guidance_scale is 5, by which the student is of one scale, but the weights have a guidance" in error
    state = {name: value for name, value in original.state.items() if name != "guidance_proj.weight"}
    lacking = write_easy(parts, tmp_path / "lacking", state)
    error = refused(parts, lacking, tmp_path / "none", capsys, "--text-encoder", str(tmp_path / "t5"))
    assert "guidance_proj.weight is missing" in error


def test_a_run_of_the_first_stage_is_a_teacher_that_is_told_its_scale(parts, tmp_path):
    model = {name: value for name, value in consistency_model(parts, guided=True).items()
             if not name.startswith("student_target_unet.")}
    run = write_run(parts, tmp_path / "run" / "best", model, SUMMARY | {"stage": 1, "teacher_guidance_scale": -1})
    made = Bundle.from_pretrained(convert(parts, run, tmp_path / "out", "--weights", "ema"))
    assert made.prediction_type == "v_prediction" and "distillation" not in made.settings
    pipeline = Pipeline.from_pretrained(tmp_path / "out")
    assert pipeline.denoiser.takes_scale and not pipeline.is_student
    assert pipeline(["slow organ chords"], steps=2, guidance_scale=3.0).shape == (1, 64 * 160)


@pytest.mark.slow
def test_the_light_student_at_full_size(tmp_path):
    """559 M parameters and FLAN-T5-large's 341 M of random numbers: 3.6 GB in, 3.6 GB out, and nothing held twice."""
    light = {**UNET, "block_out_channels": [256, 512, 1024, 1024], "attention_head_dim": [5, 10, 20, 20],
             "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "layers_per_block": 2,
             "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "cross_attention_dim": 1024}
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(light).state_dict()
        t5 = T5EncoderModel(T5Config(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16,
                                     feed_forward_proj="gated-gelu")).state_dict()
    shapes = {f"unet.{name}": value.shape for name, value in unet.items()}
    shapes |= {"unet.guidance_proj.weight": (512,)}
    for layer in ("linear_1", "linear_2"):
        shapes |= {f"unet.guidance_embedding.{layer}.weight": (1024, 1024),
                   f"unet.guidance_embedding.{layer}.bias": (1024,)}
    shapes |= {f"text_encoder.{name}": value.shape for name, value in t5.items() if name != "shared.weight"}
    generator = torch.Generator().manual_seed(0)
    main = {name: torch.empty(shape).uniform_(-0.05, 0.05, generator=generator) for name, shape in shapes.items()}
    main["text_encoder.shared.weight"] = main["text_encoder.encoder.embed_tokens.weight"]
    parts = make_parts(tmp_path / "parts")
    hub = write_hub(parts, tmp_path / "hub")
    torch.save(main, hub / "pytorch_model_main.bin")
    kept = {name: main[f"unet.{name}"].clone() for name in ("conv_in.weight", "guidance_proj.weight",
                                                           "mid_block.attentions.0.proj_in.weight")}
    del main
    arguments = ["convert", "--tango", str(hub), "--tokenizer", str(parts.folder / "tokenizer")]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    record = record_of(tmp_path / "out")["parts"]
    # the frequencies are a buffer here, and a parameter there
    assert record["unet"]["parameters"] == 559_209_676 - 512
    assert round(record["text_encoder"]["parameters"] / 1e6) == 341
    from safetensors import safe_open

    with safe_open(tmp_path / "out/unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), value) for name, value in kept.items())
    assert Bundle.from_pretrained(tmp_path / "out").latent_shape() == (8, 256, 16)
