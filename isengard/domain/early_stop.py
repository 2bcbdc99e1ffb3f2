"""When a training may end before its last step: its samples have stopped becoming more like the character."""

from collections.abc import Sequence

#: Parts of the way from the base model's samples to the photos: what counts as a rise, and where waiting begins.
RISE, BEGUN = 0.03, 0.5
#: Samplings without a rise.
PATIENCE = 3


def has_stopped_rising(likeness: Sequence[float], *, ceiling: float) -> bool:
    """Whether the newest samplings are no more like the character than those before them.

    Args:
        likeness: Mean cosine of each sampling's pictures to the photos' centroid, in their order; the first is of the
            base model.
        ceiling: The mean cosine of the photos among each other.
    """
    before, newest = likeness[:-PATIENCE], likeness[-PATIENCE:]
    way = ceiling - likeness[0] if likeness else 0.0
    if not before or way <= 0:
        return False
    best = max(before)
    return best - likeness[0] >= BEGUN * way and max(newest) - best < RISE * way
