"""What listeners get: sounds of one length, rate and loudness, a page that names nobody, an order of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyloudnorm import Meter
from scipy.signal import resample_poly

from musiccm.cli import main
from musiccm.evaluation.listening import page as page_module
from tests.listening_clips import CLIPS, SYSTEMS, clip

NODE = shutil.which("node")


def key_of(test: Path) -> dict:
    return json.loads((test / "key.json").read_text())


def data_of(test: Path) -> dict:
    text = (test / "page/index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="test">(.*?)</script>', text, flags=re.S)[1])


@pytest.mark.parametrize("kind", ["preference", "rating"])
def test_sounds_have_one_length_rate_and_loudness(kind: str, request: pytest.FixtureRequest) -> None:
    test = request.getfixturevalue(kind)
    key, meter = key_of(test), Meter(22_050)
    lengths: dict[str, set[int]] = {}
    assert {path.name for path in (test / "page/sounds").iterdir()} == set(key["files"])
    for name, sound in key["files"].items():
        samples, rate_hz = soundfile.read(test / "page/sounds" / name)
        assert rate_hz == 22_050 and np.abs(samples).max() < 0.9
        assert meter.integrated_loudness(samples) == pytest.approx(key["lufs"], abs=0.1)
        lengths.setdefault(sound["item"], set()).add(len(samples))
    # the shortest system's, which is the first one's
    assert lengths == {f"deep/clipcalled{n}": {round((1.2 + 0.1 * n) * 22_050)} for n in range(CLIPS)
                       if f"deep/clipcalled{n}" in lengths}
    assert key["lufs"] <= -18.0


def test_the_key_says_truly_whose_sound_a_file_is(preference: Path) -> None:
    for name, sound in key_of(preference)["files"].items():
        place = [system for system, *_ in SYSTEMS].index(sound["system"])
        rate_hz, level = SYSTEMS[place][1:]
        number = int(sound["item"][-1])
        source = clip(number + 100 * place, rate_hz, 1.2 + 0.1 * number + 0.2 * place, level)
        samples = soundfile.read(preference / "page/sounds" / name)[0][2205:-2205]
        source = (source if rate_hz == 22_050 else resample_poly(source, 441, 320))[2205 : 2205 + len(samples)]
        likeness = np.corrcoef(source, samples)[0, 1]
        assert likeness > 0.999 if sound["form"] == "plain" else 0.5 < likeness < 0.9999, sound


@pytest.mark.parametrize("kind", ["preference", "rating"])
def test_the_page_names_nobody_and_asks_for_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    test = request.getfixturevalue(kind)
    names = [system for system, *_ in SYSTEMS] + ["clipcalled", '"reference"', str(test.parent)]
    files = [path for path in (test / "page").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {"page", "sounds"} and len(files) > 10
    for path in files:
        assert not any(name.encode() in path.read_bytes() or name in path.name for name in names), path
    html = (test / "page/index.html").read_text()
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"\n\s*//.*| // .*", "", html)) and "@import" not in html
    assert "connect-src 'none'" in html.replace("&#x27;", "'") and html.count("</script>") == 2
    assert data_of(test)["trials"][0]["caption"].startswith("tune <b>")


def test_pages_hide_what_they_are_for(preference: Path) -> None:
    key, data = key_of(preference), data_of(preference)
    assert {key["trials"][trial["id"]]["role"] for trial in data["trials"]} == {"pair", "anchor", "check", "same"}
    assert all(len(set(trial["files"])) == 2 for trial in data["trials"])  # of one clip twice too
    sides = [key["files"][trial["files"][0]]["system"] for trial in data["trials"]
             if key["trials"][trial["id"]]["role"] == "pair"]
    assert len(set(sides)) == 2  # no system is always the first
    roles = [key["trials"][trial["id"]]["role"] for trial in data["trials"]]
    assert roles != sorted(roles) and data["test"] == key["test"]
    bytes_of = {trial["id"]: [(preference / "page/sounds" / name).read_bytes() for name in trial["files"]]
                for trial in data["trials"] if key["trials"][trial["id"]]["role"] == "same"}
    assert len(bytes_of) == 2 and all(first == second for first, second in bytes_of.values())


def test_a_seed_makes_the_test_again(clips: Path, preference: Path, tmp_path: Path) -> None:
    arguments = ["listen", "--a", str(clips / "teacherfifty"), "--b", str(clips / "studentfour"), "--captions",
                 str(clips / "captions.json"), "--per-listener", "4", "--anchors", "3"]
    assert main([*arguments, "--out", str(tmp_path / "again"), "--seed", "7"]) == 0
    assert key_of(tmp_path / "again") == key_of(preference)
    assert (tmp_path / "again/page/index.html").read_bytes() == (preference / "page/index.html").read_bytes()
    assert main([*arguments, "--out", str(tmp_path / "again"), "--seed", "8", "--force", "--clips", "3",
                 "--checks", "1", "--equal", "0"]) == 0
    other = key_of(tmp_path / "again")
    assert other["test"] != key_of(preference)["test"] and other["items"] == 3
    assert set(other["files"]) != set(key_of(preference)["files"])


PLANS = """
const logic = require(process.argv[1]), test = JSON.parse(require("fs").readFileSync(process.argv[2], "utf8"));
const plans = {};
for (let n = 0; n < 200; n++) plans["l" + n] = logic.planOf(test, "l" + n);
const same = JSON.stringify(logic.planOf(test, "l3")) === JSON.stringify(plans.l3);
// half a test, kept and taken up again
const state = logic.newState(test, "l3", "2026-01-01T00:00:00.000Z"), plan = plans.l3;
state.place = 3;
plan.slice(0, 3).forEach(function (page, number) {
  const record = logic.recordOf(state, page);
  page.ask.forEach((id) => { record.answers[id] = "first"; });
  if (number < 2) record.heard_s = record.heard_s.map(() => test.least_s);   // the third was not heard
});
const back = logic.restored(test, JSON.stringify(state));
const other = Object.assign({}, test, { test: "0".repeat(16) });
console.log(JSON.stringify({
  plans: plans, same: same, back: back, result: logic.resultOf(test, plan, back, "2026-01-01T00:10:00.000Z"),
  refused: [[other, JSON.stringify(state)], [test, "{broken"], [test, "null"]].map((one) => logic.restored(...one)),
  far: logic.restored(test, JSON.stringify(Object.assign({}, state, { place: 1e9 }))).place,
}));
"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_each_listener_has_an_order_sides_and_clips_of_their_own_and_goes_on(preference: Path, tmp_path: Path) -> None:
    data, key = data_of(preference), key_of(preference)
    (tmp_path / "test.json").write_text(json.dumps(data))
    logic = Path(page_module.__file__).with_name("plan.js")
    found = json.loads(subprocess.run([str(NODE), "-e", PLANS, str(logic), str(tmp_path / "test.json")], check=True,
                                      capture_output=True, timeout=60, text=True).stdout)
    plans, pairs = found["plans"], []
    assert found["same"]
    for plan in plans.values():
        roles = [key["trials"][page["trial"]]["role"] for page in plan]
        assert sorted(roles) == ["anchor"] * 3 + ["check"] * 3 + ["pair"] * 4 + ["same"] * 2
        assert len({page["trial"] for page in plan}) == len(plan)
        pairs += [page for page in plan if key["trials"][page["trial"]]["role"] == "pair"]
        assert all(sorted(page["files"]) == sorted(key["trials"][page["trial"]]["files"]) for page in plan)
    assert len({json.dumps(plan) for plan in plans.values()}) == len(plans)
    first = np.array([key["files"][page["files"][0]]["system"] == "studentfour" for page in pairs])
    assert abs(first.mean() - 0.5) < 3 * 0.5 / np.sqrt(len(first))
    drawn = np.unique([key["trials"][page["trial"]]["item"] for page in pairs], return_counts=True)[1]
    assert len(drawn) == CLIPS and np.abs(drawn / len(plans) - 4 / CLIPS).max() < 3.5 * np.sqrt(2 / 9 / len(plans))
    places = np.array([[page["trial"] for page in plan].index(next(
        page["trial"] for page in plan if key["trials"][page["trial"]]["role"] == "check")) for plan in plans.values()])
    assert len(np.unique(places)) > 5  # checks come anywhere
    assert found["back"]["place"] == 3 and found["back"]["listener"] == "l3" and len(found["back"]["answers"]) == 3
    assert [one["trial"] for one in found["result"]["answers"]] == [page["trial"] for page in plans["l3"][:2]]
    assert found["result"]["complete"] is False and found["refused"] == [None] * 3 and found["far"] == 12


@pytest.mark.parametrize(("arguments", "said"), [
    (["--a", "{clips}/teacherfifty"], "--b: expected"),
    (["--system", "x"], "--system x: expected NAME=DIR"),
    (["--system", "x={clips}/teacherfifty", "--system", "x={clips}/realmusic"], "the name x is given twice"),
    (["--system", "reference={clips}/realmusic"], "is that of the real clips"),
    (["--system", "x={clips}/teacherfifty"], "--system: expected at least two folders"),
    (["--a", "{clips}/teacherfifty", "--b", "{clips}/realmusic", "--kind", "best"], "--kind: expected one of"),
    (["--a", "{clips}/teacherfifty", "--b", "{clips}/realmusic", "--checks", "7"], "--checks: expected from 0 to 6"),
    (["--a", "{clips}/teacherfifty", "--b", "{clips}/realmusic", "--seconds", "nan"], "--seconds: expected"),
    (["--a", "{clips}/teacherfifty", "--b", "{clips}/realmusic", "--collect", "https://x/ ; script-src *"],
     "--collect: "),
    (["--a", "{clips}/teacherfifty", "--b", "{clips}/realmusic", "--captions", "{tmp}/few.json"],
     "no caption for 5 of 6"),
    (["--a", "{clips}/teacherfifty", "--b", "{tmp}/other"], "no clip is there of every system"),
    (["--a", "{clips}/teacherfifty", "--b", "{tmp}/quiet"], "near silence"),
])
def test_what_makes_no_test_is_refused(
    clips: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "few.json").write_text('{"deep/clipcalled0": "a tune"}')
    for name, file, samples in (("other", "x.wav", clip(0, 16_000, 1.5, 0.5)), ("quiet", "deep/clipcalled0.wav",
                                np.r_[1e-4 * clip(0, 16_000, 1.2, 0.5), clip(0, 16_000, 1.0, 0.5)])):
        (tmp_path / name / file).parent.mkdir(parents=True)
        soundfile.write(tmp_path / name / file, samples, 16_000, subtype="FLOAT")
    arguments = [one.format(clips=clips, tmp=tmp_path) for one in arguments]
    if "--checks" not in arguments:
        arguments += ["--checks", "1", "--anchors", "0", "--equal", "0"]
    assert main(["listen", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_more_is_not_replaced(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/answers-1.json").write_text("mine")
    arguments = ["listen", "--a", str(clips / "teacherfifty"), "--b", str(clips / "realmusic"), "--out",
                 str(tmp_path / "out")]
    assert main(arguments) == 2 and "not empty" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 2 and "answers-1.json" in capsys.readouterr().err
    assert (tmp_path / "out/answers-1.json").read_text() == "mine"
    assert main([*arguments[:-1], str(clips), "--force"]) == 2
    assert (clips / "captions.json").is_file()
