"""How reports reach their handlers, and the log."""

import queue
import threading

import pytest
import structlog

import otpy
from otpy import ExitKind, ExitReason, reports, supervisor, thread
from otpy.reports import Cause, Escalation
from otpy.runtime import log, threads
from tests.helpers import HANG, Puppet, Recorder

CRASH = ExitReason(ExitKind.CRASHED, ValueError("boom"))
ESCALATION = Escalation(
    path="app", child="app/a", reason=CRASH, restarts=1, intensity=0, period=5.0, parent=None
)

EVERY_REPORT = [
    (reports.Progress(path="app/a", incarnation=1, cause=Cause.INIT), "info", "progress", {}),
    (reports.Progress(path="app/a", incarnation=1, cause=Cause.CALL), "debug", "progress", {}),
    (
        reports.ChildTerminated(path="app/a", incarnation=1, reason=CRASH),
        "error",
        "child_terminated",
        {},
    ),
    (
        reports.Stalled(path="app/a", incarnation=1, reason=CRASH, stack="here"),
        "error",
        "stalled",
        {"stack": "here"},
    ),
    (reports.StartFailed(path="app/a", incarnation=1, reason=CRASH), "error", "start_failed", {}),
    (
        reports.ShutdownError(path="app/a", incarnation=1, reason=CRASH),
        "error",
        "shutdown_error",
        {},
    ),
    (
        reports.LimitReached(path="app", reason=CRASH, escalation=ESCALATION),
        "critical",
        "limit_reached",
        {"child": "app/a"},
    ),
    (
        reports.Unstopped(path="app/a", incarnation=1, stack="here"),
        "error",
        "unstopped",
        {"stack": "here"},
    ),
    (
        reports.AutoShutdownBegun(path="app", child="app/a"),
        "info",
        "auto_shutdown_begun",
        {"child": "app/a"},
    ),
    (reports.StrayMessage(path="app", item="x"), "error", "stray_message", {"item": "'x'"}),
    (
        reports.OutputLost(path="app/a", incarnation=1, reason=CRASH, file="x"),
        "error",
        "output_lost",
        {"file": "x"},
    ),
    (
        reports.SignalStop(
            path="app",
            signal="SIGTERM",
            stage=reports.StopStage.STOPPING,
            detail="SIGTERM: stopping",
        ),
        "info",
        "signal_stop",
        {"detail": "SIGTERM: stopping"},
    ),
]


def test_every_report_has_an_event():
    """The table is complete."""
    kinds = {
        kind
        for kind in vars(reports).values()
        if isinstance(kind, type) and issubclass(kind, reports.Report)
    }

    assert set(log.EVENTS) == kinds - {reports.Report} == {type(row[0]) for row in EVERY_REPORT}


@pytest.mark.parametrize(("report", "level", "event", "more"), EVERY_REPORT)
def test_the_log_line_of_a_report(report, level, event, more):
    """Level, event in OTP's words, path, incarnation, reason, and the traceback where there is one."""
    with structlog.testing.capture_logs() as logs:
        log.log_report(report)

    reason = (
        {"reason": str(report.reason), "exception": report.reason.traceback.rstrip()}
        if report.reason
        else {}
    )
    common = {"path": report.path} | (
        {"incarnation": report.incarnation} if report.incarnation else {}
    )
    assert logs == [{"log_level": level, "event": event, **common, **reason, **more}]


def test_the_logger_is_called_otpy():
    """So a program can give its lines a place of their own."""
    asked = []

    def factory(*names):
        asked.append(names)
        return structlog.testing.ReturnLogger()

    structlog.configure(logger_factory=factory)
    try:
        log.log_report(EVERY_REPORT[0][0])
    finally:
        structlog.reset_defaults()

    assert asked == [("otpy",)]


def test_reports_go_to_a_callable_or_a_queue_and_to_the_log():
    """All in the same order."""
    recorder, box = Recorder(), queue.Queue()
    with structlog.testing.capture_logs() as logs:
        with otpy.start(
            supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]), reports=box
        ) as app:
            app.subscribe(recorder)

    assert box.get_nowait().path == "app/a"
    assert [entry["event"] for entry in logs] == ["progress"]


def test_a_handler_that_raises_is_logged_and_called_again():
    """SystemExit, too. The log line has the report, and the second failure is only counted."""
    got = []

    def handler(report):
        got.append(report.path)
        raise SystemExit("bad handler")

    tree = supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id=id) for id in "ab"])
    with structlog.testing.capture_logs() as logs, otpy.start(tree, reports=handler, log=False):
        pass

    assert got == ["app/a", "app/b"]
    assert [(entry["event"], "bad handler" in entry["exception"]) for entry in logs] == [
        ("handler_failed", True)
    ]
    assert logs[0]["given"] == "progress path=app/a incarnation=1"


def test_what_was_only_counted_is_told_at_the_end():
    """Not what was logged, and that once: a count of nothing is no news."""
    log.complain("handler_failed", OSError("once"), path="app/a")
    assert log.take_counts() == []
    for _ in range(3):
        log.complain("on_stop_failed", OSError("again and again"), path="app/b")
    (line,) = log.take_counts()

    assert line.startswith("on_stop_failed")
    assert line.endswith(": 2 times")
    assert log.take_counts() == []


def test_a_handler_that_blocks_delays_nothing_and_is_named(monkeypatch):
    """Neither the tree, nor other handlers, nor its end; what it has not got yet still comes."""
    gate, got, quick, puppet = threading.Event(), [], Recorder(), Puppet()

    def slow(report):
        gate.wait(HANG)
        got.append(report.path)

    app = otpy.start(
        supervisor("app", children=[puppet.spec("a")]), reports=slow, log=False, flush=0.05
    )
    app.subscribe(quick)
    puppet.next().crash()
    puppet.next()
    quick.wait_for(reports.Progress, "app/a")
    report = app.stop()
    assert got == []
    assert (
        "app (reports)" in report.handlers
    )  # and perhaps others, that a slow machine has kept from ending so soon
    gate.set()
    for entry in threads.entries():
        entry.thread.join(HANG)

    assert got == ["app/a"] * 3


def test_a_broken_log_hurts_nobody(monkeypatch, capsys):
    """The complaint goes to stderr then."""

    def broken(**bound):
        raise RuntimeError("no log today")

    monkeypatch.setattr(log, "logger", broken)
    log.complain("handler_failed", ValueError("boom \ud800"), handler="h")

    assert "otpy: handler_failed {'handler': 'h'}" in (err := capsys.readouterr().err)
    assert "ValueError: boom \\ud800" in err


def test_a_broken_stderr_hurts_nobody(monkeypatch):
    """Then the complaint is dropped: it has no place to go to."""
    monkeypatch.setattr(log, "logger", None)
    monkeypatch.setattr("sys.stderr", None)

    log.complain("handler_failed", ValueError("boom"))


def test_a_crash_with_surrogates_reaches_a_strict_log(tmp_path):
    """The traceback is escaped before it is written."""
    recorder = Recorder()

    def crash(ctx):
        raise ValueError("\ud800")

    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(file))
        try:
            tree = supervisor("app", intensity=0, children=[thread(crash, id="a")])
            with pytest.raises(otpy.TreeFailed):
                otpy.run(tree, reports=recorder)
        finally:
            structlog.reset_defaults()
    text = (tmp_path / "log").read_text(encoding="utf-8")

    assert "child_terminated" in text
    assert "\\ud800" in text
