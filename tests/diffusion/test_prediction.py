from __future__ import annotations

import pytest
import torch
from gaussian import MUSICLDM

from musiccm.diffusion import PREDICTION_TYPES, NoiseSchedule, to_eps, to_v, to_x0, training_target
from musiccm.errors import MusiccmError


@pytest.fixture
def truth() -> dict[str, torch.Tensor]:
    schedule = NoiseSchedule.from_config(MUSICLDM)
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0, 19, 499, 999])
    x0, eps = torch.randn(2, 4, 3, 5, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t, torch.float64), schedule.sigma(t, torch.float64)
    z = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
    v = alpha[:, None, None, None] * eps - sigma[:, None, None, None] * x0
    return {"sample": x0, "epsilon": eps, "v_prediction": v, "flow_prediction": eps - x0, "z": z, "alpha": alpha,
            "sigma": sigma}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_every_type_gives_back_the_truth(kind: str, truth: dict[str, torch.Tensor]) -> None:
    arguments = (kind, truth[kind], truth["z"], truth["alpha"], truth["sigma"])
    torch.testing.assert_close(to_x0(*arguments), truth["sample"], rtol=0, atol=1e-10)
    torch.testing.assert_close(to_eps(*arguments), truth["epsilon"], rtol=0, atol=1e-10)
    torch.testing.assert_close(to_v(*arguments), truth["v_prediction"], rtol=0, atol=1e-10)
    target = training_target(kind, truth["sample"], truth["epsilon"], truth["alpha"], truth["sigma"])
    torch.testing.assert_close(target, truth[kind])


def test_low_precision_input_is_converted_in_float32(truth: dict[str, torch.Tensor]) -> None:
    output = truth["epsilon"].bfloat16()
    z = truth["z"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x0 = to_x0("epsilon", output, z, truth["alpha"].float(), truth["sigma"].float())
    assert x0.dtype == torch.float32
    exact = (z.double() - truth["sigma"][:, None, None, None] * output.double()) / truth["alpha"][:, None, None, None]
    torch.testing.assert_close(x0.double(), exact, rtol=1e-5, atol=1e-4)


def test_unknown_type_is_refused(truth: dict[str, torch.Tensor]) -> None:
    with pytest.raises(MusiccmError, match="prediction_type.*'flow'"):
        to_x0("flow", truth["z"], truth["z"], truth["alpha"], truth["sigma"])
