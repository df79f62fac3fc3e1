"""One call of ``shutdown_all``: ask all threads, wait for their ends, count them.

Laws:
1. All threads are asked before any is waited for, and one budget bounds all waits.
2. A call never waits for a thread or a tree that waits for this call.
3. Numbers are true: each thread that was seen is named, as joined or as timed out.

A ``Shutdown`` belongs to the thread that has called ``shutdown_all``. Other calls that
are under way read its ``caller``, which does not change once the call is in their list.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable

import attrs

from otpy.exceptions import CallTimeout
from otpy.runtime import log, threads
from otpy.runtime.threads import Entry, ThreadState
from otpy.runtime.tree import Tree
from otpy.runtime.waiting import Reply
from otpy.values import Value, report, running

TREES_SHARE = 0.9
"""The part of the budget in which trees must end. So it is known in time which children
they give up."""


@report
class ShutdownStats(Value):
    """What became of the threads. ``total`` is the sum of ``joined`` and ``timeout``.

    Attributes:
        total: How many ran when ``shutdown_all`` was called, without the calling one.
        joined: How many of them have ended.
        timeout: How many of them still ran when it returned.
        orphaned: How many of ``timeout`` have no waiter left: daemon threads that
            belong to no running tree. The interpreter cuts them off when it exits. It
            waits for the others, or their tree does.
        duration: Seconds that the call took.
        joined_names, timeout_names, orphaned_names: Their names, in the order of their
            starts.
    """

    total: int
    joined: int
    timeout: int
    orphaned: int
    duration: float
    joined_names: tuple[str, ...]
    timeout_names: tuple[str, ...]
    orphaned_names: tuple[str, ...]


@running
class Shutdown:
    """One call of ``shutdown_all``.

    Attributes:
        calls: The calls of this registry that are under way, in the order in which they
            began to wait. All threads that call share this list.
        timeout: The budget, in seconds.
        began: When the call began, monotonic.
        caller: The entry of the calling thread, if the registry tracks it.
        seen: The entries of the other threads.
        ends: The replies that the trees give when they have ended.
        earlier: The calls that may wait for the calling thread. This call must not wait
            for their threads.
        asked: The threads that trees have let go, and that have been asked.
    """

    calls: list[Shutdown]
    timeout: float
    began: float = attrs.field(factory=time.monotonic)
    caller: Entry | None = None
    seen: list[Entry] = attrs.field(factory=list)
    ends: dict[Tree, Reply] = attrs.field(factory=dict)
    earlier: list[Shutdown] = attrs.field(factory=list)
    asked: set[Entry] = attrs.field(factory=set)

    def look(self, entries: Callable[[], Iterable[Entry]]) -> None:
        """Note which threads run now.

        Args:
            entries: Returns the entries of all threads that the registry tracks.
        """
        here = threading.current_thread()
        for entry in entries():
            if entry.thread is here:
                self.caller = entry
            else:
                self.seen.append(entry)

    def queue_up(self) -> None:
        """Note which calls came before. The list is in order, and this call is in it.

        Of two tracked threads that call at once each would wait for the end of the
        other. The order of the list decides: only the earlier one waits.
        """
        calls = list(self.calls)
        self.earlier = calls[: calls.index(self)] if self.caller is not None else []

    def ask(self, ask_trees: Callable[[float], dict[Tree, Reply]]) -> None:
        """Ask the trees, and the threads that trees have let go.

        The flag of the registry asks all others, and is set by now.

        Args:
            ask_trees: Asks all trees to end within so many seconds.
        """
        self.ends = ask_trees(self.timeout * TREES_SHARE)
        self._ask_let_go()

    def wait(self) -> None:
        """Wait for the trees, then for the threads, as long as the budget lasts."""
        for tree, end in self.ends.items():
            if tree not in self._waits_for_us():
                with contextlib.suppress(CallTimeout):
                    end.wait(self._left(), tree.root)
        # Until its end a tree may have let go further children. Nothing else asks
        # these.
        self._ask_let_go()
        bound = self._waits_for_us()
        threads.join_all([entry for entry in self.seen if will_end(entry, bound)], self._left())

    def stats(self) -> ShutdownStats:
        """Look again, and count."""
        # Look at the trees before the look at their threads. A tree may end between the
        # two. In the other order its child could be seen alive and then its tree ended,
        # and would be called an orphan although the tree has waited for it.
        running = {tree for tree, end in self.ends.items() if not end.is_given}
        alive = dict.fromkeys(entry for entry in self.seen if entry.alive)
        joined = tuple(entry.name for entry in self.seen if entry not in alive)
        left = tuple(entry.name for entry in alive)
        orphaned = tuple(
            entry.name
            for entry in alive
            if entry.thread.daemon and not (is_bound(entry) and entry.owner in running)
        )
        return ShutdownStats(
            total=len(self.seen),
            joined=len(joined),
            timeout=len(left),
            orphaned=len(orphaned),
            duration=time.monotonic() - self.began,
            joined_names=joined,
            timeout_names=left,
            orphaned_names=orphaned,
        )

    def _ask_let_go(self) -> None:
        for entry in self.seen:
            if entry.ask is not None and entry not in self.asked:
                self.asked.add(entry)
                try:
                    entry.ask()
                # a kind of child from outside otpy may break its contract
                except BaseException as error:
                    log.complain("ask_failed", error, path=entry.name)

    def _left(self) -> float:
        return max(0.0, self.began + self.timeout - time.monotonic())

    def _holds(self) -> set[object]:
        """Return what cannot end before this call returns: the caller, and its tree."""
        if self.caller is None:
            return set()
        return {self.caller.thread, *([self.caller.owner] if is_bound(self.caller) else [])}

    def _waits_for_us(self) -> set[object]:
        """Return the threads and trees that wait for this call.

        They are what this call holds, and what the earlier calls hold. So of two calls
        at most one waits for the other.
        """
        calls = [call for call in self.earlier if call in self.calls]
        return self._holds().union(*(call._holds() for call in calls))


def is_bound(entry: Entry) -> bool:
    """Whether a tree waits for the end of this thread."""
    return isinstance(entry.owner, Tree) and entry.state is ThreadState.RUNNING


def will_end(entry: Entry, bound: set[object]) -> bool:
    """Whether it makes sense to wait for this thread.

    Args:
        bound: The threads and trees that wait for the calling thread.
    """
    if entry.state is ThreadState.UNSTOPPED or entry.thread in bound:
        return False
    # The calling thread is a signal handler in the middle of ``spawn``. The new thread
    # does not start before the handler returns.
    if not entry.has_begun and entry.starter == threading.get_ident():
        return False
    return not (is_bound(entry) and entry.owner in bound)
