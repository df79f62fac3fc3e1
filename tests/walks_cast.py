"""The cast of the walks (walks.py): actors in place of children, and what is written down of supervisors."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from otpy import exceptions, reports
from otpy.abc import Birth, Deliver
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ExitKind, ExitReason
from otpy.runtime.supervisor import SupervisorThread
from otpy.specs import (
    Budget,
)
from tests.oracle import Oracle

if TYPE_CHECKING:
    from tests.walks import World

PAUSE = 20.0
"""How long the whole program is suspended, now and then: longer than any child may be
silent, or has to stop.
"""

MOST_LINES = 5_000
"""After so many lines of its story nobody checks in any more, so that a life with heartbeats comes to its end."""


class Broken(AssertionError):
    """An invariant does not hold."""


@attrs.define(eq=False)
class Actor:
    """A child whose behaviour is drawn when it is born. Meets ``Child``."""

    world: World
    birth: Birth
    is_up: bool = False
    ended: bool = False
    fenced: bool = False
    asked: bool = False
    asked_at: float = math.inf
    killed_at: float = math.inf
    beat: float = 0.0
    silent_until: float = 0.0
    saved: object = None
    detached: bool = False
    slot: Any = None
    reason: ExitReason | None = None
    deliver: Deliver = attrs.field(init=False)

    @property
    def path(self) -> str:
        return self.birth.path

    @property
    def alive(self) -> bool:
        return not self.ended

    def start(self, deliver: Deliver) -> None:
        self.deliver, self.saved = deliver, self.birth.handover.state
        self.world.note_birth(self)
        if not self.birth.spec.ready and not self.world.chance(0.03):
            self._is_up()  # as a thread child: up as soon as its thread is
            self._plan_life()
        elif self.birth.incarnation == 1 and self.world.chance(0.9):
            self._come_up_soon()
        else:
            self.world.pick(self._come_up_soon, self._fail_soon, self._come_up_soon, self._hang)()

    def stop(self) -> None:
        if not self.asked:
            self.asked, self.asked_at = True, self.world.now
            self.world.note_stop(self)
            self.world.pick(self._obey, self._obey, self._obey_oddly, self._ignore)()

    def kill(self, grace: float) -> bool:
        self.world.note_kill(self)
        self.killed_at = self.world.now
        self.world.pick(self._obey_kill, self._obey_kill, self._wake_an_hour_later)()
        return True

    def abandon(self) -> None:
        self.world.check(
            not self.ended or self.world.is_news_in_flight(self),
            f"{self.path} was abandoned after its end",
        )
        self.fenced = True
        self.world.note_end(self)

    def detach(self) -> None:
        self.detached = True
        self.world.note_detach(self)

    def pulse(self) -> tuple[float, float]:
        return self.beat, self.silent_until

    @property
    def state(self) -> object:
        return self.saved

    def stack(self) -> str:
        return "" if self.ended else "somewhere"

    def _is_up(self) -> None:
        if not self.ended:
            self.is_up = True
            self._check_in(0.0)
            self.deliver(ChildStarted(self.birth.ref, self.path))

    def _come_up_soon(self) -> None:
        self.world.after(self.world.delay(), self._is_up)
        self._plan_life()

    def _plan_life(self) -> None:
        if self.world.chance(0.5):
            self.world.after(self.world.delay() * 4, lambda: self.end(self.world.any_reason()))

    def _check_in(self, allow: float) -> None:
        """Check in now and again, and save what has been done, until the dice say silence; a stray does it as well."""
        heartbeat = self.birth.spec.heartbeat
        if self.ended or heartbeat is None:
            return
        self.beat, self.silent_until = self.world.now, self.world.now + max(allow, heartbeat)
        self.saved = (self.birth.incarnation, self.world.now)
        if self.world.chance(0.8) and len(self.world.story) < MOST_LINES:
            allow = self.world.pick(0.0, 0.0, 3 * heartbeat)
            self.world.after(
                self.world.pick(0.5, 0.9, 0.9) * max(allow, heartbeat),
                lambda: self._check_in(allow),
            )

    def _fail_soon(self) -> None:
        delay = self.world.pick(0.0, 0.0, self.world.delay())
        self.world.after(
            delay, lambda: self.end(self.world.pick(CRASHED, CRASHED, IGNORE, RETURNED))
        )

    def _hang(self) -> None:
        if self.birth.spec.start_timeout is None:
            self.world.after(50.0, lambda: self.end(CRASHED))

    def _obey(self) -> None:
        self.world.after(self.world.delay(), lambda: self.end(STOPPED))

    def _obey_oddly(self) -> None:
        self.world.after(self.world.delay(), lambda: self.end(self.world.any_reason()))

    def _ignore(self) -> None:
        if self.birth.spec.shutdown is Budget.INFINITY:
            self.world.after(30.0, lambda: self.end(STOPPED))

    def _obey_kill(self) -> None:
        self.world.after(self.world.pick(0.0, 0.1, 0.6), lambda: self.end(INTERRUPTED))

    def _wake_an_hour_later(self) -> None:
        self.world.after(3600.0, lambda: self.end(self.world.any_reason()))

    def end(self, reason: ExitReason) -> None:
        if not self.ended:
            self.ended, self.reason = (
                True,
                attrs.evolve(reason),
            )  # one of its own: that tells whose end a report is
            self.world.note_end(self)
            self.deliver(ChildExited(self.birth.ref, self.reason))


CRASHED = ExitReason(ExitKind.CRASHED, ValueError("crash"))
FATAL = ExitReason(ExitKind.CRASHED, exceptions.Fatal("fatal"))
RETURNED = ExitReason(ExitKind.NORMAL)
IGNORE = ExitReason(ExitKind.NORMAL, exceptions.Ignore())
STOPPED = ExitReason(ExitKind.SHUTDOWN)
STOPPED_FOR = ExitReason(ExitKind.SHUTDOWN, exceptions.Shutdown("why not"))
INTERRUPTED = ExitReason(ExitKind.KILLED, exceptions.Killed())

REASONS = [CRASHED] * 12 + [RETURNED] * 6 + [STOPPED, STOPPED_FOR, INTERRUPTED, IGNORE, FATAL]


class NoTelemetry:
    """Takes reports and escalations for the world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def tell(self, report: reports.Report) -> None:
        self.world.note_report(report)

    tell_late = tell

    def escalate(self, own: object, escalation: reports.Escalation) -> None:
        self.world.escalations.append(escalation)

    def close(self) -> None:
        """Nothing to close."""


@attrs.define(eq=False)
class Chronicle:
    """What happened to one life of one supervisor, as seen from outside."""

    core: SupervisorThread
    restarts: list[float] = attrs.field(factory=list)
    terminated: list[float] = attrs.field(factory=list)
    failed: list[float] = attrs.field(factory=list)
    told: Counter[Actor | None] = attrs.field(factory=Counter)
    given_up: set[Actor | None] = attrs.field(factory=set)
    deaths: list[Actor] = attrs.field(factory=list)
    called: set[Actor] = attrs.field(factory=set)
    excused: set[str] = attrs.field(factory=set)
    has_given_up: bool = False
    slack: float = 0.0
    oracle: Oracle | None = None
    dismissed: dict[str, int] = attrs.field(factory=dict)
