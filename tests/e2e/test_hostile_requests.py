"""A thousand hostile requests to the page as a user starts it: nothing breaks, leaks or grows, and it still works."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import psutil
import pytest

from tests.e2e import hostile_requests as hostile
from tests.e2e.hostile_requests import API, Wire
from tests.tiny_app import tiny_app
from tests.ui.conftest import RunningPage

SEED = 20261123
CALLS_BY_CHANCE, TO_LISTENERS, BY_HAND = 400, 100, 500
AT_ONCE = 4
OUTSIDE, TOKEN = "canary-outside-5d1c", "hf_canaryInsideTheDataFolder0123456789"
LEAKS = (OUTSIDE.encode(), TOKEN.encode(), b"root:x:0:0", b"SQLite format 3", b"Traceback (most recent")
MIB = 2**20

pytestmark = pytest.mark.slow


class Place:
    """A folder with the data folder in it, and what must stay as it is around that."""

    def __init__(self, root, model):
        self.root, self.data = root, root / "app" / "data"
        tiny_app(root / "app", model)
        (root / "secret.txt").write_text(OUTSIDE)
        (self.data / "hub-token").write_text(TOKEN)
        (root / "tmp").mkdir()
        (root / "home").mkdir()

    def around(self):
        """All files outside the data folder, with their contents' sizes and times."""
        found = (path for path in self.root.rglob("*") if self.data not in path.parents and path != self.data)
        return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if path.is_file()}

    def size(self):
        return sum(path.lstat().st_size for path in self.data.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_flux):
    return Place(tmp_path_factory.mktemp("place"), tiny_flux)


@pytest.fixture(scope="module")
def page(place):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ISENGARD_CONFIGS_DIR", str(place.root / "app" / "configs"))
        environment.setenv("TMPDIR", str(place.root / "tmp"))
        environment.setenv("HOME", str(place.root / "home"))
        environment.setenv("HF_TOKEN", TOKEN)
        environment.setenv("HF_HUB_OFFLINE", "1")
        environment.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        said = (place.data / "stderr.txt").open("w")
        running = RunningPage(place.data, "--device", "cpu", stderr=said)
        try:
            running.wait_until_it_answers()
            yield running
        finally:
            running.end()
            said.close()


def served(config):
    """The functions that the scripts of our components call, each with the component's id."""
    found = config["components"]
    return [(each["id"], name) for each in found for name in each["props"].get("server_fns") or ()]


def hand_made(place, wire, config):
    """The requests that are made by hand; what each file becomes is asked for in its turn."""
    chance = random.Random(SEED)
    requests = [
        *hostile.paths([str(place.root / "secret.txt")], str(place.data)),
        *hostile.bodies(served(config)),
        *hostile.forms(),
        *hostile.oversized(),
        *hostile.odd_headers(),
    ]
    chance.shuffle(requests)
    add_images = numbers_of(config)["add_images"]
    files = [*hostile.pictures(chance), *hostile.archives(chance)]
    most = BY_HAND - len(hostile.NO_HTTP) - len(files)
    assert len(requests) >= most
    acts = [lambda request=request: wire.ask(request) for request in requests[:most]]
    acts += [lambda content=content: wire.say(content) for content in hostile.NO_HTTP]
    acts += [lambda file=file: give(wire, add_images, *file) for file in files]
    chance.shuffle(acts)
    return acts


def give(wire, add_images, name, content):
    """Upload a file and let the character have it."""
    path = wire.upload(name, content)
    wire.call(add_images, "mira", [{"path": path, "meta": {"_type": "gradio.FileData"}}])


def numbers_of(config):
    """The calls by their names."""
    return {each["api_name"]: each["id"] for each in config["dependencies"]}


def made_by_chance(wire, config):
    """Calls, with the answers to those that were taken; then what only the page should send."""
    info = json.loads(wire.get(f"{API}/info").content)
    listening = {session: threading.Lock() for session in hostile.SESSIONS}

    def call(request):
        session = next((each for each in listening if f'"{each}"'.encode() in request.body), None)
        if session is None or not request.path.endswith("/queue/join"):
            wire.ask(request)
            return
        with listening[session]:  # two that listen would take each other's answers
            if wire.ask(request).status == 200:
                wire.get(f"{API}/queue/data?session_hash={session}")

    chance = random.Random(SEED)
    calls = islice(hostile.by_chance(info, numbers_of(config), chance), CALLS_BY_CHANCE)
    others = islice(hostile.to_listeners(config, chance), TO_LISTENERS)
    return [
        *(lambda request=request: call(request) for request in calls),
        *(lambda request=request: wire.ask(request) for request in others),
    ]


def trickling(port):
    """A body that never comes to its end, on a connection of its own."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    head = f"POST {API}/queue/join HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
    return connection


@pytest.fixture(scope="module")
def course(place, page):
    """All of it, once; then what is left: answers, memory, sizes."""
    wire, process = Wire(page.port), psutil.Process(page.process.pid)
    slow = [trickling(page.port) for _ in range(20)]
    config = json.loads(wire.get("/config").content)
    acts = hand_made(place, wire, config) + made_by_chance(wire, config)
    random.Random(SEED).shuffle(acts)
    before, size = place.around(), place.size()
    for _ in range(20):
        wire.get("/config")
    memory = process.memory_info().rss
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(act) for act in acts]:
            done.result()
    for connection in slow:
        connection.close()
    after = process.memory_info().rss
    return {
        "wire": wire,
        "before": before,
        "grown": place.size() - size,
        "memory": (memory, after),
        "config": config,
    }


def test_a_thousand_requests_were_sent(course):
    assert len(course["wire"].answers) >= 1000


def test_none_is_answered_with_a_fault_of_the_server(course):
    faults = [answer for answer in course["wire"].answers if answer.status >= 500]
    assert not faults, [
        (answer.request.method, answer.request.path[:200], answer.status) for answer in faults
    ]


def test_each_that_is_http_is_answered(course):
    silent = [
        answer.request
        for answer in course["wire"].answers
        if answer.status == 0 and answer.request.method != "?"
    ]
    assert not silent, [(request.method, request.path[:200]) for request in silent]


def test_no_answer_holds_a_secret(course):
    for answer in course["wire"].answers:
        text = answer.headers.encode() + answer.content
        assert not [leak for leak in LEAKS if leak in text], answer.request.path[:200]


def test_nothing_is_written_outside_the_data_folder(place, course):
    assert place.around() == course["before"]


def test_memory_and_disk_stay_bounded(course):
    before, after = course["memory"]
    assert after - before < 400 * MIB
    assert course["grown"] < 300 * MIB


def test_no_call_that_other_programs_may_make_crashed(place, course):
    assert "tabs/api.py" not in (place.data / "stderr.txt").read_text()
    lines = [json.loads(line) for line in (place.data / "logs" / "page.jsonl").read_text().splitlines()]
    crashed = [line for line in lines if line["message"] == "handler crashed"]
    assert not {line["handler"] for line in crashed} & {name for _, name in served(course["config"])}


def test_the_page_still_makes_an_image(course):
    wire, numbers, end = Wire(course["wire"].port), numbers_of(course["config"]), time.monotonic() + 60
    assert b"gradio" in wire.get("/").content
    job = None
    while job is None:
        assert time.monotonic() < end
        job = wire.call(numbers["generate"], "at sea", "tiny", [], {})
        time.sleep(0 if job else 0.1)
    while (status := wire.call(numbers["job_status"], job)["status"]) not in ("succeeded", "failed"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert status == "succeeded"
    assert len(wire.call(numbers["job_images"], job)) == 1
