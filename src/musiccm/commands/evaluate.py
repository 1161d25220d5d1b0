"""score a folder of generated audio against a folder of references, whatever system made it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from musiccm.commands._outputs import beside, require_room
from musiccm.errors import MusiccmError, naming
from musiccm.terminal import say

#: What `musiccm.evaluate` calls an argument, and its option.
OPTIONS = {
    "generated": "--generated", "reference": "--reference", "embedders": "--embedder", "captions": "--captions",
    "train": "--train", "seconds": "--seconds", "batch_size": "--batch-size",
    "reference_implementation": "--reference-implementation",
}


def main(argv: list[str]) -> int:
    """Run `musiccm evaluate`.

    Args:
        argv: The arguments behind `evaluate`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    from musiccm.embedders.registry import CLASSIFIERS
    from musiccm.evaluation.api import default_metrics, evaluate
    from musiccm.evaluation.registry import metric_row, optional_metrics
    from musiccm.files import write_json

    out = Path(args.out) if args.out else beside(args.generated, "-evaluation.json", [args.reference])
    require_room(out)
    metrics = [*default_metrics(args.captions, args.train),
               *(row.name for row in optional_metrics() if getattr(args, row.name))]
    embedders = weights_of(args.embedder)
    if embedders and not set(embedders) & set(CLASSIFIERS):
        left_out = [name for name in metrics if metric_row(name).needs == "logits"]
        metrics = [name for name in metrics if name not in left_out]
        say(f"without {', '.join(left_out)}: none of the embedders classifies")
    with naming(OPTIONS):
        scores = evaluate(
            Path(args.generated), Path(args.reference), metrics, embedders=embedders,
            bundle=args.bundle, captions=args.captions, clap=args.clap, train=args.train, seconds=args.seconds,
            channel=args.channel, batch_size=args.batch_size, device=args.device,
            reference_implementation=args.reference_implementation,
        )
    say(str(scores))
    write_json(out, scores.content)
    say(f"written to {out}")
    return 0


def weights_of(arguments: Sequence[str] | None) -> dict[str, str | None] | None:
    """`NAME[=FILE]` arguments as a mapping; None without any."""
    named: dict[str, str | None] = {}
    for argument in arguments or ():
        name, _, path = argument.partition("=")
        if name in named:
            raise MusiccmError(f"--embedder {argument}: {name} is given twice")
        named[name] = path or None
    return named or None


def _parser() -> argparse.ArgumentParser:
    from musiccm.evaluation.registry import optional_metrics

    parser = argparse.ArgumentParser(
        prog="musiccm evaluate", description=__doc__,
        epilog="Clips are known by their path below the folder without the suffix; those with the same name on both "
               "sides are pairs, and only KL needs pairs. Files that cannot be used are left out and listed.",
    )
    parser.add_argument("--generated", required=True, help="folder of generated audio (wav, flac, ogg, mp3)")
    parser.add_argument("--reference", required=True, help="folder of reference audio")
    parser.add_argument("--embedder", action="append", metavar="NAME[=FILE]",
                        help="network behind FD, IS and KL: pann, pann32k, vgg, clap, clap_music, clap_music_1s, "
                        "audiomae or tagger, with its weights unless they lie in $MUSICCM_WEIGHTS; may be given "
                        "several times (default pann, vgg)")
    parser.add_argument("--bundle", help="bundle that tagger, audiomae and clap come from, such as musiccm-tiny")
    parser.add_argument("--captions", help="captions by clip (.json, .csv, .tsv), for text-audio similarity")
    parser.add_argument("--clap", metavar="FILE",
                        help="CLAP for text-audio similarity; the bundle's if not given")
    parser.add_argument("--train", metavar="INDEX",
                        help="index of the training clips (musiccm prepare index), for SIM_AA by its CLAP")
    parser.add_argument("--seconds", type=float, help="take this much from the start of every file (default: all)")
    parser.add_argument("--channel", choices=("mean", "first"), default="mean", help="of files with several; published "
                        "tools take the first (default %(default)s)")
    for row in optional_metrics():
        parser.add_argument(f"--{row.name.replace('_', '-')}", action="store_true", help=f"add {row.optional}")
    parser.add_argument("--reference-implementation", action="store_true",
                        help="run audioldm_eval's own functions on the same embeddings, as a second column")
    parser.add_argument("--batch-size", type=int, default=16, help="clips embedded together (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes (default <generated>-evaluation.json)")
    return parser
