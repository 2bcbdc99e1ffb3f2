"""How much one address may ask for. A studio of twenty people behind one address stays far below."""

from typing import Self

from pydantic import Field

from isengard.domain.base import Frozen


class Rate(Frozen):
    """So many at once, and so many each minute from then on."""

    burst: int = Field(ge=1)
    per_minute: float = Field(gt=0)

    def times(self, factor: float) -> Self:
        return self.model_copy(
            update={"burst": max(1, round(self.burst * factor)), "per_minute": self.per_minute * factor}
        )


class Limits(Frozen):
    """What one address may do, if not said otherwise."""

    uploads: Rate = Rate(burst=600, per_minute=600)
    jobs: Rate = Field(Rate(burst=120, per_minute=60), description="trainings and generations")
    changes: Rate = Field(Rate(burst=60, per_minute=30), description="new characters and packed archives")
    waiting_jobs: int = Field(200, description="waiting or paused, that it has asked for")
    all_waiting_jobs: int = Field(1000, description="waiting or paused, whoever asked for them")
    uploads_at_once: int = 40
    requests_at_once: int = Field(400, description="with the streams that each open page holds")

    def times(self, factor: float) -> Self:
        """The same for an address that many share, or that few should."""
        counts = ("waiting_jobs", "all_waiting_jobs", "uploads_at_once", "requests_at_once")
        rates = {name: getattr(self, name).times(factor) for name in ("uploads", "jobs", "changes")}
        return self.model_copy(
            update={**rates, **{name: max(1, round(getattr(self, name) * factor)) for name in counts}}
        )
