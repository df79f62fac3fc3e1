"""Children that are coroutines. Those of one supervisor share an event loop on one thread.

Laws:
1. To the coroutine a stop is one event: ``ctx.running`` turns false, and at the same moment the task is cancelled, or
   woken if it waits in ``ctx.sleep`` or ``ctx.wait_stop``. So this happens on the loop, between two of its steps.
2. CancelledError after a stop is SHUTDOWN, after a kill KILLED. A cancellation that nobody asked for is a crash.
3. A child ends together with the tasks that it has started: those left are cancelled, and have CLEAN_UP seconds, or
   until the child is killed. It also ends together with what it has given to threads.
   Its end waits for that, within its ``shutdown``; what goes on then is unstopped.
4. The end is told once, by the first that finds ``_mouth``: the task's callback, also if the task was cancelled before
   its first step; or the loop, if that breaks, is blocked, or is closed. If an exception hits the lines that tell it,
   the loop has them called again (``look``).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Literal, TypeVar, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.arguments import check_call, is_async
from otpy.children.coroutine.loop import BLOCKED, CLEAN_UP, CLOSED, LoopThread, cancel, find_uvloop
from otpy.children.coroutine.workers import Work
from otpy.children.endings import ASKED_AND_ENDED, forget_past, reason_of
from otpy.children.moments import WRAPPERS
from otpy.children.names import name_of, path_of
from otpy.core.messages import ChildExited, ChildStarted
from otpy.exceptions import NotFound, SpecError, is_a, set_traceback, traceback_object
from otpy.reports import CRASHED, KILLED, ExitReason, Unstopped
from otpy.runtime import log, spares, threads
from otpy.runtime.context import Context, current
from otpy.runtime.threads import Role, ThreadState
from otpy.runtime.waiting import Once
from otpy.specs import Budget, ChildSpec, Common, check_common
from otpy.values import Value, running, value

T = TypeVar("T")

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

    When it is asked to stop, the task is cancelled; but not while it waits in ``ctx.sleep`` or ``ctx.wait_stop``: these
    return early instead, and the task may end as it likes. If it has not ended after ``shutdown`` seconds, it is
    cancelled once more; then it is given up. Tasks that it has started and not waited for are cancelled at its end.

    A child that blocks the loop stops all others on it. After 5 seconds (with uvloop: 10 at most) this is reported with
    the stack of the loop, all children on it count as STALLED, and their replacements get a fresh loop.

    Args:
        target: An async function, called as ``target(ctx, *args)``; ``await ctx.sleep(…)`` and
            ``await ctx.wait_stop()`` there, all else of *ctx* is as for threads.
        args: Its arguments, the same at each start.
        id: Its name among its siblings; default: the name of *target*.
        loop: "shared": with its siblings; "own": a loop and a thread for this child alone.
        uvloop: Use uvloop, if that is installed, and else asyncio's own loop.
        **common: As for ``thread``.

    Raises:
        SpecError: A field is wrong, or *target* cannot be called with these arguments.
    """
    check_common("coroutine", common)
    name = id if id is not None else name_of(target)
    _check(path_of(name, "coroutine"), target, args, loop, uvloop)
    if uvloop:
        find_uvloop()  # imported here, so that no supervisor has to wait for that
    return ChildSpec(id=name, start=CoroutineStart(target, args, loop == "own", uvloop), **common)


def _check(path: str, target: Any, args: tuple[Any, ...], loop: Any, uvloop: Any) -> None:
    if not is_async(target):
        raise SpecError(path, "target", target, "an async function")
    check_call(path, "target", target, ("ctx", *args), "an async function that takes (ctx, *args)")
    if loop not in LOOPS:
        raise SpecError(path, "loop", loop, "'shared' or 'own'")
    if not isinstance(uvloop, bool):
        raise SpecError(path, "uvloop", uvloop, "True or False")


NOBODY_WAITS = Once()
"""What a thread would wait for; a coroutine is woken by ``AsyncContext.wake``."""


class AsyncContext(Context):
    """What a coroutine child sees of its tree: a ``Context`` whose waits are awaited."""

    __slots__ = ("_naps", "tasks", "when_idle", "works")

    def __init__(self, birth: Birth, deliver: Deliver) -> None:
        super().__init__(birth, deliver, NOBODY_WAITS)
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
            await asyncio.sleep(0)  # or a loop around this would block the event loop
        self._use()  # it may have been fenced in its sleep
        return not self.running

    # What the child does with it, on the loop

    def wake(self, task: asyncio.Task[Any]) -> bool:
        """Wake all who wait for a stop; return whether *task* itself was one of them."""
        sleepers = set(self._naps.values())
        for nap in list(self._naps):
            _rouse_there(nap)
        return task in sleepers

    async def _nap(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        nap: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout, _rouse, nap) if timeout is not None else None
        self._naps[nap] = asyncio.current_task()
        if not self.running:  # this is another thread's loop, and the stop came since we looked
            _rouse(nap)
        try:
            await nap
        finally:
            del self._naps[nap]
            if timer is not None:
                timer.cancel()

    def starts_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether the child cannot become ready while *task*, which is running here, waits."""
        return (
            not self._is_ready and self._thread == threading.get_ident() and task not in self.tasks
        )

    def note(self, work: Work) -> None:
        """Note that this child has given *work* to a thread.

        The race is between the loop's thread, which waits for all works, and a worker that
        ends the last one. The loop sets ``when_idle``, then looks at the works again. The
        worker takes its work out, then looks at ``when_idle``. One of them sees the other.
        """
        if self.works is None:
            self.works = {}
        self.works[work] = None
        work.future.add_done_callback(lambda _: self._is_done(work))

    def _is_done(self, work: Work) -> None:
        if self.works is not None:
            self.works.pop(work, None)
        if not self.works and self.when_idle is not None:
            self.when_idle()

    def _is_held_up(self) -> bool:
        return super()._is_held_up() or _is_for_a_start.get()

    def _runner(self) -> str:
        return self._birth.path


_is_for_a_start: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "otpy.is_for_a_start", default=False
)


def as_awaited_here(call: Callable[[], T]) -> Callable[[], T]:
    """Return *call* as a helper thread has to make it for the task that awaits it here.

    While a child starts, its supervisor may wait for it and the call for its supervisor: then it must be known whose
    call this is. Afterwards it need not: a task that awaits is cancelled when the child has to end.
    """
    with contextlib.suppress(NotFound):
        ctx = current()
        if isinstance(ctx, AsyncContext) and ctx.starts_in(asyncio.current_task()):
            return functools.partial(contextvars.copy_context().run, _call_for_a_start, call)
    return call


def _call_for_a_start(call: Callable[[], T]) -> T:
    _is_for_a_start.set(True)
    return call()


def _rouse(nap: asyncio.Future[None]) -> None:
    if not nap.done():
        nap.set_result(None)


def _rouse_there(nap: asyncio.Future[None]) -> None:
    """Rouse it in its own loop; that may be another one, which the child runs in another thread."""
    loop = nap.get_loop()
    if loop is asyncio.get_running_loop():
        _rouse(nap)
    else:
        with contextlib.suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(_rouse, nap)


@value
class CoroutineStart(Value):
    """Makes a coroutine child; the ``start`` of its spec."""

    target: Callable[..., Coroutine[Any, Any, object]]
    args: tuple[Any, ...]
    own: bool
    uvloop: bool

    def __call__(self, birth: Birth) -> CoroutineChild:
        return CoroutineChild(birth, self)

    def home_of(self, child: CoroutineChild) -> LoopThread:
        """Return the loop that *child* is to run on, and that has let it in."""
        home: LoopThread | None = child.birth.shared.get(self._key)
        if self.own or home is None or not home.take(child):
            home = self._new_home(child)
        return home

    def retire(self, home: LoopThread, birth: Birth) -> None:
        """Start nobody on *home* any more: it does not answer."""
        if birth.shared.get(self._key) is home:
            del birth.shared[self._key]
            home.close()

    @property
    def _key(self) -> tuple[object, ...]:
        return LoopThread, self.uvloop

    def _new_home(self, child: CoroutineChild) -> LoopThread:
        birth = child.birth
        above = birth.path.rpartition("/")[0]
        name, path = (birth.path, birth.path) if self.own else (f"{above} (loop)", above)
        uvloop = find_uvloop() if self.uvloop else None
        home = LoopThread(name, path, birth, is_shared=not self.own, uvloop=uvloop, note=_note_work)
        home.loop.set_task_factory(_new_task)  # type: ignore[arg-type]
        home.take(child)  # before it begins: should it break at once, it ends all that are in it
        if self.own:
            home.begin(
                functools.partial(
                    birth.spawn, name=name, purpose=birth.spec.purpose or f"runs {birth.spec.id}"
                )
            )
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


def _new_task(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Make a task as asyncio does, and note whose it is."""
    task = asyncio.Task(coro, loop=loop, **options)
    with contextlib.suppress(NotFound):
        ctx = current()
        if isinstance(ctx, AsyncContext):
            ctx.tasks[task] = None
            task.add_done_callback(ctx.tasks.pop)
    return task


def _note_work(work: Work) -> None:
    """Note whose *work* it is, as for a task."""
    with contextlib.suppress(NotFound):
        ctx = current()
        if isinstance(ctx, AsyncContext):
            ctx.note(work)


@running
class CoroutineChild:
    """One incarnation: a task that runs the target. Meets ``Child``, and ``Member`` of a loop.

    Who writes what: the supervisor's thread whether it was asked; the loop's thread whether it was killed, and the
    two tasks.

    There may be very many, and the garbage collector looks at all that they keep: so what is mostly empty is a dict and
    no set, which it would look at, and what can be taken once is an attribute that is deleted, not a list of one.
    """

    birth: Birth
    how: CoroutineStart
    _ctx: AsyncContext = attrs.field(init=False)
    _home: LoopThread | None = attrs.field(default=None, init=False)
    _task: asyncio.Task[Any] | None = attrs.field(default=None, init=False)
    _sweeper: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _mouth: Deliver = attrs.field(init=False)
    _is_asked: bool = attrs.field(default=False, init=False)
    _is_killed: bool = attrs.field(default=False, init=False)

    # On the supervisor's thread

    def start(self, deliver: Deliver) -> None:
        birth = self.birth
        self._mouth = deliver
        self._ctx = AsyncContext(birth, deliver)
        try:
            self._home = self.how.home_of(self)
        except (
            RuntimeError,
            MemoryError,
            OSError,
        ) as error:  # no more threads, or no descriptors for a loop
            spares.reserve.spend(error)
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
        assert self._home is not None, "what did not start has ended"
        if self._ctx.running:  # it has not even heard of the stop
            self.how.retire(self._home, self.birth)
        self._ctx.ask()
        self._ctx.fence()
        self._home.let_go(self, ThreadState.UNSTOPPED)
        for work in list(self._ctx.works or ()):
            work.leave()
        self._home.order(self._be_left)

    def detach(self) -> None:
        if self._home is not None:
            self._home.let_go(self, ThreadState.DETACHED)

    def pulse(self) -> tuple[float, float]:
        return self._ctx.pulse()

    @property
    def state(self) -> object:
        return self._ctx.saved

    def stack(self) -> str:
        home, task = self._home, self._task
        if home is None or not self.alive:
            return ""
        if (task is None or task.done()) and (works := list(self._ctx.works or ())):
            return "".join(work.stack() for work in works)
        return (
            home.stack()
            if task is None or task.done() or home.is_busy or _is_running(task)
            else stack_of(task)
        )

    @property
    def alive(self) -> bool:
        return hasattr(self, "_mouth")

    def escape(self) -> bool:
        if self._is_asked:
            return False
        self._ctx.ask()
        self._ctx.fence()
        self.end(BLOCKED)
        return True

    # On any thread

    def end(self, reason: ExitReason) -> None:
        deliver: Deliver | None = getattr(self, "_mouth", None)
        if deliver is None:
            return  # it has been told
        deliver(ChildExited(self.birth.ref, reason))  # first: an exception after that loses nothing
        with contextlib.suppress(
            AttributeError
        ):  # told twice at once: the second is about a number of the past
            del self._mouth

    def owns(self, task: asyncio.Task[Any] | None) -> bool:
        return task is not None and (task is self._task or task in self._ctx.tasks)

    # On the loop

    def _begin(self) -> None:
        assert self._home is not None, "it has ordered this"
        if self._task is not None:
            return  # this order was obeyed, and the loop was hit before it had noted that
        if self.alive:  # or it was given up before, with a loop that did not get so far
            self._task = asyncio.Task(self._live(), loop=self._home.loop, name=self.birth.path)
            self._task.add_done_callback(self._task_is_done, context=self._home.context)
        else:
            self._home.leave(self, for_good=True)

    async def _live(self) -> BaseException | None:
        """Run the target; return what it raised: asyncio lets some of that stop the loop."""
        try:
            self._ctx.enter()
            await self.how.target(self._ctx, *self.how.args)
        except BaseException as error:
            _leave_out_this_frame(error)
            return error
        return None

    def _hear(self) -> None:
        self._ctx.ask()
        if self._task is not None and not self._ctx.wake(self._task):
            cancel(self._task)

    def _be_killed(self) -> None:
        """Cancel it, at once or once more; not in the turn in which it has heard of the stop: two would be one."""
        if self._ctx.running:
            self._ctx.ask()
            self._cancel()
        elif self._home is not None:
            self._home.loop.call_soon(self._cancel)

    def _cancel(self) -> None:
        task = self._sweeper or self._task
        if task is not None and not self._is_killed:
            self._is_killed = True
            cancel(task)

    def _task_is_done(self, task: asyncio.Task[BaseException | None]) -> None:
        if self._ctx.tasks and self._home is not None:
            self._sweeper = self._home.loop.create_task(self._sweep())
            self._sweeper.add_done_callback(self._has_swept, context=self._home.context)
        else:
            self._await_works(task)

    async def _sweep(self) -> None:
        """End the tasks that are left, and those that they start meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEAN_UP):
                while left := list(self._ctx.tasks):
                    for task in left:
                        cancel(task)
                    await asyncio.wait(left)

    def _has_swept(self, sweeper: asyncio.Task[None]) -> None:
        """Go on, also if a kill has cancelled the sweeper, perhaps before its first step."""
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
        """End when what was given to threads has ended.

        If the child was asked to stop, the ladder decides how long that may take.
        """
        home = self._home
        if self._ctx.when_idle is not None:
            return  # it is waited for
        if not self._ctx.works or home is None:
            self._finish(task)
            return

        def on_a_worker() -> None:
            try:
                home.loop.call_soon_threadsafe(self._works_are_over, task, context=home.context)
            except RuntimeError:  # it is closed: this child was given up long ago
                self.end(CLOSED)

        self._ctx.when_idle = on_a_worker
        if not self._ctx.works:
            self._works_are_over(task)
        elif not self._is_asked and (limit := _seconds(self.birth.spec.shutdown)) is not None:
            home.loop.call_later(limit, self._leave_works, task, context=home.context)

    def _works_are_over(self, task: asyncio.Task[BaseException | None]) -> None:
        if self._ctx.when_idle is not None:
            self._ctx.when_idle = None
            self._finish(task)

    def _leave_works(self, task: asyncio.Task[BaseException | None]) -> None:
        """The child has ended by itself, and its time is over."""
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
        """Leave the loop, if only a thread that does not come back is waited for."""
        if self._ctx.when_idle is not None and self._home is not None:
            self._ctx.when_idle = functools.partial(self.end, CLOSED)
            self._home.leave(self, for_good=True)
            if not self._ctx.works:
                self.end(CLOSED)

    def _finish(self, task: asyncio.Task[BaseException | None]) -> None:
        error = _raised_in(task)
        spares.reserve.spend(error)
        past, self.birth.last_exit = self.birth.last_exit, None
        self.end(self._reason(error))
        forget_past(past, self.birth)
        if self._home is not None:
            self._home.leave(self, for_good=self._is_asked)
        self._task = self._sweeper = None  # it and the task hold each other, and the error

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
            self._ctx.running = False  # also if it has ended before it could hear
        if is_a(error, asyncio.CancelledError) and self._is_asked:
            return ExitReason(KILLED, error) if self._is_killed else ASKED_AND_ENDED
        return reason_of(error, self._ctx)


def _seconds(shutdown: float | Budget) -> float | None:
    """Return how long threads may work on after the child's own end; None: no limit."""
    if isinstance(shutdown, Budget):
        return 0.0 if shutdown is Budget.BRUTAL_KILL else None
    return shutdown


WRAPPERS.add(CoroutineChild._live.__code__)


def _leave_out_this_frame(error: BaseException) -> None:
    """Take the outermost frame out of the traceback: it is ours, and would keep the child as long as the crash."""
    found = traceback_object(error)
    if found is not None:
        set_traceback(error, found.tb_next or found)


def _raised_in(task: asyncio.Task[BaseException | None]) -> BaseException | None:
    """Return what ended *task*: what ``_live`` returned, or what has hit it outside of its ``try``."""
    if task.cancelled():
        return asyncio.CancelledError()
    raised = task.exception()
    return task.result() if raised is None else raised


def _is_running(task: asyncio.Task[Any]) -> bool:
    return bool(getattr(task.get_coro(), "cr_running", False))


def stack_of(task: asyncio.Task[Any]) -> str:
    """Return where *task* waits, formatted like a traceback; "" if it cannot be found out.

    asyncio would tell the outermost frame only, and that one is ours.
    """
    try:
        return "".join(traceback.StackSummary.extract(_frames(task.get_coro())).format())
    except Exception:  # it goes on meanwhile
        return ""


def _frames(waiting: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames from the outermost to the innermost."""
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None:
            yield frame, frame.f_lineno
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
