"""Exit reasons, reports, and answers to questions about a tree: frozen values only.

Times called ``time`` are wall-clock seconds since the epoch, for people; ages and
delays are monotonic seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import attrs

from otpy import exceptions
from otpy.exceptions import (
    Fatal,
    Ignore,
    Sealed,
    Shutdown,
    is_a,
    is_sealed,
    meaning_of,
    show,
    traceback_of,
)
from otpy.specs import AutoShutdown, ChildType, Strategy
from otpy.values import Value, Word, report, value


class ExitKind(Word):
    """How a child ended."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"
    STALLED = "stalled"
    KILLED = "killed"
    LIMIT_REACHED = "limit_reached"


# by their bare names: to look a member up in its class is slow (CPython 3.11)
NORMAL, SHUTDOWN, CRASHED, STALLED, KILLED, LIMIT_REACHED = ExitKind

NORMAL_CLASS = frozenset({NORMAL, SHUTDOWN, LIMIT_REACHED})
"""What OTP calls normal: ``normal``, ``shutdown``, ``{shutdown, _}``; to give up is one."""


def _identity(raised: object) -> int | None:
    return None if raised is None else id(raised)


@value(match_args=False)
class ExitReason(Value):
    """Why a child ended.

    Made as ``ExitReason(kind, exception=None, detail=None)``.

    Attributes:
        kind: One of six.
        raised: The exception object, if one ended it; or, if that comes from another
            process, what is known of it. Who must not run code of the user's, as a
            supervisor's thread, uses this.
        exception: The exception object. One that comes from another process is made
            when this is asked for the first time, on the thread that asks
            (docs/how-to/processes.md, "What is trusted").
        detail: The ``Escalation`` of a supervisor that gave up, the ``ProgramExit`` of a
            program, or a line for people.
    """

    __match_args__ = ("kind", "exception", "detail")

    kind: ExitKind
    raised: BaseException | Sealed | None = attrs.field(
        default=None, alias="exception", eq=_identity
    )
    detail: object = None

    @property
    def exception(self) -> BaseException | None:
        raised = self.raised
        return raised.open() if is_sealed(raised) else raised  # type: ignore[return-value]

    @property
    def is_normal(self) -> bool:
        """Whether this is of the normal class, which restarts no transient child."""
        return self.kind in NORMAL_CLASS

    @property
    def is_ignore(self) -> bool:
        return self.kind is NORMAL and meaning_of(self.raised) is Ignore

    @property
    def is_fatal(self) -> bool:
        return self.kind is CRASHED and meaning_of(self.raised) is Fatal

    @property
    def is_plain_shutdown(self) -> bool:
        """Whether this is OTP's bare ``shutdown``: asked to stop, and stopped."""
        return self.kind in (SHUTDOWN, LIMIT_REACHED) and (
            self.kind is LIMIT_REACHED or self.raised is None
        )

    @property
    def is_shutdown_with_reason(self) -> bool:
        """Whether this is OTP's ``{shutdown, Reason}``."""
        return self.kind is SHUTDOWN and meaning_of(self.raised) is Shutdown

    @functools.cached_property
    def traceback(self) -> str:
        """The formatted traceback, or "" without an exception. Always printable,
        whatever the exception does.

        Of an exception that comes from another process: the one that it had there.
        """
        raised = self.raised
        if is_sealed(raised):
            return raised.traceback
        return "" if raised is None else traceback_of(raised)  # type: ignore[arg-type]

    def __str__(self) -> str:
        said = show(self.raised) if self.raised is not None else self.detail
        return f"{self.kind.value}: {said}" if said else self.kind.value

    def __repr__(self) -> str:
        return f"ExitReason(kind={self.kind!r}, exception={self.raised!r}, detail={self.detail!r})"


def start_error(path: str, reason: ExitReason) -> exceptions.StartError:
    """Return the error of a child that failed to start, however deep.

    A supervisor hands on what it got from below. This opens nothing.
    """
    if is_a(reason.raised, exceptions.StartError):
        return reason.raised  # type: ignore[return-value]
    return exceptions.StartError(path, reason).caused_by(reason.raised)


class ChildState(Word):
    """What a child is doing (OTP's pid, restarting and undefined, made finer)."""

    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    UNSTOPPED = "unstopped"
    UNDEFINED = "undefined"


@report
class ChildInfo(Value):
    """One child as its supervisor sees it.

    Attributes:
        id, path, type: Which child.
        state: What it is doing.
        incarnation: How often it has been started under this supervisor; 0: never.
        restarts: How many of these starts were restarts by the strategy.
        age: Seconds since it came up, None if it is not up.
        last_exit: Why the incarnation before ended, None if none did.
        due: Seconds until the next restart, None if none is due.
        heartbeat_age: In a snapshot, seconds since it checked in, None if it has no
            heartbeat or is not up.
        snapshot: In a snapshot, the subtree of a running supervisor.
    """

    id: str
    path: str
    type: ChildType
    state: ChildState
    incarnation: int
    restarts: int
    age: float | None
    last_exit: ExitReason | None
    due: float | None = None
    heartbeat_age: float | None = None
    snapshot: Snapshot | None = None


@report
class Counts(Value):
    """How many children there are (OTP: count_children).

    Attributes:
        specs: All that are specified.
        active: Those that run or start or stop.
        supervisors, workers: All that are specified, by type, running or not.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


@report
class Snapshot(Value):
    """A supervisor and its subtree. Each supervisor answers for itself, in its turn.

    Attributes:
        path, strategy, auto_shutdown, intensity, period: Which supervisor, and its
            flags.
        budget_left: How many restarts it would still allow now; None: any number.
        children: In start order; ``ChildInfo.snapshot`` goes on downwards.
    """

    path: str
    strategy: Strategy
    auto_shutdown: AutoShutdown
    intensity: int | Literal["infinity"]
    period: float
    budget_left: int | None
    children: tuple[ChildInfo, ...]


@report
class Escalation(Value):
    """A supervisor gave up, and its failure goes to its parent.

    Attributes:
        path: The supervisor that gave up.
        child: The path of the child that spent the last unit.
        reason: That child's exit reason.
        restarts: How many restarts were counted in the window, the refused one
            included.
        intensity, period: The limit.
        parent: The path of the supervisor that it goes to, None at the root.

    If that child is a supervisor that gave up, its escalation is ``reason.detail``. It
    is kept there only, and ``chain`` is read from there. So to print, compare, hash or
    pickle an escalation is linear in its levels.
    """

    path: str
    child: str
    reason: ExitReason
    restarts: int
    intensity: int | Literal["infinity"]
    period: float
    parent: str | None

    @property
    def chain(self) -> tuple[Escalation, ...]:
        """The escalations below that led to this one, leaf first."""
        links: list[Escalation] = []
        below = self.reason.detail
        while isinstance(below, Escalation):
            links.append(below)
            below = below.reason.detail
        return tuple(reversed(links))

    def __str__(self) -> str:
        """Name the two ends of the chain; the levels between them are counted only."""
        chain = self.chain
        between = f"{len(chain) - 1} more, and at first " if len(chain) > 1 else ""
        why = f"{self.reason.kind.value}: {between}{chain[0]}" if chain else self.reason
        return f"{self.path} gave up: {self.child} spent the last restart ({why})"

    def __repr__(self) -> str:
        """Print all levels one after the other, leaf first, without nesting."""
        *below, last = map(_flat, (*self.chain, self))
        return f"{last[:-1]}, chain=({''.join(f'{one}, ' for one in below).rstrip()}))"


def _flat(one: Escalation) -> str:
    """Return the repr of *one* without what is below it."""
    reason = (
        attrs.evolve(one.reason, detail=None)
        if isinstance(one.reason.detail, Escalation)
        else one.reason
    )
    return Value.__repr__(attrs.evolve(one, reason=reason))


# Reports. ``path`` names the child, or the supervisor where the report is about itself.


@report
class Report(Value):
    """Base of all reports.

    Attributes:
        path: Whom it is about.
        incarnation: Its number, 0 for a supervisor's report about itself.
        time: Wall clock.
        thread: The name of the thread it runs or ran in.
        reason: The exit reason, where there is one.
    """

    path: str
    incarnation: int = 0
    time: float = 0.0
    thread: str = ""
    reason: ExitReason | None = None


R = TypeVar("R", bound=Report)


stamp: Callable[[Report, float], None] = vars(Report)["time"].__set__
"""``stamp(report, time)``: write the time into a report that is still private."""


class Cause(Word):
    """Why a child was started."""

    INIT = "init"
    RESTART = "restart"
    CALL = "call"


@report
class Progress(Report):
    """A child is up (OTP: progress)."""

    cause: Cause


@report
class ChildTerminated(Report):
    """A child ended by itself (OTP: child_terminated).

    Unpacks to what the consumer of a shared error queue expects: the name of the
    thread, the exception (None if there was none) and the formatted traceback.
    """

    reason: ExitReason

    def __iter__(self) -> Iterator[Any]:
        return iter((self.thread, self.reason.exception, self.reason.traceback))


@report
class Stalled(Report):
    """A child has not checked in within its ``heartbeat``. It is stopped now.

    Its end is reported, too.

    Attributes:
        stack: What its thread was doing, formatted like a traceback.
    """

    reason: ExitReason
    stack: str = ""


@report
class StartFailed(Report):
    """A child did not start, at init or in a restart (OTP: start_error)."""

    reason: ExitReason


@report
class ShutdownError(Report):
    """A child that was asked to stop did not end as it should (OTP: shutdown_error)."""

    reason: ExitReason


@report
class LimitReached(Report):
    """A supervisor gave up; ``path`` is its path (OTP: reached_max_restart_intensity).

    Attributes:
        escalation: What its parent and the escalation handlers get.
    """

    reason: ExitReason
    escalation: Escalation


@report
class Unstopped(Report):
    """A child could not be stopped and was given up; its thread may still run.

    Attributes:
        stack: What its thread was doing, formatted like a traceback.
    """

    stack: str = ""


@report
class AutoShutdownBegun(Report):
    """A supervisor, at ``path``, ends because significant children have ended.

    Attributes:
        child: The path of the child whose end decided it.
        reason: How that child ended.
    """

    child: str


@report
class StrayMessage(Report):
    """An item on a supervisor's queue was no message, and was ignored.

    OTP: unexpected message.

    Attributes:
        item: What it was, as it was.
    """

    item: object


@report
class OutputLost(Report):
    """The output of a program could not be written to its file. The program runs on.

    Reported once, until writing works again.

    Attributes:
        file: Which.
        reason: Why; its exception is an OSError.
    """

    reason: ExitReason
    file: str


class StopStage(Word):
    """How far a stop by signals has come."""

    STOPPING = "stopping"
    HURRYING = "hurrying"
    STOPPED = "stopped"


@report
class SignalStop(Report):
    """A signal stops the whole tree: told at each stage. ``path`` is the root's.

    Attributes:
        signal: The name of the signal that counted last, such as "SIGTERM".
        stage: A ``StopStage``: the first signal asks for a stop; a second one shortens
            all limits to zero; or all is over, and ``reason`` says how the root has
            ended.
        detail: The same as a line for people.
    """

    signal: str
    stage: StopStage
    detail: str


@report
class StopReport(Value):
    """How a tree ended.

    Attributes:
        path: The supervisor that ended.
        reason: Why.
        stopped: The paths that ended after they were asked, in the order of their ends.
        interrupted: The paths that ended after they were interrupted.
        detached: The paths of the children that run on, because it was detached.
        unstopped: What is left: an ``Unstopped`` for every thread of the tree that
            still runs, with its stack.
        handlers: The names of the helper threads that had not finished a report handler
            or an on_stop callback.
        unanswered: The paths of the supervisors that did not answer in time. Then
            ``reason`` is KILLED, nothing is known of what was stopped, and
            ``unstopped`` has the threads that run at and below them.
        duration: Seconds from the order to the end of the last child.
        undelivered: How many escalations, reports and log lines had not been handled,
            all handlers together.
    """

    path: str
    reason: ExitReason
    stopped: tuple[str, ...] = ()
    interrupted: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    unstopped: tuple[Unstopped, ...] = ()
    handlers: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    duration: float = 0.0
    undelivered: int = 0
