"""When ``Killed`` is raised inside a thread: at a moment in which the thread holds nothing that others need.

A thread cannot be killed, only interrupted: CPython can be told to raise an exception inside it. If that happens
between taking a lock and giving it back, the lock stays taken: one of logging, of the imports, of a queue, and the
rest of the program waits for it for ever. So the thread is looked at first, and if the moment is bad, again later.

Laws:
1. At most one ``Killed`` is raised in a thread, only between ``Gate.open`` and ``Gate.close``, and never in a thread
   that has got the number of one that has ended.
2. It is raised where the thread was seen. The look and the order to the interpreter are one step: no other thread
   runs in between (in free-threaded builds it may).
3. It is not raised while the thread is in a function of ``threading``, of an import, or of the locks and queues of
   ``multiprocessing``; nor inside ``with lock`` or ``try … finally lock.release()``, be it in ``logging``, ``queue``
   or in the program; nor in ``__enter__``, ``__exit__``, ``__del__``, or a function that is named after acquiring or
   releasing; nor in a call that may be one of these under another name. It may be raised while a thread waits for a
   condition: ``Condition.wait`` gives the lock away, and
   takes it back whatever is raised.
4. A thread that never comes out of such code is not interrupted.

What a lock is: an object that has ``acquire`` and ``release``. The object of a ``with`` is found where it is
written as a name, or as attributes of a name, and without running code of the program. A lock that a call returns is
not known; its ``with`` releases it.

The thread of the child runs ``Gate.open`` and ``close``; the thread of its supervisor runs everything else. Code is
read on that thread as well, once for each function, and kept.

How the moment is known (CPython). A thread without the interpreter's lock is suspended in one instruction. There it
has given the lock away because the interpreter looks for such requests there, or it waits in a C function. An
exception from outside is raised at the next such look. For an instruction in CHECKED that is the end of this very
instruction.
"""

from __future__ import annotations

import ctypes  # here and not where it is used: an interrupt in the middle of its import would lock all imports
import dis
import functools
import inspect
import itertools
import operator
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import (
    BuiltinMethodType,
    CodeType,
    FrameType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)

import attrs

from otpy.exceptions import Killed
from otpy.runtime.posix import has_real_threads
from otpy.runtime.waiting import Once

WRAPPERS: set[CodeType] = set()
"""The functions of ours that call a child's target; ``self`` is the child there. User code is what they call."""


def can_interrupt() -> bool:
    """Whether this Python can raise an exception in another thread: CPython can.

    PyPy cannot. Of gevent's and eventlet's threads, it knows only the one that all of
    them are.
    """
    return hasattr(ctypes, "pythonapi") and hasattr(sys, "_current_frames") and has_real_threads()


class Gate:
    """Lets at most one ``Killed`` into a thread, and only between ``open`` and ``close``.

    ``close`` may itself be hit by the one that is on its way; so may everything between the user's last line and it.
    Whoever calls it must expect that. Nothing can hit after it. If a lock is left locked by such a hit, nobody minds:
    the only other one to take it is ``interrupt``, which has been there.
    """

    __slots__ = ("_ident", "_is_hit", "_is_shut", "_lock")

    def __init__(self) -> None:
        self._lock = (
            threading.RLock()
        )  # what a stranger's exception leaves locked in ``open`` must not stop ``close``
        self._ident = 0
        self._is_shut = self._is_hit = False

    def open(self) -> None:
        """Let an interrupt in from now on; raise it here if it came too early."""
        with self._lock:
            self._ident = threading.get_ident()
            if self._is_shut:
                raise Killed

    @staticmethod
    def interrupt(gates: Sequence[Gate], send: Callable[[list[int]], set[int]]) -> list[Gate]:
        """Have ``Killed`` raised in the threads behind *gates*, once in each.

        Args:
            send: Raises it in the threads of these numbers, and returns those in which it
                did. For the others this is no good moment.

        Returns:
            The gates for which nothing is left to be done.
        """
        # a child may be just opening or closing its gate: that is no good moment, either
        held = [one for one in gates if not one._is_shut and one._lock.acquire(blocking=False)]
        try:
            still_open = [one for one in held if not one._is_shut]
            hit = send([one._ident for one in still_open if one._ident])
            for one in still_open:
                one._is_hit = one._ident in hit
                one._is_shut = one._is_hit or not one._ident
        finally:
            for one in held:
                one._lock.release()
        return [one for one in gates if one._is_shut]

    def close(self) -> None:
        """Keep interrupts out, and meet the one that has been sent, if it has not arrived yet."""
        with (
            self._lock
        ):  # also when it is shut already: the one who shut it may be just about to send
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
    if not can_interrupt():
        return False
    hits: int = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), ctypes.py_object(exception)
    )
    return hits > 0


SHORTLY = 0.002
"""How long to wait for a better moment, in seconds: in a loop that logs, few moments are good."""

FOR_LONG = 1.0
"""After so many seconds of that, wait twice as long each time: nobody waits for the end of that thread any more."""

SHARE, AT_MOST = 0.1, 0.1
"""The share of its time that a supervisor spends on looking for moments, if a wait of AT_MOST seconds is enough."""


@attrs.define(eq=False, repr=False)
class Wait:
    """How long a thread is looked at already.

    Attributes:
        since: When it was to be interrupted, monotonic.
        at: When to look again.
        pause: How long that was from the look before.
    """

    since: float
    at: float
    pause: float = SHORTLY


@attrs.define(eq=False, repr=False)
class Interrupts:
    """The interrupts of one supervisor's children that wait for their moment. Threads are looked at together."""

    remind: Callable[[float, Callable[[], object]], object]
    soon: Callable[[Callable[[], object]], object]
    _waiting: dict[Gate, Wait] = attrs.field(factory=dict, init=False)
    _will_look: bool = attrs.field(default=False, init=False)

    def add(self, gate: Gate) -> None:
        """Interrupt the thread behind *gate* at the first good moment from now on."""
        now = time.monotonic()
        self._waiting[gate] = Wait(now, now)
        if not self._will_look:
            self._will_look = True
            self.soon(self._look)

    def close(self) -> None:
        """Interrupt nobody any more: the supervisor ends, and has given up who has not ended."""
        self._waiting.clear()

    def _look(self) -> None:
        self._will_look = False
        worked, send = time.thread_time(), functools.partial(_interrupt, sys._current_frames())
        now = time.monotonic()
        due = [gate for gate, wait in self._waiting.items() if wait.at <= now]
        for gate in Gate.interrupt(due, send):
            del self._waiting[gate]
        self._wait(due, time.thread_time() - worked)

    def _wait(self, looked_at: list[Gate], work: float) -> None:
        """Look again when the first of those that are left is due; the look has taken *work* seconds."""
        now = time.monotonic()
        for wait in [self._waiting[gate] for gate in looked_at if gate in self._waiting]:
            is_long = now - wait.since > FOR_LONG
            wait.pause = wait.pause * 2 if is_long else min(max(SHORTLY, work / SHARE), AT_MOST)
            wait.at = now + wait.pause
        if self._waiting and not self._will_look:
            self._will_look = True
            self.remind(min(wait.at for wait in self._waiting.values()) - now, self._look)


# The moment


def _interrupt(innermost: Mapping[int, FrameType], idents: list[int]) -> set[int]:
    """Raise ``Killed`` in those of the threads *idents* that may be interrupted where they are.

    Args:
        innermost: The innermost frames of all threads, as they were a moment ago.
    """
    seen = [
        (one, frame, frame.f_lasti) for one in idents if (frame := innermost.get(one)) is not None
    ]
    return _raise_at([(one, frame, at) for one, frame, at in seen if is_good(frame, at)])


def _raise_at(seen: list[tuple[int, FrameType, int]]) -> set[int]:
    """Raise ``Killed`` in each thread that is still in its frame, at its instruction.

    All of it happens in one call of C code, ``list``. Between two instructions of Python
    this thread may have to give the interpreter's lock away, and the others would go on
    to places that nobody has looked at. And all of them together, with one look: a look
    is at all threads, so thousands of looks at thousands of threads would take long.

    Args:
        seen: The numbers of threads, their innermost frames, and their instructions.
    """
    if not seen:
        return set()
    idents, frames, places = zip(*seen, strict=True)
    looks = itertools.chain.from_iterable(
        map(itertools.repeat, itertools.starmap(sys._current_frames, [()]))
    )
    is_there = map(operator.is_, map(dict.get, looks, idents), frames)
    is_at = map(operator.eq, map(operator.attrgetter("f_lasti"), frames), places)
    chosen, noted = itertools.tee(map(operator.and_, is_there, is_at))
    orders = [(ctypes.c_ulong(one), ctypes.py_object(Killed)) for one in idents]
    raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
    hits = list(itertools.starmap(raise_there, itertools.compress(orders, chosen)))
    return {
        one for one, count in zip(itertools.compress(idents, noted), hits, strict=True) if count > 0
    }


GUARDED = {
    # modules of which no function is interrupted: they make locks, and imports of modules that others wait for
    *(
        "threading",
        "multiprocessing.queues",
        "multiprocessing.synchronize",
        "multiprocessing.resource_tracker",
    ),
    *(
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "_frozen_importlib",
        "_frozen_importlib_external",
    ),
}

WAITS_IN = ("threading", "queue")
"""Modules whose functions can be left through ``Condition.wait``, whoever has called it."""

TAKES = re.compile(r"acquire|release", re.IGNORECASE)
"""Finds in the name of a function that it takes or gives back something."""

BUSY = re.compile(rf"__enter__|__exit__|__del__|{TAKES.pattern}", re.IGNORECASE)
"""The same, or that an exception is lost in it."""

WAITS = re.compile(r"^acquire$")
"""What ``Condition.wait`` calls to wait: then its own lock is free, and what is raised there does no harm."""

BUILTIN = (BuiltinMethodType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType)
"""The types of functions in C. One in Python is known by its own frame."""

CONDITION_WAIT, ONCE_WAIT, THREAD_RUN = (
    threading.Condition.wait.__code__,
    Once.wait.__code__,
    threading.Thread.run.__code__,
)


def is_good(innermost: FrameType, at: int) -> bool:
    """Whether a thread may be interrupted that is in the frame *innermost*, at the instruction *at*."""
    try:
        return _is_good(innermost, at)
    except Exception:  # code that is made by hand, and that nobody can read
        return False


def _is_good(innermost: FrameType, at: int) -> bool:
    code, waited_for = innermost.f_code, None
    if not _read(code).is_checked(at):
        return False
    frame: FrameType | None = innermost
    if code is CONDITION_WAIT:
        if not _read(code).calls(at, WAITS):
            return False
        waited_for = innermost.f_locals["self"]
        while frame is not None and _module(frame) in WAITS_IN:
            frame = frame.f_back
    elif code is not ONCE_WAIT and (
        _read(code).calls(at, TAKES) or _read(code).enters(at) or _takes(innermost, at)
    ):
        return False  # a lock was just taken, and it is not known who gives it back
    elif _read(code).is_entry(at) and not BUSY.search(code.co_name):
        frame = innermost.f_back  # the innermost function has not done anything yet
    while frame is not None and frame.f_code not in WRAPPERS:
        if _holds(frame, waited_for):
            return False
        frame = frame.f_back
    return frame is not None


def _takes(frame: FrameType, at: int) -> bool:
    """Whether the call at the instruction *at* may take or give back something, though its words do not say so.

    The method of a lock may have another name there: a variable, an attribute, a part of a ``partial``. What is called
    may also be an item, or what another call has returned; then nobody knows.
    """
    code = _read(frame.f_code)
    return code.is_call(at) and (
        code.is_blind(at) or any(_is_taker(_found(frame, path)) for path in code.loads(at))
    )


def _is_taker(value: object) -> bool:
    if type(value) is functools.partial:
        return _is_taker(value.func)
    return type(value) in BUILTIN and bool(BUSY.search(value.__name__))  # type: ignore[attr-defined]


def _holds(frame: FrameType, waited_for: object) -> bool:
    """Whether in *frame* something is held that is to be given back."""
    code = frame.f_code
    if BUSY.search(code.co_name) or (_module(frame) in GUARDED and code is not THREAD_RUN):
        return True
    if not code.co_exceptiontable:
        return False
    free = (waited_for, _lock_of(waited_for))
    for path in _read(code).protected_by(frame.f_lasti):
        lock = _found(frame, path)
        if path == RELEASES or (_is_lock(lock) and not any(lock is one for one in free)):
            return True
    return False


def _module(frame: FrameType) -> object:
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else None


def _is_lock(value: object) -> bool:
    return all(_attribute(value, name) is not None for name in ("acquire", "release"))


def _lock_of(condition: object) -> object:
    """Return the lock of a ``Condition``, which is free while it is waited for; None: this is no condition."""
    return vars(condition)["_lock"] if type(condition) is threading.Condition else None


def _found(frame: FrameType, path: tuple[str, ...]) -> object:
    """Return what *path* means in *frame*: how a name is loaded, the name, its attributes; None: it is not known."""
    if path == RELEASES:
        return None
    how, name, *attributes = path
    value = dict.get(frame.f_globals, name) if how == "LOAD_GLOBAL" else frame.f_locals.get(name)
    for attribute in attributes:
        value = _attribute(value, attribute)
    return value


def _attribute(value: object, name: str) -> object:
    try:
        found = inspect.getattr_static(value, name)
        return found.__get__(value) if type(found) is MemberDescriptorType else found
    except Exception:  # there is none now
        return None


# Reading code


CALLS = ("CALL", "PRECALL", "CALL_KW", "CALL_FUNCTION_EX")

CHECKED = ("RESUME", *CALLS, "JUMP_BACKWARD")
"""Instructions at whose end the interpreter looks whether an exception is to be raised."""

ENTERS = (
    "BEFORE_WITH",
    "LOAD_SPECIAL",
    "COPY",
    "SWAP",
    "CALL",
    "PUSH_NULL",
    "CACHE",
    "EXTENDED_ARG",
)
"""Instructions between the expression of a ``with`` and its block."""


class Code:
    """What must be known of a function: its calls, and which parts of it are protected by what.

    Positions in it are offsets of instructions, in bytes.
    """

    def __init__(self, code: CodeType) -> None:
        self._instructions = list(dis.get_instructions(code))
        self._index = {one.offset: index for index, one in enumerate(self._instructions)}
        self._handlers = list(_handlers(code.co_exceptiontable))
        begins: dict[int, int] = {}
        for start, _, handler in self._handlers:
            begins.setdefault(handler, start)
        self._gives_back = {
            handler: list(self._guards(start, handler)) for handler, start in begins.items()
        }

    def is_checked(self, at: int) -> bool:
        """Whether an exception that is to be raised in the instruction *at* is raised at its end."""
        name = self._instructions[self._index[at]].opname if at in self._index else ""
        return name in CHECKED or name.startswith("POP_JUMP_BACKWARD")

    def is_entry(self, at: int) -> bool:
        """Whether the instruction *at* is the first one of a call."""
        one = self._instructions[self._index[at]]
        return one.opname == "RESUME" and (one.arg or 0) & 3 == 0  # else it goes on after a yield

    def enters(self, at: int) -> bool:
        """Whether the instruction *at* calls ``__enter__`` for a ``with``.

        Since Python 3.14 that is a call like others: what is raised at its end finds the lock taken, and the ``with``
        not begun.
        """
        index = self._index[at]
        return index > 0 and self._instructions[index - 1].opname == "LOAD_SPECIAL"

    def calls(self, at: int, names: re.Pattern[str]) -> bool:
        """Whether the instruction *at* calls a function of one of these *names*, or is part of such a call."""
        return any(_loads(self._instructions[index], names) for index in self._parts(at))

    def is_call(self, at: int) -> bool:
        """Whether the instruction *at* is a call."""
        return self._instructions[self._index[at]].opname in CALLS

    def is_blind(self, at: int) -> bool:
        """Whether the instruction *at* calls something that has no name: an item, or what another call returns."""
        call = self._instructions[self._index[at]].positions
        called = next(
            (index for index in self._parts(at)[1:] if _is_called(self._instructions[index], call)),
            None,
        )
        return called is not None and self._instructions[called].opname in NAMELESS

    def loads(self, at: int) -> Iterator[tuple[str, ...]]:
        """Yield the paths of all that the call at the instruction *at* loads by names."""
        for index in self._parts(at):
            if self._instructions[index].opname.startswith("LOAD_"):
                yield from self._path_before(index, ())

    def _parts(self, at: int) -> list[int]:
        """Return the indices of the instructions of the call at *at*, from the last one to the first."""
        last = self._index[at]
        call = self._instructions[last].positions
        parts = itertools.takewhile(
            lambda index: _is_within(self._instructions[index].positions, call), range(last, -1, -1)
        )
        return list(parts)

    def protected_by(self, at: int) -> Iterator[tuple[str, ...]]:
        """Yield what is given back, whatever happens, if the instruction *at* raises."""
        place: int | None = at
        seen: set[int] = set()
        while (
            place is not None and place not in seen
        ):  # a handler is protected by the one around it
            seen.add(place)
            place = next(
                (handler for start, end, handler in self._handlers if start <= place < end), None
            )
            yield from self._gives_back.get(-1 if place is None else place, ())

    def _guards(self, start: int, handler: int) -> Iterator[tuple[str, ...]]:
        """Yield what a *handler* gives back of what begins at *start*: the object of a ``with``, what it releases."""
        for index in range(self._index[handler], len(self._instructions)):
            one = self._instructions[index]
            if one.opname == "WITH_EXCEPT_START":
                yield from self._path_before(self._index[start] - 1, ENTERS)
            elif _loads(one, TAKES):
                is_plain = one.opname in ("LOAD_ATTR", "LOAD_METHOD") and one.argval == "release"
                yield from self._path_before(index - 1, ()) if is_plain else [RELEASES]
            if one.opname in ("RERAISE", "WITH_EXCEPT_START", "POP_EXCEPT"):
                return

    def _path_before(self, index: int, skipped: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """Yield the name and the attributes that have been loaded before *index*, if it is nothing else."""
        attributes: list[str] = []
        while index >= 0:
            one = self._instructions[index]
            if one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes.insert(0, one.argval)
            elif one.opname.startswith(("LOAD_FAST", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")):
                name = (
                    one.argval[-1] if isinstance(one.argval, tuple) else one.argval
                )  # two of them in one instruction
                yield one.opname, name, *attributes
                return
            elif one.opname not in skipped or attributes:
                return
            index -= 1


NAMELESS = ("BINARY_SUBSCR", "BINARY_OP", *CALLS)
"""Instructions that yield something without a name. Subscriptions are BINARY_OP since Python 3.14."""

PADDING = ("PUSH_NULL", "CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "KW_NAMES")
"""Instructions that yield nothing."""

RELEASES = ("release",)
"""The path of what a function gives back whose name says that it releases something."""


def _loads(instruction: dis.Instruction, names: re.Pattern[str]) -> bool:
    """Whether it loads a function or a method of one of these *names*."""
    return (
        instruction.opname.startswith(
            ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")
        )
        and type(instruction.argval) is str
        and bool(names.search(instruction.argval))
    )


_read = functools.lru_cache(maxsize=1024)(Code)


def _is_called(one: dis.Instruction, call: dis.Positions | None) -> bool:
    """Whether *one* yields what is called: it begins where the *call* does, and comes before the arguments."""
    inner = one.positions
    if inner is None or call is None or None in inner or None in call:
        return False
    return (
        one.opname not in PADDING
        and (inner[0], inner[2]) == (call[0], call[2])
        and inner[:] != call[:]
    )


def _is_within(inner: dis.Positions | None, outer: dis.Positions | None) -> bool:
    if inner is None or outer is None:
        return False
    if (
        None in inner or None in outer
    ):  # Python was told to keep lines only: take what is on this line
        return inner[0] == outer[0]
    return (outer[0], outer[2]) <= (inner[0], inner[2]) and (inner[1], inner[3]) <= (
        outer[1],
        outer[3],
    )


def _handlers(table: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, handler) of each entry in the exception table of a function."""
    numbers = _numbers(iter(table))
    for start, length, handler, _ in zip(numbers, numbers, numbers, numbers, strict=False):
        yield 2 * start, 2 * (start + length), 2 * handler


def _numbers(table: Iterator[int]) -> Iterator[int]:
    """Decode the numbers of an exception table: six bits in each byte, the highest ones first."""
    for byte in table:
        number = byte & 63
        while byte & 64:
            byte = next(table)  # noqa: PLW2901
            number = number << 6 | byte & 63
        yield number
