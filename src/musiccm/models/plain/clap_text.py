"""CLAP's text tower (RoBERTa) as a module that needs torch and nothing else, with the weights of a `ClapModel`.

Importing transformers costs more processor time than a clip of a small model (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Beginnings of the weights' names that are the text tower's; the rest of a ClapModel is its audio tower.
PREFIXES = ("text_model.", "text_projection.")
#: Buffers of transformers' class that are written with the weights and follow from the configuration.
DERIVED = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
NEEDED = ("hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings", "num_attention_heads",
          "num_hidden_layers", "pad_token_id", "projection_dim", "type_vocab_size", "vocab_size")


def computes(config: Mapping[str, Any]) -> bool:
    """Whether `PlainClapText` is the text tower of a configuration.

    Args:
        config: `text_encoder/config.json`.
    """
    text = config.get("text_config")
    return (config.get("model_type") == "clap" and isinstance(text, Mapping) and all(key in text for key in NEEDED)
            and text.get("hidden_act") == "gelu" and text.get("projection_hidden_act") == "relu"
            and config.get("projection_hidden_act", "relu") == "relu"  # which transformers follows
            and text.get("is_decoder", False) is False and text.get("chunk_size_feed_forward", 0) == 0
            and config.get("projection_dim") == text["projection_dim"]
            and text["hidden_size"] % text["num_attention_heads"] == 0)


class Embedded(NamedTuple):
    """What the tower gives: unit vectors [B, D]."""

    text_embeds: Tensor


def _table(rows: int, c: SimpleNamespace) -> nn.Embedding:
    """An embedding whose numbers are not drawn: PyTorch would import its compiler to draw some on no device."""
    return nn.Embedding.from_pretrained(torch.empty(rows, c.hidden_size))


class _Embeddings(nn.Module):
    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.padding = c.pad_token_id
        self.word_embeddings = _table(c.vocab_size, c)
        self.position_embeddings = _table(c.max_position_embeddings, c)
        self.token_type_embeddings = _table(c.type_vocab_size, c)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(self, ids_BL: Tensor) -> Tensor:
        token = ids_BL.ne(self.padding).int()
        places_BL = (token.cumsum(1).type_as(token) * token).long() + self.padding
        embedded = self.word_embeddings(ids_BL) + self.token_type_embeddings(torch.zeros_like(ids_BL))
        return self.LayerNorm(embedded + self.position_embeddings(places_BL))


class _SelfAttention(nn.Module):
    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.heads, self.scale = c.num_attention_heads, (c.hidden_size // c.num_attention_heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(c.hidden_size, c.hidden_size) for _ in range(3))

    def forward(self, x_BLC: Tensor, mask_BL: Tensor | None) -> Tensor:
        q, k, v = (to(x_BLC).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for to in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) * self.scale
        if mask_BL is not None:
            scores = scores.masked_fill(~mask_BL[:, None, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        return (weights @ v).transpose(1, 2).flatten(2)


class _Added(nn.Module):
    """A linear layer whose output is added to what it is computed beside, and a norm."""

    def __init__(self, taken: int, c: SimpleNamespace) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(taken, c.hidden_size), nn.LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(self, y_BLC: Tensor, x_BLC: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(y_BLC) + x_BLC)


class _Layer(nn.Module):
    def __init__(self, c: SimpleNamespace) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _SelfAttention(c), "output": _Added(c.hidden_size, c)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(c.hidden_size, c.intermediate_size)})
        self.output = _Added(c.intermediate_size, c)

    def forward(self, x_BLC: Tensor, mask_BL: Tensor | None) -> Tensor:
        x_BLC = self.attention["output"](self.attention["self"](x_BLC, mask_BL), x_BLC)
        return self.output(F.gelu(self.intermediate["dense"](x_BLC)), x_BLC)


class PlainClapText(nn.Module):
    """CLAP's text tower and projection.

    Args:
        config: `text_encoder/config.json` of a CLAP that it `computes`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = c = SimpleNamespace(**config["text_config"])
        self.text_model = nn.ModuleDict({
            "embeddings": _Embeddings(c),
            "encoder": nn.ModuleDict({"layer": nn.ModuleList([_Layer(c) for _ in range(c.num_hidden_layers)])}),
            "pooler": nn.ModuleDict({"dense": nn.Linear(c.hidden_size, c.hidden_size)}),
        })
        self.text_projection = nn.ModuleDict({"linear1": nn.Linear(c.hidden_size, c.projection_dim),
                                              "linear2": nn.Linear(c.projection_dim, c.projection_dim)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Embedded:
        """Embed texts, called as `ClapTextModelWithProjection` is.

        Args:
            input_ids: Tokens [B, L], padding behind them.
            attention_mask: 1 where there is a token, 0 for padding; None where there is no padding.

        Returns:
            Unit vectors.
        """
        mask_BL = None if attention_mask is None else attention_mask.bool()
        x_BLC = self.text_model["embeddings"](input_ids)
        for layer in self.text_model["encoder"]["layer"]:
            x_BLC = layer(x_BLC, mask_BL)
        pooled_BC = self.text_model["pooler"]["dense"](x_BLC[:, 0]).tanh()
        projected = self.text_projection["linear2"](F.relu(self.text_projection["linear1"](pooled_BC)))
        return Embedded(F.normalize(projected, dim=-1))
