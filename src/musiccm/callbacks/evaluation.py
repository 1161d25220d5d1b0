"""The Lightning callback that turns a trained student into a table, and watches it during training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from musiccm.audio.mel import LogMel
from musiccm.callbacks.contenders import Contender, student_contender, teacher_contender
from musiccm.callbacks.evaluator import Evaluator
from musiccm.callbacks.row_cache import RowCache, machine
from musiccm.callbacks.shipped import check_shipped, shipped_contenders
from musiccm.callbacks.table import run_table, write_samples, write_table
from musiccm.data.sampling import KeyedLoader
from musiccm.data.waveforms import collate_waveforms
from musiccm.errors import MusiccmError
from musiccm.metrics.embedders import TaggerEmbedder
from musiccm.metrics.suite import Listener, MetricSuite
from musiccm.models.bundle_files import check_part

log = logging.getLogger(__name__)


class Evaluation(pl.Callback):
    """Scores teacher and student on the test clips after `test`, and the student on held-out clips while it trains.

    The system must have `bundle`, `codec`, `conditioner`, `teacher`, `schedule`, `grid` and
    `consistency(which="slow") -> f(z, t, cond)`; the data module `waveforms("train" | "val" | "test")` and, for SIM_AA,
    `train_clap_audio() -> (ids, [N, D])`.

    Args:
        steps: Steps at which the student is scored.
        teacher_steps: Steps at which the teacher is scored.
        guidance_scale: The teacher's guidance, the usual scale.
        gamma: Share of fresh noise between the student's steps.
        limit: At most this many test clips.
        batch_size: Clips generated together; latencies are stated at this size.
        seed: Seed of the noise, with the clip ids.
        shipped_student: A student's bundle to score beside this run's: a name, a path, or None.
        n_panels: Clips whose audio and mels are written side by side.
        panel_labels: Whose; contenders that are not scored are left out.
        val_steps: Steps at which the student is scored after a validation epoch.
        val_limit: At most this many held-out clips there.
        every_n_validations: How often; 0 is never.
        cache_dir: Where the teacher's rows are kept, below the trainer's root folder; None keeps none.
        embedders: Networks that listen; figures are named after them. Those that the bundle brings are found in it.
        weights: Where the weights of the others are, by name.
        progress: Whether to show progress bars.
    """

    def __init__(
        self,
        steps: Sequence[int] = (1, 2, 4, 8),
        teacher_steps: Sequence[int] = (50, 8, 4, 2, 1),
        guidance_scale: float = 3.0,
        gamma: float = 1.0,
        limit: int = 256,
        batch_size: int = 32,
        seed: int = 0,
        shipped_student: str | None = None,
        n_panels: int = 4,
        panel_labels: Sequence[str] = ("teacher@50", "student@1", "student@4", "student_shipped@4"),
        val_steps: Sequence[int] = (4,),
        val_limit: int = 64,
        every_n_validations: int = 1,
        cache_dir: str | None = "lightning_logs/.teacher_rows",
        embedders: Sequence[str] = ("tagger",),
        weights: Mapping[str, str] | None = None,
        progress: bool = True,
    ) -> None:
        if not embedders:
            raise MusiccmError("evaluation.embedders: expected at least one name, found none")
        for name, value in {"limit": limit, "batch_size": batch_size, "val_limit": val_limit}.items():
            if value < 1:
                raise MusiccmError(f"evaluation.{name}: expected at least 1, found {value}")
        self.steps, self.teacher_steps = list(steps), list(teacher_steps)
        self.guidance_scale, self.gamma = guidance_scale, gamma
        self.limit, self.batch_size, self.seed = limit, batch_size, seed
        self.shipped_student, self.n_panels, self.panel_labels = shipped_student, n_panels, list(panel_labels)
        self.val_steps, self.val_limit, self.every_n_validations = list(val_steps), val_limit, every_n_validations
        self.embedders, self.weights = list(embedders), dict(weights or {})
        self.cache_dir, self.progress = cache_dir, progress
        self._watching: Evaluator | None = None
        self._validations = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a judge or a shipped student that is not there now, before training and not after it."""
        if stage not in ("fit", "test"):
            return
        for name in self.embedders:
            judge = f"evaluators/{name}"
            check_part(pl_module.bundle.root_of(judge), judge)  # type: ignore[operator, union-attr]
        if self.shipped_student is not None:
            check_shipped(self.shipped_student)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/fd_tagger_4` and its like, which a `ModelCheckpoint` can monitor."""
        if trainer.sanity_checking or not self.every_n_validations:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        if self._watching is None:
            self._watching = self._evaluator(trainer, pl_module, "val", self.val_limit, None, progress=False)
        for contender in self._students(pl_module, self.val_steps):
            row = self._watching.run(contender).row
            names = [key for name in self.embedders for key in (f"fd_{name}", f"is_{name}_mean", f"kl_{name}")]
            names += ["ta_similarity"]
            figures = {f"val/{name}_{contender.steps}": row[name] for name in names if row.get(name) is not None}
            pl_module.log_dict(figures, prog_bar=False, sync_dist=False, rank_zero_only=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the table and write it, with samples, into the run's folder."""
        train_clap = self._train_clap(trainer)
        evaluator = self._evaluator(trainer, pl_module, "test", self.limit, train_clap, self.progress)
        contenders = self._teachers(pl_module) + self._students(pl_module, self.steps)
        if self.shipped_student is not None:
            contenders += shipped_contenders(self.shipped_student, self.steps, pl_module.device)
        root = Path(trainer.default_root_dir)
        outcomes = run_table(
            evaluator,
            contenders,
            heard=self.panel_labels,
            n_panels=self.n_panels,
            cache=RowCache(None if self.cache_dir is None else root / self.cache_dir),
            cache_key=self._cache_key(trainer, pl_module, evaluator, train_clap),
            share=trainer.strategy.broadcast,
        )
        references = evaluator.suite.references() | self._real_distance(trainer, evaluator)
        folder, experiment = run_folder(trainer)
        for outcome in outcomes.values():
            row = outcome.row
            for name in self.embedders:
                figure = row[f"fd_{name}"]
                pl_module.log(f"test/fd_{name}_{row['model']}_{row['steps']}", figure, rank_zero_only=False)
        if not trainer.is_global_zero:
            return
        text = write_table(
            folder, experiment, outcomes, references, self.embedders[0],
            machine=machine(pl_module.device), checkpoint=str(trainer.ckpt_path) if trainer.ckpt_path else None,
            seed=self.seed, gamma=self.gamma,
        )
        mel = pl_module.codec.mel
        write_samples(folder / "samples", outcomes, evaluator.prompt_of, LogMel(mel), mel.sample_rate_hz)
        print(f"\n{text}\nwritten to {folder}", flush=True)

    def _evaluator(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        split: str,
        limit: int,
        train_clap: tuple[Sequence[str], Tensor] | None,
        progress: bool,
    ) -> Evaluator:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise MusiccmError("evaluation: expected a data module with real clips, found none")
        mel, conditioner = pl_module.codec.mel, pl_module.conditioner
        embedders = [
            TaggerEmbedder(pl_module.bundle.evaluators[name], LogMel(mel), mel.sample_rate_hz, name)
            for name in self.embedders
        ]
        listener = Listener(embedders, conditioner.audio, mel.sample_rate_hz).to(pl_module.device)
        tagger = listener.tagger
        suite = MetricSuite(
            listener.classifies(pl_module.device), train_clap, listener.groups, tagger=tagger.name if tagger else ""
        )
        evaluator = Evaluator(
            listener, suite, self.seed, self.batch_size, pl_module.device, progress and trainer.is_global_zero
        )
        data.setup("test" if split == "test" else "validate")
        clips = data.waveforms(split)
        # Dealt out by hand: a distributed sampler would pad the last round with clips that another rank has.
        mine = range(trainer.global_rank, min(limit, len(clips)), trainer.world_size)
        if split == "test" and len(clips) < limit:
            log.warning("evaluation: %d test clips, fewer than the limit of %d", len(clips), limit)
        loader = KeyedLoader(Subset(clips, list(mine)), batch_size=self.batch_size, collate_fn=collate_waveforms)
        evaluator.set_reference(loader, conditioner.text, len(mine))
        return evaluator

    def _real_distance(self, trainer: pl.Trainer, evaluator: Evaluator) -> dict[str, Any]:
        """What real clips come to that are not the references: as many held-out clips, then training clips."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        # A bare index is the centred window, in the training clips too.
        others: ConcatDataset = ConcatDataset([data.waveforms("val"), data.waveforms("train")])
        count = min(self.limit, len(data.waveforms("test")))
        if len(others) < count:
            log.warning("evaluation: %d other real clips for %d references; no distance of theirs", len(others), count)
            return {}
        mine = range(trainer.global_rank, count, trainer.world_size)
        loader = KeyedLoader(Subset(others, list(mine)), batch_size=self.batch_size, collate_fn=collate_waveforms)
        found = evaluator.distance_of_real(loader, len(mine))
        figures: dict[str, Any] = {}
        for name in self.embedders:
            figures |= {f"fd_{name}_real": found[f"fd_{name}"], f"n_fd_{name}_real": found["n"]}
        return figures

    def _teachers(self, pl_module: Any) -> list[Contender]:
        m, shape = pl_module, pl_module.bundle.latent_shape()
        return [
            teacher_contender(m.teacher, m.schedule, m.conditioner, m.codec, shape, steps, self.guidance_scale)
            for steps in self.teacher_steps
        ]

    def _students(self, pl_module: Any, all_steps: Sequence[int]) -> list[Contender]:
        m, shape, f = pl_module, pl_module.bundle.latent_shape(), pl_module.consistency(which="slow")
        return [
            student_contender(f, m.schedule, m.conditioner, m.codec, shape, steps, m.grid, self.gamma)
            for steps in all_steps
        ]

    def _train_clap(self, trainer: pl.Trainer) -> tuple[Sequence[str], Tensor] | None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "train_clap_audio"):
            log.warning("evaluation: the data module has no embeddings of the training clips; SIM_AA is left out")
            return None
        data.setup("test")
        return data.train_clap_audio()

    def _cache_key(
        self, trainer: pl.Trainer, pl_module: Any, evaluator: Evaluator, train_clap: tuple[Sequence[str], Tensor] | None
    ) -> dict[str, Any]:
        digest = hashlib.sha256()
        if train_clap is not None:
            digest.update(repr(list(train_clap[0])).encode())
            digest.update(train_clap[1].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {
            "bundle": pl_module.bundle.content_hash(),
            "embedders": {name: embedder.fingerprint for name, embedder in evaluator.listener.embedders.items()},
            "reference": evaluator.reference_digest,
            "train": digest.hexdigest(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": trainer.world_size,
            "machine": machine(pl_module.device),
        }


def run_folder(trainer: pl.Trainer) -> tuple[Path, str]:
    """Where a run's results go, and the name of its experiment.

    Args:
        trainer: The trainer; every rank must call this.

    Returns:
        `lightning_logs/<experiment>/version_N` and `<experiment>` with the usual logger, else the root folder and its
        name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    name = folder.parent.name if folder.name.startswith("version_") else folder.resolve().name
    return folder, name
