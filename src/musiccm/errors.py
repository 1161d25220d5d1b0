"""The one exception that users are meant to see, and what of other exceptions they are shown."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping

#: What of setup.cfg's extras brings a module, by the module's name; the first is named where several do.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("jsonargparse", "lightning_fabric", "omegaconf", "peft", "pytorch_lightning",
                     "sklearn", "tensorboard"), ("train",)),
    **dict.fromkeys(("timm", "torchaudio", "torchmetrics", "torchvision"), ("train", "eval")),
    **dict.fromkeys(("librosa", "resampy", "skimage", "torchlibrosa"), ("eval",)),
    "matplotlib": ("train", "serve"),
    "av": ("formats",),
    "faiss": ("faiss",),
    **dict.fromkeys(("fastapi", "prometheus_client", "starlette", "uvicorn"), ("serve",)),
}


class MusiccmError(Exception):
    """A mistake in what the program was given: a file, a configuration key, a command-line value.

    The message says what was expected, what was found and what to do, and names the file or the key. The command line
    prints it without a traceback and exits with a status other than 0.
    """


class NotFiniteError(MusiccmError):
    """Samples that were to be written hold NaN or infinity."""


@contextlib.contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors within, which begin with the name of an argument, name what the argument came from.

    Args:
        names: Of each argument, the option or field that people know.

    Raises:
        MusiccmError: As raised within, of the same kind, under the name that people know.
    """
    try:
        yield
    except MusiccmError as error:
        name, found, rest = str(error).partition(": ")
        if found and name in names:
            error.args = (f"{names[name]}: {rest}",)
        raise


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


def missing_extra(error: BaseException, wanted: str = "", what: str = "this") -> MusiccmError | None:
    """What to install, where an error says that a library of one of the extras is not there.

    Args:
        error: What an import raised.
        wanted: The extra to name where several bring the library.
        what: What needs it, for the message.

    Returns:
        The message for people, or None for any other error.
    """
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if module not in EXTRAS:
        return None
    extra = wanted if wanted in EXTRAS[module] else EXTRAS[module][0]
    return MusiccmError(f'{what} needs {module}, which is not installed: pip install "musiccm[{extra}]"')
