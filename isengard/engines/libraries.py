"""How the libraries behave in our processes."""

import importlib
import logging
import sys
from typing import Any

from isengard.errors import InvalidSpec


def hide_progress_bars() -> None:
    """Keep the libraries' own bars, one for each part they load, off the terminal and out of the logs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def show_bitsandbytes() -> None:
    """Let bitsandbytes be imported; see the package's ``__init__``."""
    # It warns of a faster kernel for the CPU that it would have to download.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if sys.modules.get("bitsandbytes") is None:
        sys.modules.pop("bitsandbytes", None)


def bitsandbytes(*, wanted_by: str, instead: str) -> Any:
    """The package bitsandbytes.

    Args:
        wanted_by: Field and value that need it, for the error.
        instead: What to choose without it.

    Raises:
        InvalidSpec: it is not installed; it is not made for every machine.
    """
    show_bitsandbytes()
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError:
        raise InvalidSpec(
            f"{wanted_by} needs the package bitsandbytes, which is not installed (none is made for Macs with an Intel"
            f" processor): pip install bitsandbytes, or choose {instead}"
        ) from None
