"""A U-Net that is told its guidance scale (ConsistencyTTA, arXiv 2309.10740, after guidance distillation, 2210.03142).

The scale w becomes `[cos(2 pi w g), sin(2 pi w g)]` with fixed random frequencies g ~ N(0, 1), goes through two linear
layers with a SiLU between them, and is added to the embedding of the time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.models.denoiser import GUIDANCE_BRANCH, SCALE_ARGUMENT

#: Modules of the branch; their weights' names begin so, as in ConsistencyTTA's files.
PROJECTION, EMBEDDING = "guidance_proj", "guidance_embedding"


def is_branch(name: str) -> bool:
    """Whether a weight of a U-Net, by its name, is the guidance branch's."""
    return name.partition(".")[0] in (PROJECTION, EMBEDDING)


class GuidanceFeatures(nn.Module):
    """Gaussian Fourier features of a number, not of its logarithm (arXiv 2006.10739).

    The frequencies are drawn once, saved with the weights and never trained. They stay in float32 whatever type the
    network is given: at scale 6 the phase is a hundred radians, of which half precision would leave nothing.

    Args:
        frequencies: How many; there are twice as many features.
    """

    weight: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(frequencies, dtype=torch.float32))

    def forward(self, scale_B: Tensor) -> Tensor:
        """Features, cosines first: `[B, 2 frequencies]`, float32."""
        phase = 2 * math.pi * scale_B.float()[:, None] * self.weight
        return torch.cat([phase.cos(), phase.sin()], dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GuidanceFeatures:
        """Go to another device, and keep the type."""
        own = self.weight
        super()._apply(fn, recurse)
        if self.weight.dtype != torch.float32:
            self.weight = own.to(self.weight.device)
        return self


class GuidedUNet2DConditionModel(UNet2DConditionModel):
    """A `UNet2DConditionModel` with a guidance branch: `addition_embed_type: guidance` in its configuration.

    diffusers adds an embedding of that kind to the time's, and refuses kinds that it does not know: a folder of this
    class is not opened by theirs, which would leave the branch out. Without the key this class is theirs.
    """

    def _set_add_embedding(self, addition_embed_type: str, *args: Any, **kwargs: Any) -> None:
        if addition_embed_type != GUIDANCE_BRANCH:
            super()._set_add_embedding(addition_embed_type, *args, **kwargs)
            return
        self.make_branch(kwargs["time_embed_dim"])

    def make_branch(self, width: int) -> None:
        """Make the branch anew; its output is zero, so that the network computes what it would without.

        Args:
            width: Of the time's embedding, which is the branch's too.
        """
        self.guidance_proj = GuidanceFeatures(width // 2)
        self.guidance_embedding = TimestepEmbedding(2 * (width // 2), width, act_fn=self.config.act_fn)
        nn.init.zeros_(self.guidance_embedding.linear_2.weight)
        nn.init.zeros_(self.guidance_embedding.linear_2.bias)

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict[str, Any] | None
    ) -> Tensor | None:
        """What diffusers adds to the embeddings of time and class: here the scale's."""
        if self.config.addition_embed_type != GUIDANCE_BRANCH:
            return super().get_aug_embed(emb, encoder_hidden_states, added_cond_kwargs)  # type: ignore[arg-type]
        features_BN = self.guidance_proj((added_cond_kwargs or {})[SCALE_ARGUMENT])
        told = self.guidance_embedding(features_BN.to(emb.dtype))
        # a class may stand beside the time (`class_embeddings_concat`); the scale is added to the time alone
        return nn.functional.pad(told, (0, emb.shape[1] - told.shape[1]))


def with_guidance_branch(unet: nn.Module, seed: int, where: str) -> GuidedUNet2DConditionModel:
    """A copy of a U-Net that has a new guidance branch and computes what the U-Net does, whatever scale it is told.

    Args:
        unet: A `UNet2DConditionModel` without one; not changed.
        seed: Of the branch's frequencies and first layer.
        where: What the U-Net was given by, for messages.

    Returns:
        The copy, which shares nothing with it.

    Raises:
        MusiccmError: It has an embedding of another kind in the branch's place.
    """
    plain: Any = copy.deepcopy(unet)
    kind = plain.config.addition_embed_type
    if kind is not None:
        raise MusiccmError(f"{where}: expected a U-Net without addition_embed_type, in whose place the guidance branch "
                           f"stands, found {kind!r}; name another teacher")
    config = {key: value for key, value in plain.config.items() if not key.startswith("_")}
    with torch.device("meta"):  # its attributes alone: all modules are the copy's
        network = GuidedUNet2DConditionModel(**{**config, "addition_embed_type": GUIDANCE_BRANCH})
    for name, child in plain.named_children():
        network.add_module(name, child)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.make_branch(plain.time_embedding.linear_2.out_features)
    weight = plain.conv_in.weight
    network.guidance_proj.to(weight.device)
    network.guidance_embedding.to(weight.device, weight.dtype)
    return network.train(plain.training)
