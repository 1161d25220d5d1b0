"""The evaluation itself, without Lightning: captions in, a row of metrics out, each waveform made and embedded once."""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from musiccm.data.batch import WaveformBatch
from musiccm.embedders import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import Candidate, clip_seed, initial_noise
from musiccm.evaluation.suite import FeatureExtractor, Features, MetricSuite
from musiccm.evaluation.text_audio import MeasuringClap
from musiccm.progress import Progress

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What one candidate came to.

    Args:
        row: Its row of the table.
        nearest: Nearest training clip of each generated one.
        kept: Waveforms `[S]` of the first clips, by clip id.
    """

    row: dict[str, Any]
    nearest: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)


class Evaluator:
    """Scores candidates against one reference: the same captions and the same noise for each.

    On several ranks, each holds its own clips; the metrics are those of one process. Latencies are the rank's own.

    Args:
        extractor: Waveforms to features.
        suite: The metrics.
        seed: Seed of the noise, with the clip ids.
        batch_size: Clips that are generated together; latency is stated at this size.
        device: Where the networks are.
        progress: Whether to show a progress bar with rate and remaining time.
        between: Called before each batch with the number of its first clip: where the ranks can agree to leave.
        clap: What embeds the captions for text-audio similarity, and the clips where it is another CLAP than the
            extractor's. It is the evaluation's own: what conditions a model may be anything. None in a suite without
            text.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        suite: MetricSuite,
        seed: int = 0,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
        progress: bool = True,
        between: Callable[[int], Any] = lambda first: None,
        clap: MeasuringClap | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.extractor = extractor.to(self.device)
        self.suite = suite.to(self.device)
        self.seed, self.batch_size, self.progress, self.between = seed, batch_size, progress, between
        self.clap = clap and clap.to(self.device)
        self._texts: dict[tuple[str, ...], Tensor] = {}
        self.ids: list[str] = []
        self.prompts: list[str] = []
        self.attributes: list[Mapping[str, str]] = []
        self._digest = hashlib.sha256()

    @torch.no_grad()
    def set_reference(self, batches: Iterable[WaveformBatch], total: int | None = None) -> None:
        """Embed the real clips, and take their captions as prompts.

        Args:
            batches: Real audio with captions and ids.
            total: Number of clips, for the progress bar.

        Raises:
            MusiccmError: No clip, or one clip twice.
        """
        with self._bar("reference", total) as bar:
            for batch in batches:
                self.between(len(self.ids))
                waveforms = batch.waveform_BS.to(self.device)
                attributes = batch.attributes or [{} for _ in batch.ids]
                wanted = self.extractor.wanted(attributes) if self.extractor.groups else None
                self.suite.update_reference(self._features(waveforms), self._text(batch.captions), batch.ids,
                                            targets_BG=wanted)
                self.ids += batch.ids
                self.prompts += batch.captions
                self.attributes += attributes
                self._digest.update(batch.waveform_BS.contiguous().cpu().numpy().tobytes())
                self._digest.update(repr((batch.ids, batch.captions)).encode())
                bar.update(len(batch.ids))
        if len(set(self.ids)) != len(self.ids):
            raise MusiccmError("evaluation: a clip id occurs twice among the reference clips; ids must be unique")

    @property
    def reference_digest(self) -> str:
        """A hash of the real audio, its captions and ids."""
        return self._digest.hexdigest()

    @torch.no_grad()
    def distance_of_real(self, batches: Iterable[WaveformBatch], total: int | None = None) -> dict[str, Any]:
        """Frechet distance of other real clips from the reference: what a perfect model of the music would come to.

        Args:
            batches: Real audio, other clips than the reference, and as many: the distance depends on their number.
            total: Number of clips, for the progress bar.

        Returns:
            `fd_<name>` of each network and the number `n` of these clips.
        """

        def embedded() -> Iterator[tuple[dict[str, Embeddings], list[str]]]:
            with self._bar("real", total) as bar:
                for batch in batches:
                    yield self.extractor.embed(batch.waveform_BS.to(self.device)), batch.ids
                    bar.update(len(batch.ids))

        return self.suite.distances(embedded())

    def pace_s(self, candidate: Candidate) -> float:
        """Measure what a clip takes, all told, by one batch that is thrown away.

        Args:
            candidate: What generates.

        Returns:
            Seconds; 0 on a rank without clips.
        """
        for part in (slice(0, 1), slice(0, self.batch_size)):  # the first call pays for what is made once
            start, ids = self._now(), self.ids[part]
            if ids:
                self._features(self._generate(candidate, ids, self.prompts[part])[0])
        return (self._now() - start) / max(1, len(ids))

    def run(self, candidate: Candidate, keep: int = 0, limit: int | None = None) -> Outcome:
        """Generate every prompt once and score the set.

        Args:
            candidate: What generates.
            keep: How many of the first clips to hand back as waveforms.
            limit: At most this many of this rank's prompts, the first ones.

        Returns:
            The outcome. Latencies are seconds a clip at the stated batch size, medians over batches.
        """
        self.suite.reset_generated()
        times: dict[str, list[float]] = {"text": [], "sampler": [], "decode": []}
        calls_before = candidate.calls.samples if candidate.calls else 0
        kept: dict[str, Tensor] = {}
        count = len(self.ids[:limit])
        with self._bar(candidate.label, count) as bar:
            for start in range(0, count, self.batch_size):
                self.between(start)
                part = slice(start, min(start + self.batch_size, count))
                ids = self.ids[part]
                waveforms, spent = self._generate(candidate, ids, self.prompts[part])
                for name, seconds in spent.items():
                    times[name].append(seconds / len(ids))
                features = self._features(waveforms)
                wanted = self.extractor.wanted(self.attributes[part]) if self.extractor.groups else None
                self.suite.update(features, self._text(self.prompts[part]), ids, wanted)
                for clip_id, waveform in zip(ids, waveforms.float().cpu(), strict=True):
                    if len(kept) < keep:
                        kept[clip_id] = waveform
                bar.update(len(ids))
        metrics, nearest = self.suite.compute()
        calls = (candidate.calls.samples - calls_before) / count if candidate.calls and count else None
        return Outcome(self._row(candidate, metrics, times, calls, count), nearest, kept)

    def latencies(self, candidate: Candidate) -> dict[str, Any]:
        """Measure the latencies alone, on one batch, after a clip that pays for what is made once.

        Args:
            candidate: What generates.

        Returns:
            The keys of a row that begin with `latency_`; nothing on a rank without clips.
        """
        spent: dict[str, float] = {}
        ids: list[str] = []
        for part in (slice(0, 1), slice(0, self.batch_size)):
            if ids := self.ids[part]:
                spent = self._generate(candidate, ids, self.prompts[part])[1]
        return self._latencies({name: [seconds / len(ids)] for name, seconds in spent.items()}, len(ids)) if ids else {}

    def samples(self, candidate: Candidate, count: int) -> dict[str, Tensor]:
        """Waveforms of the first prompts alone: the very ones that `run` makes.

        Args:
            candidate: What generates.
            count: How many.

        Returns:
            Clip id to waveform `[S]`.
        """
        ids = self.ids[:count]
        if not ids:
            return {}
        waveforms, _ = self._generate(candidate, ids, self.prompts[:count])
        return dict(zip(ids, waveforms.float().cpu(), strict=True))

    def prompt_of(self, clip_id: str) -> str:
        """The caption that a clip was asked for with."""
        return self.prompts[self.ids.index(clip_id)]

    def _features(self, waveform_BS: Tensor) -> Features:
        features = self.extractor(waveform_BS)
        if self.clap is None or self.clap.of_bundle:
            return features
        measured_BD = self.clap.audio(waveform_BS, self.extractor.sample_rate_hz).float()
        return features._replace(text_audio_BD=measured_BD)

    def _text(self, captions: list[str]) -> Tensor | None:
        """The captions as the measuring CLAP embeds them: once, for every candidate has the same batches."""
        if self.clap is None:
            return None
        if (key := tuple(captions)) not in self._texts:
            self._texts[key] = self.clap.text(captions)
        return self._texts[key]

    @torch.no_grad()
    def _generate(
        self, candidate: Candidate, ids: Sequence[str], prompts: list[str]
    ) -> tuple[Tensor, dict[str, float]]:
        seeds = [clip_seed(self.seed, clip_id) for clip_id in ids]
        noise = initial_noise(seeds, candidate.latent_shape, self.device)
        clock = [self._now()]
        condition = candidate.encode(prompts)
        clock.append(self._now())
        latents = candidate.sample(condition, noise, seeds)
        clock.append(self._now())
        waveforms = candidate.decode(latents)
        clock.append(self._now())
        self._require_sound(candidate, waveforms, ids)
        spent = {name: b - a for name, a, b in zip(("text", "sampler", "decode"), clock, clock[1:], strict=False)}
        return waveforms, spent

    @staticmethod
    def _require_sound(candidate: Candidate, waveforms: Tensor, ids: Sequence[str]) -> None:
        bad = [ids[i] for i in (~waveforms.isfinite().all(dim=1)).nonzero().flatten().tolist()]
        if bad:
            raise MusiccmError(
                f"{candidate.label}: NaN or infinity in {len(bad)} of {len(ids)} generated clips, first {bad[:3]}; the "
                "model has diverged, or its precision is too low"
            )

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _row(
        self,
        candidate: Candidate,
        metrics: dict[str, Any],
        times: dict[str, list[float]],
        calls: float | None,
        count: int,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "model": candidate.model,
            "steps": candidate.steps,
            "guidance_scale": candidate.guidance_scale,
            **({} if candidate.sampler is None else {"sampler": str(candidate.sampler)}),
            "network_calls": None if calls is None else round(calls, 6),
        }
        row |= {key: value for key, value in metrics.items() if key != "n"}
        return row | self._latencies(times, count) | {"n": metrics["n"]}

    def _latencies(self, times: Mapping[str, list[float]], count: int) -> dict[str, Any]:
        """Medians over batches of the seconds a clip that each part took."""
        totals = [sum(parts) for parts in zip(*times.values(), strict=True)]
        row: dict[str, Any] = {"latency_s": statistics.median(totals) if totals else None}
        for name, seconds in times.items():
            row[f"latency_{name}_s"] = statistics.median(seconds) if seconds else None
        return row | {"latency_batch": min(self.batch_size, count), "latency_batches": len(totals)}

    def _bar(self, label: str, total: int | None) -> Progress:
        return Progress(total, label, "clip", self.progress)
