"""Children that are threads.

A thread cannot be killed, only interrupted; interrupt.py says when and how.
"""

from __future__ import annotations

import inspect
import opcode
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.arguments import USE_COROUTINE, check_call, check_function, check_method, check_result
from otpy.children.interrupt import WRAPPERS, Gate, Interrupts, can_interrupt
from otpy.core.messages import ChildExited, ChildStarted
from otpy.exceptions import (
    Fatal,
    Fenced,
    Ignore,
    Killed,
    Sealed,
    Shutdown,
    SpecError,
    lineage,
    meaning_of,
    means_success,
)
from otpy.reports import CRASHED, KILLED, NORMAL, SHUTDOWN, ExitKind, ExitReason
from otpy.runtime import spares, stacks, threads
from otpy.runtime.context import Context
from otpy.runtime.threads import ThreadState
from otpy.specs import ChildSpec, Common, check_common
from otpy.values import Value


class Service:
    """A child with a life of its own: init, run, stop, terminate.

    Pass a subclass to ``thread``. Each incarnation is a fresh object, made without arguments; ``self.ctx`` is there
    before ``init`` is called. (OTP: the callbacks of a behaviour.)
    """

    ctx: Context

    def init(self, *args: Any) -> None:
        """Prepare, with the arguments of ``thread``. Ready when this returns; what this raises is a failed start."""

    def run(self) -> None:
        """Work until ``self.ctx.running`` is false. Must be overridden."""
        raise NotImplementedError

    def stop(self) -> None:
        """Called on a helper thread when the service is asked to stop: wake ``run``, close what it waits for."""

    def terminate(self, reason: ExitReason) -> None:
        """Clean up; called in the service's thread after ``run``, however it ended, if ``init`` had returned."""


def thread(
    target: Callable[..., object], *args: Any, id: str | None = None, **common: Unpack[Common]
) -> ChildSpec:
    """Describe a child that runs in a thread.

    Args:
        target: Called as ``target(ctx, *args)``, or a subclass of ``Service``, whose ``init`` gets *args*.
        args: Its arguments, the same at each start.
        id: Its name among its siblings; default: the name of *target*.
        **common: ``restart``, ``shutdown``, ``significant``, ``ready``, ``start_timeout``, ``heartbeat``, ``backoff``,
            ``snapshot``, ``interrupt``, ``unstopped``, ``purpose``: see ``ChildSpec``. A ``Service`` is always
            ``ready=True``.

    Raises:
        SpecError: A field is wrong, or *target* cannot be called with these arguments.
    """
    check_common("thread", common)
    name = id if id is not None else name_of(target)
    _check(path_of(name, "thread"), target, args)
    if _is_service(target):
        common["ready"] = True
    start = ServiceStart(target, args) if _is_service(target) else ThreadStart(target, args)
    return ChildSpec(id=name, start=start, **common)


def _is_service(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, Service)


def _check(path: str, target: Any, args: tuple[Any, ...]) -> None:
    if _is_service(target):
        _check_service(path, target, args)
    else:
        check_function(path, "target", target, "a callable or a subclass of Service")
        check_call(path, "target", target, ("ctx", *args), "a callable that takes (ctx, *args)")


def _check_service(path: str, target: type[Service], args: tuple[Any, ...]) -> None:
    if target.run is Service.run:
        raise SpecError(path, "target", target, "a Service with a run method")
    check_call(
        path, "target", target, (), "a Service that can be made without arguments; init gets them"
    )
    check_method(
        path, "target", target, "init", args, expected="a Service whose init takes (*args)"
    )
    for name, given in (("run", ()), ("stop", ()), ("terminate", ("reason",))):
        check_method(
            path,
            "target",
            target,
            name,
            given,
            expected="a Service with run(), stop(), terminate(reason)",
        )


# What other builders do in the same way


def name_of(target: object) -> str:
    """Return the default of an id: the name of *target*; "", which is no id, if nobody gave it one."""
    name: str = getattr(target, "__name__", "")
    return "" if name == "<lambda>" else name


def path_of(id: str, builder: str) -> str:
    """Return where an error is, as far as that is known when the spec is made."""
    return id if isinstance(id, str) and id else f"<{builder}>"


@attrs.frozen(repr=False, eq=False)
class ThreadStart(Value):
    """Makes a thread child; the ``start`` of its spec."""

    target: Callable[..., object]
    args: tuple[Any, ...]

    def __call__(self, birth: Birth) -> ThreadChild:
        return ThreadChild(birth, self.run)

    def run(self, ctx: Context) -> None:
        """Live one life; in the thread of the child."""
        check_result(self.target, self.target(ctx, *self.args), USE_COROUTINE)


NO_ASYNC_METHODS = "the methods of a Service are called, not awaited"


@attrs.frozen(repr=False, eq=False)
class ServiceStart(ThreadStart):
    """The same for a subclass of ``Service``."""

    def run(self, ctx: Context) -> None:
        service: Any = self.target()
        service.ctx = ctx
        check_result(service.init, service.init(*self.args), NO_ASYNC_METHODS)
        if type(service).stop is not Service.stop:
            ctx.on_stop(service.stop)
        ctx.ready()
        try:
            check_result(service.run, service.run(), NO_ASYNC_METHODS)
        except BaseException as error:
            _terminate(service, reason_of(error, ctx))
            raise
        _terminate(service, reason_of(None, ctx))


def _terminate(service: Any, reason: ExitReason) -> None:
    check_result(service.terminate, service.terminate(reason), NO_ASYNC_METHODS)


@attrs.define(eq=False, repr=False)
class ThreadChild:
    """One incarnation: a thread that runs *life* and then says why it ended. Meets ``Child``."""

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

    def _main(self) -> None:
        """Live, and say why it ended.

        An exception may come at any of these lines: another thread raises it here, or memory is gone. What comes before
        the end is told is caught here, and the end is told then, or once more: the second time it is about a number
        that is no longer current. What comes even later ends the thread, and then its witness tells.
        """
        error: BaseException | None = None
        try:
            error = self._live()
            self._gate.close()
            self._end(error)
        except BaseException as late:
            self._end(late if error is None else error)
        finally:
            del error  # its traceback holds this frame: that would be a cycle, and wait for the garbage collector

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
        forget(past, self.birth)
        self._leftovers.clear()

    def _is_lost(self) -> None:
        """Tell of the end of a thread that has not told of it; on the supervisor's thread."""
        self.birth.last_exit = None
        self._deliver(ChildExited(self.birth.ref, LOST))


LOST = ExitReason(CRASHED, detail="its thread ended without a word")

WRAPPERS.add(ThreadChild._live.__code__)

SUSPENDS = (
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)


def forget(past: ExitReason | None, birth: Birth) -> None:
    """Let go of the crash before this one, now that this one has been told.

    The frames of a crash hold the child, its context, and whatever it has made of ``ctx.last_exit``. So each crash
    would keep the one before alive, with all its locals, for ever. And these shall go here, not on the supervisor's
    thread; after the exit has been told: what they do when they go may take long.
    """
    if past is not None and not issubclass(
        type(past.raised), Sealed
    ):  # that one has no frames here
        try:  # noqa: SIM105 - suppress() is three calls
            EarlierLives(birth).forget(past.raised)  # type: ignore[arg-type]
        except BaseException:  # noqa: S110 - whatever the finalizers of the locals have raised
            pass


TRACEBACK: Callable[[BaseException], TracebackType | None] = vars(BaseException)[
    "__traceback__"
].__get__


class EarlierLives:
    """Knows the frames in which earlier incarnations of a child ran: those that were called by our wrapper.

    Nothing else may be emptied. A part of the program that has raised the same exception has put its own frames into
    the traceback, and a coroutine whose frame is cleared while it waits ends.
    """

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self._known: dict[FrameType, bool] = {}

    def forget(self, error: BaseException | None) -> None:
        """Release the locals in the traceback of *error* and of all that led to it; the lines stay."""
        for one in lineage(error):
            found, caller, is_ours = TRACEBACK(one), None, False
            while found is not None:
                frame = found.tb_frame
                if (
                    caller is None or frame.f_back is not caller
                ):  # else the verdict is that of its caller
                    is_ours = self.ran(frame)
                if is_ours:
                    try:  # noqa: SIM105 - suppress() is three calls, at each frame
                        frame.clear()
                    except RuntimeError:
                        pass  # it still runs
                caller, found = frame, found.tb_next

    def ran(self, frame: FrameType) -> bool:
        """Whether *frame* belongs to an earlier incarnation, and runs no more."""
        way: list[FrameType] = []
        above: FrameType | None = frame
        while above is not None and above not in self._known and above.f_code not in WRAPPERS:
            way.append(above)
            above = above.f_back
        if above is None:
            verdict = bool(way) and _has_run_out(way[-1])
        elif above in self._known:
            verdict = self._known[above]
        else:
            own, child = self._birth, above.f_locals.get("self")
            birth = own if child is None else child.birth  # None: that frame has been emptied
            verdict = birth.handover is own.handover and birth.incarnation < own.incarnation
            self._known[above] = verdict
        self._known.update(dict.fromkeys(way, verdict))
        return verdict


def _has_run_out(frame: FrameType) -> bool:
    """Whether *frame* is that of a coroutine that has ended.

    CPython 3.11, 3.14 and later forget what has called a coroutine when it ends. One that waits is at the instruction
    that yields, and has its frame (``f_generator``).
    """
    if (3, 12) <= sys.version_info < (3, 14) or not frame.f_code.co_flags & SUSPENDS:
        return False
    if sys.version_info >= (3, 14):
        return frame.f_generator is None
    return frame.f_code.co_code[frame.f_lasti] not in YIELDS


YIELDS = {
    opcode.opmap[name] for name in ("YIELD_VALUE", "RETURN_GENERATOR") if name in opcode.opmap
}

WORDS: dict[type[BaseException] | None, ExitKind] = {
    # what a child's exception means (exceptions.meaning_of): how the child ended, if it
    # had not been asked to stop
    Killed: KILLED,
    Fenced: KILLED,
    Fatal: CRASHED,
    Shutdown: SHUTDOWN,
    Ignore: NORMAL,
    None: CRASHED,
}

ASKED_AND_ENDED = ExitReason(SHUTDOWN)


class Ended(Protocol):
    """What must be known of a child to tell why it ended: its context, or something like it."""

    @property
    def running(self) -> bool:
        """Whether it had not been asked to stop."""

    @property
    def is_ready(self) -> bool:
        """Whether its start was complete."""


def reason_of(error: BaseException | Sealed | None, ctx: Ended) -> ExitReason:
    """Return the exit reason of a child that returned, or raised *error*. Runs no code of the exception's."""
    if means_success(error):
        error = None
    meaning = meaning_of(error)
    if not ctx.running and meaning not in (Killed, Fenced):
        return ExitReason(SHUTDOWN, error) if error is not None else ASKED_AND_ENDED
    if error is None:
        return ExitReason(
            NORMAL, detail=None if ctx.is_ready else "it returned before it was ready"
        )
    return ExitReason(WORDS[meaning], error)
