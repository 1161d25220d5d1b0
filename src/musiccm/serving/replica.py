"""What computes for an engine in another process or on another machine, and what the two say to each other.

A question is one computation of one part of a model on its arguments alone: a network call, a decoding, a reading of
texts. A replica holds nothing between questions, so that any can answer any, and one that is lost loses no more than
the time of what it was asked: the same question, asked again, has the same answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from musiccm.errors import MusiccmError
from musiccm.serving.device_queue import free_memory, out_of_memory
from musiccm.serving.loading import ServedModel
from musiccm.serving.parts import CODEC, CONDITIONER
from musiccm.serving.sidecar import computed_by
from musiccm.serving.wire import moved, packed, unpacked

log = logging.getLogger(__name__)

#: A question during which replicas ended so often is not asked again: it may be what ends them.
MAX_ASKED = 3

Ask = Callable[[bytes], bytes]
"""Takes a question to a replica that is free, and brings its answer. Safe for threads; raises `ReplicaLost`."""


class ReplicaLost(Exception):
    """A replica has ended, or was lost sight of, before it answered."""


class Replica:
    """Answers questions about models that it holds.

    Safe for threads.

    Args:
        models: The models, under the names that the engine has for them.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {served.name: served for served in models}

    def answer(self, question: bytes) -> bytes:
        """Compute what is asked.

        Args:
            question: What `asked` wrote.

        Returns:
            What `asked` reads: the result, or why there is none.
        """
        try:
            result = self._computed(unpacked(question))
        except MusiccmError as error:
            result = {"failed": "refused", "message": str(error)}
        except Exception as error:
            memory = out_of_memory(error)
            if not memory:
                log.exception("a question could not be answered")
            result = {"failed": "memory" if memory else "internal", "message": f"{type(error).__name__}: {error}"}
        if result.get("failed") == "memory":
            free_memory()
        return packed(result)

    def _computed(self, question: dict[str, Any]) -> dict[str, Any]:
        name = question["model"]
        if name not in self._models:
            raise MusiccmError(f"a replica has the models {', '.join(self._models)}, and was asked for {name!r}; give "
                               "engine and replicas the same models")
        served = self._models[name]
        if served.identity != question["identity"]:
            raise MusiccmError(f"{name}: a replica has {served.identity}, and the engine {question['identity']}; give "
                               "them the same musiccm, weights and options")
        return {"result": self._result(served.model, question), "by": computed_by(served.model.device)}

    @torch.no_grad()
    def _result(self, model: Any, question: dict[str, Any]) -> Any:
        part, method = question["part"], question["method"]
        args, options = moved((question["args"], question["options"]), model.device)
        if part == "network" and method == "call":
            return model.stepper(1).network(*args, **options)
        if (part == "codec" and method in CODEC) or (part == "conditioner" and method in CONDITIONER):
            return getattr(getattr(model, part), method)(*args, **options)
        raise MusiccmError(f"a replica computes no {part}.{method}; give engine and replicas the same musiccm")


def asked(ask: Ask, question: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Have a question answered, by another replica where one is lost.

    Args:
        ask: Takes it to a replica.
        question: `model`, `identity`, `part`, `method`, `args` and `options`.

    Returns:
        The result, on the CPU, and `computed_by` of the replica.

    Raises:
        MusiccmError: The replica refuses the question, or `MAX_ASKED` of them were lost over it.
        MemoryError: It is too large for the replica's device.
        RuntimeError: The replica failed.
    """
    written = packed(question)
    for _ in range(MAX_ASKED):
        try:
            answer = unpacked(ask(written))
        except ReplicaLost as error:
            log.warning("a replica was lost over %s.%s (%s)", question["part"], question["method"], error)
            continue
        if "result" in answer:
            return answer["result"], answer["by"]
        if answer["failed"] == "refused":
            raise MusiccmError(answer["message"])
        raise (MemoryError if answer["failed"] == "memory" else RuntimeError)(f"a replica: {answer['message']}")
    raise MusiccmError(f"{MAX_ASKED} replicas ended while they computed this; it is not begun again")
