"""A small stand-in for AI-Toolkit's repository, made with git on this machine."""

import subprocess
from pathlib import Path

from isengard.store.ai_toolkit import NEEDED, Checkout


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as nobody in particular; what it said."""
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def repository(folder: Path) -> list[str]:
    """A repository with the files that a training needs, and one commit more; both commits, the older first."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    for number in range(120):  # from 100 objects on git says how far it is
        (folder / f"{number}.txt").write_text(str(number))
    commits = []
    for number in range(2):
        (folder / "version.py").write_text(f"VERSION = {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"version {number}")
        commits.append(git(folder, "rev-parse", "HEAD"))
    return commits


def whole(folder: Path, **options: object) -> Checkout:
    """A checkout at the pinned commit that lacks nothing."""
    pinned = repository(folder)[1]
    asked = folder.parent / "no-packages.txt"
    asked.write_text("pydantic>=2\n")
    values = {"owned": True, "lock": folder.parent / "install.lock", "commit": pinned, "requirements": asked}
    return Checkout(folder, **{**values, **options})  # type: ignore[arg-type]
