"""A bundle's tagger as a listening network."""

from __future__ import annotations

import hashlib

import torch
import torchaudio
from torch import Tensor, nn

from musiccm.audio.mel import LogMel
from musiccm.errors import MusiccmError
from musiccm.metrics.embedders.base import Embedder, Heard
from musiccm.models.tagger import Tagger


class TaggerEmbedder(Embedder):
    """The tagger behind its own mel: one embedding and one row of logits a clip, of any length.

    Args:
        tagger: `mel_BMN -> (embedding_BE, logits_BG)`.
        log_mel: The front end that it was trained with.
        sample_rate_hz: Rate of that front end.
        name: What figures taken with it are called after.

    Attributes:
        groups: Outputs by attribute.
        tags: Names of the outputs.
    """

    def __init__(self, tagger: Tagger, log_mel: LogMel, sample_rate_hz: int, name: str = "tagger") -> None:
        super().__init__()
        self.tagger, self.log_mel = tagger.eval().requires_grad_(False), log_mel
        self.sample_rate_hz, self.name = sample_rate_hz, name
        self.min_duration_s = (log_mel.config.n_fft // 2 + 1) / sample_rate_hz
        self.groups, self.tags = tagger.groups, tagger.tags
        self.fingerprint = _fingerprint(tagger, f"{tagger.config} {log_mel.config}")

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor, sample_rate_hz: int) -> Heard:
        """Listen to a batch; the front end runs in float32, also under autocast.

        Args:
            waveform_BS: Waveforms.
            sample_rate_hz: Their rate.

        Returns:
            One row and one set of logits a clip.

        Raises:
            MusiccmError: Clips shorter than `min_duration_s`.
        """
        if waveform_BS.shape[-1] < self.min_duration_s * sample_rate_hz:
            raise MusiccmError(
                f"embedder {self.name}: expected clips of at least {self.min_duration_s:.3f} s, found "
                f"{waveform_BS.shape[-1] / sample_rate_hz:.3f} s"
            )
        waveform = torchaudio.functional.resample(waveform_BS.float(), sample_rate_hz, self.sample_rate_hz)
        embedding, logits = self.tagger(self.log_mel(waveform))
        return Heard(embedding.float(), [1] * len(embedding), logits.float())


def _fingerprint(module: nn.Module, settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
