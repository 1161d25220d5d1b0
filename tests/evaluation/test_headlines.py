"""The headline of a table: what answers which caption, and a comparison that cannot be made."""

from __future__ import annotations

import pytest
import torch

from musiccm.embedders import Embeddings
from musiccm.evaluation.clip_features import ClipFeatures
from musiccm.evaluation.evaluator import Made, Outcome
from musiccm.evaluation.headlines import compare_outcomes

IDS = [f"Etude#{i}" for i in range(12)]


def outcome(model: str, seed: int, ids: list[str] = IDS, scale: float = 1.0) -> Outcome:
    rows = scale * torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(seed))
    features = ClipFeatures(ids, {"tagger": Embeddings(rows, [1] * len(ids))})
    return Outcome({"model": model, "steps": 4, "decoder": "fast", "network_calls": 4.0}, Made(features))


def test_names_that_end_in_a_number_are_clips_of_their_own() -> None:
    found = {"floor": outcome("floor", 1), "teacher": outcome("teacher", 2),
             "student": outcome("student", 3, [*IDS, *(f"{name}#1" for name in IDS[:3])])}
    compare_outcomes(found, outcome("real", 0).made.features, draws=8)
    for row in (found["teacher"].row, found["student"].row):
        assert row["excess_fd_tagger"] == pytest.approx(row["fd_tagger"] - row["floor_fd_tagger"])
    assert "spread_tagger" in found["student"].row and "spread_tagger" not in found["teacher"].row


def test_a_comparison_that_cannot_be_made_leaves_the_rows_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    found = {"student": outcome("student", 3)}
    compare_outcomes(found, outcome("real", 0, scale=0.0).made.features, draws=8)  # silence, say
    assert set(found["student"].row) == {"model", "steps", "decoder", "network_calls"}
    assert "no comparison by tagger through the fast decoder" in caplog.text
