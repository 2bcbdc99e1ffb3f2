"""A Hugging Face hub of our own on the loopback: enough of its API for huggingface_hub, and every way to misbehave.

As a program it serves a folder of repositories until it is killed: ``python -m tests.fake_hub FOLDER PORT``.
"""

import hashlib
import json
import re
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
#: Larger files are "LFS": they have a sha256, and are served from another address.
LFS_FROM = 1000


class FakeHub:
    """Its repositories are dictionaries of path and content; the other attributes are how it misbehaves."""

    def __init__(self, port=0):
        self.repositories, self.tokens = {}, {}  # a token, and the gated repositories it may have
        self.gated = set()
        self.drops = {}  # path: after how many bytes of each answer the connection breaks, one answer after the other
        self.wrong, self.fails = set(), []  # paths whose bytes are changed; statuses of the next answers
        self.pause_s = 0.0  # before each block
        self.knows_ranges, self.gone = True, False
        self.asked, self.bearers = [], []  # (path, first byte) of each file; the tokens the file server saw
        self._servers = [ThreadingHTTPServer(("127.0.0.1", each), Answers) for each in (port, 0)]
        for server in self._servers:
            server.hub, server.daemon_threads = self, True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url, self.files_url = (f"http://127.0.0.1:{each.server_port}" for each in self._servers)

    def close(self):
        self.gone = True
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name, folder):
        self.repositories[name] = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    def starts(self, path):
        """From which byte on a file was asked for, in order."""
        return [start for asked, start in self.asked if asked == path]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.hub

    def do_GET(self):
        if self.hub.gone:  # a connection that was kept open
            self.close_connection = True
            return None
        path = self.path.split("?")[0]
        if self.hub.fails:
            return self.refuse(self.hub.fails.pop(0), "", "server in trouble")
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        for pattern, answer in (
            (r"/api/whoami-v2", self.whoami),
            (r"/api/models/([^/]+/[^/]+)/auth-check", self.auth_check),
            (r"/api/models/([^/]+/[^/]+)", self.info),
            (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.resolve),
            (r"/lfs/([^/]+/[^/]+)/(.+)", self.content),
        ):
            if found := re.fullmatch(pattern, path):
                return answer(token, *found.groups())
        return self.refuse(404, "", "Not found")

    def do_HEAD(self):
        self.do_GET()

    def whoami(self, token):
        if token not in self.hub.tokens:
            return self.refuse(401, "", "Invalid user token.")
        return self.say({"name": "ada"})

    def auth_check(self, token, name):
        return self.say({}) if self.may(token, name) else None

    def info(self, token, name):
        if name not in self.hub.repositories:
            return self.refuse(401 if not token else 404, "RepoNotFound", "Repository not found")
        files = self.hub.repositories[name]
        return self.say({"id": name, "sha": COMMIT, "siblings": [described(*file) for file in files.items()]})

    def may(self, token, name):
        if name not in self.hub.gated or name in self.hub.tokens.get(token, ()):
            return True
        if token in self.hub.tokens:
            self.refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        else:
            self.refuse(401, "GatedRepo", f"Access to model {name} is restricted. You must be authenticated")
        return False

    def resolve(self, token, name, path):
        if not self.may(token, name):
            return None
        content = self.hub.repositories[name].get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if len(content) <= LFS_FROM:
            return self.content(token, name, path)
        self.send_response(302)
        self.send_header("Location", f"{self.hub.files_url}/lfs/{name}/{path}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-ETag", hashlib.sha256(content).hexdigest())
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def content(self, token, name, path):
        if self.path.startswith("/lfs/"):
            self.hub.bearers.append(token)
        content = self.hub.repositories[name][path]
        if path in self.hub.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or "")
        start = int(asked[1]) if asked and self.hub.knows_ranges else 0
        self.hub.asked.append((path, int(asked[1]) if asked else 0))
        self.send_response(206 if start else 200)
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        drops = self.hub.drops.get(path)
        end = start + drops.pop(0) if drops else len(content)
        for at in range(start, min(end, len(content)), 65536):
            time.sleep(self.hub.pause_s)
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content[at : min(at + 65536, end)])
        if end < len(content):
            self.close_connection = True
            self.wfile.flush()

    def say(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, each in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(key, each)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, code, message):
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.say({"error": message}, status, **{key: each for key, each in headers.items() if each})


def described(path, content):
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if len(content) <= LFS_FROM:
        return {"rfilename": path, "size": len(content), "blobId": blob}
    lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
    return {"rfilename": path, "size": len(content), "blobId": blob, "lfs": lfs}


def main():
    folder, hub = Path(sys.argv[1]), FakeHub(int(sys.argv[2]))
    options = json.loads((folder / "hub.json").read_text())
    hub.gated, hub.tokens, hub.pause_s = set(options["gated"]), options["tokens"], options["pause_s"]
    for repository in folder.glob("*/*"):
        hub.add(f"{repository.parent.name}/{repository.name}", repository)
    threading.Event().wait()


if __name__ == "__main__":
    main()
