"""Adversarial losses and feature matching for discriminators of waveforms.

Of both sides at once by the hinge (Kumar et al. 2019, arXiv 1910.06711), or one by one, where each has its own step, by
least squares (HiFi-GAN, Kong et al. 2020, arXiv 2010.05646, section 2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musiccm.losses.adversarial import LEAST_SQUARES, AdversarialLoss, frozen


def waveform_adversarial(
    discriminator: nn.Module, predicted_BS: Tensor, real_BS: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the generator and what the discriminator lose.

    Each loss leaves gradients on its own side only, so both may be summed and stepped together.

    Args:
        discriminator: Waveforms to `(scores, features)` of each resolution.
        predicted_BS: The generator's waveforms, attached to its graph.
        real_BS: Real ones, of the same shape.

    Returns:
        `(generator, discriminator, parts)`: `mean max(0, 1 - D(fake))` plus twice the feature-matching distance (L1
        over features, relative to the real ones' mean magnitude); `mean max(0, 1 - D(real)) + max(0, 1 + D(fake))`;
        and the parts `generator`, `matching` and `discriminator`, all averaged over resolutions.
    """
    on_real = discriminator(real_BS)
    on_fake = discriminator(predicted_BS.detach())
    hinge = [torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
             for (real, _), (fake, _) in zip(on_real, on_fake, strict=True)]
    loss_d = torch.stack(hinge).mean()
    with frozen(discriminator):
        attached = discriminator(predicted_BS)
    generator = torch.stack([torch.relu(1 - score).mean() for score, _ in attached]).mean()
    distances = [(fake - real.detach()).abs().mean() / real.detach().abs().mean().clamp(min=1e-5)
                 for (_, fakes), (_, reals) in zip(attached, on_real, strict=True)
                 for fake, real in zip(fakes, reals, strict=True)]
    matching = torch.stack(distances).mean()
    parts = {"generator": generator.detach(), "matching": matching.detach(), "discriminator": loss_d.detach()}
    return generator + 2.0 * matching, loss_d, parts


def waveform_discriminator_loss(
    discriminator: nn.Module, predicted_BS: Tensor, real_BS: Tensor, loss: AdversarialLoss = LEAST_SQUARES
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the discriminator loses.

    Args:
        discriminator: Waveforms to `(scores, features)` of each of its parts.
        predicted_BS: The generator's waveforms; detached here.
        real_BS: Real ones, of the same shape.
        loss: What is made of the scores.

    Returns:
        The sum over parts of the means on either side; and `discriminator`, the same, with the mean scores `score_real`
        and `score_fake`.
    """
    on_real = [score.float() for score, _ in discriminator(real_BS)]
    on_fake = [score.float() for score, _ in discriminator(predicted_BS.detach())]
    total = torch.stack([loss.real(real).mean() + loss.fake(fake).mean()
                         for real, fake in zip(on_real, on_fake, strict=True)]).sum()
    parts = {"discriminator": total, "score_real": torch.stack([score.mean() for score in on_real]).mean(),
             "score_fake": torch.stack([score.mean() for score in on_fake]).mean()}
    return total, {name: part.detach() for name, part in parts.items()}


def waveform_generator_loss(
    discriminator: nn.Module, predicted_BS: Tensor, real_BS: Tensor, loss: AdversarialLoss = LEAST_SQUARES
) -> tuple[Tensor, Tensor]:
    """What the generator loses; no gradient is left in the discriminator.

    Args:
        discriminator: Waveforms to `(scores, features)` of each of its parts.
        predicted_BS: The generator's waveforms, attached to its graph.
        real_BS: Real ones, of the same shape.
        loss: What is made of the scores.

    Returns:
        The adversarial loss, the sum over parts of the means; and feature matching, the sum over parts of the mean over
        layers of the mean absolute difference (MeLoDy, arXiv 2305.15719, appendix B.1).
    """
    with torch.no_grad():
        on_real = discriminator(real_BS)
    with frozen(discriminator):
        on_fake = discriminator(predicted_BS)
    adversarial = torch.stack([loss.generator(score.float()).mean() for score, _ in on_fake]).sum()
    matching = torch.stack([
        torch.stack([(fake - real).abs().mean(dtype=torch.float32)
                     for fake, real in zip(fakes, reals, strict=True)]).mean()
        for (_, fakes), (_, reals) in zip(on_fake, on_real, strict=True)
    ]).sum()
    return adversarial, matching
