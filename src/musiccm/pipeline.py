"""Text in, waveform out: what users install."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.audio.output_level import check_level
from musiccm.bounds import Bucket
from musiccm.device import sent
from musiccm.diffusion import AnyCondition, noise_process
from musiccm.errors import MusiccmError, reason
from musiccm.long_form import LongMusic, check_batch, check_duration, check_texts, compose, finished
from musiccm.models.acceleration.compiled_package import CompiledPackage, Part, Target
from musiccm.models.acceleration.networks import (
    CompiledNetwork,
    channels_last,
    check_backend,
    suit_cpu,
    to_bfloat16,
)
from musiccm.models.acceleration.packaged_call import PackagedCall
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SETTINGS_FILE
from musiccm.models.bundle.student_record import (
    DEFAULT_STEPS,
    check_sampler,
    is_student,
    recorded_grid,
    recorded_guidance,
    recorded_sampler,
)
from musiccm.models.bundle.training_words import TrainingWords, Unfamiliar
from musiccm.models.denoiser import Consistency, takes_scale
from musiccm.models.fast_decoder import FastDecoder
from musiccm.samplers import (
    Evaluations,
    Sampler,
    SamplerSpec,
    Stepper,
    prompt_seeds,
    sample_noise,
    seeded_noise_fn,
    student_stepper,
    suited_sampler,
    teacher_stepper,
)
from musiccm.samplers.steppers import TEACHER_SAMPLER
from musiccm.texts import short
from musiccm.warm_clips import WarmClips

CLIP = Bucket()
"""One clip, by the steps that its model is meant for."""


class Pipeline(LongMusic):
    """Makes music with a bundle: few-step with a distilled student, guided DDIM with a teacher.

    Which of the two a bundle is, its scheduler says: a student's (`is_student`) carries the timestep grid that
    it was trained on.

    It is safe for threads: several may call it, compose, stream and edit at once, each with a result of its own that is
    the same as if it were alone. `to`, `accelerate` and `warm_up` belong before that. Whatever it refuses is a
    `MusiccmError`.

    Args:
        bundle: The bundle.
        decoder: `fast`, `original`, or None for the fast one where there is one: see `Bundle.codec`.

    Raises:
        MusiccmError: If its parts do not fit together, or a student's record contradicts its scheduler.

    Examples:
        >>> from musiccm import Pipeline
        >>> pipeline = Pipeline.from_pretrained("musiccm-tiny-student")
        >>> waveforms_BS = pipeline(["a calm piano melody", "slow organ chords"], steps=1, seed=0)
        >>> waveforms_BS.shape, pipeline.sample_rate_hz
        (torch.Size([2, 81920]), 16000)
        >>> pipeline
        Pipeline(tiny-student: student, 4 steps, clips of 5.12 s at 16000 Hz, fast decoder, on cpu)
    """

    def __init__(self, bundle: Bundle, decoder: str | None = None) -> None:
        self.bundle = bundle
        bundle.kind.check(bundle)
        scheduler = bundle.scheduler_config
        self.is_student = is_student(scheduler)
        self.record: dict[str, Any] = bundle.settings.get("distillation") or {}
        check_sampler(self.record, scheduler, bundle.root_of("scheduler") / "scheduler" / "scheduler_config.json")
        try:
            self.sampler()
            self.guidance = recorded_guidance(self.record)
        except MusiccmError as error:
            raise MusiccmError(f"{bundle.path / SETTINGS_FILE}: distillation: {error}; restore it, or export the "
                               "student again") from error
        if self.is_student:
            _check_branch(bundle, self.guidance.kind)
        self.schedule = noise_process(scheduler)
        self.prediction_type = bundle.prediction_type
        self.conditioner = bundle.network_conditioner()
        self.codec = bundle.codec(decoder)
        self.latent_shape = bundle.latent_shape()
        self.denoiser = bundle.kind.denoiser(bundle.network, self.schedule, self.prediction_type).eval()
        self._spent = Evaluations()
        self.device = torch.device("cpu")
        self._warm: WarmClips | None = None
        if self.is_student:
            self.grid = recorded_grid(scheduler)
            self.consistency = Consistency(
                self.denoiser, timestep_scaling=float(scheduler.get("timestep_scaling", 10.0))
            )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, decoder: str | None = None, plain: bool = False
    ) -> Pipeline:
        """Read a bundle from a directory, by a packaged name (`musiccm-tiny-student`) or from the hub.

        Args:
            path: See `Bundle.from_pretrained`.
            dtype: Type of the weights in memory, torch.float32; `accelerate(half=True)` computes in bf16.
            decoder: See `Pipeline`.
            plain: Make music of texts without importing diffusers and transformers where that is possible: the same
                samples, from a process that starts sooner. Edits, which encode sound, are refused then. See `Bundle`.

        Raises:
            MusiccmError: If the bundle is missing, incomplete or inconsistent, or lacks the decoder, or `dtype` is
                another.
        """
        if dtype is not torch.float32:
            raise MusiccmError(f"dtype: expected torch.float32, found {dtype!r}; accelerate(half=True) computes in "
                               "bf16 what sound allows")
        return cls(Bundle.from_pretrained(path, dtype=dtype, plain=plain), decoder)

    def __repr__(self) -> str:
        kind = "student" if self.is_student else "teacher"
        decoder = self.codec.decoded_by
        return (f"Pipeline({self.bundle.path.name}: {kind}, {self.default_steps} steps, clips of {self.duration_s:g} s "
                f"at {self.sample_rate_hz} Hz, {decoder} decoder, on {self.device})")

    @property
    def default_steps(self) -> int:
        """Sampling steps where none are asked for."""
        return int(self.record.get("default_steps", DEFAULT_STEPS)) if self.is_student else self.bundle.kind.steps

    @property
    def accelerated(self) -> bool:
        """Whether `accelerate` was called, on this pipeline or another of the same `Bundle`: they share the U-Net."""
        return getattr(self.bundle.network, "accelerated", False)

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the networks.

        Raises:
            MusiccmError: They were made for the device that they are on by `accelerate`, or the device is not here.
        """
        if self.accelerated:
            raise MusiccmError(f"the networks were made fast for {self.device} and cannot be moved; call "
                               "to(device) first, then accelerate()")
        try:
            torch.empty(1, device=device)
            self.device = torch.device(device)
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            raise MusiccmError(f"device: expected one that this machine has, such as cpu, found {device!r} "
                               f"({reason(error)})") from error
        for module in (self.denoiser, self.conditioner, self.codec):
            module.to(self.device)
        self._warm = None  # what was recorded reads the weights where they were
        return self

    def accelerate(
        self, half: bool = False, backend: str | Callable[..., Any] | None = None, compiled: str | Path | None = None
    ) -> Pipeline:
        """Put the U-Net into the form that its device computes fastest; docs/speed.md says what it brings.

        By itself it changes the sound by rounding only, as another machine would. On a CPU, kernels are laid out with
        their channels last, and wide convolutions are computed in ways of fewer operations; on a GPU there is no gain
        without one of the options. It cannot be undone.

        Args:
            half: Let the U-Net compute in bf16, but for its last layer, as well as the products of the text encoder
                and of the fast decoder's blocks: for GPUs, and for CPUs that have bf16 units.
            backend: Also compile the U-Net, by this backend of `torch.compile`. `inductor` takes a minute or more at
                the first call with each batch size, which pays where many clips are made; on a GPU it captures a CUDA
                graph.
            compiled: A folder that `musiccm.compiling.compile_ahead` (`musiccm export --compiled`) wrote for this
                model, device, `half` and PyTorch: nothing is compiled then. It holds machine code, so load none that
                you would not run. Shapes of music that it was not made for are computed as usual, which is logged.

        Returns:
            The pipeline.

        Raises:
            MusiccmError: It was called before, there is no such backend, both a backend and a package are given, or the
                package was made for something else.
        """
        self._require_plain()
        if compiled is not None and backend is not None:
            raise MusiccmError("compiled: expected no backend beside a package that was compiled before, found "
                               f"{backend!r}; leave one of the two out")
        if not callable(backend):
            check_backend("backend", backend)
        if compiled is not None:
            return self._with_package(Path(compiled), half)
        self.bundle.network.accelerated = True  # type: ignore[assignment]
        if half:
            self._halve()
        if self.device.type == "cpu" and backend is None:
            suit_cpu(self.denoiser.unet)
        if self.device.type == "cpu" or backend is not None:  # GPUs have no such kernel for norms unless it is compiled
            channels_last([self.denoiser.unet])
        if backend is not None:
            self.denoiser.unet = CompiledNetwork(self.denoiser.unet, backend)
            self.conditioner.few_lengths = self.bundle.gives_tokens  # it is compiled for each length of the tokens
        self._warm = None
        return self

    def _halve(self) -> None:
        to_bfloat16(self.denoiser.unet)
        if not self.conditioner.draws:  # rounding would turn a draw
            self.conditioner.read_in_bf16()
        if isinstance(self.codec.decoder, FastDecoder):
            self.codec.decoder = self.codec.decoder.with_bf16_blocks()

    def _require_plain(self) -> None:
        if self.accelerated:
            raise MusiccmError("this pipeline was accelerated before; make another one to do it in another way")

    @property
    def compiled_parts(self) -> dict[str, Part]:
        """What of it is compiled ahead of time, by name: a module and its method."""
        parts: dict[str, Part] = {self.bundle.kind.network: (self.denoiser.unet, "forward")}
        if not self.conditioner.draws:
            parts["text_encoder"] = self.conditioner, "features"
        if self.codec.decoder is not None:
            parts["decoder"] = self.codec.decoder, "forward"
        return parts

    def compiled_target(self, half: bool) -> Target:
        """What code that is compiled of it here is good for; its bundle's files are read for their hash."""
        kind, decoder = self.bundle.kind, self.codec.decoded_by
        return Target.here(self.bundle.content_hash({*kind.teaching, *kind.decoding[decoder]}), decoder, half,
                           self.device)

    def suit_compiler(self, half: bool) -> Pipeline:
        """Take the form that is compiled ahead of time: weights' types and layouts, and prompts of few lengths.

        Args:
            half: See `accelerate`.

        Returns:
            The pipeline, which cannot be accelerated any more.

        Raises:
            MusiccmError: `accelerate` was called before.
        """
        self._require_plain()
        self.bundle.network.accelerated = True  # type: ignore[assignment]
        if half:
            self._halve()
        channels_last([self.denoiser.unet])
        self.conditioner.few_lengths = not self.conditioner.draws
        self._warm = None
        return self

    def _with_package(self, folder: Path, half: bool) -> Pipeline:
        target = self.compiled_target(half)
        package = CompiledPackage.read(folder, target)  # before anything is changed
        parts = self.suit_compiler(half).compiled_parts
        for name, calls in package.load(parts, self.device).items():
            owner, method = parts[name]
            setattr(owner, method, PackagedCall(getattr(owner, method), calls, name))
        return self

    def warm_up(
        self,
        buckets: Bucket | Sequence[Bucket] = CLIP,
        texts: Sequence[str] = ("",),
        *,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
        record: bool | None = None,
    ) -> Pipeline:
        """Make what is slow at first happen now, for the shapes of music that will be asked for.

        On a GPU a shape of clips is recorded as one CUDA graph, from tokens to sound, by which `pipeline(...)` then
        makes clips of this number or fewer, at these steps, by this sampler and guidance. Other calls are made as
        before, which is logged once. Elsewhere, for longer pieces, and of models that write tokens, each shape is made
        once, so that what is compiled for it is ready; a compiled network then computes smaller batches, such as the
        last windows of a piece and those of a stream, by the next larger one. Call it after `to` and `accelerate`.

        Args:
            buckets: The shapes; of longer pieces `batch` is the `batch_size` of `compose`.
            texts: As long as prompts will be: they are padded to 32 tokens, 64, 128, ..., which changes sound by
                rounding.
            guidance_scale: See `__call__`.
            sampler: See `__call__`.
            record: Whether clips are recorded; by default on a GPU. On a CPU a recorded call is the same computation
                from memory of its own, which gains nothing and is for tests.

        Returns:
            The pipeline.

        Raises:
            MusiccmError: As `__call__`; or more shapes than can be recorded.

        Examples:
            >>> from musiccm import Pipeline
            >>> from musiccm.bounds import Bucket
            >>> pipeline = Pipeline.from_pretrained("musiccm-tiny-student").warm_up(Bucket(batch=2, steps=1))
            >>> pipeline(["a calm piano melody", "slow organ chords"], steps=1).shape
            torch.Size([2, 81920])
        """
        record = self.device.type == "cuda" if record is None else record
        for bucket in [buckets] if isinstance(buckets, Bucket) else buckets:
            stepper = self._stepper(bucket.steps, guidance_scale, sampler=sampler)
            self._serve_smaller(False)  # this shape is compiled even where a larger one would do
            if bucket.seconds is not None and not self._is_clip(bucket.seconds):
                if isinstance(self.denoiser.unet, CompiledNetwork):
                    self._make_clips(stepper, bucket.batch, texts[0])
                    self._serve_smaller(True)  # the last windows are fewer
                compose(self, "music", bucket.seconds, stepper, 0, batch_size=bucket.batch)
            elif record and not self.conditioner.draws:
                if self._warm is None:
                    self._warm = WarmClips(self.conditioner, self.codec.decode, self.latent_shape, self.device)
                self._warm.add(stepper, bucket.batch, texts)
            else:
                self._make_clips(stepper, bucket.batch, texts[0])
        self._serve_smaller(True)
        return self

    def _make_clips(self, stepper: Stepper, count: int, text: str) -> None:
        seeds = list(range(count))
        with torch.inference_mode():
            cond = self.conditioner.prompts([text] * count, seeds)
            self.codec.decode(self._sampled(stepper, cond, seeds))

    def _serve_smaller(self, serves: bool) -> None:
        if isinstance(self.denoiser.unet, CompiledNetwork):
            self.denoiser.unet.serves_smaller = serves

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return self.bundle.sample_rate_hz

    @property
    def frame_samples(self) -> int:
        """Samples of a latent frame."""
        return self.codec.frame_samples

    @property
    def duration_s(self) -> float:
        """Length of a clip, and of the window that longer music is made in."""
        return self.latent_shape[1] * self.frame_samples / self.sample_rate_hz

    @cached_property
    def words(self) -> TrainingWords | None:
        """What the captions speak of that the model was trained on; None where the bundle has no `words/`.

        Raises:
            MusiccmError: Its files are damaged, or of another text encoder.
        """
        words = TrainingWords.of(self.bundle)
        if words is not None:
            words.check(self.conditioner)
        return words

    def unfamiliar(self, prompts: str | Sequence[str]) -> list[Unfamiliar | None]:
        """Tell which prompts are unlike all that the training captions say (docs/words.md); nothing is printed.

        Args:
            prompts: One text or several.

        Returns:
            For each prompt None where it is familiar, or where the bundle has no `words/`; else what of it is unknown,
            and the captions that it is nearest to. As text, it is a sentence.

        Raises:
            MusiccmError: For empty prompts, or a `words/` that is damaged.

        Examples:
            >>> from musiccm import Pipeline
            >>> pipeline = Pipeline.from_pretrained("musiccm-tiny-student")
            >>> familiar, other = pipeline.unfamiliar(["a calm piano melody", "heavy metal riff"])
            >>> familiar is None, other.unknown
            (True, ('heavy', 'metal', 'riff'))
        """
        texts = check_texts(prompts)
        return [None] * len(texts) if self.words is None else self.words.unfamiliar(self.conditioner, texts)

    def __call__(
        self,
        prompts: str | Sequence[str],
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        *,
        seconds: float | None = None,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
        batch_size: int = 8,
        level: str = "none",
    ) -> Tensor:
        """Make one clip a prompt.

        With a list of seeds a clip is its prompt and its seed, wherever it stands: `pipeline(texts, seed=seeds)[3]` is
        `pipeline(texts[3], seed=seeds[3])[0]`. With one seed for several prompts it also depends on its place in the
        list, so that one text given twice makes two clips. In neither case does it depend on what else is in the list,
        but for the rounding of kernels that compute several clips at once.

        What comes back is the model's own sound, as metrics need it, unless a `level` is asked for. A clip that is near
        silence (below -60 LUFS) is reported by a warning.

        Args:
            prompts: One text or several.
            steps: Sampling steps; by default what a student was exported with (4), or 50 for a teacher, 20 for one of
                MeLoDy's kind.
            seed: Of the noise: one number, or a list of one for each prompt.
            seconds: Length, by default the one that the model was trained on; see `compose` for others.
            guidance_scale: For a teacher, 3 by default, 2.5 for one of MeLoDy's kind. For a student that was exported
                with one to choose, from the range that it was trained on (`guidance` is `variable`) or by a second
                network call each step (`direct`), and by default as exported; any other takes none.
            sampler: A sampler, its name, or its name and fields, such as `{"name": "lcm", "gamma": 0.6}`
                (`make_sampler`); by default the one that a student was exported with, and `ddim` for a teacher.
            batch_size: Clips computed at once.
            level: `none`; `peak`, true peak at -1 dBTP; or `loudness`, -18 LUFS (ITU-R BS.1770) with true peaks below
                -1 dBTP. The last two fade ends that cut a wave within 10 ms (`audio/output_level.py`).

        Returns:
            Waveforms of shape [B, S] on the CPU, float32.

        Raises:
            MusiccmError: For empty prompts, seeds that do not fit them, an unknown level, a step count off the grid,
                guidance that a student does not take, a sampler that does not suit the model, or an impossible
                duration.
        """
        texts = check_texts(prompts)
        seeds = prompt_seeds(seed, len(texts))
        check_level(level)
        check_batch(batch_size)
        if seconds is not None and not self._is_clip(check_duration(seconds)):
            stepper = self.stepper(steps, guidance_scale, sampler=sampler)
            return self._finished([compose(self, text, seconds, stepper, own, batch_size=batch_size)
                                   for text, own in zip(texts, seeds, strict=True)], texts, level)
        parts = [slice(start, start + batch_size) for start in range(0, len(texts), batch_size)]
        with torch.inference_mode():
            clips = [self.warm_clips(texts[part], seeds[part], steps, guidance_scale, sampler) for part in parts]
            if any(made is None for made in clips):
                cond_BD = self.conditioner.prompts(texts, seeds)
            for number, part in enumerate(parts):
                if clips[number] is None:
                    z = self.latents(cond_BD[part], seeds[part], steps, guidance_scale=guidance_scale, sampler=sampler)
                    clips[number] = self.codec.decode(z).float().cpu()
        # outside the mode: a tensor like any other
        return self._finished([clip_S for made in clips if made is not None for clip_S in made], texts, level)

    @property
    def warmed(self) -> bool:
        """Whether there are clips that `warm_up` recorded."""
        return self._warm is not None

    def warm_clips(
        self, texts: Sequence[str], seeds: Sequence[int], steps: int | None = None,
        guidance_scale: float | None = None, sampler: SamplerSpec | None = None,
    ) -> Tensor | None:
        """Clips by a recorded call (`warm_up`).

        Args:
            texts: Prompts.
            seeds: Of the noise, one a prompt (`prompt_seeds`).
            steps: See `__call__`.
            guidance_scale: See `__call__`.
            sampler: See `__call__`.

        Returns:
            Waveforms [B, S] on the CPU, float32; None where none was recorded that makes them.

        Raises:
            MusiccmError: As `__call__`.
        """
        if self._warm is None:
            return None
        made = self._warm.make(self._stepper(steps, guidance_scale, sampler=sampler), texts, seeds)
        if made is None:
            return None
        self._spent.denoising += made[1]
        return made[0]

    def _is_clip(self, seconds: float) -> bool:
        return math.isclose(seconds, self.duration_s, abs_tol=1e-3)

    def _finished(self, clips: list[Tensor], texts: list[str], level: str) -> Tensor:
        return torch.stack([finished(clip_S, self.sample_rate_hz, level, repr(short(text)))
                            for clip_S, text in zip(clips, texts, strict=True)])

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """The sampler of this bundle at work.

        Args:
            steps: See `__call__`.
            guidance_scale: See `__call__`.
            strength: Part of the noise levels that is gone through, from the cleanest up; below 1 to vary a clip.
            sampler: See `__call__`.

        Returns:
            The network with its guidance, its timesteps and its rule.

        Raises:
            MusiccmError: As `__call__`; or a strength that is not above 0 and up to 1.
        """
        return self._spent.counting(self._stepper(steps, guidance_scale, strength, sampler))

    def _stepper(
        self, steps: int | None, guidance_scale: float | None = None, strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        rule = self.sampler(sampler)
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, Real | None):
            raise MusiccmError(f"guidance_scale: expected a number, found {guidance_scale!r}")
        steps = self.default_steps if steps is None else steps
        if self.is_student:
            return student_stepper(self.consistency, self.schedule, self.grid, steps, rule, guidance_scale, strength,
                                   guidance=self.guidance, null=self.conditioner.null)
        return teacher_stepper(
            self.denoiser, self.schedule, self.conditioner.null, steps,
            self.bundle.kind.guidance_scale if guidance_scale is None else guidance_scale, rule, strength,
        )

    def broken_weights(self) -> list[str]:
        """The first weight of each part that holds NaN or infinity, as `unet: conv_in.weight`; none if all are sound.

        Every weight is read: for the failure of a result that is not finite, not for each call.
        """
        parts = {self.bundle.kind.network: self.bundle.network, "conditioner": self.conditioner,
                 **dict(self.codec.named_children())}
        broken = {part: next((name for name, value in module.state_dict().items()
                              if value.is_floating_point() and not torch.isfinite(value).all()), None)
                  for part, module in parts.items()}
        return [f"{part}: {name}" for part, name in broken.items() if name is not None]

    @property
    def evaluations(self) -> Evaluations:
        """Network evaluations so far, of all clips and threads together: two for a guided call, one for each token."""
        return Evaluations(tokens=self.conditioner.written, denoising=self._spent.denoising)

    def sampler(self, spec: SamplerSpec | None = None) -> Sampler:
        """The rule by which this bundle is sampled.

        Args:
            spec: See `__call__`.

        Returns:
            The sampler.

        Raises:
            MusiccmError: It is unknown, or does not suit this kind of model.
        """
        if spec is None:
            spec = recorded_sampler(self.record) if self.is_student else TEACHER_SAMPLER
        return suited_sampler(spec, self.is_student)

    @torch.no_grad()
    def latents(
        self,
        cond_BD: AnyCondition,
        seeds: Sequence[int],
        steps: int | None = None,
        *,
        guidance_scale: float | None = None,
        sampler: SamplerSpec | None = None,
    ) -> Tensor:
        """Sample normalised latents.

        Args:
            cond_BD: Conditions, vectors or tokens.
            seeds: One a sample.
            steps: See `__call__`.
            guidance_scale: See `__call__`.
            sampler: See `__call__`.

        Returns:
            z_BCTF.

        Raises:
            MusiccmError: As `__call__`.
        """
        return self._sampled(self.stepper(steps, guidance_scale, sampler=sampler), cond_BD, seeds)

    def _sampled(self, stepper: Stepper, cond_BD: AnyCondition, seeds: Sequence[int]) -> Tensor:
        noise = sent(sample_noise(seeds, self.latent_shape), self.device)
        return stepper.sample(cond_BD, noise, seeded_noise_fn(seeds, self.latent_shape))


def _check_branch(bundle: Bundle, kind: str) -> None:
    """What the U-Net's configuration and the student's record say of a guidance branch, before any weights are read."""
    has = takes_scale(bundle.config(bundle.kind.network))
    if has != (kind == "variable"):
        raise MusiccmError(
            f"{bundle.path}: unet/config.json {'states' if has else 'lacks'} the guidance branch (addition_embed_type: "
            f"guidance), but {SETTINGS_FILE} says distillation.guidance: {kind}; restore the two files, or export the "
            "student again")
