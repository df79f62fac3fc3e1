"""Workers: each runs one task after the other on its thread.

Laws:
1. A worker that has lost a token takes no further task. It is about to be stopped, and
   the stop must not hit another task.
2. Each attempt has a context of its own. No other task sees the values that it sets in
   context variables.
3. Any exception of a task is its failure, and the worker goes on. An exception that
   hits the worker elsewhere ends its thread, and the supervisor restarts it.

All methods of ``Worker`` run on the thread of that worker. ``ask_to_stop`` runs on a
helper thread. User code runs on workers: the tasks, and the text of their exceptions.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from otpy import Context, ExitKind, ExitReason
from otpy.arguments import is_coroutine
from otpy.exceptions import means_success
from otpy.taskgraph.exchange import (
    Asked,
    Attempt,
    Begun,
    Exchange,
    Finished,
    Gone,
    Seat,
    Seated,
    is_stop,
)

_TRACEBACK: Any = vars(BaseException)["__traceback__"]
"""Gets and sets the traceback of an exception without running code of its class."""


class Worker:
    """One life of a worker."""

    def __init__(self, exchange: Exchange, seat: Seat) -> None:
        self._exchange, self._seat = exchange, seat
        self._announces = "on_task_run" in exchange.blueprint.callbacks
        self._loop: asyncio.AbstractEventLoop | None = None

    def live(self) -> None:
        """Run one task after the other, until sent home or asked to stop."""
        exchange, seat = self._exchange, self._seat
        former, exchange.seats[seat.number] = exchange.seats.get(seat.number), seat
        exchange.inbox.put(Seated(former))
        try:
            seat.ctx.on_stop(functools.partial(ask_to_stop, exchange, seat))
            self._serve()
        except BaseException as error:
            seat.error = error
            if not seat.ctx.running:
                raise
            seat.text = ExitReason(ExitKind.KILLED, error).traceback
            # Not the error itself: a SystemExit could be a normal end, and the
            # supervisor would not restart the worker.
            raise RuntimeError("the worker has died") from error
        finally:
            exchange.inbox.put(Gone(seat))

    def _serve(self) -> None:
        seat, taken = self._seat, iter(self._exchange.work.get, None)
        while seat.ctx.running:
            # Another thread may raise an exception in this one at any line. Between a
            # ``get`` and the note in the seat it would lose the attempt: the queue has
            # it no more, and the seat not yet. Here C code does both in one step.
            seat.held[:] = itertools.islice(taken, 1)
            if not seat.held or not seat.ctx.running or not self._try(seat.held[0]):
                return

    def _try(self, attempt: Attempt) -> bool:
        """Run a task; return whether the worker may go on."""
        if self._announces or attempt.task.timeout is not None:
            thread = threading.current_thread()
            self._exchange.inbox.put(Begun(attempt, self._seat, thread, time.monotonic()))
        result: object = None
        try:
            result = contextvars.copy_context().run(self._call, attempt.call)
        except BaseException as error:
            if not self._seat.ctx.running and is_stop(error):
                raise
            if not means_success(error):
                return self._finish(attempt, error)
        return self._finish(attempt, None, result)

    def _call(self, function: Callable[[], object]) -> object:
        result = function()
        if not is_coroutine(result):
            return result
        try:
            return asyncio.run(self._run(result))
        finally:
            # An interrupt may have hit asyncio while it was closing the loop. Then the
            # loop may be half closed, and raise once more.
            loop, self._loop = self._loop, None
            if loop is not None and not loop.is_closed():
                with contextlib.suppress(Exception):
                    loop.close()

    async def _run(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """Await *coroutine*, which ``ask_to_stop`` may cancel meanwhile."""
        this = asyncio.current_task()
        assert this is not None, "asyncio.run makes a task"
        seat, loop = self._seat, asyncio.get_running_loop()
        self._loop, seat.cancel = loop, functools.partial(loop.call_soon_threadsafe, this.cancel)
        try:
            # The helper thread may have asked before ``cancel`` was set, and have found
            # nothing to call. ``running`` turns false before the helper looks, so this
            # look after the setting finds that.
            if not seat.ctx.running:
                this.cancel()
            return await coroutine
        finally:
            seat.cancel = None

    def _finish(self, attempt: Attempt, error: BaseException | None, result: object = None) -> bool:
        """Report what came of an attempt; return whether the worker may go on."""
        exchange, plan = self._exchange, self._exchange.blueprint
        if not exchange.is_here:
            return False
        # the text is made on this thread, since the exception may run code for that
        text = "" if error is None else text_of(error)
        if error is None and plan.stores:
            # The lock comes before the token. A task may hold the lock for ever. With
            # the token in its hand this worker would wait for the lock, and the
            # scheduler could not fail the attempt when its timeout is over.
            with plan.lock:
                is_ours = attempt.token.acquire(blocking=False)
                if is_ours:
                    plan.results[attempt.task.name] = result
        else:
            is_ours = attempt.token.acquire(blocking=False)
        # The put comes last. It wakes the scheduler, which then waits for the GIL until
        # this thread waits for its next attempt.
        if is_ours:
            exchange.inbox.put(Finished(attempt, error, text))
        return is_ours


def work(ctx: Context, exchange: Exchange, number: int) -> None:
    """Be a worker; the target of its thread."""
    Worker(exchange, Seat(ctx, number)).live()


def ask_to_stop(exchange: Exchange, seat: Seat) -> None:
    """Report that a worker was asked to stop, and wake it, on a helper thread."""
    if (cancel := seat.cancel) is not None:
        # the worker may have closed the loop just now
        with contextlib.suppress(RuntimeError):
            cancel()
    # A worker that was dismissed never waits for work again. The None would send
    # another worker home.
    if not seat.is_dismissed:
        exchange.inbox.put(Asked(seat))
        exchange.work.put(None)


def text_of(error: BaseException) -> str:
    """Return the traceback of what a task raised, from the task's own line on.

    A task that could not be called has no line of its own.
    """
    here = _TRACEBACK.__get__(error)
    while here is not None and here.tb_next is not None:
        if here.tb_frame.f_code.co_filename == __file__:
            _TRACEBACK.__set__(error, here.tb_next)
        here = here.tb_next
    return ExitReason(ExitKind.CRASHED, error).traceback
