"""Which runs are compared: read and checked, none of them twice, and what of theirs may stand in one table."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.texts import read_json

log = logging.getLogger(__name__)

#: Schema of results.json that is understood.
SCHEMA = 1
#: What real clips and models of one test set come to differs by no more than rounding.
SAME = 0.01
#: What results call the CLAPs of the evaluated bundle: its own and its second.
_OF_BUNDLES = ("bundle_clap", "clap_second")
#: Keys of a row whose values are texts, though they begin as a metric's do.
_TEXTS = ("_why", "_equal_calls_teacher")


def read_run(path: Path) -> dict[str, Any]:
    """Read the results of a run.

    Args:
        path: `results.json`, or the directory of the run that holds it.

    Returns:
        Its content.

    Raises:
        MusiccmError: There is none, it has another schema, or a key is missing or of another kind.
    """
    path = path / "results.json" if path.is_dir() else path
    result = read_json(path, "the results of an evaluated run")
    if result.get("schema") != SCHEMA or not result.get("rows"):
        raise MusiccmError(f"{path}: expected rows under schema {SCHEMA}; evaluate the run again (make eval)")
    for key, expected, value in _wrong(result):
        raise MusiccmError(f"{path}: {key}: expected {expected}, found {'none' if value is None else repr(value)}; "
                           "evaluate the run again (make eval)")
    return {**result, "path": path}


def _wrong(result: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """What of a file is not as it must be: key, what it should be, what it is; to be read up to the first."""
    from musiccm.evaluation.registry import find

    for key, kind, expected in (("experiment", str, "the experiment's name"), ("n", int, "a number of clips"),
                                ("rows", list, "a list of rows")):
        if not isinstance(result.get(key), kind):
            yield key, expected, result.get(key)
            return
    for key in ("references", "training", "embedders", "sim_aa_gallery"):
        if not isinstance(result.get(key), dict | None):
            yield key, "an object", result[key]
    for key in ("text_audio", "text_audio_fingerprint"):
        if not isinstance(result.get(key), str | None):
            yield key, "a text", result[key]
    for number, row in enumerate(result["rows"]):
        if not isinstance(row, dict):
            yield f"rows[{number}]", "an object", row
            continue
        for key, kind, expected in (("model", str, "a model's name"), ("steps", int, "a number of steps")):
            if not isinstance(row.get(key), kind):
                yield f"rows[{number}].{key}", expected, row.get(key)
        yield from _no_numbers(f"rows[{number}]", row, [key for key in row if find(key) and not key.endswith(_TEXTS)])
    references, training = result.get("references") or {}, result.get("training") or {}
    yield from _no_numbers("references", references, [key for key in references if _is_score(key)])
    yield from _no_numbers("training", training, ["seconds", "processor_seconds", "devices", "steps", "updates"])
    made = training.get("trajectories")
    if not isinstance(made, dict | None):
        yield "training.trajectories", "an object", made
    else:
        yield from _no_numbers("training.trajectories", made or {}, ["seconds", "processor_seconds"])


def _is_score(key: str) -> bool:
    """Whether a key of the references is read as a number."""
    return key == "test_set_ta" or (key.startswith("acc_") and key.endswith("_real"))


def _no_numbers(where: str, part: dict[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    for key in keys:
        if isinstance(part.get(key), bool) or not isinstance(part.get(key), int | float | None):
            yield f"{where}.{key}", "a number or null", part[key]


def read_runs(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Read the runs to compare.

    Results that are given twice, by one path or as a copy, count once: they are no further seed. Runs of one experiment
    whose students were sampled differently are none of each other's seeds either, and get names of their own.

    Args:
        paths: Their results.json, or the directories that hold these.

    Returns:
        Their contents, each with its `path`.

    Raises:
        MusiccmError: As `read_run`.
    """
    runs: list[dict[str, Any]] = []
    for path in paths:
        run = read_run(Path(path))
        twin = next((other for other in runs if other["path"].resolve() == run["path"].resolve()
                     or {**other, "path": None} == {**run, "path": None}), None)
        if twin is None:
            runs.append(run)
        else:
            log.warning("%s: the results of %s again; they count once", run["path"], twin["path"])
    return told_apart(runs)


def told_apart(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, those of one experiment named after their samplers too where these differ."""
    samplers: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        samplers[run["experiment"]].add(sampler_of(run))
    for experiment, found in samplers.items():
        if len(found) > 1:
            log.warning("%s: its runs were scored with several samplers (%s) and are not averaged over them",
                        experiment, "; ".join(sorted(found)))
    return [{**run, "experiment": f"{run['experiment']} ({sampler_of(run)})"}
            if len(samplers[run["experiment"]]) > 1 else run for run in runs]


def sampler_of(run: dict[str, Any]) -> str:
    """How the student of a run was sampled, as rows say it."""
    from musiccm.evaluation.rows import model_of
    from musiccm.models.bundle.student_record import recorded_sampler
    from musiccm.samplers import make_sampler

    stated = (row["sampler"] for row in run["rows"] if model_of(row) == "student" and row.get("sampler"))
    if (found := next(stated, None)) is not None and not {"sampler", "gamma"} & run.keys():
        return str(found)
    try:
        return str(make_sampler(recorded_sampler(run)))
    except (MusiccmError, TypeError):  # one that this version does not know
        return json.dumps(recorded_sampler(run), sort_keys=True)


def refuse_unlike(runs: Sequence[dict[str, Any]]) -> None:
    """Refuse runs whose distances do not compare.

    Args:
        runs: Contents of their results.json.

    Raises:
        MusiccmError: They were scored on different numbers of clips, on different clips, or by different evaluators.
    """
    first, metric = runs[0], fd_key(runs[0])
    clips: tuple[Any, Path] | None = None
    networks: dict[str, tuple[str, Path]] = {}
    for run in runs:
        if (run["n"], fd_key(run)) != (first["n"], metric):
            raise MusiccmError(f"{run['path']}: {fd_key(run)} on n = {run['n']}, but {first['path']} has {metric} on "
                               f"n = {first['n']}; distances of different n or evaluators cannot be compared")
        if run.get("test_clips"):
            clips = clips or (run["test_clips"], run["path"])
            if run["test_clips"] != clips[0]:
                raise MusiccmError(f"{run['path']}: test clips {json.dumps(run['test_clips'])}, but {clips[1]} has "
                                   f"{json.dumps(clips[0])}; distances on different clips cannot be compared")
        for name, fingerprint in (run.get("embedders") or {}).items():
            known, where = networks.setdefault(name, (fingerprint, run["path"]))
            if None not in (known, fingerprint) and known != fingerprint:
                raise MusiccmError(f"{run['path']}: embedders.{name} is {fingerprint}, but {where} has {known}: two "
                                   "networks of one name; evaluate the runs by the same, or compare them apart")


def fd_key(run: dict[str, Any]) -> str:
    """The Frechet distance's column: `fd_` and the evaluator."""
    from musiccm.evaluation.registry import find

    keys = (key for row in run["rows"] for key in row)
    found = next((key for key in keys if (known := find(key)) and known.metric.name == "fd"), None)
    if found is None:
        raise MusiccmError(f"{run['path']}: no row has a Frechet distance (fd_*); evaluate the run again (make eval)")
    return found


def unlike_keys(runs: Sequence[dict[str, Any]]) -> set[str]:
    """The keys of numbers that do not compare from run to run, though the distances do; that is said.

    Args:
        runs: Contents of their results.json.

    Returns:
        Keys of rows: SIM_AA over different training clips, similarities by different CLAPs.
    """
    return _of_training_clips(runs) | _of_claps(runs)


def _of_training_clips(runs: Sequence[dict[str, Any]]) -> set[str]:
    """The keys that depend on the training clips, where the runs compared with different ones."""
    if len({json.dumps(run.get("sim_aa_gallery"), sort_keys=True) for run in runs}) == 1:
        return set()
    keys = _keys_of(runs, "training")
    if keys:
        log.warning("SIM_AA is left out: the runs compared with different training clips (sim_aa_gallery); test the "
                    "older ones again")
    return keys


def _of_claps(runs: Sequence[dict[str, Any]]) -> set[str]:
    """The keys that depend on the CLAP that measures, where there were several.

    Fingerprints tell them apart, and names where a run of an older version states none: it called every CLAP `clap`
    that is not its bundle's. One name may stand for several networks, as each bundle has its own: what the real clips
    come to tells those apart.
    """
    keys = _keys_of(runs, "text", "real")
    by_clap = [run for run in runs if any(row.get(key) is not None for row in run["rows"] for key in keys)]
    named = [run for run in by_clap if run.get("text_audio")]
    stated = [run.get("text_audio_fingerprint") for run in named]
    kinds = {name if (name := str(run["text_audio"])) in _OF_BUNDLES else "another" for run in named}
    differ = len(set(filter(None, stated))) > 1 or (None in stated and len(kinds) > 1)
    real = [value for run in by_clap if (value := (run.get("references") or {}).get("test_set_ta")) is not None]
    if not differ and (not real or max(real) - min(real) <= SAME * max(map(abs, real))):
        return set()
    reals = ", ".join(f"{value:.3g}" for value in dict.fromkeys(real))
    names = ", ".join(sorted({_clap_of(run) for run in named}))
    log.warning("similarities of text and audio are left out: the runs measured them by different CLAPs (text_audio: "
                "%s; of the real clips: %s)", names or "not stated", reals or "not stated")
    return keys


def _clap_of(run: dict[str, Any]) -> str:
    """The CLAP of a run as its results name it."""
    found = run.get("text_audio_fingerprint")
    return str(run["text_audio"]) + (f" {found[:8]}" if found else "")


def _keys_of(runs: Sequence[dict[str, Any]], *scopes: str) -> set[str]:
    from musiccm.evaluation.registry import find

    return {key for run in runs for row in run["rows"] for key in row
            if (found := find(key)) and found.metric.scope in scopes}
