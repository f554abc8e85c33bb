"""The study as a person meets it: in Chromium. HSAE_SCREENSHOTS=docs/images also writes the README's pictures."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hsae.study.app import create_app
from hsae.study.responses import Responses
from hsae.study.store import Store
from hsae.study.trials import Session, Trials
from tests.browser import PROBLEMS, chromium, needs_browser
from tests.study import SHORT, serving, study

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, ViewportSize

pytestmark = needs_browser

STUDY = study(SHORT)
N = sum(vars(SHORT).values())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "study.sqlite", STUDY, "a" * 64)
    yield opened
    opened.close()


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with serving(create_app(STUDY, store, "s" * 64)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The start page; the test fails if anything is asked of another host, or the browser reports an error."""
    context = browser.new_context(base_url=url)
    context.set_default_timeout(10_000)
    opened = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto("/")
    yield opened
    context.close()
    assert [address for address in asked if not address.startswith(f"{url}/")] == []
    assert f"{url}/static/study.js" in asked
    assert errors == []


def join(page: Page) -> None:
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/trial")


def progress(page: Page) -> str:
    return page.locator(".progress label").inner_text()


def press(page: Page, *keys: str) -> None:
    """Press keys, the last of which sends the page."""
    for key in keys[:-1]:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press(keys[-1])


def is_clarity(page: Page) -> bool:
    return page.locator("#label").count() == 1


def by_position(found: Responses) -> list[tuple[int | None, int | None, str | None]]:
    return [(response.choice, response.rating, response.label) for response in found.responses]


# By keyboard


def test_a_whole_session_by_keyboard_alone(page: Page, store: Store):
    while page.evaluate("document.activeElement.id") != "consent":
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    press(page, "Enter")
    expected = []
    for position in range(1, N + 1):
        assert progress(page) == f"Question {position} of {N}"
        if position == 3:
            press(page, "s")
            expected.append((None, None, None))
        elif is_clarity(page):
            page.keyboard.press("4")
            page.keyboard.press("2")
            while page.evaluate("document.activeElement.id") != "label":
                page.keyboard.press("Tab")
            page.keyboard.type("s 1 and 5: keys")
            press(page, "Enter")
            expected.append((None, 2, "s 1 and 5: keys"))
        else:
            press(page, "1", "5", "Enter")
            expected.append((4, None, None))
    assert urlsplit(page.url).path == "/done"
    assert by_position(store.responses()) == expected


def test_enter_without_an_answer_sends_nothing(page: Page, store: Store):
    join(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Control+s")
    page.keyboard.press("6")
    page.wait_for_timeout(200)
    assert progress(page).startswith("Question 1 ")
    assert store.responses().responses == ()


def test_times_are_those_that_the_browser_measured(page: Page, store: Store):
    join(page)
    page.wait_for_timeout(300)
    press(page, "s")
    page.wait_for_timeout(500)
    start = time.monotonic()
    page.reload()  # who comes back has the page before them from now on
    press(page, "s")
    since = 1000 * (time.monotonic() - start)
    first, second = (response.milliseconds for response in store.responses().responses)
    assert first >= 300
    assert 0 < second <= since


# Coming back


def test_a_browser_that_was_closed_goes_on_where_it_was(page: Page, browser: Browser, url: str):
    join(page)
    press(page, "s")
    question = page.locator("main").inner_text()
    state = page.context.storage_state()
    page.close()
    with browser.new_context(base_url=url, storage_state=state) as context:
        again = context.new_page()
        again.goto("/")
        assert urlsplit(again.url).path == "/trial"
        assert again.locator("main").inner_text() == question


def test_a_code_goes_on_in_another_browser(page: Page, browser: Browser, url: str):
    join(page)
    press(page, "s")
    with browser.new_context(base_url=url) as context:
        other = context.new_page()
        other.goto("/")
        other.get_by_label("Your code").fill(page.locator(".code").inner_text())
        other.get_by_role("button", name="Go on").click()
        other.wait_for_url("**/trial")
        assert other.locator("main").inner_text() == page.locator("main").inner_text()


def test_the_back_button_and_a_double_click_store_nothing_twice(page: Page, store: Store):
    join(page)
    page.locator("input[type=radio]").first.check()
    page.locator("#next").dblclick()
    page.wait_for_function("document.querySelector('.progress').innerText.includes('Question 2')")
    page.go_back()
    page.wait_for_function("document.querySelector('.progress').innerText.includes('Question 2')")
    assert len(store.responses().responses) == 1


def test_two_raters_at_once_do_not_meet(page: Page, browser: Browser, url: str, store: Store):
    join(page)
    with browser.new_context(base_url=url) as context:
        other = context.new_page()
        other.goto("/")
        join(other)
        for position in (1, 2, 3):
            for each in (page, other):
                assert progress(each) == f"Question {position} of {N}"
                press(each, "2", "Enter")
    found = store.responses().responses
    assert len(found) == 6
    assert len({response.rater for response in found}) == 2


def test_everything_but_shortcuts_works_without_javascript(browser: Browser, url: str, store: Store):
    with browser.new_context(base_url=url, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/")
        join(page)
        page.get_by_role("radio").nth(1).check()
        page.get_by_role("button", name="Next").click()
        assert "Question 2" in progress(page)
        page.get_by_role("button", name="Skip").click()
        assert "Question 3" in progress(page)
    assert [response.skipped for response in store.responses().responses] == [False, True]


# Accessibility

FOCUS = """() => {
  const element = document.activeElement, label = element.closest("label");
  const styles = [element, label ?? element].map((e) => getComputedStyle(e));
  const outlined = styles.some((style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2);
  return element === document.body ? "none" : outlined ? "visible" : element.outerHTML;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 900])
def test_every_page_is_accessible(browser: Browser, url: str, scheme: str, width: int):
    size = ViewportSize(width=width, height=800)
    with browser.new_context(base_url=url, viewport=size) as context:
        page = context.new_page()
        page.emulate_media(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        page.goto("/")
        assert page.evaluate(PROBLEMS) == []
        assert focus_stops(page) == ["visible"] * 4
        join(page)
        seen = set()
        while urlsplit(page.url).path == "/trial":
            assert page.evaluate(PROBLEMS) == []
            if is_clarity(page) not in seen:
                assert set(focus_stops(page)) == {"visible"}
                seen.add(is_clarity(page))
            press(page, "1", "Enter")
        assert len(seen) == 2
        assert page.evaluate(PROBLEMS) == []
        page.goto("/nothing")
        assert page.evaluate(PROBLEMS) == []


def focus_stops(page: Page) -> list[str]:
    """Whether one sees where the focus is, at every stop from the top of the page."""
    stops = []
    page.evaluate("document.activeElement.blur()")
    while True:
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUS)
        if stop == "none":
            return stops
        stops.append(stop)


# Pictures


@pytest.mark.skipif("HSAE_SCREENSHOTS" not in os.environ, reason="HSAE_SCREENSHOTS names no folder for pictures")
@pytest.mark.parametrize("kind", ["intruder", "clarity"])
def test_pictures_for_the_readme(browser: Browser, tmp_path: Path, kind: str):
    folder = Path(os.environ["HSAE_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    one = Trials("kjv", 0, Session(**{**dict.fromkeys(vars(SHORT), 0), kind: 12}), STUDY.trials)
    store = Store(tmp_path / "study.sqlite", one, "a" * 64)
    with serving(create_app(one, store, "s" * 64)) as url, browser.new_context(base_url=url) as context:
        page = context.new_page()
        page.set_viewport_size({"width": 900, "height": 200})
        page.goto("/")
        join(page)
        for _ in range(6):
            press(page, "s")
        if kind == "clarity":
            page.keyboard.press("5")
            page.get_by_label("If you see one").fill("the letters th")
        else:
            page.keyboard.press("2")
        page.screenshot(path=folder / f"study_{kind}.png", full_page=True)
    store.close()
