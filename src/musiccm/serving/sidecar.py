"""The JSON beside every result: what made it, down to the weights, so that it can be made again."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm import __version__
from musiccm.errors import MusiccmError
from musiccm.serving.loading import ServedModel
from musiccm.serving.request import MusicRequest
from musiccm.texts import read_json

FORMAT = 1


def samples_sha256(waveform_CS: Tensor) -> str:
    """SHA-256 of samples, little-endian and channel by channel, as they are before any file format."""
    samples = waveform_CS.detach().cpu().contiguous().numpy()
    return hashlib.sha256(samples.astype(samples.dtype.newbyteorder("<")).tobytes()).hexdigest()


@dataclass(frozen=True)
class Sidecar:
    """What made a clip.

    Args:
        request: All parameters, the seed and the steps among them.
        content_hash: Of the model's weights.
        settings: How the model was loaded, as far as that changes samples.
        samples_sha256: Of the samples that were made.
        source_sha256: Of the file that an edit was made of, as it was uploaded.
        version: musiccm's.
    """

    request: MusicRequest
    content_hash: str
    settings: dict[str, Any]
    samples_sha256: str
    source_sha256: str | None = None
    version: str = __version__

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read one that a server gave.

        Args:
            path: The file.

        Returns:
            What it says.

        Raises:
            MusiccmError: It is missing, no sidecar, or of a later format.
        """
        values = read_json(path, "a sidecar of musiccm serve")
        if values.get("format") != FORMAT:
            raise MusiccmError(f"{path}: expected a sidecar of format {FORMAT}, found {values.get('format')!r}; it is "
                               "what GET /v1/jobs/ID/sidecar gives")
        model, made = values.get("model"), values.get("made")
        if not isinstance(model, dict) or not isinstance(made, dict):
            raise MusiccmError(f"{path}: expected the objects model and made; get the sidecar again")
        texts = [model.get("content_hash"), made.get("samples_sha256"), str(values.get("source_sha256") or "")]
        settings = {key: model.get(key) for key in ("decoder", "half")}
        known = settings["decoder"] in ("fast", "original", None) and type(settings["half"]) in (bool, type(None))
        if not known or not all(isinstance(text, str) for text in texts):
            raise MusiccmError(f"{path}: expected hashes, a decoder and whether half, found others; get the sidecar "
                               "again")
        request = MusicRequest.from_json(values.get("request"), str(path))
        return cls(request, texts[0], settings, texts[1], texts[2] or None,  # type: ignore[arg-type]
                   str(values.get("version")))


def sidecar_json(
    request: MusicRequest, served: ServedModel, waveform_CS: Tensor, sample_rate_hz: int, source_sha256: str | None
) -> dict[str, Any]:
    """What is written beside a clip.

    Args:
        request: What was asked for, resolved.
        served: The model.
        waveform_CS: What was made.
        sample_rate_hz: Its rate.
        source_sha256: See `Sidecar`.

    Returns:
        Plain values.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "model": {"name": served.name, "content_hash": served.content_hash, **served.settings},
        "request": request.to_json(),
        "source_sha256": source_sha256,
        "made": {"samples_sha256": samples_sha256(waveform_CS), "samples": waveform_CS.shape[1],
                 "channels": len(waveform_CS), "sample_rate_hz": sample_rate_hz,
                 "seconds": waveform_CS.shape[1] / sample_rate_hz},
        "computed_by": getattr(served.model, "computed_by", None) or computed_by(served.model.device),
    }


def computed_by(device: torch.device) -> dict[str, Any]:
    """What of this process and machine changes the last bits of samples.

    Args:
        device: Where the networks are.

    Returns:
        Plain values.
    """
    return {"torch": torch.__version__, "device": str(device), "machine": platform.machine(),
            "threads": torch.get_num_threads()}
