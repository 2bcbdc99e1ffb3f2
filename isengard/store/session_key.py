"""The key that signs sessions: kept, so that a restart logs nobody out."""

import secrets
from pathlib import Path

from isengard.errors import InvalidSpec
from isengard.files import replacing

KEY_BYTES = 32


def session_key(path: Path) -> bytes:
    """Read the key; when there is none, make one that only this user can read.

    Raises:
        InvalidSpec: the file holds something else.
    """
    if not path.exists():
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(KEY_BYTES))
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise InvalidSpec(
            f"{path} holds {len(key)} bytes, but the key of the sessions has {KEY_BYTES}; remove the file: a new one"
            " is made, and everybody logs in again"
        )
    return key
