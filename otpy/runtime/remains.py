"""What has ended, and is released on a thread that may take its time.

A child that has ended leaves objects of its user behind: its exception, its saved
state, its arguments. The ``__del__`` of such an object may run for long. So a
supervisor's thread never drops the last reference to one.

Laws:
1. What is kept is dropped by a thread that no other part waits for: by the thread of a
   later child, after its last word, or by a helper thread.
2. Both threads may clear the same list. The first one drops what is in it, and the
   second one finds it empty.

All methods are called by the supervisor's thread, which owns this.
"""

from __future__ import annotations

import math
import time

from otpy.runtime import threads
from otpy.runtime.threads import Role

RELEASE_AFTER = 0.1
"""Seconds that things are kept at least, before a helper thread is started for them."""

FULL = 1024
"""With more things or lists than this, a helper thread is started at once."""

HANDED = 16
"""With more lists than this at later children, those that are empty are forgotten; and
again when twice as many as were left have been handed over."""

AGAIN = 1.0
"""Seconds after which a release is tried again for which the system had no thread."""


class Remains:
    """What one supervisor has to release.

    Attributes:
        at: The monotonic time from which it may be released; infinity: nothing is kept.
    """

    __slots__ = ("_handed", "_most", "_owner", "_path", "_things", "at")

    def __init__(self, path: str, owner: object) -> None:
        self._path, self._owner, self.at = path, owner, math.inf
        self._things: list[object] = []
        self._handed: list[list[object]] = []
        self._most = HANDED

    def keep(self, *things: object, after: float = RELEASE_AFTER) -> None:
        """Keep *things*, which the supervisor is about to forget.

        Args:
            things: May be anything, None as well.
            after: Seconds after which a helper thread may drop them.
        """
        self._things += things
        self.at = min(self.at, time.monotonic() + after)
        if len(self._things) > FULL:
            self.release()

    def hand_over(self) -> list[object]:
        """Return what is kept, for a child that clears the list at its end.

        If the child does not end soon, a helper thread clears the list.
        """
        handed, self._things = self._things, []
        self._handed.append(handed)
        if len(self._handed) > self._most:
            # Thousands of children may be replaced at once, and none of them ends soon.
            self._handed = [one for one in self._handed if one]
            self._most = max(HANDED, 2 * len(self._handed))
            if len(self._handed) > FULL:
                self.release()
        return handed

    def release(self) -> None:
        """Have all that is kept dropped by a helper thread."""
        kept, self.at = [one for one in (*self._handed, self._things) if one], math.inf
        self._handed, self._things, self._most = [], [], HANDED
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
        """Drop what is kept, on this thread: the supervisor has said its last word.

        What was handed over is left to the threads of the children.
        """
        self._handed.clear()
        self._things.clear()
