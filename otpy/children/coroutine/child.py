"""Children that are coroutines. Those of one supervisor share an event loop.

Laws:
1. To the coroutine a stop is one event: ``ctx.running`` turns false, and at the same
   moment the task is cancelled, or woken if it waits in ``ctx.sleep`` or
   ``ctx.wait_stop``. So this happens on the loop, between two of its steps.
2. CancelledError after a stop is SHUTDOWN, after a kill KILLED. A cancellation by other
   code is a crash.
3. A child ends together with the tasks that it has started: those that are left are
   cancelled, and have CLEAN_UP seconds, or until the child is killed. It also ends
   together with the work that it has given to threads. Its end waits for that work,
   within its ``shutdown``; work that goes on then is unstopped.
4. The end is reported once, by the first that finds ``_deliver``. That is a callback of
   the task, also if the task was cancelled before its first step; or the loop, if it
   breaks, is blocked, or is closed. If an exception hits the lines that report the end,
   the loop has them called again (``look``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import traceback
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Literal, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.arguments import check_call, is_async
from otpy.children.coroutine.cancelling import CLEAN_UP, cancel
from otpy.children.coroutine.context import AsyncContext, new_task, note_work
from otpy.children.coroutine.loop import find_uvloop
from otpy.children.coroutine.members import BLOCKED, CLOSED
from otpy.children.coroutine.orders import Home
from otpy.children.endings import ASKED_AND_ENDED, forget_past, reason_of
from otpy.children.moments import WRAPPERS
from otpy.children.names import name_of, path_of
from otpy.core.messages import ChildExited, ChildStarted
from otpy.exceptions import SpecError, is_a, set_traceback, traceback_object
from otpy.reports import CRASHED, KILLED, ExitReason, Unstopped
from otpy.runtime import log, spares, threads
from otpy.runtime.threads import Role, ThreadState
from otpy.specs import Budget, ChildSpec, Common, check_common
from otpy.values import Value, running, value

LOOPS = ("shared", "own")


def coroutine(
    target: Callable[..., Coroutine[Any, Any, object]],
    *args: Any,
    id: str | None = None,
    loop: Literal["shared", "own"] = "shared",
    uvloop: bool = False,
    **common: Unpack[Common],
) -> ChildSpec:
    """Describe a child that runs as a task in an event loop.

    When it is asked to stop, the task is cancelled. But if it waits in ``ctx.sleep`` or
    ``ctx.wait_stop``, these return early instead, and the task may end as it likes. If
    it has not ended after ``shutdown`` seconds, it is cancelled once more; then it is
    given up. Tasks that it has started and not awaited are cancelled at its end.

    A child that blocks the loop stops all others on it. After 5 seconds (with uvloop:
    10 at most) this is reported with the stack of the loop, all children on it count as
    STALLED, and their replacements get a fresh loop.

    Args:
        target: An async function, called as ``target(ctx, *args)``. Use
            ``await ctx.sleep(…)`` and ``await ctx.wait_stop()`` there; all else of
            *ctx* is as for threads.
        args: Its arguments, the same at each start.
        id: Its name among its siblings; default: the name of *target*.
        loop: "shared": with its siblings; "own": a loop and a thread for this child
            alone.
        uvloop: Use uvloop, if that is installed, and else asyncio's own loop.
        **common: As for ``thread``.

    Raises:
        SpecError: A field is wrong, or *target* cannot be called with these arguments.
    """
    check_common("coroutine", common)
    name = id if id is not None else name_of(target)
    path = path_of(name, "coroutine")
    if not is_async(target):
        raise SpecError(path, "target", target, "an async function")
    check_call(path, "target", target, ("ctx", *args), "an async function that takes (ctx, *args)")
    if loop not in LOOPS:
        raise SpecError(path, "loop", loop, "'shared' or 'own'")
    if not isinstance(uvloop, bool):
        raise SpecError(path, "uvloop", uvloop, "True or False")
    if uvloop:
        find_uvloop()  # imported here: a supervisor would have to wait for the import
    return ChildSpec(id=name, start=CoroutineStart(target, args, loop == "own", uvloop), **common)


@value
class CoroutineStart(Value):
    """Makes a coroutine child; the ``start`` of its spec."""

    target: Callable[..., Coroutine[Any, Any, object]]
    args: tuple[Any, ...]
    own: bool
    uvloop: bool

    def __call__(self, birth: Birth) -> CoroutineChild:
        return CoroutineChild(birth, self)

    def home_of(self, child: CoroutineChild) -> Home:
        """Return the loop that *child* is to run on, and that has let it in.

        Raises:
            RuntimeError: The system has no more threads.
            OSError: The system has no more descriptors.
        """
        home: Home | None = child.birth.shared.get(self._key)
        if self.own or home is None or not home.members.let_in(child):
            home = self._new_home(child)
        return home

    def retire(self, home: Home, birth: Birth) -> None:
        """Start no more children on *home*: it does not answer."""
        if birth.shared.get(self._key) is home:
            del birth.shared[self._key]
            home.close()

    @property
    def _key(self) -> tuple[object, ...]:
        return Home, self.uvloop

    def _new_home(self, child: CoroutineChild) -> Home:
        birth = child.birth
        above = birth.path.rpartition("/")[0]
        name, path = (birth.path, birth.path) if self.own else (f"{above} (loop)", above)
        uvloop = find_uvloop() if self.uvloop else None
        home = Home(name, path, birth, is_shared=not self.own, uvloop=uvloop, note=note_work)
        home.host.loop.set_task_factory(new_task)  # type: ignore[arg-type]
        # The child enters before the thread begins: a loop that breaks at once ends all
        # its members.
        home.members.let_in(child)
        if self.own:
            purpose = birth.spec.purpose or f"runs {birth.spec.id}"
            home.begin(functools.partial(birth.spawn, name=name, purpose=purpose))
            return home
        home.begin(
            functools.partial(
                threads.spawn,
                name=name,
                role=Role.LOOP,
                purpose="runs coroutine children",
                owner=birth.tree,
            )
        )
        birth.shared[self._key] = home
        return home


@running
class CoroutineChild:
    """One incarnation: a task that runs the target. Meets ``Child`` and ``Member``.

    The supervisor's thread writes ``_ctx``, ``_home`` and ``_is_asked``; the loop's
    thread writes ``_is_killed`` and the two tasks. ``_deliver`` is deleted when the end
    is reported.

    A program may have very many of these, and the garbage collector looks at all that
    they keep. So a collection that is mostly empty is a dict, not a set: the collector
    skips a dict without objects. And a value that is taken once is an attribute that is
    deleted, not a list of one.
    """

    birth: Birth
    recipe: CoroutineStart
    _ctx: AsyncContext = attrs.field(init=False)
    _home: Home | None = attrs.field(default=None, init=False)
    _task: asyncio.Task[Any] | None = attrs.field(default=None, init=False)
    _sweeper: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _deliver: Deliver = attrs.field(init=False)
    _is_asked: bool = attrs.field(default=False, init=False)
    _is_killed: bool = attrs.field(default=False, init=False)

    # On the supervisor's thread

    def start(self, deliver: Deliver) -> None:
        birth = self.birth
        self._deliver = deliver
        self._ctx = AsyncContext(birth, deliver)
        try:
            self._home = self.recipe.home_of(self)
        except (RuntimeError, MemoryError, OSError) as error:
            spares.reserve.spend(error)
            birth.last_exit = None  # or each failed start would keep the one before alive
            self.end(ExitReason(CRASHED, error))
            return
        self._home.order(self._begin)
        if not birth.spec.ready:
            deliver(ChildStarted(birth.ref, birth.path))

    def stop(self) -> None:
        if not self._is_asked and self._home is not None:
            self._is_asked = True
            self._home.order(self._hear)

    def kill(self, grace: float) -> bool:
        self._is_asked = True
        if self._home is not None:
            self._home.order(self._be_killed)
        return True

    def abandon(self) -> None:
        assert self._home is not None, "a child that did not start has ended"
        if self._ctx.running:  # its loop has not even obeyed the order to stop
            self.recipe.retire(self._home, self.birth)
        self._ctx.ask()
        self._ctx.fence()
        self._home.members.let_go(self, ThreadState.UNSTOPPED)
        for work in list(self._ctx.works or ()):
            work.leave()
        self._home.order(self._be_left)

    def detach(self) -> None:
        if self._home is not None:
            self._home.members.let_go(self, ThreadState.DETACHED)

    def pulse(self) -> tuple[float, float]:
        return self._ctx.pulse()

    @property
    def state(self) -> object:
        return self._ctx.saved

    def stack(self) -> str:
        home, task = self._home, self._task
        if home is None or not self.alive:
            return ""
        is_over = task is None or task.done()
        if is_over and (works := list(self._ctx.works or ())):
            return "".join(work.stack() for work in works)
        if task is None or is_over or home.blockage.is_busy:
            return home.stack()
        if getattr(task.get_coro(), "cr_running", False):
            return home.stack()
        return stack_of(task)

    @property
    def alive(self) -> bool:
        return hasattr(self, "_deliver")

    def escape(self) -> bool:
        if self._is_asked:
            return False
        self._ctx.ask()
        self._ctx.fence()
        self.end(BLOCKED)
        return True

    # On any thread

    def end(self, reason: ExitReason) -> None:
        deliver: Deliver | None = getattr(self, "_deliver", None)
        if deliver is None:
            return  # the end was reported
        # Report first. An exception of another thread may hit any of these lines; after
        # the report it can lose nothing.
        deliver(ChildExited(self.birth.ref, reason))
        # AttributeError: two threads have reported the end at once. The second report
        # carries a number that is no longer current, so it changes nothing.
        with contextlib.suppress(AttributeError):
            del self._deliver

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        return task is not None and (task is self._task or task in self._ctx.tasks)

    # On the loop

    def _begin(self) -> None:
        assert self._home is not None, "it has ordered this"
        host = self._home.host
        if self._task is not None:
            return  # the order was obeyed, and an exception hit the loop before it noted that
        if self.alive:
            self._task = asyncio.Task(self._live(), loop=host.loop, name=self.birth.path)
            self._task.add_done_callback(self._task_is_done, context=host.context)
        else:  # it was given up, with a loop that was blocked before it came to this order
            host.leave(self, for_good=True)

    async def _live(self) -> BaseException | None:
        """Run the target; return its exception: some would stop the loop."""
        try:
            self._ctx.enter()
            await self.recipe.target(self._ctx, *self.recipe.args)
        except BaseException as error:
            _leave_out_this_frame(error)
            return error
        return None

    def _hear(self) -> None:
        self._ctx.ask()
        if self._task is not None and not self._ctx.wake(self._task):
            cancel(self._task)

    def _be_killed(self) -> None:
        """Cancel the task, for the first or the second time."""
        if self._ctx.running:
            self._ctx.ask()
            self._cancel()
        elif self._home is not None:
            # The stop may have cancelled the task in this turn of the loop. Two
            # cancellations in one turn are one to the task. So this one waits.
            self._home.host.loop.call_soon(self._cancel)

    def _cancel(self) -> None:
        task = self._sweeper or self._task
        if task is not None and not self._is_killed:
            self._is_killed = True
            cancel(task)

    def _task_is_done(self, task: asyncio.Task[BaseException | None]) -> None:
        if self._ctx.tasks and self._home is not None:
            host = self._home.host
            self._sweeper = host.loop.create_task(self._sweep())
            self._sweeper.add_done_callback(self._has_swept, context=host.context)
        else:
            self._await_works(task)

    async def _sweep(self) -> None:
        """End the tasks that are left, and those that they start meanwhile."""
        loop = asyncio.get_running_loop()
        end = loop.time() + CLEAN_UP
        while (left := list(self._ctx.tasks)) and (seconds := end - loop.time()) > 0:
            for task in left:
                cancel(task)
            await asyncio.wait(left, timeout=seconds)

    def _has_swept(self, sweeper: asyncio.Task[None]) -> None:
        """Go on with the end. A kill may have cancelled the sweeper at any step."""
        left = list(self._ctx.tasks)
        if sweeper.cancelled():
            for task in left:
                cancel(task)
        elif left:
            names = [task.get_name() for task in left]
            log.logger().error("tasks_left", path=self.birth.path, tasks=names)
        if self._task is not None:
            self._await_works(self._task)

    def _await_works(self, task: asyncio.Task[BaseException | None]) -> None:
        """End the child when the work that it gave to threads has ended.

        If the child was asked to stop, the ladder decides how long that may take.
        """
        if self._ctx.when_idle is not None:
            return  # the end waits for works already
        if not self._ctx.works or self._home is None:
            self._finish(task)
            return
        host = self._home.host
        loop, context = host.loop, host.context

        def on_a_worker() -> None:
            try:
                loop.call_soon_threadsafe(self._works_are_over, task, context=context)
            except RuntimeError:  # the loop is closed: this child was given up long ago
                self.end(CLOSED)

        # The last work may end just now, and its thread may have seen no when_idle. So
        # look at the works again; see AsyncContext.note_work.
        self._ctx.when_idle = on_a_worker
        if not self._ctx.works:
            self._works_are_over(task)
        elif not self._is_asked and (limit := _seconds(self.birth.spec.shutdown)) is not None:
            loop.call_later(limit, self._leave_works, task, context=context)

    def _works_are_over(self, task: asyncio.Task[BaseException | None]) -> None:
        if self._ctx.when_idle is not None:
            self._ctx.when_idle = None
            self._finish(task)

    def _leave_works(self, task: asyncio.Task[BaseException | None]) -> None:
        """Give up the works: the child has ended by itself, and its time is over."""
        birth, home = self.birth, self._home
        if self._ctx.when_idle is None or self._is_asked or home is None:
            return
        for work in list(self._ctx.works or ()):
            work.leave()
            name = f"{home.path} (to_thread)"
            report = Unstopped(
                path=birth.path, incarnation=birth.incarnation, thread=name, stack=work.stack()
            )
            birth.tree.telemetry.tell(report)
            birth.remind(0.0, functools.partial(birth.tree.left_behind, work, report))
        self._works_are_over(task)

    def _be_left(self) -> None:
        """Leave the loop, if only a work that does not end holds up the end."""
        if self._ctx.when_idle is not None and self._home is not None:
            self._ctx.when_idle = functools.partial(self.end, CLOSED)
            self._home.host.leave(self, for_good=True)
            if not self._ctx.works:
                self.end(CLOSED)

    def _finish(self, task: asyncio.Task[BaseException | None]) -> None:
        error = _raised_in(task)
        spares.reserve.spend(error)
        past, self.birth.last_exit = self.birth.last_exit, None
        self.end(self._reason(error))
        forget_past(past, self.birth)
        if self._home is not None:
            self._home.host.leave(self, for_good=self._is_asked)
        self._task = self._sweeper = None  # this and the task hold each other, and the error

    def look(self) -> None:
        task, sweeper = self._task, self._sweeper
        if task is None or not task.done():
            return
        if sweeper is None:
            self._task_is_done(task)
        elif sweeper.done():
            self._has_swept(sweeper)

    def _reason(self, error: BaseException | None) -> ExitReason:
        if self._is_asked:
            self._ctx.running = False  # it may have ended before it heard of the stop
        if is_a(error, asyncio.CancelledError) and self._is_asked:
            return ExitReason(KILLED, error) if self._is_killed else ASKED_AND_ENDED
        return reason_of(error, self._ctx)


def _seconds(shutdown: float | Budget) -> float | None:
    """Return for how many seconds works may outlive the task; None: for ever."""
    if isinstance(shutdown, Budget):
        return 0.0 if shutdown is Budget.BRUTAL_KILL else None
    return shutdown


WRAPPERS.add(CoroutineChild._live.__code__)


def _leave_out_this_frame(error: BaseException) -> None:
    """Take our frame, the outermost one, out of the traceback.

    It would keep the child as long as the crash is remembered.
    """
    found = traceback_object(error)
    if found is not None:
        set_traceback(error, found.tb_next or found)


def _raised_in(task: asyncio.Task[BaseException | None]) -> BaseException | None:
    """Return what ended *task*.

    That is the exception that ``_live`` returned, or one that came outside of its
    ``try``.
    """
    if task.cancelled():
        return asyncio.CancelledError()
    raised = task.exception()
    return task.result() if raised is None else raised


def stack_of(task: asyncio.Task[Any]) -> str:
    """Return where *task* waits, formatted like a traceback; "" if that is not known.

    asyncio would show the outermost frame only, and that frame is ours.
    """
    try:
        return "".join(traceback.StackSummary.extract(_frames(task.get_coro())).format())
    except Exception:  # the task goes on meanwhile
        return ""


def _frames(waiting: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames from the outermost to the innermost."""
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None:
            yield frame, frame.f_lineno
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
