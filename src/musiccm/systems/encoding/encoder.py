"""Encoding a corpus: windows and captions in, files of a latent cache out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
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
from musiccm.systems.encoding.clock import PartClock
from musiccm.systems.encoding.data import EncodingData
from musiccm.systems.encoding.reading import WorkBatch
from musiccm.systems.encoding.writing import BackgroundWriter

#: What encoding consists of: reading (decode, resample, level), the log-mel, the VAE, both CLAP towers, writing; and of
#: a bundle whose text encoder gives tokens; and where semantic tokens are made. An audio VAE takes no mel.
PARTS = ("read", "mel", "vae", "clap_audio", "clap_text", "write")
TOKEN_PARTS = ("read", "mel", "vae", "text", "write")
SEMANTIC_PARTS = ("read", "tokens", "clap_audio", "clap_text", "write")
REPORT = "encoding.json"


class CorpusEncoder(pl.LightningModule):
    """Encodes windows and captions, and has them written into their caches. A subclass says what of them.

    Reading, encoding and writing go on side by side: what the loader's processes have read is encoded here, and written
    on a thread. A GPU is handed one batch after the other, without waiting for it.

    Args:
        bundle: Whose text encoder it is.
        work: What to encode.
        parts: What the work consists of, as the report names it.
        half: Whether a GPU computes in bf16 what `networks` surrounds; CPUs compute in float32 in any case.
    """

    def __init__(self, bundle: Bundle, work: EncodingData, parts: tuple[str, ...], half: bool = True) -> None:
        super().__init__()
        self.work, self.half = work, half
        self.conditioner = bundle.conditioner()
        self._start = self._wall_s = 0.0
        self._done: list[dict[str, Tensor]] = []
        self.parts, self.writer = parts, BackgroundWriter()
        self._clock = PartClock(parts)
        self._counted = dict.fromkeys(("windows", "captions", "captions_cut"), 0)

    def encode_audio(self, waveform_BS: Tensor) -> dict[str, Tensor]:
        """What the cache holds of windows, but CLAP's embeddings."""
        raise NotImplementedError

    def networks(self) -> AbstractContextManager[Any]:
        """Surrounds networks whose outcome is a matter of more or less: bf16 on a GPU, in `half`."""
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.half and kind == "cuda")

    def transfer_batch_to_device(self, batch: WorkBatch, device: torch.device, dataloader_idx: int) -> WorkBatch:
        """Send an item on its way, without waiting for it to arrive."""
        return batch.to(device, non_blocking=True)

    def on_predict_start(self) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def predict_step(self, batch: WorkBatch, batch_idx: int) -> None:
        """Encode an item; with the last item of a file, hand it to be written.

        Args:
            batch: From `EncodingData`.
            batch_idx: Unused.
        """
        item, waveform_BS = batch.item, batch.waveform_BS
        self._clock.seconds["read"] += batch.read_s
        if waveform_BS is None:
            encoded = self._encode_text(batch.captions)
        else:
            encoded = self.encode_audio(waveform_BS)
            if "clap_audio" in self.parts:
                with self.networks():
                    encoded["clap_audio"] = self._timed("clap_audio", self.conditioner.embed_audio, waveform_BS,
                                                        self.work.data.sample_rate_hz)
        self._done.append(encoded)
        self._counted["captions" if item.unit.kind == "text" else "windows"] += item.last - item.first
        if item.ends_unit:
            tensors = {name: torch.cat([part[name] for part in self._done]) for name in self._done[0]}
            self.writer.put(partial(self.work.writers[item.split].write, item.unit, tensors), self._computed())
            self._done = []

    def _computed(self) -> Callable[[], None]:
        """Waits until a GPU has done what it was given so far."""
        if self.device.type != "cuda":
            return lambda: None
        mark = torch.cuda.Event()
        mark.record()
        return mark.synchronize

    def _encode_text(self, captions: list[str]) -> dict[str, Tensor]:
        """What the cache holds of captions: a vector each, or their tokens end to end and how many each has."""
        if "clap_text" in self.parts:
            return {"clap_text": self._timed("clap_text", self.conditioner.text, captions)}
        condition = self._timed("text", self.conditioner.text, captions)
        self._counted["captions_cut"] += sum(self.conditioner.excess(text) is not None for text in captions)
        return {"tokens": condition.tokens_BLD[condition.mask_BL], "lengths": condition.mask_BL.sum(1)}

    def _timed(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._clock.of(part, self.device):
            return function(*arguments)

    def on_predict_end(self) -> None:
        """Wait for what is still to be written, and stop the clock."""
        self.writer.finish()
        self._wall_s = time.perf_counter() - self._start
        self._clock.finish()

    def finish(self, strategy: Strategy) -> dict[str, Any]:
        """Add up what all processes spent; process 0 writes it beside the caches.

        This is no hook of Lightning's: a process that had nothing to do has no predict loop, and would be waited for.

        Args:
            strategy: The Trainer's.

        Returns:
            `windows`, `captions`, `captions_cut` (those of more tokens than a text encoder reads), `wall_s`,
            `windows_per_s`, `processes`, by part `seconds` and `shares`, and `waited_s`: how long encoding stood still
            for want of windows (`read`), or because the disk was behind (`write`).
        """
        loader = self.work.loader
        own_spent = {**self._clock.seconds, "write": self.writer.spent_s, **self._counted,
                     "waited_read": loader.waited_s if loader else 0.0, "waited_write": self.writer.waited_s}
        own = torch.tensor([*own_spent.values(), self._wall_s], dtype=torch.float64, device=strategy.root_device)
        every = strategy.all_gather(own).view(-1, len(own)).cpu()
        spent = dict(zip(own_spent, every.sum(0).tolist(), strict=False))
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
        half: See `CorpusEncoder`: a VAE of mels and CLAP's audio tower. Mels and captions are computed in float32.

    Raises:
        MusiccmError: The window length or rate does not fit the bundle.
    """

    def __init__(self, bundle: Bundle, work: EncodingData, half: bool = True) -> None:
        codec, parts = bundle.codec("none"), TOKEN_PARTS if bundle.gives_tokens else PARTS
        super().__init__(bundle, work, tuple(part for part in parts if part != "mel" or codec.reads_mel), half)
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
        # one that takes the sound itself would have that rounded to eight bits
        with self.networks() if self.encoder.codec.reads_mel else nullcontext():
            mean, std = self._timed("vae", self.encoder.moments, front)
        return {"mean": mean, "std": std}


class TokenEncoder(CorpusEncoder):
    """Makes semantic tokens of windows, beside the embeddings that a language model plans them from.

    Args:
        bundle: Whose CLAP embeds windows and captions.
        tokenizer: The tokenizer, with its source.
        work: What to encode.
        half: See `CorpusEncoder`: CLAP's audio tower. Tokens are chosen in float32, as one is right or it is not.

    Raises:
        MusiccmError: The windows are no whole number of tokens.
    """

    def __init__(
        self, bundle: Bundle, tokenizer: SemanticTokenizer, work: EncodingData, half: bool = True
    ) -> None:
        super().__init__(bundle, work, SEMANTIC_PARTS, half)
        self.tokenizer = tokenizer
        token_count(work.data.clip_samples, work.data.sample_rate_hz)

    def encode_audio(self, waveform_BS: Tensor) -> dict[str, Tensor]:
        """Token ids."""
        return {"semantic": self._timed("tokens", self.tokenizer.ids, waveform_BS, self.work.data.sample_rate_hz)}


def _report(spent: dict[str, float], parts: tuple[str, ...], wall_s: float) -> dict[str, Any]:
    """Rates, and the share of each part in the seconds that were worked in all processes together.

    Reading and writing go on beside the networks: the shares say where the work is, `wall_s` how long all of it took,
    and `waited_s` for how much of that nothing was encoded.
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
        "waited_s": {part: round(spent[f"waited_{part}"], 3) for part in ("read", "write")},
    }
