"""Where a command computes."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from musiccm.errors import MusiccmError


def device_name(device: torch.device) -> str:
    """What computes, for figures that depend on it: the accelerator, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, which is not waited for: `to` waits until all that was queued before is done.

    Args:
        tensor: On the CPU, and not changed afterwards; or there already.
        device: Where it goes; nothing happens where that is the CPU.

    Returns:
        The tensor there.
    """
    # a copy from other memory than page-locked would be waited for all the same
    locked = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return locked.to(device, non_blocking=True)


def choose_device(name: str) -> str:
    """The device of a name, where `auto` is a GPU if there is one.

    Args:
        name: What `--device` says.

    Returns:
        A name that torch knows and this machine has.

    Raises:
        MusiccmError: It is unknown, or not here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MusiccmError(f"--device {name}: expected auto, cpu, cuda or one of several, such as cuda:1") from None
    if device.type == "cpu":
        return name
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if here is not None else 0
    if here is None or here.type != device.type or (device.index or 0) >= count:
        found = f"{count} of the kind {here.type}" if here is not None else "no accelerator that torch can use"
        raise MusiccmError(f"--device {name}: this machine has {found}; name another, or cpu")
    return name
