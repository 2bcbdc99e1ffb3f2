"""How diffusers and transformers behave in our processes."""

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def hide_progress_bars() -> None:
    """Keep the libraries' own bars, one for each part they load, off the terminal and out of the logs."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
