"""`musiccm convert`: four files in, a bundle out; what is lost, chosen or assumed is said."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from laion_clap import write_original
from original_files import OriginalFiles, small_files
from safetensors.torch import load_file

from musiccm import cli
from musiccm.errors import MusiccmError
from musiccm.files import replacing_folder
from musiccm.models import attention_heads
from musiccm.models.bundle import Bundle, save_settings
from musiccm.pipeline import Pipeline

SHAPE = ["--head-channels", "16", "--mel-frames", "64"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> OriginalFiles:
    return small_files(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def bundle(files: OriginalFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "bundle"
    assert cli.main(["convert", *files.arguments, *SHAPE, "--weights", "ema", "--out", str(out)]) == 0
    return out


@torch.no_grad()
def test_the_bundle_computes_what_the_original_does(files: OriginalFiles, bundle: Path) -> None:
    made = Bundle.from_pretrained(bundle)
    assert made.latent_shape() == (8, 16, 16) and made.prediction_type == "epsilon"
    assert made.unet.config.attention_head_dim == [2, 4]
    z = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), torch.nn.functional.normalize(torch.ones(1, 24), dim=-1)
    averaged = small_average(files)
    ours = made.unet(z, t, encoder_hidden_states=None, class_labels=cond).sample
    torch.testing.assert_close(ours, averaged(z, t, cond), rtol=1e-4, atol=1e-5)
    codec = made.codec()
    mel = codec.decode_mel(z)
    # the learned factor: raw latents are z over it
    torch.testing.assert_close(mel, files.vae.decode(z / 0.9).squeeze(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.vocode(mel), files.vocoder(mel)[:, : 64 * 160], rtol=1e-4, atol=1e-4)
    text = made.tokenizer(["a calm piano melody"], return_tensors="pt")
    theirs = files.clap.get_text_features(text.input_ids, attention_mask=text.attention_mask).pooler_output
    expected = torch.nn.functional.normalize(theirs, dim=-1)
    torch.testing.assert_close(made.conditioner().text(["a calm piano melody"]), expected)
    assert made.conditioner().audio(torch.randn(1, 16000), 16000).shape == (1, 24)
    stated = [made.scheduler_config[key] for key in ("beta_start", "beta_end", "beta_schedule")]
    assert stated == [0.0015, 0.0195, "scaled_linear"]
    assert Pipeline.from_pretrained(bundle)(["slow organ chords"], steps=2).shape == (1, 64 * 160)


def small_average(files: OriginalFiles) -> torch.nn.Module:
    from original_ldm import OriginalUNet

    copy = OriginalUNet(32, (1, 2), 1, channels=8, head=16, cond=24).eval()
    copy.load_state_dict({name: value * 0.5 for name, value in files.unet.state_dict().items()})
    return copy


def test_every_name_is_kept_or_listed(files: OriginalFiles, bundle: Path) -> None:
    record = json.loads((bundle / "conversion.json").read_text())
    parts = record["parts"]
    names = set(torch.load(files.folder / "musicldm-ckpt.ckpt", weights_only=False)["state_dict"])
    averaged = {name for name in names if name.startswith("model_ema.diffusion_model")}
    assert set(parts["unet"]["dropped"]) == names - averaged - {"betas", "scale_factor"}
    assert (parts["unet"]["weights"], parts["unet"]["file"]) == ("ema", "musicldm-ckpt.ckpt")
    assert parts["vae"]["dropped"] == ["loss.logvar"] and parts["vocoder"]["dropped"] == []
    # CLAP written back under LAION's names by the tests' own inverse: what comes out as it went in was kept.
    torch.manual_seed(1)  # the inverse draws what a ClapModel lacks
    saved = torch.load(files.folder / "clap-ckpt.pt", weights_only=True)["state_dict"]
    again = write_original(Bundle.from_pretrained(bundle).clap)
    computed = ("position_ids", "relative_position_index")  # equal, but worked out anew and not read
    kept = {name for name in saved if torch.equal(saved[name], again[name]) and not name.endswith(computed)}
    dropped = {f"module.{name}" for name in parts["text_encoder"]["dropped"]}
    assert len(kept) > 50 and not kept & dropped and kept | dropped == saved.keys()
    # beside the weights
    nests = {"musicldm-ckpt.ckpt": "state_dict", "vae-ckpt.ckpt": "state_dict", "clap-ckpt.pt": "state_dict",
             "hifigan-ckpt.ckpt": "generator"}
    for name, nest in nests.items():
        beside = set(torch.load(files.folder / name, weights_only=False)) - {nest}
        assert set(record["files"][name]["ignored"]) == beside, name
    assert {"global_step", "epoch", "hyper_parameters"} <= set(record["files"]["musicldm-ckpt.ckpt"]["ignored"])
    assert str(files.folder) not in json.dumps(record)
    assert any("upsample_rates" in line for line in record["assumed"])


def test_raw_weights_on_request(files: OriginalFiles, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "raw"
    assert cli.main(["convert", *files.arguments, *SHAPE, "--weights", "raw", "--out", str(out)]) == 0
    ema, raw = (load_file(path / "unet" / "diffusion_pytorch_model.safetensors") for path in (bundle, out))
    for name, value in raw.items():
        torch.testing.assert_close(ema[name], 0.5 * value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--weights", None], "--weights"),
        (["--vae", None], "holds no vae"),
        (["--head-channels", None], "head-channels"),
        (["--mel-frames", "63"], "multiple of 4"),
        (["--heads", "2,4"], "only goes with --bundle"),
        (["--tokenizer", "no-such-folder"], "no-such-folder"),
        (["--scale-factor", "2"], "scale_factor is 0.9"),
    ],
)
def test_what_is_missing_or_contradicts_is_said(
    files: OriginalFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list, said: str
) -> None:
    arguments = ["convert", *files.arguments, *SHAPE, "--weights", "ema", "--out", str(tmp_path / "b")]
    option, value = change
    if option in arguments:
        at = arguments.index(option)
        arguments[at : at + 2] = [] if value is None else [option, value]
    else:
        arguments += [option, value]
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_two_files_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = small_files(tmp_path / "files", whole=True)
    ldm = ["convert", "--ldm", str(files.folder / "musicldm-ckpt.ckpt"), "--tokenizer", str(files.folder / "tokenizer"),
           *SHAPE, "--weights", "raw"]
    # alone, it is enough
    assert cli.main([*ldm, "--out", str(tmp_path / "alone")]) == 0
    # the same in a file of its own, weight norm and all, is no contradiction
    same = ["convert", *files.arguments, *SHAPE, "--weights", "raw"]
    assert cli.main([*same, "--out", str(tmp_path / "same")]) == 0
    for part, name in (("vae", "diffusion_pytorch_model"), ("vocoder", "model"), ("text_encoder", "model")):
        one, other = (load_file(tmp_path / which / part / f"{name}.safetensors") for which in ("alone", "same"))
        assert one.keys() == other.keys()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-6)
    torch.save({"state_dict": {n: v * 1.1 for n, v in files.vae.state_dict().items()}}, files.folder / "vae-ckpt.ckpt")
    assert cli.main([*same, "--out", str(tmp_path / "c")]) == 2
    assert "different weights of the vae" in capsys.readouterr().err
    for prefer, times in (("checkpoint", 1.0), ("files", 1.1)):
        assert cli.main([*same, "--prefer", prefer, "--out", str(tmp_path / f"by-{prefer}")]) == 0
        weights = load_file(tmp_path / f"by-{prefer}" / "vae" / "diffusion_pytorch_model.safetensors")
        found = weights["quant_conv.bias"]
        torch.testing.assert_close(found, files.vae.quant_conv.bias.data * times)


def test_a_bundle_is_only_replaced_on_request(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", "--bundle", str(bundle), "--out"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert cli.main([*command, str(tmp_path / "notes"), "--overwrite"]) == 2
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    assert cli.main([*command, str(bundle), "--overwrite"]) == 2
    assert cli.main([*command, str(tmp_path / "copy")]) == 0
    assert cli.main([*command, str(tmp_path / "copy")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    with replacing_folder(tmp_path / "copy") as other, monkeypatch.context() as patch:
        patch.setattr("musiccm.models.convert.completing.complete", None)  # refused at once
        shutil.copytree(tmp_path / "copy", other)
        assert cli.main([*command, str(tmp_path / "copy"), "--overwrite"]) == 2
        assert "copy: in use by `" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "copy"), "--heads", "1,2", "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "notes"]
    assert Bundle.from_pretrained(tmp_path / "copy").unet.config.attention_head_dim == [1, 2]


def test_own_heads_of_a_released_shape_survive(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where this small U-Net is taken for a released one, other heads must be stated, and stay stated."""
    monkeypatch.setitem(attention_heads.HEAD_CHANNELS, 32, 8)
    monkeypatch.setattr(attention_heads, "LEVELS", (1, 2))
    with pytest.raises(MusiccmError, match=r"trained with \[4, 8\]"):
        _ = Bundle.from_pretrained(bundle).unet  # it states (2, 4)
    copied = ["convert", "--bundle"]
    assert cli.main([*copied, str(bundle), "--heads", "2,4", "--out", str(tmp_path / "own")]) == 0
    # again, without a word about heads: the setting goes along
    assert cli.main([*copied, str(tmp_path / "own"), "--out", str(tmp_path / "copy")]) == 0
    for name in ("own", "copy"):
        assert tuple(Bundle.from_pretrained(tmp_path / name).unet.config.attention_head_dim) == (2, 4)
    assert cli.main([*copied, str(bundle), "--out", str(tmp_path / "released")]) == 0
    assert tuple(Bundle.from_pretrained(tmp_path / "released").unet.config.attention_head_dim) == (4, 8)
    assert "attention_heads" not in json.loads((tmp_path / "released" / "musiccm.json").read_text())
    # a setting that cannot be is refused, and leaves nothing behind
    save_settings(tmp_path / "own", attention_heads=8)
    assert cli.main([*copied, str(tmp_path / "own"), "--out", str(tmp_path / "bad")]) == 2
    assert "attention_heads is 8" in capsys.readouterr().err and not (tmp_path / "bad").exists()


def test_what_could_not_be_opened_is_not_left_behind(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heads that cannot be are noticed when the bundle is opened, before the user is told of success."""

    def write(made: object, folder: Path, dtype: object) -> None:
        shutil.copytree(bundle, folder)
        save_settings(folder, attention_heads=[2, 3])

    monkeypatch.setattr("musiccm.commands.convert.write", write)
    assert cli.main(["convert", "--bundle", str(bundle), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert "attention_heads is [2, 3]" in shown.err and "M parameters" not in shown.out
    assert list(tmp_path.iterdir()) == []


def test_audiomae_joins_a_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=(64, 128), patch_size=16, in_chans=1, num_classes=0, global_pool="avg",
                            fc_norm=False, embed_dim=64, depth=2, num_heads=1).eval()
    beside = {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.zeros(512, 64)}
    torch.save({"model": vit.state_dict() | beside, "optimizer": {"lr": 1.0}}, tmp_path / "audiomae.pth")
    command = ["convert", "--bundle", str(bundle), "--audiomae", str(tmp_path / "audiomae.pth")]
    assert cli.main([*command, "--out", str(tmp_path / "with")]) == 0
    made = Bundle.from_pretrained(tmp_path / "with")
    features = made.evaluators["audiomae"]
    fbank = torch.randn(1, 64, 128)
    with torch.no_grad():
        expected = vit.forward_features(fbank[:, None])[:, 1:]
        features.adapter = torch.nn.Identity()
        found = features.embed(fbank * 2 * features.std + features.mean)
    torch.testing.assert_close(found, expected.mean(1), rtol=1e-4, atol=1e-5)
    record = json.loads((tmp_path / "with" / "conversion.json").read_text())
    assert record["parts"]["evaluators/audiomae"]["dropped"] == ["decoder_embed.weight", "mask_token"]
    assert record["files"] == {"audiomae.pth": {"ignored": ["optimizer"]}}
    tuned = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
             for name, value in vit.state_dict().items()}
    torch.save({"model": tuned}, tmp_path / "audiomae.pth")
    assert cli.main([*command, "--out", str(tmp_path / "tuned")]) == 2
    assert "fine-tuned" in capsys.readouterr().err


def test_a_text_tower_alone_is_completed_by_its_own_clap_only(
    files: OriginalFiles, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AudioLDM's published layout: `ClapTextModelWithProjection`, no extractor."""
    from transformers import ClapTextModelWithProjection

    from musiccm.texts import read_json

    half = tmp_path / "audioldm"
    shutil.copytree(bundle, half)
    whole = Bundle.from_pretrained(bundle)
    tower = ClapTextModelWithProjection(whole.clap.config.text_config).eval()
    tower.load_state_dict({k: v for k, v in whole.clap.state_dict().items() if k.startswith("text_")}, strict=False)
    shutil.rmtree(half / "text_encoder")
    shutil.rmtree(half / "feature_extractor")
    tower.save_pretrained(half / "text_encoder")
    index = read_json(half / "model_index.json", "")
    del index["feature_extractor"]
    index |= {"_class_name": "AudioLDMPipeline", "text_encoder": ["transformers", "ClapTextModelWithProjection"]}
    (half / "model_index.json").write_text(json.dumps(index))

    read = Bundle.from_pretrained(half)
    texts = ["a calm piano melody", ""]
    torch.testing.assert_close(read.conditioner().text(texts), whole.conditioner().text(texts))
    assert Pipeline.from_pretrained(half)(["slow organ chords"], steps=2).shape == (1, 64 * 160)
    with pytest.raises(MusiccmError, match="--clap"):
        read.conditioner().audio(torch.zeros(1, 16000), 16000)
    with pytest.raises(MusiccmError, match="--clap"):
        Bundle.from_pretrained(half, ["feature_extractor"])

    command = ["convert", "--bundle", str(half), "--out", str(tmp_path / "completed"), "--clap"]
    torch.save({"state_dict": {n: v + 0.1 if v.is_floating_point() else v for n, v in torch.load(
        files.folder / "clap-ckpt.pt", weights_only=True)["state_dict"].items()}}, tmp_path / "another.pt")
    assert cli.main([*command, str(tmp_path / "another.pt")]) == 2
    assert "its text tower is not the one" in capsys.readouterr().err
    assert cli.main([*command, str(files.folder / "clap-ckpt.pt")]) == 0
    waveform = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    completed = Bundle.from_pretrained(tmp_path / "completed").conditioner().audio(waveform, 16000)
    torch.testing.assert_close(completed, whole.conditioner().audio(waveform, 16000))
