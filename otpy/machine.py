"""The supervisor's decisions: one message and the time in, a list of actions out.

Laws:
1. Everything that decides about children lives here, in restarts.py or in strategy.py. Nothing here starts, waits,
   logs, reads a clock or holds a lock. Whoever drives the machine performs its actions in order and reports back.
2. A child has one state and one number (``ref``). The tables below say what each message means in each state.
   A message about a number that is not in ``_live`` is about the past, and is dropped.
3. Every Start is followed by exactly one ChildExited, sooner or later; the machine never asks twice for it.
4. Every call is answered exactly once.
5. Ending overtakes everything: once ``phase`` is ENDING nothing is started any more.

Theory of operation. There are three things to keep apart:

* A *slot* is a child: its spec, its state, its current number. Slots are kept in start order.
* A *plan* is the one long operation that goes on: stop these one after another, then start those one after another.
  Booting is a plan (start all), a group restart is a plan (stop some, start some), ending is a plan (stop all).
  A one_for_one restart needs no plan: it starts one child and disturbs nobody, so many can go on side by side.
* The *waiting* calls are those that would meddle with a plan. They are served when it is over. Queries never wait.

``receive`` lets one clause handle the message and then moves plan and waiting calls on until nothing moves any more.
No clause moves the plan itself, so no clause can be overtaken by another one half-way.

Where OTP blocks, we keep what can be observed and let messages in:

* A crash during a group restart makes a new plan that contains the rest of the old one, and spends a unit. OTP would
  finish the pointless start first; here nobody waits for it.
* When a group restart overtakes a start call, the plan makes that start, in its turn, and
  what comes of it answers the call. OTP would serve the call before or after the restart.
* When a significant child ends while others are being started, it is open whether the
  supervisor ends with it. That is decided when it is known what has come of them.
* During boot, crashes of children that are already up are kept for later, as OTP's
  mailbox would. OTP answers no question meanwhile; we do, and say that they are down.
* A failed start in a plan ends the plan; the child is RESTARTING, and a Retry goes to the end of the queue, so that
  calls and a shutdown come first (docs/otp.md, "Failed restarts"). Whoever takes the child out of RESTARTING cancels
  the retry.

Where we go beyond OTP:

* A child that failed may have to wait (``backoff``). It is RESTARTING then as well, with a time when it is due, and the
  rest of its group is stopped at once and waits with it, down. The unit is spent when the wait is over.
* A child that does not check in (``heartbeat``) is stopped, and its end is judged as a crash. Its one timer is set to
  the time by which it must check in; when that runs out, it is set anew, or the child has stalled. So a check-in costs
  nothing here.
* A limit of a start, a stop or a heartbeat that a pause of the whole program has hit
  begins anew, once (pauses.py).
* Detaching is an end that stops nobody.

What this file must not know: threads, queues, kinds of children, debuggers, wall-clock time.

Not proud of: a slot has several fields that matter in one state only (``why``, ``killed``, ``failure``, ``wanted``,
``due``).
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from otpy import exceptions, reports
from otpy.exceptions import NotAlive, NotFound, Refusal, SpecError, WouldDeadlock
from otpy.messages import (
    SUPERVISOR,
    Abandon,
    Action,
    Again,
    Answer,
    Arm,
    Begin,
    Call,
    ChildExited,
    ChildStarted,
    CountChildren,
    DeleteChild,
    Detach,
    Disarm,
    Due,
    End,
    Escalate,
    Expose,
    GetChildSpec,
    Handover,
    Kill,
    Refuse,
    RestartChild,
    Retry,
    Start,
    StartChild,
    Stop,
    StopSupervisor,
    TakeSnapshot,
    Tell,
    TerminateChild,
    TooManyUnstopped,
    Up,
    WhichChildren,
)
from otpy.pauses import PAUSE, Pauses, patience
from otpy.reports import Cause, ChildInfo, ChildState, Counts, Escalation, ExitKind, ExitReason, R, Snapshot
from otpy.restarts import VERDICTS, Fate, Patience, Window, is_acceptable
from otpy.specs import (
    AutoShutdown,
    Budget,
    ChildSpec,
    ChildType,
    OnUnstopped,
    Restart,
    Strategy,
    SupervisorSpec,
    check_member,
)
from otpy.strategy import restart_group
from otpy.values import Word

INTERRUPT_GRACE = 0.5
"""How long a thread that was interrupted may take to end, in seconds, before it counts as unstopped."""

ASKED_TO_STOP = ExitReason(ExitKind.SHUTDOWN)
DETACHED = ExitReason(ExitKind.SHUTDOWN, detail="detached")
UNSTOPPABLE = ExitReason(ExitKind.KILLED, detail="it could not be stopped")


class Phase(Word):
    """The life of a supervisor."""

    BOOTING = "booting"
    UP = "up"
    ENDING = "ending"
    ENDED = "ended"


class Why(Word):
    """Why a child was told to stop."""

    CALLED = "terminate_child"
    GROUP = "a plan says so"
    LATE = "it was not ready in time"
    STALLED = "it did not check in"


# Members by their bare names: to look one up in its class is slow (CPython 3.11), and here it is done all the time.
BOOTING, UP, ENDING, ENDED = Phase
CALLED, GROUP, LATE, STALLED = Why
RUNNING, STARTING, STOPPING, RESTARTING, UNSTOPPED, UNDEFINED = ChildState

UP_OR_COMING = (RUNNING, STARTING)
NO_BEATS: Mapping[int, float] = {}
ACTIVE = (RUNNING, STARTING, STOPPING)


@attrs.define(eq=False, repr=False)
class Slot:
    """A child: its spec, its state and, while it has one, the number of its incarnation.

    Attributes:
        id, path, spec: Which child.
        heartbeat: Within how many seconds it must check in; None: it need not.
        ref: Its key in ``_live`` while it runs, stops, or waits for a retry.
        since: Since when it starts, runs, or stops on this rung of the ladder.
        why, killed: While STOPPING: what for, and whether it has been interrupted.
        failure: While STOPPING because it was LATE or has STALLED, or RESTARTING: what to say of that.
        due: While RESTARTING: when it is started, or None if there is a Retry in the queue.
        detach: While STOPPING, of a supervisor: whether it lets its workers run on.
        wanted: While UNSTOPPED: a plan wanted to start it, and goes on when it has ended.
        starters: The calls that wait for its start.
        leavers: The terminate_child calls that wait for its end.
        waiting: The calls that wait until it has stopped, to be looked at again.
    """

    id: str
    path: str
    spec: ChildSpec
    patience: Patience
    heartbeat: float | None
    handover: Handover = attrs.field(factory=Handover)
    state: ChildState = UNDEFINED
    ref: int = 0
    incarnation: int = 0
    restarts: int = 0
    since: float = 0.0
    thread: str = ""
    last_exit: ExitReason | None = None
    why: Why = GROUP
    killed: bool = False
    failure: ExitReason = ASKED_TO_STOP
    due: float | None = None
    detach: bool = False
    wanted: bool = False
    cause: Cause = Cause.INIT
    starters: tuple[StartChild | RestartChild, ...] = ()
    leavers: list[TerminateChild] = attrs.field(factory=list)
    waiting: list[Call] = attrs.field(factory=list)


@attrs.define(eq=False, repr=False)
class Plan:
    """Stop these, forget the temporary ones among them, then start those.

    Attributes:
        stops, bystanders, starts: What is left of each step.
        width: How many may stop at the same time.
        awaiting: The children that the plan waits for.
        hastened: The child whose wait restart_child has ended. If the plan fails before
            it is up, so does the call.
    """

    stops: collections.OrderedDict[str, None]
    bystanders: tuple[str, ...]
    starts: collections.OrderedDict[str, None]
    width: float
    awaiting: set[str] = attrs.field(factory=set)
    hastened: Slot | None = None


def _plan(stops: Iterable[str], starts: Iterable[str], width: float = 1, bystanders: Iterable[str] = ()) -> Plan:
    ordered = collections.OrderedDict.fromkeys
    return Plan(ordered(stops), tuple(bystanders), ordered(starts), width)


def _is_new(slot: Slot) -> bool:
    """Whether start_child has added it, and it has not been up yet."""
    return any(isinstance(call, StartChild) for call in slot.starters)


def _holds_up(slot: Slot) -> bool:
    """Whether the rest of its group is down until it is started again."""
    return slot.state is RESTARTING or (slot.state is UNSTOPPED and (slot.wanted or slot.why is LATE))


REFUSALS: dict[type[Call], dict[ChildState, type[Refusal]]] = {
    # call: {state: refusal}; STOPPING is not here: it is worth waiting for         docs/otp.md, "Management calls"
    StartChild: {
        UNDEFINED: exceptions.AlreadyPresent,
        RESTARTING: exceptions.AlreadyPresent,
        STARTING: exceptions.AlreadyStarted,
        RUNNING: exceptions.AlreadyStarted,
        UNSTOPPED: exceptions.AlreadyStarted,
    },
    RestartChild: {
        RESTARTING: exceptions.StillRestarting,
        STARTING: exceptions.StillRunning,
        RUNNING: exceptions.StillRunning,
        UNSTOPPED: exceptions.StillRunning,
    },
    DeleteChild: {
        RESTARTING: exceptions.StillRestarting,
        STARTING: exceptions.StillRunning,
        RUNNING: exceptions.StillRunning,
        UNSTOPPED: exceptions.StillRunning,
    },
}


class SupervisorMachine:
    """One supervisor's state and rules. Only one thread may use it; see the head of this file."""

    def __init__(
        self,
        spec: SupervisorSpec,
        path: str,
        grace: float = INTERRUPT_GRACE,
        rng: random.Random | None = None,
        *,
        heartbeats: bool = True,
    ) -> None:
        self.spec, self.path, self.grace, self.heartbeats = spec, path, grace, heartbeats
        self._rng = rng or random.Random(path)
        self._pauses = Pauses()
        self.phase = BOOTING
        self.outcome = ASKED_TO_STOP
        self.window = Window(spec.intensity, spec.period)
        self.slots = {child.id: self._slot(child) for child in spec.children}
        self._live: dict[int, Slot] = {}
        self._plan: Plan | None = None
        self._waiting: collections.deque[Call] = collections.deque()
        self._callers: dict[str, list[Call]] = {}
        self._early: list[tuple[Slot, ExitReason]] = []
        self._open_end: reports.AutoShutdown | None = None
        self._hurried = self._detaching = False
        self._deadline = float("inf")
        self._budget = self._limited_since = self._ending_since = 0.0
        self._ended: list[tuple[str, bool]] = []
        self._let_gone: list[str] = []
        self._last_ref = SUPERVISOR
        self._before = self._now = 0.0
        self._out: list[Action] = []

    def receive(self, message: object, now: float) -> list[Action]:
        """Handle *message* at the monotonic time *now* and return what is to be done, in order."""
        self._before, self._now, self._out = self._now, now, []
        clause = CLAUSES.get(type(message), SupervisorMachine._on_stray)
        clause(self, message)
        if self._plan is not None or self._waiting or self._open_end is not None:
            self._move_on()
        return self._out

    # Children that came up

    def _on_begin(self, message: Begin) -> None:
        self._plan = _plan((), self.slots)

    def _on_started(self, message: ChildStarted) -> None:
        slot = self._live.get(message.ref)
        if slot is None or slot.state is not STARTING:
            return  # given up, or a stop overtook the start
        slot.state, slot.since, slot.thread = RUNNING, self._now, message.thread
        if slot.heartbeat is not None:
            self._do(Arm(slot.ref, self._now + slot.heartbeat))
        elif slot.spec.start_timeout is not None:
            self._do(Disarm(slot.ref))
        self._tell(reports.Progress, slot, cause=slot.cause)
        self._answer_start(slot)
        self._settled(slot)

    # Children that ended: one clause per state

    def _on_exited(self, message: ChildExited) -> None:
        slot = self._live.get(message.ref)
        if slot is None:
            return
        if slot.state is RUNNING:
            self._comes_down(slot)
        if self.phase is BOOTING and slot.state is RUNNING:
            self._early.append((slot, message.reason))
        else:
            self._bury(slot, message.reason)

    def _comes_down(self, slot: Slot) -> None:
        slot.patience.was_up(self._now - slot.since)
        if slot.heartbeat is not None:
            self._do(Disarm(slot.ref))

    def _bury(self, slot: Slot, reason: ExitReason) -> None:
        del self._live[slot.ref]
        slot.last_exit = reason
        EXITS[slot.state](self, slot, reason)

    def _died(self, slot: Slot, reason: ExitReason) -> None:
        """Handle the end of a child that nobody had told to stop (OTP: restart_child/3, do_restart/3)."""
        slot.last_exit = reason
        if self._is_doomed(slot):
            self._absorb(slot, reason)
        elif reason.is_ignore:
            self._decline(slot)
        else:
            self._judge(slot, reason)

    def _judge(self, slot: Slot, reason: ExitReason) -> None:
        verdict = VERDICTS[slot.spec.restart, reason.is_normal]
        if verdict.report or reason.is_fatal:
            self._tell(reports.ChildTerminated, slot, reason=reason)
        slot.state = UNDEFINED
        if reason.is_fatal:
            self._give_up(slot, reason)
        elif verdict.fate is Fate.RESTART:
            self._restart_when_due(slot, reason)
        else:
            self._rests(slot)
            self._check_auto_shutdown(slot)

    def _absorb(self, slot: Slot, reason: ExitReason) -> None:
        """Take the end of a child that was about to be stopped as its stop (docs/otp.md, "Deaths during stops")."""
        self._check_end(slot, reason)
        self._account(slot)
        slot.state = UNDEFINED
        self._rests(slot, reason)

    def _has_stopped(self, slot: Slot, reason: ExitReason) -> None:
        self._do(Disarm(slot.ref))
        if self._has_failed(slot):
            slot.failure = attrs.evolve(slot.failure, detail=reason.detail)  # a program has left words, and a code
        else:
            self._check_end(slot, reason)
        self._account(slot)
        self._gone(slot)

    def _came_home(self, slot: Slot, reason: ExitReason) -> None:
        """An unstopped child that was held for has ended at last."""
        slot.state = UNDEFINED
        wanted, slot.wanted = slot.wanted, False
        if slot.why in AFTERMATH:
            AFTERMATH[slot.why](self, slot, slot.failure)
        elif wanted:
            self._begin_group(slot)
        else:
            self._rests(slot)  # a plan that is to start it will find it down

    def _check_end(self, slot: Slot, reason: ExitReason) -> None:
        """Report a child that was told to stop and ended otherwise than it should."""
        if not is_acceptable(slot.spec.restart, slot.spec.shutdown is Budget.BRUTAL_KILL, reason):
            self._tell(reports.ShutdownError, slot, reason=reason)

    def _account(self, slot: Slot) -> None:
        if self.phase is ENDING:
            self._ended.append((slot.id, slot.killed and slot.state is STOPPING))

    # Restarts

    def _restart_when_due(self, slot: Slot, reason: ExitReason) -> None:
        """Restart the group around *slot* at once, or after the wait that its ``backoff`` demands."""
        wait = slot.patience.next_wait()
        if wait is None:
            self._restart(slot, reason)
        else:
            self._wait(slot, reason, wait)

    def _restart(self, slot: Slot, reason: ExitReason) -> None:
        """Spend one unit, then restart the group around *slot*, or give up."""
        if self.window.spend(self._now):
            self._begin_group(slot)
        else:
            self._give_up(slot, reason)

    def _begin_group(self, slot: Slot) -> None:
        if self.spec.strategy is Strategy.ONE_FOR_ONE:
            self._start(slot, self._cause(slot))
        else:
            self._plan = self._take_over(slot)

    def _take_over(self, slot: Slot, *, starts: bool = True) -> Plan:
        """Take the group around *slot* out of whatever its members wait for; return the plan that restarts it.

        What the plan that is under way has still to do with others stays to be done.

        Args:
            starts: Whether the group starts now; if not, it waits with *slot*.
        """
        first, members = self._group(slot)
        for id in members:
            self._overtake(self.slots[id])
        plan = _plan(
            first, members if starts else (), bystanders=[id for id in first if self._is_temporary(self.slots[id])]
        )
        if self._plan is not None:
            self._take_along(self._plan, plan, set(members))
        return plan

    def _take_along(self, old: Plan, plan: Plan, members: set[str]) -> None:
        """Let *plan* do what *old* has still to do with those that are no *members*."""
        plan.awaiting = old.awaiting - members
        plan.stops.update((id, None) for id in old.stops if id not in members)
        plan.bystanders += tuple(id for id in old.bystanders if id not in members)
        if others := old.starts.keys() - members:
            wanted = others | plan.starts.keys()
            plan.starts = collections.OrderedDict.fromkeys(id for id in self.slots if id in wanted)
        if old.hastened is not None and old.hastened.id not in members:
            plan.hastened = old.hastened

    def _group(self, slot: Slot) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return restart_group(self.spec.strategy, self.slots, slot.id)

    def _on_retry(self, message: Retry) -> None:
        slot = self._live.get(message.ref)
        if slot is not None:
            self._try_again(slot)

    def _try_again(self, slot: Slot) -> None:
        self._call_off(slot)
        self._restart(slot, slot.failure)

    def _retry_later(self, slot: Slot, reason: ExitReason) -> None:
        """A restart failed: leave the child RESTARTING and let everything that is queued come first, or wait."""
        wait = slot.patience.next_wait()
        if wait is not None:
            self._wait(slot, reason, wait)
            return
        slot.state, slot.failure = RESTARTING, reason
        self._enlist(slot)
        self._do(Again(slot.ref))
        self._break_off(slot, reason)

    def _wait(self, slot: Slot, reason: ExitReason, seconds: float) -> None:
        """Leave the child RESTARTING until it is due, and its group down with it."""
        hastened = self._plan.hastened if self._plan is not None else None
        self._plan = self._take_over(slot, starts=False)
        if hastened is not None and self._plan.hastened is None:
            self._refuse_start(hastened, reason)
        slot.state, slot.failure, slot.due = RESTARTING, reason, self._now + seconds
        self._enlist(slot)
        self._do(Arm(slot.ref, slot.due))

    def _call_off(self, slot: Slot) -> None:
        """Cancel the retry of a child, if it waits for one."""
        if slot.state is not RESTARTING:
            return
        if slot.due is not None:
            self._do(Disarm(slot.ref))
        del self._live[slot.ref]
        slot.state, slot.due = UNDEFINED, None

    def _overtake(self, slot: Slot) -> None:
        """A plan takes the child over: nothing that has failed, waits or is held for comes back by itself any more."""
        self._call_off(slot)
        slot.why, slot.wanted = GROUP, False

    def _write_off(self, slot: Slot) -> None:
        """Stop waiting for the end of an unstopped child."""
        if slot.state is UNSTOPPED:
            del self._live[slot.ref]
            slot.state = UNDEFINED

    def _break_off(self, slot: Slot, reason: ExitReason) -> None:
        """Drop the plan that waits for *slot*: the rest waits for the next start of that."""
        if self._plan is not None and slot.id in self._plan.awaiting:
            if self._plan.hastened is not None:
                self._refuse_start(self._plan.hastened, reason)
            self._plan = None

    # Starts

    def _start(self, slot: Slot, cause: Cause) -> None:
        slot.state, slot.cause, slot.incarnation, slot.since = STARTING, cause, slot.incarnation + 1, self._now
        slot.restarts += cause is Cause.RESTART
        self._enlist(slot)
        self._do(Start(slot.ref, slot.spec, slot.incarnation, slot.last_exit, slot.handover))
        if slot.spec.start_timeout is not None:
            self._do(Arm(slot.ref, self._now + slot.spec.start_timeout))

    def _enlist(self, slot: Slot) -> None:
        self._last_ref += 1
        slot.ref = self._last_ref
        self._live[slot.ref] = slot

    def _ended_early(self, slot: Slot, reason: ExitReason) -> None:
        """The child ended before it was up."""
        if slot.spec.start_timeout is not None:
            self._do(Disarm(slot.ref))
        if reason.is_ignore:
            self._account(slot)
            self._decline(slot)
        elif self._is_doomed(slot):
            self._absorb(slot, reason)
        else:
            self._start_failed(slot, reason)

    def _start_failed(self, slot: Slot, reason: ExitReason) -> None:
        slot.state = UNDEFINED
        if slot.starters:
            self._rests(slot, reason)
        elif self.phase is BOOTING:
            self._tell(reports.StartError, slot, reason=reason)
            self._end(self._not_started(slot, reason))
        else:
            self._tell(reports.StartError, slot, reason=reason)
            self._give_up(slot, reason) if reason.is_fatal else self._retry_later(slot, reason)
        self._settled(slot)

    def _not_started(self, slot: Slot, reason: ExitReason) -> ExitReason:
        """Return the reason of a supervisor that did not come up (OTP: {shutdown, {failed_to_start_child, …}})."""
        return ExitReason(ExitKind.SHUTDOWN, reports.start_error(slot.path, reason), f"{slot.id} did not start")

    def _decline(self, slot: Slot) -> None:
        """The child said Ignore: nothing runs, nothing counts, and a temporary one is not kept."""
        slot.state = UNDEFINED
        self._answer_start(slot)
        self._rests(slot)
        self._settled(slot)

    def _answer_start(self, slot: Slot) -> None:
        starters, slot.starters = slot.starters, ()
        for call in starters:
            self._answer(call, self._info(slot))

    def _refuse_start(self, slot: Slot, reason: ExitReason) -> None:
        """Tell those who asked for the start, and nobody else."""
        starters, slot.starters = slot.starters, ()
        for call in starters:
            self._refuse(call, reports.start_error(slot.path, reason))

    def _rests(self, slot: Slot, reason: ExitReason = ASKED_TO_STOP) -> None:
        """Refuse the start of a child that is down, and drop its spec if that goes with it.

        The one place where specs are dropped: of temporary children, of dynamic ones, and
        of new ones whose start is refused. While the supervisor ends, none is.
        """
        goes = self.phase is not ENDING and (self.spec.dynamic or self._is_temporary(slot) or _is_new(slot))
        if slot.starters:
            self._refuse_start(slot, reason)
        if goes:
            self.slots.pop(slot.id, None)

    def _is_temporary(self, slot: Slot) -> bool:
        return slot.spec.restart is Restart.TEMPORARY

    # Stops: the ladder. Ask, interrupt, give up.

    def _stop(self, slot: Slot, why: Why) -> None:
        if slot.state is RUNNING:
            slot.patience.was_up(self._now - slot.since)
        slot.state, slot.why, slot.killed, slot.since = STOPPING, why, False, self._now
        if self._detaching or slot.detach:
            self._let_go(slot)
            return
        self._refuse_calls_from(slot)
        if self._hurried or slot.spec.shutdown is Budget.BRUTAL_KILL:
            self._kill(slot)
            return
        self._do(Stop(slot.ref))
        if isinstance(slot.spec.shutdown, Budget):
            self._do(Disarm(slot.ref))
        else:
            self._do(Arm(slot.ref, self._now + slot.spec.shutdown))

    def _kill(self, slot: Slot) -> None:
        slot.killed, slot.since = True, self._now
        if slot.spec.type is ChildType.SUPERVISOR:
            self._do(Kill(slot.ref, self.grace))  # it hurries, and never blocks: its end is certain, so no timer
            self._do(Disarm(slot.ref))
        else:
            self._do(Kill(slot.ref, self.grace) if slot.spec.interrupt else Stop(slot.ref))
            self._do(Arm(slot.ref, self._now + self.grace))

    def _let_go(self, slot: Slot) -> None:
        """Do not stop it: let it run on, or, if it is a supervisor, let it do the same with its children and end."""
        self._do(Disarm(slot.ref))
        self._do(Detach(slot.ref))
        if slot.spec.type is ChildType.WORKER:
            del self._live[slot.ref]
            self._let_gone.append(slot.id)
            self._gone(slot)

    def _abandon(self, slot: Slot) -> None:
        """Give the child up: from now on nothing that this incarnation says counts."""
        self._do(Disarm(slot.ref))
        self._do(Abandon(slot.ref, self._report(reports.Unstopped, slot, reason=UNSTOPPABLE)))
        slot.last_exit = UNSTOPPABLE
        if self._can_hold(slot):
            self._hold(slot)
            return
        del self._live[slot.ref]
        if slot.spec.unstopped is OnUnstopped.ESCALATE and self.phase is UP:
            self._give_up(slot, UNSTOPPABLE)  # first: then nothing is started that would have to be stopped again
        if slot.spec.unstopped is OnUnstopped.HOLD and slot.why is GROUP and _is_new(slot):
            self._rests(slot, UNSTOPPABLE)  # or its group would start it beside itself
        self._gone(slot)

    def _can_hold(self, slot: Slot) -> bool:
        """Whether there is a spec to hold a start of: not if it goes with this child."""
        goes = _is_new(slot) or (slot.leavers and (self.spec.dynamic or self._is_temporary(slot)))
        return slot.spec.unstopped is OnUnstopped.HOLD and self.phase is UP and not goes

    def _hold(self, slot: Slot) -> None:
        """Whoever waited for the end need not wait longer; only a start waits until the thread has really ended."""
        slot.state, failure = UNSTOPPED, slot.failure if slot.why is LATE else UNSTOPPABLE
        if slot.starters or slot.leavers:
            slot.why = CALLED  # nobody retries a call
        self._refuse_start(slot, failure)
        self._answer_leavers(slot)
        if slot.why is LATE:
            self._break_off(slot, failure)
        self._settled(slot)

    def _gone(self, slot: Slot) -> None:
        """The child no longer runs, or no longer counts."""
        slot.state, slot.detach = UNDEFINED, False
        if self._has_failed(slot):
            AFTERMATH[slot.why](self, slot, slot.failure)
            return
        if slot.why is not GROUP or slot.leavers or self.phase is ENDING:  # or else its plan decides
            self._rests(slot)
        if slot.leavers:
            self._answer_leavers(slot)
        self._settled(slot)

    def _has_failed(self, slot: Slot) -> bool:
        """Whether it stops because of a failure of its own, and neither a plan nor a caller has overtaken that."""
        return slot.why in AFTERMATH and not slot.leavers

    def _answer_leavers(self, slot: Slot) -> None:
        for call in slot.leavers:
            self._answer(call, None)
        slot.leavers.clear()

    def _on_due(self, message: Due) -> None:
        slot = self._live.get(message.ref)
        self._look_for_pause(message, slot)
        if message.ref == SUPERVISOR:
            self._budget_is_spent()
        elif slot is None:
            return
        elif slot.state is STOPPING:
            self._has_not_ended(slot, message)
        elif not self._is_doomed(slot):
            DUES[slot.state](self, slot, message)

    def _look_for_pause(self, message: Due, slot: Slot | None) -> None:
        """Note a pause of the whole program if the timer is read so late (pauses.py)."""
        beats = slot.heartbeat if slot is not None and slot.state is RUNNING else None
        least = PAUSE if beats is None else patience(beats)
        if message.at is not None and self._now - message.at >= least:
            self._pauses.note(self._before, self._now)

    def _begins_anew(self, ref: int, since: float, limit: float) -> bool:
        """Set the timer of *ref* anew if a pause has hit its *limit*; False: it has had its time."""
        pause = self._pauses.after(since)
        if pause is None or pause.end + limit <= self._now:
            return False
        self._do(Arm(ref, pause.end + limit))
        return True

    def _has_not_ended(self, slot: Slot, message: Due) -> None:
        limit = self.grace if slot.killed else slot.spec.shutdown
        if message.at is None or isinstance(limit, Budget) or not self._begins_anew(slot.ref, slot.since, limit):
            self._abandon(slot) if slot.killed else self._kill(slot)
        elif self._hurried:
            self._deadline = self._now + self.grace  # so that it can be shortened

    def _late(self, slot: Slot, message: Due) -> None:
        assert slot.spec.start_timeout is not None, "a child that starts has a timer for its start only"
        if self._begins_anew(slot.ref, slot.since, slot.spec.start_timeout):
            return
        late = TimeoutError(f"not ready after {slot.spec.start_timeout} s{message.hint and f': {message.hint}'}")
        slot.failure = ExitReason(ExitKind.KILLED, late)
        self._stop(slot, LATE)

    # Stalls: silence is no news of a child, so a timer has to bring it

    def _silent(self, slot: Slot, message: Due) -> None:
        until, heartbeat = message.silent_until, slot.heartbeat
        assert until is not None, "a child that is up has a timer for its heartbeat only"
        assert heartbeat is not None, "the same"
        since = until - heartbeat if message.silent_since is None else message.silent_since
        pause = self._pauses.after(since)
        if pause is not None:  # its end counts as a check-in, and leaves of what was allowed for once what is left
            until = max(until, pause.end + max(heartbeat, until - max(since, pause.start)))
        if until > self._now:
            self._do(Arm(slot.ref, until))
        elif message.is_debugged:
            self._do(Arm(slot.ref, self._now + heartbeat))
        else:
            self._stall(slot)

    def _stall(self, slot: Slot) -> None:
        slot.failure = ExitReason(ExitKind.STALLED, TimeoutError("it did not check in"))
        self._do(Expose(slot.ref, self._report(reports.Stalled, slot, reason=slot.failure)))
        self._stop(slot, STALLED)

    def _stall_is_over(self, slot: Slot, reason: ExitReason) -> None:
        """The stalled child has ended or been given up: now its failure counts as a crash does, also during boot."""
        self._settled(slot)  # first: its failure may end the supervisor, and then nothing must be left to look at
        if self.phase is BOOTING:
            slot.state = RUNNING
            self._enlist(slot)  # under a new number: if it was given up, it may still say something
            self._early.append((slot, reason))
        else:
            self._died(slot, reason)

    def _wait_is_over(self, slot: Slot, message: Due) -> None:
        self._try_again(slot)

    # Ends of the supervisor

    def _give_up(self, slot: Slot, reason: ExitReason) -> None:
        """Too many restarts: tell everybody, and end (docs/otp.md, "Limit breach")."""
        self._escalate(slot.path, slot.incarnation, reason)

    def _escalate(self, child: str, incarnation: int, reason: ExitReason) -> None:
        escalation = Escalation(
            path=self.path,
            child=child,
            reason=reason,
            restarts=self.window.count(self._now),
            intensity=self.spec.intensity,
            period=self.spec.period,
            parent=self.path.rpartition("/")[0] or None,
        )
        outcome = ExitReason(ExitKind.LIMIT_REACHED, reason.raised, escalation)
        self._do(Tell(reports.LimitReached(path=self.path, reason=reason, escalation=escalation)))
        self._do(Escalate(escalation))
        self._end(outcome)

    def _on_too_many_unstopped(self, message: TooManyUnstopped) -> None:
        if self.phase in (BOOTING, UP):
            detail = f"{message.count} threads of the tree could not be stopped"
            self._escalate(message.path, 0, ExitReason(ExitKind.KILLED, detail=detail))

    def _check_auto_shutdown(self, slot: Slot) -> None:
        """Called after the own end of a child that is not restarted (docs/otp.md, "Significant children")."""
        if slot.spec.significant:
            self._open_end = reports.AutoShutdown(path=self.path, child=slot.path, reason=slot.last_exit)
            self._judge_open_end()

    def _judge_open_end(self) -> None:
        """End with the significant child that has ended, or go on, or leave it open.

        It is open while nothing is left of the significant children but starts. OTP is
        blocked by these, and reads of the end when they are over.
        """
        left = [slot for slot in self.slots.values() if slot.spec.significant and self._is_up_or_coming(slot)]
        if self._open_end is None:
            return
        if not left or self.spec.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT:
            self._do(Tell(self._open_end))
            self._end(ExitReason(ExitKind.SHUTDOWN, detail="auto_shutdown"))
        elif any(slot.state in (RUNNING, RESTARTING) and not self._is_doomed(slot) for slot in left):
            self._open_end = None

    def _is_up_or_coming(self, slot: Slot) -> bool:
        """Whether it runs, or will be started again: the one place where this is asked."""
        if slot.state in UP_OR_COMING and not self._is_doomed(slot):
            return True
        if slot.state in (STOPPING, UNSTOPPED) and self._has_failed(slot):
            return True  # what comes of that is decided when it has ended
        return self._is_coming(slot)

    def _is_coming(self, slot: Slot) -> bool:
        """Whether a plan that is under way, or a restart that waits, is going to start it."""
        if self._is_temporary(slot) and not slot.starters:
            return False
        if self._plan is not None and slot.id in self._plan.starts:
            return True
        return any(slot.id in self._group(one)[1] for one in self.slots.values() if _holds_up(one))

    def _on_stop_supervisor(self, message: StopSupervisor) -> None:
        if message.detach and self.phase in (BOOTING, UP):
            self._detaching = True
        self._end(DETACHED if message.detach else ASKED_TO_STOP)
        if message.within is not None and self.phase is ENDING:
            self._limit(message.within, message.grace)

    def _end(self, outcome: ExitReason) -> None:
        """Stop all children in reverse start order, dynamic ones all at once; then End."""
        if self.phase in (ENDING, ENDED):
            return
        self.phase, self.outcome, self._ending_since, self._open_end = ENDING, outcome, self._now, None
        self._plan = _plan(reversed(self.slots), (), width=float("inf") if self.spec.dynamic else 1)
        for slot in self.slots.values():
            self._overtake(slot)
            self._write_off(slot)
        for slot, reason in self._early:
            self._bury(slot, reason)  # nobody is restarted any more: these ends are absorbed
        self._early.clear()
        for slot in self.slots.values():
            if slot.state is UNDEFINED:
                self._refuse_start(slot, ASKED_TO_STOP)
        self._refuse_all_calls()

    def _limit(self, within: float, grace: float | None) -> None:
        """Bound what is left of the stop; the grace for the interrupted is part of it."""
        if grace is None:
            grace = within / 2 if within else self.grace
        self.grace = min(self.grace, grace)
        at = self._now + max(0.0, within - self.grace)
        if at + self.grace >= self._deadline:
            return  # a stop can only be shortened
        self._deadline = at + self.grace
        if at > self._now:
            self._budget, self._limited_since = at - self._now, self._now
            self._do(Arm(SUPERVISOR, at))
        else:
            self._do(Disarm(SUPERVISOR))
            self._hurry()

    def _budget_is_spent(self) -> None:
        if self._begins_anew(SUPERVISOR, self._limited_since, self._budget):
            self._deadline = self._now + self._budget + self.grace
        else:
            self._hurry()

    def _hurry(self) -> None:
        """Time is up: interrupt all that still run, at one moment; who was interrupted before has no longer grace."""
        assert self._plan is not None, "only an end has a budget, and it is a plan"
        self._hurried, self._plan.width = True, float("inf")
        for slot in list(self._live.values()):
            if slot.state is STOPPING:
                self._kill(slot)

    # Calls

    def _on_meddling(self, call: Any) -> None:
        if call.inside is not None:
            self._callers.setdefault(call.inside, []).append(call)
        if self.phase in (ENDING, ENDED):
            self._refuse(call, NotAlive(self.path))
        elif self._plan is None:
            self._serve(call)
        elif self._would_deadlock(call):
            self._refuse(call, WouldDeadlock(f"{self.path}/{call.inside}"))
        else:
            self._waiting.append(call)

    def _would_deadlock(self, call: Call) -> bool:
        """Whether the plan that the call would wait for waits itself for the caller."""
        plan = self._plan
        return (
            plan is not None and call.inside is not None and (call.inside in plan.awaiting or call.inside in plan.stops)
        )

    def _serve(self, call: Any) -> None:
        slot = self.slots.get(call.id)
        if slot is None:
            ABSENT[type(call)](self, call)
        elif slot.state is STOPPING and not isinstance(call, TerminateChild):
            self._park(call, slot)
        elif (refusal := REFUSALS.get(type(call), {}).get(slot.state)) and not self._may_be_hastened(call, slot):
            self._refuse(call, refusal(slot.path))
        else:
            PRESENT[type(call)](self, call, slot)

    def _park(self, call: Call, slot: Slot) -> None:
        """Keep the call until the child has stopped; not if that is the caller."""
        if call.inside == slot.id:
            self._refuse(call, WouldDeadlock(slot.path))
        else:
            slot.waiting.append(call)

    def _not_found(self, call: Any) -> None:
        self._refuse(call, NotFound(f"{self.path}/{call.id}"))

    def _add(self, call: StartChild) -> None:
        try:
            check_member(self.spec, call.spec, self.path)
        except SpecError as error:
            self._refuse(call, error)
            return
        if self.spec.max_children is not None and len(self.slots) >= self.spec.max_children:
            self._refuse(call, exceptions.MaxChildren(self.path))
            return
        self.slots[call.id] = self._slot(call.spec)
        self._start_for(call, self.slots[call.id])

    def _start_for(self, call: StartChild | RestartChild, slot: Slot) -> None:
        slot.starters = (*slot.starters, call)
        self._start(slot, Cause.CALL)

    def _may_be_hastened(self, call: Call, slot: Slot) -> bool:
        """Whether it asks to start a child that waits for nothing but time."""
        return isinstance(call, RestartChild) and slot.due is not None

    def _restart_for(self, call: RestartChild, slot: Slot) -> None:
        if slot.due is None:
            self._start_for(call, slot)
            return
        self._call_off(slot)
        slot.starters = (*slot.starters, call)
        self._begin_group(slot)  # the rest of it is down because of this child
        if self._plan is not None:
            self._plan.hastened = slot

    def _terminate(self, call: TerminateChild, slot: Slot) -> None:
        if call.inside == call.id and slot.state in ACTIVE and not call.detach:
            self._refuse(call, WouldDeadlock(slot.path))
            return
        if slot.spec.significant:
            self._open_end = None  # terminate_child never ends the supervisor
        if slot.state in ACTIVE:
            slot.leavers.append(call)
            slot.detach = call.detach and slot.spec.type is ChildType.SUPERVISOR
            if slot.state is not STOPPING:
                self._stop(slot, CALLED)
        else:
            self._cancel(slot)
            self._answer(call, None)

    def _cancel(self, slot: Slot) -> None:
        """Terminate a child that does not run: whatever was going to start it does not."""
        waiters = [self.slots[id] for id in self._group(slot)[1]] if _holds_up(slot) else []
        if slot.due is not None:  # the rest of its group is down because of this child only
            self._plan = self._take_over(slot)
            del self._plan.starts[slot.id]
        self._call_off(slot)
        slot.wanted, slot.why = False, CALLED
        if slot.state is UNDEFINED:
            self._rests(slot)
        called = [one.id for one in waiters if one.starters and one.state is UNDEFINED and not self._is_coming(one)]
        if called:  # the others stay down, but what was called for does not depend on this child
            self._plan = _plan((), called)

    def _delete(self, call: DeleteChild, slot: Slot) -> None:
        self._refuse_start(slot, ASKED_TO_STOP)
        del self.slots[slot.id]
        self._answer(call, None)

    def _on_get_childspec(self, call: GetChildSpec) -> None:
        slot = self.slots.get(call.id)
        self._not_found(call) if slot is None else self._answer(call, slot.spec)

    def _on_which_children(self, call: WhichChildren) -> None:
        self._answer(call, self._infos())

    def _on_count_children(self, call: CountChildren) -> None:
        types = [slot.spec.type for slot in self.slots.values()]
        counts = Counts(
            specs=len(types),
            active=sum(self._shown(slot)[0] in ACTIVE for slot in self.slots.values()),
            supervisors=types.count(ChildType.SUPERVISOR),
            workers=types.count(ChildType.WORKER),
        )
        self._answer(call, counts)

    def _on_take_snapshot(self, call: TakeSnapshot) -> None:
        spec = self.spec
        snapshot = Snapshot(
            path=self.path,
            strategy=spec.strategy,
            auto_shutdown=spec.auto_shutdown,
            intensity=spec.intensity,
            period=spec.period,
            budget_left=self.window.left(self._now),
            children=self._infos(call.beats),
        )
        self._answer(call, snapshot)

    def _refuse_calls_from(self, slot: Slot) -> None:
        """Release the child from its own waiting calls: blocked in one it could not stop when asked."""
        for call in list(self._callers.get(slot.id, ())):
            self._withdraw(call)
            self._refuse(call, WouldDeadlock(slot.path))

    def _withdraw(self, call: Any) -> None:
        """Take the call out of wherever it waits; a start that it has caused goes on for nobody."""
        slot = self.slots.get(call.id)
        for calls in (self._waiting, *((slot.waiting, slot.leavers) if slot is not None else ())):
            if call in calls:
                calls.remove(call)
        if slot is not None and call in slot.starters:
            nobodys = attrs.evolve(call, reply=None, inside=None)
            slot.starters = tuple(nobodys if one is call else one for one in slot.starters)

    def _refuse_all_calls(self) -> None:
        waiting = [*self._waiting, *(call for slot in self.slots.values() for call in slot.waiting)]
        self._waiting.clear()
        for call in waiting:
            self._refuse(call, NotAlive(self.path))
        for slot in self.slots.values():
            slot.waiting.clear()

    def unanswered(self) -> list[Any]:
        """Return the replies that somebody still waits for."""
        about = (call for slot in self.slots.values() for call in (*slot.waiting, *slot.leavers, *slot.starters))
        return [call.reply for call in (*self._waiting, *about) if call.reply is not None]

    def _on_stray(self, message: object) -> None:
        self._do(Tell(reports.StrayMessage(path=self.path, item=message)))

    # The plan

    def _move_on(self) -> None:
        """Move the plan and the waiting calls on until nothing moves any more."""
        while True:
            if self._open_end is not None:
                self._judge_open_end()
            if self._plan is not None:
                if not self._step(self._plan):
                    return
            elif self._waiting:
                self._serve(self._waiting.popleft())
            else:
                return

    def _step(self, plan: Plan) -> bool:
        """Make one step; False: it waits for a child."""
        if plan.stops and len(plan.awaiting) < plan.width:
            self._stop_next(plan)
        elif plan.awaiting:
            return False
        elif plan.bystanders:
            self._forget_bystanders(plan)
        elif plan.starts:
            self._start_next(plan)
        else:
            self._finish()
        return True

    def _stop_next(self, plan: Plan) -> None:
        slot = self.slots.get(plan.stops.popitem(last=False)[0])
        if slot is None:
            return
        if slot.state in ACTIVE:
            plan.awaiting.add(slot.id)
        if slot.state in UP_OR_COMING:
            self._stop(slot, GROUP)

    def _forget_bystanders(self, plan: Plan) -> None:
        """Forget the temporary children that were stopped with the group (OTP: del_child).

        Not those that were just being started for a call: that is served after the restart.
        """
        bystanders, plan.bystanders = plan.bystanders, ()
        for slot in [self.slots[id] for id in bystanders if id in self.slots]:
            if slot.state is UNDEFINED and not slot.starters:
                self._rests(slot)

    def _start_next(self, plan: Plan) -> None:
        slot = self.slots.get(plan.starts.popitem(last=False)[0])
        if slot is None:
            return
        if slot.state is UNDEFINED:
            plan.awaiting.add(slot.id)
            self._start(slot, self._cause(slot))
        elif slot.state is UNSTOPPED and not self._is_temporary(slot):
            slot.wanted = True
            self._plan = None  # it goes on when that has ended

    def _cause(self, slot: Slot) -> Cause:
        if slot.starters:
            return Cause.CALL
        return Cause.INIT if self.phase is BOOTING else Cause.RESTART

    def _finish(self) -> None:
        self._plan = None
        if self.phase is BOOTING:
            self._is_up()
        elif self.phase is ENDING:
            self.phase = ENDED
            duration = self._now - self._ending_since
            self._do(End(self.outcome, tuple(self._ended), duration, tuple(self._let_gone)))

    def _is_up(self) -> None:
        self.phase = UP
        self._do(Up())
        early, self._early = self._early, []
        for slot, reason in early:
            self._bury(slot, reason)

    # Small words

    def _do(self, action: Action) -> None:
        self._out.append(action)

    def _answer(self, call: Call, value: object) -> None:
        self._settle(call, Answer(call.reply, value))

    def _refuse(self, call: Call, error: Exception) -> None:
        self._settle(call, Refuse(call.reply, error))

    def _settle(self, call: Call, action: Answer | Refuse) -> None:
        if call.reply is not None:
            self._do(action)
        if call.inside is not None and call in (calls := self._callers.get(call.inside, [])):
            calls.remove(call)
            if not calls:
                del self._callers[call.inside]

    def _slot(self, spec: ChildSpec) -> Slot:
        heartbeat = spec.heartbeat if self.heartbeats else None
        return Slot(spec.id, f"{self.path}/{spec.id}", spec, Patience(spec.backoff, self._rng), heartbeat)

    def _report(self, kind: Callable[..., R], slot: Slot, **more: object) -> R:
        return kind(path=slot.path, incarnation=slot.incarnation, thread=slot.thread, **more)

    def _tell(self, kind: Callable[..., reports.Report], slot: Slot, **more: object) -> None:
        self._do(Tell(kind(path=slot.path, incarnation=slot.incarnation, thread=slot.thread, **more)))

    def _is_doomed(self, slot: Slot) -> bool:
        """Whether the plan was about to stop it anyway."""
        return self._plan is not None and slot.id in self._plan.stops

    def _settled(self, slot: Slot) -> None:
        """The child has come to rest: the plan need not wait for it any more."""
        if self._plan is not None:
            self._plan.awaiting.discard(slot.id)
        if slot.waiting:
            self._waiting.extend(slot.waiting)
            slot.waiting.clear()

    def _infos(self, beats: Mapping[int, float] = NO_BEATS) -> tuple[ChildInfo, ...]:
        return tuple(self._info(slot, beats) for slot in self.slots.values())

    def _info(self, slot: Slot, beats: Mapping[int, float] = NO_BEATS) -> ChildInfo:
        state, last_exit = self._shown(slot)
        is_up, beat = state is RUNNING, beats.get(slot.ref)
        return ChildInfo(
            id=slot.id,
            path=slot.path,
            type=slot.spec.type,
            state=state,
            incarnation=slot.incarnation,
            restarts=slot.restarts,
            age=self._now - slot.since if is_up else None,
            last_exit=last_exit,
            due=self._due(slot) if slot.state is RESTARTING else None,
            heartbeat_age=self._now - beat if is_up and beat is not None else None,
        )

    def _shown(self, slot: Slot) -> tuple[ChildState, ExitReason | None]:
        """Return the state and the last exit of a child; one that has ended during boot is down, though not judged."""
        for one, reason in self._early:
            if one is slot:
                return UNDEFINED, reason
        return slot.state, slot.last_exit

    def _due(self, slot: Slot) -> float:
        return max(0.0, slot.due - self._now) if slot.due is not None else 0.0


M = SupervisorMachine

CLAUSES: dict[type, Callable[[SupervisorMachine, Any], None]] = {
    # what each message means
    Begin: M._on_begin,
    StopSupervisor: M._on_stop_supervisor,
    TooManyUnstopped: M._on_too_many_unstopped,
    ChildStarted: M._on_started,
    ChildExited: M._on_exited,
    Due: M._on_due,
    Retry: M._on_retry,
    StartChild: M._on_meddling,
    TerminateChild: M._on_meddling,
    RestartChild: M._on_meddling,
    DeleteChild: M._on_meddling,
    GetChildSpec: M._on_get_childspec,
    WhichChildren: M._on_which_children,
    CountChildren: M._on_count_children,
    TakeSnapshot: M._on_take_snapshot,
}

EXITS: dict[ChildState, Callable[[SupervisorMachine, Slot, ExitReason], None]] = {
    # what the end of a child means in each state that has one
    STARTING: M._ended_early,
    RUNNING: M._died,
    STOPPING: M._has_stopped,
    UNSTOPPED: M._came_home,
}

DUES: dict[ChildState, Callable[[SupervisorMachine, Slot, Due], None]] = {
    # what it means that the time of a child has run out in each state that has a timer; STOPPING has the ladder
    STARTING: M._late,
    RUNNING: M._silent,
    RESTARTING: M._wait_is_over,
}

AFTERMATH: dict[Why, Callable[[SupervisorMachine, Slot, ExitReason], None]] = {
    # what is to be done when a child has been stopped because of a failure of its own
    LATE: M._start_failed,
    STALLED: M._stall_is_over,
}

ABSENT: dict[type[Call], Callable[[SupervisorMachine, Any], None]] = {
    # what a call does where there is no such child
    StartChild: M._add,
    TerminateChild: M._not_found,
    RestartChild: M._not_found,
    DeleteChild: M._not_found,
}

PRESENT: dict[type[Call], Callable[[SupervisorMachine, Any, Slot], None]] = {
    # what a call does to a child where REFUSALS has nothing against it
    TerminateChild: M._terminate,
    RestartChild: M._restart_for,
    DeleteChild: M._delete,
}
