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
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from otpy import reports
from otpy.core import messages
from otpy.core.lives import INTERRUPT_GRACE
from otpy.core.messages import ChildExited, StopSupervisor
from otpy.core.slots import (
    RUNNING,
    STOPPING,
)
from otpy.runtime.supervisor import SupervisorThread
from otpy.runtime.tree import Tree
from otpy.runtime.waiting import Reply
from tests.oracle import Oracle
from tests.walks_cast import CRASHED, PAUSE, RETURNED, Actor, Broken, Chronicle, NoTelemetry
from tests.walks_dice import Dice
from tests.walks_witness import Witness

MOST_TURNS = 20_000
"""A life that takes more turns than this goes in a circle."""


class World(Dice, Witness):
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
        # So news from inside the turn is local, as on the real thread.
        core._agenda.ident = threading.get_ident()
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
