from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler
from gaussian import MUSICLDM

from musiccm.diffusion import consistency_boundary, guide, refuse_guidance, scale_from_w, with_guidance
from musiccm.errors import MusiccmError


def test_boundary_is_the_identity_at_zero_and_nearly_the_network_at_19() -> None:
    c_skip, c_out = consistency_boundary(torch.tensor([0, 19, 999]))
    assert (c_skip[0], c_out[0]) == (1.0, 0.0)
    assert float(c_skip[1]) == pytest.approx(7e-6, rel=0.02)
    assert float(c_out[2]) == pytest.approx(1.0, abs=1e-7)


def test_boundary_equals_diffusers() -> None:
    scheduler = LCMScheduler.from_config({**MUSICLDM, "original_inference_steps": 50})
    for t in (1, 3, 19, 999):
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t)
        ours = consistency_boundary(torch.tensor(t, dtype=torch.float64))
        assert [float(x) for x in ours] == pytest.approx([float(c_skip), float(c_out)], rel=1e-9)


def test_w_2_of_the_paper_is_scale_3() -> None:
    cond, null = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = 2.0
    assert scale_from_w(w) == 3.0
    torch.testing.assert_close(guide(cond, null, scale_from_w(w)), (1 + w) * cond - w * null)
    torch.testing.assert_close(guide(cond, null, 1.0), cond)
    torch.testing.assert_close(guide(cond, null, 0.0), null)


def test_guidance_is_one_batched_call_and_none_of_the_null_at_scale_1() -> None:
    calls = []

    def denoise(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        calls.append((z.shape[0], t.tolist()))
        return z * cond.sum(1)[:, None]

    z, t, cond = torch.ones(2, 3), torch.tensor([5, 7]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    null = torch.tensor([[0.5, 0.0]])
    guided = with_guidance(denoise, cond, null, 3.0)(z, t)
    torch.testing.assert_close(guided[:, 0], torch.tensor([0.5 + 3 * 1.5, 0.5 + 3 * 3.5]))
    assert calls == [(4, [5, 7, 5, 7])]
    with_guidance(denoise, cond, None, 1.0)(z, t)
    assert calls[1:] == [(2, [5, 7])]
    with pytest.raises(MusiccmError, match="null condition"):
        with_guidance(denoise, cond, None, 3.0)


def test_guiding_a_distilled_student_is_refused() -> None:
    refuse_guidance(None)
    refuse_guidance(1.0)
    for scale in (0.0, 2.0, 3):
        with pytest.raises(MusiccmError, match="guidance_scale.*distilled"):
            refuse_guidance(scale)
