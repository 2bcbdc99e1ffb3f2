"""How often an address may try a password."""

import time
from collections import OrderedDict
from collections.abc import Callable

#: Wrong ones without a wait; then waits that double, from `FIRST_S` to `LONGEST_S`.
FREE, FIRST_S, LONGEST_S = 5, 5.0, 900.0
#: A quiet address is forgotten after this time, and the quietest one when there are too many.
FORGOTTEN_S, REMEMBERED = 4 * LONGEST_S, 10_000


class Attempts:
    """Makes wrong passwords slow. Only the address that sent them waits: nobody can lock out somebody elsewhere.

    Args:
        clock: Seconds; never goes back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0 for now."""
        count, last = self._wrong.get(address, (0, 0.0))
        if count < FREE:
            return 0.0
        pause = min(FIRST_S * 2.0 ** min(count - FREE, 30), LONGEST_S)
        return max(0.0, last + pause - self._clock())

    def was_wrong(self, address: str) -> None:
        now = self._clock()
        count, last = self._wrong.pop(address, (0, now))
        self._wrong[address] = (1 if now - last > FORGOTTEN_S else count + 1, now)
        if len(self._wrong) > REMEMBERED:
            self._wrong.popitem(last=False)

    def was_right(self, address: str) -> None:
        self._wrong.pop(address, None)
