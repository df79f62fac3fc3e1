"""Task graphs of tasks that do nothing, against a pool that gets the same in the same order."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from time import perf_counter

from benchmarks.peers import quiet
from otpy.taskgraph import TaskGraph

LAYERS = 100


def nothing() -> None:
    pass


def before_in_chain(number: int, size: int) -> list[int]:
    return [number - 1] if number else []


def before_in_crowd(number: int, size: int) -> list[int]:
    return []


def before_in_layers(number: int, size: int) -> list[int]:
    """Two of the layer above."""
    width = max(1, size // LAYERS)
    layer, column = divmod(number, width)
    return (
        sorted({(layer - 1) * width + column, (layer - 1) * width + (column + 1) % width})
        if layer
        else []
    )


def graph_of_otpy(before: Callable[[int, int], list[int]]) -> Callable[[int], list[float]]:
    """Return what runs a graph of so many tasks, and returns the seconds per task; it is made beforehand."""

    def run(size: int) -> list[float]:
        graph = TaskGraph()
        for number in range(size):
            graph.add(nothing, str(number), [str(one) for one in before(number, size)])
        began = perf_counter()
        summary = graph.run()
        took = perf_counter() - began
        if summary.passed != size:
            raise RuntimeError(str(summary))
        return [took / size]

    return run


def graph_of_threaded_order(size: int) -> list[float]:
    from threaded_order import Scheduler

    scheduler = Scheduler()
    for number in range(size):
        scheduler.register(
            nothing, str(number), after=[str(one) for one in before_in_chain(number, size)]
        )
    began = perf_counter()
    with quiet():
        scheduler.start()
    return [(perf_counter() - began) / size]


def chain_of_floor(size: int) -> list[float]:
    began = perf_counter()
    with ThreadPoolExecutor() as pool:
        for _ in range(size):
            pool.submit(nothing).result()
    return [(perf_counter() - began) / size]


def crowd_of_floor(size: int) -> list[float]:
    began = perf_counter()
    with ThreadPoolExecutor() as pool:
        wait([pool.submit(nothing) for _ in range(size)])
    return [(perf_counter() - began) / size]


def layers_of_floor(size: int) -> list[float]:
    """Submit a layer when the one above is done."""
    began = perf_counter()
    width = max(1, size // LAYERS)
    with ThreadPoolExecutor() as pool:
        for first in range(0, size, width):
            wait([pool.submit(nothing) for _ in range(min(width, size - first))])
    return [(perf_counter() - began) / size]
