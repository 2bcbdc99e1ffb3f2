"""The files that the page shows: small copies of pictures, finished images, LoRAs, and archives made for a download.

This address is Gradio's, which would give out its whole cache, and whatever else a handler has named once.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from isengard.settings import Settings
from isengard.wiring import Application

#: A file keeps its content for ever. Proxies with a cache must not hand it to people who have not signed in.
HEADERS = {
    "cache-control": "private, max-age=31536000, immutable",
    "content-security-policy": "default-src 'none'; sandbox",
}


@dataclass(frozen=True)
class Shelf:
    """A folder of files that the app wrote itself, and how they are called in it."""

    folder: Path
    name: re.Pattern[str]
    media_type: str
    disposition: str = "inline"

    def find(self, asked: str) -> Path | None:
        """The file at this path, when it is one of the shelf's own and no link to elsewhere."""
        try:
            name = Path(asked).relative_to(self.folder).as_posix()
        except ValueError:
            return None
        if not self.name.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_file() and path.resolve() == self.folder.resolve() / name else None


def routes(app: Application) -> list[Route]:
    return [Route("/gradio_api/file={path:path}", showing(shelves(app.settings)))]


def shelves(settings: Settings) -> tuple[Shelf, ...]:
    """All that can be fetched."""
    return (
        Shelf(settings.pictures_dir, re.compile(r"[0-9a-f]{32}\.webp"), "image/webp"),
        Shelf(settings.images_dir, re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,120}\.png"), "image/png"),
        Shelf(
            settings.exports_dir,
            re.compile(r"[0-9a-f]{32}/[a-z0-9][a-z0-9-]{0,120}\.zip"),
            "application/zip",
            disposition="attachment",
        ),
        Shelf(
            settings.loras_dir,
            re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}/[a-z0-9][a-z0-9-]{0,120}\.safetensors"),
            "application/octet-stream",
            disposition="attachment",
        ),
    )


def showing(served: Sequence[Shelf]) -> Callable[[Request], Response]:
    """An endpoint that gives out what is on the shelves."""

    def show(request: Request) -> Response:
        for shelf in served:
            if path := shelf.find(request.path_params["path"]):
                return FileResponse(
                    path,
                    headers=HEADERS,
                    media_type=shelf.media_type,
                    filename=path.name,
                    content_disposition_type=shelf.disposition,
                )
        return JSONResponse({"detail": "There is no such file here."}, status_code=404)

    return show
