"""What every test needs."""

import logging
from collections.abc import Iterator

import pytest

from isengard.logs import LIBRARIES


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command under test configures the logging of the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    classes = {name: logging.getLogger(name).__class__ for name in LIBRARIES}
    yield
    logging.captureWarnings(capture=False)
    for handler in [entry for entry in root.handlers if entry not in handlers]:
        root.removeHandler(handler)
        if type(handler).__module__ == "isengard.logs":
            handler.close()
    root.setLevel(level)
    for name, kind in classes.items():
        logging.getLogger(name).__class__ = kind
