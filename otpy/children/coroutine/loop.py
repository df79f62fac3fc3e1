"""Event loops, each on a thread of its own: what coroutine children run on. A loop decides nothing about them.

Laws:
1. Orders are obeyed in the order in which they were given. All that a supervisor gives before it waits again cost one
   wake-up of the loop: each is a system call, and gives the interpreter away.
2. A loop lives while it has members. When the last one has left, the supervisor decides: the loop lives on while the
   supervisor is going to start one again that has ended by itself, however long its back-off is.
3. A loop that does not come back to its selector within LOOP_PATIENCE is found out. An idle one is not woken for that.
   Time in which the whole program could not run does not count (pauses.py), nor does
   time under a debugger.
4. A blocked loop is given up as a whole: reported with its stack, marked as unstopped, left by its members. Should it
   wake up later, its tasks are cancelled, and it is closed.
5. Whatever is raised in a loop, its members do not hang in the air: each has an end. What fails in a callback of ours
   reaches ``call_exception_handler``, and then each member looks whether its own callbacks have been lost.
6. There is no lock here. Another thread may raise something in the loop's thread between any two steps, since
   Python 3.14 also between ``__enter__`` and the block of a ``with``. A lock would stay locked then, and the supervisor
   would wait for it.

Theory of operation. The supervisor's thread makes a loop, lets members in (``take``), and gives orders; all else
happens on the loop's own thread. The next member may come while the last one leaves. So as long as one can come, the
loop's thread does not end the loop: it asks the supervisor's thread, on which members come, to do that (``_consider``).
When nobody can come any more (``close``), the loop's thread does it.

The watch: when the loop comes out of its selector and nobody watches it, it has the supervisor's thread look at it
LOOP_PATIENCE seconds later. If the loop is back in its selector then, the watch is over. So a loop that works costs its
supervisor two wake-ups in LOOP_PATIENCE, and one that is idle none.

A uvloop has no selector to tell. It is asked for an answer every LOOP_PATIENCE seconds, also when it is idle.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import importlib
import inspect
import os
import selectors
import sys
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from otpy.abc import Birth
from otpy.children.coroutine.workers import Work, Workers
from otpy.core.pauses import PAUSE
from otpy.reports import CRASHED, KILLED, STALLED, ExitReason, Stalled, Unstopped
from otpy.runtime import debugger, posix, stacks, threads
from otpy.runtime.threads import ThreadState

LOOP_PATIENCE = 5.0
"""How long a loop may work without a look at its selector, in seconds; then it counts as blocked."""

BATCH = 256
"""How many orders may wait for the end of the supervisor's turn, so that they cost one wake-up of the loop."""

CLEAN_UP = 0.5
"""How long tasks that were left behind may take to end when they are cancelled, in seconds."""

BUSY = 0.1
"""From how many seconds on without a look at its selector the stack of a loop says more than those of its tasks."""

BLOCKED = ExitReason(STALLED, detail="its event loop was blocked")
CLOSED = ExitReason(KILLED, detail="its event loop was closed")
LOST = ExitReason(CRASHED, detail="the thread of its event loop ended without a word")


class Member(Protocol):
    """What runs on a loop."""

    @property
    def birth(self) -> Birth:
        """What it was made from."""

    def stop(self) -> None:
        """Ask it to stop; called on any thread, if nobody supervises it any more."""

    def end(self, reason: ExitReason) -> None:
        """Say that it has ended, unless that has been said; called on any thread."""

    def escape(self) -> bool:
        """Leave the blocked loop; False: it was told to stop before. Called on the supervisor's thread."""

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether it has started *task*; called on any thread."""

    def look(self) -> None:
        """Go on where a callback of its own was lost, if one was. Called on the loop."""


class LoopThread:
    """An event loop and its thread.

    Attributes:
        name: The name of the thread.
        path: What it serves: a supervisor, or one child.
        loop: The loop.
        context: What its own callbacks run in: one for all, or each task would keep another one.
    """

    def __init__(
        self,
        name: str,
        path: str,
        birth: Birth,
        *,
        is_shared: bool,
        uvloop: ModuleType | None,
        note: Callable[[Work], object],
    ) -> None:
        self.name, self.path = name, path
        self._returns_in = birth.returns_in if is_shared else None
        self._tree, self._remind, self._soon = birth.tree, birth.remind, birth.soon
        self._monotonic = birth.tree.clock.monotonic
        self._members: dict[Member, None] = {}
        self._let_go: dict[Member, ThreadState] = {}
        self._awaited: dict[
            str, None
        ] = {}  # the ids of those that have ended by themselves, and may come back
        self._orders: collections.deque[Callable[[], object]] = collections.deque()
        self._is_rung = self._will_ring = self._is_shut = self._is_closing = self._is_watched = (
            False
        )
        self._is_given_up = self._is_left = False
        self._has_to_be_asked = uvloop is not None
        self._busy_since: float | None = None
        self._look_at, self._forks = 0.0, threads.forks
        self._excused: float | None = None
        self._thread: threading.Thread | None = None
        self.context = contextvars.Context()
        with posix.occupied():  # or it would be stdin, stdout or stderr, where these are closed
            self.loop: asyncio.AbstractEventLoop = (
                _new_loop(self) if uvloop is None else uvloop.new_event_loop()
            )
        self._workers = Workers(f"{path} (to_thread)", note)
        self._workers.serve(self.loop)
        _homes.add(self)
        self._complain = self.loop.call_exception_handler
        self.loop.call_exception_handler = self._hear_complaint  # type: ignore[method-assign]

    def begin(self, spawn: Callable[..., threading.Thread]) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no more threads to give, or the interpreter exits.
        """
        try:
            self._thread = spawn(self._main, if_lost=self._is_lost)
        except BaseException:
            self.loop.close()
            raise
        if self._has_to_be_asked:
            self._watch(LOOP_PATIENCE)

    # On the supervisor's thread

    def take(self, member: Member) -> bool:
        """Let *member* in; False: the loop is shut."""
        if self._is_shut:
            return False
        self._members[member] = None
        # The loop's thread may find just now that the loop is broken: it shuts it first, then ends all members. So if
        # it does not find this one, this one finds it shut.
        if self._is_shut:
            self._members.pop(member, None)
            return False
        self._awaited.pop(member.birth.spec.id, None)
        if self._let_go:
            self._mark()
        return True

    def let_go(self, member: Member, state: ThreadState) -> None:
        """Note that *member* was given up or detached; the thread is what all that is left on it are."""
        if member in self._members:  # or it has just ended
            self._let_go[member] = state
            # The loop's thread may let it out just now: it takes it out of the members first, then out of here. If it
            # was here before this one, it has found nothing.
            if member not in self._members:
                self._let_go.pop(member, None)
        self._mark()

    def stack(self) -> str:
        """Return what the thread is doing, formatted like a traceback."""
        return stacks.stack_of(self._thread.ident) if self._thread is not None else ""

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_busy(self) -> bool:
        """Whether it has not looked at its selector for a while."""
        since = self._busy_since
        return since is not None and self._monotonic() - since >= BUSY

    def order(self, act: Callable[[], object]) -> None:
        """Have *act* called on the loop, together with the other orders of this supervisor's turn.

        What a method of a member raises there is the crash of that member. The race is with ``_obey``: each looks again
        after its own step.
        """
        self._orders.append(act)
        if self._is_rung:
            return
        if len(self._orders) >= BATCH:
            self._ring()
        elif not self._will_ring:
            self._will_ring = True
            self._soon(self._ring)

    def _ring(self) -> None:
        self._will_ring = False
        if self._orders and not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(RuntimeError):  # it is closed: there is nobody left to obey
                self.loop.call_soon_threadsafe(self._obey)

    def close(self) -> None:
        """End when the members have ended: the supervisor starts nobody here any more."""
        self._is_closing = True
        self.order(self._settle)

    def _consider(self) -> None:
        """End, unless one is in, or the supervisor is going to start one again that has ended by itself."""
        assert self._returns_in is not None, "nobody comes back to a loop that is not shared"
        if self._members:
            return  # the last one that leaves asks again
        returns = {id: self._returns_in(id) for id in list(self._awaited)}
        waits = [wait for wait in returns.values() if wait is not None]
        if waits:
            self._remind(max(waits), self._consider)
            return
        for id in returns:
            self._awaited.pop(id, None)
        self._is_shut = True
        self.order(self._halt)

    # On the loop's thread

    def _obey(self) -> None:
        """Obey all that was ordered so far; what comes meanwhile rings again, or a flood would starve the tasks."""
        self._is_rung = False
        for _ in range(len(self._orders)):
            act = self._orders[
                0
            ]  # it stays there until it is obeyed: what is popped first can be lost
            try:
                act()
            except BaseException as error:
                member: Any = getattr(act, "__self__", None)
                if member not in self._members:
                    raise
                member.end(ExitReason(CRASHED, error))
                self.leave(member, for_good=False)
            self._orders.popleft()

    def _hear_complaint(self, context: dict[str, Any]) -> None:
        """Something has failed in the loop: perhaps a callback of a member, which has to go on where that was."""
        self._look_after_members()
        self._complain(context)

    def _look_after_members(self) -> None:
        if self._orders:
            self.loop.call_soon(self._obey, context=self.context)
        for member in list(self._members):
            self.loop.call_soon(member.look, context=self.context)
        self.loop.call_soon(self._settle, context=self.context)

    def leave(self, member: Member, *, for_good: bool) -> None:
        """Let *member* out; *for_good*: nobody will replace it here."""
        if not for_good and self._returns_in is not None:
            self._awaited[member.birth.spec.id] = None
        self._members.pop(member, None)
        was_let_go = self._let_go.pop(member, None) is not None
        if self._let_go or was_let_go:  # also if it was the last: the next one may just come
            self._mark()
        self._settle()

    def _settle(self) -> None:
        """If nobody is left, end, or have the supervisor say whether another one comes."""
        if self._members:
            return
        if self._returns_in is not None and not self._is_closing:
            self._remind(
                0.0, self._consider
            )  # by then the supervisor has read how the last one has ended
        else:
            self._is_shut = True
            self._halt()

    def _mark(self) -> None:
        """Say what the thread is.

        Two threads may do this at once. Each looks again when it has said it, so what is said last is true.
        """
        said = None
        while self._thread is not None and (state := self._state()) is not said:
            threads.mark(
                self._thread, state, None if state is ThreadState.RUNNING else self._ask_all
            )
            said = state

    def _state(self) -> ThreadState:
        if self._is_given_up:
            return ThreadState.UNSTOPPED
        states = list(self._let_go.values())
        if not states or len(states) < len(self._members):
            return ThreadState.RUNNING
        return ThreadState.DETACHED if ThreadState.DETACHED in states else ThreadState.UNSTOPPED

    def _ask_all(self) -> None:
        """Stop all; on any thread: nobody supervises these any more."""
        for member in list(self._members):
            member.stop()
        self._ring()

    def _halt(self) -> None:
        """Stop the loop, which is shut."""
        if not self._is_left:  # or this would interrupt the clean-up
            self.loop.stop()

    def _is_lost(self) -> None:
        """The thread has ended, and nobody has said so."""
        self._is_shut = True
        self._end_all(LOST)

    def _main(self) -> None:
        try:
            while not self._is_shut:
                self._run()
                if threads.forks != self._forks:
                    return
        except BaseException as error:  # not a task's, the loop itself is broken
            if threads.forks != self._forks:
                return
            self._tree.telemetry.complain("loop_broken", error, loop=self.name)
            self._is_shut = True  # first: those who end are replaced at once, and not here
            self._end_all(ExitReason(CRASHED, error))
        self._is_left = True
        self._close()

    def _run(self) -> None:
        """Run until somebody stops the loop, perhaps a task that should not.

        asyncio lets two exceptions through. A task that raised one has it as its end, too.
        """
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            if threads.forks != self._forks:
                return
            self._tree.telemetry.complain("raised_in_loop", error, loop=self.name)
            self._look_after_members()

    def _close(self) -> None:
        try:
            self.loop.run_until_complete(self._clean_up())
        except BaseException as error:
            self._tree.telemetry.complain("loop_not_clean", error, loop=self.name)
        self._workers.close()
        self.loop.close()
        del self.loop.call_exception_handler  # it and this hold each other
        self._end_all(CLOSED)

    async def _clean_up(self) -> None:
        left = _others()
        for task in left:
            cancel(task)
        await _end_of(left)
        async with asyncio.timeout(CLEAN_UP):
            await self.loop.shutdown_asyncgens()
        await asyncio.sleep(
            0
        )  # a generator that another thread drops, as with the frames of a crash, is only posted
        await _end_of(_others() - left)

    def _end_all(self, reason: ExitReason) -> None:
        for member in list(self._members):
            member.end(reason)

    # The watch. ``works`` and ``rests`` are called on the loop's thread, the others on the supervisor's.

    def works(self) -> None:
        """Note that the loop comes out of its selector."""
        self._busy_since = self._monotonic()
        if not self._is_watched:
            self._watch(LOOP_PATIENCE)

    def take_no_step(self) -> None:
        """In a fork that one of the tasks has made: let no other task take a step there."""
        if self._thread is threading.current_thread():
            getattr(self.loop, "_ready", self._orders).clear()  # a uvloop hides them

    def stay_here(self) -> None:
        """Leave, if this is a fork that a task has made, and let go on: the tasks run in the other process.

        Raises:
            _Elsewhere: It is.
        """
        if threads.forks != self._forks:
            raise _Elsewhere

    def rests(self) -> None:
        """Note that the loop looks at its selector, or has answered."""
        self._busy_since = None

    def _watch(self, seconds: float) -> None:
        self._is_watched, self._look_at = True, self._monotonic() + seconds
        self._remind(seconds, self._look)

    def _look(self) -> None:
        since = self._busy_since
        if self._is_shut:
            return
        if since is None:
            self._is_well()
        elif (left := since + LOOP_PATIENCE - self._monotonic()) > 0:
            self._watch(left)
        elif self._is_excused(since):
            self._watch(LOOP_PATIENCE)
        else:
            self._give_up()

    def _is_excused(self, since: float) -> bool:
        """Whether it could not run either, which counts once, or stalls do not matter now."""
        if self._monotonic() - self._look_at >= PAUSE and self._excused != since:
            self._excused = since
            return True
        return not self._tree.heartbeats or debugger.is_attached()

    def _is_well(self) -> None:
        if self._has_to_be_asked:
            self._busy_since = self._monotonic()
            self.order(self.rests)
            self._watch(LOOP_PATIENCE)
            return
        self._is_watched = False
        if (
            self._busy_since is not None
        ):  # it went to work before it could see that nobody watches any more
            self._watch(LOOP_PATIENCE)

    def _give_up(self) -> None:
        self._is_shut = self._is_given_up = True
        members = list(self._members)
        self._mark()
        stack = self.stack()
        self._tell(Stalled(path=self.path, thread=self.name, reason=BLOCKED, stack=stack))
        self.order(self._halt)  # should it ever wake up
        running = asyncio.current_task(self.loop)
        owners = [member for member in members if member.owns(running)]
        escaped = [member for member in members if member.escape()]
        if culprits := [member for member in owners or escaped if member in escaped]:
            self._leave_behind(culprits[0].birth, stack)

    def _leave_behind(self, birth: Birth, stack: str) -> None:
        """Count the thread as unstopped, by the name of who blocks it, or else of somebody who was on it.

        One that was told to stop before is on the ladder, which counts it when it gives it up.
        """
        report = Unstopped(
            path=birth.path,
            incarnation=birth.incarnation,
            thread=self.name,
            reason=BLOCKED,
            stack=stack,
        )
        self._tell(report)
        self._tree.left_behind(self, report)

    def _tell(self, report: Stalled | Unstopped) -> None:
        self._tree.telemetry.tell(report)


def _others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def _end_of(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=CLEAN_UP)


_homes: weakref.WeakSet[LoopThread] = weakref.WeakSet()


def _after_fork() -> None:
    for home in list(_homes):
        home.take_no_step()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


class _Elsewhere(BaseException):
    """Raised where a loop must not go on: in a forked process."""


class _Selector(selectors.DefaultSelector):
    """Tells when its loop goes to work, and when it comes back."""

    def __init__(self, watched: LoopThread) -> None:
        super().__init__()
        self._watched = watched

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._watched.stay_here()
        self._watched.rests()
        events = super().select(timeout)
        self._watched.works()
        return events


def _new_loop(watched: LoopThread) -> asyncio.AbstractEventLoop:
    selector = _Selector(watched)
    try:
        return asyncio.SelectorEventLoop(selector)
    except BaseException:  # no descriptors are left
        selector.close()
        raise


WAIT_FOR = asyncio.wait_for.__code__ if sys.version_info < (3, 12) else None
"""``wait_for`` of CPython 3.11 forgets a cancellation that arrives when what it waits for is done."""

TRIES = 1000
"""How often a task is cancelled that loses its cancellations there. Each costs it a turn of its loop."""


def cancel(task: asyncio.Task[Any], tries: int = TRIES) -> None:
    """Cancel *task*, and once more if that is lost in ``asyncio.wait_for``. On the loop of the task.

    A cancellation is lost if what was waited for is done afterwards, but not cancelled: ``wait_for`` has returned it.
    """
    waited_for = _waited_for(task) if WAIT_FOR is not None else None
    task.cancel()
    if waited_for is not None and tries:
        task.get_loop().call_soon(
            _cancel_again, task, waited_for, tries - 1
        )  # it has run until then


def _cancel_again(task: asyncio.Task[Any], waited_for: asyncio.Future[Any], tries: int) -> None:
    if waited_for.done() and not waited_for.cancelled() and not task.done():
        cancel(task, tries)


def _waited_for(task: asyncio.Task[Any]) -> asyncio.Future[Any] | None:
    """Return what ``wait_for`` waits for, if that is what *task* is doing."""
    waiting: Any = task.get_coro()
    while inspect.iscoroutine(inner := getattr(waiting, "cr_await", None)):
        waiting = inner
    frame = getattr(waiting, "cr_frame", None)
    found = frame.f_locals.get("fut") if frame is not None and frame.f_code is WAIT_FOR else None
    return found if isinstance(found, asyncio.Future) else None


def find_uvloop() -> ModuleType | None:
    """Return the module ``uvloop``, None if it is not installed."""
    try:
        return importlib.import_module("uvloop")
    except ImportError:
        return None
