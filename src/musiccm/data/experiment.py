"""The data module that an experiment file describes."""

from __future__ import annotations

from typing import Any

from musiccm.config import data_settings
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError


def data_module(configs: list[str], overrides: dict[str, Any], cache: str = "cache_dir") -> MusicDataModule:
    """Build the data module of an experiment file.

    Args:
        configs: Experiment files, later ones laid over earlier ones.
        overrides: Arguments that win over `data.init_args`.
        cache: Which argument names the folder that is to be written.

    Returns:
        The data module.

    Raises:
        MusiccmError: The file has no data section, or one with unknown or missing keys.
    """
    settings = data_settings(*configs)
    if not settings:
        raise MusiccmError(f"{configs[-1]}: expected a section data with class_path and init_args, found none")
    arguments = {**settings, **overrides}
    if overrides.get("kind") == "waveform":  # whoever reads the audio has no use for them
        arguments.pop("trajectories_dir", None)
    for key in ("root", "bundle", cache):
        if not arguments.get(key) and not (key == "root" and arguments.get("corpora")):
            raise MusiccmError(f"{configs[-1]}: data.init_args.{key} is needed to encode the corpus, and is not set")
    try:
        return MusicDataModule(**arguments)
    except TypeError as error:
        raise MusiccmError(f"{configs[-1]}: data.init_args do not fit MusicDataModule: {error}") from error
