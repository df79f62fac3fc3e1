"""Trees, counts, what is remembered, retries under way: supervisor_SUITE, group misc."""

import contextlib
import gc
import threading
import weakref

import attrs
import pytest
from structlog.testing import capture_logs

from otpy import (
    AlreadyPresent,
    AlreadyStarted,
    ChildSpec,
    ChildState,
    Counts,
    ExitKind,
    NotFound,
    StartError,
    StillRestarting,
    dynamic_supervisor,
    supervisor,
    thread,
)
from otpy.core import messages
from otpy.core.messages import StopSupervisor
from otpy.reports import Cause, Progress, Unstopped
from otpy.runtime import threads
from tests.conformance.tools import Hurdle, join, look, post, wait_for_look
from tests.helpers import HANG, Puppet, wait_until

MANY = 200


@attrs.define(eq=False)
class Mute:
    """A kind of child that never says that it has ended, and cannot be killed."""

    birth: object
    alive = False
    state = None

    def start(self, deliver):
        deliver(messages.ChildStarted(self.birth.ref))

    def stop(self):
        pass

    def kill(self, grace):
        return False

    def abandon(self):
        pass

    def stack(self):
        return ""


@pytest.mark.parametrize("shutdown", [0.0, 0.01, "brutal_kill"])
def test_child_unlink(launch, recorder, shutdown):
    """A child whose end is never heard of does not hang its supervisor.

    Adapted: there are no links; the child never says that it has ended, and is given up in the end.
    """
    app = launch(supervisor("app", children=[ChildSpec(id="a", start=Mute, shutdown=shutdown)]))
    app.terminate_child("a")

    recorder.wait_for(Unstopped, "app/a")
    assert look(app) == ["a undefined 1"]


def test_tree(launch, recorder):
    """A supervisor that gives up is restarted with its siblings, terminated ones too, and dynamic children are lost."""
    static, dynamic, failing = [Puppet(), Puppet()], Puppet(), Puppet()
    first = supervisor("first", children=[static[0].spec("w1"), static[1].spec("w2")])
    second = supervisor("second", intensity=4, period=3600)
    third = supervisor("third", restart="transient")
    app = launch(
        supervisor(
            "top", strategy="one_for_all", intensity=4, period=3600, children=[first, second, third]
        )
    )
    app.terminate_child("third")
    app.find("top/second").start_child(dynamic.spec("d"))
    app.find("top/second").start_child(failing.spec("f", ready=True))
    dynamic.next().crash()
    assert dynamic.next().incarnation == 2
    assert look(app.find("top/second")) == ["d running 2", "f running 1"]
    assert look(app) == ["first running 1", "second running 1", "third undefined 1"]

    failing.always_fails = RuntimeError("no start")
    failing.next().crash()
    recorder.wait_for(Progress, "top/third", count=2)

    assert look(app) == ["first running 2", "second running 2", "third running 2"]
    assert look(app.find("top/first")) == ["w1 running 1", "w2 running 1"]
    assert look(app.find("top/second")) == []
    for puppet in static:
        assert [puppet.next().incarnation for _ in range(2)] == [
            1,
            1,
        ]  # each supervisor counts for itself
    assert [puppet.starts for puppet in (*static, dynamic)] == [2, 2, 2]


def test_count_children(launch):
    """Each dynamic child counts as a spec of its own, and no more when it has ended."""
    puppet = Puppet()
    app = launch(dynamic_supervisor("app"))
    for number in range(MANY):
        app.start_child(puppet.spec(str(number), restart="temporary"))
    assert app.count_children() == Counts(specs=MANY, active=MANY, supervisors=0, workers=MANY)
    assert len(app.which_children()) == MANY

    for _ in range(MANY):
        puppet.next().crash()
    wait_for_look(app)

    assert app.count_children() == Counts(specs=0, active=0, supervisors=0, workers=0)


def test_count_children_supervisor(launch):
    """Supervisors count as supervisors and not as workers."""
    app = launch(dynamic_supervisor("app"))
    for number in range(MANY // 2):
        app.start_child(supervisor(str(number)))

    assert app.count_children() == Counts(specs=100, active=100, supervisors=100, workers=0)


def test_count_restarting_children(launch):
    """A child that waits for its next start is not active, but it is specified."""
    hurdle, puppet = Hurdle(), Puppet()
    app = launch(dynamic_supervisor("app", intensity=20, period=10))
    for id in "abc":
        app.start_child(hurdle.before(puppet.spec(id)))
    for life in [puppet.next() for _ in "abc"]:
        life.crash()
    _, b, c = sorted((puppet.next() for _ in "abc"), key=lambda life: life.ctx.id)
    assert app.count_children() == Counts(specs=3, active=3, supervisors=0, workers=3)

    hurdle.is_up = True
    b.crash()
    hurdle.arrival()
    c.crash()
    join("app/c")
    counts = post(app, messages.CountChildren)
    hurdle.fail()
    hurdle.arrival()
    hurdle.fail()
    assert counts() == Counts(specs=3, active=1, supervisors=0, workers=3)

    hurdle.is_up = False
    hurdle.let_pass()  # the second start of b may be held already
    assert {puppet.next().ctx.id for _ in "bc"} == {"b", "c"}
    assert app.count_children() == Counts(specs=3, active=3, supervisors=0, workers=3)
    for id in "abc":
        app.terminate_child(id)
    assert app.count_children() == Counts(specs=0, active=0, supervisors=0, workers=0)


class Big:
    """An argument of a child that a test keeps an eye on."""


def is_alive(reference):
    gc.collect()
    return reference() is not None


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one", "dynamic"])
@pytest.mark.parametrize(
    ("restart", "kept"), [("permanent", True), ("transient", True), ("temporary", False)]
)
def test_do_not_save_start_parameters_for_temporary_children(launch, strategy, restart, kept):
    """What a temporary child was started with is released with it; what others were, when they are deleted.

    Adapted: a weak reference shows that the arguments go; no memory is measured.
    """
    is_dynamic = strategy == "dynamic"
    app = launch(dynamic_supervisor("app") if is_dynamic else supervisor("app", strategy=strategy))
    big = Big()
    app.start_child(thread(lambda ctx, arg: ctx.wait_stop(), big, id="a", restart=restart))
    reference = weakref.ref(big)
    del big
    app.terminate_child("a")
    join("app/a")
    if kept and not is_dynamic:
        assert is_alive(reference)
        app.delete_child("a")

    wait_until(lambda: not is_alive(reference), "the argument is released")


LOOKS = {AlreadyStarted: ["a running 2"], AlreadyPresent: ["a undefined 1"], None: []}


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize(
    ("restart", "end", "refusal"),
    [
        ("permanent", "crash", AlreadyStarted),
        ("permanent", "leave", AlreadyStarted),
        ("permanent", "terminate_child", AlreadyPresent),
        ("transient", "crash", AlreadyStarted),
        ("transient", "leave", AlreadyPresent),
        ("transient", "terminate_child", AlreadyPresent),
        ("temporary", "crash", None),
        ("temporary", "leave", None),
        ("temporary", "terminate_child", None),
    ],
)
def test_do_not_save_child_specs_for_temporary_children(launch, strategy, restart, end, refusal):
    """The id of a temporary child is free when it has ended; others are present as long as they are not deleted."""
    puppet = Puppet()
    spec = puppet.spec("a", restart=restart)
    app = launch(supervisor("app", strategy=strategy, children=[spec]))
    life = puppet.next()
    app.terminate_child("a") if end == "terminate_child" else getattr(life, end)()
    wait_for_look(app, *LOOKS[refusal])

    with contextlib.nullcontext() if refusal is None else pytest.raises(refusal):
        assert app.start_child(spec).state is ChildState.RUNNING


def test_simple_one_for_one_scale_many_temporary_children(launch):
    """The end of one of many dynamic children concerns no other.

    Adapted: the children are fewer, and no times are compared.
    """
    puppet = Puppet()
    app = launch(dynamic_supervisor("app"))
    for number in range(MANY):
        app.start_child(puppet.spec(str(number), restart="temporary"))
    for number in range(0, MANY, 2):
        app.terminate_child(str(number))

    assert look(app) == [f"{number} running 1" for number in range(1, MANY, 2)]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_temporary_bystander(launch, strategy):
    """A temporary child that is stopped in a group restart does not come back."""
    permanent, temporary = Puppet(), Puppet()
    children = [permanent.spec("permanent"), temporary.spec("temporary", restart="temporary")]
    app = launch(supervisor("app", strategy=strategy, children=children))
    permanent.next().leave()

    assert permanent.next().incarnation == 2
    wait_for_look(app, "permanent running 2")
    assert temporary.starts == 1


def test_simple_global_supervisor(launch):
    """A child that is restarted, alone or with its supervisor, has its old name again.

    Adapted: names are paths; a supervisor is stopped where OTP kills it.
    """
    puppet = Puppet()
    names = ["app", "app/sub", "app/sub/server"]
    sub = supervisor("sub", children=[puppet.spec("server")])
    app = launch(supervisor("app", strategy="one_for_all", children=[sub]))
    handle = app.find("app/sub")

    def run_once():
        return (
            sorted(one.thread.name for one in threads.entries() if one.thread.name in names)
            == names
        )

    for end in (
        lambda life: handle.stop(),
        lambda life: life.crash(),
        lambda life: life.leave(),
        lambda life: (app.terminate_child("sub"), app.restart_child("sub")),
    ):
        end(puppet.next())
        wait_until(run_once, "every name is there once")
    assert puppet.next().ctx.path == "app/sub/server"
    assert handle.alive


def test_hanging_restart_loop(launch):
    """Between two attempts a child is restarting: it cannot be restarted or deleted, but terminated, and so can all."""
    hurdle, puppet = Hurdle(), Puppet()
    spec = hurdle.before(puppet.spec("a"))
    app = launch(supervisor("app", intensity=8, period=10, children=[spec]))
    hurdle.is_up = True
    puppet.next().crash()
    hurdle.arrival()
    start = post(app, messages.StartChild, spec=spec)
    restart = post(app, messages.RestartChild, id="a")
    delete = post(app, messages.DeleteChild, id="a")
    which = post(app, messages.WhichChildren)
    counts = post(app, messages.CountChildren)
    hurdle.fail()
    with pytest.raises(AlreadyPresent):
        start()
    with pytest.raises(StillRestarting):
        restart()
    with pytest.raises(StillRestarting):
        delete()
    assert [child.state for child in which()] == [ChildState.RESTARTING]
    assert counts() == Counts(specs=1, active=0, supervisors=0, workers=1)

    hurdle.arrival()
    terminate = post(app, messages.TerminateChild, id="a")
    hurdle.fail()
    terminate()
    assert look(app) == ["a undefined 3"]

    hurdle.is_up = False
    app.restart_child("a")
    hurdle.is_up = True
    puppet.next().crash()
    hurdle.arrival()
    app._core().mailbox.put(StopSupervisor())
    hurdle.fail()
    assert app.wait(HANG).kind is ExitKind.SHUTDOWN
    assert puppet.starts == 2


def test_hanging_restart_loop_rest_for_one(launch):
    """While one child waits for its next start, those after it stay down, also when its retry is cancelled."""
    hurdle = Hurdle()
    puppets = {id: Puppet() for id in "abc"}
    children = [
        puppets["a"].spec("a"),
        hurdle.before(puppets["b"].spec("b")),
        puppets["c"].spec("c"),
    ]
    app = launch(
        supervisor("app", strategy="rest_for_one", intensity=8, period=10, children=children)
    )
    hurdle.is_up = True
    puppets["b"].next().crash()
    hurdle.arrival()
    which = post(app, messages.WhichChildren)
    restart = post(app, messages.RestartChild, id="b")
    terminate = post(app, messages.TerminateChild, id="b")
    hurdle.fail()
    assert [child.state.value for child in which()] == ["running", "restarting", "undefined"]
    with pytest.raises(StillRestarting):
        restart()
    terminate()
    assert look(app) == ["a running 1", "b undefined 2", "c undefined 1"]

    hurdle.is_up = False
    app.restart_child("b")
    assert look(app) == ["a running 1", "b running 3", "c undefined 1"]

    hurdle.is_up = True
    puppets["b"].next().crash()
    hurdle.arrival()
    app._core().mailbox.put(StopSupervisor())
    hurdle.fail()
    assert app.wait(HANG).kind is ExitKind.SHUTDOWN


def test_hanging_restart_loop_simple(launch):
    """A dynamic child that waits for its next start can be terminated by its id, and is gone then."""
    hurdle, puppet = Hurdle(), Puppet()
    app = launch(dynamic_supervisor("app", intensity=8, period=10))
    app.start_child(hurdle.before(puppet.spec("a")))
    hurdle.is_up = True
    puppet.next().crash()
    hurdle.arrival()
    which = post(app, messages.WhichChildren)
    counts = post(app, messages.CountChildren)
    terminate = post(app, messages.TerminateChild, id="a")
    hurdle.fail()
    assert [child.state for child in which()] == [ChildState.RESTARTING]
    assert counts() == Counts(specs=1, active=0, supervisors=0, workers=1)
    terminate()
    assert look(app) == []

    hurdle.is_up = False
    app.start_child(hurdle.before(puppet.spec("a")))
    hurdle.is_up = True
    puppet.next().crash()
    hurdle.arrival()
    app._core().mailbox.put(StopSupervisor())
    hurdle.fail()
    assert app.wait(HANG).kind is ExitKind.SHUTDOWN


def test_order_of_children(launch, recorder):
    """Children stop in reverse start order and start in start order, whatever their ids."""
    ids = ["d", "a", "e", "b", "c"]
    stops = []
    puppets = {id: Puppet(when_asked=lambda life: stops.append(life.ctx.id)) for id in ids}
    children = [puppet.spec(id) for id, puppet in puppets.items()]
    app = launch(supervisor("app", strategy="rest_for_one", children=children))
    lives = {id: puppet.next() for id, puppet in puppets.items()}
    lives["e"].crash()
    for id in "ebc":
        puppets[id].next()
    assert stops == ["c", "b"]

    report = app.stop()

    starts = [report.path for report in recorder.of(Progress) if report.cause is Cause.RESTART]
    assert starts == ["app/e", "app/b", "app/c"]
    assert report.stopped == ("app/c", "app/b", "app/e", "app/a", "app/d")
    assert stops[2:] == ["c", "b", "e", "a", "d"]


def test_scale_start_stop_many_children(launch):
    """Many children start in order, and each is terminated and deleted for itself.

    Adapted: the children are fewer, and no times are compared.
    """
    puppet = Puppet()
    app = launch(supervisor("app", children=[puppet.spec(str(number)) for number in range(MANY)]))
    assert look(app) == [f"{number} running 1" for number in range(MANY)]

    for number in range(MANY):
        app.terminate_child(str(number))
    assert app.count_children() == Counts(specs=MANY, active=0, supervisors=0, workers=MANY)
    for number in range(MANY):
        app.delete_child(str(number))
    assert app.count_children() == Counts(specs=0, active=0, supervisors=0, workers=0)


def test_format_log_2(launch, recorder):
    """Each report is one event in the log, with path, incarnation and reason.

    Adapted: the log has fields, not OTP's texts.
    """
    puppet = Puppet()
    with capture_logs() as logs:
        app = launch(
            supervisor("app", intensity=1, children=[puppet.spec("a", ready=True)]), log=True
        )
        puppet.failures.put(RuntimeError("no start"))
        puppet.next().crash(ValueError("boom"))
        app.wait(HANG)
        app.stop()

    brief = [{key: value for key, value in event.items() if key != "exception"} for event in logs]
    assert brief == [
        {"log_level": "info", "event": "progress", "path": "app/a", "incarnation": 1},
        {
            "log_level": "error",
            "event": "child_terminated",
            "path": "app/a",
            "incarnation": 1,
            "reason": "crashed: ValueError('boom')",
        },
        {
            "log_level": "error",
            "event": "start_failed",
            "path": "app/a",
            "incarnation": 2,
            "reason": "crashed: RuntimeError('no start')",
        },
        {
            "log_level": "critical",
            "event": "limit_reached",
            "path": "app",
            "reason": "crashed: RuntimeError('no start')",
            "child": "app/a",
        },
    ]
    tracebacks = [event["exception"].splitlines() for event in logs if "exception" in event]
    assert [(lines[0], lines[-1]) for lines in tracebacks] == [
        ("Traceback (most recent call last):", "ValueError: boom"),
        ("Traceback (most recent call last):", "RuntimeError: no start"),
        ("Traceback (most recent call last):", "RuntimeError: no start"),
    ]
    assert len(logs) == len(recorder.reports)


class NameTaken(Exception):
    """Somebody outside the tree has the name that a child wants."""


def test_already_started_outside_supervisor(launch):
    """A start that fails on a foreign rival fails with the child's own error.

    Adapted: otpy registers no names; the child finds its name taken, and raises.
    """
    taken = NameTaken(threading.current_thread())
    puppet = Puppet()
    puppet.failures.put(taken)
    app = launch(supervisor("app"))
    with pytest.raises(StartError) as failure:
        app.start_child(puppet.spec("a", ready=True))

    assert failure.value.path == "app/a"
    assert failure.value.__cause__ is taken
    assert app.which_children() == ()


def test_which_children(launch):
    """Children are listed in start order; terminated ones stay, deleted ones are gone."""
    app = launch(supervisor("app"))
    app.start_child(Puppet().spec("b"))
    app.start_child(Puppet().spec("a"))
    assert look(app) == ["b running 1", "a running 1"]

    app.terminate_child("b")
    assert look(app) == ["b undefined 1", "a running 1"]

    app.delete_child("b")
    assert look(app) == ["a running 1"]
    with pytest.raises(NotFound):
        app.get_childspec("b")


def test_which_children_simple_one_for_one(launch):
    """Dynamic children are listed in start order, each with its id; terminated ones are gone."""
    app = launch(dynamic_supervisor("app"))
    app.start_child(Puppet().spec("b", restart="temporary"))
    app.start_child(Puppet().spec("a", restart="temporary"))
    assert look(app) == ["b running 1", "a running 1"]

    app.terminate_child("b")
    assert look(app) == ["a running 1"]
    with pytest.raises(NotFound):
        app.get_childspec("b")
