"""f-distill, ARC and LADD: who learns from what, weights by density ratio, shuffled captions, what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule
from short_fit import Save, fit, make_batches
from tiny_bundle import SCHEDULER, build_random_bundle
from torch import Tensor, nn

from musiccm.cli import main
from musiccm.config import load_experiment
from musiccm.diffusion import Condition
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import save_part
from musiccm.models.denoiser import Denoiser
from musiccm.models.encoder_half import encoder_half, features, widths
from musiccm.systems.arc import ARC, Arc
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.f_distill import FDistill, Weighting
from musiccm.systems.ladd import LADD, Ladd
from musiccm.systems.latent_critic import CriticSystem
from musiccm.systems.settings import Distillation, Optimization

FOLDER = Path(__file__).parents[2] / "experiments/objectives"
OWN = {FDistill: ("matching", Matching), ARC: ("arc", Arc), LADD: ("ladd", Ladd)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build_random_bundle(tmp_path_factory.mktemp("bundle") / "teacher", frames=4)
    save_part(path, "scheduler", {**SCHEDULER, "prediction_type": "v_prediction"})
    return path


def make(kind: type[CriticSystem], bundle: Path | str, more: dict[str, Any] | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    group, own = OWN[kind]
    settings = {"steps": [1, 2], "critic_steps": 1, "critic_lr": 1e-3, **settings}
    return kind(str(bundle), Distillation(weight=1.0), optimization=Optimization(lr=1e-3, clip_norm=10.0),
                **{group: own(**settings)}, **(more or {}))


def state_of(system: Any) -> dict[str, Tensor]:
    return copy.deepcopy(system.state_dict())


@pytest.mark.parametrize(("kind", "critics", "losses"), [
    (FDistill, {"critic", "head"}, {"loss_matching", "loss_gan", "loss_critic", "loss_head"}),
    (ARC, {"critic", "head"}, {"loss_relativistic", "loss_critic", "loss_head_contrastive"}),
    (LADD, {"heads"}, {"loss_gan", "loss_critic"}),
])
def test_student_and_critic_learn_and_a_resumed_run_ends_at_the_same_bits(
    kind: type[CriticSystem], critics: set[str], losses: set[str], bundle: Path, tmp_path: Path
) -> None:
    system, again = (make(kind, bundle, r1_weight=0.1) for _ in range(2))
    batches, before = make_batches(system, 4), state_of(system)
    trainer = fit(system, batches, 2, callbacks=[Save(tmp_path / "half.ckpt", 3)])
    assert trainer.global_step == 2
    # a plain loader starts its epoch anew; what was trained on is left out by hand
    fit(again, batches[3:] + batches[:3], 2, tmp_path / "half.ckpt")
    assert {f"train/{name}" for name in losses | {"r1"}} <= set(trainer.callback_metrics)
    found = again.state_dict()
    changed = {name.split(".")[0] for name, value in found.items() if not torch.equal(before[name], value)}
    assert changed - {"ratio_mean"} == {"student", "student_ema_target", "student_ema_slow"} | critics
    assert ("ratio_mean" in changed) == (kind is FDistill)
    assert all(p.grad is None for p in system.frozen.parameters()), "the teacher is left alone"
    assert [name for name, value in system.state_dict().items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize("kind", [FDistill, ARC, LADD])
def test_a_new_run_goes_on_with_the_critic_of_an_earlier_one_and_with_nothing_else_of_it(
    kind: type[CriticSystem], bundle: Path, tmp_path: Path
) -> None:
    earlier = make(kind, bundle)
    batches = make_batches(earlier, 4)
    fit(earlier, batches, 2, callbacks=[Save(path := tmp_path / "earlier.ckpt", 4)])
    own = {name for name, child in earlier.named_children() if any(child is critic for critic in earlier.critics())}
    fresh, system = make(kind, bundle), make(kind, bundle, critic_start=str(path))
    system.trainer = fit(fresh, batches, 0)  # of a run that is about to start
    system.setup("fit")
    learned, found, untouched = earlier.state_dict(), system.state_dict(), fresh.state_dict()
    assert own and any(not torch.equal(learned[name], untouched[name]) for name in found if name.split(".")[0] in own)
    for name, value in found.items():
        assert torch.equal(value, (learned if name.split(".")[0] in own else untouched)[name]), name
    assert not any("critic_start" in key for key in system.identity()), "a resumed run may have moved the file"


def test_the_critic_of_another_objective_is_no_start(bundle: Path, tmp_path: Path) -> None:
    earlier = make(FDistill, bundle)
    batches = make_batches(earlier, 2)
    fit(earlier, batches, 1, callbacks=[Save(tmp_path / "earlier.ckpt", 2)])
    with pytest.raises(MusiccmError, match=r"arc.critic_start: .*earlier.ckpt: expected the critic of a ARC"):
        fit(make(ARC, bundle, critic_start=str(tmp_path / "earlier.ckpt")), batches, 1)
    with pytest.raises(MusiccmError, match="missing.ckpt: no such checkpoint"):
        fit(make(ARC, bundle, critic_start=str(tmp_path / "missing.ckpt")), batches, 1)


@pytest.mark.parametrize("kind", [ARC, LADD])
def test_a_critic_alone_learns_to_tell_the_two_apart_and_then_pushes_towards_the_real_side(
    kind: type[CriticSystem], bundle: Path
) -> None:
    """The real latents lie at 1.5; twenty updates of the critic, then one gradient on the samples."""
    system = make(kind, bundle, critic_warmup_steps=20, steps=[1], critic_lr=5e-3, noise_range=[0.0, 0.2])
    batches = make_batches(system, 20, size=8, mean=1.5)
    before = state_of(system)
    trainer = fit(system, batches, -1, max_epochs=1)
    assert trainer.global_step == 0 and torch.equal(before["student.conv_in.weight"], system.student.conv_in.weight)
    chance = {ARC: math.log(2.0), LADD: 2.0}[kind]
    assert float(trainer.callback_metrics["train/loss_critic"]) < 0.6 * chance
    x = torch.zeros(8, *system.bundle.latent_shape(), requires_grad=True)
    system.roll_out = lambda *_, trained: x
    z0 = system.codec.normalise(batches[0].latents_BCTF)
    with system.critics_frozen():
        loss, _, _ = system.objective(batches[0], z0, batches[0].text_BD, torch.Generator().manual_seed(0))
        loss.backward()
    assert x.grad is not None and float((-x.grad * z0).mean()) > 0, "downhill is towards the real latents"
    assert all(p.grad is None for network in system.critics() for p in network.parameters())


def test_f_distill_weighs_by_the_ratio_over_its_mean_in_each_part_of_the_timesteps(bundle: Path) -> None:
    system = make(FDistill, bundle, {"weighting": Weighting("kl", bins=2, decay=0.5)})
    logits, t_B = torch.tensor([2.0, 0.5, 4.0, 99.0]).log(), torch.tensor([0, 499, 500, 999])
    weight = system.gradient_weight(logits, t_B)
    # means: 1.25 of the first half, (4 + 20) / 2 = 12 of the second, each averaged with the 1 before
    mean = torch.tensor([0.5 + 0.5 * 1.25, 0.5 + 0.5 * 12.0])
    torch.testing.assert_close(system.ratio_mean, mean)
    ratio = torch.tensor([2.0, 0.5, 4.0, 20.0]) / mean[torch.tensor([0, 0, 1, 1])]
    torch.testing.assert_close(weight, ratio / ratio.mean())
    # a part without samples keeps its mean; of Jensen-Shannon h(r) = r / (1 + r)
    system.weighting = Weighting("js", bins=2, decay=0.0)
    weight = system.gradient_weight(torch.tensor([1.0, 3.0]).log(), torch.tensor([10, 20]))
    torch.testing.assert_close(system.ratio_mean, torch.stack([torch.tensor(2.0), mean[1]]))
    torch.testing.assert_close(weight[1] / weight[0], torch.tensor((1.5 / 2.5) / (0.5 / 1.5)))


def test_f_distill_of_a_ratio_of_one_is_dmd2(bundle: Path) -> None:
    """A head that gives 0 everywhere: the same loss and gradients to the bit as without weights."""
    found = []
    for kind in (FDistill, DMD2):
        torch.manual_seed(0)
        system = kind(str(bundle), Distillation(weight=1.0), Matching(steps=[1]), optimization=Optimization(lr=1e-3))
        nn.init.zeros_(system.head[-2].weight), nn.init.zeros_(system.head[-2].bias)
        (batch,) = make_batches(system, 1)
        system.trainer = type("Stub", (), {"global_step": 5})()  # type: ignore[assignment]
        z0 = system.codec.normalise(batch.latents_BCTF)
        loss, _, _ = system.objective(batch, z0, batch.text_BD, torch.Generator().manual_seed(0))
        loss.backward()
        found.append((loss.detach(), system.student.conv_in.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_arc_prefers_a_clips_own_caption_and_leaves_equal_captions_out(bundle: Path) -> None:
    system = make(ARC, bundle)
    z = t = torch.zeros(4)
    cond = torch.arange(4.0)[:, None]
    captions = ["a", "b", "a", "c"]

    def contrastive(own: float, other: float, captions: list[str]) -> float:
        system.logits = lambda z, t, given: torch.where(given[:, 0] == cond[:, 0], own, other)
        real = torch.full((4,), own)
        return float(system._contrastive(real, z, t, cond, captions, torch.Generator().manual_seed(0)))

    assert contrastive(3.0, 1.0, captions) == pytest.approx(math.log1p(math.exp(-2.0)))
    assert contrastive(1.0, 3.0, captions) == pytest.approx(math.log1p(math.exp(2.0)))
    assert contrastive(1.0, 3.0, ["a"] * 4) == 0.0
    # by tokens too, and never with the caption of the clip itself
    tokens = Condition(torch.arange(3.0)[:, None, None].expand(3, 2, 1), torch.ones(3, 2, dtype=torch.bool))
    seen: list[Tensor] = []
    system.logits = lambda z, t, given: seen.append(given.tokens_BLD[:, 0, 0]) or torch.zeros(3)
    for seed in range(6):
        system._contrastive(torch.zeros(3), z, t, tokens, ["a", "b", "c"], torch.Generator().manual_seed(seed))
    assert all(sorted(rows.tolist()) == [0, 1, 2] and (rows != torch.arange(3.0)).all() for rows in seen)
    assert len({tuple(rows.tolist()) for rows in seen}) == 2, "both other clips come up"


def test_half_a_unet_gives_what_the_whole_one_has_in_its_middle(bundle: Path) -> None:
    system = make(LADD, bundle)
    (batch,) = make_batches(system, 1)
    z, t = batch.latents_BCTF, torch.tensor([10, 900])
    half = Denoiser(encoder_half(system.bundle.unet), system.schedule, "v_prediction")
    middle, taps = features(half, z, t, batch.text_BD)
    _, whole = features(system.teacher, z, t, batch.text_BD)
    assert [tap.shape[1] for tap in taps] == widths(system.bundle.unet) == [16, 32, 32]
    assert torch.equal(middle, taps[-1]) and all(torch.equal(a, b) for a, b in zip(taps, whole, strict=True))
    assert not any("up_blocks" in name for name, _ in half.named_parameters()) and len(system.bundle.unet.up_blocks) > 0
    assert torch.equal(system.logits(z, t, batch.text_BD)[:, 2], system.heads[2](middle))


@pytest.mark.parametrize("kind", OWN)
def test_steps_run_in_bf16_with_activations_computed_again(kind: type[CriticSystem], bundle: Path) -> None:
    system = make(kind, bundle)
    system.optimization.gradient_checkpointing = system.optimization.channels_last = True
    fit(system, make_batches(system, 2), 1, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in system.parameters())


REFUSED = [
    (lambda: make(FDistill, "nowhere", gan_weight=0.0), r"matching\.gan_weight: .*density ratio"),
    (lambda: make(FDistill, "nowhere", {"weighting": Weighting("tv")}), r"weighting\.divergence: expected one of kl,"),
    (lambda: make(FDistill, "nowhere", {"weighting": Weighting(clip=[2.0, 1.0])}), r"weighting\.clip: expected"),
    (lambda: make(FDistill, "nowhere", {"weighting": Weighting(bins=0)}), r"weighting\.bins: expected"),
    (lambda: make(ARC, "nowhere", contrastive_weight=-1.0), r"arc\.contrastive_weight: expected"),
    (lambda: make(ARC, "nowhere", steps=[51]), r"arc\.steps: expected"),
    (lambda: make(LADD, "nowhere", loss="wasserstein"), r"ladd\.loss: expected one of hinge, non_saturating"),
    (lambda: make(LADD, "nowhere", noise_range=[0.9, 0.1]), r"ladd\.noise_range: expected"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_the_bundle_is_read(call: Any, message: str) -> None:
    with pytest.raises(MusiccmError, match=message):
        call()


def test_arc_needs_two_clips_in_a_batch(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line before the bundle or a corpus is looked for; otherwise by its first batch."""
    monkeypatch.chdir(tmp_path)
    command = ["fit", "--config", str(FOLDER / "arc.yaml"), "--model.init_args.bundle", "nowhere",
               "--model.init_args.distillation.start", "musiccm-tiny-student", "--data.init_args.batch_size"]
    assert main([*command, "1"]) == 2
    assert "data.init_args.batch_size: expected at least 2, as ARC" in capsys.readouterr().err
    system = make(ARC, bundle)
    with pytest.raises(MusiccmError, match="data.init_args.batch_size: expected at least 2 clips"):
        fit(system, make_batches(system, 2, size=1), 1)


@pytest.mark.parametrize(("name", "first", "base"), [("student_dmd2", "demo_long", "demo_long"),
                                                     ("musiccm_dmd2", "musiccm_v_student", "musiccm")])
def test_a_second_part_starts_from_a_student_and_is_sampled_as_it_is_rolled_out(
    name: str, first: str, base: str
) -> None:
    content, before = (load_experiment(FOLDER.parent / f"{n}.yaml") for n in (name, base))
    model, trainer = content["model"]["init_args"], content["trainer"]
    assert content["model"]["class_path"] == f"{DMD2.__module__}.{DMD2.__qualname__}"
    assert model["distillation"]["start"] == f"lightning_logs/{first}/version_0/checkpoints/last.ckpt"
    assert model["distillation"]["prediction_type"] == "v_prediction"
    taught = before["model"]["init_args"]
    assert model["bundle"] == taught["bundle"]
    assert model["distillation"]["guidance_scale"] == taught["distillation"]["guidance_scale"]
    assert {key: value for key, value in content["data"]["init_args"].items() if key != "batch_size"} == {
        key: value for key, value in before["data"]["init_args"].items() if key != "batch_size"}
    samplers = [c["init_args"]["sampler"] for c in trainer["callbacks"] if "sampler" in c["init_args"]]
    gamma = {"student_dmd2": 0.8}.get(name, 1.0)
    assert samplers == [{"name": "lcm", "gamma": gamma}] * 2 == [model["matching"]["sampler"]] * 2
    own = Matching(**model["matching"])
    assert own.steps == [1, 2, 4, 8] and own.gan_weight > 0 and own.critic_warmup_steps > 0
    assert trainer["val_check_interval"] % (own.critic_steps + 1) == 0, "validations come behind a student's step"


@pytest.mark.parametrize("name", ["f_distill", "arc", "ladd"])
def test_its_experiment_is_built(name: str) -> None:
    """From the packaged consistency student, rolled out over the steps that are measured, by the sampler that ships."""
    content = load_experiment(FOLDER / f"{name}.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningModule, "model")
    system = parser.instantiate_classes(parser.parse_object({"model": content["model"]})).model
    assert isinstance(system, CriticSystem) and content["experiment"] == name
    evaluation = next(c["init_args"] for c in content["trainer"]["callbacks"] if "Evaluation" in c["class_path"])
    assert system.rules.steps == [1, 2, 4, 8] and system.rules.sampler == evaluation["sampler"]
    assert system.rules.critic_warmup_steps > 0 and system.distillation.start
