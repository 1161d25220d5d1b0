"""write the demo corpus (`demo`), encode a corpus into latents (`latents`), index its training clips (`index`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from musiccm.terminal import say


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
        from musiccm.data.demo.magnatagatune import write_magnatagatune

        write = {"audiostock": write_corpus, "magnatagatune": write_magnatagatune}[args.layout]
        out = args.out or corpus_root(args.config, args.layout)
        write(Path(out), args.tracks, args.seed, args.test_tracks, args.workers)
        say(f"{out}: the demo corpus is complete")
        return 0
    if args.what == "index":
        from musiccm.commands._index import prepare_index

        prepare_index(args)
        return 0
    from musiccm.commands._encode import encode_corpus

    overrides = {"root": args.root, "bundle": args.bundle, "cache_dir": args.cache_dir, "strict": args.strict or None}
    encode_corpus(args.config, {k: v for k, v in overrides.items() if v is not None}, args.batch_size, args.device,
                  args.overwrite, args.shard_size)
    return 0


def corpus_root(configs: list[str], layout: str = "audiostock") -> str:
    """Where an experiment reads its corpus of a layout from.

    Args:
        configs: Experiment files, later ones laid over earlier ones.
        layout: Which corpus, where the experiment has several.

    Returns:
        `data.init_args.root`, or the root of the only one of `data.init_args.corpora` with that layout.

    Raises:
        MusiccmError: It is not set, or not of that layout.
    """
    from musiccm.config import load_experiment
    from musiccm.errors import MusiccmError

    data: Any = load_experiment(*configs).get("data")
    settings = data.get("init_args") if isinstance(data, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    corpora = settings.get("corpora") or [{"layout": "audiostock", "root": settings.get("root")}]
    roots = [corpus.get("root") for corpus in corpora if isinstance(corpus, dict) and corpus.get("layout") == layout]
    if len(roots) != 1 or not roots[0]:
        where = f"one corpus with layout {layout} in data.init_args.corpora" if settings.get("corpora") or (
            layout != "audiostock") else "data.init_args.root, the folder of the corpus,"
        raise MusiccmError(f"{configs[-1]}: expected {where} and found {len(roots) if all(roots) else 'none'}; set it, "
                           "or name the folder with --out")
    return str(roots[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm prepare", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    demo = commands.add_parser("demo", help="compose and render a corpus in the layout of a real one")
    where = demo.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", help="folder to write")
    where.add_argument("--config", action="append", help="experiment file; the folder that it reads is written")
    demo.add_argument("--layout", choices=("audiostock", "magnatagatune"), default="audiostock",
                      help="how the corpus lies on the disk (default %(default)s)")
    demo.add_argument("--tracks", type=int, default=2000, help="training tracks (default %(default)s)")
    demo.add_argument("--test-tracks", type=int, help="held-out tracks (default an eighth of --tracks)")
    demo.add_argument("--seed", type=int, default=0, help="decides every byte (default %(default)s)")
    demo.add_argument("--workers", type=int, help="processes (default one a core)")
    latents = commands.add_parser("latents", help="encode the corpus of an experiment with its bundle's VAE and CLAP",
                                  epilog="On several GPUs: torchrun --nproc-per-node 8 -m musiccm prepare latents ...")
    latents.add_argument("--config", required=True, action="append", help="experiment file; its data section is used")
    latents.add_argument("--root", help="corpus, in place of data.root")
    latents.add_argument("--bundle", help="bundle, in place of data.bundle")
    latents.add_argument("--cache-dir", help="cache, in place of data.cache_dir")
    latents.add_argument("--batch-size", type=int, default=16, help="windows encoded at a time (default %(default)s)")
    latents.add_argument("--shard-size", type=int, default=256, help="windows in a file (default %(default)s)")
    latents.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    latents.add_argument("--overwrite", action="store_true", help="replace a cache that was made from something else")
    latents.add_argument("--strict", action="store_true", help="stop at the first item that cannot be used")
    index = commands.add_parser("index", help="embed training clips with CLAP, for SIM_AA and `musiccm plagiarism`")
    source = index.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", action="append", help="experiment file; what it trains on is indexed")
    source.add_argument("--root", help="folder of training audio, searched through; needs no labels")
    index.add_argument("--out", required=True, help="folder to write; a killed run goes on where it stopped")
    index.add_argument("--from-cache", action="store_true",
                       help="take the embeddings of the experiment's latent cache, in place of hearing whole clips")
    index.add_argument("--bundle", help="whose CLAP (default the experiment's, or musiccm-tiny with --root)")
    index.add_argument("--hop-s", type=float, help="seconds between windows (default half of CLAP's window)")
    index.add_argument("--faiss", nargs="?", const="auto", metavar="FACTORY",
                       help="write a FAISS index too, such as Flat or IVF4096,SQfp16 (default by size)")
    index.add_argument("--batch-size", type=int, default=16, help="windows embedded at a time (default %(default)s)")
    index.add_argument("--workers", type=int, default=2, help="threads that decode (default %(default)s)")
    index.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    index.add_argument("--overwrite", action="store_true", help="replace an index that was made from something else")
    return parser
