"""The keeper of a process: the thread that starts it, listens to it, and ends it.

Laws:
1. A ChildExited says: the process is dead and reaped, all that it has said was heard,
   and nothing that it has started runs. Processes that could not be ended are reported
   as Unstopped, by name, and the end is reported all the same.
2. An exception may be raised at any line here, by another thread. The end is reported
   all the same, perhaps twice: the second report carries a number that is no longer
   current, so it changes nothing.
3. Nothing that the process says is unpickled when it comes (reading.py). A process that
   says what it may not is killed.
4. The keeper's thread sleeps while the process says nothing.

Theory of operation. The keeper lays the wires, packs the parcel, starts an interpreter
that runs far_side.py, and writes the parcel to its stdin. Then it waits for two things
at once: messages, and the death of the process. The death is a pidfd that can be read;
where the system has none, it is the end of the socket.

When the parent process dies, in whatever way, its ends of the socket and of the
lifeline are closed, and the process ends by that.

The stack of a process that has stalled: when the stall is found, the supervisor's
thread cannot wait for an answer. So the keeper asks for the stack a little earlier, and
the answer waits in the pipe. A process that holds the interpreter's lock does not
answer.

The ``Line`` is all that the keeper shares with the supervisor's thread.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import threading
from copy import deepcopy
from typing import Any

import attrs

from otpy.abc import Birth, Deliver
from otpy.children.callable.parcel import Job, Parcel, Saved, pickled_exit, preparation_of
from otpy.children.callable.process import Process
from otpy.children.callable.protocol import BEAT, BEATS, EXIT, LOOK, STATE, UP
from otpy.children.callable.reading import Messages, allowed, raised_by
from otpy.children.callable.wires import CHUNK, Wires, fork_lock
from otpy.children.endings import reason_of
from otpy.core.messages import ChildExited, ChildStarted
from otpy.exceptions import Killed, ProcessDied, RemoteTraceback, Sealed, is_sealed
from otpy.reports import KILLED, ExitReason, Unstopped
from otpy.runtime import posix, spares
from otpy.values import running

PORTION = 16
"""How many chunks are read in a row before the keeper looks for the death again."""

LAST = 256
"""The most chunks that are read after the death of the process.

A socket holds less. It may never run dry: a descendant of the process may hold its end
as well, and go on sending.
"""

LONGEST = 2.0**31 / 1000 - 1
"""The most seconds that a selector can wait."""

LEFT = ExitReason(KILLED, detail="processes that it had started could not be ended")

HEAR = {
    # a message: the method of the keeper that takes its content
    UP: "_is_up",
    BEAT: "_has_checked_in",
    STATE: "_has_saved",
    EXIT: "_has_ended",
}


@running
class Line:
    """What the supervisor's thread and the keeper know about the same process.

    Only the supervisor's thread writes ``running``, ``is_killed`` and ``is_fenced``.
    Only the keeper writes ``is_ready``, ``process`` and ``wires``, after the start.
    Under ``lock`` each uses the wires and the process, and writes ``stacks``; so no
    thread uses what another one has just closed or reaped.

    Attributes:
        running: False: the child was asked to stop, or killed.
        is_killed: Whether the supervisor has killed it.
        is_fenced: Whether the supervisor has given it up: only its end still counts.
        is_ready: Whether it has come up.
        wires: None: they are closed.
        process: None: it was not started, or it is reaped.
        stacks: What its threads were doing when it was late.
    """

    running: bool = True
    is_killed: bool = False
    is_fenced: bool = False
    is_ready: bool = False
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    wires: Wires | None = attrs.field(factory=Wires)
    process: Process | None = None
    stacks: str = ""

    @property
    def laid_wires(self) -> Wires:
        """The wires, while the process may still say something."""
        assert self.wires is not None, "they are closed after the last message"
        return self.wires


class Keeper:
    """What the thread of a child does: all methods run there.

    If that thread was lost, ``end`` runs on another one, and ``close_wires`` perhaps on
    the supervisor's.

    Attributes:
        beat: When the child last checked in, and for how many seconds it may be silent;
            the supervisor's thread reads both at once.
        saved: The last state: of an earlier incarnation, or a ``Saved``.
    """

    def __init__(self, birth: Birth, job: Job, line: Line, deliver: Deliver) -> None:
        self._birth, self._job, self._line, self._deliver = birth, job, line, deliver
        self._messages = Messages(job.max_message_size)
        self._heartbeat = birth.spec.heartbeat or 0.0
        self._is_doubted = False
        self._epitaph: bytes | None = None
        self.beat = 0.0, 0.0
        self.saved: object = birth.handover.state

    def run(self) -> None:
        """Start the process, keep it until its end, and report why it ended."""
        error: BaseException | Sealed | None = None
        try:
            error = self._live()
            self.end(error)
        except BaseException as late:
            # The system refuses the process, an argument cannot be pickled any more, or
            # another thread has raised this here.
            self.end(late if error is None else error)
        finally:
            del error  # its traceback holds this frame: together they would be a cycle

    def end(self, error: BaseException | Sealed | None) -> None:
        """Leave nothing behind, and report why the child ended."""
        spares.reserve.spend(None if is_sealed(error) else error)  # type: ignore[arg-type]
        if (process := self._line.process) is not None and process.pid is not None:
            process.kill()
            self._bury(process)
        self.close_wires()
        # Otherwise each incarnation would keep the one before alive, for ever.
        self._birth.last_exit = None
        self.report(reason_of(error, self._line))

    def report(self, reason: ExitReason) -> None:
        """Report that the child has ended."""
        self._deliver(ChildExited(self._birth.ref, reason))

    def close_wires(self) -> None:
        """Close the wires, if they are not closed yet."""
        # fork_lock comes first. The supervisor's thread takes the lock of the line: if
        # this thread held that while it waits for a fork, the supervisor would wait for
        # the fork as well.
        with fork_lock, self._line.lock:
            if self._line.wires is not None:
                # Close them before they are forgotten: if an exception hits this line,
                # the next call closes what is left.
                self._line.wires.close()
                self._line.wires = None

    def _live(self) -> BaseException | Sealed | None:
        """Run the process; return what ended it, None if all is well."""
        line, wires, job = self._line, self._line.laid_wires, self._job
        if not line.running:  # a process that is not wanted any more is not started
            return Killed() if line.is_killed else None
        wires.lay()
        with line.lock:
            wires.send_early_orders()
        parcel = Parcel()
        work = parcel.pack((job.function, job.args, self._facts()))
        preparation = parcel.pack(preparation_of(self._birth.path, work))
        # Show the process before it is started: whatever is raised at a later line,
        # end() finds it and ends it.
        process = line.process = Process()
        process.start(self._birth.path, wires, parcel.descriptors)
        wires.close_far_ends()
        with line.lock:
            # The supervisor may have killed the child before the process had a number.
            # It sets is_killed under this lock, so it has found the number, or this
            # line finds is_killed.
            if line.is_killed:
                process.kill()
        try:
            wires.hand_over(preparation, work)
            self._listen(process, wires)
        except BaseException:
            process.kill()
            raise
        finally:
            code = self._bury(process)
        return self._cause_of_death(code, wires)

    def _facts(self) -> dict[str, Any]:
        """Return the arguments of the ``Facts`` of the far side."""
        birth, spec = self._birth, self._birth.spec
        return {
            "path": birth.path,
            "incarnation": birth.incarnation,
            "ready": spec.ready,
            "heartbeat": spec.heartbeat,
            "snapshot": None if spec.snapshot is deepcopy else spec.snapshot,
            "max_message_size": self._job.max_message_size,
            "allow_pickle": self._job.allow_pickle,
            "last_exit": pickled_exit(birth.last_exit),
            "state": self.saved.pickled if isinstance(self.saved, Saved) else None,
        }

    def _listen(self, process: Process, wires: Wires) -> None:
        """Take messages until the process is dead, and then the rest of them.

        Each turn takes a few chunks only, so the death is noticed in time, even if a
        descendant of the process goes on sending.
        """
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(posix.selector())
            selector.register(wires.near, selectors.EVENT_READ)
            death = process.watch_death(stack)
            if death is not None:
                selector.register(death, selectors.EVENT_READ)
            while True:
                signs = [key.fd for key, _ in selector.select(self._next_doubt_in())]
                if death in signs:
                    break
                if not signs:
                    self._doubt()
                    continue
                if self._hear(PORTION):
                    continue
                selector.unregister(wires.near)
                if death is None:
                    break
        self._hear(LAST)

    def _hear(self, most: int) -> bool:
        """Take the messages in at most *most* chunks; False: no more will come.

        Raises:
            ProtocolError: The process says what it may not.
        """
        near = self._line.laid_wires.near
        for _ in range(most):
            try:
                data = near.recv(CHUNK)
            except BlockingIOError:
                return True
            except OSError:  # the process has closed its end and left our orders unread
                return False
            if not data:
                return False
            for kind, content in self._messages.cut(data):
                if kind == EXIT or not self._line.is_fenced:
                    getattr(self, HEAR[kind])(content)
        return True

    def _is_up(self, content: bytes) -> None:
        # The process may say so a thousand times; its supervisor hears it once.
        if not self._line.is_ready:
            self._line.is_ready = True
            self.beat = self._now(), self._heartbeat
            self._deliver(ChildStarted(self._birth.ref, self._birth.path))

    def _has_checked_in(self, content: bytes) -> None:
        """Note a check-in.

        Of the check-ins after it some may be kept back. So the next one may be late by
        as much.
        """
        if self._is_doubted:
            self._is_doubted = False
            with self._line.lock:  # forget what it did when it was late
                self._line.laid_wires.last_stacks()
                self._line.stacks = ""
        silence = max(self._heartbeat, allowed(content)) + self._heartbeat / BEATS
        self.beat = self._now(), silence

    def _has_saved(self, content: bytes) -> None:
        self.saved = Saved(content)

    def _has_ended(self, content: bytes) -> None:
        self._epitaph = content

    def _next_doubt_in(self) -> float | None:
        """Return in how many seconds to ask for the stacks; None: never."""
        beat, silence = self.beat
        if not self._heartbeat or not silence or self._is_doubted:
            return None
        due = beat + silence - self._heartbeat / (2 * BEATS)
        return min(max(0.0, due - self._now()), LONGEST)

    def _doubt(self) -> None:
        """Ask the process for its stacks: it will soon have stalled."""
        self._is_doubted = True
        self._line.laid_wires.order(LOOK)

    def _bury(self, process: Process) -> int | None:
        """Wait until the process has ended, end its descendants, and reap it.

        Returns:
            Its exit code; None: it is not known.
        """
        birth, line = self._birth, self._line
        ended = process.await_exit()
        if (left := process.end_descendants()) is not None:
            report = Unstopped(
                path=birth.path,
                incarnation=birth.incarnation,
                thread=birth.path,
                reason=LEFT,
                stack=left.stack(),
            )
            birth.tree.telemetry.tell_late(report)  # the child may be detached
            birth.tree.left_behind(left, report)
        with line.lock:
            code = process.reap(ended)
            # Forget the process only now: if an exception hits a line above, end()
            # finds it and does this again.
            line.process = None
        return code

    def _cause_of_death(self, code: int | None, wires: Wires) -> BaseException | Sealed | None:
        """Return what ended the process.

        A signal decides, even if the callable has returned before.
        """
        if code == -signal.SIGKILL and self._line.is_killed:
            return Killed()
        if self._epitaph is not None and (code is None or code >= 0):
            error = raised_by(self._epitaph, self._job.allow_pickle)
            if error is not None or not code:
                return error
        if code == 0:
            return None
        stack = wires.last_stacks()
        died = ProcessDied(code, posix.signal_name(code), stack)
        died.__cause__ = RemoteTraceback(stack) if stack else None
        return died

    def _now(self) -> float:
        now: float = self._birth.tree.clock.monotonic()
        return now
