"""Callbacks and summaries."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest

from otpy import SpecError
from otpy.taskgraph import TaskGraph
from tests.helpers import HANG
from tests.taskgraph.kit import FAILED, PASSED, fail, nothing


def test_callbacks_come_in_order_on_one_thread_with_their_extra_arguments():
    """All callbacks run on one thread, which is no worker."""
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
    """A task that runs goes on; the next one waits for the callback."""
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
def test_a_callback_that_raises_is_logged(kind, capsys):
    """The exception of a callback, a SystemExit too, changes nothing in the run."""

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
    """The refusal names the event and the value."""
    with pytest.raises(SpecError, match="tasks: on_done = 3: expected a callable"):
        TaskGraph().on_done(3)


def test_the_summary():
    """It counts the outcomes, holds the failures, prints as one line, and cannot be
    changed.
    """
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
    """A graph may have grown between two runs."""
    ran = []
    graph = TaskGraph()
    graph.add(lambda: ran.append("a"), "a")
    assert graph.run().passed == 1
    graph.add(lambda: ran.append("b"), "b", ["a"])
    assert graph.run().passed == 2
    assert ran == ["a", "a", "b"]


def test_an_empty_graph_has_an_empty_summary():
    """A run without tasks starts no worker, and all is well."""
    told = []
    graph = TaskGraph()
    graph.on_start(lambda meta: told.append(meta.workers))
    graph.on_done(told.append)
    summary = graph.run()

    assert dict(summary.outcomes) == {}
    assert summary.ok
    assert told == [0, summary]


def test_a_run_within_a_task_of_another_one():
    """A task may run another graph."""
    inner = TaskGraph()
    inner.add(lambda: 1, "a")
    graph = TaskGraph(workers=1)
    graph.add(lambda: inner.run().passed, "outer")

    assert graph.run().ok
    assert graph.state["results"] == {"outer": 1}


def test_workers_are_started_as_they_are_needed():
    """A chain needs one worker, whatever is allowed."""
    graph = TaskGraph(workers=8)
    for number in range(50):
        graph.add(threading.get_ident, f"t{number}", [f"t{number - 1}"] if number else [])

    assert graph.run().ok
    assert len(set(graph.state["results"].values())) == 1


def test_how_long_a_run_took():
    """It took seconds: no less than the longest task, and no more than the call."""
    graph = TaskGraph()
    graph.add(lambda: time.sleep(0.02), "rests")
    began = time.monotonic()
    summary = graph.run()

    assert 0.02 <= summary.duration <= time.monotonic() - began


@pytest.mark.parametrize(("processors", "workers"), [(1, 5), (28, 32), (64, 32), (None, 5)])
def test_how_many_workers_there_may_be_by_default(monkeypatch, processors, workers):
    """Four more than processors, at most 32."""
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    graph, told = TaskGraph(), []
    for number in range(40):
        graph.add(nothing, f"t{number}")
    graph.on_start(lambda meta: told.append(meta.workers))

    assert graph.run().ok
    assert told == [workers]


def test_thread_locals_are_those_of_the_thread():
    """Unlike context variables, they pass to the next task on the same thread."""
    local = threading.local()
    graph = TaskGraph(workers=1)
    graph.add(lambda: setattr(local, "left", "by the one before"), "one")
    graph.add(lambda: local.left, "two", ["one"])

    assert graph.run().ok
    assert graph.state["results"]["two"] == "by the one before"
