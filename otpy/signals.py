"""What signals mean to a tree while ``start`` or ``run`` waits for it. All of it runs in the main thread."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from otpy.mailbox import Bell, Reply
from otpy.supervisors import SupervisorThread


class Signals:
    """What signals mean to a tree: stop, hurry, exit. It runs in the main thread, between any two bytecodes."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self.count = 0
        self._core: SupervisorThread | None = None
        self._bell = Bell() if numbers else None  # first: it may fail, and no handler must be left behind then
        self._before = {number: signal.signal(number, self) for number in numbers}

    def close(self) -> None:
        """Put back the handlers that were there before."""
        if self._bell is not None:
            self._bell.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, reply: Reply, timeout: float | None, path: str) -> Any:
        """Wait for *reply*, as ``Reply.wait`` does."""
        return self._bell.wait(reply, timeout, path) if self._bell else reply.wait(timeout, path)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 2:
            os._exit(128 + signum)
        self._pass_on()

    def obey(self, core: SupervisorThread) -> None:
        """From now on tell *core*, and tell it what came before."""
        self._core = core
        self._pass_on()

    def _pass_on(self) -> None:
        if self._core is not None and self.count:
            self._core.stop() if self.count == 1 else self._core.kill()


def unhandled() -> list[signal.Signals]:
    """Return the signals that would raise in the middle of a start; those that the program handles are its own."""
    return [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


@contextlib.contextmanager
def listening(numbers: Sequence[signal.Signals]) -> Iterator[Signals]:
    """Handle signals, where that is possible: in the main thread; put back what was there before."""
    is_possible = threading.current_thread() is threading.main_thread()
    signals = Signals(numbers if is_possible else ())
    try:
        yield signals
    finally:
        signals.close()
