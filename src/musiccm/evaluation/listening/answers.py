"""What listeners answered: files of one test read, checked against its key, and put into words of systems."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.evaluation.listening.design import QUESTIONS
from musiccm.evaluation.listening.making import KEY_FORMAT, VERSION
from musiccm.texts import read_json

ANSWERS_FORMAT = "musiccm-listening-answers"
LISTENER = re.compile(r"[A-Za-z0-9_-]{1,40}")
_SIDES = ("first", "second", "tie")


@dataclass(frozen=True)
class Answer:
    """One page of one listener.

    Args:
        trial: Its id.
        files: The sounds as they were shown: first, second.
        answers: By question: `first`, `second` or `tie`, or a whole number.
    """

    trial: str
    files: tuple[str, ...]
    answers: Mapping[str, str | int]


@dataclass(frozen=True)
class Listener:
    """Who answered what, when they began and saved (ISO 8601, UTC), and whether all pages are there."""

    name: str
    answers: tuple[Answer, ...]
    complete: bool
    path: str
    started: str
    saved: str


def read_key(path: Path) -> dict[str, Any]:
    """The key of a listening test.

    Args:
        path: `key.json`.

    Returns:
        Its content.

    Raises:
        MusiccmError: It is missing or something else.
    """
    key = read_json(path, "the key of a listening test (musiccm listen)")
    if key.get("format") != KEY_FORMAT or key.get("version") != VERSION:
        raise MusiccmError(f"{path}: expected the key.json of a listening test, version {VERSION}, found format "
                           f"{key.get('format')!r}, version {key.get('version')!r}")
    return key


def parsed(content: Any, where: str) -> Listener:
    """The answers of a file or a request, checked for their form alone.

    Args:
        content: What the JSON holds.
        where: Where it comes from, for messages.

    Returns:
        The listener.

    Raises:
        MusiccmError: It has another form.
    """
    if not isinstance(content, dict) or content.get("format") != ANSWERS_FORMAT or content.get("version") != 1:
        raise MusiccmError(f"{where}: expected answers of a listening test, as its page saves them")
    name, test, listed = content.get("listener"), content.get("test"), content.get("answers")
    if not isinstance(name, str) or not LISTENER.fullmatch(name):
        raise MusiccmError(f"{where}: listener: expected letters, digits, - and _, found {name!r}")
    started, saved = content.get("started"), content.get("saved")
    if not (isinstance(test, str) and isinstance(started, str) and isinstance(saved, str) and isinstance(listed, list)):
        raise MusiccmError(f"{where}: expected `test`, `started`, `saved` and a list of `answers`")
    answers = []
    for number, one in enumerate(listed):
        files = one.get("files") if isinstance(one, dict) else None
        given = one.get("answers") if isinstance(one, dict) else None
        if (not isinstance(files, list) or not all(isinstance(name, str) for name in files)
                or not isinstance(given, dict) or not isinstance(one.get("trial"), str)):
            raise MusiccmError(f"{where}: answer {number + 1}: expected `trial`, `files` and `answers`")
        if not all(value in _SIDES if isinstance(value, str) else type(value) is int for value in given.values()):
            raise MusiccmError(f"{where}: answer {number + 1}: expected first, second, tie or a whole number")
        answers.append(Answer(one["trial"], tuple(files), given))
    return Listener(name, tuple(answers), content.get("complete") is True, where, started, saved)


def read_answers(paths: Sequence[Path], key: Mapping[str, Any]) -> tuple[list[Listener], list[str]]:
    """The answers of several listeners.

    Args:
        paths: Files, and folders whose `.json` files are taken.
        key: Of their test.

    Returns:
        The listeners by name, and notes.

    Raises:
        MusiccmError: A file of another form or another test, answers that do not fit the key, or two listeners of
            one name.
    """
    found: dict[str, Listener] = {}
    notes = []
    for path in _files(paths):
        content = read_json(path, "answers of a listening test")
        listener = parsed(content, str(path))
        if content["test"] != key["test"]:
            raise MusiccmError(f"{path}: the answers are of the test {content['test']}, the key is of {key['test']}; "
                               "give the key that was made with their page")
        _check(listener, key)
        other = found.get(listener.name)
        if other is not None:
            if other.started != listener.started:
                raise MusiccmError(f"{listener.path}: answers of another listener called {listener.name} are in "
                                   f"{other.path}; give one of the two files")
            older, listener = sorted((other, listener), key=lambda one: (one.saved, len(one.answers)))
            notes.append(f"{older.path}: saved before {listener.path} by the same listener, and left out")
        found[listener.name] = listener
    return [found[name] for name in sorted(found)], notes


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise MusiccmError(f"{path}: no .json file with answers in this folder")
        files += inside
    return list(dict.fromkeys(files))


def _check(listener: Listener, key: Mapping[str, Any]) -> None:
    low, high = key["scale"]
    seen: set[str] = set()
    for answer in listener.answers:
        trial = key["trials"].get(answer.trial)
        where = f"{listener.path}: page {answer.trial}"
        if trial is None or sorted(answer.files) != sorted(trial["files"]):
            raise MusiccmError(f"{where}: the key has no such page with these sounds; the file was changed")
        if answer.trial in seen:
            raise MusiccmError(f"{where}: answered twice")
        seen.add(answer.trial)
        if set(answer.answers) != set(trial["ask"]):
            raise MusiccmError(f"{where}: expected answers to {', '.join(trial['ask'])}, found "
                               f"{', '.join(sorted(answer.answers)) or 'none'}")
        for question, value in answer.answers.items():
            known = QUESTIONS[question]
            is_choice = known["kind"] == "choice"
            fits = isinstance(value, str) if is_choice else isinstance(value, int) and low <= value <= high
            if not fits or (value == "tie" and known.get("tie") is None):
                raise MusiccmError(f"{where}: {question}: {value!r} is no answer to this question")


def chosen_file(answer: Answer, question: str) -> str | None:
    """The file that a listener chose; None for neither."""
    value = answer.answers[question]
    return None if value == "tie" else answer.files[_SIDES.index(str(value))]
