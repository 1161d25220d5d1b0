"""MusicLDM's and AudioLDM's U-Net: input, middle and output blocks to down, mid and up blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.attention_heads import HEAD_CHANNELS, heads_for
from musiccm.models.convert.converted import Converted, count_below, weight

PLAIN = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
         "film_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
          "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}


@dataclass
class _Plan:
    """Which module each of the original's layers becomes, and the shape that follows from it."""

    modules: dict[str, str] = field(default_factory=lambda: dict(PLAIN))
    resnets: set[str] = field(default_factory=set)
    widths: list[int] = field(default_factory=list)
    attention: list[bool] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)


def unet_from_original(
    tensors: Mapping[str, Tensor], head_channels: int | None, sample_size: int, what: str
) -> Converted:
    """Rename a U-Net's weights and read its shape off them.

    Args:
        tensors: Weights under the names of `UNetModel`: `input_blocks`, `middle_block`, `output_blocks`, ...
        head_channels: Channels of an attention head, which no shape tells; None takes the released model's of this
            width.
        sample_size: Latent frames of the clips it was trained on.
        what: The file, for messages.

    Returns:
        The `UNet2DConditionModel`.

    Raises:
        MusiccmError: It is not such a U-Net, or its head is unknown.
    """
    plan = _plan(tensors, what)
    stem, last = weight(tensors, "input_blocks.0.0.weight", what), weight(tensors, "out.2.weight", what)
    film, time = weight(tensors, "film_emb.weight", what), weight(tensors, "time_embed.2.weight", what)
    projected = weight(tensors, "input_blocks.1.0.emb_layers.1.weight", what).shape[1]
    assumed = []
    if head_channels is None:
        if stem.shape[0] not in HEAD_CHANNELS:
            raise MusiccmError(f"{what}: how many channels an attention head has cannot be seen in the weights, and no "
                               f"released model begins with {stem.shape[0]} channels; state it (--head-channels, "
                               "num_head_channels of the original's YAML)")
        head_channels = HEAD_CHANNELS[stem.shape[0]]
        assumed.append(f"attention heads of {head_channels} channels, as in the released models of this width")
    config: dict[str, Any] = {
        "sample_size": sample_size, "in_channels": stem.shape[1], "out_channels": last.shape[0],
        "block_out_channels": plan.widths, "layers_per_block": plan.layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in plan.attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(plan.attention)],
        # both attentions of a block attend to the latent itself; diffusers wants to be told each level's width
        "cross_attention_dim": plan.widths,
        # the middle attends whatever the levels do
        "attention_head_dim": list(heads_for(plan.widths, head_channels, [*plan.attention[:-1], True])),
        "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": film.shape[1],
        "class_embeddings_concat": projected == 2 * time.shape[0],
    }
    state = {}
    for name, value in tensors.items():
        state[_renamed(name, plan, what)] = value
    return Converted(config, state, assumed=assumed)


def _plan(tensors: Mapping[str, Tensor], what: str) -> _Plan:
    plan, names = _Plan(), set(tensors)
    level, layer = 0, 0
    for block in range(1, count_below(names, "input_blocks.")):
        here = f"input_blocks.{block}"
        if f"{here}.0.op.weight" in names:
            plan.modules[f"{here}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            plan.layers.append(layer)
            level, layer = level + 1, 0
            continue
        _resnet(plan, f"{here}.0", f"down_blocks.{level}.resnets.{layer}")
        if layer == 0:
            plan.widths.append(weight(tensors, f"{here}.0.in_layers.2.weight", what).shape[0])
            plan.attention.append(f"{here}.1.norm.weight" in names)
        if f"{here}.1.norm.weight" in names:
            plan.modules[f"{here}.1"] = f"down_blocks.{level}.attentions.{layer}"
        layer += 1
    plan.layers.append(layer)
    if len(set(plan.layers)) != 1 or not plan.widths:
        raise MusiccmError(f"{what}: levels of {plan.layers} residual blocks; expected the same number on each")
    _resnet(plan, "middle_block.0", "mid_block.resnets.0")
    _resnet(plan, "middle_block.2", "mid_block.resnets.1")
    plan.modules["middle_block.1"] = "mid_block.attentions.0"
    level, layer = 0, 0
    for block in range(count_below(names, "output_blocks.")):
        here = f"output_blocks.{block}"
        _resnet(plan, f"{here}.0", f"up_blocks.{level}.resnets.{layer}")
        attends = f"{here}.1.norm.weight" in names
        if attends:
            plan.modules[f"{here}.1"] = f"up_blocks.{level}.attentions.{layer}"
        layer += 1
        up = f"{here}.{2 if attends else 1}.conv"
        if f"{up}.weight" in names:
            plan.modules[up] = f"up_blocks.{level}.upsamplers.0.conv"
            level, layer = level + 1, 0
    return plan


def _resnet(plan: _Plan, old: str, new: str) -> None:
    plan.modules[old] = new
    plan.resnets.add(old)


def _renamed(name: str, plan: _Plan, what: str) -> str:
    """A weight's new name: the longest known beginning of the old one, replaced."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        old = ".".join(parts[:length])
        if old not in plan.modules:
            continue
        rest = ".".join(parts[length:])
        if old in plan.resnets:
            inner, _, kind = rest.rpartition(".")
            if inner not in RESNET:
                break
            rest = f"{RESNET[inner]}.{kind}"
        return f"{plan.modules[old]}.{rest}"
    raise MusiccmError(f"{what}: the U-Net has a weight {name} that no released model has; a U-Net conditioned "
                       "otherwise than by one vector is not converted here")
