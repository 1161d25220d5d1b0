"""Rows of the table that need not be computed again: a teacher's, as long as nothing that they rest on has changed."""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import musiccm
from musiccm.files import write_json
from musiccm.texts import load_json

# The code that decides what a row says.
SOURCES = ("audio", "diffusion", "models", "samplers", "embedders", "metrics", "similarity",
           *(f"evaluation/{name}.py" for name in ("candidates", "distilled", "evaluator", "feature_extraction",
                                                  "network", "suite", "text_audio")))
LIBRARIES = ("torch", "diffusers", "transformers")


@cache
def source_digest(root: Path = Path(musiccm.__file__).parent) -> str:
    """A hash of the code that makes and measures samples, and of the versions of the libraries that it runs on.

    Args:
        root: The package.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(repr([(name, version(name)) for name in LIBRARIES]).encode())
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """What a latency was measured on.

    Args:
        device: Where the networks were.

    Returns:
        Processor or accelerator, threads and torch version.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


class RowCache:
    """A folder of rows, each named after a hash of everything that it depends on.

    Args:
        folder: Where the rows are; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path(self, key: dict[str, Any]) -> Path | None:
        """The file of a key.

        Args:
            key: What the row depends on, plain JSON values.

        Returns:
            Its path, whether or not it exists; None without a folder.
        """
        if self.folder is None:
            return None
        text = json.dumps({"source": source_digest(), **key}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """Look a row up.

        Args:
            key: What it depends on.

        Returns:
            What was put, or None where there is none or the file cannot be read.
        """
        path = self.path(key)
        if path is None or not path.is_file():
            return None
        try:
            found = load_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # A damaged entry costs time, not truth: the row is computed again.
        if not isinstance(found, dict) or found.get("key") != json.loads(json.dumps(key)):
            return None
        return found.get("value")

    def put(self, key: dict[str, Any], value: dict[str, Any]) -> None:
        """Keep a row.

        Args:
            key: What it depends on.
            value: The row and what belongs to it, plain JSON values.
        """
        path = self.path(key)
        if path is not None:
            write_json(path, {"key": key, "value": value})
