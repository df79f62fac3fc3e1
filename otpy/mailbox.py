"""Where threads wait: Mailbox, Timers, Reply, and Bell for the main thread. The only module that waits."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from otpy.exceptions import CallTimeout


class SystemClock:
    """The clock of the machine."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def bounded(seconds: float) -> float:
    """Return *seconds* as something that the platform can wait for."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


class Mailbox:
    """A queue with many writers and one reader: the supervisor's thread.

    Law: what is put is either read or, once the box is closed, given to the one who closed it. The race is between a
    writer that has seen an open box and the reader that closes it: each looks again after its own step, so whoever is
    second finds the item.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._refuse: Callable[[Any], None] | None = None

    def put(self, item: object) -> None:
        """Put *item*; never blocks; may be called by signal handlers too."""
        self._queue.put(item)
        if self._refuse is not None:
            self._drain(self._refuse)

    def get(self, timeout: float | None) -> Any:
        """Wait for the next item; raise ``queue.Empty`` after *timeout* seconds."""
        return self._queue.get(timeout=timeout and bounded(timeout))

    def close(self, refuse: Callable[[Any], None]) -> None:
        """Close the box: all that is in it, and all that comes, goes to *refuse*."""
        self._refuse = refuse
        self._drain(refuse)

    def take_all(self) -> Iterator[Any]:
        """Yield what is in the box now, and not what comes meanwhile."""
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
    """At most one deadline per ref, in a heap; entries that were re-armed or disarmed are skipped when they surface."""

    def __init__(self) -> None:
        self._armed: dict[int, tuple[float, int, int]] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, ref: int, at: float) -> None:
        """Set the deadline of *ref*; the one it had is gone."""
        entry = self._armed[ref] = (at, next(self._count), ref)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 2 * len(self._armed):
            self._heap = sorted(self._armed.values())  # a sorted list is a heap

    def disarm(self, ref: int) -> None:
        """Forget the deadline of *ref*, if it has one."""
        self._armed.pop(ref, None)

    def next(self) -> float | None:
        """Return the earliest deadline, None if there is none."""
        heap, armed = self._heap, self._armed
        while heap and armed.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> int | None:
        """Remove and return the ref of the earliest deadline that is not after *now*, None if there is none."""
        at = self.next()
        if at is None or at > now:
            return None
        ref = heapq.heappop(self._heap)[2]
        del self._armed[ref]
        return ref


class Once:
    """Something that happens once: one thread says so, others wait for it.

    Law: whoever says so never takes a lock. A thread that waits may be interrupted at any bytecode, and would leave a
    lock that it holds just then locked for ever; so here is nothing but a dict, and for each who waits a lock that
    only it takes. The race is between one that has seen nothing yet and the one who says so: each looks again after
    its own step, and who takes a waker out of the dict calls it.
    """

    __slots__ = ("_wakers", "has_happened")

    def __init__(self) -> None:
        self._wakers: dict[object, Callable[[], object]] = {}
        self.has_happened = False

    def happen(self) -> None:
        """Wake all who wait, and let nobody wait any more."""
        self.has_happened = True
        if self._wakers:
            self._wake()

    def when(self, key: object, callback: Callable[[], object]) -> None:
        """Have *callback* called when it happens, on the thread that says so, or now if it has happened."""
        self._wakers[key] = callback
        if self.has_happened:
            self._wake()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it has happened, or *timeout* seconds; return whether it has."""
        if not self.has_happened:
            lock = threading.Lock()
            lock.acquire()
            self.when(lock, lock.release)
            try:
                lock.acquire(timeout=-1 if timeout is None else bounded(timeout))
            finally:
                self._wakers.pop(lock, None)
        return self.has_happened

    def _wake(self) -> None:
        while self._wakers:
            with contextlib.suppress(KeyError):  # another one has just taken the last
                self._wakers.popitem()[1]()


class Reply:
    """A one-shot answer: given once by a supervisor's thread, waited for by callers on theirs."""

    __slots__ = ("_error", "_given", "_value")

    def __init__(self) -> None:
        self._given = Once()
        self._value: Any = None
        self._error: Exception | None = None

    def answer(self, value: object) -> None:
        """Give the answer."""
        self._value = value
        self._given.happen()

    def refuse(self, error: Exception) -> None:
        """Answer with an exception."""
        self._error = error
        self._given.happen()

    def when_given(self, key: object, callback: Callable[[], object]) -> None:
        """Have *callback* called when the answer is there; on the thread that gives it, or at once."""
        self._given.when(key, callback)

    @property
    def is_given(self) -> bool:
        return self._given.has_happened

    def wait(self, timeout: float | None, path: str) -> Any:
        """Return the answer, or raise it.

        Raises:
            CallTimeout: There was none after *timeout* seconds.
        """
        if not self._given.wait(timeout):
            raise CallTimeout(path)
        if self._error is not None:
            raise self._error
        return self._value


class Bell:
    """Lets the main thread wait for a reply and for signals at once.

    The system may deliver a signal to any thread, and does so when another one is just pending for the main thread.
    Python's handler then waits until the main thread runs Python code, which it does not while it waits for a lock. So
    it waits at a socket instead, and both signals and replies write to that.
    """

    def __init__(self) -> None:
        self._inside, self._button = socket.socketpair()
        self._button.setblocking(False)
        self._before = signal.set_wakeup_fd(self._button.fileno(), warn_on_full_buffer=False)

    def wait(self, reply: Reply, timeout: float | None, path: str) -> Any:
        """Return the answer, or raise it, as ``Reply.wait`` does; signal handlers run meanwhile."""
        reply.when_given(self, self._ring)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not reply.is_given:
            self._inside.settimeout(None if deadline is None else bounded(max(0.001, deadline - time.monotonic())))
            try:
                self._inside.recv(4096)
            except TimeoutError:
                break
        return reply.wait(0.0, path)

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(self._before)
        self._inside.close()
        self._button.close()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it has rung often enough, or nobody waits any more
            self._button.send(b"!")
