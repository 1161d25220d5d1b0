"""CLAP's checkpoint to a `ClapModel` with the extractor and tokenizer that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError, reason
from musiccm.models.bundle.untrusted import load_tokenizer
from musiccm.models.conditioners.clap_names import (
    clap_config_from_state,
    clap_state_from_original,
    load_clap_state,
    naming_clap,
)
from musiccm.models.convert.reading import read_original, tensors_of

#: What LAION's CLAP takes: 10 s at 48 kHz, 64 bins from 50 Hz to 14 kHz, shorter clips repeated, then padded.
EXTRACTOR = {"feature_size": 64, "sampling_rate": 48000, "hop_length": 480, "max_length_s": 10, "fft_window_size": 1024,
             "frequency_min": 50, "frequency_max": 14000, "truncation": "rand_trunc", "padding": "repeatpad"}
#: MusicLDM pads to 512 tokens; RoBERTa has positions for as many.
MAX_TOKENS = 512


def clap_from_original(tensors: Mapping[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """Build a `ClapModel` from LAION's weights.

    Args:
        tensors: Weights under LAION's names.

    Returns:
        The model, frozen and in eval mode, and the names that it has no use for.

    Raises:
        MusiccmError: It is not a CLAP with HTSAT and RoBERTa towers.
    """
    from transformers import ClapConfig, ClapModel

    state, dropped = clap_state_from_original(tensors)
    with torch.random.fork_rng(devices=[]):  # its constructor draws weights that are replaced at once
        clap = ClapModel(ClapConfig(**clap_config_from_state(state)))
    load_clap_state(clap, {name: value.float() if value.is_floating_point() else value
                           for name, value in state.items()})
    return clap.eval().requires_grad_(False), dropped


def read_clap(path: str | Path) -> tuple[nn.Module, list[str], list[str]]:
    """Read a CLAP: LAION's file, or a folder with a `ClapModel`.

    Returns:
        The model, the names of weights in the file that it has no use for, and the keys of what is no weight.

    Raises:
        MusiccmError: It is neither.
    """
    path = Path(path)
    if path.is_dir():
        from musiccm.models.bundle.files import check_part, load_part

        folder = path if (path / "text_encoder").is_dir() else path.parent
        name = "text_encoder" if folder is path else path.name
        if name != "text_encoder":
            raise MusiccmError(f"{path}: expected CLAP's file, or a bundle with text_encoder/")
        check_part(folder, name)
        return load_part(folder, name), [], []
    tensors, ignored = tensors_of(read_original(path), path, "state_dict")
    with naming_clap(path):
        return *clap_from_original(tensors), ignored


def make_extractor(clap: nn.Module) -> Any:
    """The `ClapFeatureExtractor` of LAION's CLAP."""
    from transformers import ClapFeatureExtractor

    fusion = clap.config.audio_config.enable_fusion
    return ClapFeatureExtractor(**{**EXTRACTOR, "truncation": "fusion" if fusion else "rand_trunc"})


def read_tokenizer(name: str, known: int, expected: str = "roberta-base") -> Any:
    """A text encoder's tokenizer, from a folder or the hub.

    Args:
        name: The folder, or a hub id.
        known: Tokens that the encoder knows.
        expected: Whose tokenizer it should be, for messages.

    Raises:
        MusiccmError: It cannot be had, or has more tokens than the encoder knows.
    """
    try:
        tokenizer = load_tokenizer(name)
    except MusiccmError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "could not be had"
        raise MusiccmError(f"--tokenizer {name}: cannot be had ({reason(error)}); the original files hold no "
                           f"tokenizer. Name a folder with {expected}'s tokenizer, or allow the download") from error
    if len(tokenizer) > known:
        raise MusiccmError(f"--tokenizer {name}: has {len(tokenizer)} tokens, the text encoder {known}; it needs "
                           f"{expected}'s")
    tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TOKENS)
    return tokenizer
