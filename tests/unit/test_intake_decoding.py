import io
import struct
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from isengard.domain.character import ReferenceImage
from isengard.errors import ImageRefused
from isengard.settings import ASSETS
from isengard.store import decoding, heic
from isengard.store.decoding import cleaned, decode
from tests.unit.character_pictures import HEIC, encoded, picture

FORMATS = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "AVIF": {"quality": 95},
    "MPO": {"save_all": True, "append_images": [picture(9)]},
}


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures, in levels of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_gives_its_picture(kind):
    found = decode(encoded(picture(), kind, **FORMATS[kind])).pixels
    assert (found.mode, found.size) == ("RGB", (96, 80))
    assert distance(found, picture()) < 4


def test_heic_gives_its_picture():
    pixels = decode((HEIC / "plain.heic").read_bytes()).pixels
    assert pixels.size == (128, 96)
    assert distance(pixels.crop((2, 2, 20, 20)), Image.new("RGB", (18, 18), (200, 40, 40))) < 6


def test_a_turned_heic_is_turned_upright_once():
    pixels = decode((HEIC / "rotated-gps.heic").read_bytes()).pixels
    assert pixels.size == (96, 128)
    assert distance(pixels.crop((2, 2, 20, 20)), Image.new("RGB", (18, 18), (40, 40, 200))) < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_cameras_orientation_is_applied(kind, orientation):
    upright = Image.new("RGB", (96, 64), "black")
    upright.paste("white", (0, 0, 32, 32))
    undo = decoding._UPRIGHT.get({6: 8, 8: 6}.get(orientation, orientation))
    stored = upright.transpose(undo) if undo is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert distance(decode(encoded(stored, kind, exif=exif)).pixels, upright) < 4


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1", b"Exif\0\0XX\0*\0\0\0\x08\0\0"])
def test_damaged_exif_does_not_cost_the_picture(exif):
    assert decode(encoded(picture(), "PNG", exif=exif)).pixels.tobytes() == picture().tobytes()


def test_nothing_but_pixels_is_kept():
    exif = Image.Exif()
    exif[0x010F] = "SecretCam"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "SecretText")
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>SecretXmp</x:xmpmeta>")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sources = [
        encoded(picture(), "PNG", exif=exif, pnginfo=info, icc_profile=profile, dpi=(300, 300)),
        encoded(picture(), "JPEG", exif=exif, comment="SecretText", icc_profile=profile, xmp=b"SecretXmp"),
        encoded(picture(), "WEBP", exif=exif, icc_profile=profile, xmp=b"SecretXmp"),
        encoded(picture(), "TIFF", exif=exif, icc_profile=profile, description="SecretText"),
        encoded(picture(), "AVIF", exif=exif, icc_profile=profile, xmp=b"SecretXmp"),
        (HEIC / "rotated-gps.heic").read_bytes(),
    ]
    for source in sources:
        assert b"Secret" in source
        clean = decode(source).pixels
        saved = encoded(clean)
        assert _chunks(saved) == {b"IHDR", b"IDAT", b"IEND"}
        assert not clean.getexif()
        assert b"Secret" not in saved


def _chunks(png: bytes) -> set[bytes]:
    kinds, offset = set(), 8
    while offset < len(png):
        (length,) = struct.unpack_from(">I", png, offset)
        kinds.add(png[offset + 4 : offset + 8])
        offset += length + 12
    return kinds


def test_what_is_transparent_becomes_white():
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 128), (0, 0, 32, 64))
    pixels = decode(encoded(image)).pixels
    assert pixels.getpixel((50, 50)) == (255, 255, 255)
    assert pixels.getpixel((5, 5)) == (127, 127, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "RGBA", "LAB"])
def test_each_colour_mode_becomes_rgb(mode):
    grey = Image.new("L", (64, 64), 255)
    grey.paste(0, (0, 0, 32, 64))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = ImageCms.profileToProfile(
            grey.convert("RGB"),
            ImageCms.createProfile("sRGB"),
            ImageCms.createProfile("LAB"),
            outputMode="LAB",
        )
    else:
        image = (
            grey.convert(mode) if mode != "LA" else Image.merge("LA", (grey, Image.new("L", (64, 64), 255)))
        )
    container = {"CMYK": "TIFF", "LAB": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    pixels = decode(encoded(image, container)).pixels
    assert max(abs(value) for value in pixels.getpixel((5, 5))) <= 3
    assert min(pixels.getpixel((50, 50))) >= 252


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF")).pixels)
    assert np.abs(pixels[..., 0].astype(int) - ramp // 256).max() <= 1


def test_a_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (64, 64), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.paste(0, (0, 0, 32, 64))
    pixels = decode(encoded(image, transparency=0)).pixels
    assert (pixels.getpixel((5, 5)), pixels.getpixel((50, 50))) == ((255, 255, 255), (200, 10, 10))


def test_the_colour_profile_is_converted_to_srgb():
    pixels = decode(
        encoded(Image.new("RGB", (64, 64), (200, 100, 50)), "JPEG", icc_profile=swapped_profile())
    ).pixels
    red, green, blue = pixels.getpixel((5, 5))
    assert blue > green > red


def swapped_profile() -> bytes:
    """sRGB with the red and the blue primary exchanged: converting from it swaps the channels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")


@pytest.mark.parametrize("profile", [b"no profile at all", "LAB"])
def test_an_unusable_profile_is_ignored_with_a_note(profile):
    if profile == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    clean = decode(encoded(picture(), icc_profile=profile))
    assert clean.pixels.tobytes() == picture().tobytes()
    assert clean.notes == ("its colour profile is damaged or does not fit, so colours may be slightly off",)


def refusal(content: bytes, **options) -> str:
    with pytest.raises(ImageRefused) as refused:
        decode(content, **options)
    return str(refused.value)


FRAMES = {"save_all": True, "append_images": [picture(1), picture(2)]}


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF", "AVIF"])
def test_several_frames_are_refused(kind):
    assert "animated or has several pages" in refusal(encoded(picture(), kind, **FRAMES))


def test_a_heic_sequence_is_refused():
    assert "animated or has several pages" in refusal((HEIC / "sequence.heic").read_bytes())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(99), "zip archive"),
        (b"%PDF-1.7", "PDF"),
        (b"<!DOCTYPE html><p>", "web page"),
        (b"\xef\xbb\xbf\n<svg xmlns=''>", "SVG"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"\0\0\0\x18ftypmp42" + bytes(99), "video"),
        (b"hello", "unknown or damaged"),
        (encoded(picture(), "GIF"), "GIF"),
        (encoded(picture(), "GIF", **FRAMES), "GIF"),
        (encoded(picture(), "PPM"), "unknown or damaged"),
    ],
)
def test_what_is_no_picture_is_called_by_its_name(content, reason):
    assert reason in refusal(content)


def test_a_picture_too_small_for_training_is_refused():
    assert "96 x 80, its shorter side needs 128" in refusal(encoded(picture()), min_side=128)
    assert decode(encoded(picture()), min_side=80)


@pytest.mark.parametrize("side", [10_001, 20_000, 2**31 - 1])
def test_over_100_megapixels_are_refused_by_the_header_alone(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = bytearray(encoded(picture()))
    png[16:29] = header
    png[29:33] = struct.pack(">I", __import__("zlib").crc32(b"IHDR" + header))
    assert "over 100 megapixels" in refusal(bytes(png))


def test_a_jpeg_of_hundreds_of_layers_is_refused_before_it_is_decoded():
    content = encoded(picture(), "JPEG", progressive=True)
    scan = content.index(b"\xff\xda")
    with pytest.raises(ImageRefused, match="made of over 200 layers"):
        decode(content[:scan] + content[scan:-2] * 40 + content[-2:])
    assert decode(content)


def test_a_picture_that_no_room_is_left_for_is_not_decoded():
    assert decode(encoded(picture()), room=96 * 80)
    with pytest.raises(ImageRefused, match="unpack to far more than their size"):
        decode(encoded(picture()), room=96 * 80 - 1)


def test_a_heic_that_crashes_its_decoder_is_refused_like_others():
    assert "damaged" in refusal((HEIC / "crashes-pi-heif.heic").read_bytes())


def test_a_truncated_heic_is_refused():
    assert "damaged" in refusal((HEIC / "plain.heic").read_bytes()[:600])


def test_a_heic_is_judged_by_its_header_too():
    assert "needs 128 pixels" in refusal((HEIC / "plain.heic").read_bytes(), min_side=128)


def test_a_heic_that_takes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(heic, "TIMEOUT_S", 0.0)
    assert "could not be read within" in refusal((HEIC / "plain.heic").read_bytes())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF"])
def test_a_truncated_file_is_refused(kind):
    content = encoded(picture(), kind, **FORMATS[kind])
    assert refusal(content[: len(content) * 2 // 3])


@pytest.mark.parametrize("tags", [{0xC612: b"\1\4\0\0"}, {0x00FE: 1}])
def test_a_camera_raw_is_not_mistaken_for_its_thumbnail(tags):
    exif = Image.Exif()
    exif.update(tags)
    assert "raw" in refusal(encoded(picture(), "TIFF", tiffinfo=exif))


def test_32_bits_per_channel_are_refused():
    assert "32 bits" in refusal(encoded(Image.new("F", (64, 64)), "TIFF"))


def test_the_hash_is_of_the_pixels_and_not_of_the_file():
    one, other = decode(encoded(picture(), "PNG")), decode(encoded(picture(), "BMP"))
    assert one.sha256 == other.sha256
    assert one.sha256 != decode(encoded(picture(1))).sha256
    tall, wide = Image.new("RGB", (64, 128)), Image.new("RGB", (128, 64))
    assert decode(encoded(tall)).sha256 != decode(encoded(wide)).sha256


def near(one: Image.Image, other: Image.Image) -> bool:
    facts = [cleaned(each.convert("RGB")).facts for each in (one, other)]
    images = [ReferenceImage(**each, filename="a", added_at=0) for each in facts]
    return images[0].near(images[1])


@pytest.mark.parametrize("seed", range(8))
def test_copies_are_near_duplicates_and_other_pictures_are_not(seed):
    original = picture(seed, (240, 200))
    copies = {
        "smaller": original.resize((120, 100)),
        "larger": original.resize((480, 400)),
        "compressed": Image.open(io.BytesIO(encoded(original, "JPEG", quality=30))),
        "paler": original.point(lambda value: value * 0.8 + 25),
        "cropped": original.crop((3, 3, 237, 197)),
    }
    assert {name: near(original, copy) for name, copy in copies.items()} == dict.fromkeys(copies, True)
    others = [picture(other, (240, 200)) for other in range(20) if other != seed]
    assert not any(near(original, other) for other in others)


@pytest.mark.parametrize("name", ["nova", "odin", "marisol"])
def test_no_two_pictures_of_an_example_character_are_near_duplicates(name):
    pictures = [Image.open(path) for path in sorted((ASSETS / "characters" / name).glob("*.png"))]
    assert len(pictures) >= 9
    assert not [pair for pair in combinations(pictures, 2) if near(*pair)]
