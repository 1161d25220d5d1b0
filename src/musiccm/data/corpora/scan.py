"""One decoding of every audio file of a corpus, remembered, with what is wrong with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from musiccm.audio import AudioFacts, BadAudio, ffmpeg_formats, scan_audio
from musiccm.audio.containers import missing_end
from musiccm.audio.content import content_of
from musiccm.audio.io import OGG_SUFFIXES, SILENCE_PEAK
from musiccm.errors import MusiccmError
from musiccm.files import write_json
from musiccm.texts import escaped, load_json

log = logging.getLogger(__name__)

# Raise it when the rules below or scan_audio's change: results of older scans are then taken again.
_SCAN_VERSION = 4
# How far a file may fall short of the length that its corpus states, in seconds: encoders pad and trim their ends.
_STATED_TOLERANCE_S = 1.0
# What was found, where the reason says it all.
_DETAILS = {"silent": f"every sample is below {SILENCE_PEAK:g}", "nan": "NaN or infinite samples"}


@dataclass(frozen=True)
class Fault:
    """Why an audio file cannot be used: the reason's name and what was found."""

    reason: str
    detail: str


@dataclass(frozen=True)
class AudioFile:
    """A file to be decoded.

    Args:
        path: Where it is.
        stated_s: The length that the corpus states for it, in seconds; None where it states none.
    """

    path: Path
    stated_s: float | None = None


def examine_file(file: AudioFile, min_duration_s: float, channel: str = "mean") -> AudioFacts | Fault:
    """Decode one file and say whether it can be used.

    Args:
        file: The file.
        min_duration_s: Shorter ones are a fault.
        channel: What is read of it (`scan_audio`).

    Returns:
        Its facts; or its fault, whose reason is one of missing, zero_byte, mislabelled, truncated, unreadable, empty,
        silent, nan, too_short.
    """
    path = file.path
    try:
        if not path.stat().st_size:
            return Fault("zero_byte", "0 bytes")
        with path.open("rb") as stream:
            content = content_of(stream)
    except (FileNotFoundError, NotADirectoryError):
        return Fault("missing", "no such file")
    except OSError as error:
        return Fault("unreadable", str(error))
    kind, suffix = content.suffix, path.suffix.lower()
    if kind is not None and kind != (".ogg" if suffix in OGG_SUFFIXES else suffix):
        return Fault("mislabelled", f"named {path.suffix}, but the content is {kind[1:]}")
    try:
        facts = scan_audio(path, min_duration_s, channel)
    except BadAudio as error:
        # A file that was cut off fails in its format's own way: for the reader of the report it is one reason.
        if error.reason in ("unreadable", "empty", "too_short") and (cut := missing_end(path)):
            return Fault("truncated", cut)
        found = error.detail or _DETAILS.get(error.reason, "libsndfile cannot decode it")
        return Fault(error.reason, f"{found}: {error.advice}" if error.advice else found)
    if content.demuxer is not None and suffix not in ffmpeg_formats.SUFFIXES:
        return Fault("mislabelled", f"named {path.suffix}, but the content is {content.foreign}")
    if file.stated_s is not None and facts.duration_s < file.stated_s - _STATED_TOLERANCE_S:
        return Fault("truncated", f"{facts.duration_s:.1f} of {file.stated_s:.1f} s")
    # A FLAC that decodes to the number of samples in its header is whole.
    cut = missing_end(path) if kind != ".flac" else None
    return Fault("truncated", cut) if cut else facts


class AudioScan:
    """The remembered scan of a corpus: files are decoded again only where size or time of change differ.

    Args:
        root: The corpus; the results are kept in `<root>/.scan-<name>.json`.
        name: Whose results, such as the split's name.
        min_duration_s: Shorter files are a fault.
        workers: Threads that decode; one a core by default.
        channel: What is read of each file (`scan_audio`).
    """

    def __init__(
        self, root: Path, name: str, min_duration_s: float = 1.0, workers: int | None = None, channel: str = "mean"
    ) -> None:
        self.root, self.min_duration_s, self.workers, self.channel = root, min_duration_s, workers, channel
        # What the results depend on; others are taken again.
        self._settings = {"version": _SCAN_VERSION, "min_duration_s": min_duration_s, "channel": channel}
        self.cache_path = root / f".scan-{name}.json"
        self._known = self._read()
        self._entries: dict[str, dict[str, Any]] = {}

    def results(self, files: Sequence[AudioFile]) -> Generator[tuple[AudioFile, AudioFacts | Fault], None, None]:
        """Facts or fault of each file, in order; what was found is remembered also if the caller stops early."""
        # Threads suffice: libsndfile decodes without holding the interpreter's lock.
        pool = ThreadPoolExecutor(self.workers or os.cpu_count())
        unseen = dict(self._known)
        try:
            for file, entry in zip(files, pool.map(self._examine, files), strict=True):
                self._entries[self._name(file.path)] = entry
                yield file, _result(entry)
            unseen = {}  # what the corpus no longer names is forgotten, but not what an early stop has left
        finally:
            pool.shutdown(cancel_futures=True)
            self._entries = {**unseen, **self._entries}
            self._save()

    def _name(self, path: Path) -> str:
        return escaped(path.relative_to(self.root))

    def _examine(self, file: AudioFile) -> dict[str, Any]:
        remembered = self._known.get(self._name(file.path))
        if remembered and remembered.get("stamp") == _stamp(file.path):
            return dict(remembered)
        found = examine_file(file, self.min_duration_s, self.channel)
        result = {"facts": asdict(found)} if isinstance(found, AudioFacts) else asdict(found)
        return {"stamp": _stamp(file.path), **result}

    def _save(self) -> None:
        if self._entries != self._known:
            fresh = {**self._settings, "files": self._entries}
            write_if_possible(self.cache_path, lambda: write_json(self.cache_path, fresh))
            self._known = {name: dict(entry) for name, entry in self._entries.items()}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            cache = load_json(self.cache_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        same = isinstance(cache, dict) and all(cache.get(key) == value for key, value in self._settings.items())
        files = cache.get("files") if same else None
        return files if isinstance(files, dict) else {}


def _result(entry: dict[str, Any]) -> AudioFacts | Fault:
    return AudioFacts(**entry["facts"]) if "facts" in entry else Fault(entry["reason"], entry["detail"])


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def write_if_possible(path: Path, write: Callable[[], None]) -> None:
    """Corpora often lie on read-only storage: what is written beside them is a convenience, so say so and go on."""
    try:
        write()
    except MusiccmError as error:
        log.warning("%s", error)
