"""The children of one supervisor, and what can be done to each of them.

Nothing here decides: each method is one step that a rule of ``machine`` has chosen. It
moves a slot, answers calls, or appends orders.

Laws:
1. Every Start is followed by exactly one ChildExited, sooner or later; no second Start
   for this slot is ordered before that, or before the child has been given up.
2. Every call is answered exactly once.

Owned by the supervisor's machine, which is a Roster.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from otpy import reports
from otpy.core.messages import (
    Action,
    Again,
    Answer,
    Arm,
    Call,
    ChildStarted,
    Disarm,
    Refuse,
    RestartChild,
    Start,
    StartChild,
    Tell,
)
from otpy.core.plan import Plan
from otpy.core.restarts import Delays, Window
from otpy.core.slots import (
    ACTIVE,
    RESTARTING,
    RUNNING,
    SHOWN,
    STARTING,
    UNDEFINED,
    UNSTOPPED,
    Slot,
    Starting,
    Waiting,
)
from otpy.exceptions import NotAlive, WouldDeadlock
from otpy.reports import Cause, ChildInfo, Counts, ExitReason, Snapshot
from otpy.specs import ChildSpec, ChildType, Restart, SupervisorSpec

STARTS = {cause: Starting(cause) for cause in Cause}
"""What is known of a start: one value for each cause, since starts are many."""

NO_BEATS: Mapping[int, float] = {}


class Roster:
    """The slots of one supervisor, in start order, and the calls that wait for them.

    Attributes:
        spec, path: Which supervisor.
        heartbeats: Whether its children have to check in.
        window: The restarts within its period.
        slots: All children, by id.
    """

    def __init__(
        self, spec: SupervisorSpec, path: str, rng: random.Random | None, *, heartbeats: bool
    ) -> None:
        self.spec, self.path, self.heartbeats = spec, path, heartbeats
        self.window = Window(spec.intensity, spec.period)
        self._rng = rng or random.Random(path)
        self.slots = {child.id: self._slot(child) for child in spec.children}
        self._live: dict[int, Slot] = {}
        self._last_ref = 0
        self._plan: Plan | None = None
        self._waiting: deque[Call] = deque()
        self._callers: dict[str, list[Call]] = {}
        self._now = 0.0
        self._out: list[Action] = []

    def _slot(self, spec: ChildSpec) -> Slot:
        heartbeat = spec.heartbeat if self.heartbeats else None
        return Slot(
            spec.id, f"{self.path}/{spec.id}", spec, Delays(spec.backoff, self._rng), heartbeat
        )

    def is_temporary(self, slot: Slot) -> bool:
        return slot.spec.restart is Restart.TEMPORARY

    def is_doomed(self, slot: Slot) -> bool:
        """Whether the plan is about to stop it."""
        return self._plan is not None and slot.id in self._plan.stops

    # Starts

    def start(self, slot: Slot, cause: Cause) -> None:
        """Start a new incarnation of a child that is down."""
        slot.move(STARTING, starting=STARTS[cause])
        slot.incarnation += 1
        slot.since = self._now
        if cause is Cause.RESTART:
            slot.restarts += 1
        self.number(slot)
        spec, out = slot.spec, self._out
        out.append(Start(slot.ref, spec, slot.incarnation, slot.last_exit, slot.handover))
        if spec.start_timeout is not None:
            out.append(Arm(slot.ref, self._now + spec.start_timeout))

    def number(self, slot: Slot) -> None:
        """Give the slot a number that no slot had before."""
        self._last_ref = slot.ref = self._last_ref + 1
        self._live[slot.ref] = slot

    def came_up(self, slot: Slot, message: ChildStarted) -> None:
        """Note that the child is up, set the timer of its heartbeat, and answer."""
        starting = slot.starting
        assert starting is not None, "it is STARTING"
        slot.move(RUNNING)
        slot.since, slot.thread = self._now, message.thread
        if slot.heartbeat is not None:
            self._out.append(Arm(slot.ref, self._now + slot.heartbeat))
        elif slot.spec.start_timeout is not None:
            self._out.append(Disarm(slot.ref))
        self.tell(reports.Progress, slot, cause=starting.cause)
        if slot.starters:
            self.answer_start(slot)
        if self._plan is not None or slot.parked:
            self.settled(slot)

    def settled(self, slot: Slot) -> None:
        """The child has come to rest: the plan need not wait for it any more."""
        if self._plan is not None:
            self._plan.awaiting.discard(slot.id)
        if slot.parked:
            self._waiting.extend(slot.parked)
            slot.parked.clear()

    # Waits for a restart

    def wait(self, slot: Slot, reason: ExitReason, seconds: float | None) -> None:
        """Leave the child RESTARTING for *seconds*; None: until all mail has been read."""
        due = None if seconds is None else self._now + seconds
        slot.move(RESTARTING, waiting=Waiting(reason, due))
        self.number(slot)
        self._out.append(Again(slot.ref) if due is None else Arm(slot.ref, due))

    def call_off(self, slot: Slot) -> None:
        """Cancel the restart that the child waits for, if it waits for one."""
        if slot.state is RESTARTING:
            if slot.due is not None:
                self._out.append(Disarm(slot.ref))
            del self._live[slot.ref]
            slot.move(UNDEFINED)

    def write_off(self, slot: Slot) -> None:
        """Stop waiting for the end of a child that could not be stopped."""
        if slot.state is UNSTOPPED:
            del self._live[slot.ref]
            slot.move(UNDEFINED)

    # Answers

    def answer(self, call: Call, value: object) -> None:
        self._settle(call, Answer(call.reply, value))

    def refuse(self, call: Call, error: Exception) -> None:
        self._settle(call, Refuse(call.reply, error))

    def _settle(self, call: Call, action: Answer | Refuse) -> None:
        if call.reply is not None:
            self._out.append(action)
        if call.inside is not None and call in (calls := self._callers.get(call.inside, [])):
            calls.remove(call)
            if not calls:
                del self._callers[call.inside]

    def answer_start(self, slot: Slot) -> None:
        """Answer the calls that asked for the start."""
        starters, slot.starters = slot.starters, ()
        for call in starters:
            self.answer(call, self.info(slot))

    def refuse_start(self, slot: Slot, reason: ExitReason) -> None:
        """Refuse the calls that asked for the start, and no others."""
        starters, slot.starters = slot.starters, ()
        for call in starters:
            self.refuse(call, reports.start_error(slot.path, reason))

    def refuse_calls_from(self, slot: Slot) -> None:
        """Release the child from its own waiting calls: it could not stop in one."""
        for call in list(self._callers.get(slot.id, ())):
            self._withdraw(call)
            self.refuse(call, WouldDeadlock(slot.path))

    def _withdraw(self, call: Any) -> None:
        """Withdraw a call that waits. A start that it caused goes on without a caller."""
        slot = self.slots.get(call.id)
        places: list[Any] = [self._waiting]
        if slot is not None:
            places += [slot.parked, slot.stopping.leavers if slot.stopping is not None else []]
        for calls in places:
            if call in calls:
                calls.remove(call)
        if slot is not None and call in slot.starters:
            without_caller: StartChild | RestartChild = attrs.evolve(call, reply=None, inside=None)
            slot.starters = tuple(without_caller if one is call else one for one in slot.starters)

    def refuse_all_calls(self) -> None:
        """Refuse the calls that wait for the plan, or for the stop of a child."""
        parked = [call for slot in self.slots.values() for call in slot.parked]
        for call in (*self._waiting, *parked):
            self.refuse(call, NotAlive(self.path))
        self._waiting.clear()
        for slot in self.slots.values():
            slot.parked.clear()

    def unanswered(self) -> list[Any]:
        """Return the replies that callers still wait for."""
        calls: list[Call] = list(self._waiting)
        for slot in self.slots.values():
            calls += (*slot.parked, *slot.starters)
            if slot.stopping is not None:
                calls += slot.stopping.leavers
        return [call.reply for call in calls if call.reply is not None]

    # Reports, and answers to questions

    def tell(self, kind: Callable[..., reports.Report], slot: Slot, **more: object) -> None:
        """Report something of the child."""
        self._out.append(
            Tell(kind(path=slot.path, incarnation=slot.incarnation, thread=slot.thread, **more))
        )

    def report(self, kind: Callable[..., reports.R], slot: Slot, **more: object) -> reports.R:
        return kind(path=slot.path, incarnation=slot.incarnation, thread=slot.thread, **more)

    def infos(self, beats: Mapping[int, float] = NO_BEATS) -> tuple[ChildInfo, ...]:
        """Describe all children. *beats*: when they checked in, by number."""
        return tuple(self.info(slot, beats) for slot in self.slots.values())

    def info(self, slot: Slot, beats: Mapping[int, float] = NO_BEATS) -> ChildInfo:
        """Describe one child."""
        is_up, beat, due = slot.state is RUNNING, beats.get(slot.ref), slot.due
        if slot.state is RESTARTING:
            due = 0.0 if due is None else max(0.0, due - self._now)
        return ChildInfo(
            id=slot.id,
            path=slot.path,
            type=slot.spec.type,
            state=SHOWN[slot.state],
            incarnation=slot.incarnation,
            restarts=slot.restarts,
            age=self._now - slot.since if is_up else None,
            last_exit=slot.last_exit,
            due=due,
            heartbeat_age=self._now - beat if is_up and beat is not None else None,
        )

    def counts(self) -> Counts:
        """Count the children (OTP: count_children)."""
        types = [slot.spec.type for slot in self.slots.values()]
        return Counts(
            specs=len(types),
            active=sum(slot.state in ACTIVE for slot in self.slots.values()),
            supervisors=types.count(ChildType.SUPERVISOR),
            workers=types.count(ChildType.WORKER),
        )

    def snapshot(self, beats: Mapping[int, float]) -> Snapshot:
        """Describe the supervisor and its children."""
        spec = self.spec
        return Snapshot(
            path=self.path,
            strategy=spec.strategy,
            auto_shutdown=spec.auto_shutdown,
            intensity=spec.intensity,
            period=spec.period,
            budget_left=self.window.left(self._now),
            children=self.infos(beats),
        )
