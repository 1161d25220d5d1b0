"""What every stage shares: optimizer, learning-rate curve, EMA, clock, quality file, saving into the bundle."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from musiccm.audio.windows import keyed_generator
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import resolve_bundle, update_json
from musiccm.models.ema import Ema
from musiccm.systems.checkpoint_fit import (
    argument_defaults,
    arguments,
    completed,
    differences,
    hints,
    plain,
    refuse,
)
from musiccm.systems.curve import learning_rate_factor
from musiccm.systems.parallel import mean_over_ranks, warn
from musiccm.systems.ranges import check_ranges
from musiccm.systems.step_log import StepLog
from musiccm.texts import read_json

#: What a resumed stage may change: where the bundle lies, and settings of what is measured or written at the end.
MAY_CHANGE = ("bundle", "recall_pairs", "cost_frames", "moments_batches", "tagger_bundle", "divisor_quantile")

#: How noise is drawn (`systems.philox`): what a checkpoint states, so that a run that goes on with other noise says so.
NOISE = "philox4x32-10"


def warmup_cosine(warmup_steps: int, max_steps: int, final_share: float = 0.0) -> Callable[[int], float]:
    """Learning-rate factor: linear to 1 over the warm-up, then half a cosine to `final_share` at `max_steps`."""

    def factor(step: int) -> float:
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return learning_rate_factor(step, warmup_steps, progress, final_share=final_share)

    return factor


class Stage(pl.LightningModule):
    """Base of the systems that train one part of a bundle.

    A subclass sets `stage`, assigns `self.part` (the module that is trained) and then calls `finish_init`; it
    implements `loss`, `measure`, `summarise` and `save`. Randomness comes from `generator(purpose)`, keyed by seed,
    rank and step, so a resumed run draws what the uninterrupted one would have drawn. Noise is computed where the batch
    is, by `parallel.normal_like`: the same on every device.

    Args:
        bundle: directory of the bundle; the part is written into it when training ends.
        lr: peak learning rate of AdamW.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: AdamW's, on matrices and kernels only.
        betas: AdamW's.
        ema_decay: decay of the weight average that is validated and saved; null keeps the last weights.
        seed: seed of masks, noise and augmentation.
        start_from: a bundle whose part this one starts from: to fine-tune it, or to go on with other settings. Its
            steps and seconds are counted in the quality file under `before`.
    """

    stage: str
    settings: dict[str, Any]
    """All arguments by name, defaults filled in: what a checkpoint states and a resumed run must share."""
    part: nn.Module
    part_name: str | None = None
    """The folder of the bundle that `part` is written to as it is; None where only some of it is."""
    draws_noise: bool = False
    """Whether its losses draw noise by `parallel.normal_like`."""

    kinds: dict[str, str] = {}
    """Ranges of a subclass' own settings, as `check_ranges` takes them."""

    def __init__(
        self,
        bundle: str = "data/bundle-work",
        lr: float = 1e-3,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.99),
        ema_decay: float | None = None,
        seed: int = 0,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        self.settings = arguments(inspect.currentframe(), Stage)
        kinds = {"positive": "lr", "index": "warmup_steps", "whole": "seed", "not_negative": "weight_decay",
                 "betas": "betas", "decay": "ema_decay"}
        check_ranges("model.init_args.", self.settings, ["ema_decay"], **kinds)
        check_ranges("model.init_args.", self.settings, **self.kinds)
        self.bundle, self.start_from = Path(bundle), start_from
        self.lr, self.warmup_steps, self.weight_decay = lr, warmup_steps, weight_decay
        self.betas = (betas[0], betas[1])
        self.ema_decay, self.seed = ema_decay, seed
        self.ema: Ema | None = None
        self.train_seconds = 0.0
        self._clock: float | None = None
        self._measured: list[dict[str, Any]] = []
        #: What the last validation of a fit found; it is written with the part, of which it tells.
        self._record: dict[str, Any] | None = None
        self._before: dict[str, float] | None = None
        self.step_log = StepLog()

    def finish_init(self) -> None:
        """Give `part` the weights to start from, then build its average.

        Raises:
            MusiccmError: `start_from` has no such part, or one of another shape.
        """
        if self.start_from is not None:
            start_from(self.part, self.start_from, self.part_name, self.stage)
            # now: the bundle that it starts from may be the one that it writes
            self._before = earlier_runs(self.start_from, self.stage)
        if self.ema_decay is not None:
            self.ema = Ema(self.part, self.ema_decay)

    # what a subclass says

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and logged parts of one batch."""
        raise NotImplementedError

    def measure(self, batch: Any, generator: torch.Generator) -> dict[str, Any]:
        """What one validation batch contributes; tensors with the batch first, or floats to be averaged."""
        raise NotImplementedError

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Held-out quality from all validation batches: a JSON-ready dictionary with `n`."""
        raise NotImplementedError

    def save(self) -> None:
        """Write the trained part into the bundle."""
        raise NotImplementedError

    # shared

    @property
    def best(self) -> nn.Module:
        """The weights that are validated and saved: the average if there is one."""
        return self.part if self.ema is None else self.ema.module

    def generator(self, *purpose: int | str) -> torch.Generator:
        """A CPU generator keyed by seed, rank and `purpose`: for the few numbers that the host draws, and for keys."""
        return keyed_generator(self.seed, self.stage, self.global_rank, *purpose)

    def trained(self) -> list[nn.Module]:
        """The modules that the optimizer trains: the part, and what a subclass needs to train it and then drops."""
        return [self.part]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW without decay on biases and norms; the curve runs over the trainer's `max_steps`."""
        named = [p for module in self.trained() for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in named if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)
        curve = warmup_cosine(self.warmup_steps, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curve)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One batch; logs every part under `train/`.

        Returns:
            `loss`, and `watched`, the means over all processes of everything that must stay finite.
        """
        total, parts = self.loss(batch, self.generator("train", self.global_step, batch_idx))
        scalars = {name: value for name, value in parts.items() if value.ndim == 0}
        watched = mean_over_ranks({**scalars, "loss": total})
        self.step_log.write(self, {name: watched[name] for name in [*scalars, "loss"]}, {})
        return {"loss": total, "watched": watched}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average: before any checkpoint callback runs, so that checkpoints hold both in step."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.part)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._clock = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log samples per second of the step alone (loading and validation excluded)."""
        if self._clock is not None:
            elapsed = time.perf_counter() - self._clock
            self.train_seconds += elapsed
            self.step_log.write(self, {}, {"samples_per_s": len(batch.ids) / elapsed})

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Refuse: a stage is measured on held-out clips of `train/`, and `musiccm pack` measures the parts on `test/`.

        Raises:
            MusiccmError: always.
        """
        raise MusiccmError(
            "musiccm test: a stage has no test loop; `musiccm validate` measures it, `musiccm pack` the whole bundle"
        )

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of the last validation."""
        self._measured = []

    @torch.no_grad()
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure one held-out batch with the same draws at every validation."""
        self._measured.append(self.measure(batch, self.generator("validate", batch_idx)))

    def on_validation_epoch_end(self) -> None:
        """Log the held-out quality; a fit writes it to `<bundle>/quality/<stage>.json` at its end, others at once."""
        measured = self._gathered()
        self._measured = []
        if not measured:
            return
        quality = self.summarise(measured)
        scalars = {f"val/{key}": float(v) for key, v in quality.items() if isinstance(v, int | float) and key != "n"}
        self.log_dict(scalars, batch_size=1)
        if self.trainer.sanity_checking or not self.trainer.is_global_zero:
            return
        record = {
            "stage": self.stage,
            "steps": self.global_step,
            "train_seconds": round(self.train_seconds, 4),
            "parameters": sum(p.numel() for p in self.part.parameters()),
            "seed": self.seed,
            **({} if self._before is None else {"before": self._before}),
            **quality,
        }
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._record = record
        else:
            self._write(record)

    @property
    def _quality_file(self) -> Path:
        return self.bundle / "quality" / f"{self.stage}.json"

    def _write(self, record: dict[str, Any]) -> None:
        update_json(self._quality_file, record)

    def _gathered(self) -> list[dict[str, Any]]:
        """What all ranks measured, on every rank."""
        if self.trainer.world_size == 1:
            return self._measured
        own = [{k: v.cpu() if isinstance(v, Tensor) else v for k, v in m.items()} for m in self._measured]
        parts: list[list[dict[str, Any]]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(parts, own)
        return [m for part in parts for m in part]

    def on_fit_end(self) -> None:
        """Write part and quality when training has run to its end; an interrupted run leaves only its checkpoint.

        Of a run that was at its end already nothing is measured anew, and its checkpoint is of before its last
        validation: what was written then stays.
        """
        if self.trainer.is_global_zero and not self.trainer.interrupted:
            self.save()
            if self._record is not None and (self._clock is not None or not self._quality_file.exists()):
                self._write(self._record)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock, so that the quality file counts all the seconds of a resumed run, and the settings."""
        checkpoint["train_seconds"] = self.train_seconds
        checkpoint["stage"] = self._identity()
        checkpoint["stage_quality"] = {"record": self._record, "before": self._before}
        checkpoint["stage_noise"] = NOISE if self.draws_noise else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the clock up again; refuse to go on under other settings.

        Raises:
            MusiccmError: Names each setting that differs, and both values.
        """
        self.train_seconds = checkpoint["train_seconds"]
        kept = checkpoint.get("stage_quality", {"record": None, "before": self._before})
        self._record, self._before = kept["record"], kept["before"]
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        path, stated, mine = str(self._trainer.ckpt_path or "the checkpoint"), checkpoint.get("stage"), self._identity()
        if self.draws_noise and checkpoint.get("stage_noise") != NOISE:
            warn(f"{path} was written by a version that drew noise in another way ({NOISE} here): the run goes on with "
                 "other noise than it would have had there, of the same kind")
        if stated is None:
            warn(f"{path} was written by an older version, which did not note a stage's settings. They are taken to "
                 "be as in this run")
            return
        # settings that came after it: their defaults are what it was trained with
        defaults = argument_defaults(type(self), Stage)
        kinds = {**hints(Stage.__init__), **hints(type(self).__init__)}
        stated = {key: completed(value, kinds.get(key)) for key, value in stated.items()}
        refuse(path, differences({**{key: defaults[key] for key in mine if key in defaults}, **stated}, mine))

    def _identity(self) -> dict[str, Any]:
        settings = {key: plain(value) for key, value in self.settings.items() if key not in MAY_CHANGE}
        return {"stage": self.stage, **settings}


def start_from(part: nn.Module, bundle: str, part_name: str | None, stage: str) -> None:
    """Copy a bundle's part into an untrained one.

    Args:
        part: the module, of the part's own shape.
        bundle: directory, packaged name or hub id.
        part_name: the part's folder.
        stage: the stage, for the message.

    Raises:
        MusiccmError: the stage trains more than the bundle keeps, or the shapes differ.
    """
    if part_name is None:
        raise MusiccmError(f"start_from: the stage {stage} trains more than a bundle keeps of it; leave start_from out")
    weights = Bundle.from_pretrained(bundle, [part_name]).part(part_name).state_dict()
    try:
        part.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise MusiccmError(
            f"start_from: {part_name} of {bundle} is of another shape than this file describes ({reason})"
        ) from None


def earlier_runs(bundle: str, stage: str) -> dict[str, float]:
    """Steps and seconds that went into a part before, as far as its bundle's quality files tell."""
    folder = resolve_bundle(bundle)
    path, packed = folder / "quality" / f"{stage}.json", folder / "quality.json"
    if path.is_file():
        found = read_json(path, "a stage's quality")
    elif packed.is_file():
        found = read_json(packed, "a packed bundle's quality")["stages"].get(stage, {})
    else:
        return {}
    if "steps" not in found:
        return {}
    before = found.get("before", {})
    return {key: found.get(key, 0) + before.get(key, 0) for key in ("steps", "train_seconds")}


def mean_of(measured: list[dict[str, Any]], key: str) -> float:
    """Mean over all items of a per-item tensor that every batch measured under `key`."""
    return torch.cat([m[key] for m in measured]).double().mean().item()
