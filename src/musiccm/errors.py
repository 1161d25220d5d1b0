"""The one exception that users are meant to see."""

from __future__ import annotations


class MusiccmError(Exception):
    """A mistake in what the program was given: a file, a configuration key, a command-line value.

    The message says what was expected, what was found and what to do, and names the file or the key. The command line
    prints it without a traceback and exits with a status other than 0.
    """
