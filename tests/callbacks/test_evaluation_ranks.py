"""Validation on two processes: the work is split, and what is logged and written is one process's."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tiny_bundle import build_random_bundle
from tiny_system import Data, System

from musiccm.callbacks.evaluation import Evaluation
from musiccm.evaluation.evaluator import Evaluator


def run(bundle: Path, root: Path, budgets_s: Sequence[float | None], **trainer: Any) -> dict[str, Any]:
    """Validate on each time budget, and test after the one without; what came of it."""
    found: dict[str, Any] = {}
    generated: list[str] = []
    whole = Evaluator._generate

    def counted(self: Evaluator, candidate: Any, ids: Any, *args: Any) -> Any:
        generated.extend(ids)
        return whole(self, candidate, ids, *args)

    Evaluator._generate = counted
    Evaluator.pace_s = lambda self, candidate: 1.0
    for budget_s in budgets_s:
        evaluation = Evaluation(
            steps=[1], teacher_steps=[1], limit=5, val_steps=[1], val_teacher_steps=[1], val_limit=5, batch_size=2,
            n_panels=0, time_budget_s=budget_s, kad=["tagger"], cache_dir=None, progress=False,
        )
        lightning = pl.Trainer(
            default_root_dir=root, logger=TensorBoardLogger(str(root), name="tiny", version=f"version_{budget_s}"),
            callbacks=[evaluation], accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, **trainer,
        )
        generated.clear()
        lightning.validate(System(bundle), Data(), verbose=False)
        found[f"generated_{budget_s}"] = list(generated)
        found[f"val_{budget_s}"] = {key: float(value) for key, value in lightning.callback_metrics.items()}
        if budget_s is None:
            lightning.test(System(bundle), Data(), verbose=False)
    return found


def worker(rank: int, bundle: str, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(forked.rank_variables(rank, 2, port))
    found = run(Path(bundle), Path(folder), (None, 2.0), devices=2, strategy="ddp")
    torch.save(found, Path(folder) / f"rank{rank}.pt")


def is_figure(key: str) -> bool:
    return "latency" not in key


def test_two_processes_log_and_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_generate", "pace_s"):
        monkeypatch.setattr(Evaluator, name, getattr(Evaluator, name))  # put back at the end
    bundle = build_random_bundle(tmp_path / "bundle", frames=8)
    forked.spawn(worker, (str(bundle), str(tmp_path / "two"), forked.free_port()), 2)
    alone = run(bundle, tmp_path / "one", (None,))
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    for budget_s, n in ((None, 5), (2.0, 4)):
        # A budget of 2 s at 1 s a clip: 2 clips a rank.
        mine = [set(found[f"generated_{budget_s}"]) for found in ranks]
        assert not mine[0] & mine[1] and len(mine[0] | mine[1]) == n
        for found in ranks:
            values = found[f"val_{budget_s}"]
            assert values["val/n_1"] == values["val/n_teacher_1"] == n
            if budget_s is None:
                assert {k: v for k, v in values.items() if is_figure(k)} == pytest.approx(
                    {k: v for k, v in alone["val_None"].items() if is_figure(k)}, rel=1e-4
                )
    tables = [json.loads((tmp_path / who / "tiny" / "version_None" / "results.json").read_text())
              for who in ("one", "two")]
    for one, two in zip(tables[0]["rows"], tables[1]["rows"], strict=True):
        assert {k: v for k, v in two.items() if isinstance(v, float) and is_figure(k)} == pytest.approx(
            {k: v for k, v in one.items() if isinstance(v, float) and is_figure(k)}, rel=1e-4
        )
    one, two = (table["references"] for table in tables)
    assert two.pop("retrieval_max_gallery") == one.pop("retrieval_max_gallery")
    assert two == pytest.approx(one, rel=1e-4)
