"""Coroutine children: one loop and one thread for all of a supervisor, and what they see."""

import asyncio
import contextlib
import functools
import queue
import sys
import threading

import pytest

import otpy
from otpy import SpecError, coroutine, current, dynamic_supervisor, supervisor
from otpy.children.coroutine import loop, orders
from otpy.children.coroutine.orders import Home
from otpy.reports import Progress
from otpy.runtime import threads
from tests import coroutine_stage
from tests.coroutine_stage import (
    loop_threads,
    wait,
)
from tests.helpers import HANG, wait_until

_debug, stages, gate = coroutine_stage._debug, coroutine_stage.stages, coroutine_stage.gate
swallows, clock = coroutine_stage.swallows, coroutine_stage.clock


def test_specs_of_equal_parts_are_equal():
    """They are values, as all specs are."""
    assert coroutine(wait, restart="transient") == coroutine(wait, restart="transient")
    assert coroutine(wait) != coroutine(wait, loop="own")
    assert coroutine(wait).id == "wait"


class Callable:
    __name__ = "object"

    async def __call__(self, ctx, number): ...


async def generator(ctx):
    yield


@pytest.mark.parametrize(
    "target", [Callable(), functools.partial(Callable().__call__)], ids=["object", "partial"]
)
def test_whatever_is_async_can_be_a_target(target):
    """Functions, methods, objects and partials can."""
    assert coroutine(target, 1, id="x").start.args == (1,)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (lambda ctx: None, {"id": "x"}, "x: target = .*: expected an async function"),
        (None, {"id": "x"}, "x: target = None: expected an async function"),
        (generator, {}, "generator: target = .*: expected an async function"),
        (Callable(), {}, "object: target = .*: expected an async function that takes .*missing"),
        (wait, {"loop": "none"}, "wait: loop = 'none': expected 'shared' or 'own'"),
        (wait, {"uvloop": 1}, "wait: uvloop = 1: expected True or False"),
        (wait, {"heartbeat": 0}, "wait: heartbeat = 0"),
    ],
)
def test_bad_input_is_refused(target, options, message):
    """The error comes at once, and names what would be right."""
    with pytest.raises(SpecError, match=message):
        coroutine(target, **options)


def test_a_thousand_children_cost_one_thread(launch):
    """The thread is gone when the children are."""
    before = threading.active_count()
    alone = launch(supervisor("alone", children=[coroutine(wait)]))
    cost = threading.active_count() - before
    alone.stop()
    wait_until(lambda: threading.active_count() == before)
    app = launch(supervisor("app", children=[coroutine(wait, id=str(n)) for n in range(1000)]))

    assert threading.active_count() - before == cost
    assert [entry.name for entry in loop_threads(app)] == ["app (loop)"]
    report = app.stop()
    assert (len(report.stopped), report.handlers, report.unstopped) == (1000, (), ())
    assert loop_threads(app) == []


def test_the_orders_of_a_turn_go_together(launch, monkeypatch):
    """Each order alone would cost a system call; a thousand starts wake the loop a few
    times.
    """
    rung, ring = [], Home._ring

    def note(self):
        rung.append(bool(self.host.orders) and not self.host.is_rung)
        ring(self)

    monkeypatch.setattr(Home, "_ring", note)
    launch(
        supervisor("app", children=[coroutine(wait, id=str(number)) for number in range(1000)]),
        reports=None,
    )

    assert 0 < sum(rung) <= 2 * 1000 // orders.BATCH + 5


def test_each_supervisor_has_its_own(launch, stages):
    """A child that wants a loop for itself gets a thread that bears its name."""
    first, second, third = stages
    inner = supervisor(
        "in",
        children=[coroutine(second, id="b"), coroutine(third, id="c", loop="own", purpose="idles")],
    )
    app = launch(supervisor("app", children=[coroutine(first, id="a"), inner]))
    lives = [stage.next() for stage in stages]

    assert [life.thread.name for life in lives] == ["app (loop)", "app/in (loop)", "app/in/c"]
    assert len({life.loop for life in lives}) == 3
    assert [one.purpose for one in otpy.registry.active() if one.path == "app/in/c"] == ["idles"]
    app.stop()
    assert all(life.loop.is_closed() for life in lives)


def test_a_replacement_gets_the_same_loop(launch, stages):
    """That holds also if the child that crashed was the only one."""
    launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life = stages[0].next()
    life.crash()
    again = stages[0].next()

    assert (again.loop, again.ctx.incarnation) == (life.loop, 2)
    assert str(again.ctx.last_exit) == "crashed: RuntimeError('ordered to crash')"


def test_an_empty_loop_ends(launch, stages):
    """It ends when the last child has ended and will not be replaced; the next child
    gets another loop.
    """
    app = launch(dynamic_supervisor("app"))
    app.start_child(coroutine(stages[0], id="a", restart="temporary"))
    life = stages[0].next()
    life.crash()
    wait_until(lambda: not loop_threads(app))
    assert life.loop.is_closed()
    app.start_child(coroutine(stages[0], id="a"))
    again = stages[0].next()
    app.terminate_child("a")
    again.thread.join(HANG)

    assert again.loop is not life.loop
    assert again.loop.is_closed()


def test_the_last_may_leave_while_the_next_comes(launch):
    """Each child gets a loop that runs, and no loop is left."""
    app = launch(dynamic_supervisor("app"))
    for number in range(200):
        app.start_child(coroutine(returns, number % 3, id="a", restart="temporary", ready=True))
        if number % 2:
            with contextlib.suppress(otpy.NotFound):
                app.terminate_child("a")
        wait_until(lambda: app.which_children() == ())
    app.stop()

    assert loop_threads(app) == []


async def returns(ctx, turns):
    ctx.ready()
    for _ in range(turns):
        await asyncio.sleep(0)


def test_no_loop_can_be_made(launch, monkeypatch):
    """The child has crashed, and the selector that was made is closed."""
    made = []

    def fail(selector):
        made.append(selector)
        raise OSError("no descriptors")

    monkeypatch.setattr(loop.asyncio, "SelectorEventLoop", fail)
    with pytest.raises(otpy.StartError) as caught:
        launch(supervisor("app", intensity=0, children=[coroutine(wait, ready=True)]))

    assert str(caught.value.__cause__) == "no descriptors"
    assert made[0].get_map() is None


def test_no_thread_can_be_started(launch, monkeypatch):
    """The child has crashed, and the loop is closed."""
    made = []

    def refuse(target, **options):
        raise RuntimeError("can't start new thread")

    class Recorded(asyncio.SelectorEventLoop):
        def __init__(self, selector):
            super().__init__(selector)
            made.append(self)

    monkeypatch.setattr(loop.asyncio, "SelectorEventLoop", Recorded)
    app = launch(dynamic_supervisor("app"))
    monkeypatch.setattr(threads, "spawn", refuse)
    with pytest.raises(otpy.StartError, match="can't start"):
        app.start_child(coroutine(wait, ready=True))
    monkeypatch.undo()

    assert made[0].is_closed()


def test_state_is_handed_over(launch, stages):
    """Each task has a context of its own."""
    first, second, _ = stages
    launch(supervisor("app", children=[coroutine(first, id="a"), coroutine(second, id="b")]))
    life, seen = first.next(), queue.SimpleQueue()

    async def save():
        life.ctx.check_in({"at": 3})
        seen.put(await asyncio.to_thread(current))
        seen.put(await asyncio.create_task(whose()))
        raise RuntimeError

    async def whose():
        return current()

    life.do(save)

    assert first.next().ctx.state == {"at": 3}
    assert [seen.get(), seen.get()] == [life.ctx, life.ctx]
    assert second.next().ctx.state is None


def test_reports_name_the_child(launch, recorder):
    """The thread of the loop is that of many children."""

    async def says(ctx):
        ctx.ready()
        await ctx.wait_stop()

    launch(supervisor("app", children=[coroutine(says, ready=True)]))

    assert recorder.wait_for(Progress, "app/says").thread == "app/says"


def test_a_blocking_call_of_its_own_supervisor_is_refused(launch, stages):
    """The child would wait for itself."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, seen = stages[0].next(), queue.SimpleQueue()

    async def stop():
        try:
            app.stop()
        except otpy.WouldDeadlock as error:
            seen.put(error)

    life.do(stop)

    assert seen.get(timeout=HANG).path == "app"


def test_without_uvloop_the_usual_loop_is_used(launch, stages, monkeypatch):
    """The child asks for uvloop, which is not installed."""
    monkeypatch.setattr("otpy.children.coroutine.child.find_uvloop", lambda: None)
    launch(supervisor("app", children=[coroutine(stages[0], id="a", uvloop=True)]))

    assert isinstance(stages[0].next().loop, asyncio.SelectorEventLoop)


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not made for Windows")
def test_with_uvloop(launch, recorder, stages):
    """A crash, a replacement and a stop on a real uvloop."""
    import uvloop

    app = launch(
        supervisor(
            "app",
            children=[coroutine(stages[0], id="a", uvloop=True), coroutine(wait, uvloop=True)],
        )
    )
    life = stages[0].next()
    life.crash()
    again = stages[0].next()

    assert isinstance(again.loop, uvloop.Loop) and again.loop is life.loop
    assert app.stop().stopped == ("app/wait", "app/a")
    assert life.loop.is_closed()
