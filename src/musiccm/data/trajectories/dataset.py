"""Reading a teacher's trajectories, as batches with the captions that they were made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from musiccm.data.batch import TrajectoryBatch
from musiccm.data.latent_cache.files import file_path
from musiccm.data.latent_cache.windows import LatentWindows
from musiccm.data.trajectories.files import COMMAND, Cost, check_trajectories, cost_of
from musiccm.errors import MusiccmError


class Trajectories(Dataset):
    """Paths of a guided teacher from pure noise to clean latents, each with the caption that it was guided by.

    An item is the same in every epoch, whatever batch it comes in.

    Args:
        folder: What `musiccm prepare trajectories` wrote.
        expected: Entries of its key.
        windows: The training windows, whose captions guided the paths.
        items: Which of them, and in which epoch's draw: path n was made for the n-th.

    Attributes:
        key: What they were made from.
        cost: What making them took.

    Raises:
        MusiccmError: They are missing, unfinished, damaged, made from something else, or being written.
    """

    def __init__(
        self, folder: str | Path, expected: Mapping[str, Any], windows: LatentWindows, items: Sequence[tuple[int, int]]
    ) -> None:
        self.folder, self.windows, self.items = Path(folder), windows, list(items)
        found = check_trajectories(folder, expected, len(self.items))
        self.key: dict[str, Any] = found["key"]
        self.cost: Cost = cost_of(found)
        self._shard_size: int = found["shard_size"]
        self._files: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file(self, number: int) -> tuple[Tensor, Tensor]:
        """Points and ends of a file, views of its mapping."""
        if number not in self._files:
            path = file_path(self.folder, "shard", number)
            try:
                with safe_open(path, framework="pt") as file:
                    self._files[number] = (file.get_tensor("points"), file.get_tensor("latents"))
            except (OSError, SafetensorError) as error:
                raise MusiccmError(f"{path}: damaged ({error}); remove it and run `{COMMAND}` again") from error
        return self._files[number]

    def __getitem__(self, index: int | tuple[int, int]) -> TrajectoryBatch:
        """A batch of one path."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int | tuple[int, int]]) -> TrajectoryBatch:
        """A batch of paths.

        Args:
            indices: For each its number, or `(epoch, number)`.

        Returns:
            The batch, in the order of `indices`.
        """
        numbers = [index[1] if isinstance(index, tuple) else index for index in indices]
        real = self.windows.__getitems__([self.items[number] for number in numbers])
        places = [divmod(number, self._shard_size) for number in numbers]
        points = torch.stack([self._file(file)[0][place] for file, place in places])
        ends = torch.stack([self._file(file)[1][place] for file, place in places])
        return TrajectoryBatch(
            ends.float(), real.text_BD, None, real.ids, real.captions, points_BPCTF=points.float(),
            timesteps_P=torch.tensor(self.key["timesteps"]), semantic_BL=real.semantic_BL,
        )
