"""One run on as many processes as there are, side by side or alone: what tests/systems/test_parallel.py compares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import forked
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch
from musiccm.models.lora import Lora
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.parallel import whole
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase
from musiccm.systems.sharded import Sharded

#: Global batch; on two processes each has the eight that a group of the heads' local batch norm holds.
GLOBAL_BATCH, STEPS = 16, 3
CASES = {
    "adversarial": {"adversarial": Adversarial(crop_frames=4, head_width=8, start_step=1),
                    "optimization": Optimization(accumulate=2)},
    "distillation": {"adversarial": Adversarial(weight=0.0), "optimization": Optimization(lr=1e-3)},
    "lora": {"adversarial": Adversarial(weight=0.0), "optimization": Optimization(lr=1e-3)},
    "matching": {"matching": Matching(critic_steps=1, critic_lr=1e-5, steps=(1, 2))},
}
#: What cannot be sharded.
WHOLE = ("lora", "matching")
#: Batches after which the adversarial case is saved: between the two of its third step.
SAVED_AT = 5


class Witness(Callback):
    """Keeps the gradients that every optimizer step was made from, and saves in the middle of a step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.watched: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            names = {id(p): name for name, p in pl_module.named_parameters()}

            def keep(optimizer: Any, *_: Any, names: dict[int, str] = names) -> None:
                held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                self.gradients.append({names[id(p)]: p.grad.clone() for p in held})

            optimizer.register_step_pre_hook(keep)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.watched.append({name: float(value) for name, value in outputs["watched"].items()})
        if pl_module.batches_seen == SAVED_AT:
            trainer.save_checkpoint(self.path)


def make_batches(width: int, shape: tuple[int, ...], rank: int, world: int) -> list[LatentBatch]:
    """Every process' rows of the same global batches."""
    generator = torch.Generator().manual_seed(5)
    size = GLOBAL_BATCH // world
    rows = slice(rank * size, (rank + 1) * size)
    batches = []
    for number in range(8):
        latents = torch.randn((GLOBAL_BATCH, *shape), generator=generator)
        text, audio = torch.nn.functional.normalize(torch.randn((2, GLOBAL_BATCH, width), generator=generator), dim=-1)
        ids = [f"{number}-{i}" for i in range(GLOBAL_BATCH)][rows]
        batches.append(LatentBatch(latents[rows], text[rows], audio[rows], ids, ["x"] * size))
    return batches


def fit(case: str, bundle: str, out: Path, strategy: str, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Train one case and return everything that must be alike."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(rank)  # the heads must start alike on all processes all the same
    system: Any = DMD2 if case == "matching" else MusicCM
    lora = Lora(4, 8.0) if case == "lora" else None
    model = system(bundle, Distillation(warm_start_steps=1, curriculum=[Phase(1.0, 100, 1)], lora=lora), **CASES[case])
    batches = make_batches(model.conditioner.width, model.bundle.latent_shape(), rank, world)
    if ckpt_path is not None:  # a plain loader starts its epoch anew; what was trained on is left out by hand
        batches = batches[SAVED_AT:] + batches[:SAVED_AT]
    witness = Witness(out / f"{case}.ckpt")
    parallel: Any = strategy if world > 1 else "auto"
    if parallel == "fsdp":
        parallel = Sharded()
    trainer = Trainer(
        max_steps=STEPS, accelerator="cpu", devices=world, strategy=parallel, logger=False,
        callbacks=[witness], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=out,
    )  # fmt: skip
    trainer.fit(model, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return {
        "state": {key: whole(value) for key, value in model.state_dict().items() if not key.startswith("frozen.")},
        "optimizers": [gathered(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "gradients": witness.gradients, "watched": witness.watched, "step": trainer.global_step,
    }  # fmt: skip


def gathered(state: Any) -> Any:
    """An optimizer's state with whole tensors."""
    return tree_map(lambda value: whole(value) if isinstance(value, torch.Tensor) else value, state)


def run(bundle: str, out: Path, strategy: str) -> dict[str, Any]:
    """Train every case, and one from its checkpoint."""
    cases = [case for case in CASES if strategy != "fsdp" or case not in WHOLE]
    found = {case: fit(case, bundle, out, strategy) for case in cases}
    found["resumed"] = fit("adversarial", bundle, out, strategy, out / "adversarial.ckpt")
    if strategy == "fsdp":
        # Other processes' too: what DDP saved is gone on from, sharded.
        found["from_ddp"] = fit("adversarial", bundle, out, strategy, out.parent / "ddp.ckpt")
        return {case: {key: value for key, value in kept.items() if key != "gradients"} for case, kept in found.items()}
    return found


def worker(rank: int, bundle: str, out: Path, strategy: str, port: int) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ.update(forked.rank_variables(rank, 2, port))
    torch.save(run(bundle, out, strategy), out / f"rank{rank}.pt")
