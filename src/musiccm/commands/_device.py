"""Where a command computes."""

from __future__ import annotations

import torch


def choose_device(name: str) -> str:
    """The device of a name, where `auto` is a GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
