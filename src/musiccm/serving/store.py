"""Jobs and uploads in SQLite: what is written here outlives the process, however it ends."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.serving.errors import KeyReused, NoRoom
from musiccm.serving.jobs import FINISHED, JobView
from musiccm.serving.request import MusicRequest

VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
    priority INTEGER NOT NULL, request TEXT NOT NULL, created_s REAL NOT NULL, started_s REAL, finished_s REAL,
    starts INTEGER NOT NULL DEFAULT 0, calls INTEGER NOT NULL DEFAULT 0, error TEXT, result TEXT);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created_s REAL NOT NULL, bytes INTEGER NOT NULL, seconds REAL NOT NULL,
    sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS idempotency_keys (
    owner TEXT NOT NULL, key TEXT NOT NULL, request_sha256 TEXT NOT NULL, job TEXT NOT NULL UNIQUE,
    PRIMARY KEY (owner, key));
"""


@dataclass(frozen=True)
class KeptUpload:
    """An upload: its id, whose it is, and when it came, in seconds since 1970."""

    id: str
    owner: str
    created_s: float


@dataclass(frozen=True)
class Once:
    """What a client names a request by, so that it can send it again without having it made again.

    Args:
        key: The client's name for it.
        request_sha256: Of the request as it came, so that a key that names two requests is noticed.
    """

    key: str
    request_sha256: str


class Store:
    """The tables of jobs, of the keys that clients gave them, and of uploads.

    Args:
        path: The database; it is made where there is none.

    Raises:
        MusiccmError: It is damaged, of a later version, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, VERSION):
                raise MusiccmError(f"{path}: expected version {VERSION} of the table of jobs, found {found}; it is of "
                                   "a later musiccm, name another folder")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_TABLES)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as error:
            raise MusiccmError(f"{path}: the table of jobs cannot be opened ({error}); move the folder away, or name "
                               "another") from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def add(self, view: JobView, once: Once | None = None) -> int:
        """Write a new job.

        Args:
            view: The job, which waits, or runs from now on.
            once: What its client names it by, which is written with it or not at all.

        Returns:
            Its number, in order of arrival.

        Raises:
            NoRoom: The disk is full.
        """
        named = [] if once is None else [("REPLACE INTO idempotency_keys VALUES (?, ?, ?, ?)",
                                          (view.owner, once.key, once.request_sha256, view.id))]
        return self._change(*named, (
            "INSERT INTO jobs (id, owner, state, priority, request, created_s, started_s, starts) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (view.id, view.owner, view.state, view.priority, json.dumps(view.request.to_json()), view.created_s,
             view.started_s, int(view.state == "running"))))

    def made_before(self, once: Once, owner: str) -> str | None:
        """The job that somebody's key named before.

        Args:
            once: The key, and the request that it names now.
            owner: Whose it is.

        Returns:
            The job's id; None where the key is new.

        Raises:
            KeyReused: It named another request.
        """
        with self._lock:
            row = self._db.execute(
                "SELECT request_sha256, job FROM idempotency_keys AS keys JOIN jobs ON jobs.id = keys.job "
                "WHERE keys.owner = ? AND keys.key = ?", (owner, once.key)).fetchone()
        if row is None:
            return None
        if row["request_sha256"] != once.request_sha256:
            raise KeyReused(f"Idempotency-Key: {once.key} came before with another request; give each request a key "
                            "of its own, and send the same one again only with the same body")
        return row["job"]

    def started(self, job: str, at_s: float) -> None:
        """A job was taken up: a power cut may undo it, and the job then waits again."""
        self._change(("UPDATE jobs SET state = 'running', started_s = ?, starts = starts + 1 WHERE id = ?",
                      (at_s, job)), synced=False)

    def requeued(self, job: str) -> None:
        """A job waits again, as if it had not been taken up."""
        self._change(("UPDATE jobs SET state = 'queued', started_s = NULL, starts = MAX(0, starts - 1) "
                      "WHERE id = ? AND state = 'running'",
                      (job,)))

    def finished(self, views: Sequence[JobView]) -> None:
        """Jobs have ended; those that have ended before stay as they are.

        Args:
            views: The jobs, with state, time and what came of them.

        Raises:
            NoRoom: The disk is full; none is written.
        """
        self._change(*(
            ("UPDATE jobs SET state = ?, finished_s = ?, calls = ?, error = ?, result = ? "
             "WHERE id = ? AND state IN ('queued', 'running')",
             (view.state, view.finished_s, view.calls, _json(view.error), _json(view.result), view.id))
            for view in views))

    def get(self, job: str) -> JobView | None:
        """A job by its id."""
        with self._lock:
            row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        return None if row is None else _view(row)

    def recent(self, owner: str, limit: int) -> list[JobView]:
        """Somebody's last jobs, the newest first."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM jobs WHERE owner = ? ORDER BY number DESC LIMIT ?",
                                    (owner, limit)).fetchall()
        return [_view(row) for row in rows]

    def unfinished(self) -> list[tuple[int, int, JobView]]:
        """`(number, starts, job)` of those that wait or ran, in order of arrival."""
        with self._lock:
            found = self._db.execute("SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY number")
            rows = found.fetchall()
        return [(row["number"], row["starts"], _view(row)) for row in rows]

    def ended(self) -> list[str]:
        """Ids of the jobs that have ended, the oldest end first."""
        with self._lock:
            rows = self._db.execute(f"SELECT id FROM jobs WHERE state IN {FINISHED!r} ORDER BY finished_s, number")
            return [row["id"] for row in rows.fetchall()]

    def forget(self, jobs: Sequence[str]) -> None:
        """Remove jobs."""
        self._change(*((f"DELETE FROM {table} WHERE {column} = ?", (job,)) for job in jobs
                       for table, column in (("jobs", "id"), ("idempotency_keys", "job"))))

    def add_upload(self, upload: str, owner: str, at_s: float, size: int, seconds: float, sha256: str) -> None:
        """Write a new upload."""
        self._change(("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?)", (upload, owner, at_s, size, seconds, sha256)))

    def upload(self, upload: str, owner: str) -> float | None:
        """Seconds of somebody's upload; None where there is none."""
        with self._lock:
            row = self._db.execute("SELECT seconds FROM uploads WHERE id = ? AND owner = ?", (upload, owner)).fetchone()
        return None if row is None else row["seconds"]

    def uploads(self) -> list[KeptUpload]:
        """All uploads, the oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT id, owner, created_s FROM uploads ORDER BY created_s").fetchall()
        return [KeptUpload(row["id"], row["owner"], row["created_s"]) for row in rows]

    def forget_upload(self, upload: str) -> None:
        """Remove an upload."""
        self._change(("DELETE FROM uploads WHERE id = ?", (upload,)))

    def _change(self, *statements: tuple[str, tuple[Any, ...]], synced: bool = True) -> int:
        """Do all of them or none.

        Args:
            statements: SQL, and what stands in its places.
            synced: Wait until it is on the disk; what is not outlives the process, but perhaps not a power cut.

        Returns:
            The number of the row that was written last.

        Raises:
            NoRoom: The disk is full.
        """
        if not statements:
            return 0
        with self._lock:
            try:
                self._db.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
                try:
                    return self._done(statements)
                except sqlite3.OperationalError:  # where the log cannot grow, it is begun anew, which needs no room
                    self._db.execute("PRAGMA wal_checkpoint(RESTART)")
                    return self._done(statements)
            except sqlite3.OperationalError as error:
                raise NoRoom(f"the server's table of jobs cannot be written ({error}); try again later") from error

    def _done(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> int:
        row: int | None = None
        with self._db as db:
            db.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                row = db.execute(statement, values).lastrowid
        return row or 0


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _view(row: sqlite3.Row) -> JobView:
    error, result = (None if row[key] is None else json.loads(row[key]) for key in ("error", "result"))
    request = MusicRequest.from_json(json.loads(row["request"]), "the table of jobs")
    done = row["state"] == "done"
    steps = request.steps or 0
    return JobView(row["id"], row["owner"], row["state"], row["priority"], request, row["created_s"], row["started_s"],
                   row["finished_s"], None, None, row["calls"], row["calls"] if done else None, steps if done else 0,
                   steps, error, result)
