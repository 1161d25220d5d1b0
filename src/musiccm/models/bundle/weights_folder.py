"""A folder of `config.json` and `model.safetensors`: how our own networks are written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.files import write_atomically, write_text
from musiccm.models.state_dicts import require_fit
from musiccm.texts import read_json

ConfigT = TypeVar("ConfigT")


def make_config(config_class: type[ConfigT], config: ConfigT | Mapping[str, Any], where: str = "") -> ConfigT:
    """Take a configuration object, or build it from a mapping.

    Raises:
        MusiccmError: If a key is unknown or a required one is missing.
    """
    if isinstance(config, config_class):
        return config
    assert isinstance(config, Mapping)
    known = {field.name for field in fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(config) - known - {"_class_name"})
    if unknown:
        raise MusiccmError(f"{where or config_class.__name__}: unknown key(s) {', '.join(unknown)}; known are "
                           f"{', '.join(sorted(known))}")
    try:
        return config_class(**{key: value for key, value in config.items() if key in known})
    except TypeError as error:
        raise MusiccmError(f"{where or config_class.__name__}: {error}") from None


def save_weights_folder(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`."""
    folder = Path(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_text(folder / "config.json", json.dumps(dict(config), indent=2) + "\n")
    write_atomically(folder / "model.safetensors", lambda temporary: save_file(tensors, temporary))


def load_weights(module: nn.Module, folder: str | Path, ignore_prefixes: tuple[str, ...] = ()) -> None:
    """Load `model.safetensors` strictly.

    Args:
        module: The network, built from the folder's configuration.
        folder: The folder.
        ignore_prefixes: Keys of the file that the network has no use for.

    Raises:
        MusiccmError: If the file is unreadable, or its keys or sizes are not the network's.
    """
    path = Path(folder) / "model.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise MusiccmError(f"{path}: cannot be read ({error}); expected the network's weights") from None
    state = {key: value for key, value in state.items() if not key.startswith(ignore_prefixes)} if (
        ignore_prefixes) else state
    require_fit(module.state_dict(), state, str(path), "config.json and the weights do not belong together")
    module.load_state_dict(state)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a folder's `config.json`."""
    return read_json(Path(folder) / "config.json", "a network's configuration")
