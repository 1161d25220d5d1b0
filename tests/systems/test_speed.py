"""Settings that say how a step is computed must change nothing that is learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from one_step import batch_of, one_step
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny_bundle import build_random_bundle
from torch.utils.data import DataLoader

from musiccm.commands.bench import load
from musiccm.errors import MusiccmError
from musiccm.systems import speed
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Optimization

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(build_random_bundle(tmp_path_factory.mktemp("bundle") / "b"))


@pytest.fixture(scope="module")
def plain(bundle, tmp_path_factory):
    return one_step(bundle, tmp_path_factory.mktemp("plain"))


def assert_same(ours, reference, rtol=1e-5):
    assert ours.losses.keys() == reference.losses.keys() and ours.gradients.keys() == reference.gradients.keys()
    assert ours.losses == pytest.approx(reference.losses, rel=rtol, abs=1e-6)
    for name, gradient in reference.gradients.items():
        error = (ours.gradients[name] - gradient).norm() / reference.losses["grad_norm_student"]
        assert error < rtol, name


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "channels_last"])
def test_the_same_is_learned(bundle, plain, tmp_path, setting):
    ours = one_step(bundle, tmp_path, **{setting: True})
    assert_same(ours, plain)
    assert {name.split(".")[0] for name in ours.gradients} == {"student", "discriminator"}


def test_a_straightforward_step_learns_the_same(bundle, plain, tmp_path, monkeypatch):
    """The benchmark's baseline: teacher called twice, features of decoded mels anew each time, averages one by one."""
    benchmark = load(BENCHMARKS / "training.py")
    called = []
    for name in ("generator_loss", "guide"):  # what the benchmark's own file calls, in its two overrides
        function = getattr(benchmark, name)
        monkeypatch.setattr(benchmark, name, lambda *args, n=name, f=function: called.append(n) or f(*args))
    theirs = one_step(bundle, tmp_path, system=benchmark.Straightforward)
    assert called.count("generator_loss") == 1 and "guide" in called
    assert_same(plain, theirs)
    for name in ("student_ema_target", "student_ema_slow"):
        ours, reference = (getattr(step.model, name).state_dict() for step in (plain, theirs))
        # AdamW's first step is the sign of the gradient, which rounding may turn where it is nothing.
        moved = sum((ours[key] - reference[key]).abs().gt(1e-6).sum() for key in ours)
        assert moved <= 0.001 * sum(value.numel() for value in ours.values())


def test_a_compiled_student_learns_the_same(bundle):
    torch.manual_seed(0)
    model = MusicCM(bundle, adversarial=Adversarial(weight=0.0))
    batch, t_B = batch_of(model), torch.tensor([999, 499])
    traced = []

    def backend(graph, inputs):  # as "eager", and seen to be used
        traced.append(graph)
        return graph.forward

    def loss_and_gradients():
        model.student.zero_grad()
        loss = model.consistency("online")(batch.latents_BCTF, t_B, batch.text_BD).square().mean()
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.student.named_parameters()}

    reference = loss_and_gradients()
    names = list(model.state_dict())
    speed.compile_networks([model.student], backend)
    torch.testing.assert_close(loss_and_gradients(), reference, rtol=1e-5, atol=1e-6)
    assert traced and list(model.state_dict()) == names


def kept_bytes(model: MusicCM) -> int:
    """Bytes that the student's pass and the discriminator's keep for the backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = batch_of(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x0 = model.consistency("online")(batch.latents_BCTF, torch.tensor([999, 499]), batch.text_BD)
        judged = model._losses(batch.latents_BCTF, x0, batch.text_BD, torch.Generator().manual_seed(0))
    assert judged["loss_g"].requires_grad
    return sum(kept.values())


def test_recomputed_activations_are_not_kept(bundle):
    def made(recompute):
        optimization = Optimization(gradient_checkpointing=recompute)
        model = MusicCM(bundle, adversarial=Adversarial(crop_frames=4, head_width=8), optimization=optimization)
        model.setup("fit")
        return kept_bytes(model)

    assert made(True) < 0.5 * made(False)


def test_compiled_networks_are_those_that_the_step_calls(bundle, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda module, backend: called.append((module, backend)))
    model = one_step(bundle, tmp_path, precision="bf16-mixed", compile="eager").model
    assert [backend for _, backend in called] == ["eager"] * 3
    assert called[0][0] is model.student and called[1][0] is model.student_ema_target.module
    # The copy in bf16, which is gone by now, and not the float32 teacher of the evaluation.
    assert called[2][0] is not model.teacher.unet
    assert next(called[2][0].parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("features", ["audiomae", "clap"])
def test_bf16_copies_of_frozen_parts_change_no_bit(bundle, tmp_path, features):
    adversarial = Adversarial(features=features, crop_frames=4, head_width=8)
    ours, reference = (
        one_step(bundle, tmp_path, "bf16-mixed", adversarial, half_frozen=half) for half in (True, False)
    )
    assert ours.losses == reference.losses
    assert all(torch.equal(ours.gradients[name], gradient) for name, gradient in reference.gradients.items())
    assert all(p.dtype == torch.float32 for p in ours.model.parameters()) and not ours.model._half


@pytest.mark.parametrize(("before", "after"), [(False, True), pytest.param(True, False, marks=pytest.mark.slow)])
def test_checkpoints_do_not_depend_on_the_memory_layout(bundle, tmp_path, before, after):
    """Saved after one step with either layout and resumed with the other: the same weights."""

    def train(folder, steps, channels_last, resume=None):
        torch.manual_seed(0)
        optimization = Optimization(channels_last=channels_last)
        model = MusicCM(bundle, adversarial=Adversarial(weight=0.0), optimization=optimization)
        # A large epsilon keeps AdamW from blowing rounding up where gradients are near zero.
        model.configure_optimizers = lambda: torch.optim.AdamW(model.student.parameters(), 1e-3, eps=1e-2, fused=True)
        saver = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, callbacks=[saver],
        )
        trainer.fit(model, DataLoader([batch_of(model)] * 3, batch_size=None), ckpt_path=resume)
        return model

    expected = train(tmp_path / "reference", 3, False).student.state_dict()
    train(tmp_path, 1, before)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.is_contiguous() for value in state.values())
    student = train(tmp_path, 3, after, str(tmp_path / "last.ckpt")).student
    assert student.conv_in.weight.is_contiguous(memory_format=torch.channels_last) == after
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_an_unknown_backend_is_refused_at_once():
    with pytest.raises(MusiccmError, match="optimization.compile.*inductor.*'induktor'"):
        Optimization(compile="induktor").check()
