"""Heads that do not fit the released models are noticed, and can be overridden."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_bundle import build_random_bundle

from musiccm.diffusion import NoiseSchedule
from musiccm.errors import MusiccmError
from musiccm.models.attention_heads import check_heads, heads_for, trained_heads
from musiccm.models.bundle import Bundle, save_settings


def published(width: int, **changes: object) -> dict:
    """The layout of AudioLDM and MusicLDM that diffusers' conversion writes: it names no heads, so 8 is stated."""
    widths = [width * level for level in (1, 2, 3, 5)]
    return {
        "_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "block_out_channels": widths,
        "class_embed_type": "simple_projection", "class_embeddings_concat": True, "cross_attention_dim": widths,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3, "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "projection_class_embeddings_input_dim": 512, "sample_size": 256,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"], "in_channels": 8, "out_channels": 8, **changes,
    }


@pytest.mark.parametrize(("width", "heads"), [(128, (4, 8, 12, 20)), (192, (6, 12, 18, 30)), (256, (4, 8, 12, 20))])
def test_the_released_models(width: int, heads: tuple[int, ...]) -> None:
    """MusicLDM and AudioLDM-S have heads of 32 channels, AudioLDM-M too, AudioLDM-L of 64 (audioldm/utils.py)."""
    assert trained_heads(published(width)) == heads
    with pytest.raises(MusiccmError) as said:
        check_heads(published(width), None, Path("b"))
    for part in ("attention_head_dim is 8", str(list(heads)), "musiccm convert --bundle b", '"attention_heads"'):
        assert part in str(said.value)
    # the first level has no attention: what is written there means nothing
    for right in (list(heads), [8, *heads[1:]]):
        assert check_heads(published(width, attention_head_dim=right), None, Path("b")) == {}
    wrong = [heads[0], heads[1] // 2, *heads[2:]]
    with pytest.raises(MusiccmError, match="trained with"):
        check_heads(published(width, attention_head_dim=wrong), None, Path("b"))


def test_other_networks_are_left_alone() -> None:
    for changes in ({"class_embeddings_concat": False}, {"class_embed_type": None},
                    {"block_out_channels": [128, 256, 512, 512]}):
        assert check_heads(published(128, **changes), None, Path("b")) == {}


def test_a_setting_wins() -> None:
    assert check_heads(published(128), [8, 8, 8, 8], Path("b")) == {"attention_head_dim": (8, 8, 8, 8)}
    for bad in (8, [8, 8], [4, 8, 12, 0], [4, 8, 12, 21], ["4", "8", "12", "20"]):
        with pytest.raises(MusiccmError, match="attention_heads"):
            check_heads(published(128), bad, Path("b"))
    with pytest.raises(MusiccmError, match="do not divide"):
        heads_for([32, 48], 32)


def test_a_bundle_is_read_with_the_heads_it_states(tmp_path: Path) -> None:
    build_random_bundle(tmp_path / "b", evaluators=False)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    own = Bundle.from_pretrained(tmp_path / "b")
    before = Bundle.from_pretrained(tmp_path / "c").content_hash(["unet"])
    save_settings(tmp_path / "c", attention_heads=[1, 4])
    other = Bundle.from_pretrained(tmp_path / "c")
    assert other.content_hash(["unet"]) != before and other.content_hash(["vae"]) == own.content_hash(["vae"])
    assert tuple(other.unet.config.attention_head_dim) == (1, 4)  # so an exported student says it too
    generator = torch.Generator().manual_seed(0)
    z, cond = torch.randn(1, 4, 8, 4, generator=generator), torch.randn(1, 32, generator=generator)
    with torch.no_grad():
        one, two = (b.unet(z, torch.tensor([500]), encoder_hidden_states=None, class_labels=cond).sample
                    for b in (own, other))
    assert (one - two).norm() / one.norm() > 1e-3


def test_a_published_teacher_with_wrong_heads_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    build_random_bundle(tmp_path / "b", evaluators=False)
    (tmp_path / "b" / "unet" / "config.json").write_text(json.dumps(published(128)))
    with pytest.raises(MusiccmError, match=r"unet/config\.json: attention_head_dim is 8"):
        _ = Bundle.from_pretrained(tmp_path / "b").unet


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_schedules_of_published_layouts(tmp_path: Path, name: str) -> None:
    """DDIM's and PNDM's configurations as diffusers writes them, and one from before `prediction_type`."""
    import diffusers

    from musiccm.models.bundle.files import save_part

    built = getattr(diffusers, name)(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    build_random_bundle(tmp_path / "b", evaluators=False)
    save_part(tmp_path / "b", "scheduler", built)
    bundle = Bundle.from_pretrained(tmp_path / "b")
    assert bundle.prediction_type == "epsilon"
    schedule = NoiseSchedule.from_config(bundle.scheduler_config)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), built.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(1.42e-4, rel=0.01)
    path = tmp_path / "b" / "scheduler" / "scheduler_config.json"
    old = {key: value for key, value in json.loads(path.read_text()).items() if key != "prediction_type"}
    path.write_text(json.dumps(old))
    assert Bundle.from_pretrained(tmp_path / "b").prediction_type == "epsilon"
