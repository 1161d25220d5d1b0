"""A 1-D U-Net in the dual-path network's place: what that network is compared with at equal size.

Its blocks are diffusers', those of Dance Diffusion: convolutions over time, a norm over a whole clip, self-attention at
the lower resolutions. MeLoDy's own comparison has a 1-D U-Net too (arXiv 2305.15719, appendix E, archinetai/a-unet),
whose sizes are not published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from diffusers.models.unets.unet_1d_blocks import (
    AttnDownBlock1D,
    AttnUpBlock1D,
    DownBlock1D,
    DownBlock1DNoSkip,
    UNetMidBlock1D,
    UpBlock1D,
    UpBlock1DNoSkip,
)
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.diffusion import spread_chunks
from musiccm.errors import MusiccmError
from musiccm.models.bundle.weights_folder import make_config
from musiccm.models.melody.dual_path import AngleEmbedding
from musiccm.models.melody.renderer import Renderer, TokenLayers

#: Width of an attention head of diffusers' 1-D blocks.
HEAD = 32
#: Frames that their filters reach beyond either end, where the clip is mirrored: a level must have more.
MIRRORED = 3


@dataclass
class RendererUNetConfig:
    """Shape of the U-Net; the defaults are for the small dual-path network.

    Args:
        channels: Channels of the latents.
        widths: Channels of each level, from the full resolution down; each halves the frames of the one before it, and
            the middle block halves them once more.
        attention: Levels with self-attention, counted from 0, which can have none; the middle block always has it.
            Their widths, and those of the levels above them, are multiples of 32, the width of a head.
        told_width: Width of what is told at every frame, the embedding of its angle and its token.
        angle_width: See `DualPathConfig`.
        token_width: See `DualPathConfig`.
        frames_per_token: See `DualPathConfig`.
        frames: Frames of the clips that it is trained on.
    """

    channels: int = 16
    widths: Sequence[int] = field(default_factory=lambda: [64, 96, 128, 128])
    attention: Sequence[int] = field(default_factory=lambda: [2, 3])
    told_width: int = 128
    angle_width: int = 64
    token_width: int = 64
    frames_per_token: int = 10
    frames: int = 1280

    def check(self) -> None:
        """Refuse sizes that do not go together.

        Raises:
            MusiccmError: Naming the key.
        """
        for key, value in asdict(self).items():
            if key == "attention":
                continue
            numbers = value if key == "widths" else [value]
            if not numbers or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
                raise MusiccmError(f"renderer U-Net: {key}: expected {'numbers' if key == 'widths' else 'a number'} "
                                   f"above 0, found {value!r}")
        levels = range(1, len(self.widths))
        if unknown := [level for level in self.attention if level not in levels]:
            raise MusiccmError(f"renderer U-Net: attention: expected levels from 1 to {len(self.widths) - 1}, found "
                               f"{unknown[0]!r}")
        # a level's way up ends with the width of the level above, and attends there too
        for level in sorted({len(self.widths) - 1, *self.attention, *(level - 1 for level in self.attention)}):
            if self.widths[level] % HEAD:
                raise MusiccmError(f"renderer U-Net: widths: expected multiples of {HEAD} where there is attention, "
                                   f"found {self.widths[level]} at level {level}")
        self.check_frames(self.frames)

    def check_frames(self, frames: int) -> None:
        """Refuse clips that cannot be halved level by level.

        Raises:
            MusiccmError: Naming what could.
        """
        whole = 2 ** len(self.widths)
        if frames % whole or frames <= MIRRORED * whole // 2:
            raise MusiccmError(f"renderer U-Net: expected a multiple of {whole} latent frames above "
                               f"{MIRRORED * whole // 2}, since each of its {len(self.widths)} levels halves them, "
                               f"found {frames}")


class RendererUNet(Renderer):
    """Noisy latents, angles and semantic tokens to a velocity, called as a `DualPath` is.

    What is told stands beside the latents at every frame: the embedding of the frame's own angle plus that of the token
    that covers it, so that chunks may have noise levels of their own.

    Args:
        config: Shape, as an object or a mapping.

    Raises:
        MusiccmError: Sizes that do not go together.
    """

    called, config_class = "renderer U-Net", RendererUNetConfig
    shape: RendererUNetConfig

    def __init__(self, config: RendererUNetConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.shape = c = make_config(RendererUNetConfig, config)
        c.check()
        self.angle = AngleEmbedding(c.angle_width, c.told_width)
        self.tokens = TokenLayers(c.token_width, c.told_width)
        lower = list(zip(c.widths, c.widths[1:], strict=False))
        self.down = nn.ModuleList([DownBlock1DNoSkip(c.widths[0], c.channels + c.told_width)])
        self.up = nn.ModuleList([UpBlock1DNoSkip(c.widths[0], c.widths[0])])
        for level, (above, width) in enumerate(lower, 1):
            attends = level in c.attention
            self.down.append((AttnDownBlock1D if attends else DownBlock1D)(width, above))
            self.up.insert(0, (AttnUpBlock1D if attends else UpBlock1D)(width, above))
        self.middle = UNetMidBlock1D(c.widths[-1], c.widths[-1])
        self.out = nn.Conv1d(c.widths[0], c.channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration as a file has it."""
        c = self.shape
        return {"_class_name": "RendererUNet", **asdict(c), "widths": list(c.widths), "attention": list(c.attention)}

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
        """Velocity of noisy latents; arguments and result are those of `DualPath.forward`.

        Raises:
            MusiccmError: Latents or token vectors of another shape than the network's, or no tokens.
        """
        c = self.shape
        vectors_BLD, mask_BL = self.check_inputs(
            sample, encoder_hidden_states, encoder_attention_mask, class_labels)
        batch, _, frames, _ = sample.shape
        c.check_frames(frames)
        if angle_BM is None:
            angle_BM = timestep.reshape(-1, 1).expand(batch, 1)
        told_BTD = spread_chunks(self.angle(angle_BM), frames)
        told_BTD = told_BTD + self._tokens(vectors_BLD, mask_BL, frames)
        told_BDT, x_BWT = told_BTD.transpose(1, 2), sample.squeeze(3)
        skips: list[Tensor] = []
        for block in self.down:
            x_BWT, (skip_BWT,) = block(x_BWT, told_BDT)
            skips.append(skip_BWT)
        x_BWT = self.middle(x_BWT)
        for block in self.up:
            x_BWT = block(x_BWT, (skips.pop(),))
        return (self.out(x_BWT).float().unsqueeze(3),)

    def _tokens(self, vectors_BLD: Tensor, mask_BL: Tensor, frames: int) -> Tensor:
        """What is told of the token at each frame, [B, T, told_width]; 0 where there is none."""
        states_BLD = self.tokens(vectors_BLD, mask_BL)
        spread_BTD = states_BLD.repeat_interleave(self.shape.frames_per_token, dim=1)[:, :frames]
        return F.pad(spread_BTD, (0, 0, 0, frames - spread_BTD.shape[1]))  # a null condition may be one empty token
