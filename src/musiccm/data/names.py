"""Which file a name means that was written elsewhere: in an index, in a list, or as the name of another file.

The same name can be written in several ways. Unicode has é as one character (NFC) and as e with an accent (NFD, which
macOS writes); Windows has backslashes in its paths; a byte that is not UTF-8 is escaped (`musiccm.texts`). The exact
spelling always comes first, and where another could mean several files, none is taken.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from musiccm.errors import MusiccmError
from musiccm.texts import unescaped


class AmbiguousName(MusiccmError):
    """A name that no file has, and that could be another spelling of several."""


def with_slashes(path: str) -> str:
    """A path with slashes; one that has backslashes alone is from Windows."""
    return path if "/" in path else path.replace("\\", "/")


class FileNames:
    """The files of a folder and all below it, found by names of an index.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> Path:
        """The file that a name means.

        Args:
            name: A path relative to the root.

        Returns:
            Its path; where there is no such file, the path as it was named.

        Raises:
            AmbiguousName: Only other spellings of it exist, and more than one.
        """
        spellings = list(dict.fromkeys([name, unescaped(name), name.replace("\\", "/")]))
        for spelling in spellings:
            if os.path.lexists(self.root / spelling):
                return self.root / spelling
        return next((found for spelling in spellings if (found := self._other_form(spelling)) is not None),
                    self.root / name)

    def _other_form(self, name: str) -> Path | None:
        folder = self.root
        for part in PurePosixPath(name).parts:
            if not os.path.lexists(folder / part):
                same = self._listing(folder).get(unicodedata.normalize("NFC", part), [])
                if len(same) > 1:
                    raise AmbiguousName(f"{folder / part}: no such file, and {len(same)} whose names differ from it "
                                        f"only in their Unicode form: {', '.join(map(ascii, same))}")
                if not same:
                    return None
                part = same[0]
            folder = folder / part
        return folder

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their composed form (NFC)."""
        if folder not in self._listings:
            listing = self._listings[folder] = defaultdict(list)
            try:
                for name in sorted(os.listdir(folder)):
                    listing[unicodedata.normalize("NFC", name)].append(name)
            except OSError:
                pass  # no folder, no names: the file is reported as missing
        return self._listings[folder]


class NamePairs(NamedTuple):
    """What `pair_names` found.

    Args:
        pairs: Which name of the others each name means.
        ambiguous: Names that could mean several of the others, or share one with another name; sorted.
    """

    pairs: dict[str, str]
    ambiguous: list[str]


def pair_names(names: Iterable[str], others: Iterable[str]) -> NamePairs:
    """Pair names of two sets: equal ones first, then of the rest those that are spellings of one name.

    Args:
        names: Names, such as clip ids.
        others: Names that they may be called by, such as those of labels.

    Returns:
        The pairs, each name in at most one of them; and what could not be decided.
    """
    mine, theirs = set(names), set(others)
    pairs = {name: name for name in mine & theirs}
    left: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, rest in enumerate((mine - theirs, theirs - mine)):
        for name in sorted(rest):
            left[unicodedata.normalize("NFC", name.replace("\\", "/"))][side].append(name)
    ambiguous: list[str] = []
    for own, other in left.values():
        if len(own) == 1 and len(other) == 1:
            pairs[own[0]] = other[0]
        elif own and other:
            ambiguous += own
    return NamePairs(pairs, sorted(ambiguous))
