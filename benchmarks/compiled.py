"""A fresh process from its start to the end of its first clip: compiled ahead of time, against compiling and neither.

`generate --compiled` reads what `export --compiled` wrote; `generate --compile inductor` compiles into an empty cache,
as a new machine does. Seconds of the clock, which other work disturbs, and of the processor. In bf16 on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from musiccm.commands._timing import row, student_of
from musiccm.device import choose_device
from musiccm.errors import MusiccmError

#: Of the processes that compile nothing; those that do take minutes and are run once.
REPEATS = 3


def taken_s(arguments: list[str], folder: Path, cache: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor that a command takes, compilers that it starts included.

    Args:
        arguments: Behind `musiccm`.
        folder: Where it runs.
        cache: The folder below that its compiler keeps things in.

    Raises:
        MusiccmError: It failed.
    """
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / cache)}
    with (folder / "said").open("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "musiccm", *arguments], cwd=folder, stdout=said, stderr=said,
                                   env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise MusiccmError(f"musiccm {' '.join(arguments)}: exit code {process.returncode}: {said.read()[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime


def run(bundle: str) -> list[dict]:
    half = ["--half"] if choose_device("auto") == "cuda" else []
    student = student_of(bundle)
    if Path(student).is_dir():  # the commands run in another folder
        student = str(Path(student).resolve())
    generate = ["generate", "slow organ chords", "--model", student, "--steps", "4", "--force", *half]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ahead = [taken_s(["export", "--compiled", student, "--out", "package", *half], folder, "ahead")]
        inductor = [taken_s([*generate, "--compile", "inductor"], folder, "inductor")]
        taken_s(generate, folder, "none")  # not counted: byte code, files of the system's cache
        packaged, plain = [], []
        for _ in range(REPEATS):  # in turns, so that both meet the same load
            packaged.append(taken_s([*generate, "--compiled", "package"], folder, "none"))
            plain.append(taken_s(generate, folder, "none"))
    rows = []
    for place, unit in enumerate(("s", "processor s")):
        ours = [one[place] for one in packaged]
        rows += [row("first clip, against --compile inductor", ours, [one[place] for one in inductor], unit),
                 row("first clip, against neither", ours, [one[place] for one in plain], unit),
                 row("export --compiled, against --compile inductor", [one[place] for one in ahead],
                     [one[place] for one in inductor], unit)]
    return rows
