"""Seeded random lives of whole trees, in one thread on virtual time.

The supervisors are the real ones: machine, timers, mailbox and the loop that obeys. Only three things are replaced:
their threads (the world turns them, in random order), the clock (it jumps to the next thing that happens) and the
children (actors that start, fail, fall silent, save, ignore stops and wake up late, as the dice fall).

While a life goes on, the world checks the invariants below; ``live(seed)`` raises Broken with the story so far.
``python -m tests.walks COUNT [FIRST]`` walks through many seeds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import attrs

from otpy import exceptions, reports
from otpy.abc import Birth, Deliver
from otpy.core import messages
from otpy.core.endings import ASKED_TO_STOP, OVER, Phase
from otpy.core.lives import INTERRUPT_GRACE
from otpy.core.messages import ChildExited, ChildStarted, StopSupervisor
from otpy.core.slots import (
    ACTIVE,
    NUMBERED,
    RESTARTING,
    RUNNING,
    STARTING,
    STOPPING,
    UNDEFINED,
    UNSTOPPED,
)
from otpy.core.strategy import restart_group
from otpy.reports import ExitKind, ExitReason
from otpy.runtime.supervisor import NestedSupervisor, SupervisorThread
from otpy.runtime.tree import Tree
from otpy.runtime.waiting import Reply
from otpy.specs import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    ChildType,
    Restart,
    Strategy,
    SupervisorSpec,
)
from tests.oracle import Oracle, comes

MOST_TURNS = 20_000
"""A life that takes more turns than this goes in a circle."""

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


class World:
    """One tree, its actors, its time, and what everybody may be sure of."""

    def __init__(self, seed: int, *, is_dense: bool | None = None) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.story: list[str] = []
        self.escalations: list[reports.Escalation] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._ids = itertools.count()
        self._replies: list[Reply] = []
        self._starts: list[tuple[int, Chronicle, Any]] = []
        self._on_stage: dict[str, Actor] = {}
        self._cast: dict[tuple[str, int], Actor] = {}
        self._supervisors: dict[str, Chronicle] = {}
        self._turning: SupervisorThread | None = None
        self._left: dict[object, object] = {}
        self._failed: dict[object, float] = {}
        self._detached: list[Actor] = []
        self._broken: Broken | None = None
        self._pauses: list[float] = []
        self.has_health = self.chance(0.5)
        self.is_dense = (
            self.chance(0.4) if is_dense is None else is_dense
        )  # few children, and much happens while something else is going on
        self.has_significant = self.chance(0.4)
        spec = self._any_supervisor("root", depth=0 if self.is_dense else self.random.randint(0, 2))
        self.tree = Tree(spec.id, self, max_unstopped=self.pick(0, 2, 100), seed=seed)
        self.tree.telemetry = NoTelemetry(self)  # type: ignore[assignment]
        self.tree.launch = self._launch
        self.root = SupervisorThread(spec, "root", self.tree)

    # Dice

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def delay(self) -> float:
        return (
            self.pick(0.0, 0.01, 0.3, 1.0)
            if self.is_dense
            else self.pick(0.0, 0.0, 0.01, 0.3, 1.0, 4.0)
        )

    def any_reason(self) -> ExitReason:
        return self.random.choice(REASONS)

    def _any_supervisor(self, id: str, depth: int) -> SupervisorSpec:
        auto = self.pick(AutoShutdown.NEVER, AutoShutdown.NEVER, *AutoShutdown)
        if self.has_significant and self.chance(0.8):
            auto = self.pick(
                AutoShutdown.ALL_SIGNIFICANT,
                AutoShutdown.ALL_SIGNIFICANT,
                AutoShutdown.ANY_SIGNIFICANT,
            )
        dynamic = self.chance(0.2)
        children = (
            []
            if dynamic
            else [self._any_child(f"c{n}", depth, auto) for n in range(self._any_size())]
        )
        return SupervisorSpec(
            id=id,
            start=NestedSupervisor,
            children=children,
            dynamic=dynamic,
            max_children=self.pick(None, 2) if dynamic else None,
            strategy=Strategy.ONE_FOR_ONE if dynamic else self._any_strategy(),
            intensity=self.pick(0, 1, 3, 10, 30) if not self.is_dense else 30,
            period=self.pick(0.5, 5.0, 100.0),
            auto_shutdown=AutoShutdown.NEVER if dynamic else auto,
            restart=self.pick(Restart.PERMANENT, Restart.PERMANENT, *Restart),
            shutdown=self.pick(Budget.INFINITY, Budget.INFINITY, 1.0, Budget.BRUTAL_KILL),
        )

    def _any_size(self) -> int:
        return self.random.randint(2, 3) if self.is_dense else self.random.randint(0, 4)

    def _any_strategy(self) -> Strategy:
        if self.is_dense and self.has_significant and self.chance(0.5):
            return (
                Strategy.REST_FOR_ONE
            )  # only there may a significant child leave while another one is stopped
        return self.pick(*Strategy)

    def _any_child(self, id: str, depth: int, auto: AutoShutdown) -> ChildSpec:
        if depth and self.chance(0.4):
            return self._any_supervisor(id, depth - 1)
        restart = self.pick(Restart.PERMANENT, Restart.PERMANENT, *Restart)
        if self.has_significant and self.chance(0.7):
            restart = self.pick(Restart.TRANSIENT, Restart.TEMPORARY)
        may_be_significant = auto is not AutoShutdown.NEVER and restart is not Restart.PERMANENT
        return ChildSpec(
            id=id,
            start=lambda birth: Actor(self, birth),
            restart=restart,
            shutdown=self.pick(0.0, 1.0, 5.0, Budget.INFINITY, Budget.BRUTAL_KILL),
            significant=may_be_significant and self.chance(0.8 if self.has_significant else 0.5),
            ready=self.chance(0.5),
            start_timeout=self.pick(None, 0.5),
            interrupt=self.chance(0.8),
            unstopped=self.pick("replace", "replace", "hold", "escalate"),
            heartbeat=self.pick(None, None, 0.7, 2.0) if self.has_health else None,
            backoff=self._any_backoff() if self.has_health else None,
        )

    def _any_backoff(self) -> Backoff | None:
        calm = self.pick(0.0, 3.0, 60.0)
        return self.pick(
            None, None, None, Backoff(0.2, 1.0, reset_after=calm), Backoff(2.0, 6.0, jitter=1.0)
        )

    # The clock, and what happens when

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    # The life

    def live(self) -> None:
        self.root.begin()
        for _ in range(self.random.randint(1, 300)):
            if not self.root.alive:
                break
            if not self._one_step():
                self._stir()
        self._post(self.root, StopSupervisor())
        self._run_out(until=self.now + self.pick(0.0, 1.0, 100.0))
        within = self.pick(0.0, 0.3, 2.0)
        self._post(self.root, StopSupervisor(within))
        ordered = self.now
        self._run_out(until=ordered + (within or INTERRUPT_GRACE))
        self.check(not self.root.alive, f"{within} s after {ordered:.3f} the root has not ended")
        self._run_out(until=math.inf)
        self._check_the_end()

    def _stir(self) -> None:
        """All is quiet: let a child die, or a caller call."""
        if self._on_stage and self.chance(0.7):
            self._one_dies()
            self.now += self.pick(0.0, 0.0, 0.1, 2.0, 5.0)
        else:
            self._meddle()

    def _pause(self) -> None:
        """Suspend the program: what should have happened meanwhile comes after it, in
        any order.
        """
        if self._pauses and self.now < self._pauses[-1] + PAUSE:
            return  # a second one so soon excuses nobody, if the first one has been noticed, which is not known here
        self.now += PAUSE
        self._pauses.append(self.now)
        self.say("pause")

    def _from(self, began: float) -> float:
        """Return from when on a limit counts that has begun then: the end of the first
        pause after that, if any.
        """
        return next((end for end in self._pauses if end > began), began)

    def _overlap(self) -> None:
        """Let several things come in a row that concern the children of one supervisor."""
        core = self.random.choice([one.core for one in self._supervisors.values()])
        for _ in range(self.pick(1, 2, 2, 3)):
            actors = [
                actor
                for path, actor in self._on_stage.items()
                if path.rpartition("/")[0] == core.path
            ]
            important = [actor for actor in actors if actor.birth.spec.significant]
            match self.pick("leaves", "crashes", "dies", "call", "call"):
                case "leaves" if important:
                    self.random.choice(important).end(RETURNED)
                case "crashes" if actors:
                    self.random.choice(
                        [actor for actor in actors if actor not in important] or actors
                    ).end(CRASHED)
                case "dies" if actors:
                    self.random.choice(actors).end(self.any_reason())
                case _ if core.alive:
                    self._call(core)

    def _one_dies(self) -> None:
        if self._on_stage:
            self._on_stage[self.random.choice(sorted(self._on_stage))].end(self.any_reason())

    def _run_out(self, until: float) -> None:
        """Let everything happen that will, up to a time."""
        for turn in itertools.count():
            self.check(turn < MOST_TURNS, "it goes in a circle")
            if not self._one_step(meddling=0.0, until=until):
                return

    def _one_step(self, meddling: float = 0.05, until: float = math.inf) -> bool:
        if self.chance(meddling):
            self._meddle()
        if self.is_dense and meddling and self.chance(0.25):
            self._overlap()
        if meddling and self.chance(0.005):
            self._pause()
        ready = [one.core for one in self._supervisors.values() if self._has_work(one.core)]
        if ready and self.chance(0.9):
            self._turn(self.random.choice(ready))
        elif self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        elif not ready:
            return self._jump(until)
        return True

    def _jump(self, until: float) -> bool:
        """Move the time to the next thing that happens; False: nothing will, up to then."""
        times = [self._events[0][0]] if self._events else []
        times += [
            at
            for one in self._supervisors.values()
            if one.core.alive and (at := one.core.timers.next()) is not None
        ]
        if not times or min(times) > until + 1e-9:
            return False
        self.now = max(self.now, min(times))
        return True

    def _has_work(self, core: SupervisorThread) -> bool:
        at = core.timers.next()
        return core.alive and bool(
            core._agenda.news or not core.mailbox.empty() or (at is not None and at <= self.now)
        )

    def _turn(self, core: SupervisorThread) -> None:
        core._agenda.ident = (
            threading.get_ident()
        )  # so that news from inside the turn is local, as on the real thread
        self._turning = core
        try:
            core.turn()
        finally:
            core._agenda.ident = self._turning = None
        self.check(True, "")
        if core.alive:
            self._check_consistency(core)
        else:
            self._check_empty(core)

    def _launch(self, main: Callable[[], None], path: str, if_lost: Callable[[], None]) -> None:
        core = self.tree.directory[path]
        before = self._supervisors.get(path)
        self.check(before is None or not before.core.alive, f"{path} runs twice")
        if before is not None:
            self._check_deaths(before)
        self._supervisors[path] = Chronicle(core, oracle=Oracle(self.check))
        self._overhear(self._supervisors[path])
        self.say(f"launch {path}")

    def _overhear(self, chronicle: Chronicle) -> None:
        """Have the oracle look at all that the machine is told and answers."""
        machine, oracle = chronicle.core.machine, chronicle.oracle
        receive = machine.receive

        def receive_and_look(message: object, now: float) -> list[messages.Action]:
            assert oracle is not None
            oracle.before(machine, message)
            actions = receive(message, now)
            oracle.after(machine, actions)
            return actions

        machine.receive = receive_and_look  # type: ignore[method-assign]

    # What callers do

    def _meddle(self) -> None:
        core = self.random.choice(
            [one.core for one in self._supervisors.values() if one.core.alive or self.chance(0.1)]
            or [self.root]
        )
        if self.chance(0.05):
            self._post(
                core,
                self.pick(
                    "garbage",
                    None,
                    42,
                    object(),
                    ChildExited(10**6, CRASHED),
                    messages.Retry(10**6),
                ),
            )
        elif self.chance(0.03) and core is not self.root:
            self._post(core, StopSupervisor(self.pick(None, 0.0, 1.0)))
        elif self.chance(0.01):
            self._post(core, StopSupervisor(detach=True))
        elif self.chance(0.03):
            self._set_two_against_each_other(core)
        else:
            self._call(core)

    def _set_two_against_each_other(self, core: SupervisorThread) -> None:
        running = [slot.id for slot in core.machine.slots.values() if slot.state is RUNNING]
        if len(running) > 1:
            one, other = self.random.sample(running, 2)
            for id, by in ((one, other), (other, one)):
                self._replies.append(reply := Reply())
                self._supervisors[core.path].excused.add(id)
                self._supervisors[core.path].dismissed[id] = len(self._replies)
                self._post(core, messages.TerminateChild(reply=reply, id=id, inside=by))

    def _call(self, core: SupervisorThread) -> None:
        ids = [*core.machine.slots]
        if len(ids) < 4 or not self.is_dense:
            ids.append(f"n{next(self._ids)}")
        busy = [slot.id for slot in core.machine.slots.values() if slot.state is STOPPING]
        id, reply = (
            self.random.choice(busy if busy and self.is_dense and self.chance(0.5) else ids),
            Reply(),
        )
        auto = core.machine.spec.auto_shutdown
        spec = self._any_child(id, 0, auto)
        calls: tuple[messages.Call, ...] = (
            messages.StartChild(reply=reply, inside=self._any_inside(core), spec=spec),
            messages.StartChild(reply=reply, spec=spec),
            messages.TerminateChild(
                reply=reply, inside=self._any_inside(core), id=id, detach=self.chance(0.1)
            ),
            messages.RestartChild(reply=reply, inside=self._any_inside(core), id=id),
            messages.RestartChild(reply=reply, id=id),
            messages.DeleteChild(reply=reply, id=id),
            messages.GetChildSpec(reply=reply, id=id),
            messages.WhichChildren(reply=reply),
            messages.CountChildren(reply=reply),
            messages.TakeSnapshot(reply=reply),
        )
        call = self.random.choice(calls[:6] if id in busy else calls)  # those wait for its end
        chronicle = self._supervisors[core.path]
        if isinstance(call, messages.TerminateChild | messages.RestartChild | messages.StartChild):
            chronicle.excused.add(id)
        if isinstance(call, messages.RestartChild | messages.StartChild):
            self._starts.append((len(self._replies), chronicle, call))
        if isinstance(call, messages.TerminateChild | messages.DeleteChild):
            chronicle.dismissed[id] = len(self._replies)
        self._replies.append(reply)
        self._post(core, call)

    def _any_inside(self, core: SupervisorThread) -> str | None:
        running = [slot.id for slot in core.machine.slots.values() if slot.state is RUNNING]
        return self.random.choice(running) if running and self.chance(0.3) else None

    def _post(self, core: SupervisorThread, message: object) -> None:
        self.say(f"post {core.path} {message!r:.100}")
        core.mailbox.put(message)

    # What the world notes

    def say(self, line: str) -> None:
        self.story.append(f"{self.now:9.3f} {line}")

    def check(self, holds: bool, what: str) -> None:
        if not holds and self._broken is None:
            self._broken = Broken(what + "\n" + "\n".join(self.story[-60:]))
        if self._broken is not None:
            raise self._broken  # again and again: a supervisor takes what its children raise

    def _of(self, path: str) -> Chronicle:
        return self._supervisors[path.rpartition("/")[0]]

    def note_birth(self, actor: Actor) -> None:
        self.say(f"birth {actor.path} {actor.birth.incarnation}")
        chronicle = self._of(actor.path)
        self.check(actor.path not in self._on_stage, f"{actor.path} has two incarnations")
        self._cast[actor.path, actor.birth.incarnation] = (
            actor  # an id that is used again counts from 1 again
        )
        self._on_stage[actor.path] = actor
        machine = chronicle.core.machine
        slot = actor.slot = machine.slots[actor.birth.spec.id]
        is_over = machine.phase in OVER and not self._is_about_to_end(chronicle.core)
        self.check(not is_over, f"{actor.path} started while ending")
        left = self._left.get(slot)
        self.check(actor.saved == left, f"{actor.path} got {actor.saved}, and was left {left}")
        if slot.spec.backoff is not None:
            chronicle.slack = max(chronicle.slack, slot.spec.backoff.maximum)
            self._check_wait(chronicle, slot)
        self._note_start(chronicle, actor)

    def _is_about_to_end(self, core: SupervisorThread) -> bool:
        """Whether the decision to end is younger than the order that is being obeyed: it is told further on."""
        told = [order.report for order in core._orders if isinstance(order, messages.Tell)]
        return any(
            isinstance(report, reports.LimitReached | reports.AutoShutdownBegun) for report in told
        )

    def _note_start(self, chronicle: Chronicle, actor: Actor) -> None:
        slot = chronicle.core.machine.slots[actor.birth.spec.id]
        if slot.starting is None:
            return  # a stop was decided in the same turn
        cause = slot.starting.cause
        if cause is reports.Cause.CALL:
            chronicle.called.add(actor)
            return
        machine = chronicle.core.machine
        resurrected = cause is reports.Cause.RESTART and slot.spec.restart is Restart.TEMPORARY
        self.check(not resurrected, f"{actor.path} is temporary and was restarted")
        if machine.spec.strategy is Strategy.ONE_FOR_ONE:
            if cause is reports.Cause.RESTART:
                chronicle.restarts.append(self.now)
                self._check_window(chronicle, chronicle.restarts)
        elif cause is reports.Cause.RESTART:
            later = list(machine.slots)[list(machine.slots).index(slot.id) + 1 :]
            self.check(
                not any(self._is_on_stage(f"{machine.path}/{id}") for id in later),
                f"{actor.path} before a later one",
            )
        if cause is reports.Cause.INIT:
            later = list(machine.slots)[list(machine.slots).index(slot.id) + 1 :]
            self.check(
                not any(self._is_on_stage(f"{machine.path}/{id}") for id in later),
                f"{actor.path} out of order",
            )

    def _check_wait(self, chronicle: Chronicle, slot: Any) -> None:
        """A child that failed and is restarted alone has waited; a call or a group restart may have hastened it."""
        failed = self._failed.pop(slot, None)
        is_alone = chronicle.core.machine.spec.strategy is Strategy.ONE_FOR_ONE
        is_restart = slot.starting is not None and slot.starting.cause is reports.Cause.RESTART
        if failed is not None and is_alone and is_restart:
            waited, backoff = self.now - failed, slot.spec.backoff
            least = backoff.initial * (1 - backoff.jitter)
            self.check(
                waited >= least - 1e-9,
                f"{chronicle.core.path}/{slot.id} waited {waited:.3f} s only",
            )

    def _is_on_stage(self, path: str) -> bool:
        supervisor = self._supervisors.get(path)
        return path in self._on_stage or (supervisor is not None and supervisor.core.alive)

    def _check_window(self, chronicle: Chronicle, times: list[float]) -> None:
        spec = chronicle.core.machine.spec
        recent = [at for at in times if self.now - at <= spec.period]
        self.check(
            len(recent) <= spec.intensity,
            f"{chronicle.core.path}: {len(recent)} restarts in the window",
        )

    def note_stop(self, actor: Actor) -> None:
        machine = self._of(actor.path).core.machine
        self.say(f"stop {actor.path}")
        if (
            machine.phase is Phase.ENDING
            and not machine.spec.dynamic
            and not machine.ending.is_hurried
        ):
            order = list(machine.slots)
            later = order[order.index(actor.birth.spec.id) + 1 :]
            self.check(
                not any(self._is_on_stage(f"{machine.path}/{id}") for id in later),
                f"{actor.path} stops too early",
            )

    def note_kill(self, actor: Actor) -> None:
        """A child is interrupted only when its time is over, or the supervisor's."""
        shutdown, machine = actor.birth.spec.shutdown, self._of(actor.path).core.machine
        budget = shutdown if isinstance(shutdown, float) else math.inf
        in_time = self.now - self._from(actor.asked_at) >= budget - 1e-9
        self.say(f"kill {actor.path}")
        is_hurried = machine.ending is not None and machine.ending.is_hurried
        is_due = in_time or is_hurried or shutdown is Budget.BRUTAL_KILL
        self.check(is_due, f"{actor.path} was killed too early")

    def note_end(self, actor: Actor) -> None:
        self.say(
            f"{'fence' if not actor.ended else 'end'} {actor.path} {actor.birth.incarnation} {actor.reason}"
        )
        if self._on_stage.get(actor.path) is actor:
            del self._on_stage[actor.path]
            self._left[actor.slot] = actor.saved
            if not actor.fenced:
                self._of(actor.path).deaths.append(actor)

    def note_detach(self, actor: Actor) -> None:
        self.say(f"detach {actor.path} {actor.birth.incarnation}")
        self.check(not actor.asked, f"{actor.path} was asked to stop and let go")
        if self._on_stage.get(actor.path) is actor:
            del self._on_stage[actor.path]
            self._detached.append(actor)

    def is_news_in_flight(self, actor: Actor) -> bool:
        """Whether its end is on the queue, so that its supervisor cannot know."""
        return actor.ended and not self._of(actor.path).core.mailbox.empty()

    def note_report(self, report: reports.Report) -> None:
        self.say(
            f"report {type(report).__name__} {report.path} {report.incarnation} {report.reason}"
        )
        if isinstance(report, reports.LimitReached):
            self._note_limit(report)
        elif isinstance(report, reports.Unstopped):
            self._of(report.path).given_up.add(self._cast.get((report.path, report.incarnation)))
        elif isinstance(report, reports.Stalled):
            self._note_stall(report)
        elif isinstance(
            report, reports.ChildTerminated | reports.StartFailed | reports.ShutdownError
        ):
            self._note_death(report)

    def _note_stall(self, report: reports.Stalled) -> None:
        actor = self._cast[report.path, report.incarnation]
        since, heartbeat = self._from(actor.beat), actor.birth.spec.heartbeat or 0.0
        due = actor.silent_until if since == actor.beat else since + heartbeat
        self.check(self.now >= due, f"{report.path} stalled at {due:.3f} and not before")
        self.check(actor.is_up and not actor.asked, f"{report.path} has no reason to check in")

    def _note_death(self, report: Any) -> None:
        chronicle = self._of(report.path)
        if isinstance(report, reports.ChildTerminated) and self._is_of_a_detached(report):
            return
        actor = self._cast.get((report.path, report.incarnation))  # None: a supervisor
        chronicle.told[actor] += 1
        self.check(
            actor is None or chronicle.told[actor] == 1, f"{report.path}: a death told twice"
        )
        if isinstance(report, reports.ChildTerminated):
            self._note_crash(chronicle, report)
        elif isinstance(report, reports.StartFailed):
            chronicle.failed.append(self.now)
        if isinstance(report, reports.ChildTerminated | reports.StartFailed) and actor is not None:
            slot = chronicle.core.machine.slots.get(actor.birth.spec.id)
            if slot is not None and slot.incarnation == report.incarnation:
                self._failed[slot] = self.now

    def _is_of_a_detached(self, report: reports.ChildTerminated) -> bool:
        """Whether it is about one that runs no more in the tree; then its death need not be told again."""
        for actor in self._detached:
            same = (actor.path, actor.birth.incarnation) == (report.path, report.incarnation)
            if same and actor.reason is report.reason:
                self._detached.remove(actor)
                return True
        return False

    def _note_crash(self, chronicle: Chronicle, report: Any) -> None:
        actor = self._cast.get((report.path, report.incarnation))
        spec = actor.birth.spec if actor else self._supervisors[report.path].core.machine.spec
        if spec.restart is not Restart.TEMPORARY and not report.reason.is_fatal:
            if not chronicle.slack:  # where some wait, the unit is spent later
                self._check_window(chronicle, chronicle.terminated)
            chronicle.terminated.append(self.now)

    def _note_limit(self, report: reports.LimitReached) -> None:
        chronicle = self._supervisors[report.path]
        self.check(not chronicle.has_given_up, f"{report.path} gave up twice")
        chronicle.has_given_up = True
        spec, reason = chronicle.core.machine.spec, report.escalation.reason
        period = (
            spec.period + chronicle.slack + PAUSE * len(self._pauses)
        )  # the next attempt may come after one
        units = [at for at in chronicle.terminated + chronicle.failed if self.now - at <= period]
        forced = reason.is_fatal or reason.kind is ExitKind.KILLED
        self.check(
            forced or len(units) > spec.intensity,
            f"{report.path} gave up after {len(units)} restarts only",
        )
        below = report.reason.detail
        if isinstance(below, reports.Escalation):
            self.check(
                report.escalation.chain == (*below.chain, below), f"{report.path}: a broken chain"
            )

    # What must hold

    def _check_consistency(self, core: SupervisorThread) -> None:
        """After each turn: every live number is a running child or a waiting retry, and the other way round."""
        machine = core.machine
        running = {ref for ref, slot in machine._live.items() if slot.state is not RESTARTING}
        gone = {ref for ref, slot in machine._live.items() if slot.state is UNSTOPPED}
        self.check(
            running - gone == set(core._children),
            f"{core.path}: {running} live, {set(core._children)} children",
        )
        for slot in machine.slots.values():
            self.check(
                (slot.state in NUMBERED) == (slot.ref in machine._live),
                f"{core.path}/{slot.id}: ref",
            )
            is_busy = slot.state in (STARTING, STOPPING)
            self.check(not slot.starters or is_busy or comes(machine, slot), f"{slot.id}: starters")
            self.check(
                (slot.stopping is not None) == (slot.state is STOPPING), f"{slot.id}: stopping"
            )
            self.check(not slot.parked or slot.state is STOPPING, f"{slot.id}: parked")
        self.check(
            not machine._waiting or machine._plan is not None,
            f"{core.path}: calls wait for nothing",
        )
        self.check(machine.phase is Phase.UP or machine._plan is not None, f"{core.path}: no plan")
        if machine.phase is Phase.UP and machine._plan is None:
            self._check_nobody_is_forgotten(core)
            self._check_nothing_is_kept(core)
        self._check_starts()
        self._check_timers(core)
        for id in machine._plan.awaiting if machine._plan else ():
            state = machine.slots[id].state
            self.check(state in (STARTING, STOPPING), f"{core.path} waits for {id}, {state}")

    def _check_timers(self, core: SupervisorThread) -> None:
        """Whoever has to check in, or waits for a restart, has a timer; nobody has one who is gone."""
        machine, timers = core.machine, core.timers._armed
        stale = set(timers) - set(machine._live) - {messages.SUPERVISOR}
        self.check(not stale, f"{core.path}: stale timers {stale}")
        for slot in machine._live.values():
            if slot.state is RUNNING and slot.spec.heartbeat is not None:
                self._check_heartbeat(core, slot)
            if slot.due is not None:
                self.check(
                    slot.state is RESTARTING and slot.ref in timers, f"{slot.id} waits for nothing"
                )
                self.check(
                    slot.due <= self.now + slot.spec.backoff.maximum, f"{slot.id} waits too long"
                )
                self._check_group_waits(core, slot)

    def _check_heartbeat(self, core: SupervisorThread, slot: Any) -> None:
        doomed = core.machine._plan is not None and slot.id in core.machine._plan.stops
        actor = self._cast[f"{core.path}/{slot.id}", slot.incarnation]
        at, due = core.timers._armed.get(slot.ref, (math.inf,))[0], actor.silent_until
        if (since := self._from(actor.beat)) != actor.beat:
            due = since + max(slot.heartbeat, actor.silent_until - actor.beat)
        elif self._pauses and self._pauses[-1] < self.now:
            due += (
                2 * slot.heartbeat
            )  # the timer was set when the pause ended, and what it has allowed before is more
        self.check(
            doomed or at <= max(self.now, due) + 1e-9,
            f"{actor.path} may be silent until {at:.3f}, not {due:.3f}",
        )

    def _check_group_waits(self, core: SupervisorThread, waiting: Any) -> None:
        """While a child waits, the rest of its group is down, but for what a caller has started."""
        if core.machine._plan is None and not self._supervisors[core.path].excused:
            for id in restart_group(core.machine.spec.strategy, core.machine.slots, waiting.id)[0]:
                slot = core.machine.slots[id]
                self.check(
                    slot.state not in ACTIVE, f"{core.path}/{id} does not wait with {waiting.id}"
                )

    def _check_nobody_is_forgotten(self, core: SupervisorThread) -> None:
        """A permanent child is down only if a caller or the child itself wanted it so.

        In a group that goes for the whole group, and while a member waits, others may wait with it.
        """
        excused, slots = self._supervisors[core.path].excused, core.machine.slots.values()
        waits = any(slot.state in (RESTARTING, UNSTOPPED) for slot in slots)
        if core.machine.spec.strategy is not Strategy.ONE_FOR_ONE and (waits or excused):
            return
        for slot in slots:
            if (
                slot.state is UNDEFINED
                and slot.spec.restart is Restart.PERMANENT
                and slot.id not in excused
            ):
                declined = slot.last_exit is not None and slot.last_exit.is_ignore
                self.check(declined, f"{core.path}/{slot.id} was forgotten")

    def _check_nothing_is_kept(self, core: SupervisorThread) -> None:
        """At rest there is no spec of a child that has gone, if its kind of spec goes
        with it.
        """
        for slot in core.machine.slots.values():
            goes = core.machine.spec.dynamic or slot.spec.restart is Restart.TEMPORARY
            is_kept = slot.state is UNDEFINED and not slot.starters
            self.check(
                not (goes and is_kept), f"{core.path}/{slot.id} has gone, and its spec is kept"
            )

    def _check_starts(self) -> None:
        """No start call fails because of something else that came, but for the end of
        its child or supervisor.
        """
        given = [start for start in self._starts if start[2].reply.is_given]
        self._starts = [start for start in self._starts if start not in given]
        for number, chronicle, call in given:
            error, machine = call.reply._error, chronicle.core.machine
            if not isinstance(error, exceptions.StartError) or machine.phase is not Phase.UP:
                continue
            path, slot = f"{machine.path}/{call.id}", machine.slots.get(call.id)
            is_worker = (
                slot is None or slot.spec.type is ChildType.WORKER
            )  # a supervisor may have been stopped by itself
            if error.detail is ASKED_TO_STOP and is_worker:
                self.check(
                    chronicle.dismissed.get(call.id, -1) > number,
                    f"{path}: overtaken, its start has failed",
                )
            self.check(
                error.path != path or not error.detail.is_ignore,
                f"{path} has declined, and its start failed",
            )
            if isinstance(call, messages.StartChild):
                is_kept = slot is not None and slot.spec is call.spec
                self.check(not is_kept, f"{path} did not start, and its spec is kept")

    def _check_empty(self, core: SupervisorThread) -> None:
        left = [path for path in self._on_stage if path.startswith(core.path + "/")]
        self.check(not left, f"{core.path} ended and left {left}")

    def _check_deaths(self, chronicle: Chronicle) -> None:
        """Every crash of a child that was ours was told, unless a caller was told."""
        for actor in chronicle.deaths:
            assert actor.reason is not None
            excused = actor in chronicle.called or actor in chronicle.given_up
            if actor.reason.kind is ExitKind.CRASHED and not excused:
                told = chronicle.told[actor]
                self.check(
                    told == 1,
                    f"{actor.path} {actor.birth.incarnation}: its death was told {told} times",
                )

    def _check_the_end(self) -> None:
        self.check(not self.root.alive, "the root waits for ever")
        self.check(not self._on_stage, f"{list(self._on_stage)} run after the end")
        for chronicle in self._supervisors.values():
            self.check(not chronicle.core.alive, f"{chronicle.core.path} runs after the end")
            self._check_deaths(chronicle)
        crashed = [one.path for one in self._detached if one.ended and not one.reason.is_normal]  # type: ignore[union-attr]
        self.check(not crashed, f"{crashed} crashed after they were let go, and nobody was told")
        unanswered = [reply for reply in self._replies if not reply.is_given]
        self.check(not unanswered, f"{len(unanswered)} calls were never answered")


def live(seed: int, *, is_dense: bool | None = None) -> World:
    """Live the life of *seed*; raise Broken, with the seed and the story, if an invariant does not hold.

    Args:
        is_dense: Whether there are few children, and much happens at the same time; None: as the dice fall.
    """
    world = World(seed, is_dense=is_dense)
    try:
        world.live()
    except Broken as broken:
        raise Broken(f"OTPY_SEED={seed}: {broken}") from None
    except Exception as error:
        raise Broken(f"OTPY_SEED={seed}: {error!r}\n" + "\n".join(world.story[-60:])) from error
    return world


def main(count: int, first: int) -> None:
    turns: dict[str, int] = defaultdict(int)
    for seed in range(first, first + count):
        for line in live(seed).story:
            turns[" ".join(line.split()[1:3]) if "report" in line else line.split()[1]] += 1
    print(f"{count} lives held; {dict(turns)}")


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else int(os.environ.get("OTPY_SEED", "0")),
    )
