"""New music out of music that is there: going on, mending a range, another take."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from musiccm.audio.resample import resample
from musiccm.bounds import check_duration
from musiccm.errors import MusiccmError
from musiccm.long_form.chunk_piece import ChunkPiece
from musiccm.long_form.clip import ClipLength, SourceClip
from musiccm.long_form.compose import decode_whole
from musiccm.long_form.edit_layout import EditLayout, View
from musiccm.long_form.edited import Edited
from musiccm.long_form.encode import encode_sound
from musiccm.long_form.finishing import warn_of_silent_edit
from musiccm.long_form.layout import lay_out, piece_kind
from musiccm.long_form.model import MusicModel
from musiccm.long_form.piece import Piece
from musiccm.long_form.prompts import PromptPlan, Prompts
from musiccm.long_form.splice import between, channel_gains, splice, spread, step_gain
from musiccm.samplers import SamplerSpec

FADE_S = 0.1
"""The clip's last or next samples beside new sound, over which one fades into the other."""

CONTEXT_S = 2.0
"""How much of the clip beside new sound tells how loud that is to be."""

BESIDE_S = 1.0
"""Sound on either side of a seam whose levels are compared."""

REST = 10 ** (-30 / 20)
"""Where the clip beside new sound is quieter than itself by this, the whole clip tells it: a codec's sound of a rest,
or of the end of a fade, has hardly the rest's level."""


class Editor:
    """Edits with one model and one seed.

    What is kept of a clip are its own samples, bit for bit. The model looks at a window's length of it on either side
    of what is to be made; its new sound is brought to the clip's rate, channels and loudness.

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
            clip: The clip. Its samples are kept but for the last tenth of a second, which fades into what follows.
            prompts: Texts along time, counted from the clip's start.
            seconds: Length of clip and continuation together; by default the continuation is a window long.

        Returns:
            The whole.

        Raises:
            MusiccmError: The whole is no longer than the clip, or a text would not be used.
        """
        return self._fill(self.extension(clip.length, prompts, seconds), clip)

    def extension(self, clip: ClipLength, prompts: Prompts, seconds: float | None = None) -> EditLayout:
        """Lay `extend` out; arguments and errors as there, and nothing is computed."""
        pipeline = self.pipeline
        seconds = check_duration(clip.seconds + pipeline.duration_s if seconds is None else seconds)
        length = round(seconds * clip.sample_rate_hz)
        if length <= clip.original_samples:
            raise MusiccmError(f"duration: {clip.name} lasts {clip.seconds:.2f} s already; ask for more than that, "
                               f"found {seconds:g} s")
        PromptPlan(prompts).require_within(seconds)
        missing = round(seconds * pipeline.sample_rate_hz) - clip.samples
        view = self._view(clip, clip.samples, max(1, math.ceil(missing / pipeline.frame_samples)))
        return self._laid_out(view, prompts, clip.original_samples, length)

    def inpaint(self, clip: SourceClip, prompts: Prompts, from_s: float, to_s: float) -> Edited:
        """Make a range of a clip anew, to fit what lies around it.

        Args:
            clip: The clip. Its samples are kept but for the range and a tenth of a second on either side, in which the
                clip and the new sound fade into each other.
            prompts: Texts along time, counted from the clip's start.
            from_s: Start of the range.
            to_s: Its end; moved on so that the range is a whole number of latent frames.

        Returns:
            The clip with new music in the range.

        Raises:
            MusiccmError: The range is empty, not in the clip, or leaves nothing of it; or a text would not be used.
        """
        return self._fill(self.mending(clip.length, prompts, from_s, to_s), clip)

    def mending(self, clip: ClipLength, prompts: Prompts, from_s: float, to_s: float) -> EditLayout:
        """Lay `inpaint` out; arguments and errors as there, and nothing is computed."""
        per, rate_hz = self.pipeline.frame_samples, self.pipeline.sample_rate_hz
        if not 0 <= from_s < to_s <= clip.seconds + 1e-6:
            raise MusiccmError(f"range: expected 0 <= from < to <= {clip.seconds:.2f} s, the length of {clip.name}, "
                               f"found from {from_s:g} s to {to_s:g} s")
        PromptPlan(prompts).require_within(clip.seconds)
        start, end = round(from_s * rate_hz), round(to_s * rate_hz)
        view = self._view(clip, start, max(1, math.ceil((end - start) / per - 1e-6)))
        if view.left == view.right == 0:
            raise MusiccmError(f"range: {from_s:g} s to {to_s:g} s leaves nothing of {clip.name} to fit to; generate "
                               "without it")
        return self._laid_out(view, prompts, round(from_s * clip.sample_rate_hz), clip.original_samples)

    def vary(self, clip: SourceClip, prompts: Prompts, strength: float) -> Edited:
        """Another take on a clip: noise is added to it and taken away again (SDEdit, arXiv 2108.01073).

        All of it is made anew; no sample of the clip is kept.

        Args:
            clip: The clip.
            prompts: Texts along time.
            strength: How much noise: part of the model's noise levels, above 0 and up to 1, which keeps nothing.

        Returns:
            Music of the clip's length, rate, channels and loudness.

        Raises:
            MusiccmError: The strength is out of range, or a text would not be used.
        """
        piece = self.variation(clip.length, prompts, strength)
        length = _length(piece)
        # a clip shorter than the window ends in silence, as in training
        made = piece.vary(self._encode(clip.waveform_S, length, silence=True), self.batch_size)
        original = clip.original
        new_S = self._sound(made, clip, math.ceil(clip.samples / self.pipeline.frame_samples))[: original.samples]
        gains_C = _first(channel_gains(original.waveform_CS, new_S), self._balance(clip))
        new_CS = F.pad(new_S, (0, original.samples - len(new_S))) * gains_C[:, None]
        spliced = splice(original.waveform_CS, new_CS, 0, 0, 0, original.sample_rate_hz)
        warn_of_silent_edit(clip.name, spliced.waveform_CS, original.sample_rate_hz)
        return Edited(spliced.waveform_CS, original.sample_rate_hz, original.form, [], [], [], _decibels(gains_C),
                      spliced.limited_db, made, torch.zeros(length, dtype=torch.bool))

    def variation(self, clip: ClipLength, prompts: Prompts, strength: float) -> Piece | ChunkPiece:
        """Lay `vary` out; arguments and errors as there, and nothing is computed."""
        PromptPlan(prompts).require_within(clip.seconds)
        piece = self._piece(prompts, clip.samples, 0, strength)
        piece.require_used()
        return piece

    def _view(self, clip: ClipLength, start: int, new: int) -> View:
        """What to look at where `new` latent frames are made from sample `start` on, at the model's rate."""
        per, window = self.pipeline.frame_samples, self.pipeline.latent_shape[1]
        grid = piece_kind(self.pipeline).grid(self.pipeline)
        left, new = min(window, on_grid(math.ceil(start / per), grid)), on_grid(new, grid)
        rest = clip.samples - start - new * per
        # An end that is shorter than the fade into it is made anew with what lies before it.
        right = 0
        if rest > FADE_S * self.pipeline.sample_rate_hz:
            right = min(window, on_grid(math.ceil(rest / per), grid))
        return View(start - left * per, left, new, right, per)

    def _laid_out(self, view: View, prompts: Prompts, start: int, length: int) -> EditLayout:
        """The edit of a view; arguments as `EditLayout` has them."""
        piece = self._piece(prompts, view.frames * view.per, view.begin)
        kept_T = torch.zeros(_length(piece), dtype=torch.bool)
        kept_T[: view.left] = True
        kept_T[view.left + view.new : view.frames] = True
        piece.require_used_beside(kept_T)
        return EditLayout(view, piece, kept_T, start, length)

    def _piece(self, prompts: Prompts, samples: int, begin: int, strength: float = 1.0) -> Piece | ChunkPiece:
        """A piece of so many samples that begins at a sample of the clip, both at the model's rate."""
        rate_hz = self.pipeline.sample_rate_hz
        stepper = self.pipeline.stepper(self.steps, self.guidance_scale, strength=strength, sampler=self.sampler)
        return lay_out(self.pipeline, prompts, samples / rate_hz, stepper, self.noise_seed, self.overlap, self.fusion,
                       begin / rate_hz)

    @torch.no_grad()
    def _fill(self, laid: EditLayout, clip: SourceClip) -> Edited:
        """Sample the frames that are not kept, and lay their sound into the clip.

        Args:
            laid: The edit.
            clip: The clip.

        Returns:
            The whole.
        """
        seen_S = self._seen(laid.view, clip)
        made = laid.piece.fill(self._encode(seen_S, len(laid.kept_T)), laid.kept_T, seen_S, self.batch_size)
        return self._joined(laid, clip, made)

    def _joined(self, laid: EditLayout, clip: SourceClip, z_CTF: Tensor) -> Edited:
        """Lay the sound of latents into the clip; arguments as `_fill`."""
        view, start, length = laid.view, laid.start, laid.length
        original, rate_hz = clip.original, clip.original.sample_rate_hz
        there_CS = original.waveform_CS
        offset = round(view.begin * rate_hz / self.pipeline.sample_rate_hz)  # of the new sound
        back = round(view.back * rate_hz / self.pipeline.sample_rate_hz) if view.right else length
        new_S = self._sound(z_CTF, clip, view.frames)
        new_S = F.pad(new_S, (0, max(0, length - offset - len(new_S))))  # rates that do not divide: a sample at most

        def gains(first: int, last: int) -> Tensor | None:
            first, last = max(first, offset, 0), min(last, offset + len(new_S), original.samples)
            return channel_gains(there_CS[:, first:last], new_S[first - offset : last - offset], quiet)

        quiet = REST * float(spread(there_CS).max())
        context = round(CONTEXT_S * rate_hz)
        left_C = gains(start - context, start) if view.left else None
        right_C = gains(back, back + context) if view.right else None
        balance_C = self._balance(clip)
        ends = [_first(left_C, right_C, balance_C), _first(right_C, left_C, balance_C)]
        fade, beside = round(FADE_S * rate_hz), round(BESIDE_S * rate_hz)
        fade_in, fade_out = min(fade, start), min(fade, original.samples - back) if view.right else 0
        first, last = start - fade_in, back + fade_out
        made_S, reach = new_S[start - offset : back - offset], min(beside, back - start)
        if fade_in:
            ends[0] = ends[0] * step_gain(there_CS[:, max(0, first - beside) : first],
                                          made_S[:reach] * ends[0][:, None], quiet)
        if fade_out:
            ends[1] = ends[1] * step_gain(there_CS[:, last : last + beside],
                                          made_S[len(made_S) - reach :] * ends[1][:, None], quiet)
        ends = ends if fade_in and fade_out else [ends[0]] * 2 if fade_in else [ends[1]] * 2
        new_CS = new_S[first - offset : last - offset] * between(ends[0], ends[1], last - first)
        spliced = splice(there_CS, new_CS, first, fade_in, fade_out, rate_hz)
        warn_of_silent_edit(clip.name, spliced.waveform_CS[:, start:back], rate_hz)
        kept = [span for span in ((0, first), (last, original.samples)) if span[0] < span[1]]
        fades = [span for span in ((first, start), (back, last)) if span[0] < span[1]]
        seams_s = [place / rate_hz for place, there in ((start, fade_in), (back, fade_out)) if there]
        return Edited(spliced.waveform_CS, rate_hz, original.form, kept, fades, seams_s, _decibels(ends[0]),
                      spliced.limited_db, z_CTF, laid.kept_T)

    def _sound(self, z_CTF: Tensor, clip: SourceClip, frames: int) -> Tensor:
        """Sound of the first latents at the clip's rate and, as the model takes it to be, the clip's level."""
        sound_S = decode_whole(self.pipeline, z_CTF, self.batch_size)[: frames * self.pipeline.frame_samples]
        return resample(sound_S * clip.scale, self.pipeline.sample_rate_hz, clip.original.sample_rate_hz, "soxr")

    def _balance(self, clip: SourceClip) -> Tensor:
        """What the mean of the channels is multiplied by to be as loud as each, over the whole clip."""
        found = channel_gains(clip.original.waveform_CS, clip.waveform_S * clip.scale)
        return torch.ones(clip.original.channels) if found is None else found

    def _seen(self, view: View, clip: SourceClip) -> Tensor:
        """The clip's sound in a view, mirrored where its first or last latent frame reaches beyond the clip."""
        last = view.back + view.right * view.per
        sound_S = clip.waveform_S[max(view.begin, 0) : last]
        beyond = max(0, last - clip.samples) if view.right else 0
        # numpy's mirror goes to and fro where a clip is shorter than what it lacks, at which torch's ends
        return torch.from_numpy(np.pad(sound_S.numpy(), (max(0, -view.begin), beyond), mode="reflect"))

    def _encode(self, waveform_S: Tensor, length: int, silence: bool = False) -> Tensor:
        """Latents of sound, padded to `length`: by silence, or by zeros that nobody reads."""
        pipeline = self.pipeline
        return encode_sound(pipeline.codec, waveform_S, length, pipeline.latent_shape[1], pipeline.device, silence)


def on_grid(frames: int, grid: int) -> int:
    """The next multiple of `grid`."""
    return -(-frames // grid) * grid


def _length(piece: Piece | ChunkPiece) -> int:
    length = piece.length
    assert length is not None
    return length


def _first(*found: Tensor | None) -> Tensor:
    """The first that was found; one at least was."""
    return next(gains for gains in found if gains is not None)


def _decibels(gains_C: Tensor) -> list[float]:
    return [20.0 * math.log10(max(float(gain), 1e-6)) for gain in gains_C]
