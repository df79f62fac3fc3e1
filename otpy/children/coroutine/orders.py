"""The event loop of coroutine children, as their supervisor's thread uses it.

Laws:
1. Orders are obeyed in the order in which they were given. All orders that a supervisor
   gives before it waits again cost one wake-up of the loop: a wake-up is a system call,
   and gives the interpreter away.
2. A loop lives while it has members. When the last one has left, the supervisor's
   thread decides: the loop lives on while the supervisor is going to restart a member
   that has ended by itself, however long its back-off is.
3. A blocked loop is given up as a whole: reported with its stack, marked as unstopped,
   left by its members. If it wakes up later, its tasks are cancelled, and it is closed.

Theory of operation. A ``Home`` makes a loop and gives orders; a ``LoopThread`` obeys.
A member may come while the last one leaves. So as long as members can come, the loop's
thread does not end the loop: it asks the supervisor's thread, on which members come
(``consider``). When no member can come any more (``close``), the loop's thread ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import ModuleType

from otpy.abc import Birth
from otpy.children.coroutine.blockage import Blockage
from otpy.children.coroutine.loop import LoopThread, new_loop
from otpy.children.coroutine.members import BLOCKED, LOST, Members
from otpy.children.coroutine.workers import Work
from otpy.reports import Stalled, Unstopped
from otpy.runtime import posix, stacks

BATCH = 256
"""How many orders may wait for the end of the supervisor's turn."""


class Home:
    """An event loop, its thread and its members, for the supervisor's thread.

    Methods run on that thread, unless their docstrings name another one.

    Args:
        name: Of the thread.
        path: Of the supervisor, or of the one child, that the loop is for.
        birth: Of the child for which it is made.
        is_shared: Whether siblings of that child may come, and replacements.
        uvloop: The module, if its loop is to be used.
        note: Called with each piece of work that a task gives to threads.

    Attributes:
        members: The children on the loop.
        host: The thread that runs the loop.
        blockage: The watch for a blockage.
    """

    def __init__(
        self,
        name: str,
        path: str,
        birth: Birth,
        *,
        is_shared: bool,
        uvloop: ModuleType | None,
        note: Callable[[Work], object],
    ) -> None:
        self.path = path
        self._tree, self._remind, self._soon = birth.tree, birth.remind, birth.soon
        self._returns_in = birth.returns_in
        self._will_ring = False
        self.members = Members(self._ask_all)
        must_ask = uvloop is not None
        self.blockage = Blockage(birth, self.members, self.order, self._give_up, must_ask=must_ask)
        # Where stdin, stdout or stderr are closed, the loop would get their numbers.
        with posix.occupied():
            loop = new_loop(self.blockage) if uvloop is None else uvloop.new_event_loop()
        ask = self._ask_whether_to_end if is_shared else None
        self.host = LoopThread(name, path, birth.tree, self.members, loop, ask, note)

    def begin(self, spawn: Callable[..., threading.Thread]) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no more threads, or the interpreter exits.
        """
        try:
            self.members.thread = spawn(self.host.run, if_lost=self._is_lost)
        except BaseException:
            self.host.loop.close()
            raise
        self.blockage.begin()

    def order(self, act: Callable[[], object]) -> None:
        """Have *act* called on the loop, with the other orders of this turn.

        If *act* is a method of a member and raises, the member has crashed.
        """
        self.host.orders.append(act)
        # The loop's thread may obey just now, and be past its last look at the orders.
        # It sets is_rung to False before it counts the orders. So it finds this one, or
        # this line finds is_rung False and rings again.
        if self.host.is_rung:
            return
        if len(self.host.orders) >= BATCH:
            self._ring()
        elif not self._will_ring:
            self._will_ring = True
            self._soon(self._ring)

    def close(self) -> None:
        """End the loop when its members have ended: no member comes any more."""
        self.host.is_closing = True
        self.order(self.host.settle)

    def stack(self) -> str:
        """Return what the thread is doing, formatted like a traceback."""
        thread = self.members.thread
        return stacks.stack_of(thread.ident) if thread is not None else ""

    @property
    def alive(self) -> bool:
        thread = self.members.thread
        return thread is not None and thread.is_alive()

    def consider(self) -> None:
        """End the loop, unless it has a member, or one will be restarted."""
        if self.members:
            return  # the last one that leaves asks again
        returns = {id: self._returns_in(id) for id in list(self.members.awaited)}
        waits = [wait for wait in returns.values() if wait is not None]
        if waits:
            self._remind(max(waits), self.consider)
            return
        for id in returns:
            self.members.awaited.pop(id, None)
        self.members.is_shut = True
        self.order(self.host.halt)

    def _ask_whether_to_end(self) -> None:
        """Have ``consider`` called; on the loop's thread.

        By then the supervisor has read how the last member has ended.
        """
        self._remind(0.0, self.consider)

    def _ring(self) -> None:
        self._will_ring = False
        if self.host.orders and not self.host.is_rung:
            self.host.is_rung = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: it obeys no more
                self.host.loop.call_soon_threadsafe(self.host.obey)

    def _ask_all(self) -> None:
        """Ask all members to stop; on any thread: no supervisor has them any more."""
        for member in self.members:
            member.stop()
        self._ring()

    def _is_lost(self) -> None:
        """End all members: the thread has ended without a word. On any thread."""
        self.members.is_shut = True
        self.members.end_all(LOST)

    def _give_up(self) -> None:
        """Give the blocked loop up: its members leave, and are replaced elsewhere."""
        self.members.is_shut = self.members.is_given_up = True
        members, name = list(self.members), self.host.name
        self.members.mark()
        stack = self.stack()
        tell = self._tree.telemetry.tell
        tell(Stalled(path=self.path, thread=name, reason=BLOCKED, stack=stack))
        self.order(self.host.halt)  # for the case that it wakes up
        running = asyncio.current_task(self.host.loop)
        owners = [member for member in members if member.owns(running)]
        escaped = [member for member in members if member.escape()]
        culprits = [member for member in owners or escaped if member in escaped]
        if not culprits:
            return  # all were asked to stop before: their ladders count the thread
        # The thread counts as unstopped under the name of the member that blocks it. If
        # that is not known, it has the name of any member that was on it.
        birth = culprits[0].birth
        report = Unstopped(
            path=birth.path,
            incarnation=birth.incarnation,
            thread=name,
            reason=BLOCKED,
            stack=stack,
        )
        tell(report)
        self._tree.left_behind(self, report)
