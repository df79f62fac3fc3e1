"""How a run of a program is made: its pipes, its socket, its process.

Laws:
1. All of it runs on a launcher (launcher.py): the directory of the program, or its file,
   may be on a file system that does not answer.
2. What is made belongs to its ``Making`` until the launcher posts ``Attendance.attend``;
   from then on it belongs to the watch. If a step fails, the launcher undoes all steps
   before, and reports the failure.
3. A program inherits its three streams, the mark of the guard, and nothing else of this
   process. The variables that systemd has set for this process are not meant for it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Hashable
from functools import partial

import attrs

from otpy.children.program import probes
from otpy.children.program.attendance import Attendance
from otpy.children.program.exit import ProgramExit
from otpy.children.program.lanes import Handout, Lane, Sink, lane
from otpy.children.program.logfiles import full
from otpy.children.program.notify import Mailroom
from otpy.children.program.options import Output
from otpy.children.program.output import Called, Journal, Lines, Scan, Stream
from otpy.children.program.parts import Parts
from otpy.children.program.probes import Asking, Line, Notify
from otpy.children.program.run import Run
from otpy.reports import CRASHED, SHUTDOWN, ExitReason, OutputLost
from otpy.runtime import posix, threads
from otpy.runtime.posix import NoPython
from otpy.runtime.threads import Role
from otpy.values import running

STANDARD = {1: "/dev/stdout", 2: "/dev/stderr"}
"""The files that "inherit" means: streams of this process, with one writer each."""

LONGEST = 1e12
"""The longest heartbeat in WATCHDOG_USEC, in seconds; 64 bits hold its microseconds."""

SYSTEMD = (b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID")
"""The variables that systemd sets for this process, and not for its children."""


class _NotWanted(Exception):
    """Raised when a stop has overtaken the start."""


@running
class Making:
    """The making of one run; the job of a launcher.

    Attributes:
        run: The run.
        attendance: The attendance that takes over what was made.
        let_go: Called if the start fails: the watch counts the run no longer.
    """

    run: Run
    attendance: Attendance
    let_go: Callable[[], object]
    _parts: Parts = attrs.field(
        default=attrs.Factory(lambda self: Parts(self.run.watch.new_family()), takes_self=True),
        init=False,
    )
    _theirs: list[int] = attrs.field(factory=list, init=False)

    def __call__(self) -> Callable[[], object]:
        """Make it; return a function that reports the outcome."""
        try:
            self._make()
        # the system refuses a step, or an exception was raised in this thread from
        # outside
        except BaseException as error:
            self._close_theirs()
            self.run.leader.undo()
            self._parts.close()
            self.let_go()
            return partial(report_no_start, self.run, error)
        return self._report_start

    def _make(self) -> None:
        run, command, guard = self.run, self.run.command, self.run.watch.guard
        guard.wait()
        stderr, stdout = self._stderr(), self._stdout()
        environment = self._environment()
        # A stop may also come after this look; then ``begin`` sends the stop signal.
        if run.leader.is_asked:
            raise _NotWanted
        # Kept by the same statement: an exception that is raised in this thread from
        # outside cannot come in between, and ``__call__`` would not know what to undo.
        run.leader.popen = posix.start_process(
            command.argv,
            cwd=command.cwd,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[guard.mark],
            heard=[command.stop_signal],
            unclean=self._report_unclean,
        )
        self._parts.family.leader = run.leader.pid
        run.leader.begin()
        self._close_theirs()
        self._wait_for_end()
        if isinstance(probe := command.probe, Asking):
            asked: Asking = probe
            self._ask(lambda: probes.until_ready(asked, run.leader.ended, run.vitals.come_up))
        if (health := command.health) is not None:
            note = run.vitals.note_health
            self._ask(lambda: probes.while_alive(health, run.leader.ended, note))

    def _report_start(self) -> None:
        if not self.run.birth.spec.ready:
            self.run.vitals.come_up()
        self.run.watch.post(partial(self.attendance.attend, self._parts))

    def _report_unclean(self, error: NoPython) -> None:
        birth = self.run.birth
        birth.tree.telemetry.complain("signals_inherited", error, path=birth.path)

    def _wait_for_end(self) -> None:
        """Have the end of the process reported to the watch."""
        try:
            self._parts.pidfd = posix.open_process(self.run.leader.pid)
        except ProcessLookupError:
            # it has ended already, and other code of this process has reaped it
            self.run.watch.post(self.attendance.leader_has_ended)
            return
        if self._parts.pidfd is None:
            waiter = threads.spawn(
                self._wait,
                name=f"{self.run.birth.path} (wait)",
                role=Role.HELPER,
                purpose="waits for a program",
                owner=self.run.birth.tree,
            )
            self.run.helpers.add_thread(waiter)

    def _wait(self) -> None:
        """Wait for its end; on a thread of its own."""
        self.run.leader.wait()
        self.run.watch.post(self.attendance.leader_has_ended)

    def _ask(self, asking: Callable[[], None]) -> None:
        birth = self.run.birth
        self.run.helpers.add_thread(probes.ask(asking, path=birth.path, owner=birth.tree))

    def _environment(self) -> dict[bytes, bytes]:
        run, env = self.run, self.run.command.env
        if env is not None:
            made: dict[bytes, bytes] = {
                os.fsencode(name): os.fsencode(value) for name, value in env
            }
        else:
            # Other threads may change the environment meanwhile, and dict() would then
            # meet a name that is gone. To copy the dict below it is one step.
            made = vars(os.environb)["_data"].copy()
            for name in SYSTEMD:
                made.pop(name, None)
        heartbeat = run.vitals.heartbeat
        if isinstance(run.command.probe, Notify) or heartbeat is not None:
            mailbox = run.birth.tree.shared(Mailroom).open(run.watch.guard)
            self._parts.mailbox = mailbox
            made[b"NOTIFY_SOCKET"] = os.fsencode(mailbox.address)
        if heartbeat is not None:
            made[b"WATCHDOG_USEC"] = b"%d" % int(min(heartbeat, LONGEST) * 1e6)
        self._parts.family.mark(made)
        return made

    # The pipes

    def _stderr(self) -> int:
        run = self.run
        stream = self._pipe([run.tail], run.command.stderr, 2)
        if run.command.err_dir is not None:
            # the path of the child as one below the directory: no id leads out of it
            parts = (
                part if part.strip(".") else part.replace(".", "%2E")
                for part in run.birth.path.split("/")
            )
            file = f"{run.command.err_dir}/{'/'.join(parts)}.stderr.log"
            self._parts.errors = self._log(stream, file)
        return self._theirs[-1]

    def _stdout(self) -> int | None:
        command = self.run.command
        if not isinstance(command.probe, Line):
            is_inherited = command.stdout == "inherit"
            if command.stdout == "discard" or (is_inherited and not _can_inherit(1)):
                return subprocess.DEVNULL
            if is_inherited:
                return None
        self._pipe([], command.stdout, 1)
        return self._theirs[-1]

    def _pipe(self, sinks: list[Sink], where: Output, number: int) -> Stream:
        """Return a pipe whose contents go to *sinks*, and where the options say."""
        ours, theirs = posix.pipe()
        stream = Stream(ours, sinks)
        self._parts.streams.append(stream)
        self._theirs.append(theirs)
        os.set_blocking(ours, False)
        birth, probe = self.run.birth, self.run.command.probe
        if isinstance(probe, Line):
            scan = Scan(probe.pattern, self._has_said_it)
            self._parts.scans.append(
                self._hand_out(stream, self._lane(None), scan, self._report_lost)
            )
        if callable(where):
            one = self._lane((birth.tree, birth.path, number))
            self._hand_out(stream, one, Lines(Called(where, birth.path)), self._report_lost)
            one.stay()
        elif where == "inherit":
            self._log(stream, STANDARD[number])
        elif where != "discard":
            self._log(stream, os.fspath(where))
        return stream

    def _lane(self, key: Hashable, path: str | None = None) -> Lane:
        birth = self.run.birth
        return lane(key, name=f"{birth.path} (output)", owner=birth.tree, path=path)

    def _log(self, stream: Stream, path: str) -> Handout:
        """Have what comes out of *stream* written to a file."""
        command, failed = self.run.command, partial(_report_output_lost, self.run, path)
        one = self._lane(full(path), path)
        assert one.file is not None, "it was made for one"
        journal = Journal(one.file, command.log_size, command.log_backups, failed)
        handout = self._hand_out(stream, one, journal, failed)
        self._parts.logs.append(handout)
        return handout

    def _hand_out(
        self, stream: Stream, one: Lane, sink: Sink, failed: Callable[[OSError], object]
    ) -> Handout:
        resume = partial(self.run.watch.post, partial(self.attendance.resume, stream))
        handout = Handout(one, sink, resume=resume, failed=failed)
        stream.hand_to(handout)
        self.run.helpers.add_handout(handout)
        return handout

    def _has_said_it(self) -> None:
        """Report that the line was found; on the thread of the lane that searches."""
        self.run.vitals.come_up()
        self.run.watch.post(self.attendance.stop_scanning)

    def _report_lost(self, error: OSError) -> None:
        birth = self.run.birth
        birth.tree.telemetry.complain("output_lost", error, path=birth.path)

    def _close_theirs(self) -> None:
        while self._theirs:
            posix.close(self._theirs.pop())


def report_no_start(run: Run, error: BaseException) -> None:
    """Report that a program was not started, as *error* says."""
    is_unwanted = isinstance(error, _NotWanted)
    reason = ExitReason(SHUTDOWN) if is_unwanted else ExitReason(CRASHED, error)
    run.vitals.end(ProgramExit(None, b""), reason)


def _report_output_lost(run: Run, file: str, error: OSError) -> None:
    birth = run.birth
    report = OutputLost(
        path=birth.path,
        incarnation=birth.incarnation,
        thread=birth.path,
        reason=ExitReason(CRASHED, error),
        file=file,
    )
    # late: the program may be detached, and its tree over
    birth.tree.telemetry.tell_late(report)


def _can_inherit(fd: int) -> bool:
    """Whether *fd* is open, and this process has not made it for itself."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False
