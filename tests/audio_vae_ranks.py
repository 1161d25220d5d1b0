"""A run of MeLoDy's audio VAE on as many processes as there are, or alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import forked
import pytorch_lightning as pl
import torch
from stages import stage_of

from musiccm.data.module import MusicDataModule
from musiccm.systems.stages.audio_vae import AudioVaeStage

STEPS, STARTS = 4, 2


def fit(bundle: str, corpus: str, out: Path, **options: Any) -> AudioVaeStage:
    """Train for `STEPS`, the discriminator from `STARTS` on."""
    stage = stage_of("audio_vae", bundle, adversarial_start=STARTS, warmup_steps=1, lr=1e-3, moments_batches=1,
                     ema_decay=0.5)
    stage.bundle = out
    trainer = pl.Trainer(max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
                         val_check_interval=STEPS, check_val_every_n_epoch=None, num_sanity_val_steps=0,
                         enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                         default_root_dir=out, **options)
    trainer.fit(stage, datamodule=MusicDataModule(corpus, clip_samples=10240, batch_size=2, val_clips=4))
    return stage


def worker(rank: int, bundle: str, corpus: str, out: Path, port: int) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ.update(forked.rank_variables(rank, 2, port))
    stage = fit(bundle, corpus, out, devices=2, strategy="ddp")
    torch.save({"vae": stage.part.state_dict(), "discriminator": stage.discriminator.state_dict(),
                "average": stage.ema.module.state_dict()}, out / f"rank{rank}.pt")
