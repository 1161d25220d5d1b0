"""Encoding a corpus: windows and captions in, files of a latent cache out."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor

from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.files import write_json
from musiccm.models.bundle import Bundle
from musiccm.models.codec import SoundEncoder
from musiccm.models.melody.token_rate import token_count
from musiccm.models.melody.tokenizer import SemanticTokenizer
from musiccm.systems.encoding.data import EncodingData, WorkBatch

#: What encoding consists of: reading (decode, resample, level), the log-mel, the VAE, both CLAP towers, writing; and of
#: a bundle whose text encoder gives tokens; and where semantic tokens are made. An audio VAE takes no mel.
PARTS = ("read", "mel", "vae", "clap_audio", "clap_text", "write")
TOKEN_PARTS = ("read", "mel", "vae", "text", "write")
SEMANTIC_PARTS = ("read", "tokens", "clap_audio", "clap_text", "write")
REPORT = "encoding.json"


class CorpusEncoder(pl.LightningModule):
    """Encodes windows and captions, and writes them into their caches. A subclass says what of them.

    Args:
        bundle: Whose text encoder it is.
        work: What to encode.
        parts: What the work consists of, as the report names it.
    """

    def __init__(self, bundle: Bundle, work: EncodingData, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.work = work
        self.conditioner = bundle.conditioner()
        self._start = self._wall_s = 0.0
        self._done: list[dict[str, Tensor]] = []
        self.parts = parts
        self._spent = dict.fromkeys((*self.parts, "windows", "captions", "captions_cut"), 0.0)

    def encode_audio(self, waveform_BS: Tensor) -> dict[str, Tensor]:
        """What the cache holds of windows, but CLAP's embeddings."""
        raise NotImplementedError

    def on_predict_start(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def predict_step(self, batch: WorkBatch, batch_idx: int) -> None:
        """Encode an item; with the last item of a file, write it.

        Args:
            batch: From `EncodingData`.
            batch_idx: Unused.
        """
        item, waveform_BS = batch.item, batch.waveform_BS
        self._spent["read"] += batch.read_s
        if waveform_BS is None:
            encoded = self._encode_text(batch.captions)
        else:
            encoded = self.encode_audio(waveform_BS)
            if "clap_audio" in self.parts:
                rate_hz = self.work.data.sample_rate_hz
                encoded["clap_audio"] = self._timed("clap_audio", self.conditioner.audio, waveform_BS, rate_hz)
        self._done.append({name: tensor.cpu() for name, tensor in encoded.items()})
        self._spent["captions" if item.unit.kind == "text" else "windows"] += item.last - item.first
        if item.ends_unit:
            tensors = {name: torch.cat([part[name] for part in self._done]) for name in self._done[0]}
            self._timed("write", self.work.writers[item.split].write, item.unit, tensors)
            self._done = []

    def _encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """What the cache holds of captions: a vector each, or their tokens end to end and how many each has."""
        if "clap_text" in self.parts:
            return {"clap_text": self._timed("clap_text", self.conditioner.text, captions)}
        condition = self._timed("text", self.conditioner.text, captions)
        self._spent["captions_cut"] += sum(self.conditioner.excess(text) is not None for text in captions)
        return {"tokens": condition.tokens_BLD[condition.mask_BL], "lengths": condition.mask_BL.sum(1)}

    def _timed(self, part: str, function: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._spent[part] += time.perf_counter() - start
        return result

    def on_predict_end(self) -> None:
        """Stop the clock."""
        self._wall_s = time.perf_counter() - self._start

    def finish(self, strategy: Strategy) -> dict[str, Any]:
        """Add up what all processes spent; process 0 writes it beside the caches.

        This is no hook of Lightning's: a process that had nothing to do has no predict loop, and would be waited for.

        Args:
            strategy: The Trainer's.

        Returns:
            `windows`, `captions`, `captions_cut` (those of more tokens than a text encoder reads), `wall_s`,
            `windows_per_s`, `processes`, and by part `seconds` and `shares`.
        """
        own = torch.tensor([*self._spent.values(), self._wall_s], dtype=torch.float64, device=strategy.root_device)
        every = strategy.all_gather(own).view(-1, len(own)).cpu()
        spent = dict(zip(self._spent, every.sum(0).tolist(), strict=False))
        report = _report(spent, self.parts, float(every[:, -1].max())) | {"processes": len(every)}
        if strategy.is_global_zero and self.work.pending:
            write_json(self.work.folder / REPORT, report)
        return report


class Encoder(CorpusEncoder):
    """Encodes windows and captions with the VAE and the text encoder of a bundle.

    CLAP embeds captions and windows; of an encoder that gives tokens, the captions' tokens are written.

    Args:
        bundle: The bundle.
        work: What to encode.

    Raises:
        MusiccmError: The window length or rate does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, work: EncodingData) -> None:
        codec, parts = bundle.codec("none"), TOKEN_PARTS if bundle.gives_tokens else PARTS
        super().__init__(bundle, work, tuple(part for part in parts if part != "mel" or codec.reads_mel))
        self.encoder = SoundEncoder(codec)
        self._check_fit(bundle, work.data)

    def _check_fit(self, bundle: Bundle, data: MusicDataModule) -> None:
        if data.sample_rate_hz != bundle.sample_rate_hz:
            raise MusiccmError(f"data.sample_rate_hz is {data.sample_rate_hz}, but {bundle.path} works at "
                               f"{bundle.sample_rate_hz}; set it to that")
        if (bundle.path / bundle.kind.network).is_dir():
            samples = bundle.latent_shape()[1] * self.encoder.codec.frame_samples
            if samples != data.clip_samples:
                raise MusiccmError(f"data.clip_samples is {data.clip_samples}, but {bundle.kind.network}/ of "
                                   f"{bundle.path} was trained on {samples}; set it to that")

    def encode_audio(self, waveform_BS: Tensor) -> dict[str, Tensor]:
        """Mean and deviation of the raw latents."""
        front = self._timed("mel", self.encoder.front, waveform_BS) if "mel" in self.parts else waveform_BS
        mean, std = self._timed("vae", self.encoder.moments, front)
        return {"mean": mean, "std": std}


class TokenEncoder(CorpusEncoder):
    """Makes semantic tokens of windows, beside the embeddings that a language model plans them from.

    Args:
        bundle: Whose CLAP embeds windows and captions.
        tokenizer: The tokenizer, with its source.
        work: What to encode.

    Raises:
        MusiccmError: The windows are no whole number of tokens.
    """

    def __init__(self, bundle: Bundle, tokenizer: SemanticTokenizer, work: EncodingData) -> None:
        super().__init__(bundle, work, SEMANTIC_PARTS)
        self.tokenizer = tokenizer
        token_count(work.data.clip_samples, work.data.sample_rate_hz)

    def encode_audio(self, waveform_BS: Tensor) -> dict[str, Tensor]:
        """Token ids."""
        return {"semantic": self._timed("tokens", self.tokenizer.ids, waveform_BS, self.work.data.sample_rate_hz)}


def _report(spent: dict[str, float], parts: tuple[str, ...], wall_s: float) -> dict[str, Any]:
    """Rates and the share of each part in the seconds that were worked in all processes together.

    Reading in loader workers goes on beside the networks: the shares say where the work is, `wall_s` how long it took.
    """
    worked = sum(spent[part] for part in parts) or 1.0
    return {
        "windows": int(spent["windows"]),
        "captions": int(spent["captions"]),
        "captions_cut": int(spent["captions_cut"]),
        "wall_s": round(wall_s, 3),
        "windows_per_s": round(spent["windows"] / wall_s, 3) if wall_s else 0.0,
        "seconds": {part: round(spent[part], 3) for part in parts},
        "shares": {part: round(spent[part] / worked, 4) for part in parts},
    }
