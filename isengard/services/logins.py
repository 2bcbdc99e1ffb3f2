"""Who comes in with which password, and the sessions that begin so."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping

from itsdangerous import BadData, URLSafeSerializer

from isengard.domain.users import SALT_BYTES, hash_password, is_hash, matches, nobodys_hash
from isengard.store.closed_sessions import ClosedSessions

LASTS_S = 14 * 86400


class Logins:
    """Passwords are kept as hashes only. A session is a signed text that the browser keeps.

    It is good until its end, in every page with the same key and after a restart, as long as its user is there and has
    the same password. A session that was closed is refused from then on.

    Args:
        users: For each name a password or a hash, as `read_users` gives them.
        key: Signs the sessions.
        closed: Those that are refused.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        users: Mapping[str, str],
        *,
        key: bytes,
        closed: ClosedSessions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hashes = {
            name: secret if is_hash(secret) else hash_password(secret, salt=_salt(key, name))
            for name, secret in users.items()
        }
        self._nobody = nobodys_hash()
        self._clock, self._closed = clock, closed
        self._signer = URLSafeSerializer(
            key,
            salt="isengard session",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self.cookie = f"isengard-{hashlib.sha256(b'cookie' + key).hexdigest()[:8]}"
        """Its name. Pages on several ports of one machine share the browser's cookies."""

    def is_right(self, name: str, password: str) -> bool:
        """Whether this user has this password: about 0.2 s of work, for a name that nobody has as well."""
        return matches(password, self._hashes.get(name, self._nobody)) and name in self._hashes

    def open_session(self, name: str) -> str:
        return str(
            self._signer.dumps([name, self._mark(name), secrets.token_urlsafe(9), self._clock() + LASTS_S])
        )

    def user_of(self, session: str) -> str | None:
        """Whose session this is; None when it is nobody's, or is over."""
        opened = self._read(session)
        return opened[0] if opened else None

    def close_session(self, session: str) -> None:
        opened = self._read(session)
        if opened:
            self._closed.add(opened[1], opened[2], now=self._clock())

    def _read(self, session: str) -> tuple[str, str, float] | None:
        try:
            name, mark, number, end = self._signer.loads(session)
        except BadData:
            return None
        known = name in self._hashes and hmac.compare_digest(mark, self._mark(name))
        if not known or number in self._closed or self._clock() >= end:
            return None
        return name, number, end

    def _mark(self, name: str) -> str:
        """Another one when the password is another one."""
        return hashlib.sha256(self._hashes[name].encode()).hexdigest()[:16]


def _salt(key: bytes, name: str) -> bytes:
    """The same after a restart, so that a password which is not given as a hash has the same hash again."""
    return hmac.digest(key, f"salt of {name}".encode(), "sha256")[:SALT_BYTES]
