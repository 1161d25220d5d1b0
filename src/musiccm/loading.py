"""Libraries and models are loaded without Python's cyclic collector, which would search all of them again and again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_stays = False


def one_command() -> None:
    """Say that this process runs one command and ends: what it loads stays, and is never searched again."""
    global _stays
    _stays = True


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """A stretch of a command in which objects come to stay: the collector rests, and is as it was afterwards.

    While libraries are imported hardly anything is given up, and each search of the collector costs more than the last;
    the searches are a quarter of the processor time of `generate` (docs/speed.md). In a process of one command what was
    loaded is left out of later ones too (`gc.freeze`), also of those at its end.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _stays:
            gc.freeze()
        if was:
            gc.enable()
