"""The handle of a supervisor, which users hold.

Laws:
1. A call puts a message into the supervisor's mailbox and waits for the answer. It
   touches nothing of the supervisor.
2. A call that is refused for its arguments is not served.
3. A call that could only wait for its own caller raises WouldDeadlock.

All methods may be called on any thread, and run on the caller's.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from otpy.abc import Puttable, ReportHandler
from otpy.arguments import check_sink
from otpy.core import messages
from otpy.core.messages import StopSupervisor
from otpy.exceptions import CallTimeout, NotAlive, NotFound, SpecError, WouldDeadlock, show
from otpy.reports import ChildInfo, Counts, ExitReason, Snapshot, StopReport
from otpy.runtime.context import current
from otpy.runtime.stopping import await_end
from otpy.runtime.tree import SUPERVISING, Tree
from otpy.runtime.waiting import Reply
from otpy.specs import ChildSpec, ChildType, is_number, plain

if TYPE_CHECKING:
    from otpy.runtime.supervisor import SupervisorThread


class Supervisor:
    """The handle of a running supervisor.

    It names a path in a running tree, and stays valid while the supervisor at that path
    is restarted. All methods may be called on any thread. As a context manager the
    handle stops the supervisor when the block is left.

    Calls take a *timeout* in seconds; None: they wait as long as it takes. All calls
    may raise these exceptions.

    Raises:
        NotAlive: The supervisor has ended, is ending, or is just being restarted.
        CallTimeout: There was no answer in time. The call may still be served.
        WouldDeadlock: The call would wait for the end or the start of the child whose
            thread calls. Or the thread is a supervisor's own, in which the garbage
            collector has run a finalizer that calls.
    """

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree, self._path = tree, path

    @property
    def path(self) -> str:
        """Its ids from the root, joined by "/"."""
        return self._path

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        core = self._tree.directory.get(self._path)
        return core is not None and core.alive and not self._tree.is_foreign

    def start_child(self, spec: ChildSpec, timeout: float | None = None) -> ChildInfo:
        """Add a child at the end of the order, start it, and return when it is up.

        (OTP: start_child.)

        Returns:
            The child. Its state is UNDEFINED if it raised ``Ignore``.

        Raises:
            SpecError: *spec* is no child spec, or cannot belong to this supervisor.
            AlreadyStarted, AlreadyPresent: The id is taken.
            MaxChildren: A dynamic supervisor is full.
            StartError: The child did not come up. Nothing of it is kept, and it is not
                tried again.
        """
        if not isinstance(spec, ChildSpec):
            raise SpecError(
                self._path, "spec", spec, "a child spec, as thread() or supervisor() make"
            )
        info: ChildInfo = self._call(messages.StartChild, timeout, spec=spec)
        return info

    def terminate_child(self, id: str, timeout: float | None = None) -> None:
        """Stop a child, and return when it has ended or was given up.

        If the child waits for a restart, that is cancelled. The spec stays, unless the
        child is temporary or the supervisor dynamic. The child stays down until
        ``restart_child`` or a group restart starts it again. (OTP: terminate_child.)

        Raises:
            NotFound: The supervisor has no such child.
        """
        self._call_about(messages.TerminateChild, timeout, id)

    def restart_child(self, id: str, timeout: float | None = None) -> ChildInfo:
        """Start a child that is not running, and return when it is up.

        (OTP: restart_child.)

        Raises:
            NotFound: The supervisor has no such child.
            StillRunning, StillRestarting: The child is not down.
            StartError: The child did not come up. Its spec stays, and it is not tried
                again.
        """
        info: ChildInfo = self._call_about(messages.RestartChild, timeout, id)
        return info

    def delete_child(self, id: str, timeout: float | None = None) -> None:
        """Forget the spec of a child that is not running (OTP: delete_child).

        Raises:
            NotFound: The supervisor has no such child.
            StillRunning, StillRestarting: The child is not down.
        """
        self._call_about(messages.DeleteChild, timeout, id)

    def get_childspec(self, id: str, timeout: float | None = None) -> ChildSpec:
        """Return the spec of a child (OTP: get_childspec).

        Raises:
            NotFound: The supervisor has no such child.
        """
        spec: ChildSpec = self._call_about(messages.GetChildSpec, timeout, id)
        return spec

    def which_children(self, timeout: float | None = None) -> tuple[ChildInfo, ...]:
        """Return all children in start order.

        (OTP: which_children, which has the newest child first.)
        """
        infos: tuple[ChildInfo, ...] = self._call(messages.WhichChildren, timeout)
        return infos

    def count_children(self, timeout: float | None = None) -> Counts:
        """Return the numbers of children by state and type (OTP: count_children)."""
        counts: Counts = self._call(messages.CountChildren, timeout)
        return counts

    def find(self, path: str) -> Supervisor:
        """Return the handle of a supervisor at or below this one.

        Args:
            path: Its path from the root, such as "app/storage".

        Raises:
            NotFound: No supervisor lives at this path.
        """
        is_here = isinstance(path, str) and f"{path}/".startswith(f"{self._path}/")
        if not is_here or path not in self._tree.directory:
            subject = path if isinstance(path, str) else show(path)
            raise NotFound(subject, f"there is no such supervisor in {self._path}")
        return Supervisor(self._tree, path)

    def snapshot(self, timeout: float | None = None) -> Snapshot:
        """Return this supervisor and all that is below it.

        Each supervisor answers for itself, one after the other.
        """
        seconds = self._seconds(timeout)
        until = None if seconds is None else time.monotonic() + seconds
        snapshot: Snapshot = self._call(messages.TakeSnapshot, seconds)
        return attrs.evolve(
            snapshot, children=tuple(self._look_into(child, until) for child in snapshot.children)
        )

    def _look_into(self, child: ChildInfo, until: float | None) -> ChildInfo:
        if child.type is ChildType.WORKER:
            return child
        left = None if until is None else max(0.0, until - time.monotonic())
        try:
            return attrs.evolve(child, snapshot=Supervisor(self._tree, child.path).snapshot(left))
        except NotAlive:
            return child

    def subscribe(self, handler: ReportHandler | Puttable) -> None:
        """Send all reports of this supervisor and of all below it to *handler*.

        The handler is called on a thread of its own, with one report after the other,
        until ``unsubscribe`` or the end of the tree.

        Args:
            handler: A callable that takes a report, or an object with ``put``.
        """
        self._core()
        check_sink(self._path, "handler", handler)
        self._tree.telemetry.subscribe(self._path, handler)

    def unsubscribe(self, handler: ReportHandler | Puttable) -> None:
        """Send no further report to *handler*.

        Raises:
            NotFound: *handler* is not subscribed to this supervisor.
        """
        self._core()
        check_sink(self._path, "handler", handler)
        self._tree.telemetry.unsubscribe(self._path, handler)

    def wait(self, timeout: float | None = None) -> ExitReason | None:
        """Wait until this supervisor has ended; return why, or None after *timeout*.

        At the root the call also waits until the handlers have done what is queued,
        within *timeout* and at most ``flush`` seconds.
        """
        core = self._core_to_wait_for()
        timeout = self._seconds(timeout)
        if timeout is None and self._inside() is not None:
            raise WouldDeadlock(self._path, "a child cannot wait for the end of its own supervisor")
        until = math.inf if timeout is None else time.monotonic() + timeout
        try:
            report: StopReport = core.done.wait(timeout, self._path)
        except CallTimeout:
            return None
        return self._settled(report, until).reason

    def stop(self, timeout: float | None = None) -> StopReport:
        """Stop the supervisor and all below it in order; return as soon as all is done.

        A nested supervisor that is stopped has ended with SHUTDOWN. Its parent decides
        whether to restart it; ``terminate_child`` of the parent keeps it down. If the
        supervisor has ended already, the call returns the same report again.

        If a signal handler raises meanwhile, the stop goes on without this call.

        Args:
            timeout: Seconds for the whole stop. Shortly before they are over, all
                children that still run are interrupted. A child that has not ended then
                is given up and named. 0: interrupt at once. None: each child's own
                ``shutdown``. The handlers of the root have the rest of these seconds,
                and at most ``flush``. A supervisor that does not answer costs up to a
                second more, thousands of children that cannot be stopped up to four.
                Then the report has what is left.

        Raises:
            SpecError: *timeout* is no finite number.
        """
        core = self._core_to_wait_for()
        timeout = self._seconds(timeout)
        if core.alive and self._inside() is not None:
            raise WouldDeadlock(
                self._path,
                "a child cannot wait for the end of its own supervisor; raise Fatal or Shutdown",
            )
        try:
            return self._stop(core, timeout)
        except BaseException:
            # A signal handler has raised, perhaps before the order was given.
            core.mailbox.put(StopSupervisor(timeout))
            raise

    def _stop(self, core: SupervisorThread, timeout: float | None) -> StopReport:
        until = math.inf if timeout is None else time.monotonic() + timeout
        core.mailbox.put(StopSupervisor(timeout))
        return self._await_end(core, until)

    def _await_end(self, core: SupervisorThread, until: float = math.inf) -> StopReport:
        return self._settled(await_end(core, lambda: until), until)

    def _settled(self, report: StopReport, until: float) -> StopReport:
        """Return the report of the end; at the root, with the end of the handlers."""
        if self._path != self._tree.root:
            return report
        return self._tree.settle(report, lambda: until)

    def detach(self) -> StopReport:
        """End this supervisor and all below it, but let their workers run on.

        The workers are in ``otpy.registry`` as detached until they end. No supervisor
        restarts them. A crash is logged. A nested supervisor that is detached stays
        down, as after ``terminate_child``.

        Returns:
            The report, as ``stop`` does. ``detached`` names the workers that run on.
        """
        core, (above, _, id) = self._core_to_wait_for(), self._path.rpartition("/")
        if above:
            Supervisor(self._tree, above)._call(messages.TerminateChild, None, id=id, detach=True)
        else:
            core.mailbox.put(StopSupervisor(detach=True))
        return self._await_end(core)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop()
        except (NotAlive, WouldDeadlock):
            raise
        except BaseException:
            # A signal handler has raised, perhaps before the order was given.
            self._core().mailbox.put(StopSupervisor())
            raise

    def __repr__(self) -> str:
        return f"<Supervisor {self._path}, {'alive' if self.alive else 'not alive'}>"

    def _core(self) -> SupervisorThread:
        core = self._tree.directory.get(self._path)
        if core is None:
            raise NotAlive(self._path)
        if self._tree.is_foreign:
            raise NotAlive(self._path, "it runs in the process that this one was forked from")
        return core

    def _seconds(self, timeout: float | None) -> float | None:
        """Return *timeout* as a plain number.

        Raises:
            SpecError: It is no finite number.
        """
        if timeout is not None and not is_number(timeout):
            raise SpecError(self._path, "timeout", timeout, "a finite number of seconds, or None")
        seconds: float | None = plain(timeout)
        return seconds

    def _core_to_wait_for(self) -> SupervisorThread:
        if threading.get_ident() in SUPERVISING:
            raise WouldDeadlock(self._path, "a supervisor's own thread cannot wait for an answer")
        return self._core()

    def _inside(self) -> str | None:
        """Return the child that hangs on this call, if the thread is in its tree."""
        try:
            return current().hangs_on(self._tree, self._path)
        except NotFound:
            return None

    def _call(
        self, kind: Callable[..., messages.Call], timeout: float | None, **fields: object
    ) -> Any:
        timeout = self._seconds(timeout)  # first, because a refused call must not be served
        reply = Reply()
        self._core_to_wait_for().mailbox.put(kind(reply=reply, inside=self._inside(), **fields))
        return reply.wait(timeout, self._path)

    def _call_about(
        self, kind: Callable[..., messages.Call], timeout: float | None, id: str
    ) -> Any:
        if not isinstance(id, str):
            raise NotFound(f"{self._path}/{show(id)}")
        return self._call(kind, timeout, id=plain(id))
