"""Music for many: an engine that queues, batches and keeps jobs, and the HTTP server in front of it (`http/`)."""

from musiccm.serving.engine import Engine, EngineSettings
from musiccm.serving.errors import Cancelled, NotFound, Rejected, TooLarge
from musiccm.serving.jobs import JobView
from musiccm.serving.limits import Limits
from musiccm.serving.loading import ServedModel, load_model
from musiccm.serving.request import MusicRequest

__all__ = ["Cancelled", "Engine", "EngineSettings", "JobView", "Limits", "MusicRequest", "NotFound", "Rejected",
           "ServedModel", "TooLarge", "load_model"]
