"""What a coroutine child sees of its tree, and how otpy knows which child a task is of.

Laws:
1. The waits of a coroutine child are awaited. A stop ends all of them at the same
   moment, also those in a loop that the child runs on another thread.
2. Each task that a child starts on its loop is noted in its context, and so is each
   piece of work that such a task gives to a thread.

A context is used on the loop of its child, and on any loop and thread that the child
makes. ``as_awaited_here`` is for the asynchronous handles of supervisors (aio.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from otpy.abc import Birth, Deliver
from otpy.children.coroutine.workers import Work
from otpy.exceptions import NotFound
from otpy.runtime.context import Context, current
from otpy.runtime.waiting import Once

T = TypeVar("T")

NO_EVENT = Once()
"""The event that a thread would wait for; ``AsyncContext.wake`` wakes a coroutine."""


class AsyncContext(Context):
    """A coroutine child's window on its tree: a ``Context`` whose waits are awaited.

    Attributes:
        tasks: The tasks that the child has started on its loop, and that still run.
        works: The work that these tasks have given to threads, until it is done; None:
            no work yet.
        when_idle: Called when the last work ends; None: the end of the child does not
            wait for works.
    """

    __slots__ = ("_naps", "tasks", "when_idle", "works")

    def __init__(self, birth: Birth, deliver: Deliver) -> None:
        super().__init__(birth, deliver, NO_EVENT)
        self._naps: dict[asyncio.Future[None], asyncio.Task[Any] | None] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.works: dict[Work, None] | None = None  # most children give nothing to threads
        self.when_idle: Callable[[], object] | None = None

    async def sleep(self, seconds: float) -> None:  # type: ignore[override]
        """Sleep, or return early when asked to stop.

        Args:
            seconds: How long, >= 0.
        """
        await self.wait_stop(seconds)

    async def wait_stop(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Wait until asked to stop, or *timeout* seconds; return whether asked to stop.

        Raises:
            ValueError: *timeout* is negative or not a number.
        """
        self._use()
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout = {timeout!r}: expected a number of seconds >= 0")
        if self.running:
            await self._nap(timeout)
        else:
            # A target that loops around this wait would block the event loop.
            await asyncio.sleep(0)
        self._use()  # it may have been fenced in its sleep
        return not self.running

    async def _nap(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        nap: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout, _rouse, nap) if timeout is not None else None
        self._naps[nap] = asyncio.current_task()
        # If this is a loop of the child's own on another thread, the stop may come just
        # now, and wake() may have seen no nap. ask() sets running to False first, so
        # this line sees the stop, or wake() sees the nap.
        if not self.running:
            _rouse(nap)
        try:
            await nap
        finally:
            del self._naps[nap]
            if timer is not None:
                timer.cancel()

    # The methods below are for otpy, not for the child.

    def wake(self, task: asyncio.Task[Any]) -> bool:
        """End all waits for a stop; return whether *task* itself was in one of them.

        On the loop of the child.
        """
        sleepers = set(self._naps.values())
        here = asyncio.get_running_loop()
        for nap in list(self._naps):
            if (loop := nap.get_loop()) is here:
                _rouse(nap)
            else:  # a loop of the child's own, on another thread
                with contextlib.suppress(RuntimeError):  # it is closed
                    loop.call_soon_threadsafe(_rouse, nap)
        return task in sleepers

    def starts_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Return whether the child cannot become ready while *task* waits here."""
        return (
            not self._is_ready and self._thread == threading.get_ident() and task not in self.tasks
        )

    def note_work(self, work: Work) -> None:
        """Note that this child has given *work* to a thread."""
        if self.works is None:
            self.works = {}
        self.works[work] = None

        def note_end(_: object) -> None:
            # This runs on the thread of the work. The loop's thread may begin to wait
            # for the works just now. If each side looked only once, before its own
            # step, the child would never end. So the loop's thread sets when_idle, and
            # then looks at the works again; this one removes its work, and then looks
            # at when_idle. One of both sees the other.
            if self.works is not None:
                self.works.pop(work, None)
            when_idle = self.when_idle  # once: the loop's thread may set it to None
            if not self.works and when_idle is not None:
                when_idle()

        work.future.add_done_callback(note_end)

    def _is_held_up(self) -> bool:
        return super()._is_held_up() or _is_for_a_start.get()

    def _runner(self) -> str:
        return self._birth.path


def _rouse(nap: asyncio.Future[None]) -> None:
    if not nap.done():
        nap.set_result(None)


def _child_of_this_code() -> AsyncContext | None:
    """Return the context of the coroutine child whose code this is, if it is."""
    with contextlib.suppress(NotFound):
        ctx = current()
        if isinstance(ctx, AsyncContext):
            return ctx
    return None


def new_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Make a task as asyncio does, and note which child it is of."""
    task = asyncio.Task(coro, loop=loop, **options)
    if (ctx := _child_of_this_code()) is not None:
        ctx.tasks[task] = None
        task.add_done_callback(ctx.tasks.pop)
    return task


def note_work(work: Work) -> None:
    """Note which child *work* is of."""
    if (ctx := _child_of_this_code()) is not None:
        ctx.note_work(work)


_is_for_a_start: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "otpy.is_for_a_start", default=False
)


def as_awaited_here(call: Callable[[], T]) -> Callable[[], T]:
    """Return *call* as a helper thread has to make it for the task that awaits it here.

    While a child starts, its supervisor may wait for the child, and the call for the
    supervisor: then otpy must know that the call is the child's. Afterwards it need
    not: a task that awaits is cancelled when the child has to end.
    """
    ctx = _child_of_this_code()
    if ctx is None or not ctx.starts_in(asyncio.current_task()):
        return call

    def call_for_a_start() -> T:
        _is_for_a_start.set(True)
        return call()

    return functools.partial(contextvars.copy_context().run, call_for_a_start)
