"""How many attention heads a teacher's U-Net was trained with, which its weights' shapes do not tell.

MusicLDM and AudioLDM have heads of a fixed number of channels, so that wider levels have more of them. diffusers'
conversion of both leaves its own default, 8 heads on every level: the weights load, and every attention is wrong (8.9 %
relative error of MusicLDM's output, at random weights).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError

#: Key of `musiccm.json` that overrides the heads of unet/config.json.
SETTING = "attention_heads"
#: Channels of a head by the width of the first level: MusicLDM and AudioLDM-S (128), AudioLDM-M (192), -L (256).
HEAD_CHANNELS = {128: 32, 192: 32, 256: 64}
#: Widths of their levels over that of the first.
LEVELS = (1, 2, 3, 5)


def heads_for(widths: Sequence[int], head_channels: int, attends: Sequence[bool] | None = None) -> tuple[int, ...]:
    """Heads of each level where a head has a fixed number of channels.

    Args:
        widths: Channels of each level.
        head_channels: Channels of a head.
        attends: Which levels have attention; None for all. The others' number is of no account.

    Returns:
        One number a level.

    Raises:
        MusiccmError: If a level with attention is no multiple of the head.
    """
    concerned = [width for level, width in enumerate(widths) if attends is None or attends[level]]
    if any(width % head_channels for width in concerned):
        raise MusiccmError(f"heads of {head_channels} channels do not divide levels of {concerned} channels; state "
                           "how many channels a head of this U-Net has")
    return tuple(max(1, width // head_channels) for width in widths)


def trained_heads(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The heads that the released models were trained with, by what else their configuration says.

    Args:
        config: A `UNet2DConditionModel`'s `config.json`.

    Returns:
        Heads of each level, None where the configuration is not one of the released models'.
    """
    widths = tuple(config.get("block_out_channels") or ())
    if not widths or widths[0] not in HEAD_CHANNELS or widths != tuple(widths[0] * level for level in LEVELS):
        return None
    if config.get("class_embed_type") != "simple_projection" or not config.get("class_embeddings_concat"):
        return None
    return heads_for(widths, HEAD_CHANNELS[widths[0]])


def stated_heads(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The heads of each level as diffusers reads them: its `attention_head_dim` is their number, for history's sake."""
    stated = config.get("attention_head_dim", 8)
    return (stated,) * len(config["block_out_channels"]) if isinstance(stated, int) else tuple(stated)


def attending(config: Mapping[str, Any]) -> list[int]:
    """Levels that have attention; on the others the number of heads says nothing."""
    kinds = config.get("down_block_types") or ()
    levels = {level for level, kind in enumerate(kinds) if "Attn" in kind}
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn"):
        levels.add(len(config["block_out_channels"]) - 1)
    return sorted(levels)


def own_heads(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """What `musiccm.json` must say beside a U-Net of a released model's shape that has heads of its own.

    Args:
        config: A `UNet2DConditionModel`'s configuration, with the heads that its weights were trained with.

    Returns:
        The setting; nothing where the network is no released model's, or has that model's heads.
    """
    trained, stated, where = trained_heads(config), stated_heads(config), attending(config)
    if trained is None or [stated[level] for level in where] == [trained[level] for level in where]:
        return {}
    return {SETTING: list(stated)}


def check_heads(config: Mapping[str, Any], setting: Any, folder: Path) -> dict[str, Any]:
    """What to load a U-Net with: nothing beside its own configuration, or the heads that `musiccm.json` states.

    Args:
        config: `unet/config.json`.
        setting: `attention_heads` of `musiccm.json`, None where it says nothing.
        folder: The bundle, for messages.

    Returns:
        Configuration values that replace those of the file.

    Raises:
        MusiccmError: If the configuration is a released model's and has other heads than that was trained with, or
            the setting is not a list of one number a level.
    """
    levels = len(config.get("block_out_channels") or ())
    if setting is not None:
        fits = isinstance(setting, list) and len(setting) == levels
        fits = fits and all(isinstance(number, int) and number > 0 for number in setting)
        if not fits or any(config["block_out_channels"][level] % setting[level] for level in attending(config)):
            raise MusiccmError(f"{folder / 'musiccm.json'}: {SETTING} is {setting!r}; expected a list of {levels} "
                               "numbers, the heads of each level, that divide "
                               f"{list(config.get('block_out_channels') or ())}")
        return {"attention_head_dim": tuple(setting)}
    trained = trained_heads(config)
    if trained is None:
        return {}
    stated = stated_heads(config)
    if not own_heads(config):
        return {}
    raise MusiccmError(
        f"{folder / 'unet' / 'config.json'}: attention_head_dim is {config.get('attention_head_dim')!r}, that is "
        f"{list(stated)} heads, but a U-Net of {list(config['block_out_channels'])} channels with this conditioning is "
        f"MusicLDM's or AudioLDM's, which was trained with {list(trained)}. diffusers' conversion leaves its default, "
        f"and the output is then wrong by about 9 %. Write a copy with the right heads by `musiccm convert --bundle "
        f"{folder} --out FOLDER`, or state in musiccm.json \"{SETTING}\": {list(trained)} to load it as trained, or "
        f"\"{SETTING}\": {list(stated)} if these weights were trained so"
    )
