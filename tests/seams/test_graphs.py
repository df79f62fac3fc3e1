"""Task graphs beside hostile code: callbacks that hang, results that raise, forks.

Rule: a task is accounted for once, and ``run`` returns its summary.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import decimal
import queue
import threading

import pytest

import otpy
from otpy import ExitKind, start, supervisor
from otpy.registry import ThreadState
from otpy.runtime import threads
from otpy.taskgraph import Outcome, TaskGraph
from otpy.taskgraph.run import Scheduler
from tests.helpers import HANG, wait_until
from tests.seams.kit import python

PASSED, FAILED, SKIPPED, CANCELLED = Outcome


def nothing():
    pass


@pytest.fixture
def gate():
    """Opens when the test ends."""
    event = threading.Event()
    yield event
    event.set()


# Graphs: stuck tasks, contexts, back-off


def test_any_number_of_tasks_may_be_stuck(gate):
    """A stuck task costs a thread that is left behind.

    The limits of the tree inside do not end the run.
    """
    count = 101  # one more than a tree allows by default
    stuck = [f"t{number}" for number in range(count)]

    def last():
        given_up = ThreadState.UNSTOPPED
        mine = [entry for entry in threads.entries() if entry.name.startswith("tasks/workers/")]
        wait_until(
            lambda: sum(entry.state is given_up for entry in mine) >= count, "all are given up"
        )
        return "done"

    graph = TaskGraph(workers=count + 1)
    for name in stuck:
        graph.add(gate.wait, name, timeout=0.01)
    graph.add(last, "last", after=stuck)
    summary = graph.run()

    assert (summary.failed, summary.passed, summary.cancelled) == (count, 1, 0)
    assert {failure.kind for failure in summary.failures.values()} == {ExitKind.STALLED}
    assert graph.state["results"] == {"last": "done"}


user = contextvars.ContextVar("user", default="nobody")


def log_in(name):
    user.set(name)
    decimal.getcontext().prec = 3


async def log_in_async(name):
    log_in(name)


def who():
    return user.get(), decimal.getcontext().prec == 3


async def who_async():
    return who()


@pytest.mark.parametrize("body", [who, who_async])
def test_a_task_sees_no_context_variables_of_others(body):
    """The tasks share a thread.

    It holds for plain and async tasks, and for a failed attempt and its retry.
    """
    tries = []

    def fails_once():
        tries.append(who())
        log_in("one that failed")
        if len(tries) == 1:
            raise ValueError

    graph = TaskGraph(workers=1)
    graph.add(lambda: log_in("one"), "plain")
    graph.add(lambda: log_in_async("two"), "async")
    graph.add(fails_once, retries=1)
    graph.add(body, "seen", after=["plain", "async", "fails_once"])
    graph.add(lambda: otpy.current().path, "path")
    assert graph.run().ok

    assert graph.state["results"]["seen"] == ("nobody", False)
    assert graph.state["results"]["path"] == "tasks/workers/worker-1"
    assert tries == [("nobody", False)] * 2


# Graphs: callbacks that never return


HANGING = """
    import os, signal, threading, time
    import otpy, otpy.registry
    from otpy import taskgraph
    from otpy.taskgraph import TaskGraph

    taskgraph.run.LAST_WORD = 0.1
    late = threading.Event()

    def hang(*args):
        ctx = otpy.current()
        os.kill(os.getpid(), signal.SIGINT)
        while ctx.running:
            time.sleep(0.01)
        time.sleep(1.2)  # a signal that comes sooner is the same request
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

    def stuck():
        late.wait()
        return "too late"

    graph = TaskGraph(workers=2)
    graph.add(stuck, "a")
    graph.add(lambda: "done", "b")
    graph.add(lambda: None, "c", after=["b"])
    graph.on_task_done(hang)
    summary = graph.run()
    print(summary.outcomes["a"].value, summary.outcomes["c"].value, len(summary.outcomes))
    late.set()
    stuck = [one.thread for one in otpy.registry.active() if "worker-1" in one.name]
    for thread in stuck:
        thread.join(10)
    print(graph.state["results"])
"""


def test_a_callback_that_never_returns_cannot_keep_run_from_returning():
    """The second signal gives the scheduler up.

    The summary has every task, and no task that ends later counts.
    """
    ran = python(HANGING)

    assert ran.out.splitlines() == ["cancelled cancelled 3", "{'b': 'done'}"]
    assert ran.err == ""


def test_a_callback_that_never_returns_is_named_by_the_tree_that_runs_the_graph(gate):
    """The stop of the tree has a limit, and its report names the scheduler."""
    entered, graph = threading.Event(), TaskGraph()
    graph.add(nothing, "a")
    graph.on_task_done(lambda name, outcome: (entered.set(), gate.wait()))
    app = start(supervisor("app", children=[graph.as_child("nightly")]), log=False)
    assert entered.wait(HANG)
    report = app.stop(0.2)

    assert [left.path for left in report.unstopped] == ["app/nightly/scheduler"]
    assert "gate.wait" in report.unstopped[0].stack


def test_a_scheduler_that_crashes_before_it_begins_is_reported(monkeypatch):
    """``run`` raises InternalError.

    A summary in which all is cancelled would hide the crash.
    """

    class Broken:
        """A lock that fails where the scheduler takes it."""

        def __init__(self):
            self.lock = threading.Lock()

        def acquire(self, blocking):
            if threading.current_thread() is not threading.main_thread():
                raise OSError("ours is broken")
            return self.lock.acquire(blocking)

    make = Scheduler.__init__

    def made_with_broken(self, blueprint):
        make(self, blueprint)
        self.begun = Broken()

    monkeypatch.setattr(Scheduler, "__init__", made_with_broken)
    graph = TaskGraph()
    graph.add(nothing, "a")
    with pytest.raises(otpy.InternalError, match="ours is broken"):
        graph.run()


# Graphs: results and exceptions that are hostile


class Hostile:
    """A result that raises whatever is done with it."""

    def __getattribute__(self, name):
        raise SystemExit(f"do not look at {name}")

    def __repr__(self):
        raise SystemExit("do not print")

    __eq__ = __hash__ = __bool__ = __str__ = __len__ = __iter__ = __repr__


class HostileError(Exception):
    """An exception that raises whatever is done with it."""

    def __getattribute__(self, name):
        raise SystemExit(f"do not look at {name}")

    def __repr__(self):
        raise SystemExit("do not print")

    __eq__ = __hash__ = __str__ = __repr__


def test_results_and_exceptions_may_be_hostile():
    """A run only hands them on, and its summary can be compared and printed."""

    def fail():
        raise HostileError

    def fail_with_notes():
        error = ValueError("notes")
        error.__notes__ = Hostile()
        raise error

    graph = TaskGraph(workers=1)
    graph.add(lambda: Hostile(), "result")
    graph.add(fail, retries=1)
    graph.add(fail_with_notes)
    graph.add(nothing, "next", after=["result", "fail", "fail_with_notes"])
    summary = graph.run()

    assert dict(summary.outcomes) == {
        "result": PASSED,
        "fail": FAILED,
        "fail_with_notes": FAILED,
        "next": PASSED,
    }
    assert {one.kind for one in summary.failures.values()} == {ExitKind.CRASHED}
    assert "HostileError" in summary.failures["fail"].traceback
    assert "Hostile" in repr(summary)
    assert summary == summary  # noqa: PLR0124
    assert type(graph.state["results"]["result"]) is Hostile


def test_an_exception_that_blocks_while_it_is_printed_holds_up_its_task_alone(gate):
    """Its text is made on the worker, within the timeout of the task."""

    class Blocks(Exception):
        def __str__(self):
            gate.wait()
            return "at last"

    def fail():
        raise Blocks

    graph = TaskGraph(workers=2)
    graph.add(fail, timeout=0.05)
    graph.add(nothing, "other")
    graph.add(nothing, "next", after=["fail"])
    summary = graph.run()

    assert dict(summary.outcomes) == {"fail": FAILED, "other": PASSED, "next": PASSED}
    assert summary.failures["fail"].kind is ExitKind.STALLED


def test_a_dict_of_results_that_raises_costs_the_task_and_not_the_run():
    """The dict is the user's own. The worker that met its exception is replaced."""

    class Full(dict):
        def __setitem__(self, key, value):
            raise OSError("no space left")

    graph = TaskGraph(workers=1, state={"results": Full()})
    graph.add(lambda: 1, "a")
    graph.add(nothing, "b", after=["a"])
    summary = graph.run()

    assert dict(summary.outcomes) == {"a": FAILED, "b": FAILED}
    assert "no space left" in summary.failures["a"].traceback


def test_a_state_may_be_cleared_before_the_child_starts():
    """A run keeps the lock and the results that the state had when the run was
    described.
    """
    summaries, graph = queue.SimpleQueue(), TaskGraph()
    graph.add(lambda: 1, "a")
    graph.on_done(summaries.put)
    child = graph.as_child("nightly")
    results = graph.state["results"]
    graph.state.clear()
    with start(supervisor("app", children=[child]), log=False):
        assert summaries.get(timeout=HANG).ok

    assert results == {"a": 1}


def test_a_task_that_forks_and_returns_there_ends_the_fork():
    """The fork takes no further task, and does not wait for ever."""
    ran = python(
        """
        import os, time
        from otpy.taskgraph import TaskGraph
        def fork():
            pid = os.fork()
            if pid == 0:
                return "in the fork"
            for _ in range(2000):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    return "ended"
                time.sleep(0.01)
            os.kill(pid, 9)
            return "hung"
        def fail():
            if fork() == "in the fork":
                raise ValueError
            return "ended"
        graph = TaskGraph(workers=1)
        graph.add(fork)
        graph.add(fail)
        graph.add(lambda: print("once", flush=True), "after", after=["fork", "fail"])
        print(graph.run().ok, graph.state["results"]["fork"])
        """,
        flags=["-W", "ignore"],
    )
    assert ran.out.splitlines() == ["once", "True ended"]


def test_an_error_about_a_name_lists_some_names_only():
    """A graph may have thousands of tasks; the message stays a line to be read."""
    graph = TaskGraph()
    for number in range(1000):
        graph.add(nothing, f"t{number}", after=["t0"] if number else [])
    graph.add(nothing, "last", after=["t1000"])
    with pytest.raises(
        otpy.SpecError,
        match=r"after = 't1000': expected one of the tasks: t0, t1, .*, and 981 more$",
    ) as e:
        graph.run()

    assert len(str(e.value)) < 300


def test_a_coroutine_made_by_other_means_is_awaited():
    """A compiler may turn an async function into an object that is no
    ``types.CoroutineType``.
    """

    class Compiled(collections.abc.Coroutine):
        def __init__(self):
            self.inner = asyncio.sleep(0, "ran")

        def __await__(self):
            return self.inner.__await__()

        def send(self, value):
            return self.inner.send(value)

        def throw(self, *args):
            return self.inner.throw(*args)

        def close(self):
            return self.inner.close()

    graph = TaskGraph()
    graph.add(lambda: Compiled(), "a")
    assert graph.run().ok
    assert graph.state["results"] == {"a": "ran"}
