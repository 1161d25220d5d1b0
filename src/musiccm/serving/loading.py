"""A model that is served: its networks, and what a client and a sidecar are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musiccm import __version__
from musiccm.bounds import Bucket
from musiccm.errors import MusiccmError
from musiccm.long_form import MusicModel
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.student_record import recorded_guidance
from musiccm.pipeline import Pipeline


@dataclass(frozen=True)
class ServedModel:
    """A model under the name that clients know.

    Args:
        name: The name.
        model: The model.
        content_hash: Of its weights; empty where that is not known.
        facts: What `/v1/models` says beside.
        settings: How it was loaded, beyond its weights, as far as that changes samples: `decoder`, `half`.
    """

    name: str
    model: MusicModel
    content_hash: str
    facts: dict[str, Any]
    settings: dict[str, Any]

    @property
    def identity(self) -> str:
        """What makes the same samples of the same request, but for rounding."""
        options = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"musiccm {__version__}, weights {self.content_hash[:16]}, {options}"

    @classmethod
    def of(cls, name: str, model: MusicModel, half: bool = False) -> ServedModel:
        """Describe a model.

        Args:
            name: The name that clients will use.
            model: The model.
            half: Whether its networks compute in bf16.

        Returns:
            It with its facts.
        """
        bundle: Bundle | None = getattr(model, "bundle", None)
        student = getattr(model, "is_student", None)
        facts: dict[str, Any] = {
            "sample_rate_hz": model.sample_rate_hz, "clip_seconds": model.duration_s,
            "default_steps": getattr(model, "default_steps", None), "student": student,
        }
        if bundle is not None:
            facts["shared_hash"] = bundle.content_hash(_shared_parts(bundle))
            facts["denoiser_hash"] = bundle.denoiser_hash()
        record = getattr(model, "record", None) or {}
        recipe = record.get("recipe") or {}
        if student and isinstance(recorded := recipe.get("teacher"), str):
            facts["teacher"] = Path(recorded).name  # the path before it does not concern clients
        if student and isinstance(taught := recipe.get("teacher_hash"), str):
            facts["teacher_hash"] = taught
        if student:
            facts |= {"steps": record.get("sampling_steps"), "guidance": record.get("guidance", "fixed")}
        if student and facts["guidance"] == "variable":
            facts["guidance_range"] = list(recorded_guidance(record).range)
        # codecs of other kinds say by themselves what `Pipeline` calls their decoder
        fast = getattr(model.codec, "decoder", None) is not None
        decoder = getattr(model.codec, "decoded_by", "fast" if fast else "original")
        return cls(name, model, "" if bundle is None else bundle.content_hash(), facts,
                   {"decoder": decoder, "half": half})


def _shared_parts(bundle: Bundle) -> list[str]:
    """Parts that a student has as its teacher has them: what reads texts, and what gives latents their meaning."""
    return [part for part in ("text_encoder", "tokenizer", bundle.kind.autoencoder) if bundle.has(part)]


def load_model(
    named: str, device: str = "cpu", decoder: str | None = None, half: bool = False, backend: str | None = None,
    buckets: Sequence[Bucket] = (), compiled: Path | None = None,
) -> ServedModel:
    """Read a model to serve, in the form that its device computes fastest.

    Args:
        named: `NAME=WHERE`, or what `Pipeline.from_pretrained` takes, whose last part is then the name.
        device: Where it computes.
        decoder: See `Pipeline`.
        half: See `Pipeline.accelerate`.
        backend: See `Pipeline.accelerate`.
        buckets: See `Pipeline.warm_up`.
        compiled: See `Pipeline.accelerate`.

    Returns:
        The model.

    Raises:
        MusiccmError: There is no such model, the name is none, the model cannot make such shapes, or `compiled`
            does not fit.
    """
    name, where = named_model(named)
    pipeline = Pipeline.from_pretrained(where, decoder=decoder).to(device).accelerate(half, backend, compiled)
    if buckets:
        pipeline.warm_up([*buckets, Bucket(1, 1)])  # of which the engine's first sound is
    return ServedModel.of(name, pipeline, half)


def named_model(named: str) -> tuple[str, str]:
    """The two parts of `NAME=WHERE`.

    Args:
        named: See `load_model`.

    Returns:
        The name, and what `Pipeline.from_pretrained` takes.

    Raises:
        MusiccmError: The name is none.
    """
    name, found, where = named.partition("=")
    if not found:
        name, where = Path(named).name or named, named
    if not name or not where or len(name) > 100 or not name.isprintable() or "/" in name:
        raise MusiccmError(f"--model {named}: expected NAME=FOLDER, a folder, a packaged name or a hub id")
    return name, where
