"""What the callbacks ask of a system and a data module, on a bundle with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tiny_bundle import CAPTIONS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from musiccm.diffusion import NoiseSchedule, StudentGuidance, student_grid
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
    def waveforms(self, split: str, limit: int | None = None) -> Dataset:
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
        self.codec, self.conditioner = self.bundle.codec("original"), self.bundle.conditioner()
        self.schedule = NoiseSchedule.from_config(self.bundle.scheduler_config)
        self.teacher = Denoiser(self.bundle.unet, self.schedule, "epsilon")
        self.grid, self.guidance_scale, self.student_guidance = student_grid(), 3.0, StudentGuidance()
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
