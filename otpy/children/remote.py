"""The far side of a child that is a callable in a process of its own: what runs in that process.

Laws:
1. Nothing of otpy is imported here, and nothing else that is slow, before the user's code asks for it: each start pays
   for this. So the near side (callee.py) has this file run by its path, and it says what it has to say with the
   standard library alone.
2. The main thread runs the callable. One more thread, the watch, waits for orders, and sleeps otherwise.
3. When the program is gone, so are this process and its group, whatever runs here: the kernel sees to that where it can
   (Linux), and the watch everywhere, as soon as it gets the interpreter's lock.
4. Each frame goes out whole or is the last one. What is told when the other side does not listen any more is lost.

What the two sides say. The birth comes through stdin, which then stays open, empty, as the lifeline: its writer is the
program, so it ends with that. Orders come through a socket, one byte each; the end of the socket is the end of the
program, too. Frames go back through the same socket: a kind, a length, and that many bytes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from multiprocessing import process, spawn

TYPE_CHECKING = False  # typing is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ASK, FENCE, LOOK = b"a", b"f", b"l"
"""Orders: stop; nothing that you do counts any more; write what all threads are doing."""

UP, BEAT, STATE, EXIT = b"u", b"b", b"s", b"x"
"""Frames: it is up; it has checked in; it has saved something; how it has ended."""

HEAD = struct.Struct("!cI")
"""The head of a frame: its kind, and how many bytes follow."""

SIZES = struct.Struct("!QQ")
"""The head of a birth: how long its two parts are."""

ALLOWED = struct.Struct("!d")
"""What a check-in allows, in seconds; 0: what the heartbeat allows."""

BEATS = 8
"""How many plain check-ins are sent per heartbeat, at most. A tight loop of them must not keep the program busy."""

WORDS = ("Fatal", "Ignore", "Shutdown")
"""What a child may raise to say something."""

UNCHANGED: Any = object()


class Facts:
    """What a process is told about itself. It travels as the keyword arguments of this.

    Attributes:
        path, incarnation: Who it is.
        ready: Whether it says itself when it is up.
        heartbeat: Of its spec, in seconds.
        snapshot: Of its spec; None: pickling is copy enough.
        last_exit: The ``ExitReason`` of the incarnation before, pickled; None: there was none.
        state: What was saved last, pickled; None: nothing.
    """

    def __init__(
        self,
        *,
        path: str,
        incarnation: int,
        ready: bool,
        heartbeat: float | None,
        snapshot: Callable[[Any], Any] | None,
        last_exit: bytes | None,
        state: bytes | None,
    ) -> None:
        self.path, self.incarnation, self.ready, self.heartbeat = path, incarnation, ready, heartbeat
        self.snapshot, self.last_exit, self.state = snapshot, last_exit, state


class Wire:
    """The far end of the socket. Any thread may send; only the watch reads."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()  # one frame at a time

    def send(self, kind: bytes, content: bytes = b"") -> None:
        """Send a frame; wait if the near side is slow. Nothing, if it is gone."""
        with self._lock, contextlib.suppress(OSError):
            try:
                self._end.sendall(HEAD.pack(kind, len(content)) + content)
            except BaseException:  # what a signal handler raised: half of a frame may be out, so it must be the last
                self._end.shutdown(socket.SHUT_WR)
                raise

    def orders(self) -> bytes:
        """Wait for orders; b"": the program is gone."""
        try:
            return self._end.recv(64)
        except OSError:
            return b""

    def close(self) -> None:
        """Let go of it, in a process that was forked from this one."""
        self._end.close()


class RemoteContext:
    """A child's window on its tree; it has the names of ``Context``, and means the same by them.

    Differences: there is no handle of the supervisor, and what is saved goes through ``pickle``.

    Attributes:
        running: True until the child is asked to stop.
    """

    def __init__(self, facts: Facts, wire: Wire) -> None:
        self.running = True
        self._facts, self._wire = facts, wire
        self._stop = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._fenced = False
        self._is_up = False
        self._saved = facts.state
        self._pause = 0.0 if facts.heartbeat is None else facts.heartbeat / BEATS
        self._sent, self._allowed = float("-inf"), 0.0

    @property
    def id(self) -> str:
        """Its id among its siblings."""
        return self._use().path.rpartition("/")[2]

    @property
    def path(self) -> str:
        """Its ids from the root, joined by "/"."""
        return self._use().path

    @property
    def incarnation(self) -> int:
        """How often this child has been started, this time included."""
        return self._use().incarnation

    @property
    def last_exit(self) -> Any:
        """The ``ExitReason`` of the incarnation before this one; None: there was none."""
        last = self._use().last_exit
        return None if last is None else pickle.loads(last)  # noqa: S301 it comes from the program that started us

    @property
    def supervisor(self) -> Any:
        """Raise NotFound: the handle of a supervisor works only in the process in which that runs."""
        refusal = _of_otpy("exceptions", "NotFound")
        raise refusal(self._use().path, "a child in a process of its own has no handle of its supervisor")

    @property
    def log(self) -> Any:
        """A structlog logger, bound to path and incarnation; as structlog is configured in this process."""
        facts = self._use()
        return _of_otpy("telemetry", "logger")(path=facts.path, incarnation=facts.incarnation)

    @property
    def state(self) -> Any:
        """What was saved last by ``check_in(state)``, also by the incarnations before; None: nothing. A fresh copy."""
        self._use()
        return None if self._saved is None else pickle.loads(self._saved)  # noqa: S301 it is ours

    def check_in(self, state: Any = UNCHANGED, *, allow: float | None = None) -> None:
        """Say that all is well; a child with a ``heartbeat`` must do so at least that often.

        Without *state* that costs next to nothing: of many check-ins only some are sent, see BEATS.

        Args:
            state: Save this for the replacement, as it is now. Whatever pickling it raises is raised here, and nothing
                is saved.
            allow: The next check-in may take as many seconds, this once, if that is more than the heartbeat.

        Raises:
            ValueError: *allow* is not a finite number > 0.
        """
        self._use()
        if allow is not None and not _is_positive(allow):
            raise ValueError(f"allow = {allow!r}: expected a finite number of seconds > 0")
        if state is not UNCHANGED:
            self._save(state)
        if self._facts.heartbeat is not None:
            self._beat(allow or 0.0, time.monotonic())

    def sleep(self, seconds: float) -> None:
        """Sleep, or return early when asked to stop.

        Args:
            seconds: How long, >= 0.
        """
        self.wait_stop(seconds)

    def wait_stop(self, timeout: float | None = None) -> bool:
        """Wait until asked to stop, or *timeout* seconds; return whether asked to stop.

        Raises:
            ValueError: *timeout* is negative or not a number.
        """
        self._use()
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout = {timeout!r}: expected a number of seconds >= 0")
        asked = self._stop.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        self._use()  # it may have been fenced in its sleep
        return asked

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Have *callback* called once, on a helper thread, when the child is asked to stop; at once if it was already.

        What it raises is logged.

        Raises:
            TypeError: *callback* cannot be called.
        """
        self._use()
        if not callable(callback):
            raise TypeError(f"callback = {callback!r}: expected a callable")
        self._callbacks.append(callback)
        if not self.running:  # asked before or since: ask() may have found the list empty
            _spawn(self._drain, daemon=False)

    def ready(self) -> None:
        """Say that the start is complete; for a child with ``ready=True``. Calling it again does nothing."""
        self._use()
        if not self._is_up:
            self._is_up = True
            self._wire.send(UP)

    @property
    def is_ready(self) -> bool:
        """Whether the start is complete."""
        self._use()
        return self._is_up

    def __repr__(self) -> str:
        return f"<RemoteContext of {self._facts.path}, incarnation {self._facts.incarnation}>"

    # What this file and the handles of supervisors do with it, not the children themselves

    def hangs_on(self, tree: object, path: str) -> None:
        """Return None: no supervisor of this process has to wait for this child."""

    def ask(self) -> None:
        """Ask the child to stop. Idempotent; called by the watch."""
        if self.running:
            self.running = False
            self._stop.set()
            if self._callbacks:
                with contextlib.suppress(RuntimeError):  # the callable has ended meanwhile, and leave() sees to them
                    _spawn(self._drain, daemon=False)

    def leave(self) -> None:
        """Call what has not been called yet; the callable has ended, and perhaps before anybody else got to that."""
        if not self.running:
            self._drain()

    def fence(self) -> None:
        """Make this context useless."""
        self._fenced = True
        self.ask()

    def _use(self) -> Facts:
        if self._fenced:
            raise _of_otpy("exceptions", "Fenced")(self._facts.path)
        return self._facts

    def _save(self, state: Any) -> None:
        snapshot = self._facts.snapshot
        saved = pickle.dumps(state if snapshot is None else snapshot(state))
        self._wire.send(STATE, saved)
        self._saved = saved

    def _beat(self, allow: float, now: float) -> None:
        """Tell it, unless the same has been told just now."""
        if allow != self._allowed or now >= self._sent + self._pause:
            self._wire.send(BEAT, ALLOWED.pack(allow))
            self._sent, self._allowed = now, allow

    def _drain(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return  # another helper was faster
            self._call(callback)

    def _call(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException as error:
            _of_otpy("telemetry", "complain")("on_stop_failed", error, path=self._facts.path)


here: RemoteContext | None = None
"""The context of this whole process, if it is a child."""


def _of_otpy(module: str, name: str) -> Any:
    """Return something of otpy, and pay for its import."""
    return getattr(importlib.import_module(f"otpy.{module}"), name)


def _spawn(target: Callable[[], object], *, daemon: bool) -> None:
    """Start a thread; the process ends when those that are no daemons have ended.

    There is no account of these threads as otpy.threads keeps it: to stop them is to stop the process.
    """
    threading.Thread(target=target, daemon=daemon).start()


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


# The life of the process


def main(end: int, dump: int, tracker: int) -> None:
    """Be the process.

    Args:
        end: The descriptor of the socket.
        dump: A descriptor to which the stacks are written, when that is asked for, and by the interpreter itself if it
            dies of a signal such as SIGSEGV.
        tracker: The descriptor of the resource tracker of multiprocessing; -1: none runs.
    """
    faulthandler.enable(dump)
    wire = Wire(socket.socket(fileno=end))
    for descriptor in (end, dump):
        os.set_inheritable(descriptor, False)
    program, birth = _receive()
    _hold_lifeline()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=wire.close)  # or its frames would mix with ours
    error = _live(Orders(wire, dump), wire, program, birth, tracker)
    wire.send(EXIT, _epitaph(error))
    sys.exit(0 if error is None else 1)


def _receive() -> tuple[bytes, bytes]:
    """Read the two parts of the birth: what multiprocessing wants to know of the program, and what is to be run."""
    with open(0, "rb", closefd=False) as source:
        program, birth = SIZES.unpack(source.read(SIZES.size))
        return source.read(program), source.read(birth)


def _hold_lifeline() -> None:
    """Die with the program: have the kernel kill this whole group when the other end of stdin is closed.

    That works even while some C code holds the interpreter's lock for ever. Nobody writes to this pipe any more: that
    would be heard, too. The callable gets an empty stdin.
    """
    lifeline = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    with contextlib.suppress(ImportError, AttributeError):  # not Linux: the watch has to do
        import fcntl

        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _live(orders: Orders, wire: Wire, program: bytes, birth: bytes, tracker: int) -> BaseException | None:
    _spawn(orders.watch, daemon=True)
    try:
        function, args, facts = _unpack(program, birth, tracker)
        ctx = _enter(facts, wire, orders)
        try:
            function(ctx, *args)
        finally:
            ctx.leave()
    except BaseException as error:
        return None if _is_success(error) else error
    return None


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and (error.code is None or error.code == 0)


def _unpack(program: bytes, birth: bytes, tracker: int) -> tuple[Callable[..., object], tuple[Any, ...], Facts]:
    """Make this interpreter like that of the program, as multiprocessing does it, and import what is to be run."""
    if tracker >= 0:
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    itself: Any = process.current_process()
    itself._inheriting = True  # or a program without ``if __name__ == "__main__"`` would start itself for ever
    try:
        spawn.prepare(pickle.loads(program))  # noqa: S301 it comes from the program that started us
        function, args, facts = pickle.loads(birth)  # noqa: S301
    finally:
        del itself._inheriting
    return function, args, Facts(**facts)


def _enter(facts: Facts, wire: Wire, orders: Orders) -> RemoteContext:
    global here  # noqa: PLW0603 there is one per process
    here = ctx = RemoteContext(facts, wire)
    orders.obey(ctx)
    if not facts.ready:
        ctx.ready()
    return ctx


class Orders:
    """What the supervisor wants. The watch writes, and the main thread looks once, when there is a context.

    The race is between an order that comes and the context that is made: each looks again after its own step.
    """

    def __init__(self, wire: Wire, dump: int) -> None:
        self._wire, self._dump = wire, dump
        self._got = b""
        self._ctx: RemoteContext | None = None

    def watch(self) -> None:
        """Be the thread that waits for orders, and for the end of the program."""
        while got := self._wire.orders():
            if LOOK in got:
                faulthandler.dump_traceback(self._dump)
            self._got += got
            self._pass_on()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def obey(self, ctx: RemoteContext) -> None:
        """From now on tell *ctx*, and tell it what came before."""
        self._ctx = ctx
        self._pass_on()

    def _pass_on(self) -> None:
        if self._ctx is not None:
            if FENCE in self._got:
                self._ctx.fence()
            elif ASK in self._got:
                self._ctx.ask()


# How it ended


def _epitaph(error: BaseException | None) -> bytes:
    """Return what the near side needs to make the same exception, or, if that cannot be pickled, a readable one."""
    if error is None:
        return pickle.dumps(None)
    return pickle.dumps((_word(error), _pickled(error), _shown(error), _traceback(error)))


def _word(error: BaseException) -> str:
    """Return which of WORDS it is, or "". Who has raised one of these, has imported them."""
    ours = sys.modules.get("otpy.exceptions")
    return next((word for word in WORDS if ours and issubclass(type(error), getattr(ours, word))), "")


def _pickled(error: BaseException) -> bytes | None:
    try:
        return pickle.dumps(error)
    except Exception:
        return None


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:
        return f"{type(error).__name__}()"


def _traceback(error: BaseException) -> str:
    try:
        import traceback

        return "".join(traceback.format_exception(error))
    except Exception:
        return f"{_shown(error)}: its traceback could not be formatted\n"
