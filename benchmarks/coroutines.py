"""Coroutine children: what it costs to start many, to let each crash once, and to restart it."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

import otpy
from benchmarks.restarts import UNLIMITED


class Lives:
    """What *count* coroutines do: the first life of each raises at once, its second waits to be stopped.

    When all are in their second, *tell* is called.
    """

    def __init__(self, count: int, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._first = [True] * count
        self._arrivals = itertools.count(1)

    async def live(self, ctx: Any, number: int) -> None:
        """Be the child *number*; *ctx* is otpy's, or a ``Stop``."""
        if self._first[number]:
            self._first[number] = False
            raise RuntimeError
        if next(self._arrivals) == len(self._first):
            self._tell()
        await ctx.wait_stop()


class Stop(asyncio.Event):
    """The floor's way to end: one event for all."""

    wait_stop = asyncio.Event.wait


def crashes_of_otpy(size: int) -> list[float]:
    replaced = threading.Event()
    lives = Lives(size, replaced.set)
    children = [otpy.coroutine(lives.live, number, id=f"child-{number}") for number in range(size)]
    spec = otpy.supervisor("app", children=children, intensity=UNLIMITED, period=1.0)
    began = perf_counter()
    with otpy.start(spec, log=False):
        replaced.wait()
        return [(perf_counter() - began) / size]


def crashes_of_floor(size: int) -> list[float]:
    return [asyncio.run(_crash_and_restart(size))]


async def _crash_and_restart(size: int) -> float:
    """Start as many tasks, each with a callback that starts another one when it has crashed."""
    replaced, stop, tasks = asyncio.Event(), Stop(), dict[int, asyncio.Task[None]]()
    lives = Lives(size, replaced.set)

    def start(number: int) -> None:
        task = tasks[number] = asyncio.create_task(lives.live(stop, number))
        task.add_done_callback(functools.partial(replace, number))

    def replace(number: int, task: asyncio.Task[None]) -> None:
        if task.exception() is not None:
            start(number)

    began = perf_counter()
    for number in range(size):
        start(number)
    await replaced.wait()
    took = (perf_counter() - began) / size
    stop.set()
    await asyncio.gather(*tasks.values())
    return took
