"""The guard of a tree, as the process that runs the tree sees it.

The guard itself is a process (guard_process.py) that kills the programs of the tree when
this process dies. The keeper is the thread that starts it and replaces it.

Laws:
1. The guard is started before the first program of a tree. It costs one process of a
   few megabytes per tree with programs, one short write per start, and nothing while
   nothing happens.
2. A guard that ends, or is suspended, is replaced at once. One that ends again and
   again, soon after its start, is replaced after longer and longer pauses, and that is
   reported once.
3. Where no guard can run (no Python can be started here), that is reported once, and
   programs run without.

Threads: a ``Keeper`` belongs to its own thread. A ``Guard`` is used by launchers,
by the watch and by the keeper. Its lock guards the line and the number of the process that
runs now, and is held for a few system calls that do not block.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from otpy.children.program import guard_process
from otpy.runtime import descendants, posix, threads
from otpy.runtime.posix import NO_SIGNAL, NoPython, Socket
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Once

TOO_SOON = 1.0
"""A guard that ends sooner than so many seconds after its start is a failure."""

PAUSES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, *(2.0,) * 10, 60.0)
"""Seconds until the next guard is started, after so many failures in a row."""

REPORTED_AFTER = 3
"""So many failures in a row are reported."""

FIRST_WAIT = 5.0
"""Seconds that the start of a program waits for the first guard at most."""

LAST_WAIT = 5.0
"""Seconds that the end of a tree waits for the end of its guard at most."""

LOOKS = (0.0, 0.01, 0.05)
"""Seconds before each look whether a process still has the mark.

A process that other code of ours is about to execute has it for a moment."""

MODULE = "otpy.children.program.guard_process"


class Guard:
    """The guard of one tree.

    Attributes:
        mark: A descriptor that each program must inherit: the end for writing of a pipe
            that carries nothing.
        token: The text that the environment of each program must hold.
        thread: The thread of the keeper.
        settled: Happens when a guard runs, or when it is known that none will.
        closed: Happens when the tree needs it no longer.
        ended: Happens when the keeper has done its work.
    """

    def __init__(
        self, owner: object, name: str, complain: Callable[[str, BaseException], object]
    ) -> None:
        """Have the keeper begin.

        Args:
            owner, name: Of the thread of the keeper.
            complain: Called with a failure; must not block: the end of the tree waits for
                the keeper.
        """
        self._inside, self.mark = posix.pipe()
        self.token = secrets.token_hex(12)
        self.settled, self.closed, self.ended = Once(), Once(), Once()
        self._lock = threading.Lock()
        self._line: Socket | None = None
        self._pid: int | None = None
        self._programs: set[int] = set()
        self._litter: set[str] = set()
        try:
            self.thread = threads.spawn(
                Keeper(self, complain).keep,
                name=f"{name} (guard)",
                role=Role.HELPER,
                purpose="keeps the guard of programs",
                owner=owner,
            )
        except BaseException:  # the system has no thread left
            self.forget_mark()
            raise
        _guards.add(self)

    # Called by launchers and the watch

    def wait(self) -> None:
        """Wait until a guard runs, or none will; no longer than FIRST_WAIT."""
        self.settled.wait(FIRST_WAIT)

    def add(self, program: int) -> None:
        """Have the descendants of the process *program* killed if this process dies."""
        with self._lock:
            self._programs.add(program)
            self._say(b"+%d\n" % program)

    def drop(self, program: int) -> None:
        """Forget *program*: it has ended."""
        with self._lock:
            self._programs.discard(program)
            # with a pidfd the guard notices the end itself
            if not hasattr(os, "pidfd_open"):
                self._say(b"-%d\n" % program)

    def add_litter(self, directory: str) -> None:
        """Have *directory*, with the sockets in it, removed if this process dies."""
        with self._lock:
            self._litter.add(directory)
            self._say(b"!%s\n" % os.fsencode(directory))

    def close(self, spared: set[int]) -> None:
        """End the guard, and the processes that still have the mark, but *spared*.

        All programs of the tree have ended.
        """
        with self._lock:
            self.closed.happen()
            self._kill()
        # The guard has the mark as well. Unless the system is stuck, that is
        # milliseconds.
        self.ended.wait(LAST_WAIT)
        mark, self.mark = self.mark, -1
        if mark >= 0:
            name = f"pipe:[{os.fstat(mark).st_ino}]"
            posix.close(mark)
            if all(self._is_carried(pause) for pause in LOOKS):
                kill_carriers(name, spared)
        self.forget_mark()

    def _is_carried(self, pause: float) -> bool:
        """Whether any other process has the mark, after *pause* seconds."""
        time.sleep(pause)
        os.set_blocking(self._inside, False)
        try:
            return os.read(self._inside, 1) != b""
        except BlockingIOError:
            return True

    def forget_mark(self) -> None:
        """Close the mark. A fork is no program of the process that it comes from."""
        for fd in (self.mark, self._inside):
            if fd >= 0:
                posix.close(fd)
        self.mark = self._inside = -1

    # Called by the keeper

    def connect(self, line: Socket, pid: int) -> None:
        """Report all that is known, and all that comes, to a new guard."""
        # The watch may close just now. It sets ``closed`` and kills under this lock: so
        # either it sees the number of this guard, or its flag is seen here.
        with self._lock:
            self._line, self._pid = line, pid
            if self.closed.has_happened:
                self._kill()
            self._say(b"".join(b"+%d\n" % program for program in self._programs))
            self._say(b"".join(b"!%s\n" % os.fsencode(directory) for directory in self._litter))
        self.settled.happen()

    def disconnect(self, popen: subprocess.Popen[bytes]) -> None:
        """Report no more to the guard *popen*, and reap it."""
        # Another thread that holds the lock may send a signal to the number just now.
        # So it is reaped under the lock, after it is forgotten here.
        with self._lock:
            self._line = self._pid = None
            popen.poll()

    # Called under the lock

    def _say(self, data: bytes) -> None:
        """Report *data* to the guard, if one runs.

        A guard that does not take it at once is stuck, and is killed: the next one gets all
        that is known.
        """
        if self._line is not None:
            try:
                is_whole = self._line.send(data, NO_SIGNAL) == len(data)
            except OSError:
                # it has ended, or is suspended
                is_whole = False
            # a part of a line would change the meaning of the next one
            if not is_whole:
                self._kill()

    def _kill(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)


class Keeper:
    """Starts the process of a guard, waits for its end, and starts the next one."""

    def __init__(self, guard: Guard, complain: Callable[[str, BaseException], object]) -> None:
        self._guard, self._complain = guard, complain

    def keep(self) -> None:
        """Do so until the tree needs no guard any more."""
        try:
            self.keep_one_after_the_other()
        except NoPython as error:
            self._complain("programs_unguarded", error)
        finally:
            self._guard.settled.happen()
            self._guard.ended.happen()

    def keep_one_after_the_other(self) -> None:
        """Keep guards; pause before the next one if they end too soon.

        Raises:
            NoPython: No guard can be started at all.
        """
        guard, failures = self._guard, 0
        while not guard.closed.has_happened:
            began = time.monotonic()
            try:
                failure: Exception = RuntimeError(f"the guard ended with {self.be_guarded()}")
            except NoPython:
                raise
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                failure = error  # no descriptor or process is left
            failures = failures + 1 if time.monotonic() - began < TOO_SOON else 1
            if failures == REPORTED_AFTER and not guard.closed.has_happened:
                self._complain("programs_unguarded", failure)
                guard.settled.happen()
            guard.closed.wait(PAUSES[min(failures, len(PAUSES)) - 1])

    def be_guarded(self) -> int | None:
        """Start a guard, connect to it, and wait for its end; return its exit code."""
        guard = self._guard
        line, inside = posix.socket_pair()
        with line:
            line.setblocking(False)
            with inside:
                command = [*posix.python_command("-I", "-S"), *script()]
                popen = posix.start_process(
                    [*command, str(os.getpid()), str(guard.mark), guard.token],
                    stdin=inside.fileno(),
                    pass_fds=[guard.mark],
                    cwd="/",
                    env={},
                )
            try:
                guard.connect(line, popen.pid)
                await_end(popen.pid)
            finally:
                guard.disconnect(popen)
                if popen.returncode is None:
                    # this thread was interrupted while it waited
                    popen.kill()
                    popen.wait()
        return popen.returncode


def await_end(pid: int) -> None:
    """Wait until the guard *pid* has ended; kill it if it is suspended."""
    if hasattr(os, "waitid") and posix.has_real_threads():
        ended = posix.await_change(pid, os.WEXITED | os.WSTOPPED)
        if ended.is_reaped or ended.code is not None:
            return
        os.kill(pid, signal.SIGKILL)
    posix.await_exit(pid)


def script() -> list[str]:
    """Return the arguments by which Python runs the guard.

    That is the file of its module; where the module is in a zip file, its text.

    Raises:
        NoPython: The module has neither.
    """
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None, "it is a part of this package"
    if spec.origin is not None and Path(spec.origin).is_file():
        return [spec.origin]
    get_source = getattr(spec.loader, "get_source", lambda name: None)
    source: str | None = get_source(MODULE)
    if source is None:
        raise NoPython("no guard can be started: its module has no file, and no source")
    return ["-c", source]


def kill_carriers(name: str, spared: set[int]) -> None:
    """Kill the processes that have a descriptor of the pipe *name*.

    Those that this process may have made itself are spared.
    """
    if not descendants.is_possible():
        return
    me, session = os.getpid(), os.getsid(0)
    for pid in descendants.pids():
        seen = None if pid in spared or pid == me else descendants.look(pid)
        if seen is None or (seen.parent == me and seen.session in (session, pid)):
            continue
        if name in guard_process.descriptors(str(pid)):
            descendants.send(seen, signal.SIGKILL)


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def after_fork() -> None:
    """Forget the marks in a fork of this process, which has inherited them."""
    for guard in list(_guards):
        guard.forget_mark()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process forks
    os.register_at_fork(after_in_child=after_fork)
