"""What the thread of a supervisor waits at: its mailbox and its timers.

Laws:
1. What is put into a mailbox is either read or, once the mailbox is closed, given to the
   function that its reader named. Nothing is lost.
2. ``put`` never blocks. Any thread may call it, and so may a signal handler.
3. A ref has at most one deadline.

Any thread puts. Only the thread of the supervisor reads and closes its mailbox, and
only this thread uses its timers.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Mailbox:
    """A queue with many writers and one reader: the thread of the supervisor.

    Attributes:
        post: Puts an item like ``put``, but is a function in C: it works where there is
            no memory for a frame of Python. An item that is posted after the closing is
            dropped.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.post: Callable[[object], object] = self._queue.put
        self._refuse: Callable[[Any], None] | None = None

    def put(self, item: object) -> None:
        """Put *item*. Never blocks."""
        self._queue.put(item)
        # The reader may close the box between the caller's decision to put and the put:
        # then nothing reads the item any more. The writer puts first and looks second;
        # the reader closes first and drains second. So whichever thread makes its
        # second step later finds the item.
        if self._refuse is not None:
            self._drain(self._refuse)

    def get(self, timeout: float | None) -> Any:
        """Wait for the next item and return it.

        Args:
            timeout: Seconds; None: without a limit.

        Raises:
            queue.Empty: None came within *timeout* seconds.
        """
        return self._queue.get(
            timeout=None if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        )

    def close(self, refuse: Callable[[Any], None]) -> None:
        """Close the box: each item in it, and each that still comes, goes to *refuse*."""
        self._refuse = refuse
        self._drain(refuse)

    def take_all(self) -> Iterator[Any]:
        """Yield the items that are in the box now, and none that comes meanwhile."""
        for _ in range(self._queue.qsize()):
            yield self._queue.get_nowait()

    def empty(self) -> bool:
        return self._queue.empty()

    def _drain(self, refuse: Callable[[Any], None]) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            refuse(item)


class Timers:
    """Deadlines by ref, in a heap.

    An entry whose deadline was set anew or removed stays in the heap. It is skipped when
    it comes to the top.
    """

    def __init__(self) -> None:
        self._armed: dict[int, tuple[float, int, int]] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, ref: int, at: float) -> None:
        """Set the deadline of *ref* in place of the one that it had."""
        entry = self._armed[ref] = (at, next(self._count), ref)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 2 * len(self._armed):
            self._heap = sorted(self._armed.values())  # a sorted list is a heap

    def disarm(self, ref: int) -> None:
        """Remove the deadline of *ref*, if it has one."""
        self._armed.pop(ref, None)

    def next(self) -> float | None:
        """Return the earliest deadline; None if there is none."""
        heap, armed = self._heap, self._armed
        while heap and armed.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> int | None:
        """Remove the earliest deadline that is not after *now* and return its ref.

        Returns None if there is none.
        """
        at = self.next()
        if at is None or at > now:
            return None
        ref = heapq.heappop(self._heap)[2]
        del self._armed[ref]
        return ref
