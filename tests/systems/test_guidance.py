"""Students that are told their guidance scale, or guided by two calls: training, resuming, export, sampling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from short_fit import Save, fit, make_batches
from tiny_bundle import build_random_bundle
from torch import Tensor
from torch.utils.data import DataLoader

from musiccm.callbacks.evaluation import Evaluation
from musiccm.cli import main
from musiccm.commands.export import main as export
from musiccm.diffusion import guide, scale_of, told_scale
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import Comparison, candidates
from musiccm.export import StudentInfo, export_student
from musiccm.long_form import Editor
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.guidance_branch import is_branch
from musiccm.models.lora import Lora
from musiccm.pipeline import Pipeline
from musiccm.samplers import sample_noise
from musiccm.systems import parallel
from musiccm.systems.cmt import CMT, Paths
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.ladd import LADD, Ladd
from musiccm.systems.lcm import LCM
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.pcm import PCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.student_weights import read_student

PROMPT, RANGE = "a calm piano melody over soft strings", [1.0, 5.0]
OPTIMIZATION = Optimization(lr=3e-3)


def settings(**own: Any) -> Distillation:
    given = {"guidance": "variable", "guidance_range": RANGE, "warm_start_steps": 1, "eval_ema_decay": 0.5,
             "curriculum": [Phase(1.0, 100, 1)]}
    return Distillation(**{**given, **own})


class Made:
    """A student that is told its scale, after a few steps, a checkpoint from between them, and its export."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle = folder, str(build_random_bundle(folder / "bundle"))
        self.system = LCM(self.bundle, settings(), OPTIMIZATION)
        self.start = {name: value.clone() for name, value in self.system.state_dict().items()}
        self.batches = make_batches(self.system, 4, size=3)
        self.checkpoint = folder / "run/checkpoints/2.ckpt"
        trainer = fit(self.system, self.batches, 4, callbacks=[Save(self.checkpoint, 2)])
        trainer.save_checkpoint(folder / "run/checkpoints/last.ckpt")
        (folder / "run/config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {
            "bundle": self.bundle, "distillation": {"guidance": "variable", "guidance_range": RANGE}}}}))
        self.student = folder / "student"
        command = ["export", "--checkpoint", str(folder / "run/checkpoints/last.ckpt"), "--out", str(self.student)]
        assert main(command) == 0
        self.pipeline = Pipeline.from_pretrained(self.student)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    yield Made(tmp_path_factory.mktemp("guidance"))


def test_each_item_draws_its_scale_for_teacher_and_student_alike(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, batch = made.system, made.batches[0]
    cond = system._condition(batch, torch.Generator().manual_seed(7))
    scales = scale_of(cond)
    assert scales.min() >= RANGE[0] and scales.max() <= RANGE[1] and len(set(scales.tolist())) == 3
    z, t = torch.randn(3, 4, 8, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([999, 499, 99])
    with torch.no_grad():
        found = system.guided_teacher(cond)(z, t)
        null = system.conditioner.null(3)
        c, u = system.teacher(z, t, batch.text_BD), system.teacher(z, t, null)
    for n, scale in enumerate(scales.tolist()):
        torch.testing.assert_close(found[n], guide(c[n], u[n], scale), rtol=1e-4, atol=1e-3)
    # of two processes each has its rows of the same draws
    rows = []
    for rank in (0, 1):
        monkeypatch.setattr(parallel, "rank_and_world", lambda rank=rank: (rank, 2))
        rows.append(scale_of(system._condition(batch, torch.Generator().manual_seed(7))))
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(7)
    torch.rand(6, 1, generator=generator)  # whose caption gives way to its audio
    assert torch.equal(torch.cat(rows), RANGE[0] + (RANGE[1] - RANGE[0]) * torch.rand(6, generator=generator))
    # online and target networks of one loss hear the very scales that the teacher was guided by
    told: list[Tensor] = []
    handles = [network.guidance_proj.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
               for network in (system.student, system.student_ema_target.module)]
    system.distil(system.codec.normalise(batch.latents_BCTF), cond, torch.Generator().manual_seed(3))
    for handle in handles:
        handle.remove()
    assert len(told) == 2 and all(torch.equal(scale_B, scales) for scale_B in told)


def test_the_branch_learns_and_its_frequencies_do_not(made: Made) -> None:
    now = made.system.state_dict()
    branch = [name for name in now if is_branch(name.removeprefix("student."))]
    moved = {name for name in branch if not torch.equal(now[name], made.start[name])}
    assert len(branch) == 5 and moved == set(branch) - {"student.guidance_proj.weight"}
    for average in ("student_ema_target", "student_ema_slow"):
        assert torch.equal(now[f"{average}.module.guidance_proj.weight"], now["student.guidance_proj.weight"])
        assert now[f"{average}.module.guidance_embedding.linear_2.weight"].abs().max() > 0
    assert not any("guidance" in name for name in now if name.startswith("frozen"))


def test_a_resumed_run_comes_to_the_same_weights(made: Made) -> None:
    second = LCM(made.bundle, settings(), OPTIMIZATION)
    fit(second, made.batches[2:] + made.batches[:2], 4, made.checkpoint)
    found = second.state_dict()
    assert [name for name, value in made.system.state_dict().items() if not torch.equal(value, found[name])] == []
    others = {"guidance_range": {"guidance_range": [1.0, 6.0]}, "guidance": {"guidance": "direct"}}
    for key, other in others.items():
        with pytest.raises(MusiccmError, match=rf"distillation\.{key}: it was trained with"):
            fit(LCM(made.bundle, settings(**other), OPTIMIZATION), made.batches, 4, made.checkpoint)


def test_the_export_sounds_as_the_system_at_each_scale(made: Made) -> None:
    pipeline, prompts = made.pipeline, [PROMPT, "slow organ chords"]
    noise, f = sample_noise([5, 6], (4, 8, 4)), made.system.consistency("slow")
    cond, t = pipeline.conditioner.prompts(prompts), torch.full((2,), 999)
    sounds = {}
    for scale in (1.0, 3.0, 5.0):
        z = pipeline.latents(cond, [5, 6], 1, guidance_scale=scale)
        with torch.no_grad():
            expected = f(noise, t, told_scale(cond, scale))
            assert torch.equal(z, expected)
        sounds[scale] = pipeline(prompts, 1, guidance_scale=scale)
    differences = [(sounds[a] - sounds[b]).abs().amax(1) for a, b in ((1.0, 3.0), (3.0, 5.0), (1.0, 5.0))]
    assert min(float(d.min()) for d in differences) > 1e-4, "every clip depends on the scale"
    assert torch.equal(pipeline(prompts, 1), sounds[3.0])
    record = json.loads((made.student / "musiccm.json").read_text())["distillation"]
    assert (record["guidance"], record["guidance_scale"], record["guidance_range"]) == ("variable", 3.0, RANGE)
    card = (made.student / "README.md").read_text()
    assert "any from 1 to 5, and needs no second network call" in card and "diffusers' own class has not" in card
    assert "```python" not in card


def test_long_pieces_streams_and_edits_hear_the_scale(made: Made, tmp_path: Path) -> None:
    plan = [(0.0, PROMPT), (1.5, "slow organ chords")]
    piece = {scale: made.pipeline.compose(plan, 3.0, 2, seed=4, guidance_scale=scale) for scale in (1.0, 3.0)}
    assert (piece[1.0] - piece[3.0]).abs().max() > 1e-4
    assert torch.equal(piece[3.0], made.pipeline.compose(plan, 3.0, 2, seed=4))
    streamed = torch.cat(list(made.pipeline.stream(plan, 3.0, steps=2, seed=4, guidance_scale=1.0)))
    torch.testing.assert_close(streamed, piece[1.0], rtol=1e-3, atol=1e-4)
    for scale in (1.0, 3.0):
        command = ["generate", PROMPT, "--model", str(made.student), "--steps", "1", "--guidance-scale", f"{scale}"]
        assert main([*command, "--out", str(tmp_path / f"{scale:g}.wav")]) == 0
    assert (tmp_path / "1.wav").read_bytes() != (tmp_path / "3.wav").read_bytes()
    with pytest.raises(MusiccmError, match="guidance_scale: expected a number from 1 to 5"):
        Editor(made.pipeline, 0, 1, 6.0)._piece(PROMPT, 32000, 0)


def test_scales_that_a_student_does_not_know_are_refused(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for scale in (0.5, 5.1, float("nan"), float("inf")):
        with pytest.raises(MusiccmError, match="guidance_scale: expected a number from 1 to 5, the scales .* found"):
            made.pipeline(PROMPT, 1, guidance_scale=scale)
    assert main(["generate", PROMPT, "--model", str(made.student), "--guidance-scale", "6"]) != 0
    assert "--guidance-scale: expected a number from 1 to 5, the scales that this student" in capsys.readouterr().err


def test_an_evaluation_has_a_row_for_each_scale_that_is_asked_for(made: Made) -> None:
    system = made.system
    steps = {"student": [2], "student_scale1": [2], "student_scale5": [2], "teacher": [2]}
    found = {c.model: c for c in candidates(Comparison(system), steps)}
    assert {name: c.guidance_scale for name, c in found.items()} == {
        "teacher": 3.0, "student": 3.0, "student_scale1": 1.0, "student_scale5": 5.0}
    noise, cond = sample_noise([1], (4, 8, 4)), system.conditioner.text([PROMPT])
    made_z = {name: c.sample(cond, noise, [1]) for name, c in found.items()}
    assert len({float(z.sum()) for z in made_z.values()}) == 4
    assert {name: c.calls.samples for name, c in found.items()} == {
        "teacher": 4, "student": 2, "student_scale1": 2, "student_scale5": 2}
    fixed = LCM(made.bundle, settings(guidance="fixed"), OPTIMIZATION)
    for asked, said in ((fixed, "a distilled student, found 5.0"),
                        (LCM(made.bundle, settings(guidance_range=[1, 4]), OPTIMIZATION), "from 1 to 4")):
        with pytest.raises(MusiccmError, match=f"evaluation.more_models.student_scale5: guidance_scale: .*{said}"):
            Evaluation(more_models={"student_scale5": [1]})._check_scales(asked)


def test_a_student_that_is_guided_directly(made: Made, tmp_path: Path) -> None:
    """Its teacher is not guided; its own answers under caption and empty text are, at two calls a step."""
    system = LCM(made.bundle, settings(guidance="direct", guidance_scale=2.0), OPTIMIZATION)
    batch, z, t = made.batches[0], torch.randn(3, 4, 8, 4), torch.tensor([999, 499, 99])
    cond = system._condition(batch, torch.Generator().manual_seed(7))
    assert torch.is_tensor(cond), "it is told nothing"
    assert torch.equal(system.guided_teacher(cond)(z, t), system.teacher(z, t, cond))
    info = StudentInfo("v_prediction", 2.0, guidance="direct")
    folder = export_student(system.denoiser("slow").unet, Bundle.from_pretrained(made.bundle), tmp_path / "s", info)
    pipeline, own = Pipeline.from_pretrained(folder), system.consistency("slow")
    conditions, nulls = pipeline.conditioner.prompts([PROMPT]), pipeline.conditioner.null(1)
    noise, top = sample_noise([3], (4, 8, 4)), torch.tensor([999])
    with torch.no_grad():
        c, u = own(noise, top, conditions), own(noise, top, nulls)
    for asked, scale in ((None, 2.0), (4.0, 4.0), (1.0, 1.0), (0.0, 0.0)):
        z = pipeline.latents(conditions, [3], 1, guidance_scale=asked)
        torch.testing.assert_close(z, guide(c, u, scale), rtol=1e-4, atol=1e-4)
    (found,) = candidates(Comparison(system), {"student": [2]})
    found.sample(conditions, noise, [3])
    assert found.guidance_scale == 2.0 and found.calls.samples == 4, "counted"
    assert json.loads((folder / "musiccm.json").read_text())["distillation"]["guidance"] == "direct"
    assert "two network calls a step" in (folder / "README.md").read_text()
    with pytest.raises(MusiccmError, match="guidance_scale: expected a finite number"):
        pipeline(PROMPT, 1, guidance_scale=float("inf"))


OBJECTIVES = {
    "musiccm": lambda bundle: MusicCM(bundle, settings(), Adversarial(crop_frames=4, head_width=8), OPTIMIZATION),
    "pcm": lambda bundle: PCM(bundle, settings(), None, OPTIMIZATION),
    "dmd2": lambda bundle: DMD2(bundle, settings(), Matching(critic_steps=1, r1_weight=0.1), None, OPTIMIZATION),
    "ladd": lambda bundle: LADD(bundle, settings(), Ladd(critic_steps=1), OPTIMIZATION),
}


@pytest.mark.parametrize("name", ["musiccm", pytest.param("pcm", marks=pytest.mark.slow), "dmd2", "ladd"])
def test_every_objective_tells_its_student_the_scale(made: Made, name: str) -> None:
    system = OBJECTIVES[name](made.bundle)
    told: list[Tensor] = []
    system.student.guidance_proj.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    trainer = fit(system, made.batches, 3)
    assert len({float(scale) for scale_B in told for scale in scale_B}) >= 9, "each batch and item its own"
    moved = system.student.guidance_embedding.linear_2.weight
    assert moved.abs().max() > 0 and torch.isfinite(moved).all()
    if name == "dmd2":  # the critic learns samples of the scale that they were made with
        assert system.critic.unet.guidance_embedding.linear_2.weight.abs().max() > 0
    told.clear()
    average = system.student_ema_slow.module.guidance_proj
    average.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    trainer.validate(system, DataLoader(made.batches[:1], batch_size=None), verbose=False)
    assert {float(scale) for scale_B in told for scale in scale_B} == {3.0}, "validated at its default"


def test_a_variable_student_goes_on_from_a_fixed_one_and_not_the_other_way(made: Made, tmp_path: Path) -> None:
    fixed = LCM(made.bundle, settings(guidance="fixed"), OPTIMIZATION)
    fit(fixed, made.batches, 2).save_checkpoint(tmp_path / "fixed.ckpt")
    slow = {name: value.clone() for name, value in fixed.student_ema_slow.module.state_dict().items()}
    for start, weights in ((tmp_path / "fixed.ckpt", slow), (made.student, made.pipeline.bundle.unet.state_dict())):
        system = LCM(made.bundle, settings(start=str(start), eval_ema_decay=0.999), OPTIMIZATION)
        fit(system, made.batches, 0)
        found = system.student.state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        assert ("guidance_proj.weight" in weights) == (found["guidance_embedding.linear_2.weight"].abs().max() > 0)
    system = LCM(made.bundle, settings(guidance="fixed", start=str(made.student)), OPTIMIZATION)
    with pytest.raises(MusiccmError, match="has a guidance branch, and this student none; expected .*: variable"):
        fit(system, made.batches, 1)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"guidance": "free"}, "distillation.guidance: expected one of fixed, variable, direct, found 'free'"),
    ({"guidance_range": [3.0]}, "distillation.guidance_range: expected two numbers"),
    ({"guidance_range": [5.0, 1.0]}, "distillation.guidance_range: expected the lowest and the highest scale"),
    ({"guidance_range": [-1.0, 4.0]}, "distillation.guidance_range: low: expected a finite number from 0 on"),
    ({"guidance_scale": 5.5}, r"distillation.guidance_scale: expected a default within guidance_range \[1.0, 5.0\]"),
    ({"lora": Lora(2)}, "distillation.lora: expected none beside distillation.guidance: variable"),
])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(MusiccmError, match=said):
        settings(**wrong).check()


def test_objectives_that_have_one_scale_refuse_several(made: Made) -> None:
    with pytest.raises(MusiccmError, match="distillation.guidance: expected fixed or direct, as the teacher's paths"):
        CMT(made.bundle, settings(), Paths(4, 4, 2))
    with pytest.raises(MusiccmError, match="matching.critic_lora: expected none beside .*guidance: variable"):
        DMD2(made.bundle, settings(), Matching(critic_lora=Lora(2)))


def test_files_that_contradict_each_other_are_refused(made: Made, tmp_path: Path) -> None:
    _, _, identity = read_student(made.folder / "run/checkpoints/last.ckpt")
    assert identity["distillation.guidance"] == "variable"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {"init_args": {"bundle": made.bundle}}}))
    with pytest.raises(MusiccmError, match="trained with guidance = 'variable', but .* says 'fixed'"):
        export(["--checkpoint", str(made.folder / "run/checkpoints/last.ckpt"), "--out", str(tmp_path / "a"),
                "--config", str(config)])
    teacher = Bundle.from_pretrained(made.bundle)
    for unet, kind, has in ((made.pipeline.bundle.unet, "fixed", "has a"), (teacher.unet, "variable", "has no")):
        with pytest.raises(MusiccmError, match=f"said to be {kind}, and its U-Net {has} guidance branch"):
            export_student(unet, teacher, tmp_path / "b", StudentInfo("v_prediction", 3.0, guidance=kind))
    path = made.student / "musiccm.json"
    stated = path.read_text()
    for change, said in (
        ({"guidance": "fixed"}, "unet/config.json states the guidance branch .* says distillation.guidance: fixed"),
        ({"guidance": "free"}, "musiccm.json: distillation: guidance: expected one of fixed, variable, direct"),
        ({"guidance_range": None}, "musiccm.json: distillation: guidance: expected a number guidance_scale"),
        ({"guidance_range": [4, 5]}, "musiccm.json: distillation: guidance_scale: expected a default within"),
    ):
        content = json.loads(stated)
        content["distillation"] |= change
        path.write_text(json.dumps(content))
        with pytest.raises(MusiccmError, match=said):
            Pipeline.from_pretrained(made.student)
    path.write_text(stated)


def test_a_teacher_with_a_branch_is_told_its_scale_in_one_call(made: Made, tmp_path: Path) -> None:
    """What distilling guidance alone leaves behind: a denoiser that needs no second call, and can teach."""
    folder = build_random_bundle(tmp_path / "told")
    save_part(folder, "unet", made.pipeline.bundle.unet)
    told, calls = Pipeline.from_pretrained(folder), []
    told.denoiser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    assert not torch.equal(*(told(PROMPT, 2, guidance_scale=scale) for scale in (1.0, 3.0))) and calls == [1] * 4
    with pytest.raises(MusiccmError, match="distillation.guidance: expected variable, as the U-Net of .* has"):
        LCM(str(folder), settings(guidance="fixed"))
    system = LCM(str(folder), settings(), OPTIMIZATION)
    cond = system._condition(made.batches[0], torch.Generator().manual_seed(7))
    z, t = torch.randn(3, 4, 8, 4), torch.tensor([999, 499, 99])
    with torch.no_grad():
        assert torch.equal(system.guided_teacher(cond)(z, t), system.teacher(z, t, cond))
    fit(system, made.batches, 2)
