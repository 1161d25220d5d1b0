"""A computation of fixed shapes that reads and writes the same memory at every call: on a GPU one CUDA graph.

A graph is launched as a whole, where a small network otherwise costs the processor more time in launches than the GPU
in arithmetic. What it needs is that nothing in it goes to the host or comes from there, and that no address changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Recorder = Callable[[Function, Sequence[Tensor]], "tuple[Callable[[], None], Tensor]"]
"""`record(function, inputs)`: what computes again from the inputs as they then are, and the tensor it is written to."""


class _Recording(threading.local):
    on = False


recording = _Recording()
"""Whether this thread records a CUDA graph, in which there can be no others."""

WARM_UP_CALLS = 3
"""Calls before a capture, in which libraries choose their kernels and allocate what they keep."""


class StaticCall:
    """A function of tensors, computed from buffers of its own; for one thread at a time.

    Args:
        function: From tensors to a tensor, on one device. What it reads besides must stay where it is.
        inputs: An example of its arguments, whose shapes, types and device all calls have.
        record: How it is recorded.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], record: Recorder) -> None:
        # outside of inference mode, in whose tensors a call from elsewhere could not write
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = [given.clone() for given in inputs]
            self._replay, self._result = record(function, self._inputs)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute.

        Args:
            *inputs: Tensors on any device, of the shapes and types of the example.

        Returns:
            The result, which later calls leave as it is.
        """
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._replay()
        return self._result.clone()


def recorder(device: torch.device) -> Recorder:
    """How calls on a device are recorded: those of one recorder are computed one after the other, never at once.

    Args:
        device: Where.

    Returns:
        What captures CUDA graphs that share their memory; on other devices what simply calls the function again.
    """
    if device.type != "cuda":
        return _called_again
    pool = torch.cuda.graph_pool_handle()
    return lambda function, inputs: _captured(function, inputs, pool)


def _called_again(function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Tensor]:
    result = function(*inputs)

    def replay() -> None:
        result.copy_(function(*inputs))

    return replay, result


def _captured(function: Function, inputs: Sequence[Tensor], pool: Any) -> tuple[Callable[[], None], Tensor]:
    recording.on = True
    try:
        with torch.cuda.device(inputs[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # other threads may go on using the device meanwhile
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = function(*inputs)
    finally:
        recording.on = False
    return graph.replay, result
