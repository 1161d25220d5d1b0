"""What a pipeline can do beyond clips of the trained length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from musiccm.audio.output_level import check_level
from musiccm.bounds import MAX_STREAM_S, check_duration
from musiccm.long_form.compose import compose
from musiccm.long_form.edit import Editor
from musiccm.long_form.finishing import finished
from musiccm.long_form.layout import lay_out
from musiccm.long_form.model import MusicModel
from musiccm.long_form.prompts import PromptPlan, Prompts
from musiccm.long_form.stream import MusicStream
from musiccm.samplers import SamplerSpec, checked_seeds, prompt_seeds, sample_seeds


class LongMusic:
    """Pieces of any length, streams and edits, for a class that is a `MusicModel` beside."""

    @property
    def _model(self) -> MusicModel:
        return cast(MusicModel, self)

    def compose(
        self,
        prompts: Prompts,
        seconds: float,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        overlap: float | None = None,
        fusion: str | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
        batch_size: int = 8,
        level: str = "none",
    ) -> Tensor:
        """Make one piece of any length, by the shared restricted process; at a clip's own length it is that clip.

        A model that plans tokens makes it by windows that hold what is there (docs/melody.md).

        Args:
            prompts: One text, or `(start_s, text)` pairs for music that changes.
            seconds: Length, above 0 and up to an hour.
            steps: See `Pipeline.__call__`.
            seed: Of the noise; or a list of one for each text, of the noise from its start on. Another seed for a later
                text leaves the noise of what comes before as it was.
            overlap: Shared part of neighbouring windows, from 0 to below 1.
            fusion: `uniform`, `triangular` or `swap`; of a model that plans tokens none.
            guidance_scale: See `Pipeline.__call__`.
            sampler: See `Pipeline.__call__`.
            batch_size: Windows a network call.
            level: See `Pipeline.__call__`.

        Returns:
            Waveform of shape [S] on the CPU, float32.

        Raises:
            MusiccmError: As `Pipeline.__call__`; and for a text that no window would use.
        """
        check_level(level)
        stepper, plan = self._model.stepper(steps, guidance_scale, sampler=sampler), PromptPlan(prompts)
        sound_S = compose(self._model, prompts, seconds, stepper, _noise_seed(seed, plan), overlap=overlap,
                          fusion=fusion, batch_size=batch_size)
        return finished(sound_S, self._model.sample_rate_hz, level, plan.name)

    def stream(
        self,
        prompts: Prompts,
        seconds: float | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        overlap: float | None = None,
        fusion: str | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
        level: str = "none",
    ) -> MusicStream:
        """Make the piece that `compose` makes, and give its sound while it is made, in constant memory.

        Args:
            prompts: See `compose`; `MusicStream.set_prompt` changes the text while it plays.
            seconds: Length, above 0 and up to 1e9; None goes on until it is closed.
            steps: See `Pipeline.__call__`.
            seed: See `compose`.
            overlap: See `compose`.
            fusion: See `compose`.
            guidance_scale: See `Pipeline.__call__`.
            sampler: See `Pipeline.__call__`.
            level: `none`, or `peak` or `loudness` by a gain that follows what was made (`LevelStream`).

        Returns:
            An iterator over waveforms of shape [S] on the CPU, float32.

        Raises:
            MusiccmError: As `compose`.
        """
        plan = PromptPlan(prompts)
        if seconds is not None:
            plan.require_within(check_duration(seconds, MAX_STREAM_S, "None streams without end"))
        stepper = self._model.stepper(steps, guidance_scale, sampler=sampler)
        noise_seed = _noise_seed(seed, plan)
        piece = lay_out(self._model, prompts, seconds, stepper, noise_seed, overlap, fusion)
        return MusicStream(self._model, piece, level)

    def editor(self, steps: int | None = None, seed: int = 0, **options: Any) -> Editor:
        """What continues, mends and varies clips with this model.

        `extend(clip, prompts, seconds)` lets a clip go on, `inpaint(clip, prompts, from_s, to_s)` makes a range of it
        anew: all other samples are the clip's own, bit for bit, at its rate and in its channels, but for a tenth of a
        second beside new sound in which one fades into the other. New sound is as loud as the clip around it.
        `vary(clip, prompts, strength)` makes all of it anew. Each gives an `Edited`: `waveform_CS`, `sample_rate_hz`,
        `kept` (what stretches are the clip's samples), `says()` (the same as a sentence) and `write(path)`, in the
        clip's sample format; `seam_metrics` tells whether a seam stands out.

        Args:
            steps: See `Pipeline.__call__`.
            seed: See `Pipeline.__call__`.
            **options: `guidance_scale`, `sampler`, `overlap`, `fusion`, `batch_size`, as `compose` takes them.

        Returns:
            The editor; it takes clips of `musiccm.long_form.read_clip`, or `SourceClip.of` for sound in memory.

        Examples:
            >>> from musiccm import Pipeline
            >>> from musiccm.audio.original import Original
            >>> from musiccm.long_form import SourceClip  # or read_clip(pipeline, "mine.flac")
            >>> pipeline = Pipeline.from_pretrained("musiccm-tiny-student")
            >>> clip = SourceClip.of(pipeline, Original(pipeline("a calm piano melody", 1), 16000, "PCM_16"))
            >>> edited = pipeline.editor(steps=1).extend(clip, "a calm piano melody", 8)
            >>> edited.waveform_CS.shape, edited.kept
            (torch.Size([1, 128000]), [(0, 80320)])
        """
        return Editor(self._model, prompt_seeds(seed, 1)[0], steps, **options)


def _noise_seed(seed: int | Sequence[int], plan: PromptPlan) -> int | list[int]:
    checked = checked_seeds(seed, len(plan.entries))
    return sample_seeds(checked, 1)[0] if isinstance(checked, int) else [sample_seeds(one, 1)[0] for one in checked]
