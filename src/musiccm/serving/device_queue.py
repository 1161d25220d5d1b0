"""The threads that compute: network calls of several jobs, the most urgent first, together where they fit together."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from musiccm.diffusion import AnyCondition, Condition, cat_conditions
from musiccm.errors import MusiccmError


class Caller(Protocol):
    """Whose calls are made; a `Job` is one."""

    def urgency(self) -> tuple[int, int]:
        """Smaller is first."""

    def check(self) -> None:
        """Raises what is to end the work."""

    def called(self, device_s: float) -> None:
        """A network call was made."""

    def worked(self, device_s: float) -> None:
        """Other work was done."""


@dataclass(eq=False)
class _Task:
    caller: Caller
    key: Hashable
    work: Callable[[], Any] | None = None
    network: Callable[..., Tensor] | None = None
    z: Tensor | None = None
    t: Tensor | None = None
    cond: AnyCondition | None = None
    more: Mapping[str | int, Tensor] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None

    @property
    def rows(self) -> int:
        return 0 if self.z is None else len(self.z)

    def finish(self, result: Any) -> None:
        self.result = result
        self.done.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.done.set()


class DeviceQueue:
    """Computes for jobs whose threads wait here.

    A turn takes the most urgent call and, with it, waiting calls that fit: of the same network and shape, whatever
    their noise levels, texts and guidance scales. A job may join others in the middle of their steps and leave them
    again, so that jobs of other numbers of steps share calls too.

    With `exact` each call of a turn is computed by itself, in the shape in which its job made it: a clip is then the
    same to the bit whatever ran beside it, and is taken alone, so that what came first is done first. Computed
    together, several calls differ by rounding.

    Args:
        exact: Compute each call by itself.
        max_batch: Rows of one network call made of several.
        window_s: How long a turn waits for further calls of jobs that are at work; 0 with `exact`.
        on_batch: Told the number of calls of each turn.
        lanes: Turns that are computed side by side, for CPUs; each has its part of the threads that one would have.
    """

    def __init__(
        self, exact: bool, max_batch: int = 8, window_s: float = 0.003, on_batch: Callable[[int], None] | None = None,
        lanes: int = 1,
    ) -> None:
        self.exact, self.max_batch, self.window_s = exact, max_batch, 0.0 if exact else window_s
        self._on_batch = on_batch or (lambda calls: None)
        self._waiting: list[_Task] = []
        self._limits: dict[Hashable, int] = {}
        self._active = self._computing = 0
        self._closed = False
        self._changed = threading.Condition()
        threads = max(1, torch.get_num_threads() // lanes) if lanes > 1 else None
        self._threads = [threading.Thread(target=self._serve, args=(threads,), name=f"device {lane}", daemon=True)
                         for lane in range(lanes)]
        for thread in self._threads:
            thread.start()

    def call(
        self, caller: Caller, model: object, network: Callable[..., Tensor], z: Tensor, t: Tensor, cond: AnyCondition,
        *more: Tensor, **named: Tensor,
    ) -> Tensor:
        """Make one network call, and wait for it.

        Args:
            caller: For whom.
            model: Whose network it is: calls of one model may be made together, also where each of its samplers holds
                the network in a wrapping of its own.
            network: `(z, t, cond, ...) -> x0`.
            z: Noisy latents.
            t: Timesteps.
            cond: Conditions.
            *more: Further tensors with the batch first, such as second times.
            **named: The same by name, such as held frames.

        Returns:
            The estimates.

        Raises:
            Cancelled: The caller is to end.
            MusiccmError: There is not enough memory for a single window.
        """
        further: dict[str | int, Tensor] = dict(enumerate(more))
        further.update(named.items())
        key = (id(model), z.shape[1:], z.dtype, t.dtype, _kind(cond), tuple(further))
        return self._wait(_Task(caller, key, None, network, z, t, cond, further))

    def run(self, caller: Caller, work: Callable[[], Any]) -> Any:
        """Do other work on the device, such as decoding, and wait for it.

        Args:
            caller: For whom.
            work: What to do.

        Returns:
            What it gave.

        Raises:
            Cancelled: The caller is to end.
        """
        return self._wait(_Task(caller, None, work))

    def at_work(self, change: int) -> None:
        """Jobs that will make calls are one more, or one less; a turn waits for them."""
        with self._changed:
            self._active += change
            self._changed.notify_all()

    def close(self) -> None:
        """Finish the turn that runs, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _wait(self, task: _Task) -> Any:
        task.caller.check()
        with self._changed:
            if self._closed:
                raise MusiccmError("the engine is closed")
            self._waiting.append(task)
            self._changed.notify_all()
        task.done.wait()
        if task.error is not None:
            raise task.error
        task.caller.check()
        return task.result

    def _serve(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)  # of this thread, and of those that begin later
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    for task in self._waiting:
                        task.fail(MusiccmError("the engine was closed"))
                    self._waiting.clear()
                    return
                turn = self._turn()
                self._computing += len(turn)
            if turn:
                self._compute(turn)
                with self._changed:
                    self._computing -= len(turn)
            del turn  # nothing is held while there is nothing to do

    def _turn(self) -> list[_Task]:
        """The calls of a turn, perhaps none; the lock is held, but for the time that further calls are waited for."""
        if self.window_s and not any(task.work for task in self._waiting):
            self._changed.wait_for(
                lambda: len(self._waiting) + self._computing >= self._active or self._closed, self.window_s)
        if not self._waiting:  # another lane took them meanwhile
            return []
        first = min(self._waiting, key=lambda task: task.caller.urgency())
        if first.work is None and not self.exact:
            limit = self._limits.get(first.key, self.max_batch)
            mates = sorted((task for task in self._waiting if task.key == first.key and task is not first),
                           key=lambda task: task.caller.urgency())
            turn, rows = [first], first.rows
            for task in mates:
                if rows + task.rows <= limit:
                    turn.append(task)
                    rows += task.rows
        else:
            turn = [first]
        for task in turn:
            self._waiting.remove(task)
        return turn

    @torch.no_grad()
    def _compute(self, turn: list[_Task]) -> None:
        alive = []
        for task in turn:
            try:
                task.caller.check()
                alive.append(task)
            except BaseException as error:
                task.fail(error)
        if not alive:
            return
        begin = time.perf_counter()
        try:
            if alive[0].work is not None:
                result = alive[0].work()
                alive[0].caller.worked(time.perf_counter() - begin)
                alive[0].finish(result)
                return
            results = self._together(alive)
        except BaseException as error:
            for task in alive:
                task.fail(error)
            return
        self._on_batch(len(alive))
        share_s = (time.perf_counter() - begin) / len(alive)
        for task, result in zip(alive, results, strict=True):
            try:
                task.caller.called(share_s)
                task.finish(result)
            except BaseException as error:
                task.fail(error)

    def _together(self, tasks: Sequence[_Task]) -> list[Tensor]:
        """Estimates of several calls; where memory was too little before, of as many rows as it held at a time."""
        key, rows = tasks[0].key, sum(task.rows for task in tasks)
        if rows <= self._limits.get(key, rows):
            try:
                return _computed(tasks)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                cause = error
            free_memory()
            if rows < 2:
                raise MusiccmError("memory: there is not enough for one window of this model; use a smaller model, or "
                                   "another device") from cause
            self._limits[key] = rows // 2
        if len(tasks) > 1:
            half = len(tasks) // 2
            return [*self._together(tasks[:half]), *self._together(tasks[half:])]
        parts = [slice(0, rows // 2), slice(rows // 2, rows)]
        return [torch.cat([self._together([_rows(tasks[0], part)])[0] for part in parts])]


def _computed(tasks: Sequence[_Task]) -> list[Tensor]:
    network = tasks[0].network
    assert network is not None
    if len(tasks) == 1:
        return [_call(network, tasks[0].z, tasks[0].t, tasks[0].cond, tasks[0].more)]
    z, t = torch.cat([task.z for task in tasks]), torch.cat([task.t for task in tasks])
    cond = cat_conditions([task.cond for task in tasks if task.cond is not None])
    more = {name: torch.cat([task.more[name] for task in tasks]) for name in tasks[0].more}
    return list(_call(network, z, t, cond, more).split([task.rows for task in tasks]))


def _call(network: Callable[..., Tensor], z: Any, t: Any, cond: Any, more: Mapping[str | int, Tensor]) -> Tensor:
    placed = [tensor for name, tensor in more.items() if isinstance(name, int)]
    return network(z, t, cond, *placed, **{name: tensor for name, tensor in more.items() if isinstance(name, str)})


def _rows(task: _Task, part: slice) -> _Task:
    assert task.z is not None and task.t is not None and task.cond is not None
    return _Task(task.caller, task.key, None, task.network, task.z[part], task.t[part], task.cond[part],
                 {name: tensor[part] for name, tensor in task.more.items()})


def _kind(cond: AnyCondition) -> Hashable:
    """What conditions must have in common to be joined."""
    if not isinstance(cond, Condition):
        return "vector"
    return tuple(part is not None for part in (cond.tokens_BLD, cond.pooled_BD, cond.guidance_B))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory."""
    said = str(error)
    return (isinstance(error, MemoryError | torch.OutOfMemoryError)
            or (isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)))


def free_memory() -> None:
    """Give back what a GPU's allocator keeps."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
