"""write or check a corpus, begin a `bundle`, encode `latents` or `tokens`, roll out `trajectories`, or `index`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.terminal import say

if TYPE_CHECKING:
    from musiccm.data.corpora.reading import Listing
    from musiccm.data.corpora.registry import CorpusSpec

#: What the demo corpus can be written as.
DEMO_LAYOUTS = ("audiostock", "magnatagatune")
#: What it can be of (`data.demo.worlds`, which takes scipy to import).
DEMO_WORLDS = ("music", "music_paraphrased", "events")
#: What `similarity.indexing` calls an argument, and its option.
INDEX_OPTIONS = {"out": "--out", "hop_s": "--hop-s", "faiss": "--faiss", "batch_size": "--batch-size",
                 "overwrite": "--overwrite"}


def main(argv: list[str]) -> int:
    """Run `musiccm prepare`.

    Args:
        argv: The arguments behind `prepare`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    if args.what == "demo":
        write_demo(args.out or demo_root(args.config, args.layout), args, args.world or stated_world(args.config))
        return 0
    if args.what == "corpus":
        see_to_corpora(args)
        return 0
    if args.what == "bundle":
        from musiccm.models.bundle.borrow import begin_bundle

        parts = begin_bundle(args.out, args.base, args.borrow)
        say(f"{args.out}: borrows {', '.join(parts)} of {args.base}")
        return 0
    if args.what == "index":
        index_clips(args)
        return 0
    if args.what == "trajectories":
        from musiccm.commands._imports import OPTION, take_allowed
        from musiccm.commands._trajectories import roll_trajectories

        allowed, _ = take_allowed([part for name in args.allow_import for part in (OPTION, name)])
        roll_trajectories(args.config, args.batch_size, args.device, args.overwrite, args.shard_size, allowed)
        return 0
    from musiccm.commands._encode import encode_corpus, encode_tokens

    named = ("cache_dir",) if args.what == "latents" else ("tokens_dir", "tokenizer")
    overrides = {key: getattr(args, key) for key in ("root", "bundle", *named)} | {"strict": args.strict or None}
    stated = {key: value for key, value in overrides.items() if value is not None}
    how = (args.batch_size, args.device, args.overwrite, args.shard_size, args.split or ("train", "test"),
           args.workers, not args.float32)
    if args.what == "latents":
        encode_corpus(args.config, stated, *how)
    else:
        encode_tokens(args.config, stated, args.features, args.non_commercial, *how)
    return 0


def index_clips(args: argparse.Namespace) -> None:
    """Index training clips.

    Args:
        args: Arguments of `prepare index`.

    Raises:
        MusiccmError: Options that do not go together, or what cannot be indexed.
    """
    from musiccm.errors import MusiccmError, naming
    from musiccm.similarity.indexing import index_experiment, index_folder

    for option in ("from_cache", "for_bundle"):
        if getattr(args, option) and not args.config:
            raise MusiccmError(f"--{option.replace('_', '-')}: expected --config with an experiment, found --root")
    settings = {name: getattr(args, name)
                for name in ("hop_s", "faiss", "batch_size", "workers", "device", "overwrite")}
    with naming(INDEX_OPTIONS):
        if args.root:
            index_folder(args.out, args.root, args.bundle or "musiccm-tiny", **settings)
        else:
            index_experiment(
                args.out, args.config, args.bundle,
                windows="bundle" if args.for_bundle else "cache" if args.from_cache else "whole", **settings,
            )


def stated_world(configs: list[str] | None) -> str:
    """The world of an experiment's demo corpus, `data.init_args.demo_world`; the default where there is none.

    Args:
        configs: Experiment files, later ones laid over earlier ones; None without an experiment.

    Returns:
        Its name.
    """
    from musiccm.config import load_experiment
    from musiccm.data.demo.worlds import FIRST

    data: Any = load_experiment(*configs).get("data") if configs else None
    settings = data.get("init_args") if isinstance(data, dict) else None
    return (settings or {}).get("demo_world") or FIRST


def write_demo(root: str, args: argparse.Namespace, world: str) -> None:
    """Write or complete the demo corpus in a folder.

    Args:
        root: The folder.
        args: Arguments of the command, with the layout.
        world: What the tracks are of.

    Raises:
        MusiccmError: A layout that the demo corpus is not written in, or whatever `write_corpus` refuses.
    """
    from musiccm.data.demo.corpus import write_corpus
    from musiccm.data.demo.magnatagatune import write_magnatagatune
    from musiccm.data.demo.worlds import FIRST
    from musiccm.errors import MusiccmError

    counts = (args.tracks, args.seed, args.test_tracks, args.workers)
    if args.layout == "audiostock":
        write_corpus(Path(root), *counts, validation_tracks=args.validation_tracks, world=world)
    elif args.layout == "magnatagatune":
        if args.validation_tracks is not None:
            raise MusiccmError("--validation-tracks: in MagnaTagATune's layout a thirteenth of --tracks validates")
        if world != FIRST:
            raise MusiccmError(f"--world {world}: is written in Audiostock's layout alone; leave --layout out")
        write_magnatagatune(Path(root), *counts)
    else:
        raise MusiccmError(f"{root}: the demo corpus is written in the layouts {', '.join(DEMO_LAYOUTS)}, found "
                           f"{args.layout}")
    say(f"{root}: the demo corpus is complete")


def experiment_corpora(configs: list[str]) -> list[CorpusSpec]:
    """The corpora that an experiment reads.

    Args:
        configs: Experiment files, later ones laid over earlier ones.

    Returns:
        A specification for each.

    Raises:
        MusiccmError: The file names none.
    """
    from musiccm.config import data_settings
    from musiccm.data.corpora.registry import corpora_of
    from musiccm.errors import MusiccmError

    settings = data_settings(*configs)
    if not (settings.get("root") or settings.get("corpora")):
        raise MusiccmError(f"{configs[-1]}: expected data.init_args.root, the folder of the corpus, or corpora, found "
                           "neither; set one, or name the folder with --out")
    return corpora_of(settings)


def demo_root(configs: list[str], layout: str) -> str:
    """The folder in which an experiment wants the demo corpus of a layout.

    Args:
        configs: Experiment files, later ones laid over earlier ones.
        layout: Which corpus, where the experiment has several.

    Returns:
        The folder.

    Raises:
        MusiccmError: The experiment does not say that it reads the demo corpus in that layout.
    """
    from musiccm.errors import MusiccmError

    specs = experiment_corpora(configs)
    roots = [spec.root for spec in specs if spec.demo and spec.layout == layout]
    if len(roots) != 1:
        read = ", ".join(f"{spec.root} ({spec.layout})" for spec in specs)
        raise MusiccmError(f"{configs[-1]}: expected one corpus in {layout}'s layout that data.init_args.demo_corpora "
                           f"lists, found {len(roots)} among {read}. The demo corpus is written to no other folder: "
                           "put the experiment's own music there (docs/data.md), or name a folder with --out")
    return roots[0]


def see_to_corpora(args: argparse.Namespace) -> None:
    """Write the corpora of an experiment that are the demo's, once it is known that all others are there.

    Args:
        args: Arguments of `prepare corpus`.

    Raises:
        MusiccmError: What is missing, and what belongs there.
    """
    from musiccm.errors import MusiccmError

    specs = experiment_corpora(args.config)
    if missing := [fault for spec in specs if not spec.demo and (fault := missing_of(spec))]:
        raise MusiccmError(f"{args.config[-1]}: {'; '.join(missing)}. Put the music there, or name its folder in the "
                           "experiment's data section. The demo corpus is written only to folders that "
                           "data.init_args.demo_corpora lists")
    for spec in specs:
        if spec.demo:
            args.layout = spec.layout
            write_demo(spec.root, args, args.world or stated_world(args.config))


def missing_of(spec: CorpusSpec) -> str | None:
    """What a corpus lacks to be read.

    Args:
        spec: The corpus.

    Returns:
        The reason why it cannot be listed; None, with its size printed, where it can.
    """
    from musiccm.errors import MusiccmError

    whose = f"({spec.name}, in {spec.layout}'s layout)"
    try:
        splits = ("train", "test") if spec.test != 0 else ("train",)
        found = {split: spec.list_split(split) for split in splits}
    except MusiccmError as error:
        return f"{error} {whose}"
    if not found["train"].entries:
        return f"{spec.root}: no train clips{left_out(found['train'])} {whose}"
    counts = ", ".join(f"{len(listing.entries)} {split} clips" for split, listing in found.items())
    say(f"{spec.root}: {counts} in {spec.layout}'s layout",
        *(f"  {split}{said}" for split, listing in found.items() if (said := left_out(listing))))
    return None


def left_out(listing: Listing) -> str:
    """What of a corpus' index is not used, counted by reason, to stand behind the name of its split."""
    from collections import Counter

    counts = Counter(item.reason for item in listing.bad) + Counter(listing.unused)
    parts = [", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))] if counts else []
    first = [f"first {item.path}: {item.detail}" for item in listing.bad[:1]]
    said = [*parts, *first, *listing.notes]
    return f"; left out: {'; '.join(said)}" if counts else "".join(f"; {note}" for note in said)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm prepare", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    demo = commands.add_parser("demo", help="compose and render a corpus in the layout of a real one")
    where = demo.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", help="folder to write")
    where.add_argument("--config", action="append", help="experiment file; the folder of its demo corpus is written")
    demo.add_argument("--layout", choices=DEMO_LAYOUTS, default="audiostock",
                      help="how the corpus lies on the disk (default %(default)s)")
    corpus = commands.add_parser("corpus", help="see to the corpora of an experiment: write those that are the demo's, "
                                                "check that the others are there")
    corpus.add_argument("--config", required=True, action="append", help="experiment file")
    for writer in (demo, corpus):
        writer.add_argument("--tracks", type=int, default=2000, help="the demo's training tracks (default %(default)s)")
        writer.add_argument("--test-tracks", type=int, help="held-out tracks (default an eighth of --tracks)")
        writer.add_argument("--validation-tracks", type=int,
                            help="tracks in validation/ (default a fifteenth of --tracks; 0 for no such folder)")
        writer.add_argument("--world", choices=DEMO_WORLDS,
                            help="what the tracks are of: `music` throughout, the same with more captions in everyday "
                                 "words (music_paraphrased), or one to three `events` in an order (default the "
                                 "experiment's demo_world, or music)")
        writer.add_argument("--seed", type=int, default=0, help="decides every byte (default %(default)s)")
        writer.add_argument("--workers", type=int, help="processes (default one a core)")
    bundle = commands.add_parser("bundle", help="begin a bundle that borrows parts of another")
    bundle.add_argument("--base", required=True, help="whose: a packaged name, ../NAME beside --out, or a hub id")
    bundle.add_argument("--out", required=True, help="folder to write; the stages fill it")
    bundle.add_argument("--borrow", choices=("sound", "clap"), default="sound",
                        help="beside the evaluators: autoencoder, vocoder and decoder, for a text encoder of its own "
                             "(sound); or CLAP, for latents of its own, as MeLoDy's (clap) (default %(default)s)")
    latents = commands.add_parser("latents", help="encode an experiment's corpus with its VAE and text encoder",
                                  epilog="On several GPUs: torchrun --nproc-per-node 8 -m musiccm prepare latents ...")
    latents.add_argument("--cache-dir", help="cache, in place of data.cache_dir")
    tokens = commands.add_parser("tokens", help="make semantic tokens of an experiment's corpus, for its language "
                                                "model and what renders them")
    tokens.add_argument("--tokens-dir", help="cache, in place of data.tokens_dir")
    tokens.add_argument("--tokenizer", help="bundle with a semantic_tokenizer/, in place of data.tokenizer")
    tokens.add_argument("--features", help="bundle or local folder of the network that the tokenizer takes features of "
                                           "(default data.bundle)")
    tokens.add_argument("--non-commercial", action="store_true",
                        help="read features whose weights are licensed for non-commercial use alone (mert, muq)")
    for encoder in (latents, tokens):
        encoder.add_argument("--config", required=True, action="append",
                             help="experiment file; its data section is used")
        encoder.add_argument("--root", help="corpus, in place of data.root")
        encoder.add_argument("--bundle", help="bundle, in place of data.bundle")
        encoder.add_argument("--split", action="append", choices=("train", "test"),
                             help="encode this one alone; training reads `train` (default: both)")
        encoder.add_argument("--batch-size", type=int,
                             help="windows encoded at a time (default 16, on a GPU 64)")
        encoder.add_argument("--workers", type=int,
                             help="processes that read beside each that encodes; 0 reads in that (default its share of "
                                  "the cores but one)")
        encoder.add_argument("--float32", action="store_true",
                             help="compute in float32 on a GPU too, in place of bf16")
        encoder.add_argument("--shard-size", type=int, default=256, help="windows in a file (default %(default)s)")
        encoder.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
        encoder.add_argument("--overwrite", action="store_true",
                             help="replace a cache that was made from something else")
        encoder.add_argument("--strict", action="store_true", help="stop at the first item that cannot be used")
    paths = commands.add_parser("trajectories", help="sample an experiment's guided teacher from noise and keep points "
                                                     "of its paths, for objectives that train on them")
    paths.add_argument("--config", required=True, action="append",
                       help="experiment file; its model says how many paths and which points")
    paths.add_argument("--batch-size", type=int, default=32, help="paths at a time (default %(default)s)")
    paths.add_argument("--shard-size", type=int, default=64, help="paths in a file (default %(default)s)")
    paths.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    paths.add_argument("--overwrite", action="store_true", help="replace paths that were made from something else")
    paths.add_argument("--allow-import", action="append", default=[], metavar="MODULE",
                       help="module that the experiment may name beside the known ones (docs/security.md)")
    index = commands.add_parser("index", help="embed training clips with CLAP, for SIM_AA and `musiccm plagiarism`")
    source = index.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", action="append", help="experiment file; what it trains on is indexed")
    source.add_argument("--root", help="folder of training audio, searched through; needs no labels")
    index.add_argument("--out", required=True, help="folder to write; a killed run goes on where it stopped")
    how = index.add_mutually_exclusive_group()
    how.add_argument("--for-bundle", action="store_true",
                     help="the windows of the experiment's latent cache, in float16 and without paths of this machine: "
                          "what a bundle brings as training_index/")
    how.add_argument("--from-cache", action="store_true",
                     help="take the embeddings of the experiment's latent cache, in place of embedding whole clips")
    index.add_argument("--bundle", help="whose CLAP (default the experiment's, or musiccm-tiny with --root)")
    index.add_argument("--hop-s", type=float, help="seconds between windows (default half of CLAP's window)")
    index.add_argument("--faiss", nargs="?", const="auto", metavar="FACTORY",
                       help="write a FAISS index too, such as Flat or IVF4096,SQfp16 (default by size)")
    index.add_argument("--batch-size", type=int, default=16, help="windows embedded at a time (default %(default)s)")
    index.add_argument("--workers", type=int, default=2, help="threads that decode (default %(default)s)")
    index.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    index.add_argument("--overwrite", action="store_true", help="replace an index that was made from something else")
    return parser
