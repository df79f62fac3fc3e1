"""The deadlines of stops in real time, for a tree whose own clock may stand still.

A test owns such a clock. Without real time its tree could never be stopped by force.

Laws:
1. A stop that has a limit ends when either clock says so.
2. No other deadline, such as a heartbeat or a back-off, goes by real time.

All methods are called by the thread of one supervisor, which owns this.
"""

from __future__ import annotations

import time

from otpy.core.messages import SUPERVISOR
from otpy.runtime.mailbox import Timers


class StopTimers:
    """The deadlines of the stops of one supervisor and of its children.

    Attributes:
        asked: The refs of the children that were asked to stop. Only the deadlines of
            these, and of the supervisor itself, belong to a stop.
    """

    def __init__(self) -> None:
        self.asked = {SUPERVISOR}
        self._timers = Timers()

    def arm(self, ref: int, seconds: float) -> None:
        """Set the deadline of *ref*, in seconds from now, if it belongs to a stop."""
        if ref in self.asked:
            self._timers.arm(ref, time.monotonic() + seconds)

    def disarm(self, ref: int) -> None:
        """Clear the deadline of *ref*."""
        self._timers.disarm(ref)

    def forget(self, ref: int) -> None:
        """Forget a child that has ended or was given up."""
        self.asked.discard(ref)
        self._timers.disarm(ref)

    def sooner(self, left: float | None) -> float | None:
        """Return *left*, or the seconds until the first deadline here, if fewer."""
        at = self._timers.next()
        if at is None:
            return left
        here = at - time.monotonic()
        return here if left is None else min(left, here)

    def pop_due(self, ref: int | None, others: Timers) -> int | None:
        """Return the ref whose time is up, and clear its deadline by both clocks.

        Args:
            ref: The ref that is due by the tree's clock, and was taken out of *others*;
                None: no ref is.
            others: The deadlines by the tree's clock.
        """
        if ref is not None:
            self._timers.disarm(ref)
        elif (ref := self._timers.pop_due(time.monotonic())) is not None:
            others.disarm(ref)
        return ref
