"""What is measured of one photo, before anybody judges it."""

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.identity import Box, Sighting

#: Shares of 18 fields of colour, see `isengard.domain.colours`; they sum to 1.
Palette = tuple[float, ...]


class Region(Frozen):
    """A part of a photo in numbers."""

    blur: float = Field(description="0 sharp to 1: how little a further blur changes it")
    dark: float = Field(description="5th percentile of brightness, 0 to 1")
    mean: float = Field(description="of brightness, 0 to 1")
    bright: float = Field(description="95th percentile of brightness, 0 to 1")


class Seen(Frozen):
    """Somebody in a photo, and how well they can be seen."""

    sighting: Sighting
    region: Region
    outfit: Palette | None = Field(
        None, description="below the head; None where too little of it is in the photo"
    )


class Photo(Frozen):
    """One photo in numbers."""

    width: int
    height: int
    seen: tuple[Seen, ...] = Field(description="the largest first")
    turned: tuple[tuple[Sighting, ...], ...] = Field(
        (), description="whom it shows after 1, 2 and 3 clockwise quarter turns; empty where nobody looked"
    )
    whole: Region
    background: Palette
    thumbnail: str = Field(description="see `isengard.domain.twins`")

    def inside(self, box: Box) -> Box:
        """The part of a box that is in the photo."""
        left, top = max(0.0, box.left), max(0.0, box.top)
        right = min(float(self.width), box.left + box.width)
        bottom = min(float(self.height), box.top + box.height)
        return Box(left=left, top=top, width=max(0.0, right - left), height=max(0.0, bottom - top))
