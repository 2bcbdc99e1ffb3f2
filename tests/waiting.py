"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

#: On a busy machine all takes longer; only what never happens is waited for as long as this.
PATIENCE_S = 120.0

Found = TypeVar("Found")


def until(
    condition: Callable[[], Found], *, alive: Callable[[], bool] = lambda: True, every_s: float = 0.02
) -> Found:
    """What ``condition`` gives, as soon as that is true. Fails when ``alive()`` is false, or after `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if not alive():
            pytest.fail("the process that it waits for has ended")
        if time.monotonic() > end:
            pytest.fail(f"it did not happen within {PATIENCE_S:.0f} seconds")
        time.sleep(every_s)
    return found
