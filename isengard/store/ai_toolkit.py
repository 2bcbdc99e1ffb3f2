"""AI-Toolkit on this machine: a checkout of one commit and the packages it imports. It is no package itself."""

import importlib
import logging
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from isengard.domain.base import Frozen
from isengard.errors import Conflict, DiskFull, InstallFailed
from isengard.files import replacing, sweep
from isengard.settings import ROOT
from isengard.store import child
from isengard.store.git_files import read_commit
from isengard.store.packages import Package, packages

log = logging.getLogger(__name__)

REPOSITORY = "https://github.com/ostris/ai-toolkit"
#: Of 2026-08-21, version 0.12.26: the one that our engine was written for and tested with.
COMMIT = "27a03a91f23eb1b757d5ec2e80ee3e129cfcc350"
PACKAGES = ROOT / "requirements-ai-toolkit.txt"
#: What pip may not replace.
OURS = ROOT / "requirements.txt"
INSTALL = "python -m isengard ai-toolkit install"
#: Without these a folder holds no AI-Toolkit that can train.
NEEDED = (
    "info.py",
    "version.py",
    "jobs/BaseJob.py",
    "toolkit/config_modules.py",
    "extensions_built_in/sd_trainer/SDTrainer.py",
)
PIP_OPTIONS = ("--no-input", "--disable-pip-version-check", "--progress-bar", "off")
#: git's progress: ``Receiving objects:  45% (230/510)``.
RECEIVED = re.compile(r"Receiving objects:\s+(\d+)%")
PROGRESS = re.compile(r"\d+% \(\d+/\d+\)")
NO_NETWORK = re.compile(
    r"[Cc]ould not resolve host|[Ff]ailed to connect|name resolution|Network is unreachable"
)
#: Lines of a failed program's output that are worth showing.
LAST_LINES = 8


class Stage(StrEnum):
    """What an installation is doing, in this order."""

    SOURCE = "source"
    PACKAGES = "packages"


#: Told the stage, the share of it that is done (None when unknown) and a few words, several times a second. What it
#: raises ends the installation at once.
Report = Callable[[Stage, float | None, str], None]


class Matter(StrEnum):
    """What is the matter with a checkout, the worst first."""

    ABSENT = "absent"
    PACKAGES = "packages"
    COMMIT = "commit"  # works perhaps, but was never tested
    NONE = ""


class CheckoutState(Frozen):
    """What was found of AI-Toolkit."""

    path: Path
    owned: bool
    lacking: tuple[str, ...]
    commit: str | None
    pinned: str
    packages: tuple[Package, ...]

    @property
    def present(self) -> bool:
        return not self.lacking

    @property
    def is_pinned(self) -> bool:
        return self.commit == self.pinned

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the packages that are not here, or not in a version that fits."""
        return tuple(package.name for package in self.packages if not package.fits)

    @property
    def usable(self) -> bool:
        return self.present and not self.missing

    @property
    def matter(self) -> Matter:
        if not self.present:
            return Matter.ABSENT
        if self.missing:
            return Matter.PACKAGES
        return Matter.NONE if self.is_pinned else Matter.COMMIT

    @property
    def reason(self) -> str:
        """What is the matter and the way out, in a sentence for a person; empty when nothing is."""
        match self.matter:
            case Matter.ABSENT if self.owned:
                return f"AI-Toolkit is not installed; get it with: {INSTALL}"
            case Matter.ABSENT:
                return (
                    f"{self.path} holds no AI-Toolkit ({self.lacking[0]} is missing there); point ISENGARD_AI_TOOLKIT"
                    f" at a checkout of it, or leave it empty and run: {INSTALL}"
                )
            case Matter.PACKAGES:
                complaints = ", ".join(package.complaint for package in self.packages if not package.fits)
                return f"AI-Toolkit lacks packages ({complaints}); get them with: {INSTALL}"
            case Matter.COMMIT:
                found = f"at commit {self.commit[:10]}" if self.commit else "at an unknown commit"
                way = INSTALL if self.owned else f"git -C {self.path} checkout {self.pinned}"
                return f"AI-Toolkit is {found}, and Isengard is made for {self.pinned[:10]}; get that with: {way}"
        return ""


class Checkout:
    """Looks at a checkout of AI-Toolkit, and makes it whole."""

    def __init__(
        self,
        path: Path,
        *,
        owned: bool,
        lock: Path,
        repository: str = REPOSITORY,
        commit: str = COMMIT,
        requirements: Path = PACKAGES,
        run: child.Run = child.run,
    ) -> None:
        """``owned``: may be replaced. Of another's checkout only the packages are installed. ``lock``: a file."""
        self.path = path
        self.owned = owned
        self._lock = lock
        self._repository = repository
        self._commit = commit
        self._requirements = requirements
        self._run = run

    def state(self) -> CheckoutState:
        """Look at files only: takes a few milliseconds."""
        lacking = tuple(name for name in NEEDED if not (self.path / name).is_file())
        return CheckoutState(
            path=self.path,
            owned=self.owned,
            lacking=lacking,
            commit=read_commit(self.path),
            pinned=self._commit,
            packages=packages(self._requirements),
        )

    def install(self, report: Report) -> CheckoutState:
        """Fetch the one commit and install what it imports; what is here already stays.

        Killed at any moment it leaves the former checkout or none, never half of one.

        Raises:
            Conflict: an installation is running already, maybe in another process.
            InstallFailed: says which step, what the program said, and what to do.
            DiskFull: no room for it.
        """
        with self._alone():
            state = self.state()
            if not state.present and not self.owned:
                raise InstallFailed(state.reason)
            if self.owned and not (state.present and state.is_pinned):
                self._fetch(report)
            if self.state().missing:
                self._install_packages(report)
            state = self.state()
        log.info("ai-toolkit installed", extra={"path": str(self.path), "commit": state.commit})
        return state

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Conflict("AI-Toolkit is being installed already; wait until that has ended") from None
        try:
            yield
        finally:
            lock.release()

    def _fetch(self, report: Report) -> None:
        git = shutil.which("git")
        if git is None:
            raise InstallFailed(
                "git is not installed, and AI-Toolkit is fetched with it; install git (Debian: apt-get install git),"
                " or point ISENGARD_AI_TOOLKIT at a checkout"
            )
        sweep(self.path.parent, self.path.name)
        with replacing(self.path) as folder:
            for command in (
                ["init", "--quiet", str(folder)],
                ["-C", str(folder), "fetch", "--progress", "--no-tags", "--depth=1", self._repository, self._commit],
                ["-C", str(folder), "checkout", "--quiet", "--detach", "FETCH_HEAD"],
            ):  # fmt: skip
                self._do([git, *command], report, Stage.SOURCE)
            found = read_commit(folder)
            if found != self._commit:
                raise InstallFailed(
                    f"{self._repository} gave commit {found} where {self._commit} was asked for; nothing was changed"
                )

    def _install_packages(self, report: Report) -> None:
        """The packages of our list; pip refuses rather than replaces what Isengard itself runs on."""
        lists = ["-c", str(OURS), "-r", str(self._requirements)]
        self._do([sys.executable, "-m", "pip", "install", *PIP_OPTIONS, *lists], report, Stage.PACKAGES)
        importlib.invalidate_caches()  # this process goes on, and has to find them
        if missing := self.state().missing:
            raise InstallFailed(
                f"pip has ended, but not here yet: {', '.join(missing)}; run it yourself: {sys.executable} -m pip"
                f" install -c {OURS} -r {self._requirements}"
            )

    def _do(self, command: Sequence[str], report: Report, stage: Stage) -> None:
        """Run one program to its end. Raises: InstallFailed, DiskFull, and what ``report`` raises."""
        heard: deque[str] = deque(maxlen=LAST_LINES)
        share: float | None = None
        last = ""

        def said(line: str) -> None:
            nonlocal share, last
            last = line.strip() or last
            if received := RECEIVED.match(line):
                share = int(received[1]) / 100
            elif line and not PROGRESS.search(line):
                heard.append(line)
            report(stage, share, last)

        said("")
        code = self._run(command, said=said)
        if code:
            raise _failure(command, code, "\n".join(heard))


def _failure(command: Sequence[str], code: int, said: str) -> DiskFull | InstallFailed:
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return DiskFull("no space left on the disk for AI-Toolkit; free some space and install it again")
    what = "pip" if "pip" in command else "git"
    log.info("install step failed", extra={"program": what, "code": code, "said": said})
    if NO_NETWORK.search(said):
        advice = "is this machine connected to the internet?"
    elif what == "pip":
        advice = f"nothing of Isengard was changed; mend it and run again: {INSTALL}"
    else:
        advice = f"run again: {INSTALL}"
    return InstallFailed(f"{what} ended with code {code}; {advice} It said: {said or 'nothing'}")
