"""SIGINT, SIGTERM and SIGUSR1 end a command: by one exception, soon, with an exit code that says what to do next.

The handler raises `Ended` where the main thread stands, as Ctrl-C always did, so that no loop has to ask. Where work
must not be cut (`held`, `hold`) a signal is only noted, and answered behind it. Nothing is installed outside a command,
nor in a thread other than the main one: a library leaves signals to the program that it is part of.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn, TypeVar

ExecutorT = TypeVar("ExecutorT", bound=Executor)

#: EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again to go on.
EXIT_REQUEUE = 75
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
#: A command whose main thread has not left by then, as it waits within a library, is ended as by SIGKILL.
PATIENCE_S = 8.0
#: A second signal ends at once; not within this time, for a launcher sends on to its processes what all of them got.
SAME_NOTICE_S = 2.0


class Ended(SystemExit):
    """A signal has ended the command.

    Args:
        number: The signal.

    Attributes:
        number: The signal.
        said: Whether the user has been told already.
    """

    def __init__(self, number: int) -> None:
        super().__init__(exit_code(number))
        self.number = number
        self.said = False
        if _command is not None:
            _command.waiting = False


@dataclass
class _Command:
    resumes: bool
    number: int | None = None
    holds: int = 0
    cut: int = 0  # of so many holds it does not matter, see `interruptible`
    waiting: bool = False  # the signal was noted, and no `Ended` answers it yet
    sent_on: bool = False  # by another thread, to the main one: it is the first signal again
    echoes: int = 0  # so many of those has `_watch` not seen yet
    since_s: float = field(default_factory=time.monotonic)


_command: _Command | None = None


def exit_code(number: int) -> int:
    """What a command returns that a signal has ended.

    Args:
        number: The signal.

    Returns:
        75 where the same command goes on from what was done, else 128 and the signal's number, as shells have it; 130
        for SIGINT in any case.
    """
    resumes = _command is not None and _command.resumes and number != signal.SIGINT
    return EXIT_REQUEUE if resumes else 128 + number


def name_of(number: int) -> str:
    """`SIGTERM` and so on."""
    return signal.Signals(number).name


@contextlib.contextmanager
def handled(resumes: bool) -> Iterator[None]:
    """Answer signals while a command runs; a second one within is a part of the first.

    Args:
        resumes: Whether the same command, run again, goes on from what was done.
    """
    global _command
    if _command is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _command = _Command(resumes)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # A signal that the parent ignores, as a shell does for what runs in the background, stays ignored.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, _note)
    watch = threading.Thread(target=_watch, args=(reading, _command), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")
        watch.join()
        os.close(reading)
        os.close(writing)
        _command = None


def received() -> int | None:
    """The signal that the command was sent, if any."""
    return None if _command is None else _command.number


def check() -> None:
    """Leave, if the command was told to.

    Raises:
        Ended: It was.
    """
    number = received()
    if number is not None:
        raise Ended(number)


def hold() -> None:
    """From here on a signal is only noted; ended by `release`."""
    if _command is not None:
        _command.holds += 1


def release() -> None:
    """End what `hold` began; who wants to know whether a signal came asks `received` or `check`."""
    if _command is not None:
        _command.since_s = time.monotonic()
        _command.holds -= 1


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A stretch that is not cut, such as a swap of two folders; a signal that came is answered behind it.

    By the main thread, whichever has the stretch: it alone can end the command, and another one that raised would lose
    its work, and the main one would not leave.

    Raises:
        Ended: A signal came; in the main thread.
    """
    hold()
    try:
        yield
    finally:
        release()
        if threading.current_thread() is not threading.main_thread():
            _send_on()
    if threading.current_thread() is threading.main_thread():
        check()


def _send_on() -> None:
    """Let the main thread answer a signal that was noted while it was held off, now that nothing holds it off."""
    command = _command
    if command is not None and command.number is not None and command.waiting and command.holds <= command.cut:
        command.sent_on, command.echoes = True, command.echoes + 1
        signal.pthread_kill(threading.main_thread().ident or 0, command.number)  # wakes it, where it waits


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A stretch within `hold` that may be cut anywhere.

    Raises:
        Ended: A signal came, before or within.
    """
    if _command is None:
        yield
        return
    command, before = _command, _command.cut
    command.cut = command.holds
    try:
        check()
        yield
    finally:
        command.cut = before


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which on a busy machine took longer than all before it.

    What was registered for the end is still called, and what is buffered written.

    Args:
        code: What the process returns.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)


def _note(number: int, frame: FrameType | None) -> None:
    command = _command
    if command is None or (command.number is not None and not command.sent_on):
        return
    if command.number is None:
        command.number, command.since_s, command.waiting = number, time.monotonic(), True
    command.sent_on = False
    if command.waiting and command.holds <= command.cut:
        raise Ended(command.number)


def _watch(reading: int, command: _Command) -> None:
    """End a process that does not answer.

    The interpreter writes each signal's number into a pipe at once, also where the main thread is within a library and
    the handler has to wait.
    """
    first: tuple[int, float] | None = None
    while True:
        ready, _, _ = select.select([reading], [], [], None if first is None else 0.5)
        now = time.monotonic()
        number = os.read(reading, 1)[0] if ready else -1
        if number == 0:
            return
        if number in SIGNALS and command.echoes:
            command.echoes -= 1
        elif number in SIGNALS:
            if first is None:
                first = number, now
            elif now - first[1] >= SAME_NOTICE_S:
                _stop(first[0], "a second signal")
        elif first is not None and not command.echoes:
            _send_on()  # the main thread may have been about to wait when it came, and waits without having seen it
        if first is not None and not command.holds and now - max(first[1], command.since_s) >= PATIENCE_S:
            _stop(first[0], f"no answer within {PATIENCE_S:g} s")


def _stop(number: int, why: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"musiccm: {name_of(number)}, {why}: ended at once\n".encode())
    os._exit(exit_code(number))


@contextlib.contextmanager
def leaving_queue(pool: ExecutorT) -> Iterator[ExecutorT]:
    """A pool that an exception closes without its queue, when what was begun is done.

    Args:
        pool: The pool; on its own it would finish all that was handed in before an exception gets through.
    """
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_worker() -> None:
    """Leave signals to the parent, in a process that works for a command; ends with the parent, however that ends."""
    import multiprocessing
    from multiprocessing.connection import wait

    _leave_to_parent()
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()


def _leave_to_parent() -> None:
    # Ctrl-C, and what a scheduler sends to all processes of a job, is for the parent to answer: it ends its workers.
    for number in SIGNALS:
        with contextlib.suppress(ValueError):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def _after_fork() -> None:
    global _command
    if _command is None:
        return
    _command = None
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)
    _leave_to_parent()


_register: Any = getattr(os, "register_at_fork", None)
if _register is not None:
    _register(after_in_child=_after_fork)
