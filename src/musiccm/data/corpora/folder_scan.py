"""What lies in a folder: its audio, and all that is passed over, so that nothing is left out in silence."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from musiccm.audio import ffmpeg_formats
from musiccm.audio.io import AUDIO_SUFFIXES, readable_suffixes
from musiccm.data.corpora.report import BadItem
from musiccm.errors import MusiccmError
from musiccm.texts import escaped

# Audio by its name that is not read: a clip that is missing, where a text or picture is nothing to miss.
OTHER_AUDIO = (*ffmpeg_formats.SUFFIXES, ".aif", ".aiff", ".aifc", ".wma", ".caf", ".au", ".snd",
               ".amr", ".ape", ".alac", ".wv", ".mp2", ".w64", ".mpc", ".ac3", ".dsf", ".tta")
# What this package writes into such a folder itself: findings of a scan, locks and temporary files.
_OWN = re.compile(r"\.scan-\w+\.json|\.musiccm.*")


@dataclass
class FolderScan:
    """The files of a folder and all below it, in the order of their paths.

    Args:
        root: The folder.
        readable: Endings of the files that are tried.
        audio: Files that can be tried, by their suffix; links to files are followed.
        left_out: What may hold audio and is not read: links to folders, broken links, folders that cannot be listed,
            pipes and the like, audio of other kinds.
        passed_over: The rest: hidden entries and files that are no audio.
    """

    root: Path
    readable: tuple[str, ...] = field(default_factory=readable_suffixes)
    audio: list[Path] = field(default_factory=list)
    left_out: list[BadItem] = field(default_factory=list)
    passed_over: list[BadItem] = field(default_factory=list)

    def notes(self, what: str) -> list[str]:
        """Sentences about what was passed over, one a reason.

        Args:
            what: The folder, in a few words.
        """
        words = {"not_audio": "no audio by their names", "hidden": "hidden"}
        first: dict[str, str] = {}
        for item in self.passed_over:
            first.setdefault(item.reason, item.path)
        counts = Counter(item.reason for item in self.passed_over)
        return [f"{what}: {counts[reason]} entries are {words[reason]}, first {first[reason]}"
                for reason in sorted(counts)]

    def instead(self) -> str:
        """What was found where no audio was, for a message; empty where that is nothing."""
        counts = Counter(item.reason for item in (*self.left_out, *self.passed_over))
        return f" ({', '.join(f'{n} {reason}' for reason, n in sorted(counts.items()))})" if counts else ""


def scan_folder(root: Path) -> FolderScan:
    """Look through a folder and all below it; nothing is decoded.

    Args:
        root: The folder.

    Returns:
        What lies in it.

    Raises:
        MusiccmError: There is no such folder.
    """
    if not root.is_dir():
        raise MusiccmError(f"{root}: no such folder; expected one with audio files in it")
    scan = FolderScan(root)
    _enter(scan, root)
    scan.audio.sort()
    for items in (scan.left_out, scan.passed_over):
        items.sort(key=lambda item: item.path)
    return scan


def _enter(scan: FolderScan, folder: Path) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if folder == scan.root:
            raise MusiccmError(f"{folder}: the folder cannot be listed ({error.strerror})") from error
        scan.left_out.append(_item(scan, folder, "unreadable", f"the folder cannot be listed ({error.strerror})"))
        return
    for entry in entries:
        path = folder / entry.name
        suffix = path.suffix.lower()
        if _OWN.fullmatch(entry.name):
            continue
        if entry.name.startswith("."):
            scan.passed_over.append(_item(scan, path, "hidden", "its name begins with a dot"))
        elif entry.is_dir(follow_symlinks=False):
            _enter(scan, path)
        elif entry.is_symlink() and os.path.isdir(path):
            scan.left_out.append(_item(scan, path, "link_not_followed", f"a link to the folder {_target(path)}; put "
                                       "the files here, or name that folder"))
        elif entry.is_symlink() and not os.path.exists(path):
            scan.left_out.append(_item(scan, path, "broken_link", f"a link to {_target(path)}, out of reach"))
        elif not os.path.isfile(path):
            scan.left_out.append(_item(scan, path, "not_a_file", "a pipe, socket or device, no regular file"))
        elif suffix in scan.readable:
            scan.audio.append(path)
        elif suffix in OTHER_AUDIO:
            to_read = f"{ffmpeg_formats.INSTALL}; or " if suffix in ffmpeg_formats.SUFFIXES else ""
            scan.left_out.append(_item(scan, path, "unsupported", f"{suffix} is not read; {to_read}convert it to "
                                       f"{', '.join(AUDIO_SUFFIXES)}"))
        else:
            scan.passed_over.append(_item(scan, path, "not_audio", f"expected {', '.join(AUDIO_SUFFIXES)}"))


def _item(scan: FolderScan, path: Path, reason: str, detail: str) -> BadItem:
    return BadItem(clip_id(scan.root, path), escaped(path), reason, detail)


def _target(path: Path) -> str:
    return escaped(os.readlink(path))


def clip_id(root: Path, path: Path) -> str:
    """What a clip of a folder is known by: its path below the folder without the suffix, `escaped`."""
    return escaped(path.relative_to(root).with_suffix("").as_posix())
