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
from musiccm.data.demo.instruments import SAMPLE_RATE_HZ
from musiccm.data.demo.worlds import FIRST, DemoWorld, demo_world, world_of

# Names as the two layouts of the demo corpus give them: <split>_<index> and <seed>_<split>-<index>.
_NAME = re.compile(r"(?:demo_composer-world_\d+_)?(?P<split>train|test|validation)[_-](?P<index>\d{6})(?:-.*)?")


class OtherRenderings(Dataset):
    """One window a clip, as `WaveformWindows` gives the middle of the clip itself.

    Args:
        clips: Clips of demo corpora.
        seeds: The corpus' seed of each.
        clip_samples: Samples in a window.
        number: Which of the other renderings, from 1.
        worlds: The world of each, a key of `WORLDS`; the first one of all if not given.
    """

    def __init__(
        self, clips: Sequence[Clip], seeds: Sequence[int], clip_samples: int, number: int = 1,
        worlds: Sequence[str] | None = None,
    ) -> None:
        self.clips, self.seeds, self.clip_samples, self.number = list(clips), list(seeds), clip_samples, number
        self.worlds = [FIRST] * len(self.clips) if worlds is None else list(worlds)

    @property
    def key(self) -> dict[str, Any]:
        """What decides the sound beside the clips' ids and captions: plain JSON values."""
        versions = {name: demo_world(name).version for name in sorted(set(self.worlds))}
        others = {name: version for name, version in versions.items() if name != FIRST}
        return {"composer_version": demo_world(FIRST).version, "seeds": sorted(set(self.seeds)),
                "rendering": self.number, "clip_samples": self.clip_samples, **({"worlds": others} if others else {})}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Render one, under the id and the caption of its clip."""
        clip = self.clips[item]
        split, index = track_of(Path(clip.path))
        sound = torch.from_numpy(demo_world(self.worlds[item]).other_rendering(
            self.seeds[item], split, index, self.number))
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
    found: list[tuple[DemoWorld, int]] = []
    known: dict[Path, tuple[DemoWorld, int] | None] = {}
    for clip in clips:
        path = Path(clip.path)
        folder = path.parent.parent  # both layouts have their files in one level of folders
        if folder not in known:
            known[folder] = _origin(folder)
        origin = known[folder]
        if origin is None or _NAME.fullmatch(path.stem) is None:
            return None
        found.append(origin)
    seeds, worlds = [seed for _, seed in found], [world.name for world, _ in found]
    return OtherRenderings(clips, seeds, clip_samples, number, worlds)


def _origin(corpus: Path) -> tuple[DemoWorld, int] | None:
    """World and seed of a demo corpus; None where a folder is none, or is one of another composer."""
    try:
        found = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
        world = world_of(found)
        return None if world is None else (world, int(found["seed"]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
