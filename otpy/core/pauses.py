"""Pauses: time in which the whole program could not run, and which counts for no limit.

The program or the machine was suspended, or something held the interpreter's lock, or a
test's clock has jumped. Silence in that time says nothing about a child. A pause is
noticed by a deadline that is read much later than it was set for.

Pure: times arrive as arguments.

Laws:
1. A deadline that is read PAUSE seconds late was read after a pause. For a heartbeat a
   quarter of it is enough, if that is less.
2. Whichever deadline has told of a pause, it counts for all limits of a supervisor. A
   limit that it has hit begins anew at its end.
3. Only the first pause after the beginning of a limit counts.
"""

from __future__ import annotations

import bisect

from otpy.values import Value, value

PAUSE = 1.0
"""How late a deadline is read after a pause, in seconds: at least so much."""

REMEMBERED = 1000
"""How many pauses are remembered, at least. For a limit that is older than all these, the
oldest of them is the first."""


def slack(heartbeat: float) -> float:
    """Return how late a deadline of a heartbeat is read after a pause, in seconds."""
    return min(PAUSE, heartbeat / 4)


@value
class Pause(Value):
    """A pause as a supervisor has noticed it.

    Attributes:
        end: When it was noticed.
        start: When the supervisor had been known to run for the last time before.
    """

    end: float
    start: float


class Pauses:
    """The pauses that one supervisor has noticed."""

    def __init__(self) -> None:
        self._pauses: list[Pause] = []

    def note(self, start: float, end: float) -> None:
        """Note a pause, unless that has been done."""
        if not self._pauses or end > self._pauses[-1].end:
            self._pauses.append(Pause(end, start))
        if len(self._pauses) > 2 * REMEMBERED:
            del self._pauses[:REMEMBERED]

    def after(self, began: float) -> Pause | None:
        """Return the first pause that ended after *began*; None: there was none."""
        place = bisect.bisect_right(self._pauses, began, key=lambda pause: pause.end)
        return self._pauses[place] if place < len(self._pauses) else None
