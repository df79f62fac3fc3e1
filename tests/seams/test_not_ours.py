"""Nothing is destroyed that others may hold: frames, exceptions, locks, loops, finalizers (root 2)."""

import asyncio
import contextlib
import contextvars
import gc
import math
import queue
import threading
import weakref
from typing import ClassVar

import pytest

import otpy
from otpy import Backoff, Killed, coroutine, current, dynamic_supervisor, supervisor, thread
from otpy.children.coroutine.loop import LoopThread
from otpy.children.endings import release_locals
from otpy.exceptions import show, traceback_of
from otpy.reports import ChildTerminated, Progress, Unstopped
from otpy.runtime import threads
from otpy.runtime.tree import SUPERVISING
from tests.helpers import HANG, wait_until
from tests.seams.kit import python


def idle(ctx):
    ctx.wait_stop()


# Frames


def test_a_sibling_that_waited_for_the_same_future_lives_on(launch):
    """Two coroutines share an exception: when the crash of the one is forgotten, the other one is not touched."""
    lost, turns, third, ended = [], [], threading.Event(), []

    async def broken(ctx):
        if ctx.incarnation == 1:
            lost.append(asyncio.get_running_loop().create_future())
            await lost[0]
        if ctx.incarnation == 2:
            await wait_for_turns(3)
            raise OSError("again")
        third.set()
        await ctx.wait_stop()

    async def wait_for_turns(count):
        while len(turns) < count:  # noqa: ASYNC110 the sibling must run meanwhile
            await asyncio.sleep(0)

    async def healthy(ctx):
        with contextlib.suppress(ConnectionError):
            asyncio.get_running_loop().call_soon(
                lambda: lost[0].set_exception(ConnectionError("lost"))
            )
            await lost[0]
        try:
            while ctx.running:
                turns.append(1)
                await ctx.sleep(0.001)
        finally:
            ended.append(ctx.running)

    app = launch(supervisor("app", children=[coroutine(broken), coroutine(healthy)]))
    assert third.wait(HANG)
    before = len(turns)
    wait_until(lambda: len(turns) > before + 3)
    app.stop()

    assert ended == [False]


def test_the_frames_of_a_sibling_that_raised_the_same_exception_are_not_emptied(launch, recorder):
    """Only what ran in earlier lives of the very child is; here two threads raise one object."""
    error, tracebacks = ValueError("one object"), {}

    def child(ctx):
        kept = f"kept by {ctx.id}"
        if ctx.incarnation <= 2:
            raise error if ctx.incarnation == 1 else KeyError(kept)
        ctx.wait_stop()

    def crash(ctx, other_is_down):
        assert other_is_down.wait(HANG)
        child(ctx)

    down = threading.Event()
    down.set()
    app = launch(supervisor("app", intensity=10, children=[thread(crash, down, id="a")]))
    recorder.wait_for(Progress, "app/a", 3)
    app.terminate_child("a")
    app.start_child(
        thread(crash, down, id="b", restart="temporary")
    )  # its frames are in the traceback now
    recorder.wait_for(ChildTerminated, "app/b")
    tracebacks["b"] = error.__traceback__
    app.restart_child("a")

    names = []
    found = tracebacks["b"]
    while found is not None:
        names.append(found.tb_frame.f_locals.get("kept"))
        found = found.tb_next
    assert "kept by b" in names


class Held:
    """Something in a frame; all that live are in ``alive``."""

    alive: ClassVar = weakref.WeakSet()

    def __init__(self):
        self.alive.add(self)


def is_nearly_empty():
    gc.collect()
    return len(Held.alive) <= 4


async def raise_below(ctx, held):
    await asyncio.sleep(0)
    last = ctx.last_exit
    assert last is None or last.exception is not held
    raise ValueError("from below")


@pytest.mark.parametrize("how", ["raise", "future", "cause", "generator"])
def test_the_locals_of_old_crashes_of_coroutines_are_released(launch, how):
    """Also if they hold the crash before: else each one would keep all that were before it."""
    up = threading.Event()

    async def crash(ctx):
        held, last = Held(), ctx.last_exit
        if ctx.incarnation > 20:
            up.set()
            await ctx.wait_stop()
            return
        if how == "raise":
            await raise_below(ctx, held)
        if how == "future":
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_exception, ValueError())
            await future
        if how == "cause":
            try:
                await raise_below(ctx, held)
            except ValueError as error:
                raise KeyError(last is None) from error
        async for _ in numbers(ctx):
            raise ValueError

    async def numbers(ctx):
        _held, _last = Held(), ctx.last_exit
        await asyncio.sleep(0)
        yield 1

    launch(supervisor("app", intensity=1000, children=[coroutine(crash)]), reports=None)
    assert up.wait(HANG)

    wait_until(is_nearly_empty, "the locals are released")


def test_frames_of_this_life_and_of_others_are_not_ours():
    """The same exception object may be raised again by the next life; and by code that is no child's."""
    error = ValueError()

    def stranger():
        kept = "kept"
        raise error if kept else None

    with contextlib.suppress(ValueError):
        stranger()
    release_locals(error, None)

    assert error.__traceback__.tb_next.tb_frame.f_locals["kept"] == "kept"


# Exceptions that run code of their own

READ = [
    "__cause__",
    "__context__",
    "__traceback__",
    "__notes__",
    "__suppress_context__",
    "__str__",
    "__class__",
]
RAISED = [SystemExit, KeyboardInterrupt, ZeroDivisionError]


def odd(name, raised):
    """Make a class of exceptions of which an attribute raises when it is read."""

    def read(self):
        raise raised("odd")

    return type("Odd", (Exception,), {name: read if name == "__str__" else property(read)})


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("builder", [thread, coroutine])
def test_an_exception_whose_attributes_raise(builder, name, raised, launch, recorder):
    """The crash is reported, the child is replaced, the text can be read, and no thread is left."""
    kind = odd(name, raised)

    def sync_child(ctx):
        if ctx.incarnation <= 2:
            raise kind("words")
        ctx.wait_stop()

    async def async_child(ctx):
        if ctx.incarnation <= 2:
            raise kind("words")
        await ctx.wait_stop()

    target = sync_child if builder is thread else async_child
    app = launch(supervisor("app", children=[builder(target, id="a")]))
    report = recorder.wait_for(ChildTerminated, "app/a", 2)
    recorder.wait_for(Progress, "app/a", 3)
    app.stop()
    wait_until(lambda: not threads.entries(app._tree))

    assert "Odd" in report.reason.traceback
    assert isinstance(str(report.reason), str)


def test_the_lines_of_an_exception_that_cannot_be_formatted():
    """They are shown all the same; only what it says of itself is not."""
    try:
        raise odd("__cause__", SystemExit)("words")
    except Exception as error:
        text = traceback_of(error)

    assert text.startswith("Traceback (most recent call last):\n")
    assert 'raise odd("__cause__", SystemExit)("words")' in text
    assert text.endswith("Odd: its traceback could not be formatted: SystemExit('odd')\n")


def test_a_class_that_does_not_say_its_name():
    """Even its metaclass may raise."""

    class Meta(type):
        @property
        def __name__(cls):
            raise SystemExit

    class Shy(metaclass=Meta):
        def __repr__(self):
            raise SystemExit

    assert show(Shy()) == "<Shy without a repr>"


# Finalizers


class Finalized(Exception):
    """Notes whether it goes on the thread of a supervisor that has not said its last word."""

    where: ClassVar = []

    def __del__(self):
        self.where.append(threading.get_ident() in SUPERVISING)


@pytest.fixture
def where(monkeypatch):
    monkeypatch.setattr(Finalized, "where", [])
    gc.collect()
    return Finalized.where


def let_everything_go(app, where, count):
    wait_until(lambda: (gc.collect(), len(where) >= count)[1], "everything is released")
    assert not any(where), where


def test_exceptions_are_not_released_on_a_supervisors_thread(launch, where):
    """Neither those of lives long ago, nor that of a child that is forgotten."""
    up = threading.Event()

    def crash(ctx):
        if ctx.incarnation <= 5:
            raise Finalized
        up.set()
        ctx.wait_stop()

    def crash_once(ctx):
        raise Finalized

    app = launch(supervisor("app", intensity=100, children=[thread(crash, id="a")]), reports=None)
    app.start_child(thread(crash_once, id="b", restart="temporary"))
    assert up.wait(HANG)
    app.terminate_child("a")
    app.delete_child("a")

    let_everything_go(app, where, 6)


def test_arguments_and_states_are_not_released_on_a_supervisors_thread(launch, where):
    """Of children that are forgotten, deleted, refused, replaced; and of a supervisor that ends."""

    def saves(ctx, argument):
        ctx.check_in(Finalized())
        if ctx.incarnation == 1:
            raise ValueError
        ctx.ready()
        ctx.wait_stop()

    nested = supervisor("s", restart="temporary", children=[thread(idle, id="x")])
    app = launch(dynamic_supervisor("app"), reports=None)
    app.start_child(nested)
    inner = app.find("app/s")
    for id in "ab":
        inner.start_child(thread(saves, Finalized(), id=id, snapshot=None))
        wait_until(
            lambda id=id: [
                one for one in inner.which_children() if one.id == id and one.incarnation == 2
            ]
        )
    inner.terminate_child("a")
    inner.delete_child("a")
    with pytest.raises(otpy.AlreadyStarted):
        inner.start_child(thread(saves, Finalized(), id="b"))
    app.terminate_child("s")

    let_everything_go(app, where, 2 + 4 + 1)


def test_a_finalizer_that_takes_its_time_delays_nobody(launch):
    """It holds up a helper thread, and the next release gets another one."""
    go, going = threading.Event(), queue.SimpleQueue()

    class Slow(Exception):
        def __del__(self):
            going.put(threading.current_thread().name)
            go.wait(HANG)

    def crash(ctx):
        raise Slow

    app = launch(supervisor("app"), reports=None)
    for id in "ab":
        app.start_child(thread(crash, id=id, restart="temporary"))
        assert going.get(timeout=HANG) == "app (release)"
        assert app.count_children(timeout=HANG).specs == 0
    go.set()


def test_many_ended_children_are_released_in_batches(launch, monkeypatch):
    """If there is no calm moment, and if the system has no thread for it, later."""
    monkeypatch.setattr("otpy.runtime.remains.FULL", 10)
    refused, spawn = [], threads.spawn

    def scarce(target, *, name, **options):
        if name == "app (release)" and len(refused) < 3:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        return spawn(target, name=name, **options)

    monkeypatch.setattr(threads, "spawn", scarce)

    def crash(ctx):
        raise ValueError

    app = launch(supervisor("app"), reports=None)
    for n in range(30):
        app.start_child(thread(crash, id=f"c{n}", restart="temporary"))
    core = app._tree.directory["app"]

    wait_until(lambda: len(refused) == 3 and core._remains.at == math.inf, "all is released")


# Event loops


def test_the_loop_stays_while_a_child_waits_for_its_restart(launch, recorder):
    """What is bound to a loop, such as a lock or a client, is there for the next life, however long the back-off."""
    loops, up = [], threading.Event()

    async def child(ctx):
        loops.append(asyncio.get_running_loop())
        if ctx.incarnation <= 2:
            raise ConnectionError
        up.set()
        await ctx.wait_stop()

    spec = coroutine(child, backoff=Backoff(0.2, 0.2, jitter=0))
    app = launch(supervisor("app", children=[spec]))
    assert up.wait(HANG)
    app.stop()

    assert len(set(map(id, loops))) == 1
    assert loops[0].is_closed()


def loops_of(app):
    return [one for one in threads.entries(app._tree) if one.role is threads.Role.LOOP]


@pytest.mark.parametrize(
    "ends", ["normally", "for good", "when its wait is called off", "with the supervisor"]
)
def test_the_loop_ends_when_nobody_comes_back(ends, launch, recorder):
    """No loop stays behind that no child will ever use."""

    async def child(ctx):
        if ends != "normally":
            raise ConnectionError

    backoff = (
        Backoff(0.05, 0.05, jitter=0) if ends != "with the supervisor" else Backoff(1000, 1000)
    )
    restart = {"normally": "transient", "for good": "temporary"}.get(ends, "permanent")
    app = launch(
        supervisor("app", children=[coroutine(child, id="a", restart=restart, backoff=backoff)])
    )
    if ends == "with the supervisor":
        recorder.wait_for(ChildTerminated, "app/a")
        assert loops_of(app)
        app.stop()
    elif ends == "when its wait is called off":
        recorder.wait_for(ChildTerminated, "app/a")
        app.terminate_child("a")

    wait_until(lambda: not loops_of(app))


def test_a_loop_that_is_closed_ends_when_its_members_have_ended(launch):
    """Detached children outlive their supervisor, and their loop outlives it as long as they do."""
    stop, up = [], threading.Event()

    async def child(ctx):
        stop.append((asyncio.get_running_loop(), event := asyncio.Event()))
        up.set()
        await event.wait()

    app = launch(supervisor("app", children=[coroutine(child, id="a")]))
    assert up.wait(HANG)
    app.detach()
    [entry] = loops_of(app)
    assert entry.thread.is_alive()
    loop, event = stop[0]
    loop.call_soon_threadsafe(event.set)
    entry.thread.join(HANG)

    assert loop.is_closed()


def test_a_stop_is_not_swallowed_by_wait_for(launch):
    """CPython 3.11 forgets a cancellation that arrives when what is waited for is done."""

    async def busy(ctx):
        ctx.ready()
        while True:
            for _ in range(3):
                done = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_soon(done.set_result, None)
                await asyncio.wait_for(done, HANG)
            await asyncio.wait_for(asyncio.sleep(0), HANG)

    children = [coroutine(busy, id=f"busy-{n}", ready=True, loop="own") for n in range(4)]
    report = launch(supervisor("app", children=children)).stop()

    assert (len(report.stopped), report.interrupted, report.unstopped) == (4, (), ())


def test_a_stop_is_one_event_where_wait_for_heeds_it(launch):
    """It is not cancelled once more: what it does to clean up is not hit."""
    steps = []

    async def careful(ctx):
        ctx.ready()
        try:
            await asyncio.wait_for(asyncio.Event().wait(), HANG)
        except asyncio.CancelledError:
            for _ in range(5):
                await asyncio.sleep(0)
            steps.append("clean")
            raise

    launch(supervisor("app", children=[coroutine(careful, ready=True)])).stop()

    assert steps == ["clean"]


# Contexts


def test_a_context_of_a_child_that_was_given_up_counts_as_none_elsewhere(launch, recorder):
    """Threads that inherit context variables are the child's code as long as the child counts."""
    go, seen, gate = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()

    def look():
        while go.get(timeout=HANG):
            try:
                seen.put(current().path)
            except otpy.NotFound:
                seen.put("nobody")
            seen.put(app.count_children().specs)

    def work(ctx):
        threading.Thread(target=contextvars.copy_context().run, args=(look,)).start()
        while not gate.is_set():
            with contextlib.suppress(Killed):
                gate.wait(HANG)
        with pytest.raises(otpy.Fenced):
            current().check_in()

    app = launch(supervisor("app", children=[thread(work, id="a", shutdown=0.0)]))
    go.put(True)
    assert [seen.get(timeout=HANG), seen.get(timeout=HANG)] == ["app/a", 1]
    app.terminate_child("a")
    recorder.wait_for(Unstopped, "app/a")
    go.put(True)
    assert [seen.get(timeout=HANG), seen.get(timeout=HANG)] == ["nobody", 1]
    go.put(False)
    gate.set()


def test_threads_of_otpy_inherit_no_context(launch):
    """What a starter has in its context variables is nothing to a child."""
    variable, seen = contextvars.ContextVar("variable", default="empty"), queue.SimpleQueue()

    def child(ctx):
        seen.put(variable.get())
        ctx.wait_stop()

    variable.set("of the starter")
    launch(supervisor("app", children=[thread(child, id="a")]))

    assert seen.get(timeout=HANG) == "empty"
    assert LoopThread is not None


# What belongs to the whole program


OF_THE_PROGRAM = """
import multiprocessing, random, otpy
import structlog  # what that imports takes a random number
from tests import callees

def dies(ctx):
    if ctx.incarnation == 1:
        raise ValueError
    ctx.ready()
    ctx.wait_stop()

random.seed(1)
expected = random.Random(1).random()
children = [
    otpy.thread(dies, id="a", restart="transient", backoff=otpy.Backoff(0.01, 0.01)),
    otpy.process("sleep", "100", id="b"),
    otpy.process(callees.obedient, id="c"),
]
app = otpy.start(otpy.supervisor("app", children=children), log=False)
app.stop()
multiprocessing.set_start_method("spawn")
print(random.random() == expected)
"""


def test_the_random_numbers_and_the_start_method_are_the_programs():
    """A tree takes no random number of the program's, and does not fix how its processes start."""
    assert python(OF_THE_PROGRAM).out == "True\n"
