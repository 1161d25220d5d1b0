"""Where a GPU would be waited for: in making a clip, and in a training step. Seen on a device that stands for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from one_step import batch_of
from tiny_bundle import build_random_bundle, build_random_student
from tiny_tokens import build_token_bundle

from musiccm.audio.windows import keyed_generator
from musiccm.bounds import Bucket
from musiccm.pipeline import Pipeline
from musiccm.systems.arc import ARC
from musiccm.systems.consistency_tta import ConsistencyTTA
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.dmd2 import DMD2
from musiccm.systems.lcm import LCM
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.pcm import PCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization
from tests.pretend_device import install, watching
from tests.stages import stage_of, waves

TEXTS = ["a calm piano melody", "slow organ chords"]


@pytest.fixture
def other() -> Iterator[str]:
    # torch counts devices at the first backward pass of a process, and has no thread for one that comes later
    with torch.autograd.set_multithreading_enabled(False):
        yield install()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bundles") / "teacher"))


@pytest.mark.parametrize(("wait", "waits"), [
    (lambda there, here: there.sum().item(), True), (lambda there, here: bool(there.sum() > 0), True),
    (lambda there, here: there.tolist(), True), (lambda there, here: there.cpu(), True),
    (lambda there, here: there[there > 0], True), (lambda there, here: here.to(there), True),
    (lambda there, here: torch.tensor([1.0], device=there.device), True),
    (lambda there, here: here.to(there.device, non_blocking=True), False),
    (lambda there, here: torch.full((2,), 3.0, device=there.device) * 2, False),
    (lambda there, here: there[torch.zeros(2, dtype=torch.long, device=there.device)], False)])
def test_the_watch_sees_what_is_waited_for(wait: Callable[..., Any], waits: bool, other: str) -> None:
    there = torch.ones(2).to(other)
    with watching() as noted:
        wait(there, torch.ones(2))
    assert len(noted) == waits


@pytest.mark.parametrize("name", ["student", "tokens"])
def test_a_recorded_clip_crosses_at_its_ends_alone(
    name: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, mask and noise go there, sound comes back; a CUDA graph allows nothing in between."""
    # within a capture the text encoder does not look at its mask; there is none on this device
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor=None: True)
    folder = build_random_student(tmp_path) if name == "student" else build_token_bundle(tmp_path / "tokens")
    pipeline = Pipeline.from_pretrained(folder).to(other).warm_up(Bucket(2, 4), record=True)
    with watching() as noted:
        pipeline(TEXTS, 4, 3)
    assert [note.partition(" by ")[0] for note in noted] == ["copy_"] * 3 + ["to"]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_clip_is_waited_for_once_however_many_steps_it_has(steps: int, other: str, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(build_random_student(tmp_path)).to(other)
    pipeline(TEXTS, steps, 3)  # texts are remembered, tables of the schedule sent
    with watching() as noted:
        pipeline(TEXTS, steps, 3)
    assert len(noted) == 1 and noted[0].startswith("to by pipeline.py")


def test_a_piece_and_a_stream_wait_for_their_sound_alone(other: str, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(build_random_student(tmp_path)).to(other)
    pipeline.compose(TEXTS[0], 1.5, 2)
    with watching() as noted:
        pipeline.compose(TEXTS[0], 1.5, 2, batch_size=2)
    assert noted and all("by direct.py" in note for note in noted), noted
    with watching() as noted:
        chunks = len(list(pipeline.stream(TEXTS[0], 1.5, 2)))
    assert chunks <= len(noted) <= chunks + 1 and all("by direct.py" in note for note in noted), noted


def waits_of_a_step(system: DistilledSystem, device: str) -> list[str]:
    """What the second step, its batch and log wait for; the first sends tables, and makes what optimizers keep."""
    on_host = batch_of(system)  # type: ignore[arg-type]
    system.to(device)
    logged: dict[str, torch.Tensor] = {}
    made: Any = system
    made._trainer = SimpleNamespace(
        global_step=0, max_steps=100, max_epochs=None, world_size=1, log_every_n_steps=50, progress_bar_metrics={},
        optimizers=[], state=SimpleNamespace(fn="fit"))
    optimizers = [_on_any_device(one) for one in system.configure_optimizers()]
    made._optimizers = lambda: optimizers
    made.manual_backward = torch.Tensor.backward
    made.log = lambda name, value, **_: logged.__setitem__(name, value)
    made.log_dict = logged.update
    noted: list[str] = []
    for number in range(made.batches_seen + 3):
        made._trainer.global_step = number
        with watching() as found:
            batch = system.transfer_batch_to_device(on_host, torch.device(device), 0)
            system.training_step(batch, number)
        if number:  # what `Later` reads is of the step before, which on a GPU it has copied meanwhile
            noted.extend(note for note in found if "later.py" not in note)
    assert logged["train/samples_per_s"].device.type == "cpu", "numbers of the host stay there"
    return noted


def _on_any_device(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["fused"] = False  # fused kernels are the GPU's own
        group["foreach"] = False
    return optimizer


SYSTEMS: dict[str, Callable[[str, Optimization], DistilledSystem]] = {
    "lcm": lambda bundle, o: LCM(bundle, Distillation(), o),
    "variable": lambda bundle, o: LCM(bundle, Distillation(guidance="variable"), o),
    "audio": lambda bundle, o: LCM(bundle, Distillation(audio_condition_share=0.5), o),
    "warm start": lambda bundle, o: LCM(bundle, Distillation(warm_start_steps=50), o),
    "musiccm": lambda bundle, o: MusicCM(bundle, adversarial=Adversarial(crop_frames=4, head_width=8), optimization=o),
    "consistency tta": lambda bundle, o: ConsistencyTTA(bundle, optimization=o),
    "pcm": lambda bundle, o: PCM(bundle, optimization=o),
    "dmd2": lambda bundle, o: DMD2(bundle, optimization=o),
    "arc": lambda bundle, o: ARC(bundle, optimization=o),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_training_step_waits_for_nothing(
    name: str, teacher: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("adversary", "latent_critic"):  # it knows the optimizers of Lightning alone
        monkeypatch.setattr(f"musiccm.systems.{module}.clock_stopped", lambda *_: contextlib.nullcontext())
    assert waits_of_a_step(SYSTEMS[name](teacher, Optimization(lr=1e-4)), other) == []


@pytest.mark.parametrize("name", ["teacher", "vae", "audio_vae"])
def test_a_loss_of_a_stage_waits_for_nothing(name: str, teacher: str, other: str) -> None:
    stage = stage_of(name, teacher)
    stage._trainer = None  # type: ignore[assignment]
    batch: Any = waves(4)
    if name == "teacher":
        stage.setup("fit")
        batch = batch_of(MusicCM(teacher, adversarial=Adversarial(weight=0.0)), 4)
    stage, batch = stage.to(other), batch.to(other)
    stage.loss(batch, keyed_generator(0, "first"))  # sends tables of the schedule
    with watching() as noted:
        total, _ = stage.loss(batch, keyed_generator(0, "second"))
        total.backward()
    assert noted == []
