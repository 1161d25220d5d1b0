"""Encoding a corpus, in one process or in those that torchrun started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy

from musiccm.callbacks.preemption import without_lightnings_handlers
from musiccm.callbacks.progress_lines import ProgressLines
from musiccm.data.experiment import data_module
from musiccm.data.latent_cache.fingerprint import (
    TEXT_PARTS,
    bundle_fingerprint,
    encoding_parts,
    joint_fingerprint,
)
from musiccm.device import choose_device
from musiccm.errors import MusiccmError
from musiccm.local_models import local_bundle
from musiccm.locks import locked_folder
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import check_part
from musiccm.models.melody.features import load_source
from musiccm.models.melody.tokenizer import tokenizer_of
from musiccm.systems.encoding.data import SPLITS, EncodingData
from musiccm.systems.encoding.encoder import CorpusEncoder, Encoder, TokenEncoder
from musiccm.systems.encoding.reading import naming_lost_workers
from musiccm.terminal import interactive, say
from musiccm.texts import require_utf8

#: Windows at a time: a CPU gains nothing by more, and a GPU waits for launches with fewer.
BATCH_SIZES = {"cpu": 16, "gpu": 64}
# How long a process may wait for the others at the end: they may have one file more to encode.
_LONGEST_WAIT = timedelta(days=1)


def encode_corpus(
    configs: list[str],
    overrides: dict[str, Any],
    batch_size: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    shard_size: int = 256,
    splits: Sequence[str] = SPLITS,
    workers: int | None = None,
    half: bool = True,
) -> None:
    """Encode an experiment's corpus into its latent cache; a killed run goes on where it stopped.

    Under torchrun every process encodes files of its own. One run at a time works on a cache.

    Args:
        configs: Experiment files.
        overrides: Arguments that win over `data.init_args`.
        batch_size: Windows at a time in a process; by default one of `BATCH_SIZES`.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: Replace a cache that was made from something else.
        shard_size: Windows in a file of the cache.
        splits: What is encoded; training reads `train` alone, which holds the clips for validation too.
        workers: Processes that read beside each that encodes; by default as `default_workers` says.
        half: Whether a GPU encodes in bf16.

    Raises:
        MusiccmError: Bad configuration, corpus, bundle or cache, each named; another run works on the cache.
    """
    batch_size = _checked(batch_size, shard_size, device, workers)
    data = data_module(configs, {**overrides, "kind": "waveform"})
    require_utf8(str(data.cache_dir), "data.cache_dir")
    # of one on this disk its configurations say which parts encode
    bundle = Bundle.from_pretrained(str(data.bundle), parts=() if local_bundle(str(data.bundle)) else None)
    for part in encoding_parts(bundle):
        check_part(bundle.root_of(part), part)
    work = EncodingData(data, bundle_fingerprint(bundle), batch_size, shard_size, overwrite, bundle.gives_tokens,
                        splits, workers=workers)
    _encode(Encoder(bundle, work, half), work, device)


def _checked(batch_size: int | None, shard_size: int, device: str, workers: int | None) -> int:
    """Refuse, before a corpus is read, numbers and a device that are none; how many windows are encoded at a time."""
    kind = "cpu" if choose_device(device) == "cpu" else "gpu"
    batch_size = BATCH_SIZES[kind] if batch_size is None else batch_size
    if min(batch_size, shard_size) < 1:
        raise MusiccmError(f"--batch-size and --shard-size must be at least 1, found {batch_size} and {shard_size}")
    if workers is not None and workers < 0:
        raise MusiccmError(f"--workers must be at least 0, found {workers}")
    return batch_size


def encode_tokens(
    configs: list[str],
    overrides: dict[str, Any],
    features: str | None = None,
    non_commercial: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    shard_size: int = 256,
    splits: Sequence[str] = SPLITS,
    workers: int | None = None,
    half: bool = True,
) -> None:
    """Write the semantic tokens of an experiment's corpus into their cache, as `encode_corpus` does latents.

    Args:
        configs: Experiment files; `data.init_args.tokenizer` names the bundle with the tokenizer.
        overrides: Arguments that win over `data.init_args`.
        features: Bundle or folder of the network that the tokenizer takes features of; `data.bundle` if not given.
        non_commercial: Whether that may be one for non-commercial use alone.
        batch_size: See `encode_corpus`, as what follows.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: Replace a cache that was made from something else.
        shard_size: Windows in a file of the cache.
        splits: What is encoded.
        workers: See `encode_corpus`.
        half: Whether a GPU embeds in bf16; tokens are chosen in float32.

    Raises:
        MusiccmError: Bad configuration, corpus, bundle, tokenizer or cache, each named.
    """
    batch_size = _checked(batch_size, shard_size, device, workers)
    data = data_module(configs, {**overrides, "kind": "waveform"}, "tokens_dir")
    require_utf8(str(data.tokens_dir), "data.tokens_dir")
    if data.tokenizer is None:
        raise MusiccmError(f"{configs[-1]}: data.init_args.tokenizer is needed to make tokens, and is not set: the "
                           "bundle with a semantic_tokenizer/")
    tokenizer = tokenizer_of(data.tokenizer)
    stated = tokenizer.config
    tokenizer.use(load_source(stated.source, features or str(data.bundle), stated.layer, non_commercial))
    bundle = Bundle.from_pretrained(str(data.bundle), parts=TEXT_PARTS)
    work = EncodingData(data, joint_fingerprint(bundle), batch_size, shard_size, overwrite, splits=splits,
                        tokenizer=tokenizer.fingerprint, workers=workers)
    _encode(TokenEncoder(bundle, tokenizer, work, half), work, device)


def _encode(encoder: CorpusEncoder, work: EncodingData, device: str) -> None:
    """Do the work in all processes, and say how it went."""
    trainer = make_trainer(device)
    # For all processes of a run: the others wait for the first, and are ended with it.
    lock = locked_folder(work.folder) if trainer.is_global_zero else contextlib.nullcontext()
    with naming_lost_workers(), lock:
        try:
            trainer.predict(encoder, datamodule=work, return_predictions=False)
        finally:
            encoder.writer.close()
            if work.loader is not None:
                work.loader.close()
        report = encoder.finish(trainer.strategy)
    if trainer.is_global_zero:
        say(summary(report))


def make_trainer(device: str) -> pl.Trainer:
    """A Trainer for the processes that torchrun started, or for this one alone.

    Args:
        device: `auto`, `cpu`, `cuda`, or one of several such as `cuda:1`.

    Returns:
        The Trainer; it keeps no logs and no checkpoints.
    """
    name, _, number = device.partition(":")
    settings: dict[str, Any] = {"devices": [int(number)] if number else 1}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        # Processes only count and wait: gloo does that on every machine, and notices at once when one of them dies.
        strategy = DDPStrategy(process_group_backend="gloo", timeout=_LONGEST_WAIT)
        settings = {"devices": here, "num_nodes": world // here, "strategy": strategy}
    trainer = pl.Trainer(
        accelerator="gpu" if name == "cuda" else name, logger=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=[] if interactive() else [ProgressLines()],
        **settings,
    )
    without_lightnings_handlers(trainer)
    return trainer


def summary(report: dict[str, Any]) -> str:
    """One line of what `Encoder.finish` reports."""
    if not report["windows"] and not report["captions"]:
        return "nothing to encode: the cache is complete"
    shares = ", ".join(f"{part.replace('_', ' ')} {share:.0%}" for part, share in report["shares"].items())
    cut = (f"; {report['captions_cut']} captions have more tokens than the text encoder reads, and were cut"
           if report["captions_cut"] else "")
    waited = " and ".join(f"{seconds:.1f} s for {'windows' if part == 'read' else 'the disk'}"
                          for part, seconds in report["waited_s"].items())
    return (f"{report['windows']} windows and {report['captions']} captions in {report['wall_s']:.1f} s on "
            f"{report['processes']} process(es): {report['windows_per_s']:.1f} windows/s; of the work: {shares}; "
            f"encoding waited {waited}{cut}")
