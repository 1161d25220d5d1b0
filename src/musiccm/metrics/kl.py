"""KL(reference || generated) of class probabilities, clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.metrics.clip_ids import decode_ids, encode_ids
from musiccm.metrics.clips import ClipMetric, TooFewClips, require_rows

# audioldm_eval adds this to the generated probabilities before it takes their logarithm.
AUDIOLDM_EPS = 1e-6


def kl_rows(reference_NC: Tensor, generated_NC: Tensor, eps: float = 0.0) -> Tensor:
    """`sum_c p_r (log p_r - log(p_g + eps))` of softmax probabilities, float64 (audioldm_eval's form).

    Args:
        reference_NC: Logits of the reference clips, `[N, C]`.
        generated_NC: Logits of the generated clips, `[N, C]`.
        eps: 0 is the divergence itself; 1e-6 is audioldm_eval's form, which can be slightly negative.

    Returns:
        One value a pair, `[N]`.
    """
    log_r = reference_NC.double().log_softmax(dim=1)
    log_g = generated_NC.double().log_softmax(dim=1)
    if eps:
        log_g = (log_g.exp() + eps).log()
    return (log_r.exp() * (log_r - log_g)).sum(dim=1)


class KLDivergence(ClipMetric):
    """Mean KL(reference || generated) over pairs with the same clip id.

    A pair is two numbers once both clips have come; logits wait only for a partner. So memory stays small where the two
    sides come side by side, and where one comes first it holds that side's logits. A reference that outlives `reset`
    stays.
    """

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        """Start without clips.

        Args:
            **kwargs: Passed to `ClipMetric`.
        """
        super().__init__(**kwargs)
        self._waiting: dict[str, dict[str, Tensor]] = {"real": {}, "fake": {}}
        for side in self._waiting:
            # Filled for the gather alone.
            self.add_rows(f"{side}_waiting_ids", 1, torch.uint8)
            self.add_rows(f"{side}_waiting_logits", 2, torch.float32)
            self._seen[f"{side}_ids"] = set()
        self.add_rows("pair_ids", 1, torch.uint8)
        self.add_rows("pair_values", 2, torch.float64)

    def update(self, logits: Tensor, ids: Sequence[str], real: bool) -> None:
        """Add clips to one side.

        Args:
            logits: Class logits, `[B, C]`.
            ids: Clip ids, `B` of them.
            real: Whether they are the reference.
        """
        require_rows("KL logits", logits, ids)
        side, other = ("real", "fake") if real else ("fake", "real")
        waiting, partners = self._waiting[side], self._waiting[other]
        rows = logits.detach().float().to(self.device)
        paired: dict[str, tuple[Tensor, Tensor]] = {}
        for position in self.first_seen(f"{side}_ids", ids):
            clip_id, row = ids[position], rows[position]
            if clip_id in partners:
                stays = not real and not self.reset_real_features
                partner = partners[clip_id] if stays else partners.pop(clip_id)
                paired[clip_id] = (row, partner) if real else (partner, row)
            if clip_id not in paired or (real and not self.reset_real_features):
                waiting[clip_id] = row.clone()  # a view would keep the whole batch alive
        if paired:
            self.pair_ids.append(encode_ids(list(paired)).to(self.device))
            self.pair_values.append(self._values(paired.values()))

    def compute(self) -> dict[str, float | int]:
        """The divergence, over the generated clips.

        Returns:
            `kl` in audioldm_eval's form, comparable with published figures; `kl_exact` without its eps; `n` pairs.

        Raises:
            TooFewClips: No generated clip.
            MusiccmError: A generated clip without a reference.
        """
        values = dict(zip(decode_ids(self.joined("pair_ids")), self.joined("pair_values"), strict=True))
        real, fake = self._all_waiting("real"), self._all_waiting("fake")
        late = [clip_id for clip_id in fake if clip_id not in values]
        missing = [clip_id for clip_id in late if clip_id not in real]
        if missing:
            raise MusiccmError(
                f"KL divergence: expected a reference clip for each of {len(values) + len(late)} generated clips, "
                f"found none for {len(missing)}, first {missing[:3]}; names must agree on both sides"
            )
        if not values and not late:
            raise TooFewClips("KL divergence: expected pairs of a reference and a generated clip, found none")
        if late:
            # Partners that two ranks held.
            found = self._values([(real[clip_id], fake[clip_id]) for clip_id in late])
            values |= dict(zip(late, found, strict=True))
        parity, exact = torch.stack([values[clip_id] for clip_id in sorted(values)]).mean(dim=0).tolist()
        return {"kl": parity, "kl_exact": exact, "n": len(values)}

    def reset(self) -> None:
        """Forget the generated clips, and the reference unless it is to be kept."""
        super().reset()
        self._waiting["fake"].clear()
        if self.reset_real_features:
            self._waiting["real"].clear()

    def _values(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        reference, generated = (torch.stack(side).to(self.device) for side in zip(*pairs, strict=True))
        return torch.stack([kl_rows(reference, generated, eps) for eps in (AUDIOLDM_EPS, 0.0)], dim=1)

    def _all_waiting(self, side: str) -> dict[str, Tensor]:
        ids = decode_ids(self.joined(f"{side}_waiting_ids"))
        return dict(zip(ids, self.joined(f"{side}_waiting_logits"), strict=True)) | self._waiting[side]

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None) -> None:
        # What waits becomes a state for the gather, after which Metric.unsync puts back the empty one.
        for side, waiting in self._waiting.items():
            if waiting:
                getattr(self, f"{side}_waiting_ids").append(encode_ids(list(waiting)).to(self.device))
                getattr(self, f"{side}_waiting_logits").append(torch.stack(list(waiting.values())).to(self.device))
        super()._sync_dist(dist_sync_fn, process_group)
