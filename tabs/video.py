"""The Video tab: says that it is in development. `isengard.engines.video` holds the contract an engine will keep."""

from tabs.common import widget


def build() -> None:
    """Build the tab's content inside the open block."""
    widget("video", elem_id="video")
