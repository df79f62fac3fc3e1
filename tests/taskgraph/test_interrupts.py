"""Runs that are interrupted, and runs in a tree that stops."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import otpy
from otpy import Backoff, Context, ExitKind, SpecError
from otpy.runtime import running, threads
from otpy.taskgraph import TaskGraph
from otpy.taskgraph.run import Scheduler
from tests.helpers import HANG, wait_until
from tests.taskgraph.kit import CANCELLED, PASSED, fail, nothing


@pytest.fixture
def each_signal_counts(monkeypatch):
    """Let each signal count, however soon it comes. So no test waits for a second."""
    monkeypatch.setattr(running, "SAME", -1.0)


def test_an_interrupt_lets_running_tasks_finish():
    """The other tasks are cancelled, in the order of declaration, and the handler of
    the user is back.
    """

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.wait(HANG)
        return "done"

    stopping = threading.Event()
    stop = Scheduler._on_stop
    graph = TaskGraph(workers=1)
    graph.add(interrupt)
    for number in range(5):
        graph.add(nothing, f"t{number}", ["interrupt"] if number % 2 else [])
    settled = []
    graph.on_task_done(lambda name, outcome: settled.append((name, outcome)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_on_stop", lambda *args: (stop(*args), stopping.set()))
        summary = graph.run()

    assert summary.outcomes["interrupt"] is PASSED
    assert summary.cancelled == 5
    assert graph.state["results"] == {"interrupt": "done"}
    assert settled == list(summary.outcomes.items())
    assert re.fullmatch(r"1 passed, 0 failed, 0 skipped, 5 cancelled in \d+\.\ds", summary.text)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("backoff", [None, Backoff(0.001, 0.001)])
def test_nothing_is_tried_again_after_an_interrupt(backoff):
    """A task that fails after the interrupt has failed, whatever its retries."""
    stopping, stop, tries = threading.Event(), Scheduler._on_stop, []

    def interrupt():
        tries.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.wait(HANG)
        raise ValueError

    graph = TaskGraph(workers=1)
    graph.add(interrupt, retries=3, backoff=backoff)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_on_stop", lambda *args: (stop(*args), stopping.set()))
        summary = graph.run()

    assert summary.failures["interrupt"].attempts == len(tries) == 1


@pytest.mark.usefixtures("each_signal_counts")
@pytest.mark.parametrize("kind", ["stuck", "loop"])
def test_a_second_interrupt_cancels_running_tasks(kind):
    """The summary comes and has every task, even if a task cannot be stopped."""
    lock = threading.Lock()
    lock.acquire()

    def stuck():
        lock.acquire()

    def loop():
        while True:
            time.sleep(0.001)

    graph = TaskGraph(workers=2)
    graph.add({"stuck": stuck, "loop": loop}[kind], "long")
    graph.add(nothing, "after", ["long"])
    stop = Scheduler._on_stop

    def again(*args):
        stop(*args)
        os.kill(os.getpid(), signal.SIGINT)

    graph.on_task_run(lambda name, thread: os.kill(os.getpid(), signal.SIGINT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_on_stop", again)
        try:
            summary = graph.run()
        finally:
            lock.release()

    assert dict(summary.outcomes) == {"long": CANCELLED, "after": CANCELLED}
    wait_until(lambda: not threads.entries(), "the stuck thread ends")


@pytest.mark.usefixtures("each_signal_counts")
@pytest.mark.parametrize("where", ["on_stop", "supervisor", "ready"])
def test_a_scheduler_that_is_given_up_before_it_is_up(where, monkeypatch):
    """Two interrupts during its first steps: the summary still has every task."""
    given_up, fence, step = threading.Event(), Context.fence, vars(Context)[where]

    def note(ctx):
        fence(ctx)
        given_up.set()

    def interrupted(ctx, *args):
        if ctx._birth.spec.id == "scheduler":
            os.kill(os.getpid(), signal.SIGINT)
            assert ctx._stop.wait(HANG)
            os.kill(os.getpid(), signal.SIGINT)
            assert given_up.wait(HANG)
        return step.fget(ctx) if isinstance(step, property) else step(ctx, *args)

    monkeypatch.setattr(Context, "fence", note)
    monkeypatch.setattr(
        Context, where, property(interrupted) if isinstance(step, property) else interrupted
    )
    graph = TaskGraph()
    graph.add(nothing, "a")
    graph.add(nothing, "b", ["a"])

    assert set(graph.run().outcomes.values()) == {CANCELLED}


@pytest.mark.usefixtures("each_signal_counts")
def test_nothing_is_started_after_an_interrupt_that_comes_late(monkeypatch):
    """The message to the scheduler may come after those of the workers that the second
    interrupt has stopped.
    """
    heard, started, call_back = threading.Event(), [], Context._call_back

    def late(ctx):
        if ctx._birth.spec.id == "scheduler":
            heard.wait(HANG)
        call_back(ctx)

    def run_late(ctx):
        threads.spawn(
            lambda: late(ctx), name="late", role=threads.Role.HELPER, purpose="", owner=None
        )

    def interrupt(name, thread):
        os.kill(os.getpid(), signal.SIGINT)
        assert otpy.current()._stop.wait(HANG)
        os.kill(os.getpid(), signal.SIGINT)

    def wait():
        while True:
            time.sleep(0.001)

    monkeypatch.setattr(Context, "_call_back", run_late)
    graph = TaskGraph(workers=1)
    graph.add(wait, "long")
    graph.add(nothing, "after", ["long"])
    graph.on_task_run(interrupt)
    graph.on_task_start(lambda name: (started.append(name), name == "after" and heard.set()))
    summary = graph.run()
    heard.set()

    assert dict(summary.outcomes) == {"long": CANCELLED, "after": CANCELLED}
    assert started == ["long"]


PROGRAM = """
import os, random, signal, sys, threading
from otpy.taskgraph import TaskGraph

def interrupted(seed):
    ran, settled, graph = [], [], TaskGraph(workers=3)
    for number in range(400):
        graph.add(lambda number=number: ran.append(number), f"t{number}", [f"t{number - 7}"] if number > 7 else [])
    graph.on_task_done(lambda name, outcome: settled.append(name))
    shot = threading.Timer(random.Random(seed).random() * 0.02, os.kill, (os.getpid(), signal.SIGINT))
    try:
        shot.start()
        summary = graph.run()
        assert len(summary.outcomes) == 400 and sorted(settled) == sorted(summary.outcomes), (seed, summary)
        assert summary.passed == len(ran) and summary.passed + summary.cancelled == 400, (seed, summary)
        print("inside", seed)
        shot.join()
    except KeyboardInterrupt:
        shot.join()
        print("outside", seed)

for seed in range(8):
    interrupted(seed)
"""


def test_interrupts_at_random_moments():
    """The summary says of each task whether it ran; or the interrupt came before or
    after the run.
    """
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        str(seed) for seed in range(8)
    ]


# In a tree


def test_a_graph_is_a_child(launch):
    """It ends when all tasks are settled, a failed task is no crash, and it can be
    restarted.
    """
    done = queue.SimpleQueue()
    graph = TaskGraph()
    graph.add(nothing, "a")
    graph.add(fail, "b", ["a"])
    graph.on_done(done.put)
    app = launch(otpy.supervisor("app", children=[graph.as_child("graph")]))
    summary = done.get(timeout=HANG)

    assert (summary.passed, summary.failed) == (1, 1)
    wait_until(lambda: app.which_children()[0].state is otpy.ChildState.UNDEFINED, "the child ends")
    assert app.which_children()[0].last_exit.is_normal
    app.restart_child("graph")
    assert done.get(timeout=HANG).failed == 1


def test_a_graph_that_is_stopped_with_its_tree(launch):
    """Running tasks may finish within its ``shutdown``; the others are cancelled."""
    done, begun, go_on = queue.SimpleQueue(), threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(HANG)

    graph = TaskGraph(workers=1)
    graph.add(slow)
    graph.add(nothing, "after", ["slow"])
    graph.on_done(done.put)
    stop = Scheduler._on_stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_on_stop", lambda *args: (stop(*args), go_on.set()))
        app = launch(otpy.supervisor("app", children=[graph.as_child("graph")]))
        assert begun.wait(HANG)
        app.stop()

    assert dict(done.get(timeout=HANG).outcomes) == {"slow": PASSED, "after": CANCELLED}


def test_a_graph_that_does_not_stop_in_time(launch):
    """The stuck task is cancelled, and its thread is in the report of the stop."""
    done, begun, lock = queue.SimpleQueue(), threading.Event(), threading.Lock()
    lock.acquire()

    def stuck():
        begun.set()
        lock.acquire()

    graph = TaskGraph()
    graph.add(stuck)
    graph.on_done(done.put)
    app = launch(otpy.supervisor("app", children=[graph.as_child("graph", shutdown=0.05)]))
    assert begun.wait(HANG)
    try:
        report = app.stop()
        assert dict(done.get(timeout=HANG).outcomes) == {"stuck": CANCELLED}
        assert [one.path for one in report.unstopped] == ["app/graph/workers/worker-1"]
    finally:
        lock.release()


def test_threads_of_stuck_tasks_count_for_the_tree(launch):
    """``max_unstopped`` of the tree bounds them like all threads left behind."""
    never = threading.Event()
    graph = TaskGraph()
    graph.add(never.wait, "stuck", timeout=0.02)
    tree = otpy.supervisor(
        "app", children=[graph.as_child("graph"), otpy.thread(lambda ctx: ctx.wait_stop(), id="a")]
    )
    app = launch(tree, max_unstopped=0)
    try:
        assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    finally:
        never.set()


def test_options_of_the_child_are_checked():
    """The options are those of a supervisor; ``restart`` is transient by default."""
    with pytest.raises(SpecError, match="graph: shutdown = -1"):
        TaskGraph().as_child("graph", shutdown=-1)
    assert TaskGraph().as_child("graph").restart is otpy.Restart.TRANSIENT
    assert TaskGraph().as_child("graph", restart="permanent").restart is otpy.Restart.PERMANENT
