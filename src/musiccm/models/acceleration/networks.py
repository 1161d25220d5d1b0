"""Networks that are only sampled from, in the form that a device computes fastest: results change by rounding alone.

The convolutions for a CPU are kept because full-size music costs little else there: with them a call of the U-Net takes
1.16 s of processor time instead of 1.52 (docs/speed.md), for 0.5 GB more memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.errors import MusiccmError
from musiccm.models.acceleration.static_call import recording
from musiccm.models.acceleration.winograd import WinogradConv2d
from musiccm.models.denoiser import Float32Conv2d

log = logging.getLogger(__name__)

WIDE = 128
"""Channels from which on a convolution is replaced on a CPU; below, Winograd's transforms cost what they save."""
FEW = 128
"""Positions up to which one matrix product beats Winograd's 36, whose kernels are four times as large to read."""


def channels_last(networks: Iterable[nn.Module]) -> None:
    """Lay the kernels of 2-d convolutions out with their channels last; the activations follow.

    Args:
        networks: changed in place; parameters stay the same objects.
    """
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# Held while a layer or a network takes the form that its first call decides, which only one thread may do.
_SETTLING = threading.RLock()


class UnfoldedConv2d(nn.Module):
    """A frozen 3 x 3 convolution with stride 1 and padding 1, as one matrix product.

    For wide layers on small images: there oneDNN, which PyTorch calls for convolutions, spends half of its time on
    laying the kernels out anew at every call.

    Args:
        weight_OC33: Kernels.
        bias_O: Biases.
    """

    kernels: Tensor
    bias: Tensor

    def __init__(self, weight_OC33: Tensor, bias_O: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernels", weight_OC33.detach().flatten(1), persistent=False)
        self.register_buffer("bias", bias_O.detach()[:, None], persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve; `[B, O, H, W]`."""
        columns = F.unfold(x_BCHW, 3, padding=1)
        product = torch.baddbmm(self.bias, self.kernels.expand(len(columns), -1, -1), columns)
        return product.unflatten(2, x_BCHW.shape[2:])


class CpuConv2d(nn.Module):
    """A frozen 3 x 3 convolution, in whichever way suits the size of the images that it meets first.

    Args:
        convolution: What it stands for; let go of at the first call.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        # in a list, which hides it from what is done to all layers: a change of its layout would be a copy for nothing
        self._plain = [convolution]
        self.way: nn.Module | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve; `[B, O, H, W]`."""
        way = self.way
        return (self._settled(x_BCHW) if way is None else way)(x_BCHW)

    def _settled(self, x_BCHW: Tensor) -> nn.Module:
        with _SETTLING:
            if self.way is None:
                plain, kind = self._plain.pop(), WinogradConv2d
                if x_BCHW.shape[2] * x_BCHW.shape[3] <= FEW:
                    kind = UnfoldedConv2d
                with torch.inference_mode(False):  # buffers that a later call outside it may use too
                    self.way = kind(plain.weight, plain.bias)
            return self.way


def suit_cpu(network: nn.Module) -> None:
    """Replace the wide 3 x 3 convolutions of a frozen float32 network by ones that a CPU computes in less time.

    Args:
        network: changed in place; the replaced layers' weights are in its state no longer.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if _replaceable(child):
                setattr(parent, name, CpuConv2d(child))  # type: ignore[arg-type]


def _replaceable(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or layer.bias is None or layer.weight.dtype != torch.float32:
        return False
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return (shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
            and min(layer.in_channels, layer.out_channels) >= WIDE)


def to_bfloat16(network: nn.Module) -> None:
    """Hold a frozen denoiser's weights in bf16, all but those of its float32 output layer.

    Args:
        network: changed in place.
    """
    for module in network.modules():
        if not isinstance(module, Float32Conv2d):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)


def check_backend(where: str, backend: str | None) -> None:
    """Refuse a backend that `torch.compile` does not have.

    Args:
        where: The key or option, for the message.
        backend: Its name; None compiles nothing.

    Raises:
        MusiccmError: It is unknown.
    """
    known = torch.compiler.list_backends(exclude_tags=()) if backend is not None else []
    if backend is not None and backend not in known:
        raise MusiccmError(f"{where}: expected one of {', '.join(known)}, found {backend!r}")


class CompiledNetwork(nn.Module):
    """A network compiled at its first call with each shape of input; without gradients, for one thread at a time.

    PyTorch compiles for eight shapes at most (`torch._dynamo.config.recompile_limit`) and runs others as they are,
    which is logged. Once `serves_smaller` is set, a batch for which it was not compiled is computed by the next larger
    one that it was compiled for, its last item repeated: so the last windows of a long piece and the first of a stream
    compile nothing.

    Args:
        network: the network; called with tensors (or numbers) and returning a tensor or a tuple of them.
        backend: of `torch.compile`. With `inductor` on a GPU a call is one CUDA graph, launched as a whole; within a
            larger graph (`recording`) its kernels alone.
    """

    def __init__(self, network: nn.Module, backend: str | Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        mode = "reduce-overhead" if backend == "inductor" else None
        self.serves_smaller = False
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._busy = threading.RLock()  # a CUDA graph writes to one place
        self._compiled = torch.compile(network, backend=backend, mode=mode, dynamic=False)
        self._kernels = torch.compile(network, backend=backend, dynamic=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        # an expanded timestep has other strides than a list of them, and would be compiled for anew
        args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
        with self._busy, torch.inference_mode():
            if recording.on:
                return self._kernels(*args, **kwargs)
            rows = len(args[0])
            batch = self._batch_for(rows, [*args, *kwargs.values()])
            args = tuple(_filled(arg, rows, batch) for arg in args)
            kwargs = {name: _filled(arg, rows, batch) for name, arg in kwargs.items()}
            self._watch([*args, *kwargs.values()])
            # a CUDA graph writes each result into the same memory: the last is done with, and this one is copied out
            torch.compiler.cudagraph_mark_step_begin()
            result = self._compiled(*args, **kwargs)
            if isinstance(result, Tensor):
                return result[:rows].clone()
            return tuple(part[:rows].clone() for part in result)

    def _batch_for(self, rows: int, args: Iterable[Any]) -> int:
        """Rows of the smallest batch that it was compiled for and that holds so many, else `rows`."""
        if not self.serves_smaller:
            return rows
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, Tensor)]
        fitting = [known[0][0] for known in self._shapes if known[0][0] >= rows and known == tuple(
            _resized(shape, rows, known[0][0]) for shape in shapes)]
        return min(fitting, default=rows)

    def _watch(self, args: Iterable[Any]) -> None:
        shape = tuple(tuple(arg.shape) for arg in args if isinstance(arg, Tensor))
        if shape not in self._shapes:
            self._shapes.add(shape)
            if len(self._shapes) == torch._dynamo.config.recompile_limit + 1:
                log.warning("inputs of %d shapes: the network is compiled for the first %d only and runs the others "
                            "uncompiled; keep to fewer batch sizes, and lengths of prompts where it attends to tokens",
                            len(self._shapes), len(self._shapes) - 1)


def _resized(shape: tuple[int, ...], rows: int, batch: int) -> tuple[int, ...]:
    return (batch, *shape[1:]) if shape and shape[0] == rows else shape


def _filled(arg: Any, rows: int, batch: int) -> Any:
    """A batch with its last item repeated; whatever has no rows as it is.

    Called in inference mode, whose tensors are compiled for apart from others: all become such.
    """
    if not isinstance(arg, Tensor):
        return arg
    if batch == rows or arg.dim() == 0 or len(arg) != rows:
        return arg if arg.is_inference() else arg.clone()
    return torch.cat([arg, arg[-1:].expand(batch - rows, *arg.shape[1:])])
