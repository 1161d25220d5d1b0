"""The clips that clients brought: so many a key and in all; the least recently used makes room."""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musiccm.audio.io import BadAudio, open_audio
from musiccm.files import file_sha256
from musiccm.serving.errors import NotFound, Rejected
from musiccm.serving.jobs import now_s
from musiccm.serving.limits import Limits
from musiccm.serving.results import no_room
from musiccm.serving.store import KeptUpload, Store
from musiccm.serving.uploads import check_upload


class KeptUploads:
    """The folder of uploads.

    When an upload was last used is the time of its file, which outlives the process.

    Args:
        folder: The folder, which exists.
        store: The table of uploads.
        limits: Bounds.
        lock: Held while uploads change; it can be taken again by who holds it.
        needed: Ids that jobs name which have not ended; called with the lock held.
    """

    def __init__(
        self, folder: Path, store: Store, limits: Limits, lock: threading.Condition, needed: Callable[[], set[str]]
    ) -> None:
        self._folder, self._store, self._limits, self._lock, self._needed = folder, store, limits, lock, needed
        self._coming: set[Path] = set()

    def part(self, owner: str) -> Path:
        """Where the bytes of an upload go while they come.

        Args:
            owner: Whose it is.

        Returns:
            The path of a file that is not there yet; who asks gives it to `add`, or else to `ended`.

        Raises:
            Rejected: There is no room, and jobs that have not ended need all that is kept; or as many come already as
                are taken at once.
        """
        self.sweep()
        with self._lock:
            self._in_the_way(owner)
            if len(self._coming) >= self._limits.max_uploading:
                raise Rejected(f"{len(self._coming)} uploads are on their way, the most that is taken at once; try "
                               "again later", "uploads_full", 5.0)
            path = self._folder / f".{secrets.token_hex(16)}.part"
            self._coming.add(path)
        return path

    def ended(self, path: Path) -> None:
        """An upload is no longer on its way; what is left of it goes.

        Args:
            path: What `part` gave.
        """
        path.unlink(missing_ok=True)
        with self._lock:
            self._coming.discard(path)

    def add(self, path: Path, owner: str) -> dict[str, Any]:
        """Take a clip in, and remove what makes room for it.

        Args:
            path: What `part` gave, filled.
            owner: Whose it is.

        Returns:
            Its `id`, `seconds` and `bytes`.

        Raises:
            UnsupportedAudio, TooLarge, MusiccmError: See `check_upload`.
            Rejected: See `part`.
            NoRoom: The disk is full; nothing is left of it.
        """
        try:
            return self._added(path, owner)
        finally:
            self.ended(path)

    def _added(self, path: Path, owner: str) -> dict[str, Any]:
        seconds, size, digest = check_upload(path, self._limits), path.stat().st_size, file_sha256(path)
        upload = secrets.token_hex(16)
        with self._lock:
            for kept in self._in_the_way(owner):
                self._drop(kept)
            try:
                with no_room():
                    path.rename(self._folder / upload)
                self._store.add_upload(upload, owner, now_s(), size, seconds, digest)
            except BaseException:
                (self._folder / upload).unlink(missing_ok=True)
                raise
        return {"id": upload, "seconds": seconds, "bytes": size}

    def find(self, upload: str, owner: str) -> Path | None:
        """The file of somebody's upload, which counts as used now; the lock is held.

        Returns:
            The file; None where there is none.
        """
        path = self._folder / upload
        if self._store.upload(upload, owner) is None or not path.is_file():
            return None
        os.utime(path)
        return path

    def length(self, upload: str, owner: str) -> tuple[int, int] | None:
        """How long somebody's upload is; its header is read, so that the lock must not be held.

        Returns:
            Samples a channel, and their rate; None where there is none.
        """
        seconds = self._store.upload(upload, owner)
        if seconds is None:
            return None
        try:
            with open_audio(self._folder / upload) as file:
                return round(seconds * file.samplerate), file.samplerate
        except BadAudio:  # it was removed meanwhile
            return None

    def remove(self, upload: str, owner: str) -> None:
        """Remove somebody's upload; jobs that were asked for have copies of their own.

        Raises:
            NotFound: There is none, or it is somebody else's.
        """
        with self._lock:
            if self._store.upload(upload, owner) is None:
                raise NotFound("there is no such upload; they are kept for a while only")
            self._drop(upload)

    def sweep(self, strays: bool = False) -> None:
        """Remove what has been kept for long enough.

        Args:
            strays: Also files that no table knows, as a process that was killed leaves them.
        """
        with self._lock:
            needed, now = self._needed(), now_s()
            for kept in self._store.uploads():
                if kept.id not in needed and now - kept.created_s > self._limits.upload_life_s:
                    self._drop(kept.id)
            if strays:
                known = {kept.id for kept in self._store.uploads()}
                for path in self._folder.iterdir():
                    if path.name not in known:
                        path.unlink(missing_ok=True)

    def _in_the_way(self, owner: str) -> list[str]:
        """Uploads that go when somebody brings another: their own, or else of who has most."""
        kept, needed = self._store.uploads(), self._needed()
        counts = Counter(upload.owner for upload in kept)
        free = sorted((upload for upload in kept if upload.id not in needed), key=self._used_s)
        going: list[str] = []
        own = counts[owner] - self._limits.max_uploads_a_key + 1
        if own > 0:
            found = [upload.id for upload in free if upload.owner == owner]
            if len(found) < own:
                raise _full(f"your jobs need all {counts[owner]} uploads, the most that is kept a key")
            going += found[:own]
        for _ in range(len(kept) - len(going) - self._limits.max_uploads + 1):
            left = [upload for upload in free if upload.id not in going]
            if not left:
                raise _full(f"jobs need all {len(kept)} uploads, the most that is kept")
            first = max(left, key=lambda upload: counts[upload.owner])  # of several, the least recently used
            counts[first.owner] -= 1
            going.append(first.id)
        return going

    def _used_s(self, kept: KeptUpload) -> float:
        try:
            return (self._folder / kept.id).stat().st_mtime
        except OSError:
            return 0.0  # somebody removed the file: the first to go

    def _drop(self, upload: str) -> None:
        (self._folder / upload).unlink(missing_ok=True)  # first, as a full disk has no room for the table's change
        self._store.forget_upload(upload)


def _full(what: str) -> Rejected:
    return Rejected(f"{what}; try again when they have ended", "uploads_full", 60.0)
