"""The wires between the parent process and the process of a callable.

Laws:
1. A fork of the parent process closes the near ends of all wires before it runs any
   other code. A process ends when its near ends are closed, so a fork that kept them
   would keep it alive after the parent process has died.
2. The supervisor's thread never waits for a fork: hooks of the user run before a fork,
   and may take long. Only a keeper's thread takes ``fork_lock``; the supervisor's does
   so only if the keeper's thread was lost and the system has no other thread to give.
3. An order never blocks. One that comes before the wires are laid is kept; later ones
   wait in the socket until the process reads them.

Threads: ``order`` and ``last_stacks`` are called under the lock of the child
(keeper.py) by the supervisor's thread and the keeper's; all else by the keeper's.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from typing import Protocol

from otpy.children.callable.protocol import SIZES
from otpy.exceptions import printable
from otpy.runtime import posix

CHUNK = 1 << 16
"""How many bytes are read at a time."""


class Closable(Protocol):
    """An end of a wire."""

    def close(self) -> object:
        """Close this end."""


fork_lock = threading.RLock()
"""Held while wires are laid or closed, and while this process is forked.

Without it a fork could happen between the making of a wire and the note of its near
ends, and would keep ends that it does not know of.
"""

near_ends: set[Closable] = set()
"""The near ends of all wires that are laid; guarded by ``fork_lock``."""


def _close_in_fork() -> None:
    for end in near_ends:
        end.close()
    near_ends.clear()
    fork_lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(
        before=fork_lock.acquire,
        after_in_parent=fork_lock.release,
        after_in_child=_close_in_fork,
    )


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    read, write = posix.pipe()
    return io.FileIO(read, "rb"), io.FileIO(write, "wb")


class Wires:
    """The socket and the two pipes of one process. ``lay`` makes them.

    Attributes:
        near, far: The two ends of the socket for orders and messages.
        stdin, lifeline: A pipe: stdin of the process, and our end of it. The parcel is
            written to it; after that it stays open, and empty.
        stacks, dump: A pipe: our end, and the end to which the process writes the
            stacks of its threads, when that is ordered or when it dies of a signal.
    """

    near: posix.Socket
    far: posix.Socket
    stdin: io.FileIO
    lifeline: io.FileIO
    stacks: io.FileIO
    dump: io.FileIO

    def __init__(self) -> None:
        self._near_ends: set[Closable] = set()
        # the orders that came before the wires were laid; None: they are laid
        self._early: bytes | None = b""

    def lay(self) -> None:
        """Make the wires. Wait while this process is forked, for as long as that takes.

        Raises:
            OSError: The system has no more descriptors.
        """
        with fork_lock, contextlib.ExitStack() as ends:
            self.near, self.far = map(ends.enter_context, posix.socket_pair())
            self.stdin, self.lifeline = map(ends.enter_context, _pipe())
            self.stacks, self.dump = map(ends.enter_context, _pipe())
            self._near_ends = {self.near, self.lifeline, self.stacks}
            near_ends.update(self._near_ends)
            ends.pop_all()
        self.near.setblocking(False)
        for end in (self.stacks, self.dump):
            os.set_blocking(end.fileno(), False)

    def hand_over(self, *parts: bytes) -> None:
        """Write the parcel; wait until the process has read it, or has died."""
        # A process that has just died would kill this one by SIGPIPE, if this program
        # does not ignore that. The mask is this thread's.
        posix.block({signal.SIGPIPE})
        with contextlib.suppress(BrokenPipeError):
            for part in (SIZES.pack(*map(len, parts)), *parts):
                left = memoryview(part)
                while left:
                    left = left[self.lifeline.write(left) :]

    def send_early_orders(self) -> None:
        """Send the orders that came before ``lay``; under the lock, as ``order`` is."""
        early, self._early = self._early, None
        if early:
            self.order(early)

    def order(self, order: bytes) -> None:
        """Send *order*; it waits in the socket until the process reads it."""
        if self._early is not None:
            self._early += order
            return
        # OSError: the process has ended, or has not read thousands of orders.
        with contextlib.suppress(OSError):
            self.near.send(order, posix.NO_SIGNAL)

    def last_stacks(self) -> str:
        """Return the stacks that the process has written since the last call."""
        if self._early is not None:
            return ""
        return printable((self.stacks.read(CHUNK) or b"").decode(errors="replace"))

    def close_far_ends(self) -> None:
        """Close the ends that the process has inherited."""
        for end in (self.far, self.stdin, self.dump):
            end.close()

    def close(self) -> None:
        """Close all ends; under ``fork_lock``. Another call closes what is left."""
        if self._near_ends:
            self.close_far_ends()
            near_ends.difference_update(self._near_ends)
            for end in self._near_ends:
                end.close()
