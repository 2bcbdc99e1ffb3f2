"""Whether a folder can be the data folder of several machines. Each check takes milliseconds and cleans up behind it."""

import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from isengard import files
from isengard.domain.base import Frozen
from isengard.errors import VolumeUnfit

#: In the root of the data folder: a word that tells it from all others.
VOLUME_ID = "volume-id"
MOUNTS = Path("/proc/self/mountinfo")
#: Their locks end at the machine, or their renames copy.
UNFIT = ("sshfs", "s3fs", "gcsfuse", "goofys", "rclone", "mountpoint-s3", "blobfuse", "davfs")
#: Mount options that keep `flock` on the machine. Source: nfs(5), mount.cifs(8), mount.lustre(8).
LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=flock", "nobrl", "localflock"}
#: Ends by a signal when all is well: kept out of the first file, and dead with the lock of the second.
OTHER_PROCESS = """
import fcntl, os, signal, sys
first, second = (os.open(name, os.O_RDWR) for name in sys.argv[1:])
try:
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
except (BlockingIOError, PermissionError):
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3)
"""
NOT_KEPT_OUT = 3
#: For the lock of a process that is dead.
RELEASE_S = 2.0
WAY_OUT = "put ISENGARD_DATA_DIR on another file system; docs/several-machines.md says which are fit"


class Mount(Frozen):
    """What a folder lies on."""

    point: Path
    root: str
    kind: str
    source: str
    options: frozenset[str]

    @property
    def words(self) -> str:
        return f"{self.kind} ({self.source})"


def mount_of(folder: Path, *, mounts: Path = MOUNTS) -> Mount | None:
    """The mount that holds a folder; None where the system does not tell. Source: proc_pid_mountinfo(5)."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found: tuple[int, Mount] | None = None
    for line in lines:
        about, _, beyond = line.partition(" - ")
        point = Path(_unescaped(about.split(" ")[4]))
        if not folder.resolve().is_relative_to(point) or (found and len(point.parts) < found[0]):
            continue
        kind, source, options = beyond.split(" ")[:3]
        words = frozenset((about.split(" ")[5] + "," + options).split(","))
        root = _unescaped(about.split(" ")[3])
        mount = Mount(point=point, root=root, kind=kind, source=_unescaped(source), options=words)
        found = len(point.parts), mount
    return found[1] if found else None


def check_file_system(folder: Path, *, mounts: Path = MOUNTS) -> str:
    """What the folder lies on, as far as the system tells. Raises: VolumeUnfit: known not to work between machines."""
    mount = mount_of(folder, mounts=mounts)
    if mount is None:
        return "unknown"
    said = f"{mount.kind} {mount.source}"
    if "fuse" in mount.kind and any(name in said for name in UNFIT):
        raise VolumeUnfit(f"{folder} is on {mount.words}, whose locks end at this machine; {WAY_OUT}")
    if local := sorted(mount.options & LOCAL_LOCKS):
        raise VolumeUnfit(
            f"{folder} is on {mount.words}, mounted with {local[0]}: its locks end at this machine;"
            " mount it without that option"
        )
    return mount.words


def check_locking(folder: Path, *, other: str = OTHER_PROCESS) -> str:
    """See that a lock keeps another process out, and ends with the process that holds it.

    ``other``: a Python program that is given two files, see `OTHER_PROCESS`. Raises: VolumeUnfit.
    """
    with _trying(folder) as place:
        first, second = (FileLock(place / name, timeout=0, fallback_to_soft=False) for name in "ab")
        with first, second:
            pass  # the files are there now
        with first:
            command = [sys.executable, "-I", "-S", "-c", other, first.lock_file, second.lock_file]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # ours
        if done.returncode == NOT_KEPT_OUT:
            raise VolumeUnfit(f"a lock on a file in {folder} does not keep other processes out; {WAY_OUT}")
        if done.returncode >= 0:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise VolumeUnfit(f"files in {folder} cannot be locked ({reason}); {WAY_OUT}")
        try:
            second.acquire(timeout=RELEASE_S)
        except Timeout:
            raise VolumeUnfit(
                f"a lock on a file in {folder} outlives the process that held it; {WAY_OUT}"
            ) from None
        second.release()
    return "hold between processes, and end with them"


def check_replacing(folder: Path, *, write: Callable[[Path, str], None] = files.write_text) -> str:
    """See that a file that is open can be replaced whole, and a folder, too. Raises: VolumeUnfit."""
    with _trying(folder) as place:
        path = place / "file"
        write(path, "old")
        with path.open(encoding="utf-8") as opened:
            write(path, "new")
            seen = (opened.read(), path.read_text(encoding="utf-8"))
        if seen != ("old", "new"):
            raise VolumeUnfit(
                f"a file in {folder} that is replaced while it is open reads {seen[0]!r} and {seen[1]!r}, not"
                f" 'old' and 'new'; {WAY_OUT}"
            )
        for name in ("old", "new"):
            with files.replacing(place / "folder") as temporary:
                temporary.mkdir()
                (temporary / name).touch()
    return "are whole, and synced to the disk"


def clock_ahead(folder: Path, *, clock: Callable[[], float] = time.time) -> float:
    """By how many seconds the times of new files are ahead of this machine's clock."""
    with _trying(folder) as place:
        path = place / "file"
        path.write_text("now", encoding="utf-8")
        return path.stat().st_mtime - clock()


def identity(folder: Path) -> str:
    """The word that tells this data folder from all others, drawn where it has none yet.

    It is created exclusively: the server of a network file system is asked, whatever this machine remembers of the folder.
    """
    path = folder / VOLUME_ID
    with _explained(folder), FileLock(folder / f".{VOLUME_ID}.lock", timeout=60):
        with suppress(FileExistsError):
            path.open("x").close()
        if not path.read_text(encoding="utf-8").strip():
            files.write_text(path, secrets.token_hex(8) + "\n")
        return path.read_text(encoding="utf-8").strip()


def read_identity(folder: Path) -> str:
    """What `identity` has written; empty when it cannot be read."""
    try:
        return (folder / VOLUME_ID).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@contextmanager
def _trying(folder: Path) -> Iterator[Path]:
    """A folder to try something in. Raises: VolumeUnfit, instead of what the system says."""
    place = folder / f"volume-check{files.PARTIAL}{secrets.token_hex(4)}"
    with _explained(folder):
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VolumeUnfit(
            f"{folder} cannot be used as its data folder has to be ({error}); see that it is mounted and may be"
            f" written, or {WAY_OUT}"
        ) from error


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), field)
