"""The stage of the tests of coroutine children: targets under orders, and fixtures."""

import asyncio
import contextlib
import gc
import logging
import queue
import threading

import pytest

import otpy
from otpy.children.coroutine import blockage
from otpy.runtime import threads
from otpy.runtime.threads import Role
from tests.helpers import HANG, ManualClock, wait_until


@pytest.fixture(autouse=True)
def _debug(monkeypatch, caplog):
    """Run the test in asyncio's debug mode; asyncio must log no error."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    yield
    gc.collect()
    said = [one for one in caplog.records if one.name == "asyncio" and one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in said] == []


class Stage:
    """A target that does what a test orders: ``coroutine(stage, id=...)``."""

    def __init__(self):
        self.lives = queue.SimpleQueue()

    async def __call__(self, ctx):
        life = Life(ctx)
        ctx.ready()
        self.lives.put(life)
        try:
            while True:
                await (await life.orders.get())()
        finally:
            life.ended.set()

    def next(self):
        """Return the next incarnation."""
        return self.lives.get(timeout=HANG)


class Life:
    """One incarnation of a ``Stage``: its context, its loop, its thread."""

    def __init__(self, ctx):
        self.ctx, self.orders, self.ended = ctx, asyncio.Queue(), threading.Event()
        self.loop, self.thread = asyncio.get_running_loop(), threading.current_thread()

    def do(self, order):
        """Have the async function *order* called in the child."""
        self.loop.call_soon_threadsafe(self.orders.put_nowait, order)

    def crash(self, error=None):
        async def fail():
            raise error or RuntimeError("ordered to crash")

        self.do(fail)


@pytest.fixture
def stages():
    return [Stage() for _ in range(3)]


@pytest.fixture
def gate():
    """An event that is set at the latest when the test ends."""
    event = threading.Event()
    yield event
    event.set()


async def wait(ctx):
    await ctx.wait_stop()


def loop_threads(app):
    return [entry for entry in threads.entries(app._tree) if entry.role is Role.LOOP]


def members(app):
    core = app._tree.directory[app.path]
    return list(core._children.values())


class Swallows:
    """A target that swallows every cancellation until the test lets it go."""

    def __init__(self):
        self.swallowed, self.after = threading.Semaphore(0), queue.SimpleQueue()
        self.up = queue.SimpleQueue()

    async def __call__(self, ctx):
        gate = asyncio.Event()
        self.up.put((asyncio.get_running_loop(), gate))
        while not gate.is_set():
            try:
                await gate.wait()  # here it is
            except asyncio.CancelledError:
                self.swallowed.release()
        try:
            ctx.check_in("late")
        except otpy.Fenced as fenced:
            self.after.put(fenced)
            raise

    def wait(self):
        self.loop, self.gate = self.up.get(timeout=HANG)

    def let_go(self):
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.gate.set)


@pytest.fixture
def swallows():
    target = Swallows()
    yield target
    target.let_go()


@pytest.fixture
def clock():
    return ManualClock()


def block(life, gate):
    """Block the loop of *life* until the gate opens, and return when it is blocked."""
    blocked = threading.Event()

    async def blocks():
        blocked.set()
        gate.wait(HANG)  # blocks the loop
        life.ctx.check_in("late")

    life.do(blocks)
    assert blocked.wait(HANG)


def homes(app):
    """Return the loops of the children; a child that is just being started has none."""
    return {member._home for member in members(app)} - {None}


def tick(app, clock, blocked=0):
    """Move the clock while no healthy loop works.

    Returns when the supervisor has seen what is due.
    """
    wait_until(lambda: sum(home.blockage.busy_since is not None for home in homes(app)) <= blocked)
    clock.advance(blockage.BLOCKED_AFTER)
    # The first call wakes the supervisor. The second may be read together with the
    # deadline. The third is read after it.
    for _ in range(3):
        app.count_children()


def let_time_pass(app, clock, stalled, blocked=1):
    """Move the clock until *stalled*; supervisors look at it when they get a message."""

    def look():
        tick(app, clock, blocked)
        return stalled()

    wait_until(look)
