"""Settings that say how a step is computed must change nothing that is learned."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from one_step import batch_of, one_step
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny_bundle import build_random_bundle
from torch.utils.data import DataLoader

from musiccm.commands.bench import load
from musiccm.errors import MusiccmError
from musiccm.evaluation.distilled import SystemStudent, SystemTeacher
from musiccm.samplers import sample_noise, seeded_noise_fn
from musiccm.systems import speed
from musiccm.systems.arc import ARC, Arc
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.ladd import LADD, Ladd
from musiccm.systems.latent_critic import CriticSystem
from musiccm.systems.lcm import LCM
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


COMPILED = {
    "musiccm": lambda bundle: MusicCM(bundle, adversarial=Adversarial(crop_frames=4, head_width=8)),
    "dmd2": lambda bundle: DMD2(bundle, matching=Matching(steps=(1, 2), r1_weight=0.1)),
    "arc": lambda bundle: ARC(bundle, arc=Arc(steps=(1, 2), r1_weight=0.1)),
    "ladd": lambda bundle: LADD(bundle, ladd=Ladd(steps=(1, 2), r1_weight=0.1)),
}

#: Objectives that ask the teacher nothing.
NO_TEACHER = ("arc", "ladd")


@pytest.mark.parametrize(("name", "further"), [
    ("musiccm", ["Decoder", *["Block"] * 4]), ("dmd2", ["UNet2DConditionModel", "LatentHead", "UNet2DConditionModel"]),
    ("arc", ["UNet2DConditionModel", "LatentHead"]), ("ladd", [*["LatentHead"] * 3, "UNet2DConditionModel"])])
def test_what_is_compiled_beside_student_target_and_teacher(bundle, name, further):
    system = COMPILED[name](bundle)
    parts = system.compiled_parts()
    assert parts[0] is system.student and parts[1] is system.student_ema_target.module
    assert parts[2] is system.teacher.unet
    assert [type(part).__name__ for part in parts[3:]] == further
    assert len({id(part) for part in parts}) == len(parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_critic_learns_the_same(bundle, name, monkeypatch):
    """Each turn twice, so that what was traced in one is called in the next; and all that is compiled is called."""
    torch.manual_seed(0)
    system = COMPILED[name](bundle)
    monkeypatch.setattr(system, "_progress", lambda: 0.0)
    system._trainer = SimpleNamespace(global_step=0)
    batch, critic = batch_of(system), isinstance(system, CriticSystem)
    batch.captions[0] = "another"  # ARC has them differ

    def turn(of_critic, seed):
        generator, z0 = torch.Generator().manual_seed(seed), system.codec.normalise(batch.latents_BCTF)
        system.zero_grad()
        if of_critic:
            loss, parts = system.critic_loss(batch, z0, batch.text_BD, generator)
            loss.backward()
        else:
            with system.critics_frozen() if critic else nullcontext():
                loss, parts, _ = system.objective(batch, z0, batch.text_BD, generator)
                loss.backward()
        return loss.detach(), parts, {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}

    def turns():
        return [turn(of_critic, seed) for seed in (0, 1) for of_critic in ([True, False] if critic else [False])]

    started = [buffer.clone() for buffer in system.buffers()]
    reference, names, called = turns(), list(system.state_dict()), Counter()
    for buffer, value in zip(system.buffers(), started, strict=True):
        buffer.copy_(value)  # spectral norms go on at every call
    speed.compile_networks(system.compiled_parts(), lambda graph, inputs: graph.forward)  # as "eager"
    for part in system.compiled_parts():
        def watched(*args, part=part, compiled=part._compiled_call_impl, **kwargs):
            called[id(part)] += 1
            return compiled(*args, **kwargs)

        part._compiled_call_impl = watched
    torch.testing.assert_close(turns(), reference, rtol=1e-4, atol=1e-6)
    uncalled = [part for part in system.compiled_parts() if not called[id(part)]]
    others = [system.student_ema_target.module] * critic + [system.teacher.unet] * (name in NO_TEACHER)
    assert [id(part) for part in uncalled] == [id(part) for part in others]
    assert list(system.state_dict()) == names


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
    assert [backend for _, backend in called] == ["eager"] * 8
    assert called[0][0] is model.student and called[1][0] is model.student_ema_target.module
    # Copies in bf16, which are gone by now, and not the float32 networks of the evaluation.
    ours = {id(module) for module in model.modules()}
    for network, _ in called[2:]:
        assert id(network) not in ours and torch.bfloat16 in {p.dtype for p in network.parameters()}


def test_a_test_samples_from_compiled_networks(bundle, monkeypatch):
    calls = []

    def compiled(module, backend):
        module._compiled_call_impl = lambda *args, **kwargs: calls.append(module) or module._call_impl(*args, **kwargs)

    monkeypatch.setattr("torch.nn.Module.compile", compiled)
    found = {}
    for backend in (None, "eager"):
        model = LCM(bundle, optimization=Optimization(compile=backend))
        model.trainer = Trainer(accelerator="cpu", logger=False)
        model.setup("test")
        model.on_test_start()
        for made_by in (SystemTeacher(model, 2.0), SystemStudent(model)):
            noise = sample_noise([0], made_by.latent_shape)
            with torch.no_grad():
                made = made_by.stepper(2).sample(model.conditioner.prompts(["slow organ"]), noise,
                                                 seeded_noise_fn([0], made_by.latent_shape))
            assert torch.equal(found.setdefault(type(made_by), made), made)
        of_student = [module is model.student_ema_slow.module for module in calls]
        assert of_student == ([False, False, True, True] if backend else [])


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
