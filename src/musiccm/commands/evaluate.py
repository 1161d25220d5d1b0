"""score a folder of generated audio against a folder of references, whatever system made it."""

from __future__ import annotations

import argparse
from pathlib import Path

from musiccm.commands._outputs import beside, require_room
from musiccm.terminal import say


def main(argv: list[str]) -> int:
    """Run `musiccm evaluate`.

    Args:
        argv: The arguments behind `evaluate`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    from musiccm.evaluation.folder_notes import report
    from musiccm.evaluation.folders import Task, evaluate, pairs_of
    from musiccm.files import write_json

    out = Path(args.out) if args.out else beside(args.generated, "-evaluation.json", [args.reference])
    require_room(out)
    task = Task(
        generated=Path(args.generated), reference=Path(args.reference), embedders=pairs_of(args.embedder),
        bundle=args.bundle, captions=args.captions, train=args.train, clap=args.clap, duration_s=args.seconds,
        channel=args.channel, batch_size=args.batch_size, device=args.device,
        also=[name for name in ("kad", "fd_inf") if getattr(args, name)],
        reference_implementation=args.reference_implementation,
    )
    result = evaluate(task)
    say(report(result))
    write_json(out, result)
    say(f"written to {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="musiccm evaluate", description=__doc__,
        epilog="Clips are known by their path below the folder without the suffix; those with the same name on both "
               "sides are pairs, and only KL needs pairs. Files that cannot be used are left out and listed.",
    )
    parser.add_argument("--generated", required=True, help="folder of generated audio (wav, flac, ogg, mp3)")
    parser.add_argument("--reference", required=True, help="folder of reference audio")
    parser.add_argument("--embedder", action="append", metavar="NAME[=FILE]",
                        help="network behind FD, IS and KL: pann, pann32k, vgg, clap, audiomae or tagger, with its "
                        "weights unless they lie in $MUSICCM_WEIGHTS; may be given several times (default pann, vgg)")
    parser.add_argument("--bundle", help="bundle that tagger, audiomae and clap come from, such as musiccm-tiny")
    parser.add_argument("--captions", help="captions by clip (.json, .csv, .tsv), for text-audio similarity")
    parser.add_argument("--clap", metavar="FILE",
                        help="CLAP for text-audio similarity; the bundle's if not given")
    parser.add_argument("--train", metavar="INDEX",
                        help="index of the training clips (musiccm prepare index), for SIM_AA by its CLAP")
    parser.add_argument("--seconds", type=float, help="take this much from the start of every file (default: all)")
    parser.add_argument("--channel", choices=("mean", "first"), default="mean", help="of files with several; published "
                        "tools take the first (default %(default)s)")
    parser.add_argument("--kad", action="store_true", help="add the kernel distance, which small sets do not bias")
    parser.add_argument("--fd-inf", action="store_true", help="add the Frechet distance extrapolated to infinite n")
    parser.add_argument("--reference-implementation", action="store_true",
                        help="run audioldm_eval's own functions on the same embeddings, as a second column")
    parser.add_argument("--batch-size", type=int, default=16, help="clips heard together (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes (default <generated>-evaluation.json)")
    return parser
