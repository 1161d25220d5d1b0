"""One, two and three processes over gloo, under Lightning's Trainer: each item once in evaluation, the same global
batches in training."""

from __future__ import annotations

import os
from pathlib import Path

import forked
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from small_cache import SAMPLES, make_cache
from small_corpus import write_corpus

from musiccm.data.module import MusicDataModule

WORLDS, GLOBAL_BATCH, EPOCHS = (1, 2, 3), 6, 2


class Recorder(pl.LightningModule):
    """Trains one number and remembers every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list] = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append((self.current_epoch, batch_idx, batch.ids, batch.captions, batch.latents_BCTF.sum()))
        return (self.weight - batch.latents_BCTF.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.seen["val"] += batch.ids

    def test_step(self, batch, batch_idx):
        self.seen["test"] += batch.ids

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def run(rank: int, world: int, folder: Path) -> None:
    data = MusicDataModule(str(folder / "corpus"), "latent", SAMPLES, batch_size=GLOBAL_BATCH // world,
                           eval_batch_size=2, val_clips=5, seed=3, cache_dir=str(folder))
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=EPOCHS, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(recorder, data)
    trainer.test(recorder, data, verbose=False)
    recorder.seen["val"] = recorder.seen["val"][: len(recorder.seen["val"]) // EPOCHS]
    torch.save({"seen": recorder.seen, "weight": recorder.weight.detach()}, folder / f"{world}-{rank}.pt")


def worker(rank: int, folder: Path, ports: dict[int, int]) -> None:
    torch.set_num_threads(1)
    for world, port in ports.items():
        if rank < world:
            if world > 1:
                os.environ.update(forked.rank_variables(rank, world, port))
            run(rank, world, folder)
            if dist.is_initialized():
                dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_corpus(folder / "corpus", train=71, test=7)
    make_cache(folder / "corpus", folder / "train")
    forked.spawn(worker, (folder, {world: forked.free_port() for world in WORLDS}), max(WORLDS))
    return {world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)] for world in WORLDS}


def test_evaluation_sees_every_item_once(results):
    for part, total in (("val", 5), ("test", 7)):
        expected = results[1][0]["seen"][part]
        assert len(set(expected)) == len(expected) == total  # odd numbers: some process has one item less
        for world in WORLDS:
            found = [name for result in results[world] for name in result["seen"][part]]
            assert sorted(found) == sorted(expected)
            lengths = [len(result["seen"][part]) for result in results[world]]
            assert max(lengths) - min(lengths) == (0 if world == 1 else 1 if total % world else 0)


def test_training_has_the_same_global_batches_and_weights(results):
    (alone,) = results[1]
    expected = alone["seen"]["train"]
    assert len(expected) == EPOCHS * (66 // GLOBAL_BATCH) and expected[0][2] != expected[11][2]
    for world in WORLDS[1:]:
        for n, (epoch, place, ids, captions, total) in enumerate(expected):
            parts = [result["seen"]["train"][n] for result in results[world]]
            assert all(part[:2] == (epoch, place) for part in parts)
            assert [name for part in parts for name in part[2]] == ids
            assert [caption for part in parts for caption in part[3]] == captions
            assert float(sum(part[4] for part in parts)) == pytest.approx(float(total), rel=1e-5)
        for result in results[world]:
            assert float(result["weight"]) == pytest.approx(float(alone["weight"]), rel=1e-5)
