"""Children that are threads.

A thread cannot be killed, only interrupted; ``interrupt`` says when and how.

The thread of the child runs ``_main`` and what that calls. The thread of its supervisor
runs everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.arguments import USE_COROUTINE, check_call, check_function, check_result
from otpy.children import service
from otpy.children.endings import forget_past, reason_of
from otpy.children.interrupt import Gate, Interrupts, can_interrupt
from otpy.children.moments import WRAPPERS
from otpy.children.names import name_of, path_of
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import CRASHED, ExitReason
from otpy.runtime import spares, stacks, threads
from otpy.runtime.context import Context
from otpy.runtime.threads import ThreadState
from otpy.specs import ChildSpec, Common, check_common
from otpy.values import Value, running, value

LOST = ExitReason(CRASHED, detail="its thread ended without a word")


def thread(
    target: Callable[..., object], *args: Any, id: str | None = None, **common: Unpack[Common]
) -> ChildSpec:
    """Describe a child that runs in a thread.

    Args:
        target: Called as ``target(ctx, *args)``, or a subclass of ``Service``, whose
            ``init`` gets *args*.
        args: Its arguments, the same at each start.
        id: Its name among its siblings; default: the name of *target*.
        **common: ``restart``, ``shutdown``, ``significant``, ``ready``,
            ``start_timeout``, ``heartbeat``, ``backoff``, ``snapshot``, ``interrupt``,
            ``unstopped``, ``purpose``: see ``ChildSpec``. A ``Service`` is always
            ``ready=True``.

    Raises:
        SpecError: A field is wrong, or *target* cannot be called with these arguments.
    """
    check_common("thread", common)
    name = id if id is not None else name_of(target)
    path = path_of(name, "thread")
    if service.is_service(target):
        service.check_service(path, target, args)
        common["ready"] = True
        return ChildSpec(id=name, start=ServiceStart(target, args), **common)
    check_function(path, "target", target, "a callable or a subclass of Service")
    check_call(path, "target", target, ("ctx", *args), "a callable that takes (ctx, *args)")
    return ChildSpec(id=name, start=ThreadStart(target, args), **common)


@value
class ThreadStart(Value):
    """Makes a thread child; the ``start`` of its spec."""

    target: Callable[..., object]
    args: tuple[Any, ...]

    def __call__(self, birth: Birth) -> ThreadChild:
        return ThreadChild(birth, self.run)

    def run(self, ctx: Context) -> None:
        """Live one life; in the thread of the child."""
        check_result(self.target, self.target(ctx, *self.args), USE_COROUTINE)


@value
class ServiceStart(ThreadStart):
    """The same for a subclass of ``Service``."""

    def run(self, ctx: Context) -> None:
        service.live(self.target, self.args, ctx)  # type: ignore[arg-type]


@running
class ThreadChild:
    """One incarnation: a thread that runs *life* and then reports its end.

    Meets ``Child``.
    """

    birth: Birth
    life: Callable[[Context], None]
    _gate: Gate = attrs.field(factory=Gate, init=False)
    _ctx: Context = attrs.field(init=False)
    _thread: threads.Thread | None = attrs.field(default=None, init=False)
    _deliver: Deliver = attrs.field(init=False)
    _leftovers: list[object] = attrs.field(init=False)

    def start(self, deliver: Deliver) -> None:
        birth, spec = self.birth, self.birth.spec
        self._deliver, self._ctx = deliver, Context(birth, deliver)
        self._leftovers = birth.leftovers()
        purpose = spec.purpose or f"runs {spec.id}"
        try:
            self._thread = birth.spawn(
                self._main, name=birth.path, purpose=purpose, if_lost=self._is_lost
            )
        except (RuntimeError, MemoryError) as error:  # can't start new thread
            spares.reserve.spend(error)
            birth.last_exit = None  # or each failed start would keep the one before alive
            deliver(ChildExited(birth.ref, ExitReason(CRASHED, error)))
        else:
            if not spec.ready:
                deliver(ChildStarted(birth.ref, birth.path))

    def stop(self) -> None:
        self._ctx.ask()

    def kill(self, grace: float) -> bool:
        self._ctx.ask()
        is_possible = can_interrupt()
        if is_possible:
            shared, birth = self.birth.shared, self.birth
            if Interrupts not in shared:
                shared[Interrupts] = Interrupts(birth.remind, birth.soon)
            shared[Interrupts].add(self._gate)
        return is_possible

    def abandon(self) -> None:
        self._ctx.ask()
        self._ctx.fence()
        self._mark(ThreadState.UNSTOPPED)

    def detach(self) -> None:
        self._mark(ThreadState.DETACHED)

    def _mark(self, state: ThreadState) -> None:
        if self._thread is not None:
            threads.mark(self._thread, state, self._ctx.ask)

    def pulse(self) -> tuple[float, float]:
        return self._ctx.pulse()

    @property
    def state(self) -> object:
        return self._ctx.saved

    def stack(self) -> str:
        return stacks.stack_of(self._thread.ident) if self._thread else ""

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _is_lost(self) -> None:
        """Report the end of a thread that could not do so itself."""
        self.birth.last_exit = None
        self._deliver(ChildExited(self.birth.ref, LOST))

    # The thread of the child

    def _main(self) -> None:
        """Live, and report the end.

        An exception may arise at each of these lines: another thread raises it here, or
        there is no memory. One that arises before the end is reported is caught here,
        and the end is reported then, perhaps a second time: the second report carries a
        number that is no longer current. One that arises later ends the thread, and its
        witness reports the end.
        """
        error: BaseException | None = None
        try:
            error = self._live()
            self._gate.close()
            self._end(error)
        except BaseException as late:
            self._end(late if error is None else error)
        finally:
            # Its traceback holds this frame: a cycle, which only the garbage collector
            # frees.
            del error

    def _live(self) -> BaseException | None:
        try:
            self._ctx.enter()
            self._gate.open()
            self.life(self._ctx)
        except BaseException as error:
            return error
        return None

    def _end(self, error: BaseException | None) -> None:
        if issubclass(type(error), MemoryError):
            spares.reserve.spend(error)
        past, self.birth.last_exit = self.birth.last_exit, None
        self._deliver(ChildExited(self.birth.ref, reason_of(error, self._ctx)))
        forget_past(past, self.birth)
        self._leftovers.clear()


WRAPPERS.add(ThreadChild._live.__code__)
