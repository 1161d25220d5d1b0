"""The examples of docs/extend.md, as they stand there."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from tiny_bundle import SCHEDULER, build_random_bundle
from torch.utils.data import DataLoader

from musiccm.audio import write_audio
from musiccm.cli import main
from musiccm.data.batch import LatentBatch
from musiccm.errors import MusiccmError
from musiccm.evaluation import registry
from musiccm.export import StudentInfo, export_student
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.pipeline import Pipeline
from musiccm.systems.settings import Distillation, Optimization
from musiccm.systems.student_weights import STUDENT_WEIGHTS

DOC = Path(__file__).parents[1] / "docs/extend.md"


def example(file: str) -> dict:
    text = DOC.read_text(encoding="utf-8")
    found = re.findall(rf"^```python\n# {re.escape(file)}\n(.*?)^```", text, flags=re.S | re.M)
    names: dict = {"__name__": file.removesuffix(".py")}
    exec(compile(found[0], file, "exec"), names)
    return names


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build_random_bundle(tmp_path_factory.mktemp("bundle") / "teacher", frames=4, decoder=True)
    save_part(path, "scheduler", {**SCHEDULER, "prediction_type": "v_prediction"})
    return path


def test_an_objective_of_ones_own_learns_resumes_and_exports(bundle: Path, tmp_path: Path) -> None:
    kind = example("one_step.py")["OneStep"]
    unit = torch.nn.functional.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(1)), dim=1)

    def fit(steps: int, ckpt_path: Path | None = None, scale: float = 3.0):
        torch.manual_seed(0)
        system = kind(str(bundle), Distillation(guidance_scale=scale), Optimization(lr=3e-3))
        batch = LatentBatch(torch.zeros(4, *system.bundle.latent_shape()), unit, unit, list("abcd"), list("wxyz"))
        losses: list[float] = []
        system._log_parts = lambda parts, *_: losses.append(float(parts["loss_one_step"]))
        trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                          enable_model_summary=False, enable_checkpointing=False)
        trainer.fit(system, DataLoader([batch] * 40, batch_size=None), ckpt_path=ckpt_path)
        return system, trainer, losses

    system, trainer, losses = fit(40)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    _, half, _ = fit(20)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = fit(40, tmp_path / "half.ckpt")
    found = resumed.state_dict()
    for name, value in system.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)
    with pytest.raises(MusiccmError, match=r"guidance_scale.*3\.0.*2\.0"):
        fit(40, tmp_path / "half.ckpt", scale=2.0)

    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    state = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    unet = copy.deepcopy(Bundle.from_pretrained(bundle).unet)
    own = {key.removeprefix(STUDENT_WEIGHTS): value for key, value in state.items() if key.startswith(STUDENT_WEIGHTS)}
    unet.load_state_dict(own)
    folder = export_student(unet, Bundle.from_pretrained(bundle), tmp_path / "out", StudentInfo("v_prediction", 3.0))
    assert torch.isfinite(Pipeline.from_pretrained(folder)("slow organ chords", steps=1)).all()


def test_a_sampler_of_ones_own_makes_clips_and_long_music(bundle: Path, tmp_path: Path) -> None:
    fading = example("fading.py")["Fading"]()
    teacher = Bundle.from_pretrained(bundle)
    student = Pipeline.from_pretrained(
        export_student(teacher.unet, teacher, tmp_path / "student", StudentInfo("v_prediction", 3.0))
    )
    clip = student("slow organ chords", steps=4, sampler=fading)[0]
    assert not torch.allclose(clip, student("slow organ chords", steps=4)[0])
    # between two steps it is LCM's sampler with the share that it states for the second
    two = student("slow organ chords", steps=2, sampler=fading)[0]
    torch.testing.assert_close(two, student("slow organ chords", steps=2, sampler={"name": "lcm", "gamma": 0.499})[0])
    whole = student.compose("slow organ chords", 1.5, 4, sampler=fading)
    streamed = torch.cat(list(student.stream("slow organ chords", 1.5, 4, sampler=fading)))
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)


def test_a_metric_of_ones_own_is_taken_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = example("median_gap.py")["ROW"]
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, row))
    draw = torch.Generator().manual_seed(0)
    for side in ("generated", "reference"):
        for n in range(3):
            write_audio(tmp_path / side / f"{n}.wav", 0.1 * torch.randn(9000, generator=draw), 16000)
    assert main(["evaluate", "--generated", str(tmp_path / "generated"), "--reference", str(tmp_path / "reference"),
                 "--bundle", "musiccm-tiny", "--embedder", "tagger", "--median-gap"]) == 0
    found = json.loads((tmp_path / "generated-evaluation.json").read_text())["figures"]["median_gap_tagger"]
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("median_gap_tagger"))
    assert printed.split() == ["median_gap_tagger", f"{found:.6g}", "lower"] and found > 0
