"""What the end of a child means: supervisor_SUITE, groups normal_, shutdown_ and abnormal_termination."""

import pytest
import structlog

from otpy import Counts, ExitKind, ExitReason, Service, Shutdown, StartError, supervisor, thread
from otpy.reports import ChildTerminated, Progress, StartFailed
from tests.conformance.tools import wait_for_look
from tests.helpers import Puppet


def start_one(launch, restart):
    puppet = Puppet()
    return launch(supervisor("app", children=[puppet.spec("a", restart=restart)])), puppet


def counts(specs, active):
    return Counts(specs=specs, active=active, supervisors=0, workers=specs)


def reasons(recorder):
    return [report.reason for report in recorder.of(ChildTerminated, "app/a")]


def test_external_start_no_progress_log(launch):
    """That a child came up is worth a line at level info, unless a caller started it, who knows: then at debug.

    Adapted: the levels are structlog's.
    """
    puppet = Puppet()
    with structlog.testing.capture_logs() as lines:
        app = launch(supervisor("app", children=[Puppet().spec("other")]), log=True)
        app.start_child(puppet.spec("a"))
        puppet.next().leave()
        wait_for_look(app, "other running 1", "a running 2")
        app.terminate_child("a")
        app.restart_child("a")
        app.stop()

    assert [
        (line["log_level"], line["event"], line["path"], line["incarnation"]) for line in lines
    ] == [
        ("info", "progress", "app/other", 1),
        ("debug", "progress", "app/a", 1),
        ("error", "child_terminated", "app/a", 1),
        ("info", "progress", "app/a", 2),
        ("debug", "progress", "app/a", 3),
    ]


def test_permanent_normal(launch, recorder):
    """A permanent child is restarted even if it ended normally."""
    app, puppet = start_one(launch, "permanent")
    puppet.next().leave()
    wait_for_look(app, "a running 2")

    assert app.count_children() == counts(1, 1)
    app.stop()
    assert reasons(recorder) == [ExitReason(ExitKind.NORMAL)]


def test_transient_normal(launch, recorder):
    """A transient child that ended normally is not restarted, its spec stays, and nobody is told."""
    app, puppet = start_one(launch, "transient")
    puppet.next().leave()
    wait_for_look(app, "a undefined 1")

    assert app.count_children() == counts(1, 0)
    assert app.which_children()[0].last_exit == ExitReason(ExitKind.NORMAL)
    app.stop()
    assert reasons(recorder) == []


def test_temporary_normal(launch, recorder):
    """A temporary child that ended normally is gone with its spec, and nobody is told."""
    app, puppet = start_one(launch, "temporary")
    puppet.next().leave()
    wait_for_look(app)

    assert app.count_children() == counts(0, 0)
    app.stop()
    assert reasons(recorder) == []


SHUTDOWNS = (Shutdown(), Shutdown("with a reason"))


def test_permanent_shutdown(launch, recorder):
    """A permanent child is restarted even if it ended with shutdown, with or without a reason."""
    app, puppet = start_one(launch, "permanent")
    for error in SHUTDOWNS:
        puppet.next().crash(error)
    wait_for_look(app, "a running 3")

    assert app.count_children() == counts(1, 1)
    app.stop()
    assert reasons(recorder) == [ExitReason(ExitKind.SHUTDOWN, error) for error in SHUTDOWNS]


def test_transient_shutdown(launch, recorder):
    """A transient child that ended with shutdown is not restarted, its spec stays, and nobody is told."""
    app, puppet = start_one(launch, "transient")
    puppet.next().crash(SHUTDOWNS[0])
    wait_for_look(app, "a undefined 1")
    app.restart_child("a")
    puppet.next().crash(SHUTDOWNS[1])
    wait_for_look(app, "a undefined 2")

    assert app.count_children() == counts(1, 0)
    assert app.which_children()[0].last_exit == ExitReason(ExitKind.SHUTDOWN, SHUTDOWNS[1])
    app.stop()
    assert reasons(recorder) == []


@pytest.mark.parametrize("error", SHUTDOWNS)
def test_temporary_shutdown(launch, recorder, error):
    """A temporary child that ended with shutdown is gone with its spec, and nobody is told."""
    app, puppet = start_one(launch, "temporary")
    puppet.next().crash(error)
    wait_for_look(app)

    assert app.count_children() == counts(0, 0)
    app.stop()
    assert reasons(recorder) == []


class Faulty(Service):
    def init(self):
        undefined.function()  # noqa: F821

    def run(self):
        raise AssertionError("init has failed")


def test_faulty_application_shutdown(launch, recorder):
    """A failed start far below ends all above it, and the caller is told which child it was, and why.

    Adapted: no applications; the error that ``start`` raises, and the reason at each level, lead to the original one.
    """
    sub = supervisor("sub", children=[Puppet().spec("first"), thread(Faulty, id="server")])
    with pytest.raises(StartError) as failed:
        launch(supervisor("app", children=[sub]))

    assert (failed.value.path, type(failed.value.__cause__)) == ("app/sub/server", NameError)
    assert recorder.names() == [
        "Progress app/sub/first",
        "StartFailed app/sub/server",
        "StartFailed app/sub",
    ]
    server, above = recorder.of(StartFailed)
    assert server.reason == ExitReason(ExitKind.CRASHED, failed.value.__cause__)
    assert (above.reason.kind, above.reason.exception) == (ExitKind.SHUTDOWN, failed.value)
    assert "undefined.function()" in server.reason.traceback
    assert "undefined.function()" in above.reason.traceback


abnormally = pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        ExceptionGroup("all", [ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)


@abnormally
def test_permanent_abnormal(launch, recorder, error):
    """A permanent child that crashed is restarted."""
    app, puppet = start_one(launch, "permanent")
    puppet.next().crash(error)
    wait_for_look(app, "a running 2")

    assert app.count_children() == counts(1, 1)
    app.stop()
    assert reasons(recorder) == [ExitReason(ExitKind.CRASHED, error)]


@abnormally
def test_transient_abnormal(launch, recorder, error):
    """A transient child that crashed is restarted."""
    app, puppet = start_one(launch, "transient")
    puppet.next().crash(error)
    wait_for_look(app, "a running 2")

    assert app.count_children() == counts(1, 1)
    app.stop()
    assert reasons(recorder) == [ExitReason(ExitKind.CRASHED, error)]


@abnormally
def test_temporary_abnormal(launch, recorder, error):
    """A temporary child that crashed is gone with its spec; that it crashed is told."""
    app, puppet = start_one(launch, "temporary")
    puppet.next().crash(error)
    wait_for_look(app)

    assert app.count_children() == counts(0, 0)
    app.stop()
    assert reasons(recorder) == [ExitReason(ExitKind.CRASHED, error)]
    assert len(recorder.of(Progress)) == 1
