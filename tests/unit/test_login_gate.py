"""The gate by itself, around routes that say who was let through."""

import json
from base64 import b64encode

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from isengard.domain.users import nobodys_hash
from isengard.services.logins import Logins
from isengard.store.closed_sessions import ClosedSessions
from tabs.http.attempts import FREE
from tabs.http.login import MAX_BODY, LoginGate

PASSWORD = "tower of glass"  # noqa: S105
RIGHT, WRONG = {"username": "anna", "password": PASSWORD}, {"username": "anna", "password": "tower of grass"}
BROWSER = {"accept": "text/html,*/*"}


class QuickLogins(Logins):
    """Real sessions; no 0.2 s for each password."""

    def is_right(self, name, password):
        return (name, password) == ("anna", PASSWORD)


async def told(_):
    return PlainTextResponse("secret")


async def ready(_):
    return JSONResponse({"status": "not ready", "reason": "disk full"}, 503)


async def talk(socket):
    await socket.accept()


OWN = [Route("/health", told), Route("/ready", ready), Route("/metrics", told)]


@pytest.fixture
def gate(tmp_path):
    """``gate(address)`` is a client there; all of them are clients of one page."""
    logins = QuickLogins({"anna": nobodys_hash()}, key=bytes(32), closed=ClosedSessions(tmp_path / "closed"))
    others = [Route("/{path:path}", told, methods=["GET", "POST"]), WebSocketRoute("/socket", talk)]
    app = Starlette(routes=[*OWN, *others], middleware=[Middleware(LoginGate, logins=logins, routes=OWN)])
    return lambda address="192.0.2.1", **options: TestClient(
        app, client=(address, 1), follow_redirects=False, **options
    )


def basic(name, password):
    return {"authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("POST", "/"),
        ("GET", "/metrics"),
        ("GET", "/config"),
        ("GET", "/gradio_api/file=a.png"),
        ("GET", "/health/"),
        ("GET", "//health"),
        ("GET", "/login/x"),
        ("GET", "/gradio_api/startup-events/"),
    ],
)
def test_nothing_is_answered_without_a_login(gate, method, path):
    answer = gate().request(method, path)
    assert answer.status_code == 401
    assert "secret" not in answer.text


def test_a_load_balancer_is_told_yes_or_no_and_nothing_else(gate):
    health, ready = gate().get("/health"), gate().get("/ready")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (503, {"status": "not ready"})


def test_whoever_is_logged_in_is_told_the_reason(gate):
    client = gate()
    client.post("/login", data=RIGHT)
    assert client.get("/ready").json()["reason"] == "disk full"
    assert gate().get("/ready", headers=basic("anna", PASSWORD)).json()["reason"] == "disk full"


def test_gradio_may_ask_itself_whether_it_has_started(gate):
    assert gate().get("/gradio_api/startup-events").status_code == 200


def test_a_web_socket_is_refused(gate):
    with pytest.raises(WebSocketDisconnect), gate().websocket_connect("/socket"):
        pass


def test_a_program_logs_in_and_stays_so(gate):
    client = gate()
    assert client.post("/login", data=RIGHT).json() == {"success": True}
    assert client.get("/config").text == "secret"
    assert gate().get("/config").status_code == 401


def test_a_form_in_parts_is_read_as_well(gate):
    assert gate().post("/login", files={name: (None, value) for name, value in RIGHT.items()}).json() == {
        "success": True
    }


def test_a_browser_is_asked_and_led_back_to_what_it_wanted(gate):
    client = gate(headers=BROWSER)
    page = client.get("/?tab=image&character=nova")
    assert page.status_code == 401
    assert 'action="/login?tab=image&amp;character=nova"' in page.text
    answer = client.post("/login?tab=image&character=nova", data=RIGHT)
    assert (answer.status_code, answer.headers["location"]) == (303, "/?tab=image&character=nova")
    assert client.get("/login").headers["location"] == "/"


def test_the_login_page_shows_nothing_that_a_link_wrote(gate):
    page = gate(headers=BROWSER).get("/?x=%22%3E<script>alert(1)</script>&y='\"><b>").text
    assert "<script>" not in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("said", "shown"),
    [("de-AT,de;q=0.9,en;q=0.8", "Passwort"), ("en", "Password"), ("xx", "Password"), ("", "Password")],
)
def test_the_login_page_speaks_the_browsers_language(gate, said, shown):
    assert shown in gate(headers=BROWSER).get("/", headers={"accept-language": said}).text


def test_a_wrong_password_is_said_to_browser_and_program(gate):
    page = gate(headers=BROWSER).post("/login", data=WRONG)
    assert (page.status_code, "Name or password is wrong." in page.text) == (401, True)
    answer = gate().post("/login", data=WRONG)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


def test_the_session_is_hidden_from_scripts_and_other_sites_and_kept_to_https_where_there_is_some(gate):
    plain = gate().post("/login", data=RIGHT).headers["set-cookie"].lower()
    assert "httponly" in plain
    assert "samesite=lax" in plain
    assert "secure" not in plain
    client = gate(base_url="https://pod.example")
    assert "secure" in client.post("/login", data=RIGHT).headers["set-cookie"].lower()


def test_logging_out_ends_the_session_for_whoever_copied_it(gate):
    client = gate()
    client.post("/login", data=RIGHT)
    copied = dict(client.cookies)
    assert client.get("/logout").status_code == 303  # a link does nothing
    assert client.get("/config").status_code == 200
    client.post("/logout")
    assert not client.cookies
    assert gate(cookies=copied).get("/config").status_code == 401


def test_basic_authentication_opens_our_own_routes_and_no_other(gate):
    client = gate(headers=basic("anna", PASSWORD))
    assert client.get("/metrics").text == "secret"
    assert client.get("/config").status_code == 401


@pytest.mark.parametrize("given", ["Basic !", "Basic /w==", "Basic", "Bearer x", "Basic YW5uYQ=="])
def test_what_is_no_basic_authentication_is_asked_for_it(gate, given):
    answer = gate().get("/metrics", headers={"authorization": given})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


def test_a_browser_is_shown_the_login_page_instead_of_its_own_question(gate):
    assert "www-authenticate" not in gate(headers=BROWSER).get("/metrics").headers


@pytest.mark.parametrize(
    "options",
    [
        {"data": {}},
        {"data": {**RIGHT, "more": "x" * MAX_BODY}},
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}},
        {"files": {"username": ("a.png", b"anna")}},
        {"json": RIGHT},
    ],
    ids=["empty", "large", "broken", "a file", "json"],
)
def test_what_is_no_login_form_is_refused(gate, options):
    assert gate().post("/login", **options).status_code == 401


def test_guessing_is_slowed_down_for_the_one_who_guesses_and_for_nobody_else(gate, caplog):
    bad, good = gate("203.0.113.5"), gate("203.0.113.6")
    for _ in range(FREE):
        assert bad.post("/login", data=WRONG).status_code == 401
    slowed = bad.post("/login", data=RIGHT)  # the right one is no exception
    assert (slowed.status_code, slowed.headers["retry-after"]) == (429, "5")
    assert "try again in 5 s" in slowed.json()["detail"]
    assert bad.get("/metrics", headers=basic("anna", PASSWORD)).status_code == 429
    page = bad.post("/login", data=RIGHT, headers=BROWSER)
    assert (page.status_code, "Try again in" in page.text) == (429, True)
    assert good.post("/login", data=RIGHT).json() == {"success": True}
    logged = json.dumps([vars(record) for record in caplog.records], default=str)
    assert "203.0.113.5" in logged
    assert "grass" not in logged
