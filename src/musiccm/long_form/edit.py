"""New music out of music that is there: going on, mending a range, another take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.io import BadAudio, open_audio, read_audio
from musiccm.audio.mel import MEL_FLOOR, LogMel
from musiccm.audio.resample import resample
from musiccm.audio.windows import level
from musiccm.errors import MusiccmError
from musiccm.long_form.compose import MAX_WHOLE_S, Piece, check_duration, decode_whole
from musiccm.long_form.decode import encode_piece
from musiccm.long_form.model import MusicModel
from musiccm.long_form.prompts import Prompts
from musiccm.samplers import INITIAL, SamplerSpec, needed_crops, sample_shared


@dataclass(frozen=True)
class SourceClip:
    """Music that is there, as the model sees it.

    Args:
        name: Its file, for messages.
        samples: Its length at the model's rate.
        mel_MN: Its log-mel.
    """

    name: str
    samples: int
    mel_MN: Tensor


@dataclass(frozen=True)
class Edited:
    """What an edit made.

    Args:
        waveform_S: The sound, float32 on the CPU.
        z_CTF: Its latents.
        kept_T: Latent frames that are the clip's own, bit by bit; none in a variation.
        seams_s: Where kept and new music meet, in seconds.
    """

    waveform_S: Tensor
    z_CTF: Tensor
    kept_T: Tensor
    seams_s: list[float]


def read_clip(pipeline: MusicModel, path: str | Path) -> SourceClip:
    """Read music in any format, rate and number of channels that libsndfile decodes.

    Channels are averaged and the level set as in training: mean removed, peak 0.5.

    Args:
        pipeline: The model that edits it.
        path: The file.

    Returns:
        The clip.

    Raises:
        BadAudio: The file cannot be used, or is shorter than one latent frame.
        MusiccmError: It is longer than `MAX_WHOLE_S`.
    """
    with open_audio(path) as file:  # its header, before hours of it are decoded
        if file.frames > MAX_WHOLE_S * file.samplerate:
            raise MusiccmError(f"{path}: at most {MAX_WHOLE_S:g} s can be edited, found "
                               f"{file.frames / file.samplerate:.0f} s; cut it")
    waveform_S, rate_hz = read_audio(path)
    waveform_S = resample(level(waveform_S), rate_hz, pipeline.sample_rate_hz, "soxr")
    mel = pipeline.codec.mel
    shortest = max(pipeline.frame_samples, mel.n_fft // 2 + 1)
    if len(waveform_S) < shortest:
        raise BadAudio(path, "too_short", f"{len(waveform_S) / pipeline.sample_rate_hz:.3f} s, expected at least "
                                          f"{shortest / pipeline.sample_rate_hz:.3f} s")
    return SourceClip(str(path), len(waveform_S), LogMel(mel)(waveform_S))


class Editor:
    """Edits with one model and one seed.

    Args:
        pipeline: The model.
        noise_seed: Of the new music.
        steps: See `Pipeline.__call__`.
        guidance_scale: See `Pipeline.__call__`.
        overlap: See `compose`.
        fusion: See `compose`.
        batch_size: See `compose`.
        sampler: See `Pipeline.__call__`.
    """

    def __init__(
        self,
        pipeline: MusicModel,
        noise_seed: int,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        overlap: float | None = None,
        fusion: str | None = None,
        batch_size: int = 8,
        sampler: SamplerSpec | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.noise_seed = noise_seed
        self.steps, self.guidance_scale = steps, guidance_scale
        self.overlap, self.fusion, self.batch_size = overlap, fusion, batch_size
        self.sampler = sampler

    def extend(self, clip: SourceClip, prompts: Prompts, seconds: float | None = None) -> Edited:
        """Let a clip go on.

        Args:
            clip: The clip; kept but for a last part that fills no latent frame.
            prompts: Texts along time, counted from the clip's start.
            seconds: Length of clip and continuation together; by default the continuation is a window long.

        Returns:
            The whole.

        Raises:
            MusiccmError: The whole is no longer than the clip.
        """
        pipeline = self.pipeline
        has_s = clip.samples / pipeline.sample_rate_hz
        seconds = check_duration(has_s + pipeline.duration_s if seconds is None else seconds)
        if seconds <= has_s:
            raise MusiccmError(f"duration: {clip.name} lasts {has_s:.2f} s already; ask for more than that, found "
                               f"{seconds:g} s")
        piece = self._piece(prompts, seconds)
        kept_T = torch.zeros(_length(piece), dtype=torch.bool)
        kept_T[: clip.samples // pipeline.frame_samples] = True
        return self._fill(piece, clip, kept_T)

    def inpaint(self, clip: SourceClip, prompts: Prompts, from_s: float, to_s: float) -> Edited:
        """Make a range of a clip anew, to fit what lies around it.

        Args:
            clip: The clip.
            prompts: Texts along time, counted from the clip's start.
            from_s: Start of the range; moved back to a latent frame.
            to_s: Its end; moved on to a latent frame.

        Returns:
            The clip with new music in the range.

        Raises:
            MusiccmError: The range is empty, not in the clip, or leaves nothing of it.
        """
        per, rate_hz = self.pipeline.frame_samples, self.pipeline.sample_rate_hz
        has_s = clip.samples / rate_hz
        if not 0 <= from_s < to_s <= has_s + 1e-6:
            raise MusiccmError(f"range: expected 0 <= from < to <= {has_s:.2f} s, the length of {clip.name}, found "
                               f"from {from_s:g} s to {to_s:g} s")
        piece = self._piece(prompts, has_s)
        kept_T = torch.zeros(_length(piece), dtype=torch.bool)
        kept_T[: clip.samples // per] = True
        kept_T[math.floor(from_s * rate_hz / per + 1e-6) : math.ceil(to_s * rate_hz / per - 1e-6)] = False
        if not kept_T.any():
            raise MusiccmError(f"range: {from_s:g} s to {to_s:g} s leaves nothing of {clip.name} to fit to; generate "
                               "without it")
        return self._fill(piece, clip, kept_T)

    def vary(self, clip: SourceClip, prompts: Prompts, strength: float) -> Edited:
        """Another take on a clip: noise is added to it and taken away again (SDEdit, arXiv 2108.01073).

        Args:
            clip: The clip.
            prompts: Texts along time.
            strength: How much noise: part of the model's noise levels, above 0 and up to 1, which keeps nothing.

        Returns:
            Music of the clip's length.

        Raises:
            MusiccmError: The strength is out of range.
        """
        piece = self._piece(prompts, clip.samples / self.pipeline.sample_rate_hz, strength)
        length = _length(piece)
        piece.require_used()
        # a clip shorter than the window ends in silence, as in training
        z_CTF = self._encode(clip, length, pad_value=math.log(MEL_FLOOR))
        initial = self._noised(piece, z_CTF)
        made = sample_shared(piece.process, piece.cond_of, self.batch_size, initial_CTF=initial)
        return self._edited(piece, made, torch.zeros(length, dtype=torch.bool))

    def _piece(self, prompts: Prompts, duration_s: float, strength: float = 1.0) -> Piece:
        stepper = self.pipeline.stepper(self.steps, self.guidance_scale, strength=strength, sampler=self.sampler)
        return Piece.of(self.pipeline, prompts, duration_s, stepper, self.noise_seed, self.overlap, self.fusion)

    @torch.no_grad()
    def _fill(self, piece: Piece, clip: SourceClip, kept_T: Tensor) -> Edited:
        """Sample the frames that are not kept."""
        clean = self._encode(clip, len(kept_T), pad_value=None)
        piece.require_used(needed_crops(piece.process.crops, kept_T))
        noise = piece.process.fresh(INITIAL, 0, len(kept_T))
        initial = torch.where(kept_T[:, None].to(clean.device), self._noised(piece, clean), noise)
        made = sample_shared(piece.process, piece.cond_of, self.batch_size, initial_CTF=initial, kept_CTF=clean,
                             kept_T=kept_T)
        return self._edited(piece, made, kept_T)

    def _noised(self, piece: Piece, clean_CTF: Tensor) -> Tensor:
        """Clean latents at the sampler's first noise level."""
        noise = piece.process.fresh(INITIAL, 0, clean_CTF.shape[1])
        stepper = piece.process.stepper
        return stepper.process.add_noise(clean_CTF, noise, torch.tensor(stepper.timesteps[0], device=noise.device))

    def _encode(self, clip: SourceClip, length: int, pad_value: float | None) -> Tensor:
        """Latents of the clip, padded to `length`: by mels of `pad_value`, or by zeros that nobody reads."""
        codec, window = self.pipeline.codec, self.pipeline.latent_shape[1]
        mel_MN, per = clip.mel_MN[: length * codec.downsampling], codec.downsampling
        if pad_value is not None:
            mel_MN = F.pad(mel_MN, (0, 0, 0, length * per - len(mel_MN)), value=pad_value)
        elif len(mel_MN) % per:
            mel_MN = torch.cat([mel_MN, mel_MN[-1:].expand(per - len(mel_MN) % per, -1)])
        z_CTF = encode_piece(codec, mel_MN.to(self.pipeline.device), window)
        return F.pad(z_CTF, (0, 0, 0, length - z_CTF.shape[1]))

    def _edited(self, piece: Piece, z_CTF: Tensor, kept_T: Tensor) -> Edited:
        sound_S = decode_whole(self.pipeline, z_CTF, self.batch_size)[: piece.samples]
        borders = torch.nonzero(kept_T[1:] != kept_T[:-1])[:, 0] + 1
        seams_s = [int(frame) * self.pipeline.frame_samples / self.pipeline.sample_rate_hz for frame in borders]
        return Edited(sound_S, z_CTF, kept_T, [s for s in seams_s if s < len(sound_S) / self.pipeline.sample_rate_hz])


def _length(piece: Piece) -> int:
    length = piece.process.crops.length
    assert length is not None
    return length
