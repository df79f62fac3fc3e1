"""How ``Killed`` is raised inside a thread.

A thread cannot be killed, only interrupted: CPython can be told to raise an exception
inside it. If that happens between taking a lock and giving it back, the lock stays taken:
one of logging, of the imports, of a queue. Then the rest of the parent process waits for
it for ever. So the thread is looked at first, and if the moment is bad, again later;
``moments`` says which moments are good.

Laws:
1. At most one ``Killed`` is raised in a thread, only between ``Gate.open`` and
   ``Gate.close``, and never in a thread that has got the number of one that has ended.
2. It is raised where the thread was seen. The look and the order to the interpreter are
   one step: no other thread runs in between (in free-threaded builds it may).
3. A thread that never comes to a good moment is not interrupted.

The thread of the child runs ``Gate.open`` and ``close``. The thread of its supervisor
runs everything else.

Not proud of: while the supervisor's thread looks, it holds the frames of all threads. A
function that returns meanwhile leaves its locals to that thread.
"""

from __future__ import annotations

import ctypes  # at the top: an interrupt amid its import would lock all imports
import functools
import itertools
import operator
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import attrs

from otpy.children.moments import is_good
from otpy.exceptions import Killed
from otpy.runtime import stacks
from otpy.runtime.posix import has_real_threads
from otpy.values import running

RLock = type(threading.RLock())
"""The class of what ``threading.RLock`` makes.

To call it makes one without a detour.
"""

SHORTLY = 0.002
"""Seconds to wait for a better moment. In a loop that logs, few moments are good."""

FOR_LONG = 1.0
"""After so many seconds of looking, each pause is twice as long as the one before.

No caller waits for the end of that thread any more."""

SHARE = 0.1
"""The share of its time that a supervisor spends on looking for moments."""

AT_MOST = 0.1
"""The longest pause, in seconds, that is made to keep to SHARE."""


def can_interrupt() -> bool:
    """Whether this Python can raise an exception in another thread: CPython can.

    PyPy cannot. Of the threads of gevent and eventlet, CPython knows only the one that
    all of them are.
    """
    return hasattr(ctypes, "pythonapi") and hasattr(sys, "_current_frames") and has_real_threads()


class Gate:
    """Lets at most one ``Killed`` into a thread, and only between ``open`` and ``close``.

    ``close`` may be hit by the one that is on its way, and so may each line between the
    user's last one and ``close``. The caller of ``close`` must expect that. No interrupt
    can hit after it. Such a hit may leave the lock locked. That does no harm: only
    ``interrupt`` takes it besides, and has been there.
    """

    __slots__ = ("_ident", "_is_hit", "_is_shut", "_lock")

    def __init__(self) -> None:
        # An exception from another thread may hit ``open``, and leave the lock locked.
        # ``close`` runs on the same thread: it can take an RLock all the same.
        self._lock = RLock()
        self._ident = 0
        self._is_shut = self._is_hit = False

    def open(self) -> None:
        """Let an interrupt in from now on; raise it here if it came too early."""
        with self._lock:
            self._ident = threading.get_ident()
            if self._is_shut:
                raise Killed

    @staticmethod
    def interrupt(gates: Sequence[Gate], send: Callable[[list[int]], set[int]]) -> list[Gate]:
        """Have ``Killed`` raised in the threads behind *gates*, once in each.

        Args:
            gates: Those of the threads.
            send: Raises it in the threads of these numbers, and returns the numbers of
                those in which it did. For the others this is no good moment.

        Returns:
            The gates for which nothing is left to be done.
        """
        # A child may be just opening or closing its gate: that is no good moment,
        # either.
        held = [one for one in gates if not one._is_shut and one._lock.acquire(blocking=False)]
        try:
            still_open = [one for one in held if not one._is_shut]
            hit = send([one._ident for one in still_open if one._ident])
            for one in still_open:
                one._is_hit = one._ident in hit
                one._is_shut = one._is_hit or not one._ident
        finally:
            for one in held:
                one._lock.release()
        return [one for one in gates if one._is_shut]

    def close(self) -> None:
        """Keep interrupts out, and meet the one that was sent, if it has not arrived
        yet.
        """
        # Take the lock also if the gate is shut: the supervisor's thread shuts it
        # before it gives the lock back, and may be just about to send.
        with self._lock:
            self._is_shut = True
        if self._is_hit:
            self._meet()

    def _meet(self) -> None:
        """Leave no interrupt on its way.

        It is not known whether the one that was sent has arrived: the child may have
        swallowed it. So send another one, which takes its place, until one arrives. A
        single one may hit a finalizer that the garbage collector runs here just now, and
        be lost. To take the first one back instead would leave the interpreter's flag
        for it set, and slow down every thread (CPython 3.11 and 3.12; under a tracer
        3.11 then hangs).
        """
        try:
            while raise_in(threading.get_ident(), Killed):
                pass
        except Killed:
            pass


def raise_in(ident: int, exception: type[BaseException]) -> bool:
    """Have *exception* raised in a thread when it next runs Python code.

    Returns:
        Whether the interpreter can do that, and has such a thread.
    """
    if not can_interrupt():
        return False
    hits: int = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), ctypes.py_object(exception)
    )
    return hits > 0


@running
class Wait:
    """The search for a moment of one thread.

    Attributes:
        since: When the thread was to be interrupted, monotonic.
        at: When to look again, monotonic.
        pause: Seconds between the last look and the next one.
    """

    since: float
    at: float
    pause: float = SHORTLY


@running
class Interrupts:
    """The interrupts of one supervisor's children that wait for their moment.

    All threads are looked at together: a look is at all threads of the process.
    """

    remind: Callable[[float, Callable[[], object]], object]
    soon: Callable[[Callable[[], object]], object]
    _waiting: dict[Gate, Wait] = attrs.field(factory=dict, init=False)
    _will_look: bool = attrs.field(default=False, init=False)

    def add(self, gate: Gate) -> None:
        """Interrupt the thread behind *gate* at the first good moment from now on."""
        now = time.monotonic()
        self._waiting[gate] = Wait(now, now)
        if not self._will_look:
            self._will_look = True
            self.soon(self._look)

    def close(self) -> None:
        """Interrupt no thread any more: the supervisor ends, and has given up its
        children.
        """
        self._waiting.clear()

    def _look(self) -> None:
        self._will_look = False
        worked, send = time.thread_time(), functools.partial(_interrupt, stacks.frames())
        now = time.monotonic()
        due = [gate for gate, wait in self._waiting.items() if wait.at <= now]
        for gate in Gate.interrupt(due, send):
            del self._waiting[gate]
        self._wait(due, time.thread_time() - worked)

    def _wait(self, looked_at: list[Gate], work: float) -> None:
        """Look again when the first of those that are left is due.

        Args:
            looked_at: The gates of this look.
            work: The processor time that the look has taken, in seconds.
        """
        now = time.monotonic()
        for wait in [self._waiting[gate] for gate in looked_at if gate in self._waiting]:
            is_long = now - wait.since > FOR_LONG
            wait.pause = wait.pause * 2 if is_long else min(max(SHORTLY, work / SHARE), AT_MOST)
            wait.at = now + wait.pause
        if self._waiting and not self._will_look:
            self._will_look = True
            self.remind(min(wait.at for wait in self._waiting.values()) - now, self._look)


def _interrupt(innermost: Mapping[int, FrameType], idents: list[int]) -> set[int]:
    """Raise ``Killed`` in those of the threads *idents* that are at a good moment.

    Args:
        innermost: The innermost frames of all threads, as they were a moment ago.
        idents: The numbers of the threads.

    Returns:
        The numbers of the threads in which it is raised.
    """
    seen = [
        (one, frame, frame.f_lasti) for one in idents if (frame := innermost.get(one)) is not None
    ]
    return _raise_at([(one, frame, at) for one, frame, at in seen if is_good(frame, at)])


def _raise_at(seen: list[tuple[int, FrameType, int]]) -> set[int]:
    """Raise ``Killed`` in each thread that is still in its frame, at its instruction.

    Args:
        seen: The numbers of threads, their innermost frames, and their instructions.

    Returns:
        The numbers of the threads in which it is raised.
    """
    if not seen:
        return set()
    # Between two instructions of Python this thread may have to give the GIL away, and
    # the other threads would go on to places that were not looked at. So all of it
    # happens in one call of C code, ``list`` below; everything before that
    # only builds iterators. It looks once, at all threads: thousands of looks at
    # thousands of threads would take long.
    idents, frames, places = zip(*seen, strict=True)
    looks = itertools.chain.from_iterable(
        map(itertools.repeat, itertools.starmap(sys._current_frames, [()]))
    )
    is_there = map(operator.is_, map(dict.get, looks, idents), frames)
    is_at = map(operator.eq, map(operator.attrgetter("f_lasti"), frames), places)
    chosen, noted = itertools.tee(map(operator.and_, is_there, is_at))
    orders = [(ctypes.c_ulong(one), ctypes.py_object(Killed)) for one in idents]
    raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
    ordered = itertools.starmap(raise_there, itertools.compress(orders, chosen))
    hits: list[int] = stacks.uncollected(functools.partial(list, ordered))
    counts = zip(itertools.compress(idents, noted), hits, strict=True)
    hit = {one for one, count in counts if count > 0}
    # The look has the frame of this function in it: together they would be a cycle.
    del looks, is_there, is_at, chosen, noted, ordered, counts
    return hit
