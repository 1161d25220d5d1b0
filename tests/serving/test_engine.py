"""The engine against the pipeline, to the bit; and what becomes of jobs that are cancelled, refused or too large."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import soundfile
import torch
from gated import TEXTS, Gated, asked, gather
from torch import Tensor

from musiccm.audio.io import encoded_audio, write_audio
from musiccm.errors import MusiccmError
from musiccm.long_form import read_clip
from musiccm.pipeline import Pipeline
from musiccm.serving import Engine, JobView, Limits, NotFound, Rejected, ServedModel, TooLarge
from musiccm.serving.errors import NoRoom, UnsupportedAudio


def samples(engine: Engine, view: JobView) -> Tensor:
    assert view.state == "done", view.error
    read, _ = soundfile.read(engine.results.samples(view.id), dtype="float32", always_2d=True)
    return torch.from_numpy(read.T.copy())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A lane has its part of the threads, and another number of them rounds otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gated(pipeline: Pipeline) -> Gated:
    return Gated(pipeline)


@pytest.mark.parametrize(("exact", "lanes"), [(True, 1), (True, 2), (False, 1), (False, 2)])
def test_three_clips_at_once_are_the_pipelines_own(make_engine, pipeline, gated, exact, lanes, one_thread):
    engine = gather(make_engine, gated, exact=exact, lanes=lanes)
    pairs = list(zip(TEXTS, (3, 5, 7), strict=True))
    views = [engine.submit(asked(text, seed=seed, steps=2, level="loudness")) for text, seed in pairs]
    assert gated.network.called.wait(30)
    gated.network.open.set()
    made = [samples(engine, engine.wait(view.id)) for view in views]
    whole = torch.cat(made)
    alone = torch.cat([pipeline([text], 2, [seed], level="loudness") for text, seed in pairs])
    if exact:
        assert torch.equal(whole, alone)
        assert gated.network.rows == [1] * 6
    else:  # together: the first call went alone, then they met
        assert (max(gated.network.rows) >= 2 or lanes > 1) and sum(gated.network.rows) == 6
        torch.testing.assert_close(whole, alone, atol=2e-4, rtol=0)


def test_a_clip_that_was_recorded_reports_all_its_calls(make_engine, pipeline):
    class Recorded(Gated):
        warmed = True

        def warm_clips(self, texts: list[str], seeds: list[int], steps: int, *more: Any) -> Tensor:
            return sound_S[None]

    sound_S = torch.linspace(-0.5, 0.5, round(pipeline.duration_s * pipeline.sample_rate_hz))
    recorded = Recorded(pipeline)
    engine = gather(make_engine, recorded)
    view = engine.wait(engine.submit(asked(steps=3, level="none")).id)
    assert torch.equal(samples(engine, view)[0], sound_S)
    assert (view.calls, view.total_calls, recorded.network.rows) == (3, 3, [])


def test_every_task_is_the_pipelines_own(make_engine, pipeline, tmp_path):
    engine = make_engine()
    path = tmp_path / "clip.wav"
    write_audio(path, pipeline(["slow organ chords"], 1, [9], level="peak")[0], 16000)
    upload = engine.new_upload()
    upload.write_bytes(path.read_bytes())
    source = engine.add_upload(upload)["id"]
    changes = ((0.0, TEXTS[0]), (1.0, TEXTS[1]))
    wanted = {
        "short": (asked(seconds=0.3, steps=1), lambda: pipeline(TEXTS[0], 1, [3], seconds=0.3, level="loudness")),
        "long": (asked(seconds=1.7, steps=2, sampler={"name": "tcd", "gamma": 0.2}),
                 lambda: pipeline(TEXTS[0], 2, [3], seconds=1.7, sampler={"name": "tcd", "gamma": 0.2},
                                  level="loudness")),
        "compose": (dataclasses.replace(asked(seconds=1.6, steps=1, task="compose", level="none", overlap=0.25),
                                        prompts=changes),
                    lambda: pipeline.compose(list(changes), 1.6, 1, 3, overlap=0.25)[None]),
        "continue": (asked(task="continue", seconds=1.1, steps=1, source=source),
                     lambda: pipeline.editor(1, 3).extend(read_clip(pipeline, path), TEXTS[0], 1.1).waveform_CS),
        "inpaint": (asked(task="inpaint", from_s=0.2, to_s=0.36, steps=2, source=source),
                    lambda: pipeline.editor(2, 3).inpaint(read_clip(pipeline, path), TEXTS[0], 0.2, 0.36).waveform_CS),
        "vary": (asked(task="vary", strength=0.5, steps=2, source=source),
                 lambda: pipeline.editor(2, 3).vary(read_clip(pipeline, path), TEXTS[0], 0.5).waveform_CS),
    }
    views = {name: engine.submit(request) for name, (request, _) in wanted.items()}
    for name, (_, own) in wanted.items():
        expected = own()
        found = engine.wait(views[name].id)
        if name in ("continue", "inpaint", "vary"):  # kept in the clip's own 16 bits
            expected = (expected * 32768).round().clamp(-32768, 32767) / 32768
        assert torch.equal(samples(engine, found), expected), name
        if found.total_calls:
            assert found.calls == found.total_calls


def test_a_stream_is_the_pipelines_own(make_engine, pipeline):
    engine = make_engine()
    chunks = list(engine.stream(asked(seconds=2.0, steps=2, level="loudness")))
    own = list(pipeline.stream(TEXTS[0], 2.0, 2, 3, level="loudness"))
    assert torch.equal(torch.cat(chunks), torch.cat(own)) and len(chunks) > 1
    torch.testing.assert_close(torch.cat(list(engine.stream(asked(seconds=2.0, steps=2, level="none")))),
                               pipeline.compose(TEXTS[0], 2.0, 2, 3), atol=1e-4, rtol=0)


def test_the_text_of_a_stream_can_be_changed(make_engine):
    engine = make_engine()
    with pytest.raises(NotFound):
        engine.set_prompt("0" * 32, "drums")
    stream = engine.stream(asked(steps=1, level="none"))
    assert stream.samples is None
    stream.take(30)
    assert engine.set_prompt(stream.job.id, "drums") > 0
    with pytest.raises(MusiccmError, match="prompt"):
        engine.set_prompt(stream.job.id, " ")
    stream.close()
    assert engine.wait(stream.job.id).state == "cancelled"
    assert engine.state().streams == 0


@pytest.mark.parametrize("after", [1, 3])
def test_a_cancelled_job_makes_at_most_the_call_that_runs(make_engine, pipeline, after):
    rows: list[int] = []
    reached, go_on = threading.Event(), threading.Event()

    def network(z: Tensor, t: Tensor, cond: Any) -> Tensor:
        rows.append(len(z))
        if len(rows) == after + 1:  # the engine's first sound is a call too
            reached.set()
            assert go_on.wait(30)
        return pipeline.consistency(z, t, cond)

    engine = make_engine(models=[ServedModel.of("student", Gated(pipeline, network))])
    rows[:] = rows[:1]
    view = engine.submit(asked(steps=10))
    assert reached.wait(30)
    engine.cancel(view.id)
    go_on.set()
    ended = engine.wait(view.id)
    assert ended.state == "cancelled" and len(rows) == after + 1
    with pytest.raises(NotFound):
        engine.results.samples(view.id)
    again = engine.submit(asked(steps=1))  # the next one is unharmed
    assert engine.wait(again.id).state == "done"


def test_waiting_jobs_are_ordered_bounded_and_cancelled(make_engine, gated):
    engine = gather(make_engine, gated, max_running=1, max_queued=3)
    running = engine.submit(asked(steps=1))
    assert gated.network.called.wait(30)
    low, high, middle = (engine.submit(asked(steps=1), priority=priority) for priority in (-1, 5, 0))
    assert [engine.job(view.id).position for view in (high, middle, low)] == [0, 1, 2]
    times = [engine.job(view.id).eta_s for view in (running, high, middle, low)]
    assert times == sorted(set(times)) and times[0] > 0
    with pytest.raises(Rejected) as refused:
        engine.submit(asked())
    assert refused.value.kind == "queue_full" and refused.value.retry_after_s >= 1
    assert engine.cancel(middle.id).state == "cancelled"
    assert engine.job(low.id).position == 1
    gated.network.open.set()
    ends = [engine.wait(view.id) for view in (running, high, low)]
    assert [view.state for view in ends] == ["done"] * 3
    assert ends[1].finished_s <= ends[2].finished_s
    assert [view.id for view in engine.jobs()] == [view.id for view in (middle, high, low, running)]


def test_a_job_that_is_cancelled_while_the_engine_closes_stays_cancelled(make_engine, gated, tmp_path):
    engine = gather(make_engine, gated, max_running=1)
    running, waiting = engine.submit(asked(steps=2)), engine.submit(asked(steps=1))
    assert gated.network.called.wait(30)
    closing, ends = threading.Thread(target=engine.close), []
    watching = threading.Thread(target=lambda: ends.append(engine.wait(waiting.id)))
    watching.start()
    closing.start()
    until(lambda: engine._closed)
    watching.join(30)
    assert ends[0].state == "queued"  # whoever waits for it is let go
    engine.cancel(running.id)
    gated.network.open.set()
    closing.join(30)
    with sqlite3.connect(engine.folder / "jobs.sqlite") as db:
        assert dict(db.execute("SELECT id, state FROM jobs")) == {running.id: "cancelled", waiting.id: "queued"}


def test_a_job_that_is_cancelled_while_it_is_written_leaves_nothing(make_engine, monkeypatch):
    engine = make_engine()
    write = engine.results.write

    def cancelled_meanwhile(job, *made):
        facts = write(job, *made)
        engine.cancel(job)
        return facts

    monkeypatch.setattr(engine.results, "write", cancelled_meanwhile)
    view = engine.wait(engine.submit(asked(steps=1)).id)
    assert view.state == "cancelled" and view.id not in engine.results.names()
    with pytest.raises(NotFound):
        engine.submit(asked(task="vary", source=view.id))


def test_an_end_is_told_though_what_follows_it_fails(make_engine, gated, monkeypatch):
    engine, told = gather(make_engine, gated), threading.Event()
    tell = engine._tell
    monkeypatch.setattr(engine, "_tell", lambda kind, values: 1 // 0 if kind == "finished" else tell(kind, values))
    view = engine.submit(asked(steps=1))
    engine.listen(view.id, told.set, end_only=True)
    gated.network.open.set()
    assert told.wait(30) and engine.job(view.id).state == "done"


def test_others_do_not_wait_while_a_result_is_encoded(make_engine, monkeypatch):
    engine = make_engine()
    made = engine.wait(engine.submit(asked(steps=1)).id)
    encoding, go_on, encoded = threading.Event(), threading.Event(), engine.results._encoded

    def slow(*given):
        encoding.set()
        assert go_on.wait(30)
        return encoded(*given)

    monkeypatch.setattr(engine.results, "_encoded", slow)
    editing = threading.Thread(target=lambda: engine.submit(asked(task="vary", source=made.id)))
    editing.start()
    assert encoding.wait(30)
    other = engine.wait(engine.submit(asked(steps=1)).id, timeout_s=30)
    go_on.set()
    editing.join(30)
    assert other.state == "done" and len(engine.jobs()) == 3


def test_jobs_are_their_owners(make_engine):
    engine = make_engine()
    view = engine.submit(asked(steps=1), owner="one")
    for act in (engine.job, engine.cancel, engine.wait):
        with pytest.raises(NotFound):
            act(view.id, "two")
    assert engine.wait(view.id, "one").state == "done" and engine.jobs("two") == []
    with pytest.raises(NotFound, match="source"):
        engine.submit(asked(task="vary", source=view.id), owner="two")
    varied = engine.submit(asked(task="vary", source=view.id, steps=1), owner="one")
    assert engine.wait(varied.id, "one").state == "done"


@pytest.mark.parametrize("exact", [True, False])
def test_too_little_memory_halves_the_batch(make_engine, pipeline, exact):
    most = 2
    rows: list[int] = []

    def network(z: Tensor, t: Tensor, cond: Any) -> Tensor:
        rows.append(len(z))
        if len(z) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pipeline.consistency(z, t, cond)

    gated = Gated(pipeline, network)
    engine = make_engine(models=[ServedModel.of("student", gated)], exact=exact)
    view = engine.wait(engine.submit(asked(seconds=4.0, steps=2, level="none")).id)  # eight windows or more a call
    assert max(rows) > most and sum(1 for count in rows if count > most) <= 3  # it is tried once a size, not every time
    torch.testing.assert_close(samples(engine, view), pipeline.compose(TEXTS[0], 4.0, 2, 3)[None], atol=2e-4, rtol=0)
    most = 0
    view = engine.wait(engine.submit(asked(steps=1)).id)
    assert view.state == "failed" and "memory" in view.error["message"]


def test_what_fails_is_said_and_hurts_no_other(make_engine, pipeline, monkeypatch, caplog):
    broken = Gated(pipeline, lambda z, t, cond: 1 / 0 if cond[0, 0] == 7 else pipeline.consistency(z, t, cond))
    broken.conditioner = pipeline.conditioner
    engine = make_engine(models=[ServedModel.of("student", broken)])
    texts = pipeline.conditioner.prompts
    monkeypatch.setattr(broken, "conditioner", type("Odd", (), {
        "prompts": lambda self, found: texts(found).clone().fill_(7) if found == ["odd"] else texts(found)})(),
        raising=False)
    bad, good = engine.submit(asked("odd", steps=1)), engine.submit(asked(steps=1))
    assert engine.wait(bad.id).error == {"kind": "internal", "message": "the server failed (ZeroDivisionError)"}
    assert "ZeroDivisionError" in caplog.text and engine.wait(good.id).state == "done"


def test_a_full_disk_fails_the_job_alone(make_engine, monkeypatch):
    engine = make_engine()
    full = OSError(28, "No space left on device")

    def write(*args: Any, **options: Any) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", write)
        view = engine.wait(engine.submit(asked(steps=1)).id)
    assert view.state == "failed" and view.error["kind"] == "no_room"
    view = engine.wait(engine.submit(asked(steps=1)).id)
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", write)
        with pytest.raises(NoRoom):
            engine.results.audio(view.id, "mp3")
    assert engine.results.audio(view.id, "mp3").stat().st_size > 0


def test_formats_are_those_of_generate(make_engine, pipeline):
    engine = make_engine()
    view = engine.wait(engine.submit(asked(steps=1)).id)
    own = pipeline([TEXTS[0]], 1, [3], level="loudness")[0]
    for form in ("wav", "flac", "mp3"):
        assert engine.results.audio(view.id, form).read_bytes() == encoded_audio(own, 16000, f".{form}", "x")
    read, rate_hz = soundfile.read(engine.results.audio(view.id, "ogg"))  # its serial number is drawn
    assert len(read) == len(own) and rate_hz == 16000
    assert engine.results.spectrogram(view.id).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(MusiccmError, match="format"):
        engine.results.audio(view.id, "../x")


def test_old_results_make_room(make_engine):
    engine = make_engine(keep_jobs=2)
    views = [engine.wait(engine.submit(asked(steps=1, seed=seed)).id) for seed in range(3)]
    with pytest.raises(NotFound):
        engine.job(views[0].id)
    assert engine.results.names() == {view.id for view in views[1:]}


@pytest.mark.parametrize(("fields", "said"), [
    ({"task": "dance"}, "task: expected one of"),
    ({"model": "other"}, "model: expected one of student"),
    ({"prompts": ()}, "prompts: expected 1 to 64"),
    ({"prompts": ((0.0, "x" * 1001),)}, "prompt: expected at most 1000"),
    ({"prompts": ((0.0, "\0"),)}, "expected text"),
    ({"prompts": ((0.0, "a"), (1.0, "b"))}, "takes one text"),
    ({"seconds": 0.0}, "seconds: expected a number above 0"),
    ({"seconds": 601.0}, "seconds: expected"),
    ({"seconds": float("nan")}, "seconds: expected"),
    ({"steps": 0}, "steps: expected a whole number from 1 to 200"),
    ({"steps": 51}, "steps"),
    ({"seed": -1}, "seed: expected"),
    ({"guidance_scale": 2.0}, "guidance_scale"),
    ({"sampler": {"name": "heun"}}, "sampler: the model is a distilled student"),
    ({"sampler": {"name": "lcm", "beta": 1}}, "sampler.beta"),
    ({"level": "loud"}, "level: expected one of"),
    ({"overlap": 1.0}, "overlap: expected"),
    ({"fusion": "glue"}, "fusion"),
    ({"task": "vary", "source": "x", "fusion": "glue"}, "fusion: expected one of uniform"),
    ({"strength": 0.5}, "strength: has no meaning"),
    ({"task": "vary"}, "source: the task vary needs a clip"),
    ({"task": "vary", "source": "x", "level": "peak"}, "level: the task vary keeps"),
    ({"task": "inpaint", "source": "x", "from_s": 1.0}, "to: the task inpaint needs"),
    ({"task": "inpaint", "source": "x", "from_s": 2.0, "to_s": 1.0}, "from: expected less"),
    ({"task": "compose", "prompts": ((0.0, "a"), (0.1, "b"))}, "would not be used"),
    ({"task": "compose", "prompts": ((0.0, "a"), (9.0, "b"))}, "'b' .from 9 s. would not be used: the music ends"),
    ({"task": "compose", "prompts": ((0.0, "a"), (1e308, "b"))}, "prompts.1.at: expected a number from 0 to 600"),
    ({"task": "continue", "source": "x", "prompts": ((0.0, "a"), (601.0, "b"))}, "prompts.1.at: expected"),
    ({"task": "compose", "prompts": ((0.0, "a"), (0.5, "\0"))}, "prompts.1.text: expected text"),
    ({"task": "vary", "source": "\udfff"}, "source: the task vary needs a clip"),
])
def test_what_no_model_makes_is_refused_before_it_waits(make_engine, fields, said):
    engine = make_engine(start=False)
    with pytest.raises(MusiccmError, match=said):
        engine.submit(dataclasses.replace(asked(), **fields))
    assert engine.state().queued == 0


def test_uploads_are_bounded_and_checked(make_engine, tmp_path):
    limits = Limits(max_upload_s=1.0, max_uploads=2, max_upload_channels=2)
    engine = make_engine(start=False, limits=limits)

    def upload(content: bytes) -> Any:
        path = engine.new_upload()
        path.write_bytes(content)
        return engine.add_upload(path)

    sound = torch.sin(torch.arange(32000) / 20)
    wav = bytes(encoded_audio(sound[:16000], 16000, ".wav", "x"))
    soundfile.write(tmp_path / "three.wav", sound[:3000].reshape(-1, 3).numpy(), 16000)
    for content, kind, said in (
        (b"", MusiccmError, "empty"), (b"\0" * 100, UnsupportedAudio, "zeros"),
        (b"#!/bin/sh\n", UnsupportedAudio, "expected wav"), (b"PK\x03\x04" * 30, UnsupportedAudio, "expected wav"),
        (b"#EXTM3U\nhttp://127.0.0.1/", UnsupportedAudio, "expected wav"),
        (bytes(encoded_audio(sound, 16000, ".flac", "x")), TooLarge, "expected at most 1 s of 1 channel at 16000 Hz"),
        ((tmp_path / "three.wav").read_bytes(), TooLarge, "3 channels"), (wav[:20], UnsupportedAudio, "wav"),
    ):
        with pytest.raises(kind, match=said):
            upload(content)
    assert upload(wav)["seconds"] == 1.0 and upload(wav)["bytes"] == len(wav)
    assert not list((engine.folder / "uploads").glob(".*"))
    parts = [engine.new_upload() for _ in range(engine.limits.max_uploading)]
    with pytest.raises(Rejected, match="16 uploads are on their way"):
        engine.new_upload()
    engine.end_upload(parts[0])
    engine.end_upload(engine.new_upload())


def test_few_bytes_do_not_stand_for_very_many_samples(make_engine, tmp_path):
    sound_SC = torch.zeros(40_000, 8)
    sound_SC[:100] = 0.5
    for limit, fits in ((320_000, True), (319_999, False)):
        engine = make_engine(limits=Limits(max_upload_samples=limit))
        path = engine.new_upload()
        soundfile.write(path, sound_SC.numpy(), 192_000, format="FLAC")
        if fits:
            assert engine.add_upload(path)["seconds"] == 40_000 / 192_000
        else:
            with pytest.raises(TooLarge, match="8 channels at 192000 Hz: cut it, or bring it at a lower rate"):
                engine.add_upload(path)
        engine.close()


class Shelf:
    """Uploads of one clip, each used a second after the one before."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.folder, self.used_s = engine, engine.folder / "uploads", 1000.0
        self.wav = bytes(encoded_audio(torch.sin(torch.arange(8000) / 20), 16000, ".wav", "x"))

    def upload(self, owner: str = "") -> str:
        path = self.engine.new_upload(owner)
        path.write_bytes(self.wav)
        added = self.engine.add_upload(path, owner)["id"]
        self.used_s += 1
        os.utime(self.folder / added, (self.used_s, self.used_s))
        return added

    def kept(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def test_the_least_recently_used_upload_goes_but_none_that_a_job_needs(make_engine):
    engine = make_engine(start=False, limits=Limits(max_uploads=8, max_uploads_a_key=3))  # jobs wait, as none begins
    shelf = Shelf(engine)
    needed, old, used = shelf.upload(), shelf.upload(), shelf.upload()
    job = engine.submit(asked(task="vary", source=needed)).id
    again = engine.submit(asked(task="vary", source=used)).id
    engine.cancel(again)
    os.utime(shelf.folder / needed, (0, 0))  # it is the least recently used, and needed
    fourth = shelf.upload()
    assert shelf.kept() == {needed, used, fourth}
    with pytest.raises(NotFound):
        engine.submit(asked(task="vary", source=old))
    fifth = shelf.upload()  # the fourth was used before the one that a job named meanwhile
    assert shelf.kept() == {needed, used, fifth}
    jobs = [engine.submit(asked(task="vary", source=source)).id for source in (used, fifth)]
    with pytest.raises(Rejected) as refused:
        engine.new_upload()
    assert refused.value.kind == "uploads_full"
    assert shelf.upload("another key") in shelf.kept()
    engine.cancel(jobs[1])
    assert shelf.upload() in shelf.kept() and fifth not in shelf.kept()
    assert engine._source_of(job).read_bytes() == shelf.wav


def test_room_for_all_is_made_by_who_has_most(make_engine):
    engine = make_engine(start=False, limits=Limits(max_uploads=4, max_uploads_a_key=3))
    shelf = Shelf(engine)
    one = shelf.upload("one")
    many = [shelf.upload("many") for _ in range(3)]
    two = shelf.upload("two")
    assert shelf.kept() == {one, *many[1:], two}
    three = shelf.upload("three")
    assert shelf.kept() == {one, many[2], two, three}


def test_an_upload_is_removed_by_its_owner_alone(make_engine):
    engine = make_engine(start=False)
    shelf = Shelf(engine)
    upload = shelf.upload("one")
    job = engine.submit(asked(task="vary", source=upload), "one").id
    with pytest.raises(NotFound):
        engine.remove_upload(upload, "two")
    engine.remove_upload(upload, "one")
    assert shelf.kept() == set() and engine._source_of(job).read_bytes() == shelf.wav
    for gone in (upload, "../jobs.sqlite"):
        with pytest.raises(NotFound):
            engine.remove_upload(gone, "one")


def test_what_could_not_be_taken_in_leaves_nothing(make_engine, monkeypatch):
    engine = make_engine(start=False)
    shelf = Shelf(engine)
    upload = shelf.upload()

    def full(*args: Any, **options: Any) -> None:
        raise NoRoom("full")

    def no_links(*paths: Any) -> None:
        raise OSError(1, "Operation not permitted")

    def half(source: Any, target: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(engine._store, "add_upload", full)
        with pytest.raises(NoRoom):
            shelf.upload()
    assert shelf.kept() == {upload}
    with monkeypatch.context() as patched:
        patched.setattr("os.link", no_links)
        patched.setattr("shutil.copyfile", half)
        with pytest.raises(NoRoom):
            engine.submit(asked(task="vary", source=upload))
    assert list((engine.folder / "sources").iterdir()) == [] and engine.state().queued == 0
