"""The parts of `musiccm listen` around the page: how many pairs to ask for, answers taken in, what they say."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musiccm.errors import MusiccmError, naming
from musiccm.terminal import say
from musiccm.texts import number_text

_OPTIONS = {"port": "--port"}
_QUESTIONS = {"prefer": "preferred", "text": "fits the text better", "ovl": "OVL", "rel": "REL"}


def plan_parser() -> argparse.ArgumentParser:
    """What `plan` takes."""
    parser = argparse.ArgumentParser(prog="musiccm listen plan", description="how many pairs a preference test needs "
                                     "for 80 % power at 5 %, two-sided")
    parser.add_argument("--ties", type=float, default=0.0, help="share of answers without a preference, as expected")
    parser.add_argument("--per-listener", type=int, default=20, help="pairs for each listener (default %(default)s)")
    return parser


def plan(argv: list[str]) -> int:
    """Run `musiccm listen plan`: how many pairs a difference needs.

    Args:
        argv: The arguments behind `plan`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: A number out of its range.
    """
    args = plan_parser().parse_args(argv)
    if not 0 <= args.ties < 1:
        raise MusiccmError(f"--ties: expected a share from 0 to below 1, found {args.ties}")
    if args.per_listener < 1:
        raise MusiccmError(f"--per-listener: expected a whole number from 1 on, found {args.per_listener}")
    from musiccm.commands.tables import grid
    from musiccm.evaluation.listening.proportions import power_table

    body = [[f"{100 * row['share']:.0f}:{100 - 100 * row['share']:.0f}", row["decided_pairs"],
             row["exact_decided_pairs"], row["pairs"], -(-row["pairs"] // args.per_listener)]
            for row in power_table(args.ties)]
    say(*grid(["preference", "decided pairs, approximately", "by the exact test", f"with {args.ties:.0%} ties",
               f"listeners of {args.per_listener}"], body),
        "", "Answers of one listener resemble each other: take more listeners rather than more pairs of each.")
    return 0


def collect_parser() -> argparse.ArgumentParser:
    """What `collect` takes."""
    parser = argparse.ArgumentParser(prog="musiccm listen collect", description="take the answers that pages made with "
                                     "--collect send, on the loopback address alone")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for a file a listener")
    parser.add_argument("--key", metavar="FILE", help="key.json: refuse answers of other tests")
    parser.add_argument("--port", type=int, default=8765, help="(default %(default)s; 0: a free one)")
    parser.add_argument("--most", type=int, default=10_000, help="listeners at most (default %(default)s)")
    return parser


def collect(argv: list[str]) -> int:
    """Run `musiccm listen collect`: take answers on the loopback address until it is ended.

    Args:
        argv: The arguments behind `collect`.

    Returns:
        The exit code.
    """
    args = collect_parser().parse_args(argv)
    from musiccm.evaluation.listening.answers import read_key
    from musiccm.evaluation.listening.collecting import AnswerStore, answer_server

    test = read_key(Path(args.key))["test"] if args.key else None
    with naming(_OPTIONS):
        server = answer_server(AnswerStore(Path(args.out), test, args.most), args.port)
    with server:
        say(f"taking answers at http://127.0.0.1:{server.server_address[1]}/answers into {args.out}; Ctrl-C ends it")
        server.serve_forever()
    return 0


def report_parser() -> argparse.ArgumentParser:
    """What `report` takes."""
    parser = argparse.ArgumentParser(prog="musiccm listen report", description="say what listeners answered")
    parser.add_argument("answers", nargs="+", help="files that the page saved, or folders of them")
    parser.add_argument("--key", required=True, metavar="FILE", help="key.json, which was written with the page")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for report.json, report.md and report.png")
    parser.add_argument("--allowed-misses", type=int, default=0, help="checks that each may get wrong (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling behind intervals (default %(default)s)")
    return parser


def report(argv: list[str]) -> int:
    """Run `musiccm listen report`: what the answers say.

    Args:
        argv: The arguments behind `report`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: A number out of its range, or files that cannot be read.
    """
    args = report_parser().parse_args(argv)
    for option in ("allowed_misses", "seed"):
        if getattr(args, option) < 0:
            raise MusiccmError(f"--{option.replace('_', '-')}: expected a whole number from 0 on, found "
                               f"{getattr(args, option)}")
    from musiccm.evaluation.listening.plots import plot_report
    from musiccm.evaluation.listening.report import listening_report
    from musiccm.files import write_json, write_text

    found = listening_report([Path(path) for path in args.answers], Path(args.key), args.allowed_misses, args.seed)
    text, out = report_text(found), Path(args.out)
    write_json(out / "report.json", found)
    write_text(out / "report.md", text)
    say(text.rstrip())
    drawn = plot_report(out / "report.png", found)
    say(f"written to {out}" + ("" if drawn else "; no picture, as there are too few answers"))
    return 0


def report_text(found: Mapping[str, Any]) -> str:
    """The report as Markdown.

    Args:
        found: Of `listening_report`.

    Returns:
        The text, ended by a newline.
    """
    from musiccm.commands.tables import grid

    lines = [f"# Listening test {found['test']}: {found['kind']}, {found['listeners']} listeners, "
             f"{found['items']} clips a system", ""]
    if found["kind"] == "preference":
        lines += grid(
            ["question", "first", "second", "wins", "ties", "losses", "share of wins", "Wilson 95 %",
             "by listener and clip", "sign test p", "decided pairs for 80 % power", "listeners"],
            [[_QUESTIONS[row["question"]], row["first"], row["second"], row["wins"], row["ties"], row["losses"],
              number_text(row["share"], ".3f", "-"), _interval(row, "wilson_low", "wilson_high", 3),
              _interval(row, "clustered_low", "clustered_high", 3), number_text(row["sign_test_p"], ".2g", "-"),
              row["pairs_needed"], row["listeners"]] for row in found["pairs"]])
    else:
        lines += grid(["question", "system", "mean", "95 %", "deviation", "ratings", "listeners", "clips"], [
            [_QUESTIONS[row["question"]], row["system"], number_text(row["mean"], ".1f", "-"),
             _interval(row, "low", "high", 1), number_text(row["deviation"], ".1f", "-"), row["n"], row["listeners"],
             row["clips"]] for row in found["means"]])
        lines += ["", *grid(["question", "first", "second", "difference", "95 %", "pairs", "pairs for 80 % power"], [
            [_QUESTIONS[row["question"]], row["first"], row["second"], number_text(row["difference"], "+.1f", "-"),
             _interval(row, "low", "high", 1), row["n"], row["pairs_needed"]] for row in found["differences"]])]
    lines += ["", *(f"- {line}" for line in [*_checks(found), *_left_out(found), *found["notes"]])]
    return "\n".join(lines) + "\n"


def _interval(row: Mapping[str, Any], low: str, high: str, digits: int) -> str:
    return "-" if row[low] is None else f"[{row[low]:.{digits}f}, {row[high]:.{digits}f}]"


def _checks(found: Mapping[str, Any]) -> list[str]:
    from musiccm.evaluation.listening.agreement import LEAST_UNITS
    from musiccm.evaluation.listening.proportions import LEAST_DECIDED
    from musiccm.evaluation.listening.resampling import LEAST_CLIPS, LEAST_LISTENERS

    checks, lines = found["checks"], []
    if found["kind"] == "preference":
        lines.append("Wilson's interval, the test and the number of pairs take answers as independent, which several "
                     "of one listener are not")
    for question, alpha in checks["alpha"].items():
        if alpha is not None:
            lines.append(f"{_QUESTIONS[question]}: agreement of listeners (Krippendorff's alpha) {alpha:.2f}")
    for question, row in checks.get("first_shown", {}).items():
        if row["share"] is not None:
            lines.append(f"{_QUESTIONS[question]}: the sound shown first won {row['share']:.0%} of the decided pairs "
                         f"{_interval(row, 'wilson_low', 'wilson_high', 2)}")
    if "original_before_degraded" in checks:
        lines += [f"original preferred to its degraded copy: {checks['original_before_degraded']['times']} of "
                  f"{checks['original_before_degraded']['of']}; no preference for identical clips: "
                  f"{checks['no_preference_for_equal']['times']} of {checks['no_preference_for_equal']['of']}"]
    for question, row in checks.get("repeated", {}).items():
        if row["median_distance"] is not None:
            lines.append(f"{_QUESTIONS[question]}: a clip rated once more lies {row['median_distance']:g} away (median "
                         f"of {row['n']})")
    if any(row.get("share", row.get("mean", row.get("difference"))) is None
           for name in ("pairs", "means", "differences") for row in found.get(name, ())):
        lines.append(f"-: fewer than {LEAST_DECIDED} answers that count say nothing")
    if any(row.get("clustered_low", row.get("low")) is None
           for name in ("pairs", "means", "differences") for row in found.get(name, ())):
        lines.append(f"intervals by listener and clip need {LEAST_LISTENERS} listeners, {LEAST_CLIPS} clips and "
                     "answers that differ")
    if None in checks["alpha"].values():
        lines.append(f"agreement needs {LEAST_UNITS} clips that two listeners answered, and answers that differ")
    return lines


def _left_out(found: Mapping[str, Any]) -> list[str]:
    lines = [f"left out: {name} ({why})" for name, why in found["excluded"].items()]
    if found["incomplete"]:
        lines.append(f"{found['incomplete']} of {found['listeners']} listeners did not finish; what they answered "
                     "counts")
    return lines
