"""Children that are Python callables, each in a process of its own.

Laws:
1. The supervisor's thread never waits. To start a process takes a while, so that happens on a thread of the child. Then
   this listens to the process until its end: one thread for each process, asleep while that says nothing.
2. The number of a process is used only while it is certainly ours: until it is reaped. Whoever sends a signal and the
   thread that reaps meet at ``_lock``, which is never held for longer than a system call takes.
3. The process leads a session and a group of its own, from before its first
   instruction; signals go to the group. When it has ended, however it did, all that
   descends from it is killed (descendants.py) before anything else happens.
4. A ChildExited says: it is dead and reaped, nothing that it has started runs, and all
   that it has said has been heard. What could not be ended is told as Unstopped, by
   name.
5. Nothing that it says is unpickled when it comes: see wire.py. A process that says
   what it may not is killed.
6. The new interpreter loads no module from the working directory; it has the path of
   this one before it loads anything of the user's.

Theory of operation. ``start`` gets a thread. That lays the wires, packs what is to be
run, spawns an interpreter that runs remote.py, and hands the parcel over through stdin.
An order that comes before the wires are there is kept, and later ones wait in the
socket; only force has to look for the number. Then the thread waits for two things at
once: messages, and the death of the process (pidfd; where there is none, the end of the socket). What is said,
and how, is in remote.py.

When this program dies, however that happens, its end of each socket and each lifeline is closed, and the processes end
by that. So no fork of this program may keep these ends open: see ``_forks``. A fork may
take its time, since hooks of the program run then: the supervisor's thread never waits
for one.

Why not multiprocessing.Process: the process would not have a session of its own before
its first instruction, each start would reap the processes of all others on the way, the
exit of the interpreter would wait for it, or, with ``daemon``, it could have no
processes itself. Its way to make the new interpreter like this one is used all the
same, and so are its pickler and its resource tracker: its queues, locks and shared
memory may be arguments.

The stack of a process that has stalled: nobody can wait for it when the stall is found, so the thread asks for it a
little earlier, and what comes waits in the pipe. A child that holds the interpreter's lock does not answer.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.machinery import PathFinder
from multiprocessing import get_start_method, process, reduction, resource_tracker, spawn, util
from multiprocessing.context import set_spawning_popen
from typing import Any, Protocol, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.arguments import USE_ASYNCIO, check_call, check_function
from otpy.children.callable import far_side as remote
from otpy.children.callable.far_side import BEAT, BEATS, EXIT, LEAST, SIZES, STATE, UP
from otpy.children.callable.wires import Messages, allowed, raised_by
from otpy.children.endings import reason_of
from otpy.children.names import name_of, path_of
from otpy.core.messages import ChildExited, ChildStarted
from otpy.exceptions import (
    Killed,
    ProcessDied,
    RemoteError,
    RemoteTraceback,
    Sealed,
    SpecError,
    is_sealed,
    printable,
    qualified_name,
    show,
    text_of,
    traceback_of,
)
from otpy.reports import CRASHED, KILLED, ExitReason, Unstopped
from otpy.runtime import descendants, posix, spares, threads
from otpy.runtime.descendants import Family, Seen
from otpy.runtime.threads import Role, ThreadState
from otpy.specs import ChildSpec, Common, check_common

CHUNK = 1 << 16
"""How many bytes are read at a time."""

PORTION = 16
"""So many chunks are read in a row; then it is looked whether the process has ended."""

LAST = 256
"""So many chunks are read at most of what has come before the end of the process.

A socket holds less. It may never run dry: something that the process has started holds
its end as well, and goes on sending.
"""

LONGEST = 2.0**31 / 1000 - 1
"""The most seconds that a selector can wait."""

MAX_MESSAGE_SIZE = 64 << 20
"""The most bytes that a message of a child may have, if nothing else is said."""


class CalleeOptions(Common, total=False):
    """The options of a callable; see ``process``."""

    max_message_size: int
    allow_pickle: bool


def describe(
    function: Callable[..., object],
    *args: Any,
    id: str | None = None,
    max_message_size: int = MAX_MESSAGE_SIZE,
    allow_pickle: bool = False,
    **common: Unpack[Common],
) -> ChildSpec:
    """Describe a child that is a Python callable in a process of its own; see ``process``.

    Raises:
        SpecError: A field is wrong, *function* cannot be called with these arguments, or cannot be sent to a process.
    """
    check_common("process(callable)", common)
    name = id if id is not None else name_of(function)
    path = path_of(name, "process")
    check_function(path, "target", function, "a callable", USE_ASYNCIO)
    check_call(path, "target", function, ("ctx", *args), "a callable that takes (ctx, *args)")
    if type(max_message_size) is not int or max_message_size < LEAST:
        raise SpecError(
            path, "max_message_size", max_message_size, f"a number of bytes, an int >= {LEAST}"
        )
    if not isinstance(allow_pickle, bool):
        raise SpecError(path, "allow_pickle", allow_pickle, "True or False")
    start = ProcessStart(function, args, max_message_size, allow_pickle)
    spec = ChildSpec(id=name, start=start, **common)
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
    max_message_size: int = MAX_MESSAGE_SIZE
    allow_pickle: bool = False

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

    As its own ``get_preparation_data`` does, but without the working directory: the
    process inherits that, and it may have been removed. And its main module is run
    again only if something comes from there: that may take long.
    """
    spawn._check_not_importing_main()  # type: ignore[attr-defined]  # or it would start itself for ever
    facts: dict[str, Any] = {
        "name": name,
        "authkey": process.current_process().authkey,
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]
        "sys_path": [entry or process.ORIGINAL_DIR or "" for entry in sys.path],  # type: ignore[attr-defined]
        "sys_argv": sys.argv,
        "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]
    }
    if (
        method := get_start_method(allow_none=True)
    ) is not None:  # to ask for the default one would fix it, here too
        facts["start_method"] = method
    if util._logger is not None:  # type: ignore[attr-defined]
        facts["log_level"] = util._logger.getEffectiveLevel()  # type: ignore[attr-defined]
    if b"__main__" in birth or b"__mp_main__" in birth:
        main = sys.modules["__main__"]
        if (module := getattr(main.__spec__, "name", None)) is not None:
            facts["init_main_from_name"] = module
        elif (file := getattr(main, "__file__", None)) is not None:
            path = os.path.join(facts["orig_dir"] or "", file)  # noqa: PTH118
            facts["init_main_from_path"] = os.path.normpath(path)
    return facts


def _pickled_exit(reason: ExitReason | None) -> bytes | None:
    """Pickle why the incarnation before has ended.

    An exception that does not travel has a stand-in. One that is sealed stays so: it is
    opened there, if it is asked for.
    """
    if reason is None:
        return None
    try:
        return pickle.dumps(ExitReason(reason.kind, reason.raised, reason.detail))
    except Exception:
        raised = reason.raised
        if isinstance(raised, BaseException):
            raised = RemoteError(qualified_name(raised), text_of(raised), traceback_of(raised))
        return pickle.dumps(
            ExitReason(reason.kind, raised, show(reason.detail) if reason.detail else None)
        )


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
    os.register_at_fork(
        before=_forks.acquire, after_in_parent=_forks.release, after_in_child=_let_go
    )


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    read, write = posix.pipe()
    return io.FileIO(read, "rb"), io.FileIO(write, "wb")


class Wires:
    """What connects the two sides. To make one takes nothing: they are laid by ``lay``.

    Attributes:
        near, far: The socket for orders and messages.
        birth, lifeline: A pipe: stdin of the process, and what we write its parcel to and keep open.
        stacks, dump: A pipe: what a process did when it was asked, or died of a signal, and where it writes that.
    """

    near: posix.Socket
    far: posix.Socket
    birth: io.FileIO
    lifeline: io.FileIO
    stacks: io.FileIO
    dump: io.FileIO

    def __init__(self) -> None:
        self._near_ends: set[Closable] = set()
        self._early: bytes | None = b""

    def lay(self) -> None:
        """Lay them; wait while this process is forked, as long as hooks of the program take for that.

        Raises:
            OSError: There are no more descriptors.
        """
        with _forks, contextlib.ExitStack() as ends:
            self.near, self.far = map(ends.enter_context, posix.socket_pair())
            self.birth, self.lifeline = map(ends.enter_context, _pipe())
            self.stacks, self.dump = map(ends.enter_context, _pipe())
            self._near_ends = {self.near, self.lifeline, self.stacks}
            _near_ends.update(self._near_ends)
            ends.pop_all()
        self.near.setblocking(False)
        for end in (self.stacks, self.dump):
            os.set_blocking(end.fileno(), False)

    def hand_over(self, *parts: bytes) -> None:
        """Write the parcel; wait until the process has read it, or has died."""
        posix.block({signal.SIGPIPE})  # this thread's: not every program ignores it
        with contextlib.suppress(BrokenPipeError):
            for part in (SIZES.pack(*map(len, parts)), *parts):
                left = memoryview(part)
                while left:
                    left = left[self.lifeline.write(left) :]

    def carry(self) -> None:
        """Send what was ordered before they were laid. Not at the same time as ``order``."""
        early, self._early = self._early, None
        if early:
            self.order(early)

    def order(self, order: bytes) -> None:
        """Send *order*; it waits in the socket until somebody reads it."""
        if self._early is not None:
            self._early += order
            return
        with contextlib.suppress(OSError):  # it has ended, or it has not read thousands of orders
            self.near.send(order, posix.NO_SIGNAL)

    def last_stacks(self) -> str:
        """Return what the process has written of its stacks."""
        if self._early is not None:
            return ""
        return printable((self.stacks.read(CHUNK) or b"").decode(errors="replace"))

    def let_go(self) -> None:
        """Close the ends that belong to the process."""
        for end in (self.far, self.birth, self.dump):
            end.close()

    def close(self) -> None:
        """Close all of them; with ``_forks``."""
        if self._near_ends:
            self.let_go()
            _near_ends.difference_update(self._near_ends)
            for end in self._near_ends:
                end.close()


# The process

BOOT = (
    "import importlib.util as util, sys\n"
    "from importlib.machinery import PathFinder\n"
    "spec = PathFinder.find_spec('otpy.children.callable.far_side', [{home!r}])\n"
    "remote = sys.modules[spec.name] = util.module_from_spec(spec)\n"
    "spec.loader.exec_module(remote)\n"
    "remote.main({end}, {dump}, {tracker})"
)
"""What the interpreter is told to run: remote.py under its own name, but without the package around it."""


@functools.cache
def _home() -> str:
    """Return the directory of remote.py, perhaps one in a zip file.

    Raises:
        posix.NoPython: It has been loaded from something that another interpreter would
            not find.
    """
    home = os.path.dirname(getattr(remote, "__file__", None) or "")  # noqa: PTH120
    if PathFinder.find_spec(remote.__name__, [home]) is None:
        raise posix.NoPython(
            "otpy is neither in a directory nor in a zip file: no other Python can load it"
        )
    return home


def _python(*args: str) -> list[str]:
    """Return the command that starts an interpreter like this one.

    That imports nothing from its working directory.

    Raises:
        posix.NoPython: There is none.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return posix.python_command(*flags, "-P", *args)


def _tracker() -> int:
    """Return the descriptor of multiprocessing's resource tracker; start it if need be.

    It is this program's: one of a callable would die with it and remove nothing.
    multiprocessing would start it with the working directory in its path. It has no
    number there, as in a process that has inherited it: some versions would wait for
    its end when the interpreter exits, and a callable that does not stop keeps it alive
    till then.

    Raises:
        OSError: The system refuses it.
    """
    tracker: Any = resource_tracker._resource_tracker
    with tracker._lock:
        if tracker._fd is None or not tracker._check_alive():
            read, write = posix.pipe()
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, write)
                with io.FileIO(read):
                    boot = f"from multiprocessing.resource_tracker import main; main({read})"
                    popen = posix.start_process(
                        _python("-c", boot), stdout=None, stderr=None, pass_fds=[read]
                    )
                popen.returncode = 0  # it outlives this process, and nothing waits for it
                undo.pop_all()
            if tracker._fd is not None:
                os.close(tracker._fd)
            tracker._fd, tracker._pid = write, None
        descriptor: int = tracker._fd
    return descriptor


LINGER = 0.5
"""How long an exit waits at most until what was killed has gone, in seconds."""

AGAIN = 0.005
"""How often it looks meanwhile."""

LEFT = ExitReason(KILLED, detail="processes that it had started could not be ended")


@attrs.frozen(eq=False)
class Left:
    """Processes of a callable that could not be ended; a stray of the tree."""

    processes: tuple[Seen, ...]

    @property
    def alive(self) -> bool:
        return any(
            (now := descendants.look(one.pid)) and now.lives and now.started == one.started
            for one in self.processes
        )

    def stack(self) -> str:
        return "".join(f"{descendants.describe(one.pid)}\n" for one in self.processes)


class Body:
    """A process that runs, and leads its group. Its number is used only until it is reaped.

    All but ``kill`` belongs to the thread of the child; ``kill`` and ``bury`` must not be called at the same time.

    Attributes:
        pid: Its number, None before it has been started.
    """

    def __init__(self) -> None:
        self._family = Family(secrets.token_hex(12).encode())
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    def start(self, path: str, wires: Wires, parcel: Parcel) -> None:
        """Start it.

        Raises:
            OSError: The system refuses it, or no Python can be started here.
        """
        tracker = _tracker()
        boot = BOOT.format(
            home=_home(), end=wires.far.fileno(), dump=wires.dump.fileno(), tracker=tracker
        )
        environment = vars(os.environb)[
            "_data"
        ].copy()  # in one step: other threads may change it meanwhile
        environment.pop(
            b"PYTHONINSPECT", None
        )  # the interpreter would not end with the callable, or with 1
        self._family.mark(environment)
        self._popen = posix.start_process(
            _python("-c", boot, path),
            env=environment,
            stdin=wires.birth.fileno(),
            stdout=None,
            stderr=None,
            pass_fds={wires.far.fileno(), wires.dump.fileno(), tracker, *parcel.descriptors},
        )

    def kill(self) -> None:
        """Kill the group."""
        if self.pid is not None:
            posix.signal_group(self.pid, signal.SIGKILL)

    def listen(
        self,
        near: posix.Socket,
        hear: Callable[[int], bool],
        patience: Callable[[], float | None],
        doubt: Callable[[], None],
    ) -> None:
        """Wait for its death, and call *hear* whenever there is something to be heard, until that returns False.

        Call *doubt* when nothing has been heard for *patience* seconds. *hear* takes so
        many chunks that the death is noticed in time, whoever goes on sending.
        """
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(posix.selector())
            selector.register(near, selectors.EVENT_READ)
            death = self._death(stack)
            if death is not None:
                selector.register(death, selectors.EVENT_READ)
            while death not in (signs := [key.fd for key, _ in selector.select(patience())]):
                if not signs:
                    doubt()
                elif not hear(PORTION):
                    selector.unregister(near)
                    if death is None:
                        break
        hear(LAST)  # it is dead: the rest

    def _death(self, stack: contextlib.ExitStack) -> int | None:
        """Return a descriptor that can be read when it is dead; None: the system has none."""
        try:
            death = posix.open_process(self._started.pid)
        except ProcessLookupError:  # it has ended, and something else has reaped it
            return None
        if death is not None:
            stack.callback(os.close, death)
        return death

    def await_exit(self) -> posix.Ended:
        """Wait until it has ended."""
        return posix.await_exit(self._started.pid)

    def end_descendants(self) -> Left | None:
        """Kill all that it has started; return what is left.

        It has ended, and has not been reaped here: its number is its own.
        """
        self._family.leader = self._started.pid
        if posix.is_strange(self._family.leader):
            return None
        self.kill()
        deadline, killed = time.monotonic() + LINGER, set()
        while living := self._family.living():
            if time.monotonic() > deadline:
                return Left(tuple(living))
            for one in living:
                descendants.send(one, signal.SIGKILL)
                killed.add((one.pid, one.started))
            time.sleep(AGAIN)
        if killed or os.getpid() == 1:  # the system may have handed some to this process
            for pid in descendants.adopted(self._family.token, killed):
                posix.reap(pid)
        return None

    def bury(self, ended: posix.Ended) -> int | None:
        """Reap it; return its exit code, None if something else has reaped it.

        The code that was read before counts: something that waits for all children may
        come before this does.
        """
        popen = self._started
        if (
            not ended.is_reaped
            and (reaped := posix.reap(popen.pid)) is not None
            and ended.code is None
        ):
            ended = reaped
        popen.returncode = ended.code or 0  # it need not wait
        return ended.code

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "it was started"
        return self._popen


def _died(code: int | None, stack: str) -> ProcessDied:
    error = ProcessDied(code, posix.signal_name(code), stack)
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
    _messages: Messages = attrs.field(init=False)
    _beat: tuple[float, float] = attrs.field(default=(0.0, 0.0), init=False)
    _is_doubted: bool = attrs.field(default=False, init=False)
    _stacks: str = attrs.field(default="", init=False)
    _saved: object = attrs.field(init=False)
    _epitaph: bytes | None = attrs.field(default=None, init=False)

    # On the supervisor's thread

    def start(self, deliver: Deliver) -> None:
        birth, spec = self.birth, self.birth.spec
        self._deliver, self._saved = deliver, birth.handover.state
        self._messages, self._wires = Messages(self.what.max_message_size), Wires()
        try:
            purpose = spec.purpose or f"runs {spec.id}"
            self._thread = birth.spawn(
                self._main, name=birth.path, purpose=purpose, if_lost=self._is_lost
            )
        except (RuntimeError, MemoryError) as error:  # no more threads
            spares.reserve.spend(error)
            deliver(ChildExited(birth.ref, ExitReason(CRASHED, error)))

    def _is_lost(self) -> None:
        """Its thread has ended without a word: have another one leave nothing behind."""
        lost = RuntimeError("its thread ended without a word")
        name, owner = f"{self.birth.path} (lost)", self.birth.tree
        try:
            threads.spawn(
                lambda: self._end(lost),
                name=name,
                role=Role.HELPER,
                purpose="ends a process",
                owner=owner,
            )
        except (
            RuntimeError,
            MemoryError,
        ):  # the system has no more threads: at least nothing of it runs on
            reason = reason_of(lost, self)
            self.kill(0.0)
            self._close()
            self._deliver(ChildExited(self.birth.ref, reason))

    def stop(self) -> None:
        self._order(remote.ASK)

    def kill(self, grace: float) -> bool:
        with self._lock:
            self._is_killed, self.running = (
                True,
                False,
            )  # in this order: who sees the second asks for the first
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
            if self._body is None or self._body.pid is None or self._wires is None:
                return ""
            self._stacks = self._wires.last_stacks() or self._stacks
            return (
                f"process {self._body.pid}, which runs {show(self.what.function)}\n{self._stacks}"
            )

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # On the child's own thread

    def _main(self) -> None:
        """Live, and say why it ended.

        An exception may come at any of these lines, as in thread.py. Then the end is
        told, perhaps for a second time: that is about a number which is no longer
        current.
        """
        error: BaseException | Sealed | None = None
        try:
            error = self._live()
            self._end(error)
        except (
            BaseException
        ) as late:  # or the system refuses the process, or an argument cannot be pickled any more
            self._end(late if error is None else error)
        finally:
            del error  # its traceback holds this frame: together they would be a cycle

    def _end(self, error: BaseException | Sealed | None) -> None:
        """Leave nothing behind, and tell why it ended."""
        spares.reserve.spend(None if is_sealed(error) else error)  # type: ignore[arg-type]
        if (body := self._body) is not None and body.pid is not None:
            body.kill()
            self._bury(body)
        self._close()
        self.birth.last_exit = None  # or each life would keep the one before alive, for ever
        self._deliver(ChildExited(self.birth.ref, reason_of(error, self)))

    def _live(self) -> BaseException | Sealed | None:
        wires = self._wires
        assert wires is not None, "they were made before this thread was started"
        if not self.running:
            return (
                Killed() if self._is_killed else None
            )  # nobody has to wait for a process that is not wanted any more
        wires.lay()
        with self._lock:
            wires.carry()
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
            "max_message_size": self.what.max_message_size,
            "allow_pickle": self.what.allow_pickle,
            "last_exit": _pickled_exit(birth.last_exit),
            "state": saved.pickled if isinstance(saved, Saved) else None,
        }

    def _embody(self, wires: Wires, parcel: Parcel) -> Body:
        body = self._body = Body()  # first: what is started then is known, whatever is raised here
        body.start(self.birth.path, wires, parcel)
        wires.let_go()
        with self._lock:
            if self._is_killed:
                body.kill()
        return body

    def _bury(self, body: Body) -> int | None:
        ended = body.await_exit()
        if (left := body.end_descendants()) is not None:
            self._tell_left(left)
        with self._lock:
            code = body.bury(ended)
            self._body = None  # not before: if this is interrupted, ``_end`` does it again
        return code

    def _tell_left(self, left: Left) -> None:
        birth = self.birth
        report = Unstopped(
            path=birth.path,
            incarnation=birth.incarnation,
            thread=birth.path,
            reason=LEFT,
            stack=left.stack(),
        )
        birth.tree.telemetry.tell_late(report)  # it may be detached
        birth.tree.left_behind(left, report)

    def _close(self) -> None:
        with (
            _forks,
            self._lock,
        ):  # in this order: the supervisor's thread waits for the second, never for the first
            if self._wires is not None:
                self._wires.close()  # first: if this is interrupted, the next call finds what is left
                self._wires = None

    def _cause_of_death(self, code: int | None, wires: Wires) -> BaseException | Sealed | None:
        """Return what ended it. A signal has the last word, even after the callable has returned."""
        if code == -signal.SIGKILL and self._is_killed:
            return Killed()
        if self._epitaph is not None and (code is None or code >= 0):
            error = raised_by(self._epitaph, self.what.allow_pickle)
            if error is not None or not code:
                return error
        return None if code == 0 else _died(code, wires.last_stacks())

    def _patience(self) -> float | None:
        """Return after how many seconds of silence to ask what it does; None: never."""
        heartbeat, (beat, allowed) = self.birth.spec.heartbeat, self._beat
        if heartbeat is None or not allowed or self._is_doubted:
            return None
        return min(max(0.0, beat + allowed - heartbeat / (2 * BEATS) - self._now()), LONGEST)

    def _doubt(self) -> None:
        self._is_doubted = True
        assert self._wires is not None, "they are closed after its death"
        self._wires.order(remote.LOOK)

    def _trust(self) -> None:
        """Forget what it did when it was late."""
        self._is_doubted = False
        with self._lock:
            assert self._wires is not None, "they are closed after the last message"
            self._wires.last_stacks()
            self._stacks = ""

    def _hear(self, most: int) -> bool:
        """Take the messages that have come, at most so many chunks; False: there will be no more.

        Raises:
            ProtocolError: It says what it may not.
        """
        assert self._wires is not None, "they are closed after the last message"
        for _ in range(most):
            try:
                data = self._wires.near.recv(CHUNK)
            except BlockingIOError:
                return True
            except OSError:  # it has closed its end without having read our orders
                return False
            if not data:
                return False
            for kind, content in self._messages.cut(data):
                if kind == EXIT or not self._is_fenced:
                    HEAR[kind](self, content)
        return True

    def _is_up(self, content: bytes) -> None:
        if self.is_ready:  # it may say so a thousand times, and its supervisor hears it once
            return
        self.is_ready = True
        self._beat = self._now(), self.birth.spec.heartbeat or 0.0
        self._deliver(ChildStarted(self.birth.ref, self.birth.path))

    def _has_checked_in(self, content: bytes) -> None:
        """Note it; later ones may have been kept back, so the next may be late by as much."""
        if self._is_doubted:
            self._trust()
        heartbeat = self.birth.spec.heartbeat or 0.0
        self._beat = self._now(), max(heartbeat, allowed(content)) + heartbeat / BEATS

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
