"""Checkpoints of other projects, read without executing anything in them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError

#: Packages whose objects lie beside the weights in training checkpoints: configurations, counters, callbacks. They are
#: read as empty stand-ins; a file that names anything else is refused.
HARMLESS = ("argparse", "collections", "lightning", "lightning_fabric", "ml_collections", "numpy", "omegaconf",
            "pathlib", "pytorch_lightning", "torch", "typing", "yacs")
HARMLESS_BUILTINS = tuple(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "slice",
                                                          "str", "tuple"))


class _StandIn:
    """Takes the place of an object that is not needed; nothing of the original's class runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def read_original(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint: its tensors and plain values; other objects become empty stand-ins.

    Args:
        path: A file written by `torch.save`, or a `.safetensors` file.

    Returns:
        What the file holds; tensors stay on the disk until they are used, where the format allows.

    Raises:
        MusiccmError: The file is missing or damaged, or names code that has no business in a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise MusiccmError(f"{path}: no such file; expected a checkpoint of the original model")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        whole = zipfile.is_zipfile(path)  # what torch has written since 1.6
        with _stand_ins(path) if whole else torch.serialization.safe_globals([]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True if whole else None)
    except MusiccmError:
        raise
    except Exception as error:  # a broken file shows as whatever the reader tripped over
        first = (str(error).splitlines() or [""])[0]
        raise MusiccmError(f"{path}: not a readable checkpoint ({type(error).__name__}: {first})") from error
    if not isinstance(content, Mapping):
        raise MusiccmError(f"{path}: expected a dictionary of weights, found {type(content).__name__}")
    return dict(content)


@contextmanager
def _stand_ins(path: Path) -> Iterator[None]:
    """Let a file be read whose objects are of harmless packages, by classes of ours under their names."""
    named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    strange = [name for name in named if name.split(".")[0] not in HARMLESS and name not in HARMLESS_BUILTINS]
    if strange:
        raise MusiccmError(f"{path}: refers to {', '.join(sorted(strange)[:3])}, which no weights need, and is not "
                           "read; nothing of it was executed. Save its state_dict alone from a machine where you trust "
                           "the file")
    with torch.serialization.safe_globals([(_fresh(name), name) for name in named]):
        yield


def _fresh(name: str) -> type:
    # one class a name: torch looks a class up by its own name when its state is restored
    module, _, attribute = name.rpartition(".")
    return type(attribute, (_StandIn,), {"__module__": module})


def tensors_of(content: Mapping[str, Any], path: str | Path, *nests: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, by name.

    Args:
        content: What `read_original` gave.
        path: The file, for messages.
        *nests: Keys under which the weights may lie, looked for in this order; without any of them the checkpoint is
            the weights itself.

    Returns:
        The tensors, without `module.`, which a parallel wrapper put before every name.

    Raises:
        MusiccmError: There are none.
    """
    found: Any = next((content[nest] for nest in nests if isinstance(content.get(nest), Mapping)), content)
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise MusiccmError(f"{path}: expected weights by name{' under ' + ' or '.join(nests) if nests else ''}, found "
                           f"the keys {', '.join(map(str, list(content)[:6]))}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
