"""A bundle in the diffusers layout, copied with what its publisher got wrong or left out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from musiccm.errors import MusiccmError
from musiccm.models.attention_heads import SETTING, check_heads, stated_heads, trained_heads
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import PARTS
from musiccm.models.convert.assemble import Assembled
from musiccm.models.convert.clap import make_extractor, read_clap


def complete(source: str, clap: str | None = None, heads: list[int] | None = None) -> Assembled:
    """Read a bundle: with the attention heads it was trained with, and with a whole CLAP.

    Args:
        source: Folder, packaged name or hub id.
        clap: LAION's file, or a bundle with a `ClapModel`; for a bundle with CLAP's text tower alone, which must be
            this CLAP's.
        heads: Of each level of the U-Net; None takes those that `musiccm.json` states, else those of the released model
            of this shape, else the file's.

    Returns:
        Its parts.

    Raises:
        MusiccmError: A part is missing or does not fit.
    """
    bundle, made = Bundle.from_pretrained(source), Assembled()
    config = bundle.config("unet")
    own = bundle.settings.get(SETTING)
    if own is not None:
        check_heads(config, own, bundle.path)
    right = heads or own or trained_heads(config) or stated_heads(config)
    if heads or list(right) != list(stated_heads(config)):
        bundle.settings[SETTING] = list(right)
        made.record["assumed"].append(f"attention heads {list(right)}, where unet/config.json says "
                                      f"{list(stated_heads(config))}")
    for name in PARTS:
        if not (bundle.root_of(name) / name).is_dir():
            continue
        part = bundle.part(name)
        if isinstance(part, nn.Module):
            made.add(name, part, bundle.path.name, [])
        else:
            made.parts[name] = part
    if clap is not None:
        whole, dropped, ignored = read_clap(clap)
        _check_text_tower(made.parts["text_encoder"], whole, source, clap)
        made.add("text_encoder", whole, clap, dropped, ignored)
        made.parts.setdefault("feature_extractor", make_extractor(whole))
    made.mel = bundle.mel
    made.settings = {key: value for key, value in bundle.settings.items() if key not in (SETTING, "base")}
    return made


def _check_text_tower(own: nn.Module, whole: nn.Module, source: str, clap: str) -> None:
    """The U-Net was trained with the bundle's own text embeddings: another CLAP's would mean something else to it."""
    if hasattr(own, "audio_model"):
        raise MusiccmError(f"--clap {clap}: {source} has both of CLAP's towers; leave the option out")
    ours, theirs = own.state_dict(), whole.state_dict()
    shared = [name for name in ours if name.startswith(("text_model.", "text_projection."))]
    different = [name for name in shared if name in theirs and ours[name].is_floating_point()
                 and (ours[name].shape != theirs[name].shape
                      or not torch.allclose(ours[name].float(), theirs[name].float(), rtol=1e-3, atol=1e-5))]
    lacking = [name for name in shared if name not in theirs and ours[name].is_floating_point()]
    if different or lacking or not shared:
        raise MusiccmError(f"--clap {clap}: its text tower is not the one of {Path(source).name} ({len(different)} of "
                           f"{len(shared)} tensors differ, {len(lacking)} lack); the U-Net was trained with the "
                           "latter, so its audio tower is needed too. Convert the original checkpoint: it holds both")
