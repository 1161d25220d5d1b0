"""The language model over semantic tokens, from their cache alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiccm.audio.windows import keyed_generator
from musiccm.data.batch import TokenBatch
from musiccm.errors import MusiccmError
from musiccm.models.bundle.files import save_part
from musiccm.models.melody.semantic_lm import LANGUAGE_MODEL, SemanticLM, SemanticLMConfig, noisy
from musiccm.models.melody.tokenizer import tokenizer_of
from musiccm.systems.stages.base import Stage, mean_of

#: Sizes that follow from the data and the tokenizer.
_FOUND = ("codebook", "tokens", "joint_width", "tokenizer")


class SemanticLMStage(Stage):
    """Trains a `SemanticLM` on a corpus' tokens, each clip's after the codes of its own CLAP embedding.

    At use the codes are of a caption's embedding, which lies elsewhere in the joint space. Noise on the embedding of
    the sound, and the caption's own embedding in a share of the items, prepare the model for that.

    Args:
        lm: `SemanticLMConfig` fields; those that follow from the data (codebook, tokens, joint_width, tokenizer) need
            not be there, and are compared where they are.
        rvq_embeddings: Training embeddings, at most, that the prefix' codebooks are fitted to.
        prefix_noise: Expected length of the noise on the unit embedding.
        text_share: Share of the items whose prefix is of the caption.
        **stage: Arguments of `Stage`.
    """

    stage = "semantic_lm"
    part_name = LANGUAGE_MODEL
    part: SemanticLM
    kinds = {"count": "rvq_embeddings", "not_negative": "prefix_noise", "share": "text_share"}

    def __init__(
        self,
        lm: dict[str, Any] | None = None,
        rvq_embeddings: int = 32768,
        prefix_noise: float = 0.3,
        text_share: float = 0.0,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.lm, self.rvq_embeddings = dict(lm or {}), rvq_embeddings
        self.prefix_noise, self.text_share = prefix_noise, text_share
        self.built = False

    def setup(self, stage: str) -> None:
        """Build the model for the tokens that are there, and fit the codebooks of its prefix.

        The same corpus and seed give the same codebooks; a resumed run and `start_from` bring theirs.

        Raises:
            MusiccmError: The data are no tokens, or `lm` states other sizes than theirs.
        """
        if self.built:
            return
        data = self.trainer.datamodule
        if getattr(data, "kind", None) != "tokens":
            raise MusiccmError(f"data.kind: a language model reads semantic tokens; expected 'tokens', found "
                               f"{getattr(data, 'kind', type(data).__name__)!r}")
        if data.tokenizer is None:
            raise MusiccmError("data.tokenizer: expected the bundle whose semantic tokenizer the tokens are of; the "
                               "model is held to it")
        tokenizer, first = tokenizer_of(data.tokenizer), data.tokens("train")[0]
        found = {"codebook": tokenizer.codebook, "tokens": first.semantic_BL.shape[1],
                 "joint_width": first.audio_BD.shape[1], "tokenizer": tokenizer.fingerprint}
        for key in _FOUND:
            if self.lm.get(key, found[key]) != found[key]:
                raise MusiccmError(f"model.init_args.lm.{key} is {self.lm[key]!r}, and the tokens in {data.tokens_dir} "
                                   f"have {found[key]!r}; leave it out, or name others")
        self.part = SemanticLM(SemanticLMConfig(**{**self.lm, **found})).train()
        if self.start_from is None:
            self._fit_prefix(data)
        self.finish_init()
        self.built = True

    def _fit_prefix(self, data: Any) -> None:
        rows = data.latent_rows("train")
        if len(rows) > self.rvq_embeddings:
            drawn = torch.randperm(len(rows), generator=keyed_generator(self.seed, self.stage, "prefix"))
            rows = rows[np.sort(drawn[: self.rvq_embeddings].numpy())]
        unit_ND = torch.nn.functional.normalize(data.token_cache("train").audio(rows), dim=1)
        self.part.rvq.fit(unit_ND, self.seed)

    def loss(self, batch: TokenBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the tokens, in nats."""
        text_B = torch.rand(len(batch), generator=generator) < self.text_share
        embedding_BD = torch.where(text_B.to(self.device)[:, None], batch.text_BD, batch.audio_BD)
        prefix_BQ = self.part.prefix(noisy(embedding_BD, self.prefix_noise, generator))
        return self.part.loss(prefix_BQ, batch.semantic_BL).mean(), {}

    def measure(self, batch: TokenBatch, generator: torch.Generator) -> dict[str, Any]:
        """Cross-entropy of held-out tokens after the codes of their sound, of their caption, and of another clip's."""
        model = self.best.eval() if self.ema else self.part
        assert isinstance(model, SemanticLM)
        prefixes = {"audio": batch.audio_BD, "text": batch.text_BD, "other": batch.audio_BD.roll(1, 0)}
        return {f"nll_{name}": model.loss(model.prefix(embedding_BD), batch.semantic_BL).mean(1)
                for name, embedding_BD in prefixes.items()}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Nats a token by prefix; `other` tells what a prefix is worth."""
        count = sum(len(m["nll_audio"]) for m in measured)
        return {"n": count, **{f"nll_{name}": mean_of(measured, f"nll_{name}") for name in ("audio", "text", "other")},
                "nll_uniform": float(np.log(self.part.config.codebook))}

    def save(self) -> None:
        """Write `semantic_lm/`, the weights in half precision and the prefix' codebooks as they are."""
        model = copy.deepcopy(self.best)
        assert isinstance(model, SemanticLM)
        model.network.half()
        save_part(self.bundle, LANGUAGE_MODEL, model)
