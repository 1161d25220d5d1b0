"""What evaluation reads while a GPU embeds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_corpus import write_corpus

from musiccm.callbacks import assembly
from musiccm.callbacks.assembly import rank_loader
from musiccm.data.module import MusicDataModule


def trainer(kind: str, data: Any, rank: int = 0, world: int = 1) -> Any:
    strategy = SimpleNamespace(root_device=torch.device(kind))
    return SimpleNamespace(strategy=strategy, datamodule=data, num_devices=1, global_rank=rank, world_size=world)


def test_a_gpus_clips_are_read_by_others_and_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "default_workers", lambda processes, batch_bytes: processes * batch_bytes // 64000)
    data = MusicDataModule(str(write_corpus(tmp_path, 4, 7)), clip_samples=8000)
    data.setup("test")
    clips = data.waveforms("test")
    here, mine = rank_loader(clips, 7, trainer("cpu", data, 1, 2), 2)
    there, same = rank_loader(clips, 7, trainer("cuda", data, 1, 2), 2)
    # two clips of 8,000 samples in float32 are 64,000 bytes
    assert (here.num_workers, there.num_workers, mine, same) == (0, 1, 3, 3)
    for one, other in zip(here, there, strict=True):
        assert one.ids == other.ids and torch.equal(one.waveform_BS, other.waveform_BS)
    asked = MusicDataModule(str(tmp_path), clip_samples=8000, num_workers=2)
    assert rank_loader(clips, 7, trainer("cuda", asked), 2)[0].num_workers == 2
    assert rank_loader(clips, 2, trainer("cuda", asked), 2)[0].num_workers == 1, "no more than batches"
    assert rank_loader(clips, 7, trainer("cuda", object()), 2)[0].num_workers == 0
