"""The thread that obeys, and how supervisors are declared.

Laws:
1. A supervisor's state belongs to its machine, and its machine to its thread. Everybody else puts messages.
2. The thread never waits for anything but its mailbox and the next deadline; and, for microseconds, until a thread
   that it has started runs, as ``Thread.start`` does.
3. Nothing here decides about children. What to do comes from the machine; what came of it goes back as a message.
4. What a child raises where a child must not raise is the crash of that child, and hurts nobody else. All is asked of
   children by the table CONTRACT.
5. A supervisor's thread drops no last reference to an object of a user: a ``__del__`` may take its time. What has ended
   is collected, and released on a helper thread; after its last word a supervisor does this itself.

Theory of operation. ``SupervisorThread.turn`` takes one message, has the machine decide, and performs the actions by
the table PERFORM. News that is delivered on the supervisor's own thread, such as "started" of a thread child, does not
go through the mailbox but through ``_local``, which is read first: so a child's ChildStarted is read before the
ChildExited that its thread puts, even if it died on its first line.

A nested supervisor is a child like any other: its parent starts it, it says ChildStarted when all its own children are
up, and ChildExited when nothing of it runs any more. To kill it is to set its budget to zero: it never blocks, so it
obeys.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import math
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Unpack

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
    Escalation,
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
from otpy.runtime.handle import Supervisor
from otpy.runtime.mailbox import Mailbox, Timers
from otpy.runtime.remains import Remains
from otpy.runtime.tree import SUPERVISING, Tree
from otpy.runtime.waiting import Reply
from otpy.specs import (
    AutoShutdown,
    ChildSpec,
    ChildType,
    Common,
    Strategy,
    SupervisorSpec,
    check_common,
)
from otpy.values import message, running


def supervisor(
    id: str,
    *,
    children: Iterable[ChildSpec] = (),
    strategy: Strategy | str = "one_for_one",
    intensity: int | Literal["infinity"] = 3,
    period: float = 5.0,
    auto_shutdown: AutoShutdown | str = "never",
    on_escalation: Callable[[Escalation], object] | None = None,
    **common: Unpack[Common],
) -> SupervisorSpec:
    """Describe a supervisor and its children.

    Args:
        id: Its name among its siblings, and the first part of every path if it is the root.
        children: Child specs, in start order; they stop in reverse.
        strategy: "one_for_one", "one_for_all" or "rest_for_one".
        intensity: How many restarts are allowed within *period*; one more, and it gives up. "infinity": restarts never
            make it give up; each child that may be restarted, a nested supervisor as well, then needs a ``backoff``.
        period: Seconds.
        auto_shutdown: "never", "any_significant" or "all_significant".
        on_escalation: Called with an ``Escalation`` when this supervisor gives up.
        **common: As for ``thread``; ``shutdown`` is "infinity" by default.

    Raises:
        SpecError: A field is wrong, or two children have one id.
    """
    check_common("supervisor", common)
    return SupervisorSpec(
        id=id,
        start=SupervisorThread,
        children=children,
        strategy=strategy,
        intensity=intensity,
        period=period,
        auto_shutdown=auto_shutdown,
        on_escalation=on_escalation,
        **common,
    )


def dynamic_supervisor(
    id: str,
    *,
    intensity: int | Literal["infinity"] = 3,
    period: float = 5.0,
    max_children: int | None = None,
    on_escalation: Callable[[Escalation], object] | None = None,
    **common: Unpack[Common],
) -> SupervisorSpec:
    """Describe a supervisor whose children come by ``start_child``.

    They are independent of each other (one_for_one), stop all at once, and leave no spec behind when they have been
    terminated or have ended for good. (Elixir: DynamicSupervisor.)

    Args:
        max_children: How many it may have, those that wait for a restart included; None: no limit.
        id, intensity, period, on_escalation, **common: As for ``supervisor``.

    Raises:
        SpecError: A field is wrong.
    """
    check_common("dynamic_supervisor", common)
    return SupervisorSpec(
        id=id,
        start=SupervisorThread,
        dynamic=True,
        intensity=intensity,
        period=period,
        max_children=max_children,
        on_escalation=on_escalation,
        **common,
    )


@message
class _Reminder(Message):
    """A note of a kind of child: no news, and nothing for the machine.

    Attributes:
        seconds: From when it is read.
        call: What to call then. It must not raise.
    """

    seconds: float
    call: Callable[[], object]


CALM = 0.001
"""Seconds after a restart without further news, then the supervisor makes a spare thread for the next one. Not at once:
the replacement needs the interpreter now."""


IMPORT_LOCK = re.compile(
    r"<frozen importlib\._bootstrap>\", line \d+, in (acquire|_lock_unlock_module)\b"
)
"""Finds in a stack that a thread waits for a module which another one imports."""

WAITS_FOR_IMPORT = "it waits for an import lock"
"""Said of a child that is not ready in time. Often the module is the one that starts the tree while it is imported."""
SLIP = 0.02
"""From how many seconds on a wait was too long: something has kept all threads from running.
"""

BREATH = 0.05
"""How long the other threads may go first then, in seconds: their news may be waited for."""

PATIENCE = 100
"""Messages that may be read before what can be done for many children at once is done, even if there are more."""


NEXT = {
    # stage of a stop by signals: what it means, and what the next signal would
    StopStage.STOPPING: "stopping; once more shortens all limits",
    StopStage.HURRYING: "all limits are zero; once more exits at once",
}


class StopTimers:
    """The deadlines of stops in real time, for a tree whose own clock may stand still.

    A stop that has a limit ends when either clock says so. All of this belongs to the
    supervisor's thread.

    Attributes:
        asked: The children that have been told to stop: their deadlines are those of a
            stop.
    """

    def __init__(self) -> None:
        self.asked = {messages.SUPERVISOR}
        self._timers = Timers()

    def arm(self, ref: int, seconds: float) -> None:
        if ref in self.asked:
            self._timers.arm(ref, time.monotonic() + seconds)

    def disarm(self, ref: int) -> None:
        self._timers.disarm(ref)

    def forget(self, ref: int) -> None:
        """Forget a child that has ended or was given up."""
        self.asked.discard(ref)
        self._timers.disarm(ref)

    def sooner(self, left: float | None) -> float | None:
        """Return *left*, or the seconds until the first deadline here, if less."""
        at = self._timers.next()
        if at is None:
            return left
        here = at - time.monotonic()
        return here if left is None else min(left, here)

    def pop_due(self, ref: int | None, others: Timers) -> int | None:
        """Return *ref*, due by the tree's clock, or else what is due here; once only."""
        if ref is None and (ref := self._timers.pop_due(time.monotonic())) is not None:
            others.disarm(ref)
        elif ref is not None:
            self._timers.disarm(ref)
        return ref


@running
class SupervisorThread:
    """The thread that obeys one machine. Meets ``Child``.

    Attributes:
        up: Answered when all children are up; refused if it ends before.
        done: Answered with the StopReport when nothing runs any more.
    """

    birth: Birth
    machine: SupervisorMachine = attrs.field(init=False)
    mailbox: Mailbox = attrs.field(factory=Mailbox, init=False)
    timers: Timers = attrs.field(factory=Timers, init=False)
    up: Reply = attrs.field(factory=Reply, init=False)
    done: Reply = attrs.field(factory=Reply, init=False)
    spawner: spares.Spawner = attrs.field(init=False)
    _local: collections.deque[Message] = attrs.field(factory=collections.deque, init=False)
    _orders: list[messages.Action] = attrs.field(factory=list, init=False)
    _children: dict[int, Child] = attrs.field(factory=dict, init=False)
    _below: dict[str, StopReport] = attrs.field(factory=dict, init=False)
    _detached: dict[int, Birth] = attrs.field(factory=dict, init=False)
    _shared: dict[object, Any] = attrs.field(factory=dict, init=False)
    _reminders: dict[int, Callable[[], object]] = attrs.field(factory=dict, init=False)
    _chores: list[Callable[[], object]] = attrs.field(factory=list, init=False)
    _postponed: int = attrs.field(default=0, init=False)
    _remains: Remains = attrs.field(init=False)
    _reminder_refs: Iterator[int] = attrs.field(factory=lambda: itertools.count(-1, -1), init=False)
    path: str = attrs.field(init=False)
    tree: Tree = attrs.field(init=False)
    _handle: Supervisor = attrs.field(
        init=False
    )  # these seven are the same for all children: one object each
    _spawn: Callable[..., threads.Thread] = attrs.field(init=False)
    _ear: Deliver = attrs.field(init=False)
    _remind: Callable[[float, Callable[[], object]], None] = attrs.field(init=False)
    _soon: Callable[[Callable[[], object]], None] = attrs.field(init=False)
    _returns: Callable[[str], float | None] = attrs.field(init=False)
    _leftovers: Callable[[], list[object]] = attrs.field(init=False)
    _deliver: Deliver = attrs.field(init=False)
    _thread: Any = attrs.field(default=None, init=False)
    _ident: int | None = attrs.field(default=None, init=False)
    _message: object = attrs.field(default=None, init=False)
    _has_read_all: bool = attrs.field(default=False, init=False)
    _report: StopReport | None = attrs.field(default=None, init=False)
    _is_gone: bool = attrs.field(default=False, init=False)
    _turned_at: float = attrs.field(default=0.0, init=False)
    _stops: StopTimers | None = attrs.field(default=None, init=False)
    _signal: str = attrs.field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        spec, self.path, self.tree = self.birth.spec, self.birth.path, self.birth.tree
        assert isinstance(spec, SupervisorSpec)
        chance = random.Random(
            f"{self.tree.seed} {self.path}"
        )  # a child's own, whatever its siblings do
        self.machine = SupervisorMachine(
            spec, self.path, rng=chance, heartbeats=self.tree.heartbeats
        )
        self.spawner = spares.Spawner(self.tree, self.path, self.mailbox.post)
        self._remains = Remains(self.path, self.tree)
        self._leftovers = self._remains.hand_over
        self._handle, self._spawn, self._ear = (
            Supervisor(self.tree, self.path),
            self.spawner.spawn,
            self.deliver,
        )
        self._remind, self._soon, self._returns = self.remind, self._chores.append, self.returns_in
        if self.tree.has_own_clock:
            self._stops = StopTimers()

    # As a child of its parent; these run on the parent's thread

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self.tree.directory[self.path] = self
        self._local.append(messages.Begin())
        try:
            self._thread = self.tree.launch(self._main, self.path, self._is_lost)
        except (RuntimeError, MemoryError) as error:  # can't start new thread
            spares.reserve.spend(error)
            self._crash(error)

    def stop(self) -> None:
        self.mailbox.put(StopSupervisor())

    def kill(self, grace: float = INTERRUPT_GRACE) -> bool:
        self.mailbox.put(StopSupervisor(0.0, grace))
        return True

    def detach(self) -> None:
        self.mailbox.put(StopSupervisor(detach=True))

    def abandon(self) -> None:
        raise InternalError(f"{self.path}: a supervisor never has to be abandoned")

    def pulse(self) -> tuple[float, float]:
        raise InternalError(f"{self.path}: a supervisor has no heartbeat")

    state = None
    """A supervisor saves nothing."""

    def stack(self) -> str:
        return stacks.stack_of(self._ident)

    @property
    def alive(self) -> bool:
        return not self.done.is_given

    # The loop; from here on everything runs on the supervisor's own thread

    def _main(self) -> None:
        self._ident = threading.get_ident()
        SUPERVISING.add(self._ident)
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
                raise  # amidst its last word: _is_lost says it again
            spares.reserve.spend(error)
            self._break_down(error) if is_open else self._crash(error)
        finally:
            SUPERVISING.discard(self._ident)
            self._message = None
            self._orders.clear()
            self._remains.drop()

    def _crash(self, error: BaseException) -> None:
        self._leave(StopReport(path=self.path, reason=ExitReason(ExitKind.CRASHED, error)))

    def _is_lost(self) -> None:
        """Say the last word of a thread that could not say it itself; called on whatever thread finds that out."""
        SUPERVISING.discard(threading.get_ident())
        if self._is_gone:
            return  # it has said its last word, and raised after that
        if not self.alive and self._report is not None:
            self._say_last_word(
                self._report
            )  # it was hit amidst that; what comes twice counts once
            return
        for child in self._children.values():
            with contextlib.suppress(BaseException):
                child.kill(INTERRUPT_GRACE)
        lost = ExitReason(ExitKind.CRASHED, detail="its thread ended without a word")
        self._leave(self._report or StopReport(path=self.path, reason=lost))

    def turn(self) -> None:
        """Take one message, waiting for it if there is none, and obey."""
        self._message = self._next()
        if (prepare := PREPARE.get(type(self._message))) is not None:
            self._message = prepare(self, self._message)
            if self._message is None:
                return  # it was for this thread alone
        self._turned_at = self.tree.clock.monotonic()
        self._orders = self.machine.receive(self._message, self._turned_at)
        for action in self._orders:
            PERFORM[type(action)](self, action)
        # drop what the turn was about; what is released of it goes later, from ``_remains``
        self._message = None
        self._orders.clear()  # the machine has the same list

    def _next(self) -> object:
        while not self._local:
            now, at = self.tree.clock.monotonic(), self.timers.next()
            left = None if at is None else at - now
            if self._stops is not None:
                left = self._stops.sooner(left)
            if left is None or left > 0:
                self._has_read_all = False
                try:
                    return self._wait(left)
                except queue.Empty:
                    if at is not None and self.tree.clock.monotonic() - at >= SLIP:
                        self._let_others_run()
            elif not self._has_read_all:
                self._read_all()
            else:
                self._time_is_up(now, at)
        return self._local.popleft()

    def _let_others_run(self) -> None:
        """Let the others tell their news before a deadline counts: they could not run either."""
        with contextlib.suppress(queue.Empty):
            self._local.append(self.mailbox.get(BREATH))

    def _wait(self, seconds: float | None) -> Any:
        """Wait for a message. Use a calm moment to make a spare thread, and to release what has ended."""
        if self._chores:
            self._consider_chores()
            if self._local:
                raise queue.Empty  # a chore has left something to be read
        wants_spare = self.spawner.is_short and self.machine.phase is UP
        calm = CALM if wants_spare else self._calm()
        if calm is None or (seconds is not None and seconds <= calm):
            return self.mailbox.get(seconds)
        try:
            return self.mailbox.get(calm)
        except queue.Empty:
            self.spawner.refill() if wants_spare else self._remains.release()
            raise

    def _calm(self) -> float | None:
        """Return how many calm seconds to wait before a release; None: there is nothing to be released."""
        at = self._remains.at
        return None if at == math.inf else max(CALM, at - time.monotonic())

    def _consider_chores(self) -> None:
        """Do what can be done for many children at once, when there is no mail, or has been mail for long."""
        self._postponed += 1
        if self._postponed > PATIENCE or self.mailbox.empty():
            self._do_chores()

    def _do_chores(self) -> None:
        self._postponed = 0
        while self._chores:
            self._chores.pop()()

    def _read_all(self) -> None:
        """Somebody's time is up: first read the mail that is there, his news may be in it (OTP: receive … after).

        Only that: what comes meanwhile must wait, or a flood of mail would hold up the timers.
        """
        self._local.extend(self.mailbox.take_all())
        self._has_read_all = True

    def _time_is_up(self, now: float, at: float | None) -> None:
        ref = self.timers.pop_due(now)
        if ref is None:
            at = None  # it is due by real time only
        if self._stops is not None:
            ref = self._stops.pop_due(ref, self.timers)
        assert ref is not None, "a deadline that has passed belongs to somebody"
        self._has_read_all = False
        if ref in self._reminders:
            self._reminders.pop(ref)()
        else:
            self._local.append(self._due(ref, now, at))

    def remind(self, seconds: float, call: Callable[[], object]) -> None:
        """Have *call* called on this thread in so many seconds; called on any thread."""
        self.deliver(_Reminder(seconds, call))

    def deliver(self, message: Message) -> None:
        """Take news from a child; called on any thread."""
        if threading.get_ident() == self._ident:
            self._local.append(message)
        else:
            self.mailbox.put(message)

    def _note_reminder(self, message: _Reminder) -> None:
        ref = next(self._reminder_refs)
        self._reminders[ref] = message.call
        self.timers.arm(ref, self.tree.clock.monotonic() + message.seconds)

    def returns_in(self, id: str) -> float | None:
        """Return in how many seconds a child that waits for its restart is due; None: it does not wait for one."""
        slot = self.machine.slots.get(id)
        if slot is None or slot.state is not RESTARTING:
            return None
        return 0.0 if slot.due is None else max(0.0, slot.due - self.tree.clock.monotonic())

    def _note_stop(self, message: StopSupervisor) -> StopSupervisor:
        """Report the signal that asks for the stop: its handler could not."""
        if message.signal and self.machine.phase is not FINISHED:
            stage = StopStage.HURRYING if self._signal else StopStage.STOPPING
            self._signal = message.signal
            self._tell_stage(stage, NEXT[stage])
        return message

    def _tell_stage(self, stage: StopStage, what: str, reason: ExitReason | None = None) -> None:
        detail = f"{self._signal}: {what}"
        report = SignalStop(
            path=self.path, signal=self._signal, stage=stage, detail=detail, reason=reason
        )
        self._tell(messages.Tell(report))

    # What the machine cannot know is added to a message here

    def _due(self, ref: int, now: float, at: float | None) -> Due:
        child = self._children.get(ref)
        if child is None or child.birth.spec.heartbeat is None:
            return Due(ref, at=at, hint=self._hint(ref))
        since, until = self._ask(ref, "pulse")
        return Due(ref, until, since, at, is_debugged=until <= now and debugger.is_attached())

    def _hint(self, ref: int) -> str:
        """Return what may keep a child from being ready in time: its kind may know, or it waits for an import."""
        child = self._children.get(ref)
        slot = None if child is None else self.machine.slots.get(child.birth.spec.id)
        is_late = slot is not None and slot.ref == ref and slot.state is STARTING
        if child is None or not is_late:
            return ""
        advice: str = getattr(child.birth.spec.start, "if_late", "")
        return advice or (WAITS_FOR_IMPORT if IMPORT_LOCK.search(self._ask(ref, "stack")) else "")

    def _note_exit(self, message: ChildExited) -> ChildExited | None:
        child = self._children.get(message.ref)
        if self._stops is not None:
            self._stops.forget(message.ref)
        if child is None:
            self._remains.keep(message)
        else:
            slot = self.machine.slots.get(child.birth.spec.id)
            self._remains.keep(message, child, slot, slot and slot.last_exit)
            state = self._ask(message.ref, "state")
            if state is not child.birth.handover.state:
                self._keep(child, state)
            if self._children.pop(message.ref, None) is None and message.reason.is_normal:
                return None  # it has broken just now, and that is the next message
        if (
            self.machine.phase is ENDING
            and isinstance(child, SupervisorThread)
            and child.done.is_given
        ):
            self._below[child.birth.spec.id] = child.done.wait(None, child.path)
        if message.ref in self._detached:
            self._mourn(message)
        return message

    def _keep(self, child: Child, state: object) -> None:
        """Keep what the child has saved, for its replacement."""
        handover = child.birth.handover
        if state is not UNKNOWN and state is not handover.state:
            self._remains.keep(handover.state)
            handover.state = state

    def _take_pulses(self, message: messages.TakeSnapshot) -> messages.TakeSnapshot:
        beating = [
            ref for ref, child in self._children.items() if child.birth.spec.heartbeat is not None
        ]
        return attrs.evolve(message, beats={ref: self._ask(ref, "pulse")[0] for ref in beating})

    def _note_call(self, call: Any) -> Any:
        """A spec may be dropped because of this call: that of the child, or if the call is refused, its own."""
        self._remains.keep(call, self.machine.slots.get(call.id), after=1.0)
        return call

    def _note_witness(self, witness: threads.Witness) -> None:
        """A thread has ended without a word."""
        witness.speak()

    def _mourn(self, message: ChildExited) -> None:
        """Tell of the crash of a detached child: nobody else does."""
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

    # Actions

    def _ask(self, ref: int, what: str, *args: Any) -> Any:
        """Ask the child *ref* something; what that raises is its crash, and CONTRACT has what stands for an answer."""
        ask, instead = CONTRACT[what]
        child = self._children.get(ref)
        if child is None:  # it has broken, and that is one of the next messages
            return instead
        try:
            return ask(child, *args)
        except BaseException as error:
            self._has_broken(ref, error)
            return instead

    def _has_broken(self, ref: int, error: BaseException) -> None:
        """A child has raised where it must not: end it by force, name it if it does not end, tell of its crash."""
        spares.reserve.spend(error)
        reason = ExitReason(ExitKind.CRASHED, error)
        self._local.append(ChildExited(ref, reason))
        child = self._children.pop(ref, None)
        if child is not None:
            self._remains.keep(child)
            self._put_down(child, reason)

    def _put_down(self, child: Child, reason: ExitReason) -> None:
        is_alive = True
        for act in (lambda: child.kill(INTERRUPT_GRACE), child.abandon):
            with contextlib.suppress(BaseException):
                act()
        with contextlib.suppress(BaseException):
            is_alive = child.alive
        if is_alive:
            birth = child.birth
            report = Unstopped(
                path=birth.path, incarnation=birth.incarnation, thread=birth.path, reason=reason
            )
            self._tell(messages.Tell(report))
            self.tree.left_behind(child, report)

    def _start(self, action: messages.Start) -> None:
        if action.incarnation > 1:
            self.spawner.keep_one()
        try:
            child, ear = self._make(action)
            self._children[action.ref] = child
        except BaseException as error:
            self._has_broken(action.ref, error)
        else:
            self._ask(action.ref, "start", ear)

    def _make(self, action: messages.Start) -> tuple[Child, Deliver]:
        birth = Birth(
            ref=action.ref,
            path=f"{self.path}/{action.spec.id}",
            spec=action.spec,
            incarnation=action.incarnation,
            last_exit=action.last_exit,
            handover=action.handover,
            spawn=self._spawn,
            supervisor=self._handle,
            tree=self.tree,
            shared=self._shared,
            remind=self._remind,
            soon=self._soon,
            returns_in=self._returns,
            leftovers=self._leftovers,
        )
        child = action.spec.start(birth)
        if type(child).__module__.startswith("otpy."):
            return child, self._ear
        if child.birth is not birth:
            raise TypeError(
                f"the birth of a child is not what it was made from, but {show(child.birth)}"
            )
        return child, functools.partial(self._hear, birth)

    def _hear(self, birth: Birth, message: Message) -> None:
        """Take news from a kind of child that is not otpy's, if it is about that child; called on any thread."""
        if isinstance(message, ChildStarted | ChildExited) and message.ref == birth.ref:
            self.deliver(message)
        else:
            stray = StrayMessage(path=birth.path, incarnation=birth.incarnation, item=message)
            self.tree.telemetry.tell(stray)

    def _stop(self, action: messages.Stop) -> None:
        if self._stops is not None:
            self._stops.asked.add(action.ref)
        self._ask(action.ref, "stop")

    def _kill(self, action: messages.Kill) -> None:
        if self._stops is not None:
            self._stops.asked.add(action.ref)
        if not self._ask(action.ref, "kill", action.grace):
            self._local.append(Due(action.ref))  # no use to wait for the end of the grace

    def _abandon(self, action: messages.Abandon) -> None:
        child = self._children.pop(action.ref, None)
        if child is None:
            return  # it has broken, and that has been told
        _, error = _asked(child, "abandon")
        self._remains.keep(child)
        self._keep(child, _asked(child, "state")[0])
        report = attrs.evolve(action.report, stack=_asked(child, "stack")[0])
        if error is not None:
            report = attrs.evolve(
                report, reason=ExitReason(ExitKind.KILLED, error, "it could not be given up")
            )
        self._tell(messages.Tell(report))
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
        self._tell(messages.Tell(attrs.evolve(action.report, stack=stack)))

    def _arm(self, action: messages.Arm) -> None:
        now = self.tree.clock.monotonic()
        late = now - self._turned_at  # thousands of orders may have come before this one
        at = action.at + (late if action.ref != messages.SUPERVISOR else 0.0)
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

    def _is_up(self, action: messages.Up) -> None:
        self._deliver(ChildStarted(self.birth.ref, self.path))
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

    def _leave(self, report: StopReport) -> None:
        """Say the last word: to callers, to handlers if this is the root, to those who wait, and to the parent."""
        self._report = report
        try:
            self.spawner.close()
            for one in self._shared.values():
                one.close()
            self._do_chores()
            self.birth.last_exit = None  # or each life would keep the one before alive, for ever
            self.mailbox.close(self._refuse_leftover)
            for item in self._local:  # what _read_all had taken out of it
                self._refuse_leftover(item)
            self._report = self._close(report)
        finally:  # whatever went wrong, nobody waits for ever
            self._say_last_word(self._report)

    def _close(self, report: StopReport) -> StopReport:
        if self.path == self.tree.root:
            if self._signal:
                self._tell_stage(
                    StopStage.STOPPED, f"stopped after {report.duration:.1f} s", report.reason
                )
            self.tree.close()
        else:
            self.tree.directory.pop(self.path, None)
        return attrs.evolve(report, unstopped=self.tree.unstopped(self.path))

    def _say_last_word(self, report: StopReport) -> None:
        self.done.answer(report)
        if self.path == self.tree.root:
            self.tree.is_over()
        if not self.up.is_given:
            self.up.refuse(start_error(self.path, report.reason))
        self._deliver(ChildExited(self.birth.ref, report.reason))
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

    def _break_down(self, error: BaseException) -> None:
        """Our own code is wrong: stop by force what runs, then crash as a child does (OTP: terminate/2 runs, too)."""
        self._refuse_leftover(self._message)
        undelivered = [
            one.reply for one in self._orders if isinstance(one, messages.Answer | messages.Refuse)
        ]
        for reply in (*self.machine.unanswered(), *undelivered):
            self._refuse_late(reply)
        for child in self._children.values():
            with contextlib.suppress(BaseException):  # there may be no memory
                child.kill(INTERRUPT_GRACE)
        self._do_chores()
        deadline = time.monotonic() + INTERRUPT_GRACE
        while self._children and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._clear_away(self.mailbox.get(left))
        for child in self._children.values():
            self.tree.left_behind(child, Unstopped(path=child.birth.path))
        internal = InternalError(f"{self.path}: {type_name(error)}")
        internal.__cause__ = error
        self._leave(StopReport(path=self.path, reason=ExitReason(ExitKind.CRASHED, internal)))

    def _clear_away(self, message: object) -> None:
        if isinstance(message, ChildExited):
            self._children.pop(message.ref, None)
        self._refuse_leftover(message)


S = SupervisorThread

PREPARE: dict[type, Callable[[SupervisorThread, Any], Message | None]] = {
    # what is done with a message before the machine gets it; None: it does not get it
    ChildExited: S._note_exit,
    messages.TakeSnapshot: S._take_pulses,
    messages.StartChild: S._note_call,
    messages.TerminateChild: S._note_call,
    messages.DeleteChild: S._note_call,
    StopSupervisor: S._note_stop,
    _Reminder: S._note_reminder,
    threads.Witness: S._note_witness,
}


def _pulse(child: Child) -> tuple[float, float]:
    last, until = child.pulse()
    return float(last), float(until)


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the stack of a child is {show(text)}: expected a str")
    return text


UNKNOWN = object()
"""Stands for the state of a child that does not tell it: what the child was handed over is kept then."""

CONTRACT: dict[str, tuple[Callable[..., Any], Any]] = {
    # what a child is asked: (how, what stands for its answer if it raises, or if it has raised before)
    "start": (lambda child, ear: child.start(ear), None),
    "stop": (lambda child: child.stop(), None),
    "kill": (lambda child, grace: child.kill(grace), True),
    "abandon": (lambda child: child.abandon(), None),
    "detach": (lambda child: child.detach(), None),
    "stack": (lambda child: _text(child.stack()), ""),
    "pulse": (_pulse, (0.0, math.inf)),
    "state": (lambda child: child.state, UNKNOWN),
}


def _asked(child: Child, what: str, *args: Any) -> tuple[Any, BaseException | None]:
    """Ask *child*; return its answer, or what stands for it together with what *child* has raised."""
    ask, instead = CONTRACT[what]
    try:
        return ask(child, *args), None
    except BaseException as error:
        spares.reserve.spend(error)
        return instead, error


PERFORM: dict[type[messages.Action], Callable[[SupervisorThread, Any], None]] = {
    messages.Start: S._start,
    messages.Stop: S._stop,
    messages.Kill: S._kill,
    messages.Abandon: S._abandon,
    messages.Detach: S._detach,
    messages.Expose: S._expose,
    messages.Arm: S._arm,
    messages.Disarm: S._disarm,
    messages.Again: S._again,
    messages.Answer: S._answer,
    messages.Refuse: S._refuse,
    messages.Tell: S._tell,
    messages.Escalate: S._escalate,
    messages.Up: S._is_up,
    messages.End: S._end,
}
