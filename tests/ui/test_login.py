"""A page with a login, as browsers, programs and strangers meet it."""

import re

import gradio as gr
import httpx
import pytest
import typer
from gradio.routes import App
from gradio_client import Client, handle_file
from gradio_client.exceptions import AuthenticationError
from playwright.sync_api import expect

from app import main
from isengard.domain.users import hash_password
from isengard.settings import ASSETS
from tests.ui.chromium import chromium, new_view
from tests.ui.conftest import running_page

pytestmark = pytest.mark.usefixtures("unmeasured_children")
ANNA, BEN = ("anna", "tower-of-glass"), ("ben", "cave of iron")
PICTURE = ASSETS / "characters" / "nova" / "01.png"
#: What Gradio asks of itself when it starts, and our log-in and log-out.
ANSWERS = {"/gradio_api/startup-events", "/login", "/logout"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    users = f"{ANNA[0]}:{ANNA[1]},{BEN[0]}:{hash_password(BEN[1])}"
    folder = tmp_path_factory.mktemp("login") / "data"
    with running_page(folder, "--worker", "none", "--device", "cpu", "--auth", users) as running:
        yield running


@pytest.fixture(scope="module")
def anna(page):
    """A program that is logged in."""
    return Client(page.url, auth=ANNA, verbose=False)


def paths():
    """Every path of Gradio's application, with the name of each part that is to be filled in."""
    with gr.Blocks() as demo:
        gr.Markdown()
    found = {re.sub(r"[{}]", "", path) for path in App.create_app(demo).openapi()["paths"]}
    assert {"/", "/gradio_api/queue/join", "/gradio_api/upload", "/theme.css"} <= found
    return sorted(found | {"/metrics", "/no-such-thing"})


def test_every_path_of_gradio_asks_for_a_login(page):
    with httpx.Client(base_url=page.url) as stranger:
        let_in = {
            (method, path)
            for path in paths()
            for method in ("GET", "POST")
            if path.rstrip("/") not in ANSWERS and stranger.request(method, path).status_code != 401
        }
    assert let_in == set()


def test_the_session_of_a_program_opens_its_files_and_nobody_elses_request_does(page, anna):
    assert anna.predict("Mira", api_name="/create_character")["id"] == "mira"
    assert anna.predict("mira", [handle_file(str(PICTURE))], api_name="/add_images")[0]["added"]
    assert httpx.get(f"{page.url}/gradio_api/file={PICTURE}").status_code == 401
    assert httpx.get(f"{page.url}/gradio_api/info").status_code == 401
    assert httpx.get(f"{page.url}/gradio_api/info", cookies=anna.cookies).status_code == 200


def test_a_user_whose_password_was_given_as_a_hash_comes_in(page):
    assert Client(page.url, auth=BEN, verbose=False).view_api(return_format="dict", print_info=False)


def test_a_wrong_password_and_an_unknown_name_are_the_same_to_a_program(page):
    for login in ((ANNA[0], BEN[1]), ("nobody", ANNA[1])):
        with pytest.raises(AuthenticationError, match="Invalid credentials"):
            Client(page.url, auth=login, verbose=False)


def test_an_address_that_guesses_waits_and_another_one_logs_in_meanwhile(page):
    """The tests reach the page from loopback, like the tunnel of a shared link, so the header says who asks."""
    wrong, right = ({"username": "anna", "password": password} for password in ("guess", ANNA[1]))
    bad, good = {"x-forwarded-for": "203.0.113.5"}, {"x-forwarded-for": "203.0.113.6"}
    with httpx.Client(base_url=page.url) as client:
        tried = [client.post("/login", data=wrong, headers=bad) for _ in range(7)]
        assert [answer.status_code for answer in tried] == [401] * 5 + [429] * 2
        assert int(tried[-1].headers["retry-after"]) >= 1
        forged = client.post("/login", data=right, headers={"x-forwarded-for": "1.1.1.1, 203.0.113.5"})
        assert forged.status_code == 429
        assert client.post("/login", data=right, headers=good).status_code == 200


def test_a_browser_logs_in_stays_so_and_logs_out(page):
    with chromium() as browser:
        view = new_view(browser)
        problems = []
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto(f"{page.url}/?tab=image")
        view.get_by_label("Name").fill(ANNA[0])
        view.get_by_label("Password").fill("guess")
        view.get_by_role("button", name="Log in").click()
        expect(view.get_by_role("alert")).to_have_text("Name or password is wrong.")
        view.get_by_label("Name").fill(ANNA[0])
        view.get_by_label("Password").fill(ANNA[1])
        view.get_by_role("button", name="Log in").click()
        tab = view.get_by_role("tab", name="Image", exact=True).first
        expect(tab).to_have_attribute("aria-selected", "true")
        view.reload()
        expect(tab).to_be_visible()
        view.get_by_role("button", name="Log out").click()
        expect(view.get_by_label("Password")).to_be_visible()
        assert view.goto(page.url).status == 401
        assert problems == []


def test_a_public_page_without_a_login_does_not_start_and_offers_one(tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended:
        main(share=True, data_dir=tmp_path)
    assert ended.value.exit_code == 1
    said = capsys.readouterr().err
    assert "--share gives this page a public address" in said
    assert len(said.split("ISENGARD_AUTH=isengard:")[1].strip()) == 24
    assert not list(tmp_path.iterdir())
