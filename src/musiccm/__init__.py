"""Few-step text-to-music models: distill a diffusion teacher, measure what was lost, hand the result to people.

    from musiccm import Pipeline

    pipeline = Pipeline.from_pretrained("musiccm-tiny-student")
    waveforms_BS = pipeline("a calm piano melody over soft strings", steps=4, seed=0)

The names below are imported when they are first used: `import musiccm` itself imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musiccm.embedders import load_embedder
    from musiccm.errors import MusiccmError
    from musiccm.evaluation.api import evaluate
    from musiccm.models.bundle import Bundle
    from musiccm.pipeline import Pipeline
    from musiccm.systems.musiccm import MusicCM

__version__ = "0.3.0"
__all__ = ["Bundle", "MusicCM", "MusiccmError", "Pipeline", "evaluate", "load_embedder"]

_HOMES = {
    "Bundle": "musiccm.models.bundle",
    "MusicCM": "musiccm.systems.musiccm",
    "MusiccmError": "musiccm.errors",
    "Pipeline": "musiccm.pipeline",
    "evaluate": "musiccm.evaluation.api",
    "load_embedder": "musiccm.embedders",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from musiccm.errors import missing_extra

        wanted = "eval" if name in ("evaluate", "load_embedder") else "train"
        if (lacking := missing_extra(error, wanted, f"musiccm.{name}")) is not None:
            raise lacking from error
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
