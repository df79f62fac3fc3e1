"""Calling otpy from async code: every call of the handle, awaited, and never a blocked loop."""

import asyncio
import contextlib
import inspect
import queue
import threading

import pytest

import otpy
from otpy import ExitKind, Supervisor, aio, coroutine, dynamic_supervisor, supervisor, thread
from otpy.aio import AsyncSupervisor
from otpy.runtime import threads
from tests.helpers import HANG, Puppet, Recorder, wait_until


def run(function, *args):
    """Run an async test, in debug mode, with a limit for hangs."""

    async def limited():
        async with asyncio.timeout(HANG):
            return await function(*args)

    return asyncio.run(limited(), debug=True)


def idle(ctx):
    ctx.wait_stop()


async def rests(ctx):
    await ctx.wait_stop()


def test_a_tree_lives_as_long_as_its_block():
    """And its end is waited for."""

    async def main():
        async with aio.start(
            supervisor("app", children=[thread(idle), coroutine(rests)]), log=False
        ) as app:
            assert (app.path, app.alive, repr(app)) == ("app", True, "<AsyncSupervisor app, alive>")
            assert [info.id for info in await app.which_children()] == ["idle", "rests"]
        assert not app.alive

    run(main)


def test_every_call_has_its_like():
    """All methods of the blocking handle, with the same parameters; path and alive do not wait."""
    for name, method in inspect.getmembers(Supervisor, inspect.isfunction):
        if not name.startswith("_"):
            like = getattr(AsyncSupervisor, name)
            assert inspect.iscoroutinefunction(like), name
            assert list(inspect.signature(like).parameters) == list(
                inspect.signature(method).parameters
            ), name


def test_the_calls_mean_the_same():
    """One after the other, on a tree."""

    async def main():
        recorder, puppet = Recorder(), Puppet()
        inner = dynamic_supervisor("in")
        async with aio.start(supervisor("app", children=[inner]), log=False) as app:
            below = await app.find("app/in")
            await below.subscribe(recorder)
            assert (await below.start_child(puppet.spec("a"))).id == "a"
            assert (await app.start_child(thread(idle))).id == "idle"
            assert (await app.count_children()).active == 2
            await app.terminate_child("idle")
            assert (await app.restart_child("idle")).incarnation == 2
            assert await app.get_childspec("idle") == thread(idle)
            await app.terminate_child("idle")
            await app.delete_child("idle")
            assert [info.snapshot.path for info in (await app.snapshot()).children] == ["app/in"]
            assert await app.wait(0.0) is None
            await below.unsubscribe(recorder)
            with pytest.raises(otpy.NotFound):
                await app.delete_child("idle")
            assert (await app.stop(10.0)).stopped == ("app/in/a", "app/in")
            assert (await app.wait()).kind is ExitKind.SHUTDOWN
        assert recorder.names() == ["Progress app/in/a"]

    run(main)


def test_what_is_wrong_is_refused_as_ever():
    """SpecError and StartError."""

    async def main():
        with pytest.raises(otpy.SpecError):
            async with aio.start(None):
                pass
        with pytest.raises(otpy.StartError) as caught:
            async with aio.start(
                supervisor("app", children=[thread(fails, ready=True)]), log=False
            ):
                pass
        assert str(caught.value.__cause__) == "no"

    run(main)


def fails(ctx):
    raise ValueError("no")


def test_what_the_block_raises_stops_the_tree():
    """And comes out."""

    async def main():
        with pytest.raises(ZeroDivisionError):
            async with aio.start(supervisor("app"), log=False) as app:
                raise ZeroDivisionError
        assert not app.alive

    run(main)


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


def test_the_loop_goes_on_while_a_call_waits(gate):
    """Any number of calls side by side."""

    async def main():
        async with aio.start(supervisor("app", children=[thread(idle)]), log=False) as app:
            waits = [asyncio.create_task(app.wait()) for _ in range(50)]
            await asyncio.sleep(0)
            assert (await app.count_children()).active == 1
            await app.stop()
            assert {(await one).kind for one in waits} == {ExitKind.SHUTDOWN}

    run(main)


def test_a_cancelled_call_finishes_by_itself(gate):
    """Its answer is dropped, and nothing is logged."""
    up = threading.Event()

    def slow(ctx):
        up.set()
        gate.wait(HANG)
        ctx.ready()
        ctx.wait_stop()

    async def main():
        async with aio.start(supervisor("app"), log=False) as app:
            call = asyncio.create_task(app.start_child(thread(slow, ready=True)))
            await asyncio.to_thread(up.wait, HANG)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await app.which_children())[0].state.value == "starting"
            gate.set()
            await asyncio.to_thread(
                wait_until, lambda: app.handle.which_children()[0].state.value == "running"
            )

    run(main)


class SlowStart:
    """A tree that is not up before the gate opens; no test waits for that."""

    def __init__(self, gate):
        self.gate, self.up, self.handles = gate, threading.Event(), []

    async def enter(self):
        async with aio.start(
            supervisor("app", children=[thread(self._child, id="slow", ready=True)]), log=False
        ):
            pytest.fail("it was cancelled before")

    def _child(self, ctx):
        self.handles.append(ctx.supervisor)
        self.up.set()
        self.gate.wait(HANG)
        ctx.ready()
        ctx.wait_stop()


@pytest.fixture
def slow(gate):
    return SlowStart(gate)


def test_a_cancelled_start_leaves_no_tree(gate, slow):
    """It is stopped as soon as it is up."""

    async def main():
        start = asyncio.create_task(slow.enter())
        await asyncio.to_thread(slow.up.wait, HANG)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        gate.set()
        await asyncio.to_thread(wait_until, lambda: not slow.handles[0].alive)

    run(main)


def test_a_loop_that_is_closed_leaves_no_tree(gate, slow):
    """The same, if its task has ended when the tree is up."""

    async def main():
        start = asyncio.create_task(slow.enter())
        await asyncio.to_thread(slow.up.wait, HANG)
        start.cancel()

    run(main)
    gate.set()
    wait_until(lambda: not slow.handles[0].alive)


def test_a_start_that_is_cancelled_when_its_answer_is_there_leaves_no_tree(monkeypatch):
    """The answer is in the future, but the task has not gone on yet."""
    settle, handles = aio._settle, []

    async def enter():
        async with aio.start(supervisor("app", children=[thread(note)]), log=False):
            pytest.fail("it was cancelled before")

    def note(ctx):
        handles.append(ctx.supervisor)
        ctx.wait_stop()

    async def main():
        start = asyncio.create_task(enter())
        monkeypatch.setattr(aio, "_settle", lambda *args: (settle(*args), start.cancel()))
        with pytest.raises(asyncio.CancelledError):
            await start
        await asyncio.to_thread(wait_until, lambda: handles and not handles[0].alive)

    run(main)


def test_a_loop_that_ends_before_it_hears_the_answer_leaves_no_tree(gate, slow):
    """It does not turn any more when the tree is up, and is closed then."""

    async def main():
        start = asyncio.create_task(slow.enter())
        await asyncio.sleep(
            0
        )  # it begins, and the loop does not turn any more until it is cancelled
        assert slow.up.wait(HANG)
        start.cancel()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    gate.set()
    wait_until(lambda: not [one for one in threads.entries() if one.name == "otpy.aio (start)"])
    loop.close()
    wait_until(lambda: not slow.handles[0].alive)


def test_a_loop_that_is_closed_without_a_word_leaves_no_tree(gate, slow):
    """The task that starts it is neither cancelled nor forgotten; its answer finds no loop any more."""
    tasks = []

    async def main():
        tasks.append(asyncio.create_task(slow.enter()))
        await asyncio.to_thread(slow.up.wait, HANG)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    gate.set()
    wait_until(lambda: not slow.handles[0].alive)

    with contextlib.suppress(RuntimeError):  # what awaits the end of the block finds no loop either
        tasks[0].get_coro().close()
    tasks[0]._log_destroy_pending = False


def test_a_coroutine_child_may_stop_its_own_supervisor():
    """Its task is cancelled amid the call, so neither waits for the other."""

    async def ends(ctx):
        await AsyncSupervisor(ctx.supervisor).stop()

    app = otpy.start(supervisor("app", children=[coroutine(ends)]), log=False)

    assert app.wait(HANG).kind is ExitKind.SHUTDOWN
    app.stop()


async def early(ctx, question, answers):
    try:
        answers.put(await question(AsyncSupervisor(ctx.supervisor)))
    except otpy.WouldDeadlock as error:
        answers.put(error.path)
    ctx.ready()
    await ctx.wait_stop()


@pytest.mark.parametrize(
    "question",
    [
        lambda app: app.start_child(thread(idle)),
        lambda app: app.restart_child("early"),
        lambda app: app.terminate_child("early"),
        lambda app: app.terminate_child("first"),
        lambda app: app.delete_child("first"),
    ],
)
def test_what_waits_for_the_start_that_waits_for_it_is_refused(launch, question):
    """As a blocking call of a thread is."""
    answers = queue.SimpleQueue()
    children = [thread(idle, id="first"), coroutine(early, question, answers, ready=True)]
    launch(supervisor("app", children=children))

    assert answers.get(timeout=HANG) == "app/early"


def test_it_is_refused_for_the_supervisors_above_too(launch):
    """They wait for it just as well."""
    answers = queue.SimpleQueue()

    inner = supervisor("in", children=[coroutine(early, above, answers, ready=True)])
    launch(supervisor("app", children=[inner]))

    assert answers.get(timeout=HANG) == "app/in"


async def above(app):
    return await AsyncSupervisor(Supervisor(app.handle._tree, "app")).start_child(thread(idle))


def test_what_does_not_wait_for_it_is_answered_while_it_starts(launch):
    """Questions; and calls to a supervisor that is up."""
    answers = queue.SimpleQueue()

    async def ask(app):
        return (await app.count_children()).specs

    async def start(app):
        return (await app.start_child(thread(idle))).id

    app = launch(supervisor("app", children=[coroutine(early, ask, answers, ready=True)]))
    assert answers.get(timeout=HANG) == 1
    app.start_child(coroutine(early, start, answers, id="late", ready=True))
    assert answers.get(timeout=HANG) == "idle"


def test_a_task_beside_the_start_may_wait_for_it(launch):
    """The start does not wait for that one."""
    answers = queue.SimpleQueue()

    async def starts(ctx):
        call = asyncio.create_task(AsyncSupervisor(ctx.supervisor).start_child(thread(idle)))
        machine = ctx.supervisor._tree.directory["app"].machine
        await asyncio.to_thread(wait_until, lambda: machine._waiting or call.done())
        ctx.ready()
        answers.put((await call).id)
        await ctx.wait_stop()

    launch(supervisor("app", children=[coroutine(starts, ready=True, restart="temporary")]))

    assert answers.get(timeout=HANG) == "idle"


def test_a_start_may_stop_its_own_supervisor(launch):
    """It is cancelled, as later on; the start has failed."""

    ended = queue.SimpleQueue()

    async def ends(ctx):
        try:
            await AsyncSupervisor(ctx.supervisor).stop()
        except BaseException as error:
            ended.put(type(error))
            raise

    with pytest.raises(otpy.StartError):
        launch(supervisor("app", children=[coroutine(ends, ready=True)]))

    assert ended.get(timeout=HANG) is asyncio.CancelledError


def test_a_child_that_is_up_may_terminate_itself(launch):
    """It is cancelled while it awaits that."""
    ended = queue.SimpleQueue()

    async def ends(ctx):
        ctx.ready()
        try:
            await AsyncSupervisor(ctx.supervisor).terminate_child("ends")
        except BaseException as error:
            ended.put(type(error))
            raise

    app = launch(dynamic_supervisor("app"))
    app.start_child(coroutine(ends, ready=True))

    assert ended.get(timeout=HANG) is asyncio.CancelledError


def test_no_thread_is_left():
    """A pending call has one, named after what it waits for."""

    async def main():
        async with aio.start(supervisor("app"), log=False) as app:
            call = asyncio.create_task(app.wait())
            await asyncio.sleep(0)
            assert "otpy.aio (wait app)" in [entry.name for entry in threads.entries()]
        await call

    run(main)
