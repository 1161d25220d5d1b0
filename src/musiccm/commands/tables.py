"""lay an evaluated run out as tables 1 to 3 of the paper: quality and speed, copying, ablations; or as another's."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

from musiccm.commands.compare import read_run
from musiccm.errors import MusiccmError
from musiccm.terminal import say
from musiccm.texts import number_text

#: Steps of the paper's ablations (arXiv 2404.13358, table 3).
ABLATION_STEPS = 4
#: Options of tables of folders, which only a protocol makes.
FOLDERS = ("generated", "reference", "captions", "embedder", "clap", "bundle", "batch_size", "device")
#: Ratios that stand beside a number of a network, by the ends of their keys, and their heads.
RATIOS = {"_ratio": "x teacher", "_equal_calls_ratio": "x teacher at equal calls", "_real_ratio": "x real"}


def main(argv: list[str]) -> int:
    """Run `musiccm tables`.

    Args:
        argv: The arguments behind `tables`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: The experiment has no evaluated run.
    """
    from musiccm.config import experiment_file, load_experiment
    from musiccm.files import write_text

    args = _parser().parse_args(argv)
    if args.protocol is not None:
        from musiccm.commands._protocol_tables import protocol_tables

        return protocol_tables(args)
    others = [option for option in (*FOLDERS, "beside") if getattr(args, option) is not None]
    if args.config is None or others:
        raise MusiccmError("--config: expected an experiment file, found none" if args.config is None else
                           f"--{others[0].replace('_', '-')}: only goes with --protocol; leave it out")
    config, runs = experiment_file(args.config), Path(args.runs)
    own = evaluated_run(config, runs)
    ablations = {}
    for file in ablation_files(config):
        name = load_experiment(file, resolve=False)["experiment"]
        ablations[name] = (file, newest_results(runs / name))
    text = paper_tables(own, ablations)
    say(text)
    write_text(own["path"].with_name("tables.md"), text)
    return 0


def ablation_files(config: Path) -> list[Path]:
    """The experiments in `ablations/` beside an experiment file that are laid directly over it.

    Args:
        config: The experiment file.

    Returns:
        Files that name it as their base.
    """
    from musiccm.config import bases_of

    files = sorted((config.parent / "ablations").glob("*.yaml"))
    return [file for file in files if config.resolve() in [base.resolve() for base in bases_of(file)]]


def evaluated_run(config: Path, runs: Path) -> dict[str, Any]:
    """The results of an experiment's run that was evaluated last.

    Args:
        config: The experiment file.
        runs: Folder of the runs.

    Raises:
        MusiccmError: There is none.
    """
    from musiccm.config import load_experiment

    own = newest_results(runs / load_experiment(config, resolve=False)["experiment"])
    if own is None:
        raise MusiccmError(f"{config}: no evaluated run of it under {runs}; run `musiccm test --config {config} "
                           "--ckpt_path newest` (make eval) first")
    return own


def newest_results(folder: Path) -> dict[str, Any] | None:
    """The results of the experiment's run that was evaluated last; None where none was."""
    files = sorted(folder.glob("version_*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    return read_run(files[-1]) if files else None


def paper_tables(run: dict[str, Any], ablations: dict[str, tuple[Path, dict[str, Any] | None]]) -> str:
    """The three tables as Markdown.

    Args:
        run: Content of the run's results.json.
        ablations: Of each ablation its file and its results, None where it was not evaluated.

    Returns:
        The text, ended by a newline.
    """
    from musiccm.evaluation.galleries import described
    from musiccm.evaluation.registry import NETWORK_SCOPES, direction, find, head_of, with_arrow
    from musiccm.evaluation.results import at_chance, timed
    from musiccm.evaluation.rows import caption_of, is_floor, sort_rows
    from musiccm.evaluation.text_table import with_interval

    rows, references = sort_rows([timed(row) for row in run["rows"]]), run.get("references", {})
    quality = keys(rows, "comparison", "noises", *NETWORK_SCOPES)
    text = [key for key in keys(rows, "text", "real") if direction(key)]
    lines = [f"# {run['experiment']}: n = {run['n']} clips, {run['path'].parent.name}", ""]
    lines += ["## 1. Quality and speed", ""]
    columns: list[tuple[str, Callable[[dict[str, Any]], Any]]] = []
    for key in quality:
        columns.append((with_arrow(key, key), methodcaller("get", key)))
        columns += [(head, partial(with_interval, key=ratio)) for suffix, head in RATIOS.items()
                    if any((ratio := f"{key}{suffix}") in row for row in rows)]
    lines += grid(["model", "steps", "decoder", head_of("network_calls"), *(head for head, _ in columns),
                   head_of("latency_s")],
                  [[caption_of(row), row["steps"], decoder(row, rows), row.get("network_calls"),
                    *(cell(row) for _, cell in columns), row.get("latency_s")] for row in rows])
    if any(head in RATIOS.values() for head, _ in columns):
        lines += ["", "- x teacher: ratio to the teacher at its most steps and the same decoder, with its 95 % "
                  "interval (`docs/metrics.md`)"]
    lines += ["", "## 2. Text and training set", ""]
    rows = [row for row in rows if not is_floor(row)]
    similar, unknowable = keys(rows, "training"), at_chance(rows[0], references)
    groups = [key for key in keys(rows, "attributes") if not key.endswith("_chance") and key[4:] not in unknowable]
    heads = ["decoder", *(head_of(key) for key in text),
             *(with_arrow(key.replace("sim_aa_", "SIM_AA@", 1), key) for key in similar), *map(head_of, groups)]
    lines += grid(["model", "steps", *heads], [
        ["test set", None, None, *(references.get(f"test_set_{key[:2]}") for key in text),
         *(references.get(f"test_set_{key}") for key in similar), *(references.get(f"{key}_real") for key in groups)],
        ["retrieval max", None, None, *(references.get(f"retrieval_max_{key[:2]}") for key in text),
         *(None for _ in similar + groups)],
        *([caption_of(row), row["steps"], decoder(row, rows), *(row.get(key) for key in text + similar + groups)]
          for row in rows),
    ])
    if unknowable:
        lines += ["", f"- left out, for the tagger cannot tell them: {', '.join(unknowable)}"]
    lines += ["", *(f"- {line}" for line in described(run.get("sim_aa_gallery") or {}))]
    lines += ["", f"## 3. Ablations, {ABLATION_STEPS} steps", ""]
    short = [key for key in quality if not ((known := find(key)) and known.column.beside)] + text
    body, notes = [], []
    for name, other in {run["experiment"]: run, **{name: entry[1] for name, entry in ablations.items()}}.items():
        found = student_rows(other) if other else []
        if not found:
            notes.append(f"{name}: not evaluated; `musiccm fit --config {ablations[name][0]}`, then `musiccm test`"
                         if name in ablations else f"{name}: no student at {ABLATION_STEPS} steps")
            continue
        if other is not None and other["n"] != run["n"]:
            notes.append(f"{name} was scored on n = {other['n']} clips, not {run['n']}: do not compare its distances")
        body += [[name, decoder(row, found), *(row.get(key) for key in short), other["n"] if other else None]
                 for row in found]
    lines += grid(["run", "decoder", *(with_arrow(key, key) for key in short), "n"], body)
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def keys(rows: list[dict[str, Any]], *scopes: str) -> list[str]:
    """Keys of the metrics of some scopes, in the order of the rows.

    Those of no metric that is known count among those of networks: no number may go missing. What stands beside a
    number of a network (its interval, its ratios) is not among them.
    """
    from musiccm.evaluation.registry import find, shown_keys, split_key

    known = {key: find(key) for key in dict.fromkeys(key for row in rows for key in row)}
    known = {key: found for key, found in known.items()
             if not (found and (suffix := split_key(key)[1]) and found.column.key.endswith(suffix))}
    shown = set(shown_keys(rows))
    return [key for key, found in known.items()
            if (found.metric.scope in scopes if found else "sets" in scopes and key in shown)]


def decoder(row: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """A row's decoder, in a table that has more than one or says so; None elsewhere."""
    from musiccm.evaluation.rows import decoder_of

    return decoder_of(row) if any("decoder" in other for other in rows) or len(set(map(decoder_of, rows))) > 1 else None


def student_rows(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's own student at the steps of the ablations, a row a decoder."""
    from musiccm.evaluation.rows import model_of, sort_rows

    return [row for row in sort_rows(run["rows"]) if model_of(row) == "student" and row["steps"] == ABLATION_STEPS]


def grid(heads: list[str], body: list[list[Any]]) -> list[str]:
    """Lines of a Markdown table; columns without any value are left out."""
    if not body:
        return ["nothing to show"]
    kept = [column for column in range(len(heads)) if any(line[column] is not None for line in body)]
    lines = [f"| {' | '.join(heads[c] for c in kept)} |", "|" + "---|" * len(kept)]
    cell = partial(number_text, none="-")
    return lines + [f"| {' | '.join(cell(line[c]) for c in kept)} |" for line in body]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm tables", description=__doc__)
    parser.add_argument("--config", help="experiment file; the files in ablations/ beside it that have it as their "
                        "base are its ablations")
    parser.add_argument("--runs", default="lightning_logs", help="folder of the runs (default %(default)s)")
    other = parser.add_argument_group("another paper's table")
    other.add_argument("--protocol", metavar="NAME", help="consistencytta: FAD, FD, KLD, CLAP_T and CLAP_A of folders "
                                                          "(--generated), or of the run of --config; melody: its "
                                                          "authors' tables beside the run of --config")
    other.add_argument("--generated", action="append", metavar="[NAME=]FOLDER",
                       help="generated clips, named after their references; a row each, may be given several times")
    other.add_argument("--reference", metavar="FOLDER", help="the real clips")
    other.add_argument("--captions", metavar="FILE", help="prompts by clip (.json, .csv, .tsv, or TANGO's JSON lines)")
    other.add_argument("--embedder", action="append", metavar="NAME[=FILE]",
                       help="vgg or pann, with its weights unless they lie in $MUSICCM_WEIGHTS")
    other.add_argument("--clap", metavar="FILE", help="the CLAP that measures (default LAION's in $MUSICCM_WEIGHTS)")
    other.add_argument("--bundle", help="bundle that networks without weights come from; of melody, the one whose "
                                        "stages are compared")
    other.add_argument("--beside", action="append", metavar="EXPERIMENT", help="of melody: an experiment whose run on "
                                                                                "the same clips stands below, may be "
                                                                                "given several times")
    other.add_argument("--batch-size", type=int, help="clips embedded together (default 16)")
    other.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    return parser
