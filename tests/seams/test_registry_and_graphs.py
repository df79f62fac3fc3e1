"""The registry and task graphs beside hostile code: callbacks that hang, results that
raise, forks, signals in between.

Rule: a thread is waited for or refused, a task is accounted for once, and ``run`` returns its summary.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import decimal
import queue
import sys
import threading
import time

import pytest

import otpy
from otpy import Backoff, ExitKind, registry, start, supervisor
from otpy.registry import ThreadRegistry, ThreadState
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


# The registry


def test_a_thread_that_was_just_spawned_is_waited_for(monkeypatch):
    """By the thread that has spawned it, too, however slowly it comes to its first
    line.
    """
    reg, run = ThreadRegistry(), threads.Entry.run

    def slow(entry):
        assert reg.wait_shutdown(HANG)
        run(entry)

    monkeypatch.setattr(threads.Entry, "run", slow)
    reg.spawn(reg.wait_shutdown, name="polite")
    stats = reg.shutdown_all(timeout=HANG)

    assert (stats.joined_names, stats.timeout_names) == (("polite",), ())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_handler_that_shuts_down_in_the_middle_of_spawn(when, monkeypatch):
    """Law 1: the thread is refused; and named, if the handler could see it."""
    reg, enlist, stats = ThreadRegistry(), threads.enlist, []

    def interrupted(*args, **options):
        if when == "before":
            stats.append(reg.shutdown_all(timeout=0))
        entry = enlist(*args, **options)
        if when == "after":
            stats.append(reg.shutdown_all(timeout=0))
        return entry

    monkeypatch.setattr(threads, "enlist", interrupted)
    ran = threading.Event()
    with pytest.raises(otpy.NotAlive, match="t: shutdown_all has been called"):
        reg.spawn(ran.set, name="t")

    assert [one.timeout_names for one in stats] == [() if when == "before" else ("t",)]
    assert reg._entries() == []
    assert reg.shutdown_all(timeout=HANG).total == 0
    assert not ran.is_set()


@pytest.mark.parametrize("fails", [False, True])
def test_an_exception_raised_from_outside_in_the_wrapper_is_one_report(fails):
    """Law 3: at whatever line of ours it hits, before the target, after it, or while
    its own failure is handled.
    """

    class Injected(BaseException):
        pass

    def target():
        if fails:
            raise ValueError("its own")

    def trial(chosen):
        """Return the lines of ours that have run, and what was reported; raise in front
        of the line *chosen*.
        """
        reg, told, lines = ThreadRegistry(), [], []
        reg.subscribe(told.append)

        def trace(frame, event, arg):
            if (
                frame.f_code.co_filename != registry.spawned.__file__
                or frame.f_code.co_name
                not in (
                    "run",
                    "_outcome",
                )
            ):
                return None
            if event == "line":
                lines.append((frame.f_code.co_name, frame.f_lineno))
                if len(lines) - 1 == chosen:
                    raise Injected
            return trace

        threading.settrace(trace)
        try:
            spawned = reg.spawn(target, name="t")
        finally:
            threading.settrace(None)
        spawned.join(HANG)
        return lines, [type(report.reason.exception) for report in told]

    lines, reports = trial(None)
    assert reports == [ValueError] * fails
    assert len(lines) >= 4
    # the first one is "try", before which nothing can be caught
    for chosen in range(1, len(lines)):
        _, reports = trial(chosen)
        assert reports == [Injected], lines[chosen]


class Rude(str):
    """A str that does not like to be looked at."""

    __slots__ = ()

    def __eq__(self, other):
        raise RuntimeError("do not compare")

    def __hash__(self):
        raise RuntimeError("do not hash")

    def __str__(self):
        raise RuntimeError("do not print")

    __iter__ = __len__ = __format__ = __repr__ = __ne__ = __eq__


def test_names_are_plain_text_whatever_class_they_were(gate):
    """Nobody's code runs while the registry's lock is held, nor where names are
    compared later.
    """
    reg = ThreadRegistry()
    reg.spawn(gate.wait, name=Rude("t"), purpose=Rude("waits"))
    with pytest.raises(otpy.AlreadyStarted):
        reg.spawn(gate.wait, name="t")
    (seen,) = reg.active()

    assert (type(seen.name), type(seen.purpose), seen.thread.name) == (str, str, "t")
    assert "waits" in reg.dump_status()
    graph = TaskGraph()
    graph.add(nothing, Rude("a"))
    graph.add(nothing, Rude("b"), after=[Rude("a")], tags=[Rude("x")])
    assert dict(graph.run().outcomes) == {"a": PASSED, "b": PASSED}
    assert graph.describe().edges == (("a", "b"),)


def test_all_stacks_are_taken_at_once(gate, monkeypatch):
    """Many threads, and each has a stack: to look at all frames once per thread would
    be quadratic.
    """
    reg, look, looks = ThreadRegistry(), sys._current_frames, []
    for number in range(20):
        reg.spawn(gate.wait, name=f"t{number}")
    monkeypatch.setattr(sys, "_current_frames", lambda: looks.append(1) or look())
    text = reg.dump_status(stacks=True)

    assert text.count("in wait") >= 20
    assert len(looks) == 1


# Graphs: stuck tasks, contexts, back-off


def test_any_number_of_tasks_may_be_stuck(gate):
    """A stuck task costs a thread that is left behind. No limit of the tree inside
    reaches the one who calls run.
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
def test_what_a_task_sets_in_context_variables_no_other_one_sees(body):
    """On the same thread; plain and async tasks, a failed attempt and its retry."""
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


def test_a_task_waits_as_a_child_with_the_same_backoff_does(monkeypatch):
    """One arithmetic for both, also where the waits grow steeply."""
    waits, arm = [], Scheduler._arm

    def note(self, at, call, *arguments):
        if call == self._try_again:
            waits.append(round(at - time.monotonic()))
            at = 0.0
        arm(self, at, call, *arguments)

    def fail():
        raise ValueError

    monkeypatch.setattr(Scheduler, "_arm", note)
    graph = TaskGraph(workers=1)
    graph.add(fail, retries=5, backoff=Backoff(0.001, 3600.0, factor=1000.0, jitter=0.0))
    graph.run()

    assert waits == [0, 1, 1000, 3600, 3600]


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
    """The second signal gives the scheduler up. The summary has every task, and nothing
    that ends later counts.
    """
    ran = python(HANGING)

    assert ran.out.splitlines() == ["cancelled cancelled 3", "{'b': 'done'}"]
    assert ran.err == ""


def test_a_callback_that_never_returns_is_named_by_the_tree_that_runs_the_graph(gate):
    """The stop of the tree has a limit, and says what did not answer."""
    entered, graph = threading.Event(), TaskGraph()
    graph.add(nothing, "a")
    graph.on_task_done(lambda name, outcome: (entered.set(), gate.wait()))
    app = start(supervisor("app", children=[graph.as_child("nightly")]), log=False)
    assert entered.wait(HANG)
    report = app.stop(0.2)

    assert [left.path for left in report.unstopped] == ["app/nightly/scheduler"]
    assert "gate.wait" in report.unstopped[0].stack


def test_a_scheduler_that_crashes_before_it_begins_is_told(monkeypatch):
    """A summary in which all is cancelled would hide it."""

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
    def __getattribute__(self, name):
        raise SystemExit(f"do not look at {name}")

    def __repr__(self):
        raise SystemExit("do not print")

    __eq__ = __hash__ = __str__ = __repr__


def test_results_and_exceptions_may_be_hostile():
    """Nothing is done with them but to hand them on; a summary can be compared and
    printed all the same.
    """

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
    """What it says is asked for on its worker, within the time of the task."""

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
    """It is the user's own; the worker that met it is replaced."""

    class Full(dict):
        def __setitem__(self, key, value):
            raise OSError("no space left")

    graph = TaskGraph(workers=1, state={"results": Full()})
    graph.add(lambda: 1, "a")
    graph.add(nothing, "b", after=["a"])
    summary = graph.run()

    assert dict(summary.outcomes) == {"a": FAILED, "b": FAILED}
    assert "no space left" in summary.failures["a"].traceback


def test_a_state_that_was_cleared_before_the_child_starts_hurts_nobody():
    """The run keeps what it has found when it was made."""
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
    """The fork is another process: it takes no further task, and does not wait for
    ever.
    """
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
    """A graph may have thousands; the message stays a line that can be read."""
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
    """What a compiler made of an async function is no ``types.CoroutineType``, and
    asyncio runs it all the same.
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
