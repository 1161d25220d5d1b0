"""What a network is told beside the noisy latents and the time: one vector, a sequence of tokens, or both.

A model that takes one vector (MusicLDM's CLAP embedding) is given a plain tensor `[B, D]`; one that attends to tokens
(TANGO's FLAN-T5 states) a `Condition`, and so is one that is told a guidance scale. The functions here take either and
give back what they were given, so that guidance, samplers and long form need not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Tokens with their mask, a vector where the model takes one too, and the guidance scale that it is told, if any.

    Every field has the batch first.

    Args:
        tokens_BLD: Token states; None where the model takes a vector alone, which is a `Condition` only with a scale.
        mask_BL: True where there is a token, False where there is padding.
        pooled_BD: One vector an item, or none.
        guidance_B: The guidance scale that the network is told (`told_scale`), or none. It keeps its type under `to`:
            a network embeds it in float32.

    Raises:
        MusiccmError: The shapes do not belong together, or there are neither tokens nor vectors.
    """

    tokens_BLD: Tensor | None = None
    mask_BL: Tensor | None = None
    pooled_BD: Tensor | None = None
    guidance_B: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens_BLD is None and self.pooled_BD is None:
            raise MusiccmError("condition: expected tokens or vectors, found neither")
        shape = None if self.tokens_BLD is None else self.tokens_BLD.shape[:-1]
        mask = self.mask_BL
        if (shape is None) != (mask is None) or (
            mask is not None and (mask.dtype != torch.bool or mask.shape != shape)
        ):
            raise MusiccmError(f"condition: expected a boolean mask of shape {None if shape is None else list(shape)}, "
                               f"found {None if mask is None else f'{mask.dtype} of shape {list(mask.shape)}'}")
        batch = self._anchor.shape[: -1 if shape is None else -2]
        if self.guidance_B is not None and self.guidance_B.shape != batch:
            raise MusiccmError(f"condition: expected a guidance scale an item, of shape {list(batch)}, found "
                               f"{list(self.guidance_B.shape)}")

    @property
    def _anchor(self) -> Tensor:
        """The part that says how many items there are, where they are and of which type."""
        found = self.pooled_BD if self.tokens_BLD is None else self.tokens_BLD
        assert found is not None
        return found

    def _each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with all of its tensors changed."""
        parts = (self.tokens_BLD, self.mask_BL, self.pooled_BD, self.guidance_B)
        return Condition(*(None if part is None else change(part) for part in parts))

    def __len__(self) -> int:
        return len(self._anchor)

    def __getitem__(self, index: int | slice | Tensor) -> Condition:
        """Some items; one of them, without its batch axis, for an int."""
        return self._each(lambda part: part[index])

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Device and type as `Tensor.to` takes them, or as another condition has them; mask and scale keep theirs."""
        args = tuple(arg._anchor if isinstance(arg, Condition) else arg for arg in args)
        tokens, pooled = (None if part is None else part.to(*args, **kwargs)
                          for part in (self.tokens_BLD, self.pooled_BD))
        moved = pooled if tokens is None else tokens
        assert moved is not None
        mask, guidance = (None if part is None else part.to(moved.device, non_blocking=bool(kwargs.get("non_blocking")))
                          for part in (self.mask_BL, self.guidance_B))
        return Condition(tokens, mask, pooled, guidance)

    def pin_memory(self) -> Condition:
        """The same in page-locked memory."""
        return self._each(Tensor.pin_memory)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._anchor.device

    @property
    def unpadded(self) -> Tensor:
        """The tokens of all items in a row, without padding; none where there are vectors alone."""
        if self.tokens_BLD is None:
            return self._anchor[:0]
        return self.tokens_BLD[self.mask_BL]

    def padded(self, length: int) -> Condition:
        """The same with padding up to `length` tokens."""
        missing = 0 if self.tokens_BLD is None else length - self.tokens_BLD.shape[-2]
        if missing == 0 or self.tokens_BLD is None or self.mask_BL is None:
            return self
        return replace(self, tokens_BLD=torch.nn.functional.pad(self.tokens_BLD, (0, 0, 0, missing)),
                       mask_BL=torch.nn.functional.pad(self.mask_BL, (0, missing)))


AnyCondition: TypeAlias = "Tensor | Condition"
"""A vector an item, `[B, D]`, or tokens."""


def told_scale(condition: AnyCondition, scale: float | Tensor) -> Condition:
    """A condition that also tells the network its guidance scale.

    For networks with a guidance branch (`models/guidance_branch.py`); others refuse it.

    Args:
        condition: Vectors, which become a `Condition` without tokens, or tokens; a scale that it has is replaced.
        scale: The usual scale (`guide`): one number, or one an item.

    Returns:
        The condition.
    """
    anchor = condition if isinstance(condition, Tensor) else condition._anchor
    if isinstance(scale, Tensor):
        scale_B = scale.to(anchor.device, torch.float32).expand(len(anchor))
    else:  # filled on the device: nothing is sent there
        scale_B = torch.full((len(anchor),), float(scale), device=anchor.device)
    if isinstance(condition, Tensor):
        return Condition(pooled_BD=condition, guidance_B=scale_B)
    return replace(condition, guidance_B=scale_B)


def scale_of(condition: AnyCondition) -> Tensor | None:
    """The guidance scale that a condition tells the network, `[B]`; None where it tells none."""
    return None if isinstance(condition, Tensor) else condition.guidance_B


def without_scale(condition: AnyCondition) -> AnyCondition:
    """The opposite of `told_scale`, for networks without a guidance branch: what was a plain vector is one again."""
    if isinstance(condition, Tensor) or condition.guidance_B is None:
        return condition
    if condition.tokens_BLD is None:
        return condition._anchor
    return replace(condition, guidance_B=None)


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
    return condition._each(lambda part: part.expand(count, *part.shape[1:]))


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
    tokens_BLD, mask_BL = condition.tokens_BLD, condition.mask_BL
    assert tokens_BLD is not None and mask_BL is not None
    weights_BL1 = mask_BL[..., None].float()
    # where, not a product: 0 times an infinity that stands under padding would be NaN
    kept_BLD = torch.where(mask_BL[..., None], tokens_BLD.float(), 0.0)
    return torch.nn.functional.normalize(kept_BLD.sum(1) / weights_BL1.sum(1).clamp(min=1.0), dim=-1)


def _joined(parts: Sequence[AnyCondition], join: Callable[[list[Tensor]], Tensor]) -> AnyCondition:
    if all(isinstance(part, Tensor) for part in parts):
        return join([part for part in parts if isinstance(part, Tensor)])
    conditions = [part for part in parts if isinstance(part, Condition)]
    length = max((part.tokens_BLD.shape[-2] for part in conditions if part.tokens_BLD is not None), default=0)
    same = [part.padded(length) for part in conditions]
    joined: list[Tensor | None] = []
    for name in ("tokens_BLD", "mask_BL", "pooled_BD", "guidance_B"):
        there = [tensor for part in same if (tensor := getattr(part, name)) is not None]
        if len(conditions) != len(parts) or len(there) not in (0, len(parts)):
            raise MusiccmError("condition: expected all of one kind (vectors, tokens, or tokens with vectors; told a "
                               "guidance scale or not), found a mix")
        joined.append(join(there) if there else None)
    return Condition(*joined)
