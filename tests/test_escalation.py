"""Failures that travel up the tree, and the handlers that are called."""

import threading

import pytest
import structlog

import otpy
from otpy import ExitKind, TreeFailed, supervisor, thread
from otpy.reports import ChildTerminated, LimitReached
from tests.helpers import HANG, Puppet, Recorder, wait_until


def crash(ctx):
    raise ValueError(f"crash {ctx.incarnation}")


def deep_tree(on_escalation, intensity=0):
    return supervisor(
        "app",
        intensity=intensity,
        on_escalation=on_escalation("app"),
        children=[
            supervisor(
                "s",
                intensity=intensity,
                on_escalation=on_escalation("s"),
                children=[supervisor("t", intensity=intensity, children=[thread(crash, id="x")])],
            )
        ],
    )


def test_a_failure_travels_to_the_root():
    """Each supervisor gives up in turn.

    Its own handler gets its escalation, and the tree's handler gets all, in order.
    """
    heard, everything = [], []
    tree = deep_tree(lambda name: lambda escalation: heard.append((name, escalation)))

    with pytest.raises(TreeFailed) as caught:
        otpy.run(tree, on_escalation=everything.append, log=False)

    assert [escalation.path for escalation in everything] == ["app/s/t", "app/s", "app"]
    assert [(name, escalation.path) for name, escalation in heard] == [
        ("s", "app/s"),
        ("app", "app"),
    ]
    first, second, last = everything
    assert (first.child, first.parent, first.restarts, first.intensity, first.period) == (
        "app/s/t/x",
        "app/s",
        1,
        0,
        5.0,
    )
    assert (second.child, second.chain) == ("app/s/t", (first,))
    assert (last.child, last.parent, last.chain) == ("app/s", None, (first, second))
    assert caught.value.reason.detail == last
    assert str(caught.value.__cause__) == "crash 1"


def test_budgets_multiply_with_the_levels():
    """Each level restarts the one below, with a fresh window, until its own limit."""
    recorder = Recorder()

    with pytest.raises(TreeFailed):
        otpy.run(deep_tree(lambda name: None, intensity=1), reports=recorder, log=False)
    crashes = recorder.of(ChildTerminated, "app/s/t/x")

    assert len(crashes) == 2 * 2 * 2
    assert len(recorder.of(LimitReached, "app/s/t")) == 4


@pytest.mark.parametrize(("restart", "left"), [("transient", ["undefined"]), ("temporary", [])])
def test_a_supervisor_that_gave_up_and_is_not_permanent(launch, recorder, restart, left):
    """To give up is a normal exit: it causes no restart, but it is always reported."""
    puppet, heard = Puppet(), []
    app = launch(
        supervisor(
            "app",
            children=[supervisor("s", restart=restart, intensity=0, children=[puppet.spec("x")])],
        ),
        on_escalation=heard.append,
    )
    puppet.next().crash()
    recorder.wait_for(LimitReached, "app/s")
    wait_until(lambda: [info.state.value for info in app.which_children()] == left)

    assert app.alive
    app.stop()
    assert [escalation.path for escalation in heard] == ["app/s"]


def test_a_handler_that_raises_or_blocks_harms_nothing():
    """Its failure is logged once.

    Later escalations wait in order, and none is dropped. The tree goes on meanwhile.
    """
    gate, heard = threading.Event(), []

    def handler(escalation):
        if not heard:
            gate.wait(HANG)
        heard.append(escalation.path)
        raise ValueError("bad handler")

    puppet = Puppet()
    with structlog.testing.capture_logs() as logs:
        tree = supervisor(
            "app", intensity=5, children=[supervisor("s", intensity=0, children=[puppet.spec("x")])]
        )
        with otpy.start(tree, on_escalation=handler, log=False) as app:
            puppet.next().crash()
            puppet.next().crash()
            puppet.next()
            assert app.alive
            assert heard == []
            gate.set()

    assert heard == ["app/s", "app/s"]
    assert [(entry["event"], entry["given"].partition(" gave up")[0]) for entry in logs] == [
        ("handler_failed", "app/s")
    ]


def test_a_handler_may_stop_the_tree():
    """A handler runs on a thread of its own, so it may wait for the tree."""
    puppet, reports = Puppet(), []
    holder = []
    tree = supervisor(
        "app",
        children=[supervisor("s", restart="temporary", intensity=0, children=[puppet.spec("x")])],
    )
    app = otpy.start(
        tree, on_escalation=lambda escalation: reports.append(holder[0].stop()), log=False
    )
    holder.append(app)
    puppet.next().crash()
    reason = app.wait(HANG)

    assert reason.kind is ExitKind.SHUTDOWN
    wait_until(lambda: reports)
    assert reports == [app.stop()]


def test_run_returns_the_report_of_a_tree_that_ended_in_order():
    """An automatic shutdown is no failure."""
    tree = supervisor(
        "app",
        auto_shutdown="any_significant",
        children=[
            thread(lambda ctx: ctx.wait_stop(), id="a"),
            thread(lambda ctx: None, id="job", restart="transient", significant=True),
        ],
    )
    report = otpy.run(tree, log=False)

    assert (report.path, report.reason.kind, report.stopped) == (
        "app",
        ExitKind.SHUTDOWN,
        ("app/a",),
    )
    assert report.duration >= 0.0
