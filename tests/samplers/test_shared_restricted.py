"""The shared restricted process against plain sampling and closed forms, and its wavefront against it."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian import MUSICLDM, Gaussian
from hypothesis import given, settings
from hypothesis import strategies as st

from musiccm.diffusion import NoiseSchedule, expand_to
from musiccm.errors import MusiccmError
from musiccm.samplers import (
    FUSIONS,
    INITIAL,
    Crops,
    FrameNoise,
    Heun,
    Lcm,
    SharedProcess,
    Stepper,
    Wavefront,
    sample_noise,
    sample_shared,
    seeded_noise_fn,
    teacher_stepper,
)

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)
TIMESTEPS = [999, 759, 499, 259]
COND = torch.tensor([0.3, -0.2])


def network(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """Sees its neighbours, its edges, the time and the condition, as a real one does; crops disagree about a frame."""
    mixed = z.roll(1, 2) + 0.5 * z.roll(-1, 2) + cond.mean(1)[:, None, None, None]
    return torch.tanh(mixed) * expand_to(1 + t.float() / 1000, z)


def process(crops: Crops, f=network, timesteps=TIMESTEPS, gamma=1.0, fusion="uniform", seed=5, shape=(2, 8, 3)):
    stepper = Stepper(f, SCHEDULE, timesteps, Lcm(gamma))
    return SharedProcess(stepper, crops, FrameNoise(seed, shape), fusion)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_one_crop_is_plain_sampling(fusion: str, gamma: float) -> None:
    made = sample_shared(process(Crops(8, 8, 4), gamma=gamma, fusion=fusion), lambda _: COND)
    plain = Stepper(network, SCHEDULE, TIMESTEPS, Lcm(gamma)).sample(
        COND[None], sample_noise([5], (2, 8, 3)), seeded_noise_fn([5], (2, 8, 3)))
    assert torch.equal(made, plain[0])


def test_with_a_denoiser_and_no_fresh_noise_it_is_ddim() -> None:
    made = sample_shared(process(Crops(8, 8, 4), timesteps=[999, 749, 499, 249], gamma=0.0), lambda _: COND)
    at_work = teacher_stepper(network, SCHEDULE, lambda count: COND[None], 4, 1.0)
    plain = at_work.sample(COND[None], sample_noise([5], (2, 8, 3)))
    torch.testing.assert_close(made, plain[0], rtol=1e-4, atol=1e-4)


def test_noise_of_a_frame_does_not_depend_on_how_it_is_asked_for() -> None:
    noise = FrameNoise(3, (2, 8, 3))
    whole = noise(1, 0, 40)
    assert torch.equal(whole[:, :8], sample_noise([3], (2, 8, 3), 1)[0])
    for first, last in ((0, 8), (3, 5), (7, 9), (8, 16), (5, 39), (16, 16), (0, 0)):
        assert torch.equal(noise(1, first, last), whole[:, first:last])
    assert float(noise(INITIAL, 0, 80_000).std()) == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(noise(1, 8, 16), noise(1, 0, 8)) and not torch.equal(noise(2, 8, 16), noise(1, 8, 16))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_noise_after_fusion_has_the_level_that_the_next_step_expects(fusion: str, gamma: float) -> None:
    """With x0 = 0 the next z is noise alone, of standard deviation sigma: in overlaps as elsewhere."""
    seen: list[torch.Tensor] = []

    def f(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return torch.zeros_like(z)

    made = process(Crops(20, 8, 2), f, [999, 499], gamma, fusion, shape=(2000, 8, 2))
    sample_shared(made, lambda _: COND, batch_size=7)
    assert [len(z) for z in seen] == [7, 7]
    sigma = float(SCHEDULE.sigma(torch.tensor(499)))
    by_frame = seen[1].std(dim=(1, 3))
    torch.testing.assert_close(by_frame, torch.full_like(by_frame, sigma), rtol=0.06, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_exact_consistency_function_gives_the_data_distribution(fusion: str) -> None:
    data = Gaussian(SCHEDULE, mean=0.7, std=0.4)
    made = sample_shared(process(Crops(20, 8, 3), data.f, fusion=fusion, shape=(3000, 8, 2)), lambda _: COND)
    assert made.shape == (3000, 20, 2)
    torch.testing.assert_close(made.mean(dim=(0, 2)), torch.full((20,), 0.7), rtol=0, atol=0.04)
    torch.testing.assert_close(made.std(dim=(0, 2)), torch.full((20,), 0.4), rtol=0.05, atol=0)


def test_calls_are_batched() -> None:
    sizes: list[int] = []

    def counted(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        sizes.append(len(z))
        return network(z, t, cond)

    crops = Crops(36, 8, 4)
    batched = sample_shared(process(crops, counted), lambda _: COND, batch_size=3)
    assert crops.count == 8 and sizes == [3, 3, 2] * 4  # T n / b calls, rounded up
    torch.testing.assert_close(batched, sample_shared(process(crops), lambda _: COND, batch_size=8))


def test_kept_latents_come_back_bit_by_bit_and_are_heard_by_the_rest() -> None:
    crops = Crops(30, 8, 4)
    kept_T = torch.zeros(30, dtype=torch.bool)
    kept_T[:14] = True
    calls: list[int] = []

    def counted(z: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return network(z, t, cond)

    def fill(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        clean = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(seed))
        made = sample_shared(process(crops, counted), lambda _: COND, kept_CTF=clean, kept_T=kept_T)
        return clean, made

    (clean, made), (_, other) = fill(0), fill(1)
    assert torch.equal(made[:, :14], clean[:, :14]) and not torch.equal(made[:, 14:], clean[:, 14:])
    assert (made[:, 14:18] != other[:, 14:18]).any()
    assert calls == [5] * 8  # the two crops that hold nothing new need no network


@st.composite
def pieces(draw: st.DrawFn) -> SharedProcess:
    window = draw(st.integers(2, 9))
    crops = Crops(draw(st.integers(window, 45)), window, draw(st.integers(1, window)))
    timesteps = TIMESTEPS[: draw(st.integers(1, 4))]
    return process(crops, network, timesteps, draw(st.sampled_from([0.0, 0.6, 1.0])), draw(st.sampled_from(FUSIONS)),
                   shape=(2, draw(st.integers(2, 9)), 3))


def play(front: Wavefront, ticks: int = 10_000) -> tuple[torch.Tensor, int]:
    """All that some ticks give, and the most frames that were held at once."""
    chunks, held = [], 0
    for _ in range(ticks):
        if front.finished:
            break
        chunks.append(front.tick())
        held = max(held, sum(lane.z_CTF.shape[1] for lane in front._lanes))
    return torch.cat(chunks, dim=1), held


@settings(max_examples=60, deadline=None)
@given(pieces(), st.lists(st.integers(0, 40), max_size=3))
def test_the_wavefront_plays_the_same_piece(piece: SharedProcess, changes: list[int]) -> None:
    def cond_of(crop: int) -> torch.Tensor:
        return COND + sum(change <= crop for change in changes)

    whole = sample_shared(piece, cond_of, batch_size=3)
    streamed, _ = play(Wavefront(piece, cond_of))
    assert streamed.shape == whole.shape
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("hop", "ticks"), [(4, 7), (2, 13), (8, 4)])
def test_first_frames_come_after_a_few_calls_and_memory_does_not_grow(hop: int, ticks: int) -> None:
    """With W = r h: r (T - 1) + 1 calls until the first frames; then a hop a call."""
    front = Wavefront(process(Crops(None, 8, hop)), lambda _: COND)
    empty, _ = play(front, ticks - 1)
    assert empty.shape[1] == 0
    first, _ = play(front, 1)
    assert first.shape[1] == hop
    _, held = play(front, 20)
    later, held_later = play(front, 200)
    assert held_later == held and later.shape[1] == 200 * hop and len(front._cond) <= ticks


def test_an_endless_piece_begins_like_a_long_one() -> None:
    endless, _ = play(Wavefront(process(Crops(None, 8, 4)), lambda _: COND), 20)
    whole = sample_shared(process(Crops(400, 8, 4)), lambda _: COND)
    torch.testing.assert_close(endless, whole[:, : endless.shape[1]], rtol=1e-4, atol=1e-5)


def test_conditions_are_asked_when_a_crop_begins() -> None:
    asked: list[int] = []
    front = Wavefront(process(Crops(None, 8, 4)), lambda crop: asked.append(crop) or COND)
    for tick in range(6):
        assert front.begun == tick == len(asked)
        front.tick()
    assert asked == list(range(6))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(MusiccmError, match="gamma"):
        Lcm(math.nan)
    heun = Stepper(network, SCHEDULE, TIMESTEPS, Heun())
    with pytest.raises(MusiccmError, match="heun makes several network calls"):
        SharedProcess(heun, Crops(8, 8, 4), FrameNoise(5, (2, 8, 3)), "uniform")
    with pytest.raises(MusiccmError, match="fusion"):
        process(Crops(8, 8, 4), fusion="mean")
    with pytest.raises(MusiccmError, match="without end"):
        sample_shared(process(Crops(None, 8, 4)), lambda _: COND)
