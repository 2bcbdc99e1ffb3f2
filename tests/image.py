"""What the Dockerfile says, and what of this folder gets into the image."""

import json
import re
import shlex
import shutil
from pathlib import Path

from docker.utils.build import exclude_paths

from isengard.settings import ROOT

DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with what follows it, on one line."""
    lines = (line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in whole.splitlines() if line)]


def all_of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def one(name: str) -> str:
    (found,) = all_of(name)
    return found


def commands() -> list[list[str]]:
    """The programs that RUN starts, with their arguments."""
    return [shlex.split(command) for line in all_of("RUN") for command in line.split(" && ")]


def variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in all_of("ENV") for pair in shlex.split(line))


def health_check() -> list[str]:
    """The command, without "python"."""
    program, *arguments = json.loads(one("HEALTHCHECK").partition(" CMD ")[2].strip())
    assert program == "python"
    return [str(each) for each in arguments]


def sent(folder: Path = ROOT) -> set[Path]:
    """The files below a folder that .dockerignore lets through to ``COPY . .``."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    always = {
        "Dockerfile",
        ".dockerignore",
    }  # sent to the builder; BuildKit leaves them out of what is copied
    found = {Path(name) for name in exclude_paths(str(folder), patterns) if name not in always}
    return {name for name in found if (folder / name).is_file()}


def copy_to(target: Path) -> None:
    """Make the folder that the image's ``/app`` is."""
    for name in sent():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
