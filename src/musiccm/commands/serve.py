"""serve models over HTTP: queue, streams, edits (docs/serving.md)."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from musiccm import locks
from musiccm.bounds import Bucket
from musiccm.errors import MusiccmError, naming
from musiccm.loading import loading
from musiccm.terminal import say

if TYPE_CHECKING:
    from musiccm.serving import ServedModel
    from musiccm.serving.http.gate import Keys

KEYS_VARIABLE = "MUSICCM_KEYS"
DEFAULT_MODEL = "musiccm-tiny-student"

Load = Callable[[str], "ServedModel"]
"""Takes what `--model` names to a model."""


def main(argv: list[str]) -> int:
    """Run `musiccm serve`.

    Args:
        argv: The arguments behind `serve`.

    Returns:
        The exit code.
    """
    return serve(_parser().parse_args(argv), models_here)


@contextmanager
def models_here(args: argparse.Namespace) -> Iterator[Load]:
    """Models that compute in this process.

    Args:
        args: The options.

    Yields:
        What loads one.
    """
    from musiccm.device import choose_device
    from musiccm.models.acceleration.networks import check_backend
    from musiccm.serving import load_model

    with naming({"warm_up": "--warm-up"}):
        buckets = [Bucket.read(text) for text in args.warm_up]
    device = choose_device(args.device)
    check_backend("--compile", args.compile)
    found = packages(args)
    yield lambda one: load_model(one, device, args.decoder, args.half, args.compile, buckets, found.get(one))


def packages(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of `--compiled`, by what `--model` names.

    Args:
        args: The options.

    Returns:
        Absolute paths, so that they mean the same in workers, which may have another working directory.

    Raises:
        MusiccmError: There is no model of such a name, it has two packages, or `--compile` was given too.
    """
    from musiccm.serving.loading import named_model

    models = args.model or [DEFAULT_MODEL]
    by_name = {named_model(one)[0]: one for one in models}
    by_model: dict[str, Path] = {}
    for text in args.compiled:
        name, found, folder = text.rpartition("=")
        if found and name not in by_name:
            raise MusiccmError(f"--compiled {text}: expected the name of a served model before =, one of "
                               f"{', '.join(by_name)}, found {name!r}")
        model = by_name[name] if found else models[0]
        if model in by_model:
            raise MusiccmError(f"--compiled {text}: expected one package a model, found a second one for {model}")
        if args.compile is not None:
            raise MusiccmError(f"--compiled {text}: was compiled before, and --compile compiles now; leave out one of "
                               "the two")
        by_model[model] = Path(folder).absolute()
    return by_model


def serve(args: argparse.Namespace, models: Callable[[argparse.Namespace], AbstractContextManager[Load]]) -> int:
    """Serve until a signal comes.

    Args:
        args: The options of `make_parser`, and `lanes`.
        models: Gives what loads models, for as long as they are served; called when the options were checked.

    Returns:
        The exit code.

    Raises:
        MusiccmError: An option is none that can be met.
    """
    from musiccm.serving.http.gate import Keys, is_loopback
    from musiccm.serving.http.server import bound_socket

    keys = Keys.read(args.key_file) if args.key_file else Keys(os.environ.get(KEYS_VARIABLE, "").split())
    if not is_loopback(args.host) and not keys and not args.public:
        raise MusiccmError(f"--host {args.host}: others can reach that address, and there are no keys; name a file of "
                           f"keys by --key-file, set {KEYS_VARIABLE}, or add --public to let everybody in")
    # what costs nothing to find is said before models are read; the engine takes the folder for good
    if (user := locks.holder(args.folder / locks.LOCK)) is not None:
        raise MusiccmError(f"--folder {args.folder}: in use by {user}; wait until that has ended, or name another "
                           "folder")
    listening = bound_socket(args.host, args.port)
    try:
        with models(args) as load:
            served = []
            with loading():
                for one in args.model or [DEFAULT_MODEL]:
                    say(f"{one}: reading the model", to_stderr=True)
                    served.append(load(one))
            _serve(args, served, keys, listening)
    finally:
        listening.close()
    return 0


def _serve(args: argparse.Namespace, served: list[ServedModel], keys: Keys, listening: socket.socket) -> None:
    from musiccm.serving import Engine, EngineSettings, Limits
    from musiccm.serving.http.app import make_app
    from musiccm.serving.http.metrics import Metrics
    from musiccm.serving.http.server import Listening
    from musiccm.serving.http.server import serve as run

    limits = Limits(max_seconds=args.max_seconds, max_upload_bytes=args.max_upload_mb * 2**20,
                    max_upload_s=args.max_seconds)
    settings = EngineSettings(
        max_queued=args.queue, max_running=args.running, max_streams=args.streams, max_batch=args.batch,
        exact=False if args.together else None, lanes=args.lanes, keep_jobs=args.keep,
        keep_bytes=args.keep_gb * 2**30, limits=limits)
    metrics = Metrics()
    engine = Engine(served, args.folder, settings, metrics.told)
    try:
        say("making each model's first sound", to_stderr=True)
        engine.start()
        app = make_app(engine, metrics, keys, any_host=args.public, page=not args.no_page)
        host, port = listening.getsockname()[:2]
        say(f"serving {', '.join(engine.models)} at http://{f'[{host}]' if ':' in host else host}:{port} (OpenAPI: "
            f"/openapi.json; {'with' if keys else 'without'} keys; jobs and results in {args.folder})")
        run(app, engine, Listening(args.host, port, args.drain, args.connections), listening)
    finally:
        engine.close()


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("musiccm serve", __doc__)
    parser.add_argument("--lanes", type=whole(1, 256), default=1,
                        help="network calls that a CPU computes side by side, each on its part of the threads: as many "
                             "as cores for small models and many clients (default %(default)s)")
    parser.add_argument("--warm-up", action="append", default=[], metavar="BATCH[xSTEPS[xSECONDS]]",
                        help="make each model ready for this shape before it is served, such as 1x4, or 8x4x60 for a "
                             "minute by 8 windows a call: compile for it, and on a GPU record clips as one graph; may "
                             "be repeated")
    return parser


def make_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of what `serve` reads, but for `--lanes` and `--warm-up`.

    Args:
        program: The program's name.
        description: What it does.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--model", action="append", metavar="[NAME=]MODEL",
                        help="directory, packaged bundle or hub id, and the name that clients use; may be repeated, "
                             "the first is the default (default: musiccm-tiny-student)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="0 takes any (default %(default)s)")
    parser.add_argument("--key-file", type=Path, metavar="FILE",
                        help=f"keys that clients send, one a line; or {KEYS_VARIABLE}, with spaces between them")
    parser.add_argument("--public", action="store_true", help="serve others without keys")
    parser.add_argument("--no-page", action="store_true", help="serve the API alone, without the page at /")
    parser.add_argument("--folder", type=Path, default=Path("served"),
                        help="where jobs, results and uploads lie (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--decoder", choices=["fast", "original"], help="see `musiccm generate`")
    parser.add_argument("--half", action="store_true", help="compute in bf16 where sound allows it, for GPUs")
    parser.add_argument("--compile", metavar="BACKEND", help="compile the U-Net, see `musiccm generate`")
    parser.add_argument("--compiled", action="append", default=[], metavar="[NAME=]FOLDER",
                        help="what `musiccm export --compiled` made of a model on such a machine, by default of the "
                             "first: nothing is compiled then. It is machine code: take none from strangers. May be "
                             "repeated")
    parser.add_argument("--together", action="store_true",
                        help="on a CPU, too, make network calls of several jobs as one: faster for small models; clips "
                             "then differ by rounding from those made alone")
    parser.add_argument("--batch", type=whole(1, 1024), default=8, help="windows of such a call (default %(default)s)")
    parser.add_argument("--queue", type=whole(1, 100_000), default=64,
                        help="jobs that may wait; others are told to come again (default %(default)s)")
    parser.add_argument("--running", type=whole(1, 256), default=4, help="jobs at work at once (default %(default)s)")
    parser.add_argument("--streams", type=whole(0, 256), default=4, help="streams at once (default %(default)s)")
    parser.add_argument("--connections", type=whole(1, 100_000), default=512, help="at once (default %(default)s)")
    parser.add_argument("--max-seconds", type=whole(1, 3600), default=600,
                        help="longest piece and upload (default %(default)s)")
    parser.add_argument("--max-upload-mb", type=whole(1, 4096), default=64, help="(default %(default)s)")
    parser.add_argument("--keep", type=whole(1, 10**9), default=1000,
                        help="finished jobs that are kept (default %(default)s)")
    parser.add_argument("--keep-gb", type=whole(1, 10**6), default=4,
                        help="disk for results, from which on the oldest go (default %(default)s)")
    parser.add_argument("--drain", type=whole(0, 3600), default=30, metavar="SECONDS",
                        help="how long running jobs may go on after SIGTERM (default %(default)s)")
    return parser


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number of a range, as an option's type.

    Args:
        low: The least.
        high: The most.

    Returns:
        What reads one.
    """

    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return int(text)

    return number
