"""What is between the server and Gradio's application: bodies, places, rates, and what Gradio does not understand."""

import asyncio
import json
import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest
import uvicorn
from gradio.route_utils import MultiPartException, upload_fn
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse

from isengard.domain.limits import Limits, Rate
from isengard.queue.sqlite import SqliteQueue
from isengard.services.admission import Admission
from isengard.services.upload_folder import UploadFolder
from tabs.common import WEB
from tabs.http import bodies
from tabs.http.bodies import BODY_BYTES, FILE_BYTES, PARTS, UPLOAD, UPLOAD_BYTES, Bodies
from tabs.http.faults import Faults
from tabs.http.limits import Limited
from tabs.http.patience import HEAD_BYTES, Impatient
from tests.clock import Clock

JOIN = "/gradio_api/queue/join"
BOUNDARY = "----a:b"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


def file_of(size):
    return PART + b"\r-" * (size // 2) + END


def scope_of(path, headers=None, client="10.0.0.7"):
    raw = [(name.encode(), str(value).encode()) for name, value in (headers or {}).items()]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": raw,
        "client": (client, 4000),
        "query_string": b"",
    }


class Answer:
    """What a client was sent."""

    status: int | None = None
    headers = Headers()
    content = b""
    read = 0

    @property
    def detail(self):
        return json.loads(self.content)["detail"]


async def ask(app, path, chunks=(b"",), *, headers=None, then="whole", client="10.0.0.7"):
    """Send chunks, and ``then``: it was the whole body, the client goes, or it keeps still."""
    answer, left = Answer(), list(chunks)

    async def receive():
        if left:
            chunk = left.pop(0)
            answer.read += len(chunk)
            return {"type": "http.request", "body": chunk, "more_body": bool(left) or then != "whole"}
        if then == "gone":
            return {"type": "http.disconnect"}
        return await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.start":
            assert answer.status is None
            answer.status, answer.headers = message["status"], Headers(raw=message["headers"])
        else:
            answer.content += message.get("body", b"")

    await app(scope_of(path, headers, client), receive, send)
    return answer


async def echo(scope, receive, send):
    """Answer with the length of the body."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "uploads"


@pytest.fixture
def upload(folder):
    """Gradio's own reading of an upload."""

    async def app(scope, receive, send):
        try:
            found, _, _ = await upload_fn(Request(scope, receive), folder, FILE_BYTES, None)
        except MultiPartException as error:
            answer = PlainTextResponse(error.message, 400)
        else:
            answer = JSONResponse([str(path) for path in found])
        await answer(scope, receive, send)

    return Bodies(app, patience_s=0.02)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# Bodies


def test_a_body_arrives_as_it_was_sent():
    answer = asyncio.run(ask(Bodies(echo), JOIN, [b"abc", b"", b"de"]))
    assert (answer.status, answer.content) == (200, b"5")


def test_a_body_that_is_announced_as_too_long_is_refused_before_any_handler_runs():
    async def never(*_):
        pytest.fail("the handler was asked")

    answer = asyncio.run(ask(Bodies(never), JOIN, headers={"content-length": BODY_BYTES + 1}))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert answer.detail == "This body is longer than the 1 MB it may have."


def test_a_body_that_grows_too_long_without_saying_so_is_cut_off():
    answer = asyncio.run(ask(Bodies(echo), JOIN, [bytes(BODY_BYTES), b"x", b"more"]))
    assert answer.status == 413


def test_an_upload_may_be_longer_than_other_bodies():
    answer = asyncio.run(ask(Bodies(echo), UPLOAD, [bytes(BODY_BYTES), b"x"]))
    assert (answer.status, answer.content) == (200, str(BODY_BYTES + 1).encode())


def test_the_rest_of_a_body_that_is_too_long_is_read_so_that_its_client_sees_the_answer():
    chunks = [bytes(2**20)] * 5
    assert asyncio.run(ask(Bodies(echo), JOIN, chunks)).read == 5 * 2**20


def test_a_form_is_taken_where_files_are_and_nowhere_else():
    assert asyncio.run(ask(Bodies(echo), "/gradio_api/component_server", headers=FORM)).status == 415
    assert asyncio.run(ask(Bodies(echo), "/login", headers=FORM)).status == 200


def test_a_whole_upload_is_kept(upload, folder):
    answer = asyncio.run(ask(upload, UPLOAD, [file_of(100)], headers=FORM))
    assert answer.status == 200
    assert [path.stat().st_size for path in files_in(folder)] == [100]


def test_a_form_with_very_many_parts_is_cut_off_and_leaves_no_file(upload, folder):
    content = PART + (b"x\r\n" + PART) * PARTS + b"x" + END
    answer = asyncio.run(ask(upload, UPLOAD, [content, b"more", b"more"], headers=FORM))
    assert (answer.status, answer.detail) == (413, f"This form has more than {PARTS} parts.")
    assert not files_in(folder)


@pytest.mark.parametrize("size", [7, 1000])
@pytest.mark.parametrize(("parts", "status"), [(PARTS, 200), (PARTS + 1, 413)])
def test_parts_are_counted_however_the_form_is_cut_into_chunks(size, parts, status):
    content = PART + (b"x\r\n" + PART) * (parts - 1) + b"x" + END
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    assert asyncio.run(ask(Bodies(echo), UPLOAD, chunks, headers=FORM)).status == status


def test_an_upload_that_ends_anywhere_leaves_no_file(upload, folder):
    content = file_of(20)

    async def cut_everywhere():
        for at in range(len(content) - len(b"--\r\n")):
            answer = await ask(upload, UPLOAD, [content[:at]], headers=FORM, then="gone")
            assert answer.status is None
            assert not files_in(folder), at

    asyncio.run(cut_everywhere())


def test_an_upload_that_only_trickles_is_cut_off_and_leaves_no_file(upload, folder):
    answer = asyncio.run(ask(upload, UPLOAD, [PART, b"x"], headers=FORM, then="still"))
    assert (answer.status, answer.detail) == (408, "This body came too slowly.")
    assert not files_in(folder)


def trickling(clock, size, every_s, times):
    """A body of which a piece comes every so many seconds; the status of its answer."""
    sent, answers = [], []

    async def receive():
        clock.now += every_s
        sent.append(size)
        return {"type": "http.request", "body": bytes(size), "more_body": len(sent) < times}

    async def send(message):
        answers.append(message.get("status"))

    asyncio.run(Bodies(echo, clock=clock)(scope_of(UPLOAD), receive, send))
    return answers[0]


def test_a_slow_phone_is_waited_for():
    assert trickling(Clock(0.0), 20_000, 10, 300) == 200  # 2 kB each second, for 50 minutes


def test_a_body_at_a_byte_each_second_is_not_read_to_its_end():
    clock = Clock(0.0)
    assert trickling(clock, 1, 1, 10_000) == 408
    assert clock.now < bodies.PATIENCE_S + 5


def test_what_came_fast_buys_no_long_silence():
    clock = Clock(0.0)
    body = bodies.Body(None, None, most=2**30, patience_s=30, clock=clock)

    async def fast_then_silent():
        body._receive = instant(bytes(10**7))
        await body.receive()
        return body._left_s

    assert asyncio.run(fast_then_silent()) == 30


def instant(content):
    async def receive():
        return {"type": "http.request", "body": content, "more_body": True}

    return receive


def test_a_client_that_goes_away_is_no_error():
    answer = asyncio.run(ask(Bodies(echo), JOIN, [b"{"], then="gone"))
    assert answer.status is None


def test_an_answer_that_began_before_the_body_was_cut_off_is_left_as_it_is():
    async def early(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with suppress(ClientDisconnect):
            await Request(scope, receive).body()
        await send({"type": "http.response.body", "body": b"early"})

    answer = asyncio.run(ask(Bodies(early), JOIN, [bytes(BODY_BYTES + 1)]))
    assert (answer.status, answer.content) == (200, b"early")


def test_what_is_no_request_passes_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for middleware in (Bodies(app), Faults(app), Limited(app, admission=None, uploads=None)):
        asyncio.run(middleware({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"] * 3


def test_the_script_of_the_page_knows_how_large_a_file_may_be():
    assert f"const LARGEST = {FILE_BYTES // 2**20} * 2 ** 20;" in (WEB / "characters_drop.js").read_text()
    assert UPLOAD_BYTES > FILE_BYTES


# Places and rates


@pytest.fixture
def limited(tmp_path, folder):
    def make(app=echo, **limits):
        admission = Admission(queue=SqliteQueue(tmp_path / "jobs.db"), limits=Limits(**limits))
        return Limited(app, admission=admission, uploads=UploadFolder(folder, most_bytes=1000))

    return make


def test_too_many_uploads_of_an_address_are_told_how_long_to_wait(limited):
    app = limited(uploads=Rate(burst=1, per_minute=2))
    first, second = (asyncio.run(ask(app, UPLOAD, headers={"content-length": 0})) for _ in range(2))
    other = asyncio.run(ask(app, UPLOAD, headers={"content-length": 0}, client="10.0.0.8"))
    assert (first.status, second.status, other.status) == (200, 429, 200)
    assert second.headers["retry-after"] == "30"
    assert "wait 30 s" in second.detail


def test_a_burst_of_other_requests_is_not_counted_as_uploads(limited):
    app = limited(uploads=Rate(burst=1, per_minute=1))
    assert {asyncio.run(ask(app, JOIN)).status for _ in range(5)} == {200}


def test_an_upload_without_a_length_needs_room_for_the_longest(limited):
    assert asyncio.run(ask(limited(), UPLOAD)).status == 429
    assert asyncio.run(ask(limited(), UPLOAD, headers={"content-length": 999})).status == 200


def test_one_address_holds_so_many_requests_at_once(limited):
    async def crowd():
        going = asyncio.Event()

        async def waiting(scope, receive, send):
            await going.wait()
            await echo(scope, receive, send)

        app = limited(waiting, requests_at_once=2)
        held = [asyncio.create_task(ask(app, JOIN)) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await ask(app, JOIN)
        going.set()
        return refused.status, [(await each).status for each in held], (await ask(app, JOIN)).status

    assert asyncio.run(crowd()) == (429, [200, 200], 200)


# What Gradio does not understand


def raising(error):
    async def app(scope, receive, send):
        raise error

    return app


def test_an_exception_of_gradio_becomes_a_400_without_its_words():
    answer = asyncio.run(ask(Faults(raising(KeyError("secret"))), JOIN))
    assert (answer.status, answer.detail) == (400, "This request is not understood.")


def test_a_status_500_of_gradio_becomes_a_400_with_its_words():
    async def failing(scope, receive, send):
        await JSONResponse({"error": "too_many: wait 3 s"}, 500)(scope, receive, send)

    answer = asyncio.run(ask(Faults(failing), "/gradio_api/run/predict"))
    assert (answer.status, answer.content) == (400, b'{"error":"too_many: wait 3 s"}')


def test_a_stream_that_breaks_ends():
    async def streaming(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise KeyError

    answer = asyncio.run(ask(Faults(streaming), JOIN))
    assert (answer.status, answer.content) == (200, b"a")


def test_a_crash_of_our_own_routes_stays_one():
    with pytest.raises(KeyError):
        asyncio.run(ask(Faults(raising(KeyError())), "/ready"))


def test_a_client_that_has_gone_is_not_taken_for_a_fault():
    with pytest.raises(ClientDisconnect):
        asyncio.run(ask(Faults(raising(ClientDisconnect())), JOIN))


# Connections


class Hurried(Impatient):
    patience_s = 0.2


@pytest.fixture(scope="module")
def port():
    """Of a server that answers each request at once, without reading its body."""

    async def app(scope, receive, send):
        await PlainTextResponse("ok")(scope, receive, send)

    config = uvicorn.Config(app, port=0, lifespan="off", log_level="error", http=Hurried)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def is_closed(connection, trickle):
    """Whether the server closes the connection within five seconds, while a byte comes now and then."""
    end = time.monotonic() + 5
    connection.settimeout(0.05)
    while time.monotonic() < end:
        try:
            connection.sendall(trickle)
            if not connection.recv(1000):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET / HTTP/1.1\r\nhost: x\r\na: ", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"],
    ids=["a connection without a request", "a head", "the body of a request that was answered"],
)
def test_what_only_trickles_is_cut_off(port, beginning):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(beginning)
        assert is_closed(connection, b"x" if beginning else b"")


def test_a_head_without_an_end_is_refused_before_it_takes_the_memory(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"a" * (HEAD_BYTES + 1))
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_a_connection_serves_one_request_after_the_other(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert [client.get("/").text for _ in range(3)] == ["ok"] * 3
