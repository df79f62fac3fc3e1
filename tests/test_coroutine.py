"""Coroutine children: one loop and one thread for all of a supervisor, and what becomes of both."""

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import pathlib
import queue
import sys
import threading

import pytest

import otpy
from otpy import ExitKind, SpecError, coroutine, current, dynamic_supervisor, supervisor, thread
from otpy.children.coroutine import child as coroutines
from otpy.children.coroutine import loop as loops
from otpy.reports import ChildTerminated, Progress, ShutdownError, Stalled, StartError, Unstopped
from otpy.runtime import threads
from otpy.runtime.mailbox import Mailbox
from otpy.runtime.threads import Role, ThreadState
from tests.helpers import HANG, ManualClock, wait_until


@pytest.fixture(autouse=True)
def _debug(monkeypatch, caplog):
    """All of this runs in asyncio's debug mode, and asyncio has nothing to complain about."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    yield
    gc.collect()
    said = [one for one in caplog.records if one.name == "asyncio" and one.levelno >= logging.ERROR]
    assert [one.getMessage() for one in said] == []


class Stage:
    """Runs what a test wants to run in a coroutine child, ``coroutine(stage, id=...)``; ``next()`` is its context."""

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
        return self.lives.get(timeout=HANG)


class Life:
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
    """Opens at the latest when the test ends."""
    event = threading.Event()
    yield event
    event.set()


async def wait(ctx):
    await ctx.wait_stop()


def loop_threads(app):
    return [entry for entry in threads.entries(app._tree) if entry.role is Role.LOOP]


# Describing


def test_specs_of_equal_parts_are_equal():
    """As all specs are."""
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
    """Functions, methods, objects, partials."""
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
    """At once, naming what would be right."""
    with pytest.raises(SpecError, match=message):
        coroutine(target, **options)


# One loop


def test_a_thousand_children_cost_one_thread(launch):
    """However many there are; and it is gone when they are."""
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
    """Each order alone would cost a system call: a thousand starts wake the loop a few times."""
    rung, ring = [], loops.LoopThread._ring

    def note(self):
        rung.append(bool(self._orders) and not self._is_rung)
        ring(self)

    monkeypatch.setattr(loops.LoopThread, "_ring", note)
    launch(
        supervisor("app", children=[coroutine(wait, id=str(number)) for number in range(1000)]),
        reports=None,
    )

    assert 0 < sum(rung) <= 2 * 1000 // loops.BATCH + 5


def test_each_supervisor_has_its_own(launch, stages):
    """And a child that wants one for itself gets a thread that bears its name."""
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
    """Also if the one that crashed was the only one."""
    launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life = stages[0].next()
    life.crash()
    again = stages[0].next()

    assert (again.loop, again.ctx.incarnation) == (life.loop, 2)
    assert str(again.ctx.last_exit) == "crashed: RuntimeError('ordered to crash')"


def test_an_empty_loop_ends(launch, stages):
    """When the last child has ended and nobody replaces it; the next child gets another one."""
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
    """Again and again: each gets a loop that runs, and none is left."""
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
    """A crash as any other; and what had been made for it is closed."""
    made = []

    def fail(selector):
        made.append(selector)
        raise OSError("no descriptors")

    monkeypatch.setattr(loops.asyncio, "SelectorEventLoop", fail)
    with pytest.raises(otpy.StartError) as caught:
        launch(supervisor("app", intensity=0, children=[coroutine(wait, ready=True)]))

    assert str(caught.value.__cause__) == "no descriptors"
    assert made[0].get_map() is None


def test_no_thread_can_be_started(launch, monkeypatch):
    """The same; and the loop is closed."""
    made = []

    def refuse(target, **options):
        raise RuntimeError("can't start new thread")

    class Recorded(asyncio.SelectorEventLoop):
        def __init__(self, selector):
            super().__init__(selector)
            made.append(self)

    monkeypatch.setattr(loops.asyncio, "SelectorEventLoop", Recorded)
    app = launch(dynamic_supervisor("app"))
    monkeypatch.setattr(threads, "spawn", refuse)
    with pytest.raises(otpy.StartError, match="can't start"):
        app.start_child(coroutine(wait, ready=True))
    monkeypatch.undo()

    assert made[0].is_closed()


# Stopping


def test_a_stop_cancels_the_task(launch):
    """Wherever it waits; that is no error."""
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


def test_who_waits_for_a_stop_is_not_cancelled(launch, recorder):
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


def members(app):
    core = app._tree.directory[app.path]
    return list(core._children.values())


def test_a_wait_may_time_out(launch):
    """It says that nobody has asked; what is no time is refused."""
    seen = queue.SimpleQueue()

    async def work(ctx):
        seen.put(await ctx.wait_stop(0.001))
        for wrong in (-1, float("nan")):
            with contextlib.suppress(ValueError):
                seen.put(await ctx.wait_stop(wrong))
        seen.put("refused")

    launch(supervisor("app", children=[coroutine(work, restart="temporary")]))

    assert [seen.get(timeout=HANG), seen.get(timeout=HANG)] == [False, "refused"]


def test_who_does_not_end_is_cancelled_again(launch, recorder):
    """The second rung: Killed, and that is reported."""
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
    """Also while it waits for a stop, and also before its first step; it is what was wanted."""
    app = launch(
        supervisor(
            "app", children=[coroutine(wait, id=str(n), shutdown="brutal_kill") for n in range(50)]
        )
    )

    assert len(app.stop().interrupted) == 50
    assert recorder.of(ShutdownError) == []


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


def test_who_swallows_it_is_given_up(launch, recorder, swallows):
    """With the stack of the task; its siblings do not notice, and what it does later does not count."""
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
    """The thread is what all that is left on it are."""
    app = launch(supervisor("app", children=[coroutine(swallows, id="a", shutdown=0.0)]))
    swallows.wait()
    app.terminate_child("a")
    [entry] = loop_threads(app)
    assert entry.state is ThreadState.UNSTOPPED
    app.start_child(coroutine(stages[0], id="b"))

    assert stages[0].next().thread is entry.thread
    assert (entry.state, entry.ask) == (ThreadState.RUNNING, None)


def test_its_replacement_can_be_held_back(launch, recorder, swallows):
    """Until it has really ended."""
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


# Ends


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
    """asyncio lets SystemExit out of the loop; the loop goes on, and the task has it as its end, too."""
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


def test_somebody_else_cancels_it(launch, recorder, stages):
    """Nobody asked for that: a crash."""
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
    """Its end is told all the same."""
    second = stages[1]

    async def cancels(ctx):
        await asyncio.sleep(0)
        await second(ctx)

    app = launch(dynamic_supervisor("app"))
    app.start_child(coroutine(cancels, id="b"))
    life, done = second.next(), threading.Event()

    async def start_and_cancel():
        app._tree.directory["app"].mailbox.put(start_child("a"))
        home = wait_until(lambda: len(members(app)) > 1 and members(app)[1]._home)
        [begin] = wait_until(lambda: list(home._orders))
        home._orders.clear()
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


def test_somebody_stops_the_loop(launch, stages):
    """It goes on."""
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
    """Each is told once, and the replacements get another loop."""
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
    """Threads and coroutines side by side."""
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
    """A child with ready=True."""

    async def fails(ctx):
        raise ValueError("no")

    with pytest.raises(otpy.StartError, match="app/fails"):
        launch(supervisor("app", children=[coroutine(wait), coroutine(fails, ready=True)]))
    assert recorder.wait_for(StartError, "app/fails").reason.kind is ExitKind.CRASHED


# Abuse


def test_a_stop_may_come_while_its_tasks_are_swept_up(launch, recorder, stages):
    """Even before the sweeping has made its first step; the child ends, and so do its tasks."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a"), coroutine(wait)]))
    life, seen = stages[0].next(), threading.Event()
    [child] = [one for one in members(app) if one.birth.spec.id == "a"]

    async def linger():
        try:
            await asyncio.Event().wait()
        finally:
            seen.set()

    def stop(
        task,
    ):  # the callbacks of a task run one after the other; the child's own was there first
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
    """The tasks that are left are cancelled once more, and the child has ended, not been given up."""
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
    """Does not want to be looked at."""

    @property
    def __traceback__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [RuntimeError(), Nasty()])
def test_the_traceback_begins_with_the_code_of_the_child(launch, recorder, error):
    """And not with ours, whose frame would keep the child as long as the crash is remembered."""

    async def fails(ctx):
        raise error

    launch(supervisor("app", intensity=0, children=[coroutine(fails)])).wait(HANG)
    reason = recorder.wait_for(ChildTerminated).reason

    assert reason.exception is error
    lines = vars(BaseException)["__traceback__"].__get__(error)
    assert (lines.tb_frame.f_code.co_name, lines.tb_next) == ("fails", None)


def test_the_stop_may_come_while_it_begins_to_wait_elsewhere(launch):
    """In a loop in another thread, between its look and its waiting."""
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
    """In another thread: it is woken there."""
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


def test_a_flood_of_orders_keeps_its_order_and_starves_nobody(launch, stages):
    """What comes while the loop obeys waits for its next turn, so the tasks have theirs."""
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
    """Many callers start and stop children: each child begins and ends in the order of its caller's calls."""
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
def test_a_callback_that_raises_harms_nobody(launch, recorder, stages, capsys, loop, uvloop):  # noqa: PLR0917
    """Neither what asyncio logs nor what it lets out of the loop."""
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
    """A task that answers its cancellation with that; its child is replaced all the same, and its sibling runs on."""
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
    """Nobody asked for that: a crash, also where it does not get to an await any more."""

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
    """Each cancels the next one in every turn, and then all are stopped: each start has one end."""

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
    """No task, no async generator, no loop, no descriptor."""

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
            loops.LoopThread,
            otpy.children.coroutine.child.CoroutineChild,
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
    """As one goes that the frames of a crash have kept; asyncio only hears of it, and it is closed all the same."""
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
    """Return how many there are; where that cannot be seen, always as many."""
    folder = pathlib.Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


# What a child sees


def test_state_is_handed_over(launch, stages):
    """And each task has a context of its own."""
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
    """The loop's thread is that of many."""

    async def says(ctx):
        ctx.ready()
        await ctx.wait_stop()

    launch(supervisor("app", children=[coroutine(says, ready=True)]))

    assert recorder.wait_for(Progress, "app/says").thread == "app/says"


def test_a_blocking_call_of_its_own_supervisor_is_refused(launch, stages):
    """It could only wait for itself."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, seen = stages[0].next(), queue.SimpleQueue()

    async def stop():
        try:
            app.stop()
        except otpy.WouldDeadlock as error:
            seen.put(error)

    life.do(stop)

    assert seen.get(timeout=HANG).path == "app"


# Nothing leaks


def test_the_tasks_of_a_child_end_with_it(launch, recorder, stages):
    """Before its end is told."""
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
    """And left behind; it is cancelled once more when the loop is closed."""
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
    """At the latest with the loop."""
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
    monkeypatch.setattr(loops, "CLEAN_UP", 0.01)
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
    """A loop may be told twice that nobody comes back; its clean-up, which follows the first time, goes to its end."""
    homes, steps, up = [], [], threading.Event()
    begin = loops.LoopThread.begin
    monkeypatch.setattr(
        loops.LoopThread, "begin", lambda home, spawn: (homes.append(home), begin(home, spawn))[1]
    )

    async def linger():
        try:
            up.set()
            await asyncio.Event().wait()
        finally:
            homes[0]._halt()
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
    """What has ended goes at once, without the garbage collector."""
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


# Heartbeats and blocked loops


def test_a_silent_child_is_replaced(launch, recorder, stages):
    """A stall of the child, not of the loop: the report has the stack of the task."""
    app = launch(
        supervisor(
            "app",
            children=[coroutine(silent, stages[0], ready=True, heartbeat=0.05), coroutine(wait)],
        )
    )
    report = recorder.wait_for(Stalled, "app/silent")

    assert "await asyncio.Event().wait()  # silent" in report.stack
    assert stages[0].next().ctx.last_exit.kind is ExitKind.STALLED
    assert app.which_children()[1].incarnation == 1


async def silent(ctx, stage):
    ctx.ready()  # its first deadline counts from here
    if ctx.incarnation == 1:
        await asyncio.Event().wait()  # silent
    ctx.check_in(allow=60.0)
    await stage(ctx)


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
    return {member._home for member in members(app)} - {
        None
    }  # one that is just started has none yet


def tick(app, clock, blocked=0):
    """Move the clock, not while a healthy loop works, and return when the supervisor has seen what is due."""
    wait_until(lambda: sum(home._busy_since is not None for home in homes(app)) <= blocked)
    clock.advance(loops.LOOP_PATIENCE)
    for _ in range(
        3
    ):  # the first wakes it, the second may be read together with the deadline, the third comes after
        app.count_children()


def let_time_pass(app, clock, stalled, blocked=1):
    """Move the clock until *stalled*; supervisors look at it when they get a message."""

    def look():
        tick(app, clock, blocked)
        return stalled()

    wait_until(look)


def test_a_blocked_loop_is_found_and_left(launch, recorder, stages, gate, clock):
    """By all its children: reported with its stack, and marked; what they leave there never counts again."""
    first, second, third = stages
    children = [
        coroutine(first, id="a"),
        coroutine(second, id="b", restart="transient"),
        coroutine(third, id="c", loop="own"),
    ]
    app = launch(supervisor("app", intensity=9, children=children), clock=clock)
    lives = [stage.next() for stage in stages]
    block(lives[0], gate)
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    again = [first.next(), second.next()]

    [stalled] = recorder.of(Stalled)
    assert (stalled.path, stalled.thread, stalled.incarnation) == ("app", "app (loop)", 0)
    assert "gate.wait(HANG)  # blocks the loop" in stalled.stack
    assert [life.ctx.last_exit.kind for life in again] == [ExitKind.STALLED] * 2
    assert again[0].loop is again[1].loop is not lives[0].loop
    assert third.lives.empty()
    assert [entry.state for entry in loop_threads(app)] == [
        ThreadState.UNSTOPPED,
        ThreadState.RUNNING,
    ]

    gate.set()
    lives[0].thread.join(HANG)
    assert lives[0].loop.is_closed()
    assert all(life.ended.wait(HANG) for life in lives[:2])
    assert again[0].ctx.state is None
    assert app.stop().unstopped == ()
    assert [(one.path, one.incarnation) for one in recorder.of(Unstopped)] == [("app/a", 1)]
    assert len(recorder.of(ChildTerminated)) == 2


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_a_blocked_loop_of_its_own_is_left_alone(launch, recorder, gate, clock, strategy):
    """It is given up as a shared one is; who else is restarted, and what that costs, is the strategy's decision."""
    stages = [Stage() for _ in range(3)]
    children = [
        coroutine(stages[0], id="a"),
        coroutine(stages[1], id="b", loop="own"),
        coroutine(stages[2], id="c", loop="own"),
    ]
    app = launch(
        supervisor("app", strategy=strategy, intensity=1, period=1e9, children=children),
        clock=clock,
    )
    lives = [stage.next() for stage in stages]
    block(lives[1], gate)
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    again = stages[1].next()
    restarted = {"one_for_one": "b", "one_for_all": "abc", "rest_for_one": "bc"}[strategy]
    for stage, id in zip(stages, "abc", strict=True):
        if id in restarted and id != "b":
            stage.next()

    [stalled] = recorder.of(Stalled)
    assert (stalled.path, stalled.thread) == ("app/b", "app/b")
    assert "gate.wait(HANG)  # blocks the loop" in stalled.stack
    assert again.loop is not lives[1].loop
    assert "".join(info.id for info in app.which_children() if info.incarnation == 2) == restarted
    assert app.snapshot().budget_left == 0
    gate.set()
    lives[1].thread.join(HANG)


def test_it_does_not_hold_up_the_end(launch, stages, gate, clock):
    """It is in the report of the stop, once."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    block(stages[0].next(), gate)
    let_time_pass(app, clock, lambda: loop_threads(app)[0].state is ThreadState.UNSTOPPED)
    stages[0].next()
    report = app.stop()

    assert [one.path for one in report.unstopped] == ["app/a"]
    assert "gate.wait(HANG)  # blocks the loop" in report.unstopped[0].stack
    assert report.handlers == ()


def test_it_counts_for_max_unstopped(launch, recorder, stages, gate, clock):
    """Or a child that blocks again and again would leave a thread behind each time, for ever."""
    app = launch(
        supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock, max_unstopped=0
    )
    block(stages[0].next(), gate)
    with contextlib.suppress(otpy.NotAlive):
        let_time_pass(app, clock, lambda: not app.alive)

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED


def test_a_stop_of_a_child_on_a_blocked_loop_climbs_the_ladder(launch, recorder, stages, gate):
    """Each is given up by its own; the next ones get another loop at once."""
    first, second, _ = stages
    app = launch(
        supervisor(
            "app",
            children=[
                coroutine(first, id="a", shutdown=0.01),
                coroutine(second, id="b", shutdown=0.01),
            ],
        )
    )
    life = first.next()
    second.next()
    block(life, gate)
    app.terminate_child("b")
    assert "gate.wait(HANG)  # blocks the loop" in recorder.wait_for(Unstopped, "app/b").stack
    app.restart_child("b")
    assert second.next().loop is not life.loop
    report = app.stop()

    assert sorted((one.path, one.incarnation) for one in report.unstopped) == [
        ("app/a", 1),
        ("app/b", 1),
    ]
    assert [entry.state for entry in loop_threads(app)] == [ThreadState.UNSTOPPED]


def test_who_was_told_to_stop_stays_on_the_ladder(launch, recorder, stages, gate, clock):
    """The loop is given up, but not those who were asked before: they are given up by their own, and once."""
    first, second, _ = stages
    children = [coroutine(first, id="a"), coroutine(second, id="b", shutdown=7.0)]
    app = launch(supervisor("app", children=children), clock=clock)
    life = first.next()
    second.next()
    block(life, gate)
    app._tree.directory["app"].mailbox.put(
        otpy.core.messages.TerminateChild(reply=otpy.runtime.waiting.Reply(), id="b")
    )
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    assert first.next().loop is not life.loop
    let_time_pass(app, clock, lambda: recorder.of(Unstopped, "app/b"))

    assert sorted(one.path for one in app.stop().unstopped) == ["app/a", "app/b"]


def test_a_child_that_comes_too_late_never_runs_there(launch, recorder, stages, gate, clock):
    """Its loop was blocked already when it was started; it is moved before its first step."""
    first, second, _ = stages
    app = launch(supervisor("app", children=[coroutine(first, id="a")]), clock=clock)
    life = first.next()
    block(life, gate)
    app.start_child(coroutine(second, id="b"))
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    late = second.next()
    gate.set()
    life.thread.join(HANG)

    assert late.ctx.incarnation == 2
    assert late.loop is not life.loop
    assert second.lives.empty()


def test_who_outlives_its_loop_has_an_end(launch, stages, gate, swallows, monkeypatch):
    """It swallows also the cancellation that comes when a blocked loop wakes up; then the loop is closed under it."""
    monkeypatch.setattr(loops, "CLEAN_UP", 0.01)
    children = [
        coroutine(swallows, id="a", shutdown=0.0, unstopped="hold"),
        coroutine(stages[0], id="b"),
    ]
    app = launch(supervisor("app", children=children))
    swallows.wait()
    life, [child, _] = stages[0].next(), members(app)
    app.terminate_child("a")
    monkeypatch.setattr(loops, "LOOP_PATIENCE", 0.1)
    members(app)[0]._home._watch(0.0)
    block(life, gate)
    stages[0].next()
    assert app.which_children()[0].state.value == "unstopped"
    gate.set()
    wait_until(lambda: app.which_children()[0].state.value == "undefined")

    assert life.loop.is_closed()
    life.thread.join(HANG)
    assert app._tree.strays() == []
    child._task.get_coro().close()
    child._task._log_destroy_pending = (
        False  # asyncio would say that it was pending, and that is the truth
    )


def test_a_busy_loop_is_not_blocked(launch, recorder, stages, clock):
    """It comes back to its selector in time."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    life = stages[0].next()
    for _ in range(5):
        turned = threading.Event()

        async def turn(turned=turned):
            turned.set()

        life.do(turn)
        assert turned.wait(HANG)
        wait_until(lambda: members(app)[0]._home._busy_since is None)
        tick(app, clock)

    assert recorder.of(Stalled) == []


def test_a_busy_loop_wakes_its_supervisor_twice_in_its_patience(launch, stages, clock, monkeypatch):
    """Once to be looked at, and once when that is due; however often the loop turns meanwhile."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    life = stages[0].next()
    core = app._tree.directory["app"]
    told, put = [], Mailbox.put

    def note(self, item):
        if self is core.mailbox:
            told.append(item)
        put(self, item)

    def turn_often():
        turned = threading.Event()

        async def turn():
            for _ in range(1000):
                await asyncio.sleep(0)
            turned.set()

        life.do(turn)
        assert turned.wait(HANG)
        wait_until(lambda: members(app)[0]._home._busy_since is None)

    let_time_pass(app, clock, lambda: not core.timers, blocked=0)
    monkeypatch.setattr(Mailbox, "put", note)
    for _ in range(3):
        turn_often()

    assert len(told) == 1
    app.count_children()  # it has been read now
    assert len(core.timers) == 1


def test_an_idle_loop_is_not_watched(launch, stages, clock):
    """And an idle supervisor has no deadline."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    stages[0].next()
    let_time_pass(app, clock, lambda: not app._tree.directory["app"].timers, blocked=0)


# Threads


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
    """The child comes between the two steps of that: the stray leaves, the empty loop asks whether it shall end."""
    app = launch(supervisor("app", children=[coroutine(swallows, id="a", shutdown=0.0)]))
    swallows.wait()
    app.terminate_child("a")
    [entry] = loop_threads(app)
    is_empty, settle = threading.Event(), loops.LoopThread._settle

    def late(home):
        is_empty.set()
        gate.wait(HANG)
        settle(home)

    with monkeypatch.context() as patch:
        patch.setattr(loops.LoopThread, "_settle", late)
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
        loops.LoopThread.leave,
        coroutines.CoroutineChild.detach,
    )
    monkeypatch.setattr(
        loops.LoopThread,
        "leave",
        lambda home, *args, **options: (leave(home, *args, **options), has_left.set()),
    )
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    life, core, [entry] = stages[0].next(), app._core(), loop_threads(app)

    def late(child):
        life.crash()
        assert has_left.wait(HANG)
        detach(child)

    monkeypatch.setattr(coroutines.CoroutineChild, "detach", late)
    core.detach()
    core.done.wait(HANG, "app")

    assert entry.state is ThreadState.RUNNING
    entry.thread.join(HANG)


def test_a_loop_that_breaks_at_once_leaves_nobody_in_the_air(launch, monkeypatch):
    """Not even the child for which it was made."""
    begin = loops.LoopThread.begin

    def begin_and_break(home, spawn):
        begin(home, spawn)
        home._thread.join(HANG)

    def break_down(home):
        raise RuntimeError("the loop is broken")

    monkeypatch.setattr(loops.LoopThread, "begin", begin_and_break)
    monkeypatch.setattr(loops.LoopThread, "_run", break_down)
    with pytest.raises(otpy.StartError, match="the loop is broken"):
        launch(supervisor("app", children=[coroutine(wait, ready=True)]), timeout=HANG)


def test_on_stop_is_called(launch, stages):
    """On a helper thread, as for threads."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]))
    called = queue.SimpleQueue()
    stages[0].next().ctx.on_stop(lambda: called.put(threading.current_thread().name))
    app.stop()

    assert called.get(timeout=HANG) == "app/a (on_stop)"


def test_threads_and_coroutines_side_by_side(launch, stages):
    """One supervisor."""
    app = launch(
        supervisor(
            "app",
            children=[thread(lambda ctx: ctx.wait_stop(), id="t"), coroutine(stages[0], id="a")],
        )
    )
    stages[0].next()

    assert app.stop().stopped == ("app/a", "app/t")


# uvloop


def test_without_uvloop_the_usual_loop_is_used(launch, stages, monkeypatch):
    """Asked for, but not installed."""
    monkeypatch.setattr("otpy.children.coroutine.child.find_uvloop", lambda: None)
    launch(supervisor("app", children=[coroutine(stages[0], id="a", uvloop=True)]))

    assert isinstance(stages[0].next().loop, asyncio.SelectorEventLoop)


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not made for Windows")
def test_with_uvloop(launch, recorder, stages):
    """The real one, where it is installed: crash, replacement, stop."""
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


class Likeness:
    """What otpy knows of uvloop: a module that makes loops, which do not tell when they work."""

    new_event_loop = staticmethod(asyncio.new_event_loop)


def test_a_loop_that_cannot_tell_is_asked(launch, recorder, stages, monkeypatch, gate, clock):  # noqa: PLR0917
    """It shares nothing with the usual one, and is found when it does not answer."""
    monkeypatch.setattr("otpy.children.coroutine.child.find_uvloop", lambda: Likeness)
    first, second, _ = stages
    app = launch(
        supervisor(
            "app", children=[coroutine(first, id="a", uvloop=True), coroutine(second, id="b")]
        ),
        clock=clock,
    )
    life = first.next()
    assert life.loop is not second.next().loop
    for _ in range(3):
        tick(app, clock)
    assert recorder.of(Stalled) == []
    block(life, gate)
    let_time_pass(app, clock, lambda: recorder.of(Stalled))

    assert first.next().ctx.last_exit.kind is ExitKind.STALLED
