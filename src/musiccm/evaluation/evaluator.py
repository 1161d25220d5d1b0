"""The evaluation itself, without Lightning: captions in, a row of metrics out, each waveform made and embedded once."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from musiccm.data.batch import WaveformBatch
from musiccm.embedders import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import Candidate, clip_seed, initial_noise
from musiccm.evaluation.clip_features import ClipFeatures, prompt_hash
from musiccm.evaluation.comparison import FLOOR
from musiccm.evaluation.suite import FeatureExtractor, Features, MetricSuite
from musiccm.evaluation.text_audio import MeasuringClap
from musiccm.models.codec import LatentCodec, SoundEncoder
from musiccm.progress import Progress

log = logging.getLogger(__name__)

#: What a clip's time is made of.
PARTS = ("text", "sampler", "decode")
#: Batches whose tokens are written anew for each model that draws them; of others they are remembered.
TIMED = 2


class Asked(NamedTuple):
    """A clip that a model is asked for.

    Args:
        id: Its id, which decides its noise.
        prompt: Its caption.
    """

    id: str
    prompt: str


def further_id(clip_id: str, number: int) -> str:
    """The id of a further clip for the caption of another one, of another noise."""
    return f"{clip_id}#{number}"


def first_id(clip_id: str) -> str:
    """The id of the clip that a further one belongs to; of any other clip its own."""
    first, mark, number = clip_id.rpartition("#")
    return first if mark and number.isdigit() else clip_id


@dataclass
class Made:
    """Clips of one candidate by one decoder.

    Args:
        features: What is left of them: this rank's.
        calls: Network calls a clip; None where they are not counted.
        times: The keys of a row that begin with `latency_`.
        kept: Waveforms `[S]` of the first clips, by clip id.
        kept_from: `cache` or `bundle` where the features were not made now; else None.
    """

    features: ClipFeatures
    calls: float | None = None
    times: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    kept_from: str | None = None


@dataclass
class Outcome:
    """What one candidate came to.

    Args:
        row: Its row of the table.
        nearest: Nearest training clip of each generated one.
        made: Its clips.
    """

    row: dict[str, Any]
    made: Made
    nearest: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kept(self) -> dict[str, Tensor]:
        """Waveforms `[S]` of the first clips, by clip id."""
        return self.made.kept


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
        tokens: `(waveform_BS, sample_rate_hz) -> ids_BL`, semantic tokens of the reference clips, for candidates that
            are told them; None where there is none.
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
        tokens: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.extractor = extractor.to(self.device)
        self.suite = suite.to(self.device)
        self.seed, self.batch_size, self.progress, self.between = seed, batch_size, progress, between
        self.clap = clap and clap.to(self.device)
        self._texts: dict[tuple[str, ...], Tensor] = {}
        self.tokens = tokens
        self._recorded: dict[str, Tensor] = {}
        self.real = ClipFeatures.joined([])
        self.ids: list[str] = []
        self.prompts: list[str] = []
        self.attributes: list[Mapping[str, str]] = []

    @torch.no_grad()
    def set_reference(self, batches: Iterable[WaveformBatch], total: int | None = None) -> None:
        """Embed the real clips, and take their captions as prompts.

        Args:
            batches: Real audio with captions and ids.
            total: Number of clips, for the progress bar.

        Raises:
            MusiccmError: No clip, or one clip twice.
        """
        embedded: list[tuple[list[str], Features]] = []
        with self._bar("reference", total) as bar:
            for batch in batches:
                self.between(len(self.ids))
                waveforms = batch.waveform_BS.to(self.device)
                attributes = batch.attributes or [{} for _ in batch.ids]
                wanted = self.extractor.wanted(attributes) if self.extractor.groups else None
                features = self._features(waveforms)
                self.suite.update_reference(features, self._text(batch.captions), batch.ids, targets_BG=wanted)
                embedded.append((batch.ids, features))
                if self.tokens is not None:
                    ids_BL = self.tokens(waveforms, self.extractor.sample_rate_hz)
                    self._recorded |= dict(zip(batch.ids, ids_BL.cpu(), strict=True))
                self.ids += batch.ids
                self.prompts += batch.captions
                self.attributes += attributes
                bar.update(len(batch.ids))
        if len(set(self.ids)) != len(self.ids):
            raise MusiccmError("evaluation: a clip id occurs twice among the reference clips; ids must be unique")
        self.real = ClipFeatures.joined(embedded)

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
                sounds, _ = self._generate(candidate, ids, self.prompts[part], [candidate.decoder])
                self._features(sounds[candidate.decoder])
        return (self._now() - start) / max(1, len(ids))

    def run(self, candidate: Candidate, keep: int = 0, limit: int | None = None) -> Outcome:
        """Generate every prompt once and score the set, by the candidate's first decoder.

        Args:
            candidate: What generates.
            keep: How many of the first clips to hand back as waveforms.
            limit: At most this many of this rank's prompts, the first ones.

        Returns:
            The outcome. Latencies are seconds a clip at the stated batch size, medians over batches.
        """
        made = self.make(candidate, [candidate.decoder], self.clips(limit), keep)[candidate.decoder]
        return self.score(candidate, candidate.decoder, made, limit)

    def clips(self, limit: int | None = None, captions: int = 0, noises: int = 1) -> list[Asked]:
        """What is asked of every model.

        Args:
            limit: At most this many of this rank's prompts, the first ones.
            captions: So many of the first prompts are asked for with further noises, too.
            noises: All noises of such a prompt, the first of which every prompt has.

        Returns:
            The clips; those of further noises come last.
        """
        first = list(zip(self.ids, self.prompts, strict=True))[:limit]
        again = [Asked(further_id(name, k), prompt) for name, prompt in first[:captions] for k in range(1, noises)]
        return [Asked(name, prompt) for name, prompt in first] + again

    def told(self, candidate: Candidate, clips: Sequence[Asked]) -> list[int]:
        """What a candidate is told of each clip, as a hash: what the clip's features depend on beside its id.

        Args:
            candidate: What generates.
            clips: What is asked for.

        Returns:
            The `prompt_hash` of each; of a candidate that is told the real clips' tokens, of these beside the caption.
        """
        if not candidate.recorded:
            return [prompt_hash(clip.prompt) for clip in clips]
        tokens_BL = self._tokens_of([clip.id for clip in clips]).tolist() if clips else []
        return [prompt_hash(clip.prompt, tokens) for clip, tokens in zip(clips, tokens_BL, strict=True)]

    def _tokens_of(self, ids: Sequence[str]) -> Tensor:
        """Semantic tokens of the real clips that clips were asked for by, `ids_BL`."""
        found = [self._recorded[name if name in self._recorded else first_id(name)] for name in ids]
        return torch.stack(found).to(self.device)

    def make(
        self, candidate: Candidate, decoders: Sequence[str], clips: Sequence[Asked], keep: int = 0
    ) -> dict[str, Made]:
        """Generate clips; latents are sampled once and decoded by each decoder.

        Args:
            candidate: What generates.
            decoders: Some of its decoders.
            clips: What is asked for.
            keep: How many of the first clips to hand back as waveforms.

        Returns:
            The clips by decoder. Latencies are seconds a clip at the stated batch size, medians over batches.
        """
        times: dict[str, dict[str, list[float]]] = {decoder: {name: [] for name in PARTS} for decoder in decoders}
        features: dict[str, list[tuple[list[str], Features]]] = {decoder: [] for decoder in decoders}
        kept: dict[str, dict[str, Tensor]] = {decoder: {} for decoder in decoders}
        calls_before = candidate.calls.samples if candidate.calls else 0
        with self._bar(candidate.label, len(clips)) as bar:
            for start in range(0, len(clips), self.batch_size):
                self.between(start)
                part = clips[start : start + self.batch_size]
                ids = [name for name, _ in part]
                anew = candidate.forget is None or start < TIMED * self.batch_size
                sounds, spent = self._generate(candidate, ids, [prompt for _, prompt in part], decoders, anew)
                for decoder, waveforms in sounds.items():
                    for name, seconds in spent[decoder].items():
                        if anew:  # no time comes from a memory
                            times[decoder][name].append(seconds / len(ids))
                    features[decoder].append((ids, self._features(waveforms)))
                    if wanted := keep - len(kept[decoder]):  # all others stay where they were made
                        first = waveforms[:wanted].float().cpu()
                        kept[decoder] |= dict(zip(ids[:wanted], first, strict=True))
                bar.update(len(ids))
        calls = (candidate.calls.samples - calls_before) / len(clips) if candidate.calls and clips else None
        return {
            decoder: Made(ClipFeatures.joined(features[decoder]), calls,
                          self._latencies(times[decoder], min(self.batch_size, len(clips))), kept[decoder])
            for decoder in decoders
        }

    def floor(
        self, batches: Iterable[WaveformBatch], codecs: Mapping[str, LatentCodec], total: int | None = None
    ) -> dict[str, Made]:
        """Real clips through each decoder: what a model without a fault would come to.

        Args:
            batches: Real audio, other than the reference.
            codecs: Encoder and decoder, by the decoder's name; the encoder is the same in all of them.
            total: Number of clips, for the progress bar.

        Returns:
            The clips by decoder.
        """
        features: dict[str, list[tuple[list[str], Features]]] = {decoder: [] for decoder in codecs}
        encode = SoundEncoder(next(iter(codecs.values()))).to(self.device)
        done = 0
        with self._bar(FLOOR, total) as bar, torch.no_grad():
            for batch in batches:
                self.between(done)
                z_BCTF = encode(batch.waveform_BS.to(self.device))
                for decoder, codec in codecs.items():
                    features[decoder].append((batch.ids, self._features(codec.decode(z_BCTF))))
                done += len(batch.ids)
                bar.update(len(batch.ids))
        return {decoder: Made(ClipFeatures.joined(found)) for decoder, found in features.items()}

    def score(
        self, candidate: Candidate | None, decoder: str, made: Made, limit: int | None = None, answers: bool = True
    ) -> Outcome:
        """Score clips.

        Args:
            candidate: What made them; None for the floor.
            decoder: By which decoder.
            made: They; those of further noises and those that answer no prompt have no part in it.
            limit: As they were asked for.
            answers: Whether they answer the prompts; of other captions there is nothing that looks at single clips.

        Returns:
            The outcome.
        """
        if not answers:
            parts = made.features.batches(self.batch_size)
            found = self.suite.distances((self._moved(features).embeddings, ids) for ids, features in parts)
            return Outcome(self._row(candidate, decoder, found, made), made)
        own = {name: place for place, name in enumerate(self.ids[:limit])}
        first = made.features.of([name for name in made.features.ids if name in own])
        self.suite.reset_generated()
        for ids, features in first.batches(self.batch_size):
            prompts = [self.prompts[own[name]] for name in ids]
            attributes = [self.attributes[own[name]] for name in ids]
            wanted = self.extractor.wanted(attributes) if self.extractor.groups else None
            self.suite.update(self._moved(features), self._text(prompts), ids, wanted)
        metrics, nearest = self.suite.compute()
        return Outcome(self._row(candidate, decoder, metrics, made), made, nearest)

    def latencies(self, candidate: Candidate, decoders: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Measure the latencies alone, on one batch, after a clip that pays for what is made once.

        Args:
            candidate: What generates.
            decoders: Some of its decoders.

        Returns:
            The keys of a row that begin with `latency_`, by decoder; nothing on a rank without clips.
        """
        found: dict[str, dict[str, Any]] = {decoder: {} for decoder in decoders}
        for part in (slice(0, 1), slice(0, self.batch_size)):
            if ids := self.ids[part]:
                spent = self._generate(candidate, ids, self.prompts[part], decoders, anew=True)[1]
                for decoder, parts in spent.items():
                    seconds = {name: [value / len(ids)] for name, value in parts.items()}
                    found[decoder] = self._latencies(seconds, len(ids))
        return found

    def samples(self, candidate: Candidate, count: int, decoder: str | None = None) -> dict[str, Tensor]:
        """Waveforms of the first prompts alone: the very ones that `run` makes.

        Args:
            candidate: What generates.
            count: How many.
            decoder: By which decoder; the candidate's first if not given.

        Returns:
            Clip id to waveform `[S]`.
        """
        ids, decoder = self.ids[:count], decoder or candidate.decoder
        if not ids:
            return {}
        sounds, _ = self._generate(candidate, ids, self.prompts[:count], [decoder])
        return dict(zip(ids, sounds[decoder].float().cpu(), strict=True))

    def prompt_of(self, clip_id: str) -> str:
        """The caption that a clip was asked for with."""
        return self.prompts[self.ids.index(clip_id)]

    def _features(self, waveform_BS: Tensor) -> Features:
        features = self.extractor(waveform_BS)
        if self.clap is None or self.clap.of_bundle:
            return features
        measured_BD = self.clap.audio(waveform_BS, self.extractor.sample_rate_hz).float()
        return features._replace(text_audio_BD=measured_BD)

    def _moved(self, features: Features) -> Features:
        """Features where the metrics are."""
        if self.device.type == "cpu":
            return features
        networks = {name: found._replace(
            embedding_RE=found.embedding_RE.to(self.device),
            logits_BG=None if found.logits_BG is None else found.logits_BG.to(self.device),
        ) for name, found in features.embeddings.items()}
        clap, text_audio = (None if rows is None else rows.to(self.device) for rows in features[1:])
        return Features(networks, clap, text_audio)

    def _text(self, captions: list[str]) -> Tensor | None:
        """The captions as the measuring CLAP embeds them: once, for every candidate has the same batches."""
        if self.clap is None:
            return None
        if (key := tuple(captions)) not in self._texts:
            self._texts[key] = self.clap.text(captions)
        return self._texts[key]

    def texts(self) -> dict[str, Tensor]:
        """The captions of the reference as the measuring CLAP has embedded them, `[D]` on the CPU; none without one."""
        rows = {captions: text_BD.float().cpu() for captions, text_BD in self._texts.items()}
        return {caption: row for captions, text_BD in rows.items()
                for caption, row in zip(captions, text_BD, strict=True)}

    @torch.no_grad()
    def _generate(
        self, candidate: Candidate, ids: Sequence[str], prompts: list[str], decoders: Sequence[str], anew: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
        """Waveforms by decoder, and by decoder the seconds of each of `PARTS` for the whole batch."""
        seeds = [clip_seed(self.seed, clip_id) for clip_id in ids]
        noise = initial_noise(seeds, candidate.latent_shape, self.device)
        if anew and candidate.forget is not None:
            candidate.forget(prompts, seeds)
        clock = [self._now()]
        condition = candidate.condition(prompts, seeds, self._tokens_of(ids) if candidate.recorded else None)
        clock.append(self._now())
        latents = candidate.sample(condition, noise, seeds)
        clock.append(self._now())
        sounds, spent = {}, {}
        for decoder in decoders:
            start = self._now()
            sounds[decoder] = candidate.decoders[decoder](latents)
            seconds = (clock[1] - clock[0], clock[2] - clock[1], self._now() - start)
            self._require_sound(candidate, sounds[decoder], ids)
            spent[decoder] = dict(zip(PARTS, seconds, strict=True))
        return sounds, spent

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

    @staticmethod
    def _row(candidate: Candidate | None, decoder: str, metrics: dict[str, Any], made: Made) -> dict[str, Any]:
        row: dict[str, Any] = {"model": FLOOR, "steps": 0, "decoder": decoder}
        if candidate is not None:
            row |= {"model": candidate.model, "steps": candidate.steps}
            row |= {} if candidate.sampler is None else {"sampler": str(candidate.sampler)}
            row |= {"guidance_scale": candidate.guidance_scale,
                    "network_calls": None if made.calls is None else round(made.calls, 6)}
            row |= {"tokens": candidate.tokens} if candidate.tokens else {}
        row |= {} if made.kept_from is None else {"from_cache": True, "features_from": made.kept_from}
        row |= {key: value for key, value in metrics.items() if key != "n"}
        return row | made.times | {"n": metrics["n"]}

    @staticmethod
    def _latencies(times: Mapping[str, list[float]], batch: int) -> dict[str, Any]:
        """Medians over batches of the seconds a clip that each part took."""
        totals = [sum(parts) for parts in zip(*times.values(), strict=True)]
        row: dict[str, Any] = {"latency_s": statistics.median(totals) if totals else None}
        for name, seconds in times.items():
            row[f"latency_{name}_s"] = statistics.median(seconds) if seconds else None
        return row | {"latency_batch": batch, "latency_batches": len(totals)}

    def _bar(self, label: str, total: int | None) -> Progress:
        return Progress(total, label, "clip", self.progress)
