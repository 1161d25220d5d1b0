"""The page in a real browser, opened as a file, without a network."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from musiccm.cli import main
from musiccm.evaluation.listening.answers import read_answers, read_key
from musiccm.evaluation.listening.collecting import AnswerStore, answer_server

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def opened(context: Any, test: Path, said: list[str]) -> Any:
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if asked.url.startswith(("http", "ws")) else None)
    page.goto((test / "page/index.html").as_uri())
    return page


def heading(page: Any) -> str:
    return page.locator("h1").inner_text()


def listen(page: Any) -> None:
    """Play every sound of a page by the space bar alone."""
    count = page.locator(".player").count()
    for number in range(count):
        page.keyboard.press("Space")
        page.wait_for_function("n => document.querySelectorAll('.heard')[n].textContent.includes('✓')", arg=number)
        page.wait_for_function("n => document.querySelectorAll('audio')[n].ended", arg=number)


def test_a_listener_answers_by_keys_reloads_goes_on_and_saves(browser: Any, preference: Path, tmp_path: Path) -> None:
    said: list[str] = []
    context = browser.new_context(viewport={"width": 360, "height": 740}, accept_downloads=True)
    page = opened(context, preference, said)
    page.get_by_role("button", name="Start", exact=True).click()
    pages = int(heading(page).rsplit(" ", 1)[1])
    assert pages == 4 + 3 + 3 + 2
    page.keyboard.press("1")  # nothing was heard: no answer is taken
    page.keyboard.press("Enter")
    assert heading(page).startswith("Page 1 ") and page.locator("input:checked").count() == 0
    assert page.get_by_role("button", name="Next").is_disabled()
    for number in range(pages):
        assert heading(page) == f"Page {number + 1} of {pages}"
        if number == 3:
            page.reload()
            assert heading(page) == f"Page 4 of {pages}"
        listen(page)
        questions = page.locator("fieldset").count()
        for _ in range(questions):
            page.keyboard.press("2" if page.locator("input[value=tie]").count() == 0 else "0")
        if number == 5:  # a reload keeps what was heard and answered
            checked = page.locator("input:checked").count()
            page.reload()
            assert page.locator("input:checked").count() == checked == questions
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.keyboard.press("Enter")
    assert heading(page).startswith("That was all")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save my answers").click()
    file = tmp_path / "answers.json"
    saved.value.save_as(file)
    listeners, _ = read_answers([file], read_key(preference / "key.json"))
    assert len(listeners) == 1 and listeners[0].complete and len(listeners[0].answers) == pages
    assert all(min(one["heard_s"]) > 1.0 and min(one["plays"]) >= 1 for one in json.loads(file.read_text())["answers"])
    page.reload()
    assert heading(page).startswith("That was all")
    assert said == []
    context.close()


def test_ratings_start_without_a_value(browser: Any, rating: Path) -> None:
    said: list[str] = []
    context = browser.new_context()
    page = opened(context, rating, said)
    page.get_by_role("button", name="Start", exact=True).click()
    while page.locator("input[type=range]").count() == 0:  # a check may come first
        listen(page)
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    listen(page)
    following = page.locator("button.next")
    assert following.is_disabled() and page.locator("input.unset").count() == 2
    page.get_by_label("overall quality of this music? as a number").fill("77")
    assert page.locator("input[type=range]").first.input_value() == "77" and following.is_disabled()
    page.get_by_label("fit the text? as a number").fill("101")
    assert following.is_disabled()
    page.locator("input[type=range]").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert following.is_enabled() and said == []
    context.close()


def test_answers_are_sent_and_two_named_listeners_keep_apart(
    browser: Any, clips: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "test", []
    with answer_server(AnswerStore(tmp_path / "taken")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert main(["listen", "--a", str(clips / "teacherfifty"), "--b", str(clips / "studentfour"), "--out", str(out),
                     "--clips", "1", "--anchors", "0", "--equal", "0", "--checks", "1", "--collect",
                     f"http://127.0.0.1:{server.server_address[1]}/answers"]) == 0
        context = browser.new_context()
        page = opened(context, out, said)
        said.clear()
        for name in ("ann", "bob"):
            page.goto((out / "page/index.html").as_uri() + f"?listener={name}")
            page.get_by_role("button", name="Start", exact=True).click()
            for _ in range(2):
                listen(page)
                page.keyboard.press("1")
                page.keyboard.press("Enter")
            page.get_by_text("Your answers have arrived").wait_for()
        page.goto((out / "page/index.html").as_uri() + "?listener=ann")
        assert heading(page).startswith("That was all")  # bob took nothing from ann
        server.shutdown()
        page.reload()
        server.server_close()
        page.reload()
        page.get_by_text("could not be sent").wait_for()  # and saving them as a file is left
        assert page.get_by_role("button", name="Save my answers").is_enabled()
        context.close()
    listeners, _ = read_answers([tmp_path / "taken"], read_key(out / "key.json"))
    assert [one.name for one in listeners] == ["ann", "bob"] and all(one.complete for one in listeners)


def test_every_control_has_a_name_and_a_missing_sound_is_said(browser: Any, preference: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(preference, copy)
    shutil.rmtree(copy / "page/sounds")
    context = browser.new_context()
    page = opened(context, copy, [])
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("could not be loaded").wait_for()
    for role in ("button", "radio", "progressbar", "group"):
        found = page.get_by_role(role).all()
        assert found and all(one.evaluate(
            "e => (e.getAttribute('aria-label') || e.innerText || (e.labels && e.labels[0].innerText) || '').trim()")
            for one in found), role
    context.close()
