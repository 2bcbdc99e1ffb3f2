"""Real workers, each on a machine of its own as far as it can tell, whose writes are noted.

``python -m tests.e2e.watched_worker NOTES`` answers each line ``HOST URL`` with the id of a new worker process. It imports
torch once and forks: a worker starts in 0.2 s instead of 5. It ends when there are no more lines, and its workers with it.

The notes are made around Python's own `os.replace`, not by the code that is watched: for each file that took its place, a
line says when, which, and for which job and fence. They survive SIGKILL.
"""

import importlib
import json
import os
import platform
import signal
import sys
import time
from contextlib import suppress

from isengard.cli import app
from isengard.logs import bound_field
from isengard.settings import variable

#: What `equip` imports, and what the first image and the first training do.
IMPORTED_ONCE = (
    "isengard.engines.ai_toolkit.trainer",
    "isengard.engines.native.flux",
    "isengard.engines.native.flux2",
    "isengard.engines.native.sdxl",
    "isengard.engines.native.trainer",
    "isengard.engines.pipelines.verifier",
    "diffusers.pipelines.flux.pipeline_flux",
)


def work(host: str, url: str) -> None:
    sys.settrace(None)  # who is killed cannot say which lines it ran
    os.environ[variable("redis_url")] = url  # noqa: TID251  # for the settings of this process
    platform.node = lambda: host
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noting(move):
        def noted(source, target, **options):
            began_at = time.time()
            move(source, target, **options)
            if bound_field("job_id"):
                line = {
                    "at": began_at,
                    "host": host,
                    "job_id": bound_field("job_id"),
                    "fence": bound_field("fence"),
                    "path": str(target),
                }
                os.write(descriptor, json.dumps(line).encode() + b"\n")

        return noted

    os.replace, os.rename = noting(os.replace), noting(os.rename)
    app(["worker", "--parent", str(os.getppid())], prog_name="worker")


def bury(*_):
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    for module in IMPORTED_ONCE:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, bury)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            work(*line.split())
        print(pid, flush=True)  # noqa: T201
