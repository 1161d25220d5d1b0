"""A RoBERTa tokenizer read by `tokenizers`, which is what transformers' own calls; see `clap_text` for why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from musiccm.texts import read_json

CLASSES = ("RobertaTokenizer", "RobertaTokenizerFast")


class Tokens(NamedTuple):
    """What a tokenizer gives: of one text its ids; of several, [B, L] each, filled with padding behind them."""

    input_ids: Any
    attention_mask: Any = None


class PlainTokenizer:
    """Texts to tokens, called as a tokenizer of transformers is.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        model_max_length: Tokens of a text at most.
        pad_token_id: What fills rows.
    """

    def __init__(self, tokenizer: Any, model_max_length: int, pad_token_id: int) -> None:
        self._tokenizer, self.model_max_length, self.pad_token_id = tokenizer, model_max_length, pad_token_id
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: str | list[str], max_length: int | None = None, **how: Any) -> Tokens:
        """Cut texts into tokens; for one thread at a time.

        Args:
            texts: One text, which is taken whole, or several.
            max_length: Tokens that several texts are cut to, each.
            **how: What else transformers is told, and is so here always: `padding`, `truncation`, tensors, the side.

        Returns:
            The tokens.
        """
        if isinstance(texts, str):
            return Tokens(self._tokenizer.encode(texts).ids)
        self._tokenizer.enable_truncation(max_length or self.model_max_length)
        try:
            rows = [one.ids for one in self._tokenizer.encode_batch(texts)]
        finally:
            self._tokenizer.no_truncation()
        ids_BL = torch.full((len(rows), max(map(len, rows))), self.pad_token_id)
        mask_BL = torch.zeros_like(ids_BL)
        for number, row in enumerate(rows):
            ids_BL[number, : len(row)], mask_BL[number, : len(row)] = torch.tensor(row), 1
        return Tokens(ids_BL, mask_BL)


def read_tokenizer(path: Path, config: Mapping[str, Any]) -> PlainTokenizer | None:
    """Read a tokenizer; None where it is none that is computed as its file says.

    Args:
        path: `tokenizer.json` of a checked folder.
        config: `tokenizer_config.json`.
    """
    from tokenizers import Tokenizer

    length = config.get("model_max_length")
    if config.get("tokenizer_class") not in CLASSES or not path.is_file() or not isinstance(length, int):
        return None
    content = read_json(path, "a tokenizer")
    before, behind = content.get("pre_tokenizer"), content.get("post_processor")
    prefix = config.get("add_prefix_space", False)
    if content.get("normalizer") is not None or not _is(before, "ByteLevel", prefix) or not _is(
            behind, "RobertaProcessing", prefix):
        return None
    if config.get("extra_special_tokens") or config.get("additional_special_tokens"):
        return None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    padding = tokenizer.token_to_id(str(config.get("pad_token", "<pad>")))
    return None if padding is None else PlainTokenizer(tokenizer, length, padding)


def _is(part: Any, kind: str, prefix: bool) -> bool:
    return isinstance(part, Mapping) and part.get("type") == kind and part.get("add_prefix_space") == prefix
