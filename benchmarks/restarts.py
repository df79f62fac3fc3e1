"""Restarts: how long a replacement takes, how many a second, and what happens when all crash at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter

import otpy
from benchmarks import bare

UNLIMITED = 10**9
"""An intensity that no benchmark reaches."""

LIFE = 0.003
"""How long a child lives before it crashes, where it matters: long enough to let the restart before it come to rest."""


class Lives:
    """A child's body: *count* + 1 lives, each of which notes on its first line how long ago the one before crashed."""

    def __init__(self, count: int, life: float) -> None:
        self.samples: list[float] = []
        self.over = threading.Event()
        self._count, self._life = count, life
        self._crashed_at: float | None = None

    def __call__(self) -> None:
        born = perf_counter()  # the first line
        if self._crashed_at is not None:
            self.samples.append(born - self._crashed_at)
        if len(self.samples) == self._count:
            self.over.set()
            return
        time.sleep(self._life)
        self._crashed_at = perf_counter()
        raise RuntimeError


def latency_of_otpy(size: int) -> list[float]:
    lives = Lives(size, LIFE)
    with _supervised(lives):
        lives.over.wait()
    return lives.samples


def latency_of_floor(size: int) -> list[float]:
    lives = Lives(size, LIFE)
    _keep_alive(lives, size)
    lives.over.wait()
    return lives.samples


def _supervised(body: Callable[[], object]) -> otpy.Supervisor:
    """Start a tree with one child."""
    child = otpy.thread(lambda _: body(), id="child", restart="transient")
    return otpy.start(
        otpy.supervisor("app", children=[child], intensity=UNLIMITED, period=1.0), log=False
    )


def _keep_alive(body: Callable[[], object], crashes: int) -> None:
    """Run *body*, and start it again for each of so many crashes."""
    queue: SimpleQueue[BaseException] = SimpleQueue()
    threading.Thread(target=bare.live, args=(body, queue), daemon=True).start()
    keeper = threading.Thread(target=bare.keep_alive, args=(body, queue, crashes), daemon=True)
    keeper.start()
    keeper.join()


CHUNK = 50
"""So many crashes of a loop make one sample: what is done only now and then is in it, too."""


class Loop:
    """A child's body that crashes on its first line, *count* times."""

    def __init__(self, count: int) -> None:
        self.over = threading.Event()
        self._times: list[float] = []
        self._count = count

    def __call__(self) -> None:
        self._times.append(perf_counter())
        if len(self._times) > self._count:
            self.over.set()
            return
        raise RuntimeError

    @property
    def samples(self) -> list[float]:
        marks = self._times[::CHUNK]
        return [(after - before) / CHUNK for before, after in itertools.pairwise(marks)]


def loop_of_otpy(size: int) -> list[float]:
    loop = Loop(size * CHUNK)
    with _supervised(loop):
        loop.over.wait()
    return loop.samples


def loop_of_floor(size: int) -> list[float]:
    loop = Loop(size * CHUNK)
    _keep_alive(loop, size * CHUNK)
    loop.over.wait()
    return loop.samples


class Crowd:
    """The bodies of *count* children, which crash all at once and note when the last of them has been replaced.

    Each first life waits for a lock of its own; whoever is woken wakes the next one and raises. Only one can run at a
    time anyway. If all were woken by one, thousands would fight for the interpreter's lock, each of them again every
    5 ms, and hardly anything but this fight would be measured.
    """

    def __init__(self, count: int) -> None:
        self.replaced = threading.Event()
        self._gates = [threading.Lock() for _ in range(count + 1)]
        for gate in self._gates:
            gate.acquire()
        self._first = [True] * count
        self._arrivals = itertools.count(1)

    def live(self, number: int, wait: Callable[[], object]) -> None:
        """Be the child *number*; its second life waits to be stopped."""
        if self._first[number]:
            self._first[number] = False
            self._gates[number].acquire()
            self._gates[number + 1].release()
            raise RuntimeError
        if next(self._arrivals) == len(self._first):
            self.replaced.set()
        wait()

    def crash(self) -> float:
        """Crash all; return the seconds per child until all are replaced."""
        began = perf_counter()
        self._gates[0].release()
        self.replaced.wait()
        return (perf_counter() - began) / len(self._first)


def crowd_of_otpy(size: int) -> list[float]:
    crowd = Crowd(size)
    children = [otpy.thread(_be_one, crowd, number, id=f"child-{number}") for number in range(size)]
    spec = otpy.supervisor("app", children=children, intensity=UNLIMITED, period=1.0)
    with otpy.start(spec, log=False):
        return [crowd.crash()]


def _be_one(ctx: otpy.Context, crowd: Crowd, number: int) -> None:
    crowd.live(number, ctx.wait_stop)


def crowd_of_floor(size: int) -> list[float]:
    crowd = Crowd(size)
    crashes: SimpleQueue[tuple[int, BaseException]] = SimpleQueue()
    stops = [threading.Event() for _ in range(size)]
    children: list[threading.Thread | None] = [None] * size

    def live(number: int) -> None:
        try:
            crowd.live(number, stops[number].wait)
        except BaseException as error:
            crashes.put((number, error))

    def start(number: int) -> None:
        child = children[number] = threading.Thread(target=live, args=(number,), daemon=True)
        child.start()

    def keep_alive() -> None:
        for _ in range(size):
            number, _ = crashes.get()
            start(number)

    for number in range(size):
        start(number)
    threading.Thread(target=keep_alive, daemon=True).start()
    took = crowd.crash()
    for child, stop in zip(children, stops, strict=True):
        stop.set()
        child.join()
    return [took]


def crowd_of_a_tenth(size: int) -> list[float]:
    """The same as ``crowd_of_otpy`` for a tenth of the children: what a child costs must not depend on how many."""
    return crowd_of_otpy(size // 10)
