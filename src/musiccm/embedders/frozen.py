"""What all embedders share: checked input, their own rate, float32, no gradients, and a fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.audio.resample import resample
from musiccm.embedders.base import Embedder, Embeddings
from musiccm.errors import MusiccmError

# A rest up to this share of a window is given no window of its own.
SHORT = 0.05


class FrozenEmbedder(Embedder):
    """An embedder in eval mode, without gradients, in float32 whatever the trainer's precision is.

    A metric must not depend on the precision that a model is trained in, so autocast is off for the whole network, not
    only for its front end, and so are the shorter mantissas (TF32, bf16) that float32 may otherwise be multiplied in.

    Attributes:
        provenance: Where the weights came from; for a file its name, its SHA-256, and whether it is the published one.
    """

    provenance: dict[str, Any]

    def __init__(self, name: str, sample_rate_hz: int, min_samples: int) -> None:
        """State what the network takes.

        Args:
            name: Of the metrics.
            sample_rate_hz: Rate that the network takes.
            min_samples: Shorter clips, at that rate, are refused.
        """
        super().__init__()
        self.name, self.sample_rate_hz, self.min_samples = name, sample_rate_hz, min_samples
        self.min_duration_s = min_samples / sample_rate_hz
        self.provenance = {}

    def freeze(self, *networks: nn.Module, **numbers: Any) -> None:
        """Stop training and take the fingerprint.

        Args:
            *networks: What holds the weights, front end included where it came with them.
            **numbers: All else that decides what it gives: sizes of windows, steps, floors.
        """
        self.eval().requires_grad_(False)
        self.fingerprint = fingerprint(networks, {"name": self.name, "sample_rate_hz": self.sample_rate_hz, **numbers})

    def for_cpu(self) -> None:
        """Put the network into the form that a CPU computes fastest, where there is one; metrics change by rounding."""

    @abstractmethod
    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """Embed checked float32 waveforms at the network's own rate, on its device."""

    def train(self, mode: bool = True) -> FrozenEmbedder:
        """Stay in eval mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Embeddings:
        """Embed a batch.

        Args:
            waveform_BS: Waveforms of at least `min_duration_s`.
            sample_rate_hz: Their rate.

        Returns:
            Their features, float32.

        Raises:
            MusiccmError: The batch is empty, holds NaN or infinity, or its clips are too short.
        """
        if waveform_BS.dim() != 2 or not waveform_BS.numel():
            raise MusiccmError(f"{self.name}: expected waveforms of shape [B, S], found {tuple(waveform_BS.shape)}")
        bad = (~torch.isfinite(waveform_BS).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise MusiccmError(f"{self.name}: NaN or infinity in the waveform of clip {bad[0]} of the batch"
                               + (f" and {len(bad) - 1} more" if len(bad) > 1 else "") + "; leave such clips out")
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), full_float32():
            embedded = resample(waveform_BS.to(self.device, torch.float32), sample_rate_hz, self.sample_rate_hz)
            if embedded.shape[-1] < self.min_samples:
                raise MusiccmError(
                    f"{self.name}: expected clips of at least {self.min_duration_s:.3f} s ({self.min_samples} samples "
                    f"at {self.sample_rate_hz} Hz), found {waveform_BS.shape[-1] / sample_rate_hz:.3f} s "
                    f"({embedded.shape[-1]} samples); leave such clips out"
                )
            return self.embed(embedded)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 in float32, on GPUs (whose convolutions take TF32 by default) and CPUs, then as before."""
    backends = torch.backends
    places = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


def fingerprint(networks: tuple[nn.Module, ...], numbers: dict[str, Any]) -> str:
    """Hash weights and numbers.

    Args:
        networks: Their state dicts are hashed, name by name, whatever file or type of file they came from.
        numbers: What else decides the outcome; must be JSON.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def batches(count: int, cost: int, budget: int) -> Iterator[slice]:
    """Slices of a batch that keep memory bounded.

    Args:
        count: Clips, or windows.
        cost: Of one, in any unit.
        budget: Of one pass, in the same unit; at least one clip is in each.

    Yields:
        Slices, in order, covering `count`.
    """
    step = max(1, budget // cost)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def windows_end_to_end(waveform_BS: Tensor, length: int) -> Tensor:
    """Cut clips into windows of a fixed length, so that every clip is embedded whole and always the same way.

    Args:
        waveform_BS: Clips.
        length: Samples of a window.

    Returns:
        Windows, `[B, W, length]`: end to end, the last shifted back to end with the clip. Clips of less than a window,
        or of at most `SHORT` more, have one: `[B, 1, at most length]`.
    """
    total = waveform_BS.shape[-1]
    count = -(-(total - round(length * SHORT)) // length)
    if count <= 1:
        return waveform_BS[:, None, :length]
    starts = [min(index * length, total - length) for index in range(count)]
    return torch.stack([waveform_BS[:, start : start + length] for start in starts], dim=1)
