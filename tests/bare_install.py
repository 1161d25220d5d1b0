"""A folder that has what `pip install` of a wheel would bring, by links to what is installed here, and nothing else."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = "musiccm"


def unpacked(wheel: Path, folder: Path) -> PathDistribution:
    """The wheel's files in a folder, which is what installing it does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (info,) = folder.glob("*.dist-info")
    return PathDistribution(info)


def installed_here() -> dict[str, Distribution]:
    return {canonicalize_name(found.metadata["Name"]): found for found in distributions()}


def required(ours: Distribution, extras: Iterable[str]) -> set[str]:
    """Names of all distributions that ours with these extras asks for, whichever way round, itself left out.

    Raises:
        KeyError: One of them is not installed here, so that nothing can be said.
    """
    here = {**installed_here(), OURS: ours}
    left = [(OURS, extra) for extra in ("", *extras)]
    seen = set(left)
    while left:
        name, extra = left.pop()
        for text in here[name].requires or []:
            wanted = Requirement(text)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            new = {(canonicalize_name(wanted.name), part) for part in ("", *wanted.extras)} - seen
            left += new
            seen |= new
    return {name for name, _ in seen} - {OURS}


def link(names: Iterable[str], folder: Path) -> None:
    """Fill a folder with links to the files of distributions."""
    here = installed_here()
    folder.mkdir()
    for name in names:
        found = here[name]
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(found.locate_file(top)))
