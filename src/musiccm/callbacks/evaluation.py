"""The Lightning callback that turns a trained student into a table, and watches it during training."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from musiccm import signals
from musiccm.audio.mel import LogMel
from musiccm.callbacks.assembly import (
    build_evaluator,
    cache_key,
    data_of,
    load_embedders,
    local_count,
    real_distance,
)
from musiccm.callbacks.preemption import leave_together, leaving_together
from musiccm.callbacks.run_folder import run_folder
from musiccm.embedders import Embedder
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import Candidate, fast_students, students, teachers
from musiccm.evaluation.clip_budget import ClipBudget
from musiccm.evaluation.evaluator import Evaluator
from musiccm.evaluation.galleries import ALL, Galleries, described, galleries_of, warn_of_training_clips
from musiccm.evaluation.row_cache import RowCache, machine
from musiccm.evaluation.shipped import check_shipped, shipped_candidates
from musiccm.evaluation.table import run_table, write_samples, write_table
from musiccm.terminal import say

log = logging.getLogger(__name__)

# What of a row is no figure of the clips: how it was made, and how long that took.
NOT_LOGGED = ("model", "steps", "guidance_scale", "from_cache", "latency_batch", "latency_batches")


class Evaluation(pl.Callback):
    """Scores teacher and student on the test clips after `test`, and the student on held-out clips while it trains.

    The system must have `bundle`, `codec`, `conditioner`, `teacher`, `schedule`, `grid` and
    `consistency(which="slow") -> f(z, t, cond)`; the data module `waveforms("train" | "val" | "test", limit)` and, for
    SIM_AA, `train_clap_audio() -> (ids, [N, D])`.

    Args:
        steps: Steps at which the student is scored.
        fast_steps: Steps at which the student is scored once more with the bundle's fast decoder, if it has one; all
            other rows are made by VAE decoder and vocoder.
        teacher_steps: Steps at which the teacher is scored.
        guidance_scale: The teacher's guidance, the usual scale.
        gamma: Share of fresh noise between the student's steps.
        limit: At most this many test clips; each of several corpora has its share by its size, none fills another's.
        batch_size: Clips generated together; latencies are stated at this size.
        seed: Seed of the noise, with the clip ids.
        shipped_student: A student's bundle to score beside this run's: a name, a path, or None.
        n_panels: Clips whose audio and mels are written side by side.
        panel_labels: Whose; candidates that are not scored are left out.
        val_steps: Steps at which the student is scored after a validation epoch.
        val_teacher_steps: Steps at which the teacher is scored on the same clips, once; its figures are logged beside.
        val_limit: At most this many held-out clips there.
        every_n_validations: How often; 0 is never.
        time_budget_s: Seconds that generating and hearing the student's clips of one validation may take; None for as
            long as it takes. The number of clips that fits is measured at the first one and kept, for figures of
            different numbers of clips cannot be compared. The reference and the teacher come on top, once.
        cache_dir: Where the teacher's rows are kept, below the trainer's root folder; None keeps none.
        embedders: Networks that listen, see `load_embedder`; figures are named after them, the table shows the first.
        weights: Files of those that the bundle does not bring, by name; others are looked for in `MUSICCM_WEIGHTS`.
        kad: Those of them that also give a kernel distance.
        fd_inf: Those of them that also give FD-infinity in the table; it takes 15 distances a row.
        galleries: What SIM_AA compares with, a column each: `all`, the experiment's training clips and those that the
            bundle says its teacher was trained on; `teacher`, the latter; or the name of a corpus of the experiment.
            The first is `sim_aa_90` and `sim_aa_95`, others are `sim_aa_90_<name>` and so on.
        progress: Whether to show progress bars.

    Raises:
        MusiccmError: A number or list that cannot be.
    """

    def __init__(
        self,
        steps: Sequence[int] = (1, 2, 4, 8),
        fast_steps: Sequence[int] = (1, 4),
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
        val_teacher_steps: Sequence[int] = (),
        val_limit: int = 64,
        every_n_validations: int = 1,
        time_budget_s: float | None = None,
        cache_dir: str | None = "lightning_logs/.teacher_rows",
        embedders: Sequence[str] = ("tagger",),
        weights: Mapping[str, str] | None = None,
        kad: Sequence[str] = (),
        fd_inf: Sequence[str] = (),
        galleries: Sequence[str] = (ALL,),
        progress: bool = True,
    ) -> None:
        if not embedders:
            raise MusiccmError("evaluation.embedders: expected at least one name, found none")
        least = {"limit": limit, "batch_size": batch_size, "val_limit": val_limit}
        for name, counts in {"steps": steps, "fast_steps": fast_steps, "teacher_steps": teacher_steps,
                             "val_steps": val_steps, "val_teacher_steps": val_teacher_steps}.items():
            least[name] = min(counts, default=1)
        for name, value in least.items():
            if value < 1:
                raise MusiccmError(f"evaluation.{name}: expected at least 1, found {value}")
        if every_n_validations < 0:
            raise MusiccmError(f"evaluation.every_n_validations: expected 0, which is never, or more, found "
                               f"{every_n_validations}")
        for name, asked in {"kad": kad, "fd_inf": fd_inf}.items():
            if unknown := sorted(set(asked) - set(embedders)):
                raise MusiccmError(f"evaluation.{name}: expected names among evaluation.embedders, {list(embedders)}, "
                                   f"found {unknown}")
        if not 0 <= gamma <= 1:
            raise MusiccmError(f"evaluation.gamma: expected a share from 0 to 1, found {gamma}")
        if time_budget_s is not None and not time_budget_s > 0:
            raise MusiccmError(f"evaluation.time_budget_s: expected more than 0 or null, found {time_budget_s}")
        self.steps, self.fast_steps, self.teacher_steps = list(steps), list(fast_steps), list(teacher_steps)
        self.guidance_scale, self.gamma = guidance_scale, gamma
        self.limit, self.batch_size, self.seed = limit, batch_size, seed
        self.shipped_student, self.n_panels, self.panel_labels = shipped_student, n_panels, list(panel_labels)
        self.val_steps, self.val_teacher_steps = list(val_steps), list(val_teacher_steps)
        self.val_limit, self.every_n_validations = val_limit, every_n_validations
        self.time_budget_s, self.cache_dir, self.progress = time_budget_s, cache_dir, progress
        self.embedders, self.weights = list(embedders), dict(weights or {})
        self.kad, self.fd_inf, self.galleries = list(kad), list(fd_inf), list(galleries)
        self._loaded: list[Embedder] = []
        self._watching: tuple[Evaluator, ClipBudget, Galleries | None] | None = None
        self._teacher_figures: dict[str, float] | None = None
        self._validations = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse steps, networks and a shipped student that cannot be had now, before training and not after it."""
        if stage not in ("fit", "test"):
            return
        self._check_steps(pl_module)
        self._ears(pl_module)
        if self.shipped_student is not None:
            check_shipped(self.shipped_student)

    def _check_steps(self, pl_module: Any) -> None:
        """Refuse more steps than a model can make, which would otherwise end a run at its first validation."""
        points, levels = len(pl_module.grid), pl_module.schedule.num_train_timesteps
        for name, most, what in (
            ("steps", points, "points of the grid that the student is trained on"),
            ("fast_steps", points, "points of the grid that the student is trained on"),
            ("val_steps", points, "points of the grid that the student is trained on"),
            ("teacher_steps", levels, "timesteps of the teacher"),
            ("val_teacher_steps", levels, "timesteps of the teacher"),
        ):
            if (found := max(getattr(self, name), default=1)) > most:
                raise MusiccmError(f"evaluation.{name}: expected at most {most}, the {what}, found {found}")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/fd_tagger_4` and its like, which a `ModelCheckpoint` can monitor, with their `val/n_4`."""
        if trainer.sanity_checking or not self.every_n_validations:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        candidates = students(pl_module, self.val_steps, self.gamma)
        if not candidates:
            return
        leave_together(trainer)
        # A process on its own can leave anywhere within; several leave between batches.
        with signals.interruptible() if trainer.world_size == 1 else nullcontext():
            figures = self._watched(trainer, pl_module, candidates)
        # Figures are the same on all ranks, but times are not, and a rank without clips has none.
        pl_module.log_dict(trainer.strategy.broadcast(figures), sync_dist=True)

    def _watched(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, candidates: list[Candidate]
    ) -> dict[str, float]:
        """The figures of a validation."""
        evaluator, budget, galleries = self._watch(trainer, pl_module)
        n = budget.settle(lambda: sum(evaluator.pace_s(candidate) for candidate in candidates))
        evaluator.between = leaving_together(trainer, n)
        if self._teacher_figures is None:
            self._teacher_figures = self._watch_teacher(trainer, pl_module, evaluator, galleries, n)
        figures, start = dict(self._teacher_figures), time.perf_counter()
        for candidate in candidates:
            row = evaluator.run(candidate, limit=local_count(trainer, n)).row
            figures |= {f"val/{key}_{candidate.steps}": value for key, value in logged(row).items()}
        budget.spent(time.perf_counter() - start)
        return figures

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the table and write it, with samples, into the run's folder."""
        data = data_of(trainer, "test")
        galleries = galleries_of(data, pl_module.bundle, self.galleries)
        clips = data.waveforms("test", self.limit)
        count = min(self.limit, len(clips))
        shares = shares_of(data, "test", self.limit)
        seen = warn_of_training_clips(galleries, getattr(clips, "clips", ()), "test")
        if count < self.limit:
            log.warning("evaluation: %d test clips, fewer than the limit of %d", count, self.limit)
        evaluator = self._evaluator(trainer, pl_module, clips, count, galleries, fd_inf=self.fd_inf)
        candidates = teachers(pl_module, self.teacher_steps, self.guidance_scale)
        candidates += students(pl_module, self.steps, self.gamma)
        candidates += fast_students(pl_module, self.fast_steps, self.gamma)
        if self.shipped_student is not None:
            candidates += shipped_candidates(self.shipped_student, self.steps, pl_module.device)
        outcomes = run_table(
            evaluator,
            candidates,
            heard=self.panel_labels,
            n_panels=self.n_panels,
            cache=self._cache(trainer),
            cache_key=cache_key(trainer, pl_module, evaluator, galleries, count),
            share=trainer.strategy.broadcast,
            writes=trainer.is_global_zero,
        )
        references = evaluator.suite.references() | real_distance(trainer, data, evaluator, count)
        folder, experiment = run_folder(trainer)
        names = list(evaluator.extractor.embedders)
        for outcome in outcomes.values():
            row = outcome.row
            figures = {f"test/fd_{name}_{row['model']}_{row['steps']}": row[f"fd_{name}"] for name in names}
            known = {key: figure for key, figure in figures.items() if figure is not None}
            pl_module.log_dict(known, sync_dist=True)
        if not trainer.is_global_zero:
            return
        about = galleries.about if galleries else {}
        text = write_table(
            folder, experiment, outcomes, references, names[0], notes=[*described(about), *shortfalls(shares)],
            sim_aa_gallery=about, test_clips=shares, test_clips_of_the_teachers_training=seen,
            machine=machine(pl_module.device), checkpoint=str(trainer.ckpt_path) if trainer.ckpt_path else None,
            seed=self.seed, gamma=self.gamma,
            embedders={name: embedder.fingerprint for name, embedder in evaluator.extractor.embedders.items()},
        )
        mel = pl_module.codec.mel
        write_samples(folder / "samples", outcomes, evaluator.prompt_of, LogMel(mel), mel.sample_rate_hz)
        say(f"\n{text}\nwritten to {folder}")

    def _watch(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Evaluator, ClipBudget, Galleries | None]:
        """The evaluator of the held-out clips, made at the first validation: their features do not change."""
        if self._watching is None:
            data = data_of(trainer, "validate")
            clips = data.waveforms("val", self.val_limit)
            count = min(self.val_limit, len(clips))
            galleries = galleries_of(data, pl_module.bundle, self.galleries)
            warn_of_training_clips(galleries, getattr(clips, "clips", ()), "validation")
            evaluator = self._evaluator(trainer, pl_module, clips, count, galleries, progress=False)
            budget = ClipBudget(self.time_budget_s, count, trainer.world_size, trainer.strategy.broadcast)
            self._watching = evaluator, budget, galleries
        return self._watching

    def _watch_teacher(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, evaluator: Evaluator, galleries: Galleries | None,
        n: int,
    ) -> dict[str, float]:
        candidates = teachers(pl_module, self.val_teacher_steps, self.guidance_scale)
        outcomes = run_table(
            evaluator,
            candidates,
            cache=self._cache(trainer),
            cache_key=cache_key(trainer, pl_module, evaluator, galleries, n),
            share=trainer.strategy.broadcast,
            writes=trainer.is_global_zero,
            limit=local_count(trainer, n),
        ) if candidates else {}
        return {
            f"val/{key}_teacher_{outcome.row['steps']}": value
            for outcome in outcomes.values() for key, value in logged(outcome.row).items()
        }

    def _evaluator(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        clips: Any,
        count: int,
        galleries: Galleries | None,
        progress: bool = True,
        **suite: Any,
    ) -> Evaluator:
        return build_evaluator(
            trainer, pl_module, self._ears(pl_module), clips, count, galleries, self.seed, self.batch_size,
            progress and self.progress, leaving_together(trainer, count), kad=self.kad, **suite,
        )

    def _ears(self, pl_module: Any) -> list[Embedder]:
        if not self._loaded:
            self._loaded = load_embedders(pl_module.bundle, self.embedders, self.weights)
        return self._loaded

    def _cache(self, trainer: pl.Trainer) -> RowCache:
        return RowCache(None if self.cache_dir is None else Path(trainer.default_root_dir) / self.cache_dir)


def shares_of(data: Any, split: str, limit: int) -> dict[str, dict[str, int]]:
    """How many clips of each corpus are evaluated on, and how many would be if none were bad.

    Args:
        data: The data module.
        split: `"val"` or `"test"`.
        limit: At most so many clips of all together.

    Returns:
        `asked` and `used` by the corpus' name; nothing where the data module knows no corpora.
    """
    if not hasattr(data, "eval_parts"):
        return {}
    return {part.name: {"asked": part.asked, "used": len(part.clips)} for part in data.eval_parts(split, limit)}


def shortfalls(shares: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence for each corpus that has fewer usable clips than its share.

    Args:
        shares: See `shares_of`.

    Returns:
        The sentences; they are logged as warnings too.
    """
    found = [f"test clips of {name}: {share['used']} of the {share['asked']} asked for; the others cannot be used, and "
             "no other corpus' took their place" for name, share in shares.items() if share["used"] < share["asked"]]
    for sentence in found:
        log.warning("evaluation: %s", sentence)
    return found


def logged(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row that a logger takes.

    Args:
        row: A row of the table.

    Returns:
        Its figures, n and latency; those that are None are left out, as is chance, which stays what it is.
    """
    return {key: float(value) for key, value in row.items() if value is not None and key not in NOT_LOGGED
            and not key.endswith("_chance")}
