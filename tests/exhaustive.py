"""Everything that can happen to small supervisors, step by step: all events in all
orders, up to a depth.

The machine is the real one. Its children are what the events say of them: in each state
everything is tried that may happen to each child and every call that may be made, and
states that have been seen before are not looked at again. So within its depth the look
is complete, which the walks (walks.py) are not; and they go on for longer.

``look(case, depth)`` raises Broken with the way to the fault. What must hold:

1. Each call is answered exactly once. When all is at rest, and nothing waits for a
   restart, no call waits.
2. A start call is refused because its child failed, or because that was terminated or
   deleted, or because the supervisor ends. A new child whose start was refused is not
   kept; one that was answered is there.
3. Where nothing starts it again, no spec of a temporary or dynamic child outlives its
   child.
4. The supervisor ends by ``auto_shutdown`` when the rule says so, and only then
   (oracle.py).
5. Whatever is going on, a stop ends it when the children end, and answers all calls.

``python -m tests.exhaustive DEPTH`` looks at every case.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import attrs

from otpy import exceptions
from otpy.core import messages, slots
from otpy.core.endings import Phase
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import ChildExited, ChildStarted, Due, StopSupervisor
from otpy.core.pauses import Pauses
from otpy.core.plan import Plan
from otpy.core.restarts import Window
from otpy.core.slots import (
    NUMBERED,
    RESTARTING,
    RUNNING,
    STARTING,
    STOPPING,
    UNDEFINED,
    UNSTOPPED,
    Slot,
)
from otpy.reports import ExitKind, ExitReason
from otpy.specs import Backoff, ChildSpec, Restart, Strategy, SupervisorSpec
from tests.machine_talk import CRASH, NORMAL, SHUTDOWN, child, nested
from tests.oracle import Oracle

IGNORE = ExitReason(ExitKind.NORMAL, exceptions.Ignore())

MOST_CALLS = 2
"""How many calls may wait at the same time."""


class Broken(AssertionError):
    """Something that must hold does not."""


# The cases


@attrs.frozen
class Case:
    """A supervisor to look at.

    Attributes:
        children: A letter each: p(ermanent), t(ransient), x (temporary); a capital is significant.
        newcomer: The same for the child "n" that start_child may add.
        rivals: Whether children make calls about each other.
    """

    children: str
    strategy: str = "one_for_one"
    auto: str = "never"
    newcomer: str = "p"
    intensity: int = 9
    backoff: bool = False
    hold: bool = False
    late: bool = False
    beats: bool = False
    dynamic: bool = False
    rivals: bool = False

    def __str__(self) -> str:
        flags = [
            name for name in ("backoff", "hold", "late", "beats", "dynamic") if getattr(self, name)
        ]
        return " ".join([self.children, self.strategy, self.auto, self.newcomer, *flags])

    def spec(self, id: str, letter: str) -> ChildSpec:
        return child(
            id,
            restart={"p": "permanent", "t": "transient", "x": "temporary"}[letter.lower()],
            significant=letter.isupper(),
            backoff=Backoff(2.0, 8.0, jitter=0.0) if self.backoff else None,
            unstopped="hold" if self.hold else "replace",
            start_timeout=1.0 if self.late else None,
            heartbeat=3.0 if self.beats else None,
        )

    def supervisor(self) -> SupervisorSpec:
        listed = (
            ()
            if self.dynamic
            else [self.spec(id, letter) for id, letter in zip("abc", self.children, strict=False)]
        )
        return nested(
            "app",
            children=listed,
            strategy=self.strategy,
            auto_shutdown=self.auto,
            intensity=self.intensity,
            period=1e9,
            dynamic=self.dynamic,
        )

    def newcomers(self) -> Iterator[ChildSpec]:
        if self.dynamic:
            yield from (
                self.spec(id, letter) for id, letter in zip("abc", self.children, strict=False)
            )
        else:
            yield self.spec("n", self.newcomer)


QUICK = {
    # case: depth. All of them together take a few seconds.
    Case("p", "one_for_all", newcomer="x"): 6,
    Case("p", "rest_for_one"): 6,
    Case("p", "one_for_all", backoff=True): 6,
    Case("p", "rest_for_one", hold=True): 5,
    Case("p", "one_for_all", late=True): 5,
    Case("px", "rest_for_one", newcomer="x"): 4,
    Case("tpp", "one_for_all"): 4,
    Case("pp", "one_for_all", intensity=1): 4,
    Case("T", "one_for_one", "all_significant", newcomer="T"): 5,
    Case("T", "one_for_all", "all_significant", newcomer="T", hold=True): 5,
    Case("TX", "one_for_one", "all_significant"): 4,
    Case("TX", "one_for_one", "all_significant", beats=True): 3,
    Case("TpX", "rest_for_one", "all_significant"): 3,
    Case("pTT", "one_for_all", "all_significant", backoff=True): 3,
    Case("TX", "one_for_all", "any_significant", newcomer="X"): 4,
    Case("xp", dynamic=True, rivals=True): 4,
}


def every_case() -> Iterator[Case]:
    """Yield all small cases."""
    for size, auto, strategy in itertools.product(
        (2, 3), ("never", "any_significant", "all_significant"), Strategy
    ):
        letters = "ptx" if auto == "never" else "pTX"
        for children in itertools.combinations_with_replacement(letters, size):
            for order in sorted(set(itertools.permutations(children))):
                for extra in (
                    {},
                    {"backoff": True},
                    {"hold": True},
                    {"late": True},
                    {"beats": True},
                    {"intensity": 1},
                ):
                    for newcomer in letters[:: 1 if size == 2 else 2]:
                        yield Case("".join(order), strategy.value, auto, newcomer, **extra)
    for children in itertools.product("ptx", repeat=2):
        for extra in ({}, {"backoff": True}, {"hold": True}):
            yield Case("".join(children), dynamic=True, rivals=True, **extra)


# One state


FIELDS = [field.name for field in attrs.fields(Slot)]


def clone(machine: SupervisorMachine) -> SupervisorMachine:
    """Return a machine in the same state that shares nothing with *machine* that
    matters: but how long it waits.
    """
    twins: dict[int, Slot] = {}

    def twin(slot: Slot) -> Slot:
        if (one := twins.get(id(slot))) is None:
            twins[id(slot)] = one = Slot.__new__(Slot)
            for name in FIELDS:
                setattr(one, name, getattr(slot, name))
            one.parked = slot.parked[:]
            if (stopping := slot.stopping) is not None:
                one.stopping = attrs.evolve(stopping, leavers=stopping.leavers[:])
            if slot.held is not None:
                one.held = attrs.evolve(slot.held)
        return one

    other = SupervisorMachine.__new__(SupervisorMachine)
    vars(other).update(vars(machine))
    other.slots = {id: twin(slot) for id, slot in machine.slots.items()}
    other._live = {ref: twin(slot) for ref, slot in machine._live.items()}
    other._early = [(twin(slot), reason) for slot, reason in machine._early]
    other._waiting = machine._waiting.copy()
    if machine.ending is not None:
        other.ending = attrs.evolve(machine.ending, ended=machine.ending.ended[:])
    other._callers = {id: calls[:] for id, calls in machine._callers.items()}
    other._pauses = Pauses()  # time stands still
    other.window = Window(machine.window.intensity, machine.window.period)
    other.window._times.extend(machine.window._times)
    if (plan := machine._plan) is not None:
        hastened = None if plan.hastened is None else twin(plan.hastened)
        other._plan = Plan(
            plan.stops.copy(),
            plan.bystanders,
            plan.starts.copy(),
            plan.width,
            set(plan.awaiting),
            hastened,
        )
    return other


@attrs.define(eq=False)
class State:
    """A machine, and what is known of its past.

    Attributes:
        story: The way here.
        pending: The calls that have not been answered, by reply.
        calls: How many calls there have been.
        dismissed: Whose start was asked for, and who was terminated or deleted before it was up.
        again: Whether a Retry is in the queue, by ref.
        oracle: When it has to end by itself.
    """

    case: Case
    machine: SupervisorMachine
    story: tuple[str, ...] = ()
    pending: dict[str, messages.Call] = attrs.field(factory=dict)
    calls: int = 0
    dismissed: frozenset[str] = frozenset()
    again: frozenset[int] = frozenset()
    oracle: Oracle = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.oracle = Oracle(self.check)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise Broken(f"{what}\n{self.case}\n" + "\n".join(self.story))

    def after(self, label: str, message: object) -> State:
        """Return the state after *message*."""
        then = State(
            self.case,
            clone(self.machine),
            (*self.story, label),
            dict(self.pending),
            self.calls,
            self.dismissed,
            self.again,
        )
        then.oracle = attrs.evolve(self.oracle.copy(), check=then.check)
        then.hear(message)
        return then

    # What is tried

    def events(self) -> Iterator[tuple[str, object]]:
        """Yield all that may happen now."""
        for ref, slot in self.machine._live.items():
            for what, message in self.of_child(ref, slot):
                yield f"{what} {slot.id}", message
        if self.machine.phase is Phase.UP and len(self.pending) < MOST_CALLS:
            yield from self.possible_calls()

    def of_child(self, ref: int, slot: Any) -> Iterator[tuple[str, object]]:
        match slot.state:
            case slots.STARTING:
                yield "up", ChildStarted(ref)
                yield "fails", ChildExited(ref, CRASH)
                yield "ignores", ChildExited(ref, IGNORE)
                if self.case.late:
                    yield "late", Due(ref)
            case slots.RUNNING:
                yield "crashes", ChildExited(ref, CRASH)
                yield "leaves", ChildExited(ref, NORMAL)
                if self.case.beats:
                    yield "stalls", Due(ref, 0.0)
            case slots.STOPPING:
                yield "ends", ChildExited(ref, SHUTDOWN)
                if self.case.hold or self.case.late:
                    yield "time is up for", Due(ref)
            case slots.RESTARTING:
                yield "again", messages.Retry(ref) if ref in self.again else Due(ref)
            case slots.UNSTOPPED:
                yield "wakes", ChildExited(ref, NORMAL)

    def possible_calls(self) -> Iterator[tuple[str, object]]:
        reply = f"r{self.calls}"
        for spec in self.case.newcomers():
            yield f"start_child {spec.id}", messages.StartChild(reply=reply, spec=spec)
        inside = [
            None,
            *(
                id
                for id, slot in self.machine.slots.items()
                if self.case.rivals and slot.state is RUNNING
            ),
        ]
        for id, by in itertools.product(self.machine.slots, inside):
            yield (
                f"terminate_child {id} from {by}",
                messages.TerminateChild(reply=reply, id=id, inside=by),
            )
            if by is None:
                yield f"restart_child {id}", messages.RestartChild(reply=reply, id=id)
                yield f"delete_child {id}", messages.DeleteChild(reply=reply, id=id)

    # What comes of it

    def hear(self, message: object) -> None:
        before = self.machine.phase
        self.oracle.before(self.machine, message)
        if isinstance(message, messages.Call):
            self.pending[message.reply] = message
            self.calls += 1
            if isinstance(message, messages.TerminateChild | messages.DeleteChild):
                self.dismissed |= {message.id}
            else:
                self.dismissed -= {message.id}
        actions = self.machine.receive(message, 0.0)
        for action in actions:
            self.note(action)
        self.oracle.after(self.machine, actions)
        self.check(before is not Phase.FINISHED, "it goes on after its end")
        self.look()

    def note(self, action: messages.Action) -> None:
        match action:
            case messages.Start(ref, spec):
                asked = self.machine.phase in (Phase.ENDING, Phase.FINISHED)
                self.check(not asked, f"{spec.id} is started while the supervisor ends")
            case messages.Again(ref):
                self.again |= {ref}
            case messages.Answer(reply):
                self.settle(reply)
            case messages.Refuse(reply, error):
                self.refused(self.settle(reply), error)

    def settle(self, reply: str) -> messages.Call:
        self.check(reply in self.pending, f"{reply} is answered twice")
        return self.pending.pop(reply)

    def refused(self, call: messages.Call, error: Exception) -> None:
        if not isinstance(error, exceptions.StartError):
            return
        machine, id = self.machine, call.id
        self.check(not error.detail.is_ignore, f"{id} has declined, and its start was refused")
        is_failure = error.detail.kind is not ExitKind.SHUTDOWN
        excused = id in self.dismissed or machine.phase is not Phase.UP
        self.check(is_failure or excused, f"the start of {id} was overtaken, and has failed")
        others = [
            one
            for one in self.pending.values()
            if isinstance(one, messages.StartChild) and one.id == id
        ]
        if isinstance(call, messages.StartChild) and machine.phase is Phase.UP and not others:
            self.check(
                id not in machine.slots, f"the start of {id} was refused, and its spec is kept"
            )

    # What must hold in every state

    def look(self) -> None:
        machine = self.machine
        for slot in machine.slots.values():
            self.check(
                (slot.state in NUMBERED) == (slot.ref in machine._live),
                f"{slot.id}: {slot.state}, live",
            )
        is_still = machine.phase is Phase.UP and machine._plan is None
        if is_still and not any(
            slot.state in (STARTING, STOPPING) for slot in machine.slots.values()
        ):
            self.look_at_rest()
        if machine.phase is Phase.FINISHED:
            self.check(not self.pending, f"it has ended without an answer to {list(self.pending)}")

    def look_at_rest(self) -> None:
        machine, slots = self.machine, self.machine.slots.values()
        waits = [slot for slot in slots if slot.state in (RESTARTING, UNSTOPPED)]
        self.check(not self.pending or bool(waits), f"{list(self.pending)} wait for nothing")
        started = {
            call.id for call in self.pending.values() if isinstance(call, messages.StartChild)
        }
        for slot in slots:
            if slot.state is UNDEFINED and slot.id not in started:
                outlives = not machine.spec.dynamic and slot.spec.restart is not Restart.TEMPORARY
                self.check(outlives, f"{slot.id} has gone, and its spec is kept")

    def stops(self) -> None:
        """Stop it here, and let its children end one after the other."""
        state = self.after("stop", StopSupervisor())
        while state.machine.phase is Phase.ENDING:
            ending = [ref for ref, slot in state.machine._live.items() if slot.state is STOPPING]
            state.check(bool(ending), "its end waits for nothing")
            state.hear(ChildExited(ending[0], SHUTDOWN))
        state.check(state.machine.phase is Phase.FINISHED, "it has not ended")

    def print(self) -> tuple[object, ...]:
        """Return what makes this state another one than those seen before."""
        machine, plan = self.machine, self.machine._plan
        slots = tuple(
            (
                slot.id,
                slot.state,
                slot.stopping and (slot.stopping.why, slot.stopping.rung),
                slot.due is None,
                slot.held and (slot.held.why, slot.held.is_wanted),
                slot.ref in self.again,
                _kinds(slot.starters),
                _kinds(slot.stopping.leavers if slot.stopping else ()),
                _kinds(slot.parked),
            )
            for slot in machine.slots.values()
        )
        return (
            machine.phase,
            slots,
            None
            if plan is None
            else (
                tuple(plan.stops),
                tuple(plan.bystanders),
                tuple(plan.starts),
                tuple(sorted(plan.awaiting)),
                plan.hastened and plan.hastened.id,
            ),
            _kinds(machine._waiting),
            tuple(sorted((id, _kinds(calls)) for id, calls in machine._callers.items())),
            tuple(sorted((type(call).__name__, call.id) for call in self.pending.values())),
            self.dismissed,
            self.oracle.owed,
            machine._open_end is None,
            machine.window.count(0.0) if self.case.intensity < 9 else None,
        )


def _kinds(calls: Any) -> tuple[object, ...]:
    return tuple((type(call).__name__, call.id, call.inside, call.reply is None) for call in calls)


def look(case: Case, depth: int) -> int:
    """Look at all that can happen to *case* within *depth* events after its start;
    return how many states that is.
    """
    first = State(case, SupervisorMachine(case.supervisor(), "app"))
    first.hear(messages.Begin())
    for spec in case.newcomers() if case.dynamic else ():
        first.hear(messages.StartChild(reply=spec.id, spec=spec))
        first.hear(ChildStarted(first.machine.slots[spec.id].ref))
    while starting := [ref for ref, slot in first.machine._live.items() if slot.state is STARTING]:
        first.hear(ChildStarted(starting[0]))
    seen, edge = {first.print()}, [first]
    for _ in range(depth):
        edge = list(_beyond(edge, seen))
    return len(seen)


def _beyond(edge: list[State], seen: set[tuple[object, ...]]) -> Iterator[State]:
    for state in edge:
        for label, message in list(state.events()):
            then = state.after(label, message)
            if (mark := then.print()) not in seen:
                seen.add(mark)
                then.stops() if then.machine.phase is not Phase.FINISHED else None
                yield then


def main(depth: int) -> None:
    began, count, states = time.monotonic(), 0, 0
    for case in every_case():
        count, states = count + 1, states + look(case, depth)
    print(f"{count} cases, {states} states, {time.monotonic() - began:.0f} s: all holds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
