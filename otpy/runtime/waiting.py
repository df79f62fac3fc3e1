"""What threads wait at for each other: Once, Reply, Bell; and Door, a lock that is safe.

Each class here expects that an exception may arise at any bytecode: another thread may
raise one in a child, a signal handler in the main thread.

Laws:
1. A thread that calls ``happen``, ``answer`` or ``refuse`` takes no lock and never
   blocks.
2. An exception in a thread that waits leaves no lock locked, no callback forgotten, and
   no wakeup descriptor changed once the bell is closed.
3. No wait fails because its limit is longer than the platform can count.

Any thread may use these objects; a Bell belongs to the main thread.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from otpy.exceptions import CallTimeout, StartError
from otpy.runtime import posix


class SystemClock:
    """The clock of the machine."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def bounded(seconds: float) -> float:
    """Return *seconds*, or the nearest time that the platform can wait for."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


BLOCKING = (True,)
"""The arguments of the one call of ``acquire`` that a Door makes."""


class Door:
    """A lock for ``with`` that no exception leaves locked.

    A signal handler, or another thread, may raise at the end of any call in Python code.
    Since Python 3.14 ``with`` calls ``__enter__`` like that. If ``__enter__`` is a
    function in C, the lock is taken at that moment, and the block has not begun.

    So ``__enter__`` is a function in Python here: nothing is raised at its return. It
    takes the lock in an instruction that is no call, the making of a list. ``__exit__``
    is that of the lock: it gives the lock back before anything can be raised.
    """

    __slots__ = ("__exit__", "acquire", "release")

    def __init__(self, lock: threading.Lock | threading.RLock) -> None:
        self.acquire, self.release, self.__exit__ = lock.acquire, lock.release, lock.__exit__

    def __enter__(self) -> None:
        _ = [*map(self.acquire, BLOCKING)]


class Once:
    """An event that happens once: one thread reports it, other threads wait for it.

    Law: ``happen`` takes no lock. A thread that waits may be interrupted at any bytecode,
    and would leave a lock that it holds at that moment locked for ever. So there is only
    a dict, and one lock for each thread that waits, which no other thread takes.
    """

    __slots__ = ("_wakers", "has_happened")

    def __init__(self) -> None:
        self._wakers: dict[object, Callable[[], object]] = {}
        self.has_happened = False

    def happen(self) -> None:
        """Call all callbacks, wake all threads that wait, and let none wait any more."""
        self.has_happened = True
        if self._wakers:
            self._wake()

    def when(self, key: object, callback: Callable[[], object]) -> None:
        """Have *callback* called when it happens, on the thread that calls ``happen``.

        If it has happened, this thread calls it now. It may be called twice.
        """
        # Another thread may call ``happen`` just now, and find no waker. This thread
        # stores first and looks second; ``happen`` sets the flag first and looks
        # second. So whichever thread makes its second step later finds the waker.
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
        # Call first, remove second. An exception may hit this thread between the two: a
        # waker that was removed before its call would be lost. In this order the next
        # thread that comes here calls it a second time, and every waker allows that.
        for key, waker in list(self._wakers.items()):
            with contextlib.suppress(RuntimeError):  # another thread has released that lock
                waker()
            self._wakers.pop(key, None)


class Reply:
    """An answer: a supervisor's thread gives it once, callers wait for it on theirs.

    Attributes:
        given: Happens when the answer is given.
    """

    __slots__ = ("_error", "_value", "given")

    def __init__(self) -> None:
        self.given = Once()
        self._value: Any = None
        self._error: Exception | None = None

    def answer(self, value: object) -> None:
        """Give *value* as the answer."""
        self._value = value
        self.given.happen()

    def refuse(self, error: Exception) -> None:
        """Give an exception as the answer."""
        self._error = error
        self.given.happen()

    def when_given(self, key: object, callback: Callable[[], object]) -> None:
        """Have *callback* called on the thread that gives the answer, or now if it is
        there.
        """
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
        """Wait for the answer; return it or, if it is an exception, raise it.

        Args:
            timeout: Seconds; None: without a limit.
            path: The supervisor that was asked, for the error.

        Raises:
            CallTimeout: There was none after *timeout* seconds.
        """
        if not self.given.wait(timeout):
            raise CallTimeout(path)
        if self._error is not None:
            if isinstance(self._error, StartError):
                self._error.open()  # unpickle it here, on the thread that gets it
            raise self._error
        return self._value


RING = b"\0"
"""What a reply writes to a bell. No signal has this number."""


class Bell:
    """Lets the main thread wait for a reply and for signals at once.

    The system may deliver a signal to any thread, and does so when another one is
    pending for the main thread. Python's handler then runs when the main thread runs
    Python code the next time. A main thread that waits for a lock runs none. So it waits
    at a socket, and both signals and replies write to that.

    Laws:
    1. ``close`` restores the wakeup descriptor that was set before ``open``, whatever has
       interrupted ``open``; a second ``close`` does nothing. A signal handler may raise
       between two bytecodes. So ``open`` stores what it takes in the same step of C in
       which it takes it.
    2. The number of a signal that is none of *mine* is passed on to the descriptor that
       was set before. An event loop of the parent process learns of its signals by that,
       and by nothing else.
    """

    def __init__(self, mine: Collection[int] = ()) -> None:
        self._mine = frozenset(mine)
        self._ends: list[Any] = []  # the one to read, and the one that signals and replies write to
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
        """Wait until *reply* is given; return whether it is.

        Signal handlers run meanwhile, and may raise.

        Args:
            until: Returns the monotonic time at which the wait ends; it is called again
                after each signal.
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
        """Restore what was set before ``open``, and pass on what was heard for others."""
        if self._before:
            self._restore(self._before[0])
            self._ends[0].setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._heard.extend(map(self._ends[0].recv, (4096,)))
            self._pass_on()
            self._before.clear()
        posix.vacate(self._placeholders)
        while self._ends:
            self._ends[-1].close()
            self._ends.pop()

    def abandon(self) -> None:
        """Do the same in a forked process, and pass nothing on: its parent process
        does.
        """
        if self._before:
            self._restore(self._before[0])
            self._before.clear()
        self.close()

    def _restore(self, before: int) -> None:
        try:
            signal.set_wakeup_fd(before)
        except (OSError, ValueError):  # its owner has closed it meanwhile
            signal.set_wakeup_fd(-1)

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
        # OSError: the socket is full of rings. IndexError: the main thread waits no
        # more.
        with contextlib.suppress(OSError, IndexError):
            self._ends[1].send(RING)
