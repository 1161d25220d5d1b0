"""compare generated audio with an index of training clips: SIM_AA, and a page that plays each suspicious pair."""

from __future__ import annotations

import argparse
from pathlib import Path

from musiccm.errors import naming
from musiccm.terminal import say

#: What `check_plagiarism` calls an argument, and its option.
OPTIONS = {name: f"--{name.replace('_', '-')}"
           for name in ("out", "top", "pairs", "train_clips", "copy_above", "faiss", "nprobe", "batch_size")}


def main(argv: list[str]) -> int:
    """Run `musiccm plagiarism`.

    Args:
        argv: The arguments behind `plagiarism`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    from musiccm.locks import locked_folder
    from musiccm.similarity.check import check_plagiarism

    with locked_folder(Path(args.out)), naming(OPTIONS):
        content = check_plagiarism(**vars(args))
    for line in summary(content):
        say(line)
    say(f"written to {Path(args.out) / 'index.html'}")
    return 0


def summary(content: dict) -> list[str]:
    """What the terminal shows of a report.

    Args:
        content: What stands in `plagiarism.json`.

    Returns:
        Lines.
    """
    lines = [f"{'':14}  {'n':>6}  {'@90':>6}  {'@95':>6}  {'median':>6}"]
    for name, row in content["rates"].items():
        cells = [f"{row[key]:6.3f}" for key in ("sim_aa_90", "sim_aa_95", "median")]
        lines.append("  ".join([f"{name.replace('_', ' '):14}", f"{row['n']:6d}", *cells]))
    lines += content["notes"]
    copies = content["second_opinion"]
    lines.append(f"log-mel correlation above {copies['threshold']:g}, a likely copy: {copies['likely_copies']} of "
                 f"{copies['n']} clips that were looked at")
    if content["left_out"]:
        lines.append(f"left out: {len(content['left_out'])} files, listed in plagiarism.json")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm plagiarism", description=__doc__)
    parser.add_argument("--generated", required=True, help="folder of generated audio (wav, flac, ogg, mp3)")
    parser.add_argument("--index", required=True, help="folder that `musiccm prepare index` wrote")
    parser.add_argument("--reference", help="folder of held-out real music: what the figures are read against")
    parser.add_argument("--out", default="plagiarism", help="folder to write (default %(default)s)")
    parser.add_argument("--bundle", help="whose CLAP (default the index's own)")
    parser.add_argument("--top", type=int, default=5, help="training clips to find for each (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=50,
                        help="clips to look at closely, nearest first (default %(default)s)")
    parser.add_argument("--train-clips", type=int, default=1000,
                        help="training clips to compare with the others, for calibration (default %(default)s)")
    parser.add_argument("--copy-above", type=float, default=0.7,
                        help="log-mel correlation that makes a likely copy (default %(default)s)")
    parser.add_argument("--faiss", action="store_true", help="search with the FAISS index beside the index")
    parser.add_argument("--nprobe", type=int, default=64, help="lists that FAISS looks at (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows embedded at a time (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    return parser
