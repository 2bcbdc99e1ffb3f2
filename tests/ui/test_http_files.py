"""Which files a call may name, and which can be fetched."""

import asyncio
import json
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from isengard.settings import Settings
from tabs.http.files import shelves, showing
from tabs.http.named_files import OnlyUploads


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", device="cpu")


@pytest.fixture
def uploads(settings, monkeypatch):
    folder = settings.cache_dir / "uploads"
    folder.mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


# Bodies


GONE = {"type": "http.disconnect"}


@pytest.fixture
def calls(uploads):
    async def page(request):
        return PlainTextResponse((await request.body()) or b"page")

    served = [Route("/{path:path}", page, methods=["GET", "POST"])]
    return TestClient(Starlette(routes=served, middleware=[Middleware(OnlyUploads)]))


def post(client, content, path="/gradio_api/queue/join"):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post(path, content=body, headers={"content-type": "application/json"})


def test_a_call_reaches_the_page_as_it_was_sent(calls, uploads):
    (uploads / "abc").mkdir()
    (uploads / "abc" / "a b.png").write_bytes(b"x")
    content = {"data": [{"path": str(uploads / "abc" / "a b.png"), "meta": {"_type": "gradio.FileData"}}]}
    assert post(calls, content).json() == content
    assert post(calls, {"data": ["/etc/passwd", None, 1, {"path": None}]}).status_code == 200
    assert calls.get("/").text == "page"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "",
        "{uploads}",
        "{uploads}/../../jobs.db",
        "{uploads}/gone.png",
        "{uploads}/a\0.png",
        "{uploads}/link.png",
        "http://127.0.0.1:9/secret",
        "https://example.org/huge.bin",
        "file:///etc/passwd",
        "x" * 10_000,
    ],
)
@pytest.mark.parametrize("where", ["data", "event", "deep"])
def test_a_call_that_names_another_file_is_refused(calls, uploads, tmp_path, path, where):
    (tmp_path / "secret").write_text("secret")
    (uploads / "link.png").symlink_to(tmp_path / "secret")
    (uploads.parent.parent / "jobs.db").write_text("jobs")
    named = {"path": path.replace("{uploads}", str(uploads))}
    content = {
        "data": {"data": [named]},
        "event": {"data": [], "event_data": {"draft": [{"rows": [{"strength": named}]}]}},
        "deep": {"data": [[[{"a": {"b": [named | {"meta": {"_type": "gradio.FileData"}}]}}]]]},
    }[where]
    for address in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/component_server/"):
        answer = post(calls, content, address)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["message"] == "This file was not uploaded here."


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 200_000])
def test_a_call_that_is_no_json_is_refused(calls, content):
    assert post(calls, content).status_code == 400


def test_a_call_that_breaks_off_is_not_answered(uploads):
    heard = []

    async def receive():
        heard.append("asked")
        return {"type": "http.request", "body": b"{", "more_body": True} if len(heard) == 1 else GONE

    async def never(*_):
        raise AssertionError("half a call")

    asyncio.run(OnlyUploads(never)({"type": "http", "path": "/gradio_api/cancel"}, receive, never))
    assert heard == ["asked", "asked"]


# Files


@pytest.fixture
def served(settings):
    show = showing(shelves(settings))
    return TestClient(Starlette(routes=[Route("/gradio_api/file={path:path}", show)]))


def address(path):
    return f"/gradio_api/file={quote(str(path))}"


def write(path, content=b"0123456789"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("folder", "name", "kind", "disposition"),
    [
        ("pictures_dir", "0123456789abcdef0123456789abcdef.webp", "image/webp", "inline"),
        ("images_dir", "a1B2-c_3-0.png", "image/png", "inline"),
        ("exports_dir", "0123456789abcdef0123456789abcdef/nova.zip", "application/zip", "attachment"),
        ("loras_dir", "0123456789ab/nova.safetensors", "application/octet-stream", "attachment"),
    ],
)
def test_what_the_page_shows_can_be_fetched(served, settings, folder, name, kind, disposition):
    path = write(getattr(settings, folder) / name)
    answer = served.get(address(path))
    assert answer.content == b"0123456789"
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-disposition"] == f'{disposition}; filename="{path.name}"'
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cache-control"].startswith("private")  # proxies keep pictures for everybody else
    assert served.head(address(path)).headers["content-length"] == "10"
    assert served.get(address(path), headers={"range": "bytes=2-4"}).content == b"234"
    assert served.get(address(path), headers={"range": "bytes=1-2-3"}).status_code == 400


@pytest.mark.parametrize(
    "name",
    [
        "jobs.db",
        "hub-token",
        "examples.json",
        "logs/page.jsonl",
        "characters/nova/images/0123456789abcdef.png",
        "loras/job1/lora.json",
        "loras/job1/.nova.safetensors",
        "loras/nova.safetensors",
        "runs/job1/checkpoints/step-00000002/state.pt",
        "runs/job1/samples/00000002-0.png",
        "trash/images/a-0.png",
        "cache/uploads/abc/photo.png",
        "cache/uploads/abc/page.html",
        "cache/pictures/.hidden.webp",
        "cache/pictures/0123456789abcdef0123456789abcdef.svg",
        "cache/pictures/page.html",
        "cache/exports/nova.zip",
        "cache/exports/0123456789abcdef0123456789abcdef/.nova.zip",
        "cache/exports/0123456789abcdef0123456789abcdef/sub/nova.zip",
        "images/.lock",
        "images/a-0.png.partial-1",
        "images/a-0.svg",
        "images/sub/a-0.png",
        "images",
        "",
    ],
)
def test_nothing_else_of_the_data_folder_can_be_fetched(served, settings, name):
    path = settings.data_dir / name
    if name and name != "images":
        write(path)
    assert served.get(address(path)).status_code == 404


@pytest.mark.parametrize(
    "asked",
    [
        "/etc/passwd",
        "etc/passwd",
        "{images}/../jobs.db",
        "{images}/%2e%2e/jobs.db",
        "{images}/..%2fjobs.db",
        "{images}/%252e%252e/jobs.db",
        "{images}\\..\\jobs.db",
        "{images}/a-0.png%00.png",
        "{images}/a-0.png/",
        "{images}/a-0.png::$DATA",
        "{images}/A-0.PNG",
        "{images}/link.png",
        "file:{images}/a-0.png",
        "http://127.0.0.1/a-0.png",
        "{images}/" + "a" * 5000 + ".png",
        "a" * 5000,
    ],
)
def test_no_way_of_writing_a_path_leads_elsewhere(served, settings, asked):
    write(settings.images_dir / "a-0.png")
    write(settings.jobs_db)
    (settings.images_dir / "link.png").symlink_to(settings.jobs_db)
    answer = served.get("/gradio_api/file=" + asked.replace("{images}", str(settings.images_dir)))
    # A slash at the end names the same file; it is the only other spelling that is let through.
    assert answer.status_code == (200 if asked.endswith("a-0.png/") else 404)
    assert answer.status_code == 404 or answer.content == b"0123456789"
