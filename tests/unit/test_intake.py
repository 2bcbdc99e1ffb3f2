import os
import stat
import zipfile

import pytest

from isengard.domain.character import RefusedImage
from isengard.store import intake
from isengard.store.intake import Upload, count, shown, uploads
from tests.e2e.hostile_requests import overlapping
from tests.unit.character_pictures import encoded, picture, write, zipped

PNG = encoded(picture())


def taken(paths):
    """(name, caption) of what was read, and {name: reason} of what was not."""
    results = list(uploads(paths))
    read = [(result.filename, result.caption) for result in results if isinstance(result, Upload)]
    return read, {result.filename: result.reason for result in results if isinstance(result, RefusedImage)}


def test_files_are_read_in_their_order(tmp_path):
    paths = [write(tmp_path, name, name.encode()) for name in ("b.png", "a.jpg")]
    assert [(upload.filename, upload.content) for upload in uploads(paths)] == [
        ("b.png", b"b.png"),
        ("a.jpg", b"a.jpg"),
    ]


def test_a_loose_caption_goes_to_the_picture_of_its_stem(tmp_path):
    paths = [write(tmp_path, name, content) for name, content in (("1/a.png", PNG), ("2/A.txt", b"one\n"))]
    assert taken(paths) == ([("a.png", "one")], {})


def test_a_zip_gives_its_pictures_with_captions_from_all_folders(tmp_path):
    entries = {
        "top.png": PNG,
        "top.txt": "Grüße".encode(),
        "sub/deep/a.jpg": PNG,
        "sub/deep/a.txt": b"a in deep",
        "other/a.jpg": PNG,
        "pictures/b.webp": PNG,
        "captions/b.txt": b"\xef\xbb\xbfb from afar",
        "sub/c.png": PNG,
    }
    read, refused = taken([zipped(tmp_path / "a.ZIP", entries)])
    assert refused == {}
    assert dict(read) == {
        "top.png": "Grüße",
        "sub/deep/a.jpg": "a in deep",
        "other/a.jpg": "",
        "pictures/b.webp": "b from afar",
        "sub/c.png": "",
    }


def test_a_caption_beside_the_picture_goes_before_one_from_afar(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/a.txt": b"afar", "a.png": PNG, "a.txt": b"beside"})
    read, refused = taken([archive])
    assert read == [("a.png", "beside")]
    assert "nobody's caption" in refused["x/a.txt"]


def test_junk_of_operating_systems_is_passed_over(tmp_path):
    entries = {
        "__MACOSX/._a.png": b"x",
        ".DS_Store": b"x",
        "a/.hidden/b.png": b"x",
        "Thumbs.db": b"x",
        "ok.png": PNG,
    }
    assert taken([zipped(tmp_path / "a.zip", {"folder/": b""} | entries)]) == ([("ok.png", "")], {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x81\x8d", "encoding is unknown"),
        (b"a\x00b", "control character"),
        (b"x" * 5000, "at most 4000"),
        (b"x" * 70_000, "larger than 64 KB"),
    ],
)
def test_a_bad_caption_is_refused_and_its_picture_kept(tmp_path, content, reason):
    read, refused = taken([write(tmp_path, "a.png", PNG), write(tmp_path, "a.txt", content)])
    assert read == [("a.png", "")]
    assert reason in refused["a.txt"]


def test_a_caption_in_the_old_windows_encoding_is_read(tmp_path):
    paths = [write(tmp_path, "a.png", PNG), write(tmp_path, "a.txt", "café \u2013 œuvre".encode("cp1252"))]
    assert taken(paths)[0] == [("a.png", "café \u2013 œuvre")]


def test_a_caption_for_several_folders_is_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/a.png": PNG, "y/a.png": PNG, "a.txt": b"whose?"})
    assert "several folders" in taken([archive])[1]["a.txt"]


def test_only_regular_files_are_opened(tmp_path):
    good = write(tmp_path, "good.png", PNG)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(good)
    (tmp_path / "folder.png").mkdir()
    names = ["pipe.png", "link.png", "folder.png", "none.png", "nul\0.png", "good.png"]
    read, refused = taken([tmp_path / name for name in names])
    assert read == [("good.png", "")]
    assert {name: reason.split("; ")[0] for name, reason in refused.items()} == {
        "pipe.png": "it is a device, pipe or socket, not a file",
        "link.png": "it is a symbolic link",
        "folder.png": "it is a folder",
        "none.png": "there is no such file",
        "nul?.png": "the file cannot be opened (embedded null byte)",
    }


def test_a_device_is_not_opened():
    assert "device" in taken([intake.Path("/dev/zero")])[1]["zero"]


def test_a_file_over_the_limit_is_not_read_to_its_end(tmp_path):
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(intake.MAX_FILE_BYTES + 1)
    assert taken([large])[1] == {"large.png": "the file is larger than 50 MB"}


def test_names_that_lead_out_of_the_archive_are_refused(tmp_path):
    names = ["/etc/a.png", "../a.png", "x/../../a.png", "C:\\a.png", "..\\b.png", "\\\\host\\share\\a.png"]
    read, refused = taken([zipped(tmp_path / "a.zip", dict.fromkeys([*names, "ok.png"], PNG))])
    assert read == [("ok.png", "")]
    assert refused == dict.fromkeys(names, "its path leads out of the archive")


def test_links_and_devices_in_an_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, kind in (("link.png", stat.S_IFLNK), ("device.png", stat.S_IFCHR)):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (kind | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
    reason = "it is a link or a device, not a file"
    assert taken([tmp_path / "a.zip"]) == ([], {"link.png": reason, "device.png": reason})


def test_an_encrypted_entry_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.png": PNG})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in taken([path])[1]["a.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_uncommon_compression_is_refused(tmp_path, method):
    assert "uncommon" in taken([zipped(tmp_path / "a.zip", {"a.png": PNG}, method)])[1]["a.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_two_entries_with_one_name_the_first_is_taken(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PNG)
        archive.writestr("a.png", b"other")
    (first, second) = uploads([tmp_path / "a.zip"])
    assert first.content == PNG
    assert "twice" in second.reason


def test_a_zip_bomb_is_stopped_early(tmp_path):
    read, refused = taken([zipped(tmp_path / "a.zip", {"bomb.png": bytes(30 * 2**20), "ok.png": PNG})])
    assert read == [("ok.png", "")]
    assert "zip bomb" in refused["bomb.png"]


def test_files_that_share_their_bytes_are_not_read(tmp_path):
    (tmp_path / "a.zip").write_bytes(overlapping(bytes(2**20), 40))
    read, refused = taken([tmp_path / "a.zip"])
    assert (read, len(refused)) == ([], 40)
    assert set(refused.values()) == {"it shares its bytes with another file, like a zip bomb"}


def test_an_archive_behind_other_bytes_is_read(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.png": PNG, "b.png": PNG})
    path.write_bytes(b"PK" + bytes(1000) + path.read_bytes())
    assert taken([path]) == ([("a.png", ""), ("b.png", "")], {})


def test_an_entry_over_50_mb_is_refused(tmp_path):
    entries = {"a.png": os.urandom(2**16) * (51 * 16), "ok.png": PNG}
    read, refused = taken([zipped(tmp_path / "a.zip", entries, zipfile.ZIP_STORED)])
    assert (read, refused) == ([("ok.png", "")], {"a.png": "the file is larger than 50 MB"})


def test_the_whole_archive_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_UNPACKED_BYTES", 3 * len(PNG))
    read, refused = taken([zipped(tmp_path / "a.zip", {f"{n}.png": PNG for n in range(5)})])
    assert len(read) == 3
    assert all("the archive unpacks to over" in reason for reason in refused.values())


def test_too_many_entries_are_refused_at_once(tmp_path):
    path = zipped(tmp_path / "a.zip", {f"{n}.png": b"" for n in range(2001)})
    assert taken([path]) == ([], {"a.zip": "the archive holds 2001 files, more than 2000; split it"})


def test_a_giant_directory_is_not_read(tmp_path):
    path = zipped(tmp_path / "a.zip", {f"{n:05}{'x' * 200}.png": b"" for n in range(9000)})
    assert taken([path])[1] == {"a.zip": "the archive holds more than 2000 files; split it"}


def test_an_archive_with_nothing_in_it_says_so(tmp_path):
    assert taken([zipped(tmp_path / "a.zip", {})])[1] == {"a.zip": "the zip archive holds no files"}


def test_a_damaged_archive_is_refused_and_the_other_files_are_taken(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.png": PNG})
    path.write_bytes(path.read_bytes()[:-10])
    read, refused = taken([path, write(tmp_path, "ok.png", PNG)])
    assert read == [("ok.png", "")]
    assert refused["a.zip"].startswith("the zip archive is damaged")


def test_a_damaged_entry_does_not_cost_the_others(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.png": PNG, "b.png": PNG}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    read, refused = taken([path])
    assert read == [("b.png", "")]
    assert "damaged in the archive" in refused["a.png"]


def test_the_count_is_known_before_reading(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"a.png": PNG, "a.txt": b"x", "../b.png": PNG})
    assert count([archive, write(tmp_path, "c.png", PNG), tmp_path / "none.png"]) == 4


def test_names_are_made_safe_to_show():
    assert shown("a\x1b[31m\n\u202e\udcffb.png") == "a?[31m???b.png"
    assert len(shown("x" * 1000)) == 200
