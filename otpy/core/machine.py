"""The supervisor's decisions: one message and the time in, a list of actions out.

Laws:
1. All that decides about children is in this folder. The thread that drives the machine
   performs the actions in order and reports back.
2. A message about a number that no slot has is about the past, and is dropped.
3. No clause moves the plan: ``receive`` has one clause handle the message, and then
   moves plan and waiting calls on until nothing moves any more. So no clause is
   overtaken by another one half-way.

Four floors, each of which knows only those below it:

* ``roster``: the children, and what can be done to each;
* ``endings``: when the supervisor itself has to end;
* ``lives``: what becomes of a child that dies, stops, or lets its time run out;
* ``machine``: messages and calls, and the plan that goes on.

Three things are to be kept apart:

* A *slot* is a child: its spec, its state, its number (slots.py).
* A *plan* is the one long operation that goes on (plan.py). A one_for_one restart needs
  no plan: it starts one child and disturbs no other, so many can go on side by side.
* The *waiting* calls are those that would meddle with a plan. They are served when it
  is over. Queries never wait.

The words for an end of something, in all four files:

* *release* a child that is down: refuse its start, drop its spec if that goes with it;
* *let go* a worker: it runs on without a supervisor;
* *abandon* an incarnation that could not be stopped: nothing that it says counts;
* *write off* an abandoned incarnation: its end is not waited for any more;
* *call off* the restart that a child waits for;
* *drop* a plan whose start has failed: the next attempt makes a new one.

Where OTP blocks, messages are let in:

* When a group restart overtakes a start call, the plan makes that start, in its turn,
  and what comes of it answers the call. OTP would serve the call before or after the
  restart.
* When a significant child ends while others are being started, it is open whether the
  supervisor ends with it. That is decided when it is known what has come of them.

What this folder must not know: threads, queues, kinds of children, debuggers,
wall-clock time.
"""

from __future__ import annotations

import random
from typing import Any

from otpy import exceptions, reports
from otpy.core.endings import (
    ASKED_TO_STOP,
    BOOTING,
    DETACHED,
    ENDING,
    FINISHED,
    OVER,
    UP,
)
from otpy.core.lives import INTERRUPT_GRACE, Lives
from otpy.core.messages import (
    Action,
    Begin,
    Call,
    ChildExited,
    ChildStarted,
    CountChildren,
    DeleteChild,
    Due,
    End,
    GetChildSpec,
    RestartChild,
    Retry,
    StartChild,
    StopSupervisor,
    TakeSnapshot,
    Tell,
    TerminateChild,
    TooManyUnstopped,
    Up,
    WhichChildren,
)
from otpy.core.plan import Plan
from otpy.core.slots import (
    ACTIVE,
    CALLED,
    GROUP,
    RESTARTING,
    RUNNING,
    STARTING,
    STOPPING,
    UNDEFINED,
    UNSTOPPED,
    UP_OR_COMING,
    Slot,
    State,
)
from otpy.exceptions import NotAlive, NotFound, Refusal, SpecError, WouldDeadlock
from otpy.reports import Cause
from otpy.specs import SupervisorSpec, check_member

CLAUSES: dict[type, str] = {
    # what each message means; a message of another type is a stray
    Begin: "_on_begin",
    StopSupervisor: "_on_stop_supervisor",
    TooManyUnstopped: "_on_too_many_unstopped",
    ChildStarted: "_on_started",
    ChildExited: "_on_exited",
    Due: "_on_due",
    Retry: "_on_retry",
    StartChild: "_on_meddling",
    TerminateChild: "_on_meddling",
    RestartChild: "_on_meddling",
    DeleteChild: "_on_meddling",
    GetChildSpec: "_on_get_childspec",
    WhichChildren: "_on_which_children",
    CountChildren: "_on_count_children",
    TakeSnapshot: "_on_take_snapshot",
}

REFUSALS: dict[type[Call], dict[State, type[Refusal]]] = {
    # call: {state: refusal}            docs/explanation/otp.md, "Management calls"
    # STOPPING is not here: its end is worth waiting for. ENDED is not, either: no call is
    # served while the supervisor boots.
    StartChild: {
        UNDEFINED: exceptions.AlreadyPresent,
        RESTARTING: exceptions.AlreadyPresent,
        STARTING: exceptions.AlreadyStarted,
        RUNNING: exceptions.AlreadyStarted,
        UNSTOPPED: exceptions.AlreadyStarted,
    },
    RestartChild: {
        RESTARTING: exceptions.StillRestarting,
        STARTING: exceptions.StillRunning,
        RUNNING: exceptions.StillRunning,
        UNSTOPPED: exceptions.StillRunning,
    },
    DeleteChild: {
        RESTARTING: exceptions.StillRestarting,
        STARTING: exceptions.StillRunning,
        RUNNING: exceptions.StillRunning,
        UNSTOPPED: exceptions.StillRunning,
    },
}

ABSENT: dict[type[Call], str] = {
    # what a call does where there is no such child
    StartChild: "_add",
    TerminateChild: "_not_found",
    RestartChild: "_not_found",
    DeleteChild: "_not_found",
}

PRESENT: dict[type[Call], str] = {
    # what a call does to a child where REFUSALS has nothing against it
    TerminateChild: "_terminate",
    RestartChild: "_restart_for",
    DeleteChild: "_delete",
}


class SupervisorMachine(Lives):
    """One supervisor's state and rules. Only one thread may use it."""

    def __init__(
        self,
        spec: SupervisorSpec,
        path: str,
        grace: float = INTERRUPT_GRACE,
        rng: random.Random | None = None,
        *,
        heartbeats: bool = True,
    ) -> None:
        super().__init__(spec, path, grace, rng, heartbeats=heartbeats)

    def receive(self, message: object, now: float) -> list[Action]:
        """Handle *message* at the monotonic time *now*; return the actions in order."""
        self._before, self._now, self._out = self._now, now, []
        getattr(self, CLAUSES.get(type(message), "_on_stray"))(message)
        if self._plan is not None or self._waiting or self._open_end is not None:
            self._move_on()
        return self._out

    # The plan

    def _on_begin(self, message: Begin) -> None:
        self._plan = Plan.of((), self.slots)

    def _move_on(self) -> None:
        """Move the plan and the waiting calls on until nothing moves any more."""
        while True:
            if self._open_end is not None:
                self.judge_open_end()
            if self._plan is not None:
                if not self._step(self._plan):
                    return
            elif self._waiting:
                self._serve(self._waiting.popleft())
            else:
                return

    def _step(self, plan: Plan) -> bool:
        """Make one step; False: it waits for a child."""
        if plan.stops and len(plan.awaiting) < plan.width:
            self._stop_next(plan)
        elif plan.awaiting:
            return False
        elif plan.bystanders:
            self._release_bystanders(plan)
        elif plan.starts:
            self._start_next(plan)
        else:
            self._finish()
        return True

    def _stop_next(self, plan: Plan) -> None:
        slot = self.slots.get(plan.stops.popitem(last=False)[0])
        if slot is None:
            return
        if slot.state in ACTIVE:
            plan.awaiting.add(slot.id)
        if slot.state in UP_OR_COMING:
            self.stop(slot, GROUP)

    def _release_bystanders(self, plan: Plan) -> None:
        """Release the temporary children that were stopped with the group (OTP: del_child).

        Not those that were just being started for a call: that is served after the
        restart.
        """
        bystanders, plan.bystanders = plan.bystanders, ()
        for slot in [self.slots[id] for id in bystanders if id in self.slots]:
            if slot.state is UNDEFINED and not slot.starters:
                self.release(slot)

    def _start_next(self, plan: Plan) -> None:
        slot = self.slots.get(plan.starts.popitem(last=False)[0])
        if slot is None:
            return
        if slot.state is UNDEFINED:
            plan.awaiting.add(slot.id)
            self.start(slot, self.cause_of(slot))
        elif slot.held is not None and not self.is_temporary(slot):
            slot.held.is_wanted = True
            self._plan = None  # it goes on when that has ended

    def _finish(self) -> None:
        self._plan = None
        if self.phase is BOOTING:
            self._all_are_up()
        elif self.phase is ENDING and self.ending is not None:
            self.phase, ending = FINISHED, self.ending
            took = self._now - ending.since
            self._out.append(End(ending.outcome, tuple(ending.ended), took, tuple(self._let_gone)))

    def _all_are_up(self) -> None:
        self.phase = UP
        self._out.append(Up())
        early, self._early = self._early, []
        for slot, reason in early:
            self.died(slot, reason)

    # Calls

    def _on_stop_supervisor(self, message: StopSupervisor) -> None:
        self.end(DETACHED if message.detach else ASKED_TO_STOP, detaches=message.detach)
        if message.within is not None and self.ending is not None and self.phase is ENDING:
            self.limit_stop(self.ending, message.within, message.grace)

    def _on_meddling(self, call: Any) -> None:
        if call.inside is not None:
            self._callers.setdefault(call.inside, []).append(call)
        if self.phase in OVER:
            self.refuse(call, NotAlive(self.path))
        elif self._plan is None:
            self._serve(call)
        elif call.inside in self._plan.awaiting or call.inside in self._plan.stops:
            # the plan that the call would wait for waits itself for the caller
            self.refuse(call, WouldDeadlock(f"{self.path}/{call.inside}"))
        else:
            self._waiting.append(call)

    def _serve(self, call: Any) -> None:
        slot = self.slots.get(call.id)
        if slot is None:
            getattr(self, ABSENT[type(call)])(call)
        elif slot.state is STOPPING and not isinstance(call, TerminateChild):
            if call.inside == slot.id:
                self.refuse(call, WouldDeadlock(slot.path))
            else:
                slot.parked.append(call)
        elif (refusal := REFUSALS.get(type(call), {}).get(slot.state)) and not (
            isinstance(call, RestartChild) and slot.due is not None  # it waits for nothing but time
        ):
            self.refuse(call, refusal(slot.path))
        else:
            getattr(self, PRESENT[type(call)])(call, slot)

    def _not_found(self, call: Any) -> None:
        self.refuse(call, NotFound(f"{self.path}/{call.id}"))

    def _add(self, call: StartChild) -> None:
        try:
            check_member(self.spec, call.spec, self.path)
        except SpecError as error:
            self.refuse(call, error)
            return
        if self.spec.max_children is not None and len(self.slots) >= self.spec.max_children:
            self.refuse(call, exceptions.MaxChildren(self.path))
            return
        slot = self.slots[call.id] = self._slot(call.spec)
        slot.starters = (call,)
        self.start(slot, Cause.CALL)

    def _restart_for(self, call: RestartChild, slot: Slot) -> None:
        is_hastened = slot.due is not None
        if is_hastened:
            self.call_off(slot)
        slot.starters = (*slot.starters, call)
        if not is_hastened:
            self.start(slot, Cause.CALL)
            return
        self.begin_group(slot)  # the rest of it is down because of this child
        if self._plan is not None:
            self._plan.hastened = slot

    def _terminate(self, call: TerminateChild, slot: Slot) -> None:
        if call.inside == call.id and slot.state in ACTIVE and not call.detach:
            self.refuse(call, WouldDeadlock(slot.path))
            return
        if slot.spec.significant:
            self._open_end = None  # terminate_child never ends the supervisor
        if slot.stopping is not None:
            slot.stopping.leavers.append(call)
        elif slot.state in ACTIVE:
            self.stop(slot, CALLED, leaver=call)
        else:
            self._cancel(slot)
            self.answer(call, None)

    def _cancel(self, slot: Slot) -> None:
        """Terminate a child that does not run: what was going to start it does not."""
        waiters = [self.slots[id] for id in self.group(slot)[1]] if slot.holds_up else []
        # A child that waits for a time: the rest of its group is down because of it only.
        if slot.due is not None:
            self._plan = self.take_over(slot)
            del self._plan.starts[slot.id]
        self.call_off(slot)
        if slot.held is not None:
            slot.held.why, slot.held.is_wanted = CALLED, False
        if slot.state is UNDEFINED:
            self.release(slot)
        called = [
            one.id
            for one in waiters
            if one.starters and one.state is UNDEFINED and not self.is_coming(one)
        ]
        # The others stay down, but callers have asked for these.
        if called:
            self._plan = Plan.of((), called)

    def _delete(self, call: DeleteChild, slot: Slot) -> None:
        self.refuse_start(slot, ASKED_TO_STOP)
        del self.slots[slot.id]
        self.answer(call, None)

    def _on_get_childspec(self, call: GetChildSpec) -> None:
        slot = self.slots.get(call.id)
        if slot is None:
            self._not_found(call)
        else:
            self.answer(call, slot.spec)

    def _on_which_children(self, call: WhichChildren) -> None:
        self.answer(call, self.infos())

    def _on_count_children(self, call: CountChildren) -> None:
        self.answer(call, self.counts())

    def _on_take_snapshot(self, call: TakeSnapshot) -> None:
        self.answer(call, self.snapshot(call.beats))

    def _on_stray(self, message: object) -> None:
        self._out.append(Tell(reports.StrayMessage(path=self.path, item=message)))
