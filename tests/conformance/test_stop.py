"""Stops: supervisor_SUITE, group stop.

A thread cannot be killed. What runs Python code is interrupted, and ends as killed; what blocks elsewhere is given up
and named. Both stand for OTP's kill, and where a case kills there is a test of both.
"""

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from otpy import (
    ChildState,
    ExitKind,
    ExitReason,
    Killed,
    Shutdown,
    dynamic_supervisor,
    supervisor,
    thread,
)
from otpy.reports import ShutdownError, Unstopped
from tests.conformance.tools import look
from tests.helpers import HANG, ManualClock, Puppet, wait_until

ASKED_TO_STOP = ExitReason(ExitKind.SHUTDOWN)


@pytest.fixture
def release():
    """Set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def deaf(ctx, release):
    """Run Python code and never look at *ctx*: only an interrupt ends it."""
    ctx.ready()
    while not release.is_set():
        time.sleep(
            0.002
        )  # not release.wait: an interrupt in the middle of it would come out as a RuntimeError


def stuck(ctx, release):
    """Block where no interrupt arrives; one that comes before changes nothing, and there is only one."""
    with contextlib.suppress(
        Killed, RuntimeError
    ):  # the second is what becomes of one in the middle of wait
        ctx.ready()
        release.wait()
    release.wait()


@pytest.fixture
def aside():
    """Run something while the test goes on: ``aside(function)``; returns a future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


def killed(recorder):
    """Return the reports about ends by force, as (path, kind of exit, type of the exception)."""
    return [
        (report.path, report.reason.kind, type(report.reason.exception))
        for report in recorder.of((ShutdownError, Unstopped))
    ]


def test_sup_stop_infinity(launch, recorder, aside):
    """A child with an infinite budget, worker or supervisor, is waited for as long as it takes."""
    goes_on, clock = threading.Event(), ManualClock()
    slow = Puppet(when_asked=lambda life: goes_on.wait(HANG))
    below = supervisor("a", shutdown="infinity", children=[slow.spec("x", shutdown="infinity")])
    app = launch(
        supervisor("app", children=[below, Puppet().spec("b", shutdown="infinity")]), clock=clock
    )
    stopping = aside(app.stop)
    assert slow.next().asked.wait(HANG)
    clock.advance(1e9)

    assert look(app.find("app/a")) == ["x stopping 1"]
    assert look(app) == ["a stopping 1", "b undefined 1"]
    goes_on.set()
    report = stopping.result(HANG)
    assert (report.reason, report.stopped) == (ASKED_TO_STOP, ("app/b", "app/a/x", "app/a"))
    assert recorder.of(ShutdownError) == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (deaf, {"interrupted": ("app/b",), "unstopped": [], "error": Killed}),
        (stuck, {"interrupted": (), "unstopped": ["app/b"], "error": type(None)}),
    ],
    ids=["interrupted", "given up"],
)
def test_sup_stop_timeout(launch, recorder, release, target, expected):
    """A child that has not stopped when its budget is spent is stopped by force, and that is reported.

    Adapted: by force means that it is interrupted; if that does not stop it, it is given up and named.
    """
    children = [
        Puppet().spec("a", shutdown=HANG),
        thread(target, release, id="b", ready=True, shutdown=0.05),
    ]
    report = launch(supervisor("app", children=children)).stop()

    assert (report.reason, report.stopped, report.interrupted) == (
        ASKED_TO_STOP,
        ("app/a",),
        expected["interrupted"],
    )
    assert [one.path for one in report.unstopped] == expected["unstopped"]
    assert all("release.wait()" in one.stack for one in report.unstopped)
    assert report.duration >= 0.05
    assert killed(recorder) == [("app/b", ExitKind.KILLED, expected["error"])]


def test_sup_stop_timeout_dynamic(launch, recorder, release):
    """Of the children of a dynamic supervisor only those are stopped by force that have spent their budget.

    Adapted: by force means that one is interrupted, and that one that this does not stop is given up.
    """
    app = launch(dynamic_supervisor("app"))
    app.start_child(Puppet().spec("a", shutdown=HANG))
    app.start_child(thread(deaf, release, id="b", ready=True, shutdown=0.05))
    app.start_child(thread(stuck, release, id="c", ready=True, shutdown=0.05))
    report = app.stop()

    assert (report.reason, report.stopped, report.interrupted) == (
        ASKED_TO_STOP,
        ("app/a",),
        ("app/b",),
    )
    assert [one.path for one in report.unstopped] == ["app/c"]
    assert killed(recorder) == [
        ("app/b", ExitKind.KILLED, Killed),
        ("app/c", ExitKind.KILLED, type(None)),
    ]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (deaf, {"interrupted": ("app/b",), "unstopped": [], "told": []}),
        (
            stuck,
            {
                "interrupted": (),
                "unstopped": ["app/b"],
                "told": [("app/b", ExitKind.KILLED, type(None))],
            },
        ),
    ],
    ids=["interrupted", "given up"],
)
def test_sup_stop_brutal_kill(launch, recorder, release, target, expected):
    """A brutal_kill child has no budget: it is stopped by force at once, and that is what was wanted: no report.

    Adapted: by force means that it is interrupted, here while time stands still, so that no deadline can have come. If
    that does not stop it, it is given up, and reported all the same.
    """
    children = [
        Puppet().spec("a", shutdown=HANG),
        thread(target, release, id="b", ready=True, shutdown="brutal_kill"),
    ]
    clock = ManualClock() if target is deaf else None
    report = launch(supervisor("app", children=children), clock=clock).stop()

    assert (report.reason, report.stopped, report.interrupted) == (
        ASKED_TO_STOP,
        ("app/a",),
        expected["interrupted"],
    )
    assert [one.path for one in report.unstopped] == expected["unstopped"]
    assert killed(recorder) == expected["told"]


def test_sup_stop_brutal_kill_dynamic(launch, recorder, release):
    """All brutal_kill children of a dynamic supervisor are stopped by force, without a report.

    Adapted: by force means that they are interrupted. Time stands still here, so no deadline can have come.
    """
    app = launch(dynamic_supervisor("app"), clock=ManualClock())
    paths = {
        app.start_child(thread(deaf, release, id=f"{n}", ready=True, shutdown="brutal_kill")).path
        for n in range(10)
    }
    report = app.stop()

    assert (report.reason, set(report.interrupted), report.stopped) == (ASKED_TO_STOP, paths, ())
    assert killed(recorder) == []


RESTARTS = ("permanent", "transient", "temporary")
PLAIN, WITH_REASON, OTHER = Shutdown(), Shutdown("with a reason"), ValueError("other")
OWN_ENDS = {
    # how a child ends by itself: its exit reason
    "normal": (lambda life: life.leave(), ExitReason(ExitKind.NORMAL)),
    "shutdown": (lambda life: life.crash(PLAIN), ExitReason(ExitKind.SHUTDOWN, PLAIN)),
    "shutdown tuple": (
        lambda life: life.crash(WITH_REASON),
        ExitReason(ExitKind.SHUTDOWN, WITH_REASON),
    ),
    "other": (lambda life: life.crash(OTHER), ExitReason(ExitKind.CRASHED, OTHER)),
}


def test_sup_stop_race(launch, recorder, aside):
    """Who ends by itself while its supervisor stops another keeps its own exit reason, and is not restarted.

    Adapted: an unasked Shutdown() is OTP's {shutdown, _}; the bare shutdown is for those who were asked.
    """
    goes_on = threading.Event()
    slow = Puppet(when_asked=lambda life: goes_on.wait(HANG))
    puppets = {
        f"{restart} {end}": Puppet() for restart, end in itertools.product(RESTARTS, OWN_ENDS)
    }
    children = [
        Puppet().spec("first", restart="temporary"),
        *(puppet.spec(id, restart=id.split()[0]) for id, puppet in puppets.items()),
        slow.spec("last", shutdown="infinity"),
    ]
    app = launch(supervisor("app", children=children))
    stopping = aside(app.stop)
    assert slow.next().asked.wait(HANG)
    for id, puppet in puppets.items():
        OWN_ENDS[id.partition(" ")[2]][0](puppet.next())

    expected = {id: (ChildState.UNDEFINED, OWN_ENDS[id.partition(" ")[2]][1]) for id in puppets}
    assert wait_until(
        lambda: (
            {one.id: (one.state, one.last_exit) for one in app.which_children()[1:-1]} == expected
        )
    )
    goes_on.set()
    report = stopping.result(HANG)
    assert (report.reason, len(report.stopped)) == (ASKED_TO_STOP, 14)
    assert [puppet.starts for puppet in puppets.values()] == [1] * 12
    assert {(report.path, report.reason) for report in recorder.of(ShutdownError)} == {
        (f"app/{id}", OWN_ENDS[end][1])
        for id, end in [
            ("permanent normal", "normal"),
            ("permanent shutdown", "shutdown"),
            ("permanent shutdown tuple", "shutdown tuple"),
            ("permanent other", "other"),
            ("transient other", "other"),
            ("temporary other", "other"),
        ]
    }


def answer(error):
    def raise_it(life):
        if error is not None:
            raise error

    return raise_it


@pytest.mark.parametrize("restart", RESTARTS)
def test_sup_stop_non_shutdown_exit_dynamic(launch, recorder, restart):
    """However children answer the stop request, the supervisor ends with shutdown; odd answers are reported.

    Adapted: to return, or to leave with SystemExit(0), when asked to stop is OTP's shutdown, not its normal.
    """
    answers = {
        "returns": None,
        "leaves": SystemExit(0),
        "shutdown tuple": Shutdown("x"),
        "other": ValueError("x"),
    }
    app = launch(dynamic_supervisor("app"))
    for id, error in answers.items():
        app.start_child(Puppet(when_asked=answer(error)).spec(id, restart=restart))
    report = app.stop()

    odd = ["shutdown tuple", "other"] if restart == "permanent" else ["other"]
    assert (report.reason, set(report.stopped)) == (ASKED_TO_STOP, {f"app/{id}" for id in answers})
    assert {(report.path, report.reason) for report in recorder.of(ShutdownError)} == {
        (f"app/{id}", ExitReason(ExitKind.SHUTDOWN, answers[id])) for id in odd
    }
