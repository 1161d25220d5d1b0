"""A part of a model, such as its codec, some of whose methods run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

#: What of a codec computes.
CODEC = frozenset({"decode", "decode_mel", "encode", "reconstruct", "vocode"})
#: What of a conditioner does.
CONDITIONER = frozenset({"prompts"})

Run = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
"""`run(method, args, options)` gives what the method would."""


class Part:
    """A part whose computing methods run elsewhere; all else is the part's own.

    Args:
        part: The part.
        methods: The names of what computes.
        run: Runs one of them.
    """

    def __init__(self, part: Any, methods: Collection[str], run: Run) -> None:
        self._part, self._methods, self._run = part, methods, run

    @property  # type: ignore[misc]  # long music asks which kind of codec it has
    def __class__(self) -> type:
        return self._part.__class__

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name not in self._methods:
            return found
        return lambda *args, **options: self._run(name, args, options)
