"""The signals that one call of ``start`` or ``run`` listens to, while it waits in the
main thread.

Laws:
1. A handler only puts. It runs between any two bytecodes of the main thread, which may
   hold any lock there.
2. What was there before is known before anything is changed, and it comes back,
   whatever a signal handler of the program raises in between.
3. A signal that is ignored stays ignored. A handler that is not Python's cannot be put
   back, so it is left alone.
4. A forked process handles signals as the program did before the call.

There are no blocked signals here, though blocking looks like the way to take two things
in one step. The system gives a signal to any thread that does not block it, and Python
runs the handler in the main thread all the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from otpy.runtime import posix
from otpy.runtime.stopping import Until, wait_plainly
from otpy.runtime.waiting import Bell, Reply

ALWAYS = ("SIGINT", "SIGTERM")
"""Ask ``run`` to stop, even if the program has handlers of its own for them."""

UNLESS_HANDLED = ("SIGHUP", "SIGQUIT")
"""Ask it to stop if the program has none: to many, SIGHUP means to read the
configuration again."""


def stop_signals() -> list[int]:
    """Return the signals that ask a program to stop, and may be handled."""
    return [
        number
        for name in (*ALWAYS, *UNLESS_HANDLED)
        if (number := getattr(signal, name, None)) and _is_free(number)
    ]


def _is_free(number: int) -> bool:
    handler = signal.getsignal(number)
    if handler is signal.SIG_DFL:
        return not _is_handled_elsewhere(number)
    is_ours = signal.Signals(number).name in ALWAYS or handler is signal.default_int_handler
    return is_ours and handler is not None and handler is not signal.SIG_IGN


STATUS = "/proc/self/status"
"""Where Linux says which signals are caught and ignored."""


def _is_handled_elsewhere(number: int) -> bool:
    """Whether code in C handles or ignores it without Python, as ``faulthandler`` does."""
    with contextlib.suppress(OSError, ValueError):
        with open(STATUS) as file:  # noqa: PTH123  # nothing else here needs paths
            lines = file.readlines()
        masks = [
            line.partition(":")[2] for line in lines if line.startswith(("SigIgn:", "SigCgt:"))
        ]
        return any(int(mask, 16) & 1 << (number - 1) for mask in masks)
    return False


def unhandled_interrupt() -> list[int]:
    """Return SIGINT, if it would raise KeyboardInterrupt in the middle of a start."""
    return [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


class Signals:
    """Handles some signals while it is open, and lets the main thread wait meanwhile.

    On other threads, and in subinterpreters, signals cannot be handled: it only waits.
    """

    def __init__(
        self, numbers: Callable[[], Iterable[int]], request: Callable[[str], bool]
    ) -> None:
        """Take nothing yet.

        Args:
            numbers: Returns the signals to handle; called in the main thread.
            request: Is called with the name of a signal, between any two bytecodes of
                the main thread; returns whether the signal was meant for it. If not, it
                is sent again when the program's handlers are back.
        """
        self._numbers, self._request = numbers, request
        self._before: dict[int, Any] = {}
        self._late: list[int] = []
        self._bell: Bell | None = None
        self._pid = os.getpid()

    def open(self) -> None:
        """Begin to handle signals.

        Raises:
            OSError: The system has no more descriptors to give.
        """
        if posix.has_real_threads() and threading.current_thread() is not threading.main_thread():
            return  # eventlet does not know the main thread; the system does, see below
        numbers = list(self._numbers())
        bell = self._bell = Bell(numbers)
        _open.append(self)
        try:
            bell.open()
        except ValueError:  # not the main thread of the main interpreter
            self.close()
            return
        for number in numbers:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self)

    def close(self) -> None:
        """Put back what was there before.

        A second call does what an exception has kept the first one from doing.

        Raises:
            BaseException: What a handler of the program raised meanwhile. Everything
                is back all the same.
        """
        raised = self._put_back()
        while self._late:
            signal.raise_signal(self._late.pop())
        if raised is not None:
            raise raised

    def _put_back(self) -> BaseException | None:
        raised = None
        while self._before or self._bell is not None:
            try:
                self._put_back_one()
            except BaseException as error:  # of a handler that is back: the rest must follow
                raised = raised or error
        return raised

    def _put_back_one(self) -> None:
        if self._before:
            number = next(reversed(self._before))
            signal.signal(number, self._before[number])
            self._before.pop(number, None)
        elif self._bell is not None:
            self._bell.close()
            with contextlib.suppress(ValueError):
                _open.remove(self)
            self._bell = None

    def wait(self, reply: Reply, until: Until) -> bool:
        """Be an ``ending.Wait``. Signal handlers run meanwhile, and may raise."""
        return wait_plainly(reply, until) if self._bell is None else self._bell.wait(reply, until)

    def abandon(self) -> None:
        """Put back, in a fork, what was there before; read nothing that is the parent's."""
        if self._bell is not None:
            self._bell.abandon()
        self._late.clear()
        self._put_back()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a fork, whose first steps it has interrupted
            self.abandon()
            signal.raise_signal(number)
        elif not self._request(signal.Signals(number).name):
            self._late.append(number)


_open: list[Signals] = []
"""Those that are open. A handler of the program may start a tree amidst another start."""


def _let_go() -> None:
    """Let no signal to a forked process mean the tree, which runs in the other one."""
    while _open:
        _open[-1].abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_let_go)
