"""What has ended, and is released where that may take its time.

A child that has ended leaves objects of its user behind: its exception, what it has
saved, its arguments. The ``__del__`` of such an object may run for long, so a supervisor
never drops the last reference to one.

Laws:
1. What is kept is dropped by a thread that no other part waits for: by the thread of a
   later child, after it has said its last word, or by a helper thread.
2. Whichever of the two comes first drops it: a list that is cleared twice is empty twice.

All methods are called by the supervisor's thread, which owns this.
"""

from __future__ import annotations

import math
import time

from otpy.runtime import threads
from otpy.runtime.threads import Role

RELEASE_AFTER = 0.1
"""How long things are kept at least, in seconds, before a helper thread is started for them."""

FULL = 1024
"""So many things are not kept any longer."""

HANDED = 16
"""How many lists may be with later children before those that were cleared are forgotten."""

AGAIN = 1.0
"""If the system has no thread for it, the release is tried again after so many seconds."""


class Remains:
    """What one supervisor has to release.

    Attributes:
        at: The monotonic time from which it may be released; infinity: nothing is kept.
    """

    __slots__ = ("_handed", "_owner", "_path", "_things", "at")

    def __init__(self, path: str, owner: object) -> None:
        self._path, self._owner, self.at = path, owner, math.inf
        self._things: list[object] = []
        self._handed: list[list[object]] = []

    def keep(self, *things: object, after: float = RELEASE_AFTER) -> None:
        """Keep *things*: the supervisor is about to forget them."""
        self._things += things
        self.at = min(self.at, time.monotonic() + after)
        if len(self._things) > FULL:
            self.release()

    def hand_over(self) -> list[object]:
        """Return what is kept. The caller's child clears the list on its own thread, at its end.

        If that does not happen soon, a helper thread clears it.
        """
        handed, self._things = self._things, []
        self._handed.append(handed)
        if len(self._handed) > HANDED:
            self._handed = [one for one in self._handed if one]
        return handed

    def release(self) -> None:
        """Have all that is kept dropped by a helper thread."""
        kept, self.at = [one for one in (*self._handed, self._things) if one], math.inf
        self._handed, self._things = [], []
        if not kept:
            return

        def drop() -> None:
            for one in kept:
                one.clear()

        name, purpose = f"{self._path} (release)", "drops what has ended"
        try:
            threads.spawn(drop, name=name, role=Role.HELPER, purpose=purpose, owner=self._owner)
        except (RuntimeError, MemoryError):  # no more threads
            self._handed, self.at = kept, time.monotonic() + AGAIN

    def drop(self) -> None:
        """Drop what is kept: the supervisor has said its last word, so nothing waits for its thread.

        Not what was handed over: the threads of the children clear that.
        """
        self._handed.clear()
        self._things.clear()
