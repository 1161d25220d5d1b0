"""MusicLDM's U-Net for sampling alone, as a module that needs torch and nothing else.

It takes the weights of a `UNet2DConditionModel` under their names and does its operations in their order. Importing
diffusers costs more processor time than a clip of a small model (docs/speed.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Keys of unet/config.json that have one value here; whatever else diffusers' class computes is left to it.
FIXED = {
    "act_fn": "silu", "addition_embed_type": None, "addition_time_embed_dim": None, "attention_type": "default",
    "center_input_sample": False, "class_embed_type": "simple_projection", "class_embeddings_concat": True,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "downsample_padding": 1,
    "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "num_class_embeds": None,
    "only_cross_attention": False, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default", "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None,
    "time_embedding_act_fn": None, "time_embedding_dim": None, "time_embedding_type": "positional",
    "timestep_post_act": None, "transformer_layers_per_block": 1, "upcast_attention": False,
    "use_linear_projection": False,
}
#: Keys that may have any value: the shape, and what sampling does not use.
SHAPE = ("attention_head_dim", "block_out_channels", "cross_attention_dim", "down_block_types", "in_channels",
         "layers_per_block", "norm_eps", "norm_num_groups", "out_channels", "projection_class_embeddings_input_dim",
         "up_block_types")
UNUSED = ("addition_embed_type_num_heads", "dropout", "sample_size")


def computes(config: Mapping[str, Any]) -> bool:
    """Whether `PlainUNet` is the network of a configuration, and not diffusers' class alone.

    Args:
        config: Of a `UNet2DConditionModel`, every key of it.
    """
    stated = {key: value for key, value in config.items() if not key.startswith("_")}
    if set(stated) != {*FIXED, *SHAPE, *UNUSED} or any(stated[key] != value for key, value in FIXED.items()):
        return False
    widths, heads = config["block_out_channels"], config["attention_head_dim"]
    levels = len(widths)
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    attends = [kind == "CrossAttnDownBlock2D" for kind in down]
    return (isinstance(heads, list | tuple) and len(heads) == len(down) == len(up) == levels
            and isinstance(config["layers_per_block"], int) and isinstance(config["norm_num_groups"], int)
            and list(config["cross_attention_dim"] or ()) == list(widths)  # the second attention is to itself, too
            and not any(width % number for width, number in zip(widths, heads, strict=True))
            and set(down) <= {"DownBlock2D", "CrossAttnDownBlock2D"}
            and up == ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)])


class _TimeEmbedding(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, features_BN: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features_BN)))


class _Resnet(nn.Module):
    def __init__(self, taken: int, width: int, told: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, taken, eps), nn.GroupNorm(groups, width, eps)
        self.conv1, self.conv2 = nn.Conv2d(taken, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(told, width)
        self.conv_shortcut = nn.Conv2d(taken, width, 1) if taken != width else nn.Identity()

    def forward(self, x_BCTF: Tensor, told_BN: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x_BCTF))) + self.time_emb_proj(F.silu(told_BN))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return self.conv_shortcut(x_BCTF) + y


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BLC: Tensor) -> Tensor:
        q, k, v = (to(x_BLC).unflatten(2, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x_BLC: Tensor) -> Tensor:
        value, gate = self.proj(x_BLC).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Gated(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.net[2](self.net[0](x_BLC))


class _Block(nn.Module):
    """Two attentions of the positions to each other, and a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2, self.ff = _Attention(width, heads), _Attention(width, heads), _FeedForward(width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BLC = self.attn1(self.norm1(x_BLC)) + x_BLC
        x_BLC = self.attn2(self.norm2(x_BLC)) + x_BLC
        return self.ff(self.norm3(x_BLC)) + x_BLC


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([_Block(width, heads)])

    def forward(self, x_BCTF: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x_BCTF))
        positions_BLC = self.transformer_blocks[0](y.permute(0, 2, 3, 1).flatten(1, 2))
        y = positions_BLC.unflatten(1, y.shape[2:]).permute(0, 3, 1, 2).contiguous()
        return self.proj_out(y) + x_BCTF


class _Resampled(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=stride, padding=1)

    def forward(self, x_BCTF: Tensor) -> Tensor:
        return self.conv(x_BCTF)


class _Level(nn.Module):
    """Residual blocks with attention behind each, where the level has any."""

    def __init__(self, taken: list[int], width: int, heads: int | None, told: int, groups: int, eps: float) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(channels, width, told, groups, eps) for channels in taken])
        if heads is not None:
            self.attentions = nn.ModuleList([_Transformer(width, heads, groups) for _ in taken])
        self.attends = heads is not None

    def step(self, number: int, x_BCTF: Tensor, told_BN: Tensor) -> Tensor:
        x_BCTF = self.resnets[number](x_BCTF, told_BN)
        return self.attentions[number](x_BCTF) if self.attends else x_BCTF


class _Middle(nn.Module):
    def __init__(self, width: int, heads: int, told: int, groups: int, eps: float) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(width, width, told, groups, eps) for _ in range(2)])
        self.attentions = nn.ModuleList([_Transformer(width, heads, groups)])

    def forward(self, x_BCTF: Tensor, told_BN: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_BCTF, told_BN)), told_BN)


class PlainUNet(nn.Module):
    """A U-Net that is told a vector, which is projected and stands beside the embedding of the time (MusicLDM).

    Args:
        config: A configuration that it `computes`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, heads = list(config["block_out_channels"]), list(config["attention_head_dim"])
        attends = ["Attn" in kind for kind in config["down_block_types"]]
        layers, top = config["layers_per_block"], len(widths) - 1
        self.features, embedded = widths[0], 4 * widths[0]
        shared = {"told": 2 * embedded, "groups": config["norm_num_groups"], "eps": config["norm_eps"]}
        self.time_embedding = _TimeEmbedding(self.features, embedded)
        self.class_embedding = nn.Linear(config["projection_class_embeddings_input_dim"], embedded)
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            taken = [skips[-1], *[width] * (layers - 1)]
            down = _Level(taken, width, heads[level] if attends[level] else None, **shared)
            skips += [width] * layers
            if level < top:
                down.downsamplers = nn.ModuleList([_Resampled(width, 2)])
                skips.append(width)
            self.down_blocks.append(down)
        self.mid_block = _Middle(widths[-1], heads[-1], **shared)
        for level, width in reversed(list(enumerate(widths))):
            taken = [(widths[min(level + 1, top)] if number == 0 else width) + skips.pop()
                     for number in range(layers + 1)]
            up = _Level(taken, width, heads[level] if attends[level] else None, **shared)
            if level:
                up.upsamplers = nn.ModuleList([_Resampled(width, 1)])
            self.up_blocks.append(up)
        self.conv_norm_out = nn.GroupNorm(shared["groups"], widths[0], shared["eps"])
        self.conv_out = nn.Conv2d(widths[0], config["out_channels"], 3, padding=1)

    def forward(
        self, z_BCTF: Tensor, t_B: Tensor, encoder_hidden_states: None, class_labels: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Predict, called as diffusers' class is.

        Args:
            z_BCTF: Noisy latents.
            t_B: Times as the network is told them, one a row or one for all.
            encoder_hidden_states: None.
            class_labels: The condition, [B, D].
            return_dict: Without effect.

        Returns:
            The prediction alone, of the latents' shape.
        """
        told = torch.cat([self.time_embedding(self._time(t_B, z_BCTF)), self.class_embedding(class_labels)], dim=-1)
        x = self.conv_in(z_BCTF)
        skips = [x]
        for block in self.down_blocks:
            for number in range(len(block.resnets)):
                x = block.step(number, x, told)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x, told)
        for block in self.up_blocks:
            for number in range(len(block.resnets)):
                x = block.step(number, torch.cat([x, skips.pop()], dim=1), told)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](F.interpolate(x, size=skips[-1].shape[2:], mode="nearest"))
        return (self.conv_out(F.silu(self.conv_norm_out(x))),)

    def _time(self, t_B: Tensor, z_BCTF: Tensor) -> Tensor:
        """Cosines and sines of a time, at frequencies from 1 to 1/10000: [B, features]."""
        half = self.features // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_B.device) / half
        phase = t_B.expand(len(z_BCTF))[:, None].float() * exponent.exp()[None]
        return torch.cat([phase.cos(), phase.sin()], dim=-1).to(z_BCTF.dtype)
