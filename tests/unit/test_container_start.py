"""scripts/container.sh in a root of its own, with the folders of the image: what a container does first."""

import os
import shutil
import signal
import subprocess

import pytest

from isengard.settings import ROOT

#: A root directory over that of this machine. What is written into it is gone at the end.
CONTAINER = """
set -e
mount -t tmpfs tmpfs "$FOLDER"
cd "$FOLDER" && mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" root
cd root && mkdir -p app/scripts data workspace elsewhere
mount -t tmpfs tmpfs data && mount -t tmpfs tmpfs elsewhere && mount --rbind /proc proc
mkdir data/older && touch data/older/file && chown 1234 elsewhere
ln -s /data app/data && cp "$SCRIPT" app/scripts/
if [ "$VOLUME" ]; then mount -t tmpfs tmpfs workspace; fi
exec chroot . ${LACKS:+setpriv --bounding-set=-$LACKS} sh -c 'cd /app && exec sh /app/scripts/container.sh "$@"' - "$@"
"""
WHERE = 'echo "$ISENGARD_DATA_DIR" "$(readlink /app/data)"'


def may_make_containers():
    command = ["unshare", "--mount", "true"]
    return (
        shutil.which("unshare") and subprocess.run(command, check=False).returncode == 0 and os.geteuid() == 0
    )


pytestmark = pytest.mark.skipif(not may_make_containers(), reason="only root may mount and change its user")


@pytest.fixture
def contained(tmp_path):
    """Starts a shell command in it."""

    def start(command, **environment):
        given = {"FOLDER": str(tmp_path), "SCRIPT": str(ROOT / "scripts" / "container.sh"), "VOLUME": ""}
        return subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                CONTAINER,
                "-",
                "sh",
                "-c",
                command,
            ],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **given, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def said(contained):
    """What a shell command in it prints."""

    def run(command, **environment):
        with contained(command, **environment) as process:
            assert process.stdout
            return process.stdout.read().split()

    return run


def test_the_page_is_not_root_and_cannot_become_root(said):
    command = "id -u; id -G; grep NoNewPrivs /proc/self/status"
    assert said(command) == ["1000", "1000", "NoNewPrivs:", "1"]


def test_without_a_volume_everything_is_kept_in_data(said):
    assert said(WHERE) == ["/data", "/data"]


def test_on_a_volume_everything_is_kept_there(said):
    assert said(WHERE, VOLUME="yes") == ["/workspace/isengard"] * 2


def test_the_folder_that_is_set_is_used(said):
    assert said(WHERE, VOLUME="yes", ISENGARD_DATA_DIR="/data/mine") == ["/data/mine"] * 2


def test_a_folder_of_root_is_handed_to_the_user_with_all_in_it(said):
    assert said("stat -c %u /data /data/older /data/older/file; touch /data/new && echo written") == [
        *["1000"] * 3,
        "written",
    ]


def test_a_folder_of_somebody_else_stays_as_it_is(said):
    assert said("stat -c %u /elsewhere", ISENGARD_DATA_DIR="/elsewhere") == ["1234"]


def test_a_volume_that_allows_no_change_of_owner_is_used_as_it_is(said):
    words = said("id -u", LACKS="chown")
    assert words[-1] == "1000"
    assert "stays root's" in " ".join(words)


def test_the_page_cannot_change_its_own_code(said):
    assert "denied" in " ".join(said("touch /app/scripts/container.sh"))


def test_a_signal_reaches_the_command(contained):
    process = contained("trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.02; done")
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "saved\n"
    assert process.returncode == 0


def test_somebody_who_is_not_root_just_runs_the_command(said):
    again = "env -u ISENGARD_DATA_DIR sh /app/scripts/container.sh sh -c 'id -u; echo $ISENGARD_DATA_DIR'"
    assert said(again, VOLUME="yes") == ["1000", "/workspace/isengard"]
