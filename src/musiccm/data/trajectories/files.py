"""Trajectories on the disk: what they depend on, their files, and writing them in units that a killed run goes on with.

A folder with `index.json` (what they were made from, how many there are, what each file took to make) and
`shard-<n>.safetensors`: `points`, some points of each path as the U-Net sees them, [n, P, C, T, F], and `latents`, the
raw latents at its end, [n, C, T, F], both in float16. Which item of the training data a path belongs to follows from
its number alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from musiccm.data.latent_cache.files import INDEX, Unit, file_path
from musiccm.errors import MusiccmError
from musiccm.files import sweep, write_atomically, write_json
from musiccm.locks import LOCK, holder
from musiccm.texts import load_json

FORMAT = 1
COMMAND = "musiccm prepare trajectories --config ..."


@dataclass(frozen=True)
class Cost:
    """What rolling out paths took, the writing of their files left out.

    Args:
        paths: How many they are.
        seconds: Wall-clock time; None where it is not known for all of them, as for those of older versions.
        processor_seconds: Of all threads; None on an accelerator, or where it is not known for all of them.
        device: What computed; names, joined by ` + ` where there were several.
    """

    paths: int
    seconds: float | None = None
    processor_seconds: float | None = None
    device: str | None = None


def cost_of(index: Mapping[str, Any]) -> Cost:
    """What the trajectories of a folder took: each of its files once, whichever run made it.

    Args:
        index: The content of its `index.json`.

    Returns:
        The sum.
    """
    stated = index.get("costs", {})
    parts = [stated.get(_extent(unit)) for unit in units_of(index["paths"], index["shard_size"])]
    if any(part is None for part in parts):
        return Cost(index["paths"])
    processor = [part["processor_seconds"] for part in parts]
    return Cost(index["paths"], sum(part["seconds"] for part in parts),
                None if None in processor else sum(processor),
                " + ".join(dict.fromkeys(part["device"] for part in parts)))


def _extent(unit: Unit) -> str:
    """What a file's cost is kept under: its paths, as a file that grows is made anew."""
    return f"{unit.first}-{unit.last}"


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """In what trajectories are not those that are expected; what is None is left unchecked."""
    reasons = []
    for name, value in expected.items():
        if isinstance(value, Mapping):
            stated = found.get(name)
            inner = differences(stated if isinstance(stated, Mapping) else {}, value)
            reasons += [f"{name}.{reason}" for reason in inner]
        elif value is not None and found.get(name) != value:
            reasons.append(f"{name} is {found.get(name)!r}, expected {value!r}")
    return reasons


def read_index(folder: Path) -> dict[str, Any] | None:
    """The content of the `index.json` of trajectories; None where there is none.

    Raises:
        MusiccmError: It is not one.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        index = load_json(path.read_text(encoding="utf-8"))
        index["key"]["points"], index["paths"], index["shard_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MusiccmError(f"{path}: not the index of trajectories ({error!r}); remove the folder") from error
    return index


def check_trajectories(
    folder: str | Path | None, expected: Mapping[str, Any], paths: int | None = None
) -> dict[str, Any]:
    """Refuse trajectories that are missing, being written, unfinished, too many or few, or made from something else.

    Each file says which paths it holds and what they were made from, as does the index; both are read.

    Args:
        folder: Where they should be.
        expected: Entries of their key.
        paths: How many there must be; None for as many as were asked for when they were made.

    Returns:
        Their index.

    Raises:
        MusiccmError: Says what is wrong, and which command makes them.
    """
    if folder is None:
        raise MusiccmError("data.init_args.trajectories_dir: this objective trains on trajectories of its teacher; "
                           f"expected the folder that `{COMMAND}` writes them to, found none")
    if who := holder(Path(folder) / LOCK):
        raise MusiccmError(f"{folder}: the trajectories are being written by {who}; wait until that has ended")
    found = read_index(Path(folder))
    if found is None:
        raise MusiccmError(f"{folder}: no trajectories here (data.init_args.trajectories_dir); run `{COMMAND}` first")
    if reasons := differences(found["key"], {"format": FORMAT, **expected}):
        raise MusiccmError(f"{folder}: stale trajectories: {'; '.join(reasons)}. Make them again with "
                           f"`{COMMAND} --overwrite`")
    units = units_of(found["paths"], found["shard_size"])
    missing = [path for unit in units if not (path := file_path(Path(folder), unit.kind, unit.number)).is_file()]
    if missing:
        raise MusiccmError(f"{folder}: unfinished trajectories: {len(missing)} of {len(units)} files are missing, "
                           f"first {missing[0].name}; run `{COMMAND}` again, it goes on where it stopped")
    for unit in units:
        path = file_path(Path(folder), unit.kind, unit.number)
        if _stamp_in(path) != _stamp(found["key"], found["shard_size"], unit):
            raise MusiccmError(f"{path}: not what {INDEX} beside it states, which is paths {unit.first} to "
                               f"{unit.last - 1} of {_told(found['key'])}; run `{COMMAND}` again, it makes this file "
                               "anew and leaves those that fit")
    if paths not in (None, found["paths"]):
        raise MusiccmError(f"{folder}: expected {paths} trajectories (paths.count), found {found['paths']}; run "
                           f"`{COMMAND}`, it makes those that are missing")
    return found


def _told(key: Mapping[str, Any]) -> str:
    """A key for people, without what the data were."""
    return ", ".join(f"{name} {key[name]}" for name in ("teacher", "guidance_scale", "steps", "timesteps", "noise")
                     if name in key)


def _stamp(key: Mapping[str, Any], shard_size: int, unit: Unit) -> dict[str, str]:
    """What a file states: a single entry, as safetensors writes several in any order."""
    made_from = f"{json.dumps([key, shard_size], sort_keys=True)} {unit.first} {unit.last}".encode()
    return {"trajectories": hashlib.blake2b(made_from, digest_size=16).hexdigest()}


def _stamp_in(path: Path) -> dict[str, str] | None:
    """What a file states; None where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None


def units_of(paths: int, shard_size: int) -> list[Unit]:
    """The files of so many paths."""
    firsts = range(0, paths, shard_size)
    return [Unit("shard", n, first, min(first + shard_size, paths)) for n, first in enumerate(firsts)]


class TrajectoryWriter:
    """Writes trajectories file by file.

    Args:
        folder: Where to.
        key: What they are made from.
        paths: How many there are to be; another number can be asked for later.
        shard_size: Paths in a file; a folder that was begun keeps its own.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], paths: int, shard_size: int = 64) -> None:
        self.folder, self.key, self.paths = folder, {"format": FORMAT, **key}, paths
        begun = read_index(folder)
        same = begun is not None and not differences(begun["key"], self.key)
        self.shard_size = begun["shard_size"] if same and begun is not None else shard_size
        self._costs: dict[str, Any] = {}

    def begin(self, overwrite: bool = False) -> None:
        """Write the index.

        Args:
            overwrite: Replace trajectories that were made from something else.

        Raises:
            MusiccmError: The folder holds those of something else, or the disk is full.
        """
        begun = read_index(self.folder)
        if begun is not None and (reasons := differences(begun["key"], self.key)):
            if not overwrite:
                raise MusiccmError(f"{self.folder}: holds trajectories of something else: {'; '.join(reasons)}. Choose "
                                   "another data.trajectories_dir, or make them again with --overwrite")
            # The index goes first: without it, what remains after a kill is not read.
            (self.folder / INDEX).unlink()
            for path in self.folder.glob("shard-*.safetensors"):
                path.unlink()
            begun = None
        sweep(self.folder)
        units = {_extent(unit) for unit in self.units()}
        stated = begun.get("costs", {}) if begun is not None else {}
        self._costs = {extent: cost for extent, cost in stated.items() if extent in units}
        self._write_index()  # anew each time, as the number of paths may have changed

    def _index(self) -> dict[str, Any]:
        return {"key": self.key, "paths": self.paths, "shard_size": self.shard_size, "costs": self._costs}

    def _write_index(self) -> None:
        write_json(self.folder / INDEX, self._index())

    @property
    def cost(self) -> Cost:
        """What all files together took, as far as they are written."""
        return cost_of(self._index())

    def units(self) -> list[Unit]:
        """All files, whether written or not."""
        return units_of(self.paths, self.shard_size)

    def is_written(self, unit: Unit) -> bool:
        """Whether a file is there, whole and of these very trajectories."""
        found = _stamp_in(file_path(self.folder, unit.kind, unit.number))
        return found == _stamp(self.key, self.shard_size, unit)

    def write(self, unit: Unit, points_NPCTF: Tensor, latents_NCTF: Tensor, cost: Cost) -> None:
        """Write a file, whole or not at all, and what it took.

        Args:
            unit: Which one.
            points_NPCTF: Points of its paths.
            latents_NCTF: Raw latents at their ends.
            cost: What making them took.

        Raises:
            MusiccmError: A value is NaN or does not fit float16, or the disk is full.
        """
        path = file_path(self.folder, unit.kind, unit.number)
        given = {"points": points_NPCTF, "latents": latents_NCTF}
        stored = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in given.items()}
        for name, tensor in stored.items():
            if not torch.isfinite(tensor).all():
                row = unit.first + int((~torch.isfinite(tensor.flatten(1)).all(1)).nonzero()[0])
                raise MusiccmError(f"{path}: {name} of path {row} are NaN or beyond the range of float16; check the "
                                   "teacher and its guidance_scale")
        # First, so that no file lacks its cost; that of a file which is then not written is replaced with the file.
        self._costs[_extent(unit)] = asdict(cost)
        self._write_index()
        stamp = _stamp(self.key, self.shard_size, unit)
        write_atomically(path, lambda temporary: save_file(stored, temporary, metadata=stamp))
