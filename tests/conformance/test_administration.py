"""Management calls and validation: supervisor_SUITE, group admin."""

import itertools
import math

import pytest

from otpy import (
    AlreadyPresent,
    AlreadyStarted,
    ChildInfo,
    ChildState,
    ChildType,
    Counts,
    ExitKind,
    ExitReason,
    NotAlive,
    NotFound,
    SpecError,
    StillRunning,
    dynamic_supervisor,
    supervisor,
    thread,
)
from tests.conformance.tools import look
from tests.helpers import ManualClock, Puppet

CALLS = {
    "start_child": lambda app, id: app.start_child(Puppet().spec(id)),
    "terminate_child": lambda app, id: app.terminate_child(id),
    "restart_child": lambda app, id: app.restart_child(id),
    "delete_child": lambda app, id: app.delete_child(id),
    "get_childspec": lambda app, id: app.get_childspec(id),
}


def outcome(call, app, id):
    """Call, and return the type of the refusal, or None."""
    try:
        CALLS[call](app, id)
    except (NotAlive, NotFound, AlreadyStarted, AlreadyPresent, StillRunning) as refusal:
        return type(refusal)
    return None


BEFORE = {
    # what was done with the child "a", which runs at first
    "running": [],
    "terminated": ["terminate_child"],
    "deleted": ["terminate_child", "delete_child"],
}


@pytest.mark.parametrize(
    ("before", "call", "expected", "after"),
    [
        ("running", "start_child", AlreadyStarted, ["a running 1"]),
        ("running", "terminate_child", None, ["a undefined 1"]),
        ("running", "restart_child", StillRunning, ["a running 1"]),
        ("running", "delete_child", StillRunning, ["a running 1"]),
        ("running", "get_childspec", None, ["a running 1"]),
        ("terminated", "start_child", AlreadyPresent, ["a undefined 1"]),
        ("terminated", "terminate_child", None, ["a undefined 1"]),
        ("terminated", "restart_child", None, ["a running 2"]),
        ("terminated", "delete_child", None, []),
        ("terminated", "get_childspec", None, ["a undefined 1"]),
        ("deleted", "start_child", None, ["a running 1"]),
        ("deleted", "terminate_child", NotFound, []),
        ("deleted", "restart_child", NotFound, []),
        ("deleted", "delete_child", NotFound, []),
        ("deleted", "get_childspec", NotFound, []),
    ],
)
def test_child_adm(launch, before, call, expected, after):
    """What a management call does depends on the state of the child; a refused call changes nothing.

    The path of a child, or its handle, is no id; and a supervisor that has ended serves no call.
    """
    app = launch(supervisor("app", children=[Puppet().spec("a")]))
    for step in BEFORE[before]:
        assert outcome(step, app, "a") is None

    assert outcome(call, app, "a") is expected
    assert look(app) == after
    active = sum("running" in line for line in after)
    assert app.count_children() == Counts(
        specs=len(after), active=active, supervisors=0, workers=len(after)
    )
    for not_an_id in ("app/a", app):
        assert outcome("terminate_child", app, not_an_id) is NotFound
    app.stop()
    assert outcome(call, app, "a") is NotAlive


@pytest.mark.parametrize(
    "call", ["terminate_child", "restart_child", "delete_child", "get_childspec"]
)
@pytest.mark.parametrize("junk", [None, 1, ["a"], {"id": "a"}], ids=repr)
def test_child_adm_of_junk(launch, call, junk):
    """What can be no id is the id of no child, and harms nobody."""
    app = launch(supervisor("app", children=[Puppet().spec("a")]))
    with pytest.raises(NotFound):
        getattr(app, call)(junk, timeout=1.0)

    assert look(app) == ["a running 1"]


@pytest.mark.parametrize(
    ("before", "call", "expected", "after"),
    [
        ("running", "start_child", AlreadyStarted, ["a running 1"]),
        ("running", "terminate_child", None, []),
        ("running", "restart_child", StillRunning, ["a running 1"]),
        ("running", "delete_child", StillRunning, ["a running 1"]),
        ("running", "get_childspec", None, ["a running 1"]),
        ("terminated", "start_child", None, ["a running 1"]),
        ("terminated", "terminate_child", NotFound, []),
        ("terminated", "restart_child", NotFound, []),
        ("terminated", "delete_child", NotFound, []),
        ("terminated", "get_childspec", NotFound, []),
    ],
)
def test_child_adm_simple(launch, before, call, expected, after):
    """A child of a dynamic supervisor leaves nothing behind when it is terminated, whatever its restart type.

    Adapted: children have ids, so that restart_child and delete_child are no errors of their own; and a child that has
    been terminated is not found. (OTP answers ok for any dead pid.)
    """
    app = launch(dynamic_supervisor("app"))
    for id in ("a", "b"):
        app.start_child(Puppet().spec(id))
    for step in BEFORE[before]:
        assert outcome(step, app, "a") is None

    assert outcome(call, app, "a") is expected
    assert sorted(look(app)) == [*after, "b running 1"]
    count = len(after) + 1
    assert app.count_children() == Counts(specs=count, active=count, supervisors=0, workers=count)
    assert outcome("terminate_child", app, "foreign") is NotFound
    app.stop()
    assert outcome(call, app, "a") is NotAlive


def test_extra_return(launch):
    """start_child and restart_child return what is known about the child that they started.

    Adapted: a start returns no extra info; the calls return a ChildInfo.
    """
    puppet, asked_to_stop = Puppet(), ExitReason(ExitKind.SHUTDOWN)
    app = launch(supervisor("app"), clock=ManualClock())
    first = app.start_child(puppet.spec("a"))
    app.terminate_child("a")
    second = app.restart_child("a")

    common = {
        "id": "a",
        "path": "app/a",
        "type": ChildType.WORKER,
        "state": ChildState.RUNNING,
        "restarts": 0,
    }
    assert first == ChildInfo(incarnation=1, age=0.0, last_exit=None, **common)
    assert second == ChildInfo(incarnation=2, age=0.0, last_exit=asked_to_stop, **common)
    assert app.which_children() == (second,)
    assert app.count_children() == Counts(specs=1, active=1, supervisors=0, workers=1)
    assert puppet.next().incarnation == 1
    puppet.next().crash()
    assert puppet.next().incarnation == 3
    assert look(app) == ["a running 3"]


def work(ctx):
    ctx.wait_stop()


def worker(**fields):
    return thread(work, **{"id": "a", **fields})


def in_list(*children):
    return supervisor("app", children=children)


@pytest.mark.parametrize(
    ("describe", "path", "field", "value"),
    [
        (lambda: worker(id=""), "<ChildSpec>", "id", ""),
        (lambda: worker(id=1), "<ChildSpec>", "id", 1),
        (lambda: worker(id="a/b"), "a/b", "id", "a/b"),
        (lambda: thread("work", id="a"), "a", "target", "work"),
        (lambda: thread(work, "one argument too many", id="a"), "a", "target", work),
        (lambda: worker(restart="often"), "a", "restart", "often"),
        (lambda: worker(restart=None), "a", "restart", None),
        (lambda: worker(significant="yes", restart="transient"), "a", "significant", "yes"),
        (lambda: worker(significant=True, restart="permanent"), "a", "significant", True),
        (lambda: worker(significant=True), "a", "significant", True),
        (lambda: worker(shutdown="never"), "a", "shutdown", "never"),
        (lambda: worker(shutdown=-1), "a", "shutdown", -1),
        (lambda: worker(shutdown=math.inf), "a", "shutdown", math.inf),
        (lambda: worker(shutdown=True), "a", "shutdown", True),
        (lambda: worker(shutdown=None), "a", "shutdown", None),
        (
            lambda: in_list(worker(restart="transient", significant=True)),
            "app/a",
            "significant",
            True,
        ),
        (lambda: in_list(worker(), worker()), "app/a", "id", "a"),
        (lambda: in_list(worker(), "junk"), "app", "children[1]", "junk"),
        (lambda: supervisor("app", children=5), "app", "children", 5),
        (lambda: supervisor("app", children=worker()), "app", "children", worker()),
        (lambda: supervisor("app", children="ab"), "app", "children", "ab"),
    ],
)
def test_child_specs(launch, describe, path, field, value):
    """A bad spec, alone or in a list, is refused when it is made; the error says where, which field, and what it was.

    Adapted: there is no tuple form, and there are no modules; what is no spec at all is refused by start_child.
    """
    app = launch(supervisor("app"))
    with pytest.raises(SpecError) as refused:
        describe()

    assert (refused.value.path, refused.value.field, refused.value.value) == (path, field, value)
    for junk in (None, "a", describe):
        with pytest.raises(SpecError):
            app.start_child(junk)
    assert look(app) == []


@pytest.mark.parametrize("auto_shutdown", ["never", "any_significant", "all_significant"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary", None])
@pytest.mark.parametrize("significant", [False, True])
def test_child_specs_map(launch, auto_shutdown, restart, significant):
    """A child may be significant if its end can mean something: it is not permanent, and auto_shutdown is not "never".

    All other combinations of fields are valid: in a list, and by start_child.
    """
    is_refused = significant and (auto_shutdown == "never" or restart in (None, "permanent"))
    options = {"significant": significant} | ({"restart": restart} if restart else {})
    kinds = (lambda **fields: thread(work, **fields), lambda **fields: supervisor(**fields))
    shutdowns = (0.0, 1.5, "infinity", "brutal_kill")
    refused = []
    for kind, shutdown in itertools.product(kinds, shutdowns):
        app = launch(supervisor("app", auto_shutdown=auto_shutdown))
        try:
            child = kind(id="a", shutdown=shutdown, **options)
            app.start_child(child)
        except SpecError as error:
            refused.append(error.field)
            continue
        finally:
            app.stop()
        assert supervisor("app", auto_shutdown=auto_shutdown, children=[child]).children == (child,)

    assert refused == ["significant"] * (8 if is_refused else 0)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("strategy", "all_for_one"),
        ("strategy", "simple_one_for_one"),
        ("strategy", None),
        ("intensity", -1),
        ("intensity", 1.5),
        ("intensity", True),
        ("intensity", math.inf),
        ("intensity", "unlimited"),
        ("period", 0),
        ("period", -1.0),
        ("period", math.inf),
        ("period", math.nan),
        ("period", True),
        ("period", "infinity"),
        ("auto_shutdown", "some_significant"),
        ("auto_shutdown", True),
        ("on_escalation", "page me"),
        ("unknown", "flag"),
    ],
)
def test_sup_flags(flag, value):
    """A bad flag is refused, and the error names it.

    Adapted: an unknown flag is refused too, as Python does with keywords; OTP ignores it.
    """
    with pytest.raises(TypeError if flag == "unknown" else SpecError) as refused:
        supervisor("app", **{flag: value})

    assert flag in str(refused.value)
    assert flag == "unknown" or (refused.value.path, refused.value.field) == ("app", flag)
    assert flag == "unknown" or refused.value.value is value


def test_multiple_restarts(launch):
    """A restart that is older than the period does not count any more, however many there have been."""
    puppet, clock = Puppet(), ManualClock()
    app = launch(supervisor("app", intensity=1, period=1, children=[puppet.spec("a")]), clock=clock)
    life = puppet.next()
    for _ in range(4):
        life.crash()
        life = puppet.next()
        clock.advance(2.1)

    assert life.incarnation == 5
    assert look(app) == ["a running 5"]
