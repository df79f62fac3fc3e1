"""The event loops of coroutine children, each on a thread of its own.

Laws:
1. A loop decides nothing about its members. It obeys, and ends when it is told to.
2. Whatever is raised in a loop, each of its members has an end. If a callback of otpy
   fails, ``call_exception_handler`` is called, and then each member looks whether its
   own callbacks were lost.
3. There is no lock between the loop's thread and the supervisor's (members.py).

All methods of ``LoopThread`` run on the loop's thread, except ``take_no_step``: that
runs on the thread that forks. The supervisor's thread adds to ``orders``, and sets
``is_rung`` and ``is_closing`` (orders.py); ``obey`` takes from ``orders`` and clears
``is_rung``.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import importlib
import os
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from otpy.children.coroutine.blockage import Blockage, Selector
from otpy.children.coroutine.cancelling import CLEAN_UP, cancel
from otpy.children.coroutine.members import CLOSED, Member, Members
from otpy.children.coroutine.workers import Work, Workers
from otpy.reports import CRASHED, ExitReason
from otpy.runtime import threads


class LoopThread:
    """The thread of an event loop.

    Args:
        name: Of the thread.
        path: Of the supervisor, or of the one child, that the loop is for.
        tree: The running tree.
        members: The children on the loop.
        loop: The loop.
        ask_whether_to_end: Called when the last member has left and others may come;
            None: no other member comes.
        note: Called with each piece of work that a task gives to threads.

    Attributes:
        loop: The loop.
        context: The context of all callbacks of otpy. One for all: each task would keep
            another one.
        orders: The orders that are not obeyed yet.
        is_rung: Whether the loop will obey without another call.
        is_closing: Whether the loop ends when its last member leaves.
    """

    def __init__(  # noqa: PLR0917
        self,
        name: str,
        path: str,
        tree: Any,
        members: Members,
        loop: asyncio.AbstractEventLoop,
        ask_whether_to_end: Callable[[], object] | None,
        note: Callable[[Work], object],
    ) -> None:
        self.name, self.loop = name, loop
        self._tree, self._members, self._ask_whether_to_end = tree, members, ask_whether_to_end
        self._forks = threads.forks
        self._is_left = False
        self.context = contextvars.Context()
        self.orders: collections.deque[Callable[[], object]] = collections.deque()
        self.is_rung = self.is_closing = False
        self._workers = Workers(f"{path} (to_thread)", note)
        self._workers.serve(loop)
        self._complain = loop.call_exception_handler
        loop.call_exception_handler = self._hear_complaint  # type: ignore[method-assign]
        _all.add(self)

    def run(self) -> None:
        """Run the loop until it is shut, and close it."""
        try:
            while not self._members.is_shut:
                self._run_until_stopped()
                if threads.forks != self._forks:
                    return
        except BaseException as error:  # not of a task: the loop itself is broken
            if threads.forks != self._forks:
                return
            self._tree.telemetry.complain("loop_broken", error, loop=self.name)
            # Shut the loop before the members end: a member that ends is replaced at
            # once, and the replacement must not come here.
            self._members.is_shut = True
            self._members.end_all(ExitReason(CRASHED, error))
        self._is_left = True
        try:
            self.loop.run_until_complete(self._clean_up())
        except BaseException as error:
            self._tree.telemetry.complain("loop_not_clean", error, loop=self.name)
        self._workers.close()
        self.loop.close()
        del self.loop.call_exception_handler  # the loop and this object hold each other
        self._members.end_all(CLOSED)

    def _run_until_stopped(self) -> None:
        """Run until the loop is stopped, perhaps by a task that should not do that.

        asyncio lets two exceptions out of the loop. A task that raised one of them has
        it as its end, too.
        """
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            if threads.forks != self._forks:
                return
            self._tree.telemetry.complain("raised_in_loop", error, loop=self.name)
            self._look_after_members()

    def obey(self) -> None:
        """Obey all orders that were given so far.

        Orders that come meanwhile ring again: a flood of them must not starve the tasks.
        """
        # The supervisor's thread may give an order just now. If the orders were counted
        # before this line, it would find is_rung True, and its order would wait for
        # ever.
        self.is_rung = False
        for _ in range(len(self.orders)):
            # An exception of another thread may hit any of these lines. So the order
            # stays in the deque until it is obeyed: one that was popped could be lost.
            act = self.orders[0]
            try:
                act()
            except BaseException as error:
                member: Any = getattr(act, "__self__", None)
                if member not in self._members:
                    raise
                member.end(ExitReason(CRASHED, error))
                self.leave(member, for_good=False)
            self.orders.popleft()

    def leave(self, member: Member, *, for_good: bool) -> None:
        """Let *member* out; *for_good*: no replacement of it will come here."""
        if not for_good and self._ask_whether_to_end is not None:
            self._members.awaited[member.birth.spec.id] = None
        self._members.let_out(member)
        self.settle()

    def settle(self) -> None:
        """If no member is left, end, or ask the supervisor's thread whether to end."""
        if self._members:
            return
        if self._ask_whether_to_end is not None and not self.is_closing:
            self._ask_whether_to_end()
        else:
            self._members.is_shut = True
            self.halt()

    def halt(self) -> None:
        """Stop the loop, which is shut."""
        if not self._is_left:  # a second stop would interrupt the clean-up
            self.loop.stop()

    def _hear_complaint(self, context: dict[str, Any]) -> None:
        """Look after the members: a callback of one of them may have failed."""
        self._look_after_members()
        self._complain(context)

    def _look_after_members(self) -> None:
        if self.orders:
            self.loop.call_soon(self.obey, context=self.context)
        for member in self._members:
            self.loop.call_soon(member.look, context=self.context)
        self.loop.call_soon(self.settle, context=self.context)

    async def _clean_up(self) -> None:
        left = _others()
        for task in left:
            cancel(task)
        await _end_of(left)
        async with asyncio.timeout(CLEAN_UP):
            await self.loop.shutdown_asyncgens()
        # If another thread drops a generator, as with the frames of a crash, its
        # closing is only posted to this loop. This lets it begin.
        await asyncio.sleep(0)
        await _end_of(_others() - left)

    def take_no_step(self) -> None:
        """Let no task take a step in this fork, if a task of this loop has made it."""
        if self._members.thread is threading.current_thread():
            getattr(self.loop, "_ready", self.orders).clear()  # a uvloop hides its callbacks


def _others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def _end_of(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=CLEAN_UP)


_all: weakref.WeakSet[LoopThread] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(_all):
        one.take_no_step()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


def new_loop(blockage: Blockage) -> asyncio.AbstractEventLoop:
    """Return one of asyncio's loops, whose selector tells *blockage* about it.

    Raises:
        OSError: The system has no more descriptors.
    """
    selector = Selector(blockage)
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:
        selector.close()
        raise


def find_uvloop() -> ModuleType | None:
    """Return the module ``uvloop``; None: it is not installed."""
    try:
        return importlib.import_module("uvloop")
    except ImportError:
        return None
