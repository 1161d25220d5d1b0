"""What an experiment file may name for import: this package and its libraries, and what `--allow-import` adds.

jsonargparse, which turns `class_path` and its kin into objects, imports whatever it is told to. Its own list of what it
may import is closed here, so that a name is refused before its module is imported, wherever it stands.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from musiccm.errors import MusiccmError

OPTION = "--allow-import"
#: Classes of these may be named. Of torch only what networks and strategies are set up by, not `torch.hub` or what
#: reads pickles.
TRUSTED = ("musiccm", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torch.nn", "torch.optim",
           "torch.distributed.fsdp")
_KEY = re.compile(r"""(?:key|Parser key) ["']([\w.+-]+)["']|argument --?([\w.+-]+)""")


def take_allowed(argv: list[str]) -> tuple[list[str], list[str]]:
    """Take every `--allow-import NAME` out of the arguments.

    Args:
        argv: The arguments of a command.

    Returns:
        The names, and the other arguments.

    Raises:
        MusiccmError: A name is missing, or is no dotted name.
    """
    names, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option != OPTION:
            rest.append(argument)
            continue
        name = value if equals else next(arguments, "")
        if not name or not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] == "jsonargparse":
            raise MusiccmError(f"{OPTION} {name}: expected the dotted name of a module or class, such as my_callbacks")
        names.append(name)
    return names, rest


def covers(names: tuple[str, ...] | list[str], path: str) -> bool:
    """Whether a dotted path is one of the names, or lies in one."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


@contextlib.contextmanager
def only_known_imports(allowed: list[str]) -> Iterator[None]:
    """Let jsonargparse import what is trusted or allowed, and nothing else.

    Args:
        allowed: What `--allow-import` names.

    Raises:
        MusiccmError: A configuration names something else; with the key, the name and the option.
    """
    from jsonargparse import set_parsing_settings

    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*TRUSTED, *allowed],
                         instantiate_subclass_spec_in_any=False)
    try:
        yield
    except Exception as error:
        if refused := re.search(r"Importing '([^']*)' is not allowed", str(error)):
            found = _KEY.search(str(error))
            where = next(filter(None, found.groups())) if found else "the configuration"
            raise _refusal(where, refused[1]) from None
        raise
    finally:
        if mine := [name for name in allowed if not covers(TRUSTED, name)]:
            set_parsing_settings(import_path_denylist=mine)


def _refusal(key: str, path: str) -> MusiccmError:
    return MusiccmError(
        f"{key}: names {path}, which is neither part of musiccm nor of the libraries that it is built on, and is not "
        f"imported: that would run its code. Where you trust it, say so by {OPTION} {path.split('.')[0]}"
    )


def check_classes(config: Any, allowed: list[str], key: str = "") -> None:
    """Refuse a `class_path` that is a function: `load_from_checkpoint` would be called with a file of its choice.

    Args:
        config: What was parsed.
        allowed: What `--allow-import` names.
        key: Where it stands.

    Raises:
        MusiccmError: Naming the key.
    """
    from pydoc import locate

    from jsonargparse import Namespace

    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, Mapping):
        path = config.get("class_path")
        if isinstance(path, str) and "." in path:
            # jsonargparse leaves what stands in a mapping of any content as it is
            if not covers([*TRUSTED, *allowed], path):
                raise _refusal(f"{key}.class_path", path)
            if not inspect.isclass(locate(path)):
                raise MusiccmError(f"{key}.class_path: {path} is no class; expected one")
        for name, value in config.items():
            check_classes(value, allowed, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            check_classes(value, allowed, f"{key}[{number}]")
