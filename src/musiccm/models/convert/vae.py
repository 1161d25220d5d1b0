"""The latent-diffusion autoencoder to diffusers' `AutoencoderKL`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.convert.converted import Converted, count_below, weight

#: Modules beside encoder and decoder that an autoencoder's checkpoint holds: its training losses and the vocoder.
BESIDE = ("loss.", "vocoder.")
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_from_original(tensors: Mapping[str, Tensor], scaling_factor: float, what: str) -> Converted:
    """Rename an autoencoder's weights and read its shape off them.

    Args:
        tensors: Weights under the names of latent diffusion's `AutoencoderKL`: `encoder.down.0.block.0`, ...
        scaling_factor: What raw latents are multiplied by for the U-Net (the LDM checkpoint's `scale_factor`).
        what: The file, for messages.

    Returns:
        The `AutoencoderKL`.

    Raises:
        MusiccmError: It is not such an autoencoder, or has attention outside its middle.
    """
    names = [name for name in tensors if not name.startswith(BESIDE)]
    levels = count_below(names, "encoder.down.")
    if not levels:
        raise MusiccmError(f"{what}: expected weights named encoder.down.0..., found {', '.join(list(tensors)[:3])}; "
                           "not a checkpoint of the autoencoder")
    widths = [weight(tensors, f"encoder.down.{i}.block.0.conv1.weight", what).shape[0] for i in range(levels)]
    stem, last = weight(tensors, "encoder.conv_in.weight", what), weight(tensors, "decoder.conv_out.weight", what)
    latents, embedded = weight(tensors, "post_quant_conv.weight", what).shape[:2]
    if latents != embedded:
        raise MusiccmError(f"{what}: z_channels {latents} and embed_dim {embedded} differ; diffusers has one number")
    layers = {count_below(names, f"encoder.down.{i}.block.") for i in range(levels)}
    layers |= {count_below(names, f"decoder.up.{i}.block.") - 1 for i in range(levels)}
    if len(layers) != 1:
        raise MusiccmError(f"{what}: levels of {sorted(layers)} residual blocks; expected the same number on each, and "
                           "one more in the decoder")
    config = {
        "in_channels": stem.shape[1], "out_channels": last.shape[0], "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": layers.pop(), "latent_channels": latents, "scaling_factor": float(scaling_factor),
    }
    state = {}
    for name in names:
        new = _renamed(name, levels, what)
        linear = new.endswith("weight") and re.search(r"\.to_(q|k|v|out\.0)\.weight$", new)
        # 1x1 convolutions there, linear maps here
        state[new] = tensors[name].flatten(1) if linear else tensors[name]
    return Converted(config, state, dropped=[name for name in tensors if name.startswith(BESIDE)])


def _renamed(name: str, levels: int, what: str) -> str:
    if re.match(r"(encoder|decoder)\.(down|up)\.\d+\.attn\.", name):
        raise MusiccmError(f"{what}: has attention outside the middle ({name}); such an autoencoder is not converted")
    rules: list[tuple[str, str]] = [
        (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
        (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
        (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
        (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    ]
    for pattern, replacement in rules:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new.replace("nin_shortcut", "conv_shortcut")
    if attention := re.match(r"^(encoder|decoder)\.mid\.attn_1\.(\w+)\.(weight|bias)$", name):
        side, inner, kind = attention.groups()
        return f"{side}.mid_block.attentions.0.{ATTENTION.get(inner, inner)}.{kind}"
    if up := re.match(r"^decoder\.up\.(\d+)\.(block\.(\d+)|upsample)\.(.+)$", name):
        # the original counts the decoder's levels from the output, diffusers from the latent
        level, rest = levels - 1 - int(up[1]), up[4].replace("nin_shortcut", "conv_shortcut")
        inner = "upsamplers.0" if up[3] is None else f"resnets.{up[3]}"
        return f"decoder.up_blocks.{level}.{inner}.{rest}"
    return name
