"""Pictures for the page: small copies in a folder of their own. `tabs.http.files` says what can be fetched."""

import hashlib
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps

from isengard.files import replacing

THUMBNAIL = 320


class Pictures:
    """Makes addresses for pictures that the app wrote itself."""

    def __init__(self, *, folder: Path, gallery: Path) -> None:
        """``folder``: where copies are kept; it may be deleted at any time. ``gallery``: finished images."""
        self._folder, self._gallery = folder, gallery

    def thumbnail(self, path: Path, *, side: int = THUMBNAIL) -> str:
        """The address of a copy that is at most ``side`` pixels wide and high; empty when the picture is gone."""
        try:
            known = path.stat()
        except OSError:
            return ""
        key = f"{path}:{known.st_mtime_ns}:{known.st_size}:{side}"
        copy = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.webp"
        if not copy.exists():
            with Image.open(path) as opened, replacing(copy) as temporary:
                picture = (
                    ImageOps.contain(opened.convert("RGB"), (side, side))
                    if max(opened.size) > side
                    else opened
                )
                picture.convert("RGB").save(temporary, format="WEBP", quality=88)
        return address(copy)

    def whole(self, path: Path) -> str:
        """The address of the picture in its full size; empty when it is gone."""
        if path.is_relative_to(self._gallery):
            return address(path) if path.exists() else ""
        return self.thumbnail(path, side=4096)


def address(path: Path) -> str:
    """How the browser asks for a served file."""
    return f"/gradio_api/file={quote(str(path))}"
