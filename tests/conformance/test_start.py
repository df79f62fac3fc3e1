"""Starts: supervisor_SUITE, group start."""

import pytest

from otpy import (
    Budget,
    ChildState,
    ChildType,
    Counts,
    ExitKind,
    ExitReason,
    Ignore,
    NotFound,
    Restart,
    Service,
    SpecError,
    StartError,
    dynamic_supervisor,
    start,
    supervisor,
    thread,
)
from tests.conformance.tools import look
from tests.helpers import Puppet


def puppet_that(*failures, always=None):
    """Return a puppet whose first starts end like this; None is a start that works."""
    puppet = Puppet()
    puppet.always_fails = always
    for failure in failures:
        puppet.failures.put(failure)
    return puppet


def ignoring(id, **options):
    return puppet_that(always=Ignore()).spec(id, ready=True, **options)


class Declining(Service):
    def init(self):
        raise Ignore

    def run(self):
        raise AssertionError("it has declined")


def work(ctx):
    ctx.wait_stop()


def test_sup_start_normal(launch):
    """A supervisor without children runs until it is told to stop, and ends with shutdown."""
    app = launch(supervisor("app"))

    assert app.alive
    assert app.stop().reason == ExitReason(ExitKind.SHUTDOWN)
    assert not app.alive


def test_sup_start_ignore_init(launch, recorder):
    """An init that declines is no failure, and nobody is told of one.

    Adapted: a supervisor has no init callback; a Service has one, here in a nested supervisor, which stays up.
    """
    app = launch(
        supervisor("app", children=[supervisor("sub", children=[thread(Declining, id="a")])])
    )

    assert look(app) == ["sub running 1"]
    assert look(app.find("app/sub")) == ["a undefined 1"]
    app.stop()
    assert recorder.names() == ["Progress app/sub"]


def test_sup_start_ignore_child(launch):
    """A permanent child that declines its start by a call keeps its spec, and nothing of it runs."""
    app = launch(supervisor("app"))
    states = [app.start_child(spec).state for spec in (ignoring("a"), Puppet().spec("b"))]

    assert states == [ChildState.UNDEFINED, ChildState.RUNNING]
    assert look(app) == ["a undefined 1", "b running 1"]
    assert app.count_children() == Counts(specs=2, active=1, supervisors=0, workers=2)


def test_sup_start_ignore_temporary_child(launch):
    """A temporary child that declines its start at init is not kept."""
    children = [ignoring("a", restart="temporary"), Puppet().spec("b", restart="temporary")]
    app = launch(supervisor("app", children=children))

    assert look(app) == ["b running 1"]
    assert app.count_children() == Counts(specs=1, active=1, supervisors=0, workers=1)


def test_sup_start_ignore_temporary_child_start_child(launch):
    """A temporary child that declines its start by a call is not kept."""
    app = launch(supervisor("app"))
    specs = [ignoring("a", restart="temporary"), Puppet().spec("b", restart="temporary")]
    states = [app.start_child(spec).state for spec in specs]

    assert states == [ChildState.UNDEFINED, ChildState.RUNNING]
    assert look(app) == ["b running 1"]
    assert app.count_children() == Counts(specs=1, active=1, supervisors=0, workers=1)


def start_declining_and_another(app, restart):
    """Start two of a kind; the first declines."""
    puppet = puppet_that(Ignore(), None)
    return [
        app.start_child(puppet.spec(id, restart=restart, ready=True)).state for id in ("a", "b")
    ]


def test_sup_start_ignore_temporary_child_start_child_simple(launch):
    """A temporary child of a dynamic supervisor that declines its start is not kept."""
    app = launch(dynamic_supervisor("app"))

    assert start_declining_and_another(app, "temporary") == [
        ChildState.UNDEFINED,
        ChildState.RUNNING,
    ]
    assert look(app) == ["b running 1"]
    assert app.count_children() == Counts(specs=1, active=1, supervisors=0, workers=1)


def test_sup_start_ignore_permanent_child_start_child_simple(launch):
    """Not even a permanent child of a dynamic supervisor is kept when it declines, and the stop finds nothing of it."""
    app = launch(dynamic_supervisor("app"))

    assert start_declining_and_another(app, "permanent") == [
        ChildState.UNDEFINED,
        ChildState.RUNNING,
    ]
    assert look(app) == ["b running 1"]
    report = app.stop()
    assert (report.reason, report.stopped) == (ExitReason(ExitKind.SHUTDOWN), ("app/b",))


@pytest.mark.parametrize("junk", [None, "app", [supervisor("app")], thread(work), supervisor])
def test_sup_start_error_return(junk):
    """What describes no supervisor is refused before anything starts, with the value in the error.

    Adapted: a spec is a value; junk given to ``start`` stands for junk returned by an init callback.
    """
    with pytest.raises(SpecError) as refused:
        start(junk)

    assert (refused.value.field, refused.value.value) == ("tree", junk)


def test_sup_start_fail(launch, recorder):
    """A supervisor that cannot come up ends, and the caller gets the original exception.

    Adapted: a supervisor has no init callback that could raise; its child raises, and is the cause.
    """
    boom = ValueError("boom")
    first = Puppet()
    children = [first.spec("a"), puppet_that(boom).spec("b", ready=True), Puppet().spec("c")]
    with pytest.raises(StartError) as failed:
        launch(supervisor("app", children=children))

    assert (failed.value.path, failed.value.__cause__) == ("app/b", boom)
    assert first.next().ended.is_set()
    assert recorder.names() == ["Progress app/a", "StartFailed app/b"]


BOOM = ValueError("boom")

failed_starts = pytest.mark.parametrize(
    ("target", "cause"),
    [(puppet_that(always=BOOM), BOOM), (lambda ctx: "junk", None)],
    ids=["raises", "returns"],
)


@failed_starts
def test_sup_start_child_returns_error(launch, recorder, target, cause):
    """A start by a call that fails is told to the caller and to nobody else; nothing is kept.

    To return before being ready is such a failure.
    """
    app = launch(supervisor("app"))
    with pytest.raises(StartError) as failed:
        app.start_child(thread(target, id="a", ready=True))

    assert (failed.value.path, failed.value.__cause__) == ("app/a", cause)
    assert look(app) == []
    app.stop()
    assert recorder.names() == []


def test_sup_start_restart_child_returns_error(launch, recorder):
    """A restart by a call that fails is told to the caller; the spec stays, and there is no retry."""
    boom = ValueError("boom")
    app = launch(supervisor("app", children=[puppet_that(None, boom, None).spec("a", ready=True)]))
    app.terminate_child("a")
    with pytest.raises(StartError) as failed:
        app.restart_child("a")

    assert (failed.value.path, failed.value.__cause__) == ("app/a", boom)
    assert look(app) == ["a undefined 2"]
    assert app.snapshot().budget_left == 3
    assert app.restart_child("a").incarnation == 3
    app.stop()
    assert recorder.names() == ["Progress app/a", "Progress app/a"]


@failed_starts
def test_sup_start_child_returns_error_simple(launch, recorder, target, cause):
    """A start by a call that fails leaves nothing in a dynamic supervisor."""
    app = launch(dynamic_supervisor("app"))
    with pytest.raises(StartError) as failed:
        app.start_child(thread(target, id="a", ready=True))

    assert (failed.value.path, failed.value.__cause__) == ("app/a", cause)
    assert app.count_children() == Counts(specs=0, active=0, supervisors=0, workers=0)
    app.stop()
    assert recorder.names() == []


def common(spec):
    return spec.id, spec.type, spec.restart, spec.shutdown, spec.significant


def test_sup_start_map(launch):
    """What a spec leaves out is filled in, and get_childspec shows it."""
    children = [thread(work, id="a"), thread(work, id="b", shutdown="brutal_kill"), supervisor("c")]
    app = launch(supervisor("app", children=children))
    kept = [app.get_childspec(id) for id in "abc"]

    assert kept == children
    assert [common(spec) for spec in kept] == [
        ("a", ChildType.WORKER, Restart.PERMANENT, 5.0, False),
        ("b", ChildType.WORKER, Restart.PERMANENT, Budget.BRUTAL_KILL, False),
        ("c", ChildType.SUPERVISOR, Restart.PERMANENT, Budget.INFINITY, False),
    ]
    with pytest.raises(NotFound):
        app.get_childspec("d")


def test_sup_start_map_simple(launch):
    """get_childspec of a dynamic child returns what it was started with.

    Adapted: there is no template; each child has its own spec and an id.
    """
    app = launch(dynamic_supervisor("app"))
    for id in "abc":
        app.start_child(thread(work, id=id, restart="temporary"))

    assert [common(app.get_childspec(id)) for id in "abc"] == [
        (id, ChildType.WORKER, Restart.TEMPORARY, 5.0, False) for id in "abc"
    ]
    with pytest.raises(NotFound):
        app.get_childspec("d")


@pytest.mark.parametrize(
    ("describe", "error", "named"),
    [
        (lambda: thread(Puppet()), SpecError, "id"),
        (lambda: thread(id="a"), TypeError, "target"),
        (lambda: thread(None, id="a"), SpecError, "target"),
        (lambda: thread(work, unknown="key"), TypeError, "unknown"),
        (lambda: supervisor("app", children=["not a spec"]), SpecError, "children[0]"),
        (lambda: supervisor("app", children=[{"id": "a"}]), SpecError, "children[0]"),
    ],
    ids=["without id", "without target", "no target", "unknown key", "no spec", "a dict"],
)
def test_sup_start_map_faulty_specs(describe, error, named):
    """A faulty spec is refused when it is made, and the error names the field.

    Adapted: an unknown key is refused too, as Python does with keywords.
    """
    with pytest.raises(error) as refused:
        describe()

    assert named in (refused.value.field if error is SpecError else str(refused.value))
