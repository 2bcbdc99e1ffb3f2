"""An HTTP server on this machine that keeps what it is sent and answers as it is told."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """``answers``: a status for each request, or a status with its headers and JSON; the last one holds on."""

    def __init__(self, *answers):
        self.answers, self.requests, self.came = list(answers or [200]), [], threading.Event()

    @property
    def messages(self):
        return [message for _, _, message in self.requests]

    def take(self, path, headers, body):
        self.requests.append((path, headers, json.loads(body) if body else None))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.came.set()
        return answer if isinstance(answer, tuple) else (answer, {}, None)


@contextmanager
def receiving(*answers):
    receiver = Receiver(*answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, said = receiver.take(
                self.path, {name.lower(): value for name, value in self.headers.items()}, body
            )
            content = b"" if said is None else json.dumps(said).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
