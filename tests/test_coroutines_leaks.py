"""Nothing leaks from coroutine children: their tasks, generators, loops and threads end."""

import asyncio
import gc
import queue
import threading

import pytest

import otpy
from otpy import coroutine, supervisor, thread
from otpy.children.coroutine import loop
from otpy.children.coroutine.child import CoroutineChild
from otpy.children.coroutine.loop import LoopThread
from otpy.children.coroutine.orders import Home
from otpy.core.messages import StopSupervisor
from otpy.runtime.threads import ThreadState
from tests import coroutine_stage
from tests.coroutine_stage import (
    loop_threads,
    wait,
)
from tests.helpers import HANG, wait_until

_debug, stages, gate = coroutine_stage._debug, coroutine_stage.stages, coroutine_stage.gate
swallows, clock = coroutine_stage.swallows, coroutine_stage.clock


def test_the_tasks_of_a_child_end_with_it(launch, recorder, stages):
    """They end before its end is reported."""
    launch(supervisor("app", children=[coroutine(stages[0], id="a"), coroutine(wait)]))
    life, seen = stages[0].next(), []

    async def linger(number):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append(number)

    async def leave_some():
        life.tasks = [asyncio.create_task(linger(number)) for number in range(3)]
        await asyncio.sleep(0)
        raise RuntimeError

    life.do(leave_some)
    stages[0].next()

    assert sorted(seen) == [0, 1, 2]


def test_a_task_that_does_not_end_is_named(launch, stages, monkeypatch, capsys):
    """It is left behind, and cancelled once more when the loop is closed."""
    monkeypatch.setattr("otpy.children.coroutine.child.CLEAN_UP", 0.01)
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, seen = stages[0].next(), []

    async def stay():
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")

    async def leave_one():
        life.task = asyncio.create_task(stay(), name="stayer")
        await asyncio.sleep(0)
        raise RuntimeError

    life.do(leave_one)
    stages[0].next()
    assert seen == ["cancelled"]
    app.stop()

    assert seen == ["cancelled", "cancelled"]
    assert "tasks_left" in (said := capsys.readouterr().out) and "stayer" in said


def test_an_async_generator_left_open_is_closed(launch):
    """It is closed at the latest with the loop."""
    seen, up, kept = [], threading.Event(), []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            seen.append("closed")

    async def work(ctx):
        kept.append(numbers())
        async for _ in kept[0]:
            break
        up.set()
        await ctx.wait_stop()

    app = launch(supervisor("app", children=[coroutine(work)]))
    assert up.wait(HANG)
    app.stop()

    assert seen == ["closed"]


def test_an_async_generator_that_does_not_end_is_left(launch, monkeypatch, capsys):
    """The loop is closed all the same, and that is logged."""
    monkeypatch.setattr(loop, "CLEAN_UP", 0.01)
    up, kept = threading.Event(), []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.Event().wait()

    async def work(ctx):
        kept.append((asyncio.get_running_loop(), numbers()))
        await anext(kept[0][1])
        up.set()
        await ctx.wait_stop()

    app = launch(supervisor("app", children=[coroutine(work)]))
    assert up.wait(HANG)
    app.stop()

    assert kept[0][0].is_closed()
    wait_until(lambda: "loop_not_clean" in capsys.readouterr().out)


def test_a_second_order_to_end_does_not_interrupt_the_clean_up(launch, monkeypatch, capsys):
    """A loop may get that order twice; its clean-up, which follows the first one, is
    completed.
    """
    homes, steps, up = [], [], threading.Event()
    begin = Home.begin
    monkeypatch.setattr(
        Home, "begin", lambda home, spawn: (homes.append(home), begin(home, spawn))[1]
    )

    async def linger():
        try:
            up.set()
            await asyncio.Event().wait()
        finally:
            homes[0].host.halt()
            for step in range(5):
                await asyncio.sleep(0)
                steps.append(step)

    async def work(ctx):
        task = asyncio.ensure_future(linger())
        await ctx.wait_stop()
        assert not task.done()

    app = launch(supervisor("app", children=[coroutine(work)]))
    assert up.wait(HANG)
    app.stop()

    assert steps == [0, 1, 2, 3, 4]
    assert "loop_not_clean" not in capsys.readouterr().out


def test_crashes_leave_no_cycles(launch, stages):
    """An incarnation that has ended is freed at once, without the garbage collector."""
    launch(
        supervisor("app", intensity=99, children=[coroutine(crashes, stages[0]), coroutine(wait)])
    )
    stages[0].next()
    gc.collect()
    gc.disable()
    try:
        seen = gc.get_count()
        assert seen
        assert not [one for one in gc.get_objects() if isinstance(one, Marker) and one.number < 9]
    finally:
        gc.enable()


class Marker:
    def __init__(self, number):
        self.number = number


async def crashes(ctx, stage):
    marker = Marker(ctx.incarnation)
    if marker.number < 10:
        raise ValueError(ctx.last_exit)
    await stage(ctx)


def test_detached_children_run_on(launch, stages):
    """Their thread is in the registry as detached, and can be asked to end."""
    first, second, _ = stages
    app = launch(supervisor("app", children=[coroutine(first, id="a"), coroutine(second, id="b")]))
    life, other = first.next(), second.next()
    assert app.detach().detached == ("app/b", "app/a")
    [entry] = loop_threads(app)

    assert entry.state is ThreadState.DETACHED
    assert not life.ended.is_set()
    entry.ask()
    assert life.ended.wait(HANG) and other.ended.wait(HANG)
    life.thread.join(HANG)


def test_a_loop_whose_last_stray_leaves_when_the_next_child_comes_is_no_stray(
    launch, swallows, stages, gate, monkeypatch
):
    """The child comes between two steps: the stray leaves, and the empty loop asks
    whether it shall end.
    """
    app = launch(supervisor("app", children=[coroutine(swallows, id="a", shutdown=0.0)]))
    swallows.wait()
    app.terminate_child("a")
    [entry] = loop_threads(app)
    is_empty, settle = threading.Event(), LoopThread.settle

    def late(home):
        is_empty.set()
        gate.wait(HANG)
        settle(home)

    with monkeypatch.context() as patch:
        patch.setattr(LoopThread, "settle", late)
        swallows.let_go()
        assert is_empty.wait(HANG)
        app.start_child(coroutine(stages[0], id="b"))
        gate.set()

        assert stages[0].next().thread is entry.thread
    assert (entry.state, entry.ask) == (ThreadState.RUNNING, None)


def test_a_loop_whose_last_child_leaves_when_it_is_detached_is_no_stray(
    launch, stages, monkeypatch
):
    """The supervisor has not read yet that the child has ended."""
    has_left, leave, detach = (
        threading.Event(),
        LoopThread.leave,
        CoroutineChild.detach,
    )
    monkeypatch.setattr(
        LoopThread,
        "leave",
        lambda home, *args, **options: (leave(home, *args, **options), has_left.set()),
    )
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, core, [entry] = stages[0].next(), app._core(), loop_threads(app)

    def late(child):
        life.crash()
        assert has_left.wait(HANG)
        detach(child)

    monkeypatch.setattr(CoroutineChild, "detach", late)
    core.mailbox.put(StopSupervisor(detach=True))
    core.done.wait(HANG, "app")

    assert entry.state is ThreadState.RUNNING
    entry.thread.join(HANG)


def test_a_loop_that_breaks_at_once_leaves_no_child_in_the_air(launch, monkeypatch):
    """Even the child for which the loop was made has an end."""
    begin = Home.begin

    def begin_and_break(home, spawn):
        begin(home, spawn)
        home.members.thread.join(HANG)

    def break_down(home):
        raise RuntimeError("the loop is broken")

    monkeypatch.setattr(Home, "begin", begin_and_break)
    monkeypatch.setattr(LoopThread, "_run_until_stopped", break_down)
    with pytest.raises(otpy.StartError, match="the loop is broken"):
        launch(supervisor("app", children=[coroutine(wait, ready=True)]), timeout=HANG)


def test_on_stop_is_called(launch, stages):
    """It is called on a helper thread, as for threads."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    called = queue.SimpleQueue()
    stages[0].next().ctx.on_stop(lambda: called.put(threading.current_thread().name))
    app.stop()

    assert called.get(timeout=HANG) == "app/a (on_stop)"


def test_threads_and_coroutines_side_by_side(launch, stages):
    """One supervisor may have children of both kinds."""
    app = launch(
        supervisor(
            "app",
            children=[thread(lambda ctx: ctx.wait_stop(), id="t"), coroutine(stages[0], id="a")],
        )
    )
    stages[0].next()

    assert app.stop().stopped == ("app/a", "app/t")
