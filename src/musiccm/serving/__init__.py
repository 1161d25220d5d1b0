"""Music for many: an engine that queues, batches and keeps jobs, and the HTTP server in front of it (`http/`)."""

from musiccm.serving.engine import Engine, EngineSettings
from musiccm.serving.errors import Cancelled, KeyReused, NotFound, Rejected, TooLarge
from musiccm.serving.jobs import JobView
from musiccm.serving.limits import Limits
from musiccm.serving.loading import ServedModel, load_model
from musiccm.serving.request import MusicRequest
from musiccm.serving.store import Once

__all__ = ["Cancelled", "Engine", "EngineSettings", "JobView", "KeyReused", "Limits", "MusicRequest", "NotFound",
           "Once", "Rejected", "ServedModel", "TooLarge", "load_model"]
