"""Bugs, each planted into the machine by a patch. The walks must catch every one; what they miss is a missing check.

Those in SMALL need no more than two or three children: the look at small supervisors (exhaustive.py) catches them, too,
at the latest in the case that is named here. Some are so rare that it takes many thousand lives to meet them: they are
in SMALL only.

Each bug is a function that takes pytest's ``monkeypatch``; its docstring says what somebody did wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from otpy.core import endings, lives, messages, pauses, restarts, slots
from otpy.core.endings import Phase
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import ChildExited
from otpy.core.plan import Plan
from otpy.core.restarts import VERDICTS, Fate, Verdict
from otpy.core.slots import INTERRUPT, SILENT, STOPPING, UNDEFINED, Slot, Stopping, Why
from otpy.reports import ExitReason
from otpy.runtime.supervisor import SupervisorThread
from otpy.specs import Restart

BUGS: list[Callable[[Any], None]] = []
SMALL: dict[Callable[[Any], None], str] = {}


def bug(plant: Callable[[Any], None]) -> Callable[[Any], None]:
    BUGS.append(plant)
    return plant


def small_bug(
    case: str, *, is_rare: bool = False
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def note(plant: Callable[[Any], None]) -> Callable[[Any], None]:
        SMALL[plant] = case
        return plant if is_rare else bug(plant)

    return note


def _nothing(*args: object) -> None:
    return None


@bug
def stop_order(monkeypatch: Any) -> None:
    """Children stop in start order."""
    real = Plan.of

    def plan(stops: Iterable[str], starts: Iterable[str], **more: Any) -> Plan:
        return real(reversed(list(stops)), starts, **more)

    monkeypatch.setattr(Plan, "of", plan)


@bug
def stops_side_by_side(monkeypatch: Any) -> None:
    """The next child is told to stop before the one before has ended."""
    real = Plan.of
    monkeypatch.setattr(
        Plan,
        "of",
        lambda stops, starts, **more: real(stops, starts, **(more | {"width": float("inf")})),
    )


@bug
def start_order(monkeypatch: Any) -> None:
    """A group starts in reverse order."""
    real = endings.restart_group

    def restart_group(*args: Any) -> Any:
        stops, starts = real(*args)
        return stops, tuple(reversed(starts))

    monkeypatch.setattr(endings, "restart_group", restart_group)


@bug
def one_restart_too_many(monkeypatch: Any) -> None:
    """The window allows intensity + 1 restarts."""
    real = restarts.Window.spend
    monkeypatch.setattr(
        restarts.Window,
        "spend",
        lambda self, now: real(self, now) or self.count(now) == self.intensity + 1,
    )


@bug
def one_restart_too_few(monkeypatch: Any) -> None:
    """The window allows intensity - 1 restarts."""
    real = restarts.Window.spend
    monkeypatch.setattr(
        restarts.Window,
        "spend",
        lambda self, now: real(self, now) and self.count(now) < self.intensity,
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
            slot.move(UNDEFINED)
            self.begin_group(slot)

    monkeypatch.setattr(SupervisorMachine, "_on_retry", on_retry)


@bug
def old_news_counts(monkeypatch: Any) -> None:
    """The number of the incarnation is not checked: what an abandoned one says is taken for the current one's."""
    number, known = SupervisorMachine.number, {}

    def remember(self: SupervisorMachine, slot: Slot) -> None:
        number(self, slot)
        known[self, slot.ref] = slot

    def on_exited(self: SupervisorMachine, message: ChildExited) -> None:
        slot = known.get((self, message.ref))
        real(
            self,
            message
            if slot is None or slot.ref not in self._live
            else ChildExited(slot.ref, message.reason),
        )

    real = SupervisorMachine._on_exited
    monkeypatch.setattr(SupervisorMachine, "number", remember)
    monkeypatch.setattr(SupervisorMachine, "_on_exited", on_exited)


@bug
def retry_is_not_cancelled(monkeypatch: Any) -> None:
    """A group restart or an end does not cancel the retries of its members."""
    monkeypatch.setattr(SupervisorMachine, "call_off", _nothing)


@bug
def a_late_start_breaks_the_plan(monkeypatch: Any) -> None:
    """A group restart does not take over a child that stops because it was late (found by the walks)."""
    monkeypatch.setattr(SupervisorMachine, "overtake", SupervisorMachine.call_off)


@bug
def deaths_during_boot_are_lost(monkeypatch: Any) -> None:
    """Crashes of children that were up while a later sibling started are forgotten."""

    def all_are_up(self: SupervisorMachine) -> None:
        self._early.clear()
        real(self)

    real = SupervisorMachine._all_are_up
    monkeypatch.setattr(SupervisorMachine, "_all_are_up", all_are_up)


@bug
def callers_wait_for_ever(monkeypatch: Any) -> None:
    """Calls that wait when the supervisor begins to end are not refused."""
    monkeypatch.setattr(SupervisorMachine, "refuse_all_calls", _nothing)


@small_bug("p one_for_all never x")
def starters_wait_for_ever(monkeypatch: Any) -> None:
    """A caller whose child was stopped while it started gets no answer."""
    monkeypatch.setattr(SupervisorMachine, "refuse_start", _nothing)


@small_bug("p rest_for_one never p hold")
def leavers_wait_for_ever(monkeypatch: Any) -> None:
    """terminate_child is not answered if the child could not be stopped and is held for."""
    real = SupervisorMachine._hold

    def hold(self: SupervisorMachine, slot: Slot, stopping: Stopping) -> None:
        real(self, slot, attrs.evolve(stopping, leavers=[]))

    monkeypatch.setattr(SupervisorMachine, "_hold", hold)


@bug
def temporary_children_come_back(monkeypatch: Any) -> None:
    """A temporary child is restarted when it crashes."""
    monkeypatch.setitem(VERDICTS, (Restart.TEMPORARY, False), Verdict(Fate.RESTART, report=True))


@bug
def temporary_bystanders_come_back(monkeypatch: Any) -> None:
    """A temporary child that was stopped in a group restart is started again with the others."""
    monkeypatch.setattr(
        SupervisorMachine, "_release_bystanders", lambda self, plan: setattr(plan, "bystanders", ())
    )


@bug
def bystanders_stay_down(monkeypatch: Any) -> None:
    """A group restart starts only the child that crashed."""
    real = endings.restart_group
    monkeypatch.setattr(endings, "restart_group", lambda *args: (real(*args)[0], (args[2],)))


@bug
def ending_restarts(monkeypatch: Any) -> None:
    """A child that dies while its supervisor ends is restarted."""
    real = SupervisorMachine.is_doomed
    monkeypatch.setattr(
        SupervisorMachine,
        "is_doomed",
        lambda self, slot: self.phase is not Phase.ENDING and real(self, slot),
    )


@bug
def odd_ends_are_silent(monkeypatch: Any) -> None:
    """A child that crashes when it is told to stop is not reported."""
    monkeypatch.setattr(SupervisorMachine, "check_end", _nothing)


@bug
def deaths_are_told_twice(monkeypatch: Any) -> None:
    """A child that crashed and then belongs to a group that stops is reported again."""
    real = SupervisorMachine.died

    def died(self: SupervisorMachine, slot: Slot, reason: Any) -> None:
        is_doomed = self.is_doomed(slot)
        real(self, slot, reason)
        if not (is_doomed or reason.is_ignore):
            self.check_end(slot, reason)

    monkeypatch.setattr(SupervisorMachine, "died", died)


@bug
def no_hurry(monkeypatch: Any) -> None:
    """The total budget of a stop is not kept."""
    monkeypatch.setattr(SupervisorMachine, "_hurry", _nothing)


@bug
def infinity_is_for_ever(monkeypatch: Any) -> None:
    """Hurrying does not reach children that have been asked already."""

    def hurry(self: SupervisorMachine, ending: Any) -> None:
        ending.is_hurried = True

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

    def hold(self: SupervisorMachine, slot: Slot, stopping: Stopping) -> None:
        del self._live[slot.ref]
        real(self, slot, stopping)

    monkeypatch.setattr(SupervisorMachine, "_hold", hold)


@bug
def chain_is_cut(monkeypatch: Any) -> None:
    """An escalation forgets what came from below."""
    real = endings.Escalation

    def cut(reason: ExitReason, **fields: Any) -> Any:
        return real(reason=attrs.evolve(reason, detail=None), **fields)

    monkeypatch.setattr(endings, "Escalation", cut)


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
    monkeypatch.setattr(SupervisorThread, "_disarm", _nothing)


@bug
def killed_at_once(monkeypatch: Any) -> None:
    """Children are interrupted without having been asked."""

    def stop(
        self: SupervisorMachine,
        slot: Slot,
        why: Why,
        failure: Any = endings.ASKED_TO_STOP,
        leaver: Any = None,
    ) -> None:
        stopping = Stopping(why, failure, leavers=[leaver] if leaver else [])
        slot.move(STOPPING, stopping=stopping)
        self._climb(slot, stopping, INTERRUPT)

    monkeypatch.setattr(SupervisorMachine, "stop", stop)


@bug
def a_check_in_is_not_looked_at(monkeypatch: Any) -> None:
    """A child is stalled once its first deadline has passed, whatever it did meanwhile."""
    monkeypatch.setattr(SupervisorMachine, "_silent", lambda self, slot, message: self._stall(slot))


@bug
def one_check_in_is_enough(monkeypatch: Any) -> None:
    """The deadline is not set again once the child has checked in."""
    monkeypatch.setattr(
        SupervisorMachine,
        "_silent",
        lambda self, slot, message: (
            self._stall(slot) if message.silent_until <= self._now else None
        ),
    )


@bug
def who_starts_is_not_watched(monkeypatch: Any) -> None:
    """A child that comes up gets no deadline."""
    real = SupervisorMachine._on_started

    def on_started(self: SupervisorMachine, message: Any) -> None:
        real(self, message)
        self._out = [one for one in self._out if not isinstance(one, messages.Arm)]

    monkeypatch.setattr(SupervisorMachine, "_on_started", on_started)


@bug
def stalls_are_forgiven(monkeypatch: Any) -> None:
    """A stalled child is stopped, and that is all."""
    monkeypatch.setattr(slots, "FAILURES", slots.FAILURES - {SILENT})


@bug
def deadlines_survive(monkeypatch: Any) -> None:
    """The deadline of a child that has ended is not cleared."""
    real = SupervisorMachine._on_exited

    def on_exited(self: SupervisorMachine, message: ChildExited) -> None:
        real(self, message)
        self._out = [one for one in self._out if one != messages.Disarm(message.ref)]

    monkeypatch.setattr(SupervisorMachine, "_on_exited", on_exited)


@bug
def stalls_during_boot_are_judged_at_once(monkeypatch: Any) -> None:
    """The boot and the restart then make a mess of each other's plans."""
    monkeypatch.setitem(lives.AFTERMATH, SILENT, "died")


@bug
def calls_outlive_a_stall_that_ends_all(monkeypatch: Any) -> None:
    """Calls that waited for the end of a stalled child are looked at after that has ended the supervisor."""

    def stall_is_over(self: SupervisorMachine, slot: Slot, reason: Any) -> None:
        parked, slot.parked = slot.parked, []
        real(self, slot, reason)
        self._waiting.extend(parked)

    real = SupervisorMachine._stall_is_over
    monkeypatch.setattr(SupervisorMachine, "_stall_is_over", stall_is_over)


@bug
def pauses_are_silence(monkeypatch: Any) -> None:
    """Time in which the program was suspended counts."""
    monkeypatch.setattr(pauses.Pauses, "after", lambda self, began: None)


@bug
def nobody_waits(monkeypatch: Any) -> None:
    """The back-off is worked out and not waited for."""
    real = restarts.Delays.next_wait
    monkeypatch.setattr(restarts.Delays, "next_wait", lambda self: real(self) and 0.0)


@bug
def patience_has_no_limit(monkeypatch: Any) -> None:
    """Waits grow beyond the maximum."""

    def next_wait(self: restarts.Delays) -> float | None:
        wait = real(self)
        return None if wait is None else self._last

    def grow(self: restarts.Delays) -> float | None:
        wait = next_wait(self)
        if wait is not None:
            self._last = wait * 3
        return self._last

    real = restarts.Delays.next_wait
    monkeypatch.setattr(restarts.Delays, "next_wait", grow)


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
    real = SupervisorMachine.call_off

    def call_off(self: SupervisorMachine, slot: Slot) -> None:
        before = list(self._out)
        real(self, slot)
        self._out[:] = before

    monkeypatch.setattr(SupervisorMachine, "call_off", call_off)


@bug
def nothing_is_handed_over(monkeypatch: Any) -> None:
    """What a child has saved goes with it."""
    monkeypatch.setattr(SupervisorThread, "_keep", _nothing)


@bug
def strays_are_heirs(monkeypatch: Any) -> None:
    """A child that was given up shares what it saves with its replacement."""
    real = SupervisorThread._start

    def start(self: SupervisorThread, action: Any) -> None:
        strays = [
            child for child, _ in self.tree.strays() if child.birth.handover is action.handover
        ]
        for child in strays:
            self._keep(child, child.state)
        real(self, action)

    monkeypatch.setattr(SupervisorThread, "_start", start)


@bug
def the_detached_die_in_silence(monkeypatch: Any) -> None:
    """Nobody tells of the crash of a child that was let go."""
    monkeypatch.setattr(SupervisorThread, "_mourn", _nothing)


@bug
def the_detached_are_forgotten_too_early(monkeypatch: Any) -> None:
    """Workers are let go and waited for."""

    def let_go(self: SupervisorMachine, slot: Slot, stopping: Stopping) -> None:
        self._out.append(messages.Detach(slot.ref))

    monkeypatch.setattr(SupervisorMachine, "_let_go", let_go)


# What a plan drops it releases, and what counts as "up, or will be started again"


@small_bug("TX one_for_one all_significant p")
def who_is_being_stopped_for_good_counts(monkeypatch: Any) -> None:
    """A significant child that terminate_child is just stopping keeps its supervisor
    up, for ever.
    """
    real = SupervisorMachine._is_up_or_coming
    monkeypatch.setattr(
        SupervisorMachine,
        "_is_up_or_coming",
        lambda self, slot: slot.state is not UNDEFINED or real(self, slot),
    )


@small_bug("TpX rest_for_one all_significant p", is_rare=True)
def bystanders_count(monkeypatch: Any) -> None:
    """A temporary child that a group restart stops and does not start counts as one
    that comes back.
    """

    def is_coming(self: SupervisorMachine, slot: Slot) -> bool:
        return real(self, slot) or (
            self._plan is not None
            and slot.id in {*self._plan.stops, *self._plan.starts, *self._plan.awaiting}
        )

    real = SupervisorMachine.is_coming
    monkeypatch.setattr(SupervisorMachine, "is_coming", is_coming)


@small_bug("T one_for_one all_significant T")
def who_comes_does_not_count(monkeypatch: Any) -> None:
    """A significant child that its group restart is about to start does not count."""
    monkeypatch.setattr(SupervisorMachine, "is_coming", lambda self, slot: False)


@small_bug("px rest_for_one never x")
def bystanders_of_a_wait_keep_their_specs(monkeypatch: Any) -> None:
    """Temporary bystanders are forgotten in their turn to start, which a failed restart
    never comes to.
    """

    def step(self: SupervisorMachine, plan: Plan) -> bool:
        if plan.bystanders and not (plan.stops or plan.awaiting):
            plan.bystanders = ()
        return real(self, plan)

    def start_next(self: SupervisorMachine, plan: Plan) -> None:
        slot = self.slots.get(next(iter(plan.starts)))
        if (
            slot is not None
            and self.phase is Phase.UP
            and slot.spec.restart is Restart.TEMPORARY
            and not slot.starters
        ):
            plan.starts.popitem(last=False)
            if slot.state is UNDEFINED:
                self.release(slot)
            return
        real_start(self, plan)

    real, real_start = SupervisorMachine._step, SupervisorMachine._start_next
    monkeypatch.setattr(SupervisorMachine, "_step", step)
    monkeypatch.setattr(SupervisorMachine, "_start_next", start_next)


@small_bug("p rest_for_one never p")
def starts_that_are_overtaken_fail(monkeypatch: Any) -> None:
    """A start call whose child a group restart stops fails, and a new child is
    forgotten.
    """

    def gone(self: SupervisorMachine, slot: Slot, stopping: Stopping) -> None:
        if stopping.why is Why.GROUP:
            self.release(slot)
        real(self, slot, stopping)

    real = SupervisorMachine._gone
    monkeypatch.setattr(SupervisorMachine, "_gone", gone)


@small_bug("p rest_for_one never p")
def starts_that_are_broken_off_fail(monkeypatch: Any) -> None:
    """A start call that a group restart has taken over fails when another start of the
    group does.
    """

    def drop_plan(self: SupervisorMachine, slot: Slot, reason: Any) -> None:
        starts = (
            list(self._plan.starts)
            if self._plan is not None and slot.id in self._plan.awaiting
            else []
        )
        real(self, slot, reason)
        for one in [self.slots[id] for id in starts if id in self.slots]:
            if one.starters:
                self.release(one)

    real = SupervisorMachine._drop_plan
    monkeypatch.setattr(SupervisorMachine, "_drop_plan", drop_plan)


@small_bug("p one_for_all never x")
def starts_that_are_broken_off_wait_for_ever(monkeypatch: Any) -> None:
    """When terminate_child cancels a restart, the start calls that waited for it are
    forgotten.
    """

    def cancel(self: SupervisorMachine, slot: Slot) -> None:
        is_due = slot.due is not None
        real(self, slot)
        if not is_due:
            self._plan = None

    real = SupervisorMachine._cancel
    monkeypatch.setattr(SupervisorMachine, "_cancel", cancel)


@small_bug("xp one_for_one never p dynamic")
def only_a_caller_releases(monkeypatch: Any) -> None:
    """A child that terminate_child stops is forgotten only if the caller still waits
    (two may terminate each other).
    """

    def gone(self: SupervisorMachine, slot: Slot, stopping: Stopping) -> None:
        if stopping.why is Why.CALLED and not stopping.leavers:
            stopping.why = Why.GROUP
        real(self, slot, stopping)

    real = SupervisorMachine._gone
    monkeypatch.setattr(SupervisorMachine, "_gone", gone)


@small_bug("T one_for_one all_significant T")
def ends_are_judged_at_once(monkeypatch: Any) -> None:
    """A start that is under way when the last significant child ends, and comes to
    nothing, keeps the supervisor up.
    """

    def judge(self: SupervisorMachine) -> None:
        real(self)
        self._open_end = None

    real = SupervisorMachine.judge_open_end
    monkeypatch.setattr(SupervisorMachine, "judge_open_end", judge)


@small_bug("T one_for_one all_significant T", is_rare=True)
def ends_are_judged_once_more(monkeypatch: Any) -> None:
    """The end of a significant child is remembered although another one was up, or has
    come up since.
    """

    def judge(self: SupervisorMachine) -> None:
        end = self._open_end
        real(self)
        if self.phase is Phase.UP:
            self._open_end = end

    real = SupervisorMachine.judge_open_end
    monkeypatch.setattr(SupervisorMachine, "judge_open_end", judge)


@small_bug("tpp one_for_all never p")
def ignored_while_overtaken_is_a_failure(monkeypatch: Any) -> None:
    """A child that says Ignore while its group restart has not come to stop it yet
    counts as one that did not start.
    """

    def ended_early(self: SupervisorMachine, slot: Slot, reason: Any) -> None:
        self.absorb(slot, reason) if self.is_doomed(slot) else real(self, slot, reason)

    real = SupervisorMachine._ended_early
    monkeypatch.setattr(SupervisorMachine, "_ended_early", ended_early)


@small_bug("p rest_for_one never p")
def refused_newcomers_are_kept(monkeypatch: Any) -> None:
    """A new child whose start has failed stays specified."""
    monkeypatch.setattr(Slot, "is_new", False)


@small_bug("p one_for_all never x")
def deleting_forgets_the_caller(monkeypatch: Any) -> None:
    """delete_child of a child whose start waits for its group forgets who has asked for
    the start.
    """

    def delete(self: SupervisorMachine, call: Any, slot: Slot) -> None:
        slot.starters = ()
        real(self, call, slot)

    real = SupervisorMachine._delete
    monkeypatch.setattr(SupervisorMachine, "_delete", delete)
