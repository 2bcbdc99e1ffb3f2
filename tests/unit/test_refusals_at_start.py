"""What page, worker and command line say when the job list's server is not as it has to be: one sentence, and no secret."""

import socket

import pytest
import typer
from typer.testing import CliRunner

import app as page
from isengard.cli import app as commands
from isengard.cli import doctor
from isengard.queue import redis_server
from tests.redis_servers import Server, answering, free_port

SECRET = "corr#ct-horse"  # noqa: S105  # of servers that live as long as this file
IN_A_URL = "corr%23ct-horse"
RIGHTS = "must be allowed: ~isengard:* resetchannels &isengard:* +@all -@admin"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a server with options, once; all end with the last test."""
    started = {}

    def start_one(*options):
        if options not in started:
            started[options] = Server(tmp_path_factory.mktemp("valkey"), *options)
        return started[options]

    yield start_one
    for one in started.values():
        one.kill()


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Run a command that needs the job list; its exit code and what it says."""
    monkeypatch.setattr(redis_server, "PAUSES_S", ())

    def ask(url, *words):
        monkeypatch.setenv("ISENGARD_REDIS_URL", url)
        return CliRunner().invoke(commands, ["--data-dir", str(tmp_path), *words])

    return ask


@pytest.fixture
def refused(ask):
    """The one sentence with which a command ends."""

    def refused(url, *words):
        result = ask(url, *(words or ("jobs", "list")))
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert (line[:7], result.stdout) == ("error: ", "")
        assert not any(secret in line for secret in (SECRET, IN_A_URL, "horse"))
        return line

    return refused


def server_url(server, login=""):
    return f"redis://{login}127.0.0.1:{server.port}"


@pytest.mark.parametrize("words", [("jobs", "list"), ("--device", "cpu", "worker")])
def test_a_command_ends_with_one_sentence_about_a_wrong_password(start, refused, words):
    server = start("--requirepass", SECRET)
    line = refused(server_url(server, ":wrong-horse@"), *words)
    assert "refuses the login; correct user name and password in ISENGARD_REDIS_URL" in line


def test_the_page_ends_with_the_same_sentence_before_it_opens(start, tmp_path, monkeypatch):
    server = start("--requirepass", SECRET)
    monkeypatch.setenv("ISENGARD_REDIS_URL", server_url(server, ":wrong-horse@"))
    cli = typer.Typer()
    cli.command()(page.main)
    result = CliRunner().invoke(cli, ["--port", str(free_port()), "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == (
        f"error: the Redis server at 127.0.0.1:{server.port} refuses the login;"
        " correct user name and password in ISENGARD_REDIS_URL\n"
    )


def test_a_doctor_finds_the_same_and_looks_at_the_rest_all_the_same(start, ask, monkeypatch):
    monkeypatch.setattr(doctor, "_torch", lambda settings: iter(()))
    said = ask(server_url(start("--requirepass", SECRET)), "--device", "cpu", "doctor", "--json")
    assert said.exit_code == 1
    assert "refuses the login; correct user name" in said.stdout
    assert "data folder" in said.stdout


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://:horse@h", "must be redis://user:password@host:port/0"),
        ("redis://:corr#ct-horse@h", "write / # ? @ of a password as %2F %23 %3F %40"),
        ("redis://:horse@h:port", "write / # ? @ of a password as %2F %23 %3F %40"),
        ("redis://:horse@h/jobs", "the part behind the last / is the number of a database"),
        ("redis://:horse@h?colour=red", "is not understood; write redis://"),
    ],
)
def test_a_url_that_is_none_is_told_how_to_write_it(refused, url, part):
    assert part in refused(url)


def test_a_database_that_is_not_there_is_told_by_its_place_in_the_url(start, refused):
    assert "has no database of this number; correct it at the end of" in refused(f"{start().url}/99")


def test_a_copy_of_a_server_is_refused_with_the_name_of_the_original(start, refused):
    copy = start("--replicaof", "127.0.0.1", "1")
    assert "is a read-only copy of 127.0.0.1:1; name that one" in refused(copy.url)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--rename-command", "XAUTOCLAIM", ""), "refuses the command XAUTOCLAIM ("),
        (("--rename-command", "EVALSHA", ""), "refuses a command (unknown command 'EVALSHA'"),
        (("--rename-command", "INFO", ""), "refuses a command (unknown command 'INFO'"),
    ],
)
def test_a_server_without_a_needed_command_says_what_it_lacks_and_nothing_before_it(
    start, refused, options, part
):
    line = refused(start(*options).url)
    assert part in line
    assert RIGHTS in line


def test_a_user_who_may_run_no_scripts_hears_what_he_needs(start, refused):
    server = start("--user", "guest", "on", f">{SECRET}", "~*", "+@all", "-@scripting")
    line = refused(server_url(server, f"guest:{IN_A_URL}@"))
    assert "no permissions to run the 'evalsha' command" in line
    assert f"the user 'guest' {RIGHTS}" in line


def test_a_server_without_memory_from_the_first_is_told_from_one_without_rights(start, refused):
    line = refused(start("--maxmemory", "1mb", "--maxmemory-policy", "noeviction").url)
    assert line.endswith("has no memory left for jobs; raise its maxmemory")


def test_a_server_with_too_many_connections_says_so(start, refused):
    server = start("--maxclients", "1")
    with socket.create_connection(("127.0.0.1", server.port)) as only:
        only.sendall(b"PING\r\n")
        only.recv(64)
        assert "takes no more connections; raise its maxclients" in refused(server.url)


def test_a_certificate_file_that_is_missing_is_not_taken_for_a_server_that_is_away(start, refused):
    url = start().url.replace("redis:", "rediss:")
    assert "is not there; correct its path" in refused(f"{url}?ssl_ca_certs=nowhere.pem")


@pytest.fixture
def hanging_up():
    """The port of a server that ends each connection, as one with TLS does when it is spoken to without."""
    with answering(b"") as port:
        yield port


def test_a_server_that_breaks_off_may_want_tls(hanging_up, refused):
    line = refused(f"redis://:{IN_A_URL}@127.0.0.1:{hanging_up}")
    assert line.endswith(
        "breaks the connection off; see whether it works, or write rediss:// when it wants TLS"
    )


def test_a_server_that_does_not_answer_is_given_up_in_time(start, refused, monkeypatch):
    monkeypatch.setattr(redis_server, "TIMEOUT_S", 0.1)
    server = start()
    with server.stalled():
        assert "gives no answer within 0.1 s; see whether it and the network to it work" in refused(
            server.url
        )
