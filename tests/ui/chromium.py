"""Chromium without a window, as the tests of the page look through it."""

import shutil
from contextlib import contextmanager

from playwright.sync_api import expect, sync_playwright

from tests.ui.camera import DESK

#: A quick training takes a minute on an idle machine, and the tests share theirs. Only what never happens is waited for as long.
PATIENCE_MS = 240_000


@contextmanager
def chromium():
    """Debian's browser. Without it these tests fail: a page that nobody has seen is not tested."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "the tests of the page need Chromium: apt-get install chromium"
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def new_view(browser, **options):
    """A page of the browser, on a desk and in English unless ``options`` say otherwise. It answers yes when it is asked."""
    view = browser.new_page(**{"viewport": DESK, "locale": "en-US", **options})
    view.set_default_timeout(PATIENCE_MS)
    view.on("dialog", lambda dialog: dialog.accept())
    return view


def problems_of(view):
    """What goes wrong in its console from now on, as a list that grows."""
    problems = []
    view.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    view.on("pageerror", lambda error: problems.append(str(error)))
    return problems
