"""The one exception that users are meant to see, and what of other exceptions they are shown."""

from __future__ import annotations

import pickle
import re


class MusiccmError(Exception):
    """A mistake in what the program was given: a file, a configuration key, a command-line value.

    The message says what was expected, what was found and what to do, and names the file or the key. The command line
    prints it without a traceback and exits with a status other than 0.
    """


def reason(error: BaseException) -> str:
    """Why a file could not be read, in one line.

    torch advises to switch its protection off (`weights_only=False`) where a file holds more than tensors and plain
    values, and so to run whatever code the file holds. That advice is not passed on; what the file holds is said.

    Args:
        error: What a library raised.

    Returns:
        The error's kind and the first line of what it says.
    """
    said = str(error).strip()
    if re.search(r"(?<!save_)weights_only", said) or isinstance(error, pickle.UnpicklingError):
        named = re.search(r"(?:GLOBAL|class) ([\w.]+)", said)
        other = "is a compiled program" if "TorchScript" in said else "is damaged, or holds others"
        found = f"refers to {named[1]}" if named else other
        return f"only tensors and plain values are read, and it {found}"
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__
