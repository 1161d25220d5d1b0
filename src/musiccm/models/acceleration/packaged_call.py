"""Methods of networks compiled ahead of time by AOTInductor, a file for each shape of input, with the weights outside.

A file holds machine code and no weights: these are those of the network that it is loaded for, which are held once,
whatever the number of shapes. The code reads them, and its inputs, by the strides that it was compiled for and checks
nothing, so that all this is checked here.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError, reason

log = logging.getLogger(__name__)

Call = Callable[..., Any]

ALIGNED_BYTES = 16
"""What addresses of inputs are multiples of, as allocated tensors' are: compiled kernels read so much at once."""


@dataclass(frozen=True)
class Example:
    """Arguments of a call: tensors of one device, numbers, truth values and None."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def signature(self) -> str:
        """Names, types and shapes, as `0 float32[1, 4, 32, 4], return_dict False`: what a call is compiled for."""
        named = {**{str(place): value for place, value in enumerate(self.args)}, **dict(sorted(self.kwargs.items()))}
        return ", ".join(f"{name} {_described(value)}" for name, value in named.items())

    def settled(self) -> Example:
        """The same with its tensors laid out one after the other, at aligned addresses."""
        return Example(tuple(map(_settled, self.args)), {name: _settled(value) for name, value in self.kwargs.items()})

    def copied(self) -> Example:
        """The same with tensors of its own, which are none of inference mode."""
        with torch.inference_mode(False):
            return Example(tuple(map(_copied, self.args)), {k: _copied(v) for k, v in self.kwargs.items()})


def _described(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _settled(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.contiguous()
    return value if value.data_ptr() % ALIGNED_BYTES == 0 else value.clone()


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class ObservedCall:
    """A method that remembers an example of each signature that it is called with.

    Args:
        plain: The method.
    """

    def __init__(self, plain: Call) -> None:
        self.plain = plain
        self.seen: dict[str, Example] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        example = Example(args, kwargs).settled()
        if example.signature not in self.seen:
            self.seen[example.signature] = example.copied()
        return self.plain(*args, **kwargs)


class PackagedCall:
    """A method by compiled calls, and by itself where none is of the signature, which is logged once.

    Without gradients, and for one thread at a time, as what is compiled has one place for its intermediate results.

    Args:
        plain: The method.
        compiled: By signature.
        name: Of the part, for the message.
    """

    def __init__(self, plain: Call, compiled: Mapping[str, Call], name: str) -> None:
        self.plain, self.compiled, self.name = plain, dict(compiled), name
        self._busy, self._told = threading.RLock(), False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        example = Example(args, kwargs).settled()
        compiled = self.compiled.get(example.signature)
        if compiled is None:
            self._say(example.signature)
            return self.plain(*args, **kwargs)
        with self._busy, torch.no_grad():
            return compiled(*example.args, **example.kwargs)

    def _say(self, signature: str) -> None:
        if not self._told:
            self._told = True
            log.warning("%s: called with %s, for which nothing was compiled; this and all other shapes that were not "
                        "are computed as usual, more slowly. Compiled are: %s", self.name, signature,
                        "; ".join(self.compiled))


class _Method(nn.Module):
    """A method of a module as a module of its own, which `torch.export` takes."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.owner, self.method)(*args, **kwargs)

    def constants(self, names: list[str]) -> dict[str, Tensor]:
        """The weights and buffers that compiled code asks for.

        Raises:
            KeyError: There is none of a name.
        """
        held = {**dict(self.named_parameters(remove_duplicate=False)),
                **dict(self.named_buffers(remove_duplicate=False))}
        return {name: held[name].detach() for name in names}


def compile_call(owner: nn.Module, method: str, example: Example, path: Path, device: torch.device) -> str:
    """Compile a method for one signature.

    Args:
        owner: Of the method; its weights are as they will be when the file is loaded, their strides included.
        method: Its name.
        example: Its arguments.
        path: The file to write, a `.pt2`.
        device: Where all is.

    Returns:
        What the weights must be like: see `load_call`.

    Raises:
        MusiccmError: There is no C++ compiler, or the method cannot be compiled.
    """
    check_compiler()
    wrapped = _Method(owner, method).eval()
    try:
        with torch.no_grad():
            exported = torch.export.export(wrapped, example.args, example.kwargs, strict=False)
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path),
                inductor_configs={"aot_inductor.package_constants_in_so": False})
        return _fingerprint(wrapped.constants(_loaded(path, device).get_constant_fqns()))
    except Exception as error:  # torch's compiler raises whatever it meets
        raise MusiccmError(f"{type(owner).__name__}.{method}: torch could not compile it for {example.signature} "
                           f"({reason(error)})") from error


def load_call(owner: nn.Module, method: str, path: Path, weights: str, device: torch.device) -> Call:
    """A compiled method with the weights of a network.

    Args:
        owner: Of the method.
        method: Its name.
        path: What `compile_call` wrote. It is machine code: whoever wrote it can do what you can.
        weights: What `compile_call` returned.
        device: Where the weights are.

    Returns:
        The method, for arguments that are `settled` and of the signature that it was compiled for.

    Raises:
        MusiccmError: The file cannot be loaded, or was compiled for weights of other shapes, types or strides.
    """
    try:
        compiled = _loaded(path, device)
        constants = _Method(owner, method).constants(compiled.get_constant_fqns())
    except Exception as error:
        raise MusiccmError(f"{path}: expected a method of {type(owner).__name__} that torch {torch.__version__} "
                           f"compiled, found something else ({reason(error)})") from error
    if _fingerprint(constants) != weights:
        raise MusiccmError(f"{path}: was compiled for weights of other shapes, types or strides than those of this "
                           f"{type(owner).__name__}")
    return _Loaded(compiled, constants)


class _Loaded:
    """Compiled code with its weights, which it reads where they lie."""

    def __init__(self, compiled: Any, constants: dict[str, Tensor]) -> None:
        self._compiled, self._constants = compiled, constants
        compiled.load_constants(constants, check_full_update=True, user_managed=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)


def _loaded(path: Path, device: torch.device) -> Any:
    from torch.export.pt2_archive._package import AOTICompiledModel

    # What `aoti_load_package` ends in. It first finds out by compiling what vectors this CPU has, which costs ten
    # seconds and needs a compiler; whether a package fits is known here already. Single-threaded, as CUDA graphs need
    # it: `PackagedCall` has a lock.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1,
                                                   -1 if device.index is None else device.index)
    return AOTICompiledModel(loader)


def _fingerprint(constants: Mapping[str, Tensor]) -> str:
    told = [f"{name} {_described(value)} {value.stride()}" for name, value in sorted(constants.items())]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def check_compiler() -> None:
    """Refuse to compile where there is no C++ compiler, which AOTInductor needs on every device.

    Raises:
        MusiccmError: It was not found.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise MusiccmError("compiling ahead of time: expected a C++ compiler, found none; install g++ (on Debian and "
                           "Ubuntu: apt install g++), or name another by the environment's CXX. What is compiled runs "
                           "without one") from None
