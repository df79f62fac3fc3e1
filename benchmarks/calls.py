"""What a child calls all the time: ``ctx.check_in()`` and ``ctx.running``."""

from __future__ import annotations

import threading
import time
import timeit
from collections.abc import Callable
from time import perf_counter

import otpy

UNROLLED = 20
"""So many calls in a row: the loop around them must not be what is measured."""

CALLS = 10_000
"""So many calls make one sample."""


class Beat:
    """The floor of a check-in."""

    def __init__(self) -> None:
        self.t = 0.0

    def check_in(self) -> None:
        self.t = time.monotonic()


def time_of(statement: str, subject: object) -> float:
    """Return the seconds that *statement*, which is about ``it``, takes."""
    timer = timeit.Timer(
        "; ".join([statement] * UNROLLED), "it = subject", globals={"subject": subject}
    )
    return timer.timeit(CALLS // UNROLLED) / CALLS


def times_of(statement: str, subject: object, samples: int) -> list[float]:
    return [time_of(statement, subject) for _ in range(samples)]


def in_a_child(statement: str) -> Callable[[int], list[float]]:
    """Measure *statement* where it belongs, in a thread of a tree, with its context as ``it``."""

    def run(size: int) -> list[float]:
        times: list[float] = []
        done = threading.Event()

        def child(ctx: otpy.Context) -> None:
            times.extend(times_of(statement, ctx, size))
            done.set()
            ctx.wait_stop()

        with otpy.start(
            otpy.supervisor("app", children=[otpy.thread(child, heartbeat=60.0)]), log=False
        ):
            done.wait()
        return times

    return run


def in_a_thread(statement: str, make: Callable[[], object]) -> Callable[[int], list[float]]:
    """Measure *statement* in a bare thread, with what *make* returns as ``it``."""

    def run(size: int) -> list[float]:
        times: list[float] = []
        child = threading.Thread(
            target=lambda: times.extend(times_of(statement, make(), size)), daemon=True
        )
        child.start()
        child.join()
        return times

    return run


THREADS = 8


class Chorus:
    """THREADS threads that do the same at the same time; a sample is the time per call, all of them together."""

    def __init__(self, statement: str, size: int) -> None:
        self._statement, self._size = statement, size
        self._begin, self._end = threading.Barrier(THREADS + 1), threading.Barrier(THREADS + 1)

    def sing(self, subject: object) -> None:
        """Be one of them."""
        for _ in range(self._size):
            self._begin.wait()
            time_of(self._statement, subject)
            self._end.wait()

    def conduct(self) -> list[float]:
        """Return the samples."""
        return [self._once() for _ in range(self._size)]

    def _once(self) -> float:
        self._begin.wait()
        began = perf_counter()
        self._end.wait()
        return (perf_counter() - began) / (CALLS * THREADS)


def in_children(statement: str) -> Callable[[int], list[float]]:
    def run(size: int) -> list[float]:
        chorus = Chorus(statement, size)

        def child(ctx: otpy.Context) -> None:
            chorus.sing(ctx)
            ctx.wait_stop()

        children = [
            otpy.thread(child, id=f"child-{number}", heartbeat=60.0) for number in range(THREADS)
        ]
        with otpy.start(otpy.supervisor("app", children=children), log=False):
            return chorus.conduct()

    return run


def in_threads(statement: str, make: Callable[[], object]) -> Callable[[int], list[float]]:
    def run(size: int) -> list[float]:
        chorus = Chorus(statement, size)
        children = [
            threading.Thread(target=chorus.sing, args=(make(),), daemon=True)
            for _ in range(THREADS)
        ]
        for child in children:
            child.start()
        samples = chorus.conduct()
        for child in children:
            child.join()
        return samples

    return run
