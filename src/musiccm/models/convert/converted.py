"""What a conversion gives: a configuration, the weights under their new names, and what was left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.models.state_dicts import require_fit


@dataclass
class Converted:
    """A part under its new names.

    Args:
        config: Arguments of its class.
        state: Weights by new name.
        dropped: Names in the file that the part has no use for.
        assumed: What shapes do not tell and was taken from the released models.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    dropped: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def build(self, make: Callable[[dict[str, Any]], nn.Module], what: str) -> nn.Module:
        """The part itself, with every weight in its place.

        Args:
            make: From the configuration to the module.
            what: Where the weights came from, for messages.

        Returns:
            The module, float32, in eval mode.

        Raises:
            MusiccmError: A weight is missing, left over, of another size, no floating-point number, or not finite.
        """
        with init_empty_weights():
            module = make(self.config)
        require_fit(module.state_dict(), self.state, what, "not the architecture that is converted here")
        own = module.state_dict()
        whole = [f"{name} is {str(value.dtype).removeprefix('torch.')}" for name, value in self.state.items()
                 if own[name].is_floating_point() and not value.is_floating_point()]
        if whole:
            raise MusiccmError(f"{what}: {_first(whole)}; expected floating-point numbers. Quantised weights are not "
                               "converted: save them as float16 or float32")
        broken = [name for name, value in self.state.items() if not torch.isfinite(value).all()]
        if broken:
            raise MusiccmError(f"{what}: NaN or infinity in {_first(broken)}; the file is damaged or its training "
                               "diverged")
        wide = {name: value.float() if value.is_floating_point() else value for name, value in self.state.items()}
        module.load_state_dict(wide, strict=True, assign=True)
        return module.eval().requires_grad_(False)


def _first(texts: list[str]) -> str:
    """The first of them, and how many more there are."""
    return texts[0] + (f" and {len(texts) - 1} more" if len(texts) > 1 else "")


def check_scale_factor(value: float, what: str) -> float:
    """A factor that can be divided by again.

    Raises:
        MusiccmError: It is none.
    """
    if not (math.isfinite(value) and value > 0):
        raise MusiccmError(f"{what}: expected a positive number, by which the latents are multiplied, found {value:g}")
    return value


def count_below(names: Iterable[str], prefix: str) -> int:
    """How many consecutive numbers, from 0, follow a prefix: the length of a module list."""
    found = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    count = 0
    while str(count) in found:
        count += 1
    return count


def weight(tensors: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    """A tensor that the architecture must have.

    Raises:
        MusiccmError: It has not.
    """
    if name not in tensors:
        shown = ", ".join(list(tensors)[:3]) or "nothing"
        raise MusiccmError(f"{what}: expected a weight named {name}, found {shown}, ...; not a checkpoint of this part")
    return tensors[name]
