"""What the processes of one run share: random draws, means of figures, gradients and weights outside DDP's care."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from musiccm.device import sent
from musiccm.systems.philox import normal_rows

log = logging.getLogger(__name__)


def rank_and_world() -> tuple[int, int]:
    """This process' number and how many there are; (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def warn(text: str) -> None:
    """Log a warning, once for all processes."""
    if rank_and_world()[0] == 0:
        log.warning(text)


def own_rows(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Draw for the global batch and keep this process' rows.

    Every process makes the same draw, so that the draws of a global batch are the same for any number of processes, and
    stratified ones are stratified over all of it.

    Args:
        draw: `n -> tensor` with `n` rows, from a generator that is keyed alike on all processes.
        count: Rows of one process.

    Returns:
        `count` rows.
    """
    rank, world = rank_and_world()
    return draw(count * world)[rank * count : (rank + 1) * count]


def normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise for this process' rows of the global batch, computed where it is needed.

    Args:
        like: A batch, for its shape and device; the same number of rows on every process.
        generator: Keyed alike on all processes; gives the key of the draw, whatever the shape.

    Returns:
        float32; the same numbers on every device, and for any number of processes (`systems.philox`).
    """
    key = torch.empty((), dtype=torch.int64).random_(generator=generator)
    device = torch.device("cpu") if like.device.type == "mps" else like.device  # which has no float64
    first, size = rank_and_world()[0] * len(like), math.prod(like.shape[1:])
    return sent(normal_rows(key, first, len(like), size, device).reshape(like.shape), like.device)


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shards; one that is not sharded comes back as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The shards of a whole tensor where another is sharded: the opposite of `whole`, without sending anything.

    Args:
        tensor: The same on every process.
        like: Whose layout it takes, and whose device if it is sharded.

    Returns:
        A sharded tensor; the one given where `like` is not sharded, or where it is sharded already.
    """
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard(unet: nn.Module, mesh: DeviceMesh) -> None:
    """Spread a U-Net's weights over processes (FSDP2), block by block: each is gathered only while it computes.

    Args:
        unet: A diffusers U-Net; changed in place.
        mesh: The processes, one-dimensional.
    """
    blocks: list[Any] = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]  # type: ignore[misc, union-attr]
    for block in [*blocks, unet]:
        # The outermost, too: a network without a backward pass would stay gathered, and its average could not follow.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


@torch.no_grad()
def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means of scalars over all processes, by one reduction and without waiting for the device.

    Lightning's `sync_dist=True` would take a barrier and a reduction for every value.

    Args:
        values: Scalars, the same names in the same order on every process.

    Returns:
        The means, float32; a value that is not finite on any process is not finite in its mean.
    """
    if not values:
        return {}
    stacked = torch.stack([whole(value).detach().float() for value in values.values()])
    _, world = rank_and_world()
    if world > 1:
        dist.all_reduce(stacked)
        stacked = stacked / world
    return dict(zip(values, stacked.unbind(), strict=True))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes, as one flat reduction.

    For a small module that DDP does not look after. Every process must hold gradients of the same parameters.

    Args:
        parameters: Those without a gradient are passed over.
    """
    _, world = rank_and_world()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one.

    Args:
        module: Of the same shape on every process.
    """
    if rank_and_world()[1] > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)
