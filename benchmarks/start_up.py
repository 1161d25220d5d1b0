"""Processor time of commands from their start to their end, against `import torch` in the same run.

User and system time of a process each, its end included, which other work on the machine disturbs less than the clock;
one thread. Byte code is kept, as Python does by itself: a first run, which is not counted, compiles it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from musiccm.commands._timing import row, student_of
from musiccm.errors import MusiccmError

CPU_ONLY = True
REPEATS = 5
TORCH = ["-c", "import torch"]
#: What models of other kinds, and edits, ask of their libraries: the networks' classes, and the filters of loudness.
LIBRARIES = ["-c", "from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel; "
                   "from transformers.models.clap.modeling_clap import ClapModel; import scipy.signal"]


def processor_s(arguments: list[str], folder: Path, code: int = 0) -> float:
    """Seconds of user and system time that a Python process takes.

    Args:
        arguments: Behind `python`.
        folder: Where it runs, and keeps byte code.
        code: The exit code that it is to have.

    Raises:
        MusiccmError: It ended with another one.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            said.seek(0)
            raise MusiccmError(f"python {' '.join(arguments)}: expected exit code {code}, found {process.returncode}: "
                               f"{said.read()[-500:]}")
    return usage.ru_utime + usage.ru_stime


def run(bundle: str) -> list[dict]:
    generate = ["-m", "musiccm", "generate", "slow organ chords", "--model"]
    student = student_of(bundle)
    if Path(student).is_dir():  # the commands run in another folder
        student = str(Path(student).resolve())
    cases = {  # with the ratio of `import torch` to them that is asked for
        "musiccm --help": (["-m", "musiccm", "--help"], 0, None),
        "generate refuses --steps 3000": ([*generate, student, "--steps", "3000"], 2, None),
        "fit --help": (["-m", "musiccm", "fit", "--help"], 0, None),
        "libraries' networks and filters alone": (LIBRARIES, 0, None),
        "generate, student, 1 step": ([*generate, student, "--steps", "1", "--force"], 0, 1 / 1.6),
        "fit, its settings read": (["-m", "musiccm", "fit", "--config", "demo", "--print_config"], 0, 1 / 2.5),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken: dict[str, list[float]] = {case: [] for case in cases}
        torch: list[float] = []
        for number in range(REPEATS + 1):  # in turns, so that all meet the same load
            once = processor_s(TORCH, folder)
            found = {case: processor_s(arguments, folder, code) for case, (arguments, code, _) in cases.items()}
            if number:
                torch.append(once)
                for case, seconds in found.items():
                    taken[case].append(seconds)
    return [row(case, taken[case], torch, "s", target) for case, (_, _, target) in cases.items()]
