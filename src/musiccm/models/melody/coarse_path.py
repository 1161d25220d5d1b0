"""The coarse path of the dual-path network: attention over segments, and from segments to semantic tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Turns:
    """Rotary positions (RoFormer, arXiv 2104.09864, equation 34): cosines and sines, `[positions, head / 2]`."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head: int) -> Turns:
        """Those of positions, which need not be whole."""
        frequencies = 10000.0 ** (-torch.arange(0, head, 2, device=positions.device, dtype=torch.float32) / head)
        angles = positions.float()[:, None] * frequencies
        return cls(torch.cos(angles), torch.sin(angles))

    def apply(self, x: Tensor) -> Tensor:
        """Turn queries or keys, `[..., positions, head]`."""
        first, second = x.chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@dataclass(frozen=True)
class Tokens:
    """What all coarse layers attend to.

    Args:
        states_BLD: Projected token vectors, 0 where there is none.
        attended_B11L: Where attention may look; everywhere for items without tokens, whose answer is not used.
        present_B11: 1 for items that have tokens, 0 for others.
        turns: Positions of the tokens, in segments.
    """

    states_BLD: Tensor
    attended_B11L: Tensor
    present_B11: Tensor
    turns: Turns


class CoarseLayer(nn.Module):
    """Self-attention over segments, cross-attention to tokens, and a gated feed-forward part (GEGLU, arXiv 2002.05202).

    Each is added to its input, which is normalised first.

    Args:
        width: Width D.
        heads: Attention heads.
        feed_forward: Width within the feed-forward part.
    """

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(3)])
        self.self_in = nn.Linear(width, 3 * width, bias=False)
        self.self_out = nn.Linear(width, width, bias=False)
        self.cross_query = nn.Linear(width, width, bias=False)
        self.cross_in = nn.Linear(width, 2 * width, bias=False)
        self.cross_out = nn.Linear(width, width, bias=False)
        self.widen = nn.Linear(width, 2 * feed_forward, bias=False)
        self.narrow = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x_KBSD: Tensor, turns: Turns, tokens: Tokens) -> Tensor:
        """One layer.

        Args:
            x_KBSD: Columns of segments: each of the K attends over the segments S by itself.
            turns: Positions of the segments.
            tokens: What is attended to.

        Returns:
            [K, B, S, D].
        """
        x = x_KBSD + self._over_segments(self.norms[0](x_KBSD), turns)
        x = x + self._over_tokens(self.norms[1](x), turns, tokens)
        value, gate = self.widen(self.norms[2](x)).chunk(2, dim=-1)
        return x + self.narrow(value * F.gelu(gate))

    def _over_segments(self, x_KBSD: Tensor, turns: Turns) -> Tensor:
        parts = self.self_in(x_KBSD).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(turns.apply(query), turns.apply(key), value)
        return self.self_out(found.transpose(1, 2).reshape(x_KBSD.shape))

    def _over_tokens(self, x_KBSD: Tensor, turns: Turns, tokens: Tokens) -> Tensor:
        columns, batch, segments, _ = x_KBSD.shape
        query = turns.apply(self.cross_query(x_KBSD).unflatten(-1, (self.heads, -1)).permute(1, 3, 0, 2, 4))
        key, value = self.cross_in(tokens.states_BLD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # the columns of an item share its keys and values: to attention they are one long row of queries
        found = F.scaled_dot_product_attention(query.flatten(2, 3), tokens.turns.apply(key), value,
                                               attn_mask=tokens.attended_B11L)
        found = found.unflatten(2, (columns, segments)).permute(2, 0, 3, 1, 4).reshape(x_KBSD.shape)
        return self.cross_out(found) * tokens.present_B11
