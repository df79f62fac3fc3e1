"""Children that are programs: processes that know nothing of otpy.

Laws:
1. A program runs in a session and a process group of its own, from before its first
   instruction. What it is sent, is sent to the group: its own children get it, too;
   with ``stop_to="leader"`` the stop signal goes to itself only.
2. A number of a process or a group is used only while it is certainly ours: until its
   leader is reaped. The supervisor that signals and the watch that reaps meet at
   ``_lock``, which is never held for longer than a system call.
3. When the leader has ended, nothing that descends from it stays (descendants.py). The
   *rest* is killed at once if the leader has ended by itself. In a stop the rest has
   the time that the leader had; and where ``interrupt=False`` forbids force, it has
   ``shutdown`` seconds in any case. So a replacement meets nobody who still holds its
   port.
4. A ChildExited says: reaped, nothing of the rest runs, all output read and in the log.
   What could not be ended is told as ``Unstopped``, by name. It does not wait for the
   user's callables, and no longer than LINGER for a log file that takes nothing.
5. A leader that ends of its stop signal, which we have not sent, may be a moment ahead
   of our own stop: a service manager sends that signal to all processes at once. Its
   end is told HOLD seconds later, or with our stop.

Who runs what: the methods of ``Child`` run on the supervisor's thread, and none of them
waits. A program is started on a launcher (launcher.py): its directory or its file may
be on a file system that does not answer. All news of the program then comes on the
thread of the watch (watch.py), except the answers to probes (probes.py). Who owns what:
what is made for a start belongs to the launcher until it hands it over with
``_attend``, and to the watch from then on. ``_lock`` guards the group's number, and
what has been asked for before there was one.

Not proud of: a program that is not ready in time, or has stalled, ends with the failure
that the machine has found, and what it said last is in its log file only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial

import attrs

from otpy.abc import Birth, Deliver
from otpy.children.program import probes
from otpy.children.program.launcher import Launchers
from otpy.children.program.logfiles import full
from otpy.children.program.notify import Mailbox, Mailroom
from otpy.children.program.output import (
    Called,
    Handout,
    Journal,
    Lane,
    Lines,
    Scan,
    Sink,
    Stream,
    Tail,
    lane,
)
from otpy.children.program.probes import Asking, Health, Line, Notify, Probe
from otpy.children.program.rest import AGAIN, Rest
from otpy.children.program.watch import Watch
from otpy.core.messages import ChildExited, ChildStarted
from otpy.exceptions import ProcessDied, printable
from otpy.reports import CRASHED, KILLED, NORMAL, SHUTDOWN, ExitReason, OutputLost, Unstopped
from otpy.runtime import descendants, posix, stacks, threads
from otpy.runtime.descendants import Family, Seen
from otpy.runtime.posix import NoPython, signal_group, signal_name
from otpy.runtime.threads import Role, ThreadState
from otpy.runtime.waiting import Once
from otpy.specs import Budget
from otpy.values import Value, running, value

LINGER = 0.5
"""How long an exit waits at most until what was killed has gone, and then until its logs are written, in seconds."""

HOLD = 0.2
"""How long an end of the stop signal, which we have not sent, is kept back in case that our own stop follows."""

LONGEST = 1e12
"""The longest heartbeat that a program is told of, in seconds: in microseconds, 64 bits hold it."""

LEFT = ExitReason(KILLED, detail="processes that it had started could not be ended")

QUOTED = 4096
"""How many bytes of stderr are shown with a crash; the reason has more."""

STANDARD = {1: "/dev/stdout", 2: "/dev/stderr"}
"""What "inherit" means: streams of this process, which have one writer, as files have."""

SYSTEMD = (b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID")
"""What systemd has told this process, and does not mean its children."""

UNBUFFERED = (
    "no line matched: most programs keep what they write into a pipe in a buffer "
    "(PYTHONUNBUFFERED=1 or python -u prevents it, for others stdbuf -oL)"
)
"""What is said of a program that was waited for by its lines."""

Text = str | os.PathLike[str]
Output = Text | Callable[[str], object]


def _names_only(env: tuple[tuple[str, str], ...] | None) -> str:
    """Show an environment without its values: they may be secrets."""
    return "None" if env is None else f"<{', '.join(name for name, _ in env)}>"


@value(kw_only=True)
class ProgramStart(Value):
    """Makes a program child; the ``start`` of its spec. All of it has been checked by ``process``."""

    argv: tuple[str, ...]
    cwd: str | None
    env: tuple[tuple[str, str], ...] | None = attrs.field(repr=_names_only)
    stdout: Output
    stderr: Output
    err_dir: str | None
    log_size: int
    log_backups: int
    stop_signal: signal.Signals
    stop_to: str
    success_codes: frozenset[int]
    probe: Probe | None
    health: Health | None
    watchdog: float | None

    def __call__(self, birth: Birth) -> Program:
        return Program(birth, self)

    @property
    def if_late(self) -> str:
        """What else is said of a program that was not ready in time."""
        return UNBUFFERED if isinstance(self.probe, Line) else ""


# How programs end


@value
class ProgramExit(Value):
    """How a program has ended; the ``detail`` of its ``ExitReason``.

    Attributes:
        returncode: As in ``subprocess``: the exit code, or minus the number of the signal; None: nobody knows, because
            something else in this process has reaped it.
        stderr: The last of what this run has written, at most 64 KiB.
    """

    returncode: int | None
    stderr: bytes = attrs.field(repr=False)

    @property
    def signal(self) -> str | None:
        """The name of the signal that has killed it, such as "SIGSEGV"; None: none has."""
        return signal_name(self.returncode)

    def __str__(self) -> str:
        return str(ProcessDied(self.returncode, self.signal))


def _died(exit: ProgramExit) -> ProcessDied:
    """Return how the crash is told."""
    error = ProcessDied(exit.returncode, exit.signal)
    if exit.stderr:
        error.add_note(printable(exit.stderr[-QUOTED:].decode("utf-8", "replace")).rstrip("\n"))
    return error


@running
class Program:
    """One incarnation of a program. Meets ``Child``."""

    birth: Birth
    how: ProgramStart
    _deliver: Deliver = attrs.field(init=False)
    _watch: Watch = attrs.field(init=False)
    _launcher: threading.Thread | None = attrs.field(default=None, init=False)
    _popen: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _group: int | None = attrs.field(
        default=None, init=False
    )  # None: it has not started, or has been reaped
    _family: Family | None = attrs.field(default=None, init=False)
    _pidfd: int | None = attrs.field(default=None, init=False)
    _errors: Handout | None = attrs.field(default=None, init=False)
    _tail: Tail = attrs.field(factory=Tail, init=False)
    _streams: list[Stream] = attrs.field(factory=list, init=False)
    _scans: list[Handout] = attrs.field(factory=list, init=False)
    _logs: list[Handout] = attrs.field(factory=list, init=False)
    _theirs: list[int] = attrs.field(factory=list, init=False)
    _helpers: list[threading.Thread] = attrs.field(factory=list, init=False)
    _mailbox: Mailbox | None = attrs.field(default=None, init=False)
    _ended: Once = attrs.field(factory=Once, init=False)
    _exit: ProgramExit | None = attrs.field(default=None, init=False)
    _code: int | None = attrs.field(default=None, init=False)
    _rest: Rest | None = attrs.field(default=None, init=False)
    _is_ready: bool = attrs.field(default=False, init=False)
    _is_attended: bool = attrs.field(default=False, init=False)
    _patience: float = attrs.field(default=0.0, init=False)
    _is_over: bool = attrs.field(default=False, init=False)
    _asked_at: int | None = attrs.field(default=None, init=False)
    _is_timed: bool = attrs.field(default=False, init=False)
    _is_winding_up: bool = attrs.field(default=False, init=False)
    _is_detached: bool = attrs.field(default=False, init=False)
    _is_asked: bool = attrs.field(default=False, init=False)
    _is_killed: bool = attrs.field(default=False, init=False)
    _beat: float = attrs.field(default=0.0, init=False)
    _misses: int = attrs.field(default=0, init=False)

    def start(self, deliver: Deliver) -> None:
        self._deliver, self.birth.last_exit = (
            deliver,
            None,
        )  # or each exit would keep the one before alive
        tree = self.birth.tree
        try:
            self._watch = tree.shared(Watch)
        except (OSError, RuntimeError, MemoryError) as error:  # no more descriptors or threads
            self._tell_no_start(error)
            return
        self._watch.admit(self)
        try:
            self._launcher = tree.shared(Launchers).launch(self._be_launched)
        except (RuntimeError, MemoryError) as error:
            self._watch.let_go(self)
            self._tell_no_start(error)

    def stop(self) -> None:
        with self._lock:
            self._is_asked = True
            if self._group is not None and not self._is_over:
                self._ask()
        self._see_again()

    def kill(self, grace: float) -> bool:
        with self._lock:
            self._is_asked = self._is_killed = True
            if self._group is not None:
                signal_group(self._group, signal.SIGKILL)
            elif self._popen is None:
                self._kill_unborn()
        self._see_again()
        return True

    def _see_again(self) -> None:
        """If the leader has ended, the watch must see to the rest of it anew.

        The race is with ``_consider_end``: it says that the leader has ended, and then looks at what was asked for.
        """
        if self._ended.has_happened:
            self._watch.post(self._see_to_rest)

    def abandon(self) -> None:
        """Its launcher may hang; what is left of it may be deaf. If they come to an end, that is told."""
        self._is_asked = True
        if self._launcher is not None and self._popen is None:
            threads.mark(self._launcher, ThreadState.UNSTOPPED)

    def detach(self) -> None:
        """Let its helpers go; the watch stays as long as there is a program."""
        self._is_detached = True
        for helper in self._helpers:
            threads.mark(helper, ThreadState.DETACHED)
        for stream in self._streams:
            for handout in stream.handouts:
                handout.detach()

    def pulse(self) -> tuple[float, float]:
        """Return when it was last known to be well, and until when that is good.

        With ``health``, the supervisor looks once per interval, and only what the probes have found counts.
        """
        health, beat = self.how.health, self._beat
        until = beat + self._heartbeat if self._heartbeat is not None else float("inf")
        if health is not None:
            is_missed = self._misses >= health.misses
            until = min(until, beat if is_missed else self._now() + health.interval)
        return beat, until

    def stack(self) -> str:
        """Return what the system and the program itself say of it: nobody can look into it."""
        popen, rest, launcher = self._popen, self._rest, self._launcher
        if self._exit is not None:
            return ""
        if popen is None:
            words = " ".join(self.how.argv)
            return f"it is being started: {words}\n{stacks.stack_of(launcher.ident if launcher is not None else None)}"
        if rest is not None:
            return rest.stack()
        said = printable(bytes(self._tail)[-QUOTED:].decode("utf-8", "replace"))
        return f"process {popen.pid}, {descendants.state_of(popen.pid)}: {' '.join(self.how.argv)}\n{said}"

    @property
    def state(self) -> object:
        """What it was handed over: a program saves nothing."""
        return self.birth.handover.state

    @property
    def alive(self) -> bool:
        return self._exit is None

    @property
    def _heartbeat(self) -> float | None:
        return self.birth.spec.heartbeat if self.how.health is None else self.how.watchdog

    def _now(self) -> float:
        now: float = self.birth.tree.clock.monotonic()
        return now

    def _ask(self) -> None:
        """Send the stop signal; under the lock. One that is suspended would not hear of it without SIGCONT."""
        assert self._group is not None, "it has not been reaped"
        if self.how.stop_to == "leader":
            with contextlib.suppress(OSError):  # it has changed its user
                os.kill(self._group, self.how.stop_signal)
        else:
            self._asked_at = descendants.ticks()
            signal_group(self._group, self.how.stop_signal)
        signal_group(self._group, signal.SIGCONT)

    def _kill_unborn(self) -> None:
        """Kill what is about to become the program, and hangs: a child of the launcher that no program knows."""
        launcher = self._launcher
        if launcher is not None and launcher.native_id is not None:
            for pid in descendants.children_of_thread(launcher.native_id):
                if pid not in self._watch.leaders:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)

    # The start; on a launcher's thread

    def _be_launched(self) -> Callable[[], object]:
        try:
            self._launch()
        except (
            BaseException
        ) as error:  # the system refuses it, or an exception was injected into this thread
            self._undo()
            self._watch.let_go(self)
            return partial(self._tell_no_start, error)
        return self._tell_start

    def _tell_start(self) -> None:
        if not self.birth.spec.ready:
            self._say_ready()
        self._watch.post(self._attend)

    def _tell_no_start(self, error: BaseException) -> None:
        with self._lock:
            self._exit = ProgramExit(None, b"")
        reason = (
            ExitReason(SHUTDOWN) if isinstance(error, _NotWanted) else ExitReason(CRASHED, error)
        )
        self._deliver(ChildExited(self.birth.ref, reason))

    def _launch(self) -> None:
        lifeline = self._watch.lifeline
        lifeline.wait()
        stderr, stdout = self._stderr(), self._stdout()
        number = next(self._watch.numbers)
        self._family = Family(f"{lifeline.token}.{number}.".encode())
        environment = self._environment(self._family)
        if self._is_asked:
            raise _NotWanted
        self._popen = posix.start_process(
            self.how.argv,
            cwd=self.how.cwd,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[lifeline.mark],
            heard=[self.how.stop_signal],
            unclean=self._tell_unclean,
        )
        self._family.leader = self._popen.pid
        self._watch.leaders.add(self._popen.pid)
        with self._lock:  # the supervisor may just now ask it to stop
            self._group = self._popen.pid
            if self._is_killed:
                signal_group(self._group, signal.SIGKILL)
            elif self._is_asked:
                self._ask()
        self._close_theirs()
        self._wait_for_end(self._group)
        self._begin_probes()
        if self._is_detached:  # before it had these helpers
            self.detach()

    def _tell_unclean(self, error: NoPython) -> None:
        self.birth.tree.telemetry.complain("signals_inherited", error, path=self.birth.path)

    def _wait_for_end(self, pid: int) -> None:
        """Have ``_has_ended`` called on the watch's thread at the end of the process."""
        try:
            self._pidfd = posix.open_process(pid)
        except ProcessLookupError:  # it has ended already, and something else has reaped it
            self._watch.post(self._has_ended)
            return
        if self._pidfd is None:
            name, owner = f"{self.birth.path} (wait)", self.birth.tree
            waiter = threads.spawn(
                self._wait, name=name, role=Role.HELPER, purpose="waits for a program", owner=owner
            )
            self._helpers.append(waiter)

    def _wait(self) -> None:
        ended = posix.await_exit(self._pid)
        if ended.is_reaped:
            with self._lock:  # from here on the number may be anybody's
                self._forget_group(ended.code)
        self._watch.post(self._has_ended)

    def _undo(self) -> None:
        """It could not be started completely: leave nothing behind."""
        self._ended.happen()
        self._close_theirs()
        if self._popen is not None:
            with self._lock:
                if self._group is not None:
                    signal_group(self._group, signal.SIGKILL)
            self._popen.wait()  # it has been killed: not for long
            with self._lock:
                self._forget_group(self._popen.returncode)
        self._close_all()

    def _environment(self, family: Family) -> dict[bytes, bytes]:
        """Return the environment of the program."""
        env = self.how.env
        both = (
            _ours()
            if env is None
            else {os.fsencode(name): os.fsencode(value) for name, value in env}
        )
        if self._wants_mail:
            self._mailbox = self.birth.tree.shared(Mailroom).open(self._watch.lifeline)
            both[b"NOTIFY_SOCKET"] = os.fsencode(self._mailbox.address)
        if self._heartbeat is not None:
            both[b"WATCHDOG_USEC"] = b"%d" % int(min(self._heartbeat, LONGEST) * 1e6)
        family.mark(both)
        return both

    def _stderr(self) -> int:
        stream = self._pipe([self._tail], self.how.stderr, 2)
        if self.how.err_dir is not None:
            self._errors = self._log(
                stream, f"{self.how.err_dir}/{_file_name(self.birth.path)}.stderr.log"
            )
        return self._theirs[-1]

    def _stdout(self) -> int | None:
        if not isinstance(self.how.probe, Line):
            if self.how.stdout == "discard" or (
                self.how.stdout == "inherit" and not _is_inherited(1)
            ):
                return subprocess.DEVNULL
            if self.how.stdout == "inherit":
                return None
        self._pipe([], self.how.stdout, 1)
        return self._theirs[-1]

    def _pipe(self, sinks: list[Sink], where: Output, number: int) -> Stream:
        """Return a pipe whose contents go to *sinks*, and where the options say."""
        ours, theirs = posix.pipe()
        stream = Stream(ours, sinks)
        self._streams.append(stream)
        self._theirs.append(theirs)
        os.set_blocking(ours, False)
        if isinstance(self.how.probe, Line):
            scan = Scan(self.how.probe.pattern, self._has_said_it)
            self._scans.append(self._hand_out(stream, self._lane(None), scan, self._log_lost))
        self._direct(stream, where, number)
        return stream

    def _direct(self, stream: Stream, where: Output, number: int) -> None:
        if callable(where):
            one = self._lane((self.birth.tree, self.birth.path, number))
            self._hand_out(stream, one, Lines(Called(where, self.birth.path)), self._log_lost)
            one.stay()
        elif where == "inherit":
            self._log(stream, STANDARD[number])
        elif where != "discard":
            self._log(stream, os.fspath(where))

    def _lane(self, key: Hashable, path: str | None = None) -> Lane:
        return lane(key, name=f"{self.birth.path} (output)", owner=self.birth.tree, path=path)

    def _log(self, stream: Stream, path: str) -> Handout:
        """Have what comes out of *stream* written to the file."""
        one, failed = self._lane(full(path), path), partial(_tell_lost, self.birth, path)
        assert one.file is not None, "it was made for one"
        journal = Journal(one.file, self.how.log_size, self.how.log_backups, failed)
        handout = self._hand_out(stream, one, journal, failed)
        self._logs.append(handout)
        return handout

    def _hand_out(
        self, stream: Stream, one: Lane, sink: Sink, failed: Callable[[OSError], object]
    ) -> Handout:
        resume = partial(self._watch.post, partial(self._resume, stream))
        handout = Handout(one, sink, resume=resume, failed=failed)
        stream.hand_to(handout)
        return handout

    def _resume(self, stream: Stream) -> None:
        """There is room again for what comes out of *stream*; or a sink of it is done. On the watch's thread."""
        if self._is_winding_up:
            self._bury()
        else:
            self._hear(stream)

    def _log_lost(self, error: OSError) -> None:
        self.birth.tree.telemetry.complain("output_lost", error, path=self.birth.path)

    def _has_said_it(self) -> None:
        """It is ready; look at no more lines. On the thread of a lane."""
        self._say_ready()
        self._watch.post(self._stop_scanning)

    def _stop_scanning(self) -> None:
        for stream in self._streams:
            for scan in self._scans:
                stream.drop(scan)
            self._hear(stream)  # it may have been waited for

    def _close_theirs(self) -> None:
        while self._theirs:
            posix.close(self._theirs.pop())

    # Readiness and health; on the threads of watch and probes

    @property
    def _wants_mail(self) -> bool:
        """Whether the program has something to say to us."""
        return isinstance(self.how.probe, Notify) or self._heartbeat is not None

    def _begin_probes(self) -> None:
        probe = self.how.probe
        if isinstance(probe, Asking):
            asked: Asking = probe
            self._ask_by(lambda: probes.until_ready(asked, self._ended, self._say_ready))
        if (health := self.how.health) is not None:
            self._ask_by(lambda: probes.while_alive(health, self._ended, self._note_health))

    def _ask_by(self, how: Callable[[], None]) -> None:
        self._helpers.append(probes.ask(how, path=self.birth.path, owner=self.birth.tree))

    def _say_ready(self) -> None:
        with self._lock:  # the watch may say just now that it has ended
            if self._is_ready or self._exit is not None:
                return
            self._is_ready, self._beat, self._misses = True, self._now(), 0
            self._deliver(ChildStarted(self.birth.ref, self.birth.path))

    def _note_health(self, is_well: bool) -> None:
        if is_well:
            self._misses = 0
            if self._heartbeat is None:  # or else it has to speak for itself, too
                self._beat = self._now()
        elif self._is_ready:
            self._misses += 1

    def _read_mail(self) -> None:
        if self._mailbox is not None and self._family is not None:
            for letter in self._mailbox.letters(self._family):
                self._take(letter)

    def _take(self, letter: bytes) -> None:
        for line in letter.split(b"\n"):
            if line == b"WATCHDOG=1":
                self._beat = self._now()
            elif line == b"READY=1" and isinstance(
                self.how.probe, Notify
            ):  # or it is ready when the probe says so
                self._say_ready()

    # The life; on the watch's thread

    def _attend(self) -> None:
        self._watch.lifeline.add(self._pid)
        self._watch.reap_adopted()
        self._mark_start()
        for stream in self._streams:
            self._hear(stream)
        if self._mailbox is not None:
            self._watch.listen(self._mailbox.fileno(), self._read_mail)
        if self._pidfd is not None:
            self._watch.listen(self._pidfd, self._has_ended)
        self._is_attended = True
        if self._is_over:
            self._consider_end()

    def _mark_start(self) -> None:
        if self._errors is not None and self._popen is not None:
            at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.birth.tree.clock.wall()))
            who = f"{self.birth.path}, incarnation {self.birth.incarnation}, process {self._popen.pid}"
            self._errors.add(
                f"--- otpy: {who}, started {at} ---\n".encode("utf-8", "backslashreplace")
            )

    def _hear(self, stream: Stream) -> None:
        """Listen to *stream*, unless it has been closed, or its output is not wanted yet."""
        if stream.fd is not None and stream.wants_more:
            self._watch.listen(stream.fd, lambda: self._read(stream))

    def _read(self, stream: Stream) -> None:
        got = stream.read()
        if got == 0:  # the program has closed it
            self._watch.ignore(stream.fd)
            stream.close()
        elif not stream.wants_more:
            self._watch.ignore(stream.fd)

    # The end; on the watch's thread

    @property
    def _pid(self) -> int:
        assert self._popen is not None, "it was started"
        return self._popen.pid

    def _has_ended(self) -> None:
        self._is_over = True
        if (
            self._is_attended and not self._ended.has_happened
        ):  # it may be too early, or the start was undone
            self._consider_end()

    def _consider_end(self) -> None:
        """The leader has ended: see to the rest; but wait a moment if it looks as if all were being stopped."""
        self._ended.happen()
        self._watch.ignore(self._pidfd)
        with self._lock:
            if self._group is not None and (ended := posix.peek(self._group)) is not None:
                self._code = ended.code
                if ended.is_reaped:
                    self._forget_group(ended.code)
        may_be_stop = self._code in (-self.how.stop_signal, 128 + self.how.stop_signal)
        if may_be_stop and not self._is_asked:
            self._watch.later(HOLD, self._see_to_rest)
        else:
            self._see_to_rest()

    def _see_to_rest(self) -> None:
        """Ask or kill what is left, and wait for it; wind up when there is nothing."""
        if self._exit is not None or not self._is_attended:
            return
        try:
            is_gone = self._rest_is_gone()
        except Exception as error:  # or nobody would ever hear of its end
            self.birth.tree.telemetry.complain("watch_failed", error, path=self.birth.path)
            is_gone = True
        if is_gone:
            self._wind_up()

    def _rest_is_gone(self) -> bool:
        """Look for the rest, and send it what is due; return whether there is none, or it is not waited for."""
        assert self._family is not None, "it was started"
        is_forced = self._is_killed or (not self._is_asked and self.birth.spec.interrupt)
        with self._lock:
            if is_forced and self._group is not None:
                signal_group(self._group, signal.SIGKILL)
        if self._rest is None:
            self._rest = Rest(self._family, self._watch, self._see_to_rest, self._group_lives)
        rest = self._rest
        if not rest.look():
            return True
        if is_forced:
            rest.send(signal.SIGKILL)
            if (
                not descendants.is_possible()
            ):  # zombies that their parent is slow to reap would look alive
                return True
        else:
            rest.send(self.how.stop_signal, self._has_heard)
        rest.wait()
        if not self._is_asked and not self._is_timed:
            self._is_timed = True
            self._watch.later(LINGER if is_forced else self._time_to_stop, self._give_rest_up)
        return False

    def _has_heard(self, one: Seen) -> bool:
        """Whether the leader's group got the stop signal when *one* was in it."""
        return (
            self._asked_at is not None and one.started < self._asked_at and one.group == self._pid
        )

    @property
    def _time_to_stop(self) -> float:
        shutdown = self.birth.spec.shutdown
        return (
            shutdown
            if not isinstance(shutdown, Budget)
            else float("inf")
            if shutdown is Budget.INFINITY
            else 0.0
        )

    def _give_rest_up(self) -> None:
        """Time is up, and no supervisor sees to it: the leader had ended by itself."""
        rest = self._rest
        if self._is_asked or self._is_winding_up or rest is None:
            return
        if not rest.look():
            self._wind_up()
            return
        birth = self.birth
        report = Unstopped(
            path=birth.path,
            incarnation=birth.incarnation,
            thread=birth.path,
            reason=LEFT,
            stack=rest.stack(),
        )
        self._watch.spared.update(one.pid for one in rest.living)
        birth.tree.telemetry.tell_late(report)
        birth.tree.left_behind(rest, report)
        self._wind_up()

    def _group_lives(self) -> bool:
        """Whether anybody is left in the group of the leader, which is reaped here: else it would count."""
        if not self._reap():
            return True
        try:
            os.killpg(self._pid, 0)
        except OSError:  # there is none; or, on some systems, there are zombies only
            return False
        return True

    def _wind_up(self) -> None:
        """Nothing of it runs any more: read the rest of what it said, reap it, and tell its end."""
        if self._is_winding_up:
            return
        self._is_winding_up = True
        if self._rest is not None:
            self._rest.let_go()
        try:
            for stream in self._streams:
                self._watch.ignore(stream.fd)
                stream.finish()
            self._read_mail()  # it may have said that it is ready, and left
            self._watch.reap_adopted()
        finally:
            self._patience = time.monotonic() + LINGER
            self._bury()  # whatever happens, its end must be told

    def _bury(self) -> None:
        """Reap the leader, and tell its end when its logs are written; after LINGER in any case."""
        if self._exit is not None:
            return
        is_late = time.monotonic() >= self._patience
        is_reaped = self._reap()
        if is_reaped and (is_late or all(one.is_done for one in (*self._logs, *self._scans))):
            self._leave()
        else:  # a debugger sees the end of a process before its parent
            self._watch.later(max(AGAIN, self._patience - time.monotonic()), self._bury)

    def _reap(self) -> bool:
        """Reap the leader; return whether that has been done."""
        with self._lock:
            if self._group is not None and (ended := posix.reap(self._group)) is not None:
                self._forget_group(ended.code if ended.code is not None else self._code)
            return self._group is None

    def _forget_group(self, code: int | None) -> None:
        """The leader has been reaped; under the lock."""
        assert self._popen is not None, "it was started"
        self._watch.leaders.discard(self._popen.pid)
        self._group, self._code, self._popen.returncode = (
            None,
            code,
            code or 0,
        )  # or subprocess would miss it

    def _leave(self) -> None:
        """Tell how it has ended."""
        self._watch.lifeline.drop(self._pid)
        self._close_all()
        for log in self._logs:
            log.give_up()
        exit = ProgramExit(self._code, bytes(self._tail))
        with self._lock:
            self._exit = exit
        self._watch.let_go(self)
        self._deliver(ChildExited(self.birth.ref, self._reason(exit)))

    def _reason(self, exit: ProgramExit) -> ExitReason:
        if self._is_killed and exit.returncode in (-signal.SIGKILL, None):
            return ExitReason(KILLED, _died(exit), exit)
        if self._is_asked:
            return ExitReason(SHUTDOWN, detail=exit)
        if exit.returncode in self.how.success_codes:
            return ExitReason(NORMAL, detail=exit)
        return ExitReason(CRASHED, _died(exit), exit)

    def _close_all(self) -> None:
        for stream in self._streams:
            stream.close()
        if self._pidfd is not None:
            posix.close(self._pidfd)
            self._pidfd = None
        if self._mailbox is not None:
            if self._is_attended:
                self._watch.ignore(self._mailbox.fileno())
            self._mailbox.close()
            self._mailbox = None


class _NotWanted(Exception):
    """A stop has overtaken the start."""


def _file_name(path: str) -> str:
    """Return the path of a child as one below a directory: no id leads out of it."""
    return "/".join(
        part if part.strip(".") else part.replace(".", "%2E") for part in path.split("/")
    )


def _is_inherited(fd: int) -> bool:
    """Whether a program inherits *fd*: it is open, and not one of those that this process has made for itself."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _tell_lost(birth: Birth, file: str, error: OSError) -> None:
    reason = ExitReason(CRASHED, error)
    report = OutputLost(
        path=birth.path, incarnation=birth.incarnation, thread=birth.path, reason=reason, file=file
    )
    birth.tree.telemetry.tell_late(report)  # it may be detached


def _ours() -> dict[bytes, bytes]:
    """Return the environment of this process; others may change it meanwhile."""
    ours: dict[bytes, bytes] = vars(os.environb)[
        "_data"
    ].copy()  # in one step; dict() would look each name up again
    for name in SYSTEMD:
        ours.pop(name, None)
    return ours
