"""Each class of hole that Gradio has had, tried on the running page."""

import http.client
import json
import os
import uuid
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from gradio_client import Client
from PIL import Image as Picture

from isengard.domain.generation import ImageSpec
from isengard.domain.job import JobKind
from isengard.settings import ASSETS, Settings
from isengard.store.artifacts import Images
from isengard.wiring import build
from tests.ui.conftest import running_page

#: Components of which releases of Gradio copied, deleted, fetched or unpacked files that a request had named.
RISKY = {
    "annotatedimage", "audio", "chatbot", "code", "dataframe", "dataset", "datetime", "downloadbutton", "file",
    "fileexplorer", "gallery", "image", "imageeditor", "imageslider", "json", "loginbutton", "model3d",
    "multimodaltextbox", "paramviewer", "plot", "video",
}  # fmt: skip
SECRET = "tower-of-glass"  # noqa: S105  # of this test


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """What must stay where it is: in the data folder, and beside it."""
    folder = tmp_path_factory.mktemp("cves") / "data"
    for name in (
        "hub-token",
        "logs/old.jsonl",
        "cache/uploads/abc/photo.png",
        "images/note.txt",
        "../outside.png",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
    return folder.resolve()


@pytest.fixture(scope="module")
def page(data_dir):
    with running_page(data_dir, "--worker", "none", "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def config(page):
    return httpx.get(f"{page.url}/config").json()


def ask(page, target, method="GET", headers=None, body=None):
    """Send a target as it is; clients would tidy it up."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    try:
        connection.request(method, target, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace"), dict(answer.getheaders())
    finally:
        connection.close()


def call(page, function, data, event=None):
    """Join the queue; the answer to that, and what was said in the end."""
    session = uuid.uuid4().hex
    content = {"data": data, "fn_index": function, "session_hash": session, "event_data": event}
    joined = httpx.post(f"{page.url}/gradio_api/queue/join", json=content)
    if joined.status_code != 200:
        return joined, {}
    with httpx.stream("GET", f"{page.url}/gradio_api/queue/data?session_hash={session}") as said:
        for line in said.iter_lines():
            told = json.loads(line.removeprefix("data: ") or "{}") if line else {}
            if told.get("msg") == "process_completed":
                return joined, told
    return pytest.fail("the call did not end")


def listener(config, element, event):
    """The number of the function that an event of a component calls."""
    (component,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == element)
    return next(each["id"] for each in config["dependencies"] if [component, event] in each["targets"])


# Files: CVE-2021-43831, 2023-34239, 2023-51449, 2024-1561, 2024-10648, 2024-12217, 2024-47164, 2025-23042, 2026-28414


@pytest.mark.parametrize(
    "target",
    [
        "/gradio_api/file={data}/hub-token",
        "/gradio_api/file={data}/jobs.db",
        "/gradio_api/file={data}/JOBS.DB",
        "/gradio_api/file={data}/jobs.db::$DATA",
        "/gradio_api/file={data}/logs/page.jsonl",
        "/gradio_api/file={data}/images/note.txt",
        "/gradio_api/file={data}/images/../hub-token",
        "/gradio_api/file={data}/images/..%2fhub-token",
        "/gradio_api/file={data}/images/%2e%2e/hub-token",
        "/gradio_api/file={data}/images/%252e%252e/hub-token",
        "/gradio_api/file={data}/images/..%5chub-token",
        "/gradio_api/file={data}/images/a-0.png%00/../../hub-token",
        "/gradio_api/file={data}/cache/uploads/abc/photo.png",
        "/gradio_api/file={data}/../outside.png",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../../../etc/passwd",
        "/gradio_api/file=%2fetc%2fpasswd",
        "/gradio_api/file=README.md",
        "/gradio_api/file=~/.ssh/id_rsa",
        "/gradio_api/file=\\\\evil.example\\share",
        "/gradio_api/file=",
        "/gradio_api/file=" + "a" * 30_000,
        "/gradio_api/file/{data}/hub-token",
        "/file={data}/hub-token",
        "/file/{data}/hub-token",
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/routes.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/assets/..%2f..%2f..%2froutes.py",
        "/assets//etc/passwd",
        "/svelte/..%2f..%2froutes.py",
        "/gradio_api/custom_component/x/client/component/..%2f..%2froutes.py",
        "/gradio_api/stream/x/y/1/playlist-file",
    ],
)
def test_no_path_leads_to_another_file(page, data_dir, target):
    status, content, _ = ask(page, target.replace("{data}", str(data_dir)))
    assert status in (400, 403, 404)
    assert SECRET not in content
    assert "root:" not in content
    assert "SQLite" not in content


# Requests on our behalf: CVE-2023-51449, 2024-1183, 2024-2206, 2024-4325, 2024-47167, 2024-48052, 2026-28416


@pytest.mark.parametrize(
    "target",
    [
        "/gradio_api/proxy={url}",
        "/gradio_api/file={url}",
        "/proxy={url}",
        "/file={url}",
        "/gradio_api/file={quoted}",
    ],
)
def test_the_server_fetches_nothing_for_others_and_leads_nobody_elsewhere(page, target):
    url = f"{page.url}/health"
    for method in ("GET", "HEAD"):
        status, content, headers = ask(page, target.format(url=url, quoted=quote(url, safe="")), method)
        assert status == 404
        assert "version" not in content
        assert "Location" not in headers


def test_an_input_that_names_an_address_is_not_downloaded(page, config):
    function = listener(config, "training-import-ai-toolkit", "upload")
    for url in (f"{page.url}/health", "https://example.org/a.yaml", "file:///etc/passwd"):
        named = {"path": url, "url": url, "orig_name": "a.yaml", "meta": {"_type": "gradio.FileData"}}
        assert call(page, function, [named, {}])[0].status_code == 422


# Files that a component copies into the cache: CVE-2024-0964, 2024-1728, 2024-4941, 2024-47868, 2024-51751, 2025-48889


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_an_input_that_names_a_file_of_the_server_is_refused(page, config, data_dir, meta):
    function = listener(config, "training-import-ai-toolkit", "upload")
    for path in (
        data_dir / "hub-token",
        "/etc/passwd",
        data_dir / "cache" / "uploads" / ".." / ".." / "hub-token",
    ):
        assert call(page, function, [{"path": str(path)} | meta, {}])[0].status_code == 422


def test_a_file_that_an_event_names_is_not_handed_out(page, config, data_dir):
    """What a draft holds comes back in the form, and Gradio would copy each file that an answer names."""
    named = {"path": str(data_dir / "hub-token"), "meta": {"_type": "gradio.FileData"}}
    draft = ["", "", 1, {"rows": [{"lora": "x", "strength": named}]}, "", "", "", 64, 64, 1, 1, "", 1, "none"]
    answer, said = call(page, listener(config, "image-look", "opened"), ["", "?"], {"draft": draft})
    assert (answer.status_code, said) == (422, {})


def test_the_page_has_none_of_the_components_that_handle_files_themselves(config):
    assert not {each["type"] for each in config["components"]} & RISKY


# Calls: CVE-2024-1561 (component_server), 2024-1727 and 2024-47084, 47165, 2025-5320 (other sites)


@pytest.mark.parametrize(
    "name",
    ["move_resource_to_block_cache", "__init__", "postprocess", "load_state", "stream_output", "look_", ""],
)
def test_only_functions_that_are_meant_for_it_can_be_called(page, config, name):
    status = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "status")
    content = {"data": "/etc/passwd", "component_id": status, "fn_name": name, "session_hash": "s"}
    for address in ("component_server", "component_server/"):
        assert httpx.post(f"{page.url}/gradio_api/{address}", json=content).status_code == 404


@pytest.mark.parametrize("host", ["pod-7860.proxy.example", "studio.example:7860"])
@pytest.mark.parametrize(
    ("origin", "more"),
    [
        ("https://evil.example", {}),
        ("null", {}),
        ("http://localhost.evil.example", {}),
        ("https://evil.example", {"X-Forwarded-Host": "evil.example"}),
        ("https://evil.example", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}),
    ],
)
def test_another_site_cannot_use_a_visitors_browser(page, host, origin, more):
    headers = {
        "Host": host,
        "Origin": origin,
        "Cookie": "access-token=x",
        "Content-Type": "application/json",
    } | more
    status, _, _ = ask(page, "/gradio_api/queue/join", "POST", headers, b"{}")
    assert status in (403, 421)
    status, content, _ = ask(page, "/config", "GET", headers)
    assert status in (403, 421)
    assert "components" not in content


def test_a_local_page_cannot_be_used_by_a_site_without_an_origin(page):
    for origin in ("null", "https://evil.example", "http://localhost:3000", "http://127.0.0.1:1"):
        status, _, _ = ask(page, "/gradio_api/upload", "POST", {"Origin": origin}, b"x")
        assert status == 403


def test_a_name_that_points_here_is_refused(page):
    status, content, _ = ask(page, "/", headers={"Host": f"evil.example:{page.port}"})
    assert (status, "127.0.0.1 only" in content) == (421, True)


# Uploads: CVE-2024-1728, 2024-47872 (scripts), GHSA-j2jg-fq62-7c3h (names)


@pytest.mark.parametrize(
    "name", ["../../../evil.png", "..", "/etc/evil", "a/../../evil.html", "..\\..\\evil.svg", "\x01.png"]
)
def test_an_upload_stays_in_its_folder_whatever_it_is_called(page, data_dir, name):
    content = f"<script>{uuid.uuid4()}</script>".encode()
    answer = httpx.post(f"{page.url}/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code in (200, 400)
    found = [path for path in data_dir.parent.rglob("*") if path.is_file() and path.read_bytes() == content]
    assert len(found) == 1
    assert found[0].is_relative_to(data_dir / "cache" / "uploads")
    if answer.status_code == 200:
        assert [os.path.realpath(path) for path in answer.json()] == [os.path.realpath(found[0])]


@pytest.mark.parametrize("name", ["page.html", "picture.svg", "script.js", "photo.png"])
def test_an_upload_cannot_be_fetched_by_anybody(page, name):
    answer = httpx.post(
        f"{page.url}/gradio_api/upload", files={"files": (name, b"<script>alert(1)</script>")}
    )
    (path,) = answer.json()
    status, content, _ = ask(page, f"/gradio_api/file={quote(path)}")
    assert (status, "script" in content) == (404, False)


# Own tools of Gradio's: CVE-2024-47166 to 47169, 47869 (monitoring), 2026-28415, and what is new in 6


@pytest.mark.parametrize(
    "target",
    [
        "/monitoring", "/monitoring/summary", "/monitoring/x", "/monitoring/x/dashboard", "/docs", "/redoc",
        "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/dev/reload", "/gradio_api/vibe-code",
        "/gradio_api/runs", "/gradio_api/run-history/buckets", "/gradio_api/deep_link?session_hash=x", "/pwa_icon/9999",
        "/gradio_api/token", "/gradio_api/user", "/gradio_api/heartbeat/x", "/login/huggingface", "/gradio_api/mcp/",
        "/gradio_api/queue/status", "/gradio_api/profiling/traces",
    ],
)  # fmt: skip
def test_no_tool_of_gradios_own_is_open(page, target):
    assert ask(page, target)[0] == 404


def test_a_deep_link_reads_no_state(page):
    for link in ("../../uploads", "..%2f..", "a" * 64):
        status, content, _ = ask(page, f"/?deep_link={link}")
        assert status == 200
        assert SECRET not in content


# The address of the page: CVE-2024-47870 (one visitor's header in another's page), open redirects (2024-4940, 8021)


def test_a_forged_name_is_not_remembered_and_its_scripts_are_not_run(page):
    forged = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Gradio-Server": "http://evil.example",
    }
    _, _, headers = ask(page, "/", headers=forged)
    rules = {key.lower(): value for key, value in headers.items()}["content-security-policy"]
    assert "script-src 'self' 'unsafe-inline' 'unsafe-eval';" in rules
    assert "evil.example" not in ask(page, "/")[1]
    assert "evil.example" not in httpx.get(f"{page.url}/config").text


def test_no_address_leads_to_another_site(page):
    for target in (
        "//evil.example",
        "//evil.example/..",
        "/\\evil.example",
        "/https://evil.example",
        "/config/",
    ):
        status, _, headers = ask(page, target)
        assert status == 404
        assert "Location" not in headers


def test_nothing_is_told_to_others_and_nothing_is_shared_unasked(config):
    assert config["analytics_enabled"] is False
    assert "space_id" not in config or config["space_id"] is None
    assert Settings().share is False
    assert not any(each["api_visibility"] == "undocumented" for each in config["dependencies"])


# And what is meant to work


def test_the_files_of_a_job_are_fetched_from_where_they_lie(page, data_dir):
    app = build(Settings(data_dir=data_dir, device="cpu"))
    job = app.queue.enqueue(JobKind.GENERATE_IMAGES, {})
    images = Images(images_dir=data_dir / "images", trash_dir=data_dir / "trash")
    spec = ImageSpec(base_model="demo", prompt="x")
    with Picture.open(ASSETS / "characters" / "nova" / "01.png") as pixels:
        made = images.add(pixels, job_id=job.id, index=0, spec=spec, prompt="x", loras=[], seed=1, seconds=1)
    before = list((data_dir / "cache" / "uploads").rglob("*.png"))
    (path,) = Client(page.url, verbose=False).predict(job.id, api_name="/job_images")
    assert Path(path).read_bytes() == made.path.read_bytes()
    assert list((data_dir / "cache" / "uploads").rglob("*.png")) == before
