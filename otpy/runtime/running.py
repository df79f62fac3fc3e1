"""``start`` and ``run``: a tree begins, and its caller waits for it.

Laws:
1. Either a call has its result, or nothing of it is left: no thread, descriptor, signal
   handler, tree. That holds when a step fails, and when a signal handler of the program
   raises between any two bytecodes.
2. What the calling thread takes is taken back by ``Launch.undo``, which does in a
   second call what an exception has kept the first one from doing. Everything else is
   taken on the thread of the root, where no signal handler runs.
3. The handlers of signals only put: a message into the root's mailbox, and a deadline.

Who runs what: a Launch belongs to the thread that calls ``start`` or ``run``;
``request`` runs in the main thread, between any two bytecodes; ``call_off`` may be
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
from typing import Any, TypedDict, TypeVar, Unpack

from otpy.abc import Birth, Clock, Puttable, ReportHandler
from otpy.arguments import check_handler, check_sink
from otpy.core.messages import Handover, StopSupervisor
from otpy.core.pauses import PAUSE
from otpy.exceptions import CallTimeout, NotAlive, NotFound, SpecError, StartError, TreeFailed, show
from otpy.reports import ChildState, Escalation, ExitKind, StopReport
from otpy.runtime import at_exit, spares, threads
from otpy.runtime.clocks import GuardedClock
from otpy.runtime.handle import Supervisor
from otpy.runtime.log import log_report, mutter_at_once
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
"""A signal that comes within so many seconds of the last one that counted is the same
request: wrappers and service managers signal a process and then its whole group, so it
gets the signal twice."""

FOR_HANDLERS = 1.0
"""How many seconds of ``stop_timeout`` are left to the handlers at the end, or a tenth
of it if that is less."""


def start(tree: SupervisorSpec, **options: Unpack[Options]) -> Supervisor:
    """Start a tree and return its handle when all of it is up.

    The same spec may be started any number of times: the trees are independent of each other.

    Args:
        tree: What ``supervisor`` or ``dynamic_supervisor`` returned.
        **options: See ``Options``.

    Raises:
        SpecError: *tree* or an option is wrong; nothing has been started.
        StartError: Some child did not come up, or not all did in time, or the system
            has no more threads or descriptors. What had been started was stopped in
            reverse order. Its ``path`` is the child's, its ``__cause__`` what the child
            raised.
        BaseException: KeyboardInterrupt, after Ctrl-C, or what a signal handler of the
            program raised while the tree started; what had been started was stopped
            likewise.
    """
    return attempt(Launch(tree, options), Launch.start)


def run(
    tree: SupervisorSpec, *, stop_timeout: float | None = None, **options: Unpack[Options]
) -> StopReport:
    """Start a tree, wait for its end, and return how it ended.

    In the main thread, SIGINT, SIGTERM, SIGHUP and SIGQUIT stop the tree in order, also
    while it starts. A second signal shortens all limits to zero and ends every wait, a
    third one exits the process at once, with 128 and its number. What comes within a
    second of the last signal that counted is the same request. Signals that are ignored
    stay ignored; SIGHUP and SIGQUIT are left to a program that has handlers of its own
    for them.

    Args:
        tree, **options: As for ``start``.
        stop_timeout: Seconds for the whole stop after a signal, handlers included;
            None: each child's own ``shutdown``.

    Raises:
        SpecError, StartError: As for ``start``.
        TreeFailed: The root gave up, or did not answer. Left alone, this ends the
            program with a non-zero exit status.
        BaseException: What a signal handler of the program raised meanwhile; the tree
            was stopped in order before.
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


class Options(TypedDict, total=False):
    """The options of ``start`` and ``run``.

    Attributes:
        reports: Gets every report: a callable, or anything with ``put``.
        on_escalation: Called for every escalation anywhere in the tree, beside the supervisor's own.
        log: Whether reports also go to structlog; default True.
        timeout: Seconds that the whole tree may take to come up; None, the default: no limit.
        max_unstopped: How many threads that could not be stopped the tree may leave behind before the root gives up;
            default 100.
        clock: Where time comes from; default: the machine's.
        heartbeats: Whether children that do not check in, programs that fail their
            ``health``, and blocked event loops count as stalled; default True.
        seed: What the jitter of ``Backoff`` is made from: the same seed, the same waits; None, the default: other ones
            each time.
        flush: Seconds that the handlers of escalations and reports, and the log, may take after the end of the tree,
            all together; default 10. What is not done by then is counted.
    """

    reports: ReportHandler | Puttable | None
    on_escalation: Callable[[Escalation], object] | None
    log: bool
    timeout: float | None
    max_unstopped: int
    clock: Clock | None
    heartbeats: bool
    seed: int | None
    flush: float


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_on_escalation(path: str, field: str, value: Any) -> None:
    check_handler(
        path, field, value, ("escalation",), "a callable that takes an Escalation, or None"
    )


HANDLERS: dict[str, Callable[[str, str, Any], None]] = {
    # option that may be None: what refuses anything else that is wrong
    "reports": check_sink,
    "on_escalation": _check_on_escalation,
}

OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # option: (whether a value is right, what would be right)
    "log": (lambda log: isinstance(log, bool), "True or False"),
    "timeout": (
        lambda seconds: seconds is None or (is_number(seconds) and seconds > 0),
        "a finite number of seconds > 0, or None",
    ),
    "max_unstopped": (lambda count: _is_int(count) and count >= 0, "an int >= 0"),
    "clock": (
        lambda clock: clock is None or isinstance(clock, Clock),
        "an otpy.abc.Clock, or None",
    ),
    "heartbeats": (lambda heartbeats: isinstance(heartbeats, bool), "True or False"),
    "seed": (lambda seed: seed is None or _is_int(seed), "an int or None"),
    "flush": (
        lambda seconds: is_number(seconds) and seconds >= 0,
        "a finite number of seconds >= 0",
    ),
}


def _check_options(spec: SupervisorSpec, options: Options) -> None:
    if not isinstance(spec, SupervisorSpec):
        raise SpecError("<tree>", "tree", spec, "a supervisor's spec, as supervisor() makes")
    for name, value in options.items():
        if name in HANDLERS:
            if value is not None:
                HANDLERS[name](spec.id, name, value)
            continue
        if name not in OPTIONS:
            raise SpecError(
                spec.id, name, "an option", f"one of {', '.join((*HANDLERS, *OPTIONS))}"
            )
        is_right, expected = OPTIONS[name]
        if not is_right(value):
            raise SpecError(spec.id, name, value, expected)


def attempt(launch: Launch, act: Callable[[Launch], T]) -> T:
    """Let *launch* do something; if that raises, undo all of it.

    Twice: whatever line an exception keeps the first ``undo`` from reaching, it does
        not interrupt the second one.
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
    """One call of ``start`` or ``run``: its tree, and what the call has taken. To make
    one takes nothing.

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
            signals: Returns the signals to listen to; called in the main thread.

        Raises:
            SpecError: *spec* or an option is wrong.
        """
        _check_options(spec, options)
        self._timeout, self._stop_timeout = options.get("timeout"), stop_timeout
        self._logs = options.get("log", True)
        self._tree = _tree(spec, options)
        self._core = SupervisorThread(_root_birth(spec, self._tree))
        self.handle = Supervisor(self._tree, spec.id)
        self._signals = Signals(signals, self._signalled)
        self._requests, self._counted_at, self._deadline = 0, -math.inf, math.inf

    # What the calling thread does

    def start(self) -> Supervisor:
        """Begin, and return the handle when all is up."""
        self._begin()
        if not self._requests:
            self._signals.close()
        if self._requests:
            raise KeyboardInterrupt
        return self.handle

    def run(self) -> StopReport:
        """Begin, wait for the end, and return the report."""
        self._begin()
        self._signals.wait(self._core.done, lambda: self._until(math.inf))
        report = self._await_end()
        self._signals.close()
        return report

    def undo(self) -> None:
        """Stop what runs, wait for its end, and give back what was taken. Does nothing
        if all this is done.
        """
        try:
            if not self._requests:
                self._request()
            self._stop("", time.monotonic())  # what was counted may not have been put
            threads.call_off(self._tree)
            while self._core.done.is_given or self._runs_here():
                # a signal handler may raise again meanwhile: the first exception is the
                # one that goes on, when the tree has stopped
                try:
                    self._await_end()
                    break
                except BaseException:
                    self._request()
        finally:
            self._signals.close()

    def _begin(self) -> None:
        """Start the tree and wait until it is up, or until somebody wants it to stop."""
        try:
            self._signals.open()
        except OSError as error:  # no descriptors are left
            raise StartError(self._core.path, str(error)) from error
        self._core.start(lambda _: None)
        is_settled = self._is_settled_in_time()
        if self._requests:
            return
        if not is_settled:
            late = ", ".join(_starting(self.handle))
            raise StartError(late or self._core.path, f"not up after {self._timeout} s")
        self._core.up.wait(0.0, self._core.path)

    def _is_settled_in_time(self) -> bool:
        """Wait until the tree is up or has ended; return whether it was within the timeout.

        A wait that ends PAUSE seconds late was hit by a pause of the whole program. The
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
        """Ask the tree to stop, whether it has begun, is about to, or has ended; on any
        thread.
        """
        self._core.mailbox.put(StopSupervisor())

    def _signalled(self, name: str) -> bool:
        """Take a signal as a request; False: there is nothing left to stop. In the main
        thread, between two bytecodes.
        """
        if not self._requests and self._core.done.is_given:
            return False
        self._request(name)
        return True

    def _request(self, name: str = "") -> None:
        """Count a request to stop, by the signal *name*, or because an exception goes
        through this call.
        """
        now = time.monotonic()
        if now - self._counted_at <= SAME:
            return
        self._counted_at = now
        self._requests += 1
        if self._requests == 1:
            self._stop(name, now)
        elif self._requests == 2 or not name:
            self._hurry(name, now)
        else:
            self._exit(name)

    def _stop(self, name: str, now: float) -> None:
        within = self._stop_timeout
        if within is not None:
            self._deadline = self._tree.latest = min(self._deadline, now + within)
            within -= min(FOR_HANDLERS, within / 10)
        self._core.mailbox.put(StopSupervisor(within, signal=name))

    def _hurry(self, name: str, now: float) -> None:
        self._deadline = min(self._deadline, now)
        self._tree.hurry()
        self._core.mailbox.put(StopSupervisor(0.0, signal=name))

    def _exit(self, name: str) -> None:
        if self._logs:
            mutter_at_once(f"otpy: {name}: exits at once\n")
        os._exit(128 + signal.Signals[name])


def _tree(spec: SupervisorSpec, options: Options) -> Tree:
    seed, clock = options.get("seed"), options.get("clock")
    return Tree(
        root=spec.id,
        clock=_clock(spec, clock),
        max_unstopped=options.get("max_unstopped", 100),
        seed=random.SystemRandom().getrandbits(64)
        if seed is None
        else seed,  # the other numbers are the program's
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


def _root_birth(spec: SupervisorSpec, tree: Tree) -> Birth:
    return Birth(
        ref=0,
        path=spec.id,
        spec=spec,
        incarnation=1,
        last_exit=None,
        handover=Handover(),
        spawn=spares.Spawner(tree, spec.id).spawn,
        supervisor=None,
        tree=tree,
    )


def _starting(handle: Supervisor) -> Iterator[str]:
    """Yield the paths of the children that everything waits for, the deepest ones."""
    with contextlib.suppress(NotAlive, NotFound, CallTimeout):
        for child in handle.which_children(PROMPT):
            if child.state is ChildState.STARTING:
                below = (
                    list(_starting(handle.find(child.path)))
                    if child.type is ChildType.SUPERVISOR
                    else []
                )
                yield from below or [child.path]
