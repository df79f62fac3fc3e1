"""Every thread of ours that lives. Nothing else in otpy starts a thread.

The threads that otpy needs for itself are daemon threads, so that one that cannot be stopped does not hold the
interpreter hostage; trees that still run when the interpreter exits are stopped in order by tree.py.

Laws:
1. A start has a limit. ``Thread.start`` waits until the new thread has set ``_started``; where memory is exhausted, the
   thread ends before that line, and the wait would never end.
2. The end of every thread can be known, even if it never ran a line of Python: the object that it was to call is
   released then, and a weak reference to that object, its *witness*, notices.
3. What one thread holds in context variables is not seen by the threads that it starts.

Who owns what: an entry is made by whoever starts the thread, before it starts, and removed by the thread itself as its
last act; ``mark`` is called by the supervisor of the thread, or by the thread itself, and all of ``Spawner`` by the
supervisor. Readers may come from any thread, and take copies. Whether a thread runs is settled once: by itself as its
first act, or by its starter, if the start fails.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import functools
import linecache
import mmap
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import attrs

from otpy.runtime.mailbox import Once, bounded
from otpy.values import running

if sys.version_info < (3, 14) and not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "otpy does not run on free-threaded Python 3.13: it crashes when the stacks of threads are looked at; "
        "use 3.14t, or set PYTHON_GIL=1"
    )


class Role(enum.Enum):
    """What a thread is for.

    A loop runs coroutine children. A handler thread calls the tree's handlers of reports
    and escalations, and the log. A helper runs ``on_stop`` callbacks, and what a kind of
    child needs besides. Programs spawn theirs in a ``ThreadRegistry``.
    """

    CHILD = "child"
    SUPERVISOR = "supervisor"
    LOOP = "loop"
    HELPER = "helper"
    HANDLER = "handler"
    SPARE = "spare"
    SPAWNED = "spawned"


class ThreadState(enum.Enum):
    """What became of a thread: it belongs to something, could not be stopped, or was let go."""

    RUNNING = "running"
    UNSTOPPED = "unstopped"
    DETACHED = "detached"


STARTS_NONE_LATE = (3, 12) <= sys.version_info < (3, 12, 3)
"""Whether no thread can be started once the main thread has ended; other versions allow it until ``atexit``."""


class Reserve:
    """Memory that is kept for the moment in which there is none left.

    It is address space only: its pages are never written, so it costs no memory. It is given back when otpy meets a
    MemoryError, so that the death that it means can be told, and taken again in a calm moment.
    """

    SIZE = 256 * 1024

    def __init__(self) -> None:
        self._held: mmap.mmap | None = None

    def take(self) -> None:
        """Take it, if it is not held and there is as much memory."""
        if self._held is None:
            with contextlib.suppress(OSError, MemoryError):
                self._held = mmap.mmap(-1, self.SIZE)

    def spend(self, error: BaseException | None) -> None:
        """Give it back, if *error* says that there is no memory."""
        if issubclass(type(error), MemoryError):  # unlike isinstance this runs no code of its class
            held, self._held = self._held, None
            if held is not None:
                held.close()


reserve = Reserve()


# How a thread begins and ends

DOUBT = 0.1
"""After so many seconds without an answer look whether the thread that should give it has ended."""

START_LIMIT = 1.0
"""How long to wait for a thread that has a witness to begin, in seconds. If it ends later, the witness tells."""


class Witness(weakref.ref[Any]):
    """A weak reference to what a thread calls first, which nothing but that thread keeps alive.

    Attributes:
        if_lost: What is to be done if the thread has ended in another way than by returning from its target. None as
            long as somebody waits for the begin of the thread, who sees that it has ended.
    """

    __slots__ = ("if_lost",)

    if_lost: Callable[[], object] | None

    def speak(self) -> None:
        """Do what is to be done; nothing if a signal has interrupted the making of it."""
        if (if_lost := getattr(self, "if_lost", None)) is not None:
            if_lost()


class Thread(threading.Thread):
    """A ``threading.Thread`` whose start has a limit, and whose end has a witness.

    Attributes:
        if_lost: What its witness does.
        witness: Made when the thread starts. Dropped when its target has returned: then there is nothing to tell.
    """

    witness: Witness | None = None

    def __init__(
        self,
        target: Callable[[], object],
        name: str,
        daemon: bool,
        if_lost: Callable[[], object] | None,
        tell: Callable[[Witness], object],
    ) -> None:
        if sys.version_info >= (3, 14):
            # free-threaded builds let it inherit the context variables of its starter,
            # and others do with an option
            super().__init__(target=target, name=name, daemon=daemon, context=contextvars.Context())
        else:
            super().__init__(target=target, name=name, daemon=daemon)
        self.if_lost, self._tell = if_lost, tell
        self._started = _Begun(self)

    @property
    def _bootstrap(self) -> Callable[[], None]:
        """What the system's thread calls; asked for once, by ``start``."""
        try:
            first = functools.partial(threading.Thread._bootstrap, self)  # type: ignore[attr-defined]
            self.witness = Witness(first, self._tell)
            self.witness.if_lost = None
            return first  # noqa: TRY300 - a signal handler may raise here as well
        except BaseException:
            self.witness = None  # it will never begin
            raise

    def swear_in(self) -> bool:
        """Have the witness tell from now on; return whether there is something to be told."""
        if self.witness is not None:
            self.witness.if_lost = self.if_lost
        return self.if_lost is not None

    @property
    def is_lost(self) -> bool:
        """Whether it has ended in another way than by returning from its target."""
        witness = self.witness
        return witness is not None and witness() is None

    def forget_start(self) -> None:
        """Drop it from the list of those that are about to start: it never will."""
        getattr(threading, "_limbo", {}).pop(self, None)


class _Begun:
    """Stands in for the ``Event`` that ``Thread.start`` waits for without a limit, until the thread has begun."""

    __slots__ = ("_is_set", "_lock", "_thread")

    def __init__(self, thread: Thread) -> None:
        self._thread = weakref.ref(thread)
        self._is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            thread = self._thread()
            if thread is not None:
                thread.swear_in()
            self._is_set = True
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread has begun, at most START_LIMIT if its witness tells of its end.

        Raises:
            RuntimeError: It has ended before.
        """
        deadline = time.monotonic() + START_LIMIT
        while not self._lock.acquire(timeout=DOUBT):
            thread = self._thread()
            if self._is_set or thread is None:
                break
            if thread.is_lost:
                thread.forget_start()
                raise RuntimeError("can't start new thread: it ended before it could begin")
            if time.monotonic() > deadline and thread.swear_in():
                if thread.is_lost:  # it ended just before that
                    continue
                break
        return self._is_set

    def _at_fork_reinit(self) -> None:
        self._lock = threading.Lock()


@running
class Entry:
    """A living thread of ours, or one that is about to start.

    Attributes:
        target, role, purpose: What it runs, and what for.
        name: The one that was given to it; anybody may change that of the thread.
        owner: The tree or the registry that it belongs to.
        thread: Which.
        spawned_at: When it was started, wall clock.
        since: The same, monotonic.
        state: What became of it.
        ask: How to ask it to stop, where its owner does not do that any more.
        starter: The number of the thread that starts it; 0: that has been done.
        begun: Happens when it runs, or will never run.
        ended: Happens when it has run, or will never run.
        keeps: What must live as long as the thread, also if the interpreter ends before it.
    """

    target: Callable[[], object]
    role: Role
    purpose: str
    owner: object
    name: str
    thread: Thread = attrs.field(init=False)
    spawned_at: float = attrs.field(factory=time.time)
    since: float = attrs.field(factory=time.monotonic)
    state: ThreadState = ThreadState.RUNNING
    ask: Callable[[], object] | None = None
    starter: int = attrs.field(factory=threading.get_ident)
    begun: Once = attrs.field(factory=Once)
    ended: Once = attrs.field(factory=Once)
    keeps: Sequence[object] = ()

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to start."""
        is_coming = not self.begun.has_happened and not self.thread.is_lost
        return is_coming or self.thread.is_alive()  # in this order: it may start between the two

    def join(self, timeout: float) -> None:
        """Wait *timeout* seconds for its end. A thread does not wait for itself.

        ``Thread.join`` comes last: where that is interrupted, CPython before 3.13 takes the thread for dead.
        """
        deadline = time.monotonic() + timeout
        if self.thread is threading.current_thread():
            return
        if (
            not self.begun.wait(timeout) or not self.thread.is_alive()
        ):  # one that has not started cannot be joined
            return
        if self.ended.wait(max(0.0, deadline - time.monotonic())):
            self.thread.join(bounded(deadline - time.monotonic()))

    def run(self) -> None:
        """Be the thread."""
        if not self.settle_start():
            return  # whoever started it was interrupted meanwhile, and has given it up
        try:
            self.target()
            # nothing is left to be told; and what would tell it holds the thread in a cycle
            self.thread.witness = self.thread.if_lost = None
        finally:
            forget(self.thread)
            self.ended.happen()

    def settle_start(self) -> bool:
        """Decide whether it runs; return False if that has been decided already: one only can take it out."""
        if not _undecided.pop(self, False):
            return False
        self.begun.happen()
        return True


_entries: dict[threading.Thread, Entry] = {}
_undecided: dict[Entry, bool] = {}


def spawn(
    target: Callable[[], object],
    *,
    name: str,
    role: Role,
    purpose: str,
    owner: object,
    daemon: bool = True,
    if_lost: Callable[[], object] | None = None,
) -> Thread:
    """Start a thread.

    Args:
        if_lost: Called, on any thread, if it ends in another way than by returning from *target*. It must not raise.

    Raises:
        RuntimeError: The system has no more threads to give, or no memory to begin one, or the interpreter exits.
    """
    try:
        return launch(
            enlist(
                target,
                name=name,
                role=role,
                purpose=purpose,
                owner=owner,
                daemon=daemon,
                if_lost=if_lost,
            )
        )
    except BaseException:
        call_off(owner)
        raise


def enlist(
    target: Callable[[], object],
    *,
    name: str,
    role: Role,
    purpose: str,
    owner: object,
    daemon: bool = True,
    if_lost: Callable[[], object] | None = None,
    tell: Callable[[Witness], object] = Witness.speak,
) -> Entry:
    """Make the entry of a thread that is to be started by ``launch``.

    Args:
        tell: Called with the witness, on any thread, if the thread is lost; it sees to it that ``if_lost`` is called.
    """
    entry = Entry(target, role, purpose, owner, name)
    entry.thread = Thread(entry.run, name, daemon, if_lost, tell)
    _undecided[entry] = True  # first: ``call_off`` looks here
    _entries[entry.thread] = entry
    return entry


def launch(entry: Entry) -> Thread:
    """Start the thread of *entry*.

    What a signal handler raises meanwhile is raised here; the thread then runs, and is in the record, or never will.

    Raises:
        RuntimeError: The system has no more threads to give, or no memory to begin one, or the interpreter exits.
    """
    try:
        entry.thread.start()
    except BaseException:
        withdraw(entry)
        if entry.thread.witness is None:  # Thread.start itself forgets it at an Exception only
            entry.thread.forget_start()
        raise
    entry.starter = 0  # shutdown_all may wait for it from now on, also on this thread
    return entry.thread


def withdraw(entry: Entry) -> None:
    """Take *entry* out of the record, unless its thread runs."""
    if entry.settle_start():
        forget(entry.thread)
        entry.ended.happen()


def call_off(owner: object) -> None:
    """Let no thread of *owner* begin any more that the calling thread was starting.

    For a start that a signal handler has interrupted.
    """
    for entry in list(_undecided):
        if entry.owner is owner and entry.starter == threading.get_ident():
            withdraw(entry)


class Spawner:
    """Starts the threads of one supervisor's children, and keeps a spare: started, parked, and never used before.

    A replacement that gets the spare does not wait until the system has made a thread. Nobody gets a thread that has
    run before: what one child leaves in it (thread-locals, context variables) must not meet the next one.

    All of this is called by the supervisor's thread, and nothing else touches it.

    Attributes:
        is_short: Whether a spare is wanted, and there is none.
    """

    __slots__ = ("_keeps_one", "_name", "_owner", "_spare", "_tell", "is_short")

    def __init__(
        self, owner: object, name: str, tell: Callable[[Witness], object] = Witness.speak
    ) -> None:
        self._owner, self._name, self._tell = owner, name, tell
        self._spare: Spare | None = None
        self._keeps_one = self.is_short = False
        reserve.take()

    def keep_one(self) -> None:
        """Want a spare from the next ``spawn`` on."""
        self._keeps_one = True

    def spawn(
        self,
        target: Callable[[], object],
        *,
        name: str,
        purpose: str,
        if_lost: Callable[[], object] | None = None,
    ) -> Thread:
        """Have *target* run as a child in a thread that has run nothing before.

        Args:
            if_lost: Called on the supervisor's thread if the thread ends in another way than by returning from
                *target*. It must not block or raise.

        Raises:
            RuntimeError: The system has no more threads to give, or no memory to begin one, or the interpreter exits.
        """
        self.is_short = self._keeps_one
        if (spare := self._spare) is not None:
            try:
                thread = spare.become(target, name, purpose, if_lost)
            except BaseException:  # another thread has raised it here
                self.close()
                raise
            self._spare = None  # not before: until then only this knows the spare
            if thread is not None:
                return thread
        return launch(
            enlist(
                target,
                name=name,
                role=Role.CHILD,
                purpose=purpose,
                owner=self._owner,
                if_lost=if_lost,
                tell=self._tell,
            )
        )

    def refill(self) -> None:
        """Make a spare, if the system has one more thread to give."""
        self.is_short = False
        reserve.take()
        try:
            self._spare = Spare(
                self._owner, self._name, self._tell
            )  # before it begins: so ``close`` always finds it
            self._spare.begin()
        except Exception:  # also what an audit hook says: nobody needs a spare
            self.close()

    def close(self) -> None:
        """Send the spare home."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.dismiss()


class Spare:
    """A thread that waits until somebody needs one."""

    __slots__ = ("_entry", "_gate", "_taken", "_target")

    def __init__(self, owner: object, name: str, tell: Callable[[Witness], object]) -> None:
        self._target: Callable[[], object] | None = None
        self._gate, self._taken = threading.Lock(), threading.Lock()
        self._gate.acquire()
        self._taken.acquire()
        name, purpose = f"{name} (spare)", "waits to be a replacement"
        entry = enlist(
            self._wait, name=name, role=Role.SPARE, purpose=purpose, owner=owner, tell=tell
        )
        self._entry: Entry | None = entry

    def begin(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no more threads to give.
        """
        assert self._entry is not None, "it begins before it is used"
        launch(self._entry)

    def become(
        self,
        target: Callable[[], object],
        name: str,
        purpose: str,
        if_lost: Callable[[], object] | None,
    ) -> Thread | None:
        """Let it run *target* as a child; None: it has died while it waited, of what somebody raised in it.

        Waits until it runs: or this thread would go on with the interpreter's lock, and the other one wake up twice.
        """
        thread = self._turn_into_child(target, name, purpose)
        witness = thread.witness
        if witness is not None:
            witness.if_lost = if_lost
        self._gate.release()
        while not self._taken.acquire(timeout=DOUBT):
            if not thread.is_alive() and not self._taken.acquire(blocking=False):  # in this order
                if witness is not None:
                    witness.if_lost = None  # it was no child yet
                forget(thread)
                return None
        return thread

    def _turn_into_child(self, target: Callable[[], object], name: str, purpose: str) -> Thread:
        before, self._target, self._entry = (
            self._entry,
            target,
            None,
        )  # it and the entry would be a cycle
        assert before is not None, "it can become a child once"
        entry = Entry(
            target, Role.CHILD, purpose, before.owner, name
        )  # a new one: readers see the old or this
        entry.thread, entry.begun, entry.ended = before.thread, before.begun, before.ended
        entry.thread.name = name
        if entry.thread in _entries:  # or it has died
            _entries[entry.thread] = entry
        return entry.thread

    def dismiss(self) -> None:
        """Let it end without having run anything, unless it runs as a child already."""
        self._target = self._entry = None
        with contextlib.suppress(RuntimeError):  # it has been let go
            self._gate.release()

    def _wait(self) -> None:
        self._gate.acquire()
        if (target := self._target) is not None:
            self._taken.release()
            target()


def forget(thread: threading.Thread) -> bool:
    """Drop the entry of *thread*; return whether there was one."""
    return _entries.pop(thread, None) is not None


def when_ended(thread: threading.Thread, callback: Callable[[], object]) -> None:
    """Have *callback* called when *thread* has ended, if it is one of ours; it must not block or raise."""
    if (entry := _entries.get(thread)) is not None:
        entry.ended.when(callback, callback)


def mark(
    thread: threading.Thread, state: ThreadState, ask: Callable[[], object] | None = None
) -> None:
    """Note what became of *thread*, if it still lives, and how to ask it to stop."""
    if (entry := _entries.get(thread)) is not None:
        entry.state, entry.ask = state, ask


def entries(owner: object = None) -> list[Entry]:
    """Return the living threads, those of one *owner* or all, in the order of their starts."""
    for entry in list(_entries.values()):
        if not entry.alive or _will_never_start(
            entry
        ):  # it was hit in its last act, or before its first
            forget(entry.thread)
            entry.settle_start()
            entry.ended.happen()
    found = [entry for entry in list(_entries.values()) if owner is None or entry.owner is owner]
    return sorted(
        found, key=lambda entry: entry.since
    )  # a spare has been there for longer than it is a child


def _will_never_start(entry: Entry) -> bool:
    """Whether whoever was to start it was hit between ``enlist`` and ``launch``, and is gone."""
    is_on_its_way = entry not in _undecided or entry.thread.witness is not None
    return not is_on_its_way and all(one.ident != entry.starter for one in threading.enumerate())


def settle(owner: object, roles: Container[Role], timeout: float) -> tuple[str, ...]:
    """Wait until the threads of *owner* in these *roles* have ended; return the names of those that have not.

    Those that could not be stopped or were let go are not waited for.

    Args:
        timeout: Seconds for all together.
    """
    waited_for = [
        one for one in entries(owner) if one.role in roles and one.state is ThreadState.RUNNING
    ]
    return tuple(one.name for one in join_all(waited_for, timeout))


def join_all(waited_for: Sequence[Entry], timeout: float) -> list[Entry]:
    """Wait *timeout* seconds for all together; return those that still live. A thread does not wait for itself."""
    deadline = time.monotonic() + timeout
    for entry in waited_for:
        entry.join(max(0.0, deadline - time.monotonic()))
    return [entry for entry in waited_for if entry.alive]


FRESH = 0.02
"""How many seconds one look at all threads serves at least, see ``_Look``."""

OFTEN = 5
"""It serves as many times longer than it takes the processor. So looks take a sixth of the time."""

Place = tuple[types.CodeType, int]
"""Where a frame is: its code and its line."""


class _Look:
    """What all threads were doing at one moment. It holds no frame and no variable.

    CPython cannot look at one thread, only at all of them. So one look has to serve for
    many: thousands of children that are given up at once would need thousands of looks
    at thousands of threads.

    Attributes:
        until: The monotonic time until which it is fresh.
    """

    def __init__(self) -> None:
        began = time.thread_time()
        self._files: set[str] = set()
        self._stacks = {ident: tuple(self._places(frame)) for ident, frame in frames().items()}
        self._texts: dict[tuple[Place, ...], str] = {}
        # Not the time that passed: a thread that had to wait for a processor has cost nothing, and what it saw then is
        # old. By now a new thread may have the number of one that it saw.
        self.until = time.monotonic() + max(FRESH, OFTEN * (time.thread_time() - began))

    def __contains__(self, ident: int) -> bool:
        return ident in self._stacks

    def text(self, ident: int) -> str:
        """Return the formatted stack of a thread; "" if it did not run."""
        stack = self._stacks.get(ident, ())
        if stack not in self._texts:
            lines = [(code.co_filename, line, code.co_name, None) for code, line in reversed(stack)]
            self._texts[stack] = "".join(traceback.StackSummary.from_list(lines).format())
        return self._texts[stack]

    def _places(self, frame: types.FrameType | None) -> Iterator[Place]:
        while frame is not None:
            if (file := frame.f_code.co_filename) not in self._files:
                self._files.add(file)
                linecache.lazycache(
                    file, frame.f_globals
                )  # these know where the source is, if it is in no file
            yield frame.f_code, frame.f_lineno
            frame = frame.f_back


def frames() -> dict[int, types.FrameType]:
    """Return the innermost frame of each thread by its number; {} where Python does not tell."""
    return getattr(sys, "_current_frames", dict)()


_last_look: _Look | None = None


def stack_of(ident: int | None) -> str:
    """Return what the thread *ident* is doing now, formatted like a traceback; "" if it
    is not running.
    """
    global _last_look  # noqa: PLW0603
    if not ident:
        return ""
    try:
        look = _last_look
        if look is None or time.monotonic() > look.until or ident not in look:
            look = _last_look = _Look()
        return look.text(ident)
    except Exception:
        return ""


forks = 0
"""How often this process has become another one, by a fork.

What calls the user's code again and again looks here after each call: that code may have
forked, and returned in the fork. There the thread must not go on, or a second process
would do the same work."""


def forget_all() -> None:
    """Forget every thread: in a forked process none of them exists, but the one that has forked."""
    global forks  # noqa: PLW0603
    forks += 1
    _entries.clear()
    _undecided.clear()
