"""How a blocked event loop is found.

Laws:
1. A loop that does not come back to its selector within BLOCKED_AFTER is blocked.
2. An idle loop is not woken for that, and costs its supervisor no wake-up.
3. Time in which the whole parent process could not run does not count (pauses.py), nor
   does time under a debugger.

Theory of operation. The selector of the loop notes when the loop goes to work, and when
it comes back. If the loop goes to work and is not watched, the selector has the
supervisor's thread look at the loop BLOCKED_AFTER seconds later. If the loop is in its
selector then, it is not watched any more. So a loop that works costs its supervisor two
wake-ups in BLOCKED_AFTER, and an idle loop costs none.

A uvloop has no selector that could note this. It is asked for an answer every
BLOCKED_AFTER seconds, also when it is idle.

``Selector`` runs on the loop's thread, and calls ``Blockage.watch`` there; so does
``_has_answered``. All else of ``Blockage`` runs on the supervisor's thread.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable

from otpy.abc import Birth
from otpy.children.coroutine.members import Members
from otpy.core.pauses import PAUSE
from otpy.runtime import debugger, threads

BLOCKED_AFTER = 5.0
"""For how many seconds a loop may work without a look at its selector."""

BUSY = 0.1
"""After how many seconds without a look at its selector a loop is busy.

Then the stack of its thread says more than those of its tasks.
"""


class Blockage:
    """The watch for a blockage of one loop.

    Args:
        birth: Of a child for which the loop is made.
        members: The loop is not watched any more when they are shut.
        order: Has a function called on the loop.
        give_up: Called when the loop is blocked.
        must_ask: Whether the loop has to be asked, since it has no ``Selector``.

    Attributes:
        busy_since: When the loop went to work; None: it is in its selector, or has
            answered. The loop's thread writes it; where the loop has to be asked, the
            supervisor's thread sets it, too.
        is_watched: Whether a look at the loop is due.
    """

    def __init__(
        self,
        birth: Birth,
        members: Members,
        order: Callable[[Callable[[], object]], object],
        give_up: Callable[[], object],
        *,
        must_ask: bool,
    ) -> None:
        self.monotonic = birth.tree.clock.monotonic
        self._tree, self._remind = birth.tree, birth.remind
        self._members, self._order, self._give_up = members, order, give_up
        self._must_ask = must_ask
        self._look_at = 0.0
        self._excused: float | None = None
        self.busy_since: float | None = None
        self.is_watched = False

    def begin(self) -> None:
        """Begin to ask a loop that has to be asked."""
        if self._must_ask:
            self.watch(BLOCKED_AFTER)

    @property
    def is_busy(self) -> bool:
        """Whether the loop has not looked at its selector for a while."""
        since = self.busy_since
        return since is not None and self.monotonic() - since >= BUSY

    def watch(self, seconds: float) -> None:
        """Have the supervisor's thread look at the loop in *seconds*. On any thread."""
        self.is_watched, self._look_at = True, self.monotonic() + seconds
        self._remind(seconds, self._look)

    def _look(self) -> None:
        since = self.busy_since
        if self._members.is_shut:
            return
        if since is None:
            self._is_well()
        elif (left := since + BLOCKED_AFTER - self.monotonic()) > 0:
            self.watch(left)
        elif self._is_excused(since):
            self.watch(BLOCKED_AFTER)
        else:
            self._give_up()

    def _is_well(self) -> None:
        """Stop to watch, or ask the next time."""
        if self._must_ask:
            self.busy_since = self.monotonic()
            self._order(self._has_answered)
            self.watch(BLOCKED_AFTER)
            return
        self.is_watched = False
        # The loop may have gone to work just before the line above, and have seen that
        # it is watched: then nothing would look at it. Its selector sets busy_since
        # first, and then reads is_watched. So one of both threads sees the other.
        if self.busy_since is not None:
            self.watch(BLOCKED_AFTER)

    def _has_answered(self) -> None:
        """Note that a loop that has to be asked has answered; on the loop."""
        self.busy_since = None

    def _is_excused(self, since: float) -> bool:
        """Return whether a loop that is late since *since* is not to blame.

        This look is late as well: the whole process could not run. That counts once.
        """
        if self.monotonic() - self._look_at >= PAUSE and self._excused != since:
            self._excused = since
            return True
        return not self._tree.heartbeats or debugger.is_attached()


class Elsewhere(BaseException):
    """Raised where a loop must not go on: in a fork that one of its tasks has made."""


class Selector(selectors.DefaultSelector):
    """The selector of a loop; notes when the loop comes back to it and goes to work.

    Raises:
        Elsewhere: This is a fork of the process in which the loop was made.
    """

    def __init__(self, blockage: Blockage) -> None:
        super().__init__()
        self._blockage, self._forks = blockage, threads.forks

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if threads.forks != self._forks:
            raise Elsewhere
        blockage = self._blockage
        blockage.busy_since = None
        events = super().select(timeout)
        blockage.busy_since = blockage.monotonic()
        if not blockage.is_watched:
            blockage.watch(BLOCKED_AFTER)
        return events
