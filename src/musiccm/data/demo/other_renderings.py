"""Other renderings of the demo's clips: for the same captions, what a model without a fault could answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from musiccm.audio.windows import fixed_window
from musiccm.data.corpora.labels import Clip
from musiccm.data.demo.folder import COMPOSER_VERSION
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ
from musiccm.data.demo.tracks import other_rendering

# Names as the two layouts of the demo corpus give them: <split>_<index> and <seed>_<split>-<index>.
_NAME = re.compile(r"(?:demo_composer-world_\d+_)?(?P<split>train|test|validation)[_-](?P<index>\d{6})(?:-.*)?")


class OtherRenderings(Dataset):
    """One window a clip, as `WaveformWindows` gives the middle of the clip itself.

    Args:
        clips: Clips of demo corpora.
        seeds: The corpus' seed of each.
        clip_samples: Samples in a window.
        number: Which of the other renderings, from 1.
    """

    def __init__(self, clips: Sequence[Clip], seeds: Sequence[int], clip_samples: int, number: int = 1) -> None:
        self.clips, self.seeds, self.clip_samples, self.number = list(clips), list(seeds), clip_samples, number

    @property
    def key(self) -> dict[str, Any]:
        """What decides the sound beside the clips' ids and captions: plain JSON values."""
        return {"composer_version": COMPOSER_VERSION, "seeds": sorted(set(self.seeds)), "rendering": self.number,
                "clip_samples": self.clip_samples}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Render one, under the id and the caption of its clip."""
        clip = self.clips[item]
        split, index = track_of(Path(clip.path))
        sound = torch.from_numpy(other_rendering(self.seeds[item], split, index, self.number))
        return {"waveform_S": fixed_window(sound, self.clip_samples), "tags_G": torch.zeros(0), "id": clip.id,
                "caption": clip.captions[0], "attributes": clip.attributes, "start_s": 0.0}


def track_of(path: Path) -> tuple[str, int]:
    """Split and index that a demo track's file is named after.

    Raises:
        KeyError: The file has no such name.
    """
    found = _NAME.fullmatch(Path(path).stem)
    if found is None:
        raise KeyError(Path(path).name)
    return found["split"], int(found["index"])


def other_renderings(
    clips: Sequence[Clip], clip_samples: int, sample_rate_hz: int, number: int = 1
) -> OtherRenderings | None:
    """The other renderings of some clips.

    Args:
        clips: The clips.
        clip_samples: Samples in a window.
        sample_rate_hz: Rate of the windows.
        number: Which of the other renderings, from 1.

    Returns:
        They; None where not all clips are of demo corpora that this version composes, or the rate is another.
    """
    if sample_rate_hz != SAMPLE_RATE_HZ or not clips:
        return None
    seeds = []
    known: dict[Path, int | None] = {}
    for clip in clips:
        path = Path(clip.path)
        folder = path.parent.parent  # both layouts have their files in one level of folders
        if folder not in known:
            known[folder] = _seed(folder)
        seed = known[folder]
        if seed is None or _NAME.fullmatch(path.stem) is None:
            return None
        seeds.append(seed)
    return OtherRenderings(clips, seeds, clip_samples, number)


def _seed(corpus: Path) -> int | None:
    """The seed of a demo corpus; None where a folder is none, or is one of another composer."""
    try:
        found = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
        return int(found["seed"]) if found.get("composer_version") == COMPOSER_VERSION else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
