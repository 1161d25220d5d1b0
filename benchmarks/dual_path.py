"""The small dual-path network at ten steps: a clip and half a minute, guided and not, and its recurrence against a GRU.

Weights are random: what music costs does not depend on them. Times are of the denoiser alone, without language model
and decoder; CPU seconds are of all threads together, which other work on the machine touches less than the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from musiccm.commands._timing import row
from musiccm.config import load_experiment
from musiccm.diffusion import Angle, Condition
from musiccm.models.melody.dual_path import DualPath
from musiccm.models.melody.frame_denoiser import FrameDenoiser
from musiccm.models.melody.recurrence import BidirectionalSRU
from musiccm.samplers import ChunkWindows, Evaluations, FrameNoise, fill_piece, teacher_stepper, tokens_of

STEPS, SCALE, FRAMES_A_SECOND = 10, 2.5, 250
#: Seconds, chunk in frames, guidance scale.
PIECES = ((5.12, 320, 1.0), (5.12, 320, SCALE), (30.0, 960, 1.0), (30.0, 960, SCALE), (30.0, 320, SCALE))


def timed(work: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Seconds by the clock and of the CPU of each repeat, after one that is not counted."""
    work()
    found = []
    for _ in range(repeats):
        clock, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - clock, time.process_time() - cpu))
    return found


def piece(network: DualPath, seconds: float, chunk: int, scale: float) -> Evaluations:
    """Make one piece; what it took."""
    c, frames = network.shape, round(seconds * FRAMES_A_SECOND)
    count = frames // c.frames_per_token
    cond = Condition(torch.randn(1, count, c.token_width), torch.ones(1, count, dtype=torch.bool))
    none = Condition(torch.zeros(1, 1, c.token_width), torch.zeros(1, 1, dtype=torch.bool))
    spent = Evaluations(tokens=count)
    denoiser = FrameDenoiser(network, Angle(), "v_prediction")
    stepper = spent.counting(teacher_stepper(denoiser, Angle(), lambda n: none, STEPS, scale,
                                             {"name": "ddim", "schedule": "angle_proposed"}))
    fill_piece(stepper, ChunkWindows(c.frames, chunk, c.frames_per_token), tokens_of(cond, frames, c.frames_per_token),
               [FrameNoise(0, (c.channels, c.frames, 1))], torch.zeros(1, c.channels, frames, 1),
               torch.zeros(frames, dtype=torch.bool))
    return spent


@torch.no_grad()
def run(bundle: str) -> list[dict]:
    """Rows; `bundle` is of no account."""
    network = DualPath(load_experiment("melody/stages/dual_path")["model"]["init_args"]["dual_path"]).eval()
    c = network.shape
    x_KND = torch.randn(c.segment, c.frames * 2 // c.segment + 1, c.width)
    ours = nn.Sequential(*[BidirectionalSRU(c.width, c.recurrent_width, c.segment) for _ in range(c.fine_layers)])
    gru = nn.GRU(c.width, c.recurrent_width, c.fine_layers, bidirectional=True)
    sides = [[cpu for _, cpu in timed(lambda side=side: side(x_KND), 20)] for side in (ours, gru)]
    rows = [row("recurrence of a fine path, against nn.GRU", sides[0], sides[1], "CPU s")]
    for seconds, chunk, scale in PIECES:
        spent: list[Evaluations] = []
        times = timed(lambda s=seconds, c=chunk, g=scale, to=spent: to.append(piece(network, s, c, g)), 3)
        case = f"{seconds:g} s at {STEPS} steps, chunk {chunk}, guidance scale {scale:g}: {spent[0]}"
        rows += [row(case, [clock for clock, _ in times], [], "s"), row(case, [cpu for _, cpu in times], [], "CPU s")]
    return rows
