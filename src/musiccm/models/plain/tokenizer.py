"""A RoBERTa tokenizer read by `tokenizers`, which is what transformers' own calls; see `clap_text` for why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from musiccm.texts import read_json

CLASSES = ("RobertaTokenizer", "RobertaTokenizerFast")
#: What tokenizer_config.json says, where it says it, and what it may say of what is not used here.
STATED = {
    "add_prefix_space": False, "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>",
    "pad_token": "<pad>", "padding_side": "right", "sep_token": "</s>", "truncation_side": "right",
    "unk_token": "<unk>",
}
FREE = ("backend", "clean_up_tokenization_spaces", "errors", "is_local", "local_files_only", "max_length",
        "model_max_length", "pad_to_multiple_of", "pad_token_type_id", "stride", "tokenizer_class", "trim_offsets",
        "truncation_strategy")
#: Parts of tokenizer.json.
BEFORE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BEHIND = {"type": "RobertaProcessing", "add_prefix_space": False, "trim_offsets": True}
MODEL = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
         "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


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
    """Read a tokenizer; None where its files say anything that transformers may compute otherwise.

    Args:
        path: `tokenizer.json` of a checked folder.
        config: `tokenizer_config.json`.
    """
    from tokenizers import Tokenizer

    length = config.get("model_max_length")
    beside = {other.name for other in path.parent.iterdir()} - {path.name, "tokenizer_config.json"}
    if config.get("tokenizer_class") not in CLASSES or beside or not path.is_file() or type(length) is not int:
        return None
    if length < 3 or set(config) - {*STATED, *FREE}:
        return None
    if any(config.get(key, value) != value for key, value in STATED.items()):
        return None
    content = read_json(path, "a tokenizer")
    vocabulary = content["model"].pop("vocab"), content["model"].pop("merges")
    known = {token["content"]: token["id"] for token in content["added_tokens"]}
    begin, end = ([token, known[token]] for token in (STATED["cls_token"], STATED["sep_token"]))
    if not (content.get("normalizer") is None and _is(content["pre_tokenizer"], BEFORE)
            and _is(content["post_processor"], {**BEHIND, "cls": begin, "sep": end})
            and _is({**content["model"]}, MODEL) and set(known) == {STATED[key] for key in STATED if "_token" in key}):
        return None
    content["model"]["vocab"], content["model"]["merges"] = vocabulary
    return PlainTokenizer(Tokenizer.from_str(json.dumps(content)), length, known[STATED["pad_token"]])


def _is(part: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    found, wanted = ({key: value or None for key, value in one.items()} for one in (part, expected))
    return found == wanted
