"""How a supervisor ends: it gives up, a significant child ended, or it is asked to.

Laws:
1. Ending overtakes all: once ``phase`` is ENDING no child is started any more, none is
   restarted, and no spec is dropped.
2. A supervisor ends once. What comes later can only shorten its stop.

Words: *release* a child that is down: refuse its start, and drop its spec if that goes
with it; *overtake* a child: a plan decides about it from now on; *absorb* a death: it
counts as the stop that was to come.
"""

from __future__ import annotations

import random

import attrs

from otpy import reports
from otpy.core.messages import Escalate, Tell, TooManyUnstopped
from otpy.core.plan import Plan
from otpy.core.restarts import is_acceptable
from otpy.core.roster import Roster
from otpy.core.slots import (
    ENDED,
    GROUP,
    RESTARTING,
    RUNNING,
    UNDEFINED,
    UP_OR_COMING,
    Slot,
)
from otpy.core.strategy import restart_group
from otpy.reports import Escalation, ExitKind, ExitReason
from otpy.specs import AutoShutdown, Budget, SupervisorSpec
from otpy.values import Word, running

ASKED_TO_STOP = ExitReason(ExitKind.SHUTDOWN)
DETACHED = ExitReason(ExitKind.SHUTDOWN, detail="detached")


class Phase(Word):
    """The life of a supervisor."""

    BOOTING = "booting"
    UP = "up"
    ENDING = "ending"
    FINISHED = "finished"


# by their bare names: to look a member up in its class is slow (CPython 3.11)
BOOTING, UP, ENDING, FINISHED = Phase

OVER = frozenset({ENDING, FINISHED})

STAYS = frozenset({RUNNING, ENDED, RESTARTING})
"""The states in which a significant child keeps its supervisor up."""


@running
class Ending:
    """What is known while the supervisor ends.

    Attributes:
        outcome: Why it ends.
        since: The monotonic time at which that began.
        detaches: Whether its workers are let go.
        deadline: By when all must be over.
        budget, limited_since: How many seconds remain for the polite part, and since
            when.
        is_hurried: Whether that is over: from now on children are interrupted at once.
        ended: The children that have ended, and whether each was interrupted.
    """

    outcome: ExitReason
    since: float
    detaches: bool = False
    deadline: float = float("inf")
    budget: float = 0.0
    limited_since: float = 0.0
    is_hurried: bool = False
    ended: list[tuple[str, bool]] = attrs.field(factory=list)


class Endings(Roster):
    """A roster that knows when its supervisor has to end.

    Attributes:
        phase: Where the supervisor is in its life.
        ending: What is known from the moment on in which it began to end; else None.
    """

    def __init__(
        self, spec: SupervisorSpec, path: str, rng: random.Random | None, *, heartbeats: bool
    ) -> None:
        super().__init__(spec, path, rng, heartbeats=heartbeats)
        self.phase = BOOTING
        self.ending: Ending | None = None
        self._early: list[tuple[Slot, ExitReason]] = []
        self._open_end: reports.AutoShutdownBegun | None = None

    def overtake(self, slot: Slot) -> None:
        """Leave the child to a plan: it does not restart by itself any more."""
        self.call_off(slot)
        if slot.stopping is not None:
            slot.stopping.why = GROUP
        elif slot.held is not None:
            slot.held.why, slot.held.is_wanted = GROUP, False

    def group(self, slot: Slot) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return restart_group(self.spec.strategy, self.slots, slot.id)

    def check_end(self, slot: Slot, reason: ExitReason) -> None:
        """Report a child that was told to stop and ended otherwise than it should."""
        is_brutal = slot.spec.shutdown is Budget.BRUTAL_KILL
        if not is_acceptable(slot.spec.restart, is_brutal, reason):
            self.tell(reports.ShutdownError, slot, reason=reason)

    def account(self, slot: Slot) -> None:
        """While the supervisor ends, note that the child has ended, and how."""
        if self.phase is ENDING and self.ending is not None:
            was_interrupted = slot.stopping is not None and slot.stopping.was_interrupted
            self.ending.ended.append((slot.id, was_interrupted))

    def release(self, slot: Slot, reason: ExitReason = ASKED_TO_STOP) -> None:
        """Refuse the start of a child that is down, and drop its spec if it goes with it.

        The one place where specs are dropped: of temporary children, of dynamic ones,
        and of new ones whose start is refused. While the supervisor ends, none is.
        """
        goes = self.phase is not ENDING and (
            self.spec.dynamic or self.is_temporary(slot) or slot.is_new
        )
        if slot.starters:
            self.refuse_start(slot, reason)
        if goes:
            self.slots.pop(slot.id, None)

    def absorb(self, slot: Slot, reason: ExitReason) -> None:
        """Take a death as the stop that was to come (otp.md, "Deaths during stops")."""
        self.check_end(slot, reason)
        self.account(slot)
        slot.move(UNDEFINED)
        self.release(slot, reason)

    def give_up(self, child: str, incarnation: int, reason: ExitReason) -> None:
        """Report that a child failed once too often, and end (otp.md, "Limit breach")."""
        escalation = Escalation(
            path=self.path,
            child=child,
            reason=reason,
            restarts=self.window.count(self._now),
            intensity=self.spec.intensity,
            period=self.spec.period,
            parent=self.path.rpartition("/")[0] or None,
        )
        limit = reports.LimitReached(path=self.path, reason=reason, escalation=escalation)
        self._out += (Tell(limit), Escalate(escalation))
        self.end(ExitReason(ExitKind.LIMIT_REACHED, reason.raised, escalation))

    def _on_too_many_unstopped(self, message: TooManyUnstopped) -> None:
        if self.phase not in OVER:
            detail = f"{message.count} threads of the tree could not be stopped"
            self.give_up(message.path, 0, ExitReason(ExitKind.KILLED, detail=detail))

    def judge_open_end(self) -> None:
        """End with the significant child that has ended, or go on, or leave it open.

        It is open while nothing is left of the significant children but starts. OTP is
        blocked by these, and reads of the end when they are over
        (docs/explanation/otp.md, "Significant children").
        """
        if self._open_end is None:
            return
        significant = [slot for slot in self.slots.values() if slot.spec.significant]
        left = [slot for slot in significant if self._is_up_or_coming(slot)]
        if not left or self.spec.auto_shutdown is AutoShutdown.ANY_SIGNIFICANT:
            self._out.append(Tell(self._open_end))
            self.end(ExitReason(ExitKind.SHUTDOWN, detail="auto_shutdown"))
        elif any(one.state in STAYS and not self.is_doomed(one) for one in left):
            self._open_end = None

    def _is_up_or_coming(self, slot: Slot) -> bool:
        """Whether a child runs, or will be started again."""
        if (slot.state in UP_OR_COMING or slot.state is ENDED) and not self.is_doomed(slot):
            return True
        on_its_way = slot.stopping or slot.held
        if on_its_way is not None and on_its_way.has_failed:
            return True  # what comes of that is decided when it has ended
        return self.is_coming(slot)

    def is_coming(self, slot: Slot) -> bool:
        """Whether the current plan, or a restart that waits, will start the child."""
        if self.is_temporary(slot) and not slot.starters:
            return False
        if self._plan is not None and slot.id in self._plan.starts:
            return True
        return any(slot.id in self.group(one)[1] for one in self.slots.values() if one.holds_up)

    def end(self, outcome: ExitReason, *, detaches: bool = False) -> None:
        """Stop all children in reverse start order, dynamic ones at once; then End."""
        if self.phase in OVER:
            return
        self.phase, self.ending, self._open_end = ENDING, Ending(outcome, self._now, detaches), None
        width = float("inf") if self.spec.dynamic else 1
        self._plan = Plan.of(reversed(self.slots), (), width=width)
        for slot in self.slots.values():
            self.overtake(slot)
            self.write_off(slot)
        for slot, reason in self._early:
            self.absorb(slot, reason)
        self._early.clear()
        for slot in self.slots.values():
            if slot.state is UNDEFINED:
                self.refuse_start(slot, ASKED_TO_STOP)
        self.refuse_all_calls()
