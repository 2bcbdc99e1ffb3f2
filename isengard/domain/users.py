"""Who may use the page: names and passwords as they are written into a setting, and hashes of passwords."""

import hashlib
import hmac
import re
import secrets
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode

from isengard.errors import InvalidSpec

#: One of the choices of the OWASP password storage cheat sheet: 16 MB, about 0.2 s on one core.
COST, BLOCK, TIMES = 2**14, 8, 5
SALT_BYTES, DIGEST_BYTES = 16, 32
SCHEME = "scrypt:"
#: One that basic authentication and a log line can carry.
NAME = re.compile(r"[\w.@+-]{1,64}")
SHORTEST = 8


def read_users(text: str) -> dict[str, str]:
    """Take apart ``name:password,name:password`` (commas or lines): for each name a password or a hash.

    Raises:
        InvalidSpec: without repeating anything of the text but a name.
    """
    users: dict[str, str] = {}
    entries = [entry.strip() for entry in re.split(r"[,\n]", text) if entry.strip()]
    for number, entry in enumerate(entries, 1):
        name, _, secret = entry.partition(":")
        if not secret or not NAME.fullmatch(name):
            raise InvalidSpec(
                f"login {number} of {len(entries)} in ISENGARD_AUTH must be name:password, the name of letters, digits and . _ @ + -;"
                " logins are separated by commas or lines, so a password with a comma has to be given as a hash:"
                " python -m isengard password"
            )
        if name in users:
            raise InvalidSpec(
                f"login {number} of {len(entries)} in ISENGARD_AUTH has the name {name!r}, as one before it has"
            )
        if secret.startswith(SCHEME):
            _parts(secret, name)
        users[name] = secret
    if not users:
        raise InvalidSpec("ISENGARD_AUTH must be name:password, and holds only commas and spaces")
    return users


def is_hash(secret: str) -> bool:
    return secret.startswith(SCHEME)


def hash_password(password: str, *, salt: bytes | None = None) -> str:
    """Return ``scrypt:SALT:DIGEST``, in letters that need no quotes in a shell, a Compose file or an .env file."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    return f"{SCHEME}{_text(salt)}:{_text(_digest(password, salt))}"


def matches(password: str, hashed: str) -> bool:
    """Whether this is the password. Takes the same time whatever the answer."""
    salt, digest = _parts(hashed, "")
    return hmac.compare_digest(_digest(password, salt), digest)


def nobodys_hash() -> str:
    """A hash that no password has: what an unknown name is compared with, so that it costs as much as a known one."""
    return f"{SCHEME}{_text(bytes(SALT_BYTES))}:{_text(secrets.token_bytes(DIGEST_BYTES))}"


def _digest(password: str, salt: bytes) -> bytes:
    # One keyboard writes an umlaut as one letter, another as two.
    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(
        text, salt=salt, n=COST, r=BLOCK, p=TIMES, dklen=DIGEST_BYTES, maxmem=2 * 128 * COST * BLOCK
    )


def _parts(hashed: str, name: str) -> tuple[bytes, bytes]:
    try:
        salt, digest = (urlsafe_b64decode(f"{part}==") for part in hashed.removeprefix(SCHEME).split(":"))
    except ValueError:  # not two parts, or other letters
        salt = digest = b""
    if (len(salt), len(digest)) != (SALT_BYTES, DIGEST_BYTES):
        raise InvalidSpec(
            f"the hash of {name!r} in ISENGARD_AUTH is not whole; make it anew: python -m isengard password {name}"
        )
    return salt, digest


def _text(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()
