"""Checkpoints of other projects, read without executing anything in them."""

from __future__ import annotations

import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError, reason

#: What a tensor is rebuilt with; beside storages, which torch maps itself, the only things of a file that are real.
_REAL: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,  # type: ignore[attr-defined]
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,  # type: ignore[attr-defined]
}
#: Packages whose objects lie beside the weights in training checkpoints: configurations, counters, callbacks. They are
#: read as empty stand-ins; a file that names anything else is refused.
_HARMLESS = ("_codecs", "argparse", "collections", "copyreg", "lightning", "lightning_fabric", "ml_collections",
             "numpy", "omegaconf", "pathlib", "pytorch_lightning", "torch", "typing", "yacs")
_HARMLESS_BUILTINS = ("bool", "dict", "float", "int", "list", "long", "object", "set", "slice", "str", "tuple")


class _StandIn:
    """Takes the place of an object that is not needed; nothing of the original's class runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Forget it."""

    def extend(self, items: Any) -> None:
        """Forget them."""


class _Forbidden(Exception):
    """A file names what no weights need."""


class _Unpickler(pickle.Unpickler):
    """Calls nothing but what rebuilds tensors: every other name in the file becomes a stand-in, or ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        # pickles of protocol 2, torch's default, use Python 2's names
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in _REAL:
            return _REAL[full]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] in _HARMLESS or (module == "builtins" and name in _HARMLESS_BUILTINS):
            return _StandIn
        raise _Forbidden(full)


_PICKLE = types.ModuleType("stand_in_pickle")
_PICKLE.Unpickler = _Unpickler  # type: ignore[attr-defined]


def read_original(path: str | Path, weights_only: bool = False) -> dict[str, Any]:
    """Read a checkpoint: its tensors and plain values; other objects become empty stand-ins.

    `torch.load(weights_only=True)` alone would refuse most training checkpoints, for what lies beside the weights.

    Args:
        path: A file written by `torch.save`, or a `.safetensors` file.
        weights_only: Read it so all the same: for files that are weights and nothing else.

    Returns:
        What the file holds; tensors stay on the disk until they are used, where the format allows.

    Raises:
        MusiccmError: The file is missing or damaged, or names code that has no business in a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise MusiccmError(f"{path}: no such file; expected a checkpoint of the original model")
    try:
        content = _read(path, weights_only)
    except _Forbidden as error:
        raise MusiccmError(f"{path}: refers to {error}, which no weights need, and is not read; nothing of it was "
                           "executed. Whoever made the file can save its state_dict alone") from None
    except Exception as error:  # a broken file shows as whatever the reader tripped over
        raise MusiccmError(f"{path}: not a readable checkpoint ({reason(error)})") from error
    if not isinstance(content, Mapping):
        raise MusiccmError(f"{path}: expected a dictionary of weights, found {type(content).__name__}")
    return dict(content)


def _read(path: Path, weights_only: bool) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if weights_only:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not zipfile.is_zipfile(path):  # as torch wrote before 1.6
        return torch.load(path, map_location="cpu", weights_only=True)
    # by torch's own reading of the archive, which is what decides whether torch would run a program
    if "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise _Forbidden("TorchScript (it is a compiled program)")
    # not torch's own reading of weights alone, but ours, which is as strict about what is called
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=_PICKLE)


def tensors_of(content: Mapping[str, Any], path: str | Path, *nests: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of a checkpoint, by name, and what lies beside them.

    Args:
        content: What `read_original` gave.
        path: The file, for messages.
        *nests: Keys under which the weights may lie, looked for in this order; without any of them the checkpoint is
            the weights itself.

    Returns:
        The tensors, without `module.`, which a parallel wrapper put before every name; and the keys of all else in the
        file, which is no weight: `epoch`, or `state_dict.version` for a value among the weights.

    Raises:
        MusiccmError: There are none.
    """
    nest = next((nest for nest in nests if isinstance(content.get(nest), Mapping)), None)
    found: Mapping[Any, Any] = content if nest is None else content[nest]
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise MusiccmError(f"{path}: expected weights by name{' under ' + ' or '.join(nests) if nests else ''}, found "
                           f"the keys {', '.join(map(str, list(content)[:6]))}")
    ignored = [] if nest is None else [str(key) for key in content if key != nest]
    inside = "" if nest is None else f"{nest}."
    ignored += [f"{inside}{name}" for name, value in found.items() if not isinstance(value, Tensor)]
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, ignored


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
