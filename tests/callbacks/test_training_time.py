"""What training took, by a clock that the test moves: steps alone, exactly, also over a resume."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from musiccm.callbacks import training_time
from musiccm.callbacks.training_time import TrainingTime, read_clock, training_record
from musiccm.data.trajectories.files import Cost
from musiccm.systems.clock import clock_stopped


class Clock:
    """Wall seconds, and processor seconds that pass twice as fast."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 2 * self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(training_time, "time", found)
    return found


class System(pl.LightningModule):
    """A step takes as many seconds as its number, a validation a thousand."""

    def __init__(self, clock: Clock, accumulate: int = 1) -> None:
        super().__init__()
        self.weight, self.clock = torch.nn.Parameter(torch.zeros(())), clock
        self.optimization = SimpleNamespace(accumulate=accumulate)
        self.distillation = SimpleNamespace(start="some-student")

    def training_step(self, batch, batch_idx):
        self.clock.now += self.global_step + 1
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.clock.now += 1000

    def test_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Panels(pl.Callback):
    """Works at the end of each batch, for ten thousand seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_):
        self.clock.now += 10000


class Data(pl.LightningDataModule):
    batch_size = 3

    def train_dataloader(self):
        return DataLoader(range(12), batch_size=self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


def trainer(root, clock, steps, **options):
    callbacks = [TrainingTime(), Panels(clock), ModelCheckpoint(root, every_n_train_steps=2, save_top_k=-1,
                                                                filename="{step}", save_last=True)]
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, callbacks=callbacks, val_check_interval=2, **options)


def test_steps_alone_are_counted_and_once_over_a_resume(tmp_path, clock):
    system = System(clock, accumulate=2)
    fit = trainer(tmp_path, clock, 5)
    fit.fit(system, datamodule=Data())
    assert clock.now > 60000
    record = training_record(fit, system)
    assert record["seconds"] == 1 + 2 + 3 + 4 + 5 and record["processor_seconds"] == 2 * record["seconds"]
    # from step 4: the fifth, which was made already, is made again, and two more
    again, other = trainer(tmp_path, clock, 7), System(clock, accumulate=2)
    again.fit(other, datamodule=Data(), ckpt_path=tmp_path / "step=4.ckpt")
    assert training_record(again, other)["seconds"] == 28  # and not that of the checkpoint
    (time,) = [callback for callback in again.callbacks if isinstance(callback, TrainingTime)]
    assert [(part.seconds, part.processor_seconds, part.batches) for part in time.parts] == [(28, 56, 7)]


def test_the_record_is_that_of_the_checkpoint_which_is_tested(tmp_path, clock, caplog):
    system = System(clock)
    trainer(tmp_path, clock, 4).fit(system, datamodule=Data())
    test = trainer(tmp_path, clock, 4)
    records = {}

    class Ask(pl.Callback):
        def on_test_end(self, trainer, pl_module):
            records[trainer.ckpt_path] = training_record(trainer, pl_module)

    test.callbacks.append(Ask())
    for name in ("step=2.ckpt", "step=4.ckpt"):
        test.test(System(clock), datamodule=Data(), ckpt_path=tmp_path / name, verbose=False)
    two, four = records.values()
    assert two == {
        "seconds": 3, "processor_seconds": 6, "device": training_time.device_name(torch.device("cpu")),
        "devices": 1, "steps": 2, "updates": 2, "batch": 3, "objective": "System", "start": "some-student"}
    assert (four["seconds"], four["steps"]) == (10, 4) and "not known" not in caplog.text
    # a checkpoint of an older version
    content = torch.load(tmp_path / "step=4.ckpt", weights_only=False)
    del content["callbacks"]["TrainingTime"]
    torch.save(content, tmp_path / "old.ckpt")
    test.test(System(clock), datamodule=Data(), ckpt_path=tmp_path / "old.ckpt", verbose=False)
    old = list(records.values())[-1]
    assert (old["steps"], old["seconds"], old["updates"], old["batch"], old["device"]) == (4, None, None, None, None)
    assert "what the training took is not known" in caplog.text
    # and what goes on from it does not know the first steps
    again, other = trainer(tmp_path / "on", clock, 5), System(clock)
    again.fit(other, datamodule=Data(), ckpt_path=tmp_path / "old.ckpt")
    record = training_record(again, other)
    assert (record["steps"], record["seconds"], record["processor_seconds"]) == (5, None, None)
    last = trainer(tmp_path / "last", clock, 6)
    last.fit(other, datamodule=Data(), ckpt_path=tmp_path / "on" / "last.ckpt")
    assert training_record(last, other)["seconds"] is None


class WithCritic(System):
    """Every third batch is the student's, the others a critic's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.automatic_optimization, self.critic = False, torch.nn.Parameter(torch.zeros(()))
        self.seen = 0

    def training_step(self, batch, batch_idx):
        student, critic = self.optimizers()
        self.clock.now += 1
        self.seen += 1
        if self.seen % 3 == 0:
            student.step()
        else:
            with clock_stopped(critic):
                critic.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in (self.weight, self.critic)]


def test_steps_are_the_students_and_updates_a_critics_too(tmp_path, clock):
    system = WithCritic(clock)
    fit = trainer(tmp_path, clock, 4)
    fit.fit(system, datamodule=Data())
    record = training_record(fit, system)
    assert (record["steps"], record["updates"], record["seconds"]) == (4, 12, 12)
    step, read = read_clock(tmp_path / "last.ckpt")
    assert (step, read.seconds) == (4, 12)


def test_what_the_trajectories_took_is_kept_with_the_weights(tmp_path, clock):
    cost = Cost(7, 40.0, 80.0, "x")

    class Paths(Data):
        trajectories_dir = "paths"

        def trajectories(self):
            return SimpleNamespace(cost=cost)

    fit, system = trainer(tmp_path, clock, 2), System(clock)
    fit.fit(system, datamodule=Paths())
    stated = {"paths": 7, "seconds": 40.0, "processor_seconds": 80.0, "device": "x"}
    assert training_record(fit, system)["trajectories"] == stated
    assert read_clock(tmp_path / "step=2.ckpt")[1].trajectories == stated  # as a test reads it, which needs no paths


def test_other_devices_are_told_apart(tmp_path, clock, monkeypatch):
    system = System(clock)
    trainer(tmp_path, clock, 2).fit(system, datamodule=Data())
    monkeypatch.setattr(training_time, "device_name", lambda device: "another")
    again = trainer(tmp_path, clock, 3)
    again.fit(System(clock), datamodule=Data(), ckpt_path=tmp_path / "step=2.ckpt")
    (time,) = [callback for callback in again.callbacks if isinstance(callback, TrainingTime)]
    assert [(part.device == "another", part.seconds) for part in time.parts] == [(False, 3), (True, 3)]
    assert training_record(again, system)["device"].endswith(" + another")


def test_what_a_gpu_has_yet_to_compute_is_counted_before_a_pause(clock, monkeypatch):
    """The host queues a step in a second; the device needs three more, which a validation must not be charged with."""
    monkeypatch.setattr(training_time, "device_name", lambda device: "GPU")
    queued = [0.0]

    def synchronize(device):
        clock.now += queued[0]
        queued[0] = 0.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    found, run, system = TrainingTime(), SimpleNamespace(world_size=2), SimpleNamespace(device=torch.device("cuda"))
    found.on_validation_start(run, system)  # the sanity check, before any step
    for _ in range(2):
        found.on_train_batch_start(run, system)
        clock.now += 1
        queued[0] += 3
        found.on_train_batch_end(run, system)
    clock.now += 100
    found.on_validation_start(run, system)
    clock.now += 1000
    found.on_train_end(run, system)
    (part,) = found.parts
    assert (part.seconds, part.processor_seconds, part.batches, part.devices) == (2 + 6, None, 2, 2)
