"""A run that is not finite or explodes stops with step, clips and checkpoint, and nothing spoilt is ever saved."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from musiccm.callbacks.divergence import Divergence, first_not_finite
from musiccm.callbacks.last_checkpoint import LastStep
from musiccm.errors import MusiccmError
from musiccm.systems.later import Later


class Scripted(LightningModule):
    """Logs the losses it is told to; from a step on, its gradient may be NaN though the loss is finite."""

    def __init__(self, losses: list[float], nan_gradient_at: int | None = None, frozen_nan: bool = False) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Linear(1, 1).requires_grad_(False)
        if frozen_nan:
            self.frozen.weight.fill_(float("nan"))
        self.losses, self.nan_gradient_at = losses, nan_gradient_at

    def training_step(self, batch, batch_idx):
        value = torch.tensor(self.losses[self.global_step])
        bad = self.global_step + 1 == self.nan_gradient_at
        loss = self.net.weight.sum() * (float("nan") if bad else 1.0)
        return {"loss": loss, "watched": {"loss_x": value, "grad_norm_y": torch.tensor(1e9)}}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Batch(SimpleNamespace):
    pass


class Steps(Callback):
    """Counts the steps that were made."""

    made = 0

    def on_train_batch_start(self, *_):
        self.made += 1


def fit(tmp_path, losses, every=1, guard=None, **model):
    batches = [Batch(ids=[f"{n}a", f"{n}b"]) for n in range(len(losses))]
    steps = Steps()
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_top_k=0, save_last=True)
    trainer = Trainer(
        max_steps=len(losses), accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=[guard or Divergence(), steps, saver],
    )  # fmt: skip
    trainer.callbacks.append(LastStep())
    module = Scripted(losses, **model)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return steps.made


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("every", [1, 2, 100])
def test_a_loss_that_is_not_finite_names_step_clips_and_checkpoint(tmp_path, bad, every):
    with pytest.raises(MusiccmError) as caught:
        fit(tmp_path, [1.0, 1.0, 1.0, bad, 1.0, 1.0, 1.0], every)
    said = str(caught.value)
    assert f"loss_x is {bad} at step 4, on the clips 3a, 3b" in said
    if every == 100:
        assert "no checkpoint had been written yet" in said and not (tmp_path / "last.ckpt").exists()
        return
    step = {1: 3, 2: 2}[every]
    assert f"the last good checkpoint is {tmp_path / 'last.ckpt'} (step {step})" in said
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step


def test_the_last_step_is_judged_too(tmp_path):
    with pytest.raises(MusiccmError, match="at step 3, on the clips 2a, 2b"):
        fit(tmp_path, [1.0, 1.0, float("nan")], every=100)


def test_the_run_stops_one_step_after_at_the_latest(tmp_path):
    guard, steps = Divergence(), Steps()
    with pytest.raises(MusiccmError, match="at step 2,"):
        trainer = Trainer(max_steps=9, accelerator="cpu", logger=False, enable_progress_bar=False,
                          enable_model_summary=False, enable_checkpointing=False, callbacks=[guard, steps])
        batches = [Batch(ids=["x"]) for _ in range(9)]
        trainer.fit(Scripted([1.0, float("nan")] + [1.0] * 7), DataLoader(batches, batch_size=None))
    assert steps.made == 3


def test_weights_that_are_not_finite_are_not_saved_though_every_loss_was(tmp_path):
    with pytest.raises(MusiccmError, match=r"net.weight is not finite at step 3, so nothing was saved; .*\(step 2\)"):
        fit(tmp_path, [1.0] * 5, nan_gradient_at=3)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and torch.isfinite(saved["state_dict"]["net.weight"]).all()


def test_what_is_frozen_is_not_looked_at(tmp_path):
    assert fit(tmp_path, [1.0] * 2, frozen_nan=True) == 2


def test_an_explosion_stops_the_run_and_an_outlier_does_not(tmp_path):
    calm = [0.5, 0.6, 0.4, 0.5] * 3
    def guard():
        return Divergence(factor=10.0, patience=3, window=8)

    assert fit(tmp_path, [*calm, 50.0, 50.0, *calm, 50.0], guard=guard()) == 27
    assert fit(tmp_path, [*calm, 9.0, 9.0, 9.0, 9.0], guard=guard()) == 16, "small losses have a floor of 1"
    with pytest.raises(MusiccmError, match="loss_x is -50, for 3 steps above 10 times its median of 1 at step 15"):
        fit(tmp_path, [*calm, 50.0, 50.0, -50.0, 1.0], guard=guard())


def test_a_wrong_setting_is_refused():
    with pytest.raises(MusiccmError, match="divergence"):
        Divergence(patience=0)


def test_the_first_tensor_that_is_not_finite_is_named():
    good = torch.tensor([1.0, -3e38])
    tensors = [("a", good), ("counts", torch.tensor([1])), ("empty", torch.zeros(0)),
               ("b", torch.tensor([0.0, float("-inf")])), ("c", torch.tensor(float("nan")))]
    assert first_not_finite(tensors) == "b"
    assert first_not_finite(tensors[:3]) is None
    assert first_not_finite([("c", torch.tensor([1.0, float("nan"), 2.0]).bfloat16())]) == "c"


def test_numbers_are_handed_out_once_and_later(device):
    later = Later()
    assert later.take() is None
    later.put(torch.arange(3.0, device=device))
    assert later.take() == [0.0, 1.0, 2.0] and later.take() is None
