"""Which calls are made together, in which order, and that each gets its own answer: a network of closed form."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from musiccm.diffusion import Condition, told_scale
from musiccm.errors import MusiccmError
from musiccm.serving.device_queue import DeviceQueue
from musiccm.serving.errors import Cancelled
from musiccm.serving.jobs import Job
from musiccm.serving.request import MusicRequest
from musiccm.serving.streams import LEAD_S, StreamJob


@dataclass(eq=False)
class Asking:
    """A caller on a thread of its own."""

    place: int
    ended: bool = False
    calls: int = 0
    result: Any = None
    thread: threading.Thread | None = field(default=None)

    def urgency(self) -> tuple[int, int]:
        return 0, self.place

    def check(self) -> None:
        if self.ended:
            raise Cancelled

    def called(self, device_s: float) -> None:
        self.calls += 1

    def worked(self, device_s: float) -> None:
        pass

    def begin(self, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self.result = work()
            except BaseException as error:
                self.result = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def end(self) -> Any:
        assert self.thread is not None
        self.thread.join(20)
        return self.result


class Network:
    """z t + the condition's sum + its scale + the held frames, row by row; the first call waits."""

    def __init__(self) -> None:
        self.go, self.begun, self.rows = threading.Event(), threading.Event(), []

    def __call__(self, z: Tensor, t: Tensor, cond: Any, held_BT: Tensor | None = None) -> Tensor:
        self.begun.set()
        assert self.go.wait(20)
        self.rows.append(len(z))
        return self.expected(z, t, cond, held_BT)

    @staticmethod
    def expected(z: Tensor, t: Tensor, cond: Any, held_BT: Tensor | None) -> Tensor:
        told = cond.pooled_BD.sum(1) + cond.guidance_B if isinstance(cond, Condition) else cond.sum(1)
        made = z * t[:, None] + told[:, None]
        return made if held_BT is None else made + held_BT


def asked(number: int, rows: int = 1, width: int = 4, scale: float | None = None, held: bool = False) -> tuple:
    cond: Any = torch.full((rows, 3), float(number))
    cond = cond if scale is None else told_scale(cond, scale)
    return (torch.full((rows, width), number + 1.0), torch.full((rows,), number + 2.0), cond,
            torch.full((rows, width), 100.0 * number) if held else None)


def gathered(exact: bool, calls: list[tuple]) -> tuple[Network, list[Any]]:
    """Calls that come while another one runs."""
    network, queue = Network(), DeviceQueue(exact, max_batch=4, window_s=0.0)
    callers = [Asking(place) for place in range(len(calls) + 1)]

    def call(caller: Asking, z: Tensor, t: Tensor, cond: Any, held_BT: Tensor | None) -> Tensor:
        named = {} if held_BT is None else {"held_BT": held_BT}
        return queue.call(caller, "model", network, z, t, cond, **named)

    callers[0].begin(lambda: call(callers[0], *asked(0)))
    assert network.begun.wait(20)
    for caller, wanted in zip(callers[1:], calls, strict=True):
        caller.begin(lambda caller=caller, wanted=wanted: call(caller, *wanted))
        while len(queue._waiting) < caller.place:
            time.sleep(0.001)
    network.go.set()
    results = [caller.end() for caller in callers][1:]
    queue.close()
    assert all(caller.calls == 1 for caller in callers)
    return network, results


@pytest.mark.parametrize(("calls", "rows"), [
    ([asked(1), asked(2), asked(3)], [3]),
    ([asked(n) for n in range(1, 7)], [4, 2]),
    ([asked(1, rows=3), asked(2, rows=2), asked(3)], [4, 2]),  # what still fits is taken, though it came later
    ([asked(1, rows=6), asked(2)], [6, 1]),  # a job's own batch is never cut without need
    ([asked(1), asked(2, width=5), asked(3)], [2, 1]),
    ([asked(1), asked(2, scale=2.0), asked(3, scale=4.0), asked(4)], [2, 2]),
    ([asked(1, held=True), asked(2), asked(3, held=True)], [2, 1]),
])
@pytest.mark.parametrize("exact", [False, True])
def test_calls_that_fit_are_made_together(calls, rows, exact):
    network, results = gathered(exact, calls)
    assert network.rows[1:] == ([len(call[0]) for call in calls] if exact else rows)
    for result, call in zip(results, calls, strict=True):
        assert torch.equal(result, Network.expected(*call))


@pytest.mark.parametrize("exact", [True, False])
def test_lanes_side_by_side_answer_every_call_once(exact):
    rows, both = [], threading.Barrier(2, timeout=20)

    def network(z: Tensor, t: Tensor, cond: Any) -> Tensor:
        rows.append(len(z))
        if len(rows) <= 2:
            both.wait()  # two are computed at the same time
        return Network.expected(z, t, cond, None)

    queue = DeviceQueue(exact, max_batch=3, window_s=0.002, lanes=2)
    callers = [Asking(place) for place in range(8)]
    for caller in callers:
        queue.at_work(1)
        caller.begin(lambda caller=caller: [queue.call(caller, "model", network, *asked(caller.place + turn)[:3])
                                            for turn in range(20)])
    for caller in callers:
        for turn, result in enumerate(caller.end()):
            assert torch.equal(result, Network.expected(*asked(caller.place + turn)))
    queue.close()
    assert sum(rows) == 160 and all(caller.calls == 20 for caller in callers)
    assert set(rows) == {1} if exact else 1 < max(rows) <= 3


def test_who_is_cancelled_while_waiting_is_not_computed_for():
    network, queue = Network(), DeviceQueue(True)
    first, second = Asking(0), Asking(1)
    first.begin(lambda: queue.call(first, "model", network, *asked(0)[:3]))
    assert network.begun.wait(20)  # whose thread comes first is computed first: the second one asks while it is
    second.begin(lambda: queue.call(second, "model", network, *asked(1)[:3]))
    while not queue._waiting:
        time.sleep(0.001)
    second.ended = True
    network.go.set()
    assert isinstance(first.end(), Tensor) and isinstance(second.end(), Cancelled) and network.rows == [1]
    assert isinstance(queue.run(first, lambda: 3), int)
    with pytest.raises(ZeroDivisionError):
        queue.run(first, lambda: 1 / 0)
    queue.close()
    with pytest.raises(MusiccmError, match="closed"):
        queue.run(first, lambda: 3)


def test_a_stream_goes_first_until_it_is_ahead_of_its_listener():
    request = MusicRequest("m", ((0.0, "x"),))
    job = Job("a", "", 10, request, 1, 0.0)
    stream = StreamJob("b", "", 0, request, 2, 0.0)
    assert stream.urgency() < job.urgency()
    stream.heard_from_s, stream.made_s = time.monotonic(), LEAD_S - 1
    assert stream.urgency() < job.urgency()
    stream.made_s = LEAD_S + 10
    assert stream.urgency() > job.urgency()
    stream.heard_from_s -= 11
    assert stream.urgency() < job.urgency()
