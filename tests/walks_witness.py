"""The witness of the walks (walks.py): what it notes, and the invariants that it checks."""

from __future__ import annotations

import math
from typing import Any

from otpy import exceptions, reports
from otpy.core import messages
from otpy.core.endings import ASKED_TO_STOP, OVER, Phase
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
from otpy.reports import ExitKind
from otpy.runtime.supervisor import SupervisorThread
from otpy.specs import (
    Budget,
    ChildType,
    Restart,
    Strategy,
)
from tests.oracle import comes
from tests.walks_cast import PAUSE, Actor, Broken, Chronicle


class Witness:
    """Notes what happens in a world, and checks what must hold."""

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
