"""The children of the mixed walks (mixed.py), and what each of them is told."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

import otpy
from otpy import (
    Service,
    Shutdown,
)
from otpy.core.messages import ChildExited, ChildStarted
from tests.helpers import ManualClock

HEARTBEAT = 1.0


class Broken(AssertionError):
    """An invariant did not hold."""


# The children: each does what it is told


class Ordered(Exception):
    """A crash that was ordered."""


@attrs.define(eq=False)
class Life:
    """A child of this process that waits for orders. *over*: whether its code has run to the end; None: unknown."""

    ctx: Any
    orders: Any = attrs.field(factory=queue.SimpleQueue)
    put: Callable[[str], object] = attrs.field(
        default=attrs.Factory(lambda self: self.orders.put, takes_self=True)
    )
    over: bool | None = False
    heard: queue.SimpleQueue[None] = attrs.field(factory=queue.SimpleQueue)

    def obey(self, word: str) -> bool:
        """Do what *word* says; False: leave."""
        if word == "crash":
            raise Ordered(self.ctx.path)
        if word == "beat":
            self.ctx.check_in(allow=2 * HEARTBEAT)
            self.heard.put(None)
        return word == "beat"


class Stage:
    """Where the children of one tree meet the walk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lives: dict[tuple[str, int], Life] = {}
        self.asides: list[asyncio.Task[None]] = []

    def enter(self, ctx: Any, **more: Any) -> Life:
        life = self.lives[ctx.path, ctx.incarnation] = Life(ctx, **more)
        return life


def in_thread(ctx: Any, stage: Stage) -> None:
    life = stage.enter(ctx)
    ctx.on_stop(lambda: life.put("leave"))
    ctx.ready()
    try:
        while life.obey(life.orders.get()):
            pass
    finally:
        life.over = True


class Served(Service):
    def init(self, stage: Stage) -> None:
        self.life = stage.enter(self.ctx)

    def run(self) -> None:
        while self.life.obey(self.life.orders.get()):
            pass

    def stop(self) -> None:
        self.life.put("leave")

    def terminate(self, reason: Any) -> None:
        self.life.over = True


class Stranger:
    """Knows nothing of otpy but for its place on the stage."""

    def __init__(self, stage: Stage) -> None:
        self.life = stage.enter(
            otpy.current(), over=None
        )  # a stop may overtake the start: then it is not run

    def run(self) -> None:
        self.life.over = False
        try:
            while self.life.obey(self.life.orders.get()):
                pass
        finally:
            self.life.over = True

    def stop(self) -> None:
        self.life.put("leave")


def now_and_then(stage: Stage) -> None:
    ctx = otpy.current()
    life = stage.lives.get((ctx.path, ctx.incarnation))
    if life is None or life.ctx is not ctx:
        life = stage.enter(ctx, over=None)
    with contextlib.suppress(queue.Empty):
        if not life.obey(life.orders.get_nowait()):
            raise Shutdown("ordered to leave")


async def in_loop(ctx: Any, stage: Stage) -> None:
    orders: asyncio.Queue[str] = asyncio.Queue()
    put = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, orders.put_nowait)
    life = stage.enter(ctx, orders=orders, put=put)
    stage.asides.append(asyncio.create_task(asyncio.sleep(3600)))  # goes with the child
    ctx.ready()
    try:
        while life.obey(await orders.get()):
            pass
    finally:
        life.over = True


# What is told of each end, by the kind itself


@attrs.define(eq=False)
class Entry:
    """One birth, and what its child has told of it."""

    path: str
    incarnation: int
    ups: int = 0
    ends: int = 0


class Ledger:
    """Hears what every worker tells its supervisor."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ends: list[tuple[str, int]] = []
        self.heard = 0  # so many of these the supervisors have got
        self.news = threading.Condition()

    def watch(self, spec: otpy.ChildSpec) -> otpy.ChildSpec:
        return attrs.evolve(spec, start=functools.partial(self._begin, spec.start))

    def _begin(self, start: Callable[[Any], Any], birth: Any) -> Overheard:
        entry = Entry(birth.path, birth.incarnation)
        with self.news:
            self.entries.append(entry)
        return Overheard(start(birth), functools.partial(self._tell, entry))

    def _tell(self, entry: Entry, deliver: Callable[[Any], None], message: Any) -> None:
        """Write down what is told, before anybody can act on it, and that it has arrived."""
        is_end = isinstance(message, ChildExited)
        with self.news:
            entry.ups += isinstance(message, ChildStarted)
            entry.ends += is_end
            if is_end:
                self.ends.append((entry.path, entry.incarnation))
        deliver(message)
        with self.news:
            self.heard += is_end
            self.news.notify_all()


class Overheard:
    """A child whose news is overheard."""

    def __init__(self, child: Any, tell: Callable[[Callable[[Any], None], Any], None]) -> None:
        self._child, self._tell = child, tell

    def start(self, deliver: Callable[[Any], None]) -> None:
        self._child.start(functools.partial(self._tell, deliver))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._child, name)


class Clock(ManualClock):
    """Stands still until something is broken; then it runs, and the budgets end what does not obey."""

    runs_since: float | None = None

    def monotonic(self) -> float:
        return self.now + (0.0 if self.runs_since is None else time.monotonic() - self.runs_since)
