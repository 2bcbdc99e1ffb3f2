"""The token for gated models: typed here, of the environment, or of the Hugging Face library's own file."""

import os
import re
from pathlib import Path

from huggingface_hub.constants import HF_TOKEN_PATH
from pydantic import SecretStr

from isengard import logs
from isengard.errors import InvalidSpec
from isengard.files import replacing

#: What can stand in a header of a request.
FITTING = re.compile(r"[!-~]{8,512}")


class TokenFile:
    """Keeps the token that was typed, readable by this user only.

    Args:
        path: The file.
        given: Of the environment; used when none was typed.
        library: The library's file; used when neither is there.
    """

    def __init__(self, path: Path, *, given: SecretStr | None, library: Path | None = None) -> None:
        self._path, self._given, self._library = path, given, library or Path(HF_TOKEN_PATH)

    def get(self) -> str | None:
        """The token. No log shows it from now on."""
        token = self._found()[1]
        logs.hide([token or ""])
        return token

    @property
    def origin(self) -> str:
        """Where it comes from; empty when there is none. Nothing else of it is ever told."""
        return self._found()[0]

    def keep(self, token: str) -> None:
        """Raises: InvalidSpec when this cannot be one."""
        token = fitting(token)
        with replacing(self._path) as temporary:
            temporary.touch(mode=0o600)
            with os.fdopen(os.open(temporary, os.O_WRONLY), "w", encoding="utf-8") as content:
                content.write(token)

    def forget(self) -> None:
        """Remove the one that was typed."""
        self._path.unlink(missing_ok=True)

    def _found(self) -> tuple[str, str | None]:
        if token := _read(self._path):
            return "typed here", token
        if self._given is not None and (token := self._given.get_secret_value().strip()):
            return "HF_TOKEN", token
        token = _read(self._library)
        return ("the Hugging Face library" if token else ""), token


def fitting(token: str) -> str:
    """The token without white space around it. Raises: InvalidSpec, without repeating it, when this cannot be one."""
    token = token.strip()
    if not FITTING.fullmatch(token):
        raise InvalidSpec(
            "this is no token: it is one word of letters, digits and signs that begins with hf_; copy it anew from"
            " https://huggingface.co/settings/tokens"
        )
    return token


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
