"""Folders of the user's own that stand in for a base model: used as they are, and never changed.

One in the models folder is named from there: machines that share that mount it where they like.
"""

import json
from pathlib import Path

from isengard.files import write_text


class OwnPaths:
    """One folder for a model's name, in a small file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def get(self, name: str) -> Path | None:
        path = self._read().get(name)
        return self._file.parent / path if path else None

    def set(self, name: str, path: Path | None) -> None:
        """Use this folder for a model; none again when None."""
        kept = {key: value for key, value in self._read().items() if key != name}
        if path is not None:
            ours = self._file.parent
            kept[name] = str(path.relative_to(ours) if path.is_relative_to(ours) else path)
        write_text(self._file, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")

    def _read(self) -> dict[str, str]:
        """What is kept; nothing when the file is not readable: the models are then looked for elsewhere."""
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}
