"""A real browser for the tests of pages: Chromium through Playwright; skips with the reason where one is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 90_000  # other tests run beside these, on two cores
ONE_CLICK_MS = 5_000  # of a click that is tried again
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """The machine's Chromium, without a window."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'clipcap-toolkit[dev]'"
    )
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=list(QUIET))
        open_page = browser.new_page

        def patient_page(**options: Any) -> Any:
            page = open_page(**options)
            page.set_default_timeout(PATIENCE_MS)
            return page

        browser.new_page = patient_page
        yield browser
        browser.close()


def browser_error() -> type[Exception]:
    """What a click raises that found nothing in time."""
    return pytest.importorskip("playwright.sync_api").Error
