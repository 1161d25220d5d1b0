"""A byte-level BPE tokenizer of RoBERTa's kind, trained on a corpus of captions."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizerFast

# RoBERTa's own order: CLAP's text tower takes padding as id 1 and counts positions from it.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_tokenizer(captions: Iterable[str], vocab_size: int = 2000, max_length: int = 77) -> RobertaTokenizerFast:
    """Train a tokenizer that `ClapModel`'s RoBERTa text tower accepts.

    Byte-level, so that no caption, in whatever script, has an unknown token.

    Args:
        captions: The texts to count pairs in.
        vocab_size: Upper limit of the vocabulary, special tokens and the 256 bytes included.
        max_length: Longest sequence in tokens; longer captions are truncated to it.

    Returns:
        The tokenizer; `save_pretrained` writes it in the layout that `AutoTokenizer` reads.
    """
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        captions, vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in trained["merges"]]
    return RobertaTokenizerFast(vocab=trained["vocab"], merges=merges, model_max_length=max_length)
