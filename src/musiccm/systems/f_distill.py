"""f-distill: distribution matching under other divergences than the reverse KL (arXiv 2502.15681)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.losses.matching import DIVERGENCES, density_ratio
from musiccm.systems.dmd2 import DMD2, Matching
from musiccm.systems.parallel import mean_over_ranks
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Adversarial, Distillation, Optimization


@dataclass
class Weighting:
    """By what samples' gradients are multiplied: h(r) of the density ratio r = p_teacher / p_student.

    Args:
        divergence: `kl` (forward KL, h = r), `js` (Jensen-Shannon, h = 1 - 1 / (1 + r)) or `sh` (squared Hellinger,
            h = sqrt r).
        clip: least and largest ratio.
        bins: equal parts of the timesteps; the mean ratio of each is 1 in theory, and is divided by.
        decay: of the averages of these means; 0 takes each batch's own.
    """

    divergence: str = "kl"
    clip: Sequence[float] = (0.1, 20.0)
    bins: int = 10
    decay: float = 0.95

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            MusiccmError: an unknown divergence, or a number out of range.
        """
        if self.divergence not in DIVERGENCES:
            raise MusiccmError(f"weighting.divergence: expected one of {', '.join(DIVERGENCES)}, found "
                               f"{self.divergence!r}.")
        check_ranges("weighting.", vars(self), count="bins", decay="decay")
        low, high = [*self.clip, 0.0, 0.0][:2]
        if len(self.clip) != 2 or not 0 < low < high:
            raise MusiccmError(f"weighting.clip: expected two ascending ratios above 0, found {list(self.clip)}.")


class FDistill(DMD2):
    """DMD2 whose gradient is weighted by h(r), the ratio being read off the GAN's head.

    A divergence that seeks fewer modes than the reverse KL pushes samples harder where the teacher is denser than the
    student, and less where the student alone has samples.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: see `DMD2`.
        matching: see `DMD2`; its `gan_weight` must be above 0, as the head gives the ratio.
        weighting: the divergence.
        adversarial: see `DMD2`.
        optimization: optimizer of the student.
        seed: of all draws.
        teacher: the denoiser that teaches; the bundle's by default.

    Raises:
        MusiccmError: as `DMD2`; or there is no head to read the ratio off.
    """

    ratio_mean: Tensor

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        matching: Matching | None = None,
        weighting: Weighting | None = None,
        adversarial: Adversarial | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(bundle, distillation, matching, adversarial, optimization, seed, teacher)
        self.weighting = weighting or Weighting()
        self.register_buffer("ratio_mean", torch.ones(self.weighting.bins))
        self.finish_init()

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse settings out of range, and to do without the head.

        Raises:
            MusiccmError: names the key.
        """
        (own["weighting"] or Weighting()).check()
        if own["matching"] is not None and own["matching"].gan_weight == 0:
            raise MusiccmError("matching.gan_weight: expected a weight above 0, found 0: the GAN's head gives the "
                               "density ratio that f-distill weighs by; without one use musiccm.systems.dmd2.DMD2")
        super().check_settings(own)

    def gradient_weight(self, logits: Tensor | None, t_B: Tensor) -> Tensor | None:
        """h(r) of the samples' ratios over the mean ratio of their part of the timesteps; of mean 1 over the batch."""
        assert logits is not None
        settings = self.weighting
        ratio_B = density_ratio(logits, *settings.clip)
        bin_B = t_B * settings.bins // self.schedule.num_train_timesteps
        own_BK = nn.functional.one_hot(bin_B, settings.bins).to(ratio_B.dtype)
        sums = {f"sum_{k}": value for k, value in enumerate((own_BK * ratio_B[:, None]).sum(0).unbind())}
        counts = {f"count_{k}": value for k, value in enumerate(own_BK.sum(0).unbind())}
        found = list(mean_over_ranks(sums | counts).values())
        sum_K, count_K = torch.stack(found[: settings.bins]), torch.stack(found[settings.bins :])
        mean_K = settings.decay * self.ratio_mean + (1 - settings.decay) * sum_K / count_K.clamp_min(1e-12)
        self.ratio_mean = torch.where(count_K > 0, mean_K, self.ratio_mean)
        weight_B = DIVERGENCES[settings.divergence](ratio_B / self.ratio_mean[bin_B])
        return weight_B / mean_over_ranks({"weight": weight_B.mean()})["weight"]
