"""Teachers of other noise processes: distilled, exported and sampled by the same code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers.schedulers import scheduling_flow_match_lcm
from pytorch_lightning import Trainer
from tiny_bundle import build_random_bundle
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch
from musiccm.diffusion import Angle, NoiseProcess, NoiseSchedule, RectifiedFlow, noise_process, prediction_type_of
from musiccm.diffusion.continuous import ContinuousProcess
from musiccm.diffusion.families import FAMILIES as PROCESSES
from musiccm.errors import MusiccmError
from musiccm.export import StudentInfo, export_student, student_scheduler
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.bundle.student_record import STUDENT_SCHEDULERS
from musiccm.models.denoiser import Consistency, Denoiser
from musiccm.pipeline import Pipeline
from musiccm.samplers import INITIAL, Lcm, Stepper, sample_noise, sample_seeds, seeded_noise_fn
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Phase

FAMILIES = {
    "flow": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
             "flow_prediction", RectifiedFlow(1000, 3.0)),
    "angle": ({"_class_name": "AngleScheduler", "num_train_timesteps": 1000}, "v_prediction", Angle()),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, NoiseProcess]:
    """A teacher of the family, what it predicts and its noise process."""
    scheduler, kind, process = FAMILIES[request.param]
    path = build_random_bundle(tmp_path / "teacher", frames=4, decoder=True)
    save_part(path, "scheduler", dict(scheduler))
    return path, kind, process


def distilled(path: Path, kind: str, steps: int = 2) -> MusicCM:
    torch.manual_seed(0)
    settings = Distillation(prediction_type=kind, warm_start_steps=1, curriculum=[Phase(1.0, 100, 2)], solver="heun")
    model = MusicCM(str(path), settings, Adversarial(weight=0.0))
    generator = torch.Generator().manual_seed(5)
    unit = torch.nn.functional.normalize(torch.randn(2, 32, generator=generator), dim=1)
    raw = torch.randn(2, *model.bundle.latent_shape(), generator=generator)
    batch = LatentBatch(raw, unit, unit, ["a", "b"], ["x", "y"])
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(model, DataLoader([batch] * steps, batch_size=None))
    return model


def test_a_teacher_is_distilled_exported_and_sampled(family: tuple[Path, str, NoiseProcess], tmp_path: Path) -> None:
    path, kind, process = family
    model = distilled(path, kind)
    unet = model.denoiser("online").unet
    assert all(torch.isfinite(p).all() for p in unet.parameters())
    folder = export_student(unet, Bundle.from_pretrained(path), tmp_path / "student", StudentInfo(kind, 3.0))
    student = Pipeline.from_pretrained(folder)
    assert student.is_student and type(student.schedule) is type(process)
    # by hand, over the family's own process
    f, seeds = Consistency(Denoiser(unet, process, kind).eval()), sample_seeds(0, 1)
    cond = student.conditioner.text(["slow organ chords"])
    shape = student.latent_shape
    expected = Stepper(f, process, [999, 759, 499, 259], Lcm()).sample(
        cond, sample_noise(seeds, shape), seeded_noise_fn(seeds, shape))
    torch.testing.assert_close(student.latents(cond, seeds), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(MusiccmError, match="distilled student"):
        MusicCM(str(folder))


def test_the_teacher_itself_is_sampled_by_every_fitting_rule(family: tuple[Path, str, NoiseProcess]) -> None:
    teacher = Pipeline.from_pretrained(family[0])
    sounds = [teacher("slow organ chords", steps=3, sampler=name) for name in ("ddim", "heun", "dpm-solver++")]
    assert all(torch.isfinite(sound).all() for sound in sounds)
    assert not torch.allclose(sounds[0], sounds[1]) and not torch.allclose(sounds[0], sounds[2])
    with pytest.raises(MusiccmError, match="the model is a teacher, which ddim, heun, dpm-solver.. sample"):
        teacher("slow organ chords", sampler="lcm")
    with pytest.raises(MusiccmError, match="choose ddim"):
        teacher.compose("slow organ chords", 2.0, 2, sampler="heun")


def test_a_student_that_cannot_say_x0_in_pure_noise_is_refused(family: tuple[Path, str, NoiseProcess]) -> None:
    with pytest.raises(MusiccmError, match="prediction_type: expected one of .*_prediction.*found 'epsilon'"):
        MusicCM(str(family[0]), Distillation(prediction_type="epsilon"), Adversarial(weight=0.0))


def test_diffusers_samples_a_rectified_flow_student_as_its_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, kind, _ = FAMILIES["flow"]
    path = build_random_bundle(tmp_path / "teacher", frames=4, decoder=True)
    save_part(path, "scheduler", dict(scheduler))
    teacher = Bundle.from_pretrained(path)
    folder = export_student(teacher.unet, teacher, tmp_path / "student", StudentInfo(kind, 3.0))
    ours = Pipeline.from_pretrained(folder)
    seeds = sample_seeds(0, 1)
    latents = ours.latents(ours.conditioner.text(["a calm piano melody"]), seeds, sampler="lcm")
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    draws = [sample_noise(seeds, ours.latent_shape, step) for step in (INITIAL, 0, 1, 2, 3)]
    monkeypatch.setattr(scheduling_flow_match_lcm, "randn_tensor", lambda *_, **__: draws.pop(0))
    monkeypatch.setattr(torch, "randn", lambda *_: draws.pop(0))
    theirs: dict = {}
    exec(snippet.replace("PATH_OF_THIS_FOLDER", str(folder)), theirs)
    torch.testing.assert_close(theirs["z"], latents, rtol=1e-4, atol=1e-4)


def test_a_students_file_of_another_family_is_refused(tmp_path: Path) -> None:
    scheduler, kind, _ = FAMILIES["angle"]
    path = build_random_bundle(tmp_path / "teacher", frames=4, decoder=True)
    save_part(path, "scheduler", dict(scheduler))
    teacher = Bundle.from_pretrained(path)
    folder = export_student(teacher.unet, teacher, tmp_path / "student", StudentInfo(kind, 3.0))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "LCMScheduler"}))
    with pytest.raises(MusiccmError, match="_class_name is 'LCMScheduler'.*AngleLCMScheduler"):
        Pipeline.from_pretrained(folder)


class Power(ContinuousProcess):
    """The straight line, gone along at another pace: sigma is a power of the time."""

    predictions = ("sample", "flow_prediction")
    usual_prediction = "sample"

    def __init__(self, steps: int, power: float) -> None:
        super().__init__(steps)
        self.power = power

    @classmethod
    def from_config(cls, config):
        return cls(config["num_train_timesteps"], config.get("power", 1.0))

    def config(self):
        return {"power": self.power}

    def sigma(self, t_B, dtype=torch.float32):
        return self._share(t_B, dtype) ** self.power

    def alpha(self, t_B, dtype=torch.float32):
        return 1.0 - self.sigma(t_B, dtype)

    def network_time(self, t_B):
        return self.sigma(t_B)


def test_a_process_of_ones_own_keeps_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = {"_class_name": "PowerScheduler", "num_train_timesteps": 1000, "power": 2.0}
    monkeypatch.setitem(PROCESSES, "PowerScheduler", Power)
    path = build_random_bundle(tmp_path / "teacher", frames=4, decoder=True)
    save_part(path, "scheduler", dict(scheduler))
    teacher, info = Bundle.from_pretrained(path), StudentInfo("sample", 3.0)
    assert prediction_type_of(scheduler) == teacher.prediction_type == "sample"

    with pytest.raises(MusiccmError, match=r"Power: no scheduler class .* STUDENT_SCHEDULERS .* FAMILIES"):
        student_scheduler(scheduler, info)
    monkeypatch.setitem(STUDENT_SCHEDULERS, Power, "PowerLCMScheduler")
    with pytest.raises(MusiccmError, match=r"PowerLCMScheduler' is read as .*FAMILIES"):
        student_scheduler(scheduler, info)
    monkeypatch.setitem(PROCESSES, "PowerLCMScheduler", Power)
    with monkeypatch.context() as patch, pytest.raises(MusiccmError, match=r"Power: its config\(\) states \{\}"):
        patch.setattr(Power, "config", lambda self: {})
        student_scheduler(scheduler, info)

    folder = export_student(teacher.unet, teacher, tmp_path / "student", info)
    assert Pipeline.from_pretrained(folder).schedule.power == 2.0
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "power": 3.0}))
    with pytest.raises(MusiccmError, match="power is 3.0, but the student was trained with 2.0"):
        Pipeline.from_pretrained(folder)


def test_a_table_is_built_again_from_what_it_states() -> None:
    stated = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
    table = noise_process({**stated, "num_train_timesteps": 1000, "clip_sample": False})
    assert isinstance(table, NoiseSchedule) and table.config() == stated
    given = NoiseSchedule(table.alphas_cumprod)  # of which no file said how it was made
    torch.testing.assert_close(NoiseSchedule.from_config(given.config()).alphas_cumprod, table.alphas_cumprod,
                               rtol=1e-12, atol=0)
