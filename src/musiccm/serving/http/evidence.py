"""The endpoint of what can be said of a result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from musiccm.serving.errors import Rejected
from musiccm.serving.evidence import EvidenceOf
from musiccm.serving.http import problems
from musiccm.serving.jobs import JobView

MAX_WAITING = 8
"""Requests for evidence at once, of which one is answered at a time."""


class NearestClip(BaseModel):
    """The training clip that a result is nearest to."""

    clip: str = Field(description="its id in the index of training clips")
    cosine: float = Field(description="of CLAP's embeddings of the nearest windows; 1 is the same to CLAP")
    at_s: float = Field(description="where the window of the result begins")
    clip_at_s: float = Field(description="where that of the training clip begins")


class JobEvidence(BaseModel):
    """What can be said of a result."""

    text_audio: float | None = Field(description="cosine of CLAP's embeddings of text and sound, mean over windows")
    nearest: NearestClip | None
    training_clips: int = Field(description="clips that were searched")
    notes: list[str] = Field(description="why something is missing")


def _own_job(job: str, request: Request) -> JobView:
    return request.app.state.engine.job(job, request.scope.get("state", {}).get("owner") or "")


FoundJob = Annotated[JobView, Depends(_own_job)]


def add_evidence(app: FastAPI, of: EvidenceOf, answered: Callable[[JobView, Callable[[], Response]], Response]) -> None:
    """Add the endpoint.

    Args:
        app: The app, whose metrics are told of who finds no room.
        of: What computes it.
        answered: Answers for a job that has made nothing, and asks for the result of one that has.
    """
    # A thread of its own: those that other endpoints run on are not to wait for evidence.
    thread, waiting = anyio.CapacityLimiter(1), 0

    @app.get("/v1/jobs/{job}/evidence", tags=["results"], response_model=JobEvidence,
             responses=problems.documented(401, 404, 409, 422, 429, 500))
    async def evidence(found: FoundJob) -> Response:
        """How well a result answers its text, and the training clip it is nearest to; computed when asked for."""
        nonlocal waiting
        if waiting >= MAX_WAITING:
            app.state.metrics.told("rejected", {"kind": "evidence_full"})
            raise Rejected(f"{waiting} requests for evidence wait, the most that is taken; try again later",
                           "evidence_full", 5.0)
        waiting += 1
        try:
            answer = functools.partial(answered, found, lambda: JSONResponse(of(found).to_json()))
            return await anyio.to_thread.run_sync(answer, limiter=thread)
        finally:
            waiting -= 1
