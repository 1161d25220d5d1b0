"""The endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import io
import json
import queue
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Header, Query, Request, Response, status
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from musiccm import __version__
from musiccm.audio.wav_stream import WavStream
from musiccm.errors import MusiccmError, naming
from musiccm.failures import error_number
from musiccm.serving.engine import Engine
from musiccm.serving.errors import NoRoom, NotFound
from musiccm.serving.evidence import EvidenceOf
from musiccm.serving.http import problems, schema
from musiccm.serving.http.evidence import add_evidence
from musiccm.serving.http.gate import OPEN_PATHS, Gate, Keys, Patience
from musiccm.serving.http.metrics import Metrics
from musiccm.serving.http.page import add_page, page_files
from musiccm.serving.jobs import JobView
from musiccm.serving.store import Once
from musiccm.serving.streams import LiveStream

MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}
_WHOLE_BYTES = 2**22  # of samples: a minute of one channel at 16 kHz
_LOOK_S = 0.5  # how often it is looked whether a stream's client is still there, and whether the server ends

_ALWAYS = problems.documented(400, 401, 413, 415, 422, 429, 500, 503, 507)
_READS = problems.documented(401, 404, 422, 500)


def make_app(
    engine: Engine, metrics: Metrics, keys: Keys, patience: Patience | None = None, any_host: bool = False,
    page: bool = False,
) -> FastAPI:
    """The app in front of an engine.

    Args:
        engine: The engine, started; whoever made it closes it.
        metrics: What the engine tells its events.
        keys: Who may come in; none for everybody who reaches it.
        patience: How long clients are waited for.
        any_host: See `Gate`.
        page: Serve the page to make music on at `/`, to everybody; it asks for the key.

    Returns:
        An ASGI app.
    """
    app = FastAPI(
        title="musiccm", version=__version__, docs_url=None, redoc_url=None, responses=problems.documented(421),
        summary="Text to music in a few steps", dependencies=[Depends(HTTPBearer(auto_error=False))] if keys else [])
    files = page_files() if page else {}
    app.add_middleware(Gate, keys=keys, upload_bytes=engine.limits.max_upload_bytes, patience=patience,
                       any_host=any_host, open_paths=files, posts=lambda scope: "POST" in problems.methods(app, scope))
    problems.install(app)
    _describe(app, engine)
    metrics.state = engine.state
    app.state.engine = engine
    app.state.metrics = metrics
    app.state.default_model = next(iter(engine.models))
    _add_state(app)
    _add_generate(app)
    _add_jobs(app)
    _add_results(app)
    add_evidence(app, EvidenceOf(engine), _result)
    add_page(app, files)
    return app


def _describe(app: FastAPI, engine: Engine) -> None:
    """Let OpenAPI state the bounds of this engine, beside what is the same of all, and which paths need no key."""
    described = app.openapi

    def bounded() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = schema.bounded(described(), engine.limits, list(engine.models))
            for path in OPEN_PATHS:
                for operation in app.openapi_schema["paths"].get(path, {}).values():
                    operation.pop("security", None)
        return app.openapi_schema

    app.openapi = bounded  # type: ignore[method-assign]


def _engine(request: Request) -> Engine:
    return request.app.state.engine


def _owner(request: Request) -> str:
    return request.scope.get("state", {}).get("owner") or ""


def _own_job(job: str, engine: EngineOf, owner: OwnerOf) -> JobView:
    return engine.job(job, owner)


EngineOf = Annotated[Engine, Depends(_engine)]
OwnerOf = Annotated[str, Depends(_owner)]
JobOf = Annotated[JobView, Depends(_own_job)]
KeyOf = Annotated[str | None, Header(
    alias="Idempotency-Key", pattern=r'^"?[A-Za-z0-9._:~+/=-]{1,128}"?$',
    description="a name of the client's for the request: sent again with it, a request gives the same job, as long as "
                "the server keeps that")]


def _once(key: str | None, endpoint: str, body: BaseModel) -> Once | None:
    """What names a request for its client; the draft of the header has it in quotes, which many leave out."""
    if key is None:
        return None
    stated = json.dumps([endpoint, body.model_dump(exclude_none=True)], sort_keys=True)
    return Once(key.strip('"'), hashlib.sha256(stated.encode()).hexdigest())


def _add_state(app: FastAPI) -> None:
    @app.get("/health", tags=["server"])
    def health(engine: EngineOf) -> schema.Health:
        """Whether the server lives."""
        state = engine.state()
        return schema.Health(status="draining" if engine.draining else "ok", version=__version__, queued=state.queued,
                             running=state.running, streams=state.streams)

    @app.get("/ready", tags=["server"], responses=problems.documented(503))
    def ready(engine: EngineOf) -> Response:
        """Whether it takes jobs."""
        if engine.ready and not engine.draining:
            return JSONResponse({"status": "ready"})
        return problems.problem(503, "the server begins or ends", "draining", {"Retry-After": "5"})

    @app.get("/metrics", tags=["server"], response_class=Response, responses=problems.documented(401))
    def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", tags=["models"], responses=problems.documented(401))
    def models(engine: EngineOf) -> schema.ModelList:
        """The models that are served."""
        return schema.ModelList(data=[
            schema.Model(id=name, content_hash=served.content_hash, default=name == app.state.default_model,
                         facts={**served.facts, **served.settings, "max_seconds": engine.limits.max_seconds})
            for name, served in engine.models.items()])


def _add_generate(app: FastAPI) -> None:
    audio = {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()},
             "description": "the sound; X-Musiccm-Job and X-Musiccm-Seed name job and seed"}

    @app.post("/v1/audio/generate", tags=["generate"], response_class=Response, responses={**_ALWAYS, 200: audio})
    async def generate(
        body: schema.GenerateBody, request: Request, engine: EngineOf, owner: OwnerOf, key: KeyOf = None
    ) -> Response:
        """Make music and wait for it; with `stream`, it comes while it is made.

        A client that goes away ends it, but for one that named it by an `Idempotency-Key` and may come again.
        """
        asked, once = body.request(app.state.default_model), _once(key, "generate", body)
        with naming(body.names):
            if body.stream and once is not None:
                raise MusiccmError("stream: a stream plays once; leave out Idempotency-Key")
            if body.stream:
                return _Wav(await _run(engine.stream, asked, owner))
            view = await _run(engine.submit, asked, owner, 0, once)
        view = await _ended(engine, view, owner, request, stays=once is not None)
        if view.state != "done":
            return _unmade(view)
        return await _run(_answer, engine, view.id, body.response_format, _named(view.id, view.request.seed))


def _add_jobs(app: FastAPI) -> None:
    @app.post("/v1/jobs", tags=["jobs"], status_code=status.HTTP_202_ACCEPTED,
              responses={**_ALWAYS, **problems.documented(404)})
    def submit(
        body: schema.JobBody, response: Response, engine: EngineOf, owner: OwnerOf, key: KeyOf = None
    ) -> schema.Job:
        """Ask for music, which waits in the queue."""
        asked = body.request(app.state.default_model)
        with naming(body.names):
            view = engine.submit(asked, owner, body.priority, _once(key, "jobs", body))
        response.headers["Location"] = f"/v1/jobs/{view.id}"
        return schema.Job.of(view)

    @app.get("/v1/jobs", tags=["jobs"], responses=problems.documented(401, 422))
    def jobs(engine: EngineOf, owner: OwnerOf, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> schema.JobList:
        """The last jobs, the newest first."""
        return schema.JobList(jobs=[schema.Job.of(view) for view in engine.jobs(owner, limit)])

    @app.get("/v1/jobs/{job}", tags=["jobs"], responses=_READS)
    def job(found: JobOf) -> schema.Job:
        """A job as it is now."""
        return schema.Job.of(found)

    @app.delete("/v1/jobs/{job}", tags=["jobs"], responses=_READS)
    def cancel(job: str, engine: EngineOf, owner: OwnerOf) -> schema.Job:
        """End a job: one that waits at once, one that runs before its next network call."""
        return schema.Job.of(engine.cancel(job, owner))

    @app.get("/v1/jobs/{job}/events", tags=["jobs"], response_class=EventSourceResponse, responses=_READS)
    async def events(found: JobOf, engine: EngineOf, owner: OwnerOf) -> AsyncIterator[ServerSentEvent]:
        """Every change of a job until it has ended: queued, running, then done, failed or cancelled."""
        number = 0
        async for view in _changes(engine, found.id, owner):
            number += 1
            yield ServerSentEvent(data=schema.Job.of(view).model_dump(), event=view.state, id=str(number))

    @app.post("/v1/jobs/{job}/prompt", tags=["jobs"], responses={**_ALWAYS, **_READS})
    def change(job: str, body: schema.PromptBody, engine: EngineOf, owner: OwnerOf) -> dict[str, float]:
        """Change the text of a stream that plays; says from which second on it holds."""
        return {"from": engine.set_prompt(job, body.prompt, owner)}

    content: dict[str, Any] = {kind: {"schema": {"type": "string", "format": "binary"}}
                               for kind in ("audio/*", "application/octet-stream")}

    # Threads of their own: those that other endpoints run on are not to wait for clips that take long to read.
    reading = anyio.CapacityLimiter(2)
    created = {"links": {"remove": {"operationId": "remove_upload", "parameters": {"upload": "$response.body#/id"}}}}

    @app.post("/v1/uploads", tags=["jobs"], status_code=status.HTTP_201_CREATED,
              responses={**_ALWAYS, **problems.documented(408), 201: created},
              openapi_extra={"requestBody": {"required": True, "content": content}})
    async def upload(request: Request, engine: EngineOf, owner: OwnerOf) -> schema.Upload:
        """Bring a clip to edit, as the body: wav, flac, ogg or mp3."""
        path = await _run(engine.new_upload, owner)
        try:
            await _receive(request, path)
            read = functools.partial(engine.add_upload, path, owner)
            return schema.Upload(**await anyio.to_thread.run_sync(read, limiter=reading))
        finally:
            engine.end_upload(path)

    @app.delete("/v1/uploads/{upload}", tags=["jobs"], status_code=status.HTTP_204_NO_CONTENT,
                operation_id="remove_upload",
                responses=problems.documented(401, 404, 422, 500, 507))
    def remove_upload(upload: str, engine: EngineOf, owner: OwnerOf) -> None:
        """Remove a clip that was brought; jobs that were asked for keep it."""
        engine.remove_upload(upload, owner)


def _add_results(app: FastAPI) -> None:
    audio = {"content": {kind: {} for kind in MEDIA_TYPES.values()}, "description": "the sound"}
    reads = {**_READS, **problems.documented(409, 507)}

    @app.get("/v1/jobs/{job}/audio", tags=["results"], response_class=FileResponse, responses={**reads, 200: audio})
    def sound(
        found: JobOf, engine: EngineOf, form: Annotated[schema.Format, Query(alias="format")] = "wav"
    ) -> Response:
        """What a job made; ranges of bytes can be asked for."""
        named = {"Content-Disposition": f'inline; filename="{found.id[:12]}.{form}"'}
        return _result(found, lambda: _sound(engine, found.id, form, named))

    @app.get("/v1/jobs/{job}/spectrogram.png", tags=["results"], response_class=FileResponse,
             responses={**reads, 200: {"content": {"image/png": {}}, "description": "time to the right"}})
    def spectrogram(found: JobOf, engine: EngineOf) -> Response:
        """A picture of what a job made."""
        return _result(found, lambda: FileResponse(engine.results.spectrogram(found.id), media_type="image/png"))

    @app.get("/v1/jobs/{job}/sidecar", tags=["results"], response_class=FileResponse,
             responses={**reads, 200: {"content": {"application/json": {}}, "description": "all parameters"}})
    def sidecar(found: JobOf, engine: EngineOf) -> Response:
        """What `musiccm generate --from-sidecar` makes the same samples from."""
        return _result(found, lambda: FileResponse(engine.results.sidecar(found.id), media_type="application/json",
                                                   filename=f"{found.id[:12]}.json"))


def _result(view: JobView, answer: Callable[[], Response]) -> Response:
    if view.state == "done":
        if view.request.task == "stream":
            raise NotFound("a stream's sound is kept nowhere")
        return answer()
    if not view.finished:
        return problems.problem(409, f"the job is {view.state}; its result is there once it is done", "not_done")
    return _unmade(view, 409)


def _sound(engine: Engine, job: str, form: str, headers: dict[str, str]) -> Response:
    """A result in a format; where the disk has no room for it, from memory and as a whole."""
    try:
        return FileResponse(engine.results.audio(job, form), media_type=MEDIA_TYPES[form], headers=headers)
    except NoRoom:
        return Response(engine.results.in_memory(job, form), media_type=MEDIA_TYPES[form], headers=headers)


def _answer(engine: Engine, job: str, form: str, headers: dict[str, str]) -> Response:
    """A result for a client that waited: at once and as a whole, but for a long one, which is sent from its file."""
    if engine.results.samples(job).stat().st_size > _WHOLE_BYTES:
        return _sound(engine, job, form, headers)
    return Response(engine.results.in_memory(job, form), media_type=MEDIA_TYPES[form], headers=headers)


def _unmade(view: JobView, otherwise: int | None = None) -> Response:
    """What is said of a job that made nothing."""
    if view.state == "cancelled":
        return problems.problem(otherwise or 409, "the job was cancelled", "cancelled")
    if not view.finished:
        return problems.problem(503, "the server ends; the job is made when it is there again, under its id "
                                     f"{view.id}", "draining", {"Retry-After": "5"})
    error = view.error or {"kind": "failed", "message": "the job failed"}
    status_of = {"no_room": 507, "internal": 500}
    return problems.problem(otherwise or status_of.get(error["kind"], 422), error["message"], error["kind"])


def _named(job: str, seed: int | None) -> dict[str, str]:
    return {"X-Musiccm-Job": job, "X-Musiccm-Seed": str(seed)}


async def _run(work: Callable[..., Any], *args: Any) -> Any:
    """Do on another thread what may wait for the disk or a lock."""
    return await anyio.to_thread.run_sync(functools.partial(work, *args))


def _set_soon(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the server ends, and its loop is closed
        loop.call_soon_threadsafe(changed.set)


def _given_up(engine: Engine, view: JobView) -> bool:
    """Whether a job that is not finished will not be before the server's next start."""
    return engine.overdue or (engine.draining and view.state == "queued")


async def _came(changed: asyncio.Event, within_s: float) -> bool:
    try:
        await asyncio.wait_for(changed.wait(), within_s)
    except (TimeoutError, asyncio.TimeoutError):
        return False
    return True


async def _changes(engine: Engine, job: str, owner: str) -> AsyncIterator[JobView]:
    """A job now and after every change, of which those that come faster than they are taken are one."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    end = engine.listen(job, functools.partial(_set_soon, loop, changed))
    try:
        while True:
            view = await _run(engine.job, job, owner)
            yield view
            if view.finished or _given_up(engine, view):
                return
            while not await _came(changed, _LOOK_S):
                if engine.overdue:
                    return
            changed.clear()
    finally:
        end()


async def _ended(engine: Engine, view: JobView, owner: str, request: Request, stays: bool) -> JobView:
    """Wait for a job whose client waits; where that goes away, the job is cancelled unless it `stays`."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    # not told of each call and place in the queue: many that wait would be woken by every job that begins
    end = engine.listen(view.id, functools.partial(_set_soon, loop, changed), end_only=True)
    gone = asyncio.ensure_future(_gone(request))
    try:
        while True:
            view = await _run(engine.job, view.id, owner)
            if view.finished or _given_up(engine, view):
                return view
            told = asyncio.ensure_future(changed.wait())
            try:
                while not (told.done() or gone.done() or engine.overdue):
                    await asyncio.wait((told, gone), timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                told.cancel()
            changed.clear()
            if gone.done():
                return view if stays else await _run(engine.cancel, view.id, owner)
    except asyncio.CancelledError:
        if not stays:
            engine.cancel(view.id, owner)
        raise
    finally:
        gone.cancel()
        end()


async def _gone(request: Request) -> None:
    """Wait until a client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Sink(io.RawIOBase):
    """What a wav is written to before it is sent."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        found = b"".join(self._parts)
        self._parts.clear()
        return found


class _Wav(StreamingResponse):
    """A stream as a wav; it is closed however its client ends."""

    def __init__(self, stream: LiveStream) -> None:
        super().__init__(_wav(stream), media_type="audio/wav", headers=_named(stream.job.id, stream.job.request.seed))
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _wav(stream: LiveStream) -> AsyncIterator[bytes]:
    sink = _Sink()
    wav = WavStream(sink, stream.sample_rate_hz, stream.samples)  # type: ignore[arg-type]
    yield sink.taken()
    while True:
        try:
            chunk = await _run(stream.take, _LOOK_S)
        except queue.Empty:
            continue
        if chunk is None:
            return
        wav.write(chunk)
        yield sink.taken()


async def _receive(request: Request, path: Path) -> None:
    """Write a body to a file.

    Raises:
        NoRoom: The disk is full.
    """
    try:
        async with await anyio.open_file(path, "xb") as file:
            async for chunk in request.stream():
                await file.write(chunk)
    except OSError as error:
        if error_number(error) is None:
            raise
        raise NoRoom("the server's disk is full or takes no files; try again later") from error
