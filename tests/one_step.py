"""One real training step of a small system, and what it learned from: losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from musiccm.data.batch import LatentBatch
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation, Optimization, Phase


@dataclass
class Step:
    """What a step came to."""

    model: MusicCM
    losses: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)


class HalfOps(TorchDispatchMode):
    """Names of the operations that saw or made a tensor of 16 bits, below autocast and in backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bfloat16, torch.float16) for leaf in leaves):
            self.found.append(str(func))
        return result


def batch_of(model: MusicCM, size: int = 2) -> LatentBatch:
    """Latents and conditions drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(5)

    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(size, model.conditioner.width, generator=generator), dim=1)

    latents = torch.randn(size, *model.bundle.latent_shape(), generator=generator)
    raw = model.codec.denormalise(latents)
    return LatentBatch(raw, unit(), unit(), [str(i) for i in range(size)], ["x"] * size)


def one_step(
    bundle: str,
    tmp_path: Any,
    precision: Any = "32-true",
    adversarial: Adversarial | None = None,
    around: Callable[[str], AbstractContextManager] = lambda name: nullcontext(),
    size: int = 2,
    system: type[MusicCM] = MusicCM,
    device: str = "cpu",
    **optimization: Any,
) -> Step:
    """Train for one step.

    Args:
        bundle: The teacher's.
        tmp_path: Where Lightning may write.
        precision: Lightning's.
        adversarial: By default a crop of half of `tests.tiny_bundle`'s clips.
        around: `name -> context` that the methods `_student_step` and `_discriminator_step` run in.
        size: Of the batch.
        system: What is trained.
        device: Where; a GPU or, for any other name, the CPU.
        **optimization: Fields of `Optimization`.

    Returns:
        The losses, and the gradients that the optimizers were given, after clipping.
    """
    torch.manual_seed(0)
    model = system(
        bundle,
        distillation=Distillation(curriculum=[Phase(1.0, 100, 1)]),
        adversarial=adversarial or Adversarial(crop_frames=4, head_width=8),
        optimization=Optimization(**{"lr": 1e-3, "clip_norm": 1e9, **optimization}),
    )
    step = Step(model)
    for name in ("_student_step", "_discriminator_step"):
        setattr(model, name, _inside(around, name, getattr(model, name)))
    configure = model.configure_optimizers
    model.configure_optimizers = lambda: [_noting(optimizer, model, step) for optimizer in configure()]
    model._log_parts = lambda parts, *_: step.losses.update({name: float(value) for name, value in parts.items()})
    trainer = Trainer(
        max_steps=1, accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=precision, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )
    trainer.fit(model, DataLoader([batch_of(model, size)], batch_size=None))
    return step


def _inside(around, name, method):
    def wrapped(*args):
        with around(name):
            return method(*args)

    return wrapped


def _noting(optimizer: torch.optim.Optimizer, model: MusicCM, step: Step) -> torch.optim.Optimizer:
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def note(*_: Any) -> None:
        for group in optimizer.param_groups:
            step.gradients |= {names[id(p)]: p.grad.clone() for p in group["params"] if p.grad is not None}

    optimizer.register_step_pre_hook(note)
    return optimizer
