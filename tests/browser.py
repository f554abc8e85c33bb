"""A real browser for tests: Debian's chromium, driven by playwright; where there is none, tests skip and say so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]

needs_browser = pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"there is no {CHROMIUM}: apt-get install chromium")

PROBLEMS = (Path(__file__).parent / "accessibility.js").read_text(encoding="utf-8")
"""A function that lists what is wrong with a page's accessibility, for `page.evaluate`."""


@contextmanager
def chromium(**options: object) -> Iterator:
    """A started browser (playwright's `Browser`)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS, **options)  # pyright: ignore
        try:
            yield browser
        finally:
            browser.close()
