"""From a trainer and its system to an evaluator with its reference, and to the models that it scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from musiccm.data.sampling import KeyedLoader
from musiccm.data.waveforms import collate_waveforms
from musiccm.data.workers import default_workers
from musiccm.embedders import Embedder, load_embedder
from musiccm.errors import MusiccmError
from musiccm.evaluation.distilled import Distilled
from musiccm.evaluation.evaluator import Evaluator
from musiccm.evaluation.feature_cache import PACKED, FeatureCache, clap_hash, decoder_hashes, teacher_hash
from musiccm.evaluation.galleries import Galleries
from musiccm.evaluation.registry import find
from musiccm.evaluation.suite import FeatureExtractor, MetricSuite
from musiccm.evaluation.table import Keeping
from musiccm.evaluation.text_audio import MeasuringClap, bundle_clap

if TYPE_CHECKING:
    from musiccm.systems.distillation import DistilledSystem

    _: type[Distilled] = DistilledSystem  # mypy holds what experiments train against what evaluation asks for

log = logging.getLogger(__name__)


def load_embedders(bundle: Any, names: Sequence[str], weights: Mapping[str, str]) -> list[Embedder]:
    """The networks that metrics are named after.

    Args:
        bundle: Where those come from that a bundle has.
        names: See `load_embedder`.
        weights: Files of the others, by name.

    Returns:
        The networks, in the order of the names.

    Raises:
        MusiccmError: A network that cannot be had, or weights of one that is not asked for.
    """
    stray = sorted(set(weights) - set(names))
    if stray:
        raise MusiccmError(f"evaluation.weights: expected names among embedders {list(names)}, found {stray}")
    return [load_embedder(name, weights.get(name), bundle) for name in names]


def data_of(trainer: pl.Trainer, stage: str) -> Any:
    """The data module, set up.

    Args:
        trainer: Its trainer.
        stage: `validate` or `test`.

    Returns:
        The data module.

    Raises:
        MusiccmError: There is none.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        raise MusiccmError("evaluation: expected a data module with real clips, found none")
    data.setup(stage)
    return data


def rank_loader(clips: Dataset, count: int, trainer: pl.Trainer, batch_size: int) -> tuple[KeyedLoader, int]:
    """This rank's share of the first clips. A distributed sampler would pad the last round with another rank's clips.

    Args:
        clips: All clips.
        count: How many of them, over all ranks.
        trainer: Knows the rank.
        batch_size: Clips read together.

    Returns:
        A loader of this rank's clips, and their number.
    """
    mine = range(trainer.global_rank, count, trainer.world_size)
    workers = min(reading_processes(trainer, batch_size), -(-len(mine) // batch_size))
    loader = KeyedLoader(Subset(clips, list(mine)), batch_size=batch_size, collate_fn=collate_waveforms,
                         num_workers=workers)
    return loader, len(mine)


def reading_processes(trainer: pl.Trainer, batch_size: int) -> int:
    """How many processes read, or compose, real clips while this one embeds them.

    Args:
        trainer: Knows the device, and what data it reads.
        batch_size: Clips read together.

    Returns:
        On a GPU what the data module says, or where it says 0 as many as `default_workers`; none on a CPU, whose cores
        are at work, nor for data modules without `clip_samples`.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if trainer.strategy.root_device.type != "cuda" or not hasattr(data, "clip_samples"):
        return 0
    batch_bytes = batch_size * data.clip_samples * torch.float32.itemsize
    return getattr(data, "num_workers", 0) or default_workers(trainer.num_devices, batch_bytes)


def build_evaluator(
    trainer: pl.Trainer,
    system: Distilled,
    embedders: Sequence[Embedder],
    clap: MeasuringClap | None,
    clips: Dataset,
    count: int,
    galleries: Galleries | None,
    seed: int,
    batch_size: int,
    progress: bool,
    between: Callable[[int], Any],
    tokens: Callable[[Tensor, int], Tensor] | None = None,
    **suite: Any,
) -> Evaluator:
    """An evaluator with its reference.

    Args:
        trainer: Knows the rank.
        system: Whose models are evaluated.
        embedders: The networks that metrics are named after.
        clap: What measures text-audio similarity; None leaves it out.
        clips: Real clips.
        count: How many of them, over all ranks.
        galleries: What SIM_AA compares with.
        seed: Seed of the noise.
        batch_size: Clips generated together.
        progress: Whether rank zero shows progress bars.
        between: See `Evaluator`.
        tokens: See `Evaluator`.
        **suite: Further arguments of `MetricSuite`.

    Returns:
        The evaluator.
    """
    compared = clap
    if clap is None or not clap.of_bundle:  # SIM_AA compares with what the bundle's CLAP made of the training clips
        compared = bundle_clap(system.bundle) if galleries else None
    extractor = FeatureExtractor(
        embedders, compared.to(system.device).audio if compared else None, system.bundle.sample_rate_hz
    ).to(system.device)
    tagger = extractor.tagger
    metrics = MetricSuite(
        extractor.classifies(system.device), galleries.by_column if galleries else None, extractor.groups,
        gallery_ND=galleries.own_ND if galleries and clap is compared else None, text=clap is not None,
        tagger=tagger.name if tagger else "", **suite,
    )
    shown = progress and trainer.is_global_zero
    evaluator = Evaluator(extractor, metrics, seed, batch_size, system.device, shown, between, clap, tokens)
    loader, mine = rank_loader(clips, count, trainer, batch_size)
    evaluator.set_reference(loader, mine)
    return evaluator


def real_distance(trainer: pl.Trainer, data: Any, evaluator: Evaluator, count: int) -> dict[str, Any]:
    """What real clips come to that are not the references: as many held-out clips, then training clips.

    Args:
        trainer: Knows the rank.
        data: The data module.
        evaluator: With the reference.
        count: As many clips as the reference has, over all ranks.

    Returns:
        `fd_<name>_real` and the like, and `n_fd_<name>_real`; nothing, with a warning, where there are too few clips.
    """
    # A bare index is the centred window, in the training clips too.
    others: ConcatDataset = ConcatDataset([data.waveforms("val"), data.waveforms("train")])
    if len(others) < count:
        log.warning("evaluation: %d other real clips for %d references; no distance of theirs", len(others), count)
        return {}
    found = evaluator.distance_of_real(*rank_loader(others, count, trainer, evaluator.batch_size))
    metrics: dict[str, Any] = {}
    for key, value in found.items():
        if (metric := find(key)) is not None and metric.metric.scope == "sets":
            metrics |= {f"{key}_real": value, f"n_{key}_real": found["n"]}
    return metrics


def keeping_of(trainer: pl.Trainer, system: Distilled, evaluator: Evaluator, folder: Path | None) -> Keeping:
    """Where features of teachers and of the floor are kept, and what they depend on.

    Args:
        trainer: Knows the ranks.
        system: Whose teacher it is.
        evaluator: With its networks.
        folder: What is filled; None keeps nothing. Features that came with the bundle are looked up all the same.

    Returns:
        What `run_table` and `run_floor` take.
    """
    bundle, clap = system.bundle, evaluator.clap
    if getattr(system, "given_teacher", False):  # of which the bundle's files say nothing
        return Keeping(gather=partial(gathered, trainer), writes=trainer.is_global_zero)
    packed = bundle.root_of(bundle.kind.network) / PACKED
    key = {
        "teacher": teacher_hash(bundle),
        "embedders": {name: embedder.fingerprint for name, embedder in evaluator.extractor.embedders.items()},
        "clap": clap_hash(bundle) if evaluator.extractor.clap_audio is not None else None,
        "text_audio": clap.fingerprint if clap and not clap.of_bundle else None,
        "seed": evaluator.seed,
    }
    return Keeping(FeatureCache(folder, packed if packed.is_dir() else None), key, decoder_hashes(bundle),
                   partial(gathered, trainer), trainer.is_global_zero)


def gathered(trainer: pl.Trainer, value: Any) -> list[Any]:
    """What all ranks give, in order; every rank must call this."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def local_count(trainer: pl.Trainer, n: int) -> int:
    """How many of the first n clips are this rank's, as `rank_loader` shares them.

    Args:
        trainer: Knows the rank.
        n: Clips, over all ranks.

    Returns:
        This rank's.
    """
    return len(range(trainer.global_rank, n, trainer.world_size))
