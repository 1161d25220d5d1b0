"""The `musiccm` command: find the subcommand, run it, and turn failures into one clear message.

Nothing heavy is imported before a subcommand is known to exist. With ``MUSICCM_DEBUG=1`` errors show their traceback
and libraries their warnings.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from musiccm import __version__, commands, signals
from musiccm.commands._trainer_help import ALL_OPTIONS, page
from musiccm.config import merge_config_arguments
from musiccm.errors import MusiccmError, missing_extra, reason
from musiccm.failures import error_number, name_too_long, why_not_written
from musiccm.loading import loading, one_command
from musiccm.quiet import quiet_libraries
from musiccm.terminal import say
from musiccm.texts import PRINTABLE

# jsonargparse lists every type that a value could have had; only the lines that say what is wrong help.
_UNION_NOISE = re.compile(
    r"^\s*(Does not validate against any of|Subtypes: |Errors:$|- Expected a <class 'NoneType'>|Given value)", re.M
)

# How it nests the keys above a value of the wrong type, a line each, and then says the type.
_NESTED = re.compile(r'\s*(?:Parser key "(?P<key>[^"]+)":|- Problem with given class_path .*:)\s*')
_WRONG_TYPE = re.compile(r"\s*Expected a <class '(?P<type>\w+)'>\. Got value: (?P<found>.*)")
_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text"}

EXIT_FAILURE, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments without the program's name; by default those of the process.

    Returns:
        0 for success, 2 for something the user can mend (arguments, files, disk space), 130 after Ctrl-C, 75, 138 or
        143 after another signal (docs/launch.md), 141 when the reader of our output has gone, 1 for everything else.
    """
    arguments = sys.argv[1:] if argv is None else argv
    return run(lambda: _dispatch(arguments), arguments[0] if arguments else "", whole=argv is None)


def run(command: Callable[[], int], name: str, whole: bool = True) -> int:
    """Run a function as a command: signals are answered, and failures told in one message.

    Args:
        command: What to run; gives the exit code.
        name: The subcommand that it is, or is like.
        whole: Whether it is all that this process does.

    Returns:
        See `main`.
    """
    if whole:
        one_command()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a run
            stream.reconfigure(errors=PRINTABLE)
    with signals.handled(resumes=name in commands.RESUMES):
        code = _run(command, name)
        if whole and signals.received() is not None:
            signals.leave(code)
    return code


def _run(command: Callable[[], int], name: str) -> int:
    try:
        code = command()
        sys.stdout.flush()
        return code
    except signals.Ended as end:
        return _ended(end, name)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # how Lightning leaves after Ctrl-C
            return EXIT_INTERRUPTED
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("musiccm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if os.environ.get("MUSICCM_DEBUG") == "1":
            raise
        message, code = describe(error, name)
        say(f"musiccm: {message}", to_stderr=True)
        return code


def _ended(end: signals.Ended, command: str) -> int:
    code = int(end.code or 0)
    if not end.said:
        how = "interrupted" if code == EXIT_INTERRUPTED else f"ended by {signals.name_of(end.number)}"
        again = " with --ckpt_path auto" if command == "fit" else ""  # which starts anew by itself
        more = "" if code != signals.EXIT_REQUEUE else (
            f"; run the same command again{again} to go on (exit code {code})")
        print(f"musiccm: {how}{more}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else EXIT_USER_ERROR
    if arguments[0] in ("-V", "--version"):
        print(f"musiccm {__version__}")
        return 0
    name, *rest = arguments
    known = commands.summaries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MusiccmError(f"there is no command {name!r}{hint}\nCommands: {', '.join(known)} (musiccm --help)")
    quiet_libraries()
    if name in commands.TRAINER_COMMANDS:
        if {"-h", "--help"} & set(rest):
            print(page(name, known[name]))
            return 0
        rest = merge_config_arguments(name, ["--help" if word == ALL_OPTIONS else word for word in rest])
    try:
        with loading():
            command = commands.load(name)
        code = command(rest)
    except SystemExit:
        _leave_group()
        raise
    _leave_group()
    return code


def _leave_group() -> None:
    """Take this process out of its group, whose threads would abort an interpreter that ends before them."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def usage() -> str:
    """What `musiccm --help` prints."""
    lines = [f"  {name:<10} {summary}" for name, summary in commands.summaries().items()]
    return "\n".join(
        [
            f"musiccm {__version__}: text to music in a few steps",
            "",
            "usage: musiccm COMMAND [OPTIONS]     (musiccm COMMAND --help shows the options)",
            "",
            *lines,
            "",
            "fit, validate and test take --config FILE.yaml, or the name of an experiment that musiccm brings, as in",
            "--config demo; every value in it can be overridden on the command line, as in --trainer.max_steps 100.",
            "--ckpt_path takes a file, or `newest`.",
            "Classes of your own that the file names are imported with --allow-import MODULE (repeatable).",
        ]
    )


def describe(error: BaseException, command: str = "") -> tuple[str, int]:
    """One message for people, and the exit code.

    Args:
        error: What ended the command.
        command: The subcommand, which decides what to install where a library is missing.

    Returns:
        The message, without the program's name, and the code.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, MusiccmError):
            return str(link), EXIT_USER_ERROR
    for link in chain:
        if lacking := missing_extra(link, "eval" if command in commands.MEASURES else "train", command or "this"):
            return str(lacking), EXIT_USER_ERROR
    for link in chain:
        if error_number(link) in (errno.ENOSPC, errno.EDQUOT):
            target = getattr(link, "filename", None)
            where = f" while writing {target}" if target else ""
            return f"the disk is full{where} ({link}); free some space and run the command again", EXIT_USER_ERROR
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for options that do not go together
        return f"{error} (options of Lightning's Trainer: keys below `trainer`)", EXIT_USER_ERROR
    for link in chain:
        if isinstance(link, ModuleNotFoundError) and str(link).startswith("Requirement "):  # Lightning's loggers, TPUs
            return f"{link}, or leave out what needs it", EXIT_USER_ERROR
    if isinstance(error, argparse.ArgumentError) or type(error).__module__.startswith("omegaconf."):
        said = _without_union_noise(str(error))
        return f"{_wrong_type(said) or said}\n(options: musiccm COMMAND --help)", EXIT_USER_ERROR
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: {name_too_long(Path(error.filename or ''))}", EXIT_USER_ERROR
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        path = Path(os.fsdecode(error.filename))
        if error.errno == errno.ENOENT and not path.parent.is_dir():  # such as a run's folder that was removed
            return f"{path}: {why_not_written(error, path)}", EXIT_USER_ERROR
        return f"{path}: {error.strerror}", EXIT_FAILURE
    if _UNION_NOISE.search(str(error)):  # jsonargparse wraps what a constructor raises
        error = chain[-1]
    frames = traceback.extract_tb(error.__traceback__)
    package = os.path.dirname(__file__) + os.sep
    ours = [f for f in frames if f.filename.startswith(package) and f.filename != __file__] or frames
    where = f" (in {ours[-1].name}, {ours[-1].filename}:{ours[-1].lineno})" if ours else ""
    said = reason(error) if "weights_only" in str(error) else f"{type(error).__name__}: {error}"
    return f"{said}{where}\nMUSICCM_DEBUG=1 shows the whole traceback.", EXIT_FAILURE


def _without_union_noise(message: str) -> str:
    return "\n".join(line for line in message.splitlines() if not _UNION_NOISE.search(line))


def _wrong_type(message: str) -> str | None:
    """One line for a value of the wrong type, however deep its key lies; None for any other message."""
    *above, last = message.splitlines() or [""]
    nested, wrong = [_NESTED.fullmatch(line) for line in above], _WRONG_TYPE.fullmatch(last)
    keys = [link["key"] for link in nested if link is not None and link["key"]]
    if wrong is None or not keys or None in nested:
        return None
    where = ".".join([keys[0], "init_args", *keys[1:]] if keys[0] in ("model", "data") else keys)
    return f"{where}: expected {_TYPES.get(wrong['type'], wrong['type'])}, found {wrong['found']}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
