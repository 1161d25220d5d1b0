"""Bundles on disk: what goes in comes out, and what is wrong is said."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_bundle import build_random_bundle, make_unet
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from musiccm.data.latent_cache.fingerprint import bundle_fingerprint
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle, save_settings
from musiccm.models.bundle.files import save_part, update_json


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def own(shared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared, tmp_path / "b")


def fingerprint_of(folder: Path) -> str:
    return bundle_fingerprint(Bundle.from_pretrained(folder, parts=()))


def test_round_trip_is_exact(shared: Path, tmp_path: Path) -> None:
    first = Bundle.from_pretrained(shared)
    for name in ("unet", "vae", "text_encoder", "vocoder", "evaluators/tagger", "evaluators/audiomae"):
        part = first.part(name)
        save_part(tmp_path / "copy", name, part)
    for name in ("tokenizer", "feature_extractor"):
        save_part(tmp_path / "copy", name, getattr(first, name))
    save_part(tmp_path / "copy", "scheduler", first.scheduler_config)
    second = Bundle.from_pretrained(tmp_path / "copy")
    assert set(second.evaluators) == {"tagger", "audiomae"}
    for name in ("unet", "vae", "text_encoder", "vocoder", "evaluators/tagger", "evaluators/audiomae"):
        ours, theirs = first.part(name).state_dict(), second.part(name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    text = "a calm piano melody"
    assert first.tokenizer(text).input_ids == second.tokenizer(text).input_ids
    assert first.scheduler_config == second.scheduler_config


def test_parts_are_frozen_and_in_eval_mode(shared: Path) -> None:
    bundle = Bundle.from_pretrained(shared)
    for module in (bundle.unet, bundle.vae, bundle.clap, bundle.vocoder, bundle.evaluators["audiomae"]):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_half_precision_files_load_as_float32(own: Path) -> None:
    unet = make_unet()
    save_part(own, "unet", unet, torch.float16)
    stored = load_file(own / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = Bundle.from_pretrained(own).unet.state_dict()
    for key, value in unet.state_dict().items():
        assert loaded[key].dtype == torch.float32
        assert torch.equal(loaded[key], value.half().float())
    assert next(unet.parameters()).dtype == torch.float32, "saving must not alter the part"


@pytest.mark.parametrize(
    "lost",
    ["model_index.json", "vae", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer",
     "text_encoder/model.safetensors", "vocoder/config.json", "scheduler/scheduler_config.json"],
)
def test_a_missing_file_is_named(own: Path, lost: str) -> None:
    path = own / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MusiccmError, match=lost.replace(".", r"\.")):
        Bundle.from_pretrained(own)


def test_parts_that_are_not_asked_for_may_be_missing(own: Path) -> None:
    shutil.rmtree(own / "unet")
    bundle = Bundle.from_pretrained(own, parts=["vae", "clap"])
    assert bundle.vae is bundle.vae
    with pytest.raises(MusiccmError, match="unet"):
        _ = bundle.unet


@pytest.mark.parametrize("part, file", [("unet", "diffusion_pytorch_model"), ("text_encoder", "model"),
                                        ("vocoder", "model"), ("evaluators/tagger", "model")])
@pytest.mark.parametrize("damage", ["size", "missing", "unknown", "truncated"])
def test_weights_that_do_not_fit_are_refused(own: Path, part: str, file: str, damage: str) -> None:
    path = own / part / f"{file}.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        state = load_file(path)
        key = next(k for k, v in state.items() if v.ndim >= 1 and k.endswith("weight"))
        if damage == "size":
            state[key] = torch.cat([state[key], state[key]])
        elif damage == "missing":
            del state[key]
        else:
            state["stray.weight"] = torch.zeros(2)
        save_file(state, path, metadata={"format": "pt"})
    bundle = Bundle.from_pretrained(own)
    with pytest.raises(MusiccmError, match=part):
        bundle.part(part)


def test_pickled_weights_are_not_read(own: Path) -> None:
    weights = own / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), own / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(MusiccmError, match="not safetensors"):
        Bundle.from_pretrained(own)


def test_broken_json_is_named(own: Path) -> None:
    (own / "model_index.json").write_text("{")
    with pytest.raises(MusiccmError, match=r"model_index\.json: not valid JSON"):
        Bundle.from_pretrained(own)


def test_settings_that_several_add_at_once_are_all_there(tmp_path: Path) -> None:
    """Stages of one bundle may end at the same moment."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: update_json(tmp_path / "x" / "musiccm.json", {f"key{n}": n}), range(40)))
    assert json.loads((tmp_path / "x" / "musiccm.json").read_text()) == {f"key{n}": n for n in range(40)}
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["musiccm.json"]


def test_no_such_bundle() -> None:
    with pytest.raises(MusiccmError, match="musiccm-tiny"):
        Bundle.from_pretrained("no-such-folder")


def test_content_hash_follows_content_alone(own: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(own, tmp_path / "elsewhere")
    before = Bundle.from_pretrained(own).content_hash(["vae", "clap"])
    assert Bundle.from_pretrained(copy).content_hash(["vae", "clap"]) == before
    save_part(copy, "unet", make_unet())
    assert Bundle.from_pretrained(copy).content_hash(["vae", "clap"]) == before
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, weights, metadata={"format": "pt"})
    assert Bundle.from_pretrained(copy).content_hash(["vae", "clap"]) != before


def test_mel_comes_from_vocoder_and_settings(own: Path) -> None:
    assert Bundle.from_pretrained(own).mel.hop_length == 160
    save_settings(own, mel={"n_fft": 2048})
    assert Bundle.from_pretrained(own).mel.n_fft == 2048
    path, before = own / "musiccm.json", fingerprint_of(own)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # an editor's byte order mark changes nothing
    assert Bundle.from_pretrained(own).mel.n_fft == 2048 and fingerprint_of(own) == before
    save_settings(own, mel={"n_mels": 80})
    with pytest.raises(MusiccmError, match="n_mels is 80"):
        _ = Bundle.from_pretrained(own).mel
    save_settings(own, mel={"bins": 80})
    with pytest.raises(MusiccmError, match="bins"):
        _ = Bundle.from_pretrained(own).mel


def test_latent_shape_of_an_integer_sample_size(own: Path) -> None:
    path = own / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sample_size": 8}))
    assert Bundle.from_pretrained(own).latent_shape() == (4, 8, 4)


def test_true_musicldm_shapes() -> None:
    """Parameter counts of the released model (published: U-Net 185.04 M, VAE 55.38 M, vocoder 55.26 M)."""
    with init_empty_weights():
        unet = UNet2DConditionModel(
            sample_size=256, in_channels=8, out_channels=8, block_out_channels=(128, 256, 384, 640),
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",), attention_head_dim=(4, 8, 12, 20),
            cross_attention_dim=[128, 256, 384, 640], class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=512, class_embeddings_concat=True,
        )
        vae = AutoencoderKL(
            in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(128, 256, 512), layers_per_block=2,
            latent_channels=8,
        )
        vocoder = SpeechT5HifiGan(SpeechT5HifiGanConfig(
            model_in_dim=64, sampling_rate=16000, upsample_initial_channel=1024, upsample_rates=[5, 4, 2, 2, 2],
            upsample_kernel_sizes=[16, 16, 8, 4, 4], normalize_before=False,
        ))
    counts = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (unet, vae, vocoder)]
    assert counts == pytest.approx([185.04, 55.38, 55.26], abs=0.006)
    from musiccm.models.codec import LatentCodec

    codec = LatentCodec(vae, vocoder)
    assert codec.latent_shape(10.24) == (8, 256, 16)
    assert codec.patch == 1
    # 32 channels a head, as in the original code, where the conversion's default would give 8 heads everywhere.
    attention = unet.down_blocks[3].attentions[0].transformer_blocks[0].attn1
    assert (attention.heads, attention.inner_dim // attention.heads) == (20, 32)


def test_a_saved_part_does_not_name_the_folder_it_was_read_from(shared: Path, tmp_path: Path) -> None:
    save_part(tmp_path / "copy", "unet", Bundle.from_pretrained(shared).unet)
    assert str(shared) not in (tmp_path / "copy" / "unet" / "config.json").read_text()


@pytest.mark.parametrize("encoder, digest", [("clap", "465e005567733c4746566709d6290699"),
                                             ("t5", "e24736b59e3e85ab2399ca6c3f9b2480")])
def test_caches_of_version_0_1_are_known_by_their_bundle(tmp_path: Path, encoder: str, digest: str) -> None:
    """Digests as version 0.1 took them of the same files."""
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "musiccm.json").write_text(json.dumps({"mel": {"n_mels": 64}}))
    for part in ["vae", "text_encoder", "tokenizer", *(["feature_extractor"] if encoder == "clap" else [])]:
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"model_type": encoder, "part": part}))
        (tmp_path / part / "model.safetensors").write_bytes(part.encode())
    assert bundle_fingerprint(Bundle.from_pretrained(tmp_path, parts=())) == digest


def test_a_student_encodes_by_the_parts_that_it_borrows() -> None:
    teacher, student = (Bundle.from_pretrained(name, parts=()) for name in ("musiccm-tiny", "musiccm-tiny-student"))
    assert student.base is not None and bundle_fingerprint(student) == bundle_fingerprint(teacher)
