"""The page in a real browser: every button, the keyboard, reload, two tabs, a server that dies, streams, axe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
import torch
from PIL import Image

from musiccm.audio.io import write_audio
from tests.forked import Command, free_port

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
BROWSER = os.environ.get("MUSICCM_TEST_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow, pytest.mark.e2e,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium in PATH, or its path in MUSICCM_TEST_BROWSER"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 120_000
PROMPT = "a calm piano melody over soft strings"
expect = playwright.expect


class Served:
    """`musiccm serve` with the embedded student and teacher; it can be killed and begun again."""

    def __init__(self, folder: Path, *more: object, **variables: str) -> None:
        self.folder, self.port, self.more, self.variables = folder, free_port(), more, variables
        self.address = f"http://127.0.0.1:{self.port}"
        folder.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        self.process = Command(["serve", "--model", "musiccm-tiny-student", "--model", "musiccm-tiny", "--port",
                                self.port, "--drain", 2, *self.more], self.folder, variables=self.variables)
        until(lambda: self.process.poll() is None and self._ready(), 120)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(20)

    def jobs(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.address}/v1/jobs?limit=1000").json()["jobs"]


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("server"))
    yield served
    served.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=PATIENCE_MS)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a profile of its own, on a desktop unless told otherwise; no script may fail on it."""
    contexts, wrong = [], []

    def visit(served: Served, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1100, "height": 900}, **options) if "viewport" not in options \
            else browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(served.address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def make(
    page: Any, prompt: str = PROMPT, button: str = "#make", seed: int | None = 7, results: int = 1, **fields: str
) -> Any:
    """Fill the form, click, and wait; the newest take."""
    expect(page.locator("#make")).to_be_enabled()
    page.locator("#prompt").fill(prompt)
    if seed is not None:
        page.locator("#seed").fill(str(seed))
        page.locator("#lock").check()
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.locator(button).click()
    take = page.locator("music-take").first
    expect(take.locator("music-player")).to_have_count(results)
    return take


def teacher_steps(page: Any, steps: int) -> None:
    page.locator("#more > summary").click()
    page.locator("#teacher-steps").fill(str(steps))
    page.locator("#more > summary").click()


def playing(player: Any) -> bool:
    return player.evaluate("player => player.playing")


def position(player: Any) -> float:
    return player.evaluate("player => player.position")


def saved(page: Any, button: Any) -> Path:
    with page.expect_download() as download:
        button.click()
    path = Path(download.value.path())
    return path.rename(path.with_name(download.value.suggested_filename))


def test_a_clip_is_made_played_marked_scored_and_saved(served, visit):
    page = visit(served)
    page.get_by_role("button", name=PROMPT, exact=True).click()
    expect(page.locator("#prompt")).to_have_value(PROMPT)
    page.locator("#seed").fill("7")
    page.locator("#lock").check()
    page.get_by_role("radio", name="2 steps").check(force=True)
    page.locator("#variants").fill("2")
    page.locator("#prompt").press("Control+Enter")
    take = page.locator("music-take")
    expect(take.locator("music-player")).to_have_count(2)
    ours = {(job["seed"], job["request"]["steps"], job["calls"]) for job in served.jobs()[:2]}
    assert ours == {(7, 2, 2), (8, 2, 2)} and page.locator("#seed").input_value() == "7"
    expect(take.get_by_text("2 network calls").first).to_be_visible()

    player, other = take.locator("music-player").all()
    player.get_by_role("button").click()
    until(lambda: playing(player) and position(player) > 0.05)
    other.get_by_role("button").click()
    until(lambda: playing(other) and not playing(player))  # one at a time
    other.get_by_role("button").click()
    until(lambda: not playing(other))
    slider = player.get_by_role("slider")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert position(player) == pytest.approx(2.56, abs=0.05)
    slider.press("ArrowRight")
    assert position(player) == pytest.approx(2.81, abs=0.06)
    slider.press("Home")
    slider.press("Shift+ArrowRight")
    slider.press("[")
    slider.press("End")
    slider.press("]")
    assert player.evaluate("player => player.range") == [pytest.approx(1.0), pytest.approx(5.12)]
    slider.press("Escape")
    assert player.evaluate("player => player.range") is None
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert player.evaluate("player => player.range") == [pytest.approx(1.28, abs=0.05), pytest.approx(2.56, abs=0.05)]

    take.get_by_role("button", name="Scores").click()
    for line in take.locator(".evidence").all():
        expect(line).to_contain_text(re.compile(
            r"Text score 0\.\d\d; nearest of 5,744 training clips: train_\d+, cosine 0\.\d+"))

    first = take.locator("music-result").first
    first.locator("summary").click()
    job = first.evaluate("result => result.entry.job")
    for form in ("wav", "flac", "ogg", "mp3"):
        path = saved(page, first.get_by_role("button", name=f"as {form}"))
        assert path.suffix == f".{form}" and soundfile.info(path).duration == pytest.approx(5.12, abs=0.1)
        assert path.read_bytes() == httpx.get(f"{served.address}/v1/jobs/{job}/audio?format={form}").content
    sidecar = json.loads(saved(page, first.get_by_role("button", name="parameters")).read_text())
    assert PROMPT in json.dumps(sidecar) and '"seed": 7' in json.dumps(sidecar)

    page.locator("#prompt").fill("something else")
    page.locator("#variants").fill("1")
    take.get_by_role("button", name="Use again").click()
    expect(page.locator("#prompt")).to_have_value(PROMPT)
    expect(page.locator("#variants")).to_have_value("2")
    take.get_by_role("button", name="Forget").click()
    expect(page.locator("music-take")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()


def test_teacher_beside_student(served, visit):
    page = visit(served)
    expect(page.locator("#make")).to_be_enabled()
    teacher_steps(page, 3)
    take = make(page, button="#beside", results=2)
    expect(take.locator(".result-head strong")).to_have_text(["Student", "Teacher"])
    by_model = {job["model"]: job for job in served.jobs()[:2]}
    student, teacher = by_model["musiccm-tiny-student"], by_model["musiccm-tiny"]
    assert student["seed"] == teacher["seed"] == 7 and student["request"]["prompts"] == teacher["request"]["prompts"]
    assert (student["request"]["steps"], teacher["request"]["steps"]) == (4, 3)
    expect(take.locator(".summary")).to_contain_text(re.compile(
        rf"The student took .* s for 4 network calls, the teacher .* s for {2 * teacher['calls']} network calls"))


def test_a_student_lies_beside_its_own_teacher(visit, tmp_path):
    """Of five models: TANGO's student is named like two teachers, and the melody model has no student."""
    names = ("musiccm-tiny-tango-student", "musiccm-tiny-tango", "musiccm-tiny-melody")
    served = Served(tmp_path / "server", *(word for name in names for word in ("--model", name)))
    pairs = {"musiccm-tiny-student": "musiccm-tiny", "musiccm-tiny-tango-student": "musiccm-tiny-tango"}
    try:
        page = visit(served)
        expect(page.locator("#make")).to_be_enabled()
        button, steps = page.locator("#beside"), page.locator("#teacher-steps")
        for student, teacher in pairs.items():
            for name in (student, teacher):
                page.locator("#model").select_option(name)
                expect(button).to_have_attribute("title", f"{teacher} beside {student}")
                expect(steps).to_have_attribute("placeholder", "50")
        page.locator("#model").select_option("musiccm-tiny-melody")
        expect(button).to_be_hidden()
        expect(steps).to_have_attribute("placeholder", "20")
        page.locator("#model").select_option("musiccm-tiny-tango-student")
        teacher_steps(page, 1)
        make(page, button="#beside", results=2, seconds="1")
        assert {job["model"] for job in served.jobs()} == {"musiccm-tiny-tango-student", "musiccm-tiny-tango"}

        known = httpx.get(f"{served.address}/v1/models").json()["data"]

        def met_with(models: list[dict[str, Any]], chosen: str) -> None:
            page.unroute("**/v1/models")
            page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": models}))
            page.reload()
            expect(page.locator("#make")).to_be_enabled()
            page.locator("#model").select_option(chosen)

        met_with([model for model in known if model["id"] != "musiccm-tiny-tango"], "musiccm-tiny-tango-student")
        expect(button).to_be_hidden()
        expect(steps).to_have_attribute("placeholder", "")
        tango = next(model for model in known if model["id"] == "musiccm-tiny-tango")
        others = [{**model, "id": model["id"].replace("-student", "s")} for model in known if model is not tango]

        def teacher(name: str, **facts: Any) -> dict[str, Any]:
            return {**tango, "id": name, "facts": {**tango["facts"], **facts}}

        def silent(models: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
            """The same from bundles that do not say so much."""
            return [{**model, "facts": {**model["facts"], **dict.fromkeys(names)}} for model in models]

        two = [teacher("first", denoiser_hash="0" * 64), teacher("second"), *others]  # of the same frozen parts
        met_with(two, "musiccm-tiny-tangos")  # the weights tell
        expect(button).to_have_attribute("title", "second beside musiccm-tiny-tangos")
        page.locator("#model").select_option("first")
        expect(button).to_be_hidden()
        met_with(silent(two, "teacher", "teacher_hash"), "musiccm-tiny-tangos")  # nothing tells
        expect(button).to_be_hidden()
        met_with(silent([two[1], *others], "teacher", "teacher_hash"), "musiccm-tiny-tangos")  # their parts alone tell
        expect(button).to_have_attribute("title", "second beside musiccm-tiny-tangos")
        met_with([two[0], *others], "musiccm-tiny-tangos")  # not its own, though its parts are
        expect(button).to_be_hidden()
        met_with(silent(known, "shared_hash", "teacher", "teacher_hash"), "musiccm-tiny-tango-student")  # names alone
        expect(button).to_have_attribute("title", "musiccm-tiny-tango beside musiccm-tiny-tango-student")
    finally:
        served.kill()


def test_the_seed_is_drawn_unless_it_is_locked(served, visit):
    page = visit(served)
    make(page, seed=None)
    drawn = page.locator("#seed").input_value()
    assert drawn == str(served.jobs()[0]["seed"])
    make(page, seed=None)
    expect(page.locator("music-take")).to_have_count(2)
    assert page.locator("#seed").input_value() not in ("", drawn)


def test_a_seed_that_javascript_cannot_hold_is_refused(served, visit):
    page = visit(served)
    take = make(page, seconds="1")
    before = len(served.jobs())
    most = 2**53 - 1
    seed = page.locator("#seed")
    for value, variants in ((most + 2, 1), (2**63 - 1, 1), (most, 2), (most - 6, 8)):  # variants count up
        seed.fill(str(value))
        page.locator("#variants").fill(str(variants))
        for button in ("#make", "#beside"):
            page.locator("#prompt").focus()
            page.locator(button).click()
            expect(seed).to_be_focused()
        assert str(most + 1 - variants) in seed.evaluate("field => field.validationMessage")
    seed.fill(str(most + 2))
    take.get_by_role("button", name="Vary Student").click()
    take.get_by_role("button", name="Vary it").click()
    expect(take.get_by_role("alert")).to_contain_text(f"Seed: Value must be less than or equal to {most}")
    page.get_by_role("tab", name="Stream").click()
    page.locator("#stream-start").click()
    expect(seed).to_be_focused()
    assert len(served.jobs()) == before
    seed.fill(str(most))
    take.get_by_role("button", name="Vary it").click()
    expect(page.locator("music-take").first).to_contain_text(f"seed {most}")
    page.get_by_role("tab", name="Clip").click()
    make(page, seed=most - 1, variants="2", results=2)
    assert {job["seed"] for job in served.jobs()[:2]} == {most - 1, most} and served.jobs()[2]["seed"] == most


def test_a_sound_without_a_picture_plays(served, visit):
    page = visit(served)
    full = {"status": 507, "detail": "the server's disk is full"}
    page.route("**/spectrogram.png", lambda route: route.fulfill(
        status=507, content_type="application/problem+json", body=json.dumps(full)))
    take = make(page)
    expect(take).to_contain_text("There is no picture: the server's disk is full")
    player = take.locator("music-player")
    player.get_by_role("button").click()
    until(lambda: playing(player) and position(player) > 0.05)
    page.unroute("**/spectrogram.png")
    page.reload()
    expect(player.locator("img")).to_have_count(1)
    expect(take).not_to_contain_text("There is no picture")


def test_a_continuation_of_no_stated_length_is_titled(served, visit):
    page = visit(served)
    take = make(page, seconds="1")
    take.get_by_role("button", name="Continue Student").click()
    take.get_by_label("Seconds in all").fill("")
    take.get_by_role("button", name="Continue it").click()
    expect(page.locator("music-take")).to_have_count(2)
    expect(page.locator("music-take").first).to_contain_text(f"Continued of “{PROMPT}” · seed 7")


def test_results_and_files_are_continued_mended_and_varied(served, visit, tmp_path):
    page = visit(served)
    take = make(page)
    source = served.jobs()[0]["id"]
    for number, (name, button, field, value) in enumerate([
        ("Continue", "Continue it", "Seconds in all", "8"), ("Mend", "Mend it", "To second", "4"),
        ("Vary", "Vary it", "How much it changes", "0.6"),
    ], start=2):
        take.get_by_role("button", name=f"{name} Student").click()
        panel = take.get_by_role("group", name=name)
        expect(panel.get_by_label("What should the new part be like?")).to_be_focused()
        panel.get_by_label(field).fill(value)
        panel.get_by_role("button", name=button).click()
        expect(page.locator("music-take")).to_have_count(number)
        expect(panel).to_be_hidden()
        expect(page.locator("music-take").first.locator("music-player")).to_have_count(1)
        take = page.locator("music-take").last
    vary, mend, longer = [job["request"] for job in served.jobs()[:3]]
    assert {vary["source"], mend["source"], longer["source"]} == {source}
    assert vary["strength"] == 0.6 and (mend["from_s"], mend["to_s"]) == (1.54, 4) and longer["seconds"] == 8

    take.get_by_role("button", name="Mend Student").click()  # a range that cannot be, told where it was asked for
    panel = take.get_by_role("group", name="Mend")
    panel.get_by_label("From second").fill("4.5")
    panel.get_by_label("To second").fill("4")
    panel.get_by_role("button", name="Mend it").click()
    expect(panel.get_by_role("alert")).to_contain_text("from: expected less than to")
    slider = take.get_by_role("slider")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.up()
    assert float(panel.get_by_label("From second").input_value()) == pytest.approx(1.28, abs=0.05)
    panel.get_by_role("button", name="Close").click()
    expect(take.get_by_role("button", name="Mend Student")).to_be_focused()

    time_s = torch.arange(3 * 44100) / 44100
    write_audio(tmp_path / "mine.wav", 0.5 * torch.sin(2 * torch.pi * 220 * time_s), 44100)
    page.get_by_role("tab", name="Your file").click()
    page.locator("#file").set_input_files(tmp_path / "mine.wav")
    box = page.locator("#file-result")
    expect(box).to_contain_text("mine.wav, 3.00 s")
    assert box.locator("music-player img").evaluate("picture => picture.naturalWidth") == 1000
    box.get_by_role("button", name="Continue").click()
    box.get_by_label("Seconds in all").fill("6")
    box.get_by_role("button", name="Continue it").click()
    newest = page.locator("music-take").first
    expect(newest).to_contain_text("Continued of mine.wav to 6 s")
    expect(newest.locator("music-player")).to_have_count(1)
    assert newest.locator("music-player").evaluate("player => player.seconds") == pytest.approx(6, abs=0.01)
    for name, button, about in (("Mend", "Mend it", "Mended of mine.wav from 0.9 to 1.8 s"),
                                ("Vary", "Vary it", "Varied of mine.wav by 40 percent")):
        box.get_by_role("button", name=name).click()
        box.get_by_role("button", name=button).click()
        newest = page.locator("music-take").first
        expect(newest).to_contain_text(about)
        expect(newest.locator("music-player")).to_have_count(1)
    upload = served.jobs()[0]["request"]["source"]
    box.get_by_role("button", name="Remove mine.wav from the server").click()
    expect(box).to_be_empty()
    expect(page.locator("#said")).to_have_text("mine.wav is no longer on the server.")
    assert page.locator("#file").input_value() == ""
    assert httpx.delete(f"{served.address}/v1/uploads/{upload}").status_code == 404
    page.locator("#file").set_input_files(tmp_path / "mine.wav")  # the same one again, which somebody else removes
    expect(box).to_contain_text("mine.wav, 3.00 s")
    with page.expect_response("**/v1/uploads/*") as gone:
        page.route("**/v1/uploads/*", lambda route: route.continue_(url=re.sub(r"\w+$", "0" * 32, route.request.url)))
        box.get_by_role("button", name="Remove").click()
    assert gone.value.status == 404
    expect(box).to_be_empty()
    (tmp_path / "no.wav").write_text("no sound")
    page.locator("#file").set_input_files(tmp_path / "no.wav")
    expect(box.get_by_role("alert")).to_contain_text("expected wav, flac, ogg or mp3")


def test_prompts_along_a_timeline(served, visit):
    page = visit(served)
    page.get_by_role("tab", name="Timeline").click()
    page.locator("#seconds").fill("12")
    page.get_by_role("button", name="Add a prompt").click()
    page.get_by_label("Prompt", exact=True).last.fill("bells")
    page.get_by_label("Second", exact=True).last.fill("8")
    page.get_by_role("button", name="Remove").nth(1).click()
    expect(page.locator("#strip span")).to_have_count(2)
    page.locator("#make").click()
    expect(page.locator("music-player")).to_have_count(1)
    request = served.jobs()[0]["request"]
    assert request["task"] == "compose" and request["seconds"] == 12
    assert request["prompts"] == [[0, "slow organ chords, no drums"], [8, "bells"]]


def test_a_stream_plays_changes_its_prompt_and_stops(served, visit):
    page = visit(served)
    page.get_by_role("tab", name="Stream").click()
    page.locator("#prompt").fill("slow organ chords")
    page.locator("#stream-start").click()
    expect(page.locator("#stream-state")).to_contain_text(re.compile(r"[1-9]\d*\.\d played"))
    stream = next(job for job in served.jobs() if job["task"] == "stream")
    assert stream["state"] == "running" and stream["request"]["seconds"] is None
    assert page.locator("#stream canvas").evaluate(  # what is played is sound
        "canvas => canvas.getContext('2d').getImageData(0, 0, 320, 36).data.some(value => value > 0)")
    page.get_by_label("Prompt of what comes").fill("a fast synth lead with dance drums")
    page.get_by_role("button", name="Change the prompt").click()
    expect(page.locator("#said")).to_contain_text("The new prompt holds from second")
    expect(page.locator("#stream-state")).to_contain_text("a fast synth lead with dance drums")
    page.get_by_label("Volume").fill("0.3")
    page.get_by_role("button", name="Start anew").click()
    until(lambda: next(job for job in served.jobs() if job["id"] == stream["id"])["state"] == "cancelled")
    expect(page.locator("#stream-state")).to_contain_text(re.compile(r"[1-9]\d*\.\d played"))
    stream = next(job for job in served.jobs() if job["task"] == "stream")
    assert stream["state"] == "running"
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#stream")).to_be_hidden()
    until(lambda: next(job for job in served.jobs() if job["id"] == stream["id"])["state"] == "cancelled")


def test_a_job_can_be_cancelled(served, visit):
    page = visit(served)
    expect(page.locator("#make")).to_be_enabled()
    page.locator("#prompt").fill("a long piece")
    page.locator("#seconds").fill("300")
    page.locator("#make").click()
    expect(page.locator("music-take")).to_contain_text(re.compile(r"Call \d+ of \d+"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("music-take")).to_contain_text("Cancelled.")
    assert served.jobs()[0]["state"] == "cancelled"
    page.get_by_role("button", name="Make it: Student").click()
    expect(page.locator("music-take")).to_contain_text(re.compile(r"Call \d+ of \d+"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("music-take")).to_contain_text("Cancelled.")
    first, second = served.jobs()[:2]
    assert first["id"] != second["id"] and first["seed"] == second["seed"]


def test_what_cannot_be_is_said_at_its_place(served, visit):
    page = visit(served)
    expect(page.locator("#make")).to_be_enabled()
    before = len(served.jobs())
    page.locator("#prompt").fill(PROMPT)
    page.locator("#seconds").fill("100000")  # more than the server takes
    for button in ("#make", "#beside"):
        page.locator("#prompt").focus()
        page.locator(button).click()
        expect(page.locator("#seconds")).to_be_focused()
    page.locator("#seconds").fill("3")
    page.locator("#more > summary").click()
    page.locator("#guidance").fill("-1")
    page.locator("#more > summary").click()
    page.get_by_role("tab", name="Stream").click()
    for button in ("#stream-start", "#make"):
        if button == "#make":
            page.get_by_role("tab", name="Clip").click()
            page.locator("#more > summary").click()
        page.locator(button).click()
        expect(page.locator("#guidance")).to_be_focused()  # under More, which opens
    assert page.locator("music-take").count() == 0 and len(served.jobs()) == before
    page.locator("#guidance").fill("")
    page.get_by_role("tab", name="Timeline").click()
    page.locator("#seconds").fill("6")  # what only the server can say: the second prompt begins later
    page.locator("#make").click()
    take = page.locator("music-take")
    expect(take).to_contain_text("(from 10 s) would not be used")
    page.get_by_role("tab", name="Clip").click()  # a row of the timeline that is none is not in the way of a clip
    take.get_by_role("button", name="Forget").click()
    make(page)


def test_every_setting_reaches_the_server(served, visit):
    page = visit(served)
    expect(page.locator("#make")).to_be_enabled()
    examples = page.locator("#examples button")
    assert examples.count() == 6
    for example in examples.all():
        example.click()
        expect(page.locator("#prompt")).to_have_value(example.inner_text())
        expect(page.locator("#prompt")).to_be_focused()
    page.locator("#model").select_option("musiccm-tiny")
    expect(page.locator("#steps-note")).to_be_visible()
    page.locator("#more > summary").click()
    page.locator("#teacher-steps").fill("3")
    page.locator("#guidance").fill("2.5")
    page.locator("#level").select_option("peak")
    make(page, seconds="2")
    request = served.jobs()[0]["request"]
    assert (request["model"], request["steps"], request["guidance_scale"]) == ("musiccm-tiny", 3, 2.5)
    assert (request["level"], request["seconds"], request["seed"]) == ("peak", 2, 7)
    page.locator("#model").select_option("musiccm-tiny-student")
    expect(page.locator("#steps-note")).to_be_hidden()
    for steps in (1, 2, 4, 8):
        page.get_by_role("radio", name=f"{steps} step{'s' if steps > 1 else ''}", exact=True).check(force=True)
        make(page, seconds="2")
        expect(page.locator("music-player")).to_have_count(2 + (1, 2, 4, 8).index(steps))
        assert served.jobs()[0]["request"]["steps"] == steps


def test_scores_wait_for_room_and_say_so(served, visit):
    page = visit(served)
    take = make(page)
    full, asked = {"type": "urn:musiccm:problem:evidence-full", "status": 429, "detail": "8 requests wait"}, []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
        else:
            route.fulfill(status=429, content_type="application/problem+json", body=json.dumps(full),
                          headers={"Retry-After": "2"})

    page.route("**/evidence", answer)
    take.get_by_role("button", name="Scores").click()
    expect(take.locator(".evidence")).to_contain_text("The server is full and is asked again in 2 s.")
    expect(take.locator(".evidence")).to_contain_text("Text score 0.")
    assert len(asked) == 2


def test_reload_and_two_tabs(served, visit):
    page = visit(served)
    make(page)
    page.locator("#prompt").fill("not sent yet")
    page.locator("#prompt").blur()
    page.reload()
    expect(page.locator("music-player")).to_have_count(1)
    expect(page.locator("#prompt")).to_have_value("not sent yet")
    assert page.locator("#seed").input_value() == "7" and page.locator("#lock").is_checked()
    second = page.context.new_page()
    second.goto(served.address)
    expect(second.locator("music-player")).to_have_count(1)
    markup = "<img src=x onerror=\"document.title='entered'\">"
    make(second, markup)
    expect(page.locator("music-take")).to_have_count(2)
    expect(second.locator("h3").first).to_have_text(markup)
    assert "entered" not in second.title() + page.title()
    page.bring_to_front()
    expect(page.locator("music-player")).to_have_count(2)
    page.locator("music-take").first.get_by_role("button", name="Forget").click()
    expect(second.locator("music-take")).to_have_count(1)

    page.evaluate("""() => {
      const key = Object.keys(localStorage).find(key => key.startsWith("musiccm.take."));
      const take = JSON.parse(localStorage.getItem(key));
      for (let n = 0; n < 24; n++) localStorage.setItem(`musiccm.take.${n}`, JSON.stringify({...take, id: String(n)}));
      localStorage.setItem("musiccm.take.bad", "{no take");
    }""")
    page.reload()
    expect(page.locator("music-take")).to_have_count(20)
    page.get_by_role("button", name="Show older results").click()
    expect(page.locator("music-take")).to_have_count(25)
    expect(page.locator("#older")).to_be_hidden()


def test_what_is_made_again_in_one_tab_plays_in_the_other(visit, tmp_path):
    served = Served(tmp_path / "server", "--keep", 3)
    try:
        page = visit(served)
        make(page, seconds="1")
        page.locator("music-player").evaluate("player => player.dataset.before = true")
        first = f"{served.address}/v1/jobs/{served.jobs()[0]['id']}"
        for seed in range(4):
            body = {"input": "slow organ chords", "seed": seed, "audio_length": 1}
            assert httpx.post(f"{served.address}/v1/audio/generate", json=body, timeout=60).status_code == 200
        until(lambda: httpx.get(first).status_code == 404)
        second = page.context.new_page()
        second.goto(served.address)
        second.get_by_role("button", name="Make it again").click()
        expect(second.locator("music-player")).to_have_count(1)
        page.bring_to_front()
        expect(page.locator("music-player:not([data-before])")).to_have_count(1)
        assert page.locator("music-result").evaluate("result => result.view.id") == served.jobs()[0]["id"]
        expect(page.get_by_role("button", name="Scores")).to_be_visible()
    finally:
        served.kill()


def test_a_server_that_dies_and_returns(visit, tmp_path):
    served = Served(tmp_path / "server")
    try:
        page = visit(served)
        make(page)
        page.locator("#seconds").fill("40")
        page.locator("#make").click()
        expect(page.locator("music-take").first).to_contain_text(re.compile(r"Call \d+ of \d+"))
        served.kill()
        expect(page.locator("#lost")).to_contain_text("The server does not answer")
        expect(page.locator("#server-text")).to_have_text("Not connected")
        page.locator("#make").click()
        expect(page.locator("music-take").first).to_contain_text("The server does not answer")
        served.start()
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("music-player")).to_have_count(2)  # the one that ran was begun anew
        page.locator("#seconds").fill("5.12")
        page.locator("music-take").first.get_by_role("button", name="Try again").click()
        expect(page.locator("music-player")).to_have_count(3)
        served.kill()
        shutil.rmtree(served.folder / "served")
        served.start()
        page.reload()
        expect(page.locator("music-take").first).to_contain_text("The server no longer has this sound.")
        page.locator("music-take").last.get_by_role("button", name="Make it again").click()
        expect(page.locator("music-take").last.locator("music-player")).to_have_count(1)
    finally:
        served.kill()


def test_an_answer_that_is_lost_makes_no_second_job(served, visit):
    page = visit(served)
    expect(page.locator("#make")).to_be_enabled()
    lost = []

    def lose(route: Any) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    page.route("**/v1/jobs", lose)
    page.locator("#prompt").fill(PROMPT)
    page.locator("#seed").fill("4711")
    page.locator("#make").click()
    take = page.locator("music-take")
    expect(take).to_contain_text("The server does not answer")
    assert lost == [202]
    page.reload()
    expect(take).to_contain_text("This was not sent.")
    take.get_by_role("button", name="Make it: Student").click()
    expect(take.locator("music-player")).to_have_count(1)
    assert [job["seed"] for job in served.jobs()].count(4711) == 1
    lost.clear()
    before = len(served.jobs())
    take.get_by_role("button", name="Vary").click()
    again = take.get_by_role("button", name="Vary it")
    again.click()
    expect(take.get_by_role("alert").filter(has_text="The server does not answer")).to_be_visible()
    assert lost == [202]
    again.click()
    expect(page.locator("music-take").first).to_contain_text("Varied")
    expect(page.locator("music-take").first.locator("music-player")).to_have_count(1)
    assert len(served.jobs()) == before + 1


def test_a_server_with_keys_and_little_room(visit, tmp_path):
    served = Served(tmp_path / "server", "--queue", 1, "--running", 1, MUSICCM_KEYS="k" * 20)
    try:
        page = visit(served)
        expect(page.locator("#trouble")).to_contain_text("This server wants a key")
        expect(page.locator("#key")).to_be_focused()
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Tab")
        expect(page.locator("#trouble")).to_contain_text("This server wants a key")
        page.locator("#key").fill("k" * 20)
        page.locator("#key").press("Tab")
        make(page, variants="6", results=6)  # four of them come to a full queue at first
        assert "k" * 20 not in page.evaluate("() => JSON.stringify(localStorage)")
        page.reload()
        expect(page.locator("music-player")).to_have_count(6)
        stranger = visit(served)
        expect(stranger.locator("#trouble")).to_contain_text("This server wants a key")
    finally:
        served.kill()


def test_by_keyboard_alone(served, visit):
    page = visit(served)
    expect(page.locator("#make")).to_be_enabled()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the results")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Clip")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Timeline")).to_be_focused()
    expect(page.get_by_role("tab", name="Timeline")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    page.keyboard.type("slow organ chords")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id"))
        if reached[-1] == "make":
            break
    assert [name for name in ("seconds", "variants", "seed", "lock", "model", "make") if name in reached] == [
        "seconds", "variants", "seed", "lock", "model", "make"]
    page.keyboard.press("Enter")
    expect(page.locator("music-player")).to_have_count(1)
    expect(page.locator("#said")).to_contain_text("Student is done after")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.getAttribute('role')") == "slider":
            break
    page.keyboard.press(" ")
    until(lambda: playing(page.locator("music-player")))


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("needs npm, which brings axe-core")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if found.returncode:
        pytest.skip(f"npm cannot bring axe-core: {found.stderr[-300:]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing(served, visit, axe, width, scheme, tmp_path):
    page = visit(served, viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    session = page.context.new_cdp_session(page)  # the page's own policy lets no other script in
    session.send("Runtime.evaluate", {"expression": axe})

    def check(state: str) -> None:
        answer = session.send("Runtime.evaluate", {
            "expression": "axe.run(document).then(found => JSON.stringify(found.violations.map("
                          "one => [one.id, one.nodes.map(node => node.html)])))",
            "awaitPromise": True, "returnByValue": True})
        assert json.loads(answer["result"]["value"]) == [], state
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, f"{state}: wider than the window"

    check("at first")
    page.locator("#more > summary").click()
    page.locator("#make").click()
    expect(page.locator("#trouble")).to_contain_text("Say what the music should be like")
    check("trouble, and More")
    take = make(page)
    take.get_by_role("button", name="Scores").click()
    expect(take.locator(".evidence")).to_contain_text("cosine")
    take.locator("summary").click()
    check("a result")
    for name in ("Continue", "Mend", "Vary"):
        take.get_by_role("button", name=f"{name} Student").click()
        check(name)
    page.locator("#seconds").fill("200")
    page.locator("#make").click()
    cancel = page.get_by_role("button", name="Cancel Student")
    expect(cancel).to_be_visible()
    check("a job that runs")
    cancel.click()
    page.get_by_role("tab", name="Timeline").click()
    check("the timeline")
    page.get_by_role("tab", name="Your file").click()
    check("no file yet")
    time_s = torch.arange(2 * 16000) / 16000
    path = tmp_path / f"{'a_long_name_' * 6}.wav"
    write_audio(path, 0.5 * torch.sin(2 * torch.pi * 220 * time_s), 16000)
    page.locator("#file").set_input_files(path)
    expect(page.locator("#file-result")).to_contain_text("2.00 s")
    check("a file")
    page.get_by_role("tab", name="Stream").click()
    page.locator("#stream-start").click()
    expect(page.locator("#stream-state")).to_contain_text("played")
    check("a stream")
    page.locator("#stream-stop").click()


def test_pictures_of_the_page(served, visit, tmp_path):
    """What the documents show; `MUSICCM_TEST_PICTURES=docs/images` makes them anew."""
    folder = Path(os.environ.get("MUSICCM_TEST_PICTURES") or tmp_path)
    page = visit(served, viewport={"width": 1080, "height": 800}, device_scale_factor=1.2, reduced_motion="reduce")
    take = make(page, button="#beside", results=2)
    take.get_by_role("button", name="Scores").click()
    for line in take.locator(".evidence").all():
        expect(line).to_contain_text("cosine")
    slider = take.get_by_role("slider").first
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + 20)
    page.locator("h1").click()
    page.screenshot(path=folder / "studio.png", full_page=True)
    kept = page.context.storage_state()
    phone = visit(served, viewport={"width": 360, "height": 860}, device_scale_factor=1.5, color_scheme="dark",
                  reduced_motion="reduce", storage_state=kept)
    expect(phone.locator("music-player")).to_have_count(2)
    phone.locator("#results").evaluate("part => scrollTo(0, part.offsetTop - 140)")
    phone.screenshot(path=folder / "studio-phone.png")
    for name, width in (("studio.png", 1296), ("studio-phone.png", 540)):
        with Image.open(folder / name) as picture:
            assert picture.width == width
            picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(folder / name, optimize=True)
        assert (folder / name).stat().st_size < 200_000  # the README shows it
