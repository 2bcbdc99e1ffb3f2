"""``python -m isengard storage`` and ``cleanup``."""

import json

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from isengard.domain.storage import Policy


@pytest.fixture
def call(tmp_path):
    def invoke(*words, stdin=None):
        said = CliRunner().invoke(
            app, ["--data-dir", str(tmp_path / "data"), "--worker", "none", *words], input=stdin
        )
        assert said.exit_code in (0, 1), said.output
        return said

    return invoke


@pytest.fixture
def thrown_away(tmp_path):
    path = tmp_path / "data" / "trash" / "images" / "20250101T000000Z-a-0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 2_000_000)
    return path


def test_it_says_what_uses_the_disk(call, thrown_away, monkeypatch):
    monkeypatch.setenv("ISENGARD_QUOTA_GB", "50")
    said = call("storage")
    assert "2.0 MB  trash" in said.stdout
    assert "free on the disk; ISENGARD_QUOTA_GB allows 50.0 GB" in said.stdout
    assert "images" in said.stdout.splitlines()[-1]
    assert "2.0 MB can go; see: python -m isengard cleanup --dry-run" in said.stderr


def test_it_can_be_read_by_a_script(call, thrown_away):
    told = json.loads(call("storage", "--json").stdout)
    assert (told["parts"]["trash"], told["quota"]) == (2_000_000, None)
    assert told["used"] == sum(told["parts"].values())
    run = {"part": "trash", "name": "images", "title": "", "size": 2_000_000, "files": 1, "inside": {}}
    assert run in told["entries"]


def test_a_dry_run_shows_what_would_go_and_removes_nothing(call, thrown_away):
    said = call("cleanup", "--dry-run")
    assert said.stdout == "    2.0 MB  trash: image a-0.png\n2.0 MB would go\n"
    assert thrown_away.exists()


def test_nothing_goes_without_a_yes(call, thrown_away):
    assert call("cleanup", stdin="n\n").exit_code == 1
    assert thrown_away.exists()
    said = call("cleanup", stdin="y\n")
    assert "Remove these 2.0 MB for good?" in said.stderr
    assert "2.0 MB are free again" in said.stdout
    assert not thrown_away.exists()
    assert call("cleanup").stdout == "there is nothing to remove\n"


@pytest.mark.parametrize("others", [policy for policy in Policy if policy is not Policy.TRASH])
def test_only_what_was_chosen_goes(call, thrown_away, others):
    assert call("cleanup", f"--{others}", "--yes").stdout == "there is nothing to remove\n"
    assert thrown_away.exists()


def test_what_is_younger_stays(call, thrown_away):
    assert (
        call("cleanup", "--trash", "--older-than", "99999", "--yes").stdout == "there is nothing to remove\n"
    )
    call("cleanup", "--trash", "--older-than", "0.5", "--yes")
    assert not thrown_away.exists()


def test_what_cannot_be_removed_is_named(call, thrown_away, monkeypatch):
    def refuse(path):
        raise PermissionError(f"not yours: {path.name}")

    monkeypatch.setattr("isengard.services.cleanup.remove", refuse)
    said = call("cleanup", "--yes")
    assert "image a-0.png stays: not yours: 20250101T000000Z-a-0.png" in said.stderr
    assert "0.0 MB are free again" in said.stdout
