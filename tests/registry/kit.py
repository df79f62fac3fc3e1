"""What the tests of the registry share."""

from __future__ import annotations

import queue
import threading

from tests.helpers import HANG

SOON = HANG / 2
"""Seconds that no call takes which waits for no wrong thread; less than HANG."""


def names(found):
    return [one.name for one in found]


def by_name(stats):
    """Check the numbers of *stats*; return the joined, timed out and orphaned names."""
    assert (stats.joined, stats.timeout, stats.orphaned) == tuple(
        map(len, (stats.joined_names, stats.timeout_names, stats.orphaned_names))
    )
    assert stats.total == stats.joined + stats.timeout
    assert set(stats.orphaned_names) <= set(stats.timeout_names)
    return stats.joined_names, stats.timeout_names, stats.orphaned_names


def side_by_side(count, function):
    """Call *function* on *count* threads at once; return its results and errors."""
    together, results = threading.Barrier(count), queue.SimpleQueue()

    def call():
        together.wait(HANG)
        try:
            results.put(function())
        except Exception as error:
            results.put(error)

    callers = [threading.Thread(target=call) for _ in range(count)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(HANG)
    return [results.get_nowait() for _ in range(count)]


class Boom(BaseException):
    """Something that user code made up."""


class Odd:
    """An exit code that cannot be compared."""

    def __eq__(self, other):
        raise ValueError("incomparable")

    __hash__ = None

    def __repr__(self):
        return "Odd()"  # no address: test ids are the same in every process of a run


def raiser(error):
    def target():
        raise error

    return target
