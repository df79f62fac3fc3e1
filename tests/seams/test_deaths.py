"""Every death gives exactly one exit report, whatever the thread died of, and wherever (root 1)."""

import contextlib
import itertools
import threading
from pathlib import Path

import pytest

import otpy
from otpy import (
    ChildState,
    Service,
    adopt,
    coroutine,
    dynamic_supervisor,
    periodic,
    supervisor,
    thread,
)
from otpy.reports import (
    ChildTerminated,
    ExitKind,
    ShutdownError,
)
from otpy.runtime import threads
from otpy.runtime.waiting import Reply
from tests.helpers import HANG, wait_until
from tests.seams.kit import python

OURS = str(Path(otpy.__file__).parent)

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def idle(ctx):
    ctx.wait_stop()


def core_of(app):
    return app._tree.directory[app.path]


class Injected(Exception):
    """What a time limit, a debugger or exhausted memory raises in a thread, wherever that is."""


class Injector:
    """Raises in a thread, at the moment number *at* in which it runs code of otpy and something may be raised there.

    The interpreter looks whether there is something to be raised when a function begins, and after a call; exhausted
    memory is met there as well. A profiler is told of both.

    Attributes:
        seen: How many such moments there were so far.
        name: Of the thread.
    """

    def __init__(self, name, at):
        self.name, self.at, self.seen = name, at, 0

    def __call__(self, frame, event, arg):
        if event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(OURS):
            return
        if threading.current_thread().name == self.name:
            self.seen += 1
            if self.seen == self.at:
                raise Injected(f"{frame.f_code.co_qualname}, line {frame.f_lineno}")


class Served(Service):
    def run(self):
        raise ValueError("of its own")


class Adoptable:
    def run(self):
        raise ValueError("of its own")


def raises(ctx):
    raise ValueError("of its own")


def returns(ctx):
    """Return at once."""


def raises_without_ctx():
    raise ValueError("of its own")


async def raises_later(ctx):
    raise ValueError("of its own")


async def leaves_a_task(ctx):
    import asyncio

    ctx.task = None
    asyncio.get_running_loop().create_task(asyncio.sleep(1000))
    await asyncio.sleep(0)
    raise ValueError("of its own")


LIVES = {
    "a thread that raises": (raises, thread),
    "a thread that returns": (returns, thread),
    "a service": (Served, thread),
    "an adopted class": (adopt(Adoptable), thread),
    "a periodic function": (raises_without_ctx, periodic),
    "a coroutine": (raises_later, coroutine),
    "a coroutine that leaves a task": (leaves_a_task, coroutine),
}


def die_at(life, at, monkeypatch, recorder, launch):
    """Have one child die with an exception before instruction number *at*; return whether there was such a one."""
    target, builder = LIVES[life]
    options = {"loop": "own"} if builder is coroutine else {}
    injector, refused = Injector("app/x", at), 0
    app = launch(dynamic_supervisor("app"))
    with monkeypatch.context() as patch:
        patch.setattr(threading, "_profile_hook", injector)
        try:
            app.start_child(builder(target, id="x", restart="temporary", **options))
        except otpy.StartError:
            refused = 1
    wait_until(lambda: not app.which_children(), f"the end of the child, hit at instruction {at}")
    app.stop()
    told = refused + len(recorder.of((ChildTerminated, ShutdownError), "app/x"))
    assert told == 1 or (told == 0 and target is returns), (
        f"told {told} times, hit at instruction {at}"
    )
    recorder.reports.clear()
    return injector.seen >= at


THREADS = [life for life in LIVES if "coroutine" not in life]
COROUTINES = [life for life in LIVES if "coroutine" in life]


def die_at_each(life, moments, monkeypatch, recorder, launch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    return sum(
        1
        for _ in itertools.takewhile(
            lambda at: die_at(life, at, monkeypatch, recorder, launch), moments
        )
    )


@pytest.mark.parametrize("life", THREADS)
def test_an_exception_at_every_moment_of_a_threads_wrapper(life, monkeypatch, recorder, launch):
    """The end of the child is reported exactly once."""
    assert die_at_each(life, itertools.count(1), monkeypatch, recorder, launch) > 30


@pytest.mark.parametrize("life", COROUTINES)
def test_an_exception_at_some_moments_of_a_coroutines_wrapper(life, monkeypatch, recorder, launch):
    """The same on the loop that reports its end. The slow test below tries all moments."""
    assert die_at_each(life, itertools.count(4, 13), monkeypatch, recorder, launch) > 5


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("life", COROUTINES)
def test_an_exception_at_every_moment_of_a_coroutines_wrapper(life, monkeypatch, recorder, launch):
    """The same, at every moment."""
    assert die_at_each(life, itertools.count(1), monkeypatch, recorder, launch) > 80


def break_supervisor_at(at, monkeypatch, recorder, launch):
    """Have the thread of a nested supervisor hit at moment number *at*; return whether there was such a one."""
    injector = Injector("app/s", at)
    app = launch(dynamic_supervisor("app"))
    with monkeypatch.context() as patch, contextlib.suppress(otpy.StartError, otpy.NotFound):
        patch.setattr(threading, "_profile_hook", injector)
        app.start_child(supervisor("s", children=[thread(idle, id="a")], restart="temporary"))
        app.terminate_child("s")
    wait_until(lambda: not app.which_children(), f"the end of the supervisor, hit at moment {at}")
    wait_until(
        lambda: not [one for one in threads.entries(app._tree) if one.name.startswith("app/s")]
    )
    app.stop()
    assert len(recorder.of((ChildTerminated, ShutdownError), "app/s")) <= 1
    recorder.reports.clear()
    return injector.seen >= at


def test_an_exception_at_some_moments_of_a_supervisor(monkeypatch, recorder, launch):
    """It crashes as a child does, once, and nothing that it ran is left. The slow test below tries all moments."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    moments = itertools.takewhile(
        lambda at: break_supervisor_at(at, monkeypatch, recorder, launch), itertools.count(5, 41)
    )

    assert len(list(moments)) > 5


def test_an_exception_amidst_the_last_word_of_a_supervisor(monkeypatch, recorder, launch):
    """Callers know already that it has ended; its parent gets the report all the same."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    answer = Reply.answer

    def hit(self, value):
        answer(self, value)
        if self is done and not hits:
            hits.append(value)
            raise Injected

    app = launch(dynamic_supervisor("app"))
    app.start_child(supervisor("s", children=[thread(idle, id="a")], restart="temporary"))
    done, hits = app._tree.directory["app/s"].done, []
    monkeypatch.setattr(Reply, "answer", hit)
    app.terminate_child("s", timeout=HANG)

    assert app.which_children() == ()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_exception_at_every_moment_of_a_supervisor(monkeypatch, recorder, launch):
    """The same, at every moment."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    moments = itertools.takewhile(
        lambda at: break_supervisor_at(at, monkeypatch, recorder, launch), itertools.count(1)
    )

    assert len(list(moments)) > 200


# What is shown of the dead


def test_a_child_that_is_dead_is_shown_as_dead_while_its_tree_boots(launch):
    """Its crash is judged when all are up; until then it is down, and counts as down."""
    dead, seen = threading.Event(), []

    def dies(ctx):
        if ctx.incarnation == 1:
            raise ValueError("early")
        ctx.wait_stop()

    def looks(ctx):
        def shown():
            return ctx.supervisor.which_children()[0].last_exit

        wait_until(shown)
        seen.extend([ctx.supervisor.which_children()[0], ctx.supervisor.count_children()])
        seen.append(ctx.supervisor.snapshot().children[0])
        ctx.ready()
        dead.set()
        ctx.wait_stop()

    launch(supervisor("app", children=[thread(dies, id="a"), thread(looks, id="b", ready=True)]))
    assert dead.wait(HANG)
    info, counts, snapped = seen

    assert (info.state, info.age, info.restarts) == (ChildState.UNDEFINED, None, 0)
    assert str(info.last_exit) == "crashed: ValueError('early')"
    assert (counts.specs, counts.active) == (2, 1)
    assert (snapped.state, snapped.last_exit) == (info.state, info.last_exit)


def test_a_start_that_waits_for_an_import_says_so(tmp_path):
    """A module starts a tree while it is imported, and a child imports from that module."""
    (tmp_path / "service.py").write_text(
        """
import otpy
def work(ctx):
    from service import told
    ctx.ready()
told = []
try:
    child = otpy.thread(work, ready=True, start_timeout=0.3, shutdown=0.1)
    otpy.start(otpy.supervisor("app", children=[child]), log=False)
except otpy.StartError as error:
    told.append(str(error))
"""
    )
    ran = python("import os, service; print(*service.told, flush=True); os._exit(0)", cwd=tmp_path)

    assert (
        "app/work did not start: killed: TimeoutError('not ready after 0.3 s: it waits for an import lock')"
        in ran.out
    )


# Values that run code of their own


class Text(str):
    """An id whose use raises, but not when it is made."""

    __slots__ = ()

    def __hash__(self):
        raise RuntimeError("no hash today")

    __eq__ = __str__ = __format__ = __hash__


class Number(float):
    def __add__(self, other):
        raise RuntimeError("no sum today")

    __radd__ = __lt__ = __gt__ = __mul__ = __rmul__ = __add__


def test_a_text_that_runs_code_of_its_own(launch):
    """Ids are plain, whatever they were given as, and so are those in calls."""
    spec = thread(idle, id=Text("x"), purpose=Text("to idle"))
    app = launch(supervisor(Text("app"), children=[thread(idle, id="a")]))
    app.start_child(spec)
    app.terminate_child(Text("x"))
    assert app.restart_child(Text("x")).path == "app/x"

    assert [type(text) for text in (spec.id, spec.purpose, app.path)] == [str] * 3
    assert [one.id for one in app.which_children()] == ["a", "x"]


def test_a_number_that_runs_code_of_its_own(launch):
    """Seconds and counts are plain."""
    backoff = otpy.Backoff(Number(0.01), Number(0.02), factor=Number(1.5))
    spec = thread(
        idle,
        id="x",
        shutdown=Number(5),
        start_timeout=Number(5),
        heartbeat=Number(60),
        backoff=backoff,
    )
    app = launch(supervisor("app", children=[spec], period=Number(5)))
    app.terminate_child("x")
    report = app.stop(Number(5))

    assert type(spec.shutdown) is type(spec.backoff.initial) is float
    assert report.reason.kind is ExitKind.SHUTDOWN
