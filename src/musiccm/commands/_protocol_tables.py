"""A table as another paper has it: of folders of clips, by its protocol, or of the rows of an evaluated run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.commands._outputs import beside, require_room
from musiccm.errors import MusiccmError, naming
from musiccm.terminal import say

if TYPE_CHECKING:
    from musiccm.evaluation.protocols import Protocol

#: What `musiccm.evaluate` calls an argument, and its option.
OPTIONS = {"protocol": "--protocol", "generated": "--generated", "reference": "--reference", "captions": "--captions",
           "embedders": "--embedder", "batch_size": "--batch-size"}


def protocol_tables(args: argparse.Namespace) -> int:
    """Print the table and write what it is made of.

    Args:
        args: Of `musiccm tables`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: Options that do not go together, or whatever evaluation refuses.
    """
    from musiccm.commands._paper_tables import paper_tables
    from musiccm.evaluation.paper_tables import PAPERS
    from musiccm.evaluation.protocols import PROTOCOLS, protocol_named

    if args.protocol in PAPERS:
        return paper_tables(PAPERS[args.protocol], args)
    if args.protocol not in PROTOCOLS:
        raise MusiccmError(f"--protocol: expected one of {', '.join([*PROTOCOLS, *PAPERS])}, found {args.protocol!r}")
    if args.beside is not None:
        raise MusiccmError(f"--beside: goes with --protocol {' or '.join(PAPERS)} alone; leave it out")
    with naming(OPTIONS):
        rules = protocol_named(args.protocol)
    if (args.config is None) == (args.generated is None):
        raise MusiccmError("--protocol: expected either --generated with folders or --config with an experiment, found "
                           f"{'neither' if args.config is None else 'both'}")
    if args.config is None:
        return _of_folders(rules, args)
    return _of_run(rules, args)


def _of_folders(rules: Protocol, args: argparse.Namespace) -> int:
    from musiccm.commands.evaluate import weights_of
    from musiccm.evaluation.api import evaluate
    from musiccm.files import write_json

    for option in ("reference", "captions"):
        if getattr(args, option) is None:
            raise MusiccmError(f"--{option}: expected one beside --generated, found none")
    folders = _named(args.generated)
    outputs = {name: beside(folder, f"-{rules.name}.json", [args.reference]) for name, folder in folders.items()}
    for out in outputs.values():
        require_room(out)
    rows, found = [], {}
    for name, folder in folders.items():
        with naming(OPTIONS):
            scores = evaluate(
                Path(folder), Path(args.reference), embedders=weights_of(args.embedder), bundle=args.bundle,
                captions=args.captions, clap=args.clap, batch_size=args.batch_size or 16, device=args.device or "auto",
                protocol=rules.name,
            )
        write_json(outputs[name], scores.content)
        rows.append([name, None, *rules.row(scores), scores.n])
        found = scores.content
    notes = [*found["notes"], *(f"networks: {name} {value}" for name, value in found["networks"].items())]
    say(table(rules, rows, found["references"], notes), *(f"written to {out}" for out in outputs.values()))
    return 0


def _of_run(rules: Protocol, args: argparse.Namespace) -> int:
    from musiccm.commands.tables import FOLDERS, evaluated_run
    from musiccm.config import experiment_file
    from musiccm.evaluation.rows import caption_of, decoder_of, is_floor, sort_rows
    from musiccm.files import write_text

    if stray := [option for option in FOLDERS if getattr(args, option) is not None]:
        raise MusiccmError(f"--{stray[0].replace('_', '-')}: a run was evaluated already; leave it out, or --config")
    run = evaluated_run(experiment_file(args.config), Path(args.runs))
    kept = [row for row in sort_rows(run["rows"]) if not is_floor(row)]
    rows: list[list[Any]] = [[f"{caption_of(row)}, {row['steps']} steps, {decoder_of(row)} decoder",
                              row.get("network_calls"), *rules.row(row), run["n"]] for row in kept]
    lacking = [column for place, column in enumerate(rules.columns) if all(row[2 + place] is None for row in rows)]
    if len(lacking) == len(rules.columns):
        raise MusiccmError(f"{run['path']}: has none of {', '.join(column.key for column in lacking)}; evaluate it "
                           f"with evaluation.embedders [{', '.join(rules.embedders)}] and a CLAP, or give folders of "
                           "clips by --generated")
    how = rules.preparation
    notes = [f"as this run was evaluated: whole windows at the level they have, not {how.seconds:.1f} s at peak "
             f"{how.peak:g}. For the protocol itself write the clips (`musiccm generate --prompts`), and give them by "
             "--generated",
             *(f"{column.head.split()[0]}: not taken by this run ({column.network} is not among its embedders)"
               for column in lacking), *rules.notes(run["n"])[1:]]
    if name := run.get("text_audio"):
        notes.append(f"the CLAP that measured: {name}, fingerprint "
                     f"{str(run.get('text_audio_fingerprint') or 'not stated')[:16]}")
    text = table(rules, rows, run.get("references", {}), notes)
    say(text)
    write_text(run["path"].with_name(f"tables-{rules.name}.md"), f"{text}\n")
    return 0


def _named(arguments: list[str]) -> dict[str, str]:
    """`[NAME=]FOLDER` arguments by name.

    Raises:
        MusiccmError: A name occurs twice.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        name, folder = (name, folder) if equals and not Path(argument).is_dir() else (Path(argument).name, argument)
        if not name or name in found:
            raise MusiccmError(f"--generated {argument}: expected a name that no other row has; write NAME=FOLDER")
        found[name] = folder
    return found


def table(rules: Protocol, rows: list[list[Any]], references: dict[str, Any], notes: list[str]) -> str:
    """The table as Markdown: the rows, the real clips, the authors' own rows, and what must be said beside them.

    Args:
        rules: The protocol.
        rows: Name, network calls, the numbers of the columns and n of each.
        references: Numbers of the real clips.
        notes: Sentences.

    Returns:
        The text.
    """
    from musiccm.commands.tables import grid

    heads = ["model", "queries", *(column.head for column in rules.columns), "n"]
    real = [references.get(f"test_set_{column.key}") for column in rules.columns]
    body = [*rows]
    if any(value is not None for value in real):
        body.append(["real clips", None, *real, references.get("n_test_set_ta")])
    body += [[f"published: {row.model}", row.calls, *row.numbers, rules.clips] for row in rules.published]
    return "\n".join([f"# {rules.name} ({rules.said})", "", *grid(heads, body), "", *(f"- {note}" for note in notes)])
