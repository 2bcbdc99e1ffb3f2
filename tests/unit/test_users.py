"""How logins are written down, and what is kept of a password."""

import re
import unicodedata

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from isengard.domain.users import hash_password, matches, read_users
from isengard.errors import InvalidSpec

#: Of the form that a hash has.
HASH = f"scrypt:{'A' * 22}:{'B' * 43}"


def test_only_the_right_password_matches_its_hash():
    hashed = hash_password("tower of glass")
    assert matches("tower of glass", hashed)
    assert not matches("tower of glas", hashed)


def test_two_hashes_of_one_password_differ_and_need_no_quotes_anywhere():
    first, second = hash_password("tower"), hash_password("tower")
    assert first != second
    assert re.fullmatch(r"scrypt:[\w-]+:[\w-]+", first)


def test_a_password_is_the_same_however_the_keyboard_writes_its_umlauts():
    name = "Schl\u00f6sser"
    assert matches(unicodedata.normalize("NFD", name), hash_password(name))


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("anna:tower", {"anna": "tower"}),
        ("anna:to:wer", {"anna": "to:wer"}),
        ("anna:tower of glass, ben:x", {"anna": "tower of glass", "ben": "x"}),
        ("\nanna:tower\nben:x\n", {"anna": "tower", "ben": "x"}),
        (f"anna@example.org:{HASH},", {"anna@example.org": HASH}),
    ],
)
def test_logins_are_separated_by_commas_or_lines(text, users):
    assert read_users(text) == users


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hunter22", "login 1 of 1"),
        ("anna:", "login 1 of 1"),
        (":hunter22", "login 1 of 1"),
        ("anna:tower,hunter22", "login 2 of 2 .* a password with a comma has to be given as a hash"),
        ("an na:hunter22", "the name of letters"),
        ("anna:tower,anna:hunter22", "has the name 'anna', as one before it"),
        (f"anna:{HASH[:-4]}", "the hash of 'anna' .* is not whole; .* isengard password anna"),
        (f"anna:{HASH}:hunter22", "the hash of 'anna' .* is not whole"),
        ("anna:scrypt:hunter22", "the hash of 'anna' .* is not whole"),
        (" , ", "must be name:password"),
    ],
)
def test_what_is_no_login_is_refused_without_repeating_a_password(text, said):
    with pytest.raises(InvalidSpec, match=said) as refused:
        read_users(text)
    assert "hunter22" not in str(refused.value)


def test_the_command_makes_a_login_of_a_password_that_it_does_not_show():
    done = CliRunner().invoke(app, ["password", "anna"], input="tower of glass\ntower of glass\n")
    assert done.exit_code == 0
    users = read_users(done.stdout)
    assert matches("tower of glass", users["anna"])
    assert "tower" not in done.output


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [("an na", "", "a name is made of"), ("anna", "short", "at least 8 characters, got 5")],
)
def test_the_command_refuses_what_cannot_be_used(name, typed, said):
    done = CliRunner().invoke(app, ["password", name], input=f"{typed}\n{typed}\n")
    assert done.exit_code == 1
    assert said in done.stderr
