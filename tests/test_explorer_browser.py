"""The explorer in a real browser."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import PROBLEMS, chromium, needs_browser
from tests.explorer import made

pytestmark = needs_browser
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(made(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, address: str) -> Iterator:
    """The page, opened; at the end nothing was asked of any host and no script has failed."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    yield page
    page.close()
    assert errors == []
    assert {url.split("#")[0] for url in requests} == {address}


def listed(page) -> list[str]:
    return page.locator("nav .tree a").evaluate_all("links => links.map((link) => link.getAttribute('href'))")


def shows(page, title: str) -> None:
    """The page's heading is, or soon becomes, this: it follows the address a moment later."""
    from playwright.sync_api import expect

    heading = page.locator("main h1")
    expect(heading).to_have_text(title)
    assert heading.inner_text() == title  # to the blank, which the wait is not


def search(page, text: str) -> list[str]:
    page.fill("#search", text)
    page.wait_for_timeout(120)
    return listed(page)


def test_the_tree_has_all_level_2_latents_and_opens_on_their_children(page):
    assert set(listed(page)) == {*(f"#2/{i}" for i in range(4)), *(f"#1/{i}" for i in (0, 1, 2, 9, 10, 11))}
    page.get_by_role("button", name="children of 2/0").click()
    assert {"#1/3", "#1/4", "#1/5"} < set(listed(page))
    assert page.get_by_role("button", name="children of 2/0").get_attribute("aria-expanded") == "true"
    page.get_by_role("button", name="children of 2/0").click()
    assert "#1/3" not in listed(page)


def test_a_deep_link_opens_its_latent_and_the_branch_that_it_hangs_on(page, address: str):
    page.goto(address + "#1/4")
    page.reload()
    shows(page, "Level 1, latent 4")
    assert page.locator("nav a[aria-current]").get_attribute("href") == "#1/4"
    assert page.title().startswith("1/4")
    page.go_back()
    shows(page, "Explorer: a <test>")


@pytest.mark.parametrize("wrong", ["#1/400", "#3/0", "#<script>", "#2/-1"])
def test_a_link_to_nothing_opens_the_first_page(page, address: str, wrong: str):
    page.goto(address + wrong)
    page.reload()
    shows(page, "Explorer: a <test>")


def test_search_by_rule_label_character_snippet_and_number(page):
    assert search(page, "th")[0] in ("#1/3", "#2/0")
    assert "#1/3" in search(page, "th")
    assert search(page, "<B>THE")[0] == "#1/3"  # a label, in any case
    assert search(page, "T")[0] == "#2/0"  # a rule
    assert len(search(page, "DOG")) > 3
    assert search(page, "no such text") == []
    assert page.locator("#found").inner_text() == "0 latents"
    assert search(page, "2/3") == ["#2/3"]
    page.press("#search", "Enter")
    shows(page, "Level 2, latent 3")
    assert len(search(page, "")) == 10  # the tree again


def test_by_keyboard_alone(page):
    first = listed(page)[0]
    page.keyboard.press("j")
    assert page.evaluate("location.hash") == first
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("location.hash") == first
    page.keyboard.press("/")
    page.keyboard.type("1/6")
    page.wait_for_timeout(120)
    page.keyboard.press("Enter")
    shows(page, "Level 1, latent 6")
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    shows(page, "Level 2, latent 1")
    page.keyboard.press("c")
    shows(page, "Level 1, latent 6")
    page.keyboard.press("h")
    shows(page, "Explorer: a <test>")
    page.get_by_role("button", name="children of 2/0").focus()
    page.keyboard.press("ArrowRight")
    assert "#1/3" in listed(page)
    page.keyboard.press("ArrowLeft")
    assert "#1/3" not in listed(page)


def test_a_latents_page_says_what_is_known_of_it(page, address: str):
    page.goto(address + "#2/0")
    text = page.locator("main").inner_text()
    assert "q u" in text
    assert "0.500" in text  # the share of the task
    rows = page.locator("main table").first.locator("tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["1/3", "<b>the</b>", "0.90", "80%", "0.70", "25%"]
    assert page.locator("main svg rect").count() == 8
    page.goto(address + "#1/0")
    assert "No parent." in page.locator("main").inner_text()


def test_characters_are_coloured_by_their_activation(page, address: str):
    page.goto(address + "#1/3")
    marks = page.locator("main .text").first.locator("mark")
    titles = [marks.nth(i).get_attribute("title") for i in range(marks.count())]
    assert "100% of the largest activation" in titles
    strongest = marks.nth(titles.index("100% of the largest activation"))
    assert strongest.evaluate("mark => getComputedStyle(mark).backgroundColor") == "rgb(255, 180, 50)"


def test_order_of_the_tree(page):
    page.select_option("#order", "number")
    assert listed(page)[:4] == ["#2/0", "#2/1", "#2/2", "#2/3"]
    page.select_option("#order", "clearest rule first")
    assert listed(page)[0] == "#2/0"


@pytest.mark.parametrize("place", ["", "#2/0", "#1/3"])
def test_basics_of_accessibility(page, address: str, place: str):
    page.goto(address + place)
    page.reload()
    assert page.evaluate(PROBLEMS) == []


def test_focus_is_visible(page):
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2


def test_a_narrow_screen_needs_no_sideways_scrolling(page, address: str):
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto(address + "#2/0")
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_says_so_where_scripts_are_off(browser, address: str):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert "needs JavaScript" in page.locator("main").inner_text()
    context.close()


@pytest.mark.skipif("HSAE_SCREENSHOTS" not in os.environ, reason="HSAE_SCREENSHOTS names no folder for the pictures")
def test_the_picture_of_the_readme(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 820})
    page.goto((ROOT / "explorer.html").as_uri())
    page.select_option("#order", "most found again first")
    page.keyboard.press("Tab")
    page.locator("nav .tree a").first.click()
    page.locator("nav .tree button").first.click()
    page.screenshot(path=Path(os.environ["HSAE_SCREENSHOTS"]) / "explorer.png")
    page.close()
