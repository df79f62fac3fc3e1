"""Reports of crashes in threads that otpy has not started.

A ``CrashBridge`` is called by the thread that dies. It is opened and closed by any
thread, under the door, which guards ``threading.excepthook`` and the chain of bridges.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from otpy.registry.door import door
from otpy.reports import ExitKind, ExitReason

_hook = threading.local()
"""Whether a bridge is at work in this thread."""


class CrashBridge:
    """The ``threading.excepthook`` that ``report_crashes_elsewhere`` sets.

    As a context manager it closes itself when the block is left. Further bridges and
    the hooks of other libraries may be put on top of it, and removed in any order. One
    bridge only reports a crash. A closed bridge that another hook still calls passes on
    what it gets.
    """

    def __init__(self, report: Callable[[str, ExitReason], None]) -> None:
        """Set the hook.

        Args:
            report: Called with the name of a thread and the reason of its end.
        """
        self._report, self._is_open = report, True
        with door():
            self._previous = threading.excepthook
            threading.excepthook = self

    def close(self) -> None:
        """Put back the hook that was there before. Idempotent."""
        with door():
            self._is_open = False
            if threading.excepthook is self:
                threading.excepthook = self._below()

    def __call__(self, args: threading.ExceptHookArgs, /) -> None:
        """Report a crash, then call the hook that was there before.

        The hook of the interpreter is not called: it would only print.
        """
        # A bridge further up may be at work in this thread, and have called this one as
        # its previous hook. It has reported the crash.
        if not self._is_open or getattr(_hook, "is_busy", False):
            self._pass_on(args)
            return
        _hook.is_busy = True
        try:
            # the interpreter prints nothing about a SystemExit either
            if args.exc_type is not SystemExit:
                name = args.thread.name if args.thread is not None else "<unknown thread>"
                detail = None if args.exc_value is not None else args.exc_type.__name__
                self._report(name, ExitReason(ExitKind.CRASHED, args.exc_value, detail))
            self._pass_on(args)
        finally:
            _hook.is_busy = False

    def __enter__(self) -> CrashBridge:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _pass_on(self, args: threading.ExceptHookArgs) -> None:
        below = self._below()
        if not self._is_open or below is not threading.__excepthook__:
            below(args)

    def _below(self) -> Callable[[threading.ExceptHookArgs], Any]:
        """Return the previous hook. Skip bridges that are closed by now."""
        below = self._previous
        while isinstance(below, CrashBridge) and not below._is_open:
            below = below._previous
        return below
