"""Every death gives exactly one exit report, whatever the thread died of, and wherever (root 1)."""

import contextlib
import itertools
import queue
import sys
import threading
from pathlib import Path

import pytest

import otpy
from otpy import (
    ChildSpec,
    ChildState,
    Service,
    adopt,
    coroutine,
    dynamic_supervisor,
    periodic,
    supervisor,
    thread,
)
from otpy.children.thread import ThreadChild
from otpy.core.messages import ChildExited, ChildStarted, StopSupervisor
from otpy.reports import (
    ChildTerminated,
    ExitKind,
    ExitReason,
    Progress,
    ShutdownError,
    StrayMessage,
    Unstopped,
)
from otpy.runtime import spares, threads
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
    """The end of the child is told, and told once."""
    assert die_at_each(life, itertools.count(1), monkeypatch, recorder, launch) > 30


@pytest.mark.parametrize("life", COROUTINES)
def test_an_exception_at_some_moments_of_a_coroutines_wrapper(life, monkeypatch, recorder, launch):
    """The same; what tells of a coroutine runs on its loop. The slow test below tries all moments."""
    assert die_at_each(life, itertools.count(4, 19), monkeypatch, recorder, launch) > 5


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
    """Callers know already that it has ended; its parent is told all the same."""
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


# Threads that end where nothing of otpy runs


def cannot_begin(monkeypatch, name):
    """Have the threads of this *name* end before their first line, as where there is no memory for it."""
    begin = threading.Thread._bootstrap

    def fail(self):
        if self.name == name:
            raise MemoryError
        begin(self)

    monkeypatch.setattr(threading.Thread, "_bootstrap", fail)


@pytest.mark.parametrize("name", ["app/x", "app/s", "app"])
def test_a_thread_that_cannot_begin(name, launch, monkeypatch):
    """Nobody waits for it: the start has failed."""
    cannot_begin(monkeypatch, name)
    tree = supervisor("app", intensity=1, children=[thread(idle, id="x"), supervisor("s")])
    with pytest.raises(otpy.StartError) as caught:
        otpy.start(tree, log=False)

    assert caught.value.path == name
    assert "ended before it could begin" in str(caught.value)
    assert not [one for one in threading.enumerate() if one.name == name]


def test_a_helper_that_cannot_begin(monkeypatch):
    """Nobody waits for it, and it is not taken for a living one."""
    cannot_begin(monkeypatch, "t")
    with pytest.raises(RuntimeError, match="before it could begin"):
        threads.spawn(pytest.fail, name="t", role=threads.Role.HELPER, purpose="", owner=threads)

    assert threads.entries(threads) == []


def test_a_thread_that_begins_late(monkeypatch):
    """The start does not wait for ever; if the thread ends without having begun, its witness says so."""
    monkeypatch.setattr(threads, "START_LIMIT", 0.0)
    go, lost = threading.Event(), threading.Event()
    begin = threading.Thread._bootstrap
    monkeypatch.setattr(
        threading.Thread,
        "_bootstrap",
        lambda self: go.wait(HANG) if self.name == "t" else begin(self),
    )
    late = threads.spawn(
        pytest.fail, name="t", role=threads.Role.HELPER, purpose="", owner=threads, if_lost=lost.set
    )
    assert threads.entries(threads)[0].alive
    go.set()
    assert lost.wait(HANG)

    assert threads.entries(threads) == []
    late.forget_start()


def test_a_thread_that_ends_without_a_word(launch, recorder, monkeypatch):
    """Whatever has silenced it: its witness tells, and a replacement comes."""
    told = itertools.count()

    def fail(child, error):
        if next(told) < 2:  # it is tried once more
            raise MemoryError
        return end(child, error)

    end = ThreadChild._end
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(ThreadChild, "_end", fail)
    launch(
        supervisor(
            "app", children=[thread(lambda ctx: ctx.incarnation == 1 or ctx.wait_stop(), id="a")]
        )
    )
    report = recorder.wait_for(ChildTerminated, "app/a")
    recorder.wait_for(Progress, "app/a", 2)

    assert (report.reason.kind, report.reason.detail) == (
        ExitKind.CRASHED,
        "its thread ended without a word",
    )
    assert len(recorder.of(ChildTerminated)) == 1


def test_the_spare_thread_has_a_witness_when_it_is_a_child(launch, recorder, monkeypatch):
    """And none before: nobody needs to know how a spare ends."""
    silent, end = threading.Event(), ThreadChild._end
    lives = []

    def fail(child, error):
        if silent.is_set() and child.birth.incarnation == 2:
            raise MemoryError
        return end(child, error)

    def child(ctx):
        lives.append(threading.current_thread())
        if ctx.incarnation == 1:
            raise ValueError
        if ctx.incarnation == 2:
            wait_until(lambda: [one for one in threads.entries() if one.role is threads.Role.SPARE])
            silent.set()
            return
        ctx.wait_stop()

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(ThreadChild, "_end", fail)
    app = launch(supervisor("app", children=[thread(child, id="a")]))
    recorder.wait_for(Progress, "app/a", 3)

    assert [one.reason.detail for one in recorder.of(ChildTerminated)] == [
        None,
        "its thread ended without a word",
    ]
    assert app.which_children()[0].state is ChildState.RUNNING


def spare_threads():
    return [
        one.thread
        for one in threads.entries()
        if one.role is threads.Role.SPARE and one.thread.is_alive()
    ]


def crash_once(launch, recorder):
    """Start a child that crashes once, so that its supervisor makes a spare thread; then it is under orders."""
    orders = queue.SimpleQueue()

    def child(ctx):
        if ctx.incarnation == 1:
            raise ValueError("first")
        ctx.on_stop(lambda: orders.put(lambda: None))
        orders.get(timeout=HANG)()

    app = launch(supervisor("app", children=[thread(child, id="a")]))
    recorder.wait_for(Progress, "app/a", 2)
    return app, orders


@pytest.mark.parametrize("error", [Injected, SystemExit], ids=lambda error: error.__name__)
def test_a_supervisor_that_is_hit_while_it_makes_a_spare_thread_leaves_none(
    error, launch, recorder, monkeypatch
):
    """The exception comes when the spare runs, and before it is known whose it is."""
    start, spares = threads.launch, queue.SimpleQueue()

    def hit(entry):
        started = start(entry)
        if entry.role is threads.Role.SPARE:
            spares.put(started)
            raise error
        return started

    monkeypatch.setattr(threads, "launch", hit)
    crash_once(launch, recorder)
    spare = spares.get(timeout=HANG)
    spare.join(HANG)

    assert not spare.is_alive()


def test_a_supervisor_that_is_hit_while_it_uses_a_spare_thread_goes_on(
    launch, recorder, monkeypatch
):
    """The start has failed and is tried again; the spare has ended, and has run nothing."""
    _, orders = crash_once(launch, recorder)
    [spare] = wait_until(spare_threads)
    transform = threads.transform

    def hit(*what):
        transform(*what)
        raise Injected

    with monkeypatch.context() as patch:
        patch.setattr(threads, "transform", hit)
        orders.put(lambda: 1 / 0)
        spare.join(HANG)
    recorder.wait_for(Progress, "app/a", 3)

    assert not spare.is_alive()
    assert [type(one.reason.raised) for one in recorder.of(otpy.reports.StartError)] == [Injected]
    assert [one.incarnation for one in recorder.of(Progress, "app/a")] == [1, 2, 4]


# Memory that is gone

HOG = """
import resource, sys, threading, time
from otpy import dynamic_supervisor, start, thread
from otpy.reports import ChildTerminated

held, deaths, seconds = [], 0, float(sys.argv[1])
gone = threading.Event()

def hog(ctx):
    size = 1 << 24
    while size >= 64:
        try:
            while True:
                held.append(bytearray(size))
        except MemoryError:
            size //= 2
    gone.set()
    while True:
        held.append([None] * 4)

told = []
several = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(4)]
[one.start() for one in several]
[one.join() for one in several]  # the system keeps their stacks for the next threads
app = start(dynamic_supervisor("app", intensity=1000), log=False, reports=told.append)
app.start_child(thread(lambda ctx: ctx.wait_stop(), id="idle"))
with open("/proc/self/statm") as f:
    size = int(f.read().split()[0]) * 4096
for n in range(int(sys.argv[2])):
    resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), resource.RLIM_INFINITY))
    app.start_child(thread(hog, id=f"hog-{n}", restart="temporary"))
    gone.wait(20)
    time.sleep(seconds)
    held.clear()
    gone.clear()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    end = time.monotonic() + 10
    while len(app.which_children(timeout=5)) > 1 and time.monotonic() < end:
        time.sleep(0.01)
left = [one.id for one in app.which_children(timeout=5)]
report = app.stop(5)
told = [one for one in told if isinstance(one, ChildTerminated)]
print("left", *left, "told", len(told), "unstopped", len(report.unstopped))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_that_is_gone_for_a_while():
    """The death that it means is told, the supervisor answers, and the program ends."""
    assert python(HOG, 0.1, 2).out.split() == ["left", "idle", "told", "2", "unstopped", "0"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_that_is_gone_again_and_again():
    """As many deaths as reports."""
    for _ in range(8):
        assert python(HOG, 0.5, 3).out.split() == ["left", "idle", "told", "3", "unstopped", "0"]


def test_the_reserve_is_given_back_and_taken_again():
    """When a MemoryError is met, and in a calm moment."""
    reserve = spares.Reserve()
    reserve.take()
    held = reserve._held
    reserve.take()
    assert reserve._held is held
    reserve.spend(ValueError())
    assert reserve._held is held
    reserve.spend(MemoryError())
    assert (reserve._held, held.closed) == (None, True)
    reserve.spend(MemoryError())
    reserve.take()
    assert reserve._held is not None
    reserve.spend(MemoryError())


# Kinds of children that break their contract


STOPPED = ExitReason(ExitKind.SHUTDOWN)


class Foreign:
    """A kind of child that is not otpy's; *breaks* names the method that raises *error*."""

    breaks, error = "", None
    alive = False
    ends_when_asked = True

    def __init__(self, birth):
        self.birth = birth
        self._maybe_break("__init__")

    def _maybe_break(self, method):
        if method == self.breaks and self.birth.incarnation == 1:
            raise self.error

    def start(self, deliver):
        self._maybe_break("start")
        self.deliver = deliver
        deliver(ChildStarted(self.birth.ref))

    def stop(self):
        self._maybe_break("stop")
        if self.ends_when_asked:
            self.end()

    def kill(self, grace):
        self._maybe_break("kill")
        return False

    def abandon(self):
        self._maybe_break("abandon")

    def detach(self):
        self._maybe_break("detach")

    def stack(self):
        self._maybe_break("stack")
        return ""

    def pulse(self):
        self._maybe_break("pulse")
        return 0.0, 0.0

    @property
    def state(self):
        self._maybe_break("state")

    def end(self, reason=STOPPED):
        self.deliver(ChildExited(self.birth.ref, reason))


def foreign(method, error, **options):
    own = {
        "breaks": method,
        "error": error,
        "ends_when_asked": method not in ("kill", "abandon", "stack"),
    }
    kind = type("Foreign", (Foreign,), own)
    return ChildSpec(id="x", start=kind, shutdown=0.01, **options)


ERRORS = [
    ZeroDivisionError("broken"),
    SystemExit("broken"),
    KeyboardInterrupt("broken"),
    MemoryError("broken"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["stop", "kill", "abandon", "state", "stack"])
def test_a_kind_that_raises_when_it_is_stopped(method, error, launch, recorder):
    """The call is served, the sibling lives on, and if the child did not end it is named."""
    app = launch(supervisor("app", children=[thread(idle, id="a"), foreign(method, error)]))
    app.terminate_child("x")

    kind = Unstopped if method in ("abandon", "stack") else ShutdownError
    assert recorder.wait_for(kind, "app/x").reason.exception is (
        None if method == "stack" else error
    )
    assert [(one.id, one.incarnation, one.state.value) for one in app.which_children()] == [
        ("a", 1, "running"),
        ("x", 1, "undefined"),
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["pulse", "__init__", "start"])
def test_a_kind_that_raises_while_it_runs_or_starts(method, error, launch, recorder):
    """It is a crash of this child, told once; the sibling lives on, and the replacement comes."""
    app = launch(supervisor("app", children=[thread(idle, id="a")], intensity=5))
    heartbeat = 0.01 if method == "pulse" else None
    if method == "pulse":
        app.start_child(foreign(method, error, heartbeat=heartbeat))
        assert recorder.wait_for(ChildTerminated, "app/x").reason.exception is error
        recorder.wait_for(Progress, "app/x", 2)
    else:
        with pytest.raises(otpy.StartError) as caught:
            app.start_child(foreign(method, error))
        assert caught.value.__cause__ is error

    assert app.which_children()[0].incarnation == 1


def test_a_kind_that_raises_when_it_is_detached(launch, recorder):
    """Its crash is told, and the sibling runs on."""
    error = ZeroDivisionError("broken")
    app = otpy.start(
        supervisor("app", children=[foreign("detach", error)]), reports=recorder, log=False
    )
    app.detach()

    assert recorder.wait_for(ChildTerminated, "app/x").reason.exception is error


def test_a_kind_that_runs_on_when_it_has_broken(launch, recorder):
    """What could not be ended is named and counted, and not taken for ended."""
    spec = foreign("stop", ZeroDivisionError("broken"))
    spec.start.alive = True
    app = launch(supervisor("app", children=[spec]))
    app.terminate_child("x")

    assert isinstance(recorder.wait_for(Unstopped, "app/x").reason.exception, ZeroDivisionError)
    assert [one.path for one in app.stop().unstopped] == ["app/x"]


def test_a_kind_whose_looks_deceive(launch, recorder):
    """A stray that cannot say whether it lives is not taken for dead, and the stop report comes all the same."""

    class Sphinx(Foreign):
        @property
        def alive(self):
            raise ZeroDivisionError

    app = launch(supervisor("app", children=[ChildSpec(id="x", start=Sphinx, shutdown=0.01)]))
    Sphinx.stop = lambda self: None
    Sphinx.stack = lambda self: 1 / 0

    assert [one.path for one in app.stop().unstopped] == ["app/x"]


def test_news_that_are_not_a_kinds_own(launch, recorder):
    """What a kind says twice, after its end, about a sibling, or as somebody else, changes nothing."""
    made = []

    class Liar(Foreign):
        def __init__(self, birth):
            super().__init__(birth)
            made.append(self)

    sibling = thread(idle, id="a")
    app = launch(
        supervisor("app", children=[sibling, ChildSpec(id="x", start=Liar, restart="transient")])
    )
    liar, crash = made[0], ExitReason(ExitKind.CRASHED)
    other = next(iter(core_of(app)._children))
    for lie in (ChildExited(other, crash), StopSupervisor(), "garbage", ChildStarted(other)):
        liar.deliver(lie)
        assert (
            recorder.wait_for(StrayMessage, "app/x", len(recorder.of(StrayMessage)) or 1).item
            is not None
        )
    for reason in (crash, crash, ExitReason(ExitKind.NORMAL)):
        liar.end(reason)
    recorder.wait_for(Progress, "app/x", 2)
    liar.end(crash)
    liar.deliver(ChildStarted(liar.birth.ref))

    assert [(one.id, one.incarnation, one.state.value) for one in app.which_children()] == [
        ("a", 1, "running"),
        ("x", 2, "running"),
    ]
    assert len(recorder.of(StrayMessage)) == 4
    assert len(recorder.of(ChildTerminated)) == 1


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


# Calls on a supervisor's own thread


def test_a_call_on_a_supervisors_own_thread_is_refused(launch, recorder):
    """A finalizer may run on any thread; the call would wait for the thread that makes it."""
    refused = []

    class Caller(Foreign):
        def start(self, deliver):
            super().start(deliver)
            for call in (app.which_children, app.stop, app.wait, app.snapshot, app.detach):
                try:
                    call()
                except otpy.WouldDeadlock as error:
                    refused.append(error.path)

    app = launch(supervisor("app"))
    app.start_child(ChildSpec(id="x", start=Caller))

    assert refused == ["app"] * 5
    assert app.which_children()[0].state is ChildState.RUNNING


def test_supervisors_are_kept_apart_from_other_threads(launch):
    """Their numbers are noted while they run, and not longer."""
    from otpy.runtime.tree import SUPERVISING

    app = launch(supervisor("app", children=[supervisor("s")]))
    numbers = {core._ident for core in app._tree.directory.values()}
    assert numbers <= SUPERVISING
    app.stop()

    assert not numbers & SUPERVISING
