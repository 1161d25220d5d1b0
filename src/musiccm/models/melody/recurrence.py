"""A bidirectional simple recurrent unit, whose only sequential part is a multiplication and addition a frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musiccm.diffusion import compute_dtype


def linear_recurrence(keep_KND: Tensor, new_KND: Tensor, backwards: bool = False) -> list[Tensor]:
    """`c_k = keep_k c_{k-1} + new_k` from `c_{-1} = 0`, frame by frame, in float32 or better.

    Args:
        keep_KND: Factors, the frames first.
        new_KND: What is added.
        backwards: From the last frame to the first, with k + 1 in place of k - 1.

    Returns:
        c of each of the K frames, [N, D].
    """
    dtype = compute_dtype(new_KND)
    steps = list(zip(keep_KND.to(dtype).unbind(0), new_KND.to(dtype).unbind(0), strict=True))
    if backwards:
        steps.reverse()
    states = [steps[0][1]]
    for keep_ND, new_ND in steps[1:]:
        states.append(torch.addcmul(new_ND, keep_ND, states[-1]))
    return states[::-1] if backwards else states


class BidirectionalSRU(nn.Module):
    """The simple recurrent unit in both directions (arXiv 1709.02755v1, equations 3 to 7, without g).

    `f = sigmoid(W_f x + b_f)`, `r = sigmoid(W_r x + b_r)`, `c_k = f c_{k-1} + (1 - f) W x`, `h = r c + (1 - r) x`. The
    gates look at the input alone, as in the first version of the paper and in minGRU (arXiv 2410.01201): all products
    of matrices are one, before the loop. The way around takes all of x in each direction, or, where x is twice as wide
    as a direction, the direction's own half.

    Args:
        inputs: Width of x: that of a direction, or twice that.
        width: Width of a direction.
        memory: Frames that forgetting is spread over at first (arXiv 1804.11188, section 2).
    """

    def __init__(self, inputs: int, width: int, memory: int) -> None:
        super().__init__()
        assert inputs in (width, 2 * width)
        self.width = width
        self.gates = nn.Linear(inputs, 6 * width)
        with torch.no_grad():
            self.gates.bias.zero_()
            lasting = torch.empty(2 * width, device=self.gates.bias.device).uniform_(1.0, max(2.0, memory - 1.0))
            self.gates.bias[2 * width : 4 * width] = lasting.log()

    def forward(self, x_KND: Tensor) -> Tensor:
        """Read frames, the first axis, in both directions; [K, N, 2 * width]."""
        candidate, forget, reset = self.gates(x_KND).chunk(3, dim=-1)
        keep = torch.sigmoid(forget)
        new = torch.addcmul(candidate, keep, candidate, value=-1.0)
        ahead, back = (linear_recurrence(keep_KNH, new_KNH, backwards) for keep_KNH, new_KNH, backwards in zip(
            keep.chunk(2, dim=-1), new.chunk(2, dim=-1), (False, True), strict=True))
        # in place of a copy of each direction and one of both
        state = torch.stack([*ahead, *back]).unflatten(0, (2, -1)).permute(1, 2, 0, 3)
        around = x_KND.unflatten(-1, (-1, self.width)).expand_as(state).to(state.dtype)
        passed = torch.sigmoid(reset).to(state.dtype).unflatten(-1, (2, self.width))
        return torch.lerp(around, state, passed).flatten(-2).to(x_KND.dtype)
