"""A byte-level tokenizer of T5's kind for a small text encoder: padding, an end-of-text token, single digits."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# T5's order, and the token that hides others in training.
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>", "<mask>")


def train_text_tokenizer(texts: Iterable[str], vocab_size: int = 800, max_length: int = 128) -> PreTrainedTokenizerFast:
    """Train a tokenizer that ends every text with `</s>`, also the empty one.

    Bytes are its alphabet, so that no text has an unknown token; case does not matter, and digits stay single, so that
    a number is read by its digits.

    Args:
        texts: What pairs are counted in.
        vocab_size: Upper limit of the vocabulary, special tokens and the 256 bytes included.
        max_length: Longest text in tokens; longer ones are cut.

    Returns:
        The tokenizer; `save_pretrained` writes it in the layout that `AutoTokenizer` reads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Prepend(" "),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, end, unknown, mask = SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown,
                                   mask_token=mask, model_max_length=max_length)
