"""Tasks that raise, tasks that take too long, and async functions."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from pathlib import Path

import pytest

import otpy
from otpy import Backoff, ExitKind, taskgraph
from otpy.runtime import threads
from otpy.taskgraph import TaskGraph, run
from otpy.taskgraph.run import Scheduler
from tests.helpers import HANG, wait_until
from tests.taskgraph.kit import FAILED, PASSED, fail, nothing


class Odd(BaseException):
    """An exception that cannot be printed."""

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
    """The worker goes on with the next task; the traceback begins with the task's own
    line.
    """
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


def test_a_failure_does_not_stop_the_tasks_after_it():
    """By default ``on_failure`` is "run"."""
    graph = TaskGraph()
    graph.add(fail, "a")
    graph.add(nothing, "b", ["a"])

    assert dict(graph.run().outcomes) == {"a": FAILED, "b": PASSED}


@pytest.mark.parametrize("backoff", [None, Backoff(0.001, 0.002)])
def test_a_task_is_tried_again(backoff):
    """It is tried ``retries`` times more; the summary has the last failure."""
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


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Backoff(1.0, 10.0, factor=3.0, jitter=0.0), [1, 3, 9, 10, 10]),
        (Backoff(0.001, 3600.0, factor=1000.0, jitter=0.0), [0, 1, 1000, 3600, 3600]),
    ],
    ids=["gently", "steeply"],
)
def test_waits_before_retries_grow_up_to_the_maximum(backoff, expected, monkeypatch):
    """A task waits as long as a child with the same ``Backoff`` does."""
    waits, arm = [], Scheduler._arm

    def note(self, at, call, *arguments):
        if call == self._try_again:
            waits.append(round(at - time.monotonic()))
            at = 0.0
        arm(self, at, call, *arguments)

    monkeypatch.setattr(Scheduler, "_arm", note)
    graph = TaskGraph(workers=1)
    graph.add(fail, retries=5, backoff=backoff)
    graph.run()

    assert waits == expected


# Stalls


def test_a_task_that_is_stuck_is_stalled_and_its_worker_replaced():
    """The task is stuck in a call that nothing interrupts.

    The one worker is replaced, and the next task passes.
    """
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
    """A loop of Python code is interrupted, and its ``finally`` runs."""
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


def test_a_task_can_see_that_its_time_is_over(monkeypatch):
    """``otpy.current().running`` turns False, so the task can end before it is
    interrupted.
    """
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
    """The helper that asked its worker to stop found no loop yet, and so nothing to
    cancel.
    """
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
    """Other workers, idle or busy, keep their threads."""
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
    """A timeout counts as a failure for ``retries``."""
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


def test_a_late_result_of_a_stalled_task_changes_nothing():
    """The first attempt swallows its interrupt, and returns when the second one has its
    result.
    """
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
    """The task returns before it is interrupted.

    The interrupt must not hit the next task.
    """
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
    """Another thread keeps the lock of the state.

    The worker waits for it; the scheduler does not.
    """
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
    """A timeout that is not over costs no thread."""
    graph = TaskGraph(workers=2)
    for number in range(200):
        graph.add(lambda: threading.get_ident(), f"t{number}", timeout=HANG)
    summary = graph.run()

    assert summary.ok
    assert len(set(graph.state["results"].values())) <= 2


# Async functions


def test_async_functions_run():
    """They return and raise as plain functions do, without asyncio in tracebacks."""

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
    """The loop is new on the same worker, too, and is closed when the function has
    returned.
    """
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
    """Its thread waits in a selector, where no interrupt reaches it.

    The cancellation leaves no thread behind.
    """
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
