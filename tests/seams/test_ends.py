"""What the end of a child means: SystemExit, and groups of exceptions that say
something to a supervisor.

Rule: one function decides for every kind of child (``exceptions.means_success``, ``exceptions.meaning_of``).
"""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import textwrap
import threading

import pytest

import otpy
from otpy import (
    ExitKind,
    Fatal,
    Fenced,
    Ignore,
    Killed,
    Shutdown,
    coroutine,
    process,
    registry,
    start,
    supervisor,
    thread,
)
from otpy.core.restarts import is_acceptable
from otpy.exceptions import meaning_of, means_success
from otpy.reports import AutoShutdownBegun, ChildTerminated, LimitReached, ShutdownError, Unstopped
from otpy.specs import Restart
from otpy.taskgraph import Outcome, TaskGraph
from tests import callees
from tests.helpers import HANG, wait_until

# SystemExit


async def exit_async(ctx, name):
    callees.exit_with(ctx, name)


KINDS = {"thread": callees.exit_with, "coroutine": exit_async, "process": callees.exit_with}
BUILDERS = {"thread": thread, "coroutine": coroutine, "process": process}


@pytest.mark.parametrize("kind", KINDS)
def test_a_system_exit_means_the_same_in_every_kind_of_child(kind, launch, recorder):
    """As the exit status of the interpreter: None and ints equal to 0; and nothing else
    is asked whether it is 0.
    """
    children = [
        BUILDERS[kind](KINDS[kind], code, id=code, restart="temporary") for code in callees.CODES
    ]
    app = launch(supervisor("app", children=children))
    wait_until(lambda: not app.which_children(), "all have ended")

    crashed = [code for code, (_, is_success) in callees.CODES.items() if not is_success]
    wait_until(lambda: len(recorder.of(ChildTerminated)) >= len(crashed))
    assert {one.path for one in recorder.of(ChildTerminated)} == {f"app/{code}" for code in crashed}
    assert {one.reason.kind for one in recorder.of(ChildTerminated)} == {ExitKind.CRASHED}


@pytest.mark.parametrize("code", callees.CODES)
def test_a_system_exit_means_the_same_in_spawned_threads_and_tasks(code):
    """A task that says so has passed, and its result is None; a spawned thread is not
    reported.
    """
    value, is_success = callees.CODES[code]
    reg, told, graph = registry.ThreadRegistry(), queue.SimpleQueue(), TaskGraph()
    reg.subscribe(told)
    reg.spawn(callees.exit_with, name="t", args=(None, code)).join(HANG)
    graph.add(lambda: callees.exit_with(None, code), "plain")
    graph.add(lambda: exit_async(None, code), "async", after=["plain"])
    summary = graph.run()

    assert told.empty() is is_success
    assert set(summary.outcomes.values()) == {Outcome.PASSED if is_success else Outcome.FAILED}
    assert graph.state["results"] == ({"plain": None, "async": None} if is_success else {})
    assert is_success or [one.exception.code is value for one in summary.failures.values()] == [
        True,
        True,
    ]


@pytest.mark.parametrize("code", ["None", "0", "False", "1", "True", "0.0", "text"])
def test_the_rule_is_that_of_the_interpreter(code):
    """This very interpreter, with the same code."""
    value, is_success = callees.CODES[code]
    ended = subprocess.run(
        [sys.executable, "-c", f"raise SystemExit({value!r})"],
        stderr=subprocess.DEVNULL,
        check=False,
    )

    assert (ended.returncode == 0) is is_success


def test_a_system_exit_that_lies_about_its_code_is_not_asked():
    """The code is read where the interpreter keeps it; a property of a subclass is not
    called.
    """

    class Liar(SystemExit):
        @property
        def code(self):
            raise RuntimeError("do not ask")

        @property
        def __class__(self):
            raise RuntimeError("do not ask")

    assert means_success(Liar())
    assert not means_success(Liar(1))
    assert not means_success(None)
    assert not means_success(ValueError(0))


# Groups


def group(*members, kind=BaseExceptionGroup):
    return kind("some", list(members))


MEANINGS = {
    # name: (the exception, what it means)
    "one": (Fatal(), Fatal),
    "none": (ValueError(), None),
    "no exception": (None, None),
    "a group of one": (group(Shutdown()), Shutdown),
    "a group of two": (group(Ignore(), Ignore()), Ignore),
    "nested": (group(group(group(Fatal())), Fatal()), Fatal),
    "Fatal is stronger than Shutdown": (group(Shutdown(), Fatal(), Ignore()), Fatal),
    "Shutdown is stronger than Ignore": (group(Ignore(), group(Shutdown())), Shutdown),
    "an interrupt is the strongest": (group(Fatal(), Killed()), Killed),
    "Fenced": (group(Fenced("app/a"), Shutdown()), Fenced),
    "a failure among them": (group(Fatal(), ValueError()), None),
    "a failure deep among them": (group(Shutdown(), group(Shutdown(), group(OSError()))), None),
    "SystemExit says nothing in a group": (group(SystemExit(0)), None),
    "a cancellation among them": (group(Shutdown(), asyncio.CancelledError()), None),
}


@pytest.mark.parametrize(("error", "meaning"), MEANINGS.values(), ids=MEANINGS)
def test_a_group_of_nothing_else_means_the_strongest_in_it(error, meaning):
    """Killed and Fenced, Fatal, Shutdown, Ignore; one other exception in it, and it is
    a failure as any other.
    """
    assert meaning_of(error) is meaning


def test_the_meaning_of_a_group_is_found_however_it_is_made():
    """Deep groups need no deep stack, shared ones are looked at once, and no code of
    theirs is run.
    """
    deep = shared = Fatal()
    for _ in range(5000):
        deep = group(deep)
    for _ in range(64):
        shared = group(shared, shared)

    class Liar(ExceptionGroup):
        @property
        def exceptions(self):
            raise RuntimeError("do not ask")

        def subgroup(self, condition):
            raise RuntimeError("do not ask")

    assert meaning_of(deep) is Fatal
    assert meaning_of(shared) is Fatal
    assert meaning_of(Liar("some", [Shutdown()])) is Shutdown
    # piece by piece: to drop it whole would need a deep stack of C
    while isinstance(deep, BaseExceptionGroup):
        deep = deep.exceptions[0]


def raise_one(ctx, *kinds):
    callees.raise_group(ctx, *kinds)


async def raise_in_task_group(ctx, *kinds):
    async def inner(kind):
        raise getattr(otpy, kind)("enough")

    async with asyncio.TaskGroup() as tasks:
        for kind in kinds:
            tasks.create_task(inner(kind))


def raise_in_asyncio_run(ctx, *kinds):
    asyncio.run(raise_in_task_group(ctx, *kinds))


RAISERS = {
    "thread": lambda *kinds, **options: thread(raise_one, *kinds, id="a", **options),
    "thread with a loop": lambda *kinds, **options: thread(
        raise_in_asyncio_run, *kinds, id="a", **options
    ),
    "coroutine": lambda *kinds, **options: coroutine(
        raise_in_task_group, *kinds, id="a", **options
    ),
    "process": lambda *kinds, **options: process(callees.raise_group, *kinds, id="a", **options),
}


@pytest.mark.parametrize("kind", RAISERS)
def test_fatal_in_a_group_makes_the_supervisor_give_up(kind, launch, recorder):
    """Whatever restarts are left; and whatever is milder beside it."""
    app = launch(supervisor("app", intensity=3, children=[RAISERS[kind]("Shutdown", "Fatal")]))

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert len(recorder.of(ChildTerminated)) == 1
    reason = recorder.wait_for(LimitReached, "app").escalation.reason
    assert reason.is_fatal
    assert isinstance(reason.exception, BaseExceptionGroup)


@pytest.mark.parametrize("kind", RAISERS)
def test_shutdown_in_a_group_is_an_end_in_the_normal_class(kind, launch, recorder):
    """A transient child is not restarted for it."""
    child = RAISERS[kind]("Shutdown", "Ignore", restart="transient", significant=True)
    launch(supervisor("app", auto_shutdown="any_significant", children=[child])).wait(HANG)

    reason = recorder.wait_for(AutoShutdownBegun, "app").reason
    assert (reason.kind, reason.is_shutdown_with_reason) == (ExitKind.SHUTDOWN, True)
    assert recorder.of(ChildTerminated) == []


@pytest.mark.parametrize("kind", RAISERS)
def test_ignore_in_a_group_declines_the_start(kind):
    """The spec stays, nothing runs, and the start of the tree is no failure."""
    with start(supervisor("app", children=[RAISERS[kind]("Ignore", ready=True)]), log=False) as app:
        (child,) = app.which_children()
        assert child.state is otpy.ChildState.UNDEFINED


@pytest.mark.parametrize("word", ["Fatal", "Shutdown", "Ignore"])
def test_a_group_that_does_not_travel_means_the_same(word, launch, recorder):
    """From a process: what stands for the group says the same as the group."""
    child = process(callees.raise_group_with_lock, word, id="a", restart="transient")
    app = launch(supervisor("app", children=[child]))

    if word == "Fatal":
        reason = recorder.wait_for(LimitReached, "app").escalation.reason
    else:
        down = otpy.ChildState.UNDEFINED
        reason = wait_until(
            lambda: [one.last_exit for one in app.which_children() if one.state is down]
        )[0]
    assert meaning_of(reason.exception) is getattr(otpy, word)


def test_a_group_with_another_failure_in_it_is_a_crash(launch, recorder):
    """It is restarted: a supervisor does not give up, and nothing is ignored, because
    of a part of the truth.
    """

    def child(ctx):
        if ctx.incarnation == 1:
            raise ExceptionGroup("some", [Shutdown(), ValueError("bad luck")])
        ctx.wait_stop()

    launch(supervisor("app", children=[thread(child, restart="transient")]))
    assert recorder.wait_for(ChildTerminated, "app/child").reason.kind is ExitKind.CRASHED


def test_an_interrupt_that_comes_out_of_a_task_group_is_an_interrupt(launch, recorder):
    """A thread with a loop of its own: its task group wraps Killed, and the child is
    neither stuck nor crashed.
    """
    up = threading.Event()

    async def spin():
        up.set()
        while True:
            pass

    async def main():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(spin())

    def child(ctx):
        asyncio.run(main())

    app = launch(supervisor("app", children=[thread(child, shutdown=0.0)]))
    assert up.wait(HANG)
    report = app.stop()

    assert report.interrupted == ("app/child",)
    (error,) = recorder.of(ShutdownError)
    assert error.reason.kind is ExitKind.KILLED
    assert isinstance(error.reason.exception, BaseExceptionGroup)
    assert recorder.of(Unstopped) == []


@pytest.mark.parametrize("restart", list(Restart))
def test_a_group_of_shutdown_is_as_acceptable_as_shutdown(restart):
    """docs/explanation/otp.md, "Acceptable ends"."""
    alone = otpy.ExitReason(ExitKind.SHUTDOWN, Shutdown())
    grouped = otpy.ExitReason(ExitKind.SHUTDOWN, group(Shutdown(), group(Shutdown())))
    mixed = otpy.ExitReason(ExitKind.SHUTDOWN, group(Shutdown(), ValueError()))

    assert is_acceptable(restart, False, grouped) is is_acceptable(restart, False, alone)
    assert not is_acceptable(restart, False, mixed)


# A Procfile


PROCFILE = """
    import sys
    from otpy import programs, run
    from otpy.reports import AutoShutdownBegun

    ends = []
    tree = programs(
        ".",
        {"web": ["sleep", "1000"], "job": ["sh", "-c", sys.argv[1]]},
        restart="temporary",
        significant=True,
        shutdown=5,
        supervision={"auto_shutdown": "any_significant"},
    )
    report = run(tree, reports=ends.append, log=False)
    first = [end.reason.detail.returncode for end in ends if isinstance(end, AutoShutdownBegun)]
    print(*report.stopped)
    sys.exit(first[0] if first else 0)
"""


@pytest.mark.parametrize("status", [0, 7])
def test_the_recipe_for_a_procfile_ends_with_the_first_exit_and_its_status(status):
    """docs/how-to/migrating.md: with code 0, too."""
    code = textwrap.dedent(PROCFILE)
    ended = subprocess.run(
        [sys.executable, "-c", code, f"exit {status}"],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "programs/web\n", "")
