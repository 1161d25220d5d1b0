"""How many processes read audio beside one that computes."""

from __future__ import annotations

import multiprocessing
import os
import shutil

#: More processes than this read faster than one GPU computes.
MOST_WORKERS = 16
#: Batches that each of them holds ready.
AHEAD = 2
#: What processes send their windows through.
SHARED_MEMORY = "/dev/shm"


def default_workers(processes: int, batch_bytes: int) -> int:
    """How many processes read beside each that computes, unless it is said.

    Args:
        processes: That compute on this machine.
        batch_bytes: Of the windows of one batch.

    Returns:
        Each one's share of the cores but one, as far as there is shared memory for what they send (containers have
        64 MiB unless told otherwise), and at most `MOST_WORKERS`; 0 where processes are not forked.
    """
    if multiprocessing.get_all_start_methods()[0] != "fork":
        return 0
    room = shutil.disk_usage(SHARED_MEMORY).free // 2 if os.path.isdir(SHARED_MEMORY) else 0
    return max(0, min(cores() // processes - 1, room // (processes * AHEAD * batch_bytes), MOST_WORKERS))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
