"""Where threads wait: Door, Mailbox, Timers, Reply, and Bell for the main thread. The only module that waits."""

from __future__ import annotations

import contextlib
import functools
import heapq
import io
import itertools
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from otpy.exceptions import CallTimeout, StartError
from otpy.runtime import posix


class SystemClock:
    """The clock of the machine."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def bounded(seconds: float) -> float:
    """Return *seconds* as something that the platform can wait for."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


class Door:
    """A lock for ``with`` that no exception leaves locked, wherever it comes from.

    A signal handler, or another thread, may raise at the end of any call in Python code. Since Python 3.14 ``with``
    calls ``__enter__`` like that: where it is a function in C, the lock is taken then, and the block has not begun.

    Here ``__enter__`` is a function in Python, at whose return nothing is raised. What it calls to take the lock is
    called by one instruction that is no call: it makes a list. ``__exit__`` is that of the lock, so it gives the lock
    back before anything can be raised.
    """

    __slots__ = ("__exit__", "acquire", "release")

    def __init__(self, lock: threading.Lock | threading.RLock) -> None:
        self.acquire, self.release, self.__exit__ = lock.acquire, lock.release, lock.__exit__

    def __enter__(self) -> None:
        _ = [*map(self.acquire, BLOCKING)]


BLOCKING = (True,)
"""The arguments of the one call of ``acquire``."""


class Mailbox:
    """A queue with many writers and one reader: the supervisor's thread.

    Law: what is put is either read or, once the box is closed, given to the one who closed it. The race is between a
    writer that has seen an open box and the reader that closes it: each looks again after its own step, so whoever is
    second finds the item.

    Attributes:
        post: Puts an item like ``put``, but is no Python function: it works where there is no memory for one. What is
            posted after the closing is dropped.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.post: Callable[[object], object] = self._queue.put
        self._refuse: Callable[[Any], None] | None = None

    def put(self, item: object) -> None:
        """Put *item*; never blocks; may be called by signal handlers too."""
        self._queue.put(item)
        if self._refuse is not None:
            self._drain(self._refuse)

    def get(self, timeout: float | None) -> Any:
        """Wait for the next item; raise ``queue.Empty`` after *timeout* seconds."""
        return self._queue.get(
            timeout=None if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        )

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
    its own step. A waker is called before it is taken out of the dict: one that is taken out first is lost if an
    exception comes in between. So it may be called twice.
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
        """Have *callback* called when it happens, once or twice, on the thread that says so.

        If it has happened, it is called now.
        """
        self._wakers[key] = callback
        if self.has_happened:
            self._wake()

    def forget(self, key: object) -> None:
        """Do not call the callback of *key* any more."""
        self._wakers.pop(key, None)

    def wait(self, timeout: float | None) -> bool:
        """Wait until it has happened, or *timeout* seconds; return whether it has."""
        if not self.has_happened:
            lock = threading.Lock()
            lock.acquire()
            self.when(lock, lock.release)
            try:
                lock.acquire(timeout=-1 if timeout is None else bounded(timeout))
            finally:
                self.forget(lock)
        return self.has_happened

    def _wake(self) -> None:
        for key, waker in list(self._wakers.items()):
            with contextlib.suppress(RuntimeError):  # another thread has released that lock
                waker()
            self._wakers.pop(key, None)


class Reply:
    """A one-shot answer: given once by a supervisor's thread, waited for by callers on theirs.

    Attributes:
        given: Happens when the answer is there.
    """

    __slots__ = ("_error", "_value", "given")

    def __init__(self) -> None:
        self.given = Once()
        self._value: Any = None
        self._error: Exception | None = None

    def answer(self, value: object) -> None:
        """Give the answer."""
        self._value = value
        self.given.happen()

    def refuse(self, error: Exception) -> None:
        """Answer with an exception."""
        self._error = error
        self.given.happen()

    def when_given(self, key: object, callback: Callable[[], object]) -> None:
        """Have *callback* called when the answer is there; on the thread that gives it, or at once."""
        self.given.when(key, callback)

    @property
    def is_given(self) -> bool:
        return self.given.has_happened

    @property
    def is_refused(self) -> bool:
        """Whether the answer is an exception."""
        return self._error is not None

    def is_given_within(self, seconds: float) -> bool:
        """Wait *seconds* for the answer; return whether it is there."""
        return self.given.wait(seconds)

    def wait(self, timeout: float | None, path: str) -> Any:
        """Return the answer, or raise it.

        Raises:
            CallTimeout: There was none after *timeout* seconds.
        """
        if not self.given.wait(timeout):
            raise CallTimeout(path)
        if self._error is not None:
            if isinstance(self._error, StartError):
                self._error.open()  # here, on the thread that is going to have it
            raise self._error
        return self._value


RING = b"\0"
"""What a reply writes to a bell. No signal has this number."""


class Bell:
    """Lets the main thread wait for a reply and for signals at once.

    The system may deliver a signal to any thread, and does so when another one is just pending for the main thread.
    Python's handler then waits until the main thread runs Python code, which it does not while it waits for a lock. So
    it waits at a socket instead, and both signals and replies write to that.

    Laws:
    1. ``close`` puts back the wakeup descriptor that was there before, whatever has
       interrupted ``open``; a second ``close`` does nothing. So what ``open`` takes is
       kept in the same step of C in which it is taken: between two bytecodes a signal
       handler may raise.
    2. The number of a signal that is none of *mine* is passed on to the descriptor that
       was there before. An event loop of the program learns of its signals by that, and
       by nothing else.
    """

    def __init__(self, mine: Collection[int] = ()) -> None:
        self._mine = frozenset(mine)
        self._ends: list[Any] = []  # where it is heard, and the button
        self._placeholders: list[io.FileIO] = []
        self._before: list[int] = []
        self._heard: list[bytes] = []

    def open(self) -> None:
        """Begin to listen.

        Raises:
            ValueError: This is not the main thread of the main interpreter.
            OSError: The system has no more descriptors to give.
        """
        make = posix.pair_maker()
        posix.occupy(self._placeholders)
        self._ends[:] = make()
        posix.vacate(self._placeholders)
        self._ends[1].setblocking(False)
        take = functools.partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
        self._before[:] = map(take, (self._ends[1].fileno(),))

    def wait(self, reply: Reply, until: Callable[[], float]) -> bool:
        """Wait until *reply* is given; return whether it is. Signal handlers run
        meanwhile, and may raise.

        Args:
            until: Returns the monotonic time at which the wait ends; asked again after
                each signal.
        """
        inside = self._ends[0]
        reply.when_given(self, self._ring)
        while not reply.is_given and (left := until() - time.monotonic()) > 0:
            inside.settimeout(bounded(left) if left < threading.TIMEOUT_MAX else None)
            with contextlib.suppress(TimeoutError):
                self._heard.extend(map(inside.recv, (4096,)))
            self._pass_on()
        return reply.is_given

    def close(self) -> None:
        """Put back what was there before."""
        if self._before:
            self._give_back(self._before[0])
            self._pass_on_the_rest()
            self._before.clear()
        posix.vacate(self._placeholders)
        while self._ends:
            self._ends[-1].close()
            self._ends.pop()

    def abandon(self) -> None:
        """The same in a fork: what has been heard is the other process's."""
        if self._before:
            self._give_back(self._before[0])
            self._before.clear()
        self.close()

    def _give_back(self, before: int) -> None:
        try:
            signal.set_wakeup_fd(before)
        except (OSError, ValueError):  # its owner has closed it meanwhile
            signal.set_wakeup_fd(-1)

    def _pass_on_the_rest(self) -> None:
        self._ends[0].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._heard.extend(map(self._ends[0].recv, (4096,)))
        self._pass_on()

    def _pass_on(self) -> None:
        while self._heard:
            others = bytes(
                number
                for number in self._heard[0]
                if number not in self._mine and number != RING[0]
            )
            if others and self._before and self._before[0] >= 0:
                with contextlib.suppress(OSError):  # full, or closed
                    os.write(self._before[0], others)
            self._heard.pop(0)

    def _ring(self) -> None:
        with contextlib.suppress(
            OSError, IndexError
        ):  # it has rung often enough, or nobody waits any more
            self._ends[1].send(RING)
