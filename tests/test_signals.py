"""What ends a command: where it leaves, what is not cut, and with which exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from musiccm import cli, commands, signals


def me(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs at the next bytecode


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a function as a command of the command line, under any name."""

    def run(work: Callable[[], object], name: str = "break") -> int:
        monkeypatch.delenv("MUSICCM_DEBUG", raising=False)
        monkeypatch.setattr(commands, "summaries", lambda: {name: "x"})
        monkeypatch.setattr(commands, "TRAINER_COMMANDS", {})
        monkeypatch.setattr(commands, "load", lambda _: lambda argv: work() or 0)
        return cli.main([name])

    return run


@pytest.mark.parametrize(("name", "number", "code"), [
    ("fit", signal.SIGTERM, 75), ("test", signal.SIGUSR1, 75), ("prepare", signal.SIGTERM, 75),
    ("prepare", signal.SIGINT, 130), ("generate", signal.SIGTERM, 143), ("generate", signal.SIGUSR1, 138),
    ("export", signal.SIGINT, 130),
])
def test_exit_codes_and_handlers_put_back(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str, number: int, code: int
) -> None:
    before = [signal.getsignal(n) for n in signals.SIGNALS]
    cleaned = []

    def work() -> None:
        try:
            me(number)
            time.sleep(60)
        finally:
            cleaned.append(True)

    assert command(work, name) == code and cleaned == [True]
    shown = capsys.readouterr().err
    assert ("run the same command again" in shown) == (code == 75)
    assert ("interrupted" if code == 130 else signal.Signals(number).name) in shown and shown.count("\n") == 1
    assert [signal.getsignal(n) for n in signals.SIGNALS] == before
    assert "signals" not in [thread.name for thread in threading.enumerate()]
    assert signals.received() is None


def test_what_must_not_be_cut_is_done_first(command: Callable[..., int]) -> None:
    done: list[str] = []

    def work() -> None:
        with signals.held():
            me(signal.SIGTERM)
            done.append("the whole of it")
        done.append("more")

    assert command(work) == 143 and done == ["the whole of it"]


def test_what_another_thread_must_not_cut_is_done_and_the_main_one_leaves(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is not ended by a signal that it cannot answer, then or later; the main one is woken, and once."""
    monkeypatch.setattr(signals, "SAME_NOTICE_S", 0.0)
    monkeypatch.setattr(signals, "_stop", lambda number, why: stopped.append(why))
    stopped: list[str] = []
    done: list[str] = []
    held, came, left = threading.Event(), threading.Event(), threading.Event()

    def aside() -> None:
        with signals.held():
            held.set()
            came.wait(60)
            done.append("the whole of it")
        done.append("more")
        left.wait(60)
        with signals.held():
            done.append("and later")
        done.append("to its end")

    def work() -> None:
        thread = threading.Thread(target=aside)
        thread.start()
        held.wait(60)
        me(signal.SIGTERM)  # is noted
        try:
            came.set()
            time.sleep(60)
            done.append("never")
        finally:
            left.set()
            thread.join(60)
            done.append("cleared up")

    assert command(work) == 143
    assert done == ["the whole of it", "more", "and later", "to its end", "cleared up"] and not stopped


def test_an_error_within_goes_before_the_signal(command: Callable[..., int]) -> None:
    def work() -> None:
        with signals.held():
            me(signal.SIGTERM)
            raise KeyError("lost")

    assert command(work) == 1


def test_a_hold_can_be_opened(command: Callable[..., int]) -> None:
    done: list[str] = []

    def work() -> None:
        signals.hold()
        try:
            with signals.interruptible():
                with signals.held():  # of its own, within
                    me(signal.SIGUSR1)
                    done.append("held")
                done.append("more")
        finally:
            signals.release()

    assert command(work) == 138 and done == ["held"]

    def noted_before() -> None:
        with signals.held():
            me(signal.SIGUSR1)
            with signals.interruptible():
                done.append("never")

    assert command(noted_before) == 138 and done == ["held"]


def test_one_notice_is_one_signal_however_often_it_comes(command: Callable[..., int]) -> None:
    done: list[str] = []

    def work() -> None:
        with signals.held():
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                me(number)
            time.sleep(0.2)
            done.append("whole")

    assert command(work) == 143 and done == ["whole"]


def test_outside_a_command_and_in_other_threads_signals_are_left_alone() -> None:
    before = [signal.getsignal(n) for n in signals.SIGNALS]
    with signals.held(), signals.interruptible():
        signals.check()
    inside: list[object] = []

    def elsewhere() -> None:
        with signals.handled(resumes=True):
            inside.extend(signal.getsignal(n) for n in signals.SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == before
    assert signals.exit_code(signal.SIGTERM) == 143


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with signals.handled(resumes=False):
            me(signal.SIGUSR1)
            assert signals.received() is None
    finally:
        signal.signal(signal.SIGUSR1, before)


def nap(_: int) -> None:
    time.sleep(0.2)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_pool_that_is_left_drops_its_queue(command: Callable[..., int], kind: type) -> None:
    def work() -> None:
        with signals.leaving_queue(kind(2)) as pool:
            waiting = pool.map(nap, range(1000))
            next(waiting)
            me(signal.SIGTERM)

    start = time.monotonic()
    assert command(work) == 143
    assert time.monotonic() - start < 30, "100 s of work were queued"


STUCK = """
import hashlib, sys
from musiccm import cli, commands, signals
signals.PATIENCE_S, signals.SAME_NOTICE_S = float(sys.argv[1]), 0.3

def stuck():
    print("in", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)  # no handler runs until this returns

commands.summaries = lambda: {"stuck": "x"}
commands.load = lambda name: lambda argv: stuck()
sys.exit(cli.main(["stuck"]))
"""


@pytest.mark.parametrize(("patience_s", "signals_sent", "said"), [(1.0, 1, "no answer within 1 s"),
                                                                 (600.0, 2, "a second signal")])
def test_a_command_that_is_stuck_in_a_library_ends_all_the_same(
    patience_s: float, signals_sent: int, said: str
) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(patience_s)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        for _ in range(signals_sent):
            time.sleep(1)  # until it is in the library, and a second signal is no part of the first
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143 and said in err


LEAVING = """
import atexit, os, signal, sys
from musiccm import cli, commands

class Slow:  # in place of libraries that the interpreter takes apart at its end
    def __del__(self):
        os.write(1, b"taken apart\\n")

atexit.register(print, "at exit")

def work():
    slow = Slow()  # of the command's own: what was there when it was loaded is never searched again
    slow.itself = slow
    print("buffered")
    if sys.argv[1:] == ["broken"]:
        os.kill(os.getpid(), signal.SIGTERM)
    return 3

commands.summaries = lambda: {"broken": "x", "done": "x"}
commands.load = lambda name: lambda argv: work()
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("name", "code", "last"), [("broken", 143, "at exit"), ("done", 3, "taken apart")])
def test_after_a_signal_the_interpreter_is_not_taken_apart(name: str, code: int, last: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING, name], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    said = done.stdout.split("\n")[:-1]
    assert said[:2] == ["buffered", "at exit"] and said[-1] == last
