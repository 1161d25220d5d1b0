"""lay an evaluated run out as tables 1 to 3 of the paper: quality and speed, copying, ablations."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from musiccm.commands.compare import read_run
from musiccm.errors import MusiccmError
from musiccm.terminal import say
from musiccm.texts import number_text

#: Steps of the paper's ablations (arXiv 2404.13358, table 3).
ABLATION_STEPS = 4


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
    config, runs = experiment_file(args.config), Path(args.runs)
    own = newest_results(runs / load_experiment(config, resolve=False)["experiment"])
    if own is None:
        raise MusiccmError(f"{config}: no evaluated run of it under {runs}; run `musiccm test --config {config} "
                           "--ckpt_path newest` (make eval) first")
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
    from musiccm.evaluation.registry import NETWORK_SCOPES, find, head_of, with_arrow
    from musiccm.evaluation.results import at_chance, timed

    rows, references = [timed(row) for row in run["rows"]], run.get("references", {})
    quality, text = keys(rows, *NETWORK_SCOPES), keys(rows, "text")
    lines = [f"# {run['experiment']}: n = {run['n']} clips, {run['path'].parent.name}", ""]
    lines += ["## 1. Quality and speed", ""]
    lines += grid(["model", "steps", head_of("network_calls"), *(with_arrow(key, key) for key in quality),
                   head_of("latency_s")],
                  [[label(row), row["steps"], row.get("network_calls"), *(row.get(key) for key in quality),
                    row.get("latency_s")] for row in rows])
    lines += ["", "## 2. Text and training set", ""]
    similar, unknowable = keys(rows, "training"), at_chance(rows[0], references)
    groups = [key for key in keys(rows, "attributes") if not key.endswith("_chance") and key[4:] not in unknowable]
    heads = [*(head_of(key) for key in text),
             *(with_arrow(key.replace("sim_aa_", "SIM_AA@", 1), key) for key in similar), *map(head_of, groups)]
    lines += grid(["model", "steps", *heads], [
        ["test set", None, *(references.get("test_set_ta") for _ in text),
         *(references.get(f"test_set_{key}") for key in similar), *(references.get(f"{key}_real") for key in groups)],
        ["retrieval max", None, *(references.get("retrieval_max_ta") for _ in text), *(None for _ in similar + groups)],
        *([label(row), row["steps"], *(row.get(key) for key in text + similar + groups)] for row in rows),
    ])
    if unknowable:
        lines += ["", f"- left out, for the tagger cannot tell them: {', '.join(unknowable)}"]
    lines += ["", *(f"- {line}" for line in described(run.get("sim_aa_gallery") or {}))]
    lines += ["", f"## 3. Ablations, {ABLATION_STEPS} steps", ""]
    short = [key for key in quality if not ((found := find(key)) and found.column.beside)] + text
    body, notes = [], []
    for name, other in {run["experiment"]: run, **{name: entry[1] for name, entry in ablations.items()}}.items():
        row = student_row(other) if other else None
        if row is None:
            notes.append(f"{name}: not evaluated; `musiccm fit --config {ablations[name][0]}`, then `musiccm test`"
                         if name in ablations else f"{name}: no student at {ABLATION_STEPS} steps")
            continue
        if other is not None and other["n"] != run["n"]:
            notes.append(f"{name} was scored on n = {other['n']} clips, not {run['n']}: do not compare its distances")
        body.append([name, *(row.get(key) for key in short), other["n"] if other else None])
    lines += grid(["run", *(with_arrow(key, key) for key in short), "n"], body)
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def keys(rows: list[dict[str, Any]], *scopes: str) -> list[str]:
    """Keys of the metrics of some scopes, in the order of the rows.

    Those of no metric that is known count among those of networks: no number may go missing.
    """
    from musiccm.evaluation.registry import find, shown_keys

    known = {key: find(key) for key in dict.fromkeys(key for row in rows for key in row)}
    shown = set(shown_keys(rows))
    return [key for key, found in known.items()
            if (found.metric.scope in scopes if found else "sets" in scopes and key in shown)]


def label(row: dict[str, Any]) -> str:
    """A row's model in words."""
    from musiccm.evaluation.candidates import compared_model

    return compared_model(row["model"]).caption


def student_row(run: dict[str, Any]) -> dict[str, Any] | None:
    """The run's own student at the steps of the ablations."""
    return next((r for r in run["rows"] if r["model"] == "student" and r["steps"] == ABLATION_STEPS), None)


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
    parser.add_argument("--config", required=True, help="experiment file; the files in ablations/ beside it that have "
                        "it as their base are its ablations")
    parser.add_argument("--runs", default="lightning_logs", help="folder of the runs (default %(default)s)")
    return parser
