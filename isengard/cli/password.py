"""``python -m isengard password``: a login that can be written down without its password."""

from typing import Annotated

import typer

from isengard.cli.common import err, out
from isengard.domain.users import NAME, SHORTEST, hash_password
from isengard.errors import InvalidSpec


def password(
    name: Annotated[str, typer.Argument(help="Who logs in with it.", show_default=False)],
) -> None:
    """Ask for a password and print name:hash for ISENGARD_AUTH. The password is kept nowhere."""
    if not NAME.fullmatch(name):
        raise InvalidSpec(f"a name is made of up to 64 letters, digits and . _ @ + -, got {name!r}")
    typed = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if len(typed) < SHORTEST:
        raise InvalidSpec(
            f"a password has at least {SHORTEST} characters, got {len(typed)}; take a longer one"
        )
    out.print(f"{name}:{hash_password(typed)}")
    err.print("Write this into ISENGARD_AUTH; several are separated by commas.")
