"""measure speed against a baseline in the same run, and write benchmarks/results/NAME.json.

A benchmark is a file with a function `run(bundle)` that returns rows; where it has a `plot(path, rows)` too, that draws
NAME.png beside them. Every benchmark computes on the GPU where there is one, unless it says `CPU_ONLY = True`. One that
times a part of a long baseline says `WHOLE = False`, which `--whole` makes True.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from musiccm.errors import MusiccmError
from musiccm.terminal import say
from musiccm.texts import number_text

SCHEMA = 1


def main(argv: list[str]) -> int:
    """Run `musiccm bench`.

    Args:
        argv: The arguments behind `bench`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    from musiccm.files import write_json

    folder = Path(args.dir)
    for path in chosen(folder, args.name):
        module = load(path)
        if args.whole:
            time_all(path, module, args.name)
        machine = describe_machine(getattr(module, "CPU_ONLY", False))
        say(f"{path.stem}: {(module.__doc__ or '').partition(chr(10))[0]}",
            f"on {machine['gpu'] or machine['processor']}")
        start = time.perf_counter()
        rows = checked(path, module.run(args.bundle))
        gpu = f"-{re.sub('[^a-z0-9]+', '-', machine['gpu'].lower())}" if machine["gpu"] else ""
        out = folder / "results" / f"{path.stem}{gpu}.json"
        write_json(out, {"schema": SCHEMA, "machine": machine, "bundle": args.bundle, "rows": rows})
        if hasattr(module, "plot"):
            module.plot(out.with_suffix(".png"), rows)
        say(table(rows), f"{out}: {time.perf_counter() - start:.0f} s\n")
    return 0


def chosen(folder: Path, name: str) -> list[Path]:
    """The files of the benchmarks that were asked for: every `*.py` of the folder without a leading underscore.

    Raises:
        MusiccmError: There is no such folder or benchmark.
    """
    found = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    if not found:
        raise MusiccmError(f"{folder}: no benchmarks there, and an installed musiccm brings none; run this in a clone "
                           "of the project, or name their folder by --dir")
    if name == "all":
        return list(found.values())
    if name not in found:
        raise MusiccmError(f"there is no benchmark {name!r}; expected all or one of {', '.join(found)}")
    return [found[name]]


def load(path: Path) -> ModuleType:
    """Import a benchmark from its file.

    Raises:
        MusiccmError: It has no function `run`.
    """
    name = f"musiccm_benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # worker processes that a benchmark starts look its functions up here
    spec.loader.exec_module(module)
    if not callable(getattr(module, "run", None)):
        raise MusiccmError(f"{path}: a benchmark needs a function run(bundle) that returns rows")
    return module


def time_all(path: Path, module: ModuleType, named: str) -> None:
    """Let a benchmark time all of its baseline; among all, those that do so anyway are left as they are.

    Raises:
        MusiccmError: It was asked for by name, and times no part of anything.
    """
    if hasattr(module, "WHOLE"):
        module.WHOLE = True  # type: ignore[attr-defined]
    elif named != "all":
        raise MusiccmError(f"--whole: {path} times everything whole as it is; leave the option out")


def checked(path: Path, rows: Any) -> list[dict[str, Any]]:
    """Rows with all the keys of the schema.

    Raises:
        MusiccmError: The benchmark returned something else.
    """
    from musiccm.commands._timing import ROW_KEYS

    if not isinstance(rows, list) or not rows:
        raise MusiccmError(f"{path}: run() must return a list of rows, found {type(rows).__name__} ({rows!r:.60})")
    for row in rows:
        lacking = [key for key in ROW_KEYS if key not in row]
        if lacking:
            raise MusiccmError(f"{path}: a row lacks {', '.join(lacking)}: {row!r:.120}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text."""
    head = ("case", "ours", "baseline", "unit", "ratio", "target", "n")
    cells = [head, *[tuple(number_text(row[key], none="-") for key in head) for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def describe_machine(cpu_only: bool = False) -> dict[str, Any]:
    """What the figures were taken on.

    Args:
        cpu_only: Whether a GPU, if there is one, had no part in them.

    Returns:
        Names and numbers; `gpu` is None where none was used.
    """
    import torch

    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # other work disturbs figures
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and not cpu_only else None,
        "torch": torch.__version__,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm bench", description=__doc__)
    parser.add_argument("name", nargs="?", default="all", help="a file of the folder without .py, or all (default)")
    parser.add_argument("--bundle", default="musiccm-tiny", help="name, directory or hub id (default %(default)s)")
    parser.add_argument("--whole", action="store_true", help="time long baselines whole, of which a part stands for "
                                                             "the rest otherwise (minutes to hours)")
    parser.add_argument("--dir", default="benchmarks", help="where the benchmarks are (default %(default)s)")
    return parser
