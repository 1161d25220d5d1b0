"""From candidates to a finished table on disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from musiccm.audio import write_audio
from musiccm.audio.mel import LogMel
from musiccm.data.batch import WaveformBatch
from musiccm.evaluation.candidates import Candidate, compared_model
from musiccm.evaluation.clip_features import ClipFeatures, prompt_hash
from musiccm.evaluation.comparison import FLOOR
from musiccm.evaluation.evaluator import Asked, Evaluator, Made, Outcome
from musiccm.evaluation.feature_cache import FeatureCache
from musiccm.evaluation.floor import SAME_CAPTIONS, FloorClips
from musiccm.evaluation.plots import save_mels
from musiccm.evaluation.results import format_table, write_plots, write_results
from musiccm.files import short_name, write_json, write_text
from musiccm.models.codec import LatentCodec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """Where features are kept, and what the ranks do together.

    Args:
        cache: Where teachers' features and the floor's are looked up and kept.
        key: What they depend on beside model, steps, sampler, guidance and decoder.
        decoder_keys: What each decoder adds to the key.
        gather: What all ranks give: their values, in order.
        writes: Whether this process fills the cache: rank zero.
    """

    cache: FeatureCache = field(default_factory=lambda: FeatureCache(None))
    key: Mapping[str, Any] = field(default_factory=dict)
    decoder_keys: Mapping[str, Any] = field(default_factory=dict)
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    writes: bool = True

    @property
    def teacher(self) -> dict[str, Any] | None:
        """Hashes of the teacher and its decoders, as results state them; None for one that is no bundle's."""
        return {"hash": self.key["teacher"], "decoders": dict(self.decoder_keys)} if "teacher" in self.key else None

    def get(self, key: Mapping[str, Any], clips: Sequence[Asked], told: Sequence[int]) -> Made | None:
        """Features that were kept of clips that were asked for so; None unless every rank finds those of its clips."""
        found = self.cache.get(key, [clip.id for clip in clips], told)
        if not all(self.gather(found is not None)) or found is None:
            return None
        return Made(found.features, found.calls, kept_from=found.source)

    def put(self, key: Mapping[str, Any], made: Made, clips: Sequence[Asked], told: Sequence[int]) -> None:
        """Keep the features of all ranks."""
        own = dict(zip([clip.id for clip in clips], told, strict=True))
        parts = self.gather((made.features, own))
        if self.writes:
            asked = {name: digest for _, part in parts for name, digest in part.items()}
            whole = ClipFeatures.of_ranks([features for features, _ in parts])
            self.cache.put(key, whole, [asked[name] for name in whole.ids], made.calls)

    def candidate_key(self, candidate: Candidate, decoder: str) -> dict[str, Any]:
        """What the features of a candidate depend on."""
        return {"model": candidate.model, "steps": candidate.steps, "guidance_scale": candidate.guidance_scale,
                "sampler": str(candidate.sampler), **self.of_decoder(decoder), **self.key}

    def of_decoder(self, decoder: str) -> dict[str, Any]:
        """The decoder in a key."""
        return {"decoder": decoder, "decoder_weights": self.decoder_keys.get(decoder)}


def label_of(label: str, decoder: str) -> str:
    """Such as `teacher@50/fast`: a row of a table."""
    return f"{label}/{decoder}"


def run_table(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    panels: Sequence[str] = (),
    n_panels: int = 0,
    keeping: Keeping | None = None,
    limit: int | None = None,
    captions: int = 0,
    noises: int = 1,
) -> dict[str, Outcome]:
    """Score every candidate by each of its decoders; features of teachers are looked up first.

    Args:
        evaluator: With its reference set.
        candidates: What to score.
        panels: Labels of the candidates, such as `teacher@50`, whose first clips are handed back as waveforms, by their
            first decoder.
        n_panels: How many clips of each.
        keeping: Where teachers' features are kept; nowhere if not given.
        limit: See `Evaluator.clips`.
        captions: See `Evaluator.clips`.
        noises: See `Evaluator.clips`.

    Returns:
        Row to outcome (`label_of`), in the order of the candidates.
    """
    keeping = keeping or Keeping()
    clips = evaluator.clips(limit, captions, noises)
    outcomes: dict[str, Outcome] = {}
    for candidate in candidates:
        keep, first = n_panels if candidate.label in panels else 0, candidate.decoder
        teacher, told = compared_model(candidate.model).teacher, evaluator.told(candidate, clips)
        found = {decoder: keeping.get(keeping.candidate_key(candidate, decoder), clips, told) if teacher else None
                 for decoder in candidate.decoders}
        made = {decoder: known for decoder, known in found.items() if known is not None}
        if made:
            log.info("%s: features were kept (%s)", candidate.label, ", ".join(made))
            # A time is of the run that prints it.
            for decoder, times in evaluator.latencies(candidate, list(made)).items():
                made[decoder].times = times
            if keep and first in made:
                made[first].kept = evaluator.samples(candidate, keep, first)
        if missing := [decoder for decoder in candidate.decoders if decoder not in made]:
            fresh = evaluator.make(candidate, missing, clips, keep)
            for decoder in missing if teacher else ():
                keeping.put(keeping.candidate_key(candidate, decoder), fresh[decoder], clips, told)
            made |= fresh
        for decoder in candidate.decoders:
            if decoder != first:
                made[decoder].kept = {}
            outcomes[label_of(candidate.label, decoder)] = evaluator.score(candidate, decoder, made[decoder], limit)
    return outcomes


def run_floor(
    evaluator: Evaluator, floor: FloorClips, codecs: Mapping[str, LatentCodec], batches: Iterable[WaveformBatch],
    clips: Sequence[Asked], keeping: Keeping | None = None,
) -> dict[str, Outcome]:
    """Score real clips through each decoder.

    Args:
        evaluator: With its reference set.
        floor: What they are.
        codecs: By the decoder's name.
        batches: This rank's clips.
        clips: Their ids and captions.
        keeping: Where their features are kept; nowhere if not given.

    Returns:
        Row to outcome, such as `floor/fast`.
    """
    keeping = keeping or Keeping()
    keys = {decoder: {"floor": dict(floor.key), **keeping.of_decoder(decoder), **keeping.key} for decoder in codecs}
    told = [prompt_hash(clip.prompt) for clip in clips]
    found = {decoder: keeping.get(key, clips, told) if floor.key else None for decoder, key in keys.items()}
    made = {decoder: known for decoder, known in found.items() if known is not None}
    if missing := {decoder: codec for decoder, codec in codecs.items() if decoder not in made}:
        fresh = evaluator.floor(batches, missing, len(clips))
        for decoder in missing if floor.key else ():
            keeping.put(keys[decoder], fresh[decoder], clips, told)
        made |= fresh
    return {label_of(FLOOR, decoder): evaluator.score(None, decoder, made[decoder], answers=floor.kind == SAME_CAPTIONS)
            for decoder in codecs}


def write_table(
    folder: Path,
    experiment: str,
    outcomes: Mapping[str, Outcome],
    references: dict[str, Any],
    evaluator_name: str = "tagger",
    notes: Sequence[str] = (),
    **extra: Any,
) -> str:
    """Write `results.json`, `results.txt`, its plots, and `nearest_training_clips.json`.

    Args:
        folder: The run's folder.
        experiment: Name of the experiment.
        outcomes: Row to outcome.
        references: Metrics of the real clips.
        evaluator_name: Name of the classifier behind FD, IS and KL.
        notes: Sentences below the table.
        **extra: Further keys of `results.json`.

    Returns:
        The table as text.
    """
    rows = [outcome.row for outcome in outcomes.values()]
    result = write_results(folder / "results.json", experiment, rows, references, **extra)
    text = format_table(result["rows"], references, evaluator_name, notes=notes)
    write_text(folder / "results.txt", text)
    write_plots(folder, result["rows"], evaluator_name)
    nearest = {label: outcome.nearest for label, outcome in outcomes.items() if outcome.nearest}
    if nearest:
        write_json(folder / "nearest_training_clips.json", nearest)
    return text


def write_samples(
    folder: Path,
    outcomes: Mapping[str, Outcome],
    prompt_of: Callable[[str], str],
    log_mel: LogMel,
    sample_rate_hz: int,
) -> None:
    """Write the kept waveforms as `<clip>_<model>_<steps>.wav` and, for each clip, one picture of their mels.

    Args:
        folder: Where to write.
        outcomes: Row to outcome.
        prompt_of: Clip id to caption.
        log_mel: `waveform_BS -> mel_BMN`, on the CPU.
        sample_rate_hz: Rate of the waveforms.
    """
    by_clip: dict[str, dict[str, Tensor]] = {}
    for label, outcome in outcomes.items():
        for clip_id, waveform in outcome.kept.items():
            by_clip.setdefault(clip_id, {})[label.partition("/")[0]] = waveform
    for clip_id, waveforms in by_clip.items():
        stem = short_name(re.sub(r"[^\w.-]+", "_", clip_id), 180)  # label and suffix follow
        for label, waveform in waveforms.items():
            write_audio(folder / f"{stem}_{label.replace('@', '_')}.wav", waveform, sample_rate_hz)
        mels = [(label, log_mel(waveform[None])[0]) for label, waveform in waveforms.items()]
        save_mels(folder / f"{stem}.png", mels, log_mel.config, prompt_of(clip_id))
    if by_clip:
        write_json(folder / "prompts.json", {clip_id: prompt_of(clip_id) for clip_id in by_clip})
