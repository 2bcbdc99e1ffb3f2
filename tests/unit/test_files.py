import contextvars
import errno
from functools import partial
from pathlib import Path

import pytest

from isengard import files
from isengard.errors import DiskFull, DiskReadOnly, LeaseLost


def left_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_whole_and_its_folder_made(tmp_path):
    files.write_text(tmp_path / "new" / "a.txt", "ä")
    files.write_bytes(tmp_path / "new" / "b.bin", b"\x00")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ä"
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"\x00"
    assert left_in(tmp_path / "new") == ["a.txt", "b.bin"]


def test_a_file_takes_the_place_of_another(tmp_path):
    files.write_text(tmp_path / "a.txt", "old")
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("old", "new"):
        with files.replacing(tmp_path / "run") as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / name).write_text(name)
    assert left_in(tmp_path / "run" / "deep") == ["new"]


@pytest.mark.parametrize("folder", [True, False])
def test_when_writing_fails_the_old_stays_and_nothing_is_left(tmp_path, folder):
    files.write_text(tmp_path / "a", "old")

    def fail_half_way():
        with files.replacing(tmp_path / "a") as temporary:
            if folder:
                temporary.mkdir()
                temporary = temporary / "part"
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert left_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def hidden(cause):
    """As torch and safetensors tell of a full disk."""
    try:
        raise cause
    except OSError:
        raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904


def test_a_full_disk_is_seen_behind_the_error_of_a_library(tmp_path):
    with pytest.raises(DiskFull), files.disk_full_as_error(tmp_path):
        hidden(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DiskFull), files.disk_full_as_error(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="unexpected pos"), files.disk_full_as_error(tmp_path):
        hidden(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(DiskFull, match="as it was"), files.disk_full_as_error(tmp_path):
        raise DiskFull("as it was")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_plain_words(tmp_path, number):
    with (
        pytest.raises(DiskFull, match=r"no space left .*a\.txt.*free some space"),
        files.replacing(tmp_path / "a.txt"),
    ):
        raise OSError(number, "full")
    assert left_in(tmp_path) == []


def test_a_read_only_disk_is_said_in_plain_words(tmp_path):
    with (
        pytest.raises(DiskReadOnly, match=r"a\.txt cannot be written: its disk is read-only; mount it"),
        files.replacing(tmp_path / "a.txt"),
    ):
        raise OSError(errno.EROFS, "Read-only file system")


def test_what_cannot_be_cleaned_up_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def no(*_anything, **_more):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", no)
    monkeypatch.setattr(Path, "write_text", no)
    with pytest.raises(DiskReadOnly, match="is read-only"):
        files.write_text(tmp_path / "a.txt", "text")


def test_a_lock_that_cannot_be_made_on_a_full_disk_is_said_so():
    class Full:
        lock_file = "locks/characters"

        def acquire(self, *, timeout):
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(DiskFull, match="locks/characters"), files.alone(Full(), "characters"):
        pass


def test_what_was_prepared_beside_takes_its_place_whole(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "made" / name).mkdir(parents=True)
        (tmp_path / "made" / name / "x").write_text(name)
    files.adopt(tmp_path / "made", tmp_path)
    assert left_in(tmp_path) == ["a", "b"]
    assert (tmp_path / "b" / "x").read_text() == "b"


def test_another_error_of_the_system_stays_itself(tmp_path):
    with pytest.raises(PermissionError), files.replacing(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "no")


def test_sweep_removes_what_a_killed_process_left_and_nothing_else(tmp_path):
    (tmp_path / f"a.txt{files.PARTIAL}1234").write_text("half")
    (tmp_path / f"run{files.PARTIAL}1234").mkdir()
    (tmp_path / f"run{files.PARTIAL}1234" / "x").write_text("half")
    (tmp_path / "keep.txt").write_text("whole")
    assert files.sweep(tmp_path) == 2
    assert left_in(tmp_path) == ["keep.txt"]


def refuse():
    raise LeaseLost("of another now")


def test_nothing_takes_its_place_once_the_work_is_anothers(tmp_path):
    with files.checked(refuse), pytest.raises(LeaseLost):
        files.write_text(tmp_path / "gone" / "a.txt", "late")
    assert left_in(tmp_path) == []


def ask(*answers):
    """A check that does one of these each time it is asked."""
    rest = iter(answers)
    return lambda: next(rest)()


def allow():
    pass


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_anothers_when_it_is_written_leaves_nothing(tmp_path, durable):
    files.write_text(tmp_path / "a.txt", "of the next owner")
    with (
        files.checked(ask(allow, refuse)),
        pytest.raises(LeaseLost),
        files.replacing(tmp_path / "a.txt", durable=durable) as path,
    ):
        path.write_text("late")
    assert left_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "of the next owner"


def test_what_the_next_owner_has_swept_away_is_not_a_missing_file(tmp_path):
    with files.checked(ask(allow, refuse)), pytest.raises(LeaseLost), files.replacing(tmp_path / "a.txt"):
        pass  # nothing is there to take its place


def test_a_rename_held_up_until_the_next_owner_has_swept_finds_nothing_to_move(tmp_path):
    files.write_text(tmp_path / "a.txt", "of the next owner")
    taken_over = partial(files.sweep, tmp_path)
    with (
        files.checked(ask(allow, lambda: contextvars.Context().run(taken_over), refuse)),
        pytest.raises(LeaseLost),
        files.replacing(tmp_path / "a.txt") as path,
    ):
        path.write_text("late")
    assert left_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "of the next owner"
