"""The folder that uploads pass through stays small."""

import os
import time

import pytest

from isengard.errors import TooMany
from isengard.services.upload_folder import FULL_S, KEPT_S, LOOK_S, UploadFolder
from tests.unit.character_pictures import write

LATER = KEPT_S + 60


class Clock:
    def __init__(self):
        self.passed = 0.0

    def __call__(self):
        return time.time() + self.passed


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def small(tmp_path, clock):
    """A folder for 100 bytes."""
    return UploadFolder(tmp_path, most_bytes=100, clock=clock)


def full(folder, size):
    with pytest.raises(TooMany, match="the folder for uploads is full") as caught, folder.room(size):
        pass
    return caught.value.retry_after_s


def test_what_lies_there_takes_room(small, tmp_path):
    write(tmp_path, "ab/a.png", bytes(60))
    with small.room(40):
        pass
    assert full(small, 41) == FULL_S


def test_uploads_that_come_at_the_same_time_take_room_before_they_are_there(small):
    with small.room(60):
        assert full(small, 41)
        with small.room(40):
            pass


def test_an_upload_that_ended_without_a_file_gives_its_room_back(small):
    with small.room(100):
        pass
    with small.room(100):
        pass


def test_what_came_since_the_last_look_is_counted(small, tmp_path):
    with small.room(10):
        pass
    with small.room(60):
        write(tmp_path, "ab/a.png", bytes(60))
    assert full(small, 41)


def test_what_was_put_there_by_others_is_seen_after_a_while(small, tmp_path, clock):
    with small.room(10):
        pass
    write(tmp_path, "exports/a.zip", bytes(99))
    clock.passed += LOOK_S + 1
    assert full(small, 10)


def test_what_nobody_fetched_is_removed_with_its_folder(small, tmp_path, clock):
    write(tmp_path, "ab/a.png", bytes(60))
    write(tmp_path, "tmp123", bytes(40))
    clock.passed += LATER
    with small.room(100):
        assert not list(tmp_path.iterdir())


def test_a_file_stays_for_a_while_however_old_the_picture_in_it_is(small, tmp_path):
    path = write(tmp_path, "ab/a.png", bytes(60))
    os.utime(path, (0, 0))
    assert small.sweep() == 60


def test_a_clock_that_was_set_back_does_not_stop_the_looking(small, tmp_path, clock):
    with small.room(10):
        pass
    clock.passed -= 10_000
    write(tmp_path, "ab/a.png", bytes(99))
    assert full(small, 10)


def test_a_file_that_vanishes_meanwhile_is_no_trouble(small, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "walk", lambda *_, **__: [(str(tmp_path), [], ["gone"])])
    assert small.sweep() == 0
