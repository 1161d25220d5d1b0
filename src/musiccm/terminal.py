"""What reaches the user's terminal or log: text without control characters, our own warnings among it."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

from musiccm.texts import printable

# Everything that a terminal may take for an order, but for the line's end and the tabulator.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: object) -> str:
    """Text whose control characters are written out, as escapes of Python: names and prompts may hold any."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), printable(str(text)))


def say(*texts: object, to_stderr: bool = False) -> None:
    """Print lines, one a text, with control characters written out."""
    print(*(shown(text) for text in texts), sep="\n", file=sys.stderr if to_stderr else sys.stdout, flush=True)


def interactive() -> bool:
    """Whether someone watches: bars that redraw themselves are for terminals, not for log files."""
    return bool(sys.stderr and sys.stderr.isatty())


class _Warnings(logging.StreamHandler):
    """Prints what this package logs, to whatever the standard error is by then."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Taken from `sys` at every line."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def show_warnings() -> None:
    """Print the warnings of this package's loggers."""
    logger = logging.getLogger("musiccm")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))
