"""Arguments and results of networks as bytes, and back: tensors by safetensors, the rest by JSON, nothing that runs."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from musiccm.diffusion import Condition
from musiccm.errors import MusiccmError

_LAYOUT = "layout"  # the JSON, as a tensor of bytes beside the others


def packed(value: Any) -> bytes:
    """Write a value.

    Args:
        value: Tensors, conditions and plain values, in lists, tuples and dictionaries with names as keys.

    Returns:
        The bytes; tensors come from whichever device.

    Raises:
        TypeError: It holds something else.
    """
    tensors: dict[str, Tensor] = {}

    def laid_out(part: Any) -> Any:
        if part is None or isinstance(part, str | int | float):
            return part
        if isinstance(part, Tensor):
            name = str(len(tensors))
            # a copy: safetensors takes no two tensors of one storage
            tensors[name] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        if isinstance(part, Condition):
            return {"condition": [laid_out(one) for one in _fields(part)]}
        if isinstance(part, dict):
            return {"dict": {name: laid_out(one) for name, one in part.items()}}
        if isinstance(part, list | tuple):
            return {"tuple" if isinstance(part, tuple) else "list": [laid_out(one) for one in part]}
        raise TypeError(f"expected tensors, conditions and plain values, found {type(part).__name__}")

    layout = json.dumps(laid_out(value)).encode()
    tensors[_LAYOUT] = torch.frombuffer(bytearray(layout), dtype=torch.uint8)
    return save(tensors)


def unpacked(data: bytes) -> Any:
    """What `packed` wrote, on the CPU.

    Args:
        data: The bytes.

    Returns:
        The value.

    Raises:
        MusiccmError: They are no such bytes.
    """
    try:
        tensors = load(data)
        return _value(json.loads(tensors.pop(_LAYOUT).numpy().tobytes()), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise MusiccmError(f"expected what a call or its answer was written as, found {len(data)} bytes that are none "
                           f"({type(error).__name__})") from error


def moved(value: Any, device: torch.device) -> Any:
    """A value with its tensors on a device.

    Args:
        value: See `packed`.
        device: Where they go.

    Returns:
        The same otherwise.
    """
    if isinstance(value, Tensor | Condition):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(one, device) for one in value)
    return value


def _fields(condition: Condition) -> tuple[Tensor | None, ...]:
    return condition.tokens_BLD, condition.mask_BL, condition.pooled_BD, condition.guidance_B


def _value(part: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(part, dict):
        return part
    ((kind, held),) = part.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "condition":
        return Condition(*(_value(one, tensors) for one in held))
    if kind == "dict":
        return {name: _value(one, tensors) for name, one in held.items()}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_value(one, tensors) for one in held)
    raise ValueError(kind)
