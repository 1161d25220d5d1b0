"""Low-rank adapters of a network (LoRA, arXiv 2106.09685), by peft: a student that shares its teacher's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.models.denoiser import Float32Conv2d

Network = TypeVar("Network", bound=nn.Module)

#: Attention, feed-forward and convolutions of a diffusers U-Net, and its last layer, which a student that predicts
#: something else than its teacher must change.
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
               "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj", "conv_out")
_NAME = "default"


@dataclass
class Lora:
    """An adapter: each chosen layer computes `W x + (alpha / rank) B A x` with a frozen W.

    Args:
        rank: rows of A and columns of B.
        alpha: the update's scale, over `rank`.
        target_modules: names, or ends of names, of the linear and convolution layers that get one.
    """

    rank: int = 16
    alpha: float = 16.0
    target_modules: Sequence[str] = field(default_factory=lambda: list(UNET_LAYERS))


def is_adapter(name: str) -> bool:
    """Whether a parameter of an adapted network, by its name, is the adapter's."""
    return any(part.startswith("lora_") for part in name.split("."))


def with_adapter(network: Network, lora: Lora, seed: int = 0, where: str = "lora") -> Network:
    """A network that computes what another does, with an adapter that is trained in its stead.

    The weights are the very tensors of the other, which are frozen; A is drawn and B is zero, as in the paper.

    Args:
        network: linear and convolution layers of torch; only its weights' `requires_grad` changes.
        lora: the adapter.
        seed: of A's draws.
        where: the key of `lora`, for messages.

    Returns:
        The adapted network; names of its own weights end in `lora_A.default.weight` and `lora_B.default.weight`.

    Raises:
        MusiccmError: no layer has such a name, or one of another kind has.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    network.requires_grad_(False)
    adapted = copy.deepcopy(network, {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]})
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, adapted, _NAME)
        except ValueError as error:
            raise MusiccmError(f"{where}.target_modules: expected names of linear and convolution layers of the "
                               f"network, found {list(lora.target_modules)} ({str(error).splitlines()[0]})") from None
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), Float32Conv2d):
            for factor in (layer.lora_A, layer.lora_B):
                factor[_NAME] = Float32Conv2d.sharing(factor[_NAME])
    return adapted


def load_adapter(adapted: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put an adapter's weights into a network that has one of the same shape.

    Args:
        adapted: changed in place.
        state: the adapter's weights by name, and nothing else.

    Raises:
        MusiccmError: names or shapes differ.
    """
    own = {name: value for name, value in adapted.state_dict().items() if is_adapter(name)}
    odd = sorted(name for name in own.keys() | state.keys()
                 if name not in own or name not in state or own[name].shape != state[name].shape)
    if odd:
        raise MusiccmError(f"adapter: {len(odd)} weights are missing, left over or of another shape, the first being "
                           f"{odd[0]}; expected rank and target_modules of its own run")
    adapted.load_state_dict(state, strict=False)


def merged(adapted: Network) -> Network:
    """A plain network that computes what an adapted one does, but for rounding: `W + (alpha / rank) B A` in each layer.

    Args:
        adapted: see `with_adapter`; not changed.

    Returns:
        A copy that shares nothing with it, of the class and names of the network that was adapted.
    """
    from peft.tuners.lora import LoraLayer

    plain: Any = copy.deepcopy(adapted)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[operator]
                setattr(parent, name, child.get_base_layer())
    if hasattr(plain, "peft_config"):
        del plain.peft_config
    return plain
