"""Workers: their threads, their deaths, and their replacements."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time

import pytest

import otpy
from otpy import ExitKind
from otpy.taskgraph import TaskGraph, run
from otpy.taskgraph.worker import Worker
from tests.helpers import HANG
from tests.taskgraph.kit import CANCELLED, FAILED, PASSED, SKIPPED, nothing


def test_a_worker_that_dies_of_something_else_loses_no_task(monkeypatch):
    """Another thread raises SystemExit in the worker, after the task.

    That counts as a failure of the task.
    """
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
    """Return whether a worker is at work, and not yet on its way out, where its exit is
    reported.
    """
    frame = sys._current_frames().get(thread.ident)
    while frame is not None and frame.f_code is not Worker._serve.__code__:
        frame = frame.f_back
    return frame is not None


def test_exceptions_that_hit_workers_anywhere_lose_nothing():
    """One worker after the other is hit from outside.

    All tasks are settled, each of them once.
    """
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


def test_a_terminated_worker_has_its_task_cancelled():
    """``terminate_child`` from outside cancels the task.

    The worker is replaced, and all other tasks run.
    """
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
    """If the replacement of a stalled worker cannot be started, it is ordered again."""
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
    """If the system has no thread for the first worker, ``run`` raises StartError."""
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
    """If the system has threads for one worker only, all tasks run on it."""
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
