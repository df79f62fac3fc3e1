"""A log that blocks holds up those who wait for their log lines, and nothing else."""

from __future__ import annotations

import asyncio
import multiprocessing.spawn
import signal
import sys
import threading

import pytest
import structlog

from otpy import coroutine, process, supervisor, thread
from otpy.reports import ChildTerminated, Progress, Stalled
from otpy.runtime import descendants, threads
from tests.helpers import HANG, ManualClock, wait_until


@pytest.fixture
def blocked():
    """Returns the lines that wait in the log, which takes none until the end of the test."""
    gate, waiting, before = threading.Event(), [], structlog.get_config()

    def hold(logger, level, event):
        waiting.append(event["event"])
        gate.wait()
        raise structlog.DropEvent

    structlog.configure(processors=[hold])
    yield waiting
    gate.set()
    structlog.configure(**before)
    wait_until(lambda: not [one for one in threads.entries() if one.name.endswith("(complaints)")])


def idle(ctx):
    ctx.wait_stop()


class Stopped(ManualClock):
    """Fails from some time on."""

    has_stopped = False

    def monotonic(self):
        if self.has_stopped:
            raise OSError("no time today")
        return super().monotonic()


def test_a_clock_that_fails_holds_up_no_supervisor(launch, blocked):
    """The thread of the supervisor has read the clock, and must not wait for the log."""
    clock = Stopped()
    app = launch(supervisor("app", children=[thread(idle)]), clock=clock)
    clock.has_stopped = True
    app.which_children(HANG)
    wait_until(lambda: blocked == ["clock_failed"])

    assert [one.incarnation for one in app.which_children(HANG / 10)] == [1]


def test_a_task_that_leaves_the_loop_holds_up_no_other(launch, recorder, blocked):
    """Its SystemExit is logged, and the loop goes on."""
    turned = threading.Semaphore(0)

    async def sibling(ctx):
        while True:
            turned.release()
            await asyncio.sleep(0.001)

    async def leave():
        raise SystemExit(3)

    async def spawn(ctx):
        await asyncio.create_task(leave())

    launch(supervisor("app", children=[coroutine(sibling), coroutine(spawn, restart="temporary")]))
    wait_until(lambda: blocked)
    while turned.acquire(blocking=False):
        pass

    assert blocked == ["raised_in_loop"]
    assert turned.acquire(timeout=HANG)
    assert turned.acquire(timeout=HANG)
    assert not recorder.of(Stalled)


def test_a_failure_of_one_program_holds_up_the_end_of_no_other(
    launch, recorder, blocked, monkeypatch
):
    """All programs of a tree are waited for on one thread."""
    monkeypatch.setattr(descendants.Family, "living", lambda self: 1 / 0)
    launch(
        supervisor(
            "app",
            children=[process("sh", "-c", "exit 3", id=id, restart="temporary") for id in "ab"],
        )
    )

    for path in ("app/a", "app/b"):
        assert recorder.wait_for(ChildTerminated, path).reason.detail.returncode == 3
    wait_until(lambda: blocked == ["watch_failed"])


def test_no_start_waits_for_the_log(launch, recorder, blocked, monkeypatch):
    """That there is no guard, and that signals are inherited, is logged while a program starts."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", None)
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        launch(supervisor("app", children=[process("sleep", "1000", id="a")]), timeout=HANG / 10)
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert recorder.wait_for(Progress, "app/a")
    wait_until(lambda: blocked == ["programs_unguarded"])
