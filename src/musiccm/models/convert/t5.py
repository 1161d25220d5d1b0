"""A T5 encoder's weights, as they lie in another model's checkpoint, to transformers' `T5EncoderModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError, reason
from musiccm.models.bundle.files import BEYOND_THE_ENCODER
from musiccm.models.bundle.untrusted import checked_folder
from musiccm.models.convert.converted import Converted, count_below, weight

#: The one table of tokens has both names in a state dict.
TOKENS = ("shared.weight", "encoder.embed_tokens.weight")
#: What no shape tells: FLAN-T5's.
ASSUMED = {"relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}


def t5_from_original(tensors: Mapping[str, Tensor], what: str) -> Converted:
    """Read a T5 encoder's shape off its weights; they have transformers' names already.

    Args:
        tensors: Weights, named from `shared` and `encoder` on.
        what: The file, for messages.

    Returns:
        The `T5EncoderModel`.

    Raises:
        MusiccmError: It is no such encoder, or has two different tables of tokens.
    """
    state = dict(tensors)
    tables = [state[name] for name in TOKENS if name in state]
    if not tables:
        shown = ", ".join(list(tensors)[:2]) or "nothing"
        raise MusiccmError(f"{what}: expected a T5 encoder ({TOKENS[0]}), found {shown}, ...; other text encoders are "
                           "not converted")
    if len(tables) == 2 and not torch.equal(*tables):
        raise MusiccmError(f"{what}: {' and '.join(TOKENS)} differ, which are one table in a T5; the file is damaged")
    state |= dict.fromkeys(TOKENS, tables[0])
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = weight(state, f"{attention}.relative_attention_bias.weight", what).shape
    inner, width = weight(state, f"{attention}.q.weight", what).shape
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in state
    into = weight(state, f"encoder.block.0.layer.1.DenseReluDense.wi{'_0' if gated else ''}.weight", what)
    config: dict[str, Any] = {
        "vocab_size": tables[0].shape[0], "d_model": width, "d_kv": inner // heads, "d_ff": into.shape[0],
        "num_layers": count_below(state, "encoder.block."), "num_heads": heads,
        "relative_attention_num_buckets": buckets, "feed_forward_proj": "gated-gelu" if gated else "relu",
        "decoder_start_token_id": 0, **ASSUMED,
    }
    return Converted(config, state, assumed=[f"text encoder: {config['feed_forward_proj']}, {ASSUMED}, as FLAN-T5's"])


def make_t5(config: dict[str, Any]) -> nn.Module:
    """A `T5EncoderModel` of a configuration's keys."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**config))


def read_t5(name: str) -> nn.Module:
    """Read a T5 from a folder or the hub, its encoder alone.

    Raises:
        MusiccmError: It cannot be had, or is none.
    """
    from transformers import T5EncoderModel

    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise MusiccmError(f"--text-encoder {name}: no such folder; expected one with FLAN-T5's config.json and "
                           "safetensors, or a hub id such as google/flan-t5-large")
    try:
        folder = checked_folder(name, ["config.json", "*.safetensors", "*.safetensors.index.json"])
        found, report = T5EncoderModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
            output_loading_info=True)
    except MusiccmError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "could not be had"
        raise MusiccmError(f"--text-encoder {name}: cannot be had as a T5 ({reason(error)}); name a folder with "
                           "FLAN-T5's config.json and safetensors, or allow the download") from error
    stray = [key for key in report["unexpected_keys"] if not key.startswith(BEYOND_THE_ENCODER)]
    if report["missing_keys"] or stray or report["mismatched_keys"]:
        odd = [*report["missing_keys"], *stray, *report["mismatched_keys"]]
        raise MusiccmError(f"--text-encoder {name}: {len(odd)} weights are not those of its config.json, first "
                           f"{odd[0]}; restore it")
    return found.eval().requires_grad_(False)
