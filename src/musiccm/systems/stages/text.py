"""A small text encoder of T5's kind from captions alone, trained to keep in its tokens all that a caption says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel

from musiccm.data.demo.events.captions_module import CaptionBatch
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.bundle.text_tokenizer import train_text_tokenizer
from musiccm.systems.stages.base import Stage


class SlotReader(nn.Module):
    """Reads slots from token states: for each a query that attends to the tokens, and a linear map of what it finds.

    Args:
        width: Of the token states.
        sizes: Values of each slot.
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.queries_KD = nn.Parameter(torch.randn(len(sizes), width) * width**-0.5)
        self.maps = nn.ModuleList([nn.Linear(width, size) for size in sizes])

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> list[Tensor]:
        """Logits of each slot, [B, values].

        Args:
            states_BLD: Token states.
            mask_BL: True where there is a token.
        """
        scores_BKL = torch.einsum("bld,kd->bkl", states_BLD, self.queries_KD)
        scores_BKL = scores_BKL.masked_fill(~mask_BL[:, None], float("-inf"))
        found_BKD = scores_BKL.softmax(dim=-1) @ states_BLD
        return [to_values(found_BKD[:, place]) for place, to_values in enumerate(self.maps)]


def near_numbers(values_B: Tensor, size: int, spread: float) -> Tensor:
    """Targets of a slot whose values behind the first are numbers: a bell around the right one.

    Args:
        values_B: The right values; 0 is "none" and has no neighbours.
        size: How many values there are.
        spread: Standard deviation of the bell, in values; 0 for the right one alone.

    Returns:
        Probabilities [B, size].
    """
    if spread == 0:
        return F.one_hot(values_B, size).float()
    places = torch.arange(size, device=values_B.device)
    bell = torch.exp(-0.5 * ((places - values_B[:, None]) / spread) ** 2)
    bell = bell * (places > 0)
    exact = F.one_hot(values_B, size).float()
    return torch.where(values_B[:, None] == 0, exact, bell / bell.sum(dim=1, keepdim=True).clamp(min=1e-9))


class TextStage(Stage):
    """Trains a `T5EncoderModel` on captions, with the tokenizer that it reads through.

    Every caption is read twice in the course of training: whole, to tell what it says slot by slot (`SlotReader`, which
    is dropped afterwards), and with tokens hidden, to tell these by the others (against the embedding's own rows), so
    that words keep a meaning beyond the slots. The data module says what the slots are.

    Args:
        text: `T5Config` fields, without `vocab_size`.
        vocab_size: Upper limit of the tokenizer's vocabulary, at least the 256 bytes and the special tokens.
        tokenizer_captions: Training captions that the tokenizer is made from.
        max_tokens: Longest caption in tokens.
        masked_share: Share of each batch that is read with hidden tokens.
        hidden_tokens: Share of the tokens hidden there.
        masked_weight: Weight of the hidden tokens' loss.
        position_scale: Factor on T5's initial relative position biases, which are small beside what words say to each
            other: at 1 a small encoder reads captions as bags of words for a thousand steps and longer.
        number_spread: Spread of the targets of the slot of numbers, in its values: neighbouring tempi then have
            neighbouring states.
        **stage: Arguments of `Stage`.
    """

    stage = "text"
    part_name = "text_encoder"
    part: T5EncoderModel
    kinds = {"not_negative": "masked_weight number_spread", "positive": "position_scale",
             "share": "masked_share hidden_tokens",
             "count": "vocab_size tokenizer_captions max_tokens"}

    def __init__(
        self,
        text: dict[str, Any],
        vocab_size: int = 800,
        tokenizer_captions: int = 4000,
        max_tokens: int = 128,
        masked_share: float = 0.25,
        hidden_tokens: float = 0.15,
        masked_weight: float = 0.5,
        position_scale: float = 10.0,
        number_spread: float = 1.5,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.text_config, self.vocab_size, self.tokenizer_captions = dict(text), vocab_size, tokenizer_captions
        self.max_tokens, self.masked_share, self.hidden_tokens = max_tokens, masked_share, hidden_tokens
        self.masked_weight, self.number_spread = masked_weight, number_spread
        self.position_scale = position_scale
        self.tokenizer: Any = None
        self.slots: Mapping[str, Sequence[str]] = {}
        self.numbers: str | None = None

    def setup(self, stage: str) -> None:
        """Make the tokenizer and the encoder for it; the same captions give the same ones in a resumed run.

        Raises:
            MusiccmError: The data module says nothing of slots.
        """
        if self.tokenizer is not None:
            return
        data = self.trainer.datamodule
        if not getattr(data, "slots", None):
            raise MusiccmError(f"data.class_path: expected captions with what they say, such as those of "
                               f"musiccm.data.demo.events.captions_module.CaptionModule, found {type(data).__name__}")
        self.slots, self.numbers = data.slots, data.numbers
        if self.start_from is not None:
            self.tokenizer = Bundle.from_pretrained(self.start_from, ["tokenizer"]).tokenizer
        else:
            self.tokenizer = train_text_tokenizer(data.texts(self.tokenizer_captions), self.vocab_size, self.max_tokens)
        self.part = T5EncoderModel(T5Config(**{**self.text_config, "vocab_size": len(self.tokenizer)})).train()
        with torch.no_grad():
            for name, weight in self.part.named_parameters():
                if "relative_attention_bias" in name:
                    weight.mul_(self.position_scale)
        self.reader = SlotReader(self.part.config.d_model, [len(values) for values in self.slots.values()])
        self.finish_init()

    def trained(self) -> list[nn.Module]:
        """The encoder, and the head that is dropped."""
        return [self.part, self.reader]

    def tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] of captions and the mask of what is no padding."""
        found = self.tokenizer(captions, padding=True, truncation=True, max_length=self.max_tokens,
                               return_tensors="pt").to(self.device)
        return found.input_ids, found.attention_mask.bool()

    def states(self, encoder: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Token states [B, L, D]."""
        return encoder(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state

    def loss(self, batch: CaptionBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the slots over the captions read whole, and of the hidden tokens over the others."""
        ids_BL, mask_BL = self.tokens(batch.captions)
        masked = round(self.masked_share * len(ids_BL))
        hidden_BL = torch.rand(ids_BL.shape, generator=generator).to(self.device) < self.hidden_tokens
        hidden_BL &= mask_BL & (ids_BL != self.tokenizer.eos_token_id)
        hidden_BL[masked:] = False
        states_BLD = self.states(self.part, ids_BL.masked_fill(hidden_BL, self.tokenizer.mask_token_id), mask_BL)
        parts = self.slot_losses(self.reader(states_BLD[masked:], mask_BL[masked:]), batch.said_BK[masked:])
        total = torch.stack(list(parts.values())).sum()
        if hidden_BL.any():
            # The states are of unit spread; as T5 does, they are scaled before they meet the embedding.
            scaled = states_BLD[hidden_BL] * self.part.config.d_model**-0.5
            logits = scaled @ self.part.get_input_embeddings().weight.T
            parts["masked_tokens"] = F.cross_entropy(logits, ids_BL[hidden_BL])
            total = total + self.masked_weight * parts["masked_tokens"]
        return total, parts

    def slot_losses(self, logits: list[Tensor], said_BK: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of each slot by name."""
        losses = {}
        for place, (slot, values) in enumerate(self.slots.items()):
            spread = self.number_spread if slot == self.numbers else 0.0
            losses[slot] = F.cross_entropy(logits[place], near_numbers(said_BK[:, place], len(values), spread))
        return losses

    def measure(self, batch: CaptionBatch, generator: torch.Generator) -> dict[str, Any]:
        """Which slots of held-out captions are read rightly."""
        ids_BL, mask_BL = self.tokens(batch.captions)
        encoder = self.best.eval() if self.ema else self.part
        read = self.reader(self.states(encoder, ids_BL, mask_BL), mask_BL)
        read_BK = torch.stack([logits.argmax(dim=1) for logits in read], dim=1)
        return {"read_BK": read_BK, "said_BK": batch.said_BK}

    def summarise(self, measured: list[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy by slot and of all slots at once; of numbers also the share within 6 %."""
        read_BK, said_BK = (torch.cat([m[key] for m in measured]) for key in ("read_BK", "said_BK"))
        right_BK = read_BK == said_BK
        quality: dict[str, Any] = {"n": len(right_BK)}
        for place, (slot, values) in enumerate(self.slots.items()):
            if slot != self.numbers:
                quality[f"accuracy_{slot}"] = right_BK[:, place].double().mean().item()
                continue
            numbers = torch.tensor([0.0, *map(float, values[1:])], device=read_BK.device)
            read_B, said_B = numbers[read_BK[:, place]], numbers[said_BK[:, place]]
            near_B = (read_B - said_B).abs() <= 0.06 * said_B
            quality[f"accuracy_{slot}"] = near_B.double().mean().item()
            quality[f"accuracy_{slot}_exact"] = right_BK[:, place].double().mean().item()
            right_BK = torch.cat([right_BK[:, :place], near_B[:, None], right_BK[:, place + 1:]], dim=1)
        quality["accuracy_all"] = right_BK.all(dim=1).double().mean().item()
        return quality

    def save(self) -> None:
        """Write `text_encoder/` and `tokenizer/`, the weights in half precision."""
        save_part(self.bundle, "text_encoder", self.best, torch.float16)
        save_part(self.bundle, "tokenizer", self.tokenizer)
