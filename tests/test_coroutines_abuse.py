"""Coroutine children under abuse: floods, storms of cancellations, stops at bad moments."""

import asyncio
import functools
import gc
import inspect
import pathlib
import queue
import threading

import pytest

import otpy
from otpy import ExitKind, coroutine, dynamic_supervisor, supervisor
from otpy.children.coroutine.child import CoroutineChild
from otpy.children.coroutine.loop import LoopThread
from otpy.children.coroutine.orders import Home
from otpy.reports import ChildTerminated, Progress, ShutdownError, Unstopped
from tests import coroutine_stage
from tests.coroutine_stage import (
    members,
    wait,
)
from tests.helpers import HANG, wait_until

_debug, stages, gate = coroutine_stage._debug, coroutine_stage.stages, coroutine_stage.gate
swallows, clock = coroutine_stage.swallows, coroutine_stage.clock


def test_a_stop_may_come_while_its_tasks_are_swept_up(launch, recorder, stages):
    """It may come before the first step of the sweeper; the child ends, and so do its
    tasks.
    """
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a"), coroutine(wait)]))
    life, seen = stages[0].next(), threading.Event()
    [child] = [one for one in members(app) if one.birth.spec.id == "a"]

    async def linger():
        try:
            await asyncio.Event().wait()
        finally:
            seen.set()

    # The callbacks of a task run one after the other, and that of the child was added
    # first. So this one runs between the two.
    def stop(task):
        child._is_asked = True
        child._hear()

    async def leave_one():
        life.task = asyncio.create_task(linger())
        await asyncio.sleep(0)
        asyncio.current_task().add_done_callback(stop)
        raise RuntimeError

    life.do(leave_one)

    assert stages[0].next().ctx.last_exit.kind is ExitKind.SHUTDOWN
    assert seen.wait(HANG)


def test_tasks_that_start_others_when_they_are_cancelled(launch, stages):
    """All of them end with the child."""
    launch(supervisor("app", children=[coroutine(stages[0], id="a"), coroutine(wait)]))
    life, seen = stages[0].next(), []

    async def linger(generation):
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(generation)
            if generation < 3:
                life.task = asyncio.create_task(linger(generation + 1))

    async def leave_one():
        life.task = asyncio.create_task(linger(1))
        await asyncio.sleep(0)
        raise RuntimeError

    async def look():
        looked.put([task.get_name() for task in asyncio.all_tasks()])

    life.do(leave_one)
    looked, again = queue.SimpleQueue(), stages[0].next()
    again.do(look)

    assert sorted(looked.get(timeout=HANG)) == ["app/a", "app/wait"]
    assert seen[:1] == [1]


def test_a_kill_shortens_the_sweeping(launch, recorder, stages, monkeypatch):
    """The tasks that are left are cancelled once more, and the child has ended: it is
    not given up.
    """
    monkeypatch.setattr("otpy.children.coroutine.child.CLEAN_UP", HANG)
    app = launch(
        supervisor(
            "app", children=[coroutine(stages[0], id="a", shutdown="brutal_kill"), coroutine(wait)]
        )
    )
    life, seen = stages[0].next(), queue.SimpleQueue()

    async def stay():
        for turn in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.put(turn)

    async def leave_one():
        life.task = asyncio.create_task(stay())
        await asyncio.sleep(0)
        raise RuntimeError

    life.do(leave_one)
    assert seen.get(timeout=HANG) == 0
    app.terminate_child("a")

    assert seen.get(timeout=HANG) == 1
    assert recorder.of(Unstopped) == []


class Nasty(Exception):
    """Raises when its traceback is read."""

    @property
    def __traceback__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [RuntimeError(), Nasty()])
def test_the_traceback_begins_with_the_code_of_the_child(launch, recorder, error):
    """A frame of otpy would keep the child as long as the crash is remembered."""

    async def fails(ctx):
        raise error

    launch(supervisor("app", intensity=0, children=[coroutine(fails)])).wait(HANG)
    reason = recorder.wait_for(ChildTerminated).reason

    assert reason.exception is error
    lines = vars(BaseException)["__traceback__"].__get__(error)
    assert (lines.tb_frame.f_code.co_name, lines.tb_next) == ("fails", None)


def test_the_stop_may_come_while_it_begins_to_wait_elsewhere(launch):
    """It comes between the look and the wait, in a loop on another thread."""
    up, seen = threading.Event(), queue.SimpleQueue()

    async def inner(ctx):
        loop = asyncio.get_running_loop()
        make = loop.create_future

        def make_late():
            future = make()
            up.set()
            wait_until(lambda: not ctx.running)
            return future

        loop.create_future = make_late
        seen.put(await ctx.wait_stop())

    async def outer(ctx):
        await asyncio.to_thread(asyncio.run, inner(ctx))

    app = launch(supervisor("app", children=[coroutine(outer)]))
    assert up.wait(HANG)
    app.stop()

    assert seen.get(timeout=HANG) is True


def test_it_may_wait_for_the_stop_in_a_loop_of_its_own_making(launch, recorder):
    """It is woken there, on another thread."""
    up, seen = threading.Event(), queue.SimpleQueue()

    async def inner(ctx):
        up.set()
        seen.put(await ctx.wait_stop())

    async def outer(ctx):
        await asyncio.to_thread(asyncio.run, inner(ctx))

    app = launch(supervisor("app", children=[coroutine(outer)]))
    assert up.wait(HANG)
    wait_until(lambda: [member for member in members(app) if member._ctx._naps])
    app.stop()

    assert seen.get(timeout=HANG) is True


def test_a_flood_of_orders_keeps_its_order_and_starves_no_task(launch, stages):
    """Orders that come while the loop obeys wait for its next turn, so the tasks have
    theirs.
    """
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, [child] = stages[0].next(), members(app)
    seen, over = [], threading.Event()

    async def turn():
        seen.append("task")

    def obey(number):
        """Be an order; return when the supervisor has given the next one."""
        seen.append(number)
        given = threading.Event()

        def give():
            child._home.order(functools.partial(obey, number + 1))
            given.set()

        if number == 1:
            life.orders.put_nowait(turn)
        if number == 20:
            over.set()
        else:
            child.birth.remind(0.0, give)
            assert given.wait(HANG)

    child.birth.remind(0.0, lambda: child._home.order(functools.partial(obey, 0)))
    assert over.wait(HANG)

    assert [one for one in seen if one != "task"] == list(range(21))
    assert seen.index("task") < 10


def test_a_flood_of_mail_keeps_its_order(launch):
    """Many callers start and stop children; each child begins and ends in the order of
    its caller's calls.
    """
    seen = [[] for _ in range(8)]

    async def note(ctx, number, turn):
        seen[number].append((turn, "begins"))
        ctx.ready()
        try:
            await ctx.wait_stop()
        finally:
            seen[number].append((turn, "ends"))

    def call(number):
        for turn in range(25):
            app.start_child(coroutine(note, number, turn, id=f"{number}", ready=True))
            app.terminate_child(f"{number}")

    app = launch(dynamic_supervisor("app"))
    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(HANG)

    assert seen == [[(turn, what) for turn in range(25) for what in ("begins", "ends")]] * 8


@pytest.mark.parametrize("loop", ["shared", "own"])
@pytest.mark.parametrize("uvloop", [False, True])
def test_a_callback_that_raises_harms_no_child(launch, recorder, stages, capsys, loop, uvloop):  # noqa: PLR0917
    """asyncio logs some exceptions of callbacks, and lets others out of the loop."""
    first, second, _ = stages
    options = {"loop": loop, "uvloop": uvloop}
    app = launch(
        supervisor(
            "app",
            children=[coroutine(first, id="a", **options), coroutine(second, id="b", **options)],
        )
    )
    life, sibling, turned = first.next(), second.next(), threading.Event()

    def leave(error):
        raise error

    async def turn():
        turned.set()

    async def plant():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: logged.put(context["exception"]))
        for error in (KeyboardInterrupt(), ZeroDivisionError(), SystemExit(1)):
            loop.call_soon(leave, error)

    logged = queue.SimpleQueue()
    life.do(plant)
    assert type(logged.get(timeout=HANG)) is ZeroDivisionError
    wait_until(lambda: capsys.readouterr().out.count("raised_in_loop"))
    sibling.do(turn)
    assert turned.wait(HANG)
    turned.clear()
    life.do(turn)
    assert turned.wait(HANG)

    assert recorder.of(ChildTerminated) == []
    assert app.stop().unstopped == ()


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_stops_asyncio_comes_from_a_task_that_was_left(
    launch, recorder, stages, error, uvloop
):
    """A task answers its cancellation with such an exception. Its child is replaced,
    and its sibling runs on.
    """
    first, second, _ = stages
    launch(
        supervisor(
            "app",
            children=[
                coroutine(first, id="a", uvloop=uvloop),
                coroutine(second, id="b", uvloop=uvloop),
            ],
        )
    )
    life, sibling = first.next(), second.next()

    async def leave():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise error from None

    async def leave_some():
        life.tasks = [asyncio.create_task(leave()) for _ in range(3)]
        await asyncio.sleep(0)
        raise RuntimeError

    life.do(leave_some)

    assert first.next().loop is sibling.loop
    assert [task.exception() for task in life.tasks] == [error] * 3
    assert not sibling.ended.is_set()


def test_it_cancels_itself(launch, recorder):
    """No stop was asked for, so that is a crash, also where the target comes to no
    further await.
    """

    async def awaits(ctx):
        asyncio.current_task().cancel()
        await asyncio.Event().wait()

    async def returns(ctx):
        asyncio.current_task().cancel()

    launch(supervisor("app", intensity=0, children=[coroutine(awaits)])).wait(HANG)
    launch(supervisor("app", intensity=0, children=[coroutine(returns)])).wait(HANG)

    for path in ("app/awaits", "app/returns"):
        reason = recorder.wait_for(ChildTerminated, path).reason
        assert (reason.kind, type(reason.exception)) == (ExitKind.CRASHED, asyncio.CancelledError)


def test_a_storm_of_cancellations(launch, recorder):
    """Each child cancels the next one in every turn, and then all are stopped: each
    start has one end.
    """

    async def storm(ctx, number):
        while ctx.running:
            for task in asyncio.all_tasks():
                if task.get_name() == f"app/{(number + 1) % 30}":
                    task.cancel()
            await asyncio.sleep(0)

    children = [coroutine(storm, number, id=str(number)) for number in range(30)]
    app = launch(supervisor("app", intensity=10**9, children=children))
    recorder.wait_for(ChildTerminated, count=500)
    report = app.stop()

    assert (len(report.stopped), report.interrupted, report.unstopped) == (30, (), ())
    for number in range(30):
        ends = (ChildTerminated, ShutdownError)  # the latter if it had one coming anyway
        crashes, starts = (len(recorder.of(kinds, f"app/{number}")) for kinds in (ends, Progress))
        assert starts - 1 <= crashes <= starts


def test_nothing_is_left_of_many_trees(launch):
    """No task, no async generator, no loop and no descriptor is left."""

    async def numbers():
        while True:
            yield 1

    async def work(ctx):
        kept = numbers()
        await anext(kept)
        task = asyncio.create_task(asyncio.Event().wait())
        if ctx.incarnation == 1:
            await asyncio.sleep(0)
            raise RuntimeError
        ctx.ready()
        await ctx.wait_stop()
        del task

    def live():
        with otpy.start(
            supervisor(
                "app", children=[coroutine(work, id="a"), coroutine(work, id="b", loop="own")]
            ),
            log=False,
        ) as app:
            wait_until(lambda: all(one.incarnation == 2 for one in app.which_children()))

    def left():
        gc.collect()
        kinds = (
            asyncio.Task,
            asyncio.BaseEventLoop,
            LoopThread,
            Home,
            CoroutineChild,
        )
        return sum(
            isinstance(one, kinds) or inspect.isasyncgen(one) or inspect.iscoroutine(one)
            for one in gc.get_objects()
        )

    live()
    before, descriptors = left(), open_descriptors()
    for _ in range(5):
        live()

    wait_until(lambda: left() <= before)  # the last thread may not have left its last frame yet
    assert open_descriptors() <= descriptors


def test_a_generator_is_dropped_on_another_thread_at_the_end_of_the_loop(launch):
    """The frames of a crash may keep one. asyncio only posts its closing, and it is
    closed all the same.
    """
    kept, closed = [], threading.Event()

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    async def work(ctx):
        kept.append(numbers())
        await anext(kept[0])
        loop = asyncio.get_running_loop()
        shutdown = loop.shutdown_asyncgens

        async def late():
            dropper = threading.Thread(target=kept.clear)
            dropper.start()
            dropper.join()
            await shutdown()

        loop.shutdown_asyncgens = late
        ctx.ready()
        await ctx.wait_stop()

    launch(supervisor("app", children=[coroutine(work, ready=True)])).stop()

    assert closed.is_set()


def open_descriptors():
    """Return how many descriptors are open; always 0 where that cannot be seen."""
    folder = pathlib.Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0
