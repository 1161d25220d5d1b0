"""Captions of MTG-Jamendo that others released, such as those of the ATTM challenge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.texts import load_json, read_text

# As the tables have it, or the stem that was cut out of it.
_PATH = re.compile(r"(?:\./)?(\d\d/\d+)(?:_instrumental|\.low)?\.[A-Za-z0-9]+")


def read_released(path: Path) -> dict[str, str]:
    """Read a file of captions: `[{"path": "00/1085700.mp3", "caption": ...}, ...]`, as `jamendo_qwen.json` of ATTM.

    Args:
        path: The file.

    Returns:
        Caption by the path that the tables of MTG-Jamendo name, `00/1085700.mp3`.

    Raises:
        MusiccmError: It has another form, or names a track twice with different captions. Nothing is guessed.
    """
    expected = 'expected released captions, a JSON list of {"path": "00/1085700.mp3", "caption": "..."}'
    try:
        items = load_json(read_text(path, "released captions"))
    except OSError as error:
        raise MusiccmError(f"{path}: cannot be read ({error.strerror}); {expected}") from error
    except ValueError as error:
        raise MusiccmError(f"{path}: {expected}; it is no JSON ({error})") from error
    if not isinstance(items, list) or not items:
        raise MusiccmError(f"{path}: {expected}, found {'an empty list' if items == [] else type(items).__name__}")
    found: dict[str, str] = {}
    for number, item in enumerate(items, 1):
        track, caption = _entry(item)
        if track is None:
            raise MusiccmError(f"{path}: entry {number}: {expected}, found {item!r:.120}")
        if found.setdefault(track, caption) != caption:
            raise MusiccmError(f"{path}: entry {number}: two different captions of {track}; give captions of parts of "
                               "a track as a manifest (docs/data.md)")
    return found


def _entry(item: Any) -> tuple[str | None, str]:
    path, caption = (item.get("path"), item.get("caption")) if isinstance(item, dict) else (None, None)
    match = _PATH.fullmatch(path.strip()) if isinstance(path, str) else None
    if match is None or not isinstance(caption, str) or not caption.strip():
        return None, ""
    return f"{match[1]}.mp3", " ".join(caption.split())
