"""Answers of made-up listeners, whose wins, ratings and mistakes are known, and what the report makes of them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from musiccm.cli import main
from musiccm.evaluation.listening.collecting import MOST_BYTES, AnswerStore, answer_server

TEST = "0123456789abcdef"
ITEMS = 12


def sound(system: str, item: str, form: str = "plain", copy: int = 0) -> dict[str, Any]:
    return {"system": system, "item": item, "form": form, "copy": copy}


def make_key(kind: str, folder: Path) -> dict[str, Any]:
    """A key of two systems, x and y, as `musiccm listen` writes it."""
    files: dict[str, Any] = {}
    trials: dict[str, Any] = {}

    def add(role: str, ask: list[str], *sounds: dict[str, Any]) -> None:
        names = []
        for one in sounds:
            names.append(f"f{len(files)}.wav")
            files[names[-1]] = one
        trials[f"t{len(trials):05}"] = {"role": role, "item": sounds[0]["item"], "files": names, "ask": ask}

    for n in range(ITEMS):
        if kind == "preference":
            add("pair", ["prefer", "text"], sound("x", f"c{n}"), sound("y", f"c{n}"))
        else:
            add("clip", ["ovl", "rel"], sound("x", f"c{n}"))
            add("clip", ["ovl", "rel"], sound("y", f"c{n}"))
    for n in range(2):
        add("check", ["noise"], sound("x", f"c{n}"), sound("x", f"c{n}", "noise"))
        if kind == "preference":
            add("same", ["prefer", "text"], sound("y", f"c{n}"), sound("y", f"c{n}", copy=1))
            add("anchor", ["prefer", "text"], sound("y", f"c{n}"), sound("y", f"c{n}", "lowpass"))
        else:
            add("repeat", ["ovl", "rel"], sound("x", f"c{n}", copy=1))
            add("anchor", ["ovl", "rel"], sound("y", f"c{n}", "lowpass"))
    key = {"format": "musiccm-listening-key", "version": 1, "test": TEST, "kind": kind, "systems": ["x", "y"],
           "scale": [1, 100], "items": ITEMS, "notes": [], "files": files, "trials": trials,
           "questions": sorted({ask for trial in trials.values() for ask in trial["ask"]})}
    (folder / "key.json").write_text(json.dumps(key))
    return key


Chooses = Callable[[str, dict, str], Any]


def make_answers(
    folder: Path, key: dict, name: str, chooses: Chooses, swap: int = 0, saved: str = "2026-01-01T01:00:00.000Z",
    most: int = 1000,
) -> dict:
    """The file of a listener; `chooses` says by the role, the trial and the question which sound (by form, copy or
    system), None for neither, or which number."""
    answers = []
    for number, (trial_id, trial) in enumerate(key["trials"].items()):
        files = trial["files"][::-1] if (number + swap) % 2 else trial["files"]
        given = {}
        for question in trial["ask"]:
            value = chooses(trial["role"], trial, question)
            if value is None:
                value = "tie"
            elif isinstance(value, dict):
                value = ("first", "second")[[key["files"][file] == value for file in files].index(True)]
            given[question] = value
        answers.append({"trial": trial_id, "files": files, "answers": given, "heard_s": [], "plays": [], "seconds": 9})
    content = {"format": "musiccm-listening-answers", "version": 1, "test": TEST, "listener": name,
               "started": "2026-01-01T00:00:00.000Z", "saved": saved, "complete": most > len(answers),
               "answers": answers[:most]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return content


def by_plan(who: int) -> Chooses:
    """Prefers x on the first 8 of 12 items, y on 2 of them, has no preference on 2; fits the text: always y. Listeners
    from the third on take x for one more item."""

    def chooses(role: str, trial: dict, question: str) -> Any:
        item, number = trial["item"], int(trial["item"][1:])
        if role == "check":
            return sound("x", item, "noise")
        if role == "same":
            return None
        if role == "anchor":
            return sound("y", item)
        if question == "text":
            return sound("y", item)
        if number < 8 + (who >= 3):
            return sound("x", item)
        return sound("y", item) if number < 10 else None

    return chooses


def spoiled(role_of: str, value: Callable[[str], Any], who: int = 0) -> Chooses:
    honest = by_plan(who)
    return lambda role, trial, question: value(trial["item"]) if role == role_of else honest(role, trial, question)


def report_of(folder: Path, *more: str) -> dict[str, Any]:
    assert main(["listen", "report", str(folder / "answers"), "--key", str(folder / "key.json"), "--out",
                 str(folder / "out"), *more]) == 0
    return json.loads((folder / "out/report.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "answers").mkdir()
    return tmp_path


def test_preferences_are_counted_by_system_whatever_the_side(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    key = make_key("preference", folder)
    for who in range(6):
        make_answers(folder / "answers", key, f"l{who}", by_plan(who), swap=who)
    make_answers(folder / "answers", key, "deaf", spoiled("check", lambda item: sound("x", item)))
    make_answers(folder / "answers", key, "guesses", spoiled("same", lambda item: sound("y", item)))
    make_answers(folder / "answers", key, "early", by_plan(0), most=3)
    report = report_of(folder)
    assert report["excluded"] == {"deaf": "2 of 2 checks wrong", "early": "stopped before any check",
                                  "guesses": "preferred one of two identical clips 2 of 2 times"}
    prefer, text = report["pairs"]
    wins = 6 * 8 + 3
    assert (prefer["question"], prefer["first"], prefer["wins"], prefer["losses"], prefer["ties"]) == (
        "prefer", "x", wins, 60 - wins, 12)
    assert (text["wins"], text["losses"], text["share"]) == (0, 72, 0.0)
    exact = stats.binomtest(wins, 60)
    assert prefer["sign_test_p"] == pytest.approx(exact.pvalue)
    assert prefer["clustered_low"] < prefer["share"] < prefer["clustered_high"]
    assert (text["clustered_low"], text["clustered_high"]) == (None, None)  # all answers are one
    # items decide here, twelve of them, so that sixty answers say less than sixty coins
    assert prefer["clustered_high"] - prefer["clustered_low"] > prefer["wilson_high"] - prefer["wilson_low"]
    assert report["checks"]["alpha"]["prefer"] > 0.8 and report["checks"]["alpha"]["text"] is None
    assert report["checks"]["original_before_degraded"] == report["checks"]["no_preference_for_equal"] == {
        "times": 12, "of": 12}
    assert abs(report["checks"]["first_shown"]["text"]["share"] - 0.5) < 0.01
    assert (folder / "out/report.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| preferred | x | y | 51 | 12 | 9 | 0.850 |" in printed and "deaf (2 of 2 checks wrong)" in printed
    assert report_of(folder, "--allowed-misses", "2")["listeners"] == 7


def test_few_answers_say_nothing(folder: Path, capsys: pytest.CaptureFixture) -> None:
    key = make_key("preference", folder)
    make_answers(folder / "answers", key, "alone", by_plan(0), most=5)
    for name in list(key["trials"])[5:]:  # a test without checks
        del key["trials"][name]
    (folder / "key.json").write_text(json.dumps(key))
    report = report_of(folder)
    assert {report["pairs"][0][name] for name in ("share", "wilson_low", "sign_test_p", "pairs_needed",
                                                  "clustered_low")} == {None}
    assert "fewer than 10 answers" in capsys.readouterr().out and not (folder / "out/report.png").exists()


def rates(who: int, anchors: int = 20) -> Chooses:
    generator = np.random.default_rng(who)
    taste = generator.integers(-9, 10)

    def chooses(role: str, trial: dict, question: str) -> Any:
        if role == "check":
            return sound("x", trial["item"], "noise")
        if role == "anchor":
            return anchors
        base = 60 + taste + 2 * int(trial["item"][1:]) % 7
        return int(base + (0 if trial["files"][0] in ODD else 6) + generator.integers(-3, 4))

    return chooses


ODD = {f"f{2 * n + 1}.wav" for n in range(ITEMS)}  # the clips of y


def test_ratings_have_means_differences_and_repeats(folder: Path, capsys: pytest.CaptureFixture) -> None:
    key = make_key("rating", folder)
    written = [make_answers(folder / "answers", key, f"l{who}", rates(who)) for who in range(7)]
    make_answers(folder / "answers", key, "upside", rates(9, anchors=99))
    report = report_of(folder)
    assert list(report["excluded"]) == ["upside"] and "rated all 2 degraded copies" in report["excluded"]["upside"]
    of = {name: [one["answers"]["ovl"] for content in written for one in content["answers"]
                 if key["trials"][one["trial"]]["role"] == "clip"
                 and key["files"][one["files"][0]]["system"] == name] for name in "xy"}
    means = {(row["question"], row["system"]): row for row in report["means"]}
    for name in "xy":
        row = means["ovl", name]
        assert row["n"] == 7 * ITEMS and row["mean"] == pytest.approx(np.mean(of[name]))
        assert row["deviation"] == pytest.approx(np.std(of[name], ddof=1)) and row["low"] < row["mean"] < row["high"]
    assert means["ovl", "anchor"]["mean"] == 20 and means["ovl", "anchor"]["low"] is None  # of two clips
    (row,) = [row for row in report["differences"] if row["question"] == "ovl"]
    assert row["difference"] == pytest.approx(np.mean(of["x"]) - np.mean(of["y"]))
    assert 4 < row["low"] < row["difference"] < row["high"] < 8  # tastes are in common, and cancel
    assert row["high"] - row["low"] < 0.5 * (means["ovl", "x"]["high"] - means["ovl", "x"]["low"])
    apart = np.subtract(of["x"], of["y"])
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert row["pairs_needed"] == max(2, np.ceil((z * apart.std(ddof=1) / apart.mean()) ** 2))
    assert 0 < report["checks"]["alpha"]["ovl"] < 0.8 and report["checks"]["repeated"]["ovl"]["n"] == 14
    assert (folder / "out/report.png").is_file() and "| OVL | x |" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "said"), [
    (lambda content: content.update(test="f" * 16), "the answers are of the test ffff"),
    (lambda content: content.update(listener="../x"), "listener: expected letters"),
    (lambda content: content.update(format="x"), "expected answers of a listening test"),
    (lambda content: content.pop("started"), "expected `test`, `started`"),
    (lambda content: content["answers"][0].update(trial="t99999"), "has no such page"),
    (lambda content: content["answers"][0].update(files=["f0.wav", "f3.wav"]), "has no such page"),
    (lambda content: content["answers"].append(content["answers"][0]), "answered twice"),
    (lambda content: content["answers"][0]["answers"].update(prefer=True), "expected first, second, tie"),
    (lambda content: content["answers"][0]["answers"].update(prefer=7), "is no answer to this question"),
    (lambda content: content["answers"][0]["answers"].pop("text"), "expected answers to prefer, text"),
    (lambda content: content["answers"][12]["answers"].update(noise="tie"), "is no answer to this question"),
])
def test_answers_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict], Any], said: str, capsys: pytest.CaptureFixture
) -> None:
    key = make_key("preference", folder)
    content = make_answers(folder / "answers", key, "l0", by_plan(0))
    change(content)
    (folder / "answers/l0.json").write_text(json.dumps(content))
    assert main(["listen", "report", str(folder / "answers/l0.json"), "--key", str(folder / "key.json"),
                 "--out", str(folder / "out")]) == 2
    assert said in (printed := capsys.readouterr().err) and "l0.json" in printed
    assert not (folder / "out").exists()


def test_the_later_file_of_a_listener_counts(folder: Path, capsys: pytest.CaptureFixture) -> None:
    key = make_key("preference", folder)
    answers = folder / "answers"
    make_answers(answers, key, "l0", by_plan(0), most=4, saved="2026-01-01T00:30:00.000Z").copy()
    (answers / "l0.json").rename(answers / "early.json")
    later = make_answers(answers, key, "l0", by_plan(0))
    report = report_of(folder)
    assert report["listeners"] == 1 and report["pairs"][0]["wins"] == 8
    assert any("early.json: saved before" in note for note in report["notes"])
    (answers / "early.json").write_text(json.dumps(later | {"started": "2025-01-01T00:00:00.000Z"}))
    capsys.readouterr()
    assert main(["listen", "report", str(answers), "--key", str(folder / "key.json"), "--out",
                 str(folder / "out")]) == 2
    assert "another listener called l0" in capsys.readouterr().err


def test_a_plan_of_pairs(capsys: pytest.CaptureFixture) -> None:
    assert main(["listen", "plan", "--ties", "0.5", "--per-listener", "10"]) == 0
    assert "| 60:40 | 194 | 210 | 420 | 42 |" in capsys.readouterr().out
    assert main(["listen", "plan", "--ties", "1"]) == 2 and "--ties" in capsys.readouterr().err


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with answer_server(AnswerStore(tmp_path / "taken", TEST, most=2)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def post(port: int, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/answers", body, headers or {})
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    connection.close()
    return answer.status, text


def test_sent_answers_are_kept_and_nothing_else(tmp_path: Path, port: int) -> None:
    key = make_key("preference", tmp_path)
    sent = [make_answers(tmp_path, key, f"l{who}", by_plan(who)) for who in range(3)]
    for content in sent[:2]:
        assert post(port, json.dumps(content).encode())[0] == 200
    status, text = post(port, json.dumps(sent[2]).encode())
    assert status == 400 and "no more answers" in text
    early = make_answers(tmp_path, key, "l0", by_plan(0), most=4, saved="2026-01-01T00:00:01.000Z")
    assert post(port, json.dumps(early).encode())[0] == 200  # arrived late: what is there is newer
    stranger = sent[1] | {"started": "2024-01-01T00:00:00.000Z"}
    assert "another listener" in post(port, json.dumps(stranger).encode())[1]
    for body, said in ((b"{", "not valid JSON"), (b"[" * 100_000, "not valid JSON"), (b"\xff", "not valid JSON"),
                       (b"[]", "expected answers"),
                       (json.dumps(sent[0] | {"test": "e" * 16}).encode(), "another test")):
        status, text = post(port, body)
        assert status == 400 and said in text
    assert post(port, b"", {"Content-Length": str(MOST_BYTES + 1)})[0] == 413
    assert post(port, b"", {"Content-Length": "-1"})[0] == 411
    taken = sorted((tmp_path / "taken").glob("*"))
    assert [json.loads(path.read_text()) for path in taken] == sent[:2]
    assert [path.name for path in taken] == [f"answers-{TEST}-l{who}.json" for who in range(2)]


def test_a_port_that_is_taken_is_said(port: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["listen", "collect", "--out", str(tmp_path / "x"), "--port", str(port)]) == 2
    assert f"--port: {port} cannot be had" in capsys.readouterr().err
