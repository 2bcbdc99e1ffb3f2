"""What surrounds Gradio: which sites, names and addresses are answered, and with which headers."""

import pytest
from gradio.routes import App
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from isengard.services.machine import Machine
from isengard.settings import Settings
from isengard.wiring import build
from tabs.common import Page
from tabs.http.headers import GRADIO_CDN, Guarding, policy
from tabs.http.hosts import LocalNames
from tabs.http.origin import SameOrigin
from tabs.http.stack import middleware, routes
from tabs.http.surface import OPEN, Surface
from tabs.page import build as build_page
from tabs.pictures import Pictures

#: Addresses of Gradio's that are not answered, and why nobody needs them.
CLOSED = {
    "/login/": "asked for without the slash",
    "/gradio_api/login_check": "nothing asks for it",
    "/gradio_api/login_check/": "nothing asks for it",
    "/gradio_api/user": "nothing asks for it",
    "/gradio_api/user/": "nothing asks for it",
    "/gradio_api/token": "gives a script the cookie that browsers hide from scripts",
    "/gradio_api/token/": "gives a script the cookie that browsers hide from scripts",
    "/gradio_api/app_id/": "asked for without the slash",
    "/config/": "asked for without the slash",
    "/gradio_api/info/": "asked for without the slash",
    "/gradio_api/run/{api_name}/": "asked for without the slash",
    "/gradio_api/api/{api_name}": "an old name of /run",
    "/gradio_api/api/{api_name}/": "an old name of /run",
    "/gradio_api/call/{api_name}": "a second way to call: clients join the queue",
    "/gradio_api/call/{api_name}/": "a second way to call: clients join the queue",
    "/gradio_api/call/v2/{api_name}": "a second way to call: clients join the queue",
    "/gradio_api/call/v2/{api_name}/": "a second way to call: clients join the queue",
    "/gradio_api/call/{api_name}/{event_id}": "a second way to call: clients join the queue",
    "/gradio_api/call/v2/{api_name}/{event_id}": "a second way to call: clients join the queue",
    "/gradio_api/queue/status": "nothing asks for it",
    "/gradio_api/reset": "does nothing",
    "/gradio_api/reset/": "does nothing",
    "/gradio_api/heartbeat/{session_hash}": "the page keeps nothing for a session",
    "/gradio_api/file={path_or_url:path}": "ours comes first, and gives out less",
    "/gradio_api/file/{path:path}": "an old name of file=",
    "/gradio_api/proxy={url_path:path}": "no other app is shown inside this one",
    "/gradio_api/stream/{event_id}": "nothing is streamed",
    "/gradio_api/stream/{event_id}/close": "nothing is streamed",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8": "nothing is streamed",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}": "nothing is streamed",
    "/gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file": "nothing is streamed",
    "/gradio_api/custom_component/{id}/{environment}/{type}/{file_name}": "there are no such components",
    "/svelte/{path:path}": "there are no such components",
    "/gradio_api/deep_link": "writes the state of a session to the disk",
    "/gradio_api/runs": "the history of runs is off",
    "/gradio_api/runs/": "the history of runs is off",
    "/gradio_api/run-history/connect": "the history of runs is off",
    "/gradio_api/run-history/buckets": "the history of runs is off",
    "/gradio_api/run-history/records": "the history of runs is off",
    "/gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}": "the history of runs is off",
    "/gradio_api/openapi.json": "gradio_client asks for /info",
    "/gradio_api/dev/reload": "for developers of an app",
    "/gradio_api/vibe-edit": "writes programs",
    "/gradio_api/vibe-edit/": "writes programs",
    "/gradio_api/undo-vibe-edit": "writes programs",
    "/gradio_api/undo-vibe-edit/": "writes programs",
    "/gradio_api/vibe-code": "writes programs",
    "/gradio_api/vibe-code/": "writes programs",
    "/gradio_api/vibe-starter-queries": "writes programs",
    "/gradio_api/vibe-starter-queries/": "writes programs",
    "/gradio_api/process_recording": "starts ffmpeg on an upload",
    "/monitoring": "there are metrics of our own",
    "/monitoring/summary": "there are metrics of our own",
    "/monitoring/{key}": "there are metrics of our own",
    "/pwa_icon": "scales to any size",
    "/pwa_icon/{size}": "scales to any size",
}


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", device="cpu")


@pytest.fixture
def application(settings):
    return build(settings)


def behind(*guards, base="http://studio.example:7860"):
    """A page behind some of the middleware; it answers with what it was sent."""

    async def page(request):
        return PlainTextResponse((await request.body()) or b"page")

    every = ["GET", "POST", "PUT"]
    served = [Route("/{path:path}", page, methods=every)]
    return TestClient(Starlette(routes=served, middleware=list(guards)), base_url=base)


# Addresses


def paths(routes):
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route.path] if inner is None else paths(inner.routes)


def test_every_address_of_the_installed_gradio_is_decided(application):
    pictures = Pictures(folder=application.settings.pictures_dir, gallery=application.settings.images_dir)
    demo = build_page(Page(app=application, machine=Machine(device="cpu"), pictures=pictures))
    app = App.create_app(demo, app_kwargs={"openapi_url": None})
    found = set(paths(app.routes))
    opened = (OPEN.keys() - {"/gradio_api/run/predict"}) | {"/gradio_api/run/{api_name}"}
    assert found == opened | CLOSED.keys()
    assert not opened & CLOSED.keys()


@pytest.fixture
def surface():
    ours = [Route("/health", lambda _: PlainTextResponse("well"))]
    return behind(Middleware(Surface, own=ours))


@pytest.mark.parametrize("path", sorted(CLOSED))
def test_an_address_that_nobody_needs_is_not_there(surface, path):
    concrete = path.replace("{", "").replace("}", "").replace(":path", "/etc/passwd")
    for method in ("GET", "POST"):
        assert surface.request(method, concrete).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 405),  # of the page in this test, which only answers GET
        ("GET", "/assets/index.js", 200),
        ("GET", "/health", 200),
        ("POST", "/health", 405),
        ("PUT", "/", 405),
        ("GET", "/gradio_api/queue/join", 405),
        ("POST", "/config", 405),
        ("OPTIONS", "/gradio_api/queue/join", 405),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/config/../gradio_api/token", 404),
    ],
)
def test_an_address_takes_the_methods_that_are_needed(surface, method, path, code):
    answer = surface.request(method, path)
    assert answer.status_code == code if method != "HEAD" else answer.status_code in (200, 405)
    if code == 405 and method != "HEAD":
        assert method not in answer.headers["allow"].split(", ")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
    ],
)
def test_a_call_is_json(surface, kind, code):
    for path in ("/gradio_api/queue/join", "/gradio_api/component_server/", "/gradio_api/run/predict"):
        assert surface.post(path, content=b"{}", headers={"content-type": kind}).status_code == code
    assert surface.post("/gradio_api/cancel").status_code == 415


def test_there_are_no_websockets(surface):
    with pytest.raises(WebSocketDisconnect), surface.websocket_connect("/gradio_api/queue/join"):
        pass


# Sites


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://pod-7860.proxy.example"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),  # another pod of the same proxy
        ({"sec-fetch-site": "cross-site", "origin": "http://studio.example:7860"}, 403),
        ({"origin": "http://evil.example", "x-forwarded-host": "evil.example"}, 403),
        ({"origin": "null", "host": ""}, 403),
        ({"origin": "", "host": ""}, 403),
        ({"origin": "evil://studio.example:7860"}, 403),
    ],
)
def test_browsers_say_where_a_request_comes_from(headers, code):
    assert behind(Middleware(SameOrigin)).get("/page", headers=headers).status_code == code


def test_another_site_may_not_send_a_form():
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "origin": "null"}
    assert behind(Middleware(SameOrigin)).post("/page", headers=headers).status_code == 403


# Names


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "isengard.localhost:80"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "127.8.9.1"}, 200),
        ({"host": "evil.example:7860"}, 421),
        ({"host": "evil.example:7860", "x-forwarded-host": "localhost"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "0.0.0.0:7860"}, 421),
        ({"host": "192.168.1.7"}, 421),
        ({"host": "[::1"}, 421),
        ({"host": ""}, 421),
        ({"host": "a1b2.gradio.live"}, 421),
        ({"host": "studio.example", "sec-fetch-site": "none"}, 200),  # a proxy with a certificate
    ],
)
def test_a_page_for_this_machine_answers_at_its_names_only(headers, code):
    answer = behind(Middleware(LocalNames, shared=False)).get("/page", headers=headers)
    assert answer.status_code == code


def test_a_shared_page_answers_at_its_link_too():
    page = behind(Middleware(LocalNames, shared=True))
    assert page.get("/page", headers={"host": "a1b2.gradio.live"}).status_code == 200
    assert page.get("/page", headers={"host": "gradio.live.evil.example"}).status_code == 421


@pytest.mark.parametrize(
    ("host", "checked"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.7", False)],  # noqa: S104
)
def test_names_matter_where_only_this_machine_can_ask(tmp_path, host, checked):
    app = build(Settings(data_dir=tmp_path / "data", device="cpu", host=host))
    assert (LocalNames in [each.cls for each in middleware(app, ours=(), logins=None)]) is checked


# Headers


def test_every_answer_carries_the_headers_and_a_stricter_one_stays():
    def strict(_):
        return PlainTextResponse("x", headers={"Content-Security-Policy": "default-src 'none'"})

    app = Starlette(routes=[Route("/strict", strict)], middleware=[Middleware(Guarding, shared=False)])
    client = TestClient(app)
    for path in ("/strict", "/nothing"):
        answer = client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "camera=()" in answer.headers["permissions-policy"]
        assert "x-frame-options" not in answer.headers  # it cannot name the frames of pods and Spaces
    assert client.get("/strict").headers["content-security-policy"] == "default-src 'none'"
    assert client.get("/nothing").headers["content-security-policy"] == policy(shared=False)


def test_the_policy_lets_nothing_in_or_out_but_this_page():
    rules = dict(each.split(" ", 1) for each in policy(shared=False).split("; "))
    assert {rules[name] for name in ("default-src", "connect-src", "base-uri", "form-action")} == {"'self'"}
    assert {rules[name] for name in ("object-src", "frame-src")} == {"'none'"}
    assert "*" not in rules["script-src"]
    assert "https:" not in rules["script-src"]
    frames = rules["frame-ancestors"]
    assert frames == "'self' https://huggingface.co https://console.runpod.io https://www.runpod.io"


def test_only_a_shared_page_takes_scripts_from_gradios_server():
    assert GRADIO_CDN in policy(shared=True)
    assert GRADIO_CDN not in policy(shared=False)


def test_own_addresses_are_open(application):
    client = TestClient(
        Starlette(
            routes=[*routes(application), Route("/config", lambda _: JSONResponse({}))],
            middleware=middleware(application, ours=routes(application), logins=None),
        ),
        base_url="http://127.0.0.1:7860",
    )
    assert client.get("/health").status_code == 200
    assert client.get("/config").status_code == 200
    assert client.get("/gradio_api/token").status_code == 404
    assert client.get("/gradio_api/file=/etc/passwd").json()["detail"] == "There is no such file here."
