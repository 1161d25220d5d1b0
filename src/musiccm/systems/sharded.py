"""FSDP2 over all processes, with the checkpoints of any other run: whole tensors, which it can also go on from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.strategies.strategy import Strategy
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

from musiccm.systems.parallel import shard_like, whole


class Sharded(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` over all processes, with the one file a checkpoint that all have.

    Lightning's own loading wants every weight of the system in the file, also the frozen ones, which a checkpoint here
    leaves to the bundle; it numbers the optimizers' states by all parameters of the system rather than by the
    optimizer's; and its `auto` spreads over nodes alone. A checkpoint of one process, of DDP or of another number of
    processes can be gone on from, and the other way round. Every process reads the whole file and keeps its shards.

    Args:
        timeout: After which a collective that a process does not come to fails.
    """

    def __init__(self, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Spread over every process of every node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file as it is; weights and moments are handed out below, once the system had its look at them."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Keep this process' shards of the weights."""
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        state = {name: shard_like(value, mine[name]) if name in mine else value
                 for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes, by `load_optimizer_state_dict`."""
        return True

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The moments gathered, on the first process alone, numbered as the optimizer numbers them."""
        bare = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = bare.state_dict()
        gathered: dict[int, dict[str, Any]] = {}
        for number, values in state["state"].items():
            # Every process takes part in gathering; one tensor at a time leaves the device.
            found = {name: whole(value).cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
            if self.is_global_zero:
                gathered[number] = found
        return {**state, "state": gathered} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep this process' shards of the moments."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shards = {
                number: {name: shard_like(value, parameters[number])
                         if isinstance(value, Tensor) and value.shape == parameters[number].shape else value
                         for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shards})
