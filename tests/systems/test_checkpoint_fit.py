"""Which settings are checked at the start of a run, and which a resumed run must share with its checkpoint."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from pytorch_lightning.trainer.states import TrainerFn
from tiny_bundle import build_random_bundle
from torch import nn

from musiccm.errors import MusiccmError
from musiccm.models.lora import Lora
from musiccm.systems.checkpoint_fit import LATER, MAY_CHANGE, MEANING, ONCE_STATED, check_fit, identity, plain
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.stages.audiomae import AudioMaeStage
from musiccm.systems.stages.base import Stage
from musiccm.systems.stages.tagger import TaggerStage
from musiccm.systems.stages.teacher import TeacherStage

ABSENT = object()
#: Every setting with another value than the default.
OTHERS: dict[str, dict[str, Any]] = {
    "distillation": {
        "prediction_type": "epsilon", "guidance_scale": 2.0, "weight": 1.0, "grid_points": 25, "solver": "heun",
        "curriculum": [Phase(0.5, 20, 1), Phase(1.0, 20, "to_zero")], "distance": "squared", "huber_h": 1e-2,
        "timestep_mode": "uniform", "tail": 0.1, "timestep_scaling": 5.0, "warm_start_steps": 4, "x0_clamp": 3.0,
        "audio_condition_share": 0.5, "target_ema_decay": 0.9, "eval_ema_decay": 0.99, "sigma_data": 0.5,
        "lora": Lora(4), "start": "elsewhere", "guidance": "direct", "guidance_range": [1.0, 5.0],
        "grid": "linspace", "warm_start_snr": 5.0, "continuation_share": 0.25, "inpainting_share": 0.05, "chunks": 8,
    },
    "adversarial": {
        "weight": 0.5, "features": "clap", "loss": "non_saturating", "start_step": 3, "crop_frames": 4,
        "crop_context": 1, "head_width": 32, "r1_gamma": 0.0, "lr": 1e-3, "betas": [0.5, 0.99],
    },
    "optimization": {
        "lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1, "warmup_steps": 2, "decay_share": 0.25, "clip_norm": 2.0,
        "final_lr_share": 0.1, "accumulate": 2, "half_frozen": False, "gradient_checkpointing": True,
        "compile": "eager", "channels_last": True, "decay": "linear",
    },
}
KINDS = {"distillation": Distillation, "adversarial": Adversarial, "optimization": Optimization}
#: Settings that are of no use unless another has this value.
USED = {"distillation.x0_clamp": {"warm_start_steps": 2}, "optimization.final_lr_share": {"decay_share": 0.5},
        "distillation.guidance_range": {"guidance": "variable"}, "optimization.decay": {"decay_share": 0.5},
        "distillation.warm_start_snr": {"warm_start_steps": 2}, "distillation.chunks": {"continuation_share": 0.1}}
KEYS = [f"{group}.{key}" for group, others in OTHERS.items() for key in others]


def made(group: str = "", **changed: Any) -> dict[str, Any]:
    """The identity of a run with some settings of a group changed."""
    settings = {name: kind(**(changed if name == group else {})) for name, kind in KINDS.items()}
    bundle: Any = SimpleNamespace(denoiser_hash=lambda: "0123456789abcdef",
                                  kind=SimpleNamespace(network="unet"))
    return identity(bundle, *settings.values(), seed=0)


def resume(stated: dict[str, Any], mine: dict[str, Any], resuming: bool = True) -> list[str]:
    said: list[str] = []
    check_fit("run.ckpt", {}, {"state_dict": {}, "student": stated}, mine, resuming, said.append)
    return said


def test_every_setting_has_another_value_here() -> None:
    assert {group: set(others) for group, others in OTHERS.items()} == {
        group: {field.name for field in fields(kind)} for group, kind in KINDS.items()}


@pytest.mark.parametrize("key", [key for key in KEYS if key != "distillation.sigma_data"])
def test_a_setting_that_changes_the_run_is_compared_with_both_values(key: str) -> None:
    group, _, name = key.partition(".")
    used = USED.get(key, {})
    before, now = made(group, **used), made(group, **{**used, name: OTHERS[group][name]})
    assert resume(before, copy.deepcopy(before)) == []
    if key in MAY_CHANGE:
        assert resume(before, now) == []
        return
    with pytest.raises(MusiccmError) as error:
        resume(before, now)
    assert f"model.init_args.{key}: it was trained with {before[key]!r}, this run has {now[key]!r}" in str(error.value)
    if key not in MEANING:
        assert resume(before, now, resuming=False) == []


def test_settings_that_nothing_uses_are_not_compared() -> None:
    for group, used, unused in (("distillation", {"distance": "squared"}, {"huber_h": 1.0}),
                                ("distillation", {}, {"x0_clamp": 1.0}), ("adversarial", {"weight": 0.0}, {"lr": 1.0})):
        assert resume(made(group, **used), made(group, **used, **unused)) == []


def test_an_older_checkpoint_is_taken_as_it_is_and_says_so_once() -> None:
    now = made("distillation", tail=0.1)
    older = {key: value for key, value in made().items() if key in ONCE_STATED}
    (said,) = resume(older, now)
    assert "run.ckpt was written by an older version" in said
    assert "distillation.tail = 0.1" in said and "guidance_scale" not in said
    assert resume(older, now, resuming=False) == []
    with pytest.raises(MusiccmError, match="distillation.guidance_scale: it was trained with 3.0, this run has 2.0"):
        resume(older, made("distillation", guidance_scale=2.0))
    del older["distillation.guidance"], older["distillation.grid"]  # before there was a choice
    assert len(resume(older, now)) == 1
    for resuming in (True, False):
        with pytest.raises(MusiccmError, match="distillation.guidance: it was trained with 'fixed', .* has 'direct'"):
            resume(older, made("distillation", guidance="direct"), resuming)
        with pytest.raises(MusiccmError, match="distillation.grid: it was trained with 'even', .* has 'linspace'"):
            resume(older, made("distillation", grid="linspace"), resuming)


def test_a_setting_that_came_later_had_its_default() -> None:
    before = made()
    assert LATER in before
    del before["distillation.tail"]
    assert resume(before, made()) == []
    with pytest.raises(MusiccmError, match="distillation.tail: it was trained with 0.0, this run has 0.1"):
        resume(before, made("distillation", tail=0.1))


def test_a_field_of_a_nested_class_that_came_later_had_its_default() -> None:
    changed = {"curriculum": [Phase(0.5, 100), Phase(1.0, 40, 2)], "lora": Lora(rank=8)}
    before, now = made("distillation", **changed), made("distillation", **changed)
    for phase in before["distillation.curriculum"]:
        if phase["jumps"] == 1:
            del phase["jumps"]
    del before["distillation.lora"]["alpha"]
    for resuming in (True, False):
        assert resume(before, now, resuming) == []
    changed["curriculum"][0].jumps = 2
    with pytest.raises(MusiccmError, match="distillation.curriculum: it was trained with .*'jumps': 1.*'jumps': 2"):
        resume(before, made("distillation", **changed))
    with pytest.raises(MusiccmError, match=r"distillation.lora: it was trained with .*'alpha': 16\.0"):
        resume(before, made("distillation", lora=Lora(rank=8, alpha=4.0)), resuming=False)


@dataclass
class Extra:
    """Settings of an objective of one's own."""

    steps: int = 3
    phases: list[Phase] = field(default_factory=list)


class Own(MusicCM):
    def __init__(self, bundle: str, gain: float = 1.0, extra: Extra | None = None, part: nn.Module | None = None,
                 **system: Any) -> None:
        super().__init__(bundle, adversarial=Adversarial(weight=0.0), **system)
        self.gain, self.extra, self.part = gain, extra or Extra(phases=[Phase(0.5)]), part


class Other(Own):
    pass


def test_the_objectives_class_and_its_own_arguments_are_compared(tmp_path) -> None:
    bundle = str(build_random_bundle(tmp_path / "bundle", frames=4))
    plain_run = MusicCM(bundle, adversarial=Adversarial(weight=0.0))
    own, doubled = Own(bundle, part=nn.Dropout(0.1)), Own(bundle, gain=2.0, part=nn.Dropout(0.1))

    def saved(system: MusicCM) -> dict[str, Any]:
        checkpoint = {"state_dict": system.state_dict()}
        system.on_save_checkpoint(checkpoint)
        return checkpoint

    def go_on(checkpoint: dict[str, Any], system: MusicCM, **stated: Any) -> None:
        system._trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), ckpt_path="run.ckpt")
        try:
            student = {key: value for key, value in {**checkpoint["student"], **stated}.items() if value is not ABSENT}
            system.on_load_checkpoint({"state_dict": dict(checkpoint["state_dict"]), "student": student})
        finally:
            system._trainer = None

    first = saved(own)
    go_on(first, Own(bundle, extra=Extra(phases=[Phase(0.5)]), part=nn.Dropout(0.1)))  # as without `extra`
    here = __name__.replace(".", r"\.")
    for system, message in (
        (Other(bundle, part=nn.Dropout(0.1)),
         rf"model.class_path: it was trained with '{here}.Own', this run has '{here}.Other'"),
        (doubled, "init_args.gain: it was trained with 1.0, this run has 2.0"),
        (Own(bundle, extra=Extra(steps=4, phases=[Phase(0.5)]), part=nn.Dropout(0.2)),
         r"extra.steps: it was trained with 3, .* 4(.|\n)*init_args.part: .*'p': 0.1.*'p': 0.2"),
        (plain_run, "model.class_path: .*Own.*musiccm.systems.musiccm.MusicCM"),
    ):
        with pytest.raises(MusiccmError, match=message):
            go_on(first, system)

    # what its author added later, at any depth
    later = {"gain": ABSENT, "extra.steps": ABSENT, "extra.phases": [{"until": 0.5, "skip": 20}]}
    go_on(first, own, **later)
    with pytest.raises(MusiccmError, match="gain: it was trained with 1.0, this run has 2.0"):
        go_on(first, doubled, **later)

    # checkpoints that state no class are MusicCM's
    first = saved(plain_run)
    go_on(first, plain_run, class_path=ABSENT)
    with pytest.raises(MusiccmError, match=rf"class_path: .*musiccm.MusicCM', this run has '{here}.Own"):
        go_on(first, own, class_path=ABSENT)


WRONG = [
    ("distillation", "sigma_data", 1.0), ("distillation", "huber_h", 0.0), ("distillation", "huber_h", float("nan")),
    ("distillation", "timestep_scaling", 0.0), ("distillation", "guidance_scale", -1.0),
    ("distillation", "weight", -1.0),
    ("distillation", "grid_points", 0), ("distillation", "warm_start_steps", -1), ("distillation", "x0_clamp", 0.0),
    ("distillation", "target_ema_decay", 1.0), ("distillation", "eval_ema_decay", -0.1),
    ("distillation", "curriculum", [Phase(skip=0)]), ("distillation", "curriculum", [Phase(skip=2.5)]),
    ("distillation", "curriculum", [Phase(jumps=True)]), ("distillation", "tail", float("nan")),
    ("adversarial", "r1_gamma", -1e-5), ("adversarial", "betas", (0.0, 1.0)), ("adversarial", "betas", (0.5,)),
    ("adversarial", "start_step", 0.5), ("adversarial", "crop_frames", 0), ("adversarial", "crop_context", -1),
    ("adversarial", "head_width", 0), ("adversarial", "lr", 0.0), ("adversarial", "features", "vgg"),
    ("adversarial", "weight", float("inf")), ("adversarial", "loss", "wasserstein"),
    ("optimization", "betas", (0.9, 1.5)), ("optimization", "weight_decay", -0.1), ("optimization", "warmup_steps", -1),
    ("optimization", "decay_share", 1.5), ("optimization", "final_lr_share", 2.0), ("optimization", "accumulate", 1.5),
    ("optimization", "lr", float("nan")), ("optimization", "compile", "fast"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "key", "value"), WRONG)
def test_a_setting_out_of_range_is_refused_by_its_key(group: str, key: str, value: Any) -> None:
    KINDS[group]().check()
    replace(KINDS[group](), **{key: OTHERS[group][key]}).check()
    with pytest.raises(MusiccmError, match=rf"^{group}\.{key}: .*expected .*found"):
        replace(KINDS[group](), **{key: value}).check()


def small_stage(**more: Any) -> Stage:
    vit = {"frames": 128, "bins": 64, "patch_size": 16, "width": 32, "depth": 2, "heads": 2}
    return AudioMaeStage(vit, decoder_width=12, decoder_depth=1, decoder_heads=2, **more)


def saved(stage: Stage) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    stage.on_save_checkpoint(checkpoint)
    return checkpoint


def fitting(stage: Stage, fn: TrainerFn = TrainerFn.FITTING) -> Stage:
    stage._trainer = SimpleNamespace(ckpt_path="stage.ckpt", state=SimpleNamespace(fn=fn))
    return stage


@pytest.mark.parametrize(("key", "value"), [("lr", 1e-2), ("betas", (0.9, 0.95)), ("weight_decay", 0.5), ("seed", 3),
                                            ("warmup_steps", 7), ("ema_decay", 0.9), ("mask_ratio", 0.5)])
def test_a_stage_goes_on_under_its_own_settings_alone(key: str, value: Any) -> None:
    checkpoint = saved(small_stage())
    fitting(small_stage(bundle="elsewhere")).on_load_checkpoint(checkpoint)
    with pytest.raises(MusiccmError, match=rf"stage.ckpt does not fit .*\n.*init_args.{key}: it was trained with"):
        fitting(small_stage(**{key: value})).on_load_checkpoint(checkpoint)
    fitting(small_stage(**{key: value}), TrainerFn.VALIDATING).on_load_checkpoint(checkpoint)


def test_a_stage_takes_an_older_checkpoint_and_settings_that_came_later(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = saved(small_stage())
    del checkpoint["stage"]["mask_ratio"]
    fitting(small_stage()).on_load_checkpoint(checkpoint)
    with pytest.raises(MusiccmError, match="mask_ratio: it was trained with 0.8, this run has 0.5"):
        fitting(small_stage(mask_ratio=0.5)).on_load_checkpoint(checkpoint)
    fitting(small_stage(mask_ratio=0.5)).on_load_checkpoint({"train_seconds": 1.0})
    assert "older version" in caplog.text


@pytest.mark.parametrize("draws", [False, True])
def test_a_stage_that_goes_on_with_other_noise_says_so(
    draws: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AudioMaeStage, "draws_noise", draws)
    checkpoint = saved(small_stage())
    fitting(small_stage()).on_load_checkpoint(checkpoint)
    assert "drew noise" not in caplog.text
    del checkpoint["stage_noise"]  # as older versions wrote it
    fitting(small_stage()).on_load_checkpoint(checkpoint)
    assert ("stage.ckpt was written by a version that drew noise in another way" in caplog.text) == draws


@pytest.mark.parametrize(("wrong", "key"), [
    ({"lr": 0.0}, "lr"), ({"betas": (0.9, 1.0)}, "betas"), ({"ema_decay": 1.0}, "ema_decay"),
    ({"mask_ratio": 1.0}, "mask_ratio"), ({"weight_decay": -1.0}, "weight_decay"),
    ({"warmup_steps": -1}, "warmup_steps"),
])
def test_a_stage_refuses_numbers_out_of_range(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(MusiccmError, match=rf"model.init_args.{key}: expected .*found"):
        small_stage(**wrong)


def test_stages_refuse_their_own_numbers(tmp_path) -> None:
    from musiccm.audio.augment import Degradation

    with pytest.raises(MusiccmError, match="condition_dropout: expected a share"):
        TeacherStage({}, condition_dropout=1.5)
    with pytest.raises(MusiccmError, match="degradation.share: expected a share"):
        TaggerStage(degradation=Degradation(share=2.0))


def test_a_run_in_another_precision_is_said(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    from musiccm.systems.musiccm import MusicCM

    model = MusicCM(str(build_random_bundle(tmp_path / "b", evaluators=False)), adversarial=Adversarial(weight=0.0))
    checkpoint: dict[str, Any] = {"state_dict": dict(model.state_dict())}
    model._trainer = SimpleNamespace(precision="bf16-mixed", datamodule=None)
    model.on_save_checkpoint(checkpoint)
    model._trainer = SimpleNamespace(precision="32-true", datamodule=None, ckpt_path="run.ckpt",
                                     state=SimpleNamespace(fn=TrainerFn.FITTING))
    model.on_load_checkpoint(checkpoint)
    assert "trainer.precision bf16-mixed, this run has 32-true" in caplog.text


def test_settings_that_are_left_out_can_be_written_into_a_runs_config() -> None:
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in KINDS.items():
        parser.add_class_arguments(kind, name)
    config = parser.parse_args([])
    again = parser.instantiate_classes(parser.parse_string(parser.dump(config)))
    for name, kind in KINDS.items():
        assert plain(kind(**vars(again[name]))) == plain(kind()), name
    assert Distillation().curriculum == [Phase(1.0, 20, 1)], "the paper's"
