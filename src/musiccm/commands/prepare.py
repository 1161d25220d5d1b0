"""write the demo corpus (`demo`), or encode a corpus into latents (`latents`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    """Run `musiccm prepare`.

    Args:
        argv: The arguments behind `prepare`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    if args.what == "demo":
        from musiccm.data.demo.corpus import write_corpus

        out = args.out or corpus_root(args.config)
        write_corpus(Path(out), args.tracks, args.seed, args.test_tracks, args.workers)
        print(f"{out}: the demo corpus is complete")
        return 0
    from musiccm.commands._encode import encode_corpus

    overrides = {"root": args.root, "bundle": args.bundle, "cache_dir": args.cache_dir, "strict": args.strict or None}
    encode_corpus(args.config, {k: v for k, v in overrides.items() if v is not None}, args.batch_size, args.device,
                  args.overwrite)
    return 0


def corpus_root(configs: list[str]) -> str:
    """Where an experiment reads its corpus from.

    Args:
        configs: Experiment files, later ones laid over earlier ones.

    Returns:
        `data.init_args.root`.

    Raises:
        MusiccmError: It is not set.
    """
    from musiccm.config import load_experiment
    from musiccm.errors import MusiccmError

    data: Any = load_experiment(*configs).get("data")
    settings = data.get("init_args") if isinstance(data, dict) else None
    root = settings.get("root") if isinstance(settings, dict) else None
    if not root:
        raise MusiccmError(f"{configs[-1]}: expected data.init_args.root, the folder of the corpus, and found none; "
                           "set it, or name the folder with --out")
    return str(root)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm prepare", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    demo = commands.add_parser("demo", help="compose and render a corpus in Audiostock's layout")
    where = demo.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", help="folder to write")
    where.add_argument("--config", action="append", help="experiment file; the folder that it reads is written")
    demo.add_argument("--tracks", type=int, default=2000, help="training tracks (default %(default)s)")
    demo.add_argument("--test-tracks", type=int, help="held-out tracks (default an eighth of --tracks)")
    demo.add_argument("--seed", type=int, default=0, help="decides every byte (default %(default)s)")
    demo.add_argument("--workers", type=int, help="processes (default one a core)")
    latents = commands.add_parser("latents", help="encode the corpus of an experiment with its bundle's VAE and CLAP")
    latents.add_argument("--config", required=True, action="append", help="experiment file; its data section is used")
    latents.add_argument("--root", help="corpus, in place of data.root")
    latents.add_argument("--bundle", help="bundle, in place of data.bundle")
    latents.add_argument("--cache-dir", help="cache, in place of data.cache_dir")
    latents.add_argument("--batch-size", type=int, default=16, help="windows encoded at a time (default %(default)s)")
    latents.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    latents.add_argument("--overwrite", action="store_true", help="replace a cache that was made from something else")
    latents.add_argument("--strict", action="store_true", help="stop at the first item that cannot be used")
    return parser
