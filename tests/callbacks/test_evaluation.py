"""The callbacks on a whole bundle with random weights, through a real Trainer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import soundfile
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tiny_bundle import CAPTIONS, build_random_bundle
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from musiccm.callbacks.evaluation import Evaluation
from musiccm.callbacks.panels import Panels
from musiccm.diffusion import NoiseSchedule, student_grid
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.denoiser import Consistency, Denoiser

N, SAMPLES = 6, 128 * 160


class Clips(Dataset):
    """Noise that is the same every time, with captions and attributes."""

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(self.first + i)
        return {
            "waveform_S": 0.1 * torch.randn(SAMPLES, generator=generator), "tags_G": torch.zeros(0),
            "id": f"clip/{self.first + i}", "caption": CAPTIONS[i % len(CAPTIONS)],
            "attributes": {"instrument": ("piano", "organ")[i % 2]},
            "start_s": 0.0,
        }


class Data(pl.LightningDataModule):
    def waveforms(self, split: str) -> Dataset:
        return Clips({"test": 0, "val": N, "train": 2 * N}[split])

    def train_clap_audio(self) -> tuple[list[str], Tensor]:
        return ["t0", "t1"], torch.eye(32)[:2]

    def test_dataloader(self) -> DataLoader:
        return DataLoader([0])

    train_dataloader = val_dataloader = test_dataloader


class System(pl.LightningModule):
    """What the callbacks ask of a system, with nothing trained but one number."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.bundle = Bundle.from_pretrained(path)
        self.codec, self.conditioner = self.bundle.codec(), self.bundle.conditioner()
        self.schedule = NoiseSchedule.from_config(self.bundle.scheduler_config)
        self.teacher = Denoiser(self.bundle.unet, self.schedule, "epsilon")
        self.grid, self.guidance_scale = student_grid(), 3.0
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def consistency(self, which: str) -> Consistency:
        assert which == "slow"
        return Consistency(self.teacher)

    def test_step(self, batch: Tensor) -> None:
        return None

    validation_step = test_step

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("bundle"), frames=8)


def trainer(root: Path, callbacks: list[pl.Callback], **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=root, logger=TensorBoardLogger(str(root / "lightning_logs"), name="tiny"), callbacks=callbacks,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **kwargs,
    )


def test_test_writes_the_table_once_computed_and_once_from_the_cache(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for version in range(2):
        evaluation = Evaluation(
            steps=[1, 2], teacher_steps=[2, 1], limit=5, batch_size=3, n_panels=2, progress=False,
            panel_labels=["teacher@2", "student@1"],
        )
        trainer(tmp_path, [evaluation]).test(System(bundle), Data(), verbose=False)
        folder = tmp_path / "lightning_logs" / "tiny" / f"version_{version}"
        found.append(json.loads((folder / "results.json").read_text()))
        assert {path.name for path in folder.iterdir()} >= {
            "results.json", "results.txt", "fd_against_calls.png", "nearest_training_clips.json", "samples"
        }
        assert "student" in capsys.readouterr().out
    first, second = found
    assert first["experiment"] == "tiny"
    assert first["n"] == 5
    assert [(r["model"], r["steps"], r["network_calls"], r["guidance_scale"]) for r in first["rows"]] == [
        ("teacher", 1, 2, 3.0), ("teacher", 2, 4, 3.0), ("student", 1, 1, None), ("student", 2, 2, None)
    ]
    for row in first["rows"]:
        assert math.isfinite(row["fd_tagger"]) and row["fd_tagger"] > 0
        assert 0 <= row["acc_instrument"] <= 1 and "acc_drums" not in row
        assert row["latency_s"] == pytest.approx(
            row["latency_text_s"] + row["latency_sampler_s"] + row["latency_decode_s"], rel=0.5
        )
    assert -1 <= first["references"]["test_set_ta"] <= first["references"]["retrieval_max_ta"] + 2
    assert first["references"]["n_fd_tagger_real"] == 5 and first["references"]["fd_tagger_real"] > 0
    assert first["references"]["fd_tagger_real"] == pytest.approx(second["references"]["fd_tagger_real"], rel=1e-6)
    assert "fd_tagger_real" in (folder / "results.txt").read_text()
    for old, new in zip(first["rows"], second["rows"], strict=True):
        assert new.get("from_cache", False) == (new["model"] == "teacher")
        assert new["fd_tagger"] == pytest.approx(old["fd_tagger"], rel=1e-6)
        if new["model"] == "teacher":
            assert new["latency_s"] == old["latency_s"]
    samples = sorted(path.name for path in (folder / "samples").glob("*.wav"))
    assert samples == [f"clip_{i}_{model}.wav" for i in (0, 1) for model in ("student_1", "teacher_2")]
    audio = [soundfile.read(folder.parent / f"version_{v}" / "samples" / samples[0])[0] for v in (0, 1)]
    assert audio[0].shape == (SAMPLES,) and abs(audio[0] - audio[1]).max() < 1e-3
    assert (folder / "samples" / "clip_0.png").stat().st_size > 1000


def test_validation_logs_what_a_checkpoint_can_monitor(bundle: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, [Evaluation(val_steps=[1], val_limit=4, batch_size=4)])
    run.validate(System(bundle), Data(), verbose=False)
    assert math.isfinite(float(run.callback_metrics["val/fd_tagger_1"]))
    assert "val/is_tagger_mean_1" not in run.callback_metrics  # four clips say nothing over ten splits
    silent = trainer(tmp_path, [Evaluation(every_n_validations=0)])
    silent.validate(System(bundle), Data(), verbose=False)
    assert not silent.callback_metrics


def test_a_shipped_student_that_cannot_be_scored_stops_the_run_before_its_first_step(
    bundle: Path, tmp_path: Path
) -> None:
    system = System(bundle)
    expected = {"nowhere/at/all": "shipped_student: .*nowhere/at/all", str(bundle): "found a teacher"}
    for student, message in expected.items():
        run = trainer(tmp_path, [Evaluation(shipped_student=student)], max_steps=1)
        with pytest.raises(MusiccmError, match=message):
            run.fit(system, Data())
        assert run.global_step == 0
        with pytest.raises(MusiccmError, match=message):
            trainer(tmp_path, [Evaluation(shipped_student=student)]).test(system, Data(), verbose=False)


def test_panels_hear_the_teacher_once_and_the_student_as_it_goes(bundle: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    panels = Panels(prompts=CAPTIONS[:2], steps=[1], teacher_steps=2, every_n_steps=2)
    trainer(tmp_path, [panels], max_steps=5, max_epochs=9, limit_val_batches=0).fit(System(bundle), Data())
    events = accumulator.EventAccumulator(str(tmp_path / "lightning_logs" / "tiny" / "version_0"))
    events.Reload()
    assert sorted(events.Tags()["audio"]) == [
        f"{model}/audio_{i}" for model in ("student@1", "teacher@2") for i in (0, 1)
    ]
    assert [event.step for event in events.Audio("teacher@2/audio_0")] == [0]
    assert [event.step for event in events.Images("student@1/mels")] == [0, 2, 4, 5]
