"""Numbers that a device has yet to compute, read one step later, when they have long been there."""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """Holds the numbers of one step until the next asks for them.

    Reading a tensor of a busy device at once would leave the device without work until the host has caught up. The copy
    to the host is queued here behind the step that makes the numbers, and waited for only when the next step is queued
    too.
    """

    def __init__(self) -> None:
        self._held: tuple[Tensor, torch.cuda.Event | None] | None = None

    def put(self, values: Tensor) -> None:
        """Queue the copy of a vector.

        Args:
            values: Any shape; not changed by the caller afterwards.
        """
        if values.device.type != "cuda":
            self._held = values.detach(), None
            return
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values.detach(), non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(values.device))
        self._held = copy, done

    def take(self) -> list[float] | None:
        """The numbers that were put last, once; None if there are none."""
        if self._held is None:
            return None
        (values, done), self._held = self._held, None
        if done is not None:
            done.synchronize()
        return values.tolist()
