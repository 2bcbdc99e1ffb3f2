import errno

import pytest

from isengard import files
from isengard.errors import DiskFull


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_plain_words(tmp_path, number):
    with (
        pytest.raises(DiskFull, match=r"no space left .*a\.txt.*free some space"),
        files.replacing(tmp_path / "a.txt"),
    ):
        raise OSError(number, "full")
    assert left_in(tmp_path) == []


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
