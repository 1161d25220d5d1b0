"""A training of a few steps as Lightning runs it: on the CPU, and marked `gpu` on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from short_fit import Save, fit, make_batches
from tiny_bundle import build_random_bundle

from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Optimization

STEPS, SAVED_AT = 4, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_random_bundle(tmp_path_factory.mktemp("bundles") / "teacher"))


@pytest.fixture
def accelerator(device: str) -> Iterator[str]:
    """Lightning's name of the device; a process group that a run has begun is ended."""
    if device not in ("cpu", "cuda"):
        pytest.skip("Lightning trains on no such device")
    yield "gpu" if device == "cuda" else "cpu"
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trained(bundle: str, accelerator: str, ckpt_path: Path | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """The weights that a run ends with."""
    torch.manual_seed(0)
    system = MusicCM(bundle, adversarial=Adversarial(crop_frames=4, head_width=8),
                     optimization=Optimization(lr=1e-3, compile=options.pop("compile", None)))
    batches = make_batches(system, STEPS)
    if ckpt_path is not None:  # a plain loader starts its epoch anew; what was trained on is left out by hand
        batches = batches[SAVED_AT:] + batches[:SAVED_AT]
    fit(system, batches, STEPS, ckpt_path, **{"accelerator": accelerator, "devices": 1, **options})
    return {name: value.detach().cpu().clone() for name, value in system.state_dict().items()
            if not name.startswith("frozen.")}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(
    bundle: str, accelerator: str, precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    whole = trained(bundle, accelerator, precision=precision, callbacks=[Save(path, SAVED_AT)])
    resumed = trained(bundle, accelerator, path, precision=precision)
    other = trained(bundle, accelerator, precision=precision, max_steps=SAVED_AT)
    if accelerator == "cpu":
        torch.testing.assert_close(resumed, whole, rtol=0.0, atol=0.0)
    assert apart(resumed, whole, bundle) <= (0.0 if accelerator == "cpu" else 0.05)  # a GPU adds up in any order
    assert apart(other, whole, bundle) > 0.2


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bundle: str) -> float:
    """How far two students have gone apart, of the way that the second one has gone."""
    begun = MusicCM(bundle).student.state_dict()
    ends = [{name: weights[f"student.{name}"] - value for name, value in begun.items() if value.is_floating_point()}
            for weights in (found, expected)]
    moved, there = (torch.cat([value.flatten() for value in one.values()]) for one in ends)
    return float((moved - there).norm() / there.norm())


def test_ddp_with_one_process_trains_as_without(bundle: str, accelerator: str) -> None:
    # the loader keeps its order: Lightning would put a sampler of its own in its place
    alone, ddp = (trained(bundle, accelerator, strategy=strategy, use_distributed_sampler=False)
                  for strategy in ("auto", "ddp"))
    assert torch.distributed.is_initialized()
    # on a GPU some sums are added up in any order, of which AdamW makes more where a gradient is rounding alone
    assert apart(ddp, alone, bundle) <= (0.0 if accelerator == "cpu" else 0.05)
    assert apart(trained(bundle, accelerator, max_steps=SAVED_AT), alone, bundle) > 0.2


@pytest.mark.slow  # tracing takes half a minute
def test_a_compiled_run_trains_as_one_that_is_not(bundle: str, accelerator: str) -> None:
    """On a GPU by its own compiler; on the CPU by one that passes graphs through."""
    plain, compiled = (trained(bundle, accelerator, compile=backend)
                       for backend in (None, "inductor" if accelerator == "gpu" else "eager"))
    assert apart(compiled, plain, bundle) < 0.05
