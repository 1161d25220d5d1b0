"""What the documents tell people to type: commands, and blocks of Python."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
#: Languages of blocks that are no commands: those that have none are commands if their first word is a program.
NO_SHELL = {"python", "yaml", "bibtex", "json", "toml"}
PROGRAMS = {"musiccm", "make", "pip", "torchrun", "python", "pytest", "export", "srun", "git", "cp", "tensorboard"}
INLINE = re.compile(r"`([^`\n]*(?:\n[^`\n]+)*)`")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Args:
        page: The page, relative to the repository.
        text: As it stands there, on one line, without comments.
        words: Of `musiccm` and its like what is behind launchers and variables.
        mentioned: Whether it stands within a sentence, where options may be left out.
    """

    page: str
    text: str
    words: list[str] = field(hash=False)
    mentioned: bool = False

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def own_part(words: list[str]) -> list[str]:
    """The command that a launcher starts, and the first of a pipe."""
    words = words[: words.index("|")] if "|" in words else words
    if words[0] in ("torchrun", "srun"):
        start = words.index("-m") + 1 if "-m" in words else 1
        while words[start:] and words[start].startswith("-"):
            start += 1
        return words[start:]
    return words


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block, and of each run of lines that are indented as one."""
    text = page.read_text(encoding="utf-8")
    for indent, language, body in FENCE.findall(text):
        yield language, re.sub(f"^{indent}", "", body, flags=re.M)
    for body in re.findall(r"(?<=\n\n)((?: {4}\S.*\n(?: {6,}\S.*\n)*)+)", FENCE.sub("", text)):
        yield "", re.sub("^ {4}", "", body, flags=re.M)


@functools.cache
def commands() -> list[Command]:
    """All commands of all pages, in their order; a fenced block of a shell counts line by line."""
    found = []
    for page in PAGES:
        for language, body in blocks(page):
            lines = [line for line in body.replace("\\\n", " ").splitlines() if without_comment(line)]
            if language in NO_SHELL or not lines:
                continue
            if not language and lines[0].split()[0] not in PROGRAMS:
                continue
            for line in lines:
                text = " ".join(without_comment(line).split())
                if language and text.split()[0] not in PROGRAMS:
                    continue  # of a script, which is checked as a whole
                words = shlex.split(text)
                found.append(Command(name_of(page), text, own_part(words)))
        for text in map(" ".join, map(str.split, INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))))):
            if text.partition(" ")[0] in PROGRAMS and " " in text:
                found.append(Command(name_of(page), text, own_part(shlex.split(text)), mentioned=True))
    return found


def python_blocks() -> list[tuple[str, str]]:
    """Page and text of every block of Python."""
    return [(name_of(page), body) for page in PAGES for language, body in blocks(page) if language == "python"]


def own_experiment() -> str:
    """The experiment file that docs/data.md tells people to write for their own music."""
    found = [body for language, body in blocks(ROOT / "docs/data.md") if language == "yaml" and "my/corpus" in body]
    (example,) = found
    return example
