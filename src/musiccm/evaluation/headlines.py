"""The headline of a table: every row against the floor and against the teacher, with intervals, within one decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from musiccm.embedders.base import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.candidates import compared_model
from musiccm.evaluation.clip_features import ClipFeatures
from musiccm.evaluation.comparison import FLOOR, ClipRows, ComparedRow, compare_sets
from musiccm.evaluation.evaluator import Outcome, first_id
from musiccm.evaluation.spread import compare_spreads
from musiccm.metrics.spread import Spread, spread

log = logging.getLogger(__name__)

#: The model that all others are compared with, at its most steps.
BASELINE = "teacher"


def compare_outcomes(
    outcomes: Mapping[str, Outcome],
    real: ClipFeatures,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
    draws: int = 200,
    seed: int = 0,
) -> list[str]:
    """Add to each row what it is against the floor and the teacher of its decoder.

    Args:
        outcomes: Row to outcome, of all decoders; their rows are completed.
        real: The reference.
        gather: What all ranks give; every rank must call this function.
        draws: Halves of the clips that the intervals are taken from.
        seed: Of the draws.

    Returns:
        Sentences about comparisons that could not be made, for the table.
    """
    notes: list[str] = []
    whole_real = ClipFeatures.of_ranks(gather(real))
    gathered = {label: ClipFeatures.of_ranks(gather(outcome.made.features)) for label, outcome in outcomes.items()}
    for decoder in dict.fromkeys(outcome.row["decoder"] for outcome in outcomes.values()):
        labels = [label for label, outcome in outcomes.items() if outcome.row["decoder"] == decoder]
        for network in whole_real.networks:
            sets = {label: (outcomes[label].row, gathered[label]) for label in labels}
            try:
                found = _compare(network, whole_real, sets, draws, seed)
                spreads = _spreads(network, set(whole_real.ids), sets)
            except MusiccmError as error:  # the clips are made: their table must not be lost
                notes.append(f"no comparison by {network} through the {decoder} decoder: {error}")
                log.warning("evaluation: %s", notes[-1])
                continue
            for label in labels:
                _insert(outcomes[label].row, found.get(label, {}) | spreads.get(label, {}))
    return notes


def _baseline(rows: Mapping[str, dict[str, Any]]) -> str | None:
    """Label of the baseline's row at its most steps."""
    found = [(row["steps"], label) for label, row in rows.items() if row["model"] == BASELINE]
    return max(found)[1] if found else None


def _compare(
    network: str, real: ClipFeatures, sets: Mapping[str, tuple[dict[str, Any], ClipFeatures]], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    known = set(real.ids)
    floor, models, floor_label = None, [], ""
    for label, (row, features) in sets.items():
        if row["model"] == FLOOR:
            rendered = features.of([name for name in features.ids if _caption_of(name, known) == name])
            floor, floor_label = _rows(rendered, network), label
            continue
        own = features.of([name for name in features.ids if name in known])
        models.append(ComparedRow(label, _rows(own, network), row.get("network_calls"),
                                  compared_model(row["model"]).teacher))
    baseline = _baseline({label: row for label, (row, _) in sets.items()})
    found = compare_sets(network, _rows(real, network), floor, models, baseline, draws, seed)
    return {floor_label if label == FLOOR else label: row for label, row in found.items()}


def _caption_of(name: str, known: Collection[str]) -> str:
    """The reference clip whose caption a clip answers; a name of the reference is its own, however it ends."""
    first = first_id(name)
    return first if name not in known and first in known else name


def _spreads(
    network: str, known: Collection[str], sets: Mapping[str, tuple[dict[str, Any], ClipFeatures]]
) -> dict[str, dict[str, Any]]:
    """How different the answers of each model to one caption are, where it was asked for several."""
    found: dict[str, Spread] = {}
    floor_label = ""
    for label, (row, features) in sets.items():
        captions = {name: _caption_of(name, known) for name in features.ids}
        again = {caption for name, caption in captions.items() if caption != name}
        if len(again) < 2:
            continue
        names = [name for name, caption in captions.items() if caption in again]
        found[label] = _spread(network, features.of(names), [captions[name] for name in names])
        if row["model"] == FLOOR:
            floor_label = label
    baseline = _baseline({label: sets[label][0] for label in found})
    rendered = found.pop(floor_label, None)
    rows = compare_spreads(network, found, rendered, baseline) if found else {}
    return {floor_label if label == FLOOR else label: row for label, row in rows.items()}


def _spread(network: str, features: ClipFeatures, captions: Sequence[str]) -> Spread:
    embedded = features.networks[network]
    clips = torch.stack([rows.mean(dim=0) for rows in embedded.embedding_RE.split(embedded.counts)])
    return spread(clips, captions)


def _rows(features: ClipFeatures, network: str) -> ClipRows:
    found = features.networks.get(network, Embeddings(torch.zeros(0, 1), []))
    return ClipRows(features.ids, found.embedding_RE, found.counts)


def _insert(row: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Headline keys stand where the distances do, before n and the times."""
    later = {key: row.pop(key) for key in list(row) if key == "n" or key.startswith("latency_")}
    # of several networks the first one's choice, which tables are of; each has its own under a key with its name
    row.update({key: value for key, value in found.items() if key != "equal_calls_teacher" or key not in row})
    row.update(later)
