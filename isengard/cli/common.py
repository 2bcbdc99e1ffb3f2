"""What every command shares: the application, the two consoles, and how an error ends."""

import json
from typing import Any

import typer
from rich.console import Console

from isengard.settings import Settings
from isengard.wiring import Application, build

#: Results go to stdout, where a script can read them; progress and advice go to stderr. No markup: captions and titles
#: hold brackets ("[trigger]", "FLUX.1 [dev]") that are not ours.
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def application(context: typer.Context) -> Application:
    """Build the services for one command; ``context.obj`` holds the settings of the main callback."""
    settings: Settings = context.obj
    return build(settings)


def print_json(value: Any) -> None:
    """Write one JSON document to stdout for ``--json``."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
