"""At which moments a thread may be interrupted: it holds nothing that others need.

Laws:
1. A thread is not interrupted while it is in a function of ``threading``, of an import,
   or of the locks and queues of ``multiprocessing``.
2. Nor inside ``with lock`` or ``try … finally lock.release()``, be it in ``logging``,
   ``queue`` or in the parent process's own code.
3. Nor in ``__enter__``, ``__exit__``, ``__del__``, or a function that is named after
   acquiring or releasing; nor in a call that may be one of these under another name.
4. It may be interrupted while it waits for a condition: ``Condition.wait`` gives the lock
   away, and takes it back whatever is raised.
5. Nothing here runs code of the user.

A lock is an object that has ``acquire`` and ``release``. The object of a ``with`` is
found where it is written as a name, or as attributes of a name. A lock that a call
returns is not known; its ``with`` releases it.

The thread of a supervisor calls all of this. The moment is known in CPython only: a
thread that does not hold the GIL is suspended in one instruction. There it has given the
GIL away because the interpreter looks for such requests there, or it waits in a C
function. An exception from outside is raised at the next such look. For an instruction
in ``bytecode.CHECKED`` that is the end of this very instruction.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
from types import (
    BuiltinMethodType,
    CodeType,
    FrameType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodWrapperType,
    WrapperDescriptorType,
)

from otpy.children.bytecode import RELEASES, TAKES, read
from otpy.runtime.waiting import Once

WRAPPERS: set[CodeType] = set()
"""The methods that call a child's target; ``self`` is the child there.

Everything that they call, directly or not, is code of the user."""

GUARDED = {
    # modules that make locks, or imports that other threads wait for
    "threading",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "multiprocessing.resource_tracker",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "_frozen_importlib",
    "_frozen_importlib_external",
}
"""Modules of which no function is interrupted."""

WAITS_IN = ("threading", "queue")
"""Modules whose functions can be left through ``Condition.wait``, whatever has called
it.
"""

BUSY = re.compile(rf"__enter__|__exit__|__del__|{TAKES.pattern}", re.IGNORECASE)
"""Finds in the name of a function that it takes something, or loses an exception."""

WAITS = re.compile(r"^acquire$")
"""What ``Condition.wait`` calls to wait.

Its own lock is free then, and an exception that is raised there does no harm."""

BUILTIN = (BuiltinMethodType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType)
"""The types of functions in C. One in Python is known by its own frame."""

CONDITION_WAIT, ONCE_WAIT, THREAD_RUN = (
    threading.Condition.wait.__code__,
    Once.wait.__code__,
    threading.Thread.run.__code__,
)


def is_good(innermost: FrameType, at: int) -> bool:
    """Whether a thread may be interrupted now.

    Args:
        innermost: The innermost frame of the thread.
        at: The instruction in which that frame is.
    """
    try:
        return _is_good(innermost, at)
    except Exception:  # code that was made by hand, and cannot be read
        return False


def _is_good(innermost: FrameType, at: int) -> bool:
    code, waited_for = innermost.f_code, None
    if not read(code).is_checked(at):
        return False
    frame: FrameType | None = innermost
    if code is CONDITION_WAIT:
        if not read(code).calls(at, WAITS):
            return False
        waited_for = innermost.f_locals["self"]
        while frame is not None and _module(frame) in WAITS_IN:
            frame = frame.f_back
    elif code is not ONCE_WAIT and (
        read(code).calls(at, TAKES) or read(code).enters(at) or _takes(innermost, at)
    ):
        return False  # a lock was just taken, and it is not known which function gives it back
    elif read(code).is_entry(at) and not BUSY.search(code.co_name):
        frame = innermost.f_back  # the innermost function has not done anything yet
    while frame is not None and frame.f_code not in WRAPPERS:
        if _holds(frame, waited_for):
            return False
        frame = frame.f_back
    return frame is not None


def _takes(frame: FrameType, at: int) -> bool:
    """Whether the call at *at* may take or give back something under another name.

    The method of a lock may be called by a variable, an attribute or a ``partial``. An
    item, or the result of another call, may be such a method: that cannot be known.
    """
    code = read(frame.f_code)
    return code.is_call(at) and (
        code.is_blind(at) or any(_is_taker(_found(frame, path)) for path in code.loads(at))
    )


def _is_taker(value: object) -> bool:
    if type(value) is functools.partial:
        return _is_taker(value.func)
    return type(value) in BUILTIN and bool(BUSY.search(value.__name__))  # type: ignore[attr-defined]


def _holds(frame: FrameType, waited_for: object) -> bool:
    """Whether something is held in *frame* that has to be given back."""
    code = frame.f_code
    if BUSY.search(code.co_name) or (_module(frame) in GUARDED and code is not THREAD_RUN):
        return True
    if not code.co_exceptiontable:
        return False
    # The lock of a condition is free while the condition is waited for.
    is_condition = type(waited_for) is threading.Condition
    free = (waited_for, vars(waited_for)["_lock"] if is_condition else None)
    for path in read(code).protected_by(frame.f_lasti):
        lock = _found(frame, path)
        if path == RELEASES or (_is_lock(lock) and not any(lock is one for one in free)):
            return True
    return False


def _module(frame: FrameType) -> object:
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else None


def _is_lock(value: object) -> bool:
    return all(_attribute(value, name) is not None for name in ("acquire", "release"))


def _found(frame: FrameType, path: tuple[str, ...]) -> object:
    """Return the object of *path* in *frame*; None: it is not known.

    Args:
        frame: Where the path is loaded.
        path: How a name is loaded, the name, its attributes.
    """
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
    except Exception:  # the object has no such attribute now
        return None
