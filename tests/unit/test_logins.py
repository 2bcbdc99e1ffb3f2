"""Who comes in, and how long a session is good."""

import json

import pytest

from isengard.domain.users import hash_password, nobodys_hash
from isengard.errors import DiskFull, InvalidSpec
from isengard.services.logins import LASTS_S, Logins
from isengard.settings import Settings
from isengard.store import closed_sessions
from isengard.store.closed_sessions import ClosedSessions
from isengard.store.session_key import session_key
from isengard.wiring import open_logins
from tests.clock import Clock

KEY = bytes(range(32))
USERS = {"anna": nobodys_hash(), "ben": nobodys_hash()}


@pytest.fixture
def clock():
    return Clock(1_000_000.0)


@pytest.fixture
def opened(tmp_path, clock):
    """``opened(users)``: the logins of a page that was started just now."""

    def start(users, key=KEY):
        return Logins(users, key=key, closed=ClosedSessions(tmp_path / "closed.json"), clock=clock)

    return start


@pytest.fixture
def logins(opened):
    return opened(USERS)


def test_a_user_comes_in_with_the_own_password_only(opened):
    logins = opened({"anna": hash_password("tower"), "ben": nobodys_hash()})
    assert logins.is_right("anna", "tower")
    assert not logins.is_right("ben", "tower")
    assert not logins.is_right("nobody", "tower")


def test_a_session_is_its_users_until_its_end(logins, clock):
    session = logins.open_session("anna")
    assert logins.user_of(session) == "anna"
    clock.now += LASTS_S - 1
    assert logins.user_of(session) == "anna"
    clock.now += 1
    assert logins.user_of(session) is None


def test_a_closed_session_is_over_and_others_of_the_user_are_not(logins):
    first, second = logins.open_session("anna"), logins.open_session("anna")
    logins.close_session(first)
    logins.close_session("nothing")
    assert (logins.user_of(first), logins.user_of(second)) == (None, "anna")


def test_a_closed_session_is_over_in_pages_that_run_beside_and_after_a_restart(opened):
    one, other = opened(USERS), opened(USERS)
    first, second, third = (one.open_session("anna") for _ in range(3))
    assert other.user_of(first) == "anna"
    one.close_session(first)
    assert other.user_of(first) is None
    other.close_session(second)
    later = opened(USERS)
    assert [later.user_of(each) for each in (first, second, third)] == [None, None, "anna"]


def test_closed_sessions_are_forgotten_when_they_would_be_over_anyway(logins, clock, tmp_path):
    logins.close_session(logins.open_session("anna"))
    clock.now += LASTS_S
    logins.close_session(logins.open_session("anna"))
    assert len(json.loads((tmp_path / "closed.json").read_text())) == 1


def test_a_session_is_closed_also_where_the_disk_does_not_take_it(logins, opened, monkeypatch, caplog):
    def full(path, text):
        raise DiskFull("no space left")

    session = logins.open_session("anna")
    monkeypatch.setattr(closed_sessions, "write_text", full)
    logins.close_session(session)
    assert logins.user_of(session) is None
    assert opened(USERS).user_of(session) == "anna"
    assert "good again after a restart" in caplog.text


def test_what_is_no_list_of_sessions_is_said_and_closes_none(logins, tmp_path, caplog):
    session, other = logins.open_session("anna"), logins.open_session("anna")
    (tmp_path / "closed.json").write_text("[")
    assert logins.user_of(session) == "anna"
    assert "closed sessions cannot be read" in caplog.text
    logins.close_session(other)
    assert (logins.user_of(session), logins.user_of(other)) == ("anna", None)


def test_a_session_is_good_in_another_process_with_the_same_key(logins, opened):
    assert opened(USERS).user_of(logins.open_session("anna")) == "anna"


def test_a_restart_keeps_the_sessions_of_a_password_that_is_not_given_as_a_hash(opened):
    session = opened({"anna": "tower"}).open_session("anna")
    assert opened({"anna": "tower"}).user_of(session) == "anna"
    assert opened({"anna": "tower2"}).user_of(session) is None


@pytest.mark.parametrize(
    ("users", "key"),
    [({**USERS, "anna": nobodys_hash()}, KEY), ({"ben": USERS["ben"]}, KEY), (USERS, bytes(32))],
    ids=["another password", "no such user", "another key"],
)
def test_a_session_ends_with_its_password_its_user_or_the_key(logins, opened, users, key):
    assert opened(users, key).user_of(logins.open_session("anna")) is None


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text[:-1], lambda text: f"x{text}"])
def test_a_session_that_was_changed_is_nobodys(logins, change):
    assert logins.user_of(change(logins.open_session("anna"))) is None


def test_the_key_is_made_once_for_this_user_only(tmp_path):
    path = tmp_path / "data" / "session.key"
    key = session_key(path)
    assert session_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_none_is_named_with_the_way_out(tmp_path):
    (tmp_path / "session.key").write_bytes(b"x")
    with pytest.raises(InvalidSpec, match=r"session\.key holds 1 bytes, .* remove the file"):
        session_key(tmp_path / "session.key")


def test_logins_are_opened_as_the_settings_say(tmp_path):
    assert open_logins(Settings(data_dir=tmp_path)) is None
    assert not (tmp_path / "session.key").exists()
    logins = open_logins(Settings(data_dir=tmp_path, auth=f"anna:{USERS['anna']}"))
    assert logins.user_of(logins.open_session("anna")) == "anna"
