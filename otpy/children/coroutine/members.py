"""The members of an event loop: the coroutine children that run on it.

Two threads use a ``Members``: the supervisor's thread lets members in, and gives them
up; the loop's thread lets them out. There is no lock between them. Another thread may
raise an exception in the loop's thread between any two steps (since Python 3.14 also
between ``__enter__`` and the block of a ``with``). A lock would stay locked then, and
the supervisor would wait for it. So each thread looks again after its own step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from otpy.abc import Birth
from otpy.reports import CRASHED, KILLED, STALLED, ExitReason
from otpy.runtime import threads
from otpy.runtime.threads import ThreadState

BLOCKED = ExitReason(STALLED, detail="its event loop was blocked")
CLOSED = ExitReason(KILLED, detail="its event loop was closed")
LOST = ExitReason(CRASHED, detail="the thread of its event loop ended without a word")


class Member(Protocol):
    """A child on a loop."""

    @property
    def birth(self) -> Birth:
        """What it was made from."""

    def stop(self) -> None:
        """Ask it to stop. Called on any thread, if no supervisor has it any more."""

    def end(self, reason: ExitReason) -> None:
        """Report that it has ended, unless that was reported; called on any thread."""

    def escape(self) -> bool:
        """Leave the blocked loop; called on the supervisor's thread.

        False: it was asked to stop before, so it stays on the ladder of that stop.
        """

    def owns(self, task: asyncio.Task[object] | None) -> bool:
        """Return whether it has started *task*; called on any thread."""

    def look(self) -> None:
        """Go on where one of its callbacks was lost, if one was. Called on the loop."""


class Members:
    """The members of one loop, and the state of its thread that follows from them.

    Args:
        ask_all: Asks all members to stop; may be called on any thread.

    Attributes:
        thread: The loop's thread; None: it was not started.
        is_shut: Whether no member is let in any more. Both threads set it.
        is_given_up: Whether the loop is blocked. The supervisor's thread sets it.
        awaited: The ids of members that have ended by themselves, and may be restarted.
            The loop's thread adds, the supervisor's thread removes.
    """

    def __init__(self, ask_all: Callable[[], None]) -> None:
        self._ask_all = ask_all
        self._all: dict[Member, None] = {}
        self._let_go: dict[Member, ThreadState] = {}
        self.thread: threading.Thread | None = None
        self.is_shut = self.is_given_up = False
        self.awaited: dict[str, None] = {}

    def __iter__(self) -> Iterator[Member]:
        """Yield the members of this moment: the other thread may change them."""
        return iter(list(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, member: object) -> bool:
        return member in self._all

    def let_in(self, member: Member) -> bool:
        """Let *member* in; False: the loop is shut. On the supervisor's thread."""
        if self.is_shut:
            return False
        self._all[member] = None
        # The loop's thread may find just now that the loop is broken. It would end all
        # members that it sees, and this one would never end if it came after that. The
        # loop's thread shuts the loop first, and then looks for members. So if it does
        # not see this member, this line sees that the loop is shut.
        if self.is_shut:
            self._all.pop(member, None)
            return False
        self.awaited.pop(member.birth.spec.id, None)
        if self._let_go:
            self.mark()
        return True

    def let_go(self, member: Member, state: ThreadState) -> None:
        """Note that *member* was given up or detached. On the supervisor's thread."""
        if member in self._all:  # otherwise it has just ended
            self._let_go[member] = state
            # The loop's thread may let the member out just now. If it has looked into
            # _let_go before the line above, the member would stay there for ever. It
            # removes the member from _all first. So then this line does not find it.
            if member not in self._all:
                self._let_go.pop(member, None)
        self.mark()

    def let_out(self, member: Member) -> None:
        """Remove *member*. On the loop's thread."""
        self._all.pop(member, None)
        was_let_go = self._let_go.pop(member, None) is not None
        # Mark the thread also if the last member that was given up has left: the next
        # member may come just now.
        if self._let_go or was_let_go:
            self.mark()

    def end_all(self, reason: ExitReason) -> None:
        """Report the end of each member that is left. On any thread."""
        for member in self:
            member.end(reason)

    def mark(self) -> None:
        """Note in the record of threads what the loop's thread is. On any thread.

        Two threads may do this at once, and the older state could be noted last. Each
        computes the state again after its note, until both agree. So the last note is
        true.
        """
        noted = None
        while self.thread is not None and (state := self._state()) is not noted:
            ask = None if state is ThreadState.RUNNING else self._ask_all
            threads.mark(self.thread, state, ask)
            noted = state

    def _state(self) -> ThreadState:
        """Return the state of a thread on which all that is left was let go."""
        if self.is_given_up:
            return ThreadState.UNSTOPPED
        states = list(self._let_go.values())
        if not states or len(states) < len(self._all):
            return ThreadState.RUNNING
        return ThreadState.DETACHED if ThreadState.DETACHED in states else ThreadState.UNSTOPPED
