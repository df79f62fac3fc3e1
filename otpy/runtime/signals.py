"""The signals that one call of ``start`` or ``run`` listens to, while it waits in the
main thread.

Laws:
1. A handler only puts. It runs between any two bytecodes of the main thread, which may
   hold any lock at that moment.
2. The handlers that were there before are known before anything is changed. They come
   back, whatever a signal handler of the parent process raises in between.
3. A signal that is ignored stays ignored. A handler that is not Python's stays in
   place, because Python cannot put it back.
4. A forked process handles signals as its parent did before the call.

The main thread runs all of this.

No signal is blocked here, though blocking looks like the way to take two things in one
step. The system gives a signal to any thread that does not block it, and Python then
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
"""These ask ``run`` to stop, even if the parent process has handlers for them."""

UNLESS_HANDLED = ("SIGHUP", "SIGQUIT")
"""These ask ``run`` to stop if the parent process has no handlers for them. Many
programs read their configuration again after a SIGHUP."""


def stop_signals() -> list[int]:
    """Return the signals that ask a process to stop, and may be handled."""
    return [
        number
        for name in (*ALWAYS, *UNLESS_HANDLED)
        if (number := getattr(signal, name, None)) and _is_free(number)
    ]


def _is_free(number: int) -> bool:
    """Whether a handler for the signal can be set, and put back later."""
    handler = signal.getsignal(number)
    if handler is signal.SIG_DFL:
        return not _is_handled_elsewhere(number)
    is_ours = signal.Signals(number).name in ALWAYS or handler is signal.default_int_handler
    return is_ours and handler is not None and handler is not signal.SIG_IGN


STATUS = "/proc/self/status"
"""The file in which Linux lists the signals that are caught and ignored."""


def _is_handled_elsewhere(number: int) -> bool:
    """Whether code in C handles or ignores the signal, as ``faulthandler`` does.

    Python reports SIG_DFL for such a signal.
    """
    with contextlib.suppress(OSError, ValueError):
        with open(STATUS) as file:  # noqa: PTH123  # no other line here needs paths
            lines = file.readlines()
        masks = [
            line.partition(":")[2] for line in lines if line.startswith(("SigIgn:", "SigCgt:"))
        ]
        return any(int(mask, 16) & 1 << (number - 1) for mask in masks)
    return False


def unhandled_interrupt() -> list[int]:
    """Return SIGINT, if it would raise KeyboardInterrupt in the middle of ``start``."""
    return [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


class Signals:
    """Handles some signals while it is open, and lets the main thread wait meanwhile.

    On other threads, and in subinterpreters, signals cannot be handled. Then it only
    waits.
    """

    def __init__(
        self, numbers: Callable[[], Iterable[int]], request: Callable[[str], bool]
    ) -> None:
        """Take nothing yet.

        Args:
            numbers: Returns the signals to handle; called in the main thread.
            request: Is called with the name of a signal, between any two bytecodes of
                the main thread. Returns whether the signal was meant for the tree. If
                not, the signal is sent again when the handlers of before are back.
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
        # eventlet's ``threading`` does not know the main thread. The system does: there
        # ``bell.open`` raises a ValueError.
        if posix.has_real_threads() and threading.current_thread() is not threading.main_thread():
            return
        numbers = list(self._numbers())
        # A signal handler may raise after each of these lines. So all that ``close``
        # needs is noted before anything is taken: the bell, the fork's list, the old
        # handler.
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
            BaseException: What a handler of the parent process raised meanwhile. All
                handlers are back all the same.
        """
        raised = self._put_back()
        while self._late:
            signal.raise_signal(self._late.pop())
        if raised is not None:
            raise raised

    def _put_back(self) -> BaseException | None:
        """Put everything back; return what a handler raised meanwhile."""
        raised = None
        while self._before or self._bell is not None:
            # A handler that is back may be called, and raise, before the next one is
            # back. The rest must follow, so the exception waits.
            try:
                self._put_back_one()
            except BaseException as error:
                raised = raised or error
        return raised

    def _put_back_one(self) -> None:
        if self._before:
            # First put back, then forget: in the other order an exception in between
            # would lose the old handler. To put it back twice changes nothing.
            number = next(reversed(self._before))
            signal.signal(number, self._before[number])
            self._before.pop(number, None)
        elif self._bell is not None:
            self._bell.close()
            with contextlib.suppress(ValueError):
                _open.remove(self)
            self._bell = None

    def wait(self, reply: Reply, until: Until) -> bool:
        """Be a ``stopping.Wait``. Signal handlers run meanwhile, and may raise."""
        return wait_plainly(reply, until) if self._bell is None else self._bell.wait(reply, until)

    def abandon(self) -> None:
        """Put back, in a fork, what was there before; read nothing of its parent."""
        if self._bell is not None:
            self._bell.abandon()
        self._late.clear()
        self._put_back()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # This is a fork, whose first steps the signal has interrupted. The signal
            # is for the handlers of before.
            self.abandon()
            signal.raise_signal(number)
        elif not self._request(signal.Signals(number).name):
            self._late.append(number)


_open: list[Signals] = []
"""All Signals that are open. There may be several: a signal handler may start a tree in
the middle of another start."""


def _after_fork() -> None:
    """Put the handlers of before back in a forked process, which has no tree."""
    while _open:
        _open[-1].abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
