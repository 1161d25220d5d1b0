"""What networks that render semantic tokens have in common: what they are called with, and how they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from musiccm.diffusion import AnyCondition, Condition
from musiccm.errors import MusiccmError
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder

AnyRenderer = TypeVar("AnyRenderer", bound="Renderer")


class TokenLayers(nn.Sequential):
    """Vectors of semantic tokens to states; 0 where there is no token.

    Args:
        token_width: Width of a token's vector.
        width: Width of a state.
    """

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__(nn.Linear(token_width, width), nn.RMSNorm(width, eps=1e-6), nn.GELU(), nn.Linear(width, width))

    def forward(self, vectors_BLD: Tensor, mask_BL: Tensor) -> Tensor:  # type: ignore[override]
        """States, [B, L, width]."""
        # where, not a product: nothing that stands under padding may get through
        there_BL1 = mask_BL[..., None]
        states_BLD = super().forward(torch.where(there_BL1, vectors_BLD, torch.zeros_like(vectors_BLD)))
        return torch.where(there_BL1, states_BLD, torch.zeros_like(states_BLD))


class Renderer(nn.Module):
    """A network from noisy latents, angles and semantic tokens to a velocity.

    A subclass sets `called` and `config_class`, whose objects have `channels`, `token_width`, `frames_per_token` and
    `frames`; assigns `self.shape` such an object, and implements `forward` as `DualPath` does.
    """

    #: What messages call it.
    called: ClassVar[str]
    config_class: ClassVar[type]
    shape: Any

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration as a file has it."""
        raise NotImplementedError

    def check_condition(self, condition: AnyCondition, frames: int) -> Condition:
        """Refuse what is no sequence of semantic tokens for so many frames.

        Args:
            condition: Tokens; an item without any has no condition.
            frames: Latent frames.

        Returns:
            The condition.

        Raises:
            MusiccmError: It has no tokens, others than the network takes, or not as many as cover the frames.
        """
        if not isinstance(condition, Condition) or condition.tokens_BLD is None or condition.mask_BL is None:
            raise MusiccmError(f"{self.called}: expected a condition of semantic tokens, found one without tokens")
        self._check_width(condition.tokens_BLD)
        needed = -(-frames // self.shape.frames_per_token)
        counts = condition.mask_BL.sum(1).tolist()
        if wrong := [count for count in counts if count not in (0, needed)]:
            raise MusiccmError(f"{self.called}: {frames} latent frames need {needed} semantic tokens, one for "
                               f"{self.shape.frames_per_token} frames, or none for no condition; found {wrong[0]}")
        return condition

    def check_inputs(
        self, sample: Tensor, vectors_BLD: Tensor | None, mask_BL: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Refuse what the network cannot be called with; see `DualPath.forward`.

        Returns:
            Vectors and mask of the tokens.

        Raises:
            MusiccmError: Latents or token vectors of another shape than the network's, or no tokens.
        """
        if sample.ndim != 4 or sample.shape[1] != self.shape.channels or sample.shape[3] != 1:
            raise MusiccmError(f"{self.called}: expected latents of {self.shape.channels} channels and one bin, found "
                               f"shape {list(sample.shape)}")
        if vectors_BLD is None or mask_BL is None or labels is not None:
            raise MusiccmError(f"{self.called}: expected a condition of semantic tokens and no vector beside them")
        self._check_width(vectors_BLD)
        return vectors_BLD, mask_BL

    def _check_width(self, vectors_BLD: Tensor) -> None:
        if vectors_BLD.shape[-1] != self.shape.token_width:
            raise MusiccmError(f"{self.called}: expected token vectors of width {self.shape.token_width}, found "
                               f"{vectors_BLD.shape[-1]}; the semantic tokenizer is another one")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_weights_folder(folder, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls: type[AnyRenderer], folder: str | Path) -> AnyRenderer:
        """Read a folder written by `save_pretrained`; the network comes in eval mode.

        Raises:
            MusiccmError: A file is missing or the two do not belong together.
        """
        network = cls(make_config(cls.config_class, read_config(folder), f"{folder}/config.json"))
        load_weights(network, folder)
        return network.eval()
