"""All of it, in order."""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.routing import Route

from isengard.services.logins import Logins
from isengard.wiring import Application
from tabs.http import files, health, jobs, metrics
from tabs.http.bodies import Bodies
from tabs.http.faults import Faults
from tabs.http.headers import Guarding
from tabs.http.hosts import LocalNames, is_local
from tabs.http.limits import Limited
from tabs.http.login import LoginGate
from tabs.http.named_files import OnlyUploads
from tabs.http.origin import SameOrigin
from tabs.http.surface import Surface
from tabs.http.traffic import Observed


def middleware(app: Application, *, ours: Sequence[Route], logins: Logins | None) -> list[Middleware]:
    """Pure ASGI (Gradio streams events), the outermost first. Without ``logins`` everybody may come in.

    Args:
        app: The services.
        ours: What `routes` gave.
        logins: Who may come in.
    """
    settings = app.settings
    shared = settings.share
    return [
        Middleware(Observed),
        Middleware(Guarding, shared=shared),
        *([Middleware(LocalNames, shared=shared)] if is_local(settings.host) else []),
        Middleware(SameOrigin),
        Middleware(Limited, admission=app.admission, uploads=app.uploads),
        Middleware(Bodies),
        *([Middleware(LoginGate, logins=logins, routes=ours)] if logins else []),
        Middleware(Surface, own=ours),
        Middleware(OnlyUploads),
        Middleware(Faults),
    ]


def routes(app: Application) -> list[Route]:
    return [*health.routes(app), *files.routes(app), *metrics.routes(app), *jobs.routes(app)]
