"""A distillation of a few steps on random latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch


class Save(Callback):
    """Writes a checkpoint after a batch."""

    def __init__(self, path: Path, at: int) -> None:
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.batches_seen == self.at:
            trainer.save_checkpoint(self.path)


def make_batches(system: Any, count: int, size: int = 2, mean: float = 0.0) -> list[LatentBatch]:
    """Batches of normalised latents N(mean, 1), with conditions of unit length and captions of their own."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(count):
        unit = nn.functional.normalize(torch.randn(size, system.conditioner.width, generator=generator), dim=1)
        shape = (size, *system.bundle.latent_shape())
        raw = system.codec.denormalise(mean + torch.randn(shape, generator=generator))
        names = [str(i) for i in range(size)]
        batches.append(LatentBatch(raw, unit, unit, names, [f"caption {name}" for name in names]))
    return batches


def fit(
    system: Any, batches: list[LatentBatch], steps: int, ckpt_path: Path | None = None, **options: Any
) -> Trainer:
    """Train; the batches come round as often as is needed for so many steps of the student."""
    options = {"max_steps": steps, "accelerator": "cpu", **options}
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                      **options)
    trainer.fit(system, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer
