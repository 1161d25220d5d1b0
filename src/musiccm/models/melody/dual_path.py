"""MeLoDy's dual-path diffusion network (Lam et al. 2023, arXiv 2305.15719, section 4.2 and figure 2).

Latents are cut into segments. A coarse path attends over the segments and to semantic tokens, a fine path is recurrent
within each segment, in turn. Frames may have angles (noise levels) of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.diffusion import spread_chunks
from musiccm.errors import MusiccmError
from musiccm.models.bundle.weights_folder import make_config
from musiccm.models.melody.coarse_path import CoarseLayer, Tokens, Turns
from musiccm.models.melody.recurrence import BidirectionalSRU
from musiccm.models.melody.renderer import Renderer, TokenLayers
from musiccm.models.melody.segments import add_segments, cut_segments, segment_count

#: Its folder in a bundle.
DUAL_PATH = "dual_path"


@dataclass
class DualPathConfig:
    """Shape of a dual-path network; the defaults are MeLoDy's as far as they are published.

    Args:
        channels: Channels of the latents.
        width: Width D of the network.
        merged: For each block K_i, the positions that a segment's frames are merged to in the coarse path: longest at
            both ends, shortest in the middle.
        segment: Frames K of a segment; the next one starts half a segment later.
        heads: Attention heads.
        coarse_layers: Layers of a coarse path.
        feed_forward: Width within their feed-forward parts.
        fine_layers: Recurrent layers of a fine path.
        recurrent_width: Width of one direction of these: D or half of it.
        angle_width: Width of the two vectors that the embedding of the angle turns between.
        token_width: Width of a semantic token's vector.
        frames_per_token: Latent frames that a token covers.
        frames: Frames of the clips that it is trained on.
    """

    channels: int = 16
    width: int = 768
    merged: Sequence[int] = field(default_factory=lambda: [64, 32, 16, 8, 8, 16, 32, 64])
    segment: int = 64
    heads: int = 12
    coarse_layers: int = 2
    feed_forward: int = 3072
    fine_layers: int = 2
    recurrent_width: int = 768
    angle_width: int = 256
    token_width: int = 1024
    frames_per_token: int = 10
    frames: int = 2500

    def check(self) -> None:
        """Refuse sizes that do not go together.

        Raises:
            MusiccmError: Naming the key.
        """
        for key, value in asdict(self).items():
            numbers = value if key == "merged" else [value]
            if not numbers or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
                raise MusiccmError(f"dual path: {key}: expected {'numbers' if key == 'merged' else 'a whole number'} "
                                   f"above 0, found {value!r}")
        if self.segment % 2 or any(self.segment % merged for merged in self.merged):
            raise MusiccmError(f"dual path: merged: expected divisors of segment, which must be even; found "
                               f"{list(self.merged)} and {self.segment}")
        if self.width % (2 * self.heads):
            raise MusiccmError(f"dual path: heads: expected heads of an even width that divide width, found "
                               f"{self.heads} of {self.width}")
        if self.recurrent_width not in (self.width, self.width // 2) or self.width % 2:
            raise MusiccmError(f"dual path: recurrent_width: expected the even width {self.width} or half of it, found "
                               f"{self.recurrent_width}")


def _full_precision(device: str) -> AbstractContextManager[None]:
    """No autocast, where the kind of device has any (`meta`, which sizes are checked on, has none)."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class AngleEmbedding(nn.Module):
    """The angle d as a point between two learnt vectors, `cos(d) e_start + sin(d) e_end`, through two layers.

    The paper prints the sine on both, which would tell nothing but a length.

    Args:
        angle_width: Width of the vectors.
        width: Width of the embedding.
    """

    def __init__(self, angle_width: int, width: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(angle_width))
        self.end = nn.Parameter(torch.randn(angle_width))
        self.layers = nn.Sequential(
            nn.Linear(angle_width, width), nn.RMSNorm(width, eps=1e-6), nn.GELU(), nn.Linear(width, width))

    def forward(self, angle_BM: Tensor) -> Tensor:
        """Embed angles; [B, M, width]."""
        cos, sin = (turn(angle_BM)[..., None].to(self.start.dtype) for turn in (torch.cos, torch.sin))
        return self.layers(cos * self.start + sin * self.end)


class FinePath(nn.Module):
    """Recurrence within each segment, scaled and shifted by what is told of the segment (FiLM, arXiv 1709.07871)."""

    def __init__(self, config: DualPathConfig) -> None:
        super().__init__()
        c = config
        self.film = nn.Linear(c.width, 2 * c.width)
        inputs = [c.width] + [2 * c.recurrent_width] * (c.fine_layers - 1)
        self.layers = nn.ModuleList([BidirectionalSRU(n, c.recurrent_width, c.segment) for n in inputs])
        self.out = nn.Linear(2 * c.recurrent_width, c.width)

    def forward(self, x_KBSD: Tensor, told_BSD: Tensor) -> Tensor:
        """What is added to the segments, [K, B, S, D]."""
        scale, shift = self.film(F.silu(told_BSD)).chunk(2, dim=-1)
        h_KND = (x_KBSD * (1 + scale) + shift).flatten(1, 2)
        for layer in self.layers:
            h_KND = layer(h_KND)
        return self.out(h_KND).view(x_KBSD.shape)


class DualPathBlock(nn.Module):
    """A coarse path on merged segments, a fine path on all frames; each is added to its input and normalised."""

    def __init__(self, config: DualPathConfig, merged: int) -> None:
        super().__init__()
        self.merged = merged
        self.coarse = nn.ModuleList([
            CoarseLayer(config.width, config.heads, config.feed_forward) for _ in range(config.coarse_layers)])
        self.fine = FinePath(config)
        self.coarse_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.fine_norm = nn.RMSNorm(config.width, eps=1e-6)

    def forward(self, x_KBSD: Tensor, told_BSD: Tensor, turns: Turns, tokens: Tokens) -> Tensor:
        """The segments after both paths, [K, B, S, D]."""
        apart = x_KBSD.unflatten(0, (self.merged, -1))  # MergeSegments: the mean of neighbouring frames
        y = apart.mean(dim=1)
        for layer in self.coarse:
            y = layer(y, turns, tokens)
        x = self.coarse_norm((apart + y[:, None]).flatten(0, 1))  # RepeatSegments, and the residual
        return self.fine_norm(x + self.fine(x, told_BSD))


class DualPath(Renderer):
    """Noisy latents, angles and semantic tokens to a velocity; called as a U-Net of diffusers is (`Denoiser`).

    Args:
        config: Shape, as an object or a mapping.

    Raises:
        MusiccmError: Sizes that do not go together.
    """

    called, config_class = "dual path", DualPathConfig
    shape: DualPathConfig

    def __init__(self, config: DualPathConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.shape = c = make_config(DualPathConfig, config)
        c.check()
        self.inputs = nn.Linear(c.channels, c.width)
        self.angle = AngleEmbedding(c.angle_width, c.width)
        self.tokens = TokenLayers(c.token_width, c.width)
        self.norm = nn.RMSNorm(c.width, eps=1e-6)
        self.blocks = nn.ModuleList([DualPathBlock(c, merged) for merged in c.merged])
        self.out_norm = nn.RMSNorm(c.width, eps=1e-6)
        self.out = nn.Linear(c.width, c.channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration as a file has it."""
        c = self.shape
        return {"_class_name": "DualPath", **asdict(c), "merged": list(c.merged)}

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        angle_BM: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Velocity of noisy latents.

        Args:
            sample: Noisy latents `[B, C, T, 1]`.
            timestep: The angle of each item in radians, `[B]`.
            encoder_hidden_states: Token vectors `[B, L, token_width]`.
            encoder_attention_mask: True where there is a token, `[B, L]`; an item without any has no condition.
            class_labels: Must not be given.
            angle_BM: The angles of M equal chunks of the latents, in place of `timestep`; of M = T those of its frames
                (`spread_chunks`).
            return_dict: Must be false.

        Returns:
            The velocity, of the shape of `sample`, in float32.

        Raises:
            MusiccmError: Latents or token vectors of another shape than the network's, or no tokens.
        """
        c = self.shape
        vectors_BLD, mask_BL = self.check_inputs(
            sample, encoder_hidden_states, encoder_attention_mask, class_labels)
        batch, _, frames, _ = sample.shape
        if angle_BM is None:
            angle_BM = timestep.reshape(-1, 1).expand(batch, 1)
        segments = segment_count(frames, c.segment)
        positions = torch.arange(segments, device=sample.device)
        head = c.width // c.heads
        tokens = self._tokens(vectors_BLD, mask_BL, head)
        angle_BLD = spread_chunks(self.angle(angle_BM), frames)
        # the angle that the middle of a segment has, and the mean of the tokens: what FiLM is told
        mean_BD = tokens.states_BLD.sum(1) / mask_BL.sum(1, keepdim=True).clamp(min=1)
        told_BSD = angle_BLD[:, positions * frames // segments] + mean_BD[:, None]
        x_BLD = self.norm(self.inputs(sample.squeeze(3).transpose(1, 2)) + angle_BLD)
        x_KBSD = cut_segments(x_BLD, c.segment)
        turns = Turns.at(positions, head)
        for block in self.blocks:
            x_KBSD = block(x_KBSD, told_BSD, turns, tokens)
        y_BLD = self.out_norm(add_segments(x_KBSD, frames))
        with _full_precision(sample.device.type):
            precise = y_BLD if y_BLD.dtype == torch.float64 else y_BLD.float()
            v_BLC = F.linear(precise, self.out.weight.to(precise), self.out.bias.to(precise))
        return (v_BLC.transpose(1, 2).unsqueeze(3),)

    def _tokens(self, vectors_BLD: Tensor, mask_BL: Tensor, head: int) -> Tokens:
        c = self.shape
        states_BLD = self.tokens(vectors_BLD, mask_BL)
        present_B1 = mask_BL.any(dim=1, keepdim=True)
        # the middle of a token's frames, counted in segments, whose middles are at 0, 1, ...
        places = (torch.arange(mask_BL.shape[1], device=mask_BL.device) + 0.5) * (c.frames_per_token * 2 / c.segment)
        return Tokens(states_BLD, (mask_BL | ~present_B1)[:, None, None], present_B1[..., None].to(states_BLD),
                      Turns.at(places, head))
