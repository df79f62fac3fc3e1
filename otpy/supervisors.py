"""The thread that obeys, and how supervisors are declared.

Laws:
1. A supervisor's state belongs to its machine, and its machine to its thread. Everybody else puts messages.
2. The thread never waits for anything but its mailbox and the next deadline; and, for microseconds, until a thread
   that it has started runs, as ``Thread.start`` does.
3. Nothing here decides about children. What to do comes from the machine; what came of it goes back as a message.

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
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Unpack

import attrs

from otpy import messages, threads
from otpy.abc import Birth, Child, Deliver
from otpy.exceptions import InternalError, NotAlive, StartError, is_a
from otpy.handle import Supervisor
from otpy.machine import INTERRUPT_GRACE, Phase, SupervisorMachine
from otpy.mailbox import Mailbox, Reply, Timers
from otpy.messages import ChildExited, ChildStarted, Due, Message, StopSupervisor
from otpy.reports import ChildTerminated, Escalation, ExitKind, ExitReason, StopReport, Unstopped, stamped
from otpy.specs import AutoShutdown, ChildSpec, ChildType, Common, Strategy, SupervisorSpec, check_common
from otpy.tree import Tree


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


@attrs.frozen(eq=False)
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


PATIENCE = 100
"""Messages that may be read before what can be done for many children at once is done, even if there are more."""


@attrs.define(eq=False, repr=False)
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
    spawner: threads.Spawner = attrs.field(init=False)
    _local: collections.deque[Message] = attrs.field(factory=collections.deque, init=False)
    _orders: Sequence[messages.Action] = attrs.field(default=(), init=False)
    _children: dict[int, Child] = attrs.field(factory=dict, init=False)
    _below: dict[str, StopReport] = attrs.field(factory=dict, init=False)
    _detached: dict[int, Birth] = attrs.field(factory=dict, init=False)
    _shared: dict[object, Any] = attrs.field(factory=dict, init=False)
    _reminders: dict[int, Callable[[], object]] = attrs.field(factory=dict, init=False)
    _chores: list[Callable[[], object]] = attrs.field(factory=list, init=False)
    _postponed: int = attrs.field(default=0, init=False)
    _reminder_refs: Iterator[int] = attrs.field(factory=lambda: itertools.count(-1, -1), init=False)
    path: str = attrs.field(init=False)
    tree: Tree = attrs.field(init=False)
    _handle: Supervisor = attrs.field(init=False)  # these five are the same for all children: one object each
    _spawn: Callable[..., threading.Thread] = attrs.field(init=False)
    _ear: Deliver = attrs.field(init=False)
    _remind: Callable[[float, Callable[[], object]], None] = attrs.field(init=False)
    _soon: Callable[[Callable[[], object]], None] = attrs.field(init=False)
    _deliver: Deliver = attrs.field(init=False)
    _thread: Any = attrs.field(default=None, init=False)
    _ident: int | None = attrs.field(default=None, init=False)
    _message: object = attrs.field(default=None, init=False)
    _has_read_all: bool = attrs.field(default=False, init=False)
    _turned_at: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        spec, self.path, self.tree = self.birth.spec, self.birth.path, self.birth.tree
        assert isinstance(spec, SupervisorSpec)
        chance = random.Random(f"{self.tree.seed} {self.path}")  # a child's own, whatever its siblings do
        self.machine = SupervisorMachine(spec, self.path, rng=chance)
        self.spawner = threads.Spawner(self.tree, self.path)
        self._handle, self._spawn, self._ear = Supervisor(self.tree, self.path), self.spawner.spawn, self.deliver
        self._remind, self._soon = self.remind, self._chores.append

    # As a child of its parent; these run on the parent's thread

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self.tree.directory[self.path] = self
        self._local.append(messages.Begin())
        try:
            self._thread = self.tree.launch(self._main, self.path)
        except (RuntimeError, MemoryError) as error:  # can't start new thread
            self._leave(StopReport(path=self.path, reason=ExitReason(ExitKind.CRASHED, error)))

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
        return threads.stack_of(self._ident)

    @property
    def alive(self) -> bool:
        return not self.done.is_given

    # The loop; from here on everything runs on the supervisor's own thread

    def _main(self) -> None:
        self._ident = threading.get_ident()
        try:
            while self.alive:
                self.turn()
        except BaseException as error:
            if not self.alive:
                raise  # it has said its last word
            self._break_down(error)

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
        self._orders = ()

    def _next(self) -> object:
        while not self._local:
            now, at = self.tree.clock.monotonic(), self.timers.next()
            if at is None or at > now:
                self._has_read_all = False
                try:
                    return self._wait(None if at is None else at - now)
                except queue.Empty:
                    continue
            elif not self._has_read_all:
                self._read_all()
            else:
                self._time_is_up(now)
        return self._local.popleft()

    def _wait(self, seconds: float | None) -> Any:
        """Wait for a message; use the first calm moment after a restart to make a spare thread for the next one."""
        if self._chores:
            self._consider_chores()
        if not self._wants_spare or (seconds is not None and seconds <= CALM):
            return self.mailbox.get(seconds)
        try:
            return self.mailbox.get(CALM)
        except queue.Empty:
            self.spawner.refill()
            raise

    @property
    def _wants_spare(self) -> bool:
        return self.spawner.is_short and self.machine.phase is Phase.UP

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

    def _time_is_up(self, now: float) -> None:
        ref = self.timers.pop_due(now)
        assert ref is not None, "a deadline that has passed belongs to somebody"
        self._has_read_all = False
        if ref in self._reminders:
            self._reminders.pop(ref)()
        else:
            self._local.append(Due(ref, self._silent_until(ref)))

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

    # What the machine cannot know is added to a message here

    def _silent_until(self, ref: int) -> float | None:
        child = self._children.get(ref)
        return child.pulse()[1] if child is not None and child.birth.spec.heartbeat is not None else None

    def _note_exit(self, message: ChildExited) -> ChildExited:
        child = self._children.pop(message.ref, None)
        if child is not None:
            self._take_over(child)
        if self.machine.phase is Phase.ENDING and isinstance(child, SupervisorThread):
            self._below[child.birth.spec.id] = child.done.wait(None, child.path)
        if message.ref in self._detached:
            self._mourn(message)
        return message

    def _take_over(self, child: Child) -> None:
        """Keep what *child* has saved, for its replacement."""
        child.birth.handover.state = child.state

    def _take_pulses(self, message: messages.TakeSnapshot) -> messages.TakeSnapshot:
        alive = self._children.items()
        beats = {ref: child.pulse()[0] for ref, child in alive if child.birth.spec.heartbeat is not None}
        return attrs.evolve(message, beats=beats)

    def _mourn(self, message: ChildExited) -> None:
        """Tell of the crash of a detached child: nobody else does."""
        birth = self._detached.pop(message.ref)
        if message.reason.is_normal:
            return
        report = ChildTerminated(
            path=birth.path,
            incarnation=birth.incarnation,
            thread=birth.path,
            time=self.tree.clock.wall(),
            reason=message.reason,
        )
        self.tree.telemetry.tell_late(report)

    # Actions

    def _start(self, action: messages.Start) -> None:
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
        )
        if action.incarnation > 1:
            self.spawner.keep_one()
        try:
            child = self._children[action.ref] = action.spec.start(birth)
            child.start(self._ear)
        except Exception as error:  # this kind of child breaks its contract
            self._local.append(ChildExited(action.ref, ExitReason(ExitKind.CRASHED, error)))

    def _stop(self, action: messages.Stop) -> None:
        self._children[action.ref].stop()

    def _kill(self, action: messages.Kill) -> None:
        if not self._children[action.ref].kill(action.grace):
            self._local.append(Due(action.ref))  # no use to wait for the end of the grace

    def _abandon(self, action: messages.Abandon) -> None:
        child = self._children.pop(action.ref)
        child.abandon()
        self._take_over(child)
        report = attrs.evolve(action.report, stack=child.stack())
        self._tell(messages.Tell(report))
        self.tree.left_behind(child, report)

    def _detach(self, action: messages.Detach) -> None:
        child = self._children[action.ref]
        if child.birth.spec.type is ChildType.WORKER:
            self._detached[action.ref] = self._children.pop(action.ref).birth
        child.detach()

    def _expose(self, action: messages.Expose) -> None:
        stack = self._children[action.ref].stack()
        self._tell(messages.Tell(attrs.evolve(action.report, stack=stack)))

    def _arm(self, action: messages.Arm) -> None:
        late = self.tree.clock.monotonic() - self._turned_at  # thousands of orders may have come before this one
        self.timers.arm(action.ref, action.at + (late if action.ref != messages.SUPERVISOR else 0.0))

    def _disarm(self, action: messages.Disarm) -> None:
        self.timers.disarm(action.ref)

    def _again(self, action: messages.Again) -> None:
        self.mailbox.put(messages.Retry(action.ref))

    def _answer(self, action: messages.Answer) -> None:
        action.reply.answer(action.value)

    def _refuse(self, action: messages.Refuse) -> None:
        action.reply.refuse(action.error)

    def _tell(self, action: messages.Tell) -> None:
        self.tree.telemetry.tell(stamped(action.report, self.tree.clock.wall()))

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
        self.spawner.close()
        self._do_chores()
        self.birth.last_exit = None  # or each life would keep the one before alive, for ever
        self.mailbox.close(self._refuse_leftover)
        for item in self._local:  # what _read_all had taken out of it
            self._refuse_leftover(item)
        try:
            report = self._close(report)
        finally:  # whatever went wrong, nobody waits for ever
            self._say_last_word(report)

    def _close(self, report: StopReport) -> StopReport:
        if self.path == self.tree.root:
            report = attrs.evolve(report, handlers=self.tree.close())
        else:
            self.tree.directory.pop(self.path, None)
        return attrs.evolve(report, unstopped=self.tree.unstopped(self.path))

    def _say_last_word(self, report: StopReport) -> None:
        self.done.answer(report)
        if self.path == self.tree.root:
            self.tree.is_over()
        if not self.up.is_given:
            self.up.refuse(self._why_not_up(report.reason))
        self._deliver(ChildExited(self.birth.ref, report.reason))

    def _why_not_up(self, reason: ExitReason) -> Exception:
        if is_a(reason.exception, StartError):
            return reason.exception  # type: ignore[return-value]
        error = StartError(self.path, reason)
        error.__cause__ = reason.exception
        return error

    def _refuse_leftover(self, item: object) -> None:
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
        undelivered = [one.reply for one in self._orders if isinstance(one, messages.Answer | messages.Refuse)]
        for reply in (*self.machine.unanswered(), *undelivered):
            self._refuse_late(reply)
        for child in self._children.values():
            with contextlib.suppress(Exception):  # perhaps it was this kind of child that broke us
                child.kill(INTERRUPT_GRACE)
        self._do_chores()
        deadline = time.monotonic() + INTERRUPT_GRACE
        while self._children and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                self._clear_away(self.mailbox.get(left))
        for child in self._children.values():
            self.tree.left_behind(child, Unstopped(path=child.birth.path))
        internal = InternalError(f"{self.path}: {error!r}")
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
    _Reminder: S._note_reminder,
}

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
