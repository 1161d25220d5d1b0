"""A device that computes on the CPU and refuses what a GPU refuses: operands that lie in two places.

Its tensors hold a CPU tensor each. So code that forgets to send a mask, an index or a generator's draw along fails on
a machine without a GPU as it would on one with, and what it computes can be held against the CPU's own figures.
Autocast does nothing on it, and no kernel is a GPU's.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "pretend"
aten = torch.ops.aten
#: What may take one tensor from here and one from there.
COPIES = {"to", "copy_", "_to_copy", "_copy_from", "_copy_from_and_resize"}
#: Here a GPU takes indices from the CPU too, though no values.
INDEXED = {"index", "index_put_", "index_put", "_unsafe_index", "_index_put_impl_"}


#: What depends on values, so that a GPU is waited for.
ASKED = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}


class TwoPlaces(RuntimeError):
    """Operands on two devices."""


class Placed(torch.Tensor):
    """A tensor of the device: its values lie in `inner`, on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Placed:
        with torch.inference_mode(inner.is_inference()):  # a view of a usual tensor is one, wherever it is made
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=torch.device(NAME, 0), dispatch_sizes_strides_policy="sizes",
            )
        made.inner = inner
        return made

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """The values without their graph; what is set takes the place of `inner` too, of another type perhaps."""
        return torch._C.TensorBase.data.__get__(self)

    @data.setter
    def data(self, values: Placed) -> None:
        torch._C.TensorBase.data.__set__(self, values)
        self.inner = values.inner

    def tolist(self) -> list:  # type: ignore[override]
        """The numbers, for which a GPU is waited for."""
        _note("tolist")
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Placed({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LAYOUT:
            return LAYOUT[func](args[0].inner, *args[1:])
        return _compute(func, args, kwargs or {})


#: What is asked of a tensor's layout; an operation in place may change it.
LAYOUT = {
    aten.size.default: torch.Tensor.size, aten.sym_size.default: torch.Tensor.size, aten.dim.default: torch.Tensor.dim,
    aten.stride.default: torch.Tensor.stride, aten.sym_stride.default: torch.Tensor.stride,
    aten.numel.default: torch.Tensor.numel, aten.sym_numel.default: torch.Tensor.numel,
    aten.storage_offset.default: torch.Tensor.storage_offset,
    aten.sym_storage_offset.default: torch.Tensor.storage_offset,
    aten.is_contiguous.default: torch.Tensor.is_contiguous, aten.sym_is_contiguous.default: torch.Tensor.is_contiguous,
    aten.is_contiguous.memory_format: lambda inner, form: inner.is_contiguous(memory_format=form),
    aten.is_strides_like_format.default: aten.is_strides_like_format.default,
    aten.is_non_overlapping_and_dense.default: aten.is_non_overlapping_and_dense.default,
}


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Note where a GPU would be waited for: values that are asked of it, and copies either way.

    Copies to it with `non_blocking` are not waited for, from page-locked memory, as `device.sent` makes them.

    Yields:
        The operations and the lines that called them; it grows.
    """
    noted: list[str] = []
    _WATCHES.append(noted)
    try:
        yield noted
    finally:
        _WATCHES.remove(noted)


def _note(name: str) -> None:
    if _WATCHES:
        here = [f for f in traceback.extract_stack() if "/musiccm/" in f.filename or "/tests/" in f.filename]
        lines = [f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in here if "pretend_device" not in f.filename]
        for noted in _WATCHES:
            noted.append(f"{name} by {lines[-1] if lines else 'a library'}")


def _watch(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], here: bool) -> None:
    """Note a call that a GPU would be waited for; `here` says where its result lies."""
    first = args[0] if args else None
    if name in COPIES:
        source = args[1] if name in ("copy_", "_copy_from_and_resize") else first
        blocking = not (kwargs.get("non_blocking") or (name in ("copy_", "to") and args[-1] is True))
        if isinstance(source, torch.Tensor) and isinstance(source, Placed) != here and (blocking or not here):
            _note(name)
    elif isinstance(first, Placed):
        masks = name in INDEXED and any(isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bool, torch.uint8)
                                        for leaf in tree_leaves(args[1]))
        if name in ASKED or masks:
            _note(name)


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    _check(name, args, kwargs, given)
    known = {id(leaf.inner): leaf for leaf in given if isinstance(leaf, Placed)}
    devices = [torch.device(leaf) for leaf in (*args, *[kwargs.get("device")]) if isinstance(leaf, torch.device)]
    here = devices[0].type == NAME if devices else bool(known)
    if name == "copy_" or func is aten.to.other:
        here = isinstance(args[0 if name == "copy_" else 1], Placed)
    if _WATCHES:
        _watch(name, args, kwargs, here)
    plain_args, plain_kwargs = tree_map_only(Placed, lambda leaf: leaf.inner, (tuple(args), dict(kwargs)))
    if here:
        cpu = torch.device("cpu")
        plain_args, plain_kwargs = tree_map_only(torch.device, lambda _: cpu, (plain_args, plain_kwargs))
    plain_kwargs.pop("pin_memory", None)
    result = func(*plain_args, **plain_kwargs)
    if name in ("to", "_to_copy") and here != bool(known) and result is plain_args[0]:
        result = result.clone()
    if not here:
        return result

    def wrap(leaf: torch.Tensor) -> torch.Tensor:
        # the wrapper would not say that its values are meant conjugated or negated
        return known[id(leaf)] if id(leaf) in known else Placed(leaf.resolve_conj().resolve_neg())

    return tree_map_only(torch.Tensor, wrap, result)


def _check(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[torch.Tensor]) -> None:
    there = [leaf for leaf in given if isinstance(leaf, Placed)]
    generator = next((leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Generator)), None)
    target = kwargs.get("device")
    if generator is not None and (there or (target is not None and torch.device(target).type == NAME)):
        raise TwoPlaces(f"{name}: a generator of the {generator.device.type} for a tensor of the {NAME} device")
    if name in COPIES or not there:
        return
    numbered = [leaf for leaf in given if not isinstance(leaf, Placed) and leaf.dim() > 0]
    if name in INDEXED and isinstance(args[0], Placed):
        values = args[2:3]
        numbered = [leaf for leaf in values if not isinstance(leaf, Placed) and leaf.dim() > 0]
    if numbered:
        raise TwoPlaces(f"{name}: operands on {NAME} (shape {tuple(there[0].shape)}) and on the CPU (shape "
                        f"{tuple(numbered[0].shape)})")


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        pass


@functools.cache
def install() -> str:
    """Register the device with torch, once a process.

    Returns:
        Its name.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")  # noqa: TOR901
    library.fallback(lambda func, *args, **kwargs: _compute(func, args, kwargs), "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    # where torch reads an index that is a list, it copies below its Python hooks, and by no fallback
    copying = torch.library.Library("aten", "IMPL")  # noqa: TOR901
    copying.impl("copy_", lambda *args: _compute(aten.copy_.default, args, {}), "PrivateUse1")
    _KEPT.extend([library, copying])
    return NAME


_KEPT: list[torch.library.Library] = []
_WATCHES: list[list[str]] = []
