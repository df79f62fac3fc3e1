"""Strategies: supervisor_SUITE, groups restart_one_for_one to restart_rest_for_one."""

import gc
import threading
import time
import weakref

import pytest

from otpy import ChildState, ExitKind, ExitReason, Ignore, dynamic_supervisor, supervisor, thread
from otpy.reports import ChildTerminated, LimitReached, Progress, ShutdownError, StartFailed
from tests.conformance.tools import look, wait_for_look
from tests.helpers import HANG, Puppet, wait_until


def many(intensity):
    """Return the flags of OTP's tests: so many restarts within an hour."""
    return {"intensity": intensity, "period": 3600}


def has_given_up(app, child):
    """Wait for the end of the supervisor, and return whether *child* spent its last unit."""
    reason = app.wait(HANG)
    app.stop()
    return reason.kind is ExitKind.LIMIT_REACHED and reason.detail.child == child


def start_dynamic(app, **puppets):
    for id, puppet in puppets.items():
        assert app.start_child(puppet.spec(id, ready=True)).state is ChildState.RUNNING


def crash(puppet):
    """Crash the newest incarnation and return it."""
    life = puppet.next()
    life.crash()
    return life


def test_one_for_one(launch, recorder):
    """Only the child that crashed is restarted; all children share the budget of their supervisor."""
    a, b = Puppet(), Puppet()
    app = launch(supervisor("app", **many(2), children=[a.spec("a"), b.spec("b")]))
    crash(a)
    wait_for_look(app, "a running 2", "b running 1")
    crash(b)
    wait_for_look(app, "a running 2", "b running 2")
    crash(a)

    assert has_given_up(app, "app/a")
    assert (a.starts, b.starts) == (2, 2)
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        "ChildTerminated app/a",
        "Progress app/a",
        "ChildTerminated app/b",
        "Progress app/b",
        "ChildTerminated app/a",
        "LimitReached app",
    ]


def test_one_for_one_escalation(launch, recorder):
    """A restart that fails is retried, each attempt spends a unit, and at last the supervisor ends with all others."""
    a, b, boom = Puppet(), Puppet(), ValueError("boom")
    app = launch(supervisor("app", **many(4), children=[a.spec("a", ready=True), b.spec("b")]))
    a.always_fails = boom
    crash(a)

    assert has_given_up(app, "app/a")
    assert (a.starts, b.starts) == (1 + 4, 1)
    assert b.next().asked.is_set()
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        "ChildTerminated app/a",
        *["StartFailed app/a"] * 4,
        "LimitReached app",
    ]


def test_one_for_all(launch, recorder):
    """All children are restarted when one crashes, and that spends one unit."""
    a, b = Puppet(), Puppet()
    app = launch(
        supervisor("app", strategy="one_for_all", **many(2), children=[a.spec("a"), b.spec("b")])
    )
    crash(a)
    assert b.next().asked.wait(HANG)
    wait_for_look(app, "a running 2", "b running 2")
    crash(a)
    assert b.next().asked.wait(HANG)
    wait_for_look(app, "a running 3", "b running 3")
    crash(a)

    assert has_given_up(app, "app/a")
    assert (a.starts, b.starts) == (3, 3)
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        *["ChildTerminated app/a", "Progress app/a", "Progress app/b"] * 2,
        "ChildTerminated app/a",
        "LimitReached app",
    ]


def test_one_for_all_escalation(launch, recorder):
    """If a sibling fails in the restart of all, that spends units until the supervisor ends."""
    a, b = Puppet(), Puppet()
    children = [a.spec("a"), b.spec("b", ready=True)]
    app = launch(supervisor("app", strategy="one_for_all", **many(4), children=children))
    b.always_fails = ValueError("boom")
    crash(a)

    assert has_given_up(app, "app/b")
    assert (a.starts, b.starts) == (1 + 4, 1 + 4)
    assert b.next().asked.is_set()
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        "ChildTerminated app/a",
        *["Progress app/a", "StartFailed app/b"] * 4,
        "LimitReached app",
    ]


def test_one_for_all_other_child_fails_restart(launch, recorder):
    """If a sibling fails in the restart of all, those that had come up are stopped before all is tried again."""
    a, b = Puppet(), Puppet()
    children = [a.spec("a", ready=True), b.spec("b", ready=True)]
    app = launch(supervisor("app", strategy="one_for_all", **many(3), children=children))
    b.failures.put(ValueError("boom"))
    crash(a)
    assert a.next().asked.wait(HANG)
    wait_for_look(app, "a running 3", "b running 3")
    app.stop()

    assert (a.starts, b.starts) == (3, 3)
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        "ChildTerminated app/a",
        "Progress app/a",
        "StartFailed app/b",
        "Progress app/a",
        "Progress app/b",
    ]


def test_simple_one_for_one(launch):
    """The children of a dynamic supervisor are restarted one by one, and share its budget."""
    a, b = Puppet(), Puppet()
    app = launch(dynamic_supervisor("app", **many(2)))
    start_dynamic(app, a=a, b=b)
    crash(a)
    wait_for_look(app, "a running 2", "b running 1")
    crash(a)
    wait_for_look(app, "a running 3", "b running 1")
    crash(a)

    assert has_given_up(app, "app/a")
    assert (a.starts, b.starts) == (3, 1)
    assert b.next().asked.is_set()


def test_simple_one_for_one_shutdown(launch, recorder):
    """The children of a dynamic supervisor stop in parallel, each with its own budget.

    Adapted: two that take their time wait for each other, which one after the other never could; a third one that goes
    over its budget meanwhile is interrupted. (OTP's children share one budget.)
    """
    all_asked = threading.Barrier(3)

    def never_stops(ctx):
        ctx.on_stop(lambda: all_asked.wait(HANG))
        ctx.ready()
        while True:
            time.sleep(0.002)

    app = launch(dynamic_supervisor("app"))
    for id in ("a", "b"):
        app.start_child(
            Puppet(when_asked=lambda life: all_asked.wait(HANG)).spec(id, shutdown=HANG)
        )
    app.start_child(thread(never_stops, id="c", ready=True, shutdown=0.05))
    report = app.stop()

    assert report.reason == ExitReason(ExitKind.SHUTDOWN)
    assert (set(report.stopped), report.interrupted, report.unstopped) == (
        {"app/a", "app/b"},
        ("app/c",),
        (),
    )
    assert not all_asked.broken
    assert [one.path for one in recorder.of(ShutdownError)] == ["app/c"]


class Listening(Puppet):
    """A puppet that takes arguments, and keeps those of each start."""

    def __init__(self):
        super().__init__()
        self.arguments = []

    def __call__(self, ctx, *arguments):
        self.arguments.append(arguments)
        super().__call__(ctx)


def test_simple_one_for_one_extra(launch):
    """Each restart of a dynamic child gets the arguments of its first start.

    Adapted: a start returns no extra info; what start_child gave is what is kept.
    """
    a, b, extra = Listening(), Listening(), {"extra": "info"}
    app = launch(dynamic_supervisor("app", **many(2)))
    infos = [
        app.start_child(thread(target, id, extra, id=id)) for id, target in (("a", a), ("b", b))
    ]

    assert [(info.id, info.state, info.incarnation) for info in infos] == [
        ("a", ChildState.RUNNING, 1),
        ("b", ChildState.RUNNING, 1),
    ]
    crash(a)
    wait_for_look(app, "a running 2", "b running 1")
    crash(a)
    wait_for_look(app, "a running 3", "b running 1")
    crash(b)
    assert has_given_up(app, "app/b")
    assert (a.arguments, b.arguments) == ([("a", extra)] * 3, [("b", extra)])
    assert all(given[1] is extra for given in a.arguments)


def test_simple_one_for_one_escalation(launch, recorder):
    """A dynamic child whose restarts fail spends the budget, and then the supervisor ends with the others."""
    a, b = Puppet(), Puppet()
    app = launch(dynamic_supervisor("app", **many(4)))
    start_dynamic(app, a=a, b=b)
    a.always_fails = ValueError("boom")
    crash(a)

    assert has_given_up(app, "app/a")
    assert (a.starts, b.starts) == (1 + 4, 1)
    assert b.next().asked.is_set()
    assert len(recorder.of(StartFailed, "app/a")) == 4


class Large:
    """An argument that can be watched going."""


def test_simple_one_for_one_corruption(launch):
    """Nothing of a temporary child that crashed stays behind: neither its arguments nor its spec.

    Adapted: a weak reference tells when the argument goes. While the child runs, its thread holds it.
    """
    target = Puppet()

    def start_and_crash():
        large = Large()
        app.start_child(thread(lambda ctx, large: target(ctx), large, id="a", restart="temporary"))
        crash(target)
        return weakref.ref(large)

    app = launch(dynamic_supervisor("app"), reports=None)
    large = start_and_crash()

    wait_for_look(app)
    wait_until(lambda: gc.collect() is not None and large() is None, "the argument is gone")
    assert app.alive


@pytest.mark.parametrize("restart", ["transient", "permanent"])
def test_simple_one_for_one_restart_ignore(launch, recorder, restart):
    """A dynamic child that declines its restart leaves nothing behind, and the stop is clean."""
    puppet = Puppet()
    for start in (None, None, Ignore()):
        puppet.failures.put(start)
    app = launch(dynamic_supervisor("app"))
    app.start_child(puppet.spec("a", restart=restart, ready=True))
    crash(puppet)
    wait_for_look(app, "a running 2")
    crash(puppet)
    wait_for_look(app)
    report = app.stop()

    assert puppet.starts == 3
    assert (report.reason, report.stopped) == (ExitReason(ExitKind.SHUTDOWN), ())
    assert recorder.names() == ["Progress app/a", "ChildTerminated app/a"] * 2


def test_rest_for_one(launch, recorder):
    """Those that were started after the child that crashed are restarted with it, and that spends one unit."""
    a, b, c = Puppet(), Puppet(), Puppet()
    children = [a.spec("a"), b.spec("b"), c.spec("c")]
    app = launch(supervisor("app", strategy="rest_for_one", **many(2), children=children))
    crash(b)
    assert c.next().asked.wait(HANG)
    wait_for_look(app, "a running 1", "b running 2", "c running 2")
    crash(b)
    assert c.next().asked.wait(HANG)
    wait_for_look(app, "a running 1", "b running 3", "c running 3")
    crash(b)

    assert has_given_up(app, "app/b")
    assert (a.starts, b.starts, c.starts) == (1, 3, 3)
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        "Progress app/c",
        *["ChildTerminated app/b", "Progress app/b", "Progress app/c"] * 2,
        "ChildTerminated app/b",
        "LimitReached app",
    ]


def test_rest_for_one_escalation(launch, recorder):
    """If a later sibling fails in the restart, it alone is tried again, until the supervisor ends."""
    a, b = Puppet(), Puppet()
    children = [a.spec("a"), b.spec("b", ready=True)]
    app = launch(supervisor("app", strategy="rest_for_one", **many(4), children=children))
    b.always_fails = ValueError("boom")
    crash(a)

    assert has_given_up(app, "app/b")
    assert (a.starts, b.starts) == (2, 1 + 4)
    assert (a.next().asked.is_set(), b.next().asked.is_set()) == (True, True)
    assert len(recorder.of(ChildTerminated)) == len(recorder.of(LimitReached)) == 1
    assert len(recorder.of(StartFailed, "app/b")) == 4


def test_rest_for_one_other_child_fails_restart(launch, recorder):
    """If a later sibling fails in the restart, the child that crashed and has come up again stays up."""
    a, b = Puppet(), Puppet()
    children = [a.spec("a", ready=True), b.spec("b", ready=True)]
    app = launch(supervisor("app", strategy="rest_for_one", **many(3), children=children))
    b.failures.put(ValueError("boom"))
    crash(a)
    recorder.wait_for(Progress, "app/b", count=2)

    assert look(app) == ["a running 2", "b running 3"]
    assert not a.next().asked.is_set()
    app.stop()
    assert recorder.names() == [
        "Progress app/a",
        "Progress app/b",
        "ChildTerminated app/a",
        "Progress app/a",
        "StartFailed app/b",
        "Progress app/b",
    ]
