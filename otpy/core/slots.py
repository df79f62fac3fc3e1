"""The life of a child: its states, the moves between them, and what belongs to a state.

Laws:
1. A slot changes its state by ``Slot.move`` only, and only by a move of MOVES.
2. What belongs to one state is a value that exists in that state only: ``Starting``,
   ``Stopping``, ``Waiting``, ``Held``.
3. A slot has a number in its supervisor (``ref``) in the states of NUMBERED, and in no
   other. News about any other number is about the past.

A supervisor's machine owns its slots; no other object changes them.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from otpy.core.messages import Call, Handover, RestartChild, StartChild, TerminateChild
from otpy.core.restarts import Delays
from otpy.exceptions import InternalError
from otpy.reports import Cause, ChildState, ExitReason
from otpy.specs import Budget, ChildSpec
from otpy.values import Value, Word, running, value


class State(Word):
    """What a child is doing."""

    UNDEFINED = "undefined"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended, to be judged when all are up"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    UNSTOPPED = "unstopped"


# by their bare names: to look a member up in its class is slow (CPython 3.11)
UNDEFINED, STARTING, RUNNING, ENDED, STOPPING, RESTARTING, UNSTOPPED = State

MOVES = frozenset(
    {
        # a boot, a restart, or a call
        (UNDEFINED, STARTING),
        # it is up
        (STARTING, RUNNING),
        # it ended by itself; or a plan was about to stop it, and it ended before that
        (STARTING, UNDEFINED),
        (RUNNING, UNDEFINED),
        # it ended while a sibling was booting; it is judged when all are up
        (RUNNING, ENDED),
        (ENDED, UNDEFINED),
        # a plan, a call, a start limit or a missed heartbeat stops it
        (STARTING, STOPPING),
        (RUNNING, STOPPING),
        # it has ended, or it was given up
        (STOPPING, UNDEFINED),
        # it did not check in, and has ended while a sibling was booting
        (STOPPING, ENDED),
        # it was given up, and its next start waits until it has ended (hold)
        (STOPPING, UNSTOPPED),
        # it has ended at last, or its supervisor ends and does not wait for it
        (UNSTOPPED, UNDEFINED),
        # its restart failed, or its back-off makes it wait
        (UNDEFINED, RESTARTING),
        # it is started now, or a plan or a call has called its restart off
        (RESTARTING, UNDEFINED),
    }
)
"""All moves: (from, to)."""

NUMBERED = frozenset({STARTING, RUNNING, STOPPING, RESTARTING, UNSTOPPED})

SHOWN = {
    # how the world sees each state
    UNDEFINED: ChildState.UNDEFINED,
    STARTING: ChildState.STARTING,
    RUNNING: ChildState.RUNNING,
    ENDED: ChildState.UNDEFINED,
    STOPPING: ChildState.STOPPING,
    RESTARTING: ChildState.RESTARTING,
    UNSTOPPED: ChildState.UNSTOPPED,
}

UP_OR_COMING = frozenset({RUNNING, STARTING})

ACTIVE = frozenset({RUNNING, STARTING, STOPPING})


class Why(Word):
    """Why a child was asked to stop."""

    CALLED = "terminate_child"
    GROUP = "a plan says so"
    LATE = "it was not ready in time"
    SILENT = "it did not check in"


CALLED, GROUP, LATE, SILENT = Why

FAILURES = frozenset({LATE, SILENT})
"""The stops that are failures of the child itself, and are judged as such."""


@running(frozen=True)
class Rung:
    """A rung of the ladder by which a child is stopped.

    Attributes:
        act: The method of ``lives`` that is called when a child reaches this rung.
        limit: How many seconds the child may stay on it, by its spec and the grace of
            its supervisor; a Budget: there is no timer.
    """

    act: str
    limit: Callable[[ChildSpec, float], float | Budget]


ASK = Rung("_ask", lambda spec, grace: spec.shutdown)
INTERRUPT = Rung("_interrupt", lambda spec, grace: grace)
ABANDON = Rung("_abandon", lambda spec, grace: Budget.INFINITY)

LADDER = (ASK, INTERRUPT, ABANDON)
"""The rungs in their order. A new one needs an entry here and a method in ``lives``."""


def above(rung: Rung) -> Rung:
    """Return the next rung of the ladder."""
    return LADDER[LADDER.index(rung) + 1]


@value
class Starting(Value):
    """What is known while STARTING.

    Attributes:
        cause: Why it is started.
    """

    cause: Cause


@running
class Stopping:
    """What is known while STOPPING.

    Attributes:
        why: What for. A plan that takes the child over makes it GROUP.
        failure: How the end is judged, if it stops because of a failure of its own.
        rung: The rung of the ladder that it has reached.
        leavers: The terminate_child calls that wait for its end.
    """

    why: Why
    failure: ExitReason
    rung: Rung = ASK
    leavers: list[TerminateChild] = attrs.field(factory=list)

    @property
    def has_failed(self) -> bool:
        """Whether its end is a failure: no plan and no caller has overtaken that."""
        return self.why in FAILURES and not self.leavers

    @property
    def was_interrupted(self) -> bool:
        """Whether it was not left to end by itself."""
        return LADDER.index(self.rung) >= LADDER.index(INTERRUPT)


@value
class Waiting(Value):
    """What is known while RESTARTING.

    Attributes:
        reason: Why it has to be restarted.
        due: The monotonic time of the restart; None: a Retry is in the queue.
    """

    reason: ExitReason
    due: float | None = None


@running
class Held:
    """What is known while UNSTOPPED.

    Attributes:
        why, failure: As while STOPPING.
        is_wanted: Whether a plan wanted to start it, and goes on when it has ended.
    """

    why: Why
    failure: ExitReason
    is_wanted: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether its end, when it comes, is a failure."""
        return self.why in FAILURES


@running
class Slot:
    """A child: its spec, its state and, in the states of NUMBERED, its number.

    Attributes:
        id, path, spec: Which child.
        delays: How long it waits before its next restart.
        heartbeat: Within how many seconds it must check in; None: it need not.
        handover: What its incarnations leave to each other.
        state: What it is doing.
        starting, stopping, waiting, held: What belongs to the state; else None.
        ref: Its number.
        incarnation: How often it has been started.
        restarts: How many of these starts were restarts.
        since: The time at which it began to start, run, or stop on this rung.
        thread: The name of its thread, for reports.
        last_exit: Why the last incarnation ended.
        starters: The calls that wait for its start.
        parked: The calls that wait until it has stopped, to be looked at again.
    """

    id: str
    path: str
    spec: ChildSpec
    delays: Delays
    heartbeat: float | None
    handover: Handover = attrs.field(factory=Handover)
    state: State = UNDEFINED
    starting: Starting | None = None
    stopping: Stopping | None = None
    waiting: Waiting | None = None
    held: Held | None = None
    ref: int = 0
    incarnation: int = 0
    restarts: int = 0
    since: float = 0.0
    thread: str = ""
    last_exit: ExitReason | None = None
    starters: tuple[StartChild | RestartChild, ...] = ()
    parked: list[Call] = attrs.field(factory=list)

    def move(
        self,
        state: State,
        *,
        starting: Starting | None = None,
        stopping: Stopping | None = None,
        waiting: Waiting | None = None,
        held: Held | None = None,
    ) -> None:
        """Change the state; what belonged to the old one goes.

        Raises:
            InternalError: MOVES has no such move.
        """
        if (self.state, state) not in MOVES:
            raise InternalError(f"{self.path}: {self.state.value} -> {state.value} is no move")
        self.state = state
        self.starting, self.stopping, self.waiting, self.held = starting, stopping, waiting, held

    @property
    def is_new(self) -> bool:
        """Whether start_child has added it, and it has not been up yet."""
        return any(isinstance(call, StartChild) for call in self.starters)

    @property
    def holds_up(self) -> bool:
        """Whether the rest of its group is down until it is started again."""
        if self.held is not None:
            return self.held.is_wanted or self.held.why is LATE
        return self.state is RESTARTING

    @property
    def due(self) -> float | None:
        """The monotonic time of its restart, if it waits for one."""
        return None if self.waiting is None else self.waiting.due


def diagram() -> str:
    """Return MOVES as a Mermaid diagram, for docs/explanation/design.md."""
    order = list(State)
    names = {state: state.name.lower() for state in order}
    moves = sorted(MOVES, key=lambda move: (order.index(move[0]), order.index(move[1])))
    return "\n".join(
        ["stateDiagram-v2", f"    [*] --> {names[UNDEFINED]}"]
        + [f"    {names[before]} --> {names[after]}" for before, after in moves]
    )
