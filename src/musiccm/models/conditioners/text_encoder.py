"""Any text encoder of transformers as a conditioner: token states with their mask (TANGO, arXiv 2304.13731)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from musiccm.diffusion import Condition
from musiccm.errors import MusiccmError
from musiccm.models.acceleration.half import bf16_products
from musiccm.models.conditioners.prompt_memory import ENCODING, Conditioner, token_count
from musiccm.texts import short

#: Tokens of a text at most, where neither the tokenizer nor the encoder states a number: what T5 was trained with.
LONGEST = 512


class TextEncoderConditioner(Conditioner):
    """Encodes texts with a frozen encoder, such as FLAN-T5's; it reads, and embeds no audio.

    A text's tokens do not depend on what else is in the batch, but for rounding: the encoder attends to no padding, and
    the states under padding are zero. The null condition is the empty text, for T5 the end-of-text token alone.

    Args:
        encoder: A module of transformers that takes `input_ids` and `attention_mask` and gives `last_hidden_state`.
        tokenizer: Its tokenizer.
        where: The folder that they come from, as it stands before a part's name in a message.

    Raises:
        MusiccmError: The tokenizer cannot pad, has more tokens than the encoder, or gives none for the empty text.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any, where: str = "") -> None:
        super().__init__()
        self.where = where
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config: Any = encoder.config
        self.width = int(config.hidden_size)
        self.max_tokens = int(min(tokenizer.model_max_length, _positions(encoder)))
        if tokenizer.pad_token_id is None:
            raise MusiccmError(f"{where}tokenizer: expected a pad_token, which fills batches of texts, found none; add "
                               "it to tokenizer_config.json")
        if len(tokenizer) > config.vocab_size:
            raise MusiccmError(f"{where}tokenizer: has {len(tokenizer)} tokens, but text_encoder was made for "
                               f"{config.vocab_size}; the two are from different models")
        if not tokenizer("").input_ids:
            raise MusiccmError(f"{where}tokenizer: gives no token for the empty text, which is the null condition; "
                               "expected one that adds an end-of-text token, as T5's")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def text(self, texts: list[str]) -> Condition:
        """Encode texts, padded to the longest of the batch.

        Args:
            texts: Captions; the empty string is the null condition.

        Returns:
            Token states [B, L, D], zero where the mask says that there is padding.

        Raises:
            MusiccmError: If `texts` is not a non-empty list of strings.
        """
        ids_BL, mask_BL = self.tokenized(texts)
        return self.encode(ids_BL.to(self.device), mask_BL.to(self.device))

    def encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Condition:
        """Encode tokens: their states, zero under padding; see `Conditioner.encode`."""
        if mask_BL is None:
            mask_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        return Condition(self.features(ids_BL, mask_BL).masked_fill(~mask_BL[..., None], 0.0), mask_BL)

    def features(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """States of tokens and padding; see `Conditioner.features`."""
        # A training step's autocast would encode the null condition in bf16, and remember it so.
        with torch.autocast(self.device.type, enabled=False):
            attended = None if mask_BL is None else mask_BL.long()
            return self.encoder(input_ids=ids_BL, attention_mask=attended).last_hidden_state

    def read_in_bf16(self) -> None:
        """See `Conditioner.read_in_bf16`."""
        super().read_in_bf16()
        self.encoder = bf16_products(self.encoder)

    def require_whole(self, texts: list[str]) -> None:
        """See `Conditioner.require_whole`."""
        with ENCODING:
            for text in texts:
                if (count := self.excess(text)) is not None:
                    raise MusiccmError(f"prompt: expected at most {self.max_tokens} tokens, which this model reads; "
                                       f"found {count} in {short(text)!r}; shorten it")

    def excess(self, text: str) -> int | None:
        """Tokens of a text that has more than the encoder reads; None of any other."""
        count = token_count(self.tokenizer, text)
        return count if count > self.max_tokens else None

    def audio(self, waveform_BS: torch.Tensor, sample_rate_hz: int, windows: str = "first") -> NoReturn:
        """Refuse: there is no audio tower.

        Raises:
            MusiccmError: Always.
        """
        self._refuse_audio()

    @property
    def front_end(self) -> NoReturn:
        """What CLAP makes its audio tower's input with.

        Raises:
            MusiccmError: Always: there is no audio tower.
        """
        self._refuse_audio()

    def _refuse_audio(self) -> NoReturn:
        raise MusiccmError(f"{self.where}text_encoder is a {type(self.encoder).__name__}, which reads text and embeds "
                           "no audio; what embeds or measures audio needs a CLAP of its own (docs/teachers.md)")


def _positions(encoder: nn.Module) -> int:
    """How many tokens an encoder takes; those with relative positions, such as T5, state no number."""
    config: Any = encoder.config
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        return LONGEST
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return stated if padding is None else stated - padding - 1  # RoBERTa's kind counts from behind the padding's


def check_attends(unet: Mapping[str, Any], width: int, where: str) -> None:
    """Refuse a U-Net that does not attend to tokens of this width, or wants a vector beside them.

    Args:
        unet: A `UNet2DConditionModel`'s configuration.
        width: Of the text encoder's states.
        where: What the message begins with.

    Raises:
        MusiccmError: Naming the key.
    """
    projected, attended = unet.get("encoder_hid_dim"), unet.get("cross_attention_dim", 1280)
    widths = set(attended) if isinstance(attended, Sequence) else {attended}
    key, taken = ("encoder_hid_dim", {projected}) if projected is not None else ("cross_attention_dim", widths)
    if taken != {width}:
        found = ", ".join(map(str, sorted(taken, key=str)))
        raise MusiccmError(f"{where}: unet attends to tokens of width {found} ({key}), text_encoder gives {width}; the "
                           "two are from different models")
    if unet.get("class_embed_type") is not None or unet.get("num_class_embeds") is not None:
        raise MusiccmError(f"{where}: unet takes a vector (class_embed_type) beside the tokens, and text_encoder gives "
                           "tokens alone; expected a U-Net without class embedding")
