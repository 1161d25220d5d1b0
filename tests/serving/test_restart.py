"""What outlives a process: finished jobs, waiting ones, and running ones, which are begun anew."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from gated import Gated, asked, gather

from musiccm.errors import MusiccmError
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, EngineSettings, NotFound, ServedModel
from musiccm.serving.engine import MAX_STARTS
from musiccm.serving.errors import KeyReused, NoRoom
from musiccm.serving.store import Once


@pytest.fixture
def killed(make_engine: Any, pipeline: Pipeline, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The folder of an engine as a kill leaves it: one job done, one and a stream running, two waiting."""
    gated = Gated(pipeline)
    engine = gather(make_engine, gated, max_running=1)
    gated.network.open.set()
    ids = {"done": engine.submit(asked(steps=1)).id}
    engine.wait(ids["done"])
    varied = engine.submit(asked(steps=1, task="vary", source=ids["done"]))
    engine.wait(varied.id)
    gated.network.open.clear()
    gated.network.called.clear()
    ids["running"] = engine.submit(asked(steps=2, seed=11)).id
    assert gated.network.called.wait(30)
    ids["low"] = engine.submit(asked(steps=1), priority=-1).id
    ids["edit"] = engine.submit(asked(steps=1, task="vary", source=ids["done"])).id
    ids["stream"] = engine.stream(asked(steps=1, seconds=3.0)).job.id
    shutil.copytree(tmp_path / "engine", tmp_path / "left")
    gated.network.open.set()
    return tmp_path / "left", ids


def test_jobs_outlive_a_kill(killed, served, pipeline):
    folder, ids = killed
    stray = folder / "results" / ("f" * 32)
    stray.mkdir()
    (folder / "uploads" / ".x.part").write_bytes(b"half")
    with Engine([served], folder, EngineSettings(max_running=1)) as engine:
        views = {name: engine.wait(job) for name, job in ids.items()}
        assert {name: view.state for name, view in views.items()} == {
            "done": "done", "running": "done", "low": "done", "edit": "done", "stream": "failed"}
        assert views["stream"].error["kind"] == "interrupted"
        assert views["running"].started_s < views["edit"].started_s < views["low"].started_s
        assert engine.results.samples(ids["running"]).is_file()
        sidecar = engine.results.sidecar(ids["running"]).read_text()
        assert '"seed": 11' in sidecar
        assert not stray.exists() and not (folder / "uploads" / ".x.part").exists()
        assert len(engine.jobs()) == len({view.id for view in engine.jobs()}) == 6
    with Engine([served], folder) as engine:  # nothing is made twice
        assert engine.state().queued == 0 and engine.job(ids["running"]) == views["running"]


def test_a_key_names_one_job_across_restarts(served, tmp_path):
    once, other = Once("mine", "1"), Once("mine", "2")
    with Engine([served], tmp_path, EngineSettings(keep_jobs=2)) as engine:
        first = engine.submit(asked(steps=1), "me", once=once)
        strangers = engine.submit(asked(steps=1), "you", once=other)
        assert engine.submit(asked(steps=1), "me", once=once).id == first.id != strangers.id
        with pytest.raises(KeyReused, match="Idempotency-Key: mine came before with another request"):
            engine.submit(asked(steps=2), "me", once=other)
        assert engine.wait(first.id, "me").state == engine.wait(strangers.id, "you").state == "done"
    with Engine([served], tmp_path, EngineSettings(keep_jobs=2)) as engine:
        assert engine.submit(asked(steps=1), "me", once=once) == engine.job(first.id, "me")
        engine.drain()  # what was asked for before is told also where nothing new is taken
        assert engine.submit(asked(steps=1), "me", once=once).state == "done"
    with Engine([served], tmp_path, EngineSettings(keep_jobs=1)) as engine:
        later = engine.submit(asked(steps=1), "me", once=Once("later", "1"))
        engine.wait(later.id, "me")
        engine.close()  # what ends a job also removes what is no longer kept
    with Engine([served], tmp_path) as engine:
        assert len(engine.jobs("me")) == 1
        assert engine.submit(asked(steps=2), "me", once=other).id != first.id  # its job is forgotten, and so is the key


def test_what_ends_the_process_each_time_is_not_begun_for_ever(killed, served):
    folder, ids = killed
    with sqlite3.connect(folder / "jobs.sqlite") as db:
        assert db.execute("SELECT starts FROM jobs WHERE id = ?", (ids["running"],)).fetchone() == (1,)
        db.execute("UPDATE jobs SET starts = ? WHERE id = ?", (MAX_STARTS, ids["running"]))
    (folder / "sources" / ids["edit"]).unlink()
    with Engine([served], folder) as engine:
        view = engine.job(ids["running"])
        assert view.state == "failed" and "3 times" in view.error["message"]
        assert "no longer there" in engine.job(ids["edit"]).error["message"]
        assert engine.wait(ids["low"]).state == "done"


def test_a_model_that_is_no_longer_served(killed, pipeline):
    folder, ids = killed
    with Engine([ServedModel.of("other", pipeline)], folder) as engine:
        assert "model: expected one of other" in engine.job(ids["low"]).error["message"]
        assert engine.job(ids["done"]).state == "done"


def full(*args: object) -> None:
    raise NoRoom("full")


def test_a_full_table_takes_no_job_and_loses_none(make_engine, tmp_path, monkeypatch):
    engine = make_engine(max_queued=1000)
    done = engine.submit(asked(steps=1)).id
    assert engine.wait(done).state == "done"
    database, taken = engine._store._db, []
    database.execute("PRAGMA max_page_count = 1")  # SQLite's own bound: no page more than there are
    with pytest.raises(NoRoom, match="database or disk is full"):
        for seed in range(1000):
            taken.append(engine.submit(asked("long " * 150, seed=seed, steps=1), once=Once(str(seed), "")).id)
    states = {engine.wait(job).state for job in taken}  # how they ended is known, if not written
    assert states <= {"done", "failed"} and engine.job(done).state == "done"
    database.execute("PRAGMA max_page_count = 100000")
    last = engine.submit(asked(steps=1), once=Once(str(len(taken)), "")).id  # the key of the one that was refused
    assert engine.wait(last).state == "done" and len(engine.jobs()) == len(taken) + 2
    before = len(engine.jobs())
    monkeypatch.setattr(engine._store, "started", full)  # of a stream, too, one write is all or nothing
    stream = engine.stream(asked(seconds=1.0, steps=1))
    assert len(engine.jobs()) == before + 1 and engine.job(stream.job.id).state == "running"
    stream.close()
    assert engine.wait(stream.job.id).state == "cancelled"
    engine.close()
    with sqlite3.connect(tmp_path / "engine/jobs.sqlite") as db:
        assert db.execute("SELECT started_s, starts FROM jobs WHERE id = ?", (stream.job.id,)).fetchone()[1] == 1
        assert db.execute("SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone() == (0,)


def test_closing_keeps_what_is_not_done(make_engine, pipeline, served, tmp_path):
    gated = Gated(pipeline)
    engine = gather(make_engine, gated, max_running=1)
    first, second = (engine.submit(asked(steps=3)).id for _ in range(2))
    assert gated.network.called.wait(30)
    threading.Timer(0.3, gated.network.open.set).start()
    engine.close()
    with sqlite3.connect(tmp_path / "engine/jobs.sqlite") as db:
        rows = db.execute("SELECT id, state, starts FROM jobs ORDER BY number").fetchall()
    assert rows == [(first, "queued", 0), (second, "queued", 0)]
    with Engine([served], tmp_path / "engine") as again:
        assert [again.wait(job).state for job in (first, second)] == ["done", "done"]


def test_what_was_cancelled_is_not_taken_up_again(make_engine, pipeline, served, tmp_path):
    gated = Gated(pipeline)
    engine = gather(make_engine, gated, max_running=1)
    job = engine.submit(asked(steps=3)).id
    assert gated.network.called.wait(30)
    engine.cancel(job)
    with sqlite3.connect(tmp_path / "engine/jobs.sqlite") as db:  # as a kill would leave it
        assert db.execute("SELECT state FROM jobs").fetchall() == [("cancelled",)]
    threading.Timer(0.3, gated.network.open.set).start()
    engine.close()
    with Engine([served], tmp_path / "engine") as again:
        assert again.job(job).state == "cancelled"


def test_an_end_that_could_not_be_written_is_written_at_the_close(make_engine, served, tmp_path, monkeypatch):
    engine = make_engine()
    monkeypatch.setattr(engine._store, "finished", full)
    job = engine.wait(engine.submit(asked(steps=1)).id)
    monkeypatch.undo()
    engine.close()
    with sqlite3.connect(tmp_path / "engine/jobs.sqlite") as db:
        assert db.execute("SELECT state, finished_s FROM jobs").fetchall() == [("done", job.finished_s)]


def test_one_engine_a_folder_and_no_later_tables(make_engine, served, tmp_path):
    engine = make_engine(start=False)
    with pytest.raises(MusiccmError, match="in use"):
        Engine([served], tmp_path / "engine")
    with pytest.raises(NotFound):
        engine.job("x")
    engine.close()
    with sqlite3.connect(tmp_path / "engine/jobs.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(MusiccmError, match="later musiccm"):
        Engine([served], tmp_path / "engine")
    db.close()
    for path in (tmp_path / "engine").glob("jobs.sqlite*"):
        path.unlink()
    (tmp_path / "engine/jobs.sqlite").write_bytes(b"no table" * 200)
    with pytest.raises(MusiccmError, match="cannot be opened"):
        Engine([served], tmp_path / "engine")
    with pytest.raises(MusiccmError, match="different names"):
        Engine([served, served], tmp_path / "other")
