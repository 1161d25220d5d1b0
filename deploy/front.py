"""The server in front of replicas: its engine keeps queue, jobs and results, and replicas make the sound."""

from __future__ import annotations

import argparse
from pathlib import Path

from musiccm.serving import Engine, EngineSettings, load_model
from musiccm.serving.http.app import make_app
from musiccm.serving.http.gate import Keys, is_loopback
from musiccm.serving.http.metrics import Metrics
from musiccm.serving.http.server import Listening, bound_socket, serve
from musiccm.serving.replica import Ask, elsewhere


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every server in front takes."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--key-file", type=Path, help="see `musiccm serve`; needed where others can reach --host")
    parser.add_argument("--folder", type=Path, default=Path("served"), help="where jobs, results and uploads lie")
    parser.add_argument("--queue", type=int, default=64, help="jobs that may wait")


def run(args: argparse.Namespace, models: list[str], at_work: int, ask: Ask) -> None:
    """Serve until a signal comes.

    Args:
        args: What `add_options` added.
        models: See `load_model`; they check requests and make streams, on the CPU.
        at_work: Jobs that all replicas together are given at once.
        ask: Asks a replica.
    """
    keys = Keys.read(args.key_file) if args.key_file else Keys([])
    if not keys and not is_loopback(args.host):
        raise SystemExit(f"--host {args.host}: others can reach that address; name a file of keys by --key-file")
    listening, metrics = bound_socket(args.host, args.port), Metrics()
    settings = EngineSettings(max_queued=args.queue, max_running=at_work)
    engine = Engine([load_model(named) for named in models], args.folder, settings, metrics.told, elsewhere(ask))
    try:
        engine.start()
        serve(make_app(engine, metrics, keys), engine, Listening(args.host, args.port), listening)
    finally:
        engine.close()
        listening.close()
