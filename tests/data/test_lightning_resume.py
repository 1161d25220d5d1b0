"""A run that is stopped in the middle of an epoch and resumed by Lightning sees what the uninterrupted one saw."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from small_corpus import write_corpus

from musiccm.data.module import MusicDataModule


class Recorder(pl.LightningModule):
    """Trains one number and remembers every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.ids, batch.captions, batch.start_s))
        return (self.weight - batch.waveform_BS.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.seen.append(("val", batch_idx, batch.ids))

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.5)


def run(root, folder, max_steps, workers=0, ckpt_path=None, **options):
    data = MusicDataModule(str(root), clip_samples=4000, batch_size=4, val_clips=2, num_workers=workers)
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[pl.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")],
        **options,
    )
    trainer.fit(recorder, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return recorder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("stop", [2, 4, 6, 9])
@pytest.mark.parametrize(("workers", "options"), [
    (0, {"limit_val_batches": 0}),
    (1, {"limit_val_batches": 0}),
    (0, {"check_val_every_n_epoch": None, "val_check_interval": 3}),
])
def test_resumed_run_equals_the_uninterrupted_one(root, tmp_path, stop, workers, options):
    expected = run(root, tmp_path / "a", 11, **options)  # epochs of 4 batches
    resumed = run(root, tmp_path / "a", 11, workers, ckpt_path=tmp_path / "a" / f"step={stop}.ckpt", **options)
    trained = [seen for seen in expected.seen if seen[0] != "val"]
    assert [seen for seen in resumed.seen if seen[0] != "val"] == trained[stop:]
    assert torch.equal(resumed.weight, expected.weight)
