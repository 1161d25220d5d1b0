"""The Lightning callback that turns a trained student into a table, and watches it during training."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from musiccm import signals
from musiccm.audio.mel import LogMel
from musiccm.callbacks.assembly import (
    build_evaluator,
    data_of,
    keeping_of,
    load_embedders,
    local_count,
    rank_loader,
    real_distance,
)
from musiccm.callbacks.preemption import leave_together, leaving_together
from musiccm.callbacks.run_folder import run_folder
from musiccm.callbacks.sampler_option import sampler_option
from musiccm.callbacks.training_time import training_record
from musiccm.embedders import Embedder
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import (
    RECORDED,
    Candidate,
    Comparison,
    candidates,
    check_models,
    codecs,
    compared_model,
    present_name,
    require_tokens,
)
from musiccm.evaluation.clip_budget import ClipBudget
from musiccm.evaluation.clip_features import ClipFeatures
from musiccm.evaluation.distilled import Distilled, SystemTeacher, as_distilled
from musiccm.evaluation.evaluator import Asked, Evaluator, Outcome
from musiccm.evaluation.feature_cache import machine
from musiccm.evaluation.floor import SAME_CAPTIONS, FloorClips, floor_clips, renamed
from musiccm.evaluation.galleries import ALL, Galleries, described, galleries_of, warn_of_training_clips
from musiccm.evaluation.headlines import compare_outcomes
from musiccm.evaluation.own_captions import of_real_clips, unknown_corpus
from musiccm.evaluation.packaged import check_packaged
from musiccm.evaluation.registry import find, metric_row, optional_metrics
from musiccm.evaluation.table import Keeping, run_floor, run_table, write_samples, write_table
from musiccm.evaluation.text_audio import MeasuringClap, measuring_clap, refuse_tuned, without_clap
from musiccm.models.bundle.bundle import DECODERS
from musiccm.terminal import say

log = logging.getLogger(__name__)

# What of a row is no metric of the clips: how it was made, and how long that took.
NOT_LOGGED = ("model", "steps", "decoder", "guidance_scale", "sampler", "from_cache", "features_from", "latency_batch",
              "latency_batches")


#: What the teacher can do in at most eight calls, beside its own guided DDIM: without guidance a step is one call, and
#: in two steps DPM-Solver++ is DDIM.
BASELINES = {"teacher_scale2": [4, 2, 1], "teacher_unguided": [8, 4, 2, 1], "teacher_dpm": [4],
             "teacher_dpm_scale2": [4], "teacher_dpm_unguided": [8, 4]}
#: Options with the steps of the models that an evaluation scores unless it is told otherwise.
OPTIONS = {"teacher": "teacher_steps", "student": "steps", "student_packaged": "steps"}


class Evaluation(pl.Callback):
    """Scores teacher and student on the test clips after `test`, and the student on held-out clips while it trains.

    The system must be `Distilled`; the data module must have `waveforms("train" | "val" | "test", limit)` and, for
    SIM_AA, `train_clap_audio() -> (ids, [N, D])`. The models that are compared are those of `MODELS`.

    Args:
        steps: Steps at which the student is scored.
        decoders: What makes sound of everybody's latents, a part of the table each: `fast`, the default of
            `musiccm generate`, and `original` (VAE decoder and vocoder); those that the bundle lacks are left out.
            Validations and panels use the first. Distances are compared within one decoder alone.
        teacher_steps: Steps at which the teacher is scored.
        guidance_scale: The teacher's guidance, the usual scale.
        sampler: The student's sampler: its name, or its name and fields; `lcm` by default.
        limit: At most this many test clips; each of several corpora has its share by its size, none fills another's.
        batch_size: Clips generated together; latencies are stated at this size.
        seed: Seed of the noise, with the clip ids.
        packaged_student: A student's bundle to score beside this run's, at the same `steps`: a name, a path, or None.
        more_models: Steps of further models of `MODELS`, by name: `{teacher_dpm: [4, 2]}`.
        baselines: Score the teacher in all configurations that could be the best one at few network calls
            (`BASELINES`), beside `more_models`.
        spread: Captions for which every model makes `spread_noises` clips, for the spread of its answers to one
            caption; 0 leaves it out.
        spread_noises: Clips of each of them, the one of the table among them.
        draws: Halves of the clips that the intervals are taken from.
        n_panels: Clips whose audio and mels are written side by side.
        panel_labels: Whose; candidates that are not scored are left out.
        val_steps: Steps at which the student is scored after a validation epoch.
        val_teacher_steps: Steps at which the teacher is scored on the same clips, once; its metrics are logged beside.
        val_limit: At most this many held-out clips there.
        every_n_validations: How often; 0 is never.
        time_budget_s: Seconds that generating and embedding the student's clips of one validation may take; None for as
            long as it takes. The number of clips that fits is measured at the first one and kept, for metrics of
            different numbers of clips cannot be compared. The reference and the teacher come on top, once.
        cache_dir: Where features of the teacher and of the floor are kept, below the trainer's root folder; None keeps
            none.
        embedders: Networks that embed, see `load_embedder`; metrics are named after them, the table shows the first.
        weights: Files of those that the bundle does not bring, by name; others are looked for in `MUSICCM_WEIGHTS`.
        metrics: Those of them that also give a metric, by the metric's name: `{mauve: [tagger]}`; the names are those
            that docs/metrics.md calls optional. Slow ones stand in the table alone, and not in validations.
        kad: Short for `metrics: {kad: [...]}`.
        fd_inf: Short for `metrics: {fd_inf: [...]}`.
        galleries: What SIM_AA compares with, a column each: `all`, the experiment's training clips and those that the
            bundle says its teacher was trained on; `teacher`, the latter; or the name of a corpus of the experiment.
            The first is `sim_aa_90` and `sim_aa_95`, others are `sim_aa_90_<name>` and so on.
        text_audio: The CLAP that measures text-audio similarity, where it is not the bundle's: a file, a folder, a hub
            id or a bundle, `clap` for LAION's published file in `MUSICCM_WEIGHTS`, or `clap_second` for the bundle's
            second CLAP. Without any, or with `none`, the similarity is left out.
        progress: Whether to show progress bars.
        gamma: Of version 0.1, as `sampler: {name: lcm, gamma: ...}`.
        shipped_student: Of version 0.1, as `packaged_student`.
        fast_steps: Of version 0.2, which scored some rows by the fast decoder; not read, see `decoders`.

    Raises:
        MusiccmError: A number or list that cannot be.
    """

    def __init__(
        self,
        steps: Sequence[int] = (1, 2, 4, 8),
        decoders: Sequence[str] = DECODERS,
        teacher_steps: Sequence[int] = (50, 8, 4, 2, 1),
        guidance_scale: float = 3.0,
        sampler: str | dict[str, str | float] | None = None,
        limit: int = 256,
        batch_size: int = 32,
        seed: int = 0,
        packaged_student: str | None = None,
        more_models: dict[str, list[int]] | None = None,
        baselines: bool = False,
        spread: int = 0,
        spread_noises: int = 4,
        draws: int = 200,
        n_panels: int = 4,
        panel_labels: Sequence[str] = ("teacher@50", "student@1", "student@4", "student_packaged@4"),
        val_steps: Sequence[int] = (4,),
        val_teacher_steps: Sequence[int] = (),
        val_limit: int = 64,
        every_n_validations: int = 1,
        time_budget_s: float | None = None,
        cache_dir: str | None = "lightning_logs/.features",
        embedders: Sequence[str] = ("tagger",),
        weights: Mapping[str, str] | None = None,
        metrics: Mapping[str, Sequence[str]] | None = None,
        kad: Sequence[str] = (),
        fd_inf: Sequence[str] = (),
        galleries: Sequence[str] = (ALL,),
        text_audio: str | None = None,
        progress: bool = True,
        gamma: float | None = None,
        shipped_student: str | None = None,
        fast_steps: Sequence[int] | None = None,
    ) -> None:
        if not embedders:
            raise MusiccmError("evaluation.embedders: expected at least one name, found none")
        if not decoders or (unknown := sorted(set(decoders) - set(DECODERS))):
            raise MusiccmError(f"evaluation.decoders: expected names among {', '.join(DECODERS)}, found "
                               f"{', '.join(unknown) if decoders else 'none'}")
        least = {"limit": limit, "batch_size": batch_size, "val_limit": val_limit, "draws": draws - 1,
                 "spread": spread + 1, "spread_noises": spread_noises - 1}
        for name, counts in {"steps": steps, "teacher_steps": teacher_steps,
                             "val_steps": val_steps, "val_teacher_steps": val_teacher_steps,
                             **{f"more_models.{name}": found for name, found in (more_models or {}).items()}}.items():
            least[name] = min(counts, default=1)
        for name, value in least.items():
            if value < 1:
                offset = {"draws": 1, "spread": -1, "spread_noises": 1}.get(name, 0)
                raise MusiccmError(f"evaluation.{name}: expected at least {1 + offset}, found {value + offset}")
        if every_n_validations < 0:
            raise MusiccmError(f"evaluation.every_n_validations: expected 0, which is never, or more, found "
                               f"{every_n_validations}")
        self.metrics = also_asked(metrics or {}, embedders, kad=kad, fd_inf=fd_inf)
        check_models(more_models or {})
        for name in more_models or {}:
            if name in OPTIONS:
                raise MusiccmError(f"evaluation.more_models: the steps of {name} are evaluation.{OPTIONS[name]}")
        if spread == 1:
            raise MusiccmError("evaluation.spread: expected 0 or at least 2 captions, found 1")
        if time_budget_s is not None and not time_budget_s > 0:
            raise MusiccmError(f"evaluation.time_budget_s: expected more than 0 or null, found {time_budget_s}")
        self.steps, self.teacher_steps, self.decoders = list(steps), list(teacher_steps), list(decoders)
        self.spread, self.spread_noises, self.draws = spread, spread_noises, draws
        asked = (BASELINES if baselines else {}) | (more_models or {})
        self.more_models = {name: list(found) for name, found in asked.items()}
        self.guidance_scale, self.sampler = guidance_scale, sampler_option("evaluation", sampler, gamma)
        self.limit, self.batch_size, self.seed = limit, batch_size, seed
        self.packaged_student = packaged_student or shipped_student
        self.n_panels, self.panel_labels = n_panels, [_present_label(label) for label in panel_labels]
        self.val_steps, self.val_teacher_steps = list(val_steps), list(val_teacher_steps)
        self.val_limit, self.every_n_validations = val_limit, every_n_validations
        self.time_budget_s, self.cache_dir, self.progress = time_budget_s, cache_dir, progress
        self.embedders, self.weights = list(embedders), dict(weights or {})
        self.galleries, self.text_audio = list(galleries), text_audio
        self._loaded: list[Embedder] = []
        self._clap: MeasuringClap | None = None
        self._watching: tuple[Evaluator, ClipBudget] | None = None
        self._teacher_metrics: dict[str, float] | None = None
        self._validations = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse steps, networks and a packaged student that cannot be had now, before training and not after it."""
        if stage not in ("fit", "test"):
            return
        system = as_distilled(pl_module)
        self._check_steps(system)
        self._check_scales(system)
        self._check_tokens(system)
        self._embedders(system)
        if self.packaged_student is not None:
            check_packaged(self.packaged_student)

    def _check_steps(self, system: Distilled) -> None:
        """Refuse more steps than a model can make, which would otherwise end a run at its first validation."""
        points, levels = len(system.grid), system.schedule.num_train_timesteps
        teachers = {"teacher_steps": self.teacher_steps, "val_teacher_steps": self.val_teacher_steps}
        students = {"steps": self.steps, "val_steps": self.val_steps}
        for model, steps in self.more_models.items():
            (teachers if compared_model(model).teacher else students)[f"more_models.{model}"] = steps
        for name, steps, most, what in (
            *((name, found, points, "points of the grid that the student is trained on")
              for name, found in students.items()),
            *((name, found, levels, "timesteps of the teacher") for name, found in teachers.items()),
        ):
            if (found := max(steps, default=1)) > most:
                raise MusiccmError(f"evaluation.{name}: expected at most {most}, the {what}, found {found}")

    def _check_scales(self, system: Distilled) -> None:
        """Refuse a student of a scale that this one is not guided by."""
        for name in self.more_models:
            model = compared_model(name)
            if not model.teacher and model.guidance_scale is not None:
                try:
                    system.student_guidance.chosen(model.guidance_scale)
                except MusiccmError as error:
                    raise MusiccmError(f"evaluation.more_models.{name}: {error}") from None

    def _check_tokens(self, system: Distilled) -> None:
        """Refuse rows by where semantic tokens come from, of a bundle that has none."""
        for name in self.more_models:
            if compared_model(name).tokens is not None:
                require_tokens(system, name)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log `val/fd_tagger_4` and its like, which a `ModelCheckpoint` can monitor, with their `val/n_4`."""
        if trainer.sanity_checking or not self.every_n_validations:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        found = candidates(self._comparison(pl_module, 1), {"student": self.val_steps})
        if not found:
            return
        leave_together(trainer)
        # A process on its own can leave anywhere within; several leave between batches.
        with signals.interruptible() if trainer.world_size == 1 else nullcontext():
            metrics = self._watched(trainer, pl_module, found)
        # Metrics are the same on all ranks, but times are not, and a rank without clips has none.
        pl_module.log_dict(trainer.strategy.broadcast(metrics), sync_dist=True)

    def _comparison(self, pl_module: pl.LightningModule, decoders: int | None = None) -> Comparison:
        """What is compared, by all decoders or by the first few that there are."""
        system = as_distilled(pl_module)
        there = [name for name in self.decoders if name != "fast" or system.bundle.has_fast_decoder]
        return Comparison(system, self.sampler, self.guidance_scale, self.packaged_student, there[:decoders])

    def _watched(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, students: list[Candidate]
    ) -> dict[str, float]:
        """The metrics of a validation."""
        evaluator, budget = self._watch(trainer, pl_module)
        n = budget.settle(lambda: sum(evaluator.pace_s(candidate) for candidate in students))
        evaluator.between = leaving_together(trainer, n)
        if self._teacher_metrics is None:
            self._teacher_metrics = self._watch_teacher(trainer, pl_module, evaluator, n)
        metrics, start = dict(self._teacher_metrics), time.perf_counter()
        for candidate in students:
            row = evaluator.run(candidate, limit=local_count(trainer, n)).row
            metrics |= {f"val/{key}_{candidate.steps}": value for key, value in logged(row).items()}
        budget.spent(time.perf_counter() - start)
        return metrics

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the table and write it, with samples, into the run's folder."""
        data = data_of(trainer, "test")
        system = as_distilled(pl_module)
        galleries = galleries_of(data, system.bundle, self.galleries)
        clips = data.waveforms("test", self.limit)
        count = min(self.limit, len(clips))
        shares = shares_of(data, "test", self.limit)
        seen = warn_of_training_clips(galleries, getattr(clips, "clips", ()), "test")
        if count < self.limit:
            log.warning("evaluation: %d test clips, fewer than the limit of %d", count, self.limit)
        evaluator = self._evaluator(trainer, pl_module, clips, count, galleries, table=True)
        steps = {name: getattr(self, option) for name, option in OPTIONS.items()} | self.more_models
        keeping = keeping_of(trainer, system, evaluator, self._cache_folder(trainer))
        floor = self._floor(trainer, data, system, evaluator, keeping, count)
        outcomes = (floor[1] if floor else {}) | run_table(
            evaluator, candidates(self._comparison(pl_module), steps), self.panel_labels, self.n_panels, keeping,
            captions=local_count(trainer, self.spread), noises=self.spread_noises,
        )
        references = evaluator.suite.references()
        if floor is None or floor[0].kind != SAME_CAPTIONS:  # which is the better one
            references |= real_distance(trainer, data, evaluator, count)
        lacking = compare_outcomes(outcomes, evaluator.real, keeping.gather, self.draws, self.seed)
        real = ClipFeatures.of_ranks(keeping.gather(evaluator.real))
        prompts = {name: prompt for part in keeping.gather(dict(zip(evaluator.ids, evaluator.prompts, strict=True)))
                   for name, prompt in part.items()}
        texts = {caption: row for part in keeping.gather(evaluator.texts()) for caption, row in part.items()}
        folder, experiment = run_folder(trainer)
        names = list(evaluator.extractor.embedders)
        pl_module.log_dict(_headlines(outcomes, names), sync_dist=True)
        if not trainer.is_global_zero:
            return
        about = galleries.about if galleries else {}
        measured = real.clap_ND if real.text_audio_ND is None else real.text_audio_ND
        known = of_real_clips(real.ids, measured, prompts, texts, self.draws)
        unknown = unknown_corpus(known, evaluator.clap is not None and evaluator.clap.of_bundle)
        text = write_table(
            folder, experiment, outcomes, references, names[0],
            notes=[*described(about), *shortfalls(shares), *self._lacks(system), *lacking, *filter(None, [unknown])],
            own_captions=known,
            floor=floor[0].kind if floor else None,
            sim_aa_gallery=about, test_clips=shares, test_clips_of_the_teachers_training=seen,
            machine=machine(system.device), checkpoint=str(trainer.ckpt_path) if trainer.ckpt_path else None,
            training=training_record(trainer, pl_module), teacher=keeping.teacher,
            seed=self.seed, sampler=self.sampler.spec,
            **(evaluator.clap.record() if evaluator.clap else {"text_audio": None}),
            embedders={name: embedder.fingerprint for name, embedder in evaluator.extractor.embedders.items()},
        )
        write_samples(folder / "samples", outcomes, evaluator.prompt_of, LogMel(system.bundle.mel),
                      system.bundle.sample_rate_hz)
        say(f"\n{text}\nwritten to {folder}")

    def _watch(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[Evaluator, ClipBudget]:
        """The evaluator of the held-out clips, made at the first validation: their features do not change."""
        if self._watching is None:
            data = data_of(trainer, "validate")
            clips = data.waveforms("val", self.val_limit)
            count = min(self.val_limit, len(clips))
            galleries = galleries_of(data, as_distilled(pl_module).bundle, self.galleries)
            warn_of_training_clips(galleries, getattr(clips, "clips", ()), "validation")
            evaluator = self._evaluator(trainer, pl_module, clips, count, galleries, progress=False)
            budget = ClipBudget(self.time_budget_s, count, trainer.world_size, trainer.strategy.broadcast)
            self._watching = evaluator, budget
        return self._watching

    def _watch_teacher(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, evaluator: Evaluator, n: int
    ) -> dict[str, float]:
        teachers = candidates(self._comparison(pl_module, 1), {"teacher": self.val_teacher_steps})
        keeping = keeping_of(trainer, as_distilled(pl_module), evaluator, self._cache_folder(trainer))
        outcomes = run_table(evaluator, teachers, keeping=keeping, limit=local_count(trainer, n)) if teachers else {}
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
        table: bool = False,
    ) -> Evaluator:
        system = as_distilled(pl_module)
        networks = self._embedders(system)
        named = dict(zip(self.embedders, (network.name for network in networks), strict=True))
        also = {name: [named[network] for network in asked] for name, asked in self.metrics.items()
                if table or not metric_row(name).slow}
        recorded = table and any(steps and compared_model(name).tokens == RECORDED
                                 for name, steps in self.more_models.items())
        return build_evaluator(
            trainer, system, networks, self._clap, clips, count, galleries, self.seed, self.batch_size,
            progress and self.progress, leaving_together(trainer, count),
            system.conditioner.ids if recorded else None, also=also,
        )

    def _embedders(self, system: Distilled) -> list[Embedder]:
        """The networks of the metrics, and the CLAP that measures; read once."""
        if not self._loaded:
            self._loaded = load_embedders(system.bundle, self.embedders, self.weights)
            self._clap = measuring_clap(system.bundle, self.text_audio)
            refuse_tuned(self._clap, system, self._loaded)
        return self._loaded

    def _lacks(self, system: Distilled) -> list[str]:
        return [] if self._clap is not None else [without_clap(system.bundle, self.text_audio)]

    def _cache_folder(self, trainer: pl.Trainer) -> Path | None:
        return None if self.cache_dir is None else Path(trainer.default_root_dir) / self.cache_dir

    def _floor(
        self, trainer: pl.Trainer, data: Any, system: Distilled, evaluator: Evaluator, keeping: Keeping, count: int
    ) -> tuple[FloorClips, dict[str, Outcome]] | None:
        """Real clips through each decoder; None, with a warning, where there are too few."""
        floor = floor_clips(data, "test", self.limit, count)
        if floor is None:
            log.warning("evaluation: fewer other real clips than %d references; no floor", count)
            return None
        loader, mine = rank_loader(floor.clips, count, trainer, self.batch_size)
        batches: Iterable[Any] = loader
        if floor.again is None:
            asked = [Asked("", "")] * mine
        else:
            further = rank_loader(floor.again, min(self.spread, count), trainer, self.batch_size)[0]
            batches = itertools.chain(loader, (renamed(batch, 1) for batch in further))
            asked = evaluator.clips(captions=local_count(trainer, self.spread), noises=2)
        made_by = codecs(SystemTeacher(system, self.guidance_scale), self.decoders)
        return floor, run_floor(evaluator, floor, made_by, batches, asked, keeping)


def _headlines(outcomes: Mapping[str, Outcome], networks: Sequence[str]) -> dict[str, float]:
    """What a test logs: `test/fd_<network>_<model>_<steps>`, by the first decoder of each."""
    found: dict[str, float] = {}
    for outcome in outcomes.values():
        row = outcome.row
        for name in networks:
            if row.get(f"fd_{name}") is not None:
                found.setdefault(f"test/fd_{name}_{row['model']}_{row['steps']}", row[f"fd_{name}"])
    return found


def _present_label(label: str) -> str:
    """A label with the present name of its model."""
    name, _, steps = label.partition("@")
    return f"{present_name(name)}@{steps}"


def also_asked(
    metrics: Mapping[str, Sequence[str]], embedders: Sequence[str], **short: Sequence[str]
) -> dict[str, list[str]]:
    """The optional metrics that are asked for.

    Args:
        metrics: Networks by the metric's name.
        embedders: The networks that there are.
        **short: The same, an argument a metric.

    Returns:
        Networks by the metric's name; a metric of no network is left out.

    Raises:
        MusiccmError: A metric that is not optional, or a network that is not among the embedders.
    """
    optional = [row.name for row in optional_metrics()]
    if unknown := sorted(set(metrics) - set(optional)):
        raise MusiccmError(f"evaluation.metrics: expected names among {optional}, found {unknown}; all others are "
                           "taken without being asked for")
    found: dict[str, list[str]] = {}
    for where, asked in (("metrics.", metrics), ("", short)):
        for name, networks in asked.items():
            if unknown := sorted(set(networks) - set(embedders)):
                raise MusiccmError(f"evaluation.{where}{name}: expected names among evaluation.embedders, "
                                   f"{list(embedders)}, found {unknown}")
            found[name] = list(dict.fromkeys([*found.get(name, []), *networks]))
    return {name: networks for name, networks in found.items() if networks}


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
        Its metrics, n and latency; those that are None are left out, as is chance, which stays what it is.
    """
    return {key: float(value) for key, value in row.items() if value is not None and key not in NOT_LOGGED
            and not ((found := find(key)) and found.metric.scope == "attributes" and found.column.beside)}
