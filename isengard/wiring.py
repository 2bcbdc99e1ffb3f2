"""Composition root: the only place that names concrete classes."""

from dataclasses import dataclass

from isengard.queue.base import JobQueue
from isengard.settings import Settings


@dataclass(frozen=True)
class Application:
    """The services behind the page and the command line."""

    settings: Settings
    queue: JobQueue


def build(settings: Settings) -> Application:
    """Wire the services. Imports no engine."""
    raise NotImplementedError(settings)
