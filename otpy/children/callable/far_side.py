"""The far side of a child that is a callable in a process of its own: what runs in that process.

Laws:
1. Nothing of otpy is imported here, and nothing else that is slow, before the user's code asks for it: each start pays
   for this. So the near side (callee.py) has this file run by its path, and it says what it has to say with the
   standard library alone.
2. The main thread runs the callable. One more thread, the watch, waits for orders, and sleeps otherwise.
   Under eventlet one more, a green one, looks for what it has got.
3. When the program is gone, so are this process and its group, whatever runs here: the kernel sees to that where it can
   (Linux), and the watch everywhere, as soon as it gets the interpreter's lock.
4. Each message goes out whole, whatever a signal handler raises while it is sent: what
   is left of it goes with the next one. If it must be given up, nothing more is sent,
   and each call that would send something raises.
5. What is sent when the program is gone is lost; so is this process, see 3.
6. No message is longer than the program accepts.

What the two sides say. The birth comes through stdin, which then stays open, empty, as
the lifeline: its writer is the program, so it ends with that. Orders come through a
socket, one byte each; the end of the socket is the end of the program, too. Messages go
back through the same socket: a kind, a length, and that many bytes. They are plain
data, since the program must not believe this process. Only a state is pickled, and only
processes like this one unpickle it.
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
import struct
import sys
import threading
import time
from multiprocessing import process, spawn

TYPE_CHECKING = False  # typing is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType
    from typing import Any

ASK, FENCE, LOOK = b"a", b"f", b"l"
"""Orders: stop; nothing that you do counts any more; write what all threads are doing."""

UP, BEAT, STATE, EXIT = b"u", b"b", b"s", b"x"
"""Messages: it is up; it has checked in; it has saved something; how it has ended."""

HEAD = struct.Struct("!cQ")
"""The head of a message: its kind, and how many bytes follow."""

SIZES = struct.Struct("!QQ")
"""The head of a birth: how long its two parts are."""

ALLOWED = struct.Struct("!d")
"""What a check-in allows, in seconds; 0: what the heartbeat allows."""

BEATS = 8
"""How many plain check-ins are sent per heartbeat, at most. A tight loop of them must not keep the program busy."""

PARTS = struct.Struct("!6Q")
"""The head of an EXIT that tells of an exception: how long its parts are. The parts are
texts in UTF-8, and bytes.

The word of otpy that it is, or ""; the name of its class; what ``repr`` and ``str``
give; its traceback; the exception itself, as JSON or pickled (``allow_pickle``), or
b"". An EXIT without any parts: the callable has returned.
"""

TURN = 0.05
"""Where the watch can wake no other thread, one of these looks for orders after so many seconds."""

LARGEST, MOST = 1 << 18, 10_000
"""The most bytes that an exception may have as JSON, and the most values in it; one
with more is told by its texts.
"""

SHORT = 1000
"""The most bytes that a name, or what ``repr`` gives, may have in an EXIT."""

DUMPED = 1 << 15
"""The most bytes of a traceback that are written to where the near side looks for
stacks; a pipe has room for them.
"""

LEAST = PARTS.size + 4 * SHORT
"""The least that may be accepted as the most bytes of a message: an EXIT in short must
be one.
"""

UNCHANGED: Any = object()


class Facts:
    """What a process is told about itself. It travels as the keyword arguments of this.

    Attributes:
        path, incarnation: Who it is.
        ready: Whether it says itself when it is up.
        heartbeat: Of its spec, in seconds.
        snapshot: Of its spec; None: pickling is copy enough.
        max_message_size: The most bytes that a message may have.
        allow_pickle: Whether the program unpickles whatever exception it gets.
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
        max_message_size: int,
        allow_pickle: bool,
        last_exit: bytes | None,
        state: bytes | None,
    ) -> None:
        self.path, self.incarnation, self.ready, self.heartbeat = (
            path,
            incarnation,
            ready,
            heartbeat,
        )
        self.snapshot, self.last_exit, self.state = snapshot, last_exit, state
        self.max_message_size, self.allow_pickle = max_message_size, allow_pickle


class Wire:
    """The far end of the socket. Any thread may send; only the watch reads.

    A signal handler may raise between any two steps of ``send``, and it may call
    ``send`` itself. So each step leaves things as the next call can use them: a message
    that is ``_begun`` goes out first, whole, and is sent from where its calls of the
    system have come to. What handlers want to send in the middle of that waits in
    ``_late``.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        self._end, self._transmit = end, end.send
        self._lock = threading.RLock()  # guards all of these:
        self._begun: tuple[bytes, list[int]] | None = (
            None  # a message, and what each call of the system has taken
        )
        self._late: dict[bytes, bytes] = {}  # the last message of each kind
        self._overdue: dict[bytes, bytes] = {}  # those of _late that are being sent
        self._is_torn = False

    def send(self, kind: bytes, content: bytes = b"") -> None:
        """Send a message; wait if the near side is slow. Nothing, if it is gone.

        What a signal handler raises meanwhile is raised here; what is left of the
        message goes with the next one.

        Raises:
            BrokenPipeError: A message had to be given up, so nothing can be sent any
                more.
        """
        message = HEAD.pack(kind, len(content)) + content
        # In a handler that has interrupted the lines below: the system makes the call
        # again that it has interrupted, so nothing may be sent now. When they have
        # released the lock, they look again, so they find this.
        if self._lock._is_owned() and self._is_interrupted():  # type: ignore[attr-defined]
            self._late[kind] = message
            return
        with self._lock:
            if self._begun or self._overdue or self._late:
                self._catch_up()
            self._begun = message, []  # from here on it will be sent
            self._finish()
        while self._late:
            with self._lock:
                self._catch_up()

    def _is_interrupted(self) -> bool:
        """Return whether this thread, which has the lock, is in the middle of ``send``.

        If not, a handler has raised between two steps of a ``with``, and the lock was
        never released: do it now.
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
        """Send what interrupted calls have left, and what handlers have called for."""
        self._finish()
        while self._overdue or self._late:
            if not self._overdue:
                self._overdue = (
                    self._late
                )  # a handler that comes here puts it into both, which are one
                self._late = {}
            for message in list(self._overdue.values()):
                self._begun = message, []
                self._finish()
            self._overdue = {}

    def _finish(self) -> None:
        """Send what is left of the message that is begun.

        To send some of it and to note how much is one step of the interpreter: no
        handler runs between the return of the socket's ``send`` and the note. One may
        run before that has sent anything, and raise: then there is nothing to be noted.
        """
        while self._begun is not None:
            if self._is_torn:
                raise BrokenPipeError(
                    errno.EPIPE, "memory was short in the middle of a message to the program"
                )
            message, taken = self._begun
            rest = memoryview(message)[sum(taken) :] if taken else message
            try:
                taken.extend(map(self._transmit, (rest,)))
            except BlockingIOError:  # something here has changed the mode of our descriptor
                self._end.setblocking(True)
            except OSError:
                self._begun = None
            except MemoryError:  # after some of it has gone, perhaps: how much is not known
                self._is_torn = True
                raise
            if sum(taken) == len(message):
                self._begun = None

    def orders(self) -> bytes:
        """Wait for orders; b"": the program is gone.

        Only that is the end, not a descriptor that does not block.
        """
        while True:
            try:
                return self._end.recv(64)
            except BlockingIOError:
                self._end.setblocking(True)
            except OSError:
                return b""

    def close(self) -> None:
        """Let go of it, in a fork of this process.

        Another thread of this process may have held it just then.
        """
        self._lock = threading.RLock()
        self._begun, self._late, self._overdue = None, {}, {}
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
        """The ``ExitReason`` of the incarnation before this one; None: there was none."""
        last = self._use().last_exit
        return None if last is None else pickle.loads(last)  # noqa: S301 it comes from the program that started us

    @property
    def supervisor(self) -> Any:
        """Raise NotFound: the handle of a supervisor works only in the process in which that runs."""
        refusal = _of_otpy("exceptions", "NotFound")
        raise refusal(
            self._use().path, "a child in a process of its own has no handle of its supervisor"
        )

    @property
    def log(self) -> Any:
        """A structlog logger, bound to path and incarnation; as structlog is configured in this process."""
        facts = self._use()
        return _of_otpy("runtime.log", "logger")(path=facts.path, incarnation=facts.incarnation)

    @property
    def state(self) -> Any:
        """What was saved last by ``check_in(state)``, also by the incarnations before; None: nothing. A fresh copy."""
        self._use()
        return None if self._saved is None else pickle.loads(self._saved)  # noqa: S301 it is ours

    def check_in(self, state: Any = UNCHANGED, *, allow: float | None = None) -> None:
        """Say that all is well; a child with a ``heartbeat`` must do so at least that often.

        Without *state* that costs next to nothing: of many check-ins only some are sent, see BEATS.

        Args:
            state: Save this for the replacement, as it is now. Whatever pickling it
                raises is raised here, and nothing is saved. If a signal handler raises
                meanwhile, it may have been saved or not.
            allow: The next check-in may take as many seconds, this once, if that is more than the heartbeat.

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
                with contextlib.suppress(
                    RuntimeError
                ):  # the callable has ended meanwhile, and leave() sees to them
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
        if len(saved) > self._most:
            raise ValueError(
                f"state has {len(saved)} bytes, pickled: expected at most {self._most} (max_message_size)"
            )
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
            _check_result(callback, callback())
        except BaseException as error:
            _of_otpy("runtime.log", "complain")("on_stop_failed", error, path=self._facts.path)


here: RemoteContext | None = None
"""The context of this whole process, if it is a child."""


def _of_otpy(module: str, name: str) -> Any:
    """Return something of otpy, and pay for its import."""
    return getattr(importlib.import_module(f"otpy.{module}"), name)


def _spawn(target: Callable[[], object], *, daemon: bool) -> None:
    """Start a thread; the process ends when those that are no daemons have ended.

    There is no account of these threads as otpy.runtime.threads keeps it: to stop them is to stop the process.
    """
    threading.Thread(target=target, daemon=daemon).start()


def _is_positive(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )


# The life of the process


def main(end: int, dump: int, tracker: int) -> None:
    """Be the process.

    Args:
        end: The descriptor of the socket.
        dump: A descriptor to which the stacks are written, when that is asked for, and by the interpreter itself if it
            dies of a signal such as SIGSEGV.
        tracker: The descriptor of the resource tracker of multiprocessing; -1: none runs.
    """
    for descriptor in (
        1,
        2,
    ):  # where the program has closed them: or the next file that is opened would be stdout
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_WRONLY)
    faulthandler.enable(dump)
    wire = Wire(socket.socket(fileno=end))
    for descriptor in (end, dump):
        os.set_inheritable(descriptor, False)
    program, birth = _receive()
    _hold_lifeline()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=wire.close)  # or its frames would mix with ours
    error = _live(Orders(wire, dump), wire, program, birth, tracker)
    _say_last_word(wire, dump, error)
    sys.exit(0 if error is None else 1)


def _say_last_word(wire: Wire, dump: int, error: BaseException | None) -> None:
    """Tell how it ended, whatever signal handlers raise meanwhile."""
    epitaph = b"" if error is None else _epitaph(error)
    while True:
        with contextlib.suppress(BaseException):
            try:
                wire.send(EXIT, epitaph)
            except BrokenPipeError:  # the near side looks there when it has heard nothing
                os.write(
                    dump,
                    b"" if error is None else _traceback(error).encode(errors="replace")[-DUMPED:],
                )
            return


def _receive() -> tuple[bytes, bytes]:
    """Read the two parts of the birth: what multiprocessing wants to know of the program, and what is to be run."""
    with open(0, "rb", closefd=False) as source:
        program, birth = SIZES.unpack(source.read(SIZES.size))
        return source.read(program), source.read(birth)


def _hold_lifeline() -> None:
    """Die with the program: have the kernel kill this whole group when the other end of stdin is closed.

    That works even while some C code holds the interpreter's lock for ever. Nobody writes to this pipe any more: that
    would be heard, too. The callable gets an empty stdin. A program that this process becomes keeps the lifeline.
    """
    lifeline = os.dup(0)
    os.set_inheritable(lifeline, True)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    with contextlib.suppress(ImportError, AttributeError):  # not Linux: the watch has to do
        import fcntl

        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _live(
    orders: Orders, wire: Wire, program: bytes, birth: bytes, tracker: int
) -> BaseException | None:
    _spawn(orders.watch, daemon=True)
    try:
        function, args, facts = _unpack(program, birth, tracker)
        ctx = _enter(facts, wire, orders)
        try:
            _check_result(function, function(ctx, *args), "call asyncio.run() in a plain function")
        finally:
            ctx.leave()
    except BaseException as error:
        return None if _is_success(error) else error
    return None


def _is_success(error: BaseException) -> bool:
    return issubclass(type(error), SystemExit) and bool(
        _of_otpy("exceptions", "means_success")(error)
    )


def _check_result(function: Callable[..., object], result: object, *instead: str) -> None:
    """Raise if *function* has returned a coroutine or the like: nothing of that has run."""
    if result is not None:
        _of_otpy("arguments", "check_result")(function, result, *instead)


def _unpack(
    program: bytes, birth: bytes, tracker: int
) -> tuple[Callable[..., object], tuple[Any, ...], Facts]:
    """Make this interpreter like that of the program, as multiprocessing does it, and import what is to be run."""
    if tracker >= 0:
        from multiprocessing import resource_tracker

        resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    itself: Any = process.current_process()
    itself._inheriting = (
        True  # or a program without ``if __name__ == "__main__"`` would start itself for ever
    )
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


def _are_deaf() -> bool:
    """Whether threads are green ones that no thread of the system can wake, such as the watch: those of eventlet."""
    return str(_thread.start_new_thread.__module__).startswith("eventlet.")


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
            if not _are_deaf():
                self._pass_on()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def obey(self, ctx: RemoteContext) -> None:
        """From now on tell *ctx*, and tell it what came before."""
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


# How it ended


def _epitaph(error: BaseException) -> bytes:
    """Return the content of an EXIT about *error*; what is too long is cut."""
    facts = here._facts if here is not None else None
    names = [_word(error), _qualified_name(error), _shown(error)]
    texts = [_encoded(name)[:SHORT] for name in names]
    room = (
        (facts.max_message_size if facts is not None else LEAST) - PARTS.size - sum(map(len, texts))
    )
    try:
        packed = _packed(error, facts is not None and facts.allow_pickle)
        message, story = _encoded(_message(error)), _encoded(_traceback(error))
        if len(packed) + len(message) + len(story) > room:
            packed, message = b"", message[: room // 2]
            story = story[max(0, len(story) - room + len(message)) :]  # its end says most
        return _joined(*texts, message, story, packed)
    except BaseException:  # no memory, or a signal handler: the names at least
        return _joined(*texts, b"", b"", b"")


def _joined(*parts: bytes) -> bytes:
    return b"".join((PARTS.pack(*map(len, parts)), *parts))


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _word(error: BaseException) -> str:
    """Return which control exception of otpy it means, or "".

    A child that raises one of these has imported them.
    """
    ours = sys.modules.get("otpy.exceptions")
    meaning = ours.meaning_of(error) if ours is not None else None
    return "" if meaning is None else str(meaning.__name__)


def _packed(error: BaseException, allow_pickle: bool) -> bytes:
    try:
        if allow_pickle:
            return pickle.dumps(error)
        import json

        said = json.dumps(_plain(error, iter(range(MOST)))).encode()
        return said if len(said) <= LARGEST else b""
    except BaseException:  # its pickling may raise anything
        return b""


def _plain(value: Any, budget: Iterator[int]) -> Any:
    """Return *value* as JSON can say it: a list is a word and its parts.

    Raises:
        Exception: It is no plain value, or there are more values in it than *budget*
            has numbers.
    """
    next(budget)
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, BaseException):
        return ["exception", *(_plain(part, budget) for part in _parts_of(value))]
    if (enum := sys.modules.get("enum")) is not None and isinstance(value, enum.Enum):
        return ["enum", kind.__module__, kind.__qualname__, value.name]
    word = f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
    return [word, *(_plain(part, budget) for part in PLAIN[word](value))]


def _moment(value: Any) -> tuple[str]:
    if value.tzinfo is not None and type(value.tzinfo).__name__ != "timezone":
        raise TypeError("a zone with rules of its own")
    return (value.isoformat(),)


PLAIN: dict[str, Callable[[Any], Iterable[Any]]] = {
    # the classes of plain values: what plain.py makes them of again
    "builtins.list": iter,
    "builtins.tuple": iter,
    "builtins.set": iter,
    "builtins.frozenset": iter,
    "builtins.dict": lambda value: [part for item in value.items() for part in item],
    "builtins.bytes": lambda value: (value.decode("latin-1"),),
    "builtins.complex": lambda value: (value.real, value.imag),
    "datetime.datetime": _moment,
    "datetime.time": _moment,
    "datetime.date": lambda value: (value.isoformat(),),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
    "decimal.Decimal": lambda value: (str(value),),
    "uuid.UUID": lambda value: (str(value),),
    "pathlib.PosixPath": lambda value: (str(value),),
    "pathlib.PurePosixPath": lambda value: (str(value),),
}


def _parts_of(error: BaseException) -> tuple[str, str, tuple[Any, ...], dict[str, Any]]:
    """Return module and name of the class of *error*, its arguments and attributes.

    ``__reduce__`` of its class is not asked, only that of the builtin that it extends:
    the near side does not call the class either.
    """
    kind = type(error)
    base: Any = next(one for one in kind.__mro__ if not one.__flags__ & HEAP_TYPE)
    _, args, *state = base.__reduce__(error)
    attributes = dict(state[0] or {}) if state else {}
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(error, name):
                attributes[name] = getattr(error, name)
    return kind.__module__, kind.__qualname__, args, attributes


HEAP_TYPE = 1 << 9
"""The flag of classes that were made by a class statement.

The first one without it, among the bases of an exception, is the builtin it extends.
"""


def _qualified_name(error: BaseException) -> str:
    """Return what ``otpy.exceptions.qualified_name`` does."""
    kind = type(error)
    module = kind.__module__
    return (
        kind.__qualname__
        if module in ("builtins", "__main__", "__mp_main__")
        else f"{module}.{kind.__qualname__}"
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except BaseException:
        return f"{type(error).__name__}()"


def _traceback(error: BaseException) -> str:
    try:
        import traceback

        return "".join(traceback.format_exception(error))
    except BaseException:
        return f"{_shown(error)}: its traceback could not be formatted\n"
