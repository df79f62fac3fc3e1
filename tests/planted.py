"""Bugs, each planted into the machine by a patch. The walks must catch every one; what they miss is a missing check.

Each bug is a function that takes pytest's ``monkeypatch``; its docstring says what somebody did wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from otpy import machine, restarts
from otpy.machine import Phase, Plan, Slot, SupervisorMachine, Why
from otpy.messages import ChildExited
from otpy.reports import ChildState
from otpy.restarts import VERDICTS, Fate, Verdict
from otpy.specs import Restart
from otpy.supervisors import PERFORM, SupervisorThread

BUGS: list[Callable[[Any], None]] = []


def bug(plant: Callable[[Any], None]) -> Callable[[Any], None]:
    BUGS.append(plant)
    return plant


def _nothing(*args: object) -> None:
    return None


@bug
def stop_order(monkeypatch: Any) -> None:
    """Children stop in start order."""
    real = machine._plan

    def plan(stops: Iterable[str], starts: Iterable[str], width: float = 1) -> Plan:
        return real(reversed(list(stops)), starts, width)

    monkeypatch.setattr(machine, "_plan", plan)


@bug
def stops_side_by_side(monkeypatch: Any) -> None:
    """The next child is told to stop before the one before has ended."""
    real = machine._plan
    monkeypatch.setattr(machine, "_plan", lambda stops, starts, width=1: real(stops, starts, float("inf")))


@bug
def start_order(monkeypatch: Any) -> None:
    """A group starts in reverse order."""
    real = machine.restart_group

    def restart_group(*args: Any) -> Any:
        stops, starts = real(*args)
        return stops, tuple(reversed(starts))

    monkeypatch.setattr(machine, "restart_group", restart_group)


@bug
def one_restart_too_many(monkeypatch: Any) -> None:
    """The window allows intensity + 1 restarts."""
    real = restarts.Window.spend
    monkeypatch.setattr(
        restarts.Window, "spend", lambda self, now: real(self, now) or self.count(now) == self.intensity + 1
    )


@bug
def one_restart_too_few(monkeypatch: Any) -> None:
    """The window allows intensity - 1 restarts."""
    real = restarts.Window.spend
    monkeypatch.setattr(
        restarts.Window, "spend", lambda self, now: real(self, now) and self.count(now) < self.intensity
    )


@bug
def window_never_forgets(monkeypatch: Any) -> None:
    """Restarts are counted per lifetime."""
    monkeypatch.setattr(restarts.Window, "_forget", _nothing)


@bug
def retries_are_free(monkeypatch: Any) -> None:
    """A retry of a failed start spends no unit."""

    def on_retry(self: SupervisorMachine, message: Any) -> None:
        slot = self._live.pop(message.ref, None)
        if slot is not None:
            slot.state = ChildState.UNDEFINED
            self._begin_group(slot)

    monkeypatch.setitem(machine.CLAUSES, machine.Retry, on_retry)


@bug
def old_news_counts(monkeypatch: Any) -> None:
    """The number of the incarnation is not checked: what an abandoned one says is taken for the current one's."""
    enlist, slots = SupervisorMachine._enlist, {}

    def remember(self: SupervisorMachine, slot: Slot) -> None:
        enlist(self, slot)
        slots[self, slot.ref] = slot

    def on_exited(self: SupervisorMachine, message: ChildExited) -> None:
        slot = slots.get((self, message.ref))
        real(self, message if slot is None or slot.ref not in self._live else ChildExited(slot.ref, message.reason))

    real = SupervisorMachine._on_exited
    monkeypatch.setattr(SupervisorMachine, "_enlist", remember)
    monkeypatch.setitem(machine.CLAUSES, ChildExited, on_exited)


@bug
def retry_is_not_cancelled(monkeypatch: Any) -> None:
    """A group restart or an end does not cancel the retries of its members."""
    monkeypatch.setattr(SupervisorMachine, "_call_off", _nothing)


@bug
def a_late_start_breaks_the_plan(monkeypatch: Any) -> None:
    """A group restart does not take over a child that stops because it was late (found by the walks)."""
    monkeypatch.setattr(SupervisorMachine, "_overtake", SupervisorMachine._call_off)


@bug
def deaths_during_boot_are_lost(monkeypatch: Any) -> None:
    """Crashes of children that were up while a later sibling started are forgotten."""

    def is_up(self: SupervisorMachine) -> None:
        self._early.clear()
        real(self)

    real = SupervisorMachine._is_up
    monkeypatch.setattr(SupervisorMachine, "_is_up", is_up)


@bug
def callers_wait_for_ever(monkeypatch: Any) -> None:
    """Calls that wait when the supervisor begins to end are not refused."""
    monkeypatch.setattr(SupervisorMachine, "_refuse_all_calls", _nothing)


@bug
def starters_wait_for_ever(monkeypatch: Any) -> None:
    """A caller whose child was stopped while it started gets no answer."""
    monkeypatch.setattr(SupervisorMachine, "_refuse_start", _nothing)


@bug
def leavers_wait_for_ever(monkeypatch: Any) -> None:
    """terminate_child is not answered if the child could not be stopped and is held for."""
    real = SupervisorMachine._hold

    def hold(self: SupervisorMachine, slot: Slot) -> None:
        leavers, slot.leavers = slot.leavers, []
        real(self, slot)
        slot.leavers = leavers

    monkeypatch.setattr(SupervisorMachine, "_hold", hold)


@bug
def temporary_children_come_back(monkeypatch: Any) -> None:
    """A temporary child is restarted when it crashes."""
    monkeypatch.setitem(VERDICTS, (Restart.TEMPORARY, False), Verdict(Fate.RESTART, report=True))


@bug
def temporary_bystanders_come_back(monkeypatch: Any) -> None:
    """A temporary child that was stopped in a group restart is started again with the others."""
    monkeypatch.setattr(
        SupervisorMachine, "_drop_bystander", lambda self, slot: self._start(slot, machine.Cause.RESTART)
    )


@bug
def bystanders_stay_down(monkeypatch: Any) -> None:
    """A group restart starts only the child that crashed."""
    real = machine.restart_group
    monkeypatch.setattr(machine, "restart_group", lambda *args: (real(*args)[0], (args[2],)))


@bug
def ending_restarts(monkeypatch: Any) -> None:
    """A child that dies while its supervisor ends is restarted."""
    real = SupervisorMachine._is_doomed
    monkeypatch.setattr(
        SupervisorMachine, "_is_doomed", lambda self, slot: self.phase is not Phase.ENDING and real(self, slot)
    )


@bug
def odd_ends_are_silent(monkeypatch: Any) -> None:
    """A child that crashes when it is told to stop is not reported."""
    monkeypatch.setattr(SupervisorMachine, "_check_end", _nothing)


@bug
def deaths_are_told_twice(monkeypatch: Any) -> None:
    """A child that crashed and then belongs to a group that stops is reported again."""
    real = SupervisorMachine._judge

    def judge(self: SupervisorMachine, slot: Slot, reason: Any) -> None:
        real(self, slot, reason)
        self._check_end(slot, reason)

    monkeypatch.setattr(SupervisorMachine, "_judge", judge)


@bug
def no_hurry(monkeypatch: Any) -> None:
    """The total budget of a stop is not kept."""
    monkeypatch.setattr(SupervisorMachine, "_hurry", _nothing)


@bug
def infinity_is_for_ever(monkeypatch: Any) -> None:
    """Hurrying does not reach children that have been asked already."""

    def hurry(self: SupervisorMachine) -> None:
        self._hurried = True

    monkeypatch.setattr(SupervisorMachine, "_hurry", hurry)


@bug
def ended_without_waiting(monkeypatch: Any) -> None:
    """The supervisor ends while its children are still stopping."""

    def step(self: SupervisorMachine, plan: Plan) -> bool:
        if self.phase is Phase.ENDING:
            plan.awaiting.clear()
        return real(self, plan)

    real = SupervisorMachine._step
    monkeypatch.setattr(SupervisorMachine, "_step", step)


@bug
def held_is_replaced(monkeypatch: Any) -> None:
    """A child that is held for is forgotten: its number goes, its state stays."""
    real = SupervisorMachine._hold

    def hold(self: SupervisorMachine, slot: Slot) -> None:
        del self._live[slot.ref]
        real(self, slot)

    monkeypatch.setattr(SupervisorMachine, "_hold", hold)


@bug
def chain_is_cut(monkeypatch: Any) -> None:
    """An escalation forgets what came from below."""
    real = machine.Escalation
    monkeypatch.setattr(machine, "Escalation", _SameType(real))


class _SameType:
    """Makes escalations without a chain, and passes for their class in isinstance."""

    def __init__(self, real: type) -> None:
        self.real = real

    def __call__(self, **fields: Any) -> Any:
        return self.real(**{**fields, "chain": ()})

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, self.real)


@bug
def started_before_its_death(monkeypatch: Any) -> None:
    """A group restart does not wait for the end of those that it stops."""

    def step(self: SupervisorMachine, plan: Plan) -> bool:
        if plan.starts and not plan.stops and self.phase is Phase.UP:
            plan.awaiting.clear()
        return real(self, plan)

    real = SupervisorMachine._step
    monkeypatch.setattr(SupervisorMachine, "_step", step)


@bug
def timers_survive(monkeypatch: Any) -> None:
    """The runtime never clears a timer, so that an old one meets a state that it was not set for."""
    monkeypatch.setitem(PERFORM, machine.Disarm, _nothing)


@bug
def killed_at_once(monkeypatch: Any) -> None:
    """Children are interrupted without having been asked."""
    monkeypatch.setattr(SupervisorMachine, "_stop", lambda self, slot, why: _kill_instead(self, slot, why))


def _kill_instead(self: SupervisorMachine, slot: Slot, why: Why) -> None:
    slot.state, slot.why = ChildState.STOPPING, why
    self._kill(slot)


@bug
def a_check_in_is_not_looked_at(monkeypatch: Any) -> None:
    """A child is stalled once its first deadline has passed, whatever it did meanwhile."""
    monkeypatch.setitem(machine.DUES, ChildState.RUNNING, lambda self, slot, message: self._stall(slot))


@bug
def one_check_in_is_enough(monkeypatch: Any) -> None:
    """The deadline is not set again once the child has checked in."""
    monkeypatch.setitem(
        machine.DUES,
        ChildState.RUNNING,
        lambda self, slot, message: self._stall(slot) if message.silent_until <= self._now else None,
    )


@bug
def who_starts_is_not_watched(monkeypatch: Any) -> None:
    """A child that comes up gets no deadline."""
    real = SupervisorMachine._on_started

    def on_started(self: SupervisorMachine, message: Any) -> None:
        real(self, message)
        self._out = [one for one in self._out if not isinstance(one, machine.Arm)]

    monkeypatch.setitem(machine.CLAUSES, machine.ChildStarted, on_started)


@bug
def stalls_are_forgiven(monkeypatch: Any) -> None:
    """A stalled child is stopped, and that is all."""
    monkeypatch.delitem(machine.AFTERMATH, Why.STALLED)


@bug
def deadlines_survive(monkeypatch: Any) -> None:
    """The deadline of a child that has ended is not cleared."""
    monkeypatch.setattr(SupervisorMachine, "_comes_down", _nothing)


@bug
def stalls_during_boot_are_judged_at_once(monkeypatch: Any) -> None:
    """The boot and the restart then make a mess of each other's plans."""
    monkeypatch.setitem(machine.AFTERMATH, Why.STALLED, SupervisorMachine._died)


@bug
def calls_outlive_a_stall_that_ends_all(monkeypatch: Any) -> None:
    """Calls that waited for the end of a stalled child are looked at after that has ended the supervisor."""

    def stall_is_over(self: SupervisorMachine, slot: Slot, reason: Any) -> None:
        waiting, slot.waiting = slot.waiting, []
        real(self, slot, reason)
        self._waiting.extend(waiting)

    real = SupervisorMachine._stall_is_over
    monkeypatch.setitem(machine.AFTERMATH, Why.STALLED, stall_is_over)


@bug
def nobody_waits(monkeypatch: Any) -> None:
    """The back-off is worked out and not waited for."""
    real = restarts.Patience.next_wait
    monkeypatch.setattr(restarts.Patience, "next_wait", lambda self: real(self) and 0.0)


@bug
def patience_has_no_limit(monkeypatch: Any) -> None:
    """Waits grow beyond the maximum."""

    def next_wait(self: restarts.Patience) -> float | None:
        wait = real(self)
        return None if wait is None else self._last

    def grow(self: restarts.Patience) -> float | None:
        wait = next_wait(self)
        if wait is not None:
            self._last = wait * 3
        return self._last

    real = restarts.Patience.next_wait
    monkeypatch.setattr(restarts.Patience, "next_wait", grow)


@bug
def the_group_does_not_wait(monkeypatch: Any) -> None:
    """While a child waits, the rest of its group runs on without it."""
    real = SupervisorMachine._wait

    def wait(self: SupervisorMachine, slot: Slot, *args: Any) -> None:
        real(self, slot, *args)
        self._plan = None

    monkeypatch.setattr(SupervisorMachine, "_wait", wait)


@bug
def waits_are_not_absorbed(monkeypatch: Any) -> None:
    """A group restart leaves the timer of a waiting member armed."""
    real = SupervisorMachine._call_off

    def call_off(self: SupervisorMachine, slot: Slot) -> None:
        before = list(self._out)
        real(self, slot)
        self._out[:] = before

    monkeypatch.setattr(SupervisorMachine, "_call_off", call_off)


@bug
def nothing_is_handed_over(monkeypatch: Any) -> None:
    """What a child has saved goes with it."""
    monkeypatch.setattr(SupervisorThread, "_take_over", _nothing)


@bug
def strays_are_heirs(monkeypatch: Any) -> None:
    """A child that was given up shares what it saves with its replacement."""
    real = SupervisorThread._start

    def start(self: SupervisorThread, action: Any) -> None:
        strays = [child for child, _ in self.tree.strays() if child.birth.handover is action.handover]
        for child in strays:
            self._take_over(child)
        real(self, action)

    monkeypatch.setitem(PERFORM, machine.Start, start)


@bug
def the_detached_die_in_silence(monkeypatch: Any) -> None:
    """Nobody tells of the crash of a child that was let go."""
    monkeypatch.setattr(SupervisorThread, "_mourn", _nothing)


@bug
def the_detached_are_forgotten_too_early(monkeypatch: Any) -> None:
    """Workers are let go and waited for."""

    def let_go(self: SupervisorMachine, slot: Slot) -> None:
        self._do(machine.Detach(slot.ref))

    monkeypatch.setattr(SupervisorMachine, "_let_go", let_go)
