"""Hundreds of bad files and archives, made from good ones by seeded damage, together with good ones in one batch."""

import io
import random
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from isengard.domain.character import AddedImage, RefusedImage
from isengard.services.characters import CharacterService
from isengard.store.characters import CharacterStore
from isengard.store.decoding import pixel_hash
from tests.unit.character_pictures import HEIC, encoded, picture, write, zipped

EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010F: "Camera"})
FRAMES = {"save_all": True, "append_images": [picture(41), picture(42)]}
ORIGINALS = {
    "jpg": encoded(picture(30), "JPEG", exif=EXIF),
    "progressive.jpg": encoded(picture(31), "JPEG", progressive=True),
    "cmyk.jpg": encoded(picture(32, mode="CMYK"), "JPEG"),
    "png": encoded(picture(33), "PNG", exif=EXIF),
    "palette.png": encoded(picture(34).quantize(16), "PNG"),
    "webp": encoded(picture(35), "WEBP", exif=EXIF),
    "lossless.webp": encoded(picture(36), "WEBP", lossless=True),
    "lzw.tif": encoded(picture(37), "TIFF", compression="tiff_lzw"),
    "jpeg.tif": encoded(picture(38), "TIFF", compression="jpeg"),
    "bmp": encoded(picture(39), "BMP"),
    "avif": encoded(picture(40), "AVIF"),
    "heic": (HEIC / "rotated-gps.heic").read_bytes(),
    "animated.webp": encoded(picture(40), "WEBP", **FRAMES),
    "animated.gif": encoded(picture(40), "GIF", **FRAMES),
}
MAGIC = (
    b"PK\x03\x04",
    b"%PDF-1.4\n",
    b"<html><body>",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"RIFF",
)


def damaged(content: bytes, chance: random.Random) -> Iterator[bytes]:
    """Cut off, bits flipped, zeroed, doubled, another beginning."""
    for _ in range(4):
        yield content[: chance.randrange(1, len(content))]
    for flips in (1, 3, 10, 40, 200):
        yield flipped(content, chance, flips)
    yield flipped(content[:64], chance, 4) + content[64:]
    at = chance.randrange(len(content))
    yield content[:at] + bytes(64) + content[at + 64 :]
    yield content[:at] + content[at // 2 :]
    yield content[:at] + chance.randbytes(300)
    yield chance.choice(MAGIC) + content
    magic = chance.choice(MAGIC)
    yield magic + content[len(magic) :]


def flipped(content: bytes, chance: random.Random, flips: int) -> bytes:
    result = bytearray(content)
    for _ in range(flips):
        result[chance.randrange(len(result))] ^= 1 << chance.randrange(8)
    return bytes(result)


def lying_headers(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """Headers that speak of huge or empty pictures."""
    for side in (0, 1, 60_000, 2**31 - 1):
        png = bytearray(ORIGINALS["png"])
        png[16:24] = struct.pack(">II", side, side)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        yield f"header-{side}.png", bytes(png)
        bmp = bytearray(ORIGINALS["bmp"])
        bmp[18:26] = struct.pack("<II", side, side)
        yield f"header-{side}.bmp", bytes(bmp)
        jpeg = bytearray(ORIGINALS["jpg"])
        at = jpeg.index(b"\xff\xc0") + 5
        jpeg[at : at + 4] = struct.pack(">HH", side & 0xFFFF, side & 0xFFFF)
        yield f"header-{side}.jpg", bytes(jpeg)
        tiff = bytearray(ORIGINALS["lzw.tif"])
        at = tiff.index(struct.pack("<HHI", 256, 3, 1))
        tiff[at : at + 12] = struct.pack("<HHII", 256, 4, 1, side)
        yield f"header-{side}.tif", bytes(tiff)
        heic = bytearray(ORIGINALS["heic"])
        at = heic.index(b"ispe") + 8
        heic[at : at + 8] = struct.pack(">II", side, side)
        yield f"header-{side}.heic", bytes(heic)


def strange_files(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    yield "empty.png", b""
    yield "text.png", b"hello"
    yield "drawing.png", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "noise.jpg", chance.randbytes(4000)
    yield "zeros.webp", bytes(4000)
    yield "zip.png", zip_bytes({"a.png": ORIGINALS["png"]})
    yield "\x1b[31mred\n.png", b"escape"
    yield "[bold]markup.png", b"markup"
    yield "a" * 250 + ".png", b"long"
    yield "nobody.txt", b"a caption"
    yield "caption.txt", b"\x81\x8d\x8f"


def zip_bytes(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def bad_archives(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    good = zip_bytes({"a.jpg": ORIGINALS["jpg"], "b/a.png": ORIGINALS["png"], "b/a.txt": b"[trigger]"})
    for number in range(3):
        for content in damaged(good, chance):
            yield f"damaged-{number}-{zlib.crc32(content)}.zip", content
    directory = good.index(b"PK\x01\x02")
    for number in range(30):
        yield f"directory-{number}.zip", good[:directory] + flipped(good[directory:], chance, 3)
    yield "bomb.zip", zip_bytes({f"{n}.png": bytes(8 * 2**20) for n in range(4)})
    yield "nested.zip", zip_bytes({"inner.zip": good, "inner.png": good})
    yield "many.zip", zip_bytes({f"{n}.png": b"" for n in range(2100)})
    names = (
        "/abs.png",
        "../../up.png",
        "a\\..\\..\\b.png",
        "C:\\x.png",
        "\x1b]0;x\x07.png",
        "x" * 3000 + ".png",
        ".. /a.png",
    )
    yield "names.zip", zip_bytes(dict.fromkeys(names, b"content"))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method-{method}.zip", zip_bytes({"a.png": ORIGINALS["png"]}, method)


@pytest.fixture
def service(tmp_path):
    store = CharacterStore(characters_dir=tmp_path / "data/characters", trash_dir=tmp_path / "data/trash")
    return CharacterService(store=store)


@pytest.fixture
def bad(tmp_path) -> list[Path]:
    chance = random.Random(20260821)
    files = [
        (f"{number}-{index}.{name}", content)
        for number in range(2)
        for name, original in ORIGINALS.items()
        for index, content in enumerate(damaged(original, chance))
        if number == 0 or name != "heic"  # each starts a process
    ]
    files += [*lying_headers(chance), *strange_files(chance), *bad_archives(chance)]
    return [write(tmp_path / "bad", name, content) for name, content in files]


def test_hundreds_of_bad_files_get_a_reason_each_and_cost_no_good_one(service, bad, tmp_path, capfd):
    assert len(bad) > 480
    good = [write(tmp_path / "good", f"good-{seed}.png", encoded(picture(seed))) for seed in range(20)]
    batch = [*bad, *good]
    random.Random(1).shuffle(batch)
    service.create("Anna")

    results = list(service.add_files("anna", batch))

    told = Counter(type(result) for result in results)
    assert told[RefusedImage] > 300
    assert all(
        result.reason.strip() and "\n" not in result.reason
        for result in results
        if isinstance(result, RefusedImage)
    )
    assert all(result.filename.isprintable() for result in results)
    named = {result.filename for result in results}
    assert {path.name for path in good} <= {
        result.filename for result in results if isinstance(result, AddedImage)
    }
    silent = {
        path.name
        for path in bad
        if path.suffix != ".zip" and path.name.isprintable() and len(path.name) < 200
    }
    assert silent <= named
    assert "Traceback" not in "".join(capfd.readouterr())
    assert_nothing_is_half(service, tmp_path / "data")


def assert_nothing_is_half(service: CharacterService, data: Path) -> None:
    character = service.get("anna")
    for image in character.images:
        with Image.open(service.image_path("anna", image.id), formats=("PNG",)) as kept:
            assert (kept.mode, pixel_hash(kept)) == ("RGB", image.sha256)
    kept_files = {path.name for path in data.rglob("*") if path.is_file()}
    names = {f"{image.id}{suffix}" for image in character.images for suffix in (".png", ".txt")}
    assert kept_files == names | {"character.json", ".lock"}
    assert service.readiness("anna").ready


def test_a_good_file_survives_in_an_archive_of_bad_ones(service, bad, tmp_path):
    entries = {
        f"{number}/{path.name}": path.read_bytes()
        for number, path in enumerate(bad[::4])
        if path.suffix != ".zip"
    }
    good = {f"good/{seed}.png": encoded(picture(seed)) for seed in range(5)}
    service.create("Anna")
    results = list(service.add_files("anna", [zipped(tmp_path / "mixed.zip", entries | good)]))
    assert set(good) <= {result.filename for result in results if isinstance(result, AddedImage)}
    assert sum(isinstance(result, RefusedImage) for result in results) > 50
    assert_nothing_is_half(service, tmp_path / "data")
