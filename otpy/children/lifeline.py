"""What ties programs to the life of this process: the guard, and what it must be told.

The guard is started before the first program of a tree. It costs one process of a few megabytes per tree with programs,
one short write per start, and nothing while nothing happens.

It is made by whoever starts the first program; after that all here runs on the thread that waits for the programs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import weakref

from otpy import telemetry
from otpy.children import guard
from otpy.children.groups import NO_SIGNAL

TOO_SOON = 1.0
"""A guard that ends sooner than this many seconds cannot run here: no other one is started."""


class Lifeline:
    """The guard of one tree.

    Attributes:
        mark: A descriptor that each program must inherit: one end of a pipe, the other end of which is closed.
    """

    def __init__(self) -> None:
        self.mark, other = os.pipe()
        os.close(other)
        self._programs: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        self._line: socket.socket
        self._since = 0.0
        try:
            self._begin()
        except BaseException:  # no more descriptors
            self.forget_mark()
            raise
        _lines.add(self)

    @property
    def pid(self) -> int | None:
        """The process number of the guard, None if there is none."""
        return self._guard.pid if self._guard is not None else None

    def add(self, program: int) -> None:
        """Have the group of the process *program* killed if this process dies."""
        self._programs.add(program)
        if self._guard is not None:
            try:
                self._tell(b"%d\n" % program)
            except OSError:  # it has ended, or is stuck: what it does not know, the next one must
                self._renew()

    def drop(self, program: int) -> None:
        """Forget *program*: it has ended. The guard has noticed."""
        self._programs.discard(program)

    def renew(self) -> None:
        """Start another guard if this one has ended, and tell it all."""
        if self._guard is not None and self._guard.poll() is not None:
            self._renew()

    def close(self) -> None:
        """End the guard."""
        self._end()
        self.forget_mark()

    def forget_mark(self) -> None:
        """Be no program of ours: what this process was forked from has the mark."""
        mark, self.mark = self.mark, -1
        if mark >= 0:
            os.close(mark)

    def _end(self) -> None:
        one, self._guard = self._guard, None
        self._line.close()
        if one is not None:
            one.kill()
            one.wait()

    def _begin(self) -> None:
        inside, self._line = socket.socketpair()
        self._line.setblocking(False)
        self._since = time.monotonic()
        try:
            self._guard = subprocess.Popen(  # noqa: S603 - our own file
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(self.mark)],
                pass_fds=[self.mark],
                stdin=inside.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # an embedded interpreter may have no executable
            telemetry.complain("programs_unguarded", error)
        finally:
            inside.close()

    def _renew(self) -> None:
        lived = time.monotonic() - self._since
        self._end()
        if lived < TOO_SOON:
            telemetry.complain("programs_unguarded", RuntimeError(f"the guard ended after {lived:.3f} s"))
            return
        try:
            self._begin()
        except OSError as error:  # no more descriptors: that costs the guard, and not the program that is just attended
            telemetry.complain("programs_unguarded", error)
            return
        with contextlib.suppress(OSError):
            self._tell(b"".join(b"%d\n" % program for program in self._programs))

    def _tell(self, data: bytes) -> None:
        if self._line.send(data, NO_SIGNAL) < len(data):  # a part of a line would change the next one
            raise BlockingIOError


_lines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _after_fork() -> None:
    """A fork of this process inherits all, and is nobody's program."""
    for line in list(_lines):
        line.forget_mark()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
