"""Another paper's tables with ours beside: of an evaluated run, and of what a bundle's stages measured."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.errors import MusiccmError
from musiccm.terminal import say
from musiccm.texts import read_json

if TYPE_CHECKING:
    from musiccm.evaluation.paper_tables import Paper, PaperTable

#: Of a figure of theirs that is not known.
UNKNOWN = "not known"
#: Options of `musiccm tables` that have no part in these tables.
STRAY = ("generated", "reference", "captions", "embedder", "clap", "batch_size", "device")


def paper_tables(paper: Paper, args: argparse.Namespace) -> int:
    """Print the tables and write them beside the run's results.

    Args:
        paper: Whose.
        args: Of `musiccm tables`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: Options that do not go together, no evaluated run, a run of other clips beside it, or a bundle
            without records of its stages.
    """
    from musiccm.commands._compared_runs import refuse_unlike
    from musiccm.commands.tables import evaluated_run
    from musiccm.config import experiment_file
    from musiccm.files import write_text

    if stray := [option for option in STRAY if getattr(args, option) is not None]:
        raise MusiccmError(f"--{stray[0].replace('_', '-')}: has no part in --protocol {paper.name}; leave it out")
    if args.config is None:
        raise MusiccmError(f"--config: expected the experiment whose run --protocol {paper.name} lays out, found none")
    config, runs = experiment_file(args.config), Path(args.runs)
    run = evaluated_run(config, runs)
    beside = [evaluated_run(experiment_file(named), runs) for named in args.beside or []]
    refuse_unlike([run, *beside])
    stages = stage_records(args.bundle) if args.bundle is not None else {}
    text = laid_out(paper, run, beside, stages)
    say(text)
    write_text(run["path"].with_name(f"tables-{paper.name}.md"), f"{text}\n")
    return 0


def stage_records(named: str) -> dict[str, dict[str, Any]]:
    """What the stages of a bundle measured, by stage: of a packed one, or of a folder that stages fill.

    Args:
        named: A name, a folder or a hub id.

    Raises:
        MusiccmError: It has no records, or they are unreadable.
    """
    from musiccm.models.bundle.files import resolve_bundle

    folder = resolve_bundle(named)
    packed = folder / "quality.json"
    if packed.is_file():
        return read_json(packed, "what a bundle's stages measured").get("stages") or {}
    found = {path.stem: read_json(path, "what a stage measured") for path in sorted(folder.glob("quality/*.json"))}
    if not found:
        raise MusiccmError(f"--bundle {named}: expected quality.json or quality/*.json, which stages write, found "
                           "none; name the folder that they filled")
    return found


def laid_out(
    paper: Paper, run: dict[str, Any], beside: Sequence[Mapping[str, Any]], stages: Mapping[str, Mapping[str, Any]]
) -> str:
    """The tables as Markdown.

    Args:
        paper: Whose.
        run: The evaluated run.
        beside: Runs on the same clips. Their rows, and those of the run that no line is for, stand below the first
            table's.
        stages: Records of stages, by name.

    Returns:
        The text.
    """
    from musiccm.commands._compared_runs import fd_key

    network = fd_key(run).removeprefix("fd_")
    lines = [f"# {paper.name} ({paper.said}), and {run['experiment']}: n = {run['n']} clips, FD of {network}"]
    for number, table in enumerate(paper.tables, 1):
        known = stages if table.of == "stages" else rows_of(run)
        others: dict[str, dict[str, Any]] = {}
        if number == 1:  # what no line is for, such as a student
            named = {line.ours for line in table.lines}
            others = {label: row for label, row in rows_of(run).items() if label not in named}
            others |= {f"{other['experiment']}: {label}": row for other in beside
                       for label, row in rows_of(other).items()}
        lines += ["", f"## {number}. {table.title}", "", *one_table(table, known, others, network), ""]
        lines += [f"- {note}" for note in (*table.notes, *lacking(table, known))]
    machine = run.get("machine") or {}
    said = f"ours were timed on {machine.get('device')}, {machine.get('threads')} threads" if machine else None
    return "\n".join([*lines, "", *(f"- {note}" for note in (*paper.notes, *filter(None, [said])))])


def rows_of(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a run by label, `floor@0` that of the floor; behind it the decoder, where a run has several."""
    from musiccm.evaluation.rows import decoder_of, model_of

    several = len({decoder_of(row) for row in run["rows"]}) > 1
    return {f"{model_of(row)}@{row['steps']}" + (f", {decoder_of(row)} decoder" if several else ""): row
            for row in run["rows"]}


def one_table(
    table: PaperTable, known: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]], network: str
) -> list[str]:
    """Lines of a Markdown table: ours, and theirs beside; then rows that are ours alone.

    Args:
        table: What it has.
        known: Our rows or records.
        others: Further rows of ours, by what they are called.
        network: What `<net>` stands for.
    """
    from musiccm.commands.tables import grid

    def ours(row: Mapping[str, Any] | None) -> list[Any]:
        return [None if row is None else row.get(key.replace("<net>", network)) for _, key in table.ours]

    heads = [*table.heads, *(f"ours: {head}" for head, _ in table.ours), *(f"theirs: {head}" for head in table.theirs)]
    body: list[list[Any]] = [[*line.said, *ours(known.get(line.ours or "")),
                              *(UNKNOWN if number is None else number for number in line.theirs)]
                             for line in table.lines]
    body += [[label, *[""] * (len(table.heads) - 1), *ours(row), *[UNKNOWN] * len(table.theirs)]
             for label, row in others.items()]
    return grid(heads, body)


def lacking(table: PaperTable, known: Mapping[str, Any]) -> list[str]:
    """A sentence about lines that ours could stand in, and do not."""
    missing = [line.ours for line in table.lines if line.ours is not None and line.ours not in known]
    if not missing:
        return []
    what = ("not measured, or no record named by --bundle" if table.of == "stages" else
            "no such rows in the run (`musiccm test --config melody/rows` makes them)")
    return [f"{', '.join(missing)}: {what}"]
