"""The thread that waits for all programs of a tree: for their ends, their output, and their messages.

It waits at one selector, so 200 idle programs are one thread that sleeps. The end of a program is heard through its
pidfd, which becomes readable at that moment, whoever reaps the process. Where there are none (not Linux, or an old
kernel, or no descriptors left), a thread per program waits instead.

Laws:
1. Nothing here waits for one program, runs code of the user's, or decides about a child.
2. The selector is touched by this thread only; everybody else posts an order and rings. Programs are admitted by those
   who start them, before anybody can let them go; this thread takes them out.
3. What goes wrong about one program is logged, and costs the others nothing.
"""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from typing import Any, Protocol

from otpy import telemetry, threads
from otpy.children.groups import NO_SIGNAL
from otpy.children.lifeline import Lifeline
from otpy.threads import Role, ThreadState

TICK = 0.001
"""How often it looks after what nothing announces, in seconds; only while there is any."""


class Watched(Protocol):
    """A program, as far as the watch is concerned."""

    def stop(self) -> None:
        """Ask it to stop."""

    def is_gone(self) -> bool:
        """Whether nothing of it is left, or it need not be waited for any longer."""

    def leave(self) -> None:
        """Say the last word."""


class Watch:
    """The watch of one tree; ``tree.shared(Watch)``."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._orders: collections.deque[Callable[[], object]] = collections.deque()
        self._programs: set[Watched] = set()
        self._dying: set[Watched] = set()
        self._is_closing = False
        self._guard: int | None = None
        with contextlib.ExitStack() as undo:  # who asks next tries again
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._inside, self._bell = map(undo.enter_context, socket.socketpair())
            self._inside.setblocking(False)
            self._bell.setblocking(False)
            self._selector.register(self._inside, selectors.EVENT_READ, self._silence)
            self.lifeline = Lifeline()
            undo.callback(self.lifeline.close)
            self._listen_to_guard()
            undo.callback(self._forget_guard)
            name, purpose = f"{tree.root} (programs)", "waits for programs"
            self._thread = threads.spawn(self._run, name=name, role=Role.HELPER, purpose=purpose, owner=tree)
            undo.pop_all()

    def post(self, order: Callable[[], object]) -> None:
        """Have *order* called on the thread of the watch. Never blocks; may be called from any thread."""
        self._orders.append(order)
        with contextlib.suppress(OSError):  # it has rung often enough, or has ended
            self._bell.send(b"!", NO_SIGNAL)

    def close(self) -> None:
        """End when there is no program left. One that was let go, or given up, may live longer than its tree."""
        if self._programs:
            threads.mark(self._thread, ThreadState.DETACHED, self._stop_all)
        self.post(self._close)

    def admit(self, program: Watched) -> None:
        """Count *program* as running. On the thread that starts it: an order could come later than ``close``."""
        self._programs.add(program)

    # From here on all runs on the watch's own thread

    def listen(self, fd: int, callback: Callable[[], object]) -> None:
        """Call *callback* whenever *fd* can be read; nothing if that is so already."""
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_READ, callback)

    def ignore(self, fd: int | None) -> None:
        """Listen to *fd* no longer; nothing if that is so already."""
        if fd is not None and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def bury(self, program: Watched) -> None:
        """Ask *program* whether it is gone, now and every moment, until it is."""
        if self._is_gone(program):
            self._programs.discard(program)  # first: its last word may be the last one of the tree, and close this
            self._dying.discard(program)
            program.leave()
        else:
            self._dying.add(program)

    def _is_gone(self, program: Watched) -> bool:
        """Ask it; who cannot tell is gone, or its end would never be told."""
        try:
            return program.is_gone()
        except Exception as error:
            telemetry.complain("watch_failed", error, path=self._tree.root)
            return True

    def _run(self) -> None:
        try:
            while self._programs or not self._is_closing:
                self._turn()
        finally:
            self._leave()

    def _turn(self) -> None:
        for key, _ in self._selector.select(TICK if self._dying else None):
            self._call(key.data, key.fd)
        while self._orders:
            self._call(self._orders.popleft(), None)
        if self._dying:
            self._call(self._look_again, None)

    def _look_again(self) -> None:
        for program in list(self._dying):
            self.bury(program)

    def _call(self, callback: Callable[[], object], fd: int | None) -> None:
        try:
            callback()
        except Exception as error:
            self.ignore(fd)  # or it would be called again at once, for ever
            telemetry.complain("watch_failed", error, path=self._tree.root)

    def _listen_to_guard(self) -> None:
        with contextlib.suppress(
            OSError, AttributeError
        ):  # without pidfds its end is noticed when it is told something
            if (pid := self.lifeline.pid) is not None:
                self._guard = os.pidfd_open(pid)
                self.listen(self._guard, self._guard_has_ended)

    def _guard_has_ended(self) -> None:
        self._forget_guard()
        self.lifeline.renew()
        self._listen_to_guard()

    def _forget_guard(self) -> None:
        fd, self._guard = self._guard, None
        if fd is not None:
            self.ignore(fd)
            os.close(fd)

    def _silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(4096)

    def _close(self) -> None:
        self._is_closing = True

    def _stop_all(self) -> None:
        for program in list(self._programs):
            program.stop()

    def _leave(self) -> None:
        self._forget_guard()
        self.lifeline.close()
        self._selector.close()
        self._inside.close()
        self._bell.close()
