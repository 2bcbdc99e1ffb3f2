"""Measuring in fresh processes, and showing what came out."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def fresh(module: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Any:
    """Run ``python -m module arguments`` and return the JSON it printed last; a failure ends the benchmark with its output.

    ``environment``: of this process when None.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(  # noqa: S603  # our own modules
        command, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def shown(table: Table, *, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
