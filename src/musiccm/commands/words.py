"""list what a model's training captions speak of, the words that it knows."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.terminal import say

#: Characters in a line.
WIDTH = 120
#: Words and phrases of a group that the table shows.
SHOWN = 24
#: Captions that it shows.
EXAMPLES = 6


def main(argv: list[str]) -> int:
    """Run `musiccm words`.

    Args:
        argv: The arguments behind `words`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: The bundle cannot be read, or has no words.
    """
    args = _parser().parse_args(argv)
    from musiccm.models.bundle import Bundle
    from musiccm.models.bundle.training_words import TrainingWords

    bundle = Bundle.from_pretrained(args.model, parts=())
    words = TrainingWords.of(bundle)
    if words is None:
        raise MusiccmError(f"{args.model}: does not say what its training captions speak of (no words/ folder, nor in "
                           "the bundle that lends its text encoder); where its corpus is at hand, add it by: musiccm "
                           f"pack words --to {bundle.path} --config EXPERIMENT")
    if args.json:
        say(json.dumps({"model": args.model, **words.about}, indent=1))
    else:
        say(*table(args.model, words.about, args.all))
    return 0


def table(model: str, about: Mapping[str, Any], everything: bool) -> list[str]:
    """Groups of words with how many captions have each, as lines.

    Args:
        model: What the bundle is called.
        about: Its `words.json`.
        everything: Whether to show more than the commonest.

    Returns:
        The lines.
    """
    lines = [f"{model}: {about['captions']:,} training captions of {about['clips']:,} clips; how many say what", ""]
    groups = {group: list(counts.items()) for group, counts in about["groups"].items()}
    gap = max(map(len, groups), default=0) + 2
    for group, counts in groups.items():
        shown = counts if everything else counts[:SHOWN]
        cells = [f"{phrase} {count:,}".replace(" ", "\0") for phrase, count in shown]
        if len(shown) < len(counts):
            cells.append(f"and {len(counts) - len(shown)} more (--all)".replace(" ", "\0"))
        if group == "tempi" and about["bpm"] is not None:
            lowest, highest, count = about["bpm"]
            cells.append(f"{lowest} to {highest} bpm {count:,}".replace(" ", "\0"))
        text = textwrap.fill(", ".join(cells), WIDTH - gap, break_long_words=False, break_on_hyphens=False)
        lines += [f"{group if place == 0 else '':<{gap}}" + line.replace("\0", " ")
                  for place, line in enumerate(text.splitlines())]
    examples = about["examples"] if everything else about["examples"][:EXAMPLES]
    return [*lines, "", "for example", *(f"  {caption}" for caption in examples)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm words", description=(
        "List what the captions speak of that a model was trained on: what a prompt can ask for."))
    parser.add_argument("--model", default="musiccm-tiny-student",
                        help="directory, packaged bundle or hub id (default %(default)s)")
    parser.add_argument("--all", action="store_true", help="all words and all captions that the bundle keeps")
    parser.add_argument("--json", action="store_true", help="as JSON, everything that the bundle keeps")
    return parser
