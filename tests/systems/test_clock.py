"""One optimizer advances the clock. A Lightning upgrade that changes this must speak up here."""

from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from musiccm.systems.clock import clock_stopped


class TwoPlayers(LightningModule):
    """A student and a discriminator that step from a given batch on, both by hand."""

    def __init__(self, stop_clock: bool, discriminator_from: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student = torch.nn.Linear(2, 1)
        self.discriminator = torch.nn.Linear(2, 1)
        self.stop_clock = stop_clock
        self.discriminator_from = discriminator_from
        self.discriminator_steps = 0

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        opt_student, opt_discriminator = self.optimizers()
        if batch_idx >= self.discriminator_from:
            opt_discriminator.zero_grad()
            self.manual_backward(self.discriminator(batch).mean())
            with clock_stopped(opt_discriminator) if self.stop_clock else nullcontext():
                opt_discriminator.step()
            self.discriminator_steps += 1
        opt_student.zero_grad()
        self.manual_backward(self.student(batch).mean())
        opt_student.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.student, self.discriminator)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(20, 2), batch_size=1)


def fit(model: LightningModule, tmp_path, **kwargs) -> Trainer:
    kwargs = {"max_epochs": 1, "enable_checkpointing": False, **kwargs}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, **kwargs,
    )  # fmt: skip
    trainer.fit(model)
    return trainer


@pytest.mark.parametrize(("stop_clock", "expected"), [(True, 20), (False, 40)])
def test_only_the_student_counts(tmp_path, stop_clock, expected):
    model = TwoPlayers(stop_clock)
    before = model.discriminator.weight.detach().clone()
    trainer = fit(model, tmp_path)
    # The uncounted case is here on purpose: once Lightning counts 20 by itself, the helper can go.
    assert trainer.global_step == expected
    assert model.discriminator_steps == 20
    assert not torch.equal(model.discriminator.weight, before), "the discriminator must still learn"


def test_max_steps_counts_student_steps(tmp_path):
    model = TwoPlayers(stop_clock=True)
    trainer = fit(model, tmp_path, max_epochs=None, max_steps=7)
    assert trainer.global_step == 7
    assert model.discriminator_steps == 7


def test_checkpoint_cadence_survives_a_late_discriminator(tmp_path):
    """With both counted and an odd start, `global_step % 4` is never 0 and nothing is ever saved."""

    def saved(stop_clock: bool) -> int:
        folder = tmp_path / str(stop_clock)
        cadence = ModelCheckpoint(dirpath=folder, every_n_train_steps=4, save_top_k=-1)
        fit(TwoPlayers(stop_clock, 3), tmp_path, callbacks=[cadence], enable_checkpointing=True)
        return len(list(folder.glob("*.ckpt")))

    assert saved(stop_clock=True) == 5
    assert saved(stop_clock=False) != 5


def test_hooks_return_even_after_an_error(tmp_path):
    class Failing(TwoPlayers):
        def training_step(self, batch, batch_idx):
            _, opt_discriminator = self.optimizers()
            hooks = (opt_discriminator._on_before_step, opt_discriminator._on_after_step)
            with pytest.raises(ZeroDivisionError), clock_stopped(opt_discriminator):
                raise ZeroDivisionError
            assert (opt_discriminator._on_before_step, opt_discriminator._on_after_step) == hooks
            super().training_step(batch, batch_idx)

    assert fit(Failing(stop_clock=False), tmp_path).global_step == 40


def test_bare_optimizer_is_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(TypeError, match="SGD"), clock_stopped(optimizer):
        pass
