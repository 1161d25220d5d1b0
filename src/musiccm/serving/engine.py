"""The engine: a bounded queue of jobs by priority, a thread a device, and results that outlive the process."""

from __future__ import annotations

import bisect
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from musiccm import locks
from musiccm.errors import MusiccmError
from musiccm.files import file_sha256
from musiccm.serving.at_work import ModelAtWork
from musiccm.serving.device_queue import DeviceQueue
from musiccm.serving.errors import Cancelled, NoRoom, NotFound, Rejected
from musiccm.serving.jobs import Job, JobView, now_s
from musiccm.serving.kept_uploads import KeptUploads
from musiccm.serving.limits import Limits
from musiccm.serving.listeners import Listeners
from musiccm.serving.loading import ServedModel
from musiccm.serving.request import MusicRequest
from musiccm.serving.results import Results, no_room
from musiccm.serving.sidecar import sidecar_json
from musiccm.serving.store import Once, Store
from musiccm.serving.streams import LiveStream, StreamJob
from musiccm.serving.tasks import check_edit, perform, planned, streamed

log = logging.getLogger(__name__)

MAX_STARTS = 3
"""A job during which the process ended so often is not taken up again: it may be what ends it."""

_SMOOTHING = 0.3  # of the estimate of seconds a unit of work


@dataclass(frozen=True)
class EngineSettings:
    """How the engine works.

    Args:
        max_queued: Jobs that wait; further ones are refused.
        max_running: Jobs that are at work at once.
        max_streams: Streams at once.
        max_batch: Rows of one network call made for several jobs.
        exact: Compute each job's calls by themselves, so that its samples are the pipeline's to the bit; None for CPUs
            alone, where batches of large models gain nothing.
        lanes: On a CPU, network calls that are computed side by side, each on its part of the threads: one is quickest
            for one client, as many as cores for small models and many.
        stall_s: How long a stream waits for its client.
        keep_jobs: Finished jobs that are kept; the oldest go first.
        keep_bytes: Size of all results on disk, from which on the oldest go.
        limits: Bounds of one request.
    """

    max_queued: int = 64
    max_running: int = 4
    max_streams: int = 4
    max_batch: int = 8
    exact: bool | None = None
    lanes: int = 1
    stall_s: float = 30.0
    keep_jobs: int = 1000
    keep_bytes: int = 4 * 2**30
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class EngineState:
    """What the engine does at one moment."""

    queued: int
    running: int
    streams: int
    result_bytes: int


class Engine:
    """Takes jobs, makes them, and keeps what was made.

    Safe for threads. Nothing of it knows of HTTP.

    Args:
        models: What is served.
        folder: Where jobs, results and uploads lie; one engine at a time.
        settings: How it works.
        on_event: Told what happens, for metrics: `("started", {"wait_s": ...})` and so on; must be quick.

    Raises:
        MusiccmError: The folder cannot be used, or another process uses it; or two models have one name.
    """

    def __init__(
        self, models: Sequence[ServedModel], folder: str | Path, settings: EngineSettings | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.models = {served.name: served for served in models}
        if not models or len(self.models) != len(models):
            raise MusiccmError(f"models: expected one or more of different names, found "
                               f"{', '.join(served.name for served in models) or 'none'}; NAME=FOLDER gives a name")
        self.folder, self.settings = Path(folder), settings or EngineSettings()
        self.limits = self.settings.limits
        self._tell = on_event or (lambda kind, values: None)
        with no_room():
            for name in ("uploads", "sources"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._lock = locks.hold(self.folder / locks.LOCK, self.folder)
        try:
            self.results = Results(self.folder / "results")
            self._store = Store(self.folder / "jobs.sqlite")
        except BaseException:
            self._lock.release()
            raise
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._live: dict[str, Job] = {}
        self._uploads = KeptUploads(self.folder / "uploads", self._store, self.limits, self._changed, self._sources)
        self._streams: dict[str, LiveStream] = {}
        self._unsaved: dict[str, JobView] = {}
        self._saving = threading.Lock()
        self._kept = dict.fromkeys(self._store.ended())
        self._listeners = Listeners()
        self._rates: dict[str, float] = {}
        self._threads: list[threading.Thread] = []
        self._queues: dict[str, DeviceQueue] = {}
        self._draining = self._closed = self.ready = False
        self._overdue_at_s: float | None = None

    # ---- life

    def start(self) -> Engine:
        """Make each model's first sound, take up what an earlier process left, and begin to work.

        Returns:
            The engine.
        """
        for name, served in self.models.items():
            device = str(served.model.device)
            if device not in self._queues:
                on_cpu = served.model.device.type == "cpu"
                self._queues[device] = DeviceQueue(
                    on_cpu if self.settings.exact is None else self.settings.exact, self.settings.max_batch,
                    on_batch=lambda calls: self._tell("batch", {"calls": calls}),
                    lanes=self.settings.lanes if on_cpu else 1)
            first = Job("warm-up", "", 0, MusicRequest(name, ((0.0, "music"),), steps=1, seed=0, level="none"), 0, 0.0)
            perform(self._at_work(first), first.request, None)
            self._rates[name] = first.device_s
        self._take_up()
        for number in range(self.settings.max_running):
            self._threads.append(threading.Thread(target=self._work, name=f"job {number}", daemon=True))
        for thread in self._threads:
            thread.start()
        self.ready = True
        return self

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def draining(self) -> bool:
        """Whether it takes no more jobs."""
        return self._draining

    @property
    def overdue(self) -> bool:
        """Whether the time is over that `drain` gave to jobs that run."""
        return self._overdue_at_s is not None and time.monotonic() >= self._overdue_at_s

    def drain(self, within_s: float | None = None) -> None:
        """Take no more jobs, and begin no waiting one: they are kept for the next start.

        Args:
            within_s: After so many seconds nobody should wait any more for a job that runs (`overdue`).
        """
        with self._changed:
            self._draining = True
            if within_s is not None:
                self._overdue_at_s = time.monotonic() + within_s
            self._changed.notify_all()
        self._listeners.tell_all()

    def close(self, drain_s: float = 0.0) -> None:
        """End; what is not done by then is taken up at the next start.

        Args:
            drain_s: How long running jobs may go on.
        """
        self.drain()
        with self._changed:
            if self._closed:
                return
            self._changed.wait_for(lambda: not any(job.state == "running" for job in self._live.values()), drain_s)
            self._closed = True
            for job in self._live.values():
                job.requeue = not (isinstance(job, StreamJob) or job.cancelled.is_set())
                job.cancelled.set()
            self._changed.notify_all()
            streams = [stream.thread for stream in self._streams.values()]
        self._listeners.tell_all()
        for thread in [*self._threads, *streams]:
            if thread.is_alive():
                thread.join()
        for queue in self._queues.values():
            queue.close()
        self._save_ends()
        self._store.close()
        self._lock.release()

    # ---- what clients do

    def submit(
        self, request: MusicRequest, owner: str = "", priority: int = 0, once: Once | None = None
    ) -> JobView:
        """Ask for music.

        Args:
            request: What to make.
            owner: Whose it is.
            priority: Larger ones are made first.
            once: What the client names the request by, if it may send it again.

        Returns:
            The job, which waits; where the request came before, the job of then as it is now.

        Raises:
            MusiccmError: The request cannot be met by its model.
            NotFound: Its source is not there.
            KeyReused: `once` named another request before.
            Rejected: There is no room in the queue.
            NoRoom: The disk is full.
        """
        request = self._checked(request)
        if request.task == "stream":
            raise MusiccmError("task: a stream is opened, not queued")
        plan = planned(self.models[request.model].model, request)
        if request.source is not None and (length := self._source_length(request.source, owner)) is not None:
            check_edit(self.models[request.model].model, plan.request, *length, self.limits)
        if request.source is not None:
            self._encode_source(request.source, owner)
        with self._changed:
            if once is not None and (before := self._store.made_before(once, owner)) is not None:
                return self.job(before, owner)
            self._require_open()
            if len(self._waiting) >= self.settings.max_queued:
                self._refuse(f"{len(self._waiting)} jobs wait, the most that is taken; try again later", "queue_full",
                             self._until_next_s())
            view = JobView(secrets.token_hex(16), owner, "queued", priority, plan.request.resolved(), now_s())
            if request.source is not None:
                self._take_source(request.source, owner, view.id)
            try:
                number = self._store.add(view, once)
            except NoRoom:
                self._source_of(view.id).unlink(missing_ok=True)
                raise
            job = Job(view.id, owner, priority, view.request, number, view.created_s, plan.units, plan.calls,
                      self._progressed)
            self._live[job.id] = job
            bisect.insort(self._waiting, job, key=lambda waiting: waiting.order)
            self._changed.notify_all()
            self._tell("submitted", {"task": request.task})
            return self._view(job)

    def job(self, job: str, owner: str = "") -> JobView:
        """A job as it is now.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        with self._changed:
            live = self._live.get(job)
            view = self._view(live) if live is not None else self._unsaved.get(job) or self._store.get(job)
        if view is None or view.owner != owner:
            raise NotFound("there is no such job; finished ones are kept for a while only")
        return view

    def jobs(self, owner: str = "", limit: int = 100) -> list[JobView]:
        """Somebody's last jobs, the newest first."""
        with self._changed:
            return [self._view(self._live[view.id]) if view.id in self._live else self._unsaved.get(view.id, view)
                    for view in self._store.recent(owner, limit)]

    def cancel(self, job: str, owner: str = "") -> JobView:
        """End a job: one that waits at once, one that runs before its next network call; one that has ended stays.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        self.job(job, owner)
        with self._changed:
            live = self._live.get(job)
            waited = live is not None and live in self._waiting
            if live is not None:
                live.cancelled.set()
                if waited:
                    self._waiting.remove(live)
                elif not isinstance(live, StreamJob):  # written now, so that no restart takes it up
                    live.requeue = False
                    self._unsaved[job] = replace(live.view(), state="cancelled", finished_s=now_s())
                self._changed.notify_all()
        if live is not None and waited:
            self._finish(live, "cancelled")
        self._save_ends()
        return self.job(job, owner)

    def listen(self, job: str, changed: Callable[[], None], end_only: bool = False) -> Callable[[], None]:
        """Be told of every change of a job.

        Args:
            job: Its id.
            changed: Called from other threads; must be quick.
            end_only: Be told of its end alone, and of the server's.

        Returns:
            What ends it.
        """
        return self._listeners.add(job, changed, end_only)

    def wait(self, job: str, owner: str = "", timeout_s: float | None = None) -> JobView:
        """Wait until a job has ended, for a while, or until the engine is closed.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        changed = threading.Event()
        end = self.listen(job, changed.set, end_only=True)
        try:
            while not (view := self.job(job, owner)).finished and not self._closed:
                if not changed.wait(timeout_s):
                    break
                changed.clear()
            return view
        finally:
            end()

    def stream(self, request: MusicRequest, owner: str = "") -> LiveStream:
        """Open a stream, which begins at once.

        Args:
            request: What to make, of the task `stream`.
            owner: Whose it is.

        Returns:
            The stream.

        Raises:
            MusiccmError: The request cannot be met by its model.
            Rejected: There are as many streams as are taken.
        """
        request = self._checked(replace(request, task="stream"))
        plan = planned(self.models[request.model].model, request)
        with self._changed:
            self._require_open()
            if len(self._streams) >= self.settings.max_streams:
                self._refuse(f"{len(self._streams)} streams play, the most that is taken; try again later",
                             "streams_full", 5.0)
            begun_s = now_s()
            view = JobView(secrets.token_hex(16), owner, "running", 0, plan.request.resolved(), begun_s, begun_s)
            job = StreamJob(view.id, owner, 0, view.request, 0, view.created_s, plan.units, None, self._progressed,
                            "running", view.created_s)
            model = self._at_work(job)
            stream = LiveStream(job, streamed(model, view.request), model.sample_rate_hz, self.settings.stall_s,
                                self.limits.max_stream_s, self._stream_ended)
            job.number = self._store.add(view)
            self._live[job.id], self._streams[job.id] = job, stream
        self._tell("submitted", {"task": "stream"})
        stream.thread.start()
        return stream

    def set_prompt(self, job: str, text: str, owner: str = "") -> float:
        """Change the text of a stream that plays.

        Returns:
            Seconds into the stream from which it holds.

        Raises:
            NotFound: No such stream plays.
            MusiccmError: The text is none.
        """
        self.job(job, owner)
        with self._changed:
            stream = self._streams.get(job)
        if stream is None:
            raise NotFound("no such stream plays")
        if len(text) > self.limits.max_prompt_chars:
            raise MusiccmError(f"prompt: expected at most {self.limits.max_prompt_chars} characters, found {len(text)}")
        return stream.set_prompt(text)

    def new_upload(self, owner: str = "") -> Path:
        """Where the bytes of an upload go, before `add_upload`; `end_upload` where it comes to nothing.

        Raises:
            Rejected: There are as many uploads as are kept, and jobs that have not ended need them; or as many on their
                way as are taken at once.
        """
        with self._telling():
            return self._uploads.part(owner)

    def end_upload(self, path: Path) -> None:
        """An upload is no longer on its way; what is left of it goes.

        Args:
            path: What `new_upload` gave.
        """
        self._uploads.ended(path)

    def add_upload(self, path: Path, owner: str = "") -> dict[str, Any]:
        """Take a clip in.

        Args:
            path: What `new_upload` gave, filled.
            owner: Whose it is.

        Returns:
            Its id and its length.

        Raises:
            UnsupportedAudio: It is no audio that is read.
            TooLarge: It lasts too long.
            MusiccmError: It is damaged, empty or silent.
            Rejected: See `new_upload`.
            NoRoom: The disk is full.
        """
        with self._telling():
            return self._uploads.add(path, owner)

    def remove_upload(self, upload: str, owner: str = "") -> None:
        """Remove a clip that was brought; jobs that were asked for keep it.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        self._uploads.remove(upload, owner)

    def state(self) -> EngineState:
        """What it does now."""
        with self._changed:
            running = sum(job.state == "running" for job in self._live.values()) - len(self._streams)
            return EngineState(len(self._waiting), running, len(self._streams), self.results.total_bytes)

    # ---- work

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._waiting and not self._draining))
                if self._closed:
                    return
                job = self._waiting.pop(0)
                job.state, job.started_s = "running", now_s()
                others = [other.id for other in self._waiting]
            self._tell("started", {"wait_s": job.started_s - job.created_s})
            for other in (job.id, *others):
                self._listeners.tell(other)
            try:
                self._make(job)
            except Exception:  # the table of jobs is damaged, or worse: the thread goes on with the next one
                log.exception("job %s was lost sight of; it is begun anew at the next start", job.id)

    def _make(self, job: Job) -> None:
        served = self.models[job.request.model]
        queue = self._queues[str(served.model.device)]
        source = self._source_of(job.id) if job.request.is_edit else None
        queue.at_work(1)
        try:
            assert job.started_s is not None
            self._store.started(job.id, job.started_s)
            job.check()
            made = perform(self._at_work(job), job.request, source)
            job.check()
            digest = None if source is None else file_sha256(source)
            sidecar = sidecar_json(job.request, served, made.waveform_CS, made.sample_rate_hz, digest)
            facts = self.results.write(job.id, made, sidecar)
        except BaseException as error:
            self._ended(job, error)
        else:
            rate = job.device_s / max(1, job.units)
            before = self._rates.get(served.name, rate)
            self._rates[served.name] = before + _SMOOTHING * (rate - before)
            self._finish(job, "done", result={**facts, "device_s": round(job.device_s, 4)})
        finally:
            queue.at_work(-1)

    def _ended(self, job: Job, error: BaseException) -> None:
        """What became of a job that made nothing."""
        if isinstance(error, Cancelled) and job.requeue:
            try:
                self._store.requeued(job.id)
            except NoRoom:
                log.exception("job %s could not be put back; it is taken up at the next start all the same", job.id)
            with self._changed:
                self._live.pop(job.id, None)
                self._changed.notify_all()
            return
        if isinstance(error, Cancelled):
            self._finish(job, "cancelled")
        elif isinstance(error, MusiccmError):
            kind = "no_room" if isinstance(error, NoRoom) else "failed"
            self._finish(job, "failed", {"kind": kind, "message": str(error)})
        else:
            log.error("job %s failed", job.id, exc_info=error)
            self._finish(job, "failed", {"kind": "internal", "message": f"the server failed ({type(error).__name__})"})

    def _stream_ended(self, job: StreamJob, error: BaseException | None) -> None:
        with self._changed:
            self._streams.pop(job.id, None)
        if error is None:
            self._finish(job, "done", result={"seconds": job.made_s})
        else:
            self._ended(job, error)

    def _finish(self, job: Job, state: str, error: dict[str, str] | None = None,
                result: dict[str, Any] | None = None) -> None:
        at_s = now_s()
        with self._changed:
            if job.cancelled.is_set() and not (job.requeue or isinstance(job, StreamJob)):  # it was told so already
                state, error, result = "cancelled", None, None
            self._unsaved[job.id] = replace(job.view(), state=state, finished_s=at_s, error=error, result=result)
            self._live.pop(job.id, None)
            self._changed.notify_all()
        try:
            if state == "cancelled":
                self.results.remove([job.id])  # written before it was cancelled
            self._save_ends()
            with suppress(OSError):  # what is left is removed at the next start
                self._source_of(job.id).unlink(missing_ok=True)
            self._tell("finished", {"state": state, "task": job.request.task, "result": result,
                                    "run_s": None if job.started_s is None else at_s - job.started_s})
        finally:
            self._listeners.tell(job.id, ended=True)
        self._make_room()

    def _save_ends(self) -> None:
        """Write how jobs ended, those of other threads too, and what could not be written before.

        Not under the engine's lock: until an end is on the disk nobody but its own clients has to wait.
        """
        with self._saving:
            with self._changed:
                views = list(self._unsaved.values())
            try:
                self._store.finished(views)
            except NoRoom:
                log.exception("the end of job %s could not be written; it is tried again",
                              ", ".join(view.id for view in views))
                return
            with self._changed:
                for view in views:
                    self._kept.setdefault(view.id)
                    if self._unsaved.get(view.id) is view:
                        del self._unsaved[view.id]

    def _make_room(self) -> None:
        """Remove the oldest results beyond what is kept."""
        with self._changed:
            ended = list(self._kept)
            surplus = ended[: max(0, len(ended) - self.settings.keep_jobs)]
            self.results.remove(surplus)
            for job in ended[len(surplus) : -1]:  # the newest stays in any case
                if self.results.total_bytes <= self.settings.keep_bytes:
                    break
                self.results.remove([job])
                surplus.append(job)
            if not surplus:
                return
            try:
                self._store.forget(surplus)
            except NoRoom:
                log.exception("finished jobs could not be removed from the table")
                return
            for job in surplus:
                del self._kept[job]

    def _take_up(self) -> None:
        """Jobs that an earlier process left: those that waited wait again, those that ran are begun anew."""
        self._uploads.sweep(strays=True)
        for number, starts, view in self._store.unfinished():
            job = Job(view.id, view.owner, view.priority, view.request, number, view.created_s,
                      changed=self._progressed)
            try:
                if view.request.task == "stream":
                    raise MusiccmError("the server ended while the stream played; open another")
                if view.state == "running" and starts >= MAX_STARTS:
                    raise MusiccmError(f"the server ended {starts} times while it made this; it is not begun again")
                if view.request.is_edit and not self._source_of(job.id).is_file():
                    raise MusiccmError("the clip that it is made of is no longer there; send it again")
                plan = planned(self._served(view.request.model).model, view.request)
            except MusiccmError as error:
                self._finish(job, "failed", {"kind": "interrupted", "message": str(error)})
                continue
            job.units, job.total_calls = plan.units, plan.calls
            self._live[job.id] = job
            bisect.insort(self._waiting, job, key=lambda waiting: waiting.order)
        known = {*self._store.ended(), *self._live}
        self.results.remove(self.results.names() - known)
        for path in (self.folder / "sources").iterdir():
            if path.name not in self._live:
                path.unlink(missing_ok=True)

    # ---- small things

    def _at_work(self, job: Job) -> ModelAtWork:
        served = self.models[job.request.model]
        return ModelAtWork(served.model, self._queues[str(served.model.device)], job)

    def _served(self, name: str) -> ServedModel:
        if name not in self.models:
            raise MusiccmError(f"model: expected one of {', '.join(self.models)}, found {name!r}")
        return self.models[name]

    def _checked(self, request: MusicRequest) -> MusicRequest:
        request.check(self.limits)
        self._served(request.model)
        return request

    def _require_open(self) -> None:
        if self._draining:
            self._refuse("the server is about to end; try again in a moment", "draining", 5.0)

    def _refuse(self, message: str, kind: str, retry_after_s: float) -> None:
        with self._telling():
            raise Rejected(message, kind, max(1.0, retry_after_s))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tells of what is refused within."""
        try:
            yield
        except Rejected as error:
            self._tell("rejected", {"kind": error.kind})
            raise

    def _sources(self) -> set[str]:
        """What jobs that have not ended name as their clips; the lock is held."""
        return {job.request.source for job in self._live.values() if job.request.source is not None}

    def _source_of(self, job: str) -> Path:
        return self.folder / "sources" / job

    def _source_length(self, named: str, owner: str) -> tuple[int, int] | None:
        """Samples and rate of the clip of an edit; None where there is none, which `_take_source` says."""
        if (found := self._uploads.length(named, owner)) is not None:
            return found
        try:
            made = self.job(named, owner).result or {}
        except NotFound:
            return None
        return (made["samples"], made["sample_rate_hz"]) if "samples" in made else None

    def _encode_source(self, named: str, owner: str) -> None:
        """Have a result that an edit is made of lie in its file before `_take_source`, for which all others wait."""
        with suppress(MusiccmError):  # which `_take_source` says, but for a request that came before
            if self._uploads.length(named, owner) is None and self.job(named, owner).state == "done":
                self.results.audio(named, "wav")

    def _take_source(self, named: str, owner: str, job: str) -> None:
        """Give a job a clip of its own, which stays where upload or result are removed meanwhile; the lock is held."""
        path = self._uploads.find(named, owner)
        if path is None:
            view = self._store.get(named)
            if view is None or view.owner != owner:
                raise NotFound("source: there is no such upload or job")
            path = self.results.audio(named, "wav")  # as it can be had, so that an edit can be made again from it
        with no_room():
            try:
                os.link(path, self._source_of(job))
            except OSError:  # a file system without hard links
                try:
                    shutil.copyfile(path, self._source_of(job))
                except BaseException:
                    self._source_of(job).unlink(missing_ok=True)
                    raise

    def _progressed(self, job: Job) -> None:
        self._listeners.tell(job.id)

    def _view(self, job: Job) -> JobView:
        """A job with its place and the estimate of its time; the lock is held."""
        if job.state != "queued":
            ahead = [other for other in self._live.values()
                     if other.state == "running" and other.order < job.order and not isinstance(other, StreamJob)]
            position = None
        else:
            index = self._waiting.index(job) if job in self._waiting else 0
            ahead = [*self._waiting[:index], *(other for other in self._live.values() if other.state == "running")]
            position = index
        eta_s = None if isinstance(job, StreamJob) else sum(map(self._left_s, [*ahead, job]))
        return job.view(position, eta_s)

    def _left_s(self, job: Job) -> float:
        return job.units * (1.0 - job.view().progress) * self._rates.get(job.request.model, 0.0)

    def _until_next_s(self) -> float:
        """When a running job may be done, and a place in the queue free."""
        left = [self._left_s(job) for job in self._live.values() if job.state == "running"]
        return min(left, default=1.0)
