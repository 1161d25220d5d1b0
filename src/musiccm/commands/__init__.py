"""The subcommands, one file each: a module of this folder that defines ``main(argv) -> int`` is a command.

Its name is the file's, its summary the first line of the file's docstring. Finding them imports none of them, so
``musiccm --help`` answers before torch could be loaded.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

TRAINER_COMMANDS = {
    "fit": "train what an experiment file describes",
    "validate": "run the validation loop of an experiment",
    "test": "measure a checkpoint: results.json, the table, samples to play",
}
"""Subcommands that run a Trainer method on an experiment file; all answered by `_trainer.py`."""

MEASURES = ("evaluate", "listen", "plagiarism")
"""Subcommands that the extra `eval` is enough for; where another lacks a library, `train` has it."""

RESUMES = ("fit", "test", "prepare")
"""Subcommands that go on from what they have done: when a signal ends them, their exit code asks for another run."""


def summaries() -> dict[str, str]:
    """Every command with its one-line summary, the trainer's first."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
    return TRAINER_COMMANDS | found


def load(name: str) -> Callable[[list[str]], int]:
    """Import one command and return its entry point.

    Args:
        name: A key of `summaries()`.

    Returns:
        A function from the arguments to the exit code. The trainer's commands get their own name as first argument.
    """
    if name in TRAINER_COMMANDS:
        trainer = importlib.import_module("musiccm.commands._trainer")
        return lambda argv: trainer.main([name, *argv])
    return importlib.import_module(f"musiccm.commands.{name}").main
