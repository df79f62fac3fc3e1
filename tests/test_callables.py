"""Callables in processes: what they see, what is refused, and how they start."""

import errno
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

import otpy
from otpy import SpecError, dynamic_supervisor, process, supervisor
from otpy.children.callable import far_side, wires
from otpy.children.callable import process as processes
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ChildTerminated
from otpy.runtime import posix
from tests import callable_stage, callees
from tests.callable_stage import descriptors, end_of, heard, is_reaped
from tests.helpers import HANG

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")

stage, where = callable_stage.stage, callable_stage.where


def test_it_sees_what_a_thread_sees(launch, where):
    """Its context has the same names as that of a thread, and they mean the same."""
    launch(supervisor("app", children=[process(callees.tell, where, id="x")]))

    assert heard(where) == ["x", "app/x", 1, True, True, None, None]


def test_it_leads_a_session_and_a_group_of_its_own(launch, where):
    """Its stdin is empty, and it is a child of this process."""
    launch(supervisor("app", children=[process(callees.tell_group, where)]))
    pid, session, group, parent, stdin = heard(where)

    assert pid == session == group
    assert (parent, stdin) == (os.getpid(), "")


def test_all_of_otpy_works_there(launch, where, capfd):
    """``current``, ``log`` and refusals import the rest of otpy; ``on_stop`` is called."""
    app = launch(supervisor("app", children=[process(callees.use_otpy, where)]))
    is_current, refused = heard(where)
    app.stop()

    assert is_current
    assert "no handle of its supervisor" in refused
    assert "hello" in capfd.readouterr().out
    assert heard(f"{where}.stopped") == [True]


def test_the_far_side_is_light():
    """The interpreter loads the files of the far side alone, and nothing slow with them."""
    boot, main, _ = processes.BOOT.partition("module.main(")
    boot = boot.format(modules=processes.MODULES, home=processes._home())
    program = f"import sys; before = set(sys.modules)\n{boot}\nprint(*set(sys.modules) - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()

    assert main
    assert {name for name in loaded if name.startswith("otpy")} == set(processes.MODULES)
    assert not {"attr", "attrs", "structlog", "typing", "json", "traceback"} & set(loaded)


def test_its_replacement_gets_its_state_and_knows_its_end(launch, where, recorder):
    """A state that cannot be pickled is refused where it is saved, and changes nothing."""
    launch(supervisor("app", children=[process(callees.hand_over, where)]))

    assert heard(where) == [{"lines": 3}, False, "bad luck", "crashed"]
    assert "cannot pickle" in recorder.wait_for(ChildTerminated).reason.traceback


def test_what_snapshot_returns_is_saved(stage):
    """The option ``snapshot`` makes the copy that is saved."""
    scene = stage(process(callees.save, "abc", snapshot=callees.shortened, restart="temporary"))
    end_of(scene)

    assert far_side.pickle.loads(scene.child.state.pickled) == "ab"


def test_much_goes_both_ways(launch, where):
    """Arguments and states may be larger than a pipe."""
    launch(supervisor("app", children=[process(callees.big, "x" * 3_000_000, where)]))

    assert heard(where) == [3_000_000]


def test_queues_of_multiprocessing_may_be_arguments(launch):
    """The process inherits their descriptors."""
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    launch(supervisor("app", children=[process(callees.put, queue, "hello")]))

    assert queue.get() == "hello"
    queue.close()


def nested():
    def inner(ctx): ...

    return inner


@pytest.mark.parametrize(
    ("function", "args", "options", "field"),
    [
        (lambda ctx: None, (), {"id": "x"}, "target"),
        (nested(), (), {}, "target"),
        (threading.Lock().acquire, (), {"id": "x"}, "target"),
        (callees.tell, (), {}, "target"),
        (callees.tell, (threading.Lock(),), {}, "args[0]"),
        (callees.put, (1, multiprocessing.get_context("fork").SimpleQueue()), {}, "args[1]"),
        (callees.tell, (1,), {"snapshot": lambda state: state}, "snapshot"),
    ],
)
def test_what_cannot_be_sent_is_refused_when_the_spec_is_made(function, args, options, field):
    """The error names the field, and the child."""
    with pytest.raises(SpecError) as refusal:
        process(function, *args, **options)

    assert refusal.value.field == field
    assert refusal.value.path in ("x", "tell", "inner", "put")
    assert "expected" in str(refusal.value)


def test_a_spec_is_a_value():
    """Specs of equal parts are equal; an unknown option is refused by name."""
    assert process(callees.tell, "a", heartbeat=3) == process(callees.tell, "a", heartbeat=3)
    assert process(callees.tell, "a") != process(callees.tell, "b")
    assert process(callees.tell, "a").id == "tell"
    with pytest.raises(TypeError, match="process"):
        process(callees.tell, "a", strategy="one_for_all")


def test_it_is_up_when_it_says_so(stage, where):
    """With ``ready=True`` ChildStarted comes when the callable calls ``ready``."""
    scene = stage(process(callees.ready_then, where, ready=True))

    assert scene.hear() == ChildStarted(7, "root/ready_then")
    assert heard(where) == [True]
    scene.child.stop()
    assert isinstance(scene.hear(), ChildExited)


def test_a_child_that_is_not_ready_in_time_is_killed(where):
    """Its start has failed, and no process is left."""
    late = process(
        callees.never_ready, where, ready=True, start_timeout=1.0, shutdown="brutal_kill"
    )
    with pytest.raises(otpy.StartError):
        otpy.start(supervisor("app", children=[late]), log=False)

    assert is_reaped(heard(where)[0])


@pytest.mark.parametrize("name", ["start_process", "socket_pair", "pipe"])
def test_a_start_that_the_system_refuses_is_a_failed_start(stage, monkeypatch, name):
    """The reason of the end is the error of the system."""

    def refuse(*args, **options):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(posix, name, refuse)
    scene = stage(process(callees.obedient))
    news = scene.hear()

    assert isinstance(news, ChildExited)
    assert news.reason.exception.errno == errno.EAGAIN


def test_many_start_at_once(launch):
    """No start blocks the supervisor, and no descriptor is left behind."""
    before = descriptors() if sys.platform == "linux" else 0
    app = launch(dynamic_supervisor("app"))
    callers = [
        threading.Thread(target=app.start_child, args=(process(callees.obedient, id=f"c{number}"),))
        for number in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(HANG)
    assert app.count_children().active == 4
    app.stop()

    assert not wires.near_ends
    if before:
        assert descriptors() <= before
