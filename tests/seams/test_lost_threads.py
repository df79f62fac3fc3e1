"""A thread that ends where nothing of otpy runs, and memory that is gone: each end is reported."""

import itertools
import queue
import sys
import threading

import pytest

import otpy
from otpy import (
    ChildState,
    supervisor,
    thread,
)
from otpy.children.thread import ThreadChild
from otpy.reports import (
    ChildTerminated,
    ExitKind,
    Progress,
)
from otpy.runtime import spares, threads
from tests.helpers import HANG, wait_until
from tests.seams.kit import python

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Injected(Exception):
    """Raised by another thread."""


def idle(ctx):
    ctx.wait_stop()


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
    """No thread waits for it: the start has failed."""
    cannot_begin(monkeypatch, name)
    tree = supervisor("app", intensity=1, children=[thread(idle, id="x"), supervisor("s")])
    with pytest.raises(otpy.StartError) as caught:
        otpy.start(tree, log=False)

    assert caught.value.path == name
    assert "ended before it could begin" in str(caught.value)
    assert not [one for one in threading.enumerate() if one.name == name]


def test_a_helper_that_cannot_begin(monkeypatch):
    """No thread waits for it, and it does not count as alive."""
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
    """Whatever has ended it: its witness reports that, and it is replaced."""
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
    """And none before: the end of a spare changes nothing."""
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
    assert [type(one.reason.raised) for one in recorder.of(otpy.reports.StartFailed)] == [Injected]
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
    """The death that it means is reported, the supervisor answers, and the program ends."""
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
