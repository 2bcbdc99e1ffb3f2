"""The page while the server of the job list is away."""

import shutil

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.redis_servers import Server

#: For a page that asks every few seconds, on a busy machine.
PATIENCE_MS = 60_000


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path / "valkey", durable=True)
    yield one
    one.kill()


@pytest.mark.slow
def test_a_page_says_that_the_job_list_is_away_and_is_whole_when_it_is_back(run_page, server, monkeypatch):
    monkeypatch.setenv("ISENGARD_REDIS_URL", server.url)
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with run_page("--worker", "none", "--device", "cpu") as page, sync_playwright() as playwright:
        server.kill()
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        view = browser.new_page(locale="en-US")
        view.goto(f"{page.url}/?tab=training")
        trouble, model = view.locator("#status .trouble"), view.get_by_label("Base model").first
        expect(trouble).to_contain_text("cannot be reached", timeout=PATIENCE_MS)
        assert httpx.get(f"{page.url}/ready").status_code == 503
        assert httpx.get(f"{page.url}/health").status_code == 200
        server.start()
        expect(trouble).to_be_hidden(timeout=PATIENCE_MS)
        expect(model).to_have_value("Demo portraits", timeout=PATIENCE_MS)
        assert "Traceback" not in page.end()[1]
        expect(trouble).to_contain_text("no answer from Isengard", timeout=PATIENCE_MS)
        browser.close()
