"""One run of a graph: its tree, its scheduler, and its end.

Laws:
1. One thread decides what is ready and what became of a task: the scheduler's. Workers
   and timers only put messages into its inbox. From the first task on it waits for
   nothing else.
2. Callbacks run on the scheduler's thread. An exception of a callback is logged. A
   callback that never returns keeps ``run`` from returning until the second signal.
3. ``run`` returns a summary that has every task, whatever becomes of the scheduler.

All methods of ``Scheduler`` run on the scheduler's thread, with one exception. The tree
may give that thread up before it has taken the lock ``begun``. Then the caller of
``run`` takes the lock, and calls ``conduct``. ``summary_of`` runs on the thread of that
caller, when the tree has ended.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

import otpy
from otpy import (
    Backoff,
    ChildSpec,
    Context,
    ExitKind,
    ExitReason,
    InternalError,
    Killed,
    Refusal,
    StartError,
    Supervisor,
    SupervisorSpec,
)
from otpy.core.pauses import PAUSE
from otpy.core.restarts import Delays
from otpy.runtime import stacks
from otpy.runtime.log import complain
from otpy.taskgraph.blueprint import Blueprint
from otpy.taskgraph.exchange import (
    Asked,
    Attempt,
    Begun,
    Exchange,
    Finished,
    Gone,
    News,
    Seat,
    Seated,
    StopRun,
    is_stop,
)
from otpy.taskgraph.ledger import Ledger
from otpy.taskgraph.results import (
    CANCELLED,
    FAILED,
    PASSED,
    SKIPPED,
    Meta,
    Outcome,
    Summary,
    TaskFailure,
)
from otpy.taskgraph.worker import work
from otpy.values import report

UNLIMITED = 1_000_000_000
"""How often the tasks of a run may kill their workers, and how many stuck threads they
may leave behind."""

LAST_WORD = 1.0
"""How long ``run`` waits for the summary of a scheduler that was given up in a
callback, in seconds."""

FAREWELL = 0.1
"""How long a worker whose task is dropped may take to end by itself, in seconds, before
it is interrupted."""

SOON = 1.0
"""How long a worker may take to come, in seconds, before it is ordered again."""

REVIVAL = Backoff(0.001, 1.0, reset_after=0.1)
"""The waits between the lives of a worker whose thread dies again and again."""

CLAUSES: dict[type[News], str] = {
    Seated: "_on_seated",
    Begun: "_on_begun",
    Finished: "_on_finished",
    Asked: "_on_asked",
    Gone: "_on_gone",
    StopRun: "_on_stop",
}
"""The method of ``Scheduler`` for each message."""


class Scheduler:
    """Decides what is ready, and what became of a task.

    Attributes:
        exchange: The queues to and from the workers.
        ledger: The account of the run.
        begun: The thread that takes this lock runs the graph. It is never given back.
        answer: The summary, or the exception that the scheduler died of.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self.exchange, self.ledger = Exchange(blueprint), Ledger(blueprint)
        self.begun = threading.Lock()
        self.answer: queue.SimpleQueue[Summary | BaseException] = queue.SimpleQueue()
        self._blueprint, self._sorter = blueprint, blueprint.sorter()
        self._delays: dict[int, Delays] = {}
        self._timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._ctx: Context | None = None
        self._was_stopped = False
        self._pool: Supervisor | None = None
        self._hired = 0

    def schedule(self, ctx: Context) -> None:
        """Be the scheduler; the target of its thread."""
        try:
            self._ctx = ctx
            ctx.on_stop(functools.partial(self.exchange.inbox.put, StopRun()))
            supervisor = ctx.supervisor
            try:
                self._pool = supervisor.find(f"{supervisor.path}/workers")
                # If the system has no thread for the first worker, nothing has run, and
                # the start of the tree fails.
                if self._blueprint.workers:
                    self._pool.start_child(self._hire())
            # the tree is stopped while it starts
            except Refusal:
                self._was_stopped = True
            ctx.ready()
            if self.begun.acquire(blocking=False):
                self.answer.put(self.conduct())
        except BaseException as error:
            self.answer.put(error)
            raise
        finally:
            for _ in range(self._hired):
                self.exchange.work.put(None)

    def conduct(self, *, was_stopped: bool = False) -> Summary:
        """Run the graph, and return the summary.

        Args:
            was_stopped: Settle all tasks as cancelled, since the tree has ended.
        """
        self._was_stopped = self._was_stopped or was_stopped
        plan, ledger = self._blueprint, self.ledger
        if plan.clears:
            plan.results.clear()
        names = tuple(task.name for task in plan.tasks)
        self._tell(
            "on_start", Meta(tasks=names, workers=plan.workers, started_at=ledger.started_at)
        )
        self._advance()
        while self.exchange.is_here and (
            ledger.open or (not self._is_stopping and len(ledger.outcomes) < len(plan.tasks))
        ):
            self._step()
        for place in range(len(plan.tasks)):
            if place not in ledger.outcomes:
                self._settle(place, CANCELLED)
        summary = ledger.sum_up()
        self._tell("on_done", summary)
        return summary

    @property
    def _is_stopping(self) -> bool:
        """Whether nothing more is started.

        The tree asks the scheduler before the workers. But the helper thread of the
        scheduler may come later than those of the workers: their messages may stand
        before the ``StopRun``. So look at the context as well.
        """
        return self._was_stopped or (self._ctx is not None and not self._ctx.running)

    def _step(self) -> None:
        """Wait for the next message or timer, and do what it says."""
        inbox = self.exchange.inbox
        message: News | None = None
        while message is None:
            wait = self._timers[0][0] - time.monotonic() if self._timers else None
            if wait is not None and wait <= 0:
                _, _, call, arguments = heapq.heappop(self._timers)
                call(*arguments)
                return
            with contextlib.suppress(queue.Empty):
                message = inbox.get(timeout=wait and min(wait, threading.TIMEOUT_MAX))
        getattr(self, CLAUSES[type(message)])(message)

    def _arm(self, at: float, call: Callable[..., None], *arguments: Any) -> None:
        """Have *call* called at the monotonic time *at*."""
        heapq.heappush(self._timers, (at, next(self._numbers), call, arguments))

    def _tell(self, event: str, *told: object) -> None:
        """Call the callbacks of an event."""
        for callback in self._blueprint.callbacks.get(event, ()):
            # the caller of ``run`` has its summary already
            if self.ledger.is_closed:
                return
            try:
                callback(*told)
            except BaseException as error:
                complain("callback_failed", error, callback=event)

    # What is ready, and what became of it

    def _advance(self) -> None:
        """Dispatch the tasks that are ready, in the order of declaration."""
        plan, outcomes = self._blueprint, self.ledger.outcomes
        while not self._is_stopping and (ready := self._sorter.get_ready()):
            for place in sorted(ready):
                if plan.skips and any(outcomes[one] is not PASSED for one in plan.after[place]):
                    self._settle(place, SKIPPED)
                else:
                    self._tell("on_task_start", plan.tasks[place].name)
                    self._dispatch(place, 1)

    def _dispatch(self, place: int, number: int) -> None:
        """Hand an attempt to the workers. Hire one more if all others are busy."""
        plan, task = self._blueprint, self._blueprint.tasks[place]
        call = functools.partial(task.function, plan.state) if task.with_state else task.function
        attempt = Attempt(task, place, number, call)
        self.ledger.open.add(attempt)
        if self._hired < plan.workers and self._hired < len(self.ledger.open):
            self._order("start_child", self._hire())
        self.exchange.work.put(attempt)

    def _settle(self, place: int, outcome: Outcome) -> None:
        """Note what became of a task, for good."""
        self.ledger.outcomes[place] = outcome
        if not self._is_stopping:
            self._sorter.done(place)
        if "on_task_done" in self._blueprint.callbacks:
            self._tell("on_task_done", self._blueprint.tasks[place].name, outcome)

    def _fail(self, attempt: Attempt, kind: ExitKind, error: BaseException, text: str) -> None:
        """Try the task again, or settle it as failed."""
        task = attempt.task
        if attempt.number <= task.retries and not self._is_stopping:
            if (delays := self._delays.get(attempt.place)) is None:
                delays = self._delays[attempt.place] = Delays(task.backoff, random.Random())
            if (wait := delays.next_wait()) is None:
                self._try_again(attempt)
            else:
                self._arm(time.monotonic() + wait, self._try_again, attempt)
            return
        self.ledger.failures[task.name] = TaskFailure(
            name=task.name, kind=kind, exception=error, traceback=text, attempts=attempt.number
        )
        self._settle(attempt.place, FAILED)
        self._advance()

    def _try_again(self, attempt: Attempt) -> None:
        if not self._is_stopping:
            self._dispatch(attempt.place, attempt.number + 1)

    def _cancel(self, attempt: Attempt) -> None:
        """Settle the task of an open attempt as cancelled."""
        self.ledger.open.remove(attempt)
        self._settle(attempt.place, CANCELLED)
        self._advance()

    # Messages

    def _on_seated(self, message: Seated) -> None:
        """A worker has come. Account for its predecessor, if that has not been done."""
        if message.former is not None:
            self._bury(message.former)

    def _on_begun(self, message: Begun) -> None:
        """An attempt has begun. Wait for its timeout."""
        task = message.attempt.task
        if task.timeout is not None:
            due = message.at + task.timeout
            self._arm(due, self._late, message, due)
        self._tell("on_task_run", task.name, message.thread.name)

    def _late(self, begun: Begun, due: float | None) -> None:
        """The timeout of an attempt is over.

        Args:
            due: When this was to be called; None: the attempt had its time once more.
        """
        attempt, seat, now = begun.attempt, begun.seat, time.monotonic()
        timeout = attempt.task.timeout
        # The whole process could not run, so neither could the task. It gets its time
        # once more.
        if due is not None and timeout is not None and now - due >= PAUSE:
            self._arm(now + timeout, self._late, begun, None)
            return
        # The worker may finish the attempt now. If it has the token, its message is
        # here or on its way, and counts.
        if attempt not in self.ledger.open or not attempt.token.acquire(blocking=False):
            return
        self.ledger.open.remove(attempt)
        seat.is_dismissed = True
        self._replace(seat)
        error = TimeoutError(f"{attempt.task.name} was not done after {timeout} s")
        self._fail(attempt, ExitKind.STALLED, error, stacks.stack_of(begun.thread.ident))

    def _on_finished(self, message: Finished) -> None:
        """A task has returned or raised."""
        self.ledger.open.discard(message.attempt)
        if message.error is None:
            self._settle(message.attempt.place, PASSED)
            self._advance()
        else:
            self._fail(message.attempt, ExitKind.CRASHED, message.error, message.text)

    def _on_asked(self, message: Asked) -> None:
        """A worker was asked to stop. Cancel its task; the thread may never end."""
        for attempt in self.ledger.open.intersection(message.seat.held):
            # if the worker has the token, it has finished the attempt and reports that
            if attempt.token.acquire(blocking=False):
                self._cancel(attempt)

    def _on_gone(self, message: Gone) -> None:
        """A worker has ended. Replace it, unless its supervisor restarts it."""
        seat = message.seat
        self._bury(seat)
        is_restarted = seat.error is not None and seat.ctx.running
        if not is_restarted and not seat.is_dismissed:
            self._replace(seat)

    def _on_stop(self, message: StopRun) -> None:
        """The run is stopped. Take back what no worker has taken."""
        self._was_stopped = True
        with contextlib.suppress(queue.Empty):
            while True:
                attempt = self.exchange.work.get_nowait()
                if attempt is not None:
                    self.ledger.open.discard(attempt)

    def _bury(self, seat: Seat) -> None:
        """Account for what a worker held that has ended.

        It has reported what it had finished before its end.
        """
        for attempt in self.ledger.open.intersection(seat.held):
            attempt.token.acquire(blocking=False)
            # a worker that was stopped did not die of its task
            if not seat.ctx.running:
                self._cancel(attempt)
                continue
            self.ledger.open.remove(attempt)
            error = seat.error or Killed()
            text = seat.text or ExitReason(ExitKind.KILLED, error).traceback
            self._fail(attempt, ExitKind.KILLED, error, text)

    # Orders to the supervisor of the workers. It serves them in order, so the scheduler
    # does not wait for the answers.

    def _hire(self) -> ChildSpec:
        """Return one more worker."""
        self._hired += 1
        return self._worker(self._hired)

    def _worker(self, number: int) -> ChildSpec:
        return otpy.thread(
            work,
            self.exchange,
            number,
            id=f"worker-{number}",
            restart="transient",
            shutdown=FAREWELL,
            backoff=REVIVAL,
        )

    def _replace(self, seat: Seat) -> None:
        """Order the end of a worker, and a new one in its place."""
        self._order("terminate_child", f"worker-{seat.number}")
        self._insist(seat)

    def _insist(self, seat: Seat) -> None:
        """Order a replacement, and look after a while whether it has come.

        The system may have had no thread for it.
        """
        if self.exchange.seats[seat.number] is seat and not self._is_stopping:
            self._order("start_child", self._worker(seat.number))
            self._arm(time.monotonic() + SOON, self._insist, seat)

    def _order(self, call: str, about: object) -> None:
        if not self._is_stopping:
            with contextlib.suppress(Refusal, StartError):
                getattr(self._pool, call)(about, timeout=0)


@report
class RunSpec(SupervisorSpec):
    """The tree of a run. ``otpy check`` does not look into it: it is not the user's."""

    @property
    def kind(self) -> str:
        return "task_graph"


def tree_of(id: str, make: Callable[[], Scheduler], common: Any) -> SupervisorSpec:
    """Return the tree of a run: a supervisor of workers, and the scheduler.

    Args:
        make: Makes the scheduler, each time that the tree starts.
        common: The options of the tree.
    """
    made = otpy.supervisor(
        id,
        children=[
            otpy.dynamic_supervisor("workers", intensity=UNLIMITED),
            otpy.thread(
                lambda ctx: make().schedule(ctx),
                id="scheduler",
                significant=True,
                ready=True,
                restart="temporary",
                shutdown="infinity",
                interrupt=False,
            ),
        ],
        auto_shutdown="any_significant",
        **common,
    )
    return RunSpec(
        **{field.name: getattr(made, field.name) for field in attrs.fields(SupervisorSpec)}
    )


def summary_of(scheduler: Scheduler) -> Summary:
    """Return the summary of a run whose tree has ended.

    Raises:
        InternalError: The scheduler has crashed.
    """
    # The scheduler's thread may have been given up before it took the lock, and may
    # still run. It must not run the graph when this thread has its summary. So this
    # thread takes the lock: then the scheduler's thread finds it taken, and ends.
    is_ours = scheduler.begun.acquire(blocking=False)
    try:
        said = scheduler.answer.get(timeout=0.0 if is_ours else LAST_WORD)
    except queue.Empty:
        said = Killed()
    if isinstance(said, Summary):
        return said
    if not is_stop(said):
        raise InternalError(f"the scheduler of a graph has crashed: {said!r}") from said
    if is_ours:
        return scheduler.conduct(was_stopped=True)
    # it hangs in a callback
    scheduler.ledger.close()
    return scheduler.ledger.sum_up()
