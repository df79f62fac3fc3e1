"""Trees at rest: how long they take to start and to stop, how much memory they need, and that they sleep."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import otpy
from benchmarks import bare

GROUP = 100
"""A nested tree has supervisors of so many children each: 10,000 are 100 × 100."""


def flat(size: int, **options: object) -> otpy.SupervisorSpec:
    """Describe *size* children under one supervisor."""
    return otpy.supervisor("app", children=_children(size, options))


def nested(size: int) -> otpy.SupervisorSpec:
    """Describe *size* children in groups."""
    sizes = [min(GROUP, size - first) for first in range(0, size, GROUP)]
    groups = [
        otpy.supervisor(f"group-{number}", children=_children(one, {}))
        for number, one in enumerate(sizes)
    ]
    return otpy.supervisor("app", children=groups)


def _children(size: int, options: dict[str, object]) -> Iterable[otpy.ChildSpec]:
    return [otpy.thread(sleep, id=f"child-{number}", **options) for number in range(size)]


def sleep(ctx: otpy.Context) -> None:
    """Be a child that does nothing until it is asked to stop."""
    ctx.wait_stop()


def start_of_otpy(shape: Callable[[int], otpy.SupervisorSpec]) -> Callable[[int], list[float]]:
    def start(size: int) -> list[float]:
        spec = shape(size)
        gc.collect()
        began = perf_counter()
        with otpy.start(spec, log=False):
            return [(perf_counter() - began) / size]

    return start


def stop_of_otpy(shape: Callable[[int], otpy.SupervisorSpec]) -> Callable[[int], list[float]]:
    def stop(size: int) -> list[float]:
        app = otpy.start(shape(size), log=False)
        gc.collect()
        began = perf_counter()
        app.stop()
        return [(perf_counter() - began) / size]

    return stop


def start_of_floor(size: int) -> list[float]:
    stops = [threading.Event() for _ in range(size)]
    gc.collect()
    began = perf_counter()
    children = bare.start_all(stops)
    took = perf_counter() - began
    bare.stop_all(children, stops)
    return [took / size]


def stop_of_floor(size: int) -> list[float]:
    stops = [threading.Event() for _ in range(size)]
    children = bare.start_all(stops)
    gc.collect()
    began = perf_counter()
    bare.stop_all(children, stops)
    return [(perf_counter() - began) / size]


# Memory: what the process has more when they run, their specs and events included.


def memory_of_otpy(size: int) -> list[float]:
    before = resident()
    with otpy.start(flat(size), log=False):
        return [(resident() - before) / size]


def memory_of_floor(size: int) -> list[float]:
    before = resident()
    stops = [threading.Event() for _ in range(size)]
    children = bare.start_all(stops)
    grown = resident() - before
    bare.stop_all(children, stops)
    return [grown / size]


def resident() -> int:
    """Return how many bytes of this process are in memory."""
    gc.collect()
    return _status(Path("/proc/self/status"))["VmRSS"] * 1024


def _status(path: Path) -> dict[str, int]:
    pairs = (line.split()[:2] for line in path.read_text().splitlines())
    return {
        pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()
    }


# Idle: how often the threads of the tree let go of the processor of their own accord, which is once for each time that
# they were woken. Those who only watch are not counted.


def idle(
    seconds: float, make: Callable[[int], otpy.SupervisorSpec], full: int
) -> Callable[[int], list[float]]:
    """Return a function that counts wake-ups of an idle tree; a tree of *full* children is watched for *seconds*."""

    def count(size: int) -> list[float]:
        with otpy.start(make(size), log=False):
            return [_switches(seconds * min(1.0, size / full))]

    return count


HEARTBEAT = 30.0

ROUNDS_OF_CHECKS = 6
"""So often within one heartbeat all children check in."""


def idle_with_heartbeats(size: int) -> list[float]:
    """Return the wake-ups per second of a tree whose children check in regularly, and that at no wake-up of theirs.

    Another thread checks in for them all, so that what is counted is otpy's part alone.
    """
    heartbeat = HEARTBEAT * min(1.0, size / 1000)
    alive: list[otpy.Context] = []

    def child(ctx: otpy.Context) -> None:
        alive.append(ctx)
        ctx.wait_stop()

    children = [
        otpy.thread(child, id=f"child-{number}", heartbeat=heartbeat) for number in range(size)
    ]
    done = threading.Event()

    def check_in() -> None:
        while not done.wait(heartbeat / ROUNDS_OF_CHECKS):
            for ctx in alive:
                ctx.check_in()

    with otpy.start(otpy.supervisor("app", children=children), log=False):
        pace = threading.Thread(target=check_in, daemon=True)
        pace.start()
        woken = _switches(heartbeat, {threading.get_native_id(), pace.native_id})
        done.set()
        pace.join()
    return [woken / heartbeat]


SETTLE = 1.0
"""How long a tree that is up may take until its threads have gone to sleep, in seconds."""


def _switches(seconds: float, watching: Iterable[int | None] = ()) -> float:
    """Return how often the threads of this process, but for this one, let go of the processor in so many seconds."""
    others = {threading.get_native_id(), *watching}
    time.sleep(min(SETTLE, seconds))
    before = _switches_of_each()
    time.sleep(seconds)
    after = _switches_of_each()
    return float(
        sum(count - before.get(task, 0) for task, count in after.items() if task not in others)
    )


def _switches_of_each() -> dict[int, int]:
    counts = {}
    for task in os.listdir("/proc/self/task"):
        try:
            counts[int(task)] = _status(Path(f"/proc/self/task/{task}/status"))[
                "voluntary_ctxt_switches"
            ]
        except FileNotFoundError:
            continue  # it has just ended
    return counts
