"""The words of a corpus: clips, and the label files of Audiostock's layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from musiccm.audio import AudioFacts
from musiccm.data.corpora.text_tables import is_missing, is_text
from musiccm.errors import MusiccmError
from musiccm.texts import load_json, read_text


@dataclass(frozen=True)
class Clip:
    """One audio file of a corpus with its words.

    Args:
        id: File name without its suffix, `musiccm.texts.escaped`.
        path: The audio file, as Python opens it.
        captions: At least one sentence.
        tags: Key words.
        attributes: What is known for certain, such as `{"instrument": "piano"}`; empty for most corpora.
        audio: Length, rate and level of the file.
        source: Whom it is by, such as `{"artist": ..., "title": ...}`: for credits, never for training.
    """

    id: str
    path: str
    captions: list[str]
    tags: list[str] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)
    audio: AudioFacts = field(default_factory=lambda: AudioFacts(0, 1, 1, 0.0, 1.0))
    source: dict[str, str] = field(default_factory=dict)


class BadLabel(MusiccmError):
    """A label file that cannot be used; `reason` is one of no_label, not_json, no_caption."""

    def __init__(self, path: Path, reason: str, detail: str) -> None:
        self.path, self.reason, self.detail = path, reason, detail
        super().__init__(f"{path}: {detail}")


def read_label(path: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """Read one label file of LAION's schema for Audiostock: `text` (list), `tag` (list), `original_data` (dict).

    Args:
        path: The JSON file.

    Returns:
        `(captions, tags, attributes)`; attributes come from `original_data["attributes"]` where it exists.

    Raises:
        BadLabel: No such file, not a JSON object, or no caption in it.
    """
    try:
        label = load_json(read_text(path))
    except FileNotFoundError as error:
        raise BadLabel(path, "no_label", "no such label file; expected JSON with a list 'text'") from error
    except MusiccmError as error:
        raise BadLabel(path, "not_json", str(error).removeprefix(f"{path}: ")) from error
    except (OSError, ValueError) as error:
        raise BadLabel(path, "not_json", f"not a JSON file ({error})") from error
    if not isinstance(label, dict):
        raise BadLabel(path, "not_json", f"expected a JSON object, found a {type(label).__name__}")
    captions = _strings(label.get("text"))
    if not captions:
        found = no_words(label.get("text"))
        raise BadLabel(path, "no_caption", f"expected at least one sentence under 'text', found {found}")
    original = label.get("original_data")
    attributes = original.get("attributes") if isinstance(original, dict) else None
    attributes = {str(k): str(v) for k, v in attributes.items()} if isinstance(attributes, dict) else {}
    return captions, _strings(label.get("tag")), attributes


def _strings(value: object) -> list[str]:
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [item.strip() for item in items if isinstance(item, str) and item.strip() and is_text(item)
            and not is_missing(item)]


def no_words(value: object) -> str:
    """What stands where a caption should, for the report."""
    items = value if isinstance(value, list) else [value]
    missing = next((item for item in items if is_missing(item) or item != item), None)
    return "none" if missing is None else f"{str(missing)!r}, the word for a missing value"
