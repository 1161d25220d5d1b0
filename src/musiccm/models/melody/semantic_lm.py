"""The language model that plans: semantic tokens after a prefix of codes of the joint embedding (MeLoDy, section 4.1).

A LLaMA (transformers' `LlamaForCausalLM`) over one vocabulary: the codes of each prefix level, then the semantic
tokens. Only these are predicted, so that loss and draws are over their part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from musiccm.audio.windows import keyed_generator
from musiccm.errors import MusiccmError
from musiccm.models.bundle.untrusted import check_folder
from musiccm.models.bundle.weights_folder import load_weights, make_config, read_config, save_weights_folder
from musiccm.models.melody.rvq import ResidualQuantizer
from musiccm.models.melody.tokenizer import SemanticTokenizer, check_ids

#: Its folder in a bundle.
LANGUAGE_MODEL = "semantic_lm"


@dataclass
class SemanticLMConfig:
    """Shape of a language model; the defaults are MeLoDy's as far as it states them (docs/semantic_tokens.md).

    Args:
        codebook: Semantic tokens.
        tokens: How many of them the model was trained on at a time: 10 s.
        prefix_codes: Codes of the joint embedding before them.
        prefix_codebook: Entries of each of these codes' levels.
        joint_width: Width of the joint embedding.
        width: Of a hidden state.
        layers: Transformer blocks.
        heads: Attention heads of a block.
        feed_forward: Hidden width of a block's SwiGLU.
        dropout: On attention, in training.
        rope_theta: Base of the rotary positions.
        tokenizer: Fingerprint of the tokenizer whose tokens these are.
    """

    codebook: int = 1024
    tokens: int = 250
    prefix_codes: int = 12
    prefix_codebook: int = 1024
    joint_width: int = 512
    width: int = 1024
    layers: int = 24
    heads: int = 16
    feed_forward: int = 4096
    dropout: float = 0.0
    rope_theta: float = 10000.0
    tokenizer: str = ""


class SemanticLM(nn.Module):
    """Semantic tokens, one after the other.

    Args:
        config: Shape, as an object or a mapping.

    Raises:
        MusiccmError: A number is below 1, or the heads do not divide the width.
    """

    def __init__(self, config: SemanticLMConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = c = make_config(SemanticLMConfig, config)
        counts = {key: value for key, value in asdict(c).items() if isinstance(value, int)}
        if bad := [key for key, value in counts.items() if value < 1]:
            raise MusiccmError(f"semantic language model: expected at least 1, found {bad[0]} {counts[bad[0]]}")
        if c.width % (2 * c.heads):
            raise MusiccmError(f"semantic language model: width {c.width} is no multiple of two times {c.heads} heads")
        #: The first semantic token's place in the vocabulary.
        self.offset = c.prefix_codes * c.prefix_codebook
        self.rvq = ResidualQuantizer(c.prefix_codes, c.prefix_codebook, c.joint_width)
        self.network = LlamaForCausalLM(LlamaConfig(
            vocab_size=self.offset + c.codebook, hidden_size=c.width, intermediate_size=c.feed_forward,
            num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.heads,
            max_position_embeddings=c.prefix_codes + c.tokens, attention_dropout=c.dropout,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        ))

    def check_tokenizer(self, tokenizer: SemanticTokenizer) -> None:
        """Refuse a tokenizer whose tokens this model does not write.

        Raises:
            MusiccmError: Its codebook has another size, or it is another one.
        """
        c = self.config
        if tokenizer.codebook != c.codebook:
            raise MusiccmError(f"semantic language model: was trained on a codebook of {c.codebook} tokens, and the "
                               f"tokenizer has {tokenizer.codebook}; take the tokenizer that it was trained with")
        if tokenizer.fingerprint != c.tokenizer:
            raise MusiccmError(f"semantic language model: was trained on the tokens of another tokenizer (fingerprint "
                               f"{c.tokenizer}, found {tokenizer.fingerprint}); take that one, or train it again")

    def prefix(self, embedding_BD: Tensor) -> Tensor:
        """Codes [B, Q] of joint embeddings, which are taken at unit length."""
        return self.rvq.encode(F.normalize(embedding_BD.float(), dim=1))

    def _vocabulary(self, prefix_BQ: Tensor, ids_BL: Tensor) -> Tensor:
        """Places in the vocabulary of prefix and tokens, [B, Q + L]."""
        levels_Q = torch.arange(prefix_BQ.shape[1], device=prefix_BQ.device) * self.config.prefix_codebook
        return torch.cat([prefix_BQ + levels_Q, ids_BL.to(prefix_BQ) + self.offset], dim=1)

    def _predict(self, hidden: Tensor) -> Tensor:
        """Logits of the semantic tokens."""
        return F.linear(hidden, self.network.lm_head.weight[self.offset:])

    def forward(self, prefix_BQ: Tensor, ids_BL: Tensor) -> Tensor:
        """Logits of every token, given the prefix and the tokens before it.

        Args:
            prefix_BQ: Codes, of `prefix`.
            ids_BL: Semantic tokens.

        Returns:
            [B, L, K].
        """
        places = self._vocabulary(prefix_BQ, ids_BL[:, :-1])
        hidden = self.network.model(input_ids=places, use_cache=False).last_hidden_state
        return self._predict(hidden[:, prefix_BQ.shape[1] - 1 :])

    def loss(self, prefix_BQ: Tensor, ids_BL: Tensor) -> Tensor:
        """Cross-entropy [B, L] of each token, in nats.

        Raises:
            MusiccmError: The tokens are not of this codebook.
        """
        check_ids(ids_BL, self.config.codebook)
        logits_BLK = self(prefix_BQ, ids_BL).float()
        return F.cross_entropy(logits_BLK.transpose(1, 2), ids_BL.long(), reduction="none")

    @torch.no_grad()
    def stream(
        self,
        prefix_BQ: Tensor,
        seeds: Sequence[int],
        temperature: float = 1.0,
        top_k: int | None = None,
        start_BL: Tensor | None = None,
        hop: int | None = None,
        cache: bool = True,
    ) -> Iterator[Tensor]:
        """Write tokens without end.

        The model sees at most the number of tokens that it was trained on. When they are all there, the oldest `hop`
        are forgotten, and the prefix and the others read anew (MeLoDy's continuation, algorithm 2).

        Args:
            prefix_BQ: Codes, of `prefix`.
            seeds: One an item. What is drawn for an item depends on its own seed alone, not on the rest of the batch.
            temperature: Divides the logits; 0 takes the most likely token.
            top_k: Draw among so many of the likeliest; None for all.
            start_BL: Tokens to continue; none are given out again.
            hop: Tokens that are forgotten at a time; a quarter of the model's if not given.
            cache: Keep keys and values of what was read; without, everything is read anew for every token.

        Yields:
            The next token of each item, [B].

        Raises:
            MusiccmError: A setting is out of range, or the tokens are of another codebook.
        """
        most = self.config.tokens
        hop = max(1, most // 4) if hop is None else hop
        self._check_drawing(prefix_BQ, seeds, temperature, top_k, hop)
        generators = [keyed_generator(seed, "semantic") for seed in seeds]
        seen_BL = prefix_BQ.new_zeros(len(prefix_BQ), 0) if start_BL is None else start_BL.to(prefix_BQ)
        if seen_BL.dim() != 2 or len(seen_BL) != len(prefix_BQ):
            raise MusiccmError(f"semantic language model: {len(prefix_BQ)} prefixes, but tokens to continue of shape "
                               f"{tuple(seen_BL.shape)}")
        check_ids(seen_BL, self.config.codebook)
        if seen_BL.shape[1] >= most:
            seen_BL = seen_BL[:, seen_BL.shape[1] - (most - hop) :]
        unread, past = self._vocabulary(prefix_BQ, seen_BL), DynamicCache() if cache else None
        while True:
            # by its place: the cache's keyword is another one from transformers 5.24 on
            output = self.network.model(unread, None, None, past, use_cache=cache)
            logits_BK = self._predict(output.last_hidden_state[:, -1]).float()
            next_B = draw(logits_BK, generators, temperature, top_k)
            yield next_B
            seen_BL = torch.cat([seen_BL, next_B[:, None]], dim=1)
            if seen_BL.shape[1] == most:
                seen_BL = seen_BL[:, hop:]
                unread, past = self._vocabulary(prefix_BQ, seen_BL), DynamicCache() if cache else None
            elif cache:
                unread = next_B[:, None] + self.offset
            else:
                unread = self._vocabulary(prefix_BQ, seen_BL)

    def generate(self, prefix_BQ: Tensor, length: int, seeds: Sequence[int], **how: Any) -> Tensor:
        """Write tokens of any length.

        Args:
            prefix_BQ: Codes, of `prefix`.
            length: How many tokens.
            seeds: One an item.
            **how: See `stream`.

        Returns:
            Ids [B, length], int64, without those of `start_BL`.

        Raises:
            MusiccmError: See `stream`; or the length is below 1.
        """
        if length < 1:
            raise MusiccmError(f"semantic language model: expected at least one token to write, found {length}")
        tokens = self.stream(prefix_BQ, seeds, **how)
        return torch.stack([next(tokens) for _ in range(length)], dim=1)

    def _check_drawing(
        self, prefix_BQ: Tensor, seeds: Sequence[int], temperature: float, top_k: int | None, hop: int
    ) -> None:
        c = self.config
        if prefix_BQ.dim() != 2 or prefix_BQ.shape[1] != c.prefix_codes:
            raise MusiccmError(f"semantic language model: expected {c.prefix_codes} prefix codes an item, found shape "
                               f"{tuple(prefix_BQ.shape)}")
        check_ids(prefix_BQ, c.prefix_codebook)
        if len(seeds) != len(prefix_BQ):
            raise MusiccmError(f"semantic language model: {len(prefix_BQ)} items need as many seeds, found "
                               f"{len(seeds)}")
        if not 0 <= temperature < float("inf"):
            raise MusiccmError(f"temperature: expected a finite number from 0, found {temperature}")
        if top_k is not None and not 1 <= top_k <= c.codebook:
            raise MusiccmError(f"top_k: expected 1 to {c.codebook}, the codebook, found {top_k}")
        if not 0 < hop < c.tokens:
            raise MusiccmError(f"hop: expected 1 to {c.tokens - 1} tokens, found {hop}")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, with the codebooks of the prefix."""
        save_weights_folder(folder, {"_class_name": "SemanticLM", **asdict(self.config)}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer: SemanticTokenizer | None = None) -> SemanticLM:
        """Read a folder written by `save_pretrained`; the model comes in eval mode.

        Args:
            folder: The folder.
            tokenizer: The one that its tokens must be of; None leaves it unchecked.

        Raises:
            MusiccmError: A file is missing, the two do not belong together, or the tokenizer is another one.
        """
        folder = Path(folder)
        check_folder(folder, folder)
        model = cls(make_config(SemanticLMConfig, read_config(folder), f"{folder}/config.json"))
        load_weights(model, folder)
        if tokenizer is not None:
            model.check_tokenizer(tokenizer)
        return model.eval()


def draw(
    logits_BK: Tensor, generators: Sequence[torch.Generator], temperature: float, top_k: int | None
) -> Tensor:
    """Draw one token an item, each with a number from its own generator (inverse of the cumulative distribution).

    Args:
        logits_BK: Logits.
        generators: On the CPU, one an item.
        temperature: Divides the logits; 0 takes the largest.
        top_k: How many of the largest can be drawn; None for all.

    Returns:
        Tokens [B]. Among equal logits at the border of the largest `top_k`, those that `torch.topk` names.
    """
    uniform_B = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    if temperature == 0 or top_k == 1:
        return logits_BK.argmax(dim=1)
    logits_BN, names_BN = logits_BK.topk(top_k or logits_BK.shape[1], dim=1)
    # On the CPU in double precision: the same draw on every device.
    cumulative_BN = (logits_BN.cpu().double() / temperature).softmax(dim=1).cumsum(dim=1)
    place_B = torch.searchsorted(cumulative_BN, (uniform_B * cumulative_BN[:, -1])[:, None], right=True)[:, 0]
    place_B = place_B.clamp(max=logits_BN.shape[1] - 1)
    return names_BN.gather(1, place_B.to(names_BN.device)[:, None])[:, 0]


def noisy(embedding_BD: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Embeddings at unit length with noise, against the gap between the embeddings of sound and of text.

    Args:
        embedding_BD: Joint embeddings.
        std: Expected length of the noise, beside the embedding's 1.
        generator: On the CPU.

    Returns:
        [B, D], of unit length again.
    """
    unit_BD = F.normalize(embedding_BD.float(), dim=1)
    if std == 0:
        return unit_BD
    noise_BD = torch.randn(unit_BD.shape, generator=generator).to(unit_BD.device) * std / unit_BD.shape[1] ** 0.5
    return F.normalize(unit_BD + noise_BD, dim=1)
