"""Characters and their reference images."""

from pydantic import Field

from isengard.domain.base import Frozen


class ReferenceImage(Frozen):
    """One cleaned image of a character. Its caption is the ``.txt`` file beside the ``.png``."""

    id: str = Field(description="first 16 hex digits of sha256; also the stem of its files")
    sha256: str = Field(description="of the decoded, rotated RGB pixels and their size")
    dhash: str = Field(description="64-bit difference hash, 16 hex digits")
    width: int
    height: int
    filename: str = Field(description="what the user called it")
    added_at: float
    caption: str = Field("", description="may contain [trigger]")


class Character(Frozen):
    """A person, animal or figure that a LoRA can learn."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    name: str = Field(min_length=1, max_length=80)
    trigger: str
    class_word: str
    notes: str = ""
    created_at: float
    updated_at: float
    images: tuple[ReferenceImage, ...] = ()
