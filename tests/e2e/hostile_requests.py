"""What a stranger may send to the page: made by hand, and by chance from the schema of the page's own calls."""

import io
import json
import random
import socket
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

from PIL import Image

from isengard.domain.generation import ImageSpec
from isengard.domain.training import TrainingSpec
from tests.unit.test_intake_fuzz import damaged, zip_bytes

API = "/gradio_api"
JSON = {"content-type": "application/json"}
#: A body in pieces, so that no length is announced.
Chunks = list[bytes]


@dataclass(frozen=True)
class Request:
    """One request; ``listen``: its answer may never end, so only its beginning is read."""

    method: str
    path: str
    body: bytes | Chunks | None = None
    headers: dict[str, str] = field(default_factory=dict)
    listen: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of it; status 0: the connection was closed without an answer."""

    request: Request
    status: int
    headers: str = ""
    content: bytes = b""


class Wire:
    """Sends requests as they are, which well-behaved clients refuse to do; keeps every answer."""

    def __init__(self, port: int) -> None:
        self.port, self.answers, self._lock = port, list[Answer](), threading.Lock()

    def ask(self, request: Request) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            answer = self._ask(connection, request)
        except (HTTPException, OSError):
            answer = Answer(request, 0)
        finally:
            connection.close()
        return self._keep(answer)

    def _ask(self, connection: HTTPConnection, request: Request) -> Answer:
        connection._validate_path = lambda _: None  # type: ignore[attr-defined,method-assign]
        connection.putrequest(request.method, request.path, skip_host="host" in request.headers)
        chunked = isinstance(request.body, list)
        if isinstance(request.body, bytes) and "content-length" not in request.headers:
            connection.putheader("content-length", str(len(request.body)))
        for name, value in (request.headers | ({"transfer-encoding": "chunked"} if chunked else {})).items():
            connection.putheader(name, value)
        with suppress(ConnectionError):  # the answer may come before the body's end
            connection.endheaders(request.body, encode_chunked=chunked)
        response = connection.getresponse()
        answer = Answer(request, response.status, str(response.headers))
        if not request.listen:
            return replace(answer, content=response.read())
        connection.sock.settimeout(0.1)
        with suppress(TimeoutError):
            return replace(answer, content=response.read1(65536))
        return answer

    def say(self, content: bytes) -> Answer:
        """Send what may not even be HTTP."""
        request = Request("?", repr(content[:60]))
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(content)
            received = b""
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
        status = received[9:12]
        return self._keep(Answer(request, int(status) if status.isdigit() else 0, "", received))

    def json(self, path: str, content: Any, **options: Any) -> Answer:
        return self.ask(Request("POST", path, json.dumps(content).encode(), JSON, **options))

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask(Request("GET", path, **options))

    def upload(self, name: str, content: bytes, **options: Any) -> str:
        """The path of an uploaded file; empty when it was refused."""
        body, kind = form({"files": (name, content)})
        answer = self.ask(Request("POST", f"{API}/upload", body, {"content-type": kind}, **options))
        return json.loads(answer.content)[0] if answer.status == 200 else ""

    def call(self, number: int, *data: Any) -> Any:
        """What a call of the API gives, as `gradio_client` makes it; None when it is refused."""
        session = f"thread-{threading.get_ident()}"  # a new one each time would take Gradio most of the time
        answer = self.json(f"{API}/queue/join", {"data": data, "fn_index": number, "session_hash": session})
        if answer.status != 200:
            return None
        said = self.get(f"{API}/queue/data?session_hash={session}").content.decode()
        messages = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
        ended = next((each for each in messages if each["msg"] == "process_completed"), None)
        return ended["output"]["data"][0] if ended and ended["success"] else None

    def _keep(self, answer: Answer) -> Answer:
        with self._lock:
            self.answers.append(answer)
        return answer


def form(fields: dict[str, Any], boundary: str = "x-boundary") -> tuple[bytes, str]:
    """A multipart form and its content type; a file is (name, content)."""
    parts = []
    for name, value in fields.items():
        filename, content = value if isinstance(value, tuple) else (None, value)
        said = f'; filename="{filename}"' if filename is not None else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{said}\r\n\r\n'
        parts.append(head.encode("utf-8", "surrogatepass") + content + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


# By chance, from the schema

NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**30, 1e308, float("nan"), float("-inf"), "", " ", "\0", "a\0b", "..", "../../../etc/passwd",
    "/etc/passwd", "C:\\boot.ini", "a" * 5000, "\u202e\u0301\U0001f600", "\ud800", "<img src=x onerror=alert(1)>", "{{7*7}}",
    "${7*7}", "'; DROP TABLE jobs;--", "%s%n%x", "$(id)", "a\r\nb: c", [], {}, [[]], [None], [{}], {"path": "/etc/passwd"},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path": None}, {"url": "http://169.254.169.254/latest"},
    {"__class__": "os.system"}, {"__type__": "update", "value": 1}, {"a": {"b": {"c": {}}}},
)  # fmt: skip
NAMES = ("mira", "tiny", "quick", "Anna", "[trigger] at sea", "ohwx", "native", "ai-toolkit", "fp32")
#: Listeners that ask the network for programs or models.
REACHING_OUT = ("install", "on_model", "download")
SESSIONS = ("s0", "s1", "s2", "s3")
KEYS = (
    *ImageSpec.model_fields,
    *TrainingSpec.model_fields,
    "lora",
    "strength",
    "path",
    "meta",
    "orig_name",
    "unknown",
)


def value_of(schema: dict[str, Any], chance: random.Random) -> Any:
    """A value for a parameter: often of its type, and rarely a sensible one."""
    if chance.random() < 0.3:
        return chance.choice(NASTY)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return value_of(chance.choice(choices), chance)
    kind = schema.get("type")
    if kind == "string":
        return chance.choice((*NAMES, *(each for each in NASTY if isinstance(each, str))))
    if kind == "array":
        items = schema.get("items") or {}
        return [
            value_of(items if isinstance(items, dict) else {}, chance) for _ in range(chance.randrange(3))
        ]
    if kind == "object":
        return {chance.choice(KEYS): chance.choice((*NASTY, *NAMES)) for _ in range(chance.randrange(4))}
    if kind in ("integer", "number"):
        return chance.choice((0, 1, -1, 0.5, 64, 2**31, 2**64, 1e-9))
    return chance.random() < 0.5 if kind == "boolean" else chance.choice(NASTY)


def by_chance(info: dict[str, Any], numbers: dict[str, int], chance: random.Random) -> Iterator[Request]:
    """Calls of the page's API by its own schema, one after the other, for ever; ``numbers``: of the calls by name."""
    calls = [(name.removeprefix("/"), each["parameters"]) for name, each in info["named_endpoints"].items()]
    while True:
        name, parameters = chance.choice(calls)
        data = [value_of(each.get("type") or {}, chance) for each in parameters]
        if chance.random() < 0.1:
            data = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.5 else [*data, *NASTY]
        body: dict[str, Any] = {"data": data, "session_hash": chance.choice(SESSIONS)}
        path = chance.choice((*["/queue/join"] * 8, "/call", "/call/v2", "/run", "/api"))
        if path == "/queue/join":
            body["fn_index"] = numbers[name] if chance.random() < 0.9 else chance.choice((10**6, -1))
        elif path == "/call/v2":
            body = {each["parameter_name"]: value for each, value in zip(parameters, data, strict=False)}
        whole = f"{API}{path}" if path == "/queue/join" else f"{API}{path}/{name}"
        yield Request("POST", whole, json.dumps(body).encode(), JSON)


def to_listeners(config: dict[str, Any], chance: random.Random) -> Iterator[Request]:
    """The same for what only the page itself should call, which is hidden and not closed."""
    listeners = [
        each for each in config["dependencies"] if each["backend_fn"] and each["api_visibility"] == "private"
    ]
    while True:
        listener = chance.choice(listeners)
        data = [chance.choice((*NASTY, *NAMES, {"character": "mira"})) for _ in listener["inputs"]]
        body = {
            "data": data,
            "fn_index": listener["id"],
            "session_hash": "s4",
            "event_data": chance.choice(NASTY),
        }
        yield Request(
            "POST",
            f"{API}/{'queue/join' if listener['queue'] else 'run/predict'}",
            json.dumps(body).encode(),
            JSON,
        )


# By hand


def paths(secrets: list[str], data: str) -> Iterator[Request]:
    """Ways to ask for a file that nobody may have."""
    wanted = [
        *secrets,
        "/etc/passwd",
        "/proc/self/environ",
        f"{data}/jobs.db",
        f"{data}/hub-token",
        f"{data}/logs/page.jsonl",
    ]
    ups = "../" * 12
    for path in wanted:
        inner = quote(path)
        for form_of in (
            f"{API}/file={path}", f"{API}/file/{path}", f"/file={path}", f"{API}/file={inner}", f"{API}/file={quote(inner)}",
            f"{API}/file=file://{path}", f"{API}/file=/{path}", f"{API}/file={ups}{path}", f"{API}/file=.{ups}{path}",
            f"{API}/file={data}/cache/uploads/{ups}{path}", f"{API}/file={data}/cache/pictures/..%2f..%2f..%2f..{inner}",
            f"/static/{ups}{path}", f"/assets/{quote(ups, safe='')}{inner}", f"/assets/..%5c..%5c{inner}", f"/svelte/{ups}{path}",
            f"{API}/custom_component/x/client/../{inner}", f"/{ups}{path}", f"/%2e%2e/%2e%2e{path}", f"{API}/proxy=file://{path}",
        ):  # fmt: skip
            yield Request("GET", form_of)
    for odd in (
        f"{API}/file=%00", f"{API}/file=a%00.png", f"{API}/file={'a' * 5000}", f"{API}/file={'a/' * 2000}", f"{API}/file=",
        f"{API}/file=%ff%fe", f"{API}/file=http://127.0.0.1:1/x", f"{API}/file=https://169.254.169.254/latest/meta-data",
        f"{API}/proxy=http://127.0.0.1:1/", f"{API}/proxy=https://evil.hf.space/", f"{API}/deep_link?session_hash=../../x",
        f"{API}/upload_progress?upload_id=x", "/pwa_icon/100000", "/pwa_icon/-1", "/monitoring/summary", "/monitoring/x",
        "/monitoring", f"{API}/openapi.json", "/openapi.json", "/docs", f"{API}/token", f"{API}/user", f"{API}/dev/reload",
        f"{API}/vibe-code", f"{API}/profiling/traces", "/?deep_link=../../../../etc/passwd", "/?view=api&__theme=../../x",
        "/config?page=../../x", f"{API}/info?page=%00", f"{API}/stream/a/b/1/playlist.m3u8", f"{API}/stream/a/b/x/1.aac",
        f"{API}/stream/a/b/1/playlist-file", f"{API}/call/generate/unknown", f"{API}/call/none/x", f"{API}/queue/status",
        "/manifest.json", "/theme.css", "/favicon.ico", "/robots.txt", "/%", "/%zz", "//evil.example/%2f..", "/\\..\\..",
        f"{API}/custom_component/textbox/server/component/../../x", f"{API}/heartbeat/", "/login", "/logout", "/runs",
    ):  # fmt: skip
        yield Request("GET", odd, listen="/x" in odd or "/dev/" in odd)
    for odd in ("x", "../x", "%00", "a" * 2000):
        yield Request("GET", f"{API}/heartbeat/{odd}", listen=True)
        yield Request("GET", f"{API}/queue/data?session_hash={odd}", listen=True)
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "PROPFIND", "HEAD"):
        for path in ("/", f"{API}/upload", f"{API}/queue/join", f"{API}/file=/etc/passwd"):
            yield Request(method, path)


def bodies(components: list[tuple[int, str]]) -> Iterator[Request]:
    """What is no JSON, or not the JSON that is asked for, for everything that takes some."""
    targets = [
        f"{API}{path}"
        for path in (
            "/queue/join", "/run/predict", "/api/generate", "/call/generate", "/call/v2/generate", "/call/v2/none", "/component_server",
            "/cancel", "/reset", "/stream/x", "/stream/x/close", "/process_recording", "/vibe-edit", "/undo-vibe-edit", "/vibe-code",
            "/vibe-starter-queries", "/run-history/connect", "/upload", "/startup-events",
        )
    ] + ["/login", "/"]  # fmt: skip
    contents = (
        b"", b"{", b"null", b"[]", b"\"x\"", b"\xff\xfe", b"{}", b"[" * 50_000, b'{"data":' * 9000 + b"1" + b"}" * 9000,
        b'{"data": null, "fn_index": 1e400}', b'{"data": [], "session_hash": {"a": 1}, "fn_index": "x"}',
        b'{"data": [1], "fn_index": 999999999999999999999999, "session_hash": "x"}',
        b'{"event_id": [], "session_hash": null, "fn_index": -1}', b'{"component_id": 1, "data": 1}',
    )  # fmt: skip
    for path in targets:
        for content in contents:
            yield Request("POST", path, content, JSON)
    for number, name in components:
        for given in ({}, None, [], "x", {"character": "mira"}, {"character": "..", "files": [{"path": "/etc/passwd"}]}, {"intake": "x", "seen": []}):  # fmt: skip
            body = {"data": given, "component_id": number, "session_hash": "x", "fn_name": name}
            yield Request("POST", f"{API}/component_server", json.dumps(body).encode(), JSON)
    for number, name in (
        (1, "__init__"),
        (10**9, "x"),
        ("x", "y"),
        ([], {}),
        (None, None),
        (components[0][0], "preprocess"),
    ):
        body = {"data": {}, "component_id": number, "session_hash": "x", "fn_name": name}
        yield Request("POST", f"{API}/component_server", json.dumps(body).encode(), JSON)


def forms() -> Iterator[Request]:
    """Uploads that are none."""
    path = f"{API}/upload"
    good, kind = form({"files": ("a.png", b"x")})
    for name in ("../../../evil.png", "/etc/cron.d/evil", "..\\evil.png", ".", "..", "", "a" * 3000, "con.png", "\r\nx: y", "a\0.png", "\udcff.png", "%2e%2e%2fevil", "x.html", "x.svg", ".bashrc"):  # fmt: skip
        yield Request(
            "POST", path, form({"files": (name, b"<script>alert(1)</script>")})[0], {"content-type": kind}
        )
    for strange in (
        "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "b" * 3000, "text/plain", "",
        "multipart/form-data; boundary=x-boundary; charset=none-such", "multipart/form-data; boundary=x-boundary; charset=utf-16",
        "multipart/form-data; boundary=\"x", "application/x-www-form-urlencoded",
    ):  # fmt: skip
        yield Request("POST", path, good, {"content-type": strange})
    for fields in (
        {"files": b"no file"},
        {"other": ("a.png", b"x")},
        {"": ("a.png", b"x")},
        {f"f{n}": b"" for n in range(1200)},
        {},
    ):
        yield Request("POST", path, form(fields)[0], {"content-type": kind})
    for cut in (1, 20, 60, len(good) - 3):
        yield Request("POST", path, good[:cut], {"content-type": kind})
    head = b"--x-boundary\r\n" + b"a: " + b"b" * 100_000
    yield Request("POST", path, head, {"content-type": kind})
    yield Request("POST", path, b"--x-boundary\r\n" + b"a: b\r\n" * 5000, {"content-type": kind})
    for other in ("/component_server", "/process_recording", "/queue/join", "/call/generate"):
        yield Request("POST", f"{API}{other}", good, {"content-type": kind})
    yield Request("POST", f"{path}?upload_id={'x' * 3000}", good, {"content-type": kind})


def oversized() -> Iterator[Request]:
    """More than is taken, said beforehand or not."""
    _, kind = form({})
    for path in (f"{API}/queue/join", f"{API}/upload", "/login", f"{API}/component_server"):
        headers = {"content-type": kind if path.endswith("upload") else JSON["content-type"]}
        yield Request("POST", path, b"x" * 3 * 2**20, headers)
        yield Request("POST", path, [b" " * 2**18] * 8, headers)
    start = form({"files": ("a.bin", b"")})[0].removesuffix(b"\r\n--x-boundary--\r\n")
    yield Request("POST", f"{API}/upload", [start, *[bytes(2**20)] * 62], {"content-type": kind})
    yield Request("GET", "/?" + "x" * 60_000)
    yield Request("GET", "/", headers={"x": "y" * 60_000})
    yield Request("GET", "/config", headers={f"x-{n}": "y" for n in range(90)})


def odd_headers() -> Iterator[Request]:
    for headers in (
        {"host": "evil.example"}, {"host": "127.0.0.1:1@evil"}, {"host": ""}, {"origin": "https://evil.example"}, {"origin": "null"},
        {"x-forwarded-host": "evil.example", "x-forwarded-proto": "gopher"}, {"x-forwarded-for": "1.2.3.4, ../../x"},
        {"cookie": "access-token=" + "x" * 4000}, {"cookie": "=;;;=\xff"}, {"authorization": "Basic !!!"}, {"authorization": "Bearer x"},
        {"range": "bytes=0-99999999999,5-1"}, {"if-none-match": "*"}, {"accept-encoding": "br;q=x"}, {"accept-language": "../../x"},
        {"expect": "100-continue"}, {"upgrade": "websocket", "connection": "upgrade"}, {"content-encoding": "gzip"}, {"te": "x"},
        {"x-gradio-target": "../"}, {"referer": "javascript:alert(1)"}, {"content-length": "0"}, {"x-ip-token": "x"},
    ):  # fmt: skip
        for path in ("/", "/config", f"{API}/queue/join"):
            method = "POST" if path.endswith("join") else "GET"
            yield Request(method, path, headers=headers)


NO_HTTP = (
    b"\0\0\0\0", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-x\r\n",
    b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", b"GET http://evil.example/ HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT evil.example:80 HTTP/1.1\r\nhost: x\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\na" + b"b" * 70_000,
)  # fmt: skip


# Files


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says it has this size, with these packed rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Bombs, liars and wrecks that are called pictures."""
    stream = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(stream, "JPEG", progressive=True)
    good = stream.getvalue()
    scan = good.index(b"\xff\xda")
    yield "layers.jpg", good[:scan] + good[scan:-2] * 300 + good[-2:]
    yield "exif.jpg", good[:2] + b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65527) + good[2:]
    for side in (0, 1, 9_999, 60_000, 2**31 - 1):
        yield f"liar-{side}.png", png(side, side, zlib.compress(bytes(1000)))
    yield "larger.png", png(20_000, 20_000, zlib.compress(bytes(2**20), 9))
    frames = [Image.new("L", (64, 64), grey) for grey in range(30)]
    for kind in ("GIF", "WEBP", "TIFF"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        yield f"frames.{kind.lower()}", stream.getvalue()
    yield "text.png", b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x05zTXtabc\0\0"
    yield "page.png", b"<html><script>alert(1)</script>"
    yield "pickle.png", b"\x80\x04\x95\x05\0\0\0\0\0\0\0\x8c\x01x\x94."
    for number, content in enumerate(damaged(good, chance)):
        yield f"wreck-{number}.jpg", content


def archives(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Archives that lead out, lie, overlap or unpack to very much."""
    picture = next(content for name, content in pictures(chance) if name == "wreck-3.jpg")
    for number, name in enumerate(("../../evil.png", "/var/evil.png", "C:\\evil.png", "..\\..\\evil.png", "a/../../evil.png", "\x1b[31m.png", "a\0b.png", "x" * 5000 + ".png")):  # fmt: skip
        yield f"path-{number}.zip", zip_bytes({name: picture})
    yield "bomb.zip", zip_bytes({f"{n}.png": bytes(4 * 2**20) for n in range(4)})
    yield (
        "nested.zip",
        zip_bytes({"a.zip": zip_bytes({"b.zip": zip_bytes({"c.png": picture})}), "a.png": zip_bytes({})}),
    )
    yield "many.zip", zip_bytes({f"{n}.png": b"" for n in range(2500)}, zipfile.ZIP_STORED)
    yield "overlapping.zip", overlapping(bytes(2**20), 40)
    good = zip_bytes({"a.jpg": picture, "a.txt": b"[trigger]"})
    for number, content in enumerate(damaged(good, chance)):
        yield f"wreck-{number}.zip", content
    yield "empty.zip", b"PK\x05\x06" + bytes(18)
    yield "no.zip", b"PK" + chance.randbytes(5000)


def overlapping(content: bytes, copies: int) -> bytes:
    """One packed content under many names."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", content)
        (entry,) = archive.infolist()
        for number in range(1, copies):
            twin = zipfile.ZipInfo(f"{number}.png")
            for name in (
                "compress_type",
                "compress_size",
                "file_size",
                "CRC",
                "header_offset",
                "external_attr",
            ):
                setattr(twin, name, getattr(entry, name))
            archive.filelist.append(twin)
    return stream.getvalue()
