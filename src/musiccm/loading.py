"""Libraries and models are loaded without Python's cyclic collector, which would search all of them again and again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """A stretch of a command in which objects come to stay: the collector rests, and is as it was afterwards.

    While libraries are imported, hardly anything is given up, and each search of the collector costs more than the last
    (docs/speed.md says how much).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
