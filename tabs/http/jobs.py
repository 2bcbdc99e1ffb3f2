"""``GET /jobs/<id>``: what programs ask again and again, at a tenth of the price of a call through Gradio's queue."""

import math
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from isengard.domain.job import Job
from isengard.errors import IsengardError, NotFound
from isengard.wiring import Application

#: Seconds for which an answer is given again; progress is written four times a second at most.
FRESH_S = 0.5
#: Jobs whose answers are kept.
REMEMBERED = 100
#: What a program may know of a job.
PUBLIC = frozenset(
    {
        "id",
        "kind",
        "status",
        "attempt",
        "created_at",
        "started_at",
        "finished_at",
        "progress",
        "result",
        "error",
    }
)


def in_public(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", include=set(PUBLIC))


class Told:
    """What was answered of each job a moment ago, so that fifty programs cost no more than one."""

    def __init__(self, app: Application, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._answers: dict[str, tuple[float, dict[str, Any]]] = {}

    def known(self, job_id: str) -> Response | None:
        """None when it has to be looked up."""
        at, content = self._answers.get(job_id, (-math.inf, {}))
        return _answer(200, content) if self._clock() - at < FRESH_S else None

    def look(self, job_id: str) -> Response:
        began = self._clock()
        try:
            content = in_public(self._app.jobs.get(job_id))
        except IsengardError as error:
            status = 404 if isinstance(error, NotFound) else 503
            return _answer(status, {"code": error.code, "detail": str(error)})
        if len(self._answers) >= REMEMBERED:
            self._answers.clear()
        self._answers[job_id] = (began, content)
        return _answer(200, content)


def _answer(status: int, content: dict[str, Any]) -> Response:
    return JSONResponse(content, status, headers={"cache-control": "no-store"})


def routes(app: Application) -> list[Route]:
    """The answer is that of the call ``/job_status``; 404 for a job that is not there, 503 while nobody can know."""
    told = Told(app)

    async def show(request: Request) -> Response:
        job_id = request.path_params["job"]
        known = told.known(job_id)
        return known if known is not None else await anyio.to_thread.run_sync(told.look, job_id)

    return [Route("/jobs/{job}", show)]
