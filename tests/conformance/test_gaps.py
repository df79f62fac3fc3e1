"""What OTP does and its own suite has no case for: ten gaps, each filled from what OTP was seen to do."""

import contextlib
import threading
import time

import pytest

from otpy import (
    ChildState,
    ExitKind,
    ExitReason,
    Ignore,
    Killed,
    Shutdown,
    StartError,
    dynamic_supervisor,
    supervisor,
    thread,
)
from otpy.core import messages
from otpy.reports import (
    AutoShutdownBegun,
    ChildTerminated,
    LimitReached,
    Progress,
    ShutdownError,
    StrayMessage,
)
from tests.conformance.tools import Hurdle, held, join, look, post, stays_up, wait_for_look
from tests.helpers import HANG, ManualClock, Puppet

# 1: the window


@pytest.mark.parametrize("restart", ["permanent", "transient"])
def test_gap_01_intensity_zero(launch, recorder, restart):
    """With intensity 0 the first end that would lead to a restart ends the supervisor, before any attempt."""
    puppet = Puppet()
    app = launch(supervisor("app", intensity=0, children=[puppet.spec("a", restart=restart)]))
    puppet.next().crash()

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert recorder.names() == ["Progress app/a", "ChildTerminated app/a", "LimitReached app"]
    assert puppet.starts == 1


@pytest.mark.parametrize("elapsed", [0.0, 2.5, 5.0])
def test_gap_01_window_boundary_inside(launch, recorder, elapsed):
    """A restart counts until the period is over, the boundary included; whose restart it was does not matter."""
    a, b, clock = Puppet(), Puppet(), ManualClock()
    app = launch(
        supervisor("app", intensity=1, period=5, children=[a.spec("a"), b.spec("b")]), clock=clock
    )
    a.next().crash()
    a.next()
    clock.advance(elapsed)
    b.next().crash()

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert recorder.wait_for(LimitReached).escalation.restarts == 2


def test_gap_01_window_boundary_outside(launch):
    """A restart does not count any more when more time than the period has passed."""
    puppet, clock = Puppet(), ManualClock()
    app = launch(supervisor("app", intensity=1, period=5, children=[puppet.spec("a")]), clock=clock)
    puppet.next().crash()
    second = puppet.next()
    assert app.snapshot().budget_left == 0

    clock.advance(5.001)
    assert app.snapshot().budget_left == 1
    second.crash()

    assert puppet.next().incarnation == 3


def test_gap_01_units_not_consumed(launch):
    """Ends that lead to no restart, calls, and what calls start in vain, cost nothing."""
    temporary, transient, failing = Puppet(), Puppet(), Puppet()
    children = [
        temporary.spec("temporary", restart="temporary"),
        transient.spec("transient", restart="transient"),
        failing.spec("failing", ready=True),
    ]
    app = launch(supervisor("app", intensity=0, children=children))
    temporary.next().crash()
    transient.next().crash(Shutdown("enough"))
    app.terminate_child("failing")
    failing.always_fails = RuntimeError("no start")
    with pytest.raises(StartError):
        app.restart_child("failing")
    with pytest.raises(StartError):
        app.start_child(failing.spec("new", ready=True))

    wait_for_look(app, "transient undefined 1", "failing undefined 2")
    assert app.start_child(Puppet().spec("other")).state is ChildState.RUNNING


# 2: the rollback of a start


def test_gap_02_init_rollback(launch, recorder):
    """The first child that fails is reported, those before it are stopped in reverse, those after it never start."""
    stops, boom = [], RuntimeError("boom")
    a, b = (Puppet(when_asked=lambda life: stops.append(life.ctx.id)) for _ in "ab")
    failing, never = Puppet(), Puppet()
    failing.always_fails = boom
    children = [a.spec("a"), b.spec("b"), failing.spec("x", ready=True), never.spec("d")]
    with pytest.raises(StartError) as failure:
        launch(supervisor("app", intensity=9, children=children))

    assert (failure.value.path, failure.value.__cause__) == ("app/x", boom)
    assert recorder.names() == ["Progress app/a", "Progress app/b", "StartFailed app/x"]
    assert stops == ["b", "a"]
    assert (failing.starts, never.starts) == (1, 0)


# 3: whom a group restart brings back


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_gap_03_group_restart_resurrects(launch, recorder, strategy):
    """A group restart starts all of the group that is specified: finished, declined and terminated children, too."""
    crasher, finished, declined, terminated = (Puppet() for _ in range(4))
    declined.failures.put(Ignore())
    children = [
        crasher.spec("crasher"),
        finished.spec("finished", restart="transient"),
        declined.spec("declined", ready=True),
        terminated.spec("terminated"),
    ]
    app = launch(supervisor("app", strategy=strategy, children=children))
    finished.next().leave()
    app.terminate_child("terminated")
    wait_for_look(
        app,
        "crasher running 1",
        "finished undefined 1",
        "declined undefined 1",
        "terminated undefined 1",
    )

    crasher.next().crash()
    recorder.wait_for(Progress, "app/terminated", count=2)

    assert look(app) == [
        "crasher running 2",
        "finished running 2",
        "declined running 2",
        "terminated running 2",
    ]
    assert app.snapshot().budget_left == 2


# 4: a supervisor at its limit, as its parent sees it


@pytest.mark.parametrize(
    ("restart", "reported", "after"),
    [
        ("permanent", [ExitKind.LIMIT_REACHED], ["sub running 2"]),
        ("transient", [], ["sub undefined 1"]),
        ("temporary", [], []),
    ],
)
def test_gap_04_limit_of_a_child_supervisor(launch, recorder, restart, reported, after):
    """A supervisor at its limit has ended normally for its parent: a permanent one is restarted, others are not."""
    puppet = Puppet()
    sub = supervisor("sub", intensity=0, restart=restart, children=[puppet.spec("a")])
    app = launch(supervisor("app", children=[sub, Puppet().spec("other")]))
    puppet.next().crash()
    wait_for_look(app, *after, "other running 1")
    budget_left = app.snapshot().budget_left
    app.stop()

    assert [report.path for report in recorder.of(LimitReached)] == ["app/sub"]
    assert [report.reason.kind for report in recorder.of(ChildTerminated, "app/sub")] == reported
    assert budget_left == 3 - len(reported)


@pytest.mark.parametrize("restart", ["transient", "temporary"])
@pytest.mark.parametrize("mode", ["any_significant", "all_significant"])
def test_gap_04_limit_of_a_significant_supervisor(launch, recorder, restart, mode):
    """A significant supervisor at its limit ends its parent by auto_shutdown, which is not the parent's own limit."""
    puppet = Puppet()
    sub = supervisor(
        "sub", intensity=0, restart=restart, significant=True, children=[puppet.spec("a")]
    )
    app = launch(supervisor("app", auto_shutdown=mode, children=[sub, Puppet().spec("other")]))
    puppet.next().crash()

    assert app.wait(HANG).kind is ExitKind.SHUTDOWN
    assert [report.child for report in recorder.of(AutoShutdownBegun)] == ["app/sub"]
    assert [report.path for report in recorder.of(LimitReached)] == ["app/sub"]


def test_gap_04_limit_of_a_chain(launch, recorder):
    """A permanent supervisor at its limit costs its parent a unit; without one the parent gives up as well."""
    puppet = Puppet()
    sub = supervisor("sub", intensity=0, children=[puppet.spec("a")])
    app = launch(supervisor("app", intensity=0, children=[sub]))
    puppet.next().crash()

    escalation = app.wait(HANG).detail
    assert (escalation.path, escalation.child, escalation.parent) == ("app", "app/sub", None)
    assert [(below.path, below.child, below.parent) for below in escalation.chain] == [
        ("app/sub", "app/sub/a", "app"),
    ]
    assert [report.path for report in recorder.of(LimitReached)] == ["app/sub", "app"]


# 5: two siblings dead before the supervisor looks


@pytest.mark.parametrize(
    ("strategy", "first", "second"),
    [("one_for_all", "a", "b"), ("one_for_all", "b", "a"), ("rest_for_one", "a", "b")],
)
def test_gap_05_a_second_death_is_absorbed(launch, recorder, strategy, first, second):
    """The death of a child that the restart of another would stop anyway is a stop, and costs nothing."""
    puppets = {"a": Puppet(), "b": Puppet()}
    children = [puppet.spec(id) for id, puppet in puppets.items()]
    app = launch(supervisor("app", strategy=strategy, intensity=1, children=children))
    lives = {id: puppet.next() for id, puppet in puppets.items()}
    with held(app):
        for id in (first, second):
            lives[id].crash()
            join(f"app/{id}")
    recorder.wait_for(Progress, "app/b", count=2)

    assert look(app) == ["a running 2", "b running 2"]
    assert recorder.names()[2:] == [
        f"ChildTerminated app/{first}",
        f"ShutdownError app/{second}",
        "Progress app/a",
        "Progress app/b",
    ]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_gap_05_a_death_before_its_turn_to_stop(launch, recorder, strategy):
    """A child that dies while a later one is being stopped has been stopped, however long that takes."""
    asked, go = threading.Event(), threading.Event()
    a, b = Puppet(), Puppet()
    slow = Puppet(when_asked=lambda life: (asked.set(), go.wait(HANG)))
    children = [a.spec("a"), b.spec("b"), slow.spec("slow", shutdown="infinity")]
    app = launch(supervisor("app", strategy=strategy, intensity=1, children=children))
    last = b.next()
    a.next().crash()
    assert asked.wait(HANG)
    last.crash()
    recorder.wait_for(ShutdownError, "app/b")
    assert look(app) == ["a undefined 1", "b undefined 1", "slow stopping 1"]

    go.set()
    recorder.wait_for(Progress, "app/slow", count=2)

    assert look(app) == ["a running 2", "b running 2", "slow running 2"]
    assert recorder.of(ChildTerminated, "app/b") == []


@pytest.mark.parametrize(
    ("strategy", "first", "second"), [("rest_for_one", "b", "a"), ("one_for_one", "a", "b")]
)
def test_gap_05_a_second_death_counts(launch, recorder, strategy, first, second):
    """The death of a child that the restart of another leaves alone costs a unit of its own."""
    puppets = {"a": Puppet(), "b": Puppet()}
    children = [puppet.spec(id) for id, puppet in puppets.items()]
    app = launch(supervisor("app", strategy=strategy, intensity=1, children=children))
    lives = {id: puppet.next() for id, puppet in puppets.items()}
    with held(app):
        for id in (first, second):
            lives[id].crash()
            join(f"app/{id}")

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert recorder.names()[2:] == [
        f"ChildTerminated app/{first}",
        f"Progress app/{first}",
        f"ChildTerminated app/{second}",
        "LimitReached app",
    ]


# 6: which ends of a stop are reported

P, T, E = "permanent", "transient", "temporary"
REPORTED = {
    # (end, shutdown): the restart types for which it is reported
    ("shutdown", "timed"): (),
    ("shutdown", "infinity"): (),
    ("shutdown", "brutal_kill"): (P,),
    ("shutdown with a reason", "timed"): (P,),
    ("shutdown with a reason", "infinity"): (P,),
    ("shutdown with a reason", "brutal_kill"): (P,),
    ("normal", "timed"): (P,),
    ("normal", "infinity"): (P,),
    ("normal", "brutal_kill"): (P,),
    ("killed", "timed"): (P, T, E),
    ("killed", "brutal_kill"): (),
    ("crash", "timed"): (P, T, E),
    ("crash", "infinity"): (P, T, E),
    ("crash", "brutal_kill"): (P, T, E),
}
BUDGETS = {"timed": 5.0, "infinity": "infinity", "brutal_kill": "brutal_kill"}
LAST_WORDS = {"shutdown with a reason": Shutdown("enough"), "crash": RuntimeError("late")}

each_restart = pytest.mark.parametrize("restart", [P, T, E])


def deaf(ctx, up, end):
    """Ignore the stop until interrupted, then end as the test wants it."""
    try:
        up.set()
        while True:
            time.sleep(0.001)
    except Killed:
        if end == "killed":
            raise
    if error := LAST_WORDS.get(end):
        raise error


def polite(ctx, up, end):
    """Stop when asked, and end as the test wants it."""
    up.set()
    ctx.wait_stop()
    if error := LAST_WORDS.get(end):
        raise error


@each_restart
@pytest.mark.parametrize(("end", "shutdown"), [row for row in REPORTED if row[0] != "normal"])
def test_gap_06_shutdown_error_matrix(launch, recorder, restart, end, shutdown):
    """Which end of a stop is worth a report depends on restart type and shutdown; the stop has worked in any case."""
    up = threading.Event()
    target = deaf if end == "killed" or shutdown == "brutal_kill" else polite
    budget = 0.05 if (end, shutdown) == ("killed", "timed") else BUDGETS[shutdown]
    app = launch(
        supervisor(
            "app", children=[thread(target, up, end, id="a", restart=restart, shutdown=budget)]
        )
    )
    assert up.wait(HANG)
    app.terminate_child("a")
    app.stop()

    reported = [report.path for report in recorder.of((ShutdownError, ChildTerminated))]
    assert reported == (["app/a"] if restart in REPORTED[end, shutdown] else [])


@each_restart
@pytest.mark.parametrize("shutdown", BUDGETS)
def test_gap_06_shutdown_error_of_a_normal_end(launch, recorder, restart, shutdown):
    """A child that had ended by itself when it was told to stop is judged as if that had been its stop."""
    puppet = Puppet()
    app = launch(
        supervisor("app", children=[puppet.spec("a", restart=restart, shutdown=BUDGETS[shutdown])])
    )
    life = puppet.next()
    with held(app):
        terminated = post(app, messages.TerminateChild, id="a")
        life.leave()
        join("app/a")
    terminated()
    app.stop()

    reported = [
        (report.path, report.reason.kind)
        for report in recorder.of((ShutdownError, ChildTerminated))
    ]
    assert reported == (
        [("app/a", ExitKind.NORMAL)] if restart in REPORTED["normal", shutdown] else []
    )


# 7: all_significant and terminate_child


def test_gap_07_terminated_after_the_other_had_finished(launch):
    """With all_significant, terminate_child of the last significant child leaves the supervisor up."""
    a, b = Puppet(), Puppet()
    significant = [
        puppet.spec(id, restart="transient", significant=True)
        for id, puppet in (("a", a), ("b", b))
    ]
    app = launch(
        supervisor(
            "app", auto_shutdown="all_significant", children=[*significant, Puppet().spec("other")]
        )
    )
    a.next().leave()
    wait_for_look(app, "a undefined 1", "b running 1", "other running 1")
    app.terminate_child("b")

    stays_up(app, "a undefined 1", "b undefined 1", "other running 1")


def test_gap_07_terminated_before_the_other_finishes(launch):
    """With all_significant, a terminated child does not hold the supervisor up when the last one finishes."""
    a, b = Puppet(), Puppet()
    significant = [
        puppet.spec(id, restart="transient", significant=True)
        for id, puppet in (("a", a), ("b", b))
    ]
    app = launch(
        supervisor(
            "app", auto_shutdown="all_significant", children=[*significant, Puppet().spec("other")]
        )
    )
    app.terminate_child("b")
    a.next().leave()

    assert app.wait(HANG).kind is ExitKind.SHUTDOWN


# 8: what does not belong on the queue


@pytest.mark.parametrize(
    "item", ["hello", None, 7, ("call", "who are you"), object, messages.Call(reply=None)]
)
def test_gap_08_unknown_messages(launch, recorder, item):
    """Whatever is put on a supervisor's queue that it does not know is reported and ignored."""
    puppet = Puppet()
    app = launch(supervisor("app", intensity=0, children=[puppet.spec("a")]))
    app._core().mailbox.put(item)
    stray = recorder.wait_for(StrayMessage, "app")

    assert stray.item is item
    assert look(app) == ["a running 1"]


@pytest.mark.parametrize(
    "news",
    [
        messages.ChildExited(77, ExitReason(ExitKind.CRASHED)),
        messages.ChildExited(77, ExitReason(ExitKind.SHUTDOWN)),
        messages.ChildStarted(77),
        messages.Due(77),
        messages.Retry(77),
    ],
)
def test_gap_08_foreign_exits(launch, recorder, news):
    """News of somebody who is no child of the supervisor is ignored without a word."""
    puppet = Puppet()
    app = launch(supervisor("app", intensity=0, children=[puppet.spec("a")]))
    app._core().mailbox.put(news)

    assert look(app) == ["a running 1"]
    app.stop()
    assert recorder.names() == ["Progress app/a"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: messages.ChildExited([], ExitReason(ExitKind.CRASHED)),
        lambda: messages.ChildExited(1, "boom"),
        lambda: messages.ChildStarted({}),
    ],
)
def test_gap_08_malformed_messages(launch, make):
    """News that a kind of child got wrong is refused where it is made or where it is read, and hurts nobody."""
    puppet = Puppet()
    app = launch(supervisor("app", intensity=0, children=[puppet.spec("a")]))
    life = puppet.next()
    try:
        with contextlib.suppress(TypeError, ValueError):
            app._core().mailbox.put(make())
        assert look(app) == ["a running 1"]
    finally:
        life.leave()


# 9: a retry that comes too late


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_gap_09_retry_superseded(launch, recorder, strategy):
    """If the crash of another child brings a restarting child up, the retry that waits for it is dropped."""
    hurdle = Hurdle()
    a, b, d = Puppet(), Puppet(), Puppet()
    children = [a.spec("a"), hurdle.before(b.spec("b")), d.spec("d")]
    app = launch(supervisor("app", strategy=strategy, intensity=5, children=children))
    hurdle.is_up = True
    a.next().crash()
    hurdle.arrival()
    a.next().crash()
    join("app/a")
    hurdle.is_up = False
    hurdle.fail()
    recorder.wait_for(Progress, "app/d", count=2)

    assert look(app) == ["a running 3", "b running 3", "d running 2"]
    assert app.snapshot().budget_left == 3
    assert [puppet.next().incarnation for puppet in (a, b, b, d, d)] == [3, 1, 3, 1, 2]
    assert (a.starts, b.starts, d.starts) == (3, 2, 2)


# 10: the order of things at the limit


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_gap_10_order_at_the_limit(launch, recorder, strategy):
    """At the limit: the death is reported, then the limit; then the others stop in reverse start order."""
    stops = []
    puppets = {id: Puppet(when_asked=lambda life: stops.append(life.ctx.id)) for id in "abce"}
    children = [puppet.spec(id) for id, puppet in puppets.items()]
    app = launch(supervisor("app", strategy=strategy, intensity=0, children=children))
    lives = {id: puppet.next() for id, puppet in puppets.items()}
    lives["b"].crash()
    reason = app.wait(HANG)

    assert recorder.names()[4:] == ["ChildTerminated app/b", "LimitReached app"]
    assert stops == ["e", "c", "a"]
    assert app.stop().stopped == ("app/e", "app/c", "app/a")
    assert (reason.kind, reason.is_normal, reason.detail.child) == (
        ExitKind.LIMIT_REACHED,
        True,
        "app/b",
    )


def test_gap_10_order_after_failed_retries(launch, recorder):
    """With intensity n there are n attempts after a crash, each reported; then the limit."""
    puppet = Puppet()
    app = launch(supervisor("app", intensity=3, children=[puppet.spec("a", ready=True)]))
    puppet.always_fails = RuntimeError("no start")
    puppet.next().crash()

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert recorder.names()[1:] == [
        "ChildTerminated app/a",
        *["StartFailed app/a"] * 3,
        "LimitReached app",
    ]
    assert puppet.starts == 4


def test_gap_10_dynamic_children_at_the_limit(launch, recorder):
    """At the limit of a dynamic supervisor the others are stopped all at once."""
    everybody = threading.Barrier(3)
    app = launch(dynamic_supervisor("app", intensity=0))
    others = [Puppet(when_asked=lambda life: everybody.wait(HANG)) for _ in range(3)]
    for number, puppet in enumerate(others):
        app.start_child(puppet.spec(str(number), shutdown="infinity"))
    crasher = Puppet()
    app.start_child(crasher.spec("crasher"))
    crasher.next().crash()

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert not everybody.broken
