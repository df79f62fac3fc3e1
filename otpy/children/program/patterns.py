r"""Finds a regular expression in a line in linear time, whatever the expression is.

The engine of ``re`` tries one way through a pattern after the other, and holds the
interpreter's lock meanwhile: ``^(\w+)+$`` takes it 2**28 steps for a line of 28 characters.
Here all ways are followed at the same time, one character after the other (K. Thompson,
1968), and each step that has been worked out once is remembered.

Laws:
1. A pattern is found where ``re.search`` would find it, in any line; a line has no newline
   in it.
2. A character costs a look into a dict, and at most LONGEST steps, whatever the pattern and
   the line.
3. What is remembered is bounded.
4. A pattern that needs more is refused when it is given: one that looks ahead or behind,
   refers back to a group, never gives back what was taken, or is too long.

Nothing here starts a thread or knows a program. A ``Finder`` belongs to one thread, a
``Compiled`` may be shared.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator

# both are parts of re: a pattern is read here as re reads it
from re import _compiler as compiler  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, NamedTuple

LONGEST = 1000
"""How many steps a pattern may have, where its repeats are written out."""

REMEMBERED = 50_000
"""How many steps are remembered before all are forgotten; 10 MB at most."""

KINDS_OF_TEXT = int(re.ASCII | re.LOCALE | re.UNICODE)
"""The flags that exclude each other."""

REFUSED = {
    parser.ASSERT: "looks ahead or behind",
    parser.ASSERT_NOT: "looks ahead or behind",
    parser.FAILURE: "looks ahead or behind",  # re reads (?!) as this
    parser.GROUPREF: "refers back to a group",
    parser.GROUPREF_EXISTS: "refers back to a group",
    parser.ATOMIC_GROUP: "has an atomic group",
    parser.POSSESSIVE_REPEAT: "has a possessive repeat",
}


class Unsuited(ValueError):
    """Raised when a pattern is right, but cannot be found in linear time."""


class Around(NamedTuple):
    """The character on one side of a place in a line.

    Attributes:
        is_there: False: the line begins or ends here.
        is_word, is_ascii_word: Whether it belongs to a word, and to a word in ASCII.
    """

    is_there: bool
    is_word: bool
    is_ascii_word: bool


NOTHING = Around(is_there=False, is_word=False, is_ascii_word=False)


def _is_boundary(before: Around, after: Around) -> bool:
    return before.is_word != after.is_word


def _is_ascii_boundary(before: Around, after: Around) -> bool:
    return before.is_ascii_word != after.is_ascii_word


PLACES = {
    # where: (in the words of re, is it there, the same for patterns with the flag ASCII)
    parser.AT_BEGINNING: (lambda before, after: not before.is_there,) * 2,
    parser.AT_BEGINNING_STRING: (lambda before, after: not before.is_there,) * 2,
    parser.AT_END: (lambda before, after: not after.is_there,) * 2,
    parser.AT_END_STRING: (lambda before, after: not after.is_there,) * 2,
    parser.AT_BOUNDARY: (_is_boundary, _is_ascii_boundary),
    parser.AT_NON_BOUNDARY: (
        lambda before, after: not _is_boundary(before, after),
        lambda before, after: not _is_ascii_boundary(before, after),
    ),
}


class Step(NamedTuple):
    """One step of a pattern.

    A step without *takes* and *place* goes on to any of *next*. A step without *next* has
    won.

    Attributes:
        next: The numbers of the steps that may come next.
        takes: A pattern for one character, which is used up.
        place: Returns whether this step may be taken here: ``place(before, after)``.
    """

    next: tuple[int, ...]
    takes: re.Pattern[str] | None = None
    place: Any = None


class Compiled:
    """A pattern as steps.

    It is made from its end to its beginning, so that each step knows its next ones.

    Attributes:
        steps: All of them.
        start: The number of the first.
        looks_around: Whether it matters which characters stand around a place, besides
            whether one stands there.
    """

    def __init__(self, pattern: str) -> None:
        read = parser.parse(pattern)
        self.looks_around = False
        self.steps = [Step(())]
        self.start = self._all(read, read.state.flags, 0)

    def _add(self, step: Step) -> int:
        if len(self.steps) == LONGEST:
            text = f"it is too long: more than {LONGEST} steps, where repeats are written out"
            raise Unsuited(text)
        self.steps.append(step)
        return len(self.steps) - 1

    def _all(self, items: Iterable[Any], flags: int, next: int) -> int:
        """Add *items*, and *next* after them; return the number of the first step."""
        for item in reversed(list(items)):
            next = self._one(item, flags, next)
        return next

    def _one(self, item: Any, flags: int, next: int) -> int:
        kind, value = item
        if kind in REFUSED:
            raise Unsuited(f"it {REFUSED[kind]}")
        if kind is parser.SUBPATTERN:
            _, on, off, items = value
            kept = flags & ~KINDS_OF_TEXT if on & KINDS_OF_TEXT else flags
            return self._all(items, (kept | on) & ~off, next)
        if kind is parser.BRANCH:
            return self._add(Step(tuple(self._all(items, flags, next) for items in value[1])))
        # that one of them takes more than the other makes no difference here
        if kind in (parser.MAX_REPEAT, parser.MIN_REPEAT):
            return self._repeat(value, flags, next)
        if kind is parser.AT:
            self.looks_around |= value in (parser.AT_BOUNDARY, parser.AT_NON_BOUNDARY)
            return self._add(Step((next,), place=PLACES[value][bool(flags & re.ASCII)]))
        # a pattern for the one character that it takes: re itself knows best which
        # these are
        items = parser.SubPattern(parser.State(), [item])
        return self._add(Step((next,), takes=compiler.compile(items, flags & ~re.DEBUG)))

    def _repeat(self, value: tuple[Any, Any, Any], flags: int, next: int) -> int:
        (least, most, items), end = value, next
        if most is parser.MAXREPEAT:
            next = self._add(Step(()))
            self.steps[next] = Step((self._all(items, flags, next), end))
        else:
            for _ in range(most - least):
                next = self._add(Step((self._all(items, flags, next), end)))
        for _ in range(least):
            before = next
            next = self._all(items, flags, next)
            if next == before:  # nothing is in it, a million times
                break
        return next


@functools.lru_cache(maxsize=256)
def compiled(pattern: str) -> Compiled:
    """Return *pattern* as steps.

    Raises:
        re.error, OverflowError, RecursionError: It is no regular expression, or not one that
            Python can read.
        Unsuited: It cannot be looked for in linear time.
    """
    re.compile(pattern)
    return Compiled(pattern)


class _Place(dict[str, "_Place"]):
    """A place of a line: the next place by character, made when it is needed."""

    __slots__ = ("_finder", "before", "has_won", "steps")

    def __init__(self, finder: Finder, steps: frozenset[int], before: Around) -> None:
        self._finder, self.steps, self.before = finder, steps, before
        self.has_won = finder.wins(steps, before, NOTHING)

    def __missing__(self, char: str) -> _Place:
        next = self[char] = self._finder.place_after(self, char)
        return next


class _Won(_Place):
    """The place where the pattern has been found, whatever follows."""

    def __missing__(self, char: str) -> _Place:
        return self


class Finder:
    """Looks for a pattern in lines."""

    def __init__(self, pattern: str) -> None:
        self._compiled = compiled(pattern)
        self._places: dict[tuple[frozenset[int], Around], _Place] = {}
        self._remembered = 0
        self._first = _Place(self, frozenset({self._compiled.start}), NOTHING)
        self._won = _Won(self, frozenset({0}), NOTHING)

    def finds_it_in(self, line: str) -> bool:
        """Whether the pattern is in *line*."""
        place = self._first
        for char in line:
            place = place[char]
        return place.has_won

    def place_after(self, place: _Place, char: str) -> _Place:
        """Return the place after *char*."""
        is_word = char.isalnum() or char == "_"
        after = Around(is_there=True, is_word=is_word, is_ascii_word=is_word and char.isascii())
        if self.wins(place.steps, place.before, after):
            return self._won
        taken = {
            next
            for step in self._reached(place.steps, place.before, after)
            if step.takes is not None and step.takes.match(char)
            for next in step.next
        }
        # the pattern may begin anywhere
        steps = frozenset(taken | {self._compiled.start})
        if not self._compiled.looks_around:
            after = after._replace(is_word=False, is_ascii_word=False)
        key = steps, after
        self._remembered += 1
        if (found := self._places.get(key)) is None:
            self._make_room(len(steps))
            found = self._places[key] = _Place(self, *key)
        return found

    def wins(self, steps: frozenset[int], before: Around, after: Around) -> bool:
        """Whether one of *steps* leads to the end of the pattern here."""
        return any(not step.next for step in self._reached(steps, before, after))

    def _reached(self, steps: frozenset[int], before: Around, after: Around) -> Iterator[Step]:
        """Yield the steps that can be taken here, as far as the next character."""
        todo, seen = list(steps), set(steps)
        while todo:
            step = self._compiled.steps[todo.pop()]
            if step.takes is not None or not step.next:
                yield step
            elif step.place is None or step.place(before, after):
                todo += set(step.next) - seen
                seen.update(step.next)

    def _make_room(self, size: int) -> None:
        self._remembered += size
        if self._remembered > REMEMBERED:
            for one in (self._first, *self._places.values()):
                one.clear()
            self._places.clear()
            self._remembered = size
