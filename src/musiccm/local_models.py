"""Bundles that lie on this machine, by path or packaged name; found without torch."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from musiccm.texts import read_json

PACKAGED = {"musiccm-tiny": "tiny", "musiccm-tiny-student": "tiny-student",
            "musiccm-tiny-tango": "tiny-tango", "musiccm-tiny-tango-student": "tiny-tango-student",
            "musiccm-tiny-melody": "tiny-melody", "musiccm-tiny-melody-student": "tiny-melody-student"}


def local_bundle(path: str | Path) -> Path | None:
    """The directory of a bundle given by path or packaged name; None for anything else, such as a hub id."""
    if Path(path).is_dir():
        return Path(path)
    packaged = packaged_bundle(str(path))
    return packaged if packaged is not None and packaged.is_dir() else None


def packaged_bundle(name: str) -> Path | None:
    """Where a bundle of this name comes with the package; None where none has it."""
    bundles = Path(str(importlib.resources.files("musiccm"))) / "bundles"
    return bundles / PACKAGED[name] if name in PACKAGED else None


def local_scheduler(path: str | Path) -> dict[str, Any] | None:
    """The noise schedule of a bundle, read before any of its networks.

    Args:
        path: As of `local_bundle`.

    Returns:
        Its `scheduler_config.json`; None where the bundle is not here, or borrows it from another.

    Raises:
        MusiccmError: The file is damaged.
    """
    folder = local_bundle(path)
    config = None if folder is None else folder / "scheduler" / "scheduler_config.json"
    return read_json(config, "the noise schedule") if config is not None and config.is_file() else None


def local_guidance_range(path: str | Path) -> tuple[float, float] | None:
    """The guidance scales that a student may be told, read before any of its networks.

    Args:
        path: As of `local_bundle`.

    Returns:
        The lowest and the highest; None where the bundle is not here, or states none.

    Raises:
        MusiccmError: The file is damaged.
    """
    folder = local_bundle(path)
    settings = None if folder is None else folder / "musiccm.json"
    if settings is None or not settings.is_file():
        return None
    record = read_json(settings, "the bundle's settings").get("distillation")
    found = record.get("guidance_range") if isinstance(record, dict) and record.get("guidance") == "variable" else None
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(end, int | float) for end in found):
        return None
    return found[0], found[1]
