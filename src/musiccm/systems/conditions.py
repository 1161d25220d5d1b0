"""What a batch's items are conditioned on: their caption or, with CLAP, their own audio."""

from __future__ import annotations

from torch import Tensor

from musiccm.data.batch import LatentBatch
from musiccm.diffusion import AnyCondition, choose_condition
from musiccm.errors import MusiccmError
from musiccm.models.conditioners.prompt_memory import Conditioner


def check_audio_share(key: str, share: float, conditioner: Conditioner) -> None:
    """Refuse to condition on audio where the text encoder embeds none.

    Args:
        key: The setting, for the message.
        share: Its value.
        conditioner: The bundle's.

    Raises:
        MusiccmError: The share is above 0 all the same.
    """
    if share > 0 and not conditioner.has_audio:
        raise MusiccmError(f"{key}: expected 0, found {share:g}: the bundle's text encoder embeds no audio that could "
                           "take the place of a caption. Set it to 0")


def window_condition(batch: LatentBatch, audio_B: Tensor, conditioner: Conditioner) -> AnyCondition:
    """What the network of a bundle is told of each item in training.

    Args:
        batch: The batch.
        audio_B: Where an item's own audio takes the place of its caption; without effect in a batch that has none.
        conditioner: The network's.

    Returns:
        A batch of conditions.

    Raises:
        MusiccmError: The batch lacks what such a network is told.
    """
    return conditioner.of_windows(batch.text_BD, batch.audio_BD, batch.semantic_BL, audio_B)


def caption_or_audio(batch: LatentBatch, audio_B: Tensor) -> AnyCondition:
    """The condition of each item.

    Args:
        batch: The batch.
        audio_B: Where an item's own audio takes the place of its caption; without effect in a batch that has none.

    Returns:
        A batch of conditions.
    """
    return batch.text_BD if batch.audio_BD is None else choose_condition(audio_B, batch.audio_BD, batch.text_BD)
