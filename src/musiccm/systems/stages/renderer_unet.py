"""The yardstick of the dual-path network: a U-Net of its size, trained and measured as that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musiccm.models.melody.renderer_unet import RendererUNet
from musiccm.systems.stages.dual_path import DualPathStage

#: Where its weights lie in the folder of a bundle, of which it is no part.
RENDERER_UNET = "renderer_unet"


class RendererUNetStage(DualPathStage):
    """Trains a `RendererUNet` on what `DualPathStage` trains a `DualPath` on: velocities, chunks, tokens, draws.

    Args:
        unet: `RendererUNetConfig` fields; `token_width` follows from the tokenizer and need not be there.
        **renderer: Arguments of `DualPathStage`, but for `dual_path`.

    Raises:
        MusiccmError: As `DualPathStage`.
    """

    stage = "unet"
    shape_key, part_name = "unet", None
    network_class = RendererUNet

    def __init__(self, unet: dict[str, Any], **renderer: Any) -> None:
        super().__init__(unet, **renderer)

    def save(self) -> None:
        """Write `renderer_unet/`, beside the parts of the bundle."""
        self.best.save_pretrained(Path(self.bundle, RENDERER_UNET))  # type: ignore[operator]
