"""Children that are Python callables, each in a process of its own.

Laws:
1. The supervisor's thread never waits. To start a process takes a while, so that happens on a thread of the child. Then
   this listens to the process until its end: one thread for each process, asleep while that says nothing.
2. The number of a process is used only while it is certainly ours: until it is reaped. Whoever sends a signal and the
   thread that reaps meet at ``_lock``, which is never held for longer than a system call takes.
3. The process leads a session and a group of its own, from before its first instruction; signals go to the group. When
   it has ended, however it did, what is left of the group is killed before anything else happens.
4. A ChildExited says: it is dead and reaped, and all that it has said has been heard.
5. Nothing of the user's is unpickled on the supervisor's thread: what a child saves stays as it came.

Theory of operation. ``start`` lays the wires and gets a thread. An order that comes before the process is there waits
in the socket; only force has to look for the number. The thread packs what is to be run, spawns an interpreter that
runs remote.py, hands the parcel over through stdin, and then waits for two things at once: frames, and the death of the
process (pidfd; where there is none, the end of the socket). What is said, and how, is in remote.py.

When this program dies, however that happens, its end of each socket and each lifeline is closed, and the processes end
by that. So no fork of this program may keep these ends open: see ``_forks``.

Why not multiprocessing.Process: the process would not have a session of its own before its first instruction, each
start would reap the processes of all others on the way, the exit of the interpreter would wait for it, or, with
``daemon``, it could have no processes itself. Its way to make the new interpreter like this one is used all the same,
and so is its pickler: its queues and locks may be arguments.

The stack of a process that has stalled: nobody can wait for it when the stall is found, so the thread asks for it a
little earlier, and what comes waits in the pipe. A child that holds the interpreter's lock does not answer.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from multiprocessing import reduction, resource_tracker, spawn
from multiprocessing.context import set_spawning_popen
from typing import Any, Protocol, Unpack

import attrs

from otpy import threads
from otpy.abc import Birth, Deliver
from otpy.children import remote
from otpy.children.groups import NO_SIGNAL, is_strange, signal_group, signal_name
from otpy.children.remote import ALLOWED, BEAT, BEATS, EXIT, HEAD, SIZES, STATE, UP, WORDS
from otpy.children.thread import check_call, check_function, name_of, path_of, reason_of
from otpy.exceptions import (
    Fatal,
    Ignore,
    Killed,
    ProcessDied,
    RemoteError,
    RemoteTraceback,
    Shutdown,
    SpecError,
    printable,
    show,
)
from otpy.messages import ChildExited, ChildStarted
from otpy.reports import CRASHED, ExitReason
from otpy.specs import ChildSpec, Common, check_common
from otpy.threads import ThreadState

CHUNK = 1 << 16
"""How many bytes are read at a time."""

LONGEST = 2.0**31 - 1
"""The most milliseconds that ``poll`` can wait."""


def describe(function: Callable[..., object], *args: Any, id: str | None = None, **common: Unpack[Common]) -> ChildSpec:
    """Describe a child that is a Python callable in a process of its own; see ``process``.

    Raises:
        SpecError: A field is wrong, *function* cannot be called with these arguments, or cannot be sent to a process.
    """
    check_common("process(callable)", common)
    name = id if id is not None else name_of(function)
    path = path_of(name, "process")
    check_function(path, "target", function, "a callable")
    check_call(path, "target", function, ("ctx", *args), "a callable that takes (ctx, *args)")
    spec = ChildSpec(id=name, start=ProcessStart(function, args), **common)
    _check_pickling(path, "target", function, "a function of a module: a process has to import it")
    for index, arg in enumerate(args):
        _check_pickling(path, f"args[{index}]", arg, "something that can be pickled")
    _check_pickling(path, "snapshot", spec.snapshot, "a function of a module")
    return spec


def _check_pickling(path: str, field: str, value: object, expected: str) -> None:
    try:
        Parcel().pack(value)
    except Exception as error:
        raise SpecError(path, field, value, f"{expected} ({show(error)})") from error


@attrs.frozen
class ProcessStart:
    """Makes a child in a process of its own; the ``start`` of its spec."""

    function: Callable[..., object]
    args: tuple[Any, ...]

    def __call__(self, birth: Birth) -> CalleeChild:
        return CalleeChild(birth, self)


@attrs.frozen
class Saved:
    """What a child has saved, as it came; nobody but its replacement looks into it."""

    pickled: bytes = attrs.field(repr=lambda pickled: f"<{len(pickled)} bytes>")


# What goes to the other side


class Parcel:
    """What is sent to a new process: bytes, and descriptors that it inherits.

    While it packs it stands in for the Popen of multiprocessing: queues and locks ask that to pass on descriptors.
    """

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def pack(self, value: object) -> bytes:
        """Pickle *value*; raises whatever its pickling does."""
        content = io.BytesIO()
        set_spawning_popen(self)  # type: ignore[arg-type]  # it is this thread's
        try:
            reduction.ForkingPickler(content, pickle.HIGHEST_PROTOCOL).dump(value)
        finally:
            set_spawning_popen(None)
        return content.getvalue()

    def duplicate_for_child(self, descriptor: int) -> int:
        """Let the process inherit *descriptor*, under the same number."""
        self.descriptors.append(descriptor)
        return descriptor

    class DupFd:
        """What arrives as a descriptor; the name is multiprocessing's."""

        def __init__(self, descriptor: int) -> None:
            self.descriptor = descriptor

        def detach(self) -> int:
            return self.descriptor


def _program(name: str, birth: bytes) -> dict[str, Any]:
    """Return what multiprocessing wants a new process to know of this program.

    Its main module is run again only if something comes from there: that may take long.
    """
    facts = spawn.get_preparation_data(name)
    if b"__main__" not in birth and b"__mp_main__" not in birth:
        facts.pop("init_main_from_name", None)
        facts.pop("init_main_from_path", None)
    return facts


def _pickled_exit(reason: ExitReason | None) -> bytes | None:
    """Pickle why the incarnation before has ended, with a stand-in for an exception that does not travel."""
    if reason is None:
        return None
    try:
        return pickle.dumps(ExitReason(reason.kind, reason.exception, reason.detail))
    except Exception:
        error = None if reason.exception is None else RemoteError(show(reason.exception))
        return pickle.dumps(ExitReason(reason.kind, error, show(reason.detail) if reason.detail else None))


# What comes from there


class Frames:
    """Cuts what is heard into frames."""

    def __init__(self) -> None:
        self._heard = bytearray()

    def cut(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take *data*, and yield what is complete: kind and content."""
        self._heard += data
        while len(self._heard) >= HEAD.size:
            kind, size = HEAD.unpack_from(self._heard)
            end = HEAD.size + size
            if len(self._heard) < end:
                return
            content = bytes(self._heard[HEAD.size : end])
            del self._heard[:end]
            yield kind, content


STANDS_FOR: dict[str, type[Exception]] = {
    # what a child meant by an exception that does not travel: what takes its place
    **dict(zip(WORDS, (Fatal, Ignore, Shutdown), strict=True)),
    "": RemoteError,
}


def remade(epitaph: bytes) -> BaseException | None:
    """Return what the child has raised, with the traceback that it had there as its cause; None: it returned."""
    said = pickle.loads(epitaph)  # noqa: S301 it comes from our child
    if said is None:
        return None
    word, pickled, text, traceback = said
    error = _unpickled(pickled)
    if error is None:
        error = STANDS_FOR[word](text)
    with contextlib.suppress(Exception):  # an exception may refuse anything
        error.__cause__ = RemoteTraceback(printable(traceback))
    return error


def _unpickled(pickled: bytes | None) -> BaseException | None:
    try:
        error = pickle.loads(pickled) if pickled is not None else None  # noqa: S301 it comes from our child
    except BaseException:
        return None
    return error if isinstance(error, BaseException) else None


# The wires


class Closable(Protocol):
    """An end of a wire."""

    def close(self) -> object:
        """Let go of it."""


_forks = threading.RLock()
"""Held while wires are laid, and while this process is forked: a fork knows all the ends that it must let go of."""

_near_ends: set[Closable] = set()


def _let_go() -> None:
    """In a fork: close what keeps the children of the other process alive."""
    for end in _near_ends:
        end.close()
    _near_ends.clear()
    _forks.release()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_forks.acquire, after_in_parent=_forks.release, after_in_child=_let_go)


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    read, write = os.pipe()
    return io.FileIO(read, "rb"), io.FileIO(write, "wb")


class Wires:
    """What connects the two sides.

    Attributes:
        near, far: The socket for orders and frames.
        birth, lifeline: A pipe: stdin of the process, and what we write its parcel to and keep open.
        stacks, dump: A pipe: what a process did when it was asked, or died of a signal, and where it writes that.
    """

    def __init__(self) -> None:
        with _forks, contextlib.ExitStack() as ends:
            self.near, self.far = map(ends.enter_context, socket.socketpair())
            self.birth, self.lifeline = map(ends.enter_context, _pipe())
            self.stacks, self.dump = map(ends.enter_context, _pipe())
            self._near_ends: set[Closable] = {self.near, self.lifeline, self.stacks}
            _near_ends.update(self._near_ends)
            ends.pop_all()
        for end in (self.near, self.stacks, self.dump):
            os.set_blocking(end.fileno(), False)

    def hand_over(self, *parts: bytes) -> None:
        """Write the parcel; wait until the process has read it, or has died."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})  # this thread's: not every program ignores it
        with contextlib.suppress(BrokenPipeError):
            for part in (SIZES.pack(*map(len, parts)), *parts):
                left = memoryview(part)
                while left:
                    left = left[self.lifeline.write(left) :]

    def order(self, order: bytes) -> None:
        """Send *order*; it waits in the socket until somebody reads it."""
        with contextlib.suppress(OSError):  # it has ended, or it has not read thousands of orders
            self.near.send(order, NO_SIGNAL)

    def last_stacks(self) -> str:
        """Return what the process has written of its stacks."""
        return printable((self.stacks.read(CHUNK) or b"").decode(errors="replace"))

    def let_go(self) -> None:
        """Close the ends that belong to the process."""
        for end in (self.far, self.birth, self.dump):
            end.close()

    def close(self) -> None:
        """Close all of them."""
        self.let_go()
        with _forks:
            _near_ends.difference_update(self._near_ends)
            for end in self._near_ends:
                end.close()


# The process

BOOT = (
    "import importlib.util as util, sys\n"
    "spec = util.spec_from_file_location('otpy.children.remote', {file!r})\n"
    "remote = sys.modules[spec.name] = util.module_from_spec(spec)\n"
    "spec.loader.exec_module(remote)\n"
    "remote.main({end}, {dump}, {tracker})"
)
"""What the interpreter is told to run: remote.py under its own name, but without the package around it."""


class Body:
    """A process that runs, and leads its group. Its number is used only until it is reaped.

    All but ``kill`` belongs to the thread of the child; ``kill`` and ``bury`` must not be called at the same time.
    """

    def __init__(self, path: str, wires: Wires, parcel: Parcel) -> None:
        tracker = getattr(resource_tracker._resource_tracker, "_fd", None)
        inherited = {wires.far.fileno(), wires.dump.fileno(), *parcel.descriptors}
        boot = BOOT.format(
            file=remote.__file__,
            end=wires.far.fileno(),
            dump=wires.dump.fileno(),
            tracker=-1 if tracker is None else tracker,
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self._popen = subprocess.Popen(  # noqa: S603 it is this interpreter
            [spawn.get_executable(), *flags, "-c", boot, path],
            stdin=wires.birth,
            pass_fds=inherited if tracker is None else {*inherited, tracker},
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def kill(self) -> None:
        """Kill the group."""
        signal_group(self.pid, signal.SIGKILL)

    def listen(
        self,
        near: socket.socket,
        hear: Callable[[], bool],
        patience: Callable[[], float | None],
        doubt: Callable[[], None],
    ) -> None:
        """Wait for its death, and call *hear* whenever there is something to be heard, until that returns False.

        Call *doubt* when nothing has been heard for *patience* milliseconds.
        """
        poll = select.poll()
        poll.register(near, select.POLLIN)
        with contextlib.ExitStack() as stack:
            death = self._death(stack)
            if death is not None:
                poll.register(death, select.POLLIN)
            while death not in (signs := [sign for sign, _ in poll.poll(patience())]):
                if not signs:
                    doubt()
                elif not hear():
                    poll.unregister(near)
                    if death is None:
                        break
        hear()  # it is dead: the rest

    def _death(self, stack: contextlib.ExitStack) -> int | None:
        """Return a descriptor that can be read when it is dead; None: the system has none."""
        try:
            death = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return None
        stack.callback(os.close, death)
        return death

    def await_death(self) -> int | None:
        """Wait until it is dead, but do not reap it; return its exit code, None if somebody else has reaped it.

        The code is read here: if somebody who waits for all children comes before ``bury``, subprocess makes it 0.
        """
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return None
        assert found is not None, "only WNOHANG finds nothing"
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def bury(self) -> None:
        """Kill what is left of its group, and reap it."""
        if not is_strange(self.pid):
            self.kill()
        self._popen.wait()


def _died(code: int | None, stack: str) -> ProcessDied:
    error = ProcessDied(code, signal_name(code), stack)
    error.__cause__ = RemoteTraceback(stack) if stack else None
    return error


@attrs.define(eq=False, repr=False)
class CalleeChild:
    """One incarnation: a process, and a thread that starts it, listens to it and buries it. Meets ``Child``.

    Who writes what: ``running``, ``_is_killed`` and ``_is_fenced`` belong to the supervisor's thread; ``is_ready``,
    ``_beat``, ``_is_doubted``, ``_saved``, ``_epitaph`` and ``_body`` to the child's. ``_lock`` guards ``_stacks``, and
    the use of the wires and the body by the supervisor against their end. The race at the beginning is between the one
    who kills and the thread that has just got a body: under the lock, whoever is second sees what the other has done.
    """

    birth: Birth
    what: ProcessStart
    running: bool = attrs.field(default=True, init=False)
    is_ready: bool = attrs.field(default=False, init=False)
    _is_killed: bool = attrs.field(default=False, init=False)
    _is_fenced: bool = attrs.field(default=False, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _wires: Wires | None = attrs.field(default=None, init=False)
    _body: Body | None = attrs.field(default=None, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _deliver: Deliver = attrs.field(init=False)
    _frames: Frames = attrs.field(factory=Frames, init=False)
    _beat: tuple[float, float] = attrs.field(default=(0.0, 0.0), init=False)
    _is_doubted: bool = attrs.field(default=False, init=False)
    _stacks: str = attrs.field(default="", init=False)
    _saved: object = attrs.field(init=False)
    _epitaph: bytes | None = attrs.field(default=None, init=False)

    # On the supervisor's thread

    def start(self, deliver: Deliver) -> None:
        birth, spec = self.birth, self.birth.spec
        self._deliver, self._saved = deliver, birth.handover.state
        try:
            self._wires = Wires()
            self._thread = birth.spawn(self._main, name=birth.path, purpose=spec.purpose or f"runs {spec.id}")
        except (OSError, RuntimeError, MemoryError) as error:  # no more descriptors or threads
            self._close()
            deliver(ChildExited(birth.ref, ExitReason(CRASHED, error)))

    def stop(self) -> None:
        self._order(remote.ASK)

    def kill(self, grace: float) -> bool:
        with self._lock:
            self._is_killed, self.running = True, False  # in this order: who sees the second asks for the first
            if self._body is not None:
                self._body.kill()
        return True

    def abandon(self) -> None:
        self._is_fenced = True
        self._order(remote.FENCE)
        self._mark(ThreadState.UNSTOPPED)

    def detach(self) -> None:
        self._mark(ThreadState.DETACHED)

    def _order(self, order: bytes) -> None:
        self.running = False
        with self._lock:
            if self._wires is not None:
                self._wires.order(order)

    def _mark(self, state: ThreadState) -> None:
        if self._thread is not None:
            threads.mark(self._thread, state, self.stop)

    def pulse(self) -> tuple[float, float]:
        beat, allowed = self._beat
        return beat, beat + allowed

    @property
    def state(self) -> object:
        return self._saved

    def stack(self) -> str:
        """Say which process it is, and what it did when it was late: its stack cannot be seen from here."""
        with self._lock:
            if self._body is None or self._wires is None:
                return ""
            self._stacks = self._wires.last_stacks() or self._stacks
            return f"process {self._body.pid}, which runs {show(self.what.function)}\n{self._stacks}"

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # On the child's own thread

    def _main(self) -> None:
        try:
            error = self._live()
        except BaseException as refused:  # the system refuses the process, or an argument cannot be pickled any more
            error = refused
        self._close()
        self.birth.last_exit = None  # or each life would keep the one before alive, for ever
        self._deliver(ChildExited(self.birth.ref, reason_of(error, self)))
        del error  # its traceback holds this frame: together they would be a cycle

    def _live(self) -> BaseException | None:
        wires = self._wires
        assert wires is not None, "they were laid before this thread was started"
        if not self.running:
            return Killed() if self._is_killed else None  # nobody has to wait for a process that is not wanted any more
        parcel = Parcel()
        birth = parcel.pack((self.what.function, self.what.args, self._facts()))
        program = parcel.pack(_program(self.birth.path, birth))
        body = self._embody(wires, parcel)
        try:
            wires.hand_over(program, birth)
            body.listen(wires.near, self._hear, self._patience, self._doubt)
        except BaseException:
            body.kill()
            raise
        finally:
            code = self._bury(body)
        return self._cause_of_death(code, wires)

    def _facts(self) -> dict[str, Any]:
        """Return what the far side makes its ``Facts`` of."""
        birth, spec = self.birth, self.birth.spec
        saved = self._saved
        return {
            "path": birth.path,
            "incarnation": birth.incarnation,
            "ready": spec.ready,
            "heartbeat": spec.heartbeat,
            "snapshot": None if spec.snapshot is deepcopy else spec.snapshot,
            "last_exit": _pickled_exit(birth.last_exit),
            "state": saved.pickled if isinstance(saved, Saved) else None,
        }

    def _embody(self, wires: Wires, parcel: Parcel) -> Body:
        body = Body(self.birth.path, wires, parcel)
        wires.let_go()
        with self._lock:
            self._body = body
            if self._is_killed:
                body.kill()
        return body

    def _bury(self, body: Body) -> int | None:
        code = body.await_death()
        with self._lock:
            self._body = None
            body.bury()
        return code

    def _close(self) -> None:
        with self._lock:
            wires, self._wires = self._wires, None
        if wires is not None:
            wires.close()

    def _cause_of_death(self, code: int | None, wires: Wires) -> BaseException | None:
        """Return what ended it. A signal has the last word, even after the callable has returned."""
        if code == -signal.SIGKILL and self._is_killed:
            return Killed()
        if self._epitaph is not None and (code is None or code >= 0):
            error = remade(self._epitaph)
            if error is not None or not code:
                return error
        return None if code == 0 else _died(code, wires.last_stacks())

    def _patience(self) -> float | None:
        """Return after how many milliseconds without news it shall be asked what it does; None: not (again)."""
        heartbeat, (beat, allowed) = self.birth.spec.heartbeat, self._beat
        if heartbeat is None or not allowed or self._is_doubted:
            return None
        return min(max(0.0, beat + allowed - heartbeat / (2 * BEATS) - self._now()) * 1000, LONGEST)

    def _doubt(self) -> None:
        self._is_doubted = True
        assert self._wires is not None, "they are closed after its death"
        self._wires.order(remote.LOOK)

    def _trust(self) -> None:
        """Forget what it did when it was late."""
        self._is_doubted = False
        with self._lock:
            assert self._wires is not None, "they are closed after the last frame"
            self._wires.last_stacks()
            self._stacks = ""

    def _hear(self) -> bool:
        """Take all frames that have come; False: there will be no more."""
        assert self._wires is not None, "they are closed after the last frame"
        while True:
            try:
                data = self._wires.near.recv(CHUNK)
            except BlockingIOError:
                return True
            except OSError:  # it has closed its end without having read our orders
                return False
            if not data:
                return False
            for kind, content in self._frames.cut(data):
                if kind == EXIT or not self._is_fenced:
                    HEAR[kind](self, content)

    def _is_up(self, content: bytes) -> None:
        self.is_ready = True
        self._beat = self._now(), self.birth.spec.heartbeat or 0.0
        self._deliver(ChildStarted(self.birth.ref, self.birth.path))

    def _has_checked_in(self, content: bytes) -> None:
        """Note it; later ones may have been kept back, so the next may be late by as much."""
        if self._is_doubted:
            self._trust()
        heartbeat, (allowed,) = self.birth.spec.heartbeat or 0.0, ALLOWED.unpack(content)
        self._beat = self._now(), max(heartbeat, allowed) + heartbeat / BEATS

    def _has_saved(self, content: bytes) -> None:
        self._saved = Saved(content)

    def _has_ended(self, content: bytes) -> None:
        self._epitaph = content

    def _now(self) -> float:
        now: float = self.birth.tree.clock.monotonic()
        return now


HEAR: dict[bytes, Callable[[CalleeChild, bytes], None]] = {
    UP: CalleeChild._is_up,
    BEAT: CalleeChild._has_checked_in,
    STATE: CalleeChild._has_saved,
    EXIT: CalleeChild._has_ended,
}
