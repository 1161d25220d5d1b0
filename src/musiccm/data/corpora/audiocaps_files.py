"""Where the audio of an AudioCaps clip lies: people name and sort the files in several ways."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from musiccm.data.corpora.folder_scan import FolderScan, scan_folder
from musiccm.data.corpora.report import BadItem
from musiccm.data.names import AmbiguousName
from musiccm.texts import escaped

#: Seconds of a clip: AudioSet's.
SECONDS = 10
#: Letters of YouTube's ids, which may hold underscores and digits themselves.
VIDEO_LENGTH = 11
_STEM = re.compile(r"(?P<video>.+)_(?P<start>\d+(\.\d+)?)")


@dataclass(frozen=True)
class ClipName:
    """A clip by its video and where it begins.

    Args:
        video: YouTube's id.
        start: Seconds, as `30` or `4.5`; empty where an index does not say it.
        number: `audiocap_id` of the official tables.
        stem: Of the file that an index names.
    """

    video: str
    start: str = ""
    number: str = ""
    stem: str = ""

    @property
    def id(self) -> str:
        """What the clip is called: `<video>_<start>`."""
        return f"{self.video}_{self.start}" if self.start else self.video

    def stems(self) -> Iterator[str]:
        """Names of its file without the suffix, the one that decides first."""
        if self.stem:
            yield self.stem
        for video in (self.video, f"Y{self.video}"):
            if self.start:
                start = float(self.start)
                yield f"{video}_{self.start}"
                yield f"{video}_{self.start}_{_number(start + SECONDS)}"
                yield f"{video}_{round(start * 1000)}_{round((start + SECONDS) * 1000)}"
        if self.number:
            yield self.number


def clip_name(stem: str) -> ClipName:
    """The clip that a file of the name `<video>_<start>` holds; any other name is a video's."""
    match = None if len(stem) == VIDEO_LENGTH else _STEM.fullmatch(stem)
    start = None if match is None else seconds(match["start"])
    return ClipName(stem, stem=stem) if match is None or start is None else ClipName(match["video"], start, stem=stem)


def seconds(text: str) -> str | None:
    """A number of seconds as file names have it, `30` for `30.0`; None for what is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return _number(value) if 0 <= value < 1e6 else None


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


class ClipFiles:
    """The audio below a folder, found by the clips' names.

    A file is looked for as `<video>_<start>`, `<video>_<start>_<end>` in seconds and in milliseconds (AudioSet's
    downloads), each with a `Y` before it too, by the official `audiocap_id`, and at last as `<video>` alone, which
    serves only where the index names one clip of that video. Of several files the one in a folder that is called by the
    split is meant.

    Args:
        folder: Searched through.
        names: What its sub-folders may call the split.
        clips: All clips of the index.
    """

    def __init__(self, folder: Path, names: Sequence[str], clips: Sequence[ClipName]) -> None:
        self.scan: FolderScan = scan_folder(folder)
        self._names = {name.lower() for name in names}
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.scan.audio:
            self._by_stem[path.stem].append(path)
        # by their names these are audio, and somebody wanted them here
        self._unread = {Path(item.path).stem: item for item in self.scan.left_out if item.reason != "link_not_followed"}
        self._starts: dict[str, set[str]] = defaultdict(set)
        for clip in clips:
            self._starts[clip.video].add(clip.start)

    def find(self, clip: ClipName) -> Path | BadItem | None:
        """The file of a clip.

        Args:
            clip: One of the index.

        Returns:
            The file; what lies there instead and cannot be read; None where nothing does.

        Raises:
            AmbiguousName: Several files could be meant.
        """
        for stem in clip.stems():
            if found := self._by_stem.get(stem):
                return self._one(found)
        for stem in (clip.video, f"Y{clip.video}"):
            if found := self._by_stem.get(stem):
                if len(self._starts[clip.video]) > 1:
                    raise AmbiguousName(f"{escaped(found[0])}: has no start in its name, and the index names "
                                        f"{len(self._starts[clip.video])} clips of this video")
                return self._one(found)
        stems = [*clip.stems(), clip.video, f"Y{clip.video}"]
        return next((self._unread[stem] for stem in stems if stem in self._unread), None)

    def _one(self, found: list[Path]) -> Path:
        if len(found) > 1:
            ours = [path for path in found
                    if self._names & {part.lower() for part in path.relative_to(self.scan.root).parts[:-1]}]
            if len(ours) != 1:
                shown = ", ".join(escaped(path) for path in (ours or found)[:3])
                raise AmbiguousName(f"{len(ours or found)} files could be meant: {shown}; keep one")
            return ours[0]
        return found[0]
