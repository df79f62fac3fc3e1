"""One run of a program: the objects that its threads share.

Four threads deal with a run: that of the supervisor (``Program``, child.py), a launcher
(``Making``, making.py), the watch (``Attendance``, attendance.py), and one for each probe
or search for a line (probes.py, output.py). They share a ``Run``, and nothing else. Each
class here states which thread calls which method, and how that is safe.

Laws:
1. The number of a process or a group is used only while it is certainly ours: until the
   leader is reaped. The supervisor that signals and the watch that reaps meet at the lock
   of ``Leader``, which is never held for longer than a few system calls.
2. A run reports at most one ChildStarted, and exactly one ChildExited after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable

import attrs

from otpy.abc import Birth, Deliver
from otpy.children.program.exit import ProgramExit
from otpy.children.program.lanes import Handout
from otpy.children.program.options import Command
from otpy.children.program.output import Tail
from otpy.children.program.watch import Watch
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ExitReason
from otpy.runtime import descendants, posix, threads
from otpy.runtime.descendants import Seen
from otpy.runtime.posix import signal_group
from otpy.runtime.threads import ThreadState
from otpy.runtime.waiting import Once
from otpy.values import running


class Leader:
    """The process that leads the group of a program, and what it was asked for.

    ``ask`` and ``kill`` are called by the supervisor's thread, ``ask`` also by the thread
    that ends what was detached. A launcher calls ``begin`` and ``undo``. The watch calls
    all methods about its end; where there are no pidfds, a thread calls ``wait``.

    Attributes:
        popen: The process; None until the launcher has started it.
        is_asked: Whether the supervisor has asked it to stop, killed or abandoned it.
        is_killed: Whether the supervisor has killed it.
        ended: Happens when the watch knows of its end, or the launcher has undone the start.
        has_ended: Whether the watch has heard of its end, which it may not use yet; only
            the watch changes it.
        code: Its exit code; see ``ProgramExit``.
        siblings: The numbers of all leaders of the tree; see ``Watch``.
    """

    def __init__(self, command: Command) -> None:
        self._stop_signal, self._stop_to = command.stop_signal, command.stop_to
        self._lock = threading.Lock()
        # None: it has not been started, or it has been reaped
        self._group: int | None = None
        self._asked_at: int | None = None
        self.popen: subprocess.Popen[bytes] | None = None
        self.is_asked = self.is_killed = self.has_ended = False
        self.ended = Once()
        self.code: int | None = None
        self.siblings: set[int] = set()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.popen is not None, "it was started"
        return self.popen.pid

    # What it is asked for

    def ask(self) -> None:
        """Ask it to stop; if it is being started, the launcher does that."""
        with self._lock:
            self.is_asked = True
            if self._group is not None and not self.has_ended:
                self._send_stop()

    def kill(self, launcher: threading.Thread | None) -> None:
        """Kill its group.

        Args:
            launcher: The thread that starts it. A process that this thread is about to make
                the program is killed as well: it may hang in a file system.
        """
        with self._lock:
            self.is_asked = self.is_killed = True
            if self._group is not None:
                signal_group(self._group, signal.SIGKILL)
            elif self.popen is None and not self.ended.has_happened and launcher is not None:
                # The launcher may go on to the start of another program, whose process
                # this must not kill. But it takes this lock before that, in ``begin``
                # or ``undo``. So a child of its thread that leads no run yet is
                # certainly this one.
                for pid in descendants.children_of_thread(launcher.native_id or 0):
                    if pid not in self.siblings:
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGKILL)

    def _send_stop(self) -> None:
        """Send the stop signal; under the lock."""
        assert self._group is not None, "it has not been reaped"
        if self._stop_to == "leader":
            # OSError: it has changed its user
            with contextlib.suppress(OSError):
                os.kill(self._group, self._stop_signal)
        else:
            self._asked_at = descendants.ticks()
            signal_group(self._group, self._stop_signal)
        # a suspended process hears of no signal before it goes on
        signal_group(self._group, signal.SIGCONT)

    def has_heard(self, one: Seen) -> bool:
        """Whether *one* was in the group when the stop signal went to it."""
        asked_at = self._asked_at
        return asked_at is not None and one.started < asked_at and one.group == self.pid

    # Its start

    def begin(self) -> None:
        """Say that ``popen`` runs, and send it what it was asked for before."""
        # its launcher may start another program next, whose ``kill`` must spare this
        # one
        self.siblings.add(self.pid)
        # The supervisor may ask or kill it just now. It sets its flag under this lock:
        # so either it sees the group here and sends the signal, or the flag is seen
        # here.
        with self._lock:
            self._group = self.pid
            if self.is_killed:
                signal_group(self._group, signal.SIGKILL)
            elif self.is_asked:
                self._send_stop()

    def undo(self) -> None:
        """Kill and reap it, if it runs: its start has failed half-way."""
        with self._lock:  # see ``kill``
            self.ended.happen()
            if self.popen is not None and self.popen.returncode is None:
                # The failure may have come before ``begin``.
                self._group = self.pid
        if self.popen is not None:
            self.kill_group()
            # not for long: it has been killed
            self.wait()
            self.reap()

    # Its end

    def wait(self) -> None:
        """Wait until it has ended; on a thread of its own, without pidfds, or in ``undo``."""
        ended = posix.await_exit(self.pid)
        if ended.is_reaped:
            # It is reaped already, and its number may be another process's. The moment
            # before this lock cannot be closed: only pidfds help.
            with self._lock:
                self._forget_group(ended.code)

    def peek(self) -> None:
        """Note its exit code, without reaping it."""
        with self._lock:
            if self._group is not None and (ended := posix.peek(self._group)) is not None:
                self.code = ended.code
                if ended.is_reaped:
                    self._forget_group(ended.code)

    def kill_group(self) -> None:
        """Kill its group; nothing, if it has been reaped."""
        with self._lock:
            if self._group is not None:
                signal_group(self._group, signal.SIGKILL)

    def reap(self) -> bool:
        """Reap it; return whether that has been done."""
        with self._lock:
            if self._group is not None and (ended := posix.reap(self._group)) is not None:
                self._forget_group(ended.code if ended.code is not None else self.code)
            return self._group is None

    def group_lives(self) -> bool:
        """Whether its group has a process. It is reaped first: else it would count."""
        if not self.reap():
            return True
        try:
            os.killpg(self.pid, 0)
        except OSError:
            # the group is empty; or, on some systems, it has zombies only
            return False
        return True

    def _forget_group(self, code: int | None) -> None:
        """Use its number no longer: it has been reaped; under the lock."""
        assert self.popen is not None, "it was started"
        self.siblings.discard(self.popen.pid)
        self._group, self.code = None, code
        # or subprocess would look for it again when the object is deleted
        self.popen.returncode = code or 0


class Vitals:
    """Whether a program is up, well and alive, as its supervisor sees it.

    ``come_up`` is called by the launcher, the watch, or the thread of a probe or a search;
    ``check_in`` by the watch; ``note_health`` by the thread that asks for the health, which
    alone counts misses. ``end`` is called by the thread that has the run at that moment:
    the supervisor's, a launcher or the watch. The supervisor's thread reads.

    Attributes:
        deliver: How the supervisor gets the news; set by ``Program.start``.
        exit: How it has ended; None: it has not.
    """

    def __init__(self, birth: Birth, command: Command) -> None:
        self._birth, self._health = birth, command.health
        self.heartbeat = birth.spec.heartbeat if command.health is None else command.heartbeat
        self.deliver: Deliver
        self.exit: ProgramExit | None = None
        self._lock = threading.Lock()
        self._is_up = False
        self._beat = 0.0
        self._misses = 0

    def come_up(self) -> None:
        """Report that it is up; nothing, if that was reported, or it has ended."""
        # The watch may report its end just now, and ChildStarted must not come after
        # that. Both take this lock: so the other thread reports before, or does not
        # report.
        with self._lock:
            if not self._is_up and self.exit is None:
                self._is_up, self._beat, self._misses = True, self._now(), 0
                self.deliver(ChildStarted(self._birth.ref, self._birth.path))

    def check_in(self) -> None:
        """Note that the program itself says that it is well."""
        self._beat = self._now()

    def note_health(self, is_well: bool) -> None:
        """Note the answer of a probe."""
        if is_well:
            self._misses = 0
            # with a heartbeat the program has to check in itself as well
            if self.heartbeat is None:
                self._beat = self._now()
        elif self._is_up:
            self._misses += 1

    def end(self, exit: ProgramExit, reason: ExitReason) -> None:
        """Report its end."""
        with self._lock:
            self.exit = exit
        self.deliver(ChildExited(self._birth.ref, reason))

    def pulse(self) -> tuple[float, float]:
        """Return when it was last known to be well, and until when that is good.

        With ``health`` the supervisor looks once per interval, and only what the probes
        have found counts.
        """
        health, beat = self._health, self._beat
        until = beat + self.heartbeat if self.heartbeat is not None else float("inf")
        if health is not None:
            is_missed = self._misses >= health.misses
            until = min(until, beat if is_missed else self._now() + health.interval)
        return beat, until

    def _now(self) -> float:
        now: float = self._birth.tree.clock.monotonic()
        return now


class Helpers:
    """The threads that work for one run. They are let go with it when it is detached.

    The launcher adds them, the supervisor's thread lets them go. A helper that both see is
    let go twice, which changes nothing.
    """

    def __init__(self) -> None:
        self._let_go: list[Callable[[], object]] = []
        self._is_detached = False

    def add_thread(self, thread: threading.Thread) -> None:
        """Count *thread* among them."""
        self._add(lambda: threads.mark(thread, ThreadState.DETACHED))

    def add_handout(self, handout: Handout) -> None:
        """Count the thread that *handout* uses among them."""
        self._add(handout.detach)

    def detach(self) -> None:
        """Let them go: the end of the tree does not wait for them."""
        self._is_detached = True
        for let_go in list(self._let_go):
            let_go()

    def _add(self, let_go: Callable[[], object]) -> None:
        # The supervisor may detach just now. It sets its flag first and goes through
        # the list then; here the list comes first and the flag is looked at then. So
        # one of the two lets this helper go; in the same order, both could miss it.
        self._let_go.append(let_go)
        if self._is_detached:
            let_go()


@running
class Run:
    """All that is shared. The fields themselves do not change once the run has begun.

    Attributes:
        birth, command: As of ``Program``.
        watch: The watch of the tree; set by ``Program.start``.
        leader, vitals, helpers: See there.
        tail: The last of its stderr. The watch writes it, the supervisor's thread reads it.
    """

    birth: Birth
    command: Command
    leader: Leader
    vitals: Vitals
    watch: Watch = attrs.field(init=False)
    helpers: Helpers = attrs.field(factory=Helpers, init=False)
    tail: Tail = attrs.field(factory=Tail, init=False)
