"""HiFi-GAN's generator to transformers' `SpeechT5HifiGan`, its weight norm folded in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.convert.converted import Converted, count_below, weight
from musiccm.texts import load_json, read_text

#: The released vocoder's numbers, which no shape tells.
RELEASED: dict[str, Any] = {"sampling_rate": 16000, "upsample_rates": [5, 4, 2, 2, 2],
                            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]]}
RELEASED_KERNELS = [16, 16, 8, 4, 4]


def read_vocoder_config(path: str | Path) -> dict[str, Any]:
    """Read HiFi-GAN's own JSON (`config_16k_64.json`): the numbers that no shape tells.

    Raises:
        MusiccmError: It is missing, unreadable, lacks one, or describes another kind of block.
    """
    path = Path(path)
    try:
        stated = load_json(read_text(path))
        numbers = {key: stated[key] for key in RELEASED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        keys = ", ".join(RELEASED)
        raise MusiccmError(f"{path}: expected HiFi-GAN's configuration with {keys} ({error!r})") from None
    if str(stated.get("resblock", "1")) != "1":
        raise MusiccmError(f"{path}: resblock is {stated['resblock']!r}; only HiFi-GAN's kind 1 is converted")
    return numbers


def vocoder_from_original(tensors: Mapping[str, Tensor], numbers: Mapping[str, Any] | None, what: str) -> Converted:
    """Rename a generator's weights, fold its weight norm, and read its shape off them.

    Args:
        tensors: Weights under HiFi-GAN's names, as `weight_g` and `weight_v` or already folded.
        numbers: From `read_vocoder_config`; None takes the released vocoder's where its kernels are these.
        what: The file, for messages.

    Returns:
        The `SpeechT5HifiGan`, which neither shifts nor scales its input.

    Raises:
        MusiccmError: It is no such generator, or its rates are unknown.
    """
    folded = _fold(tensors, what)
    first = weight(folded, "conv_pre.weight", what)
    kernels = [folded[f"ups.{i}.weight"].shape[2] for i in range(count_below(folded, "ups."))]
    assumed = []
    if numbers is None:
        if kernels != RELEASED_KERNELS:
            raise MusiccmError(f"{what}: the rates of upsampling kernels {kernels} cannot be seen in the weights; give "
                               "the vocoder's JSON (--vocoder-config)")
        numbers = RELEASED
        assumed.append(f"vocoder: {json.dumps(RELEASED)}, as in the released config_16k_64.json")
    blocks = count_below(folded, "resblocks.") // max(1, len(kernels))
    config = {
        "model_in_dim": first.shape[1], "upsample_initial_channel": first.shape[0], "normalize_before": False,
        "upsample_kernel_sizes": kernels, "sampling_rate": numbers["sampling_rate"],
        "upsample_rates": list(numbers["upsample_rates"]),
        "resblock_kernel_sizes": [folded[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(blocks)],
        "resblock_dilation_sizes": [list(dilations) for dilations in numbers["resblock_dilation_sizes"][:blocks]],
    }
    state = {name.replace("ups.", "upsampler.", 1) if name.startswith("ups.") else name: value
             for name, value in folded.items()}
    # what the class normalises by, if told to
    state |= {"mean": torch.zeros(first.shape[1]), "scale": torch.ones(first.shape[1])}
    return Converted(config, state, assumed=assumed)


def _fold(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Weight norm as it was defined: g v / |v|, a norm for each index of the first axis (Salimans & Kingma, 2016)."""
    folded = {}
    for name, value in tensors.items():
        if name.endswith(".weight_g"):
            continue
        if name.endswith(".weight_v"):
            stem = name.removesuffix(".weight_v")
            v = value.double()
            g = weight(tensors, f"{stem}.weight_g", what).double()
            folded[f"{stem}.weight"] = (g * v / v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))).float()
        else:
            folded[name] = value
    return folded
