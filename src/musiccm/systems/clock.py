"""Which optimizer moves `trainer.global_step` under manual optimization.

Lightning counts every optimizer step, so a student and a discriminator that step once a batch each make
`global_step` run twice as fast as the batches: `max_steps` ends early, and a checkpoint or EMA cadence of n steps may
never be hit. Only the student's step is a step of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.core.optimizer import LightningOptimizer, do_nothing_closure


@contextmanager
def clock_stopped(*optimizers: LightningOptimizer) -> Iterator[None]:
    """Inside this context, steps of the given optimizers leave `trainer.global_step` where it is.

    Use it around the discriminator's step, in `training_step`::

        with clock_stopped(opt_discriminator):
            opt_discriminator.step()

    Lightning offers no public way: its manual loop hangs the counter on two private hooks of every optimizer, anew at
    each batch. They are taken off here and put back, and tests/systems/test_clock.py says when that stops working.

    Args:
        optimizers: What `LightningModule.optimizers()` returns, for those that must not advance the clock.

    Yields:
        Nothing.

    Raises:
        TypeError: If given a bare torch optimizer, whose steps Lightning never counts.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, LightningOptimizer):
            raise TypeError(
                f"clock_stopped expects optimizers from LightningModule.optimizers(), found {type(optimizer).__name__}"
            )
    hooks = [(o, o._on_before_step, o._on_after_step) for o in optimizers]
    try:
        for optimizer in optimizers:
            optimizer._on_before_step = do_nothing_closure
            optimizer._on_after_step = do_nothing_closure
        yield
    finally:
        for optimizer, before, after in hooks:
            optimizer._on_before_step = before
            optimizer._on_after_step = after
