"""write a blind listening test of folders of clips, `plan` one, `collect` its answers, `report` what they say."""

from __future__ import annotations

import argparse
from pathlib import Path

from musiccm.errors import MusiccmError, naming
from musiccm.terminal import say

#: What the library calls an argument, and its option.
OPTIONS = {"kind": "--kind", "clips": "--clips", "per_listener": "--per-listener", "seconds": "--seconds",
           "seed": "--seed", "collect": "--collect", "anchors": "--anchors", "checks": "--checks", "equal": "--equal",
           "system": "--system"}
RESERVED = "reference"


def main(argv: list[str]) -> int:
    """Run `musiccm listen`.

    Args:
        argv: The arguments behind `listen`; the first may name another part of the work than writing the page.

    Returns:
        The exit code.
    """
    if argv and argv[0] in ("plan", "collect", "report"):
        from musiccm.commands import _listening

        return {"plan": _listening.plan, "collect": _listening.collect, "report": _listening.report}[argv[0]](argv[1:])
    args = _parser().parse_args(argv)
    folders = systems_of(args)
    from musiccm.data.audio_folder import read_captions
    from musiccm.evaluation.listening.design import Controls
    from musiccm.evaluation.listening.making import Settings, make_listening_test

    captions = read_captions(args.captions) if args.captions else None
    controls = Controls(args.anchors, args.checks, args.equal, args.anchor)
    settings = Settings(args.kind, args.seed, args.clips, args.seconds, args.per_listener, args.format, args.title,
                        args.collect, controls)
    with naming(OPTIONS):
        key = make_listening_test(Path(args.out), folders, captions, args.captions or "", settings, args.force)
    say(f"{len(key['trials'])} pages of {key['items']} clips of {', '.join(key['systems'])}, at {key['lufs']:.1f} LUFS "
        f"and {key['sample_rate_hz']} Hz", *(f"note: {note}" for note in key["notes"]),
        f"{args.out}/page: for listeners; open index.html, or put the folder on any host",
        f"{args.out}/key.json: which sound is whose; keep it from them")
    return 0


def systems_of(args: argparse.Namespace) -> dict[str, Path]:
    """The folders by the names of their systems.

    Args:
        args: Arguments of `listen`.

    Returns:
        At least one; the reference is the last.

    Raises:
        MusiccmError: Two of a name, half of a pair, or a name that means something else.
    """
    if (args.a is None) != (args.b is None):
        raise MusiccmError(f"{'--b' if args.b is None else '--a'}: expected, as the other one of the two is given")
    found: dict[str, Path] = {}
    short = [Path(folder).resolve().name for folder in (args.a, args.b) if folder is not None]
    if len(set(short)) < len(short) or RESERVED in short or "" in short:
        short = ["a", "b"]
    named = [f"{name}={folder}" for name, folder in zip(short, (args.a, args.b), strict=False)]
    for argument in [*named, *(args.system or ())]:
        name, equals, folder = argument.partition("=")
        if not (name.strip() and equals and folder):
            raise MusiccmError(f"--system {argument}: expected NAME=DIR")
        if name in found or name == RESERVED:
            raise MusiccmError(f"--system {argument}: the name {name} " + (
                "is that of the real clips (--reference)" if name == RESERVED else "is given twice"))
        found[name] = Path(folder)
    if args.reference:
        found[RESERVED] = Path(args.reference)
    if not found:
        raise MusiccmError("--a, --b or --system NAME=DIR: expected folders of clips")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="musiccm listen", description=__doc__,
        epilog="Clips are paired by their path below the folder without the suffix. `musiccm listen plan --help`, "
               "`collect --help` and `report --help` show the options of the other parts.",
    )
    parser.add_argument("--a", metavar="DIR", help="clips of one system, named after its folder")
    parser.add_argument("--b", metavar="DIR", help="clips of the other")
    parser.add_argument("--system", action="append", metavar="NAME=DIR", help="a system; any number of them")
    parser.add_argument("--reference", metavar="DIR", help="real clips, hidden among the systems; the "
                        "controls are made of them")
    parser.add_argument("--captions", metavar="FILE", help="texts by clip (.json, .csv, .tsv), which listeners see and "
                        "are asked about")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for page/ and key.json")
    parser.add_argument("--kind", default="preference", help="preference: which of two; rating: overall quality and "
                        "relevance to the text from 1 to 100 (default %(default)s)")
    parser.add_argument("--clips", type=int, help="take so many, drawn by the seed (default: all)")
    parser.add_argument("--per-listener", type=int, help="clips that each listener gets of them (default: all)")
    parser.add_argument("--seconds", type=float, help="at most so much from the start of each clip")
    parser.add_argument("--seed", type=int, default=0, help="of names, orders and draws (default %(default)s)")
    parser.add_argument("--anchors", type=int, default=3, help="pages with a degraded copy (default %(default)s)")
    parser.add_argument("--anchor", default="lowpass", choices=("lowpass", "noise"), help="how it is degraded: nothing "
                        "above 3.5 kHz, or noise as strong as the music (default %(default)s)")
    parser.add_argument("--checks", type=int, default=3, help="pages that ask which of two has noise (default "
                        "%(default)s)")
    parser.add_argument("--equal", type=int, default=2, help="pages with one clip twice, of ratings once more "
                        "(default %(default)s)")
    parser.add_argument("--format", default="flac", choices=("flac", "wav", "ogg", "mp3"), help="of the sounds; flac "
                        "and wav change nothing (default %(default)s)")
    parser.add_argument("--title", default="Listening test", help="heading of the page")
    parser.add_argument("--collect", metavar="URL", help="where the page sends answers, which it else saves as a file")
    parser.add_argument("--force", action="store_true", help="replace a test that is there")
    return parser
