"""Gradients of distribution matching against divergences of Gaussians, ratios and penalties in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gaussian import MUSICLDM, Gaussian
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from musiccm.diffusion import NoiseSchedule, expand_to
from musiccm.losses.adversarial import NON_SATURATING
from musiccm.losses.matching import DIVERGENCES, approximate_r1, density_ratio, matching_loss, ranking_loss

SCHEDULE = NoiseSchedule.from_config(MUSICLDM)


def levels(t: int) -> tuple[float, float]:
    at = torch.tensor([t])
    return float(SCHEDULE.alpha(at, torch.float64)), float(SCHEDULE.sigma(at, torch.float64))


def noised_density(mean: Tensor, std: Tensor, t: int) -> Normal:
    alpha, sigma = levels(t)
    return Normal(alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt())


def test_the_gradient_is_that_of_the_scores_in_size_and_direction() -> None:
    """By the noised densities N(alpha m, alpha^2 s^2 + sigma^2), whose scores are -(z - alpha m) / variance."""
    real, fake = Gaussian(SCHEDULE, 0.7, 0.4), Gaussian(SCHEDULE, -0.2, 0.9)
    generator = torch.Generator().manual_seed(0)
    x = (fake.mean + fake.std * torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=generator)).requires_grad_()
    t_B = torch.tensor([20, 200, 500, 800, 980])
    alpha, sigma = (expand_to(c(t_B, torch.float64), x) for c in (SCHEDULE.alpha, SCHEDULE.sigma))
    z = (alpha * x + sigma * torch.randn(x.shape, dtype=torch.float64, generator=generator)).detach()
    loss, _ = matching_loss(x, real.x0(z, t_B), fake.x0(z, t_B))
    (found,) = torch.autograd.grad(loss, x)

    score_real, score_fake = (-(z - alpha * g.mean) / (alpha**2 * g.std**2 + sigma**2) for g in (real, fake))
    clean = (z + sigma**2 * score_real) / alpha  # Tweedie
    size = (x - clean).abs().mean((1, 2, 3), keepdim=True)
    expected = sigma**2 / alpha * (score_fake - score_real) / size / x.numel()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    # where the two distributions are one there is nothing to do
    same, _ = matching_loss(x, real.x0(z, t_B), real.x0(z, t_B))
    assert same.item() == 0.0


@pytest.mark.parametrize("t", [100, 500, 900])
def test_its_expectation_is_the_gradient_of_the_kl_divergence(t: int) -> None:
    """d KL(q_t | p_t) / d(mean, std) of a generator x = mean + std n, from torch's own KL of two Gaussians.

    An item has so many elements that the normaliser is its expectation, that of a folded normal variable.
    """
    generator = torch.Generator().manual_seed(t)
    mean, std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.2, 0.9))
    real, fake = Gaussian(SCHEDULE, 0.7, 0.4), Gaussian(SCHEDULE, -0.2, 0.9)
    n, eps = torch.randn((2, 64, 8192), dtype=torch.float64, generator=generator)
    alpha, sigma = levels(t)
    t_B = torch.full((64,), t)
    x = mean + std * n
    z = (alpha * x + sigma * eps).detach()
    loss, _ = matching_loss(x, real.x0(z, t_B), fake.x0(z, t_B))
    found = torch.stack(torch.autograd.grad(loss, (mean, std)))

    target = noised_density(torch.tensor(0.7).double(), torch.tensor(0.4).double(), t)
    divergence = kl_divergence(noised_density(mean, std, t), target)
    exact = torch.stack(torch.autograd.grad(divergence, (mean, std)))
    gain = alpha * real.std**2 / (alpha**2 * real.std**2 + sigma**2)
    centre = (fake.mean - real.mean) * (1 - alpha * gain)
    spread = math.sqrt(fake.std**2 * (1 - alpha * gain) ** 2 + gain**2 * sigma**2)
    size = spread * math.sqrt(2 / math.pi) * math.exp(-(centre**2) / (2 * spread**2)) + centre * math.erf(
        centre / (spread * math.sqrt(2)))
    expected = (sigma / alpha) ** 2 * exact / size
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01 * float(expected.abs().max()))


#: D_f(p | q) = E_q f(p / q) of log p and log q, and the constant that `DIVERGENCES` leaves out of r^2 f''(r).
GENERATORS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "kl": (lambda r: r * r.log(), 1.0),
    "js": (lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(), 1.0),
    "sh": (lambda r: (1 - r.sqrt()).square(), 0.5),
}


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_weighted_it_is_the_gradient_of_another_divergence(name: str) -> None:
    """Against the derivative of the divergence's own integral, taken on a grid of values."""
    t, generator = 400, torch.Generator().manual_seed(1)
    alpha, sigma = levels(t)
    mean, std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.9))
    real, fake = Gaussian(SCHEDULE, 0.6, 0.6), Gaussian(SCHEDULE, 0.1, 0.9)
    n, eps = torch.randn((2, 1_000_000, 1), dtype=torch.float64, generator=generator)
    x = mean + std * n
    z = (alpha * x + sigma * eps).detach()
    t_B = torch.full((1,), t)
    teacher = noised_density(torch.tensor(0.6).double(), torch.tensor(0.6).double(), t)
    student = noised_density(mean, std, t)
    with torch.no_grad():
        ratio = (teacher.log_prob(z) - student.log_prob(z)).exp()[:, 0]
        clean = real.x0(z, t_B)
        undone = (x - clean).abs()[:, 0]  # an item of one element is divided by its own distance
    loss, _ = matching_loss(x, clean, fake.x0(z, t_B), DIVERGENCES[name](ratio) * undone)
    found = torch.stack(torch.autograd.grad(loss, (mean, std)))

    f, factor = GENERATORS[name]
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    log_q = student.log_prob(grid)
    integral = (log_q.exp() * f((teacher.log_prob(grid) - log_q).exp())).sum() * (grid[1] - grid[0])
    expected = (sigma / alpha) ** 2 / factor * torch.stack(torch.autograd.grad(integral, (mean, std)))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_a_discriminator_at_its_optimum_gives_the_density_ratio() -> None:
    """A quadratic logit fitted by the GAN's own loss on samples, against the Gaussians' log ratio, a quadratic too."""
    real, fake = Normal(0.5, 0.6), Normal(0.0, 0.8)
    generator = torch.Generator().manual_seed(2)
    samples = [d.mean + d.stddev * torch.randn(60_000, dtype=torch.float64, generator=generator) for d in (real, fake)]
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def logit(z: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(z), z, z**2], dim=-1) @ weights

    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = NON_SATURATING.real(logit(samples[0])).mean() + NON_SATURATING.fake(logit(samples[1])).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    z = torch.linspace(-1, 2, 13, dtype=torch.float64)
    exact = (real.log_prob(z) - fake.log_prob(z)).exp()
    torch.testing.assert_close(density_ratio(logit(z), 1e-9, 1e9).double(), exact, rtol=0.06, atol=0.0)
    clipped = density_ratio(torch.tensor([-9.0, 0.0, 9.0], requires_grad=True), 0.1, 20.0)
    torch.testing.assert_close(clipped, torch.tensor([0.1, 1.0, 20.0]))
    assert not clipped.requires_grad


def test_what_a_divergence_makes_of_a_ratio() -> None:
    ratio = torch.tensor([0.25, 1.0, 4.0])
    expected = {"kl": [0.25, 1.0, 4.0], "js": [0.2, 0.5, 0.8], "sh": [0.5, 1.0, 2.0]}
    assert DIVERGENCES.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(DIVERGENCES[name](ratio), torch.tensor(values))


def test_the_approximate_r1_of_a_quadratic_discriminator() -> None:
    """D = x'Ax / 2 + b'x: E (D(x + s n) - D(x))^2 / s^2 = |Ax + b|^2 + s^2 / 4 (2 tr A^2 + (tr A)^2)."""
    generator = torch.Generator().manual_seed(3)
    half, b, x = (torch.randn(size, dtype=torch.float64, generator=generator) for size in ((4, 4), (4,), (4,)))
    matrix = half + half.T

    def score(x: Tensor) -> Tensor:
        return 0.5 * torch.einsum("...i,ij,...j", x, matrix, x) + x @ b

    n = torch.randn(1_000_000, 4, dtype=torch.float64, generator=generator)
    r1 = (matrix @ x + b).square().sum()
    for noise in (0.5, 1e-3):
        expected = r1 + noise**2 / 4 * (2 * (matrix @ matrix).trace() + matrix.trace() ** 2)
        found = approximate_r1(score(x), score(x + noise * n), noise)
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0.0)
    torch.testing.assert_close(found, r1, rtol=0.01, atol=0.0)


def test_the_ranking_loss_at_known_logits() -> None:
    above, below = torch.tensor([0.0, 2.0, -1.0], requires_grad=True), torch.tensor([0.0, 0.0, 2.0], requires_grad=True)
    loss = ranking_loss(above, below)
    expected = [math.log(2.0), math.log1p(math.exp(-2.0)), math.log1p(math.exp(3.0))]
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    chance = [0.5, 1 / (1 + math.exp(2.0)), 1 / (1 + math.exp(-3.0))]  # of the wrong order
    torch.testing.assert_close(below.grad, torch.tensor(chance))
    torch.testing.assert_close(above.grad, -torch.tensor(chance))
