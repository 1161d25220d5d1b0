"""What a network is told beside the noisy latents and the time: one vector, a sequence of tokens, or both.

A model that takes one vector (MusicLDM's CLAP embedding) is given a plain tensor `[B, D]`; one that attends to tokens
(TANGO's FLAN-T5 states) a `Condition`. The functions here take either and give back what they were given, so that
guidance, samplers and long form need not know which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from musiccm.errors import MusiccmError

#: `model_type` of the text encoders that give one vector a text: a whole CLAP, or its text tower alone.
VECTOR_ENCODERS = ("clap", "clap_text_model")


def gives_tokens(text_encoder: Mapping[str, Any]) -> bool:
    """Whether a text encoder conditions by tokens, and not by a vector.

    Args:
        text_encoder: Its `config.json`.

    Returns:
        True for every encoder that says what it is and is not CLAP.
    """
    return text_encoder.get("model_type", VECTOR_ENCODERS[0]) not in VECTOR_ENCODERS


@dataclass(frozen=True)
class Condition:
    """Tokens with their mask, and a vector where the model takes one too. Every field has the batch first.

    Args:
        tokens_BLD: Token states.
        mask_BL: True where there is a token, False where there is padding.
        pooled_BD: One vector an item, or none.

    Raises:
        MusiccmError: The shapes do not belong together.
    """

    tokens_BLD: Tensor
    mask_BL: Tensor
    pooled_BD: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask_BL.dtype != torch.bool or self.mask_BL.shape != self.tokens_BLD.shape[:-1]:
            raise MusiccmError(f"condition: expected a boolean mask of shape {list(self.tokens_BLD.shape[:-1])}, found "
                               f"{self.mask_BL.dtype} of shape {list(self.mask_BL.shape)}")

    def __len__(self) -> int:
        return len(self.tokens_BLD)

    def __getitem__(self, index: int | slice | Tensor) -> Condition:
        """Some items; one of them, without its batch axis, for an int."""
        pooled = None if self.pooled_BD is None else self.pooled_BD[index]
        return Condition(self.tokens_BLD[index], self.mask_BL[index], pooled)

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Device and type as `Tensor.to` takes them, or as another condition has them; the mask has only the device."""
        args = tuple(arg.tokens_BLD if isinstance(arg, Condition) else arg for arg in args)
        tokens = self.tokens_BLD.to(*args, **kwargs)
        pooled = None if self.pooled_BD is None else self.pooled_BD.to(*args, **kwargs)
        return Condition(tokens, self.mask_BL.to(tokens.device, non_blocking=bool(kwargs.get("non_blocking"))), pooled)

    def pin_memory(self) -> Condition:
        """The same in page-locked memory."""
        pooled = None if self.pooled_BD is None else self.pooled_BD.pin_memory()
        return Condition(self.tokens_BLD.pin_memory(), self.mask_BL.pin_memory(), pooled)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.tokens_BLD.device

    def padded(self, length: int) -> Condition:
        """The same with padding up to `length` tokens."""
        missing = length - self.tokens_BLD.shape[-2]
        if missing == 0:
            return self
        return Condition(torch.nn.functional.pad(self.tokens_BLD, (0, 0, 0, missing)),
                         torch.nn.functional.pad(self.mask_BL, (0, missing)), self.pooled_BD)


AnyCondition: TypeAlias = "Tensor | Condition"
"""A vector an item, `[B, D]`, or tokens."""


def cat_conditions(parts: Sequence[AnyCondition]) -> AnyCondition:
    """Join batches; shorter token sequences are padded.

    Args:
        parts: At least one, all of one kind.

    Returns:
        One batch.

    Raises:
        MusiccmError: They are of different kinds.
    """
    return _joined(parts, torch.cat)


def stack_conditions(items: Sequence[AnyCondition]) -> AnyCondition:
    """Make a batch of single items, such as `condition[0]`; arguments and errors as `cat_conditions`."""
    return _joined(items, torch.stack)


def expand_condition(condition: AnyCondition, count: int) -> AnyCondition:
    """Repeat a batch of one without copying it; a batch of `count` stays as it is.

    Args:
        condition: A batch of 1 or `count`.
        count: Items wanted.

    Returns:
        A batch of `count`.
    """
    if isinstance(condition, Tensor):
        return condition.expand(count, *condition.shape[1:])
    pooled = condition.pooled_BD
    return Condition(condition.tokens_BLD.expand(count, -1, -1), condition.mask_BL.expand(count, -1),
                     None if pooled is None else pooled.expand(count, -1))


def choose_condition(mask_B: Tensor, yes: AnyCondition, no: AnyCondition) -> AnyCondition:
    """Item by item one of two.

    Args:
        mask_B: Boolean.
        yes: Taken where it is True; a batch of 1 or B.
        no: Taken elsewhere; a batch of 1 or B.

    Returns:
        A batch of B.
    """
    if isinstance(yes, Tensor) and isinstance(no, Tensor):
        return torch.where(mask_B[:, None].to(no.device), yes.to(no), no)
    if isinstance(yes, Condition) and isinstance(no, Condition):
        yes = yes.to(no)
    both = cat_conditions([expand_condition(yes, len(mask_B)), expand_condition(no, len(mask_B))])
    rows = torch.arange(len(mask_B), device=both.device)
    return both[torch.where(mask_B.to(both.device), rows, rows + len(mask_B))]


def pool_condition(condition: AnyCondition) -> Tensor:
    """One vector an item, for networks that take no sequence.

    Args:
        condition: Vectors, which stay as they are, or tokens.

    Returns:
        [B, D]; of tokens without a vector of their own the mean over what is no padding, in float32, at unit length,
        as CLAP's vectors have it.
    """
    if isinstance(condition, Tensor):
        return condition
    if condition.pooled_BD is not None:
        return condition.pooled_BD
    weights_BL1 = condition.mask_BL[..., None].float()
    # where, not a product: 0 times an infinity that stands under padding would be NaN
    kept_BLD = torch.where(condition.mask_BL[..., None], condition.tokens_BLD.float(), 0.0)
    return torch.nn.functional.normalize(kept_BLD.sum(1) / weights_BL1.sum(1).clamp(min=1.0), dim=-1)


def _joined(parts: Sequence[AnyCondition], join: Any) -> AnyCondition:
    if all(isinstance(part, Tensor) for part in parts):
        return join(list(parts))
    conditions = [part for part in parts if isinstance(part, Condition)]
    pooled = [part.pooled_BD for part in conditions if part.pooled_BD is not None]
    if len(conditions) != len(parts) or len(pooled) not in (0, len(parts)):
        raise MusiccmError("condition: expected all of one kind (vectors, tokens, or tokens with vectors), found a mix")
    length = max(part.tokens_BLD.shape[-2] for part in conditions)
    same = [part.padded(length) for part in conditions]
    return Condition(join([part.tokens_BLD for part in same]), join([part.mask_BL for part in same]),
                     join(pooled) if pooled else None)
