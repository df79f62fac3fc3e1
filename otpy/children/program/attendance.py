"""What the watch does for one run of a program, until the report of its end.

Laws:
1. All methods run on the thread of the watch (watch.py), and none of them waits. Other
   threads post them. Only ``rest`` is read by the supervisor's thread as well.
2. When the leader has ended, nothing that descends from it stays (rest.py). The *rest* is
   killed at once if the leader has ended by itself. In a stop the rest has the time that
   the leader had; and where ``interrupt=False`` forbids force, it has ``shutdown`` seconds
   in any case. So a replacement finds its port free.
3. A ChildExited says: the leader is reaped, nothing of the rest runs, all output is read
   and in the log. A process that could not be ended is reported as ``Unstopped``. The
   report does not wait for callables of the user's, and no longer than LINGER for a log
   file that takes nothing.
4. A leader that ends of its stop signal, which we have not sent, may be a moment ahead of
   our own stop: a service manager sends that signal to all processes at once. Its end is
   reported HOLD seconds later, or with our stop.
5. If the rest cannot be looked for, that is logged, and the end is reported all the same.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import attrs

from otpy.children.program.exit import ProgramExit, reason_of
from otpy.children.program.output import Stream
from otpy.children.program.parts import Parts
from otpy.children.program.probes import Notify
from otpy.children.program.rest import AGAIN, Rest
from otpy.children.program.run import Run
from otpy.reports import KILLED, ExitReason, Unstopped
from otpy.runtime import descendants
from otpy.specs import Budget
from otpy.values import running

LINGER = 0.5
"""Seconds that an exit waits at most, until what was killed is gone.

Then it waits as long, at most, until its logs are written."""

HOLD = 0.2
"""Seconds for which an end of the stop signal, which we have not sent, is kept back."""

LEFT = ExitReason(KILLED, detail="processes that it had started could not be ended")


@running
class Attendance:
    """The attendance of one run.

    Attributes:
        run: The run.
        let_go: Called when the run is over: the watch counts it no longer.
        rest: The processes that the leader has left; None: it runs, or the watch has not
            looked for them yet.
    """

    run: Run
    let_go: Callable[[], object]
    rest: Rest | None = attrs.field(default=None, init=False)
    _parts: Parts | None = attrs.field(default=None, init=False)
    _is_limited: bool = attrs.field(default=False, init=False)
    _is_winding_up: bool = attrs.field(default=False, init=False)
    _logs_until: float = attrs.field(default=0.0, init=False)

    # The life

    def attend(self, parts: Parts) -> None:
        """Take over what was made; the program runs."""
        run, watch = self.run, self.run.watch
        watch.guard.add(run.leader.pid)
        # first: if the system refuses one of the others, the end is noticed all the same
        self._parts = parts
        if parts.pidfd is not None:
            watch.listen(parts.pidfd, self.leader_has_ended)
        watch.reap_adopted()
        if parts.errors is not None:
            at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.birth.tree.clock.wall()))
            whose = f"{run.birth.path}, incarnation {run.birth.incarnation}"
            line = f"--- otpy: {whose}, process {run.leader.pid}, started {at} ---\n"
            parts.errors.add(line.encode("utf-8", "backslashreplace"))
        for stream in parts.streams:
            self._listen_to(stream)
        if parts.mailbox is not None:
            watch.listen(parts.mailbox.fileno(), self.read_mail)
        # The end may have been noted before the parts were here, and was left for now.
        if run.leader.has_ended:
            self._consider_end(parts)

    def read_mail(self) -> None:
        """Read what the program has sent; nothing, if it has no mailbox any more."""
        parts, vitals = self._parts, self.run.vitals
        if parts is None or parts.mailbox is None:
            return
        for letter in parts.mailbox.letters(parts.family):
            for line in letter.split(b"\n"):
                if line == b"WATCHDOG=1":
                    vitals.check_in()
                # with another probe it is ready when that says so
                elif line == b"READY=1" and isinstance(self.run.command.probe, Notify):
                    vitals.come_up()

    def resume(self, stream: Stream) -> None:
        """Go on: *stream* has room again, or one of its sinks has got all."""
        if self._is_winding_up:
            self._bury()
        else:
            self._listen_to(stream)

    def stop_scanning(self) -> None:
        """Look at no more lines: the program is ready."""
        if self._parts is None:
            return
        for stream in self._parts.streams:
            for scan in self._parts.scans:
                stream.drop(scan)
            # the program may have waited for the search
            self._listen_to(stream)

    def _listen_to(self, stream: Stream) -> None:
        """Listen to *stream*, unless it has been closed, or a sink has no room."""
        if stream.fd is not None and stream.wants_more:
            self.run.watch.listen(stream.fd, lambda: self._read(stream))

    def _read(self, stream: Stream) -> None:
        got = stream.read()
        if got == 0:
            # the program has closed it
            self.run.watch.ignore(stream.fd)
            stream.close()
        elif not stream.wants_more:
            self.run.watch.ignore(stream.fd)

    # The end of the leader

    def leader_has_ended(self) -> None:
        """Note that the leader has ended, and see to its end if the run is attended."""
        leader = self.run.leader
        leader.has_ended = True
        # Without parts it is too early: ``attend`` looks again. If the end has happened
        # already, the launcher has undone the start, or this was called a second time.
        if self._parts is not None and not leader.ended.has_happened:
            self._consider_end(self._parts)

    def _consider_end(self, parts: Parts) -> None:
        """See to the rest; but wait a moment if the tree may be stopped next."""
        leader, number = self.run.leader, self.run.command.stop_signal
        # The supervisor may ask or kill just now. It sets its flag first, and then
        # looks at ``ended``. Here ``ended`` comes first, and the flags are looked at
        # after it. So the flag is seen here, or the supervisor posts ``see_to_rest``
        # itself.
        leader.ended.happen()
        self.run.watch.ignore(parts.pidfd)
        leader.peek()
        if leader.code in (-number, 128 + number) and not leader.is_asked:
            self.run.watch.later(HOLD, self.see_to_rest)
        else:
            self.see_to_rest()

    # What it has left

    def see_to_rest(self) -> None:
        """Ask or kill what is left, and wait for it; wind up when nothing is left."""
        if self.run.vitals.exit is not None or self._parts is None:
            return
        try:
            is_gone = self._rest_is_gone(self._parts)
        except Exception as error:
            # Without this the supervisor would never hear of the end.
            birth = self.run.birth
            birth.tree.telemetry.complain("watch_failed", error, path=birth.path)
            is_gone = True
        if is_gone:
            self._wind_up()

    def _rest_is_gone(self, parts: Parts) -> bool:
        """Signal the rest; return whether it is gone, or is not waited for."""
        run, leader = self.run, self.run.leader
        is_forced = leader.is_killed or (not leader.is_asked and run.birth.spec.interrupt)
        if is_forced:
            leader.kill_group()
        if self.rest is None:
            self.rest = Rest(parts.family, run.watch, self.see_to_rest, leader.group_lives)
        rest = self.rest
        if not rest.look():
            return True
        if is_forced:
            rest.send(signal.SIGKILL)
            if not descendants.is_possible():
                # a zombie whose parent is slow to reap it would look alive
                return True
        else:
            rest.send(run.command.stop_signal, leader.has_heard)
        rest.wait()
        if not leader.is_asked and not self._is_limited:
            self._is_limited = True
            run.watch.later(LINGER if is_forced else self._time_to_stop, self._give_rest_up)
        return False

    @property
    def _time_to_stop(self) -> float:
        """Seconds; infinity: without a limit."""
        shutdown = self.run.birth.spec.shutdown
        if isinstance(shutdown, Budget):
            return float("inf") if shutdown is Budget.INFINITY else 0.0
        return shutdown

    def _give_rest_up(self) -> None:
        """Report the rest as unstopped: the supervisor has asked for no stop."""
        rest, birth = self.rest, self.run.birth
        if self.run.leader.is_asked or self._is_winding_up or rest is None:
            return
        if rest.look():
            report = Unstopped(
                path=birth.path,
                incarnation=birth.incarnation,
                thread=birth.path,
                reason=LEFT,
                stack=rest.stack(),
            )
            # or the end of the tree would kill them: they have the mark
            self.run.watch.spared.update(one.pid for one in rest.living)
            birth.tree.telemetry.tell_late(report)
            birth.tree.left_behind(rest, report)
        self._wind_up()

    # The end of the run

    def _wind_up(self) -> None:
        """Read what it wrote last, and bury it: nothing of it runs any more."""
        parts, watch = self._parts, self.run.watch
        if self._is_winding_up or parts is None:
            return
        self._is_winding_up = True
        if self.rest is not None:
            self.rest.let_go()
        try:
            for stream in parts.streams:
                watch.ignore(stream.fd)
                stream.finish()
            # It may have sent READY=1 just before its end; the two come in any order
            # here.
            self.read_mail()
            watch.reap_adopted()
        finally:
            # whatever has failed above, the end is reported
            self._logs_until = time.monotonic() + LINGER
            self._bury()

    def _bury(self) -> None:
        """Reap the leader; report its end when its logs are written, or too slow."""
        run, parts, leader = self.run, self._parts, self.run.leader
        if run.vitals.exit is not None or parts is None:
            return
        is_late = time.monotonic() >= self._logs_until
        is_reaped = leader.reap()
        if not is_reaped or not (is_late or all(one.is_done for one in parts.logs + parts.scans)):
            # Too early: a debugger sees the end of a process before its parent does. Or
            # a lane still writes: it resumes this attendance when it has done, or is
            # given up.
            run.watch.later(max(AGAIN, self._logs_until - time.monotonic()), self._bury)
            return
        run.watch.guard.drop(leader.pid)
        if parts.mailbox is not None:
            run.watch.ignore(parts.mailbox.fileno())
        parts.close()
        for log in parts.logs:
            log.give_up()
        exit = ProgramExit(leader.code, bytes(run.tail))
        self.let_go()
        reason = reason_of(
            exit,
            is_asked=leader.is_asked,
            is_killed=leader.is_killed,
            success_codes=run.command.success_codes,
        )
        run.vitals.end(exit, reason)
