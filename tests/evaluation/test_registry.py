"""The registry of metrics: what is printed, drawn and documented follows from its rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musiccm.cli import main
from musiccm.embedders import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation import registry
from musiccm.evaluation.clip_features import ClipFeatures
from musiccm.evaluation.evaluator import Made, Outcome
from musiccm.evaluation.feature_extraction import Features
from musiccm.evaluation.registry import Column, MetricRow, direction, find, head_of, metric_row, shown_keys, split_key
from musiccm.evaluation.suite import MetricSuite
from musiccm.evaluation.table import write_table
from musiccm.metrics.paired_rows import PairedRowsMetric

DOC = Path(__file__).parents[2] / "docs/metrics.md"
N = 24
IDS = [f"c{i:02d}" for i in range(N)]
REAL, FAKE = (torch.randn(N, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


class MeanGap(PairedRowsMetric):
    """Distance of the means: a metric that only this test knows."""

    def compute(self) -> dict:
        real, fake = self.row_sets()
        gap = float((real.rows.mean(dim=0) - fake.rows.mean(dim=0)).norm())
        return {"gap": gap}  # without counts


ROW = MetricRow("gap", "sets", "higher", "rows", (Column("gap_<net>", "gap"),), MeanGap, "the gap of the means",
                log_scale=False)


MADE = Made(ClipFeatures.joined([]))


def features(rows: Tensor) -> Features:
    return Features({"tagger": Embeddings(rows, [1] * N, rows)}, rows)


def test_a_metric_is_one_row_and_stands_in_every_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, ROW))
    suite = MetricSuite({"tagger": True}, (IDS, REAL), {"drums": [0, 1]}, 
                        also={"gap": ["tagger"], "coverage": ["tagger"]})
    suite.update_reference(features(REAL), REAL, IDS)
    suite.update(features(FAKE), REAL, IDS, torch.ones(N, 4))
    row = suite.compute()[0] | {"latency_s": 0.5, "latency_text_s": 0.1, "of_the_future": 4.25}
    assert row["gap_tagger"] == pytest.approx(float((REAL.mean(0) - FAKE.mean(0)).norm()), rel=1e-6)
    suite.reset_generated()  # for the next model, with the same reference
    suite.update(features(FAKE), REAL, IDS, torch.ones(N, 4))
    assert suite.compute()[0]["gap_tagger"] == row["gap_tagger"]
    rows = [{"model": model, "steps": 4, "network_calls": 4.0, **row} for model in ("teacher", "student")]
    run = tmp_path / "runs/big/version_0"
    write_table(run, "big", {r["model"]: Outcome(r, MADE) for r in rows}, {})
    assert json.loads((run / "results.json").read_text())["rows"][0]["gap_tagger"] == row["gap_tagger"]
    assert {path.name for path in run.glob("*.png")} == {
        f"{name}_tagger_against_calls_original.png" for name in ("fd", "gap", "coverage")}

    config = tmp_path / "big.yaml"
    config.write_text("trainer: {max_steps: 1}\n")
    assert main(["compare", str(run)]) == 0 and main(["tables", "--config", str(config), "--runs",
                                                      str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    for text in ((run / "results.txt").read_text(), printed[: printed.index("# big")], (run / "tables.md").read_text()):
        assert "gap_tagger ↑" in text and f"{row['gap_tagger']:.2f}" in text
        # every number of the row that is no count, no part of another and no deviation; each with its direction
        for key in set(row) - {"n", "is_tagger_std", "clap_t", "clap_a", "acc_drums_chance", "latency_text_s",
                               "n_reference", "coverage_tagger_expected"}:
            heads = {head_of(key, "tagger"), registry.with_arrow(key, key),
                     registry.with_arrow(key.replace("sim_aa_", "SIM_AA@"), key)}
            assert any(head in text for head in heads), (key, heads, text)
            assert direction(key) or key == "of_the_future"


def test_keys_are_told_apart() -> None:
    for key, name, of in (
        ("fd_pann", "fd", "pann"), ("fd_inf_pann", "fd_inf", "pann"), ("kl_bundle_clap_exact", "kl", "bundle_clap"),
        ("coverage_pann_expected", "coverage", "pann"),
        ("is_vgg_std", "is", "vgg"), ("sim_aa_90", "sim_aa", ""), ("sim_aa_95_my corpus", "sim_aa", "_my corpus"),
        ("acc_drums_chance", "acc", "drums"), ("latency_text_s", "latency", "text"),
        ("excess_fd_pann", "excess_fd", "pann"), ("floor_fd_pann", "excess_fd", "pann"),
        ("spread_vgg", "spread", "vgg"),
        ("excess_fd_bundle_clap_equal_calls_ratio_low", "excess_fd", "bundle_clap"), ("kad_vgg_high", "kad", "vgg"),
        ("fd_inf_pann_ratio_why", "fd_inf", "pann"), ("spread_vgg_real_ratio", "spread", "vgg"),
        ("acc_a_low", "acc", "a_low"), ("clap_t", "ta", ""), ("clap_a", "ra", ""),
    ):
        found = find(key)
        assert found is not None and (found.metric.name, found.of) == (name, of), key
    for key in ("n", "n_reference", "n_kl_pann", "rows_vgg", "model", "latency_batches", "something", "draws_pann",
                "decoder", "equal_calls_teacher"):
        assert find(key) is None and direction(key) is None
    assert [direction(key) for key in ("fd_x", "is_x_mean", "is_x_std")] == ["lower", "higher", None]
    assert shown_keys([{"n": 3, "fd_x": None, "is_x_std": 0.1}, {"new": 1.0, "model": "student", "flag": True},
                       {"kad_x": 0.1, "kad_x_low": 0.0, "kad_x_ratio": 0.5, "excess_fd_x_bias": 0.1, "draws_x": 9},
                       ]) == ["fd_x", "new", "kad_x"]
    assert direction("kad_x_ratio") is None and direction("excess_fd_x") == "lower"
    assert [split_key(key) for key in ("kad_x_ratio_low", "kad_x", "excess_fd_x_equal_calls_ratio_high", "a_low")] == [
        ("kad_x", "_ratio_low"), ("kad_x", ""), ("excess_fd_x", "_equal_calls_ratio_high"), ("a", "_low")]
    with pytest.raises(MusiccmError, match="metrics: expected names among fd, kad"):
        metric_row("fad")


def test_directions_are_those_of_the_classes() -> None:
    for row in registry.METRICS:
        kind = getattr(row.make, "func", row.make)
        if kind is not None:
            assert kind.higher_is_better == (row.better == "higher"), row.name


def test_the_table_of_the_docs_is_the_registry() -> None:
    text = DOC.read_text(encoding="utf-8").split("## What each metric is")[1].split("\n## ")[0]
    documented = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) > 5 and cells[0].startswith("`"):
            documented[cells[0].strip("`")] = (re.findall(r"`([^`]+)`", cells[1]), *cells[2:5])
    assert documented == {
        row.name: ([column.key for column in row.columns], row.better, row.scope,
                   row.needs + ("; optional" if row.optional else "") + (", slow" if row.slow else ""))
        for row in registry.METRICS
    }
