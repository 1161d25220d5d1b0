"""What conditioners have in common: they are frozen, and remember the prompts that they were asked for."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.diffusion import AnyCondition, cat_conditions, choose_condition, expand_condition
from musiccm.errors import MusiccmError

log = logging.getLogger(__name__)

REMEMBERED = 256
"""Prompts whose conditions a conditioner keeps: half a megabyte of CLAP's vectors of 512, or 20 MB of the states of 20
tokens each that FLAN-T5-large has 1024 wide."""

PROMPT_LENGTHS = (32, 64, 128, 256)
"""Tokens that prompts are padded to where shapes must be few; what is longer is padded to the encoder's own number."""

# Tokenizers of transformers keep their padding in themselves, and two threads would change it under each other; nor may
# the memory change while it is tidied. One lock for all, as a lock of its own would keep a network from being copied.
ENCODING = threading.RLock()

AnyConditioner = TypeVar("AnyConditioner", bound="Conditioner")


class Conditioner(nn.Module):
    """A bundle's frozen text encoder, as systems, pipelines and long music see it.

    A subclass sets `width`, of a vector or of a token, and implements `text`; one that `draws` what it tells takes
    seeds there, others also implement `features`, `encode` and
    `read_in_bf16`.
    """

    width: int
    tokenizer: Any
    #: Tokens of a text at most.
    max_tokens: int
    #: Whether texts are padded to one of few lengths, for networks that are compiled for each shape.
    few_lengths = False
    #: Whether a condition is drawn, so that it depends on a seed too.
    draws = False
    #: Network evaluations by which what it tells was written so far, of one that draws token by token.
    written = 0

    def __init__(self) -> None:
        super().__init__()
        self._remembered: dict[tuple[str, int | None], AnyCondition] = {}  # least recently asked for first

    def _apply(self: AnyConditioner, fn: Any, recurse: bool = True) -> AnyConditioner:
        """Forget the conditions of weights that are moved or cast."""
        self._remembered.clear()
        return super()._apply(fn, recurse)

    def train(self: AnyConditioner, mode: bool = True) -> AnyConditioner:
        """Stay in eval mode: dropout would make the condition random (MusicLDM's own inference suffers from that)."""
        return super().train(False)

    @property
    def has_audio(self) -> bool:
        """Whether it embeds audio too."""
        return False

    @property
    def reader(self) -> Conditioner:
        """What reads texts: itself, or that from whose reading it draws what it tells."""
        return self

    def text(self, texts: list[str]) -> AnyCondition:
        """Encode texts together.

        Args:
            texts: Captions; the empty string is the null condition.

        Returns:
            A batch of conditions.

        Raises:
            MusiccmError: If `texts` is not a non-empty list of strings.
        """
        raise NotImplementedError

    def tokenized(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Cut texts into tokens, padded to the longest of them; to one of few lengths where `few_lengths` says so.

        Args:
            texts: See `text`.

        Returns:
            Token ids and a mask that is True where there is a token, [B, L] each, on the CPU.

        Raises:
            MusiccmError: As `text`.
        """
        with ENCODING:
            tokens = tokenize(self.tokenizer, texts, self.max_tokens, padding_side="right")
        found = tokens.input_ids, tokens.attention_mask.bool()
        return self.padded(*found) if self.few_lengths else found

    def padded(self, ids_BL: Tensor, mask_BL: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokens with padding behind them.

        Args:
            ids_BL: Token ids, see `tokenized`.
            mask_BL: Their mask.
            length: Tokens wanted; by default the next of `PROMPT_LENGTHS`, or what the encoder takes.

        Returns:
            Both, padded.
        """
        if length is None:
            fitting = (one for one in PROMPT_LENGTHS if ids_BL.shape[1] <= one < self.max_tokens)
            length = next(fitting, self.max_tokens)
        missing = length - ids_BL.shape[1]
        return F.pad(ids_BL, (0, missing), value=self.tokenizer.pad_token_id), F.pad(mask_BL, (0, missing))

    def read_in_bf16(self) -> None:
        """Compute the text encoder's products in bf16 from now on, by a copy; the bundle's own stays as it is."""
        self._remembered.clear()

    def features(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """What the encoder gives of tokens: of `encode`, what is computed by a network.

        Args:
            ids_BL: See `encode`.
            mask_BL: See `encode`.

        Returns:
            Vectors [B, D], or states of tokens [B, L, D].
        """
        raise NotImplementedError

    def encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> AnyCondition:
        """Encode tokens, without a wait for the device where there is a mask.

        Args:
            ids_BL: Token ids on the encoder's device, padding behind them.
            mask_BL: True where there is a token; None where there is no padding.

        Returns:
            A batch of conditions, which padding changes by rounding alone.
        """
        raise NotImplementedError

    def prompts(self, texts: list[str], seeds: Sequence[int] | None = None, whole: bool = True) -> AnyCondition:
        """Encode texts one by one, and remember them: what a pipeline asks for, from any thread.

        Each is encoded at its own length: padding costs time and alters the last bits, so that a condition would depend
        on what else was asked for. The weights must not change between calls (`to` forgets).

        Args:
            texts: See `text`.
            seeds: One a text, of what is drawn (`draws`); without effect where nothing is.
            whole: Refuse a text of more tokens than are read, where the encoder gives tokens; else it is cut, as `text`
                does with the captions of a corpus.

        Returns:
            A batch of conditions, without gradients.

        Raises:
            MusiccmError: As `text`; or a text is too long.
        """
        check_texts(texts)
        if whole:
            self.require_whole(texts)
        with ENCODING:
            drawn = [None] * len(texts) if seeds is None or not self.draws else list(seeds)
            return cat_conditions([self._row(text, seed) for text, seed in zip(texts, drawn, strict=True)])

    def require_whole(self, texts: list[str]) -> None:
        """Refuse prompts that would be cut, where the encoder gives tokens; CLAP reads their beginning, as in training.

        Raises:
            MusiccmError: A text has more tokens than are read.
        """

    def _row(self, text: str, seed: int | None) -> AnyCondition:
        row = self._remembered.pop((text, seed), None)
        if row is None:
            # Lightning validates in inference mode, and a row made there could not be used in training.
            with torch.inference_mode(False), torch.no_grad():
                row = self.text([text]) if seed is None else self.text([text], [seed])  # type: ignore[call-arg]
        self._remembered[text, seed] = row
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return row

    def null(self, batch: int) -> AnyCondition:
        """The null condition, that of the empty text; of tokens with its own mask.

        Args:
            batch: Items wanted.

        Returns:
            A batch of conditions, all the same.
        """
        return expand_condition(self.prompts([""]), batch)

    def of_windows(
        self, text_BD: AnyCondition, audio_BD: Tensor | None, semantic_BL: Tensor | None, audio_B: Tensor
    ) -> AnyCondition:
        """What a network is told of recordings in training.

        Args:
            text_BD: Conditions of their captions.
            audio_BD: Embeddings of their own sound, where the cache has them.
            semantic_BL: Their semantic tokens, where the cache has them.
            audio_B: Where the sound takes the place of the caption; without effect where there is no embedding of it.

        Returns:
            A batch of conditions.

        Raises:
            MusiccmError: What such a network is told is not there.
        """
        return text_BD if audio_BD is None else choose_condition(audio_B, audio_BD, text_BD)


def check_texts(texts: Any) -> None:
    """Refuse what is no list of texts.

    Raises:
        MusiccmError: It is empty, a single text, or holds something else.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise MusiccmError(f"expected a non-empty list of texts, found {texts!r}")


def tokenize(tokenizer: Any, texts: list[str], max_tokens: int, **options: Any) -> Any:
    """Cut texts into tokens, padded to the longest of them; a warning names a text that is too long.

    Args:
        tokenizer: Of transformers.
        texts: The texts.
        max_tokens: What the encoder takes at most.
        **options: Passed to the tokenizer.

    Returns:
        `input_ids` and `attention_mask`, [B, L] each.

    Raises:
        MusiccmError: As `check_texts`.
    """
    check_texts(texts)
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt",
                       **options)
    for text, length in zip(texts, tokens.attention_mask.sum(dim=1).tolist(), strict=True):
        # only a text that fills the encoder may be a longer one
        if length == max_tokens and (count := token_count(tokenizer, text)) > length:
            _warn_of_cut(count, length, text)
    return tokens


def token_count(tokenizer: Any, text: str) -> int:
    """Tokens of a whole text, whatever an encoder reads of them."""
    return len(tokenizer(text, verbose=False).input_ids)


@functools.lru_cache(maxsize=4096)  # each once: an evaluation reads the same captions for every model
def _warn_of_cut(count: int, length: int, text: str) -> None:
    log.warning("a text of %d tokens is cut to the %d that the text encoder reads: %.60s...", count, length, text)
