"""From candidates to a finished table on disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from musiccm.audio import write_audio
from musiccm.evaluation.candidates import Candidate, compared_model
from musiccm.evaluation.evaluator import Evaluator, Outcome
from musiccm.evaluation.plots import save_mels
from musiccm.evaluation.results import format_table, without_times, write_plots, write_results
from musiccm.evaluation.row_cache import RowCache
from musiccm.files import short_name, write_json, write_text

log = logging.getLogger(__name__)


def run_table(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    panels: Sequence[str] = (),
    n_panels: int = 0,
    cache: RowCache | None = None,
    cache_key: Mapping[str, Any] | None = None,
    share: Callable[[Any], Any] = lambda value: value,
    writes: bool = True,
    limit: int | None = None,
) -> dict[str, Outcome]:
    """Score every candidate; teachers are looked up in the cache first.

    Args:
        evaluator: With its reference set.
        candidates: What to score.
        panels: Labels of the candidates, such as `teacher@50`, whose first clips are handed back as waveforms.
        n_panels: How many clips of each.
        cache: Where teachers' rows are kept.
        cache_key: What they depend on beside model, steps, sampler and guidance.
        share: Gives every rank what rank zero found in the cache, so that all take the same way.
        writes: Whether this process fills the cache: rank zero, whose files are looked up.
        limit: See `Evaluator.run`.

    Returns:
        Label to outcome, in the order of the candidates.
    """
    outcomes: dict[str, Outcome] = {}
    for candidate in candidates:
        keep = n_panels if candidate.label in panels else 0
        keyed = cache if compared_model(candidate.model).teacher else None
        key = {"model": candidate.model, "steps": candidate.steps, "guidance_scale": candidate.guidance_scale,
               "sampler": str(candidate.sampler)}
        key |= dict(cache_key or {})
        found = share(keyed.get(key) if keyed else None)
        if found is not None:
            log.info("%s: row from the cache", candidate.label)
            # A time is of the run that prints it.
            outcome = Outcome({**found["row"], **evaluator.latencies(candidate), "from_cache": True}, found["nearest"])
            outcome.kept = evaluator.samples(candidate, keep) if keep else {}
        else:
            outcome = evaluator.run(candidate, keep, limit)
            if keyed and writes:
                keyed.put(key, {"row": without_times(outcome.row), "nearest": outcome.nearest})
        outcomes[candidate.label] = outcome
    return outcomes


def write_table(
    folder: Path,
    experiment: str,
    outcomes: Mapping[str, Outcome],
    references: dict[str, Any],
    evaluator_name: str = "tagger",
    notes: Sequence[str] = (),
    **extra: Any,
) -> str:
    """Write `results.json`, `results.txt`, `fd_against_calls.png` and its like, and `nearest_training_clips.json`.

    Args:
        folder: The run's folder.
        experiment: Name of the experiment.
        outcomes: Label to outcome.
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
    log_mel: nn.Module,
    sample_rate_hz: int,
) -> None:
    """Write the kept waveforms as `<clip>_<model>_<steps>.wav` and, for each clip, one picture of their mels.

    Args:
        folder: Where to write.
        outcomes: Label to outcome.
        prompt_of: Clip id to caption.
        log_mel: `waveform_BS -> mel_BMN`, on the CPU.
        sample_rate_hz: Rate of the waveforms.
    """
    by_clip: dict[str, dict[str, Tensor]] = {}
    for label, outcome in outcomes.items():
        for clip_id, waveform in outcome.kept.items():
            by_clip.setdefault(clip_id, {})[label] = waveform
    for clip_id, waveforms in by_clip.items():
        stem = short_name(re.sub(r"[^\w.-]+", "_", clip_id), 180)  # label and suffix follow
        for label, waveform in waveforms.items():
            write_audio(folder / f"{stem}_{label.replace('@', '_')}.wav", waveform, sample_rate_hz)
        mels = {label: log_mel(waveform[None])[0] for label, waveform in waveforms.items()}
        save_mels(folder / f"{stem}.png", mels, prompt_of(clip_id))
    if by_clip:
        write_json(folder / "prompts.json", {clip_id: prompt_of(clip_id) for clip_id in by_clip})
