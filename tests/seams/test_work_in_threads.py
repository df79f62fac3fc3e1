"""What a coroutine child gives to ``asyncio.to_thread`` belongs to it: its end waits for that."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading

import pytest

import otpy
from otpy import coroutine, supervisor
from otpy.children.coroutine.workers import MOST
from otpy.reports import ChildTerminated, Unstopped
from otpy.runtime import threads
from tests.helpers import HANG, wait_until
from tests.seams.kit import python


class Job:
    """Blocks until it may go on, and says what it has done."""

    def __init__(self, story=None):
        self.begun, self.gate, self.story = (
            threading.Event(),
            threading.Event(),
            story if story is not None else [],
        )

    def __call__(self):
        self.begun.set()
        assert self.gate.wait(HANG)
        self.story.append("job")


@pytest.mark.parametrize("uvloop", [False, True])
def test_a_stop_waits_for_it(launch, uvloop):
    """The child has been cancelled, and has ended; its work has not."""
    job = Job()

    async def child(ctx):
        try:
            await asyncio.to_thread(job)
        finally:
            job.story.append("child")
            threading.Timer(0.05, job.gate.set).start()

    app = launch(supervisor("app", children=[coroutine(child, uvloop=uvloop)]))
    assert job.begun.wait(HANG)
    report = app.stop()

    assert job.story == ["child", "job"]
    assert (report.stopped, report.unstopped, report.handlers) == (("app/child",), (), ())


def test_what_does_not_end_in_time_is_named(launch, recorder):
    """It is unstopped, with the stack of its thread, until it ends; its loop ends without it."""
    job = Job()

    async def child(ctx):
        await asyncio.to_thread(job)

    app = launch(supervisor("app", children=[coroutine(child, shutdown=0.1)]))
    assert job.begun.wait(HANG)
    report = app.stop()
    left = threads.entries()
    job.gate.set()

    assert [one.path for one in report.unstopped] == ["app/child"]
    assert "self.gate.wait(HANG)" in report.unstopped[0].stack
    assert "self.gate.wait(HANG)" in recorder.wait_for(Unstopped, "app/child").stack
    assert [(one.name, one.state) for one in left if one.name.startswith("app")] == [
        ("app (to_thread)", threads.ThreadState.UNSTOPPED)
    ]
    wait_until(lambda: not app._tree.strays())


def test_the_replacement_of_a_child_that_crashed_waits_for_it(launch, recorder):
    """Two lives never work at the same time."""
    job, story = Job(), []
    job.story = story

    async def child(ctx):
        story.append("begins")
        if ctx.incarnation == 1:
            asyncio.get_running_loop().run_in_executor(None, job)
            await asyncio.to_thread(job.begun.wait, HANG)
            threading.Timer(0.05, job.gate.set).start()
            raise ValueError("boom")
        ctx.ready()
        await ctx.wait_stop()

    launch(supervisor("app", children=[coroutine(child)]))
    recorder.wait_for(ChildTerminated, "app/child")
    wait_until(lambda: len(story) == 3)

    assert story == ["begins", "job", "begins"]


def test_a_child_that_crashed_is_replaced_when_its_time_is_over(launch, recorder):
    """What it has left behind is reported, and counts as a stray until it ends."""
    job, second = Job(), threading.Event()

    async def child(ctx):
        if ctx.incarnation == 1:
            asyncio.get_running_loop().run_in_executor(None, job)
            await asyncio.to_thread(job.begun.wait, HANG)
            raise ValueError("boom")
        second.set()
        await ctx.wait_stop()

    app = launch(supervisor("app", children=[coroutine(child, shutdown=0.05)]))
    assert second.wait(HANG)
    told = recorder.wait_for(Unstopped, "app/child")
    recorder.wait_for(ChildTerminated, "app/child")
    report = app.stop()
    job.gate.set()

    assert (told.incarnation, told.thread) == (1, "app (to_thread)")
    assert "self.gate.wait(HANG)" in told.stack
    assert [one.path for one in report.unstopped] == ["app/child"]
    wait_until(lambda: not app._tree.strays())


def test_it_gives_results_and_exceptions_as_ever(launch):
    """With the context of the caller, in as many threads as asyncio would use, and never more."""
    seen, gate = [], threading.Event()

    def fail():
        raise LookupError("boom")

    async def child(ctx):
        seen.append(await asyncio.to_thread(lambda: otpy.current().path))
        with pytest.raises(LookupError, match="boom"):
            await asyncio.to_thread(fail)
        jobs = [asyncio.create_task(asyncio.to_thread(gate.wait, HANG)) for _ in range(MOST + 3)]
        seen.append(all(await asyncio.gather(*jobs)))
        seen.append(workers())
        ctx.ready()
        await ctx.wait_stop()

    def workers():
        return sum(one.name == "app (to_thread)" for one in threads.entries())

    starter = threading.Thread(
        target=lambda: launch(supervisor("app", children=[coroutine(child, ready=True)]))
    )
    starter.start()
    wait_until(lambda: workers() == MOST)
    gate.set()
    starter.join(HANG)

    assert seen == ["app/child", True, MOST]


def test_what_waits_for_a_thread_is_withdrawn_with_its_child(launch):
    """It never begins; what has begun is waited for."""
    gate, begun, late = threading.Event(), threading.Semaphore(0), []

    async def child(ctx):
        jobs = [asyncio.to_thread(lambda: (begun.release(), gate.wait(HANG))) for _ in range(MOST)]
        await asyncio.gather(*jobs, asyncio.to_thread(late.append, "late"))

    app = launch(supervisor("app", children=[coroutine(child)]))
    for _ in range(MOST):
        assert begun.acquire(timeout=HANG)
    threading.Timer(0.05, gate.set).start()
    report = app.stop()

    assert (report.stopped, late) == (("app/child",), [])


def test_an_executor_of_the_programs_own_is_left_alone(launch):
    """As the default of the loop, or given with the work: who made it ends it."""
    names = []

    async def child(ctx):
        loop = asyncio.get_running_loop()
        names.append(await loop.run_in_executor(pool, lambda: threading.current_thread().name))
        loop.set_default_executor(pool)
        names.append(await asyncio.to_thread(lambda: threading.current_thread().name))
        ctx.ready()
        await ctx.wait_stop()

    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        launch(supervisor("app", children=[coroutine(child, ready=True)])).stop()

    assert names == ["pool_0", "pool_0"]


def test_a_name_that_is_looked_up_is_no_work_of_the_child(launch, monkeypatch):
    """That may take half a minute, and no thread waits for it any more."""
    begun, gate = threading.Event(), threading.Event()

    def look_up(*args, **options):
        begun.set()
        gate.wait(HANG)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("otpy.children.coroutine.workers.LOOK_UPS", (look_up,))

    async def child(ctx):
        await asyncio.get_running_loop().getaddrinfo("example.org", 80)

    app = launch(supervisor("app", children=[coroutine(child)]))
    assert begun.wait(HANG)
    report = app.stop()
    gate.set()

    assert (report.stopped, report.unstopped) == (("app/child",), ())


def test_a_system_without_threads_fails_the_work_and_not_the_loop(launch, monkeypatch, recorder):
    """The child gets the error."""
    real = threading.Thread.start

    def start(thread):
        if thread.name == "app (to_thread)":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)

    async def child(ctx):
        await asyncio.to_thread(print)

    launch(supervisor("app", children=[coroutine(child, restart="temporary")]))

    assert "can't start new thread" in str(recorder.wait_for(ChildTerminated, "app/child").reason)


def test_work_that_never_ends_does_not_hold_up_the_end_of_the_interpreter():
    """That of asyncio's own executor would."""
    ran = python(
        """
        import asyncio, threading
        from otpy import coroutine, start, supervisor

        begun = threading.Event()

        async def child(ctx):
            await asyncio.to_thread(lambda: (begun.set(), threading.Event().wait()))

        def tell(report):
            if type(report).__name__ == "Unstopped":
                print(report.path, flush=True)

        start(supervisor("app", children=[coroutine(child, shutdown=0.1)]), log=False, reports=tell)
        begun.wait()
        """
    )

    assert ran.out == "app/child\n"


def test_the_end_of_the_interpreter_crashes_no_child_that_works_in_threads():
    """It is stopped while they take work."""
    ran = python(
        """
        import asyncio, threading
        from otpy import coroutine, start, supervisor

        async def poll(ctx):
            await asyncio.to_thread(int)
            ctx.ready()
            while ctx.running:
                await asyncio.to_thread(int)
            print("in order", flush=True)

        def tell(report):
            if type(report).__name__ in ("ChildTerminated", "LimitReached", "ShutdownError"):
                print(report, flush=True)

        async def patient(ctx):
            await asyncio.to_thread(int)
            ctx.ready()
            await ctx.wait_stop()
            await asyncio.to_thread(print, "in order", flush=True)

        children = [coroutine(patient, ready=True), coroutine(poll, loop="own", ready=True)]
        start(supervisor("app", children=children), log=False, reports=tell)
        """
    )

    assert ran.out in (
        "in order\n",
        "in order\nin order\n",
    )  # poll may be cancelled in the middle of its work
