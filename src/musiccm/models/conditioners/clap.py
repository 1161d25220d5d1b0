"""CLAP as the model's conditioner: text and audio to unit vectors in one space."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musiccm.audio.resample import resample
from musiccm.errors import MusiccmError
from musiccm.models.acceleration.half import bf16_products
from musiccm.models.conditioners.prompt_memory import Conditioner


class ClapFrontEnd(nn.Module):
    """The log-mel of a `ClapFeatureExtractor`, computed in torch on a batch and without its random crop.

    The extractor computes one clip at a time in NumPy and cuts clips longer than its window at random. Here a batch is
    one STFT, in float32: bins 90 dB below the loudest may differ from the extractor's float64 by more than rounding.
    The caller chooses the window.

    Args:
        feature_extractor: The extractor whose numbers, filters and padding rule are taken.
    """

    filters: Tensor

    def __init__(self, feature_extractor: Any) -> None:
        super().__init__()
        fe = feature_extractor
        self.sample_rate_hz = int(fe.sampling_rate)
        self.window_samples = int(fe.nb_max_samples)
        self.n_fft, self.hop_length, self.padding = fe.fft_window_size, fe.hop_length, fe.padding
        # The extractor's two filter banks: HTK for the fusion models, Slaney for the others.
        filters = fe.mel_filters if fe.truncation == "fusion" else fe.mel_filters_slaney
        self.register_buffer("filters", torch.as_tensor(filters, dtype=torch.float32), persistent=False)

    def pad(self, waveform_BS: Tensor) -> Tensor:
        """Fill clips shorter than the window by the extractor's rule: repeat, repeat and pad, or pad."""
        samples = waveform_BS.shape[-1]
        if samples >= self.window_samples:
            return waveform_BS[:, : self.window_samples]
        if self.padding == "repeat":
            return waveform_BS.repeat(1, self.window_samples // samples + 1)[:, : self.window_samples]
        if self.padding == "repeatpad":
            waveform_BS = waveform_BS.repeat(1, self.window_samples // samples)
        return F.pad(waveform_BS, (0, self.window_samples - waveform_BS.shape[-1]))

    def forward(self, waveform_BS: Tensor) -> Tensor:
        """Compute features.

        Args:
            waveform_BS: Waveforms at `sample_rate_hz`, at most one window long (the rest is cut).

        Returns:
            Decibel mel of shape [B, 1, frames, bins], float32.
        """
        x = self.pad(waveform_BS).float()
        window = torch.hann_window(self.n_fft, periodic=True, dtype=x.dtype, device=x.device)
        with torch.autocast(x.device.type, enabled=False):  # the product with the filters would be cast
            spectrum = torch.stft(x, self.n_fft, self.hop_length, window=window, center=True, pad_mode="reflect",
                                  return_complex=True)
            power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2) @ self.filters
        return (10.0 * power.clamp(min=1e-10).log10()).unsqueeze(1).float()


class ClapConditioner(Conditioner):
    """Embeds texts and waveforms with a frozen CLAP; rows have unit length.

    Args:
        clap: A transformers `ClapModel`, or the text tower alone (`ClapTextModelWithProjection`), which reads but does
            not embed.
        tokenizer: Its tokenizer.
        feature_extractor: Its `ClapFeatureExtractor`, read for its numbers; None with the text tower alone.
        where: The folder or file that they come from, as it stands before a part's name in a message.

    Raises:
        MusiccmError: If extractor and audio tower disagree on the number of mel bins.
    """

    def __init__(self, clap: nn.Module, tokenizer: Any, feature_extractor: Any, where: str = "") -> None:
        super().__init__()
        self.where = where
        self.clap = clap.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._front_end: ClapFrontEnd | None = None
        if self.has_audio:
            bins = clap.config.audio_config.num_mel_bins
            if feature_extractor.feature_size != bins:
                raise MusiccmError(f"{where}feature_extractor/preprocessor_config.json: feature_size is "
                                   f"{feature_extractor.feature_size}, but text_encoder's audio tower takes {bins} "
                                   "bins")
            self._front_end = ClapFrontEnd(feature_extractor)
        self.width = int(clap.config.projection_dim)
        text_config = clap.config.text_config if self.has_audio else clap.config
        positions = text_config.max_position_embeddings - text_config.pad_token_id - 1
        self.max_tokens = int(min(tokenizer.model_max_length, positions))

    @property
    def has_audio(self) -> bool:
        """Whether there is an audio tower."""
        return hasattr(self.clap, "audio_model")

    @property
    def front_end(self) -> ClapFrontEnd:
        """What makes the audio tower's input from a waveform.

        Raises:
            MusiccmError: There is no audio tower.
        """
        if self._front_end is None:
            raise MusiccmError(f"{self.where}text_encoder is CLAP's text tower alone, as in AudioLDM's published "
                               "layout: it embeds no audio. Add the audio tower by `musiccm convert --bundle FOLDER "
                               "--clap FILE`")
        return self._front_end

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.clap.parameters()).device

    def same_network(self, other: ClapConditioner) -> bool:
        """Whether another's weights are the very same, whatever file they came from."""
        mine, theirs = dict(self.clap.named_parameters()), dict(other.clap.named_parameters())
        return mine.keys() == theirs.keys() and all(
            value.shape == theirs[name].shape and torch.equal(value.cpu().float(), theirs[name].cpu().float())
            for name, value in mine.items()
        )

    def text(self, texts: list[str]) -> Tensor:
        """Embed texts, padded to the longest of the batch.

        Args:
            texts: Captions; the empty string is the null condition.

        Returns:
            Unit vectors of shape [B, D].

        Raises:
            MusiccmError: If `texts` is not a non-empty list of strings.
        """
        ids_BL, mask_BL = self.tokenized(texts)
        without_mask = mask_BL.all() and not self.few_lengths
        return self.encode(ids_BL.to(self.device), None if without_mask else mask_BL.to(self.device))

    def encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Embed tokens: unit vectors of shape [B, D]; see `Conditioner.encode`."""
        return self.features(ids_BL, mask_BL)

    def features(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """The same; see `Conditioner.features`.

        Positions are counted over what is no padding (RoBERTa), and the vector is read from the first token: padding
        behind the text moves neither.
        """
        taken = {"input_ids": ids_BL} | ({} if mask_BL is None else {"attention_mask": mask_BL.long()})
        return _unit(self.clap.get_text_features(**taken) if self.has_audio else self.clap(**taken).text_embeds)

    def read_in_bf16(self) -> None:
        """See `Conditioner.read_in_bf16`; the audio tower, which measures, stays in float32."""
        super().read_in_bf16()
        self.clap = bf16_products(self.clap, kept=("audio_model", "audio_projection"))

    def audio(self, waveform_BS: Tensor, sample_rate_hz: int, windows: str = "first") -> Tensor:
        """Embed waveforms, the same way every time; gradients flow to the waveform.

        Args:
            waveform_BS: Waveforms.
            sample_rate_hz: Their rate; they are resampled to the extractor's.
            windows: `first` takes the first window only; `mean` averages over windows that lie end to end, the last
                shifted back to end with the clip.

        Returns:
            Unit vectors of shape [B, D].

        Raises:
            MusiccmError: If the waveform is empty or not finite, `windows` is unknown, or CLAP has no audio tower.
        """
        if windows not in {"first", "mean"}:
            raise MusiccmError(f"windows must be 'first' or 'mean', found {windows!r}")
        if waveform_BS.dim() != 2 or not waveform_BS.numel() or not torch.isfinite(waveform_BS).all():
            raise MusiccmError(f"expected finite waveforms of shape [B, S], found shape {tuple(waveform_BS.shape)}"
                               + ("" if waveform_BS.dim() != 2 else " (empty, or with NaN or infinity)"))
        return self.embed_audio(waveform_BS, sample_rate_hz, windows)

    def embed_audio(self, waveform_BS: Tensor, sample_rate_hz: int, windows: str = "first") -> Tensor:
        """`audio` of waveforms that are known to be finite: a GPU is not waited for to find that out."""
        with torch.autocast(self.device.type, enabled=False):  # the filter's products would be cast
            resampled = resample(waveform_BS.to(self.device, torch.float32), sample_rate_hz,
                                 self.front_end.sample_rate_hz)
        length, total = self.front_end.window_samples, resampled.shape[-1]
        if windows == "first" or total <= length:
            return self.embed_features(self.front_end(resampled))
        starts = [min(i * length, total - length) for i in range(math.ceil(total / length))]
        stacked = torch.stack([resampled[:, start : start + length] for start in starts])
        embedded = self.embed_features(self.front_end(stacked.flatten(0, 1))).unflatten(0, stacked.shape[:2])
        return F.normalize(embedded.mean(0), dim=-1)

    def embed_features(self, features_B1MN: Tensor) -> Tensor:
        """Embed the front end's features: unit vectors of shape [B, D]."""
        is_longer = None
        if self.clap.config.audio_config.enable_fusion:
            # A window is never longer than the extractor's: all four fusion channels are alike and none is "longer".
            features_B1MN = features_B1MN.repeat(1, 4, 1, 1)
            is_longer = torch.zeros(len(features_B1MN), 1, dtype=torch.bool, device=features_B1MN.device)
        dtype = next(self.clap.parameters()).dtype
        return _unit(self.clap.get_audio_features(input_features=features_B1MN.to(dtype), is_longer=is_longer))


def _unit(output: Any) -> Tensor:
    """Normalise; transformers 5 wraps the projected features in an output object, 4 gave the tensor."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features, dim=-1)
