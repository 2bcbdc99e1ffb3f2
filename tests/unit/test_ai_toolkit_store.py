"""What is found of AI-Toolkit, and how it is fetched; from a repository made here, never from the network."""

import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from filelock import FileLock

from isengard.errors import Conflict, DiskFull, InstallFailed, JobCancelled
from isengard.files import PARTIAL
from isengard.store import ai_toolkit, child
from isengard.store.ai_toolkit import COMMIT, NEEDED, OURS, PACKAGES, REPOSITORY, Checkout, Matter, Stage
from isengard.store.git_files import read_commit
from isengard.store.packages import packages
from tests.checkouts import git, repository, whole


@pytest.fixture
def source(tmp_path):
    """A repository to fetch from, its address and its two commits."""
    older, newer = repository(tmp_path / "source")
    return (tmp_path / "source").as_uri(), older, newer


class Pip:
    """Runs git as it is, and only notes what pip was asked; ``code`` and ``words``: how it ends."""

    def __init__(self, requirements):
        self.requirements, self.commands, self.code, self.words = requirements, [], 0, ()

    def __call__(self, command, *, said):
        if "pip" not in command:
            return child.run(command, said=said)
        self.commands.append(list(command))
        for word in self.words:
            said(word)
        if not self.code:
            self.requirements.write_text("pydantic>=2\n")  # now nothing is missing
        return self.code


@pytest.fixture
def pip(tmp_path):
    (tmp_path / "list.txt").write_text("# odd\nno-such-package-xyz>=1,<2\npydantic>=2\n")
    return Pip(tmp_path / "list.txt")


@pytest.fixture
def make(tmp_path, source, pip):
    """A checkout in the data folder that is fetched from the repository made here."""

    def make(**options):
        address, older, _ = source
        values = {"owned": True, "repository": address, "commit": older, "run": pip, **options}
        path = values.pop("path", tmp_path / "data" / "ai-toolkit")
        return Checkout(
            path, lock=tmp_path / "data" / "install.lock", requirements=pip.requirements, **values
        )

    return make


def quiet(stage, fraction, message):
    pass


# Which commit


def test_the_commit_of_a_branch_a_detached_head_and_packed_refs_is_read(tmp_path):
    older, newer = repository(tmp_path / "r")
    assert read_commit(tmp_path / "r") == newer
    git(tmp_path / "r", "pack-refs", "--all")
    assert read_commit(tmp_path / "r") == newer
    git(tmp_path / "r", "checkout", "--quiet", "--detach", older)
    assert read_commit(tmp_path / "r") == older


def test_the_commit_of_a_linked_worktree_is_read(tmp_path):
    older, _ = repository(tmp_path / "r")
    git(tmp_path / "r", "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "linked"), older)
    assert read_commit(tmp_path / "linked") == older
    git(tmp_path / "r", "pack-refs", "--all")
    assert read_commit(tmp_path / "linked") == older


@pytest.mark.parametrize("head", [None, "", "nonsense", "ref: refs/heads/unborn", "abc123"])
def test_files_that_do_not_say_the_commit_give_none(tmp_path, head):
    if head is not None:
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "HEAD").write_text(head)
    assert read_commit(tmp_path) is None


# What is here


def test_the_pin_is_a_whole_commit_of_the_public_repository():
    assert len(COMMIT) == 40
    assert REPOSITORY == "https://github.com/ostris/ai-toolkit"


def test_our_list_asks_for_the_opencv_without_a_desktop_and_the_torchvision_of_our_torch():
    asked = {package.name: package.wanted for package in packages(PACKAGES)}
    ours = {package.name for package in packages(OURS)}
    assert "opencv-python-headless" in ours
    assert "opencv-python" not in asked.keys() | ours
    assert asked["torchvision"] == "torchvision==0.28.0"
    assert not asked.keys() & ours


def test_nothing_there_is_said_with_the_way_to_get_it(make):
    state = make().state()
    assert (state.present, state.usable, state.commit, state.matter) == (False, False, None, Matter.ABSENT)
    assert state.reason == "AI-Toolkit is not installed; get it with: python -m isengard ai-toolkit install"


def test_a_given_folder_without_ai_toolkit_is_said_with_its_variable(make, tmp_path):
    state = make(path=tmp_path, owned=False).state()
    assert (
        f"{tmp_path} holds no AI-Toolkit (info.py is missing there); point ISENGARD_AI_TOOLKIT"
        in state.reason
    )


@pytest.mark.parametrize("name", NEEDED)
def test_a_checkout_that_lacks_a_file_is_not_present(tmp_path, name):
    checkout = whole(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    assert not checkout.state().present


def test_a_whole_checkout_is_usable_and_there_is_nothing_to_say(tmp_path):
    state = whole(tmp_path / "a").state()
    assert (state.usable, state.is_pinned, state.matter, state.reason) == (True, True, "", "")


def test_missing_packages_are_named_and_make_it_unusable(make, tmp_path, source):
    state = make(path=tmp_path / "source", commit=source[2]).state()
    assert (state.present, state.usable, state.missing) == (True, False, ("no-such-package-xyz",))
    assert "lacks packages (no-such-package-xyz is not installed); get them with: python -m" in state.reason


def test_another_commit_is_usable_and_said(tmp_path):
    state = whole(tmp_path / "a", commit="f" * 40).state()
    assert (state.usable, state.is_pinned, state.matter) == (True, False, Matter.COMMIT)
    assert (
        f"is at commit {state.commit[:10]}, and Isengard is made for ffffffffff; get that with: "
        in state.reason
    )
    given = whole(tmp_path / "b", commit="f" * 40, owned=False)
    assert given.state().reason.endswith(f"git -C {tmp_path / 'b'} checkout {'f' * 40}")
    (tmp_path / "b" / ".git" / "HEAD").write_text("?")
    assert "is at an unknown commit" in given.state().reason


def test_looking_takes_a_few_milliseconds(tmp_path):
    checkout = whole(tmp_path / "a", requirements=PACKAGES)
    checkout.state()
    took = []
    for _ in range(20):
        began = time.perf_counter()
        checkout.state()
        took.append(time.perf_counter() - began)
    assert min(took) < 0.02


# Installing


def test_exactly_the_one_commit_is_fetched_and_then_its_packages(make, source):
    reports = []
    checkout = make()
    state = checkout.install(lambda *said: reports.append(said))
    assert (state.usable, state.is_pinned, state.commit) == (True, True, source[1])
    assert git(checkout.path, "rev-list", "HEAD", "--count") == "1"
    assert (checkout.path / "version.py").read_text() == "VERSION = 0\n"
    assert [entry.name for entry in checkout.path.parent.iterdir() if PARTIAL in entry.name] == []
    assert [stage for stage, _, _ in reports] == sorted((stage for stage, _, _ in reports), reverse=True)
    assert 1 in {fraction for stage, fraction, _ in reports if stage is Stage.SOURCE}


def test_pip_gets_our_list_and_our_own_packages_as_constraints(make, pip):
    make().install(quiet)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "--no-input" in command
    assert command[-4:] == ["-c", str(OURS), "-r", str(pip.requirements)]


def test_what_is_here_is_kept_and_only_what_is_missing_is_installed(make, pip):
    checkout = make()
    checkout.install(quiet)
    (checkout.path / "kept").touch()
    checkout.install(quiet)
    assert (checkout.path / "kept").exists()
    assert len(pip.commands) == 1
    pip.requirements.write_text("no-such-package-xyz\n")
    checkout.install(quiet)
    assert (checkout.path / "kept").exists()
    assert len(pip.commands) == 2


def test_our_own_checkout_of_another_commit_is_replaced(make, source):
    make().install(quiet)
    updated = make(commit=source[2])
    assert updated.state().matter is Matter.COMMIT
    assert updated.install(quiet).commit == source[2]


def test_a_given_checkout_gets_packages_and_is_never_touched(make, tmp_path, source, pip):
    given = make(path=tmp_path / "source", owned=False)
    state = given.install(quiet)
    assert (state.commit, state.usable, len(pip.commands)) == (source[2], True, 1)
    (tmp_path / "source" / "info.py").unlink()
    with pytest.raises(InstallFailed, match="ISENGARD_AI_TOOLKIT"):
        given.install(quiet)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_cancelled_installation_leaves_nothing_half(make, pip, stage):
    checkout = make()

    def cancel(at, fraction, message):
        if at is stage:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        checkout.install(cancel)
    assert checkout.path.exists() == (stage is Stage.PACKAGES)
    assert not list(checkout.path.parent.glob(f"*{PARTIAL}*"))
    assert not pip.commands
    assert checkout.install(quiet).usable


def test_a_fetch_that_is_interrupted_keeps_the_former_checkout(make, source):
    former = make().install(quiet)

    def cancel(at, fraction, message):
        if fraction is not None:
            raise JobCancelled

    updated = make(commit=source[2])
    with pytest.raises(JobCancelled):
        updated.install(cancel)
    assert updated.state().commit == former.commit
    assert updated.state().present


def test_what_a_killed_installation_left_is_removed_by_the_next(make):
    checkout = make()
    left = checkout.path.with_name(f"ai-toolkit{PARTIAL}0")
    other = checkout.path.with_name(f"jobs.db{PARTIAL}0")
    for folder in (left, other):
        folder.mkdir(parents=True)
    checkout.install(quiet)
    assert (left.exists(), other.exists()) == (False, True)


def test_a_commit_that_is_not_the_one_asked_for_is_refused(make, source):
    checkout = make(commit="main")
    with pytest.raises(InstallFailed, match=f"gave commit {source[2]} where main was asked for"):
        checkout.install(quiet)
    assert not checkout.path.exists()


def test_a_repository_that_is_not_there_is_said_with_gits_words(make, tmp_path):
    with pytest.raises(
        InstallFailed, match=r"git ended with code 128; run again: .*does not appear to be a git"
    ):
        make(repository=(tmp_path / "nowhere").as_uri()).install(quiet)


def failing(*words, code=1):
    """A program that says something and fails."""

    def run(command, *, said):
        for word in words:
            said(word)
        return code

    return run


def test_the_words_of_a_failure_hold_no_progress(make):
    words = ("remote: Counting objects: 100% (3/3)", "Receiving objects:  45% (1/2)", "fatal: early EOF")
    with pytest.raises(InstallFailed, match=r"It said: fatal: early EOF$"):
        make(run=failing(*words)).install(quiet)


def test_without_a_network_it_says_so(make):
    words = "fatal: unable to access 'https://github.com/': Could not resolve host: github.com"
    with pytest.raises(
        InstallFailed, match=r"is this machine connected to the internet.*Could not resolve host"
    ):
        make(run=failing(words, code=128)).install(quiet)


def test_a_full_disk_is_said_as_such(make):
    with pytest.raises(DiskFull, match="free some space"):
        make(run=failing("fatal: write error: No space left on device")).install(quiet)


def test_without_git_the_way_out_is_said(make, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallFailed, match=r"git is not installed.*apt-get install git"):
        make().install(quiet)


def test_a_failure_of_pip_shows_its_last_lines(make, pip):
    pip.code, pip.words = 1, [f"line {number}" for number in range(20)]
    with pytest.raises(
        InstallFailed, match="pip ended with code 1; nothing of Isengard was changed"
    ) as caught:
        make().install(quiet)
    assert str(caught.value).endswith("line 18\nline 19")
    assert "line 3\n" not in str(caught.value)


def test_packages_that_are_still_missing_after_pip_are_named(make):
    def idle(command, *, said):
        return child.run(command, said=said) if "pip" not in command else 0

    with pytest.raises(InstallFailed, match=r"not here yet: no-such-package-xyz; run it yourself: .* -c "):
        make(run=idle).install(quiet)


def test_two_do_not_install_at_the_same_time(make, tmp_path):
    (tmp_path / "data").mkdir()
    with (
        FileLock(tmp_path / "data" / "install.lock"),
        pytest.raises(Conflict, match="being installed already"),
    ):
        make().install(quiet)


# The other program


def test_every_line_is_heard_and_the_code_returned():
    heard = []
    program = "import sys; print('a'); print('b\\rc', file=sys.stderr); sys.exit(3)"
    assert child.run([sys.executable, "-c", program], said=heard.append) == 3
    assert sorted(filter(None, heard)) == ["a", "b", "c"]


def is_gone(pid):
    """Whether it is dead soon: the system takes a moment to end what was killed."""
    for _ in range(100):
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


def test_a_silent_program_is_killed_with_its_children_when_the_caller_wants_no_more(tmp_path):
    program = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    pids = []

    def said(line):
        if line:
            pids.append(int(line))
        elif pids:
            raise JobCancelled

    began = time.monotonic()
    with pytest.raises(JobCancelled):
        child.run([sys.executable, "-c", program], said=said)
    assert time.monotonic() - began < 30
    (pid,) = pids
    assert is_gone(pid)


def test_a_program_that_is_not_there_is_an_error_of_the_system():
    with pytest.raises(FileNotFoundError):
        child.run(["no-such-program-xyz"], said=print)


def test_the_command_for_pip_is_understood_by_pip():
    """Its options only: ``--dry-run`` with a list of what is here asks nobody."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *ai_toolkit.PIP_OPTIONS,
        "--dry-run",
        "--no-index",
        "pydantic",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
