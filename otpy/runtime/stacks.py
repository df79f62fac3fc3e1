"""What threads are doing: their stacks, as text.

Laws:
1. A look holds no frame and no variable of the threads that it has seen.
2. Looks take at most a sixth of the time, however many stacks are asked for.
3. No stack is returned that is older than the life of the look that saw it.

CPython cannot look at one thread, only at all of them. So one look has to serve for
many calls: thousands of children that are given up at once would need thousands of
looks at thousands of threads.

Any thread may call ``stack_of``. Two may make a look at once; the later one is kept.
"""

from __future__ import annotations

import gc
import linecache
import operator
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import TypeVar

if sys.version_info < (3, 14) and not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "otpy does not run on free-threaded Python 3.13: it crashes when the stacks of threads "
        "are looked at; use 3.14t, or set PYTHON_GIL=1"
    )

FRESH = 0.02
"""Seconds that one look at all threads serves at least."""

OFTEN = 5
"""A look serves for this many times the processor time that it has taken, if that is
more.
"""

Place = tuple[types.CodeType, int]
"""Where a frame is: its code and its line."""


class Look:
    """What all threads were doing at one moment.

    Attributes:
        until: The monotonic time until which it serves.
    """

    def __init__(self) -> None:
        began = time.thread_time()
        self._files: set[str] = set()
        self._stacks = {ident: tuple(self._places(frame)) for ident, frame in frames().items()}
        self._texts: dict[tuple[Place, ...], str] = {}
        # Processor time, not the time that passed. A look that had to wait for a
        # processor has cost nothing, and what it saw is old: a new thread may have got
        # the number of one that has ended, and would be shown with the stack of that
        # one.
        self.until = time.monotonic() + max(FRESH, OFTEN * (time.thread_time() - began))

    def __contains__(self, ident: int) -> bool:
        return ident in self._stacks

    def text(self, ident: int) -> str:
        """Return the formatted stack of a thread; "" if it did not run."""
        stack = self._stacks.get(ident, ())
        if stack not in self._texts:
            lines = [(code.co_filename, line, code.co_name, None) for code, line in reversed(stack)]
            self._texts[stack] = "".join(traceback.StackSummary.from_list(lines).format())
        return self._texts[stack]

    def _places(self, frame: types.FrameType | None) -> Iterator[Place]:
        while frame is not None:
            if (file := frame.f_code.co_filename) not in self._files:
                self._files.add(file)
                # the globals know where the source is, if it is in no file
                linecache.lazycache(file, frame.f_globals)
            yield frame.f_code, frame.f_lineno
            frame = frame.f_back


T = TypeVar("T")


def uncollected(look: Callable[[], T]) -> T:
    """Return what *look* returns, which is a function of C; no garbage collection runs amid it.

    CPython 3.11 collects garbage wherever an object is made, also inside
    ``sys._current_frames``. A finalizer of the program may then run, another thread goes
    on and leaves its frames, and the look goes on with frames that are freed: the
    interpreter crashes. From 3.12 on, garbage is collected between two instructions only.
    """
    was_on = sys.version_info < (3, 12) and gc.isenabled()
    try:
        if sys.version_info >= (3, 12):
            return look()
        # Another thread may do the same, and turn the collector on again as soon as this
        # thread gives the GIL away. So both happen in one call of C code.
        # What is found has the frame of this very function in it. So no name here may
        # hold it, nor the function that does: it would be a cycle.
        return list(map(operator.call, (gc.disable, look)))[1]  # type: ignore[return-value]
    finally:
        del look
        if was_on:
            gc.enable()


def frames() -> dict[int, types.FrameType]:
    """Return the innermost frame of each thread by its number.

    {} where Python has none.
    """
    return uncollected(getattr(sys, "_current_frames", dict))


_last_look: Look | None = None


def stack_of(ident: int | None) -> str:
    """Return what the thread *ident* is doing now, formatted like a traceback.

    Returns "" if it is not running.
    """
    global _last_look  # noqa: PLW0603
    if not ident:
        return ""
    try:
        look = _last_look
        if look is None or time.monotonic() > look.until or ident not in look:
            look = _last_look = Look()
        return look.text(ident)
    except Exception:
        return ""
