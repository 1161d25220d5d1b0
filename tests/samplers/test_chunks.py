"""Held frames, continuation and holes: old frames bit by bit, the published algorithm, any length, what it cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musiccm.diffusion import Angle, Condition, schedule_angles
from musiccm.errors import MusiccmError
from musiccm.models.melody.dual_path import DualPath
from musiccm.models.melody.frame_denoiser import FrameDenoiser
from musiccm.samplers import (
    INITIAL,
    ChunkWindows,
    Evaluations,
    FrameNoise,
    Guidance,
    Lcm,
    Stepper,
    fill,
    fill_piece,
    holding,
    sample_noise,
    seeded_noise_fn,
    stream_piece,
    teacher_stepper,
    tokens_of,
)

C, WINDOW, CHUNK, PER, WIDTH = 4, 40, 10, 5, 6
WINDOWS = ChunkWindows(WINDOW, CHUNK, PER)


@pytest.fixture(scope="module")
def network() -> DualPath:
    generator = torch.Generator().manual_seed(0)
    network = DualPath({
        "channels": C, "width": 16, "merged": [8, 2], "segment": 8, "heads": 2, "coarse_layers": 1, "feed_forward": 16,
        "recurrent_width": 8, "angle_width": 8, "token_width": WIDTH, "frames_per_token": PER, "frames": WINDOW})
    with torch.no_grad():
        network.out.weight.normal_(std=0.3, generator=generator)
    return network.eval()


def null(count: int) -> Condition:
    return Condition(torch.zeros(1, 1, WIDTH), torch.zeros(1, 1, dtype=torch.bool))


def make_stepper(network: nn.Module, steps: int = 4, scale: float = 2.5, sampler: Any = None) -> Stepper:
    denoiser = FrameDenoiser(network, Angle(), "v_prediction")  # type: ignore[arg-type]
    return teacher_stepper(denoiser, Angle(), null, steps, scale,
                           sampler or {"name": "ddim", "schedule": "angle_proposed"})


def make_tokens(frames: int, batch: int = 1) -> Condition:
    return Condition(torch.randn(batch, frames // PER, WIDTH), torch.ones(batch, frames // PER, dtype=torch.bool))


def noises(batch: int = 1) -> list[FrameNoise]:
    return [FrameNoise(seed, (C, WINDOW, 1)) for seed in range(batch)]


def held_before(frames: int, total: int) -> Tensor:
    return torch.arange(total) < frames


class Spy(nn.Module):
    """A network of velocities that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, pooled: Any = None, **more: Any) -> tuple:
        self.asked.append((z.clone(), more["angle_BM"].clone(), tokens.clone()))
        return (torch.randn(z.shape) * self.scale,)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm-solver++", "lcm"])
def test_whatever_the_sampler_does_held_frames_stay_and_are_told_to_be_clean(sampler: str) -> None:
    spy = Spy()
    made = make_stepper(spy, sampler=None if sampler == "lcm" else {"name": sampler, "schedule": "angle_proposed"})
    if sampler == "lcm":  # fresh noise between the steps
        made = Stepper(made.network, made.process, made.timesteps, Lcm(0.7), Guidance(null, 2.5))
    clean, held = torch.randn(2, C, WINDOW, 1), held_before(30, WINDOW)
    with torch.no_grad():
        found = holding(made, clean, held).sample(make_tokens(WINDOW, 2), torch.randn(2, C, WINDOW, 1),
                                                  seeded_noise_fn([1, 2], (C, WINDOW, 1)))
    assert torch.equal(found[:, :, :30], clean[:, :, :30])
    assert torch.isfinite(found).all() and not torch.equal(found[:, :, 30:], clean[:, :, 30:])
    angles = schedule_angles(4, "proposed")
    assert len(spy.asked) == (7 if sampler == "heun" else 4)
    for z, angle, _ in spy.asked:
        assert torch.equal(z[:, :, :30], clean.repeat(2, 1, 1, 1)[:, :, :30])
        assert (angle[:, :30] == 0).all()
        assert (angle[:, 30:] == angle[0, -1]).all() and min(abs(angle[0, -1] - a) for a in angles) < 1e-6


def by_hand(
    network: DualPath, old: Tensor, old_tokens: Tensor, new_tokens: Tensor, eps: Tensor, scale: float
) -> Tensor:
    """MeLoDy's algorithm 2, as printed, but that frames at angle 0 are not rotated; the velocity is guided."""
    saved, z = old[:, :, :CHUNK], torch.cat([old[:, :, CHUNK:], eps], dim=2)
    tokens = torch.cat([old_tokens[:, CHUNK // PER :], new_tokens], dim=1)
    there = torch.ones(tokens.shape[:2], dtype=torch.bool)
    steps = 4
    delta = math.pi / 2
    for t in range(steps, 0, -1):
        angle = torch.zeros(1, WINDOW)
        angle[:, -CHUNK:] = delta
        v_c, v_u = (network(z, angle[:, 0], tokens, mask, angle_BM=angle)[0] for mask in (there, ~there))
        v = scale * v_c + (1 - scale) * v_u
        omega = math.pi / (6 * steps) + 2 * math.pi * t / (3 * steps * (steps + 1))
        new = math.cos(omega) * z - math.sin(omega) * v
        z = torch.cat([z[:, :, :-CHUNK], new[:, :, -CHUNK:]], dim=2)
        delta -= omega
    return torch.cat([saved, z], dim=2)


@torch.no_grad()
def test_a_continuation_is_the_papers_algorithm(network: DualPath) -> None:
    old, tokens = torch.randn(1, C, WINDOW, 1), make_tokens(WINDOW + CHUNK)
    total = WINDOW + CHUNK
    assert tokens.tokens_BLD is not None
    eps = noises()[0](INITIAL, WINDOW, total)[None]
    expected = by_hand(network, old, tokens.tokens_BLD[:, : WINDOW // PER], tokens.tokens_BLD[:, WINDOW // PER :], eps,
                       2.5)
    piece = torch.cat([old, torch.full((1, C, CHUNK, 1), float("nan"))], dim=2)
    found = fill_piece(make_stepper(network), WINDOWS, tokens_of(tokens, total, PER), noises(), piece,
                       held_before(WINDOW, total))
    assert torch.equal(found[:, :, :WINDOW], old)
    torch.testing.assert_close(found[:, :, WINDOW:], expected[:, :, WINDOW:], atol=2e-5, rtol=0)


class Constant(nn.Module):
    """The exact denoiser of clips whose frames are all alike, N(0, 1): what is held, else the posterior mean."""

    def forward(self, z: Tensor, t: Tensor, cond: Any, held_BT: Tensor | None = None) -> Tensor:
        process, frames = Angle(), z.shape[2]
        if held_BT is not None:
            held = held_BT[:, None, :, None]
            return ((z * held).sum(2, keepdim=True) / held.sum(2, keepdim=True)).expand_as(z)
        alpha, sigma = (level(t)[:, None, None, None] for level in (process.alpha, process.sigma))
        return (alpha * z.sum(2, keepdim=True) / (sigma**2 + frames * alpha**2)).expand_as(z)


@torch.no_grad()
def test_music_of_any_length_goes_on_from_what_is_there() -> None:
    stepper = teacher_stepper(Constant(), Angle(), null, 5, 1.0)
    total = 95
    found = fill_piece(stepper, WINDOWS, tokens_of(make_tokens(total, 2), total, PER), noises(2),
                       torch.zeros(2, C, total, 1), torch.zeros(total, dtype=torch.bool))
    torch.testing.assert_close(found, found[:, :, :1].expand_as(found), atol=1e-5, rtol=0)
    assert found[0, 0, 0] != found[1, 0, 0]


@torch.no_grad()
def test_a_piece_of_one_window_is_plain_sampling_and_a_stream_the_same_as_the_whole(network: DualPath) -> None:
    stepper, cond = make_stepper(network), make_tokens(WINDOW, 2)
    piece, none = torch.zeros(2, C, WINDOW, 1), torch.zeros(WINDOW, dtype=torch.bool)
    found = fill_piece(stepper, WINDOWS, tokens_of(cond, WINDOW, PER), noises(2), piece, none)
    assert torch.equal(found, stepper.sample(cond, sample_noise([0, 1], (C, WINDOW, 1))))
    total = 85
    cond = make_tokens(total, 2)
    for known in (0, 4, 12, 55):
        old = torch.randn(2, C, known, 1)
        piece = torch.cat([old, torch.zeros(2, C, total - known, 1)], dim=2)
        whole = fill_piece(stepper, WINDOWS, tokens_of(cond, total, PER), noises(2), piece, held_before(known, total))
        assert torch.equal(whole[:, :, :known], old)
        parts = list(stream_piece(stepper, WINDOWS, tokens_of(cond, total, PER), noises(2), (C, 1), total,
                                  old if known else None))
        assert torch.equal(torch.cat([old, *parts], dim=2), whole)
        assert parts[0].shape[2] == (WINDOW - known if known < WINDOW - CHUNK else CHUNK)
    # without end: as many as are asked for
    endless = stream_piece(stepper, WINDOWS, lambda first, last: make_tokens((last - first) * PER), noises(), (C, 1))
    assert [next(endless).shape[2] for _ in range(3)] == [WINDOW, CHUNK, CHUNK]


@torch.no_grad()
def test_a_piece_does_not_depend_on_those_beside_it(network: DualPath) -> None:
    stepper, total = make_stepper(network), 60
    cond, none = make_tokens(total, 2), torch.zeros(total, dtype=torch.bool)
    together = fill_piece(stepper, WINDOWS, tokens_of(cond, total, PER), noises(2), torch.zeros(2, C, total, 1), none)
    for i in range(2):
        alone = fill_piece(stepper, WINDOWS, tokens_of(cond[i : i + 1], total, PER), noises(2)[i : i + 1],
                           torch.zeros(1, C, total, 1), none)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("first", "last"), [(37, 43), (2, 9), (70, 77), (20, 59)])
def test_a_hole_is_mended_and_all_around_it_stays(network: DualPath, first: int, last: int) -> None:
    total = 80
    music, held = torch.randn(1, C, total, 1), torch.ones(total, dtype=torch.bool)
    held[first:last] = False
    broken = torch.where(held[:, None], music, float("nan"))
    cond = tokens_of(make_tokens(total), total, PER)
    found = fill_piece(make_stepper(network), WINDOWS, cond, noises(), broken, held)
    assert torch.equal(found[:, :, held], music[:, :, held])
    assert torch.isfinite(found).all()


def test_windows_cover_a_piece_on_the_grid_of_tokens_with_all_the_context_that_there_is() -> None:
    for total in (40, 45, 50, 75, 120, 200):
        for known in (0, 4, 10, 13, 29, 30, 31, 40, 41, 67, 110):
            if total - known < CHUNK:
                continue
            first = known
            while first < total:
                start = WINDOWS.place(first, None, total)
                assert start % PER == 0 and 0 <= start <= total - WINDOW and start <= first < start + WINDOW
                # all but a chunk of a window, less what the grid of tokens takes, if there is so much
                assert first - start >= min(first, WINDOW - CHUNK)
                first = start + WINDOW
            assert first == total
    # a hole lies in the middle
    start = WINDOWS.place(100, 106, 200)
    assert abs((100 - start) - (start + WINDOW - 106)) <= 2 * PER


def test_bad_lengths_are_refused() -> None:
    for windows, message in (((42, 10, 5), "window: expected a multiple of 5 frames"),
                             ((40, 40, 5), "chunk: expected 5"),
                             ((40, 2, 5), "chunk: expected 5 frames or more")):
        with pytest.raises(MusiccmError, match=message):
            ChunkWindows(*windows)
    for total, known, message in ((83, 0, "83 latent frames are no whole number of semantic tokens.*expected 85"),
                                  (35, 0, "shorter than one window of 40"),
                                  (80, 75, "at least one chunk of 10 new frames, found 5")):
        with pytest.raises(MusiccmError, match=message):
            WINDOWS.check(total, known)
    WINDOWS.check(None, 10)
    with pytest.raises(MusiccmError, match="80 latent frames need 16 semantic tokens.*found 15"):
        tokens_of(make_tokens(75), 80, PER)
    with pytest.raises(MusiccmError, match="found a vector"):
        tokens_of(Condition(pooled_BD=torch.zeros(1, 3)), 80, PER)


def test_bad_masks_and_tokens_are_refused(network: DualPath) -> None:
    stepper, cond = make_stepper(network), tokens_of(make_tokens(80), 80, PER)
    piece = torch.zeros(1, C, 80, 1)
    for held in (torch.ones(80, dtype=torch.bool), torch.zeros(79, dtype=torch.bool), torch.zeros(80)):
        with pytest.raises(MusiccmError, match="held frames: expected a boolean mask of 80 frames"):
            fill_piece(stepper, WINDOWS, cond, noises(), piece, held)
    with pytest.raises(MusiccmError, match="all 40 are held"):
        fill(stepper, make_tokens(WINDOW), piece[:, :, :40], torch.ones(40, dtype=torch.bool), piece[:, :, :40])
    with pytest.raises(MusiccmError, match="mask of 40 frames"):
        fill(stepper, make_tokens(WINDOW), piece[:, :, :40], torch.ones(39, dtype=torch.bool), piece[:, :, :40])
    with pytest.raises(MusiccmError, match=r"expected 8 of each of 1 pieces for frames 0 to 40, found \[7\]"):
        next(stream_piece(stepper, WINDOWS, lambda first, last: make_tokens(35), noises(), (C, 1)))


@torch.no_grad()
@pytest.mark.parametrize(("sampler", "scale", "calls"), [("ddim", 2.5, 2 * 5 * 4), ("ddim", 1.0, 5 * 4),
                                                         ("heun", 2.5, 2 * 9 * 4)])
def test_the_cost_is_counted_as_it_happens(sampler: str, scale: float, calls: int) -> None:
    """70 frames are a window and three chunks: four windows of five steps, twice where guided."""
    spent = Evaluations(pieces=2)
    stepper = spent.counting(teacher_stepper(Constant(), Angle(), null, 5, scale, sampler))
    total = 70
    spent.written(total // PER)
    fill_piece(stepper, WINDOWS, tokens_of(make_tokens(total, 2), total, PER), noises(2), torch.zeros(2, C, total, 1),
               torch.zeros(total, dtype=torch.bool))
    assert (spent.tokens, spent.denoising, spent.total) == (14, calls, 14 + calls)
    assert str(spent) == f"{14 + calls} network evaluations (14 tokens, {calls} of the denoiser)"
