"""The contract of ``Child``, for every kind: news in order, exactly one end, no method
that blocks or raises.
"""

import asyncio
import sys
import threading
import time

import attrs
import pytest

from otpy import (
    ChildType,
    ExitKind,
    Service,
    adopt,
    coroutine,
    current,
    periodic,
    process,
    supervisor,
    thread,
)
from otpy.core.messages import ChildExited, ChildStarted
from otpy.runtime import threads
from tests.callees import crashing, looping, obedient, obedient_and_ready
from tests.helpers import HANG, wait_until
from tests.stage import Stage
from tests.typing.kinds import KINDS


class Obedient(Service):
    def run(self):
        self.ctx.wait_stop()


class Obedience:
    def run(self):
        current().wait_stop()


def obedient_call():
    current().wait_stop()


async def awaiting(ctx):
    await ctx.wait_stop()


async def awaiting_and_ready(ctx):
    ctx.ready()
    await ctx.wait_stop()


async def awaiting_something(ctx):
    await asyncio.Event().wait()


class Crashing:
    def run(self):
        raise ValueError("first line")


async def raising(ctx):
    raise ValueError("first line")


class CrashingInit(Service):
    def init(self):
        raise ValueError("init")

    def run(self): ...


async def swallowing(ctx):
    ctx.ready()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


SAYS_READY = """
import os, signal, socket
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
CRASHES = (sys.executable, "-c", "raise ValueError('first line')")

OBEDIENT = {
    "thread": thread(obedient, id="x"),
    "ready": thread(obedient_and_ready, id="x", ready=True),
    "service": thread(Obedient, id="x"),
    "adopted": thread(adopt(Obedience), id="x"),
    "periodic": periodic(obedient_call, id="x"),
    "coroutine": coroutine(awaiting, id="x"),
    "coroutine that is ready": coroutine(awaiting_and_ready, id="x", ready=True),
    "coroutine that is cancelled": coroutine(awaiting_something, id="x"),
    "coroutine on its own": coroutine(awaiting, id="x", loop="own"),
    "program": process("sleep", "1000", id="x"),
    "ready program": process(sys.executable, "-c", SAYS_READY, id="x", ready=True),
    "process": process(obedient, id="x"),
    "ready process": process(obedient_and_ready, id="x", ready=True),
    "supervisor": supervisor("x"),
    "nested": supervisor(
        "x",
        children=[thread(obedient, id="a"), supervisor("s", children=[thread(Obedient, id="b")])],
    ),
}

CRASHING = {
    "thread": thread(crashing, id="x"),
    "ready": thread(crashing, id="x", ready=True),
    "service": thread(CrashingInit, id="x"),
    "adopted": thread(adopt(Crashing), id="x"),
    "periodic": periodic(crashing, None, id="x"),
    "coroutine": coroutine(raising, id="x"),
    "coroutine that is ready": coroutine(raising, id="x", ready=True),
    "coroutine on its own": coroutine(raising, id="x", loop="own"),
    "program": process(*CRASHES, id="x"),
    "ready program": process(*CRASHES, id="x", ready="never said"),
    "process": process(crashing, id="x"),
    "ready process": process(crashing, id="x", ready=True),
    "nested": supervisor("x", children=[thread(crashing, id="a", ready=True)]),
}

MUST_COME_UP = [
    CRASHING[kind]
    for kind in (
        "ready",
        "service",
        "coroutine that is ready",
        "ready program",
        "ready process",
        "nested",
    )
]

LOOPING = {
    "thread": thread(looping, id="x"),
    "ready": thread(looping, id="x", ready=True),
    "coroutine": coroutine(swallowing, id="x", ready=True),
    "program": process("sleep", "1000", id="x", stop_signal="SIGWINCH"),  # nobody minds that one
    "process": process(looping, id="x"),
    "ready process": process(looping, id="x", ready=True),
    "nested": supervisor("x", children=[thread(looping, id="a", shutdown="infinity")]),
}


@pytest.fixture
def stage():
    stages = []

    def set_up(spec):
        stages.append(Stage(spec))
        return stages[-1]

    yield set_up
    for one in stages:
        one.close()


@pytest.mark.parametrize("spec", OBEDIENT.values(), ids=OBEDIENT)
def test_it_starts_and_stops(spec, stage):
    """A child delivers ChildStarted once and, when asked, ChildExited once.

    A second and a late request change nothing.
    """
    scene = stage(spec)
    assert type(scene.child) in KINDS  # the type checker compares these with the contract
    assert scene.hear() == ChildStarted(7, "root/x")
    assert scene.child.alive
    scene.child.stop()
    scene.child.stop()
    end = scene.hear()
    scene.child.stop()
    scene.child.kill(1.0)

    assert (end.ref, end.reason.kind) == (7, ExitKind.SHUTDOWN)
    assert scene.is_silent()


@pytest.mark.parametrize("spec", OBEDIENT.values(), ids=OBEDIENT)
def test_a_stop_may_overtake_the_start(spec, stage):
    """A child that is asked before it has started still ends, once."""
    scene = stage(spec)
    scene.child.stop()
    news = scene.hear()
    while isinstance(news, ChildStarted):
        news = scene.hear()

    assert isinstance(news, ChildExited)
    assert scene.is_silent()


@pytest.mark.parametrize("spec", OBEDIENT.values(), ids=OBEDIENT)
def test_a_kill_may_overtake_the_start(spec, stage):
    """A child that is killed before it has started still ends, once."""
    scene = stage(spec)
    scene.child.kill(1.0)
    news = scene.hear()
    while isinstance(news, ChildStarted):
        news = scene.hear()

    assert news.reason.kind in (ExitKind.SHUTDOWN, ExitKind.KILLED)
    assert scene.is_silent()


@pytest.mark.parametrize("spec", CRASHING.values(), ids=CRASHING)
def test_a_crash_on_the_first_line_is_told_once(spec, stage):
    """The end is one message.

    A child that must complete its start has not completed it.
    """
    scene = stage(spec)
    news = [scene.hear()]
    while not isinstance(news[-1], ChildExited):
        news.append(scene.hear())

    assert [type(one) for one in news] == (
        [ChildExited] if spec in MUST_COME_UP else [ChildStarted, ChildExited]
    )
    assert "ValueError" in (news[-1].reason.traceback + str(news[-1].reason.exception))
    assert scene.is_silent()


@pytest.mark.parametrize("spec", LOOPING.values(), ids=LOOPING)
def test_a_child_that_does_not_listen_can_be_killed(spec, stage):
    """The child is alive until it is killed; then it ends, once."""
    scene = stage(spec)
    if spec not in (LOOPING["ready"], LOOPING["ready process"]):
        scene.hear()
    assert scene.child.alive
    scene.child.stop()
    assert scene.child.kill(1.0) is True
    end = scene.hear()

    is_worker = spec.type is ChildType.WORKER
    assert end.reason.kind is (ExitKind.KILLED if is_worker else ExitKind.SHUTDOWN)
    assert scene.is_silent()


def test_a_fenced_thread_can_say_nothing_but_its_end(stage):
    """Its context raises Fenced.

    Its ChildExited still comes, and its supervisor drops it.
    """
    go, seen = threading.Event(), []

    def stuck(ctx):
        go.wait(HANG)
        seen.append(ctx.running)
        try:
            ctx.sleep(0)
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    scene = stage(thread(stuck, id="x"))
    scene.hear()
    scene.child.stop()
    wait_until(lambda: "go.wait(HANG)" in scene.child.stack())
    scene.child.abandon()
    go.set()

    assert scene.hear().reason.kind is ExitKind.KILLED
    assert seen == [False, "Fenced"]


WORKERS = {kind: spec for kind, spec in OBEDIENT.items() if spec.type is ChildType.WORKER}


@pytest.mark.parametrize("spec", OBEDIENT.values(), ids=OBEDIENT)
def test_a_detached_worker_runs_on_and_a_supervisor_ends(spec, stage):
    """No child below a supervisor is stopped.

    The end of a worker is still delivered, once.
    """
    scene = stage(spec)
    assert scene.hear() == ChildStarted(7, "root/x")
    scene.child.detach()
    if spec in WORKERS.values():
        assert scene.child.alive
        assert scene.is_silent()
        scene.child.stop()
    end = scene.hear()
    for entry in threads.entries():
        if entry.ask is not None:
            entry.ask()

    assert (end.ref, end.reason.kind) == (7, ExitKind.SHUTDOWN)
    assert scene.is_silent()


@pytest.mark.parametrize("spec", WORKERS.values(), ids=WORKERS)
def test_to_come_up_is_a_check_in(spec, stage):
    """The first deadline counts from there.

    Until the child saves a state, its state is the one that it was handed over.
    """
    before = time.monotonic()
    scene = stage(attrs.evolve(spec, heartbeat=9.0))
    scene.hear()
    beat, until = scene.child.pulse()

    assert before <= beat <= time.monotonic()
    assert until == beat + 9.0
    assert scene.child.state is None
    scene.child.stop()
    scene.hear()
