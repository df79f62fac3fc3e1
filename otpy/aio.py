"""Calling otpy from async code: the same calls, awaited.

Laws:
1. No call blocks the event loop. While a call is pending it has a helper thread of its
   own, so any number may wait side by side.
2. A call means what the call of the blocking handle means: that handle makes it.
3. If the task that awaits a call is cancelled, the call finishes by itself, and its answer
   is dropped. So a child that awaits a call can always be stopped.

A child cannot become ready while it awaits a call. So a call that waits until its
supervisor has started this child raises ``WouldDeadlock``.

The loop's thread runs everything but ``_answer``, which runs on the helper thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar, Unpack

from otpy.abc import Puttable, ReportHandler
from otpy.children.coroutine.context import as_awaited_here
from otpy.reports import ChildInfo, Counts, ExitReason, Snapshot, StopReport
from otpy.runtime import running, threads
from otpy.runtime.handle import Supervisor
from otpy.runtime.options import Options
from otpy.runtime.threads import Role
from otpy.specs import ChildSpec, SupervisorSpec
from otpy.values import Value, value

__all__ = ["AsyncSupervisor", "start"]

T = TypeVar("T")


@contextlib.asynccontextmanager
async def start(tree: SupervisorSpec, **options: Unpack[Options]) -> AsyncIterator[AsyncSupervisor]:
    """Run a tree as long as a block runs.

    Write ``async with otpy.aio.start(tree) as app:``. The block begins when all of the
    tree is up. When it is left, the tree is stopped. If the task is cancelled while the
    tree starts, a stop overtakes the start. If it is cancelled while the tree stops, the
    stop goes on.

    Args:
        tree, **options: As for ``otpy.start``.

    Raises:
        SpecError, StartError: As ``otpy.start`` does.
    """
    launch = running.Launch(tree, options)
    begin = functools.partial(running.attempt, launch, running.Launch.start)
    app, is_up = AsyncSupervisor(launch.handle), False
    try:
        try:
            # CPython does not guard the line of a ``try``: an exception that is raised
            # there is not caught by it. So this ``try`` is the first line of the other
            # one, and nothing has been done before it.
            await _call("start", begin, give_up=launch.call_off)
            is_up = True
            yield app
        finally:
            if is_up:
                await app.stop()
    except BaseException:  # raised at any line, perhaps before the stop was ordered
        launch.call_off()
        raise


@value
class AsyncSupervisor(Value):
    """The handle of a running supervisor, for async code.

    Its calls mean and raise what those of ``Supervisor`` do. One difference: a coroutine
    child may await the end of its supervisor, or its own end; that cancels the child.

    Attributes:
        handle: The blocking handle, such as ``ctx.supervisor`` or the one that
            ``otpy.start`` returns.
    """

    handle: Supervisor

    @property
    def path(self) -> str:
        """The ids from the root down to this supervisor, joined by "/"."""
        return self.handle.path

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self.handle.alive

    async def start_child(self, spec: ChildSpec, timeout: float | None = None) -> ChildInfo:
        """Add a child, start it, and return when it is up."""
        return await self._manage(self.handle.start_child, spec, timeout)

    async def terminate_child(self, id: str, timeout: float | None = None) -> None:
        """Stop a child and return when it has ended or was given up."""
        await self._manage(self.handle.terminate_child, id, timeout)

    async def restart_child(self, id: str, timeout: float | None = None) -> ChildInfo:
        """Start a child that is not running, and return when it is up."""
        return await self._manage(self.handle.restart_child, id, timeout)

    async def delete_child(self, id: str, timeout: float | None = None) -> None:
        """Forget the spec of a child that is not running."""
        await self._manage(self.handle.delete_child, id, timeout)

    async def get_childspec(self, id: str, timeout: float | None = None) -> ChildSpec:
        """Return the spec of a child."""
        return await self._call(self.handle.get_childspec, id, timeout)

    async def which_children(self, timeout: float | None = None) -> tuple[ChildInfo, ...]:
        """Return all children in start order."""
        return await self._call(self.handle.which_children, timeout)

    async def count_children(self, timeout: float | None = None) -> Counts:
        """Return how many children there are."""
        return await self._call(self.handle.count_children, timeout)

    async def find(self, path: str) -> AsyncSupervisor:
        """Return the handle of a supervisor at or below this one."""
        return AsyncSupervisor(await self._call(self.handle.find, path))

    async def snapshot(self, timeout: float | None = None) -> Snapshot:
        """Return this supervisor and all that is below it."""
        return await self._call(self.handle.snapshot, timeout)

    async def subscribe(self, handler: ReportHandler | Puttable) -> None:
        """Send all reports from here and below to *handler*, on a thread of its own."""
        await self._call(self.handle.subscribe, handler)

    async def unsubscribe(self, handler: ReportHandler | Puttable) -> None:
        """Send no more reports to *handler*."""
        await self._call(self.handle.unsubscribe, handler)

    async def wait(self, timeout: float | None = None) -> ExitReason | None:
        """Wait until this supervisor has ended.

        Return why, or None after *timeout* seconds.
        """
        return await self._call(self.handle.wait, timeout)

    async def stop(self, timeout: float | None = None) -> StopReport:
        """Stop the supervisor and all below it in order; return when all is done."""
        return await self._call(self.handle.stop, timeout)

    async def detach(self) -> StopReport:
        """End this supervisor and all below it, and let their workers run on,
        unsupervised.
        """
        return await self._manage(self.handle.detach)

    async def _manage(self, method: Callable[..., T], *args: Any) -> T:
        """Make a call that may wait until the supervisor has nothing else to do."""
        return await _call(
            f"{method.__name__} {self.path}", as_awaited_here(functools.partial(method, *args))
        )

    async def _call(self, method: Callable[..., T], *args: Any) -> T:
        return await _call(f"{method.__name__} {self.path}", functools.partial(method, *args))

    def __repr__(self) -> str:
        return f"<AsyncSupervisor {self.path}, {'alive' if self.alive else 'not alive'}>"


_CALLS = object()
"""The owner of the helper threads.

It is no tree: the threads of a tree are waited for, and these may wait for a tree."""


def _nothing() -> None:
    pass


async def _call(
    what: str, function: Callable[[], T], give_up: Callable[[], object] = _nothing
) -> T:
    """Call *function* on a thread of its own, and await the answer.

    Args:
        what: What is called, for the name of the thread.
        function: Called without arguments.
        give_up: Called if the loop is closed before the answer is there.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    call = functools.partial(_answer, loop, future, function, give_up)
    threads.spawn(
        call,
        name=f"otpy.aio ({what})",
        role=Role.HELPER,
        purpose="waits for async code",
        owner=_CALLS,
    )
    return await future


def _answer(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[T],
    function: Callable[[], T],
    give_up: Callable[[], object],
) -> None:
    """Make the call; on its own thread."""
    result, error = _outcome(function)
    try:
        # A signal handler may raise amid ``_settle``, and the loop only logs that: the
        # task would wait for ever. So it is ordered twice; the second one finds it
        # done.
        loop.call_soon_threadsafe(_settle, future, result, error)
        loop.call_soon_threadsafe(_settle, future, result, error)
    except RuntimeError:  # the loop is closed
        give_up()


def _outcome(function: Callable[[], T]) -> tuple[Any, BaseException | None]:
    """Return what *function* returns, and what it raises.

    Its frame is in the traceback. A frame that knows the future would be a cycle there:
    the future holds the exception.
    """
    try:
        return function(), None
    except BaseException as error:
        return None, error


def _settle(future: asyncio.Future[T], result: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled, or it has the answer already
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
