"""Children that are threads.

A thread cannot be killed, only interrupted: CPython can be told to raise an exception inside it, which happens the next
time that it runs Python code. That must not happen outside the user's code, where it would swallow the exit report, nor
after the thread has ended, when its number may belong to another thread. ``Gate`` sees to both.
"""

from __future__ import annotations

import contextlib
import ctypes  # here and not where it is used: an interrupt in the middle of its import would lock all imports
import inspect
import threading
from collections.abc import Callable
from typing import Any, Protocol, Unpack

import attrs

from otpy import threads
from otpy.abc import Birth, Deliver
from otpy.context import Context
from otpy.exceptions import Fenced, Ignore, Killed, Shutdown, SpecError, forget_locals, is_a
from otpy.messages import ChildExited, ChildStarted
from otpy.reports import CRASHED, KILLED, NORMAL, SHUTDOWN, ExitKind, ExitReason
from otpy.specs import ChildSpec, Common, check_common
from otpy.threads import ThreadState
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


def thread(target: Callable[..., object], *args: Any, id: str | None = None, **common: Unpack[Common]) -> ChildSpec:
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
    return ChildSpec(id=name, start=ThreadStart(target, args), **common)


def _is_service(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, Service)


def _check(path: str, target: Any, args: tuple[Any, ...]) -> None:
    check_function(path, "target", target, "a callable or a subclass of Service")
    if _is_service(target):
        _check_service(path, target, args)
    else:
        check_call(path, "target", target, ("ctx", *args), "a callable that takes (ctx, *args)")


def _check_service(path: str, target: type[Service], args: tuple[Any, ...]) -> None:
    if target.run is Service.run:
        raise SpecError(path, "target", target, "a Service with a run method")
    check_call(path, "target", target, (), "a Service that can be made without arguments; init gets them")
    check_call(path, "target", target.init, ("self", *args), "a Service whose init takes (*args)")


# What other builders do in the same way


def name_of(target: object) -> str:
    """Return the default of an id: the name of *target*; "", which is no id, if nobody gave it one."""
    name: str = getattr(target, "__name__", "")
    return "" if name == "<lambda>" else name


def path_of(id: str, builder: str) -> str:
    """Return where an error is, as far as that is known when the spec is made."""
    return id if isinstance(id, str) and id else f"<{builder}>"


def check_function(path: str, field: str, value: Any, expected: str) -> None:
    """Refuse a *value* that cannot be called, or that would only return something to be run."""
    if not callable(value):
        raise SpecError(path, field, value, expected)
    if inspect.iscoroutinefunction(value) or inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise SpecError(path, field, value, "a plain function: calling this one would run nothing")


def check_call(path: str, field: str, value: Callable[..., object], args: tuple[Any, ...], expected: str) -> None:
    """Refuse a *value* that does not take *args*."""
    try:
        inspect.signature(value).bind(*args)
    except TypeError as error:
        raise SpecError(path, field, value, f"{expected} ({error})") from None
    except ValueError:
        pass  # a builtin that does not tell its signature


@attrs.frozen(repr=False, eq=False)
class ThreadStart(Value):
    """Makes a thread child; the ``start`` of its spec."""

    target: Callable[..., object]
    args: tuple[Any, ...]

    def __call__(self, birth: Birth) -> ThreadChild:
        return ThreadChild(birth, self.serve if _is_service(self.target) else self.run)

    def run(self, ctx: Context) -> None:
        self.target(ctx, *self.args)

    def serve(self, ctx: Context) -> None:
        _run_service(self.target, self.args, ctx)  # type: ignore[arg-type]


def _run_service(kind: type[Service], args: tuple[Any, ...], ctx: Context) -> None:
    service = kind()
    service.ctx = ctx
    service.init(*args)
    if kind.stop is not Service.stop:
        ctx.on_stop(service.stop)
    ctx.ready()
    try:
        service.run()
    except BaseException as error:
        service.terminate(reason_of(error, ctx))
        raise
    service.terminate(reason_of(None, ctx))


class Gate:
    """Lets at most one ``Killed`` into a thread, and only between ``open`` and ``close``.

    ``close`` may itself be hit by the one that is on its way; so may everything between the user's last line and it.
    Whoever calls it must expect that. Nothing can hit after it. If a lock is left locked by such a hit, nobody minds:
    the only other one to take it is ``interrupt``, which has been there.
    """

    __slots__ = ("_ident", "_is_hit", "_is_shut", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ident = 0
        self._is_shut = self._is_hit = False

    def open(self) -> None:
        """Let an interrupt in from now on; raise it here if it came too early."""
        with self._lock:
            self._ident = threading.get_ident()
            if self._is_shut:
                raise Killed

    def interrupt(self) -> bool:
        """Raise ``Killed`` in the thread, once; False: this Python cannot."""
        if self._is_shut:
            return True
        with self._lock:
            if not self._is_shut:
                self._is_shut = True
                self._is_hit = bool(self._ident)
                return not self._is_hit or raise_in(self._ident, Killed)
        return True

    def close(self) -> None:
        """Keep interrupts out, and meet the one that has been sent, if it has not arrived yet."""
        with self._lock:  # also when it is shut already: the one who shut it may be just about to send
            self._is_shut = True
        if self._is_hit:
            self._meet()

    def _meet(self) -> None:
        """Leave no interrupt on its way.

        Whether the one that was sent has arrived is not known: the child may have swallowed it. So send another one,
        which takes its place, until one arrives: it may hit a finalizer that the garbage collector runs here just now,
        and then nobody hears of it. To take it back instead would leave the interpreter's flag for it set, and slow
        down every thread (CPython 3.11 and 3.12; under a tracer 3.11 then hangs).
        """
        try:
            while raise_in(threading.get_ident(), Killed):
                pass
        except Killed:
            pass


def raise_in(ident: int, exception: type[BaseException]) -> bool:
    """Have *exception* raised in the thread *ident* when it next runs Python code; False: it cannot be done."""
    if not hasattr(ctypes, "pythonapi"):  # not CPython
        return False
    hits: int = ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(exception))
    return hits > 0


@attrs.define(eq=False, repr=False)
class ThreadChild:
    """One incarnation: a thread that runs *life* and then says why it ended. Meets ``Child``."""

    birth: Birth
    life: Callable[[Context], None]
    _gate: Gate = attrs.field(factory=Gate, init=False)
    _ctx: Context = attrs.field(init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _deliver: Deliver = attrs.field(init=False)

    def start(self, deliver: Deliver) -> None:
        birth, spec = self.birth, self.birth.spec
        self._deliver, self._ctx = deliver, Context(birth, deliver)
        try:
            self._thread = birth.spawn(self._main, name=birth.path, purpose=spec.purpose or f"runs {spec.id}")
        except (RuntimeError, MemoryError) as error:  # can't start new thread
            deliver(ChildExited(birth.ref, ExitReason(CRASHED, error)))
        else:
            if not spec.ready:
                deliver(ChildStarted(birth.ref, birth.path))

    def stop(self) -> None:
        self._ctx.ask()

    def kill(self, grace: float) -> bool:
        self._ctx.ask()
        return self._gate.interrupt()

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
        return threads.stack_of(self._thread.ident) if self._thread else ""

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _main(self) -> None:
        try:
            error = self._live()
            self._gate.close()
        except Killed as late:  # it came between the user's last line and the closing of the gate
            error = late
        past, self.birth.last_exit = self.birth.last_exit, None
        self._deliver(ChildExited(self.birth.ref, reason_of(error, self._ctx)))
        forget(past)
        del error, past  # their tracebacks hold this frame: they would be cycles, and wait for the garbage collector

    def _live(self) -> BaseException | None:
        try:
            self._ctx.enter()
            self._gate.open()
            self.life(self._ctx)
        except BaseException as error:
            return error
        return None


def forget(past: ExitReason | None) -> None:
    """Let go of the crash before this one, now that this one has been told.

    The frames of a crash hold the child, its context, and whatever it has made of ``ctx.last_exit``. So each crash
    would keep the one before alive, with all its locals, for ever. And these shall go here, not on the supervisor's
    thread; after the exit has been told: what they do when they go may take long.
    """
    if past is not None:
        with WHATEVER_HAPPENS:
            forget_locals(past.exception)


WORDS: tuple[tuple[type[BaseException], ExitKind], ...] = (
    # what a child raised, and nobody had asked it to stop: how it ended; whatever is not here is CRASHED
    (Killed, KILLED),
    (Fenced, KILLED),
    (Shutdown, SHUTDOWN),
    (Ignore, NORMAL),
)

ASKED_AND_ENDED = ExitReason(SHUTDOWN)

WHATEVER_HAPPENS = contextlib.suppress(Exception)


class Ended(Protocol):
    """What must be known of a child to tell why it ended: its context, or something like it."""

    @property
    def running(self) -> bool:
        """Whether it had not been asked to stop."""

    @property
    def is_ready(self) -> bool:
        """Whether its start was complete."""


def reason_of(error: BaseException | None, ctx: Ended) -> ExitReason:
    """Return the exit reason of a child that returned, or raised *error*. Runs no code of the exception's."""
    if is_a(error, SystemExit) and _means_success(vars(SystemExit)["code"].__get__(error)):
        error = None
    if not ctx.running and not is_a(error, Killed, Fenced):
        return ExitReason(SHUTDOWN, error) if error is not None else ASKED_AND_ENDED
    if error is None:
        return ExitReason(NORMAL, detail=None if ctx.is_ready else "it returned before it was ready")
    for kind, means in WORDS:
        if issubclass(type(error), kind):
            return ExitReason(means, error)
    return ExitReason(CRASHED, error)


def _means_success(code: object) -> bool:
    return code is None or (type(code) is int and code == 0)
