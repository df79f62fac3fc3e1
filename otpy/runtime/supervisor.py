"""The thread that obeys: it takes a message, asks the machine, performs the orders.

Laws:
1. A supervisor's state belongs to its machine, and the machine to the supervisor's own
   thread. Every other thread puts messages.
2. The thread waits for its agenda only (``agenda``: news, mail, deadlines), with two
   exceptions. When it has started a thread, it waits, for microseconds, until that
   thread runs. When otpy's own code has broken, it waits up to INTERRUPT_GRACE seconds
   for the ends of its children.
3. No decision about children is made here. What to do comes from the machine. What
   became of it goes back to the machine as a message.
4. A child that raises where a child must not raise has crashed (``contract``).
5. A supervisor's thread drops no last reference to an object of a user, because a
   ``__del__`` may take long. What has ended is collected, and released on another
   thread (``remains``). After its last word the thread releases the rest itself.

Theory of operation. ``SupervisorThread.turn`` handles one message: the table PREPARE
adds what the machine cannot know, the machine answers with orders, and the table
PERFORM has a method for each order. News that is delivered on the supervisor's own
thread, such as "started" of a thread child, is read before the mail. So a child's
ChildStarted is read before its ChildExited, which the child's thread puts into the
mailbox, even if the child dies on its first line.

Which thread runs what:

* ``NestedSupervisor`` is a supervisor as its parent sees it: a child like any other.
  The parent's thread runs all of it.
* ``SupervisorThread`` is the supervisor itself. Its own thread runs all of it, with
  these exceptions: ``begin`` runs on the thread that starts the supervisor; ``alive``,
  ``stack`` and ``_hear`` run on any thread; ``_is_lost`` runs on the thread that finds
  out that the supervisor's thread has ended.

A nested supervisor delivers ChildStarted when all its own children are up, and
ChildExited when nothing of it runs any more. To kill it is to give it no time for its
stop: it never blocks, so it obeys.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from otpy.abc import Birth, Child, Deliver
from otpy.core import messages
from otpy.core.endings import ENDING, FINISHED, UP
from otpy.core.lives import INTERRUPT_GRACE
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import ChildExited, ChildStarted, Due, Message, StopSupervisor
from otpy.core.slots import RESTARTING, STARTING
from otpy.exceptions import InternalError, NotAlive, show, type_name
from otpy.reports import (
    ChildTerminated,
    ExitKind,
    ExitReason,
    SignalStop,
    StopReport,
    StopStage,
    StrayMessage,
    Unstopped,
    start_error,
)
from otpy.runtime import debugger, spares, stacks, threads
from otpy.runtime.agenda import Agenda, Reminder, TimeIsUp
from otpy.runtime.contract import CONTRACT, UNKNOWN, asked, put_down
from otpy.runtime.handle import Supervisor
from otpy.runtime.remains import Remains
from otpy.runtime.stop_timers import StopTimers
from otpy.runtime.tree import SUPERVISING, Tree
from otpy.runtime.waiting import Reply
from otpy.specs import ChildType, SupervisorSpec

CALM = 0.001
"""A supervisor that had no news for this many seconds after a restart makes a spare
thread for the next one. Not at once, because the replacement needs the interpreter
now."""

IMPORT_LOCK = re.compile(
    r"<frozen importlib\._bootstrap>\", line \d+, in (acquire|_lock_unlock_module)\b"
)
"""Finds in a stack that the thread waits for a module that another thread imports."""

WAITS_FOR_IMPORT = "it waits for an import lock"
"""The hint about a child that is not ready in time and waits for such a module. Often
the module is the one that starts the tree while it is imported."""

NEXT = {
    # stage of a stop by signals: what it means, and what the next signal would mean
    StopStage.STOPPING: "stopping; once more shortens all limits",
    StopStage.HURRYING: "all limits are zero; once more exits at once",
}


PREPARE: dict[type, str] = {
    # what is done with a message before the machine gets it. A method that returns None
    # has done all that there was to do, and the machine does not get the message.
    ChildExited: "_note_exit",
    messages.TakeSnapshot: "_take_pulses",
    messages.StartChild: "_note_call",
    messages.TerminateChild: "_note_call",
    messages.DeleteChild: "_note_call",
    StopSupervisor: "_note_stop",
    Reminder: "_note_reminder",
    TimeIsUp: "_note_due",
    threads.Witness: "_note_witness",
}

PERFORM: dict[type[messages.Action], str] = {
    # what each order of the machine does
    messages.Start: "_start",
    messages.Stop: "_stop",
    messages.Kill: "_kill",
    messages.Abandon: "_abandon",
    messages.Detach: "_detach",
    messages.Expose: "_expose",
    messages.Arm: "_arm",
    messages.Disarm: "_disarm",
    messages.Again: "_again",
    messages.Answer: "_answer",
    messages.Refuse: "_refuse",
    messages.Tell: "_tell",
    messages.Escalate: "_escalate",
    messages.Up: "_come_up",
    messages.End: "_end",
}


class NestedSupervisor:
    """A supervisor as its parent sees it. Meets ``Child``; runs on the parent's thread.

    Attributes:
        birth: What it was made from.
        core: The supervisor itself.
    """

    state = None
    """A supervisor saves nothing."""

    def __init__(self, birth: Birth) -> None:
        assert isinstance(birth.spec, SupervisorSpec)
        self.birth = birth
        self.core = SupervisorThread(birth.spec, birth.path, birth.tree)

    def start(self, deliver: Deliver) -> None:
        # A supervisor has no use for it, and each life would keep the one before alive.
        self.birth.last_exit = None
        self.core.begin(self.birth.ref, deliver)

    def stop(self) -> None:
        self.core.mailbox.put(StopSupervisor())

    def kill(self, grace: float = INTERRUPT_GRACE) -> bool:
        self.core.mailbox.put(StopSupervisor(0.0, grace))
        return True

    def detach(self) -> None:
        self.core.mailbox.put(StopSupervisor(detach=True))

    def abandon(self) -> None:
        raise InternalError(f"{self.birth.path}: a supervisor never has to be abandoned")

    def pulse(self) -> tuple[float, float]:
        raise InternalError(f"{self.birth.path}: a supervisor has no heartbeat")

    def stack(self) -> str:
        return self.core.stack()

    @property
    def alive(self) -> bool:
        return self.core.alive


class SupervisorThread:
    """The thread that obeys one machine.

    Attributes:
        path: The path of the supervisor.
        tree: What all supervisors of the running tree share.
        machine: What decides.
        mailbox: Where every other thread puts messages.
        timers: The deadlines by the tree's clock.
        spawner: Starts the threads of the children, and keeps a spare one.
        up: Answered when all children are up; refused if the supervisor ends before.
        done: Answered with the StopReport when nothing runs any more.
    """

    def __init__(self, spec: SupervisorSpec, path: str, tree: Tree) -> None:
        # a supervisor's dice are its own, whatever its siblings do
        dice = random.Random(f"{tree.seed} {path}")
        self.path, self.tree = path, tree
        self.machine = SupervisorMachine(spec, path, rng=dice, heartbeats=tree.heartbeats)
        self.up, self.done = Reply(), Reply()
        self._stops = StopTimers() if tree.has_own_clock else None
        self._agenda = Agenda(tree.clock, self._stops, self._leisure)
        self.mailbox, self.timers = self._agenda.mailbox, self._agenda.timers
        self.spawner = spares.Spawner(tree, path, self.mailbox.post)

        # what is being done
        self._message: object = None
        self._orders: list[messages.Action] = []
        self._turned_at = 0.0

        # the children that run, those that were let go, and the reports of the
        # supervisors below that have ended
        self._children: dict[int, Child] = {}
        self._detached: dict[int, Birth] = {}
        self._below: dict[str, StopReport] = {}
        self._remains = Remains(path, tree)

        # what is the same for all children: one object each
        self._ear: Deliver = self._agenda.deliver
        self._shared: dict[object, Any] = {}
        self._make_birth = functools.partial(
            Birth,
            spawn=self.spawner.spawn,
            supervisor=Supervisor(tree, path),
            tree=tree,
            shared=self._shared,
            remind=self._agenda.remind,
            soon=self._agenda.chores.append,
            returns_in=self.returns_in,
            leftovers=self._remains.hand_over,
        )

        # the supervisor as a child; the root has no parent to deliver to
        self._ref = 0
        self._deliver: Deliver = lambda news: None

        # its end
        self._signal = ""
        self._report: StopReport | None = None
        self._is_gone = False

    def begin(self, ref: int = 0, deliver: Deliver | None = None) -> None:
        """Start the thread; called once, on the thread that starts the supervisor.

        Args:
            ref: The number that the news must carry.
            deliver: Takes the news, which are those of a ``Child``; None: the root has
                no parent.
        """
        self._ref, self._deliver = ref, deliver or self._deliver
        self.tree.directory[self.path] = self
        self._agenda.news.append(messages.Begin())
        try:
            self.tree.launch(self._main, self.path, self._is_lost)
        except (RuntimeError, MemoryError) as error:  # can't start new thread
            spares.reserve.spend(error)
            self._crash(error)

    @property
    def alive(self) -> bool:
        """Whether it has not said its last word."""
        return not self.done.is_given

    def stack(self) -> str:
        """Return what its thread does now, as a traceback; "" if it has ended."""
        return stacks.stack_of(self._agenda.ident)

    def _hear(self, birth: Birth, message: Message) -> None:
        """Take news from a child of another package, if it is about that child."""
        if isinstance(message, ChildStarted | ChildExited) and message.ref == birth.ref:
            self._ear(message)
        else:
            stray = StrayMessage(path=birth.path, incarnation=birth.incarnation, item=message)
            self.tree.telemetry.tell(stray)

    # The loop

    def _main(self) -> None:
        self._agenda.ident = threading.get_ident()
        SUPERVISING.add(self._agenda.ident)
        is_open = self.path != self.tree.root
        try:
            if not is_open:
                self.tree.open(self.mailbox.put, self.done)
                is_open = True
            over = self.done.given
            while not over.has_happened:
                self.turn()
        except BaseException as error:
            if not self.alive:
                raise  # in the middle of its last word: ``_is_lost`` says it again
            spares.reserve.spend(error)
            self._break_down(error) if is_open else self._crash(error)
        finally:
            SUPERVISING.discard(self._agenda.ident)
            self._message = None
            self._orders.clear()
            self._remains.drop()

    def turn(self) -> None:
        """Take one message, waiting for it if there is none, and obey."""
        message = self._message = self._agenda.next()
        if (prepare := PREPARE.get(type(message))) is not None:
            message = self._message = getattr(self, prepare)(message)
            if message is None:
                return  # it was for this thread alone
        self._turned_at = self.tree.clock.monotonic()
        self._orders = self.machine.receive(message, self._turned_at)
        for action in self._orders:
            getattr(self, PERFORM[type(action)])(action)
        # Drop what the turn was about. What was kept of it goes later, by ``_remains``.
        self._message = None
        self._orders.clear()  # the machine has the same list

    def _leisure(self) -> tuple[float, Callable[[], object]] | None:
        """Return what to do after so many calm seconds; None: nothing."""
        if self.spawner.is_short and self.machine.phase is UP:
            return CALM, self.spawner.refill
        if self._remains.at == math.inf:
            return None
        return max(CALM, self._remains.at - time.monotonic()), self._remains.release

    def returns_in(self, id: str) -> float | None:
        """Return in how many seconds a child is restarted; None: it does not wait."""
        slot = self.machine.slots.get(id)
        if slot is None or slot.state is not RESTARTING:
            return None
        return 0.0 if slot.due is None else max(0.0, slot.due - self.tree.clock.monotonic())

    # What the machine cannot know is added to a message here

    def _note_due(self, message: TimeIsUp) -> Due:
        ref, at = message.ref, message.at
        child = self._children.get(ref)
        if child is None:
            return Due(ref, at=at)
        spec = child.birth.spec
        if spec.heartbeat is not None:
            since, until = self._ask(ref, "pulse")
            is_silent = until <= self.tree.clock.monotonic()
            return Due(ref, until, since, at, is_debugged=is_silent and debugger.is_attached())
        slot = self.machine.slots.get(spec.id)
        if slot is None or slot.ref != ref or slot.state is not STARTING:
            return Due(ref, at=at)
        # It is not ready in time. Its kind may know why.
        hint: str = getattr(spec.start, "if_late", "")
        if not hint and IMPORT_LOCK.search(self._ask(ref, "stack")):
            hint = WAITS_FOR_IMPORT
        return Due(ref, at=at, hint=hint)

    def _note_exit(self, message: ChildExited) -> ChildExited | None:
        child = self._children.pop(message.ref, None)
        if self._stops is not None:
            self._stops.forget(message.ref)
        if child is None:
            self._remains.keep(message)
        else:
            slot = self.machine.slots.get(child.birth.spec.id)
            self._remains.keep(message, child, slot, slot and slot.last_exit)
            state, error = asked(child, "state")
            if state is not child.birth.handover.state:
                self._keep(child, state)
            if error is not None:
                self._has_broken(message.ref, error, child)
                if message.reason.is_normal:
                    return None  # it has crashed just now, and that is the next message
            if isinstance(child, NestedSupervisor) and self.machine.phase is ENDING:
                below = child.core
                if below.done.is_given:
                    self._below[child.birth.spec.id] = below.done.wait(None, below.path)
        if message.ref in self._detached:
            self._mourn(message)
        return message

    def _keep(self, child: Child, state: object) -> None:
        """Keep what the child has saved, for its replacement."""
        handover = child.birth.handover
        if state is not UNKNOWN and state is not handover.state:
            self._remains.keep(handover.state)
            handover.state = state

    def _mourn(self, message: ChildExited) -> None:
        """Report the crash of a detached child, which the machine does not know."""
        birth = self._detached.pop(message.ref)
        if message.reason.is_normal:
            return
        report = ChildTerminated(
            path=birth.path,
            incarnation=birth.incarnation,
            thread=birth.path,
            reason=message.reason,
        )
        self.tree.telemetry.tell_late(report)

    def _take_pulses(self, message: messages.TakeSnapshot) -> messages.TakeSnapshot:
        beating = [
            ref for ref, child in self._children.items() if child.birth.spec.heartbeat is not None
        ]
        return attrs.evolve(message, beats={ref: self._ask(ref, "pulse")[0] for ref in beating})

    def _note_call(self, call: Any) -> Any:
        """Keep the specs that this call may drop: the child's and the call's own."""
        self._remains.keep(call, self.machine.slots.get(call.id), after=1.0)
        return call

    def _note_stop(self, message: StopSupervisor) -> StopSupervisor:
        """Report the signal that asks for the stop. Its handler could only put."""
        if message.signal and self.machine.phase is not FINISHED:
            stage = StopStage.HURRYING if self._signal else StopStage.STOPPING
            self._signal = message.signal
            self._report_stage(stage, NEXT[stage])
        return message

    def _report_stage(self, stage: StopStage, text: str, reason: ExitReason | None = None) -> None:
        report = SignalStop(
            path=self.path,
            signal=self._signal,
            stage=stage,
            detail=f"{self._signal}: {text}",
            reason=reason,
        )
        self.tree.telemetry.tell(report)

    def _note_reminder(self, reminder: Reminder) -> None:
        self._agenda.note(reminder)

    def _note_witness(self, witness: threads.Witness) -> None:
        """Have a thread reported that has ended without a word."""
        witness.speak()

    # Orders about children

    def _ask(self, ref: int, question: str, *args: Any) -> Any:
        """Ask the child *ref*. If it raises, it has crashed; CONTRACT has the answer."""
        ask, instead = CONTRACT[question]
        child = self._children.get(ref)
        if child is None:  # it has broken the contract: that is one of the next messages
            return instead
        try:
            return ask(child, *args)
        except BaseException as error:
            self._has_broken(ref, error, self._children.pop(ref, None))
            return instead

    def _has_broken(self, ref: int, error: BaseException, child: Child | None) -> None:
        """End a child that has raised where it must not; report it if it does not end.

        Args:
            ref, child: The child, which is no longer in ``_children``; None: there is
                nothing to end.
            error: What it raised.
        """
        spares.reserve.spend(error)
        reason = ExitReason(ExitKind.CRASHED, error)
        self._agenda.news.append(ChildExited(ref, reason))
        if child is None:
            return
        self._remains.keep(child)
        if put_down(child):
            birth = child.birth
            report = Unstopped(
                path=birth.path, incarnation=birth.incarnation, thread=birth.path, reason=reason
            )
            self.tree.telemetry.tell(report)
            self.tree.left_behind(child, report)

    def _start(self, action: messages.Start) -> None:
        if action.incarnation > 1:
            self.spawner.keep_one()
        try:
            birth = self._make_birth(
                ref=action.ref,
                path=f"{self.path}/{action.spec.id}",
                spec=action.spec,
                incarnation=action.incarnation,
                last_exit=action.last_exit,
                handover=action.handover,
            )
            child: Child = action.spec.start(birth)
            ear = self._ear
            if not type(child).__module__.startswith("otpy."):
                if child.birth is not birth:
                    given = show(child.birth)
                    raise TypeError(  # noqa: TRY301  # it is the crash of this child
                        f"the birth of a child is not what it was made from, but {given}"
                    )
                ear = functools.partial(self._hear, birth)
            self._children[action.ref] = child
            child.start(ear)
        except BaseException as error:
            self._has_broken(action.ref, error, self._children.pop(action.ref, None))

    def _stop(self, action: messages.Stop) -> None:
        if self._stops is not None:
            self._stops.asked.add(action.ref)
        self._ask(action.ref, "stop")

    def _kill(self, action: messages.Kill) -> None:
        if self._stops is not None:
            self._stops.asked.add(action.ref)
        if not self._ask(action.ref, "kill", action.grace):
            # This kind cannot be killed, so its grace would be in vain.
            self._agenda.news.append(Due(action.ref))

    def _abandon(self, action: messages.Abandon) -> None:
        child = self._children.pop(action.ref, None)
        if child is None:
            return  # it has broken the contract, and that was reported
        _, error = asked(child, "abandon")
        self._remains.keep(child)
        self._keep(child, asked(child, "state")[0])
        report = attrs.evolve(action.report, stack=asked(child, "stack")[0])
        if error is not None:
            reason = ExitReason(ExitKind.KILLED, error, "it could not be given up")
            report = attrs.evolve(report, reason=reason)
        self.tree.telemetry.tell(report)
        self.tree.left_behind(child, report)

    def _detach(self, action: messages.Detach) -> None:
        birth = self._children[action.ref].birth
        is_worker = birth.spec.type is ChildType.WORKER
        if is_worker:
            self._detached[action.ref] = birth
        self._ask(action.ref, "detach")
        if is_worker:
            self._children.pop(action.ref, None)

    def _expose(self, action: messages.Expose) -> None:
        stack = self._ask(action.ref, "stack")
        self.tree.telemetry.tell(attrs.evolve(action.report, stack=stack))

    # Orders about time, callers and reports

    def _arm(self, action: messages.Arm) -> None:
        now = self.tree.clock.monotonic()
        # Thousands of orders may have come before this one. What they took is no time
        # of the child's. The limit of the supervisor's own stop stands as it is.
        late = now - self._turned_at if action.ref != messages.SUPERVISOR else 0.0
        at = action.at + late
        self.timers.arm(action.ref, at)
        if self._stops is not None:
            self._stops.arm(action.ref, at - now)

    def _disarm(self, action: messages.Disarm) -> None:
        self.timers.disarm(action.ref)
        if self._stops is not None:
            self._stops.disarm(action.ref)

    def _again(self, action: messages.Again) -> None:
        self.mailbox.put(messages.Retry(action.ref))

    def _answer(self, action: messages.Answer) -> None:
        action.reply.answer(action.value)

    def _refuse(self, action: messages.Refuse) -> None:
        action.reply.refuse(action.error)

    def _tell(self, action: messages.Tell) -> None:
        self.tree.telemetry.tell(action.report)

    def _escalate(self, action: messages.Escalate) -> None:
        self.tree.telemetry.escalate(self.machine.spec.on_escalation, action.escalation)

    # The beginning and the end of the supervisor

    def _come_up(self, action: messages.Up) -> None:
        self._deliver(ChildStarted(self._ref, self.path))
        self.up.answer(None)

    def _end(self, action: messages.End) -> None:
        stopped: list[str] = []
        interrupted: list[str] = []
        detached = [f"{self.path}/{id}" for id in action.detached]
        for id, was_interrupted in action.ended:
            if below := self._below.get(id):
                stopped += below.stopped
                interrupted += below.interrupted
                detached += below.detached
            (interrupted if was_interrupted else stopped).append(f"{self.path}/{id}")
        self._leave(
            StopReport(
                path=self.path,
                reason=action.reason,
                stopped=tuple(stopped),
                interrupted=tuple(interrupted),
                detached=tuple(detached),
                duration=action.duration,
            )
        )

    def _crash(self, error: BaseException) -> None:
        self._leave(StopReport(path=self.path, reason=ExitReason(ExitKind.CRASHED, error)))

    def _break_down(self, error: BaseException) -> None:
        """Stop by force what runs, then crash: otpy's own code is wrong.

        OTP: terminate/2 runs as well when a supervisor crashes.
        """
        self._refuse_leftover(self._message)
        undelivered = [
            one.reply for one in self._orders if isinstance(one, messages.Answer | messages.Refuse)
        ]
        for reply in (*self.machine.unanswered(), *undelivered):
            self._refuse_late(reply)
        self._kill_all()
        self._agenda.do_chores()
        deadline = time.monotonic() + INTERRUPT_GRACE
        while self._children and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                message = self.mailbox.get(left)
                if isinstance(message, ChildExited):
                    self._children.pop(message.ref, None)
                self._refuse_leftover(message)
        for child in self._children.values():
            self.tree.left_behind(child, Unstopped(path=child.birth.path))
        internal = InternalError(f"{self.path}: {type_name(error)}")
        internal.__cause__ = error
        self._crash(internal)

    def _is_lost(self) -> None:
        """Say the last word for a thread that could not say it itself."""
        SUPERVISING.discard(threading.get_ident())
        if self._is_gone:
            return  # the thread has said its last word, and raised after that
        if not self.alive and self._report is not None:
            # The thread was hit while it said its last word. All of it is said again: a
            # reply that is given twice, and an end that is delivered twice, count once.
            self._say_last_word(self._report)
            return
        self._kill_all()
        lost = ExitReason(ExitKind.CRASHED, detail="its thread ended without a word")
        self._leave(self._report or StopReport(path=self.path, reason=lost))

    def _kill_all(self) -> None:
        for child in self._children.values():
            with contextlib.suppress(BaseException):  # there may be no memory
                child.kill(INTERRUPT_GRACE)

    def _leave(self, report: StopReport) -> None:
        """Release what the supervisor has, and say its last word."""
        self._report = report
        try:
            self.spawner.close()
            for one in self._shared.values():
                one.close()
            self._agenda.do_chores()
            self.mailbox.close(self._refuse_leftover)
            for item in self._agenda.news:  # mail that was taken out of the box
                self._refuse_leftover(item)
            if self.path != self.tree.root:
                self.tree.directory.pop(self.path, None)
            else:
                if self._signal:
                    text = f"stopped after {report.duration:.1f} s"
                    self._report_stage(StopStage.STOPPED, text, report.reason)
                self.tree.close()
            self._report = attrs.evolve(report, unstopped=self.tree.unstopped(self.path))
        finally:
            # Whatever went wrong, no thread must wait for ever for this supervisor.
            self._say_last_word(self._report)

    def _say_last_word(self, report: StopReport) -> None:
        """Report the end: to the threads that wait for it, and to the parent."""
        self.done.answer(report)
        if self.path == self.tree.root:
            self.tree.is_over()
        if not self.up.is_given:
            self.up.refuse(start_error(self.path, report.reason))
        self._deliver(ChildExited(self._ref, report.reason))
        self._is_gone = True

    def _refuse_leftover(self, item: object) -> None:
        self._remains.keep(item)
        if isinstance(item, messages.Call):
            self._refuse_late(item.reply)
        elif isinstance(item, ChildExited) and item.ref in self._detached:
            self._mourn(item)

    def _refuse_late(self, reply: Reply) -> None:
        if not reply.is_given:
            reply.refuse(NotAlive(self.path))
