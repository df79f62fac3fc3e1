"""What ties programs to the life of this process: the guard, and its keeper.

Laws:
1. The guard is started before the first program of a tree. It costs one process of a
   few megabytes per tree with programs, one short write per start, and nothing while
   nothing happens.
2. A guard that ends, or is suspended, is replaced at once. One that ends again and
   again, soon after its start, is replaced after longer and longer pauses, and that is
   reported once.
3. Where no guard can run (no Python can be started here), that is reported once, and
   programs run without.

Who runs what: the keeper, a thread of this module, starts the guard, waits for its end,
and replaces it; the process number of the guard is its own. All else is called by the
threads that start programs and the one that waits for them. ``_lock`` guards the line,
and is held for as long as a system call that does not block.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

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

PATIENCE = 5.0
"""How long the start of a program waits for the first guard, in seconds."""

LOOKS = (0.0, 0.01, 0.05)
"""The pauses before each look whether a process still has the mark, in seconds.

One that other code of this process is about to execute has it for a moment."""

MODULE = "otpy.children.program.guard_process"


class Lifeline:
    """The guard of one tree.

    Attributes:
        mark: A descriptor that each program must inherit: the end for writing of a pipe
            that carries nothing.
        token: What the environment of each program must hold.
        thread: The keeper.
    """

    def __init__(
        self, owner: object, name: str, complain: Callable[[str, BaseException], object]
    ) -> None:
        """Begin.

        Args:
            owner, name: Of the keeper.
            complain: Called with what has failed; must not block: the end of the tree waits for the keeper.
        """
        self._inside, self.mark = posix.pipe()
        self.token = secrets.token_hex(12)
        self._complain = complain
        self._lock = threading.Lock()
        self._line: Socket | None = None
        self._pid: int | None = None
        self._programs: set[int] = set()
        self._litter: set[str] = set()
        self._closed, self._settled, self._ended = Once(), Once(), Once()
        try:
            purpose = "keeps the guard of programs"
            who = f"{name} (guard)"
            self.thread = threads.spawn(
                self._keep, name=who, role=Role.HELPER, purpose=purpose, owner=owner
            )
        except BaseException:  # no more threads
            self.forget_mark()
            raise
        _lines.add(self)

    def wait(self) -> None:
        """Wait until there is a guard, or will be none; no longer than PATIENCE."""
        self._settled.wait(PATIENCE)

    def add(self, program: int) -> None:
        """Have the descendants of the process *program* killed if this process dies."""
        with self._lock:
            self._programs.add(program)
            self._say(b"+%d\n" % program)

    def drop(self, program: int) -> None:
        """Forget *program*: it has ended."""
        with self._lock:
            self._programs.discard(program)
            if not hasattr(os, "pidfd_open"):  # with these the guard has noticed
                self._say(b"-%d\n" % program)

    def add_litter(self, directory: str) -> None:
        """Have *directory*, with the sockets in it, removed if this process dies."""
        with self._lock:
            self._litter.add(directory)
            self._say(b"!%s\n" % os.fsencode(directory))

    def close(self, spared: set[int]) -> None:
        """End the guard, and what still has the mark, but *spared*.

        All programs of the tree have ended.
        """
        with self._lock:
            self._closed.happen()
            self._kill()
        self._ended.wait(
            PATIENCE
        )  # for milliseconds, unless the system is stuck; it has the mark, too
        mark, self.mark = self.mark, -1
        if mark >= 0:
            name = _pipe_of(mark)
            posix.close(mark)
            if all(self._is_carried(pause) for pause in LOOKS):
                _kill_carriers(name, spared)
        self.forget_mark()

    def forget_mark(self) -> None:
        """Be no program of ours: what this process was forked from has the mark."""
        for fd in (self.mark, self._inside):
            if fd >= 0:
                posix.close(fd)
        self.mark = self._inside = -1

    def _is_carried(self, pause: float) -> bool:
        """Whether any other process has the mark, after *pause* seconds."""
        time.sleep(pause)
        os.set_blocking(self._inside, False)
        try:
            return os.read(self._inside, 1) != b""
        except BlockingIOError:
            return True

    def _say(self, data: bytes) -> None:
        """Report to the guard; under the lock.

        One that is stuck ends by that: the next one is told all.
        """
        if self._line is not None:
            try:
                is_whole = self._line.send(data, NO_SIGNAL) == len(data)
            except OSError:  # it has ended, or is suspended
                is_whole = False
            if not is_whole:  # a part of a line would change the next one
                self._kill()

    def _kill(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)

    # On the keeper's thread

    def _keep(self) -> None:
        try:
            self._keep_one_after_the_other()
        except NoPython as error:
            self._complain("programs_unguarded", error)
        finally:
            self._settled.happen()
            self._ended.happen()

    def _keep_one_after_the_other(self) -> None:
        failures = 0
        while not self._closed.has_happened:
            began = time.monotonic()
            try:
                failure: Exception = RuntimeError(f"the guard ended with {self._be_guarded()}")
            except NoPython:
                raise
            except (
                OSError,
                ValueError,
                RuntimeError,
                MemoryError,
            ) as error:  # no more descriptors or processes
                failure = error
            failures = failures + 1 if time.monotonic() - began < TOO_SOON else 1
            if failures == REPORTED_AFTER and not self._closed.has_happened:
                self._complain("programs_unguarded", failure)
                self._settled.happen()
            self._closed.wait(PAUSES[min(failures, len(PAUSES)) - 1])

    def _be_guarded(self) -> int | None:
        """Start a guard, tell it all, and wait for its end; return its exit code."""
        line, inside = posix.socket_pair()
        with line:
            line.setblocking(False)
            with inside:
                popen = posix.start_process(
                    [
                        *posix.python_command("-I", "-S"),
                        *_script(),
                        str(os.getpid()),
                        str(self.mark),
                        self.token,
                    ],
                    stdin=inside.fileno(),
                    pass_fds=[self.mark],
                    cwd="/",
                    env={},
                )
            try:
                with self._lock:
                    self._line, self._pid = line, popen.pid
                    if self._closed.has_happened:
                        self._kill()
                    self._say(b"".join(b"+%d\n" % program for program in self._programs))
                    self._say(
                        b"".join(b"!%s\n" % os.fsencode(directory) for directory in self._litter)
                    )
                self._settled.happen()
                self._await_end(popen.pid)
            finally:
                with self._lock:  # whoever holds it may use the number until it is reaped
                    self._line = self._pid = None
                    popen.poll()
                if popen.returncode is None:  # this thread was interrupted
                    popen.kill()
                    popen.wait()
        return popen.returncode

    def _await_end(self, pid: int) -> None:
        """Wait until *pid* has ended; end it if it has been suspended."""
        if hasattr(os, "waitid") and posix.has_real_threads():
            ended = posix.await_change(pid, os.WEXITED | os.WSTOPPED)
            if ended.is_reaped or ended.code is not None:
                return
            os.kill(pid, signal.SIGKILL)
        posix.await_exit(pid)


def _script() -> list[str]:
    """Return how Python is told to run the guard: by its file.

    In a zip file it has none; there by its text.
    """
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None, "it is a part of this package"
    if spec.origin is not None and Path(spec.origin).is_file():
        return [spec.origin]
    source = spec.loader.get_source(MODULE) if hasattr(spec.loader, "get_source") else None  # type: ignore[union-attr]
    if source is None:
        raise NoPython("no guard can be started: its module has no file, and no source")
    return ["-c", source]


def _pipe_of(fd: int) -> str:
    return f"pipe:[{os.fstat(fd).st_ino}]"


def _kill_carriers(name: str, spared: set[int]) -> None:
    """Kill the processes that have a descriptor of the pipe *name*.

    Those that this process may have made itself are spared.
    """
    if not descendants.is_possible():
        return
    me, session = os.getpid(), os.getsid(0)
    for pid in descendants.pids():
        seen = None if pid in spared or pid == me else descendants.look(pid)
        if seen is not None and (seen.parent != me or seen.session not in (session, pid)):
            with contextlib.suppress(OSError):
                if any(
                    str(entry.readlink()) == name for entry in Path(f"/proc/{pid}/fd").iterdir()
                ):
                    descendants.send(seen, signal.SIGKILL)


_lines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _after_fork() -> None:
    """A fork of this process inherits all, and is nobody's program."""
    for line in list(_lines):
        line.forget_mark()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
