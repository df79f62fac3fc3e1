"""Children that are programs: processes that know nothing of otpy.

Laws:
1. A program runs in a session and a process group of its own, from before its first instruction. What it is sent, is
   sent to the group: its own children get it, too. Who leaves the group on purpose, as daemons do, is out of reach.
2. A number of a process or a group is used only while it is certainly ours: until its leader is reaped. The supervisor
   that signals and the watch that reaps meet at ``_lock``, which is never held for longer than a system call.
3. When the leader has ended, the rest of the group is killed before anything else happens. So a replacement meets
   nobody who still holds its port, and nobody holds the pipe from which the last output is read.
4. A ChildExited says: reaped, nothing of the group runs, all output read and in the log. It does not wait for the
   user's callables, and no longer than LINGER for what cannot be hurried: a process in the middle of a system call.

Who runs what: the methods of ``Child`` and ``_launch`` run on the supervisor's thread. To start a program there costs a
fork and an exec, and CPython holds the interpreter's lock for these: another thread would make it no shorter. All news
of the program comes on the thread of the watch (watch.py), except the answers to probes (probes.py).

Not proud of: a program that is not ready in time, or has stalled, ends with the failure that the machine has found, and
what it said last is in its log file only.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from otpy import threads
from otpy.abc import Birth, Deliver
from otpy.children import probes
from otpy.children.groups import exists, is_strange, signal_group, signal_name
from otpy.children.output import Called, Handout, Journal, Lines, Log, Scan, Sink, Stream, Tail, Through
from otpy.children.probes import Asking, Health, Line, Notify, Probe
from otpy.children.watch import Watch
from otpy.exceptions import ProcessDied
from otpy.mailbox import Once
from otpy.messages import ChildExited, ChildStarted
from otpy.reports import CRASHED, KILLED, NORMAL, SHUTDOWN, ExitReason, OutputLost, stamped
from otpy.threads import Role, ThreadState

LINGER = 0.5
"""How long an exit waits at most until its whole group is gone, in seconds."""

QUOTED = 4096
"""How many bytes of stderr are shown with a crash; the reason has more."""

LETTERS = 1000
"""How many messages are read in a row: more than wait at the end of a program; and a flood of them stops nobody."""

SYSTEMD = (b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID")
"""What systemd has told this process, and does not mean its children."""

Text = str | os.PathLike[str]
Output = Text | Callable[[str], object]


@attrs.frozen(kw_only=True)
class ProgramStart:
    """Makes a program child; the ``start`` of its spec. All of it has been checked by ``process``."""

    argv: tuple[str, ...]
    cwd: str | None
    env: tuple[tuple[str, str], ...] | None
    stdout: Output
    stderr: Output
    err_dir: str | None
    log_size: int
    log_backups: int
    stop_signal: signal.Signals
    success_codes: frozenset[int]
    probe: Probe | None
    health: Health | None
    watchdog: float | None

    def __call__(self, birth: Birth) -> Program:
        return Program(birth, self)


# How programs end


@attrs.frozen
class ProgramExit:
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
        error.add_note(exit.stderr[-QUOTED:].decode("utf-8", "replace").rstrip("\n"))
    return error


@attrs.define(eq=False, repr=False)
class Program:
    """One incarnation of a program. Meets ``Child``."""

    birth: Birth
    how: ProgramStart
    _deliver: Deliver = attrs.field(init=False)
    _watch: Watch = attrs.field(init=False)
    _popen: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _group: int | None = attrs.field(default=None, init=False)  # None: it has not started, or has been reaped
    _pidfd: int | None = attrs.field(default=None, init=False)
    _errors: Journal | None = attrs.field(default=None, init=False)
    _tail: Tail = attrs.field(factory=Tail, init=False)
    _streams: list[Stream] = attrs.field(factory=list, init=False)
    _theirs: list[int] = attrs.field(factory=list, init=False)
    _helpers: list[threading.Thread] = attrs.field(factory=list, init=False)
    _mailbox: socket.socket | None = attrs.field(default=None, init=False)
    _ended: Once = attrs.field(factory=Once, init=False)
    _exit: ProgramExit | None = attrs.field(default=None, init=False)
    _patience: float = attrs.field(default=0.0, init=False)
    _code: int | None = attrs.field(default=None, init=False)
    _is_ready: bool = attrs.field(default=False, init=False)
    _is_attended: bool = attrs.field(default=False, init=False)
    _is_over: bool = attrs.field(default=False, init=False)
    _is_asked: bool = attrs.field(default=False, init=False)
    _is_killed: bool = attrs.field(default=False, init=False)
    _beat: float = attrs.field(default=0.0, init=False)
    _misses: int = attrs.field(default=0, init=False)

    def start(self, deliver: Deliver) -> None:
        self._deliver, self.birth.last_exit = deliver, None  # or each exit would keep the one before alive
        try:
            self._watch = self.birth.tree.shared(Watch)
            self._launch()
        except (OSError, RuntimeError, MemoryError, ValueError, subprocess.SubprocessError) as error:
            self._undo()
            deliver(ChildExited(self.birth.ref, ExitReason(CRASHED, error)))
        else:
            if not self.birth.spec.ready:
                self._say_ready()
            self._watch.admit(self)
            self._watch.post(self._attend)

    def stop(self) -> None:
        self._is_asked = True
        self._send(self.how.stop_signal)
        self._send(signal.SIGCONT)  # or one that is suspended would not hear of it

    def kill(self, grace: float) -> bool:
        self._is_asked = self._is_killed = True
        self._send(signal.SIGKILL)
        return True

    def abandon(self) -> None:
        self._is_asked = True

    def detach(self) -> None:
        """Let its helpers go; the watch stays as long as there is a program."""
        for helper in self._helpers:
            threads.mark(helper, ThreadState.DETACHED)

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
        popen = self._popen
        if popen is None or self._exit is not None:
            return ""
        said = bytes(self._tail)[-QUOTED:].decode("utf-8", "replace")
        return f"process {popen.pid}, {_state_of(popen.pid)}: {' '.join(self.how.argv)}\n{said}"

    @property
    def state(self) -> object:
        """What it was handed over: a program saves nothing."""
        return self.birth.handover.state

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._exit is None

    @property
    def _heartbeat(self) -> float | None:
        return self.birth.spec.heartbeat if self.how.health is None else self.how.watchdog

    def _now(self) -> float:
        now: float = self.birth.tree.clock.monotonic()
        return now

    def _send(self, number: int) -> None:
        with self._lock:
            if self._group is not None:
                signal_group(self._group, number)

    # The start; on the supervisor's thread

    def _launch(self) -> None:
        stderr, stdout = self._stderr(), self._stdout()
        environment = self._environment()
        self._popen = subprocess.Popen(  # noqa: S603 - to run what the user says is what it is for
            self.how.argv,
            cwd=self.how.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=[self._watch.lifeline.mark],
        )
        self._group = self._popen.pid
        self._close_theirs()
        self._wait_for_end(self._group)
        self._begin_probes()

    def _wait_for_end(self, pid: int) -> None:
        """Have ``_has_ended`` called on the watch's thread at the end of the process."""
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended already, and something else has reaped it
            self._watch.post(self._has_ended)
        except (OSError, AttributeError):
            name, owner = f"{self.birth.path} (wait)", self.birth.tree
            waiter = threads.spawn(self._wait, name=name, role=Role.HELPER, purpose="waits for a program", owner=owner)
            self._helpers.append(waiter)

    def _wait(self) -> None:
        assert self._popen is not None, "it was started"
        with contextlib.suppress(ChildProcessError):  # something else has reaped it
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        self._watch.post(self._has_ended)

    def _undo(self) -> None:
        """It could not be started completely: leave nothing behind."""
        self._ended.happen()
        self._close_theirs()
        if self._popen is not None:
            self._send(signal.SIGKILL)
            self._popen.wait()  # it has been killed: not for long
            self._group = None
            self._exit = ProgramExit(None, b"")
        self._close_all()

    def _environment(self) -> dict[bytes, bytes] | None:
        """Return the environment of the program, None if it is ours."""
        env = self.how.env
        if env is None and not self._wants_mail and not any(name in os.environb for name in SYSTEMD):
            return None
        both = _ours() if env is None else {os.fsencode(name): os.fsencode(value) for name, value in env}
        if self._wants_mail:
            both[b"NOTIFY_SOCKET"] = self._open_mailbox().encode()
        if self._heartbeat is not None:
            both[b"WATCHDOG_USEC"] = b"%d" % int(self._heartbeat * 1e6)
        return both

    def _stderr(self) -> int:
        sinks: list[Sink] = [self._tail]
        if self.how.err_dir is not None:
            self._errors = self._journal(f"{self.how.err_dir}/{self.birth.spec.id}.stderr.log")
            sinks.append(self._errors)
        return self._pipe(sinks, self.how.stderr, 2)

    def _stdout(self) -> int | None:
        if not isinstance(self.how.probe, Line):
            if self.how.stdout == "discard":
                return subprocess.DEVNULL
            if self.how.stdout == "inherit":
                return None
        return self._pipe([], self.how.stdout, 1)

    def _pipe(self, sinks: list[Sink], where: Output, number: int) -> int:
        """Return the program's end of a pipe whose contents go to *sinks*, and where the options say."""
        ours, theirs = os.pipe()
        stream = Stream(ours, sinks, [])
        self._streams.append(stream)
        self._theirs.append(theirs)
        os.set_blocking(ours, False)
        if isinstance(self.how.probe, Line):
            sinks.append(Scan(self.how.probe.pattern, self._say_ready))
        self._direct(stream, where, number)
        return theirs

    def _direct(self, stream: Stream, where: Output, number: int) -> None:
        if callable(where):
            self._hand_out(stream, Lines(Called(where, self.birth.path)))
        elif where == "inherit":
            self._hand_out(stream, Through(number))
        elif where != "discard":
            stream.sinks.append(self._journal(os.fspath(where)))

    def _hand_out(self, stream: Stream, sink: Sink) -> None:
        name = f"{self.birth.path} (output)"
        handout = Handout(sink, lambda: self._watch.post(lambda: self._hear(stream)), name=name, owner=self.birth.tree)
        stream.sinks.append(handout)
        stream.handouts.append(handout)
        self._helpers.append(handout.thread)

    def _journal(self, file: str) -> Journal:
        return Journal(Log(file, self.how.log_size, self.how.log_backups), lambda error: self._tell_lost(file, error))

    def _tell_lost(self, file: str, error: OSError) -> None:
        birth = self.birth
        reason = ExitReason(CRASHED, error)
        report = OutputLost(path=birth.path, incarnation=birth.incarnation, thread=birth.path, reason=reason, file=file)
        birth.tree.telemetry.tell_late(stamped(report, birth.tree.clock.wall()))  # it may be detached

    def _close_theirs(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    # Readiness and health; on the threads of watch and probes

    @property
    def _wants_mail(self) -> bool:
        """Whether the program has something to say to us."""
        return isinstance(self.how.probe, Notify) or self._heartbeat is not None

    def _open_mailbox(self) -> str:
        """Return the address to which the program may send."""
        name = f"otpy/{secrets.token_hex(16)}"  # abstract: it needs no file, and goes when it is closed
        self._mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._mailbox.setblocking(False)
        self._mailbox.bind(f"\0{name}")
        return f"@{name}"

    def _begin_probes(self) -> None:
        probe = self.how.probe
        if isinstance(probe, Asking):
            asked: Asking = probe
            self._ask(lambda: probes.until_ready(asked, self._ended, self._say_ready))
        if (health := self.how.health) is not None:
            self._ask(lambda: probes.while_alive(health, self._ended, self._note_health))

    def _ask(self, how: Callable[[], None]) -> None:
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
        if self._mailbox is None:  # its end was heard in the same moment, and came first
            return
        with contextlib.suppress(BlockingIOError):
            for _ in range(LETTERS):
                self._take(self._mailbox.recv(4096))

    def _take(self, letter: bytes) -> None:
        for line in letter.split(b"\n"):
            if line == b"WATCHDOG=1":
                self._beat = self._now()
            elif line == b"READY=1" and isinstance(self.how.probe, Notify):  # or it is ready when the probe says so
                self._say_ready()

    # The end; on the watch's thread

    def _attend(self) -> None:
        self._watch.lifeline.add(self._pid)
        self._mark_start()
        for stream in self._streams:
            self._hear(stream)
        if self._mailbox is not None:
            self._watch.listen(self._mailbox.fileno(), self._read_mail)
        if self._pidfd is not None:
            self._watch.listen(self._pidfd, self._has_ended)
        self._is_attended = True
        if self._is_over:
            self._wind_up()

    def _mark_start(self) -> None:
        if self._errors is not None and self._popen is not None:
            at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.birth.tree.clock.wall()))
            who = f"{self.birth.path}, incarnation {self.birth.incarnation}, process {self._popen.pid}"
            self._errors.add(f"--- otpy: {who}, started {at} ---\n".encode("utf-8", "backslashreplace"))

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

    def _has_ended(self) -> None:
        self._is_over = True
        if self._is_attended and not self._ended.has_happened:  # it may be too early, or the start was undone
            self._wind_up()

    def _wind_up(self) -> None:
        self._ended.happen()
        self._patience = time.monotonic() + LINGER
        self._watch.ignore(self._pidfd)
        try:
            self._kill_rest()
            for stream in self._streams:
                self._watch.ignore(stream.fd)
                stream.finish()
            self._read_mail()  # it may have said that it is ready, and left
        finally:
            self._watch.bury(self)  # whatever happens, its end must be told

    def _kill_rest(self) -> None:
        with self._lock:
            if self._group is not None and not is_strange(self._group):
                signal_group(self._group, signal.SIGKILL)

    def is_gone(self) -> bool:
        """Reap it; return whether that has been done, and the rest of its group has gone, too."""
        return self._reap() and (not _group_lives(self._pid) or time.monotonic() >= self._patience)

    @property
    def _pid(self) -> int:
        assert self._popen is not None, "it was started"
        return self._popen.pid

    def _reap(self) -> bool:
        """Reap it; return whether that has been done."""
        with self._lock:
            if self._group is None:
                return True
            is_reaped, self._code = _reaped(self._group)
            if is_reaped:
                self._forget_group()
            return is_reaped

    def _forget_group(self) -> None:
        assert self._popen is not None, "it was started"
        self._group, self._popen.returncode = None, self._code or 0  # or subprocess would miss it

    def leave(self) -> None:
        """Tell how it has ended."""
        self._watch.lifeline.drop(self._pid)
        self._close_all()
        exit = ProgramExit(self._code, bytes(self._tail))
        with self._lock:
            self._exit = exit
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
            os.close(self._pidfd)
            self._pidfd = None
        if self._mailbox is not None:
            self._watch.ignore(self._mailbox.fileno())
            self._mailbox.close()
            self._mailbox = None


def _ours() -> dict[bytes, bytes]:
    """Return the environment of this process; others may change it meanwhile."""
    found = {name: os.environb.get(name) for name in list(os.environb) if name not in SYSTEMD}
    return {name: value for name, value in found.items() if value is not None}


def _group_lives(group: int) -> bool:
    """Whether anybody lives in the group of a leader that has been reaped.

    Zombies do not: their parent is not us any more, and not every process number 1 reaps at once.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False  # as always where there were no grandchildren
    except PermissionError:
        pass
    return not exists(group) and any(_is_alive_in(group, path) for path in Path("/proc").glob("[0-9]*"))


def _is_alive_in(group: int, process: Path) -> bool:
    try:
        state, _, its_group, *_ = (process / "stat").read_bytes().rpartition(b")")[2].split()  # a name may be any bytes
    except OSError:
        return False  # it has just gone
    return int(its_group) == group and state not in b"ZX"


def _reaped(pid: int) -> tuple[bool, int | None]:
    """Reap *pid*, which has ended; return whether it has been reaped, and its exit code, None if nobody knows."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # something else in this process was faster, or SIGCHLD is ignored
        return True, None
    return found == pid, os.waitstatus_to_exitcode(status) if found == pid else None


def _state_of(pid: int) -> str:
    """Return what /proc says a process is doing, such as "S (sleeping)"."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:
        return "state unknown"
    found = re.search(r"^State:\s*(.*)$", status, re.MULTILINE)
    return found[1] if found else "state unknown"
