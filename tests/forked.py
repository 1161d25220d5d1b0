"""Processes without the ten seconds of imports that each would begin with: forked from one that has imported already.

They share nothing with the test's own process, and can be killed and waited for as any other; what happens before
`musiccm.cli.main` runs is left out, which tests that start a Python of their own cover.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
_CONTEXT = multiprocessing.get_context("forkserver")


def _ready() -> None:
    """The process that is forked from: started at the first need, one for all tests of this process."""
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    _CONTEXT.set_forkserver_preload(["forked_libraries"])
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()


def spawn(worker: Callable[..., Any], arguments: tuple, processes: int) -> None:
    """`torch.multiprocessing.spawn`: run `worker(rank, *arguments)` in so many processes, and wait for all."""
    from torch.multiprocessing import start_processes

    _ready()
    start_processes(worker, arguments, processes, start_method="forkserver")


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """`multiprocessing.Process` of a function that a module has, started on one thread."""
    _ready()
    process = _CONTEXT.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def rank_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process on one machine."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
            "GLOO_SOCKET_IFNAME": "lo"}


def _command(
    arguments: list[str], folder: str, environment: dict[str, str], modules: str, printed: str
) -> None:
    with open(printed, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if modules:
        sys.path.insert(0, modules)
    sys.argv = ["musiccm", *arguments]
    import torch
    from lightning_fabric.utilities.rank_zero import _get_rank, rank_zero_only

    from musiccm.cli import main

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rank_zero_only.rank = _get_rank() or 0  # Lightning reads the launcher's variables when it is imported
    sys.exit(main())


class Command:
    """`musiccm` as a process of its own, by the methods of `subprocess.Popen`.

    Args:
        arguments: Of the command line.
        folder: To work in.
        modules: Folder of modules that it may import.
        variables: Of its environment, beside those of the test's process; it computes on one thread if none says more.
    """

    def __init__(
        self, arguments: Sequence[object], folder: Path, modules: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        _ready()
        self._printed = tempfile.NamedTemporaryFile()
        kept = {key: value for key, value in os.environ.items() if key != "MUSICCM_DEBUG"}
        environment = {**kept, "OMP_NUM_THREADS": "1", **(variables or {})}
        given = ([str(argument) for argument in arguments], str(folder), environment, str(modules or ""),
                 self._printed.name)
        self._process = _CONTEXT.Process(target=_command, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for its end; what it has printed to both streams."""
        self._process.join(timeout)
        printed = Path(self._printed.name).read_text(errors="replace")
        if self.returncode is None:
            raise TimeoutError(f"still running after {timeout} s:\n{printed}")
        return printed, None
