"""Whether the page is well."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from isengard import __version__
from isengard.wiring import Application


def routes(app: Application) -> list[Route]:
    """``/health``: the process answers. ``/ready``: jobs can be done; with what is wrong, and nothing of the machine."""

    def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    def ready(_: Request) -> Response:
        checks = app.checks.look()
        well = all(check.ok for check in checks)
        told = {check.name: check.model_dump(include={"ok", "reason"}) for check in checks}
        content = {"status": "ready" if well else "not ready", "checks": told}
        return JSONResponse(content, status_code=200 if well else 503, headers={"cache-control": "no-store"})

    return [Route("/health", health), Route("/ready", ready)]
