"""Coroutine children: how they are stopped, and how they end."""

import asyncio
import contextlib
import queue
import threading

import pytest

import otpy
from otpy import ExitKind, coroutine, dynamic_supervisor, supervisor
from otpy.reports import ChildTerminated, Progress, ShutdownError, StartFailed, Unstopped
from otpy.runtime.threads import ThreadState
from tests import coroutine_stage
from tests.coroutine_stage import (
    Stage,
    loop_threads,
    members,
    wait,
)
from tests.helpers import HANG, wait_until

_debug, stages, gate = coroutine_stage._debug, coroutine_stage.stages, coroutine_stage.gate
swallows, clock = coroutine_stage.swallows, coroutine_stage.clock


def test_a_stop_cancels_the_task(launch):
    """It is cancelled wherever it waits, and that is no error."""
    seen, up = [], threading.Event()

    async def work(ctx):
        up.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(ctx.running)
            raise

    app = launch(supervisor("app", children=[coroutine(work)]))
    assert up.wait(HANG)

    assert app.stop().stopped == ("app/work",)
    assert seen == [False]


def test_a_child_that_waits_for_a_stop_is_not_cancelled(launch, recorder):
    """It may end as it likes, and await what it needs for that."""
    seen, up = queue.SimpleQueue(), threading.Barrier(3)

    async def work(ctx):
        await asyncio.to_thread(up.wait, HANG)
        seen.put(await ctx.wait_stop())
        await asyncio.sleep(0)
        seen.put("clean")

    async def nap(ctx):
        await asyncio.to_thread(up.wait, HANG)
        await ctx.sleep(HANG)
        await ctx.sleep(HANG)  # at once
        seen.put("slept")

    app = launch(supervisor("app", children=[coroutine(work), coroutine(nap)]))
    up.wait(HANG)
    wait_until(lambda: sum(len(member._ctx._naps) for member in members(app)) == 2)
    report = app.stop()

    assert report.stopped == ("app/nap", "app/work")
    assert [seen.get() for _ in range(3)] == ["slept", True, "clean"]
    assert recorder.of(ShutdownError) == []


def test_a_wait_may_time_out(launch):
    """It returns False; a timeout that is no time is refused."""
    seen = queue.SimpleQueue()

    async def work(ctx):
        seen.put(await ctx.wait_stop(0.001))
        for wrong in (-1, float("nan")):
            with contextlib.suppress(ValueError):
                seen.put(await ctx.wait_stop(wrong))
        seen.put("refused")

    launch(supervisor("app", children=[coroutine(work, restart="temporary")]))

    assert [seen.get(timeout=HANG), seen.get(timeout=HANG)] == [False, "refused"]


def test_a_child_that_does_not_end_is_cancelled_again(launch, recorder):
    """That is the second rung of the ladder: Killed, and reported."""
    up = threading.Event()

    async def deaf(ctx):
        up.set()
        while True:  # does not block the loop
            await ctx.sleep(1)

    app = launch(supervisor("app", children=[coroutine(deaf, shutdown=0.01)]))
    assert up.wait(HANG)

    assert app.stop().interrupted == ("app/deaf",)
    assert recorder.wait_for(ShutdownError).reason.kind is ExitKind.KILLED


def test_brutal_kill_is_one_cancellation(launch, recorder):
    """That holds while the child waits for a stop, and before its first step; no error
    is reported.
    """
    app = launch(
        supervisor(
            "app", children=[coroutine(wait, id=str(n), shutdown="brutal_kill") for n in range(50)]
        )
    )

    assert len(app.stop().interrupted) == 50
    assert recorder.of(ShutdownError) == []


def test_a_child_that_swallows_its_cancellations_is_given_up(launch, recorder, swallows):
    """The report has the stack of the task. Its siblings do not notice; what it does
    later does not count.
    """
    app = launch(
        supervisor(
            "app", children=[coroutine(swallows, id="a", shutdown=0.0), coroutine(wait, id="b")]
        )
    )
    swallows.wait()
    app.terminate_child("a")
    stack = recorder.wait_for(Unstopped, "app/a").stack

    assert "await gate.wait()  # here it is" in stack
    assert "_live" not in stack.splitlines()[-2]
    assert [entry.state for entry in loop_threads(app)] == [ThreadState.RUNNING]
    assert [info.state.value for info in app.which_children()] == ["undefined", "running"]
    report = app.stop()
    assert [(one.path, one.incarnation) for one in report.unstopped] == [("app/a", 1)]
    assert [entry.state for entry in loop_threads(app)] == [ThreadState.UNSTOPPED]
    swallows.let_go()
    assert isinstance(swallows.after.get(timeout=HANG), otpy.Fenced)
    wait_until(lambda: not loop_threads(app))


def test_a_loop_that_strays_share_with_others_is_no_stray(launch, swallows, stages):
    """The thread is a stray only if all children on it are."""
    app = launch(supervisor("app", children=[coroutine(swallows, id="a", shutdown=0.0)]))
    swallows.wait()
    app.terminate_child("a")
    [entry] = loop_threads(app)
    assert entry.state is ThreadState.UNSTOPPED
    app.start_child(coroutine(stages[0], id="b"))

    assert stages[0].next().thread is entry.thread
    assert (entry.state, entry.ask) == (ThreadState.RUNNING, None)


def test_its_replacement_can_be_held_back(launch, recorder, swallows):
    """It starts when the unstopped child has really ended."""
    stage = Stage()

    async def first_swallows(ctx):
        ctx.ready()  # its first deadline counts from here
        await (swallows if ctx.incarnation == 1 else stage)(ctx)

    child = coroutine(
        first_swallows, id="a", ready=True, shutdown=0.0, heartbeat=0.05, unstopped="hold"
    )
    app = launch(supervisor("app", children=[child]))
    swallows.wait()
    recorder.wait_for(Unstopped, "app/a")
    wait_until(lambda: app.which_children()[0].state.value == "unstopped")
    swallows.let_go()

    assert stage.next().ctx.incarnation == 2


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
def test_whatever_it_raises_is_a_crash_of_its_own(launch, recorder, stages, error):
    """Its siblings on the same loop run on."""
    first, second, _ = stages
    launch(supervisor("app", children=[coroutine(first, id="a"), coroutine(second, id="b")]))
    life, sibling = first.next(), second.next()
    life.crash(error)

    assert first.next().loop is sibling.loop
    assert recorder.wait_for(ChildTerminated).reason.kind is ExitKind.CRASHED
    assert recorder.wait_for(ChildTerminated).reason.exception is error
    assert not sibling.ended.is_set()


def test_what_a_task_of_its_own_raises_does_not_stop_the_loop(launch, recorder, stages, capsys):
    """asyncio lets SystemExit out of the loop; the loop goes on, and the task has it as
    its end, too.
    """
    first, second, _ = stages
    launch(supervisor("app", children=[coroutine(first, id="a"), coroutine(second, id="b")]))
    life, sibling = first.next(), second.next()

    async def leave():
        raise SystemExit(3)

    async def spawn():
        await asyncio.create_task(leave())

    life.do(spawn)

    assert first.next().loop is sibling.loop
    assert recorder.wait_for(ChildTerminated, "app/a").reason.kind is ExitKind.CRASHED
    wait_until(lambda: "raised_in_loop" in capsys.readouterr().out)


def test_a_sibling_cancels_it(launch, recorder, stages):
    """No stop was asked for, so that is a crash."""
    first, second, _ = stages
    launch(supervisor("app", children=[coroutine(first, id="a"), coroutine(second, id="b")]))
    first.next()

    async def cancel():
        next(task for task in asyncio.all_tasks() if task.get_name() == "app/a").cancel()

    second.next().do(cancel)
    reason = recorder.wait_for(ChildTerminated, "app/a").reason

    assert (reason.kind, type(reason.exception)) == (ExitKind.CRASHED, asyncio.CancelledError)
    assert first.next().ctx.incarnation == 2


def test_it_is_cancelled_before_its_first_step(launch, recorder, stages):
    """Its end is reported all the same."""
    second = stages[1]

    async def cancels(ctx):
        await asyncio.sleep(0)
        await second(ctx)

    app = launch(dynamic_supervisor("app"))
    app.start_child(coroutine(cancels, id="b"))
    life, done = second.next(), threading.Event()

    async def start_and_cancel():
        app._tree.directory["app"].mailbox.put(start_child("a"))
        home = wait_until(lambda: len(members(app)) > 1 and members(app)[1]._home).host
        [begin] = wait_until(lambda: list(home.orders))
        home.orders.clear()
        begin()
        members(app)[1]._task.cancel()
        done.set()

    life.do(start_and_cancel)
    assert done.wait(HANG)

    assert recorder.wait_for(ChildTerminated, "app/a").reason.kind is ExitKind.CRASHED
    recorder.wait_for(Progress, "app/a", 2)


def start_child(id):
    return otpy.core.messages.StartChild(
        reply=otpy.runtime.waiting.Reply(), spec=coroutine(wait, id=id)
    )


def test_a_child_stops_the_loop(launch, stages):
    """The loop goes on."""
    launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, done = stages[0].next(), threading.Event()

    async def stop():
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        done.set()

    life.do(stop)

    assert done.wait(HANG)
    assert not life.ended.is_set()


def test_a_loop_that_is_broken_is_the_end_of_its_children(launch, recorder, stages, capsys):
    """Each end is reported once, and the replacements get another loop."""
    first, second, _ = stages
    launch(supervisor("app", children=[coroutine(first, id="a"), coroutine(second, id="b")]))
    life = first.next()

    def fail(events):
        del life.loop._process_events
        raise ZeroDivisionError

    async def sabotage():
        life.loop._process_events = fail
        await asyncio.sleep(0)

    life.do(sabotage)
    for path in ("app/a", "app/b"):
        assert type(recorder.wait_for(ChildTerminated, path).reason.exception) is ZeroDivisionError

    second.next()
    assert first.next().loop is second.next().loop is not life.loop
    assert len(recorder.of(ChildTerminated)) == 2
    wait_until(lambda: "loop_broken" in capsys.readouterr().out)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_strategies_mean_the_same(launch, strategy):
    """They do for children on a shared loop and on a loop of their own."""
    stages = [Stage() for _ in range(3)]
    children = [
        coroutine(stages[0], id="a"),
        coroutine(stages[1], id="b"),
        coroutine(stages[2], id="c", loop="own"),
    ]
    app = launch(supervisor("app", strategy=strategy, children=children))
    lives = [stage.next() for stage in stages]
    lives[1].crash()
    stages[1].next()
    if strategy != "one_for_one":
        stages[2].next()

    assert (
        tuple(info.incarnation for info in app.which_children())
        == {
            "one_for_one": (1, 2, 1),
            "one_for_all": (2, 2, 2),
            "rest_for_one": (1, 2, 2),
        }[strategy]
    )


def test_a_start_that_fails(launch, recorder):
    """A child with ``ready=True`` raises before it is ready."""

    async def fails(ctx):
        raise ValueError("no")

    with pytest.raises(otpy.StartError, match="app/fails"):
        launch(supervisor("app", children=[coroutine(wait), coroutine(fails, ready=True)]))
    assert recorder.wait_for(StartFailed, "app/fails").reason.kind is ExitKind.CRASHED
