"""Exponential moving averages of a network's weights."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError

#: A module of the average, the one that it follows, and the name of a tensor in both.
_Places = list[tuple[nn.Module, nn.Module, str]]


class Ema(nn.Module):
    """A frozen copy of a network whose weights follow `ema = decay ema + (1 - decay) source`.

    The decay is exact from the first update: no warm-up, no bias correction, as the target network of consistency
    distillation has it. The average is kept in float32 even when the source is bf16, where an update of
    `1 - decay = 0.001` would round away. Buffers are copied, not averaged. The copy stays in evaluation mode.

    Args:
        module: the network to follow; it is copied, never changed.
        decay: weight of the past, in [0, 1): 0.95 for the distillation target, 0.999 for what is evaluated.
        shared: frozen tensors of the network that the copy holds too, instead of an average of them: of a network with
            an adapter all but that. The factors A and B are then averaged, not the update B A, whose average would
            have the size of the whole network; the two differ by the covariance of A and B over the average's window.

    Raises:
        MusiccmError: if `decay` is outside [0, 1).
    """

    module: nn.Module

    def __init__(self, module: nn.Module, decay: float, shared: Iterable[Tensor] = ()) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise MusiccmError(f"EMA decay: expected a number in [0, 1), found {decay}.")
        self.decay = decay
        kept = {id(tensor): tensor for tensor in shared}
        self._shared = {name for name, parameter in module.named_parameters() if id(parameter) in kept}
        self._found: tuple[weakref.ref[nn.Module], tuple[_Places, _Places]] | None = None
        self.module = copy.deepcopy(module, kept).float().eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Ema:
        """Stay in evaluation mode, whatever the module that holds this one is switched to."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged network."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move the average towards `source` by one step, as a few fused kernels.

        Args:
            source: the network being trained, of the structure that this object was made from.

        Raises:
            MusiccmError: if its parameters differ from the average's in name or number.
        """
        mine, theirs = self._pairs(source)
        torch._foreach_lerp_(mine, theirs, 1.0 - self.decay)
        for average, network, name in self._places(source)[1]:
            cast(Tensor, average._buffers[name]).copy_(cast(Tensor, network._buffers[name]))

    @torch.no_grad()
    def distance(self, source: nn.Module) -> Tensor:
        """How far `source` has moved from its average: `|source - ema| / |ema|` over all weights that are averaged.

        Args:
            source: the network being trained.

        Returns:
            A float32 scalar on the average's device.
        """
        mine, theirs = self._pairs(source)
        gap = torch.stack(torch._foreach_norm(torch._foreach_sub(theirs, mine)))
        size = torch.stack(torch._foreach_norm(mine))
        return gap.norm() / size.norm().clamp_min(1e-12)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was found of the network that is followed, which a copy would copy too."""
        return {**super().__getstate__(), "_found": None}

    def _pairs(self, source: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        places = self._places(source)[0]
        mine = [cast(Tensor, owner._parameters[name]) for owner, _, name in places]
        theirs = [cast(Tensor, owner._parameters[name]) for _, owner, name in places]
        alike = all(a.dtype == b.dtype and a.device == b.device for a, b in zip(mine, theirs, strict=True))
        return mine, theirs if alike else [b.to(a.device, a.dtype) for a, b in zip(mine, theirs, strict=True)]

    def _places(self, source: nn.Module) -> tuple[_Places, _Places]:
        """Where the parameters and the buffers lie; not the tensors, which may be replaced, as by a sharding.

        Found once: to walk both networks at each update takes the host longer than to launch it.
        """
        if self._found is None or self._found[0]() is not source:
            mine, theirs = ([name for name, _ in network.named_parameters() if name not in self._shared]
                            for network in (self.module, source))
            if odd := sorted({*mine} ^ {*theirs}):
                raise MusiccmError(
                    f"EMA: expected a network with the same parameters as the average, found {len(odd)} that only one "
                    f"of the two has, such as {odd[:3]}. Make a new Ema from this network."
                )
            buffers = [name for name, _ in self.module.named_buffers()]
            parameters, others = ([(self.module.get_submodule(owner), source.get_submodule(owner), name)
                                   for owner, _, name in (name.rpartition(".") for name in names)]
                                  for names in (mine, buffers))
            self._found = weakref.ref(source), (parameters, others)
        return self._found[1]
