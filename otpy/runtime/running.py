"""``start`` and ``run``: a tree begins, and the calling thread waits for it.

Laws:
1. Either a call has its result, or nothing of it is left: no thread, descriptor, signal
   handler or tree. That holds when a step fails, and when a signal handler of the
   parent process raises between any two bytecodes.
2. ``Launch.undo`` gives back what the calling thread has taken. A second call of it
   does what an exception has kept the first one from doing. Everything else is taken on
   the thread of the root, where no signal handler runs.
3. A handler of a signal only puts: a message into the root's mailbox, and a deadline.

Which thread runs what: a Launch belongs to the thread that calls ``start`` or ``run``.
``_signalled`` runs in the main thread, between any two bytecodes. ``call_off`` may be
called on any thread.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar, Unpack

from otpy.abc import Clock
from otpy.core.messages import StopSupervisor
from otpy.core.pauses import PAUSE
from otpy.exceptions import CallTimeout, NotAlive, NotFound, SpecError, StartError, TreeFailed, show
from otpy.reports import ChildState, ExitKind, StopReport
from otpy.runtime import at_exit, threads
from otpy.runtime.clocks import GuardedClock
from otpy.runtime.handle import Supervisor
from otpy.runtime.log import log_report, mutter_at_once
from otpy.runtime.options import Options, check_options
from otpy.runtime.signals import Signals, stop_signals, unhandled_interrupt
from otpy.runtime.stopping import PROMPT, await_end
from otpy.runtime.supervisor import SupervisorThread
from otpy.runtime.telemetry import Telemetry
from otpy.runtime.threads import Role
from otpy.runtime.tree import FLUSH, Tree
from otpy.runtime.waiting import SystemClock
from otpy.specs import ChildType, SupervisorSpec, is_number

T = TypeVar("T")

SAME = 1.0
"""A signal that comes within this many seconds of the last one that counted is the same
request. Wrappers and service managers signal a process and then its whole group, so the
process gets the signal twice."""

FOR_HANDLERS = 1.0
"""Seconds of ``stop_timeout`` that are left to the handlers at the end; or a tenth of
it, if that is less."""


def start(tree: SupervisorSpec, **options: Unpack[Options]) -> Supervisor:
    """Start a tree and return its handle when all of it is up.

    The same spec may be started any number of times. The trees are independent of each
    other.

    Args:
        tree: What ``supervisor`` or ``dynamic_supervisor`` returned.
        **options: See ``Options``.

    Raises:
        SpecError: *tree* or an option is wrong; nothing has been started.
        StartError: A child did not come up, or not all children did in time, or the
            system has no more threads or descriptors. What had been started was stopped
            in reverse order. ``path`` is that of the child, ``__cause__`` what the
            child raised.
        BaseException: KeyboardInterrupt, after Ctrl-C, or what a signal handler of the
            parent process raised while the tree started. What had been started was
            stopped likewise.
    """
    return attempt(Launch(tree, options), Launch.start)


def run(
    tree: SupervisorSpec, *, stop_timeout: float | None = None, **options: Unpack[Options]
) -> StopReport:
    """Start a tree, wait for its end, and return how it ended.

    In the main thread, SIGINT, SIGTERM, SIGHUP and SIGQUIT stop the tree in order, also
    while it starts. A second signal shortens all limits to zero and ends every wait. A
    third one exits the process at once, with 128 and its number. A signal within a
    second of the last one that counted is the same request. Signals that are ignored
    stay ignored. If the parent process has handlers of its own for SIGHUP or SIGQUIT,
    these stay in place.

    Args:
        tree, **options: As for ``start``.
        stop_timeout: Seconds for the whole stop after a signal, handlers included;
            None: each child's own ``shutdown``.

    Raises:
        SpecError, StartError: As for ``start``.
        TreeFailed: The root gave up, or did not answer. If it is not caught, the
            process ends with a non-zero exit status.
        BaseException: What a signal handler of the parent process raised meanwhile. The
            tree was stopped in order before.
    """
    if stop_timeout is not None and not (is_number(stop_timeout) and stop_timeout >= 0):
        id = tree.id if isinstance(tree, SupervisorSpec) else "<tree>"
        raise SpecError(
            id, "stop_timeout", stop_timeout, "a finite number of seconds >= 0, or None"
        )
    report = attempt(Launch(tree, options, stop_signals, stop_timeout), Launch.run)
    if report.reason.kind not in (ExitKind.NORMAL, ExitKind.SHUTDOWN):
        raise TreeFailed(report.path, report.reason, report) from report.reason.exception
    return report


def attempt(launch: Launch, act: Callable[[Launch], T]) -> T:
    """Let *launch* do something; if that raises, undo all of it.

    ``undo`` is called a second time if another exception, of a signal handler,
    interrupts the first call. The second call does what the first one did not reach.
    """
    try:
        try:
            return act(launch)
        except BaseException:
            launch.undo()
            raise
    except BaseException:
        launch.undo()
        raise


class Launch:
    """One call of ``start`` or ``run``: its tree, and what the call has taken.

    To make a Launch takes nothing.

    Attributes:
        handle: The handle of the root.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        options: Options,
        signals: Callable[[], Iterable[int]] = unhandled_interrupt,
        stop_timeout: float | None = None,
    ) -> None:
        """Check everything.

        Args:
            spec: The tree.
            options: The options of the call.
            signals: Returns the signals to listen to; called in the main thread.
            stop_timeout: See ``run``.

        Raises:
            SpecError: *spec* or an option is wrong.
        """
        check_options(spec, options)
        self._timeout, self._stop_timeout = options.get("timeout"), stop_timeout
        self._logs = options.get("log", True)
        self._tree = _tree(spec, options)
        self._core = SupervisorThread(spec, spec.id, self._tree)
        self.handle = Supervisor(self._tree, spec.id)
        self._signals = Signals(signals, self._signalled)
        self._requests, self._counted_at, self._deadline = 0, -math.inf, math.inf

    # What the calling thread does

    def start(self) -> Supervisor:
        """Start the tree, and return its handle when all of it is up."""
        self._begin()
        if not self._requests:
            self._signals.close()
        if self._requests:
            raise KeyboardInterrupt
        return self.handle

    def run(self) -> StopReport:
        """Start the tree, wait for its end, and return the report."""
        self._begin()
        self._signals.wait(self._core.done, lambda: self._until(math.inf))
        report = self._await_end()
        self._signals.close()
        return report

    def undo(self) -> None:
        """Stop what runs, wait for its end, and give back what was taken.

        It does nothing if all this is done.
        """
        try:
            if not self._requests:
                self._request()
            # The request may have been counted, and an exception have come before the
            # message was put. A second message changes nothing.
            self._stop("", time.monotonic())
            threads.call_off(self._tree)
            while self._core.done.is_given or self._runs_here():
                # A signal handler may raise again meanwhile. That is a further request.
                # The first exception goes on when the tree has stopped.
                try:
                    self._await_end()
                    break
                except BaseException:
                    self._request()
        finally:
            self._signals.close()

    def _begin(self) -> None:
        """Start the tree, and wait until it is up or is asked to stop."""
        try:
            self._signals.open()
        except OSError as error:  # no descriptors are left
            raise StartError(self._core.path, str(error)) from error
        self._core.begin()
        is_settled = self._is_settled_in_time()
        if self._requests:
            return
        if not is_settled:
            late = ", ".join(_starting(self.handle))
            raise StartError(late or self._core.path, f"not up after {self._timeout} s")
        self._core.up.wait(0.0, self._core.path)

    def _is_settled_in_time(self) -> bool:
        """Wait until the tree is up or has ended; return whether it was in time.

        A wait that ends PAUSE seconds late was hit by a pause of the whole process. The
        tree could not come up meanwhile, so it has its time again, once.
        """
        for _ in range(2):
            limit = math.inf if self._timeout is None else time.monotonic() + self._timeout
            if self._signals.wait(self._core.up, functools.partial(self._until, limit)):
                return True
            if time.monotonic() < limit + PAUSE:
                break
        return False

    def _until(self, limit: float) -> float:
        return -math.inf if self._requests else limit

    def _await_end(self) -> StopReport:
        report = await_end(self._core, lambda: self._deadline, self._signals.wait)
        return self._tree.settle(report, lambda: self._deadline, self._signals.wait)

    def _runs_here(self) -> bool:
        """Whether the thread of the root runs, in this process."""
        return any(
            one.role is Role.SUPERVISOR and one.name == self._core.path
            for one in threads.entries(self._tree)
        )

    # What is called on other threads, or between any two bytecodes

    def call_off(self) -> None:
        """Ask the tree to stop, on any thread.

        The tree may be about to begin, run, or have ended.
        """
        self._core.mailbox.put(StopSupervisor())

    def _signalled(self, name: str) -> bool:
        """Take a signal as a request to stop.

        The main thread runs it, between any two bytecodes.

        Returns:
            False: nothing is left to stop, so the signal was not meant for the tree.
        """
        if not self._requests and self._core.done.is_given:
            return False
        self._request(name)
        return True

    def _request(self, name: str = "") -> None:
        """Count a request to stop.

        Args:
            name: The signal that asks; "": an exception goes through this call.
        """
        now = time.monotonic()
        if now - self._counted_at <= SAME:
            return
        self._counted_at = now
        self._requests += 1
        if self._requests == 1:
            self._stop(name, now)
        elif self._requests == 2 or not name:
            self._deadline = min(self._deadline, now)
            self._tree.hurry()
            self._core.mailbox.put(StopSupervisor(0.0, signal=name))
        else:
            if self._logs:
                mutter_at_once(f"otpy: {name}: exits at once\n")
            os._exit(128 + signal.Signals[name])

    def _stop(self, name: str, now: float) -> None:
        within = self._stop_timeout
        if within is not None:
            self._deadline = self._tree.latest = min(self._deadline, now + within)
            within -= min(FOR_HANDLERS, within / 10)
        self._core.mailbox.put(StopSupervisor(within, signal=name))


def _tree(spec: SupervisorSpec, options: Options) -> Tree:
    seed, clock = options.get("seed"), options.get("clock")
    return Tree(
        root=spec.id,
        clock=_clock(spec, clock),
        max_unstopped=options.get("max_unstopped", 100),
        # the parent process may seed the generator of ``random`` itself
        seed=random.SystemRandom().getrandbits(64) if seed is None else seed,
        furnish=lambda tree: _furnish(tree, options),
        flush=options.get("flush", FLUSH),
        has_own_clock=clock is not None,
        heartbeats=options.get("heartbeats", True),
    )


def _furnish(tree: Tree, options: Options) -> Telemetry:
    at_exit.watch()
    telemetry = Telemetry(tree.root, tree, options.get("on_escalation"), tree.clock.wall)
    if isinstance(tree.clock, GuardedClock):
        tree.clock.complain_by(telemetry.complain)
    try:
        if options.get("log", True):
            telemetry.subscribe(tree.root, log_report, "log")
        if (sink := options.get("reports")) is not None:
            telemetry.subscribe(tree.root, sink)
    except RuntimeError:  # can't start new thread
        telemetry.close()
        raise
    return telemetry


def _clock(spec: SupervisorSpec, clock: Clock | None) -> Clock:
    if clock is None:
        return SystemClock()
    try:
        return GuardedClock(clock)
    except Exception as error:
        raise SpecError(
            spec.id, "clock", clock, f"a clock that tells the time ({show(error)})"
        ) from error


def _starting(handle: Supervisor) -> Iterator[str]:
    """Yield the paths of the deepest children that the whole start waits for."""
    with contextlib.suppress(NotAlive, NotFound, CallTimeout):
        for child in handle.which_children(PROMPT):
            if child.state is not ChildState.STARTING:
                continue
            is_worker = child.type is ChildType.WORKER
            below = [] if is_worker else list(_starting(handle.find(child.path)))
            yield from below or [child.path]
