"""Bodies of requests and answers, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from musiccm.bounds import LEVELS, MAX_GUIDANCE_SCALE
from musiccm.errors import MusiccmError
from musiccm.serving.jobs import JobView
from musiccm.serving.limits import Limits
from musiccm.serving.request import EDITS, MAX_SEED, MusicRequest
from musiccm.serving.results import FORMATS

MAX_PRIORITY = 10

Level = Literal["none", "peak", "loudness"]
Format = Literal["wav", "flac", "ogg", "mp3"]
assert set(LEVELS) == {"none", "peak", "loudness"} and set(FORMATS) == {"wav", "flac", "ogg", "mp3"}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class PromptAt(_Body):
    """A text and when it begins."""

    at: float = Field(ge=0, description="seconds; 0 for the first text, before the music ends")
    text: str = Field(min_length=1)


class JobBody(_Body):
    """What `POST /v1/jobs` takes."""

    task: Literal["generate", "compose", "continue", "inpaint", "vary"] = "generate"
    prompt: str | None = Field(None, min_length=1, description="what the music should be like")
    prompts: list[PromptAt] | None = Field(None, min_length=1, description="texts along time, in place of `prompt`")
    model: str | None = Field(None, description="one of /v1/models; the first by default")
    seconds: float | None = Field(None, gt=0, description="length; of `continue`, of clip and continuation together")
    steps: int | None = Field(None, ge=1, description="sampling steps; the model's own by default")
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="of the noise; drawn where it is left out or -1")
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE)
    sampler: str | None = Field(None, description="ddim, lcm, tcd, heun or dpm-solver++, as suits the model")
    gamma: float | None = Field(None, ge=0, le=1, description="of a student's sampler: share of fresh noise")
    schedule: str | None = Field(None, description="of a teacher's sampler: how its noise levels lie")
    level: Level | None = Field(None, description="loudness by default; edits keep the level of their clip")
    overlap: float | None = Field(None, ge=0, lt=1)
    fusion: str | None = Field(None, description="uniform, triangular or swap")
    strength: float | None = Field(None, gt=0, le=1, description="how much `vary` changes")
    from_: float | None = Field(None, alias="from", ge=0, description="start of the range to `inpaint`, in seconds")
    to: float | None = Field(None, gt=0, description="its end")
    source: str | None = Field(None, description="the clip to edit: id of an upload or of a finished job")
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="larger ones are made first")

    @property
    def names(self) -> dict[str, str]:
        """What the engine calls otherwise: it has one text as the first of several."""
        return {} if self.prompts is None else {"prompt": "prompts.0.text"}

    def request(self, default_model: str) -> MusicRequest:
        """What the engine takes.

        Args:
            default_model: The model where none is named.

        Returns:
            The request.

        Raises:
            MusiccmError: There is neither a text nor texts along time, or both.
        """
        if (self.prompt is None) == (self.prompts is None):
            raise MusiccmError("prompt: expected either prompt or prompts, found "
                               f"{'neither' if self.prompt is None else 'both'}")
        entries = tuple((entry.at, entry.text) for entry in self.prompts or ()) or ((0.0, self.prompt or ""),)
        given = {"name": self.sampler, "gamma": self.gamma, "schedule": self.schedule}
        sampler = {key: value for key, value in given.items() if value is not None} or None
        return MusicRequest(
            default_model if self.model is None else self.model, entries, self.task, self.seconds, self.steps,
            None if self.seed in (None, -1) else self.seed, self.guidance_scale, sampler, self.level, self.overlap,
            self.fusion, self.strength, self.from_, self.to, self.source)


class GenerateBody(_Body):
    """What `POST /v1/audio/generate` takes: the field names of vLLM-Omni, and `stream`."""

    #: What the engine calls otherwise.
    names: ClassVar[dict[str, str]] = {"prompt": "input", "prompts": "input", "seconds": "audio_length",
                                       "steps": "num_inference_steps"}

    input: str = Field(min_length=1, validation_alias=AliasChoices("input", "prompt"),
                       description="what the music should be like; `prompt` is another name of it")
    model: str | None = Field(None, description="one of /v1/models; the first by default")
    response_format: Format = "wav"
    audio_length: float | None = Field(None, gt=0, description="seconds; those of the model's clips by default")
    audio_start: float | None = Field(None, description="0, or left out: these models have no such condition")
    negative_prompt: str | None = Field(None, description="empty, or left out: these models take none")
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE)
    num_inference_steps: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-1, le=MAX_SEED)
    level: Level | None = None
    stream: bool = Field(False, description="send a wav while it is made")

    def request(self, default_model: str) -> MusicRequest:
        """What the engine takes.

        Args:
            default_model: The model where none is named.

        Returns:
            The request.

        Raises:
            MusiccmError: A field asks for what these models cannot do.
        """
        if self.audio_start not in (None, 0):
            raise MusiccmError(f"audio_start: expected 0, found {self.audio_start:g}; these models always begin at the "
                               "beginning")
        if self.negative_prompt:
            raise MusiccmError("negative_prompt: these models take none; leave it out")
        if self.stream and self.response_format != "wav":
            raise MusiccmError(f"response_format: a stream is a wav, found {self.response_format}; leave out stream, "
                               "or ask for wav")
        return MusicRequest(
            default_model if self.model is None else self.model, ((0.0, self.input),),
            "stream" if self.stream else "generate",
            self.audio_length, self.num_inference_steps, None if self.seed in (None, -1) else self.seed,
            self.guidance_scale, None, self.level)


#: Bounds of an engine, by body and field: the keyword of JSON's schema, and the name in `Limits`.
_BOUNDS = {
    "JobBody": {"prompt": ("maxLength", "max_prompt_chars"), "prompts": ("maxItems", "max_prompts"),
                "seconds": ("maximum", "max_seconds"), "steps": ("maximum", "max_steps"),
                "from": ("maximum", "max_upload_s"), "to": ("maximum", "max_upload_s")},
    "GenerateBody": {"input": ("maxLength", "max_prompt_chars"), "audio_length": ("maximum", "max_stream_s"),
                     "num_inference_steps": ("maximum", "max_steps")},
    "PromptAt": {"at": ("maximum", "max_at_s"), "text": ("maxLength", "max_prompt_chars")},
    "PromptBody": {"prompt": ("maxLength", "max_prompt_chars")},
}


def bounded(described: dict[str, Any], limits: Limits, models: list[str]) -> dict[str, Any]:
    """Write what an engine takes into a description.

    Args:
        described: OpenAPI's description of the bodies above, which is changed.
        limits: Bounds of the engine.
        models: Names of its models.

    Returns:
        The description.
    """
    bodies = described["components"]["schemas"]
    for body, fields in _BOUNDS.items():
        for name, (keyword, limit) in fields.items():
            _value(bodies[body]["properties"][name])[keyword] = getattr(limits, limit)
    for body in ("JobBody", "GenerateBody"):
        _value(bodies[body]["properties"]["model"])["enum"] = models
        _value(bodies[body]["properties"]["seed"])["maximum"] = MAX_SEED  # which a float, as FastAPI writes it, is not
    length = bodies["GenerateBody"]["properties"]["audio_length"]
    length["description"] += f"; at most {limits.max_seconds:g} without `stream`"
    return described


def _value(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's value where it is given."""
    return next((one for one in field.get("anyOf", ()) if one.get("type") != "null"), field)


class PromptBody(_Body):
    """What `POST /v1/jobs/{id}/prompt` takes."""

    prompt: str = Field(min_length=1)


class Job(BaseModel):
    """A job as clients see it."""

    id: str
    task: str
    model: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    priority: int
    seed: int | None
    position: int | None = Field(description="jobs that are taken up before it; null once it runs")
    eta_s: float | None = Field(description="seconds until it is done, as estimated")
    progress: float = Field(ge=0, le=1)
    calls: int = Field(description="network calls so far")
    total_calls: int | None
    step: int
    steps: int
    created_s: float
    started_s: float | None
    finished_s: float | None
    error: dict[str, str] | None
    result: dict[str, Any] | None
    request: dict[str, Any] = Field(description="all parameters as they are used")
    links: dict[str, str]

    @classmethod
    def of(cls, view: JobView) -> Job:
        """A job of the engine's."""
        own = f"/v1/jobs/{view.id}"
        links = {"self": own, "events": f"{own}/events"}
        if view.state == "done" and view.request.task != "stream":
            links |= {name: f"{own}/{name}" for name in ("audio", "sidecar")}
            links["spectrogram"] = f"{own}/spectrogram.png"
        result = None if view.result is None else {k: v for k, v in view.result.items() if k != "form"}
        return cls(
            id=view.id, task=view.request.task, model=view.request.model, state=view.state,  # type: ignore[arg-type]
            priority=view.priority, seed=view.request.seed, position=view.position,
            eta_s=None if view.eta_s is None else round(view.eta_s, 3), progress=view.progress, calls=view.calls,
            total_calls=view.total_calls, step=view.step, steps=view.steps, created_s=view.created_s,
            started_s=view.started_s, finished_s=view.finished_s, error=view.error, result=result,
            request=view.request.to_json(), links=links)


class JobList(BaseModel):
    """The last jobs of a key, the newest first."""

    jobs: list[Job]


class Upload(BaseModel):
    """A clip that was taken in."""

    id: str
    seconds: float
    bytes: int


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "musiccm"
    content_hash: str
    default: bool
    facts: dict[str, Any]


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether the server lives, and what it does."""

    status: Literal["ok", "draining"]
    version: str
    queued: int
    running: int
    streams: int


__all__ = ["EDITS", "Format", "GenerateBody", "Health", "Job", "JobBody", "JobList", "Model", "ModelList",
           "PromptBody", "Upload"]
