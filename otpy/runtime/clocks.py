"""A clock of a user: supervisors' threads read it, and it must not end them.

Laws:
1. What the clock raises goes no further, and neither does a time that is no number.
   Time stands still meanwhile.
2. A clock that begins to fail is logged once, not at each reading, and not on the
   thread that reads it.
"""

from __future__ import annotations

from collections.abc import Callable

from otpy.abc import Clock
from otpy.runtime.log import complain
from otpy.specs import is_number


class GuardedClock:
    """Returns the time of another clock, or the last time that the clock returned.

    Any thread may read it.

    Raises:
        Exception: What the clock raises when it is read for the first time.
        TypeError: It returned no number then.
    """

    def __init__(self, clock: Clock) -> None:
        self._complain: Callable[..., object] = complain
        self.monotonic = self._guarded(clock.monotonic, "monotonic")
        self.wall = self._guarded(clock.wall, "wall")

    def complain_by(self, complain: Callable[..., object]) -> None:
        """Have *complain* called when the clock begins to fail.

        Args:
            complain: Is called as ``log.complain`` is. It must not block.
        """
        self._complain = complain

    def _guarded(self, read: Callable[[], float], name: str) -> Callable[[], float]:
        last, fails = _checked(read(), name), False

        def read_or_stand_still() -> float:
            nonlocal last, fails
            try:
                last = _checked(read(), name)
                fails = False
            except Exception as error:
                if not fails:
                    fails = True
                    self._complain("clock_failed", error, clock=name)
            return last

        return read_or_stand_still


def _checked(seconds: float, name: str) -> float:
    if not is_number(seconds):
        raise TypeError(f"{name}() = {seconds!r}: expected a finite number of seconds")
    return seconds
