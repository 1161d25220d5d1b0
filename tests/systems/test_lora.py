"""A student that is an adapter on its teacher: what is held, saved, resumed and exported."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from tiny_bundle import build_random_bundle
from torch.utils.data import DataLoader

from musiccm.commands import export
from musiccm.data.batch import LatentBatch
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Denoiser
from musiccm.models.lora import Lora, is_adapter
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase

RANK = Lora(4, 8.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bundle") / "b", frames=4))


def make(bundle: str, lora: Lora | None = RANK, **optimization: Any) -> MusicCM:
    torch.manual_seed(0)
    return MusicCM(
        bundle, Distillation(warm_start_steps=1, curriculum=[Phase(1.0, 100, 1)], eval_ema_decay=0.5, lora=lora),
        Adversarial(crop_frames=2, head_width=8), Optimization(lr=1e-2, **optimization),
    )


def fit(model: MusicCM, steps: int, ckpt_path: Path | None = None, first: int = 0, **options: Any) -> Trainer:
    generator = torch.Generator().manual_seed(5)
    shape = model.bundle.latent_shape()
    batches = []
    for _ in range(4):
        unit = torch.nn.functional.normalize(torch.randn(2, 32, generator=generator), dim=1)
        batches.append(LatentBatch(torch.randn(2, *shape, generator=generator), unit, unit, ["a", "b"], ["x", "y"]))
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False, **options)
    # a plain loader starts its epoch anew; what was trained on is left out by hand
    loader = DataLoader(batches[first:] + batches[:first], batch_size=None)
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def run(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[MusicCM, Path]:
    """Four steps, with checkpoints after two and at the end."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    model = make(bundle)
    fit(make(bundle), 2).save_checkpoint(folder / "half.ckpt")
    # the learning rate is constant, so that two of four steps are two of two
    fit(model, 4).save_checkpoint(folder / "last.ckpt")
    return model, folder


def test_teacher_student_and_averages_hold_their_weights_once(run: tuple[MusicCM, Path]) -> None:
    model, folder = run
    networks = [model.teacher.unet, model.student, model.student_ema_target.module, model.student_ema_slow.module]
    held = {p.data_ptr(): p.numel() for network in networks for p in network.parameters()}
    base = sum(p.numel() for p in model.teacher.unet.parameters())
    adapter = sum(p.numel() for name, p in model.student.named_parameters() if is_adapter(name))
    assert sum(held.values()) == base + 3 * adapter, "where four networks would be"
    assert sum(p.numel() for p in model.student.parameters() if p.requires_grad) == adapter < 0.2 * base
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    # two moments and a counter a weight
    moments = [v.numel() for s in saved["optimizer_states"][0]["state"].values() for k, v in s.items() if k != "step"]
    assert sum(moments) == 2 * adapter
    networks = [name for name in saved["state_dict"] if not name.startswith("discriminator.")]
    assert all(is_adapter(name) and name.startswith("student") for name in networks)
    assert sum(saved["state_dict"][name].numel() for name in networks) == 3 * adapter


def test_a_step_moves_adapters_and_heads_and_nothing_under_them(run: tuple[MusicCM, Path], bundle: str) -> None:
    before, after = make(bundle).state_dict(), run[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {
        "student", "student_ema_target", "student_ema_slow", "discriminator"}
    assert all(is_adapter(name) or name.startswith("discriminator") for name in moved)


def test_a_resumed_run_ends_at_the_same_bits(run: tuple[MusicCM, Path], bundle: str) -> None:
    model, folder = run
    resumed = make(bundle)
    fit(resumed, 4, folder / "half.ckpt", first=2)
    found = resumed.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(found[name], value)] == []


def test_an_export_is_the_adapted_network_without_an_adapter(
    run: tuple[MusicCM, Path], bundle: str, tmp_path: Path
) -> None:
    model, folder = run
    config = {"model": {"init_args": {"bundle": bundle, "distillation": {"lora": {"rank": 4, "alpha": 8.0}}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    asked = ["--checkpoint", str(folder / "last.ckpt"), "--config", str(tmp_path / "config.yaml")]
    assert export.main([*asked, "--out", str(tmp_path / "student")]) == 0
    exported = Bundle.from_pretrained(tmp_path / "student")
    z, t, cond = torch.randn(2, *model.bundle.latent_shape()), torch.tensor([259, 999]), torch.randn(2, 32)
    with torch.no_grad():
        found = Denoiser(exported.unet, model.schedule, "v_prediction")(z, t, cond)
        torch.testing.assert_close(found, model.denoiser("slow")(z, t, cond), rtol=1e-4, atol=1e-4)
        assert (found - Denoiser(model.bundle.unet, model.schedule, "v_prediction")(z, t, cond)).abs().max() > 1e-3
    assert exported.unet.state_dict().keys() == Bundle.from_pretrained(bundle).unet.state_dict().keys()
    # a checkpoint from before a field of the adapter's, of an objective with an argument named as a setting
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    del checkpoint["student"]["distillation.lora"]["target_modules"]
    checkpoint["student"]["guidance_scale"] = "its own"
    torch.save(checkpoint, tmp_path / "older.ckpt")
    assert export.main(["--checkpoint", str(tmp_path / "older.ckpt"), *asked[2:], "--out", str(tmp_path / "same")]) == 0
    # another teacher below it, and settings of another run
    other = build_random_bundle(tmp_path / "other", frames=4, seed=3)
    with pytest.raises(MusiccmError, match="its adapter was trained on U-Net and schedule .* has U-Net and schedule"):
        export.main([*asked, "--out", str(tmp_path / "no"), "--bundle", str(other)])
    for wrong in (None, {"rank": 8, "alpha": 8.0}):
        config["model"]["init_args"]["distillation"]["lora"] = wrong  # type: ignore[index]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(MusiccmError, match=r"trained with lora = \{'rank': 4"):
            export.main([*asked, "--out", str(tmp_path / "no")])


@pytest.mark.parametrize("lora", [None, Lora(8, 8.0), Lora(4, 8.0, ["to_q"])])
def test_a_checkpoint_of_another_adapter_is_refused(run: tuple[MusicCM, Path], bundle: str, lora: Lora | None) -> None:
    with pytest.raises(MusiccmError, match=r"distillation.lora: it was trained with \{'rank': 4") as error:
        fit(make(bundle, lora), 4, run[1] / "half.ckpt")
    assert "weights of the student" not in str(error.value)


def test_an_adapter_goes_on_only_on_its_own_teacher(run: tuple[MusicCM, Path], tmp_path: Path) -> None:
    other = str(build_random_bundle(tmp_path / "other", frames=4, seed=3))
    with pytest.raises(MusiccmError, match="model.init_args.bundle: it was trained with"):
        make(other).on_load_checkpoint(torch.load(run[1] / "half.ckpt", weights_only=True))


def test_a_run_on_all_weights_is_no_adapter(run: tuple[MusicCM, Path], bundle: str) -> None:
    model = make(bundle, None)
    trainer = fit(model, 1)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    del checkpoint["student"]["distillation.lora"]  # as checkpoints had it before there were adapters
    fresh = make(bundle, None)
    fresh.on_load_checkpoint(checkpoint)
    with pytest.raises(MusiccmError, match=r"distillation.lora: it was trained with None, this run has \{'rank'"):
        make(bundle).on_load_checkpoint(checkpoint)


@pytest.mark.slow
def test_activations_that_are_recomputed_meet_the_adapter_that_made_them(bundle: str) -> None:
    plain, saving = make(bundle), make(bundle, gradient_checkpointing=True)
    fit(plain, 1)
    fit(saving, 1)
    torch.testing.assert_close(dict(saving.student.state_dict()), dict(plain.student.state_dict()))


def test_sharding_is_refused_and_ddp_looks_after_the_adapter_alone(bundle: str) -> None:
    model = make(bundle)
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    left = {name for name, _ in model.named_parameters(remove_duplicate=False)} - ignored
    assert left == {f"student.{name}" for name, p in model.student.named_parameters() if p.requires_grad}
    model._device_mesh = SimpleNamespace()  # what a strategy with shards sets
    with pytest.raises(MusiccmError, match="distillation.lora: .*use DDP"):
        model.configure_model()


@pytest.mark.parametrize(("setting", "key"), [(Lora(0), "rank"), (Lora(2.5), "rank"), (Lora(4, 0.0), "alpha")])
def test_settings_out_of_range_are_refused(setting: Lora, key: str) -> None:
    with pytest.raises(MusiccmError, match=f"distillation.lora.{key}: expected"):
        Distillation(lora=setting).check()
