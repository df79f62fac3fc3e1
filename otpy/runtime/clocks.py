"""A clock of the user's: it is read on supervisors' threads, and must not end them."""

from __future__ import annotations

from collections.abc import Callable

from otpy.abc import Clock
from otpy.runtime.log import complain
from otpy.specs import is_number


class GuardedClock:
    """Tells the time of another clock. While that fails, time stands still.

    Law: what the clock raises goes no further, and neither does a time that is no
    number. It is logged when the clock begins to fail, not each time, and not on the
    thread that has asked for the time.

    Raises:
        Exception: What the clock raises when it is read for the first time.
        TypeError: It returned no number then.
    """

    def __init__(self, clock: Clock) -> None:
        self._complain: Callable[..., object] = complain
        self.monotonic = self._guarded(clock.monotonic, "monotonic")
        self.wall = self._guarded(clock.wall, "wall")

    def complain_by(self, complain: Callable[..., object]) -> None:
        """Have *complain* called when the clock fails, as ``log.complain`` is; it must not block."""
        self._complain = complain

    def _guarded(self, tell: Callable[[], float], name: str) -> Callable[[], float]:
        last, fails = _checked(tell(), name), False

        def ask() -> float:
            nonlocal last, fails
            try:
                last = _checked(tell(), name)
                fails = False
            except Exception as error:
                if not fails:
                    fails = True
                    self._complain("clock_failed", error, clock=name)
            return last

        return ask


def _checked(seconds: float, name: str) -> float:
    if not is_number(seconds):
        raise TypeError(f"{name}() = {seconds!r}: expected a finite number of seconds")
    return seconds
