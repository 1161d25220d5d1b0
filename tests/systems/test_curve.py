"""The learning-rate curve against those of transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import get_scheduler

from musiccm.systems.curve import learning_rate_factor
from musiccm.systems.distillation import DistilledSystem
from musiccm.systems.settings import Optimization


@pytest.mark.parametrize(("name", "decay"), [("linear", "linear"), ("cosine", "cosine")])
def test_a_run_that_falls_from_its_warm_up_on_is_theirs(name: str, decay: str) -> None:
    steps, warmup = 40, 8
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        found = learning_rate_factor(step, warmup, step / steps, (steps - warmup) / steps, 0.0, decay)
        # their warm-up begins at 0, where a step learns nothing
        expected = theirs.get_last_lr()[0] + (1 / warmup if step < warmup else 0.0)
        assert found == pytest.approx(expected, abs=1e-9), step
        optimizer.step()
        theirs.step()


def test_a_linear_fall_ends_at_what_is_left() -> None:
    factors = [learning_rate_factor(step, 0, step / 10, 0.5, 0.2, "linear") for step in range(11)]
    assert factors == pytest.approx([1.0] * 6 + [0.84, 0.68, 0.52, 0.36, 0.2])


@pytest.mark.parametrize(("decay", "left"), [("linear", 0.25), ("cosine", 0.1464466)])
def test_a_run_falls_as_its_settings_say(decay: str, left: float) -> None:
    optimization = Optimization(decay_share=1.0, decay=decay)
    run = SimpleNamespace(optimization=optimization, global_step=9, _progress=lambda: 0.75)
    assert DistilledSystem._lr_factor(run) == pytest.approx(left)
