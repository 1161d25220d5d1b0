"""Which tags a multi-label classifier knows, and in what order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from musiccm.data.corpora.labels import Clip
from musiccm.errors import MusiccmError
from musiccm.files import write_json
from musiccm.texts import load_json, read_text

# An attribute with more values than this is a number or a name rather than a class.
MAX_VALUES_PER_GROUP = 32


def clip_labels(clip: Clip) -> set[str]:
    """All labels of a clip: its tags, and `group:value` for each of its attributes."""
    return set(clip.tags) | {f"{group}:{value}" for group, value in clip.attributes.items()}


@dataclass(frozen=True)
class TagVocabulary:
    """An ordered list of labels; `group:value` names form groups of which a clip has at most one.

    Args:
        names: The labels, in the order of the classifier's outputs.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise MusiccmError("a tag vocabulary needs at least one name, each once")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_clips(cls, clips: Iterable[Clip], min_count: int = 1) -> TagVocabulary:
        """Collect the labels of a corpus, sorted by name.

        Attributes are used where every clip has them, tags otherwise: a tag repeats what an attribute states.

        Args:
            clips: The training clips.
            min_count: Rarer labels are dropped.

        Returns:
            The vocabulary.

        Raises:
            MusiccmError: Nothing is left.
        """
        clips = list(clips)
        if clips and all(clip.attributes for clip in clips):
            counts = Counter(f"{g}:{v}" for clip in clips for g, v in clip.attributes.items())
            values = Counter(name.split(":", 1)[0] for name in counts)
            names = [n for n in counts if 2 <= values[n.split(":", 1)[0]] <= MAX_VALUES_PER_GROUP]
        else:
            counts = Counter(tag for clip in clips for tag in set(clip.tags))
            names = list(counts)
        names = sorted(name for name in names if counts[name] >= min_count)
        if not names:
            raise MusiccmError(f"no tag occurs in {min_count} or more of {len(clips)} clips: the labels need 'tag'")
        return cls(tuple(names))

    @property
    def groups(self) -> dict[str, list[int]]:
        """Positions of the labels of each `group:value` group."""
        groups: dict[str, list[int]] = {}
        for position, name in enumerate(self.names):
            if ":" in name:
                groups.setdefault(name.split(":", 1)[0], []).append(position)
        return groups

    def encode(self, clip: Clip) -> Tensor:
        """Multi-hot float vector of shape [len(self)]; labels outside the vocabulary are left out."""
        labels = clip_labels(clip)
        return torch.tensor([float(name in labels) for name in self.names])

    def save(self, path: Path) -> None:
        """Write the names as a JSON list."""
        write_json(path, list(self.names))

    @classmethod
    def load(cls, path: Path) -> TagVocabulary:
        """Read a JSON list of names, or a JSON object that holds one under `tags`.

        Args:
            path: The file, such as the `config.json` of a tagger.

        Returns:
            The vocabulary.

        Raises:
            MusiccmError: The file is missing or holds something else.
        """
        try:
            names = load_json(read_text(Path(path)))
        except (OSError, ValueError) as error:
            raise MusiccmError(f"{path}: expected a JSON list of tags ({error})") from error
        names = names.get("tags") if isinstance(names, dict) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MusiccmError(f"{path}: expected a JSON list of tags, or one under 'tags'")
        return cls(tuple(names))
