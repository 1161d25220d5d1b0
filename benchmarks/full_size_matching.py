"""Distribution matching (DMD2 with its GAN) at MusicLDM's size: work of each turn and memory, counted on the shapes.

Nothing is computed: tensors have no contents. The bytes are those of weights, gradients, moments, averages and bf16
copies, and of what autograd keeps under bf16 autocast; the backward pass's own temporaries come on top.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from musiccm.audio.windows import keyed_generator
from musiccm.commands._timing import row
from musiccm.commands.bench import load
from musiccm.models.acceleration.half import half_copy
from musiccm.models.lora import Lora
from musiccm.systems import speed
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.settings import Distillation

full_size = load(Path(__file__).with_name("full_size.py"))

BATCH, CARD_BYTES, RANK = 8, 40e9, 64
#: Numbers of steps that are rolled out; a number n takes 1 to n calls, all as likely.
STEPS = (1, 2, 4, 8)


def mean_calls(steps: tuple[int, ...] = STEPS) -> float:
    """Network calls of a roll-out, the last one included."""
    return sum((1 + n) / 2 for n in steps) / len(steps)


def one_call(system: DMD2) -> None:
    """Let roll-outs be a single call: how many there are is drawn, and tensors without contents cannot be asked."""

    def roll_out(like: Tensor, cond_BD: Any, generator: torch.Generator, trained: bool) -> Tensor:
        with torch.set_grad_enabled(trained):
            t_B = torch.full((len(like),), 999, device=like.device)
            return system.consistency("online")(torch.randn_like(like), t_B, cond_BD)

    system.roll_out = roll_out  # type: ignore[method-assign]


def turns(system: DMD2, batch: Any) -> dict[str, Callable[[], None]]:
    """The student's turn and the critic's, each with its backward pass, and one more call of a roll-out."""
    generator = keyed_generator(0, "bench")
    z0, cond_BD = batch.latents_BCTF, batch.text_BD

    def student() -> None:
        with system.critics_frozen():
            system.objective(batch, z0, cond_BD, generator)[0].backward()
        system.zero_grad(set_to_none=True)

    def critic() -> None:
        system.critic_loss(batch, z0, cond_BD, generator)[0].backward()
        system.zero_grad(set_to_none=True)

    def call() -> None:
        with torch.no_grad():
            system.roll_out(z0, cond_BD, generator, trained=False)

    return {"student": student, "critic": critic, "call": call}


def weight_bytes(system: DMD2) -> int:
    """All weights held once, gradients and both moments of student and critic, and the teacher's bf16 copy."""
    held = {id(t): t.numel() * t.element_size() for t in chain(system.parameters(), system.buffers())}
    trained = sum(p.numel() for p in chain(system._student_parameters(), system._critic_parameters()))
    copies = sum(p.numel() * 2 for p in system._half["teacher"].parameters() if p.dtype == torch.bfloat16)
    return sum(held.values()) + copies + 3 * 4 * trained + int(4 * full_size.UNSEEN)


def kept_bytes(system: DMD2, batch: Any, mode: FakeTensorMode) -> int:
    """What autograd keeps between the passes of the dearer turn, on a GPU under bf16 autocast."""
    weights = {t.untyped_storage()._cdata for m in (system, *system._half.values())
               for t in chain(m.parameters(), m.buffers())}
    most = 0
    for turn in ("student", "critic"):
        kept: dict[int, Any] = {}

        def keep(tensor: Tensor, kept: dict[int, Any] = kept) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)  # `torch.autocast` would refuse where there is no GPU
        try:
            with (mode, full_size.as_on_a_gpu(),
                  torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)):
                generator = keyed_generator(0, "bench")
                objective = system.objective if turn == "student" else system.critic_loss
                with system.critics_frozen() if turn == "student" else nullcontext():
                    result = objective(batch, batch.latents_BCTF, batch.text_BD, generator)
        finally:
            torch.set_autocast_enabled("cuda", False)
        most = max(most, sum(storage.nbytes() for key, storage in kept.items() if key not in weights))
        del result
    return most


def run(bundle: str) -> list[dict]:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        path = full_size.write_bundle(Path(folder) / "full", bundle)
        for name, lora in (("whole critic", None), (f"critic of rank {RANK}", Lora(RANK, float(RANK)))):
            rows += counted(DMD2(str(path), Distillation(weight=1.0), Matching(critic_lora=lora)), name)
    return rows


def counted(system: DMD2, name: str) -> list[dict]:
    """Rows of one system; its tensors lose their contents."""
    one_call(system)
    system._trainer = type("Stub", (), {"global_step": 0})()  # type: ignore[assignment]
    one = full_size.training.batches(system, 1)[0]
    system.conditioner.null(1)
    system._half = {"teacher": half_copy(system.teacher, [system.schedule])}
    weights = weight_bytes(system)  # of the real tensors, which know what they share
    system._half = {}
    mode, rows = FakeTensorMode(allow_non_fake_inputs=True), []
    full_size.make_fake([system], mode, "cpu")
    if system.matching.critic_lora is None:
        with mode:
            work = {turn: full_size.giga_operations(function) for turn, function in turns(system, one).items()}
        further = (mean_calls() - 1) * work["call"]
        student, critic = work["student"] + further, work["critic"] + further
        rows = [row("a network call, one clip", [work["call"]], [], "GFLOP"),
                row(f"student's turn, {mean_calls():.3g} calls a roll-out", [student], [], "GFLOP"),
                row(f"critic's turn, {mean_calls():.3g} calls a roll-out", [critic], [], "GFLOP"),
                row("an update of the student with 3 of the critic, a clip in each batch", [student + 3 * critic], [],
                    "GFLOP")]
    full_size.make_fake([system], mode, "cuda")
    many = type(one)(*(x.repeat(BATCH, *[1] * (x.ndim - 1)) if torch.is_tensor(x) else x * BATCH
                       for x in (one.latents_BCTF, one.text_BD, one.audio_BD, one.ids, one.captions)))
    with mode:
        system.conditioner._remembered["", None] = many.text_BD[:1].to("cuda")
        many = many.to("cuda")
    system._half = {"teacher": half_copy(system.teacher, [system.schedule])}
    rows.append(row(f"weights, gradients, moments, averages, {name}", [weights / 1e9], [], "GB"))
    for case in ("", ", recomputing activations"):
        if case:
            speed.recompute_activations([system.student, system.critic.unet])
        kept = kept_bytes(system, many, mode)
        rows += [row(f"of a step activations, {name}, batch {BATCH}, bf16{case}", [kept / 1e9], [], "GB"),
                 row(f"memory of a step, {name}, batch {BATCH}, bf16{case}, against a 40 GB card",
                     [(kept + weights) / 1e9], [CARD_BYTES / 1e9], "GB", 1.0)]
    return rows
