"""Evidence on a result: how well it answers its text, and which training clip it is nearest to."""

from __future__ import annotations

import bisect
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from musiccm.audio import BadAudio, scan_audio
from musiccm.errors import missing_extra
from musiccm.serving.engine import Engine
from musiccm.serving.errors import NotFound
from musiccm.serving.jobs import JobView

if TYPE_CHECKING:
    from musiccm.models.bundle import Bundle
    from musiccm.similarity.clap_windows import ClapWindows
    from musiccm.similarity.index import TrainingIndex

KEPT = 1000
"""Answers that are remembered."""


@dataclass(frozen=True)
class Nearest:
    """The training clip that a result is nearest to.

    Args:
        clip: Its id in the bundle's index of training clips.
        cosine: Highest cosine of CLAP's embeddings of a window of each.
        at_s: Where the window of the result begins.
        clip_at_s: Where that of the training clip does.
    """

    clip: str
    cosine: float
    at_s: float
    clip_at_s: float


@dataclass(frozen=True)
class Evidence:
    """What is known of a result.

    Args:
        text_audio: Mean over its windows of the cosine with the text that holds in the middle of each; None where the
            bundle cannot say.
        nearest: The nearest training clip; None where the bundle cannot say.
        training_clips: Clips that were searched.
        notes: Why something is missing.
    """

    text_audio: float | None = None
    nearest: Nearest | None = None
    training_clips: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Measure:
    """What a bundle brings: CLAP, and the index with its cosines' search; or why not."""

    clap: ClapWindows | None
    text: Any
    index: TrainingIndex | None
    notes: list[str]


class EvidenceOf:
    """Computes evidence on request, by each model's own CLAP and its own index of training clips.

    Safe for threads; one answer is computed at a time.

    Args:
        engine: Whose results.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._measures: dict[str, _Measure] = {}
        self._known: dict[str, Evidence] = {}

    def __call__(self, view: JobView) -> Evidence:
        """The evidence on a finished job.

        Args:
            view: The job.

        Returns:
            It.

        Raises:
            NotFound: There is no result.
        """
        path = self._engine.results.samples(view.id)
        with self._lock:
            if view.id not in self._known:
                if view.request.model not in self._engine.models:
                    raise NotFound(f"the model {view.request.model} is no longer served")
                measure = self._measure(view.request.model)
                self._known[view.id] = _evidence(measure, str(path), view.request.prompts)
                if len(self._known) > KEPT:
                    self._known.pop(next(iter(self._known)))
            return self._known[view.id]

    def _measure(self, name: str) -> _Measure:
        if name not in self._measures:
            bundle = getattr(self._engine.models[name].model, "bundle", None)
            try:
                self._measures[name] = _measure_of(name, bundle)
            except ModuleNotFoundError as error:
                missing = missing_extra(error, "eval", "evidence")
                if missing is None:
                    raise
                self._measures[name] = _Measure(None, None, None, [str(missing)])
        return self._measures[name]


def _measure_of(name: str, bundle: Bundle | None) -> _Measure:
    nothing = f"{name} brings no CLAP with text and audio: neither text-audio score nor nearest training clip"
    if bundle is None:
        return _Measure(None, None, None, [nothing])
    from musiccm.evaluation.galleries import bundle_index
    from musiccm.evaluation.text_audio import bundle_clap
    from musiccm.similarity.clap_windows import CLAP_PARTS, ClapWindows

    found = bundle_clap(bundle)
    if found is None:
        return _Measure(None, None, None, [nothing])
    index = bundle_index(bundle)
    notes = [] if index is not None else [f"{name} does not bring an index of its training clips: no nearest one"]
    conditioner: Any = found.network.eval()
    fingerprint = bundle.content_hash(CLAP_PARTS)
    windows: dict[str, Any] = {}
    if index is not None:  # as `musiccm plagiarism` embeds what it searches for
        windows = {"hop_s": index.key["hop_samples"] / index.key["sample_rate_hz"],
                   "window_samples": index.key["window_samples"]}
    return _Measure(ClapWindows.of_conditioner(conditioner, fingerprint, **windows), found.text, index, notes)


def _evidence(measure: _Measure, path: str, prompts: tuple[tuple[float, str], ...]) -> Evidence:
    if measure.clap is None:
        return Evidence(notes=measure.notes)
    from musiccm.metrics.text_audio import unit_rows
    from musiccm.similarity.clap_windows import FileWindows
    from musiccm.similarity.nearest import Queries, nearest_clips

    clap = measure.clap
    try:
        facts = scan_audio(path)
    except BadAudio as error:
        said = f"the result is {error.reason.replace('_', ' ')}: nothing can be said of it"
        return Evidence(notes=[*measure.notes, said])
    starts = clap.starts(facts)
    rows_WD = clap.embed([FileWindows(path, facts, starts)])
    sounding_W = rows_WD.any(dim=1)
    if not bool(sounding_W.any()):
        return Evidence(notes=[*measure.notes, "the result is silent: nothing can be said of it"])
    rate = clap.sample_rate_hz
    begins = [start for start, _ in prompts]
    middles_s = [min((start + clap.window_samples / 2) / rate, facts.duration_s / 2 + start / rate) for start in starts]
    texts = [prompts[max(0, bisect.bisect_right(begins, middle) - 1)][1] for middle in middles_s]
    wanted = sorted(set(texts))
    with torch.inference_mode():
        embedded = dict(zip(wanted, measure.text(wanted).float().cpu(), strict=True))
    text_WD = torch.stack([embedded[text] for text in texts])
    cosine_W = (unit_rows(rows_WD) * unit_rows(text_WD)).sum(dim=1)
    score = float(cosine_W[sounding_W].mean())
    if measure.index is None:
        return Evidence(score, notes=measure.notes)
    index = measure.index
    found = nearest_clips(index, Queries(rows_WD, [len(starts)]))
    clip, row, window = int(found.clip_QK[0, 0]), int(found.row_QK[0, 0]), int(found.window_QK[0, 0])
    nearest = Nearest(index.ids[clip], float(found.cosine_QK[0, 0]), starts[window] / rate, index.start_s(row))
    return Evidence(score, nearest, index.n_clips, measure.notes)
