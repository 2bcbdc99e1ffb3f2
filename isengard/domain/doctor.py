"""What is wrong with a character's photos, each with a number and a way to put it right. Nothing is changed here."""

from enum import StrEnum

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.identity import Box, ScorerKind


class FindingKind(StrEnum):
    """What can be wrong."""

    # of one photo
    NOBODY = "nobody"
    ANOTHER_PERSON = "another_person"  # who is seen is not the character
    MORE_PEOPLE = "more_people"  # beside the character
    SMALL_FACE = "small_face"
    BLURRED = "blurred"
    TOO_DARK = "too_dark"
    TOO_BRIGHT = "too_bright"
    CUT_OFF = "cut_off"  # by the picture's edge
    NEAR_DUPLICATE = "near_duplicate"
    SIDEWAYS = "sideways"
    # of one caption
    TRAIT_IN_CAPTION = "trait_in_caption"
    NO_TRIGGER = "no_trigger"
    # of all photos together
    UNSURE_WHO = "unsure_who"
    FEW_PHOTOS = "few_photos"
    FEW_ANGLES = "few_angles"
    SAME_EXPRESSION = "same_expression"
    SAME_DISTANCE = "same_distance"
    SAME_LIGHT = "same_light"
    SAME_BACKGROUND = "same_background"
    SAME_OUTFIT = "same_outfit"


class FixKind(StrEnum):
    """What can be done about one photo."""

    CROP = "crop"  # keep what is in `Fix.box`
    LEAVE_OUT = "leave_out"
    ROTATE = "rotate"  # by `Fix.quarter_turns`
    MASK = "mask"  # paint over what is in `Fix.box`
    EDIT_CAPTION = "edit_caption"  # to `Fix.caption`


#: What a caption's text alone tells.
CAPTION_KINDS = frozenset({FindingKind.TRAIT_IN_CAPTION, FindingKind.NO_TRIGGER})


class Fix(Frozen):
    """One change of the photo that a finding is about."""

    kind: FixKind
    box: Box | None = Field(None, description="of CROP and MASK, in the photo's pixels, inside the photo")
    quarter_turns: int = Field(0, ge=0, le=3, description="of ROTATE: clockwise, which make it upright")
    caption: str | None = Field(None, description="of EDIT_CAPTION: the proposed one; the user may change it")


class Finding(Frozen):
    """One thing that is wrong."""

    kind: FindingKind
    image: str | None = Field(None, description="id of the photo; None when it is about all together")
    images: tuple[str, ...] = Field(
        (), description="ids of photos that belong to it: the twin that stays, those with the same outfit"
    )
    reason: str = Field(description="one sentence with the number in it")
    number: float = Field(description="what was measured or counted")
    limit: float = Field(description="what the number is judged by, or how many there are: 9 of 12")
    subject: str = Field("", description="what it is about, in a word or two: a colour, words of a caption")
    fix: Fix | None = None


class SetFacts(Frozen):
    """The photos in numbers. Counts by name are of photos that show the character; None: this scorer cannot tell."""

    scorer: ScorerKind
    photos: int
    showing: int = Field(description="photos that show the character")
    views: dict[str, int] | None = Field(None, description="frontal, three-quarter, profile")
    expressions: dict[str, int] | None = Field(None, description="neutral, smiling")
    distances: dict[str, int] | None = Field(None, description="face, head and shoulders, upper body, far")
    light: dict[str, int] = Field(default_factory=dict, description="dark, medium, bright")
    backgrounds: dict[str, int] = Field(default_factory=dict, description="by main colour")
    outfits: dict[str, int] | None = Field(None, description="by main colour")


class Examination(Frozen):
    """What the doctor says of a character's photos."""

    findings: tuple[Finding, ...] = Field(description="those of photos first, in the photos' order")
    facts: SetFacts
    photos: tuple[str, ...] = Field((), description="ids of those looked at")
    examined: str = Field(description="names the photos and captions that were looked at")
    made_at: float
