"""Between network calls nothing goes to the device or comes back: a GPU would be waited for.

The device is torch's `meta`, whose tensors have no contents: whatever asks for a number of them fails by itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gaussian import MUSICLDM
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musiccm.diffusion import NoiseSchedule
from musiccm.samplers import (
    FUSIONS,
    Crops,
    FrameNoise,
    Lcm,
    SharedProcess,
    Stepper,
    sample_noise,
    sample_shared,
    seeded_noise_fn,
    teacher_stepper,
)

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)
TIMESTEPS, SHAPE = [999, 759, 499, 259], (2, 8, 3)
COND = torch.zeros(1, 2, device="meta")


class Traffic(TorchDispatchMode):
    """Notes operations that have tensors on both sides, once a network was called; stands for that network too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.crossed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sides = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        if self.calls and len(sides) > 1:
            self.crossed.append(str(func))
        return result

    def network(self, z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(z) * t.float().reshape(-1, 1, 1, 1)


def watched(sample: Any) -> Traffic:
    sample(Traffic())  # the first time, the tables of the schedule are sent
    with Traffic() as traffic:
        assert sample(traffic).device.type == "meta"
    return traffic


def test_the_watch_sees_what_crosses() -> None:
    def careless(traffic: Traffic) -> torch.Tensor:
        z = traffic.network(torch.zeros(1, *SHAPE, device="meta"), torch.zeros(1, device="meta"), COND)
        return z + torch.ones(SHAPE).to("meta")

    assert len(watched(careless).crossed) == 1


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_few_steps(gamma: float) -> None:
    noise = sample_noise([1], SHAPE).to("meta")
    traffic = watched(lambda traffic: Stepper(traffic.network, SCHEDULE, TIMESTEPS, Lcm(gamma)).sample(
        COND, noise, seeded_noise_fn([1], SHAPE)))
    assert traffic.calls == 4 and not traffic.crossed


def test_ddim() -> None:
    noise = sample_noise([1], SHAPE).to("meta")
    traffic = watched(lambda traffic: teacher_stepper(traffic.network, SCHEDULE, lambda count: COND, 5, 3.0).sample(
        COND, noise))
    assert traffic.calls == 5 and not traffic.crossed


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("kept", [False, True])
def test_long_pieces(fusion: str, kept: bool) -> None:
    parts = {"kept_CTF": torch.zeros(2, 20, 3), "kept_T": torch.arange(20) < 5} if kept else {}

    def sample(traffic: Traffic) -> torch.Tensor:
        stepper = Stepper(traffic.network, SCHEDULE, TIMESTEPS, Lcm(0.6))
        process = SharedProcess(stepper, Crops(20, 8, 4), FrameNoise(5, SHAPE), fusion, "meta")
        return sample_shared(process, lambda _: COND[0], 3, **parts)

    traffic = watched(sample)
    assert traffic.calls == 8 and not traffic.crossed
