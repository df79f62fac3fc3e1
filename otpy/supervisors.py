"""The thread that obeys, the handle that users hold, and ``start`` and ``run``.

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
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal, TypedDict, Unpack

import attrs

from otpy import messages, threads
from otpy.abc import Birth, Child, Clock, Deliver, Puttable, ReportHandler
from otpy.context import current
from otpy.exceptions import (
    CallTimeout,
    InternalError,
    NotAlive,
    NotFound,
    SpecError,
    StartError,
    TreeFailed,
    WouldDeadlock,
    is_a,
    show,
)
from otpy.machine import INTERRUPT_GRACE, Phase, SupervisorMachine
from otpy.mailbox import Bell, Mailbox, Reply, SystemClock, Timers
from otpy.messages import ChildExited, ChildStarted, Due, Handover, Message, StopSupervisor
from otpy.reports import (
    ChildInfo,
    ChildState,
    ChildTerminated,
    Counts,
    Escalation,
    ExitKind,
    ExitReason,
    Snapshot,
    StopReport,
    Unstopped,
    stamped,
)
from otpy.specs import AutoShutdown, ChildSpec, ChildType, Common, Strategy, SupervisorSpec, check_common, is_number
from otpy.telemetry import Telemetry, log_report
from otpy.tree import Tree, guard


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


class Supervisor:
    """The handle of a running supervisor.

    It names a path in a running tree, and stays valid while the supervisor there is restarted. All methods may be
    called from any thread. As a context manager it stops the supervisor when the block is left.

    Calls take a *timeout* in seconds; None waits as long as it takes. All of them may raise:

        NotAlive: The supervisor has ended, is ending, or is just being restarted.
        CallTimeout: There was no answer in time. The call may still be served.
        WouldDeadlock: The calling thread is a child for whose own end or start the call would have to wait.
    """

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree, self._path = tree, path

    @property
    def path(self) -> str:
        """Its ids from the root, joined by "/"."""
        return self._path

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        core = self._tree.directory.get(self._path)
        return core is not None and core.alive and not self._tree.is_foreign

    def start_child(self, spec: ChildSpec, timeout: float | None = None) -> ChildInfo:
        """Add a child at the end of the start order, start it, and return when it is up (OTP: start_child).

        Returns:
            The child; its state is UNDEFINED if it raised ``Ignore``.

        Raises:
            SpecError: *spec* is none, or cannot belong to this supervisor.
            AlreadyStarted, AlreadyPresent: The id is taken.
            MaxChildren: A dynamic supervisor is full.
            StartError: It did not come up; nothing of it is kept, and it is not tried again.
        """
        if not isinstance(spec, ChildSpec):
            raise SpecError(self._path, "spec", spec, "a child spec, as thread() or supervisor() make")
        info: ChildInfo = self._call(messages.StartChild, timeout, spec=spec)
        return info

    def terminate_child(self, id: str, timeout: float | None = None) -> None:
        """Stop a child and return when it has ended or was given up; cancel its restart if it waits for one.

        Its spec stays, unless it is temporary or the supervisor dynamic. It stays down until ``restart_child``, or
        until a group restart brings it back (OTP: terminate_child).

        Raises:
            NotFound: There is no such child.
        """
        self._call_about(messages.TerminateChild, timeout, id)

    def restart_child(self, id: str, timeout: float | None = None) -> ChildInfo:
        """Start a child that is not running, and return when it is up (OTP: restart_child).

        Raises:
            NotFound: There is no such child.
            StillRunning, StillRestarting: It is not down.
            StartError: It did not come up; its spec stays, and it is not tried again.
        """
        info: ChildInfo = self._call_about(messages.RestartChild, timeout, id)
        return info

    def delete_child(self, id: str, timeout: float | None = None) -> None:
        """Forget the spec of a child that is not running (OTP: delete_child).

        Raises:
            NotFound: There is no such child.
            StillRunning, StillRestarting: It is not down.
        """
        self._call_about(messages.DeleteChild, timeout, id)

    def get_childspec(self, id: str, timeout: float | None = None) -> ChildSpec:
        """Return the spec of a child (OTP: get_childspec).

        Raises:
            NotFound: There is no such child.
        """
        spec: ChildSpec = self._call_about(messages.GetChildSpec, timeout, id)
        return spec

    def which_children(self, timeout: float | None = None) -> tuple[ChildInfo, ...]:
        """Return all children in start order (OTP: which_children, newest first there)."""
        infos: tuple[ChildInfo, ...] = self._call(messages.WhichChildren, timeout)
        return infos

    def count_children(self, timeout: float | None = None) -> Counts:
        """Return how many children there are (OTP: count_children)."""
        counts: Counts = self._call(messages.CountChildren, timeout)
        return counts

    def find(self, path: str) -> Supervisor:
        """Return the handle of a supervisor at or below this one.

        Args:
            path: Its path from the root, such as "app/storage".

        Raises:
            NotFound: There is none now.
        """
        if path not in self._tree.directory or not f"{path}/".startswith(f"{self._path}/"):
            raise NotFound(path, f"there is no such supervisor in {self._path}")
        return Supervisor(self._tree, path)

    def snapshot(self, timeout: float | None = None) -> Snapshot:
        """Return this supervisor and all that is below it. Each supervisor answers for itself, one after the other."""
        snapshot: Snapshot = self._call(messages.TakeSnapshot, timeout)
        return attrs.evolve(snapshot, children=tuple(self._look_into(child, timeout) for child in snapshot.children))

    def _look_into(self, child: ChildInfo, timeout: float | None) -> ChildInfo:
        if child.type is ChildType.WORKER:
            return child
        try:
            return attrs.evolve(child, snapshot=Supervisor(self._tree, child.path).snapshot(timeout))
        except NotAlive:
            return child

    def subscribe(self, handler: ReportHandler | Puttable) -> None:
        """Send all reports from here and below to *handler*: a callable, or anything with ``put``.

        It is called on a thread of its own, in order, until ``unsubscribe`` or the end of the tree.
        """
        self._core()
        if not _is_sink(handler):
            raise SpecError(self._path, "handler", handler, "a callable, or an object with put")
        self._tree.telemetry.subscribe(self._path, handler)

    def unsubscribe(self, handler: ReportHandler | Puttable) -> None:
        """Send nothing more to *handler*.

        Raises:
            NotFound: It is not subscribed here.
        """
        self._tree.telemetry.unsubscribe(self._path, handler)

    def wait(self, timeout: float | None = None) -> ExitReason | None:
        """Wait until this supervisor has ended; return why, or None after *timeout* seconds."""
        core = self._core()
        if timeout is None and self._inside() is not None:
            raise WouldDeadlock(self._path, "a child cannot wait for the end of its own supervisor")
        try:
            report: StopReport = core.done.wait(timeout, self._path)
        except CallTimeout:
            return None
        return report.reason

    def stop(self, timeout: float | None = None) -> StopReport:
        """Stop the supervisor and all below it in order; return as soon as all is done.

        A nested supervisor that is stopped has ended with SHUTDOWN, and what becomes of it is its parent's decision;
        ``terminate_child`` of the parent keeps it down. Stopping what has ended already returns the same report.

        Args:
            timeout: Seconds for all together. Shortly before they are over, what still runs is interrupted; what has
                not ended then is given up and named. 0: interrupt at once. None: each child's own ``shutdown``.
        """
        if timeout is not None and not is_number(timeout):
            raise SpecError(self._path, "timeout", timeout, "a finite number of seconds, or None")
        core = self._core()
        if core.alive and self._inside() is not None:
            raise WouldDeadlock(
                self._path, "a child cannot wait for the end of its own supervisor; raise Fatal or Shutdown"
            )
        core.mailbox.put(StopSupervisor(timeout))
        report: StopReport = core.done.wait(None, self._path)
        if self._path == self._tree.root:
            self._tree.settle()
        return report

    def detach(self) -> StopReport:
        """End this supervisor and all supervisors below it, and let their workers run on, unsupervised.

        They are in ``otpy.registry`` as detached, until they end; nobody restarts them, and their crash is logged. A
        nested supervisor that is detached stays down, as after ``terminate_child``.

        Returns:
            The report, as ``stop`` does; ``detached`` names those that run on.
        """
        core, (above, _, id) = self._core(), self._path.rpartition("/")
        if above:
            Supervisor(self._tree, above)._call(messages.TerminateChild, None, id=id, detach=True)
        else:
            core.detach()
        report: StopReport = core.done.wait(None, self._path)
        if not above:
            self._tree.settle()
        return report

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Supervisor {self._path}, {'alive' if self.alive else 'not alive'}>"

    def _core(self) -> SupervisorThread:
        core: SupervisorThread | None = self._tree.directory.get(self._path)
        if core is None:
            raise NotAlive(self._path)
        if self._tree.is_foreign:
            raise NotAlive(self._path, "it runs in the process that this one was forked from")
        return core

    def _inside(self) -> str | None:
        try:
            return current().hangs_on(self._tree, self._path)
        except NotFound:
            return None

    def _call(self, kind: Callable[..., messages.Call], timeout: float | None, **fields: object) -> Any:
        reply = Reply()
        self._core().mailbox.put(kind(reply=reply, inside=self._inside(), **fields))
        return reply.wait(timeout, self._path)

    def _call_about(self, kind: Callable[..., messages.Call], timeout: float | None, id: str) -> Any:
        if not isinstance(id, str):
            raise NotFound(f"{self._path}/{show(id)}")
        return self._call(kind, timeout, id=id)


def start(tree: SupervisorSpec, **options: Unpack[Options]) -> Supervisor:
    """Start a tree and return its handle when all of it is up.

    The same spec may be started any number of times: the trees are independent of each other.

    Args:
        tree: What ``supervisor`` or ``dynamic_supervisor`` returned.
        **options: See ``Options``.

    Raises:
        SpecError: *tree* or an option is wrong; nothing has been started.
        StartError: Some child did not come up, or not all did in time. What had been started was stopped in reverse
            order. Its ``path`` is the child's, its ``__cause__`` what the child raised.
        KeyboardInterrupt: Ctrl-C while the tree started; what had been started was stopped likewise.
    """
    with _signals(_unhandled()) as signals:
        core = _begin(tree, options, signals)
        if signals.count:
            signals.wait(core.done, None, core.path)
            core.tree.settle()
    if signals.count:
        raise KeyboardInterrupt
    return Supervisor(core.tree, core.path)


def run(tree: SupervisorSpec, **options: Unpack[Options]) -> StopReport:
    """Start a tree, wait for its end, and return how it ended.

    In the main thread, SIGINT and SIGTERM stop the tree in order, also while it starts; a second signal shortens all
    budgets to zero, a third exits the process at once.

    Args:
        tree, **options: As for ``start``.

    Raises:
        SpecError, StartError: As for ``start``.
        TreeFailed: The root gave up. Left alone, this ends the program with a non-zero exit status.
    """
    with _signals([signal.SIGINT, signal.SIGTERM]) as signals:
        core = _begin(tree, options, signals)
        report: StopReport = signals.wait(core.done, None, core.path)
    core.tree.settle()
    if report.reason.kind not in (ExitKind.NORMAL, ExitKind.SHUTDOWN):
        raise TreeFailed(core.path, report.reason, report) from report.reason.exception
    return report


class Options(TypedDict, total=False):
    """The options of ``start`` and ``run``.

    Attributes:
        reports: Gets every report: a callable, or anything with ``put``.
        on_escalation: Called for every escalation anywhere in the tree, after the supervisor's own.
        log: Whether reports also go to structlog; default True.
        timeout: Seconds that the whole tree may take to come up; None, the default: no limit.
        max_unstopped: How many threads that could not be stopped the tree may leave behind before the root gives up;
            default 100.
        clock: Where time comes from; default: the machine's.
        seed: What the jitter of ``Backoff`` is made from: the same seed, the same waits; None, the default: other ones
            each time.
    """

    reports: ReportHandler | Puttable | None
    on_escalation: Callable[[Escalation], object] | None
    log: bool
    timeout: float | None
    max_unstopped: int
    clock: Clock | None
    seed: int | None


def _is_sink(value: object) -> bool:
    return callable(value) or isinstance(value, Puttable)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # option: (whether a value is right, what would be right)
    "reports": (lambda sink: sink is None or _is_sink(sink), "a callable, an object with put, or None"),
    "on_escalation": (lambda handler: handler is None or callable(handler), "a callable or None"),
    "log": (lambda log: isinstance(log, bool), "True or False"),
    "timeout": (
        lambda seconds: seconds is None or (is_number(seconds) and seconds > 0),
        "a finite number of seconds > 0, or None",
    ),
    "max_unstopped": (lambda count: _is_int(count) and count >= 0, "an int >= 0"),
    "clock": (lambda clock: clock is None or isinstance(clock, Clock), "an otpy.abc.Clock, or None"),
    "seed": (lambda seed: seed is None or _is_int(seed), "an int or None"),
}


def _check_options(spec: SupervisorSpec, options: Options) -> None:
    if not isinstance(spec, SupervisorSpec):
        raise SpecError("<tree>", "tree", spec, "a supervisor's spec, as supervisor() makes")
    for name, value in options.items():
        if name not in OPTIONS:
            raise SpecError(spec.id, name, "an option", f"one of {', '.join(OPTIONS)}")
        is_right, expected = OPTIONS[name]
        if not is_right(value):
            raise SpecError(spec.id, name, value, expected)


def _begin(spec: SupervisorSpec, options: Options, signals: _Signals) -> SupervisorThread:
    """Start the tree and wait until it is up, or until it has ended because of a signal."""
    core = _launch(spec, options)
    signals.obey(core)
    try:
        _bring_up(core, options.get("timeout"), signals)
    except StartError:
        if not signals.count:
            raise
    return core


def _launch(spec: SupervisorSpec, options: Options) -> SupervisorThread:
    """Start the root's thread; it is not up yet."""
    _check_options(spec, options)
    tree = _tree(spec, options)
    core = SupervisorThread(_root_birth(spec, tree))
    try:
        tree.telemetry = Telemetry(spec.id, tree, options.get("on_escalation"))
        _subscribe(tree.telemetry, spec, options)
    except RuntimeError as error:  # can't start new thread
        raise StartError(spec.id, str(error)) from error
    guard(tree, core.mailbox.put, core.done)
    core.start(lambda _: None)
    return core


def _tree(spec: SupervisorSpec, options: Options) -> Tree:
    seed = options.get("seed")
    return Tree(
        root=spec.id,
        clock=options.get("clock") or SystemClock(),
        max_unstopped=options.get("max_unstopped", 100),
        seed=random.getrandbits(64) if seed is None else seed,
    )


def _root_birth(spec: SupervisorSpec, tree: Tree) -> Birth:
    return Birth(
        ref=0,
        path=spec.id,
        spec=spec,
        incarnation=1,
        last_exit=None,
        handover=Handover(),
        spawn=threads.Spawner(tree, spec.id).spawn,
        supervisor=None,
        tree=tree,
    )


def _subscribe(telemetry: Telemetry, spec: SupervisorSpec, options: Options) -> None:
    try:
        if options.get("log", True):
            telemetry.subscribe(spec.id, log_report, "log")
        if (sink := options.get("reports")) is not None:
            telemetry.subscribe(spec.id, sink)
    except RuntimeError:
        telemetry.close()
        raise


def _bring_up(core: SupervisorThread, timeout: float | None, signals: _Signals) -> None:
    """Wait until the tree is up; otherwise stop it, wait for its end, and raise."""
    try:
        signals.wait(core.up, timeout, core.path)
    except CallTimeout:
        late = ", ".join(_starting(Supervisor(core.tree, core.path)))
        _stop_and_wait(core, signals)
        raise StartError(late or core.path, f"not up after {timeout} s") from None
    except BaseException:  # a StartError: it has ended already; or what a signal handler of the program raised
        _stop_and_wait(core, signals)
        raise


def _stop_and_wait(core: SupervisorThread, signals: _Signals) -> None:
    core.stop()
    signals.wait(core.done, None, core.path)
    core.tree.settle()


def _starting(handle: Supervisor) -> Iterator[str]:
    """Yield the paths of the children that everything waits for, the deepest ones."""
    with contextlib.suppress(NotAlive, NotFound):
        for child in handle.which_children():
            if child.state is ChildState.STARTING:
                below = list(_starting(handle.find(child.path))) if child.type is ChildType.SUPERVISOR else []
                yield from below or [child.path]


class _Signals:
    """What signals mean to a tree: stop, hurry, exit. It runs in the main thread, between any two bytecodes."""

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        self.count = 0
        self._core: SupervisorThread | None = None
        self._bell = Bell() if numbers else None  # first: it may fail, and no handler must be left behind then
        self._before = {number: signal.signal(number, self) for number in numbers}

    def close(self) -> None:
        """Put back the handlers that were there before."""
        if self._bell is not None:
            self._bell.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, reply: Reply, timeout: float | None, path: str) -> Any:
        """Wait for *reply*, as ``Reply.wait`` does."""
        return self._bell.wait(reply, timeout, path) if self._bell else reply.wait(timeout, path)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 2:
            os._exit(128 + signum)
        self._pass_on()

    def obey(self, core: SupervisorThread) -> None:
        """From now on tell *core*, and tell it what came before."""
        self._core = core
        self._pass_on()

    def _pass_on(self) -> None:
        if self._core is not None and self.count:
            self._core.stop() if self.count == 1 else self._core.kill()


def _unhandled() -> list[signal.Signals]:
    """Return the signals that would raise in the middle of a start; those that the program handles are its own."""
    return [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


@contextlib.contextmanager
def _signals(numbers: Sequence[signal.Signals]) -> Iterator[_Signals]:
    """Handle signals, where that is possible: in the main thread; put back what was there before."""
    is_possible = threading.current_thread() is threading.main_thread()
    signals = _Signals(numbers if is_possible else ())
    try:
        yield signals
    finally:
        signals.close()
