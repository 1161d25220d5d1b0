"""From a prompt to what a dual-path network is told: tokens that a language model writes after the prompt's CLAP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musiccm.audio.windows import keyed_seed
from musiccm.diffusion import AnyCondition, Condition
from musiccm.errors import MusiccmError
from musiccm.models.conditioners.prompt_memory import Conditioner, check_texts
from musiccm.models.melody.features import FeatureSource
from musiccm.models.melody.semantic_lm import SemanticLM
from musiccm.models.melody.tokenizer import SemanticTokenizer

#: Plans of clips that are remembered, a number a token each: more than an evaluation asks of several models.
REMEMBERED_PLANS = 16384


class SemanticConditioner(Conditioner):
    """Plans clips, and pieces of any length (`writer`), by semantic tokens.

    What is planned is drawn: it depends on the prompt and its seed, and on nothing else.

    Args:
        joint: The text encoder's conditioner, a CLAP's.
        tokenizer: Ids to vectors.
        lm: The language model of its tokens; None where nothing is planned, as in training on tokens of recordings.
        tokens: Tokens of a clip.
        where: The folder that they come from, as it stands before a part's name in a message.
        temperature: Of the draws, see `SemanticLM.stream`.
        top_k: Of the draws.
        features: Gives what the tokenizer takes features of sound by, where tokens of sound are asked for.
    """

    def __init__(
        self, joint: Conditioner, tokenizer: SemanticTokenizer, lm: SemanticLM | None, tokens: int, where: str = "",
        temperature: float = 1.0, top_k: int | None = None, features: Callable[[], FeatureSource] | None = None,
    ) -> None:
        super().__init__()
        self.joint, self.tokenizer, self.lm, self.tokens = joint, tokenizer, lm, tokens
        self.where, self.temperature, self.top_k = where, temperature, top_k
        self.width, self._features = tokenizer.width, features
        #: Tokens that were written so far, one network evaluation each.
        self.written = 0
        self._plans: dict[tuple[str, int, int], list[int]] = {}  # least recently asked for first

    draws = True

    def _apply(self, fn: Any, recurse: bool = True) -> SemanticConditioner:
        """Forget the plans of weights that are moved or cast."""
        self._plans.clear()
        return super()._apply(fn, recurse)

    @property
    def reader(self) -> Conditioner:
        """The text encoder's conditioner, see `Conditioner.reader`."""
        return self.joint

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.centroids_KD.device

    def text(self, texts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        """Plan clips.

        Args:
            texts: Captions.
            seeds: One a caption; one that follows from the caption and its place if not given.

        Returns:
            Vectors of their tokens.

        Raises:
            MusiccmError: If `texts` is not a non-empty list of strings, or there is no language model.
        """
        check_texts(texts)
        given = [keyed_seed(place, text) for place, text in enumerate(texts)] if seeds is None else seeds
        # One by one: the rounding of a batch could turn a draw, and then all that follow.
        ids = [self.write(text, self.tokens, seed) for text, seed in zip(texts, given, strict=True)]
        return self.vectors(torch.stack(ids))

    def null(self, batch: int) -> Condition:
        """No tokens at all."""
        nothing = torch.zeros(batch, 1, self.width, device=self.device)
        return Condition(nothing, torch.zeros(batch, 1, dtype=torch.bool, device=self.device))

    def vectors(self, ids_BL: Tensor) -> Condition:
        """The condition of token ids."""
        vectors_BLD = self.tokenizer.vectors(ids_BL)
        return Condition(vectors_BLD, torch.ones(vectors_BLD.shape[:2], dtype=torch.bool, device=vectors_BLD.device))

    def of_windows(
        self, text_BD: AnyCondition, audio_BD: Tensor | None, semantic_BL: Tensor | None, audio_B: Tensor
    ) -> Condition:
        """What training is conditioned on: tokens of the recordings themselves.

        Raises:
            MusiccmError: The batch has none.
        """
        if semantic_BL is None:
            raise MusiccmError("data.tokens_dir: a dual-path network is conditioned on semantic tokens, which the "
                               "batches lack; set it to the cache that `musiccm prepare tokens` writes")
        return self.vectors(semantic_BL)

    def write(self, text: str, count: int, seed: int) -> Tensor:
        """The first tokens of a piece, ids [count]; those that were asked for before are remembered."""
        plan = self._plans.pop((text, count, seed), None)
        if plan is None:
            plan = self.writer(lambda number: (text, seed)).ids(0, count).tolist()
        self._plans[text, count, seed] = plan
        if len(self._plans) > REMEMBERED_PLANS:
            self._plans.pop(next(iter(self._plans)), None)
        return torch.tensor(plan, device=self.device)

    def forget(self, texts: Sequence[str], seeds: Sequence[int]) -> None:
        """Forget the plans of clips, so that they are written again: what is remembered takes no time."""
        for text, seed in zip(texts, seeds, strict=True):
            self._plans.pop((text, self.tokens, seed), None)

    def stream(self, text: str, seed: int, before: Sequence[int] = ()) -> Callable[[], int]:
        """What gives the next token after some others at each call.

        Raises:
            MusiccmError: There is no language model.
        """
        if self.lm is None:
            raise MusiccmError(f"{self.where}semantic_lm: no such part, and prompts are planned by it; train one by "
                               "experiments/melody/stages/semantic_lm.yaml")
        prefix_BQ = self.lm.prefix(self.joint.prompts([text]))  # type: ignore[arg-type]
        start_BL = torch.tensor([list(before)], dtype=torch.long, device=prefix_BQ.device) if before else None
        tokens = self.lm.stream(prefix_BQ, [seed], self.temperature, self.top_k, start_BL)

        def following() -> int:
            self.written += 1
            return int(next(tokens))

        return following

    def writer(
        self, told_at: Callable[[int], tuple[str, int]], known: Mapping[int, int] | None = None
    ) -> TokenWriter:
        """The tokens of a piece of any length, see `TokenWriter`."""
        return TokenWriter(self, told_at, known)

    def ids(self, waveform_BS: Tensor, sample_rate_hz: int) -> Tensor:
        """Tokens of sound that is there, [B, L].

        Raises:
            MusiccmError: The tokenizer's features are not to be had.
        """
        if self._features is not None and not self.tokenizer.has_source:
            self.tokenizer.use(self._features())
        return self.tokenizer.ids(waveform_BS, sample_rate_hz)


class TokenWriter:
    """Tokens of one piece, written when they are asked for, in order, and forgotten behind what was asked for.

    Args:
        conditioner: With a language model.
        told_at: Text and seed in force at a token, by its number; they may change for tokens that are not written yet.
        known: Tokens that are there already, by number: of sound that is kept.
    """

    def __init__(
        self, conditioner: SemanticConditioner, told_at: Callable[[int], tuple[str, int]],
        known: Mapping[int, int] | None = None,
    ) -> None:
        self.conditioner, self.told_at, self.known = conditioner, told_at, dict(known or {})
        self._ids: list[int] = []
        self._first = 0  # number of the token that `_ids` begins with
        self._next: Callable[[], int] | None = None
        self._text = ""

    @torch.no_grad()
    def ids(self, first: int, last: int) -> Tensor:
        """Ids [last - first] of the tokens from `first` to before `last`.

        Args:
            first: Not before the first token of the last call: what lies before that may be forgotten.
            last: The token behind the last one.

        Raises:
            MusiccmError: There is no language model.
        """
        while self._first + len(self._ids) < last:
            self._ids.append(self._following(self._first + len(self._ids)))
        lm = self.conditioner.lm
        keep = first - (0 if lm is None else lm.config.tokens)  # what a change of text goes on from
        if keep > self._first:
            self._ids, self._first = self._ids[keep - self._first :], keep
        return torch.tensor(self._ids[first - self._first : last - self._first], device=self.conditioner.device)

    def at(self, first: int, last: int) -> Condition:
        """The condition of these tokens, one item."""
        return self.conditioner.vectors(self.ids(first, last)[None])

    def _following(self, number: int) -> int:
        if number in self.known:
            self._next = None
            return self.known[number]
        text, seed = self.told_at(number)
        if self._next is None or text != self._text:
            # the draws of a new beginning are not those of the first one over again
            seed = seed if number == 0 else keyed_seed(seed, "semantic", number)
            self._text, self._next = text, self.conditioner.stream(text, seed, self._ids)
        return self._next()
