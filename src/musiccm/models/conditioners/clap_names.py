"""LAION's names of CLAP's weights, and transformers' names for the same.

LAION's checkpoints (`630k-audioset-best.pt`, `music_audioset_epoch_15_esc_90.14.pt`, MusicLDM's `clap-ckpt.pt`) hold
an HTSAT audio tower, a RoBERTa text tower and two projections, as saved by github.com/LAION-AI/CLAP. `ClapModel` has
the same network with attention split into query, key and value.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from musiccm.errors import MusiccmError, reason
from musiccm.models.state_dicts import require_fit

# What a `ClapModel` works out from its configuration; whether a state dict has these differs between versions.
COMPUTED = re.compile(r"\.(position_ids|token_type_ids|relative_position_index)$")

# Weights that the two embeddings do not rest on: the front end, the tag head of HTSAT, the training loss's own layers,
# and what `COMPUTED` says.
_UNUSED = re.compile(
    r"audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\."
    r"|(audio|text)_transform\."
    r"|audio_branch\.layers\.\d+\.blocks\.\d+\.(attn_mask|attn\.relative_position_index)$"
    r"|text_branch\.embeddings\.(position_ids|token_type_ids)$"
    r"|attn_mask$"
)

# Inside a block of the audio tower.
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_AUDIO_BLOCK = re.compile(r"(layers\.\d+\.blocks\.\d+)\.(.+?)(\.weight|\.bias)?$")
_PROJECTION = re.compile(r"(audio|text)_projection\.([02])\.(weight|bias)$")
# Wrappers of whole checkpoints: data parallel training, and CLAP as a part of a latent diffusion model.
_PREFIXES = ("module.", "cond_stage_model.model.", "clap.model.", "model.")


@contextlib.contextmanager
def naming_clap(where: object) -> Iterator[None]:
    """Let whatever is wrong with a CLAP's weights name their file.

    Args:
        where: The file.

    Raises:
        MusiccmError: As raised within; or the weights fit neither each other nor the model.
    """
    try:
        yield
    except MusiccmError as error:
        raise MusiccmError(str(error) if str(error).startswith(str(where)) else f"{where}: {error}") from None
    except Exception as error:  # shapes that no CLAP has show in whatever arithmetic trips over them
        raise MusiccmError(f"{where}: CLAP checkpoint: expected the weights of LAION's CLAP with an HTSAT audio tower "
                           f"and a RoBERTa text tower, found some of another network ({reason(error)})") from error


def clap_state_from_original(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename LAION's weights for `transformers.ClapModel`.

    Args:
        state: The checkpoint's `state_dict`, with or without the `module.` of distributed training (or the
            `cond_stage_model.model.` of a MusicLDM checkpoint) before each name.

    Returns:
        State for `ClapModel`, without what it computes from its configuration (`COMPUTED`), and the names, as found, of
        what it has no use for.

    Raises:
        MusiccmError: A name is unknown, or the checkpoint has no CLAP with HTSAT and RoBERTa towers.
    """
    prefix = _prefix(state)
    renamed: dict[str, Tensor] = {}
    dropped, unknown = [], []
    for found, value in state.items():
        name = found.removeprefix(prefix)
        if not found.startswith(prefix) or _UNUSED.match(name):
            dropped.append(found)
        elif (entries := _rename(name, value)) is None:
            unknown.append(found)
        else:
            renamed |= entries
    if unknown:
        raise MusiccmError(f"CLAP checkpoint: {len(unknown)} unknown weights, first {', '.join(unknown[:3])}; expected "
                           "LAION's CLAP with an HTSAT audio tower and a RoBERTa text tower")
    return renamed, dropped


def _prefix(state: Mapping[str, Tensor]) -> str:
    """What stands before the names."""
    for prefix in ("", *_PREFIXES):
        if f"{prefix}audio_branch.patch_embed.proj.weight" in state:
            if f"{prefix}text_branch.embeddings.word_embeddings.weight" not in state:
                break
            return prefix
    shown = ", ".join(list(state)[:3]) or "nothing"
    raise MusiccmError("CLAP checkpoint: expected audio_branch.patch_embed.proj.weight and "
                       f"text_branch.embeddings.word_embeddings.weight (HTSAT and RoBERTa towers), found {shown}, ...")


def _rename(name: str, value: Tensor) -> dict[str, Tensor] | None:
    """One weight under transformers' names; None for an unknown one."""
    if name in ("logit_scale_a", "logit_scale_t"):
        return {name: value}
    if match := _PROJECTION.match(name):
        tower, position, kind = match.groups()
        return {f"{tower}_projection.linear{1 if position == '0' else 2}.{kind}": value}
    if name.startswith("text_branch."):
        return {f"text_model.{name.removeprefix('text_branch.')}": value}
    if not name.startswith("audio_branch."):
        return None
    inner, encoder = name.removeprefix("audio_branch."), "audio_model.audio_encoder"
    if inner.startswith("bn0."):
        return {f"{encoder}.batch_norm.{inner.removeprefix('bn0.')}": value}
    if match := _AUDIO_BLOCK.match(inner):
        block, part, kind = match.group(1), match.group(2), match.group(3) or ""
        if part == "attn.qkv":
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            return {f"{encoder}.{block}.attention.self.{which}{kind}": third.contiguous() for which, third in parts}
        return {f"{encoder}.{block}.{_BLOCK[part]}{kind}": value} if part in _BLOCK else None
    if re.match(r"norm\.|patch_embed\.(proj|norm|mel_conv2d|fusion_model)\.|layers\.\d+\.downsample\.", inner):
        return {f"{encoder}.{inner}": value}
    return None


def clap_config_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that a renamed state's shapes imply.

    What shapes cannot say is LAION's: spectrograms folded to 256 x 256, text heads of width 64, and RoBERTa's own
    layer-norm epsilon of 1e-5 (transformers' published conversions state 1e-12, which the originals do not have).

    Args:
        state: As `clap_state_from_original` returns it.

    Returns:
        Arguments of `transformers.ClapConfig`.

    Raises:
        MusiccmError: A weight that the shape is read from is missing, or the fusion is of a kind ClapModel lacks.
    """
    encoder = "audio_model.audio_encoder"

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise MusiccmError(f"CLAP checkpoint: expected a weight for {name}, found none; the file is incomplete")
        return tuple(state[name].shape)

    def count(pattern: str) -> int:
        return len({match.group(1) for name in state if (match := re.match(pattern, name))})

    depths = [count(rf"{re.escape(encoder)}\.layers\.{stage}\.blocks\.(\d+)\.")
              for stage in range(count(rf"{re.escape(encoder)}\.layers\.(\d+)\."))]
    tables = [shape(f"{encoder}.layers.{stage}.blocks.0.attention.self.relative_position_bias_table")
              for stage in range(len(depths))]
    width, _, patch, _ = shape(f"{encoder}.patch_embed.proj.weight")
    fusion = any(name.startswith(f"{encoder}.patch_embed.fusion_model.") for name in state)
    if fusion and f"{encoder}.patch_embed.fusion_model.local_att.0.weight" not in state:
        raise MusiccmError("CLAP checkpoint: its fusion is not attentional ('aff_2d'); ClapModel has no other kind")
    vocabulary, hidden = shape("text_model.embeddings.word_embeddings.weight")
    block = f"{encoder}.layers.0.blocks.0"
    return {
        "projection_dim": shape("text_projection.linear2.weight")[0],
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": count(r"text_model\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": max(1, hidden // 64),
            "intermediate_size": shape("text_model.encoder.layer.0.intermediate.dense.weight")[0],
            "max_position_embeddings": shape("text_model.embeddings.position_embeddings.weight")[0],
            "type_vocab_size": shape("text_model.embeddings.token_type_embeddings.weight")[0],
            "layer_norm_eps": 1e-5,
        },
        "audio_config": {
            "patch_embeds_hidden_size": width,
            "patch_size": patch,
            "patch_stride": [patch, patch],
            "hidden_size": width * 2 ** (len(depths) - 1),
            "depths": depths,
            "num_attention_heads": [table[1] for table in tables],
            "num_hidden_layers": len(depths),
            "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
            "num_mel_bins": shape(f"{encoder}.batch_norm.weight")[0],
            "mlp_ratio": shape(f"{block}.intermediate.dense.weight")[0] / width,
            "qkv_bias": f"{block}.attention.self.query.bias" in state,
            "enable_fusion": fusion,
            "fusion_type": "aff_2d" if fusion else None,
        },
    }


def load_clap_state(clap: Any, state: Mapping[str, Tensor]) -> None:
    """Load a renamed state into a `ClapModel`; nothing may be missing, unknown or of another size.

    Args:
        clap: The `ClapModel`.
        state: As `clap_state_from_original` returns it.

    Raises:
        MusiccmError: The state does not fit the model.
    """
    require_fit(clap.state_dict(), state, "CLAP checkpoint", "it is not of the model's configuration", COMPUTED)
    clap.load_state_dict(dict(state), strict=False)
