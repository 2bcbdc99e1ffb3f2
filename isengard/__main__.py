"""``python -m isengard``."""

import io
import sys

from isengard import logs
from isengard.cli import app

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter must not end the command
            stream.reconfigure(errors="backslashreplace")
    logs.conceal_output()
    app(prog_name="python -m isengard")
