"""`null` for a setting inside a group, as in `--model.init_args.distillation.start null`."""

from __future__ import annotations

import json
from typing import Any

#: The words of YAML for nothing.
NULLS = ("null", "Null", "NULL", "~")
CLASSES = ("model", "data")


def with_nested_nulls(argv: list[str]) -> list[str]:
    """Hand on each `null` that is given for a setting inside a group as a part of the group.

    jsonargparse (4.53) parses an argument of a class once for each level of its name, and in between writes what it
    parsed out as Python does: of `null` the second level sees the text `None`.

    Args:
        argv: The arguments of `fit`, `validate` or `test`.

    Returns:
        The same, in the same order; `--model.init_args.distillation.start null` as
        `--model.init_args.distillation={"start": null}`, which is laid over what the group has.
    """
    found: list[str] = []
    for argument in argv:
        option, equals, value = argument.partition("=")
        if not equals and argument in NULLS and found and (group := _group(found[-1])) is not None:
            found[-1] = group
        elif equals and value in NULLS and (group := _group(option)) is not None:
            found.append(group)
        else:
            found.append(argument)
    return found


def _group(option: str) -> str | None:
    """The option that gives a group with one of its settings null; None for what is no setting inside a group."""
    section, *names = option.removeprefix("--").split(".")
    first = 1 if names[:1] == ["init_args"] else 0
    inner = names[first + 1 :]
    if not option.startswith("--") or section not in CLASSES or not inner:
        return None
    value: Any = None
    for name in reversed(inner):
        value = {name: value}
    return f"--{'.'.join([section, *names[: first + 1]])}={json.dumps(value)}"
