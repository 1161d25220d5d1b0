"""Parts of a bundle that are only sampled from, read without the libraries that trained them.

Each has the library's weights and does its operations in its order, so that the same samples come out, and is compared
with it in a test. What is not computed here is read by the library, which also says what is wrong with a damaged part.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from musiccm.models.plain import clap_text, tokenizer, unet

log = logging.getLogger(__name__)

#: What can be read so, by its folder's name.
PLAIN = ("unet", "text_encoder", "tokenizer")


def read_plainly(folder: Path, name: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Read a part of a bundle as a plain module.

    Args:
        folder: Its folder, checked.
        name: One of `PLAIN`.
        config: Its configuration file, with what the bundle's settings replace of it.
        dtype: Type of the weights in memory.

    Returns:
        The part, frozen and in eval mode; None where it is the library's to read.
    """
    try:
        if name == "unet" and unet.computes(config):
            return _filled(unet.PlainUNet, config, folder / "diffusion_pytorch_model.safetensors", dtype)
        if name == "text_encoder" and clap_text.computes(config):
            return _filled(clap_text.PlainClapText, config, folder / "model.safetensors", dtype, clap_text.PREFIXES,
                           clap_text.DERIVED)
        return tokenizer.read_tokenizer(folder / "tokenizer.json", config) if name == "tokenizer" else None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # of whatever kind (`tokenizers` has its own): the library says what is wrong, or takes it
        log.debug("%s is left to the library", folder, exc_info=True)
        return None


def _filled(
    kind: type[nn.Module], config: Mapping[str, Any], path: Path, dtype: torch.dtype, prefixes: tuple[str, ...] = ("",),
    derived: tuple[str, ...] = (),
) -> nn.Module | None:
    """A network with the weights of a file; None where the file is not there or does not fit it."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefixes) and name not in derived]
            # no copies where the type is right: weights lie in memory as the libraries leave them, on which sums depend
            state = {name: file.get_tensor(name).to(dtype) for name in names}
    except (OSError, SafetensorError):
        return None
    with torch.device("meta"):  # no numbers are drawn for weights that are read
        network = kind(config)
    if {name: value.shape for name, value in state.items()} != {
            name: value.shape for name, value in network.state_dict().items()}:
        return None
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
