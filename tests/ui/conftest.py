"""The page as a process of its own, as a user starts it."""

import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress

import httpx
import pytest

from isengard.settings import ROOT
from tests.waiting import until


class RunningPage:
    """``python app.py`` on a free port with a data folder."""

    def __init__(self, data_dir, *options, stderr=subprocess.PIPE):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "app.py", "--port", str(self.port), "--data-dir", str(data_dir), *options]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=stderr, text=True)

    def wait_until_it_answers(self):
        with httpx.Client(timeout=5) as client:

            def answers():
                assert self.process.poll() is None, self.process.communicate()[1]
                with suppress(httpx.TransportError):
                    return client.get(f"{self.url}/health").raise_for_status()

            until(answers, every_s=0.05)

    def end(self, number=signal.SIGTERM, seconds=20):
        """Send a signal; return the exit code and what was said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            said = self.process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, said


@contextmanager
def running_page(data_dir, *options):
    page = RunningPage(data_dir, *options)
    try:
        page.wait_until_it_answers()
        yield page
    finally:
        if page.process.returncode is None:
            page.end()


@pytest.fixture
def run_page(tmp_path):
    """``with run_page("--worker", "none") as page: ...``"""
    return lambda *options: running_page(tmp_path / "data", *options)
