"""Callables in processes: their check-ins, and how a stall is noticed."""

import os
import pathlib
import re
import time

import pytest

from otpy import ExitKind, process, supervisor
from otpy.children.callable import protocol
from otpy.children.callable.child import MAX_MESSAGE_SIZE
from otpy.children.callable.reading import Messages
from otpy.reports import ChildTerminated, Progress, Stalled
from tests import callable_stage, callees
from tests.callable_stage import context, end_of
from tests.helpers import ManualClock, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")

stage, where = callable_stage.stage, callable_stage.where


def test_a_stall_is_noticed(launch, recorder):
    """The report names the process; the child is killed and restarted."""
    launch(supervisor("app", children=[process(callees.hang_once, heartbeat=1.0, shutdown=0.05)]))
    stall = recorder.wait_for(Stalled)

    # The stacks follow, if the process got a processor in time.
    assert stall.stack.startswith("process ")
    assert recorder.wait_for(ChildTerminated).reason.kind is ExitKind.STALLED
    assert recorder.wait_for(Progress, "app/hang_once", count=2).incarnation == 2


def test_few_of_many_check_ins_are_sent():
    """A check-in that allows something else than the last one is sent at once."""
    ctx = context(heartbeat=1000.0)
    for _ in range(1000):
        ctx.check_in()
    assert len(ctx._wire.frames) == 1

    ctx.check_in(allow=5000.0)
    ctx.check_in(allow=5000.0)
    ctx.check_in()
    assert [protocol.ALLOWED.unpack(content) for _, content in ctx._wire.frames] == [
        (0.0,),
        (5000.0,),
        (0.0,),
    ]


def test_without_a_heartbeat_only_state_is_sent():
    """A plain check-in would change nothing."""
    ctx = context()
    ctx.check_in()
    ctx.check_in("state")

    assert [kind for kind, _ in ctx._wire.frames] == [protocol.STATE]
    assert ctx.state == "state"


@pytest.mark.parametrize("allow", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_wrong_allowance_is_refused(allow):
    """It must be a finite number > 0."""
    with pytest.raises(ValueError, match="allow"):
        context(heartbeat=1.0).check_in(allow=allow)


def test_a_check_in_that_was_kept_back_is_allowed_for(stage):
    """Of the check-ins after it some were not sent, so the next may be late by that
    much.
    """
    scene = stage(process(callees.obedient, heartbeat=8.0))
    scene.hear()
    before = time.monotonic()
    scene.child._keeper._has_checked_in(protocol.ALLOWED.pack(0.0))
    beat, until = scene.child.pulse()
    scene.child._keeper._has_checked_in(protocol.ALLOWED.pack(100.0))

    assert before <= beat
    assert until == beat + 9.0
    assert scene.child.pulse()[1] == scene.child.pulse()[0] + 101.0
    scene.child.stop()
    end_of(scene)


def test_the_stacks_of_a_late_child_are_forgotten_when_it_checks_in(stage, where):
    """An old stack must not explain a later stall."""
    scene = stage(process(callees.late, where, heartbeat=8.0, ready=True))
    scene.hear()
    child = scene.child
    child._keeper._doubt()
    wait_until(lambda: "in late" in child.stack(), "its stack")
    before, again = child.stack(), child.stack()
    child._line.stacks = ""
    child._keeper._doubt()
    wait_until(
        lambda: "in late" in child.stack(),
        "the second answer; one that comes after the check-in is kept",
    )
    pathlib.Path(where).touch()
    wait_until(lambda: not child._keeper._is_doubted)

    assert before == again
    assert re.fullmatch(r"process \d+, which runs .*\n", child.stack())
    assert child._line.running
    child.stop()
    assert end_of(scene).kind is ExitKind.SHUTDOWN


def test_a_late_child_is_asked_for_its_stacks_once(stage):
    """The keeper asks a sixteenth of the heartbeat before the child has stalled."""
    scene = stage(process(callees.obedient, heartbeat=8.0))
    scene.hear()
    child = scene.child
    clock, scene.tree.clock = scene.tree.clock, ManualClock()
    child._keeper._has_checked_in(protocol.ALLOWED.pack(0.0))
    wait = child._keeper._next_doubt_in()
    child._keeper._is_doubted = True
    scene.tree.clock = clock

    assert wait == 8.5
    assert child._keeper._next_doubt_in() is None
    child.stop()
    end_of(scene)


def test_messages_may_come_in_pieces():
    """A message is complete when its last byte has come."""
    messages = Messages(MAX_MESSAGE_SIZE)
    stream = protocol.HEAD.pack(protocol.STATE, 3) + b"abc" + protocol.HEAD.pack(protocol.UP, 0)
    cut = [one for index in range(len(stream)) for one in messages.cut(stream[index : index + 1])]

    assert cut == [(protocol.STATE, b"abc"), (protocol.UP, b"")]
