"""What the music should be like, and from when on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from musiccm.bounds import MAX_STREAM_S, check_text
from musiccm.diffusion import AnyCondition
from musiccm.errors import MusiccmError
from musiccm.texts import short

Prompts: TypeAlias = "str | Sequence[tuple[float, str]]"
"""One text, or a list of (start in seconds, text), the first from 0 on."""


class PromptPlan:
    """Texts along time.

    Args:
        prompts: One text, or `(start_s, text)` pairs with ascending starts, the first at 0.

    Raises:
        MusiccmError: The pairs are no such plan.
    """

    def __init__(self, prompts: Prompts) -> None:
        if isinstance(prompts, str):
            prompts = [(0.0, prompts)]
        if not isinstance(prompts, Sequence) or not prompts:
            raise MusiccmError(f"prompts: expected a text or a list of (start in seconds, text), found {prompts!r}")
        self.entries: list[tuple[float, str]] = []
        for entry in prompts:
            if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 2:
                raise MusiccmError(f"prompts: expected pairs (start in seconds, text), found {entry!r}")
            start, text = entry
            if isinstance(start, bool) or not isinstance(start, int | float) or not abs(start) <= MAX_STREAM_S:
                raise MusiccmError(f"prompts: expected a start in seconds, up to {MAX_STREAM_S:g}, found {start!r} for "
                                   f"{text!r}")
            if not self.entries and start != 0:
                raise MusiccmError(f"prompts: the first text must start at 0 s, found {start:g} s")
            if self.entries and start <= self.entries[-1][0]:
                raise MusiccmError(f"prompts: expected ascending starts, found {start:g} s behind "
                                   f"{self.entries[-1][0]:g} s")
            self.entries.append((float(start), check_text(text, f"prompt at {start:g} s")))

    @property
    def name(self) -> str:
        """The first text, short, for messages."""
        return repr(short(self.entries[0][1]))

    def index_at(self, time_s: float) -> int:
        """Number of the entry in force at a time."""
        return max(i for i, (start, _) in enumerate(self.entries) if i == 0 or start <= time_s)

    def change(self, time_s: float, text: str) -> None:
        """Let a text hold from `time_s` on, in place of whatever was planned from then on."""
        text = check_text(text)
        self.entries = [entry for entry in self.entries if entry[0] < time_s] + [(time_s, text)]

    def require_within(self, end_s: float) -> None:
        """Refuse a plan that goes on where the music has ended.

        Args:
            end_s: Where it ends.

        Raises:
            MusiccmError: A text begins there or later.
        """
        start, text = self.entries[-1]
        if start >= end_s:
            raise MusiccmError(f"prompts: {short(text)!r} (from {start:g} s) would not be used: the music ends at "
                               f"{end_s:g} s; begin it earlier, or ask for longer music")

    def unused(self, windows: Sequence[int], centre_s: Callable[[int], float]) -> tuple[float, str] | None:
        """The first text that no window has.

        Args:
            windows: Numbers of the windows that will be made, ascending.
            centre_s: Middle of a window in seconds, which a window has the text of.

        Returns:
            Its start and the text; None where all are used, or there are no windows.
        """
        starts = [bisect_left(windows, start, key=centre_s) for start, _ in self.entries] + [len(windows)]
        starts[0] = 0
        skipped = (entry for i, entry in enumerate(self.entries) if starts[i] == starts[i + 1])
        return next(skipped, None) if windows else None

    def require_used(self, crops: Sequence[int], centre_s: Callable[[int], float]) -> None:
        """Refuse a plan of which something would be skipped in silence.

        Args:
            crops: Numbers of the windows that will be made, ascending.
            centre_s: Middle of a window in seconds; a window has one condition, the text that holds there.

        Raises:
            MusiccmError: No window's middle lies where some text holds.
        """
        skipped = self.unused(crops, centre_s)
        if skipped is not None:
            start, text = skipped
            shown = ", ".join(f"{centre_s(crop):g}" for crop in crops[:8]) + (", ..." if len(crops) > 8 else "")
            raise MusiccmError(
                f"prompts: {text!r} (from {start:g} s) would not be used. Text can change between the middles of "
                f"the model's windows, which are at {shown} s; move the changes, or choose a larger overlap"
            )


def require_whole(conditioner: Any, texts: Sequence[str]) -> None:
    """Refuse texts that a model would read in part, where it says so (`Conditioner.require_whole`).

    Args:
        conditioner: The model's.
        texts: The texts.

    Raises:
        MusiccmError: A text is too long.
    """
    reader = getattr(conditioner, "reader", conditioner)
    refuse = getattr(reader, "require_whole", None)  # models of other kinds need not have it
    if refuse is not None:
        refuse(list(texts))


class PlannedCondition:
    """The condition of each window: the embedding of the text that holds in its middle.

    Args:
        plan: The texts; it may change as the music plays.
        conditioner: Has `prompts(list) -> condition`.
        window_s: Seconds of a window.
        frame_s: Seconds of a latent frame.
        begin_s: Where the first latent frame begins, in the plan's time.
    """

    def __init__(
        self, plan: PromptPlan, conditioner: Any, window_s: float, frame_s: float, begin_s: float = 0.0
    ) -> None:
        self.plan = plan
        self._conditioner = conditioner
        self._half_s = begin_s + window_s / 2
        self._frame_s = frame_s

    def centre_s(self, start: int) -> float:
        """Middle of the window that begins at a latent frame."""
        return start * self._frame_s + self._half_s

    def at(self, start: int) -> AnyCondition:
        """Condition, without a batch axis, of the window that begins at a latent frame."""
        text = self.plan.entries[self.plan.index_at(self.centre_s(start))][1]
        return self._conditioner.prompts([text])[0]
