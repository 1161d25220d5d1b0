"""TANGO's kind of U-Net, which attends to tokens: diffusers' own names, so that its shape alone has to be found out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.models.convert.converted import Converted, count_below, weight
from musiccm.models.denoiser import GUIDANCE_BRANCH, takes_scale
from musiccm.models.guidance_branch import GuidedUNet2DConditionModel, is_branch

#: Heads of each level, by the widths of the published U-Nets: TANGO's and ConsistencyTTA's light one.
PUBLISHED_HEADS = {(320, 640, 1280, 1280): (5, 10, 20, 20), (256, 512, 1024, 1024): (5, 10, 20, 20)}
#: What else no shape tells, and both have.
PUBLISHED: dict[str, Any] = {"upcast_attention": True, "norm_num_groups": 32, "norm_eps": 1e-5, "act_fn": "silu",
                             "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
                             "mid_block_scale_factor": 1}
#: What a file of the configuration says that is no argument of the network.
_BESIDE = ("_class_name", "_diffusers_version", "_name_or_path")


def cross_unet_from_original(
    tensors: Mapping[str, Tensor], stated: Mapping[str, Any] | None, sample_size: list[int], what: str
) -> Converted:
    """Read a U-Net's shape off its weights, or take it from a file.

    Args:
        tensors: Weights under diffusers' names; the guidance branch of a network that has one has its names here, too.
        stated: diffusers' configuration; None for one of the published widths.
        sample_size: Latent frames and bins of the clips it was trained on.
        what: The file, for messages.

    Returns:
        The `UNet2DConditionModel`, or a `GuidedUNet2DConditionModel`: `make_cross_unet` makes either.

    Raises:
        MusiccmError: It is no such U-Net, or its heads are unknown or do not divide its attention.
    """
    assumed: list[str] = []
    if stated is None:
        config, assumed = _read_off(tensors, what)
    else:
        config = {key: value for key, value in stated.items()
                  if key not in _BESIDE and not key.startswith("guidance_")}
    config["sample_size"] = sample_size
    if any(map(is_branch, tensors)):
        config["addition_embed_type"] = GUIDANCE_BRANCH
    _check_heads(tensors, config, what)
    return Converted(config, dict(tensors), assumed=assumed)


def make_cross_unet(config: dict[str, Any]) -> nn.Module:
    """The U-Net of a configuration's keys, with its guidance branch where these name one."""
    from diffusers import UNet2DConditionModel

    return GuidedUNet2DConditionModel(**config) if takes_scale(config) else UNet2DConditionModel(**config)


def _read_off(tensors: Mapping[str, Tensor], what: str) -> tuple[dict[str, Any], list[str]]:
    stem, last = weight(tensors, "conv_in.weight", what), weight(tensors, "conv_out.weight", what)
    levels = count_below(tensors, "down_blocks.")
    widths = [weight(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", what).shape[0] for i in range(levels)]
    if tuple(widths) not in PUBLISHED_HEADS:
        raise MusiccmError(f"{what}: how many heads its attention has cannot be seen in the weights, and no published "
                           f"U-Net has levels of {widths} channels; give its configuration (--unet-config)")
    layers = [count_below(tensors, f"down_blocks.{i}.resnets.") for i in range(levels)]
    up = [count_below(tensors, f"up_blocks.{i}.resnets.") - 1 for i in range(levels)]
    if len({*layers, *up}) != 1:
        raise MusiccmError(f"{what}: levels of {layers} residual blocks, upwards of {up} and one more; expected the "
                           "same number everywhere")
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(levels)]
    inner = weight(tensors, "mid_block.attentions.0.proj_in.weight", what)
    tokens = weight(tensors, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", what)
    heads = PUBLISHED_HEADS[tuple(widths)]
    config = {
        "in_channels": stem.shape[1], "out_channels": last.shape[0], "block_out_channels": widths,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "cross_attention_dim": tokens.shape[1], "attention_head_dim": list(heads),
        "use_linear_projection": inner.ndim == 2, **PUBLISHED,
    }
    return config, [f"attention heads {list(heads)}, {PUBLISHED}, as the published U-Nets of this width"]


def _check_heads(tensors: Mapping[str, Tensor], config: Mapping[str, Any], what: str) -> None:
    """Attention is as wide as its heads, which are whole channels: 255 where 256 channels have 5 heads."""
    stated, widths = config.get("attention_head_dim", 8), config.get("block_out_channels")
    if not isinstance(widths, list | tuple) or not widths:
        raise MusiccmError(f"{what}: its configuration states no block_out_channels; expected diffusers' of a "
                           "UNet2DConditionModel")
    heads = [stated] * len(widths) if isinstance(stated, int) else list(stated)
    for level, (count, width) in enumerate(zip(heads, widths, strict=False)):
        query = tensors.get(f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn1.to_q.weight")
        if query is not None and query.shape[0] != count * (width // count):
            raise MusiccmError(f"{what}: the attention of level {level} is {query.shape[0]} wide, and {count} heads of "
                               f"{width} channels make {count * (width // count)}; its heads are others "
                               "(attention_head_dim, --unet-config)")
