"""How many clips a validation may generate in the time it is given: measured once, then kept, the same on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

# Fewer have no covariance.
FEWEST = 2


class ClipBudget:
    """Settles the number of clips from a measured pace.

    The number stays from epoch to epoch, for distances of different numbers of clips cannot be compared; only a
    validation that overran makes it smaller, and says so.

    Args:
        seconds: For all clips of one validation; None for no limit.
        clips: All clips there are, over all ranks.
        world_size: Ranks that share them.
        share: Gives every rank what rank zero says.
    """

    def __init__(
        self,
        seconds: float | None,
        clips: int,
        world_size: int = 1,
        share: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self.seconds, self.clips, self.world_size, self.share = seconds, clips, world_size, share
        self.n: int | None = clips if seconds is None else None

    def settle(self, pace_s: Callable[[], float]) -> int:
        """The number of clips of this validation, over all ranks.

        Args:
            pace_s: Measures the seconds that one clip of a rank takes with all that is done to it; called once.

        Returns:
            The number.
        """
        if self.n is None:
            pace = self.share(pace_s())
            self._allow(pace, self.clips)
            if self.n != self.clips:
                log.warning(
                    "evaluation: at %.3g s a clip, %g s allow %d of %d clips; every validation takes these, and its "
                    "figures carry this n", pace, self.seconds, self.n, self.clips,
                )
        assert self.n is not None
        return self.n

    def spent(self, seconds: float) -> None:
        """Take note of what a validation took; one that overran makes the next ones smaller.

        Args:
            seconds: This rank's; rank zero's counts.
        """
        if self.seconds is None or self.n is None:
            return
        took_s, before = self.share(seconds), self.n
        # A tenth more is the jitter of a machine, and not worth metrics that cannot be compared with those before.
        if took_s > 1.1 * self.seconds and before > min(FEWEST, self.clips):
            self._allow(took_s * self.world_size / before, before - 1)
            log.warning(
                "evaluation: the validation took %.3g s instead of %g with %d clips; the next ones take %d, and their "
                "distances cannot be compared with those before", took_s, self.seconds, before, self.n,
            )

    def _allow(self, seconds_a_clip: float, most: int) -> None:
        assert self.seconds is not None
        allowed = self.world_size * int(self.seconds / max(seconds_a_clip, 1e-9))
        self.n = max(min(FEWEST, self.clips), min(allowed, most))
