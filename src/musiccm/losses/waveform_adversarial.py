"""Hinge losses and feature matching for discriminators of waveforms (Kumar et al. 2019, arXiv 1910.06711)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musiccm.losses.adversarial import frozen


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
