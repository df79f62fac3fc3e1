"""The life of a child: it dies, is restarted or not, is stopped, its time is up.

From a death to a restart: ``receive``, ``_on_exited``, ``died``, ``_restart``.

Where OTP blocks, this keeps what can be observed, and lets messages in:

* A crash during a group restart makes a new plan that contains the rest of the old one,
  and spends a unit. OTP would finish the pointless start first.
* During boot, deaths of children that are already up are judged when all are up, as
  OTP's mailbox would keep them. OTP answers no question meanwhile; this machine does,
  and says that they are down.
* A failed start in a plan ends the plan; the child is RESTARTING, and a Retry goes to
  the end of the queue, so that calls and a shutdown come first
  (docs/explanation/otp.md, "Failed restarts"). A message that takes the child out of
  RESTARTING calls the retry off.

Where otpy goes beyond OTP:

* A child that failed may have to wait (``backoff``). It is RESTARTING then as well,
  with a time when it is due, and the rest of its group is stopped at once and waits
  with it, down. The unit is spent when the wait is over.
* A child that does not check in (``heartbeat``) is stopped, and its end is judged as a
  crash. Its one timer is set to the time by which it must check in; when that runs out,
  it is set anew, or the child is silent for too long. So a check-in costs nothing here.
* A limit of a start, a stop or a heartbeat that a pause of the whole program has hit
  begins anew, once (pauses.py).
* Detaching is an end that stops no child.

Words: *let go* a worker: it runs on without a supervisor; *abandon* an incarnation that
could not be stopped: nothing that it says counts; *hold* a start until an abandoned
incarnation has ended; *drop* a plan whose start has failed: the next attempt makes a
new one.
"""

from __future__ import annotations

import random

import attrs

from otpy import reports
from otpy.core.endings import (
    ASKED_TO_STOP,
    BOOTING,
    ENDING,
    UP,
    Ending,
    Endings,
)
from otpy.core.messages import (
    SUPERVISOR,
    Abandon,
    Arm,
    ChildExited,
    ChildStarted,
    Detach,
    Disarm,
    Due,
    Expose,
    Kill,
    Retry,
    Stop,
    TerminateChild,
)
from otpy.core.pauses import PAUSE, Pauses, slack
from otpy.core.plan import Plan
from otpy.core.restarts import VERDICTS, Fate
from otpy.core.slots import (
    ASK,
    CALLED,
    ENDED,
    GROUP,
    INTERRUPT,
    LATE,
    RESTARTING,
    RUNNING,
    SILENT,
    STARTING,
    STOPPING,
    UNDEFINED,
    UNSTOPPED,
    Held,
    Rung,
    Slot,
    State,
    Stopping,
    Why,
    above,
)
from otpy.reports import NORMAL_CLASS, Cause, ExitKind, ExitReason
from otpy.specs import Budget, ChildType, OnUnstopped, Strategy, SupervisorSpec

INTERRUPT_GRACE = 0.5
"""Seconds an interrupted thread may take to end, before it counts as unstopped."""

UNSTOPPABLE = ExitReason(ExitKind.KILLED, detail="it could not be stopped")

EXITS: dict[State, str] = {
    # what the end of a child means in each state that has one
    STARTING: "_ended_early",
    RUNNING: "died",
    STOPPING: "_has_stopped",
    UNSTOPPED: "_came_home",
}

DUES: dict[State, str] = {
    # what it means that the time of a child is up, in each state that has a timer
    STARTING: "_late",
    RUNNING: "_silent",
    STOPPING: "_has_not_ended",
    RESTARTING: "_try_again",
}

AFTERMATH: dict[Why, str] = {
    # what comes of a child that was stopped because of a failure of its own
    LATE: "_start_failed",
    SILENT: "_stall_is_over",
}


class Lives(Endings):
    """A roster that knows what becomes of its children.

    Attributes:
        grace: Seconds an interrupted child may take to end.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        path: str,
        grace: float,
        rng: random.Random | None,
        *,
        heartbeats: bool,
    ) -> None:
        super().__init__(spec, path, rng, heartbeats=heartbeats)
        self.grace = grace
        self._let_gone: list[str] = []
        self._pauses = Pauses()
        self._before = 0.0

    # Deaths

    def _on_started(self, message: ChildStarted) -> None:
        slot = self._live.get(message.ref)
        # In another state the child was given up, or a stop overtook its start.
        if slot is not None and slot.state is STARTING:
            self.came_up(slot, message)

    def _on_exited(self, message: ChildExited) -> None:
        slot = self._live.pop(message.ref, None)
        if slot is None:
            return
        slot.last_exit = message.reason
        if slot.state is RUNNING:
            if slot.spec.backoff is not None:
                slot.delays.was_up(self._now - slot.since)
            if slot.heartbeat is not None:
                self._out.append(Disarm(slot.ref))
            if self.phase is BOOTING:
                slot.move(ENDED)
                self._early.append((slot, message.reason))
                return
        getattr(self, EXITS[slot.state])(slot, message.reason)

    def died(self, slot: Slot, reason: ExitReason) -> None:
        """Judge the end of a child that was not asked to stop (OTP: do_restart/3)."""
        if self.is_doomed(slot):
            self.absorb(slot, reason)
            return
        is_normal = reason.kind in NORMAL_CLASS
        if is_normal and reason.is_ignore:
            self._decline(slot)
            return
        is_fatal = reason.is_fatal
        verdict = VERDICTS[slot.spec.restart, is_normal]
        if verdict.report or is_fatal:
            self.tell(reports.ChildTerminated, slot, reason=reason)
        slot.move(UNDEFINED)
        if is_fatal:
            self.give_up(slot.path, slot.incarnation, reason)
        elif verdict.fate is not Fate.RESTART:
            self.release(slot)
            if slot.spec.significant:
                self._open_end = reports.AutoShutdownBegun(
                    path=self.path, child=slot.path, reason=slot.last_exit
                )
                self.judge_open_end()
        elif slot.spec.backoff is None or (wait := slot.delays.next_wait()) is None:
            self._restart(slot, reason)
        else:
            self._wait(slot, reason, wait)

    def _ended_early(self, slot: Slot, reason: ExitReason) -> None:
        """The child ended before it was up."""
        if slot.spec.start_timeout is not None:
            self._out.append(Disarm(slot.ref))
        if reason.is_ignore:
            self.account(slot)
            self._decline(slot)
        elif self.is_doomed(slot):
            self.absorb(slot, reason)
        else:
            self._start_failed(slot, reason)

    def _has_stopped(self, slot: Slot, reason: ExitReason) -> None:
        stopping = slot.stopping
        assert stopping is not None, "it is STOPPING"
        self._out.append(Disarm(slot.ref))
        if stopping.has_failed:  # keep what a program wrote last, and its exit code
            stopping.failure = attrs.evolve(stopping.failure, detail=reason.detail)
        else:
            self.check_end(slot, reason)
        self.account(slot)
        self._gone(slot, stopping)

    def _came_home(self, slot: Slot, reason: ExitReason) -> None:
        """An abandoned child has ended at last, for which a start was held."""
        held = slot.held
        assert held is not None, "it is UNSTOPPED"
        if held.has_failed:
            getattr(self, AFTERMATH[held.why])(slot, held.failure)
            return
        slot.move(UNDEFINED)
        if held.is_wanted:
            self.begin_group(slot)
        else:
            self.release(slot)  # a plan that is to start it will find it down

    def _decline(self, slot: Slot) -> None:
        """The child raised Ignore: it does not run, and a temporary one is released."""
        slot.move(UNDEFINED)
        self.answer_start(slot)
        self.release(slot)
        self.settled(slot)

    # Restarts

    def _restart(self, slot: Slot, reason: ExitReason) -> None:
        """Spend one unit, then restart the group around *slot*, or give up."""
        if self.window.spend(self._now):
            self.begin_group(slot)
        else:
            self.give_up(slot.path, slot.incarnation, reason)

    def begin_group(self, slot: Slot) -> None:
        """Restart the group around *slot*, and spend nothing."""
        if self.spec.strategy is Strategy.ONE_FOR_ONE:
            self.start(slot, self.cause_of(slot))
        else:
            self._plan = self.take_over(slot)

    def take_over(self, slot: Slot, *, starts: bool = True) -> Plan:
        """Overtake the group around *slot*; return the plan that restarts it.

        What the plan that is under way has still to do with others stays to be done.

        Args:
            starts: Whether the group starts now; if not, it waits with *slot*.
        """
        stops, members = self.group(slot)
        for id in members:
            self.overtake(self.slots[id])
        bystanders = [id for id in stops if self.is_temporary(self.slots[id])]
        plan = Plan.of(stops, members if starts else (), bystanders=bystanders)
        if self._plan is not None:
            plan.take_along(self._plan, frozenset(members), self.slots)
        return plan

    def _on_retry(self, message: Retry) -> None:
        slot = self._live.get(message.ref)
        if slot is not None:
            self._try_again(slot)

    def _try_again(self, slot: Slot, message: Due | None = None) -> None:
        """The child has waited for its restart."""
        waiting = slot.waiting
        assert waiting is not None, "it is RESTARTING"
        self.call_off(slot)
        self._restart(slot, waiting.reason)

    def _wait(self, slot: Slot, reason: ExitReason, seconds: float) -> None:
        """Leave the child RESTARTING until it is due, and its group down with it."""
        hastened = self._plan.hastened if self._plan is not None else None
        self._plan = self.take_over(slot, starts=False)
        if hastened is not None and self._plan.hastened is None:
            self.refuse_start(hastened, reason)
        self.wait(slot, reason, seconds)

    def _start_failed(self, slot: Slot, reason: ExitReason) -> None:
        slot.move(UNDEFINED)
        if slot.starters:
            self.release(slot, reason)
            self.settled(slot)
            return
        self.tell(reports.StartFailed, slot, reason=reason)
        if self.phase is BOOTING:  # OTP: {shutdown, {failed_to_start_child, …}}
            error = reports.start_error(slot.path, reason)
            self.end(ExitReason(ExitKind.SHUTDOWN, error, f"{slot.id} did not start"))
        elif reason.is_fatal:
            self.give_up(slot.path, slot.incarnation, reason)
        elif (wait := slot.delays.next_wait()) is not None:
            self._wait(slot, reason, wait)
        else:
            self.wait(slot, reason, None)
            self._drop_plan(slot, reason)
        self.settled(slot)

    def _drop_plan(self, slot: Slot, reason: ExitReason) -> None:
        """Drop the plan that waits for *slot*: the rest waits for its next start."""
        if self._plan is not None and slot.id in self._plan.awaiting:
            if self._plan.hastened is not None:
                self.refuse_start(self._plan.hastened, reason)
            self._plan = None

    def cause_of(self, slot: Slot) -> Cause:
        if slot.starters:
            return Cause.CALL
        return Cause.INIT if self.phase is BOOTING else Cause.RESTART

    # Stops

    def stop(
        self,
        slot: Slot,
        why: Why,
        failure: ExitReason = ASKED_TO_STOP,
        leaver: TerminateChild | None = None,
    ) -> None:
        """Begin to stop a child that is up or coming up.

        Args:
            failure: How its end is judged, if *why* is a failure of its own.
            leaver: The call that waits for its end.
        """
        if slot.state is RUNNING:
            slot.delays.was_up(self._now - slot.since)
        stopping = Stopping(why, failure, leavers=[] if leaver is None else [leaver])
        slot.move(STOPPING, stopping=stopping)
        slot.since = self._now
        ending = self.ending
        is_let_go = leaver is not None and leaver.detach and slot.spec.type is ChildType.SUPERVISOR
        if is_let_go or (ending is not None and ending.detaches):
            self._let_go(slot, stopping)
            return
        self.refuse_calls_from(slot)
        if slot.spec.shutdown is Budget.BRUTAL_KILL or (ending is not None and ending.is_hurried):
            self._climb(slot, stopping, INTERRUPT)
        else:
            self._climb(slot, stopping, ASK)

    def _climb(self, slot: Slot, stopping: Stopping, rung: Rung) -> None:
        """Bring the child to a rung of the ladder; its time there begins now."""
        stopping.rung, slot.since = rung, self._now
        getattr(self, rung.act)(slot, stopping)

    def _ask(self, slot: Slot, stopping: Stopping) -> None:
        self._out.append(Stop(slot.ref))
        if isinstance(slot.spec.shutdown, Budget):
            self._out.append(Disarm(slot.ref))
        else:
            self._out.append(Arm(slot.ref, self._now + slot.spec.shutdown))

    def _interrupt(self, slot: Slot, stopping: Stopping) -> None:
        order = Kill(slot.ref, self.grace)
        if slot.spec.type is ChildType.SUPERVISOR:
            # it hurries, and never blocks: its end is certain, so there is no timer
            self._out += (order, Disarm(slot.ref))
        else:
            self._out.append(order if slot.spec.interrupt else Stop(slot.ref))
            self._out.append(Arm(slot.ref, self._now + self.grace))

    def _abandon(self, slot: Slot, stopping: Stopping) -> None:
        """Give the child up: from now on nothing that this incarnation says counts."""
        self._out.append(Disarm(slot.ref))
        unstopped = self.report(reports.Unstopped, slot, reason=UNSTOPPABLE)
        self._out.append(Abandon(slot.ref, unstopped))
        slot.last_exit = UNSTOPPABLE
        holds = slot.spec.unstopped is OnUnstopped.HOLD
        spec_goes = slot.is_new or (
            stopping.leavers and (self.spec.dynamic or self.is_temporary(slot))
        )
        if holds and self.phase is UP and not spec_goes:
            self._hold(slot, stopping)
            return
        del self._live[slot.ref]
        if slot.spec.unstopped is OnUnstopped.ESCALATE and self.phase is UP:
            # first: then nothing is started that would have to be stopped again
            self.give_up(slot.path, slot.incarnation, UNSTOPPABLE)
        if holds and stopping.why is GROUP and slot.is_new:
            self.release(slot, UNSTOPPABLE)  # or its group would start it beside itself
        self._gone(slot, stopping)

    def _hold(self, slot: Slot, stopping: Stopping) -> None:
        """Hold the start until the thread has really ended. No call waits for that."""
        is_late, leavers = stopping.why is LATE, stopping.leavers
        failure = stopping.failure if is_late else UNSTOPPABLE
        why = (
            CALLED if slot.starters or leavers else stopping.why
        )  # what a call began is not retried
        slot.move(UNSTOPPED, held=Held(why, stopping.failure))
        self.refuse_start(slot, failure)
        for call in leavers:
            self.answer(call, None)
        if why is LATE:
            self._drop_plan(slot, failure)
        self.settled(slot)

    def _let_go(self, slot: Slot, stopping: Stopping) -> None:
        """Let a worker run on; a supervisor lets its children run on, and ends."""
        self._out += (Disarm(slot.ref), Detach(slot.ref))
        if slot.spec.type is ChildType.WORKER:
            del self._live[slot.ref]
            self._let_gone.append(slot.id)
            self._gone(slot, stopping)

    def _gone(self, slot: Slot, stopping: Stopping) -> None:
        """The child no longer runs, or no longer counts."""
        if stopping.has_failed:
            getattr(self, AFTERMATH[stopping.why])(slot, stopping.failure)
            return
        slot.move(UNDEFINED)
        if stopping.why is not GROUP or stopping.leavers or self.phase is ENDING:
            self.release(slot)  # or else its plan decides
        for call in stopping.leavers:
            self.answer(call, None)
        self.settled(slot)

    # Timers

    def _on_due(self, message: Due) -> None:
        slot = self._live.get(message.ref)
        self._look_for_pause(message, slot)
        if message.ref == SUPERVISOR:
            self._budget_is_spent()
        elif slot is not None and (slot.state is STOPPING or not self.is_doomed(slot)):
            getattr(self, DUES[slot.state])(slot, message)

    def _look_for_pause(self, message: Due, slot: Slot | None) -> None:
        """Note a pause of the parent process if the timer is read so late (pauses.py)."""
        beats = slot.heartbeat if slot is not None and slot.state is RUNNING else None
        least = PAUSE if beats is None else slack(beats)
        if message.at is not None and self._now - message.at >= least:
            self._pauses.note(self._before, self._now)

    def _begins_anew(self, ref: int, since: float, limit: float) -> bool:
        """Set the timer of *ref* anew if a pause hit its *limit*; False: its time is up."""
        pause = self._pauses.after(since)
        if pause is None or pause.end + limit <= self._now:
            return False
        self._out.append(Arm(ref, pause.end + limit))
        return True

    def _has_not_ended(self, slot: Slot, message: Due) -> None:
        """Bring a child that did not end on its rung of the ladder to the next rung."""
        stopping = slot.stopping
        assert stopping is not None, "it is STOPPING"
        limit = stopping.rung.limit(slot.spec, self.grace)
        if (
            message.at is None
            or isinstance(limit, Budget)
            or not self._begins_anew(slot.ref, slot.since, limit)
        ):
            self._climb(slot, stopping, above(stopping.rung))
        elif self.ending is not None and self.ending.is_hurried:
            self.ending.deadline = self._now + self.grace  # so that it can be shortened

    def _late(self, slot: Slot, message: Due) -> None:
        limit = slot.spec.start_timeout
        assert limit is not None, "a child that starts has a timer for its start only"
        if not self._begins_anew(slot.ref, slot.since, limit):
            hint = f": {message.hint}" if message.hint else ""
            late = TimeoutError(f"not ready after {limit} s{hint}")
            self.stop(slot, LATE, ExitReason(ExitKind.KILLED, late))

    def _silent(self, slot: Slot, message: Due) -> None:
        """The time by which the child had to check in is over, as the timer was set."""
        until, heartbeat = message.silent_until, slot.heartbeat
        assert until is not None, "a child that is up has a timer for its heartbeat only"
        assert heartbeat is not None, "the same"
        since = until - heartbeat if message.silent_since is None else message.silent_since
        pause = self._pauses.after(since)
        if pause is not None:
            # the end of the pause counts as a check-in, and leaves of what was allowed
            # for once what is left of it
            until = max(until, pause.end + max(heartbeat, until - max(since, pause.start)))
        if until > self._now:
            self._out.append(Arm(slot.ref, until))
        elif message.is_debugged:
            self._out.append(Arm(slot.ref, self._now + heartbeat))
        else:
            self._stall(slot)

    def _stall(self, slot: Slot) -> None:
        failure = ExitReason(ExitKind.STALLED, TimeoutError("it did not check in"))
        stalled = self.report(reports.Stalled, slot, reason=failure)
        self._out.append(Expose(slot.ref, stalled))
        self.stop(slot, SILENT, failure)

    def _stall_is_over(self, slot: Slot, reason: ExitReason) -> None:
        """The silent child ended, or was given up: its failure counts as a crash now."""
        # first: its failure may end the supervisor, and then no call must be left to be
        # served
        self.settled(slot)
        slot.last_exit = reason
        if self.phase is BOOTING:
            slot.move(ENDED)
            self._early.append((slot, reason))
        else:
            self.died(slot, reason)

    def limit_stop(self, ending: Ending, within: float, grace: float | None) -> None:
        """Bound the rest of the stop, with the grace for interrupted children in it."""
        if grace is None:
            grace = within / 2 if within else self.grace
        self.grace = min(self.grace, grace)
        at = self._now + max(0.0, within - self.grace)
        if at + self.grace >= ending.deadline:
            return  # a stop can only be shortened
        ending.deadline = at + self.grace
        if at > self._now:
            ending.budget, ending.limited_since = at - self._now, self._now
            self._out.append(Arm(SUPERVISOR, at))
        else:
            self._out.append(Disarm(SUPERVISOR))
            self._hurry(ending)

    def _budget_is_spent(self) -> None:
        ending = self.ending
        assert ending is not None, "only an end has a budget"
        if self._begins_anew(SUPERVISOR, ending.limited_since, ending.budget):
            ending.deadline = self._now + ending.budget + self.grace
        else:
            self._hurry(ending)

    def _hurry(self, ending: Ending) -> None:
        """Interrupt all that still run, at one moment.

        A child that was interrupted before gets no more time.
        """
        assert self._plan is not None, "an end is a plan"
        ending.is_hurried, self._plan.width = True, float("inf")
        for slot in list(self._live.values()):
            if slot.stopping is not None:
                self._climb(slot, slot.stopping, INTERRUPT)
