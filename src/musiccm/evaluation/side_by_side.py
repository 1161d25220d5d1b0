"""Many small computations that do not depend on each other, one thread each: LAPACK gains little by more on one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from musiccm.signals import leaving_queue

Result = TypeVar("Result")


def side_by_side(function: Callable[[int], Result], count: int) -> list[Result]:
    """Call a function of 0, 1, ... on as many threads as torch may use.

    Args:
        function: Computes with torch, which keeps to the calling thread meanwhile.
        count: How many calls.

    Returns:
        What they returned, in order.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [function(number) for number in range(count)]
    torch.set_num_threads(1)  # threads that begin now take it over
    try:
        with leaving_queue(ThreadPoolExecutor(threads)) as pool:
            return list(pool.map(function, range(count)))
    finally:
        torch.set_num_threads(threads)
