"""From the bytes of an untrusted file to plain sRGB pixels, or a reason why not."""

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from isengard.domain.twins import FIELDS, encoded
from isengard.errors import ImageRefused
from isengard.store.heic import is_heic, to_png

MAX_PIXELS = 100_000_000
MIN_SIDE = 64
#: Of a JPEG, each over the whole picture: progressive ones have about ten. Some kilobytes can hold thousands.
MAX_SCANS = 200

#: The decoders that an upload may reach in this process; for HEIC see `isengard.store.heic`.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
#: What is told of the pictures that no room was left for.
TOO_MUCH = "the pictures sent with it unpack to far more than their size, like a bomb; send this one alone"
_SPOKEN_FORMATS = "JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC"

#: What Pillow's and libheif's decoders raise when bytes are wrong: nearly anything.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    RuntimeError, EOFError, MemoryError, struct.error, zlib.error,
)  # fmt: skip

#: (offset, bytes at it, what the file is). Looked at only when no decoder knows the file.
_SIGNATURES = (
    (0, b"PK\x03\x04", "a zip archive (one is unpacked when its name ends in .zip and it is in no other)"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"GIF8", "a GIF, which is made for animation"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (4, b"ftyp", "a video or a picture of an unknown kind"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)

#: EXIF orientation to the transposition that turns the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Of 255 levels.
_MARGIN = 2
_ORIENTATION = 0x0112
_DNG_VERSION = 0xC612
_NEW_SUBFILE_TYPE = 0x00FE


@dataclass(frozen=True)
class CleanImage:
    """Upright RGB pixels in sRGB that carry nothing else."""

    pixels: Image.Image
    sha256: str
    dhash: str
    colours: str
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a `ReferenceImage` says of the pixels."""
        return {
            "id": self.sha256[:16],
            "sha256": self.sha256,
            "dhash": self.dhash,
            "colours": self.colours,
            "width": self.pixels.width,
            "height": self.pixels.height,
        }


def decode(content: bytes, *, min_side: int = MIN_SIDE, room: int | None = None) -> CleanImage:
    """Judge a file by decoding it: size and frames before its pixels, its name not at all.

    Rotation and mirroring of EXIF are applied, the embedded colour profile is converted to sRGB, and what is
    transparent becomes white.

    Args:
        content: The file.
        min_side: A picture with a shorter side is refused.
        room: So many pixels it may have at most, for what was decoded before it.

    Raises:
        ImageRefused: the reason, to be shown beside the file's name.
    """
    if not content:
        raise ImageRefused("the file is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(content, min_side)
        try:
            check_header(image, min_side)
            _check_scans(image, content)
            if room is not None and image.width * image.height > room:
                raise ImageRefused(TOO_MUCH)
            image.load()
            notes: list[str] = []
            pixels = _upright(image, _in_srgb(image, notes))
        except DECODE_ERRORS as error:
            raise ImageRefused(
                f"the {image.format} image is damaged or cut off ({_first_line(error)}): copy or export it again"
            ) from error
    return cleaned(pixels, tuple(notes))


def cleaned(pixels: Image.Image, notes: tuple[str, ...] = ()) -> CleanImage:
    """RGB pixels without what their file has said of them."""
    pixels.info.clear()
    return CleanImage(
        pixels=pixels,
        sha256=pixel_hash(pixels),
        dhash=difference_hash(pixels),
        colours=colours(pixels),
        notes=notes,
    )


def _kind_of(content: bytes) -> str:
    """What a file that is no picture seems to be; empty when nobody knows."""
    for offset, signature, kind in _SIGNATURES:
        if content.startswith(signature, offset):
            return kind
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing or another XML file"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<script")):
        return "a web page"
    return ""


def pixel_hash(image: Image.Image) -> str:
    """sha256 of the size and the RGB pixels, so it does not depend on the file's format."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def difference_hash(image: Image.Image) -> str:
    """64 bits: whether each of 8 x 8 fields is clearly darker than its right neighbour.

    Survives scaling, compression and changes of contrast; the margin keeps the noise of even areas out.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS).tobytes()
    fields = (9 * row + column for row in range(8) for column in range(8))
    bits = "".join("1" if grey[field] + _MARGIN < grey[field + 1] else "0" for field in fields)
    return f"{int(bits, 2):016x}"


def colours(image: Image.Image) -> str:
    """The mean colours of 8 x 8 fields of an RGB picture."""
    return encoded(np.asarray(image.resize((FIELDS, FIELDS), Image.Resampling.BOX)))


def _open(content: bytes, min_side: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        if is_heic(content):
            return _open(to_png(content, min_side=min_side), min_side)
        kind = _kind_of(content)
        found = f"the file is {kind}" if kind else "no picture can be read from it (unknown or damaged)"
        raise ImageRefused(f"{found}; send {_SPOKEN_FORMATS}") from error
    except DECODE_ERRORS as error:
        raise ImageRefused(f"the picture's header is damaged ({_first_line(error)})") from error


def check_header(image: Image.Image, min_side: int) -> None:
    """Refuse what is not worth decoding. Raises: ImageRefused."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image)
    if min(image.size) < min_side:
        raise ImageRefused(
            f"the picture is too small: {image.width} x {image.height}, its shorter side needs {min_side} pixels"
        )
    tags = getattr(image, "tag_v2", {})
    if _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE, 0) & 1:
        raise ImageRefused("the file is a camera's raw format; develop it and export a JPEG or TIFF")
    if _has_second_frame(image):
        raise ImageRefused("the picture is animated or has several pages; export the one frame you want")


def _check_scans(image: Image.Image, content: bytes) -> None:
    """Raises: ImageRefused."""
    if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MAX_SCANS:
        raise ImageRefused(f"the JPEG is made of over {MAX_SCANS} layers, like a bomb; export it again")


def _has_second_frame(image: Image.Image) -> bool:
    if image.format == "MPO":  # a phone's JPEG with a depth or brightness map behind the picture
        return False
    if image.format == "TIFF":  # n_frames would walk through all pages of the file
        try:
            image.seek(1)
        except EOFError:
            image.seek(0)
            return False
        return True
    return getattr(image, "n_frames", 1) > 1


def _too_large(image: Image.Image | None = None) -> ImageRefused:
    size = f": {image.width} x {image.height}" if image else ""
    return ImageRefused(f"the picture has over {MAX_PIXELS // 10**6} megapixels{size}; scale it down")


def _in_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F"):
        raise ImageRefused("the picture has 32 bits per channel; export it with 8 or 16")
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    colours = _through_profile(image, profile, notes)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)


def _through_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        assert converted is not None  # noqa: S101  # None only with inPlace
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notes.append("its colour profile is damaged or does not fit, so colours may be slightly off")
        return image.convert("RGB")
    return converted


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except DECODE_ERRORS:  # damaged EXIF says nothing about the pixels
        return pixels
    transposition = _UPRIGHT.get(orientation or 1)
    return pixels.transpose(transposition) if transposition is not None else pixels


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
