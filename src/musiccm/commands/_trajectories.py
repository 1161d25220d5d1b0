"""Rolling the teacher of an experiment out from noise, and keeping its paths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningModule

from musiccm import signals
from musiccm.audio.windows import keyed_generator
from musiccm.commands._imports import check_classes, only_known_imports
from musiccm.config import load_experiment
from musiccm.data.experiment import data_module
from musiccm.data.trajectories.files import Cost, TrajectoryWriter
from musiccm.device import choose_device, device_name
from musiccm.errors import MusiccmError
from musiccm.locks import locked_folder
from musiccm.progress import Progress
from musiccm.systems.cmt import CMT
from musiccm.systems.conditions import window_condition
from musiccm.systems.teacher_paths import kept_timesteps, roll_out
from musiccm.terminal import say
from musiccm.texts import require_utf8


def roll_trajectories(
    configs: list[str], batch_size: int = 32, device: str = "auto", overwrite: bool = False, shard_size: int = 64,
    allowed: Sequence[str] = (),
) -> None:
    """Write the paths that an experiment trains on; a killed run goes on where it stopped.

    Args:
        configs: Experiment files, whose model is a `CMT`.
        batch_size: Paths at a time.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: Replace paths that were made from something else.
        shard_size: Paths in a file.
        allowed: Modules that the experiment may name beside the known ones.

    Raises:
        MusiccmError: Bad configuration, data, bundle or folder, each named; another run works on the folder.
    """
    if min(batch_size, shard_size) < 1:
        raise MusiccmError(f"--batch-size and --shard-size must be at least 1, found {batch_size} and {shard_size}")
    where = choose_device(device)
    data = data_module(configs, {})
    if data.trajectories_dir is None:
        raise MusiccmError(f"{configs[-1]}: data.init_args.trajectories_dir is needed to write trajectories, and is "
                           "not set")
    folder = Path(data.trajectories_dir)
    require_utf8(folder, "data.trajectories_dir")
    system = build_system(configs, allowed)
    data.trajectories_dir = None  # not to be read: they are yet to be made
    data.setup("fit")
    paths, windows = system.paths, data.latents("train")
    writer = TrajectoryWriter(folder, {**data.trajectory_key(), **system.path_key()}, paths.count, shard_size)
    with locked_folder(folder):
        writer.begin(overwrite)
        items, shape = data.training_items(writer.paths), system.bundle.latent_shape()
        kept = kept_timesteps(paths.steps, paths.points, system.schedule.num_train_timesteps)
        system.to(where).eval()
        on_cpu = system.device.type == "cpu"
        with Progress(writer.paths, "trajectories", "paths") as progress:
            for unit in writer.units():
                if writer.is_written(unit):
                    progress.skip(unit.last - unit.first)
                    continue
                points, ends = [], []
                wall, processor = time.perf_counter(), time.process_time()
                for first in range(unit.first, unit.last, batch_size):
                    signals.check()
                    numbers = range(first, min(first + batch_size, unit.last))
                    batch = windows.__getitems__([items[n] for n in numbers]).to(where)
                    captions_B = torch.zeros(len(batch), dtype=torch.bool)  # no item's sound in its caption's place
                    cond_BD = window_condition(batch, captions_B, system.conditioner)
                    # Keyed by the path's number: the same paths for any batch and device.
                    noise = [torch.randn(shape, generator=keyed_generator(system.seed, "path", n)) for n in numbers]
                    teacher = system.guided_teacher(cond_BD)
                    found = roll_out(teacher, system.schedule, torch.stack(noise).to(where), paths.steps, kept)
                    points.append(found[0].cpu())
                    ends.append(system.codec.denormalise(found[1]).cpu())
                    progress.update(len(numbers))
                # what an accelerator computes has ended: its results are here
                wall, processor = time.perf_counter() - wall, time.process_time() - processor
                cost = Cost(unit.last - unit.first, wall, processor if on_cpu else None, device_name(system.device))
                writer.write(unit, torch.cat(points), torch.cat(ends), cost)
    took = writer.cost.seconds
    minutes = "" if took is None else f"; they took {took / 60:.3g} minutes"
    say(f"{folder}: {writer.paths} trajectories of {paths.steps} steps, {paths.points} points of each{minutes}")


def build_system(configs: list[str], allowed: Sequence[str]) -> CMT:
    """The model of an experiment, which must be one that trains on paths.

    Args:
        configs: Experiment files.
        allowed: Modules that they may name beside the known ones.

    Raises:
        MusiccmError: It is another.
    """
    model = load_experiment(*configs).get("model")
    with only_known_imports(list(allowed)):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningModule, "model", required=True)
        parsed = parser.parse_object({"model": model})
        check_classes(parsed, list(allowed))
        system = parser.instantiate_classes(parsed).model
    if not isinstance(system, CMT):
        raise MusiccmError(f"{configs[-1]}: model.class_path: expected musiccm.systems.cmt.CMT, which trains on "
                           f"trajectories, found {type(system).__module__}.{type(system).__qualname__}")
    return system
