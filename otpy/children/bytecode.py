"""What must be read in the code of a function to know when it may be interrupted.

A ``Code`` reads one function: its calls, and which parts of it are protected by what.
Positions are offsets of instructions, in bytes. Nothing here runs code of the function.

Laws:
1. A function is read once, and kept.
2. An object is found if it is written as a name, or as attributes of a name. What a call
   returns, and an item, have no name: the answer is then that nothing is known.

The thread of a supervisor reads; it knows nothing of threads or locks here.
"""

from __future__ import annotations

import dis
import functools
import itertools
import re
from collections.abc import Iterator
from types import CodeType

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

NAMELESS = ("BINARY_SUBSCR", "BINARY_OP", *CALLS)
"""Instructions that yield an object without a name.

Subscriptions are BINARY_OP since Python 3.14."""

PADDING = ("PUSH_NULL", "CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "KW_NAMES")
"""Instructions that yield nothing."""

LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")
"""Instructions by which a function gets at another one."""

TAKES = re.compile(r"acquire|release", re.IGNORECASE)
"""Finds in the name of a function that it takes or gives back something."""

RELEASES = ("release",)
"""The path of an object that is not known, given back by a function with such a name."""


class Code:
    """The calls of a function, and what its handlers give back."""

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
        """Whether an exception from outside is raised at the end of the instruction
        *at*.
        """
        name = self._instructions[self._index[at]].opname if at in self._index else ""
        return name in CHECKED or name.startswith("POP_JUMP_BACKWARD")

    def is_entry(self, at: int) -> bool:
        """Whether the instruction *at* is the first one of a call."""
        one = self._instructions[self._index[at]]
        return one.opname == "RESUME" and (one.arg or 0) & 3 == 0  # else it goes on after a yield

    def enters(self, at: int) -> bool:
        """Whether the instruction *at* calls ``__enter__`` for a ``with``.

        Since Python 3.14 that is a call like others: an exception that is raised at its
        end finds the lock taken, and the ``with`` not begun.
        """
        index = self._index[at]
        return index > 0 and self._instructions[index - 1].opname == "LOAD_SPECIAL"

    def calls(self, at: int, names: re.Pattern[str]) -> bool:
        """Whether the instruction *at* is part of a call of a function with such a
        name.
        """
        return any(_loads(self._instructions[index], names) for index in self._parts(at))

    def is_call(self, at: int) -> bool:
        """Whether the instruction *at* is a call."""
        return self._instructions[self._index[at]].opname in CALLS

    def is_blind(self, at: int) -> bool:
        """Whether the call at *at* calls an item, or what another call has returned."""
        call = self._instructions[self._index[at]].positions
        called = next(
            (index for index in self._parts(at)[1:] if _is_called(self._instructions[index], call)),
            None,
        )
        return called is not None and self._instructions[called].opname in NAMELESS

    def loads(self, at: int) -> Iterator[tuple[str, ...]]:
        """Yield the paths of all objects that the call at *at* loads by names."""
        for index in self._parts(at):
            if self._instructions[index].opname.startswith("LOAD_"):
                yield from self._path_before(index, ())

    def protected_by(self, at: int) -> Iterator[tuple[str, ...]]:
        """Yield the paths of what is given back if the instruction *at* raises."""
        place: int | None = at
        seen: set[int] = set()
        while place is not None and place not in seen:
            seen.add(place)
            # a handler is protected by the one around it
            place = next(
                (handler for start, end, handler in self._handlers if start <= place < end), None
            )
            yield from self._gives_back.get(-1 if place is None else place, ())

    def _parts(self, at: int) -> list[int]:
        """Return the indices of the instructions of the call at *at*, the last one
        first.
        """
        last = self._index[at]
        call = self._instructions[last].positions
        parts = itertools.takewhile(
            lambda index: _is_within(self._instructions[index].positions, call), range(last, -1, -1)
        )
        return list(parts)

    def _guards(self, start: int, handler: int) -> Iterator[tuple[str, ...]]:
        """Yield the paths of what *handler* gives back.

        That is the object of the ``with`` that begins at *start*, and what the handler
        releases.
        """
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
        """Yield the path that is loaded at *index* or before: how, the name, its attributes.

        Yields nothing if the instructions there do anything else.

        Args:
            index: Where to begin; from there backwards.
            skipped: Instructions that may follow the path.
        """
        attributes: list[str] = []
        while index >= 0:
            one = self._instructions[index]
            if one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes.insert(0, one.argval)
            elif one.opname.startswith(("LOAD_FAST", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")):
                # one instruction may load two names; the second one is on top
                name = one.argval[-1] if isinstance(one.argval, tuple) else one.argval
                yield one.opname, name, *attributes
                return
            elif one.opname not in skipped or attributes:
                return
            index -= 1


read = functools.lru_cache(maxsize=1024)(Code)
"""Return the Code of a function."""


def _loads(instruction: dis.Instruction, names: re.Pattern[str]) -> bool:
    """Whether it loads a function or a method of one of these *names*."""
    return (
        instruction.opname.startswith(LOADS)
        and type(instruction.argval) is str
        and bool(names.search(instruction.argval))
    )


def _is_called(one: dis.Instruction, call: dis.Positions | None) -> bool:
    """Whether *one* yields what is called: it begins where the *call* does, and ends
    before.
    """
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
    # Python may have been told to keep lines only: then all that is on this line counts
    if None in inner or None in outer:
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
    """Decode the numbers of an exception table: six bits in a byte, the highest first."""
    for byte in table:
        number = byte & 63
        while byte & 64:
            byte = next(table)  # noqa: PLW2901
            number = number << 6 | byte & 63
        yield number
