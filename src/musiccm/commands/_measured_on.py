"""Whether results were measured on a checkpoint, or on another one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What two checkpoints of one step may differ by in seconds of training, as a GPU's queue is waited for before each:
#: less than a step takes, and, where the step is known to be the same, a share that no two trainings agree to.
WAIT_S, WAIT_SHARE = 0.002, 1e-4


def measured_elsewhere(results: Mapping[str, Any], checkpoint: Path) -> str | None:
    """What says that results are of other weights than a checkpoint's.

    The step decides, then how long the training took: no two trainings take equally long, and it is the same wherever a
    checkpoint is copied. Where it is not stated, the run's folder decides, and, without a step, the name of the file.
    Results that state nothing are taken to be this checkpoint's.

    Args:
        results: The content of a results.json.
        checkpoint: A checkpoint that was read.

    Returns:
        Words to stand behind "measured"; None for results of this checkpoint.
    """
    from musiccm.callbacks.training_time import read_clock

    training, stated = results.get("training") or {}, results.get("checkpoint")
    found = read_clock(checkpoint)
    step, seconds = (None, None) if found is None else (found[0], found[1].seconds)
    # Older results call the updates of student and critic together steps; their seconds decide.
    measured = training.get("steps") if "updates" in training else None
    if measured is not None and step is not None and measured != step:
        return f"at step {measured}{_of(stated)}, and {checkpoint} is at step {step}"
    # Without a checkpoint's name the weights were in memory, where the clock ran on.
    if stated is not None and training.get("seconds") is not None and seconds is not None:
        share = WAIT_SHARE if measured is not None else 0.0
        if math.isclose(training["seconds"], seconds, rel_tol=share, abs_tol=WAIT_S):
            return None
        return (f"after {training['seconds']:.2f} s of training{_of(stated)}, and {checkpoint} has "
                f"{seconds:.2f} s behind it")
    if stated is None or _same_file(Path(stated), checkpoint, measured is not None):
        return None
    return f"on {stated}, and this is {checkpoint}"


def _of(stated: Any) -> str:
    return "" if stated is None else f" ({stated})"


def _same_file(stated: Path, checkpoint: Path, of_one_step: bool) -> bool:
    """Whether two paths are of one run, and, unless they are known to be of one step, of one file.

    A path may be relative to a folder that is not known, so that experiment, version and the rest behind them decide.
    """
    names = [path.absolute().parts[-4:] for path in (stated, checkpoint)]
    if of_one_step:
        names = [parts[:-1] for parts in names]
    return names[0] == names[1] or stated.resolve() == checkpoint.resolve()
