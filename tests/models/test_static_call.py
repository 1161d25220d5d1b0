"""Recorded calls: results of their own, out of memory that every call writes to."""

from __future__ import annotations

import torch

from musiccm.models.acceleration.static_call import StaticCall, recorder


def test_a_result_outlives_the_next_call(device: str) -> None:
    place = torch.device(device)
    weights = torch.randn(3, 4).to(place)
    addresses: set[int] = set()

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if place.type == "cpu":
            addresses.add(x.data_ptr())
        return x @ weights + y

    call = StaticCall(function, [torch.zeros(2, 3, device=place), torch.zeros(4, device=place)], recorder(place))
    given = torch.randn(5, 2, 3), torch.randn(5, 4)
    with torch.inference_mode():
        found = [call(x, y) for x, y in zip(*given, strict=True)]
    found.append(call(given[0][0], given[1][0]))  # and from outside of the mode
    for x, y, result in zip([*given[0], given[0][0]], [*given[1], given[1][0]], found, strict=True):
        torch.testing.assert_close(result.cpu(), x @ weights.cpu() + y)
    assert len(addresses) <= 1, "it computes from one place"
