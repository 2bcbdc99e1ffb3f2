"""Which commit a checkout is at, read from its files: quick, and without git."""

import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def read_commit(checkout: Path) -> str | None:
    """The commit that ``HEAD`` names, in full; None when the folder is no checkout or its files do not say.

    Knows a detached HEAD, branches in files of their own and in ``packed-refs``, and linked worktrees.
    """
    git_dir = _git_dir(checkout / ".git")
    said = _line(git_dir / "HEAD")
    if not said.startswith("ref: "):
        return said if _COMMIT.fullmatch(said) else None
    name = said.removeprefix("ref: ")
    for folder in (git_dir, git_dir / (_line(git_dir / "commondir") or ".")):
        if _COMMIT.fullmatch(found := _line(folder / name) or _packed(folder / "packed-refs", name)):
            return found
    return None


def _git_dir(path: Path) -> Path:
    """A linked worktree has a file there that names the folder."""
    return path.parent / _line(path).removeprefix("gitdir: ") if path.is_file() else path


def _packed(path: Path, name: str) -> str:
    lines = (line.partition(" ") for line in _text(path).splitlines())
    return next((commit for commit, _, ref in lines if ref == name), "")


def _line(path: Path) -> str:
    return (_text(path).splitlines() or [""])[0].strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
