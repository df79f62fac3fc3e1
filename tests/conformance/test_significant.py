"""Significant children and auto_shutdown: supervisor_SUITE, group significant."""

import pytest

from otpy import ExitKind, SpecError, dynamic_supervisor, supervisor
from otpy.reports import AutoShutdownBegun
from tests.conformance.tools import stays_up
from tests.helpers import HANG, Puppet

ENDS = {
    "terminate_child": lambda app, life: app.terminate_child(life.ctx.id),
    "crash": lambda app, life: life.crash(),
    "normal": lambda app, life: life.leave(),
}

each_mode = pytest.mark.parametrize("mode", ["never", "any_significant", "all_significant"])
any_or_all = pytest.mark.parametrize("mode", ["any_significant", "all_significant"])


@each_mode
@pytest.mark.parametrize("end", ENDS)
def test_nonsignificant_temporary(launch, mode, end):
    """The end of a temporary child that is not significant never ends the supervisor."""
    puppet = Puppet()
    children = [puppet.spec("a", restart="temporary"), Puppet().spec("other")]
    app = launch(supervisor("app", auto_shutdown=mode, children=children))
    ENDS[end](app, puppet.next())

    stays_up(app, "other running 1")


@each_mode
@pytest.mark.parametrize(
    ("end", "after"),
    [("terminate_child", "a undefined 1"), ("crash", "a running 2"), ("normal", "a undefined 1")],
)
def test_nonsignificant_transient(launch, mode, end, after):
    """The end of a transient child that is not significant never ends the supervisor; a crash restarts it."""
    puppet = Puppet()
    children = [puppet.spec("a", restart="transient"), Puppet().spec("other")]
    app = launch(supervisor("app", auto_shutdown=mode, children=children))
    ENDS[end](app, puppet.next())

    stays_up(app, after, "other running 1")


UNDEFINED = ["a undefined 1", "b undefined 1"]
RESTARTED = ["a running 2", "b running 2"]


def end_in_turn(launch, mode, restart, end, looks):
    """End the significant children a and b in turn: the first ones harmlessly, the supervisor looks as it should then.

    The one after these ends the supervisor.
    """
    puppets = {"a": Puppet(), "b": Puppet()}
    significant = [
        puppet.spec(id, restart=restart, significant=True) for id, puppet in puppets.items()
    ]
    app = launch(
        supervisor("app", auto_shutdown=mode, children=[*significant, Puppet().spec("other")])
    )
    for puppet, expected in zip(puppets.values(), looks, strict=False):
        ENDS[end](app, puppet.next())
        stays_up(app, *expected, "other running 1")
    for puppet in list(puppets.values())[len(looks) :][:1]:
        ENDS[end](app, puppet.next())
        assert app.wait(HANG).kind is ExitKind.SHUTDOWN
    app.stop()


@pytest.mark.parametrize(
    ("mode", "end", "looks"),
    [
        ("any_significant", "terminate_child", [["b running 1"], []]),
        ("any_significant", "crash", []),
        ("any_significant", "normal", []),
        ("all_significant", "terminate_child", [["b running 1"], []]),
        ("all_significant", "crash", [["b running 1"]]),
        ("all_significant", "normal", [["b running 1"]]),
    ],
)
def test_significant_temporary(launch, recorder, mode, end, looks):
    """Every own end of a temporary significant child may end the supervisor; terminate_child never does."""
    end_in_turn(launch, mode, "temporary", end, looks)

    decisive = ["app/a", "app/b"][len(looks) :][:1]
    assert [report.child for report in recorder.of(AutoShutdownBegun, "app")] == decisive


@pytest.mark.parametrize(
    ("mode", "end", "looks"),
    [
        ("any_significant", "terminate_child", [["a undefined 1", "b running 1"], UNDEFINED]),
        ("any_significant", "crash", [["a running 2", "b running 1"], RESTARTED]),
        ("any_significant", "normal", []),
        ("all_significant", "terminate_child", [["a undefined 1", "b running 1"], UNDEFINED]),
        ("all_significant", "crash", [["a running 2", "b running 1"], RESTARTED]),
        ("all_significant", "normal", [["a undefined 1", "b running 1"]]),
    ],
)
def test_significant_transient(launch, recorder, mode, end, looks):
    """Only a normal end of a transient significant child may end the supervisor; a crash restarts it."""
    end_in_turn(launch, mode, "transient", end, looks)

    decisive = ["app/a", "app/b"][len(looks) :][:1]
    assert [report.child for report in recorder.of(AutoShutdownBegun, "app")] == decisive


@any_or_all
def test_significant_simple(launch, mode):
    """A supervisor of dynamic children has no auto_shutdown, and takes no significant child."""
    with pytest.raises((SpecError, TypeError), match="auto_shutdown"):
        dynamic_supervisor("app", auto_shutdown=mode)
    app = launch(dynamic_supervisor("app"))
    with pytest.raises(SpecError, match="significant"):
        app.start_child(Puppet().spec("a", restart="transient", significant=True))

    assert app.which_children() == ()


@any_or_all
@pytest.mark.parametrize(
    ("strategy", "after"),
    [
        ("one_for_one", ["a running 1", "crasher running 2", "b running 1", "c running 1"]),
        ("one_for_all", ["crasher running 2", "b running 2"]),
        ("rest_for_one", ["a running 1", "crasher running 2", "b running 2"]),
    ],
)
def test_significant_bystander(launch, mode, strategy, after):
    """A significant child that is stopped in a group restart does not end the supervisor."""
    crasher = Puppet()
    children = [
        Puppet().spec("a", restart="temporary", significant=True),
        crasher.spec("crasher"),
        Puppet().spec("b", restart="transient", significant=True),
        Puppet().spec("c", restart="temporary", significant=True),
    ]
    app = launch(supervisor("app", strategy=strategy, auto_shutdown=mode, children=children))
    crasher.next().crash()

    stays_up(app, *after)


@pytest.mark.parametrize("restart", ["transient", "temporary"])
@pytest.mark.parametrize(
    ("significant", "decisive"), [(True, ["app/sub/a", "app/sub"]), (False, ["app/sub/a"])]
)
def test_significant_escalation(launch, recorder, restart, significant, decisive):
    """A supervisor that ended by auto_shutdown has ended normally; its parent ends too iff it was significant there."""
    puppet = Puppet()
    worker = puppet.spec("a", restart="transient", significant=True)
    sub = supervisor(
        "sub",
        auto_shutdown="any_significant",
        restart=restart,
        significant=significant,
        children=[worker],
    )
    app = launch(
        supervisor("app", auto_shutdown="any_significant", children=[sub, Puppet().spec("other")])
    )
    handle = app.find("app/sub")
    puppet.next().leave()
    recorder.wait_for(AutoShutdownBegun, count=len(decisive))
    if not significant:
        stays_up(app, *(["sub undefined 1"] if restart == "transient" else []), "other running 1")
    app.stop()

    assert [report.child for report in recorder.of(AutoShutdownBegun)] == decisive
    assert not handle.alive
