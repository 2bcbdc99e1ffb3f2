"""Which paths that come in a request are believed."""

from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder


def upload_at(given: Any) -> Path | None:
    """The uploaded file at a path; None for any other: elsewhere, a folder, a link that leads out, or no path at all."""
    try:
        path = Path(str(given)).resolve(strict=True)
        return path if path.is_relative_to(Path(get_upload_folder()).resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None
