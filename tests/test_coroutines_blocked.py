"""Coroutine children that are silent, and loops that they block."""

import asyncio
import contextlib
import threading

import pytest

import otpy
from otpy import ExitKind, coroutine, supervisor
from otpy.children.coroutine import blockage, loop
from otpy.reports import ChildTerminated, Stalled, Unstopped
from otpy.runtime.mailbox import Mailbox
from otpy.runtime.threads import ThreadState
from tests import coroutine_stage
from tests.coroutine_stage import (
    Stage,
    block,
    let_time_pass,
    loop_threads,
    members,
    tick,
    wait,
)
from tests.helpers import HANG, wait_until

_debug, stages, gate = coroutine_stage._debug, coroutine_stage.stages, coroutine_stage.gate
swallows, clock = coroutine_stage.swallows, coroutine_stage.clock


def test_a_silent_child_is_replaced(launch, recorder, stages):
    """The child has stalled, not the loop: the report has the stack of the task."""
    app = launch(
        supervisor(
            "app",
            children=[coroutine(silent, stages[0], ready=True, heartbeat=0.05), coroutine(wait)],
        )
    )
    report = recorder.wait_for(Stalled, "app/silent")

    assert "await asyncio.Event().wait()  # silent" in report.stack
    assert stages[0].next().ctx.last_exit.kind is ExitKind.STALLED
    assert app.which_children()[1].incarnation == 1


async def silent(ctx, stage):
    ctx.ready()  # its first deadline counts from here
    if ctx.incarnation == 1:
        await asyncio.Event().wait()  # silent
    ctx.check_in(allow=60.0)
    await stage(ctx)


def test_a_blocked_loop_is_found_and_left(launch, recorder, stages, gate, clock):
    """It is reported with its stack, and marked; the children that are left there never
    count again.
    """
    first, second, third = stages
    children = [
        coroutine(first, id="a"),
        coroutine(second, id="b", restart="transient"),
        coroutine(third, id="c", loop="own"),
    ]
    app = launch(supervisor("app", intensity=9, children=children), clock=clock)
    lives = [stage.next() for stage in stages]
    block(lives[0], gate)
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    again = [first.next(), second.next()]

    [stalled] = recorder.of(Stalled)
    assert (stalled.path, stalled.thread, stalled.incarnation) == ("app", "app (loop)", 0)
    assert "gate.wait(HANG)  # blocks the loop" in stalled.stack
    assert [life.ctx.last_exit.kind for life in again] == [ExitKind.STALLED] * 2
    assert again[0].loop is again[1].loop is not lives[0].loop
    assert third.lives.empty()
    assert [entry.state for entry in loop_threads(app)] == [
        ThreadState.UNSTOPPED,
        ThreadState.RUNNING,
    ]

    gate.set()
    lives[0].thread.join(HANG)
    assert lives[0].loop.is_closed()
    assert all(life.ended.wait(HANG) for life in lives[:2])
    assert again[0].ctx.state is None
    assert app.stop().unstopped == ()
    assert [(one.path, one.incarnation) for one in recorder.of(Unstopped)] == [("app/a", 1)]
    assert len(recorder.of(ChildTerminated)) == 2


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_a_blocked_loop_of_its_own_is_left_alone(launch, recorder, gate, clock, strategy):
    """It is given up as a shared one is. The strategy decides which siblings are
    restarted, and what that costs.
    """
    stages = [Stage() for _ in range(3)]
    children = [
        coroutine(stages[0], id="a"),
        coroutine(stages[1], id="b", loop="own"),
        coroutine(stages[2], id="c", loop="own"),
    ]
    app = launch(
        supervisor("app", strategy=strategy, intensity=1, period=1e9, children=children),
        clock=clock,
    )
    lives = [stage.next() for stage in stages]
    block(lives[1], gate)
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    again = stages[1].next()
    restarted = {"one_for_one": "b", "one_for_all": "abc", "rest_for_one": "bc"}[strategy]
    for stage, id in zip(stages, "abc", strict=True):
        if id in restarted and id != "b":
            stage.next()

    [stalled] = recorder.of(Stalled)
    assert (stalled.path, stalled.thread) == ("app/b", "app/b")
    assert "gate.wait(HANG)  # blocks the loop" in stalled.stack
    assert again.loop is not lives[1].loop
    assert "".join(info.id for info in app.which_children() if info.incarnation == 2) == restarted
    assert app.snapshot().budget_left == 0
    gate.set()
    lives[1].thread.join(HANG)


def test_it_does_not_hold_up_the_end(launch, stages, gate, clock):
    """The report of the stop has it once."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    block(stages[0].next(), gate)
    let_time_pass(app, clock, lambda: loop_threads(app)[0].state is ThreadState.UNSTOPPED)
    stages[0].next()
    report = app.stop()

    assert [one.path for one in report.unstopped] == ["app/a"]
    assert "gate.wait(HANG)  # blocks the loop" in report.unstopped[0].stack
    assert report.handlers == ()


def test_it_counts_for_max_unstopped(launch, recorder, stages, gate, clock):
    """Otherwise a child that blocks again and again would leave a thread behind each
    time.
    """
    app = launch(
        supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock, max_unstopped=0
    )
    block(stages[0].next(), gate)
    with contextlib.suppress(otpy.NotAlive):
        let_time_pass(app, clock, lambda: not app.alive)

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED


def test_a_stop_of_a_child_on_a_blocked_loop_climbs_the_ladder(launch, recorder, stages, gate):
    """Each child is given up by its own ladder; the next ones get another loop at once."""
    first, second, _ = stages
    app = launch(
        supervisor(
            "app",
            children=[
                coroutine(first, id="a", shutdown=0.01),
                coroutine(second, id="b", shutdown=0.01),
            ],
        )
    )
    life = first.next()
    second.next()
    block(life, gate)
    app.terminate_child("b")
    assert "gate.wait(HANG)  # blocks the loop" in recorder.wait_for(Unstopped, "app/b").stack
    app.restart_child("b")
    assert second.next().loop is not life.loop
    report = app.stop()

    assert sorted((one.path, one.incarnation) for one in report.unstopped) == [
        ("app/a", 1),
        ("app/b", 1),
    ]
    assert [entry.state for entry in loop_threads(app)] == [ThreadState.UNSTOPPED]


def test_a_child_that_was_asked_to_stop_stays_on_the_ladder(launch, recorder, stages, gate, clock):
    """The loop is given up; such a child is given up by its own ladder, and once."""
    first, second, _ = stages
    children = [coroutine(first, id="a"), coroutine(second, id="b", shutdown=7.0)]
    app = launch(supervisor("app", children=children), clock=clock)
    life = first.next()
    second.next()
    block(life, gate)
    app._tree.directory["app"].mailbox.put(
        otpy.core.messages.TerminateChild(reply=otpy.runtime.waiting.Reply(), id="b")
    )
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    assert first.next().loop is not life.loop
    let_time_pass(app, clock, lambda: recorder.of(Unstopped, "app/b"))

    assert sorted(one.path for one in app.stop().unstopped) == ["app/a", "app/b"]


def test_a_child_that_comes_too_late_never_runs_there(launch, recorder, stages, gate, clock):
    """Its loop was blocked when the child was started; the child is moved before its
    first step.
    """
    first, second, _ = stages
    app = launch(supervisor("app", children=[coroutine(first, id="a")]), clock=clock)
    life = first.next()
    block(life, gate)
    app.start_child(coroutine(second, id="b"))
    let_time_pass(app, clock, lambda: recorder.of(Stalled))
    late = second.next()
    gate.set()
    life.thread.join(HANG)

    assert late.ctx.incarnation == 2
    assert late.loop is not life.loop
    assert second.lives.empty()


def test_a_child_that_outlives_its_loop_has_an_end(launch, stages, gate, swallows, monkeypatch):
    """It swallows also the cancellation when the blocked loop wakes up; then the loop
    is closed under it.
    """
    monkeypatch.setattr(loop, "CLEAN_UP", 0.01)
    children = [
        coroutine(swallows, id="a", shutdown=0.0, unstopped="hold"),
        coroutine(stages[0], id="b"),
    ]
    app = launch(supervisor("app", children=children))
    swallows.wait()
    life, [child, _] = stages[0].next(), members(app)
    app.terminate_child("a")
    monkeypatch.setattr(blockage, "BLOCKED_AFTER", 0.1)
    members(app)[0]._home.blockage.watch(0.0)
    block(life, gate)
    stages[0].next()
    assert app.which_children()[0].state.value == "unstopped"
    gate.set()
    wait_until(lambda: app.which_children()[0].state.value == "undefined")

    assert life.loop.is_closed()
    life.thread.join(HANG)
    assert app._tree.strays() == []
    child._task.get_coro().close()
    child._task._log_destroy_pending = (
        False  # asyncio would say that it was pending, and that is the truth
    )


def test_a_busy_loop_is_not_blocked(launch, recorder, stages, clock):
    """It comes back to its selector in time."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    life = stages[0].next()
    for _ in range(5):
        turned = threading.Event()

        async def turn(turned=turned):
            turned.set()

        life.do(turn)
        assert turned.wait(HANG)
        wait_until(lambda: members(app)[0]._home.blockage.busy_since is None)
        tick(app, clock)

    assert recorder.of(Stalled) == []


def test_a_busy_loop_wakes_its_supervisor_twice_in_five_seconds(launch, stages, clock, monkeypatch):
    """The first time the look is set, the second time it is due, however often the loop
    turns meanwhile.
    """
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    life = stages[0].next()
    core = app._tree.directory["app"]
    mail, put = [], Mailbox.put

    def note(self, item):
        if self is core.mailbox:
            mail.append(item)
        put(self, item)

    def turn_often():
        turned = threading.Event()

        async def turn():
            for _ in range(1000):
                await asyncio.sleep(0)
            turned.set()

        life.do(turn)
        assert turned.wait(HANG)
        wait_until(lambda: members(app)[0]._home.blockage.busy_since is None)

    let_time_pass(app, clock, lambda: not core.timers, blocked=0)
    monkeypatch.setattr(Mailbox, "put", note)
    for _ in range(3):
        turn_often()

    assert len(mail) == 1
    app.count_children()  # it has been read now
    assert len(core.timers) == 1


def test_an_idle_loop_is_not_watched(launch, stages, clock):
    """An idle supervisor has no deadline."""
    app = launch(supervisor("app", children=[coroutine(stages[0], id="a")]), clock=clock)
    stages[0].next()
    let_time_pass(app, clock, lambda: not app._tree.directory["app"].timers, blocked=0)


class Likeness:
    """A stand-in for uvloop: a module that makes loops without our selector."""

    new_event_loop = staticmethod(asyncio.new_event_loop)


def test_a_loop_that_cannot_tell_is_asked(launch, recorder, stages, monkeypatch, gate, clock):  # noqa: PLR0917
    """It shares no member with the usual loop, and is found when it does not answer."""
    monkeypatch.setattr("otpy.children.coroutine.child.find_uvloop", lambda: Likeness)
    first, second, _ = stages
    app = launch(
        supervisor(
            "app", children=[coroutine(first, id="a", uvloop=True), coroutine(second, id="b")]
        ),
        clock=clock,
    )
    life = first.next()
    assert life.loop is not second.next().loop
    for _ in range(3):
        tick(app, clock)
    assert recorder.of(Stalled) == []
    block(life, gate)
    let_time_pass(app, clock, lambda: recorder.of(Stalled))

    assert first.next().ctx.last_exit.kind is ExitKind.STALLED
