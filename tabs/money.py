"""Dollars, as the page writes them."""

from isengard.domain.job import Job
from isengard.services.costs import Costs


def dollars(amount: float | None) -> str:
    """``$0.44``; empty for what is not known."""
    if amount is None:
        return ""
    return f"${amount:.2f}" if amount >= 0.005 or amount == 0 else "< $0.01"


def course(costs: Costs, job: Job) -> list[str]:
    """What a run has cost so far, and what it will have cost at its end, as far as that is known."""
    return [said for said in map(dollars, (costs.so_far(job), costs.total(job))) if said]
