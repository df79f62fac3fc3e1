"""Task graphs: order, failures, stalls, dead workers, interrupts, and what is told about all that."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import otpy
from otpy import Backoff, Context, ExitKind, SpecError, taskgraph
from otpy.runtime import running, threads
from otpy.taskgraph import Outcome, TaskGraph, marked, run, task
from otpy.taskgraph.run import Scheduler
from otpy.taskgraph.worker import Worker
from tests.helpers import HANG, wait_until

PASSED, FAILED, SKIPPED, CANCELLED = Outcome

DAGS = st.integers(0, 25).flatmap(
    lambda size: st.tuples(
        st.permutations(range(size)),
        st.lists(st.sets(st.integers(0, 24), max_size=4), min_size=size, max_size=size),
        st.sets(st.integers(0, 24), max_size=4),
        st.integers(1, 5),
    )
)
"""(the order of declaration, what each could come after, who fails, workers); a task comes after lower numbers only."""


def nothing():
    pass


def fail():
    raise ValueError("ordered to fail")


class Journal:
    """What ran when: tasks that note their begin and their end."""

    def __init__(self, failing=()):
        self.events, self.failing = [], failing
        self._lock, self._now = threading.Lock(), 0
        self.most = 0

    def body(self, number):
        def run():
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
                self.events.append(("begin", number))
            with self._lock:
                self._now -= 1
                self.events.append(("end", number))
            if number in self.failing:
                raise ValueError(number)

        return run

    def build(self, order, before, **options):
        graph = TaskGraph(**options)
        for number in order:
            graph.add(
                self.body(number), f"t{number}", [f"t{one}" for one in sorted(before[number])]
            )
        return graph


def descendants(before, sources):
    found = set()
    for number in range(len(before)):  # in topological order
        if before[number] & (found | sources):
            found.add(number)
    return found


# Order


@given(DAGS)
@settings(max_examples=60)
def test_every_task_runs_once_and_after_those_that_it_comes_after(dag):
    """Whatever the order of declaration, and never more of them at once than there are workers."""
    order, could, failing, workers = dag
    before = [{one for one in could[number] if one < number} for number in range(len(order))]
    journal = Journal(failing)
    summary = journal.build(order, before, workers=workers).run()

    assert sorted(number for what, number in journal.events if what == "begin") == sorted(order)
    for number in order:
        begun = journal.events.index(("begin", number))
        assert all(journal.events.index(("end", one)) < begun for one in before[number])
    assert journal.most <= workers
    assert list(summary.outcomes) == [f"t{number}" for number in order]
    assert {name for name, one in summary.outcomes.items() if one is FAILED} == {
        f"t{number}" for number in order if number in failing
    }


@given(DAGS)
@settings(max_examples=60)
def test_a_failure_skips_exactly_what_comes_after_it(dag):
    """With on_failure="skip": directly or not, and nothing else."""
    order, could, failing, workers = dag
    before = [{one for one in could[number] if one < number} for number in range(len(order))]
    journal = Journal(failing)
    summary = journal.build(order, before, workers=workers, on_failure="skip").run()

    failed = set()
    for number in range(len(order)):
        if number in failing and number not in descendants(before, failed):
            failed.add(number)
    skipped = descendants(before, failed)
    ran = {number for what, number in journal.events if what == "end"}
    assert {name for name, one in summary.outcomes.items() if one is SKIPPED} == {
        f"t{one}" for one in skipped
    }
    assert set(summary.failures) == {f"t{one}" for one in failed}
    assert ran == set(order) - skipped
    assert summary.passed + summary.failed + summary.skipped == len(order)


def test_what_is_ready_runs_in_the_order_of_declaration():
    journal = Journal()
    graph = journal.build([3, 1, 2, 0, 4], [set(), {0}, set(), {0}, set()], workers=1)
    graph.run()

    assert [number for what, number in journal.events if what == "begin"] == [2, 0, 4, 3, 1]


def test_independent_tasks_run_side_by_side_on_so_many_threads():
    """Three at a time meet at a barrier, and there are three threads."""
    barrier, seen = threading.Barrier(3), set()
    graph = TaskGraph(workers=3)
    for number in range(30):
        graph.add(
            lambda: (barrier.wait(HANG), seen.add(threading.current_thread())), name=f"t{number}"
        )

    assert graph.run().ok
    assert len(seen) == 3


def test_ten_thousand_tasks():
    ran = []
    graph = TaskGraph()
    for number in range(10_000):
        graph.add(
            lambda number=number: ran.append(number),
            f"t{number}",
            [f"t{number - 100}"] if number >= 100 else [],
        )
    summary = graph.run()

    assert summary.passed == 10_000
    assert sorted(ran) == list(range(10_000))


def test_a_chain_of_thousands_that_is_skipped():
    """Nothing recurses into the graph."""
    graph = TaskGraph(on_failure="skip")
    graph.add(fail, "t0")
    for number in range(1, 5_000):
        graph.add(nothing, f"t{number}", [f"t{number - 1}"])

    assert graph.run().skipped == 4_999


# Declaring


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "tasks: name = '': expected a non-empty str"),
        ({"name": 3}, "tasks: name = 3: expected a non-empty str"),
        ({"name": "a", "after": "b"}, "tasks/a: after = 'b': expected an iterable of names"),
        ({"name": "a", "after": [nothing]}, "tasks/a: after = .*expected an iterable of names"),
        ({"name": "a", "with_state": 1}, "tasks/a: with_state = 1: expected True or False"),
        ({"name": "a", "with_state": True}, r"tasks/a: function = .*takes \(state\)"),
        ({"name": "a", "retries": -1}, "tasks/a: retries = -1: expected an int >= 0"),
        ({"name": "a", "retries": True}, "tasks/a: retries = True: expected an int >= 0"),
        (
            {"name": "a", "timeout": 0},
            "tasks/a: timeout = 0: expected a finite number of seconds > 0",
        ),
        ({"name": "a", "timeout": float("nan")}, "tasks/a: timeout = nan: expected a finite"),
        ({"name": "a", "backoff": 1}, "tasks/a: backoff = 1: expected a Backoff"),
        ({"name": "a", "tags": "x"}, "tasks/a: tags = 'x': expected an iterable of str"),
    ],
)
def test_bad_options_of_a_task_are_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        TaskGraph().add(nothing, **fields)
    with pytest.raises(SpecError, match=message):
        task(**fields)(nothing)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (3, "tasks: name = '': expected"),
        (lambda: None, "tasks: name = '': expected a non-empty str; a lambda needs"),
    ],
)
def test_what_has_no_name_needs_one(function, message):
    with pytest.raises(SpecError, match=message):
        TaskGraph().add(function)
    with pytest.raises(SpecError, match="tasks/a: function = 3: expected a callable"):
        TaskGraph().add(3, "a")


def test_a_generator_and_a_function_with_arguments_are_refused():
    def generator():
        yield

    def takes(one):
        return one

    with pytest.raises(SpecError, match="calling a generator function would run nothing"):
        TaskGraph().add(generator)
    with pytest.raises(SpecError, match="without arguments, or with_state=True"):
        TaskGraph().add(takes)
    assert TaskGraph().add(takes, with_state=True) == "takes"
    with pytest.raises(TypeError, match="no option 'retry'; there are"):
        TaskGraph().add(nothing, retry=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "tasks: workers = 0: expected an int >= 1"),
        ({"workers": 1.5}, "tasks: workers = 1.5"),
        ({"state": []}, r"tasks: state = \[\]: expected a dict"),
        ({"state": {"results": None}}, r"tasks: state\['results'\] = None: expected a dict"),
        (
            {"state": {"_state_lock": 3}},
            r"tasks: state\['_state_lock'\] = 3: expected a threading.RLock",
        ),
        ({"store_results": "no"}, "tasks: store_results = 'no': expected True or False"),
        ({"clear_results": 0}, "tasks: clear_results = 0: expected True or False"),
        ({"on_failure": "stop"}, "tasks: on_failure = 'stop': expected 'run' or 'skip'"),
    ],
)
def test_bad_options_of_a_graph_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        TaskGraph(**options)


def test_a_name_is_taken_once():
    graph = TaskGraph()
    graph.add(nothing, "a")
    with pytest.raises(
        SpecError, match="tasks/a: name = 'a': expected a name that no other task has"
    ):
        graph.add(fail, "a")


def test_unknown_dependencies_and_cycles_are_refused_before_anything_runs():
    ran = []
    unknown = TaskGraph()
    unknown.add(lambda: ran.append(1), "a")
    unknown.add(nothing, "b", ["a", "c"])
    cycle = TaskGraph()
    cycle.add(lambda: ran.append(1), "start")
    for name, after in (("a", "c"), ("b", "a"), ("c", "b")):
        cycle.add(nothing, name, [after, "start"])

    for graph, message in (
        (unknown, "tasks/b: after = 'c': expected one of the tasks: a, b"),
        (cycle, "no cycle"),
    ):
        for call in (graph.run, graph.describe, lambda graph=graph: graph.as_child("g")):
            with pytest.raises(SpecError, match=message):
                call()
    with pytest.raises(SpecError) as error:
        cycle.run()
    names = error.value.value.split(" -> ")
    assert names[0] == names[-1]
    assert sorted(names[1:]) == ["a", "b", "c"]
    assert all(
        (before, after) in {("c", "a"), ("a", "b"), ("b", "c")}
        for before, after in itertools.pairwise(names)
    )
    assert not ran


def test_decorators():
    graph = TaskGraph()

    @graph.task(after=["two"])
    def one():
        return 1

    @graph.task(name="two", with_state=True)
    def another(state):
        return state["x"]

    graph.state["x"] = 2
    assert one() == 1
    assert graph.run().ok
    assert graph.state["results"] == {"two": 2, "one": 1}


def test_marked_functions_are_found_in_their_order():
    module = type(sys)("module")

    @task(after=["a"], tags=["x"])
    def z():
        return "z"

    @task(name="a")
    def y():
        return "y"

    module.z, module.y, module.again, module.other = z, y, z, nothing
    found = marked(module)
    graph = TaskGraph()
    for one in found:
        graph.add_task(one)

    assert [one.name for one in found] == ["z", "a"]
    assert found[0].tags == ("x",)
    assert z() == "z"
    assert graph.run().ok
    assert [one.name for one in graph.tasks] == ["z", "a"]
    with pytest.raises(SpecError, match="expected a Task"):
        graph.add_task(z)


def test_a_module_with_a_stand_in_has_its_tasks():
    """Proxies of web frameworks raise whatever they are asked for, as long as there is no request."""

    class StandIn:
        def __getattr__(self, name):
            raise RuntimeError("there is no request")

    module = type(sys)("module")
    module.request, module.a = StandIn(), task(name="a")(lambda: None)

    assert [one.name for one in marked(module)] == ["a"]


# State and results


def test_state_is_shared_and_has_a_reentrant_lock():
    state = {"sum": 0}

    def add(state):
        with state["_state_lock"], state["_state_lock"]:
            state["sum"] += 1
            return state["sum"]

    graph = TaskGraph(state=state)
    for number in range(50):
        graph.add(add, f"t{number}", with_state=True)
    graph.run()

    assert graph.state is state
    assert state["sum"] == 50
    assert sorted(state["results"].values()) == list(range(1, 51))


def test_whoever_clears_the_state_hurts_nobody():
    """Between two runs, or a task, which takes the lock and the results away from all that come after."""
    graph = TaskGraph()
    graph.add(graph.state.clear, "clear")
    graph.add(lambda: 1, "a", ["clear"])

    assert graph.run().ok
    assert graph.run().ok
    graph.state.clear()
    assert graph.run().ok


def test_a_task_sees_the_results_of_those_before_it():
    graph = TaskGraph(workers=4)
    graph.add(lambda: 1, "a")
    graph.add(lambda state: state["results"]["a"] + 1, "b", ["a"], with_state=True)
    graph.add(lambda state: state["results"]["b"] + 1, "c", ["b"], with_state=True)

    assert graph.run().ok
    assert graph.state["results"] == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(("clears", "left"), [(True, {"a": 1}), (False, {"old": 0, "a": 1})])
def test_results_are_cleared_at_the_start_of_a_run(clears, left):
    graph = TaskGraph(state={"results": {"old": 0}}, clear_results=clears)
    graph.add(lambda: 1, "a")
    graph.run()

    assert graph.state["results"] == left


def test_results_are_not_stored_if_nobody_wants_them():
    graph = TaskGraph(store_results=False)
    graph.add(lambda: 1, "a")

    assert graph.run().ok
    assert graph.state["results"] == {}


# Failures


class Odd(BaseException):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(
    "kind",
    [
        ValueError,
        KeyboardInterrupt,
        GeneratorExit,
        otpy.Killed,
        otpy.Fatal,
        Odd,
        asyncio.CancelledError,
    ],
)
def test_whatever_a_task_raises_is_its_failure(kind, is_late):
    """And the worker goes on: there is but one."""
    seen = set()

    def body():
        seen.add(threading.current_thread())
        if is_late:
            assert other.wait(HANG)
        raise kind

    other = threading.Event()
    graph = TaskGraph(workers=2 if is_late else 1)
    graph.add(body, "bad")
    graph.add(lambda: (other.set(), seen.add(threading.current_thread())), "good")
    summary = graph.run()

    assert dict(summary.outcomes) == {"bad": FAILED, "good": PASSED}
    failure = summary.failures["bad"]
    assert (failure.name, failure.kind, failure.attempts) == ("bad", ExitKind.CRASHED, 1)
    assert isinstance(failure.exception, kind)
    assert "in body" in failure.traceback
    assert str(Path(taskgraph.__file__).parent) not in failure.traceback
    assert "bad" not in graph.state["results"]
    assert is_late or len(seen) == 1


def test_a_failure_does_not_stop_what_comes_after_unless_asked():
    graph = TaskGraph()
    graph.add(fail, "a")
    graph.add(nothing, "b", ["a"])

    assert dict(graph.run().outcomes) == {"a": FAILED, "b": PASSED}


@pytest.mark.parametrize("backoff", [None, Backoff(0.001, 0.002)])
def test_a_task_is_tried_again(backoff):
    """Twice at most; the last failure is the one that is told."""
    tries = {"passes": 0, "fails": 0}

    def body(name, good):
        tries[name] += 1
        if tries[name] != good:
            raise ValueError(tries[name])
        return "good"

    graph = TaskGraph(workers=1)
    graph.add(lambda: body("passes", 3), "passes", retries=2, backoff=backoff)
    graph.add(lambda: body("fails", 4), "fails", retries=2, backoff=backoff)
    summary = graph.run()

    assert tries == {"passes": 3, "fails": 3}
    assert dict(summary.outcomes) == {"passes": PASSED, "fails": FAILED}
    assert summary.failures["fails"].attempts == 3
    assert summary.failures["fails"].exception.args == (3,)
    assert graph.state["results"] == {"passes": "good"}


def test_waits_before_retries_grow_up_to_the_maximum(monkeypatch):
    """They are those of a child with the same ``Backoff``."""
    waits = []
    arm = Scheduler._arm

    def note(self, at, call, *arguments):
        if call == self._try_again:
            waits.append(round(at - time.monotonic()))
            at = 0.0
        arm(self, at, call, *arguments)

    monkeypatch.setattr(Scheduler, "_arm", note)
    graph = TaskGraph(workers=1)
    graph.add(fail, retries=5, backoff=Backoff(1.0, 10.0, factor=3.0, jitter=0.0))
    graph.run()

    assert waits == [1, 3, 9, 10, 10]


# Stalls


def test_a_task_that_is_stuck_is_stalled_and_its_worker_replaced():
    """In a call that nothing interrupts. There is one worker, and the rest passes all the same."""
    stuck, passed = threading.Lock(), []
    stuck.acquire()

    def hang():
        stuck.acquire()
        return "late"

    graph = TaskGraph(workers=1)
    graph.add(hang, timeout=0.05)
    graph.add(lambda: passed.append(otpy.current().path), "after", ["hang"])
    try:
        summary = graph.run()
    finally:
        stuck.release()

    assert dict(summary.outcomes) == {"hang": FAILED, "after": PASSED}
    failure = summary.failures["hang"]
    assert (failure.kind, failure.attempts) == (ExitKind.STALLED, 1)
    assert isinstance(failure.exception, TimeoutError)
    assert str(failure.exception) == "hang was not done after 0.05 s"
    assert "stuck.acquire()" in failure.traceback
    assert passed == ["tasks/workers/worker-1"]
    wait_until(lambda: not threads.entries(), "the stuck thread ends")
    assert "hang" not in graph.state["results"]


def test_a_task_that_can_be_interrupted_is():
    """A loop of Python code; its finally clauses run."""
    interrupted = threading.Event()

    def loop():
        try:
            while True:
                time.sleep(0.001)
        finally:
            interrupted.set()

    graph = TaskGraph(workers=1)
    graph.add(loop, timeout=0.02)

    assert graph.run().failed == 1
    assert interrupted.is_set()


def test_a_task_that_looks_hears_that_its_time_is_over(monkeypatch):
    """``otpy.current().running`` turns False; so it can end by itself, before it is interrupted."""
    monkeypatch.setattr(run, "FAREWELL", HANG)
    ended = threading.Event()

    def look():
        while otpy.current().running:
            time.sleep(0.001)
        ended.set()

    graph = TaskGraph(workers=1)
    graph.add(look, timeout=0.02)

    assert graph.run().failures["look"].kind is ExitKind.STALLED
    assert ended.wait(HANG)


def test_an_async_function_that_begins_when_its_time_is_over_is_cancelled_at_once(monkeypatch):
    """Who asked it to stop could not know what to cancel: there was no loop yet."""
    monkeypatch.setattr(run, "FAREWELL", HANG)
    cancelled = threading.Event()

    async def rest():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def late():
        while otpy.current().running:
            time.sleep(0.001)
        return rest()

    graph = TaskGraph(workers=1)
    graph.add(late, timeout=0.02, retries=0)
    assert graph.run().failed == 1
    assert cancelled.wait(HANG)


def test_only_the_worker_that_stalled_is_replaced():
    """Others, idle or busy, keep their threads."""
    lives, stalled, hold = queue.SimpleQueue(), [], threading.Event()

    def live():
        lives.put((otpy.current().id, threading.current_thread()))

    def loop():
        stalled.append(otpy.current().id)
        while True:
            time.sleep(0.001)

    def busy():
        live()
        assert hold.wait(HANG)
        live()

    graph = TaskGraph(workers=3)
    graph.add(busy, "busy")
    graph.add(loop, "loop", timeout=0.02)
    graph.add(live, "idle")
    for number in range(5):
        graph.add(live, f"after{number}", ["loop", "idle"])
    graph.add(hold.set, "end", [f"after{number}" for number in range(5)])
    summary = graph.run()

    assert (summary.passed, summary.failed) == (8, 1)
    threads_of = {}
    while not lives.empty():
        id, thread = lives.get()
        threads_of.setdefault(id, set()).add(thread)
    assert all(len(threads) == 1 for id, threads in threads_of.items() if id != stalled[0])
    assert set(threads_of) <= {"worker-1", "worker-2", "worker-3"}


def test_a_stalled_task_is_tried_again():
    tries = []

    def slow():
        tries.append(otpy.current().incarnation)
        while len(tries) == 1:
            time.sleep(0.001)
        return len(tries)

    graph = TaskGraph(workers=1)
    graph.add(slow, retries=1, timeout=0.1)
    summary = graph.run()

    assert summary.ok
    assert graph.state["results"] == {"slow": 2}


def test_what_a_stalled_task_says_late_changes_nothing():
    """It swallows the interrupt, and returns when another one has its result."""
    go_on, tries = threading.Event(), []

    def slow():
        tries.append(None)
        if len(tries) == 2:
            return "second"
        while not go_on.is_set():
            with contextlib.suppress(otpy.Killed):
                time.sleep(0.001)
        return "first"

    graph = TaskGraph(workers=1)
    graph.add(slow, retries=1, timeout=0.1)
    try:
        summary = graph.run()
    finally:
        go_on.set()
    wait_until(lambda: not threads.entries(), "the first one ends")

    assert summary.ok
    assert graph.state["results"] == {"slow": "second"}


def test_a_worker_whose_task_has_stalled_takes_no_other():
    """Its task returns before it is interrupted: what comes next must not be hit in its place."""
    go_on, seen = threading.Event(), {}

    def slow():
        seen["slow"] = threading.current_thread()
        assert go_on.wait(HANG)

    def late(self, seat):
        go_on.set()
        seen["slow"].join(HANG)
        replace(self, seat)

    replace = Scheduler._replace
    graph = TaskGraph(workers=1)
    graph.add(slow, timeout=0.02)
    graph.add(lambda: seen.update(next=threading.current_thread()), "next")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_replace", late)
        summary = graph.run()

    assert dict(summary.outcomes) == {"slow": FAILED, "next": PASSED}
    assert seen["next"] is not seen["slow"]


def test_a_task_that_cannot_store_its_result_in_time_has_stalled():
    """Somebody keeps the lock of the state: the worker waits for it, and not the scheduler."""
    graph = TaskGraph(workers=1)
    locked, release = threading.Event(), threading.Event()

    def keep():
        with graph.state["_state_lock"]:
            locked.set()
            assert release.wait(HANG)

    keeper = threading.Thread(target=keep)
    keeper.start()
    assert locked.wait(HANG)
    graph.add(lambda: 1, "a", timeout=0.05)
    try:
        summary = graph.run()
    finally:
        release.set()
        keeper.join(HANG)
    wait_until(lambda: not threads.entries(), "the worker that waited ends")

    assert summary.failures["a"].kind is ExitKind.STALLED
    assert graph.state["results"] == {}


def test_a_task_that_is_fast_enough_is_left_alone():
    graph = TaskGraph(workers=2)
    for number in range(200):
        graph.add(lambda: threading.get_ident(), f"t{number}", timeout=HANG)
    summary = graph.run()

    assert summary.ok
    assert len(set(graph.state["results"].values())) <= 2


# Async functions


def test_async_functions_run():
    async def ok(state):
        await asyncio.sleep(0)
        return 7

    async def bad():
        await asyncio.sleep(0)
        raise ValueError("async")

    graph = TaskGraph()
    graph.add(ok, with_state=True)
    graph.add(bad)
    summary = graph.run()

    assert dict(summary.outcomes) == {"ok": PASSED, "bad": FAILED}
    assert graph.state["results"] == {"ok": 7}
    assert "in bad" in summary.failures["bad"].traceback
    assert "asyncio" not in summary.failures["bad"].traceback


def test_each_async_function_has_a_loop_of_its_own():
    """On one worker as well; it is closed when the function has returned."""
    loops = []

    async def note():
        loops.append(asyncio.get_running_loop())

    graph = TaskGraph(workers=1)
    graph.add(note, "one")
    graph.add(note, "two", ["one"])

    assert graph.run().ok
    assert loops[0] is not loops[1]
    assert [loop.is_closed() for loop in loops] == [True, True]


def test_an_async_function_that_takes_too_long_is_cancelled(monkeypatch):
    """Its thread waits in a selector, where no interrupt reaches it; so nothing is left behind."""
    monkeypatch.setattr(
        run, "FAREWELL", HANG
    )  # on a slow machine an interrupt could hit the end of its loop
    cancelled = threading.Event()

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    graph = TaskGraph(workers=1)
    graph.add(wait, timeout=0.02)
    summary = graph.run()

    assert summary.failures["wait"].kind is ExitKind.STALLED
    assert cancelled.is_set()
    assert not threads.entries()


# Workers that die


def test_a_worker_that_dies_of_something_else_loses_no_task(monkeypatch):
    """Somebody raises SystemExit in its thread, after the task: that counts as its failure, and it is tried again."""
    deaths = iter([True, True])
    finish = Worker._finish

    def die(self, attempt, *args):
        if attempt.task.name == "unlucky" and next(deaths, False):
            raise SystemExit(3)
        return finish(self, attempt, *args)

    monkeypatch.setattr(Worker, "_finish", die)
    for retries, outcome in ((1, FAILED), (2, PASSED)):
        deaths = iter([True, True])
        tries = []
        graph = TaskGraph(workers=1)
        graph.add(lambda: tries.append(1), "unlucky", retries=retries)  # noqa: B023
        graph.add(nothing, "other")
        summary = graph.run()
        assert dict(summary.outcomes) == {"unlucky": outcome, "other": PASSED}
        assert len(tries) == retries + 1
        if outcome is FAILED:
            assert summary.failures["unlucky"].kind is ExitKind.KILLED
            assert summary.failures["unlucky"].attempts == 2


def serves(thread):
    """Whether a worker is at work: not yet on its way out, where its exit is told."""
    frame = sys._current_frames().get(thread.ident)
    while frame is not None and frame.f_code is not Worker._serve.__code__:
        frame = frame.f_back
    return frame is not None


def test_exceptions_that_hit_workers_anywhere_lose_nothing():
    """Raised from outside, in one worker after the other: each task is settled once, and all of them are."""
    settled, ran, shot = [], [], set()

    def shoot(name, outcome):
        settled.append(name)
        targets = [
            one
            for one in threading.enumerate()
            if "worker-" in one.name and one not in shot and serves(one)
        ]
        if targets and len(shot) < 20 and chance.random() < 0.2:
            target = chance.choice(targets)
            shot.add(target)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(target.ident), ctypes.py_object(SystemExit)
            )

    chance = random.Random(1)
    graph = TaskGraph(workers=3)
    graph.on_task_done(shoot)
    for number in range(3_000):
        graph.add(
            lambda number=number: ran.append(number),
            f"t{number}",
            [f"t{number - 5}"] if number > 5 else [],
        )
    summary = graph.run()

    assert sorted(settled) == sorted(summary.outcomes)
    assert len(summary.outcomes) == 3_000
    assert summary.passed + summary.failed == 3_000
    assert summary.passed <= len(set(ran))
    assert len(shot) > 5


def test_who_terminates_a_worker_cancels_its_task():
    """By hand, through the tree. It is replaced, and everything else runs."""
    is_up, names = threading.Event(), []

    def victim():
        names.append(otpy.current().id)
        is_up.set()
        while True:
            time.sleep(0.001)

    def killer():
        assert is_up.wait(HANG)
        otpy.current().supervisor.terminate_child(names[0])

    graph = TaskGraph(workers=2, on_failure="skip")
    graph.add(victim)
    graph.add(killer)
    graph.add(nothing, "after", ["victim"])
    for number in range(20):
        graph.add(nothing, f"t{number}", ["killer"])
    summary = graph.run()

    assert summary.outcomes["victim"] is CANCELLED
    assert summary.outcomes["after"] is SKIPPED
    assert summary.passed == 21


def test_a_worker_that_the_system_refuses_once_comes_later(monkeypatch):
    """The replacement of a stalled one cannot be started; it is ordered again."""
    monkeypatch.setattr(run, "SOON", 0.01)
    start, refusals = threading.Thread.start, []

    def refuse(self):
        if self.name == "tasks/workers/worker-1" and ran and not refusals:
            refusals.append(self)
            raise RuntimeError("can't start new thread")
        start(self)

    ran = []

    def loop():
        ran.append(1)
        while True:
            time.sleep(0.001)

    graph = TaskGraph(workers=1)
    graph.add(loop, timeout=0.02)
    graph.add(nothing, "after", ["loop"])
    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert dict(graph.run().outcomes) == {"loop": FAILED, "after": PASSED}
    assert len(refusals) == 1


def test_a_run_without_threads_is_refused_and_runs_nothing(monkeypatch):
    start, ran = threading.Thread.start, []

    def refuse(self):
        if "worker" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    graph = TaskGraph()
    graph.add(lambda: ran.append(1), "a")
    with pytest.raises(otpy.StartError):
        graph.run()

    assert not ran


def test_fewer_threads_than_workers_are_enough(monkeypatch):
    start = threading.Thread.start

    def refuse(self):
        if "worker-" in self.name and not self.name.endswith("-1"):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    graph = TaskGraph(workers=4)
    for number in range(20):
        graph.add(nothing, f"t{number}")

    assert graph.run().ok


# Callbacks and summaries


def test_callbacks_come_in_order_on_one_thread_with_their_extra_arguments():
    told, seen = [], set()

    def note(*args, **extra):
        told.append((*args, extra))
        seen.add(threading.current_thread())

    workers = set()
    graph = TaskGraph(workers=1)
    graph.add(lambda: workers.add(threading.current_thread()), "a")
    graph.add(fail, "b", ["a"])
    for name in ("on_start", "on_task_start", "on_task_run", "on_task_done", "on_done"):
        getattr(graph, name)(note, name, extra=1)
    summary = graph.run()

    meta = told[0][0]
    assert (meta.tasks, meta.workers) == (("a", "b"), 1)
    assert told == [
        (meta, "on_start", {"extra": 1}),
        ("a", "on_task_start", {"extra": 1}),
        ("a", "tasks/workers/worker-1", "on_task_run", {"extra": 1}),
        ("a", PASSED, "on_task_done", {"extra": 1}),
        ("b", "on_task_start", {"extra": 1}),
        ("b", "tasks/workers/worker-1", "on_task_run", {"extra": 1}),
        ("b", FAILED, "on_task_done", {"extra": 1}),
        (summary, "on_done", {"extra": 1}),
    ]
    assert len(seen) == 1
    assert not seen & workers


def test_nothing_is_dispatched_while_a_callback_runs():
    """So callbacks have to be short; what runs already goes on."""
    begun, went_on = threading.Event(), threading.Event()
    graph = TaskGraph(workers=3)
    graph.add(lambda: callback_runs.wait(HANG) and went_on.set(), "long")
    graph.add(nothing, "short")
    graph.add(begun.set, "next", ["short"])
    callback_runs, seen = threading.Event(), []

    def done(name, outcome):
        if name == "short":
            callback_runs.set()
            seen.append((went_on.wait(HANG), begun.wait(0.02)))

    graph.on_task_done(done)

    assert graph.run().ok
    assert seen == [(True, False)]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_a_callback_that_raises_is_logged_and_hurts_nobody(kind, capsys):
    def bad(*args):
        raise kind("a bad callback")

    graph = TaskGraph()
    graph.add(nothing, "a")
    for name in ("on_start", "on_task_start", "on_task_run", "on_task_done", "on_done"):
        getattr(graph, name)(bad)

    assert graph.run().ok
    logged = capsys.readouterr().out
    assert logged.count("callback_failed") == 5
    assert logged.count(f"{kind.__name__}: a bad callback") == 5


def test_a_callback_that_cannot_be_called_is_refused():
    with pytest.raises(SpecError, match="tasks: on_done = 3: expected a callable"):
        TaskGraph().on_done(3)


def test_the_summary():
    graph = TaskGraph(on_failure="skip", workers=1)
    graph.add(nothing, "a")
    graph.add(fail, "b")
    graph.add(nothing, "c", ["b"])
    summary = graph.run()

    assert (summary.passed, summary.failed, summary.skipped, summary.cancelled, summary.ok) == (
        1,
        1,
        1,
        0,
        False,
    )
    assert list(summary.failures) == ["b"]
    assert str(summary.failures["b"].exception) == "ordered to fail"
    assert summary.failures["b"].traceback.endswith("ValueError: ordered to fail\n")
    assert summary.finished_at >= summary.started_at > 1e9
    assert summary.duration >= 0
    assert re.fullmatch(r"1 passed, 1 failed, 1 skipped in \d+\.\ds", str(summary))
    with pytest.raises(AttributeError):
        summary.duration = 1
    with pytest.raises(TypeError):
        summary.outcomes["a"] = FAILED


def test_a_graph_can_be_run_again():
    """And may have grown meanwhile."""
    ran = []
    graph = TaskGraph()
    graph.add(lambda: ran.append("a"), "a")
    assert graph.run().passed == 1
    graph.add(lambda: ran.append("b"), "b", ["a"])
    assert graph.run().passed == 2
    assert ran == ["a", "a", "b"]


def test_an_empty_graph_has_an_empty_summary():
    told = []
    graph = TaskGraph()
    graph.on_start(lambda meta: told.append(meta.workers))
    graph.on_done(told.append)
    summary = graph.run()

    assert dict(summary.outcomes) == {}
    assert summary.ok
    assert told == [0, summary]


def test_a_run_within_a_task_of_another_one():
    inner = TaskGraph()
    inner.add(lambda: 1, "a")
    graph = TaskGraph(workers=1)
    graph.add(lambda: inner.run().passed, "outer")

    assert graph.run().ok
    assert graph.state["results"] == {"outer": 1}


def test_workers_are_started_as_they_are_needed():
    """A chain needs one, whatever is allowed."""
    graph = TaskGraph(workers=8)
    for number in range(50):
        graph.add(threading.get_ident, f"t{number}", [f"t{number - 1}"] if number else [])

    assert graph.run().ok
    assert len(set(graph.state["results"].values())) == 1


def test_how_long_a_run_took():
    """In seconds: no less than its longest task, no more than the call."""
    graph = TaskGraph()
    graph.add(lambda: time.sleep(0.02), "rests")
    began = time.monotonic()
    summary = graph.run()

    assert 0.02 <= summary.duration <= time.monotonic() - began


@pytest.mark.parametrize(("processors", "workers"), [(1, 5), (28, 32), (64, 32), (None, 5)])
def test_how_many_workers_there_may_be_by_default(monkeypatch, processors, workers):
    """Four more than processors, at most 32; and never more than there are tasks."""
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    graph, told = TaskGraph(), []
    for number in range(40):
        graph.add(nothing, f"t{number}")
    graph.on_start(lambda meta: told.append(meta.workers))

    assert graph.run().ok
    assert told == [workers]


def test_thread_locals_are_those_of_the_thread():
    """Other than context variables: the next task on the same thread finds them."""
    local = threading.local()
    graph = TaskGraph(workers=1)
    graph.add(lambda: setattr(local, "left", "by the one before"), "one")
    graph.add(lambda: local.left, "two", ["one"])

    assert graph.run().ok
    assert graph.state["results"]["two"] == "by the one before"


# Interrupts


@pytest.fixture
def each_signal_counts(monkeypatch):
    """However soon it comes: no test waits for a second."""
    monkeypatch.setattr(running, "SAME", -1.0)


def test_an_interrupt_lets_finish_what_runs_and_cancels_the_rest():
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
def test_a_second_interrupt_cancels_what_still_runs(kind):
    """Also if it cannot be stopped: the summary comes all the same, and has every task."""
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
    """Two interrupts while it does its first steps: the summary has every task all the same."""
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
def test_nothing_is_started_after_an_interrupt_that_the_scheduler_has_not_heard_of(monkeypatch):
    """It hears of that on a helper thread, which may come later than the workers that are asked by the second one."""
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
    """The summary has every task, and says of each whether it ran; or the interrupt came before or after the run."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        str(seed) for seed in range(8)
    ]


# In a tree


def test_a_graph_is_a_child(launch):
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
    """What runs may finish, within its shutdown; the rest is cancelled."""
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
    """Its ``max_unstopped`` bounds them, as it bounds all threads that are left behind in it."""
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
    with pytest.raises(SpecError, match="graph: shutdown = -1"):
        TaskGraph().as_child("graph", shutdown=-1)
    assert TaskGraph().as_child("graph").restart is otpy.Restart.TRANSIENT
    assert TaskGraph().as_child("graph", restart="permanent").restart is otpy.Restart.PERMANENT


# The shape


def diamond():
    graph = TaskGraph()
    graph.add(nothing, "d", ["b", "c"])
    graph.add(nothing, "b", ["a"])
    graph.add(nothing, "c", ["a", "b"])
    graph.add(nothing, "a")
    graph.add(nothing, 'x "y"')
    return graph


def test_describe():
    shape = diamond().describe()

    assert shape.nodes == ("d", "b", "c", "a", 'x "y"')
    assert set(shape.edges) == {("b", "d"), ("c", "d"), ("a", "b"), ("a", "c"), ("b", "c")}
    assert shape.roots == ("a", 'x "y"')
    assert shape.leaves == ("d", 'x "y"')
    assert shape.levels == (("a", 'x "y"'), ("b",), ("c",), ("d",))
    assert shape.longest_path == ("a", "b", "c", "d")
    assert shape.fan_in == {"d": 2, "b": 1, "c": 2, "a": 0, 'x "y"': 0}
    assert shape.fan_out == {"d": 0, "b": 2, "c": 1, "a": 2, 'x "y"': 0}


def test_describe_nothing():
    shape = TaskGraph().describe()

    assert (shape.nodes, shape.levels, shape.longest_path, dict(shape.fan_in)) == ((), (), (), {})


def test_to_mermaid_and_to_dot():
    graph = diamond()

    assert graph.to_mermaid().splitlines()[:2] == ["flowchart TD", '    n0["d"]']
    assert '    n4["x #34;y#34;"]' in graph.to_mermaid()
    assert "    n3 --> n1" in graph.to_mermaid()
    assert '    n4 [label="x \\"y\\""];' in graph.to_dot()
    assert "    n3 -> n1;" in graph.to_dot()
    assert graph.to_dot().startswith("digraph tasks {\n")
    assert graph.to_dot().endswith("}\n")


def test_it_uses_the_public_api_and_nothing_of_the_running_system():
    """From inside otpy come words only, and looks at a stack and at the number of forks."""
    words = {
        "otpy.arguments",
        "otpy.core.pauses",
        "otpy.core.restarts",
        "otpy.exceptions",
        "otpy.reports",
        "otpy.specs",
        "otpy.values",
        "otpy.runtime.log",
    }
    looks = {"threads.forks", "stacks.stack_of"}
    text = "".join(path.read_text() for path in Path(taskgraph.__file__).parent.glob("*.py"))
    used = set(re.findall(r"^(?:from|import) (otpy[\w.]*)", text, re.MULTILINE))

    assert {one for one in used if not one.startswith("otpy.taskgraph")} == {
        "otpy",
        "otpy.runtime",
        *words,
    }
    assert sorted(re.findall(r"^from otpy.runtime import (.*)", text, re.MULTILINE)) == [
        "stacks",
        "threads",
    ]
    assert set(re.findall(r"\b(?:stacks|threads)\.\w+", text)) == looks
