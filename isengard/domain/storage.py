"""What lies in the data folder, and what of it can go."""

from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from isengard.domain.base import Frozen

DAY_S = 86_400.0


class Part(StrEnum):
    """What a file of the data folder is for."""

    CHARACTERS = "characters"
    RUNS = "runs"
    LORAS = "loras"
    IMAGES = "images"
    MODELS = "models"
    CACHE = "cache"
    TRASH = "trash"
    LOGS = "logs"
    AI_TOOLKIT = "ai-toolkit"
    OTHER = "other"


class Policy(StrEnum):
    """A kind of files that can go. `MIN_DAYS` says from which age at the earliest."""

    SAMPLES = "samples"  # of ended trainings, all but the last
    CHECKPOINTS = "checkpoints"  # of succeeded trainings: neither last, best, pinned nor asked for
    TRASH = "trash"
    CACHE = "cache"  # latents, prompts, small pictures and what was measured of photos, that nobody used
    ABANDONED = "abandoned"  # downloads, uploads and writes that were never finished


#: Files that nobody used so long go when nobody says otherwise.
DEFAULT_DAYS = {
    Policy.SAMPLES: 30.0,
    Policy.CHECKPOINTS: 30.0,
    Policy.TRASH: 30.0,
    Policy.CACHE: 30.0,
    Policy.ABANDONED: 2.0,
}
#: What is younger may be in use this moment, whatever is asked for.
MIN_DAYS = {Policy.CACHE: 1.0, Policy.ABANDONED: 1.0}


class File(NamedTuple):
    """A file of the data folder; there may be a hundred thousand, and these are made quickly."""

    path: str
    """In the data folder, with slashes."""
    size: int
    changed_at: float


def part_of(path: str) -> Part:
    """What a file of the data folder is for, by its path in it, with slashes."""
    top, slash, _ = path.partition("/")
    return Part(top) if slash and top in set(Part) else Part.OTHER


class Entry(Frozen):
    """A character, a run, a LoRA, a model, ...: what can be named and removed as a whole."""

    part: Part
    name: str = Field(description="of its folder or file")
    title: str = Field("", description="for a person, where there is one")
    size: int
    files: int
    inside: dict[str, int] = Field(default_factory=dict, description="bytes by folder, of a run")


class Usage(Frozen):
    """What uses what. Sizes are bytes."""

    parts: dict[Part, int]
    files: int
    entries: tuple[Entry, ...] = Field(description="the largest first")
    disk_free: int
    disk_total: int
    quota: int | None = Field(None, description="what the data folder may hold at most")

    @property
    def used(self) -> int:
        return sum(self.parts.values())


class Item(Frozen):
    """What one line of a cleanup removes."""

    policy: Policy
    what: str
    paths: tuple[str, ...] = Field(description="files and folders in the data folder, with slashes")
    size: int
    job: str = Field("", description="the training it belongs to")


class Look(Frozen):
    """A look at the data folder."""

    number: int
    usage: Usage
    items: tuple[Item, ...] = Field(description="what can go, the largest first")
    days: float | None = Field(description="asked for; None for those of each policy")
    at: float
    took_s: float


class Cleaned(Frozen):
    """What a cleanup has done."""

    size: int
    items: int
    kept: tuple[str, ...] = Field((), description="why something stayed, a sentence each")


def days_of(policy: Policy, asked: float | None) -> float:
    """From which age on files of this kind go."""
    return max(DEFAULT_DAYS[policy] if asked is None else asked, MIN_DAYS.get(policy, 0.0))
