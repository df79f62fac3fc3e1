"""The far side of a callable: the code that runs in its process.

Laws:
1. The process imports nothing of otpy but this file, ``protocol`` and ``epitaph``, and
   nothing else that is slow, before the user's code asks for it: each start pays for
   imports. So process.py has these files loaded by their paths. They say everything
   with the standard library alone.
2. The main thread runs the callable. The order thread waits for orders, and sleeps
   otherwise. Under eventlet a third thread, a green one, looks for orders in turns.
3. When the parent process is gone, this process and its group end, whatever runs here.
   On Linux the kernel kills them. Elsewhere the order thread does, as soon as it gets
   the interpreter's lock.
4. Each message goes out whole, whatever a signal handler raises while it is sent: the
   rest of it goes with the next message. If a message has to be given up, nothing more
   is sent, and each call that would send something raises.
5. A message that is sent when the parent process is gone is lost; law 3 ends this
   process.
6. No message is longer than the parent process accepts.

The words of both sides are in ``protocol``.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import faulthandler
import importlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
from multiprocessing import process, spawn

from otpy.children.callable.epitaph import epitaph_of, traceback_of
from otpy.children.callable.protocol import (
    ALLOWED,
    ASK,
    BEAT,
    BEATS,
    EXIT,
    FENCE,
    HEAD,
    LEAST,
    LOOK,
    SIZES,
    STATE,
    UP,
)

TYPE_CHECKING = False  # typing is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

TURN = 0.05
"""Seconds between two looks for orders, where the order thread can wake no other."""

DUMPED = 1 << 15
"""The most bytes of a traceback that are written to the pipe for stacks, which has room
for them.
"""

UNCHANGED: Any = object()


class Facts:
    """What the process knows about itself. It travels as the arguments of this class.

    Attributes:
        path, incarnation: Which child it is, and which life of it.
        ready: Whether the callable reports itself that it is up.
        heartbeat: Of its spec, in seconds.
        snapshot: Of its spec; None: pickling is copy enough.
        max_message_size: The most bytes that a message may have.
        allow_pickle: Whether the parent process unpickles the exceptions that it gets.
        last_exit: The ``ExitReason`` of the incarnation before, pickled; None: there
            was none.
        state: The state that was saved last, pickled; None: no state was saved.
    """

    def __init__(
        self,
        *,
        path: str,
        incarnation: int,
        ready: bool,
        heartbeat: float | None,
        snapshot: Callable[[Any], Any] | None,
        max_message_size: int,
        allow_pickle: bool,
        last_exit: bytes | None,
        state: bytes | None,
    ) -> None:
        self.path, self.incarnation = path, incarnation
        self.ready, self.heartbeat = ready, heartbeat
        self.snapshot, self.last_exit, self.state = snapshot, last_exit, state
        self.max_message_size, self.allow_pickle = max_message_size, allow_pickle


class Wire:
    """The far end of the socket. Any thread may send; only the order thread reads.

    A signal handler may raise between any two steps of ``send``, and it may call
    ``send`` itself. So each step leaves a state that the next call can go on from. A
    message that is ``_begun`` goes out first, whole, from the byte that its system
    calls have reached. A message that a handler sends in the middle of that waits in
    ``_late``.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        self._end, self._transmit = end, end.send
        self._lock = threading.RLock()  # guards all of these:
        # a message, and how many bytes each system call has taken
        self._begun: tuple[bytes, list[int]] | None = None
        self._late: dict[bytes, bytes] = {}  # the last message of each kind
        self._overdue: dict[bytes, bytes] = {}  # those of _late that are being sent
        self._is_torn = False

    def send(self, kind: bytes, content: bytes = b"") -> None:
        """Send a message; wait while the parent process does not read.

        If the parent process is gone, the message is lost. An exception of a signal
        handler is raised here; the rest of the message goes with the next one.

        Raises:
            BrokenPipeError: A message had to be given up, so nothing can be sent any
                more.
        """
        message = HEAD.pack(kind, len(content)) + content
        # This may be a signal handler that has interrupted the lines below, on the same
        # thread. The system repeats the call that the handler has interrupted: a
        # message sent now would stand in the middle of the other one. So it waits in
        # _late. The lines below look there again after they have released the lock, so
        # they find it.
        if self._lock._is_owned() and self._is_interrupted():  # type: ignore[attr-defined]
            self._late[kind] = message
            return
        with self._lock:
            if self._begun or self._overdue or self._late:
                self._catch_up()
            # from here on the message will be sent, by this call or by a later one
            self._begun = message, []
            self._finish()
        while self._late:
            with self._lock:
                self._catch_up()

    def _is_interrupted(self) -> bool:
        """Return whether this thread, which has the lock, is in the middle of ``send``.

        If it is not, a handler has raised between two steps of a ``with``, and the lock
        was never released. Then release it.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code is Wire.send.__code__:
                return True
            frame = frame.f_back
        while self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()
        return False

    def _catch_up(self) -> None:
        """Send what interrupted calls have left, and what handlers wanted to send."""
        self._finish()
        while self._overdue or self._late:
            if not self._overdue:
                # A handler may run between these two lines, and put its message into
                # _late. Both names mean the same dict then, so the message is found in
                # _overdue; the other order would lose it.
                self._overdue = self._late
                self._late = {}
            for message in list(self._overdue.values()):
                self._begun = message, []
                self._finish()
            self._overdue = {}

    def _finish(self) -> None:
        """Send the rest of the message that is begun."""
        while self._begun is not None:
            if self._is_torn:
                raise BrokenPipeError(
                    errno.EPIPE, "memory was short in the middle of a message to the parent process"
                )
            message, taken = self._begun
            rest = memoryview(message)[sum(taken) :] if taken else message
            try:
                # A handler that ran between the return of the socket's send() and the
                # note of its result would make the next call send these bytes twice.
                # extend(map()) is one step of the interpreter: no handler runs inside,
                # but for one that runs, and may raise, before a byte was sent.
                taken.extend(map(self._transmit, (rest,)))
            except BlockingIOError:  # other code has changed the mode of our descriptor
                self._end.setblocking(True)
            except OSError:
                self._begun = None
            except MemoryError:  # an unknown part of the message may be sent
                self._is_torn = True
                raise
            if sum(taken) == len(message):
                self._begun = None

    def orders(self) -> bytes:
        """Wait for orders; b"": the parent process is gone.

        A descriptor that other code has made non-blocking is not the end.
        """
        while True:
            try:
                return self._end.recv(64)
            except BlockingIOError:
                self._end.setblocking(True)
            except OSError:
                return b""

    def close(self) -> None:
        """Close this end, in a fork of this process.

        Another thread may have held the lock when the fork was made, and that thread
        does not exist here. So the lock is a new one.
        """
        self._lock = threading.RLock()
        self._begun, self._late, self._overdue = None, {}, {}
        self._end.close()


class RemoteContext:
    """A child's window on its tree, with the names and meanings of ``Context``.

    It differs in two things: there is no handle of the supervisor, and a state that is
    saved goes through ``pickle``.

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
        self._saved, self._most = facts.state, facts.max_message_size
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
        """The ``ExitReason`` of the incarnation before; None: this is the first one."""
        last = self._use().last_exit
        return None if last is None else pickle.loads(last)  # noqa: S301 from our parent process

    @property
    def supervisor(self) -> Any:
        """Raise NotFound: a handle works only in the process of its supervisor."""
        refusal = _of_otpy("exceptions", "NotFound")
        raise refusal(
            self._use().path, "a child in a process of its own has no handle of its supervisor"
        )

    @property
    def log(self) -> Any:
        """A structlog logger, bound to path and incarnation.

        It does what structlog is configured to do in this process.
        """
        facts = self._use()
        logger = _of_otpy("runtime.log", "logger")
        return logger(path=facts.path, incarnation=facts.incarnation)

    @property
    def state(self) -> Any:
        """A fresh copy of the last state that ``check_in(state)`` has saved.

        An earlier incarnation may have saved it; None: no state was saved.
        """
        self._use()
        return None if self._saved is None else pickle.loads(self._saved)  # noqa: S301 it is ours

    def check_in(self, state: Any = UNCHANGED, *, allow: float | None = None) -> None:
        """Report that all is well; with a ``heartbeat`` at least that often.

        Without *state* a check-in costs next to nothing: of many only some are sent.

        Args:
            state: Save this for the replacement, as it is now. An exception of its
                pickling is raised here, and nothing is saved. If a signal handler
                raises meanwhile, the state may have been saved or not.
            allow: The next check-in may take as many seconds, this once, if that is
                more than the heartbeat.

        Raises:
            ValueError: *allow* is not a finite number > 0, or *state* is larger than
                the option ``max_message_size``.
            BrokenPipeError: Memory was short in the middle of an earlier call, so
                nothing can be saved any more.
        """
        self._use()
        if allow is not None and not _is_positive(allow):
            raise ValueError(f"allow = {allow!r}: expected a finite number of seconds > 0")
        if state is not UNCHANGED:
            self._save(state)
        if self._facts.heartbeat is None:
            return
        allowed, now = allow or 0.0, time.monotonic()
        if allowed != self._allowed or now >= self._sent + self._pause:
            self._wire.send(BEAT, ALLOWED.pack(allowed))
            self._sent, self._allowed = now, allowed

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
        """Have *callback* called once, on a helper thread, at the order to stop.

        If the child was asked before, *callback* is called at once. An exception that
        it raises is logged.

        Raises:
            TypeError: *callback* cannot be called without arguments, or is an async function.
        """
        self._use()
        why = _of_otpy("arguments", "why_no_handler")(
            callback, (), "a callable that takes no arguments"
        )
        if why:
            raise TypeError(f"callback = {callback!r}: expected {why}")
        self._callbacks.append(callback)
        if not self.running:  # asked before or since: ask() may have found the list empty
            _spawn(self._drain, daemon=False)

    def ready(self) -> None:
        """Report that the start is complete; for a child with ``ready=True``.

        Another call does nothing.
        """
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

    # The methods below are for this file and for handles of supervisors.

    def hangs_on(self, tree: object, path: str) -> None:
        """Return None: no supervisor of this process has to wait for this child."""

    def ask(self) -> None:
        """Ask the child to stop. Idempotent; called by the order thread."""
        if self.running:
            self.running = False
            self._stop.set()
            if self._callbacks:
                # RuntimeError: the callable has ended, and leave() calls them.
                with contextlib.suppress(RuntimeError):
                    _spawn(self._drain, daemon=False)

    def leave(self) -> None:
        """Call the callbacks that are left: the callable has ended.

        It may have ended before a helper thread could start.
        """
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
        if len(saved) > self._most:
            raise ValueError(
                f"state has {len(saved)} bytes, pickled: expected at most {self._most} (max_message_size)"
            )
        self._wire.send(STATE, saved)
        self._saved = saved

    def _drain(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return  # another helper was faster
            try:
                _check_result(callback, callback())
            except BaseException as error:
                complain = _of_otpy("runtime.log", "complain")
                complain("on_stop_failed", error, path=self._facts.path)


here: RemoteContext | None = None
"""The context of this whole process, if it is a child."""


def _of_otpy(module: str, name: str) -> Any:
    """Return a name of otpy; the first call pays for the import of its module."""
    return getattr(importlib.import_module(f"otpy.{module}"), name)


def _spawn(target: Callable[[], object], *, daemon: bool) -> None:
    """Start a thread; the process ends when all threads that are no daemons have ended.

    ``otpy.runtime.threads`` does not know these threads: they end with the process.
    """
    threading.Thread(target=target, daemon=daemon).start()


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )


# The life of the process


def main(end: int, dump: int, tracker: int) -> None:
    """Run the process, from its first line to its exit.

    Args:
        end: The descriptor of the socket.
        dump: The descriptor of the pipe for stacks. They are written there when that is
            ordered, and by the interpreter itself if it dies of a signal such as
            SIGSEGV.
        tracker: The descriptor of the resource tracker of multiprocessing; -1: none
            runs.
    """
    # The parent process may have closed stdout and stderr. Then the next file that is
    # opened here would take their place.
    for descriptor in (1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_WRONLY)
    faulthandler.enable(dump)
    wire = Wire(socket.socket(fileno=end))
    for descriptor in (end, dump):
        os.set_inheritable(descriptor, False)
    with open(0, "rb", closefd=False) as source:
        sizes = SIZES.unpack(source.read(SIZES.size))
        preparation, work = map(source.read, sizes)
    _hold_lifeline()
    if hasattr(os, "register_at_fork"):
        # a fork that kept this end would mix its messages with ours
        os.register_at_fork(after_in_child=wire.close)
    error = _live(Orders(wire, dump), wire, preparation, work, tracker)
    _report_end(wire, dump, error)
    sys.exit(0 if error is None else 1)


def _hold_lifeline() -> None:
    """Make the kernel kill this whole group when the parent process is gone.

    The kernel does so when the other end of stdin is closed (Linux), even while some C
    code never releases the interpreter's lock. The parent process writes no more to
    this pipe: each byte would kill the group, too. The callable gets an empty stdin. A
    program that this process becomes (``os.execv``) keeps the lifeline.
    """
    lifeline = os.dup(0)
    os.set_inheritable(lifeline, True)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    # not Linux: the order thread ends the group
    with contextlib.suppress(ImportError, AttributeError):
        import fcntl

        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _live(
    orders: Orders, wire: Wire, preparation: bytes, work: bytes, tracker: int
) -> BaseException | None:
    """Run the callable; return what it raised, None if all is well."""
    global here  # noqa: PLW0603 there is one per process
    _spawn(orders.listen, daemon=True)
    try:
        function, args, facts = _unpack(preparation, work, tracker)
        here = ctx = RemoteContext(facts, wire)
        orders.obey(ctx)
        if not facts.ready:
            ctx.ready()
        try:
            _check_result(function, function(ctx, *args), "call asyncio.run() in a plain function")
        finally:
            ctx.leave()
    except BaseException as error:
        is_exit = issubclass(type(error), SystemExit)
        return None if is_exit and _of_otpy("exceptions", "means_success")(error) else error
    return None


def _unpack(
    preparation: bytes, work: bytes, tracker: int
) -> tuple[Callable[..., object], tuple[Any, ...], Facts]:
    """Make this interpreter like the parent process, and import the callable.

    Args:
        preparation: What ``spawn.prepare`` of multiprocessing gets, pickled.
        work: The callable, its arguments, and the ``Facts``, pickled.
        tracker: As for ``main``.
    """
    if tracker >= 0:
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    itself: Any = process.current_process()
    # Without this mark a main module that lacks ``if __name__ == "__main__"`` would
    # start its tree again in this process, and so on for ever.
    itself._inheriting = True
    try:
        spawn.prepare(pickle.loads(preparation))  # noqa: S301 it comes from our parent process
        function, args, facts = pickle.loads(work)  # noqa: S301
    finally:
        del itself._inheriting
    return function, args, Facts(**facts)


def _check_result(function: Callable[..., object], result: object, *instead: str) -> None:
    """Raise if *function* has returned a coroutine or the like: it has not run."""
    if result is not None:
        _of_otpy("arguments", "check_result")(function, result, *instead)


def _report_end(wire: Wire, dump: int, error: BaseException | None) -> None:
    """Report how the callable ended, whatever signal handlers raise meanwhile."""
    limit, allow_pickle = LEAST, False
    if here is not None:
        limit, allow_pickle = here._facts.max_message_size, here._facts.allow_pickle
    epitaph = b"" if error is None else epitaph_of(error, limit, allow_pickle)
    while True:
        with contextlib.suppress(BaseException):
            try:
                wire.send(EXIT, epitaph)
            except BrokenPipeError:
                # The parent process looks into the pipe for stacks when it has got no
                # EXIT.
                story = "" if error is None else traceback_of(error)
                with contextlib.suppress(OSError):  # stacks that were not read fill the pipe
                    os.write(dump, story.encode(errors="replace")[-DUMPED:])
            return


class Orders:
    """The orders of the supervisor. The order thread writes them.

    The order thread may note an order while the main thread makes the context. If each
    looked only once, before its own step, the order could be lost. So the order thread
    notes the order and then looks for the context; the main thread shows the context
    and then looks for orders. One of them sees the other.
    """

    def __init__(self, wire: Wire, dump: int) -> None:
        self._wire, self._dump = wire, dump
        self._got = b""
        self._ctx: RemoteContext | None = None

    def listen(self) -> None:
        """Take orders until the parent process is gone; on the order thread."""
        while got := self._wire.orders():
            if LOOK in got:
                faulthandler.dump_traceback(self._dump)
            self._got += got
            if not _are_deaf():
                self._pass_on()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def obey(self, ctx: RemoteContext) -> None:
        """Pass all orders on to *ctx* from now on, those that came before as well."""
        self._ctx = ctx
        self._pass_on()
        if _are_deaf():
            _spawn(self._pass_on_in_turns, daemon=True)

    def _pass_on_in_turns(self) -> None:
        is_over = False
        while not is_over:
            time.sleep(TURN)
            is_over = FENCE in self._got
            self._pass_on()

    def _pass_on(self) -> None:
        if self._ctx is not None:
            if FENCE in self._got:
                self._ctx.fence()
            elif ASK in self._got:
                self._ctx.ask()


def _are_deaf() -> bool:
    """Return whether the order thread cannot wake threads: eventlet's are green."""
    return str(_thread.start_new_thread.__module__).startswith("eventlet.")
