"""The page while the server of the job list is away."""

import httpx
import pytest
from playwright.sync_api import expect

from tests.redis_servers import Server
from tests.ui.chromium import chromium, new_view


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path / "valkey", durable=True)
    yield one
    one.kill()


@pytest.mark.slow
def test_a_page_says_that_the_job_list_is_away_and_is_whole_when_it_is_back(run_page, server, monkeypatch):
    monkeypatch.setenv("ISENGARD_REDIS_URL", server.url)
    with run_page("--worker", "none", "--device", "cpu") as page, chromium() as browser:
        server.kill()
        view = new_view(browser)
        view.goto(f"{page.url}/?tab=training")
        trouble, model = view.locator("#status .trouble"), view.get_by_label("Base model").first
        expect(trouble).to_contain_text("cannot be reached")
        assert httpx.get(f"{page.url}/ready").status_code == 503
        assert httpx.get(f"{page.url}/health").status_code == 200
        server.start()
        expect(trouble).to_be_hidden()
        expect(model).to_have_value("Demo portraits")
        assert "Traceback" not in page.end()[1]
        expect(trouble).to_contain_text("no answer from Isengard")
