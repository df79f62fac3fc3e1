"""At the end of a tree its handlers finish what is queued, within ``flush`` seconds; what is lost is counted."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading

import pytest

import otpy
from otpy import SpecError, TreeFailed, supervisor, thread
from otpy.cli.run import fields
from otpy.reports import ChildTerminated, ExitKind, ExitReason, LimitReached, Progress
from otpy.runtime import log, telemetry
from tests.helpers import HANG, wait_until
from tests.seams.kit import python

LONG = 1000.0
"""A time limit that is never over in a test."""


def fail(ctx):
    raise OSError("no route to host")


class Slow:
    """A handler that blocks at its first call until it may go on."""

    def __init__(self):
        self.gate, self.begun, self.got = threading.Event(), threading.Event(), []

    def __call__(self, value):
        self.begun.set()
        assert self.gate.wait(HANG)
        self.got.append(value)


def test_run_lets_escalation_handlers_and_reports_finish():
    """The page that says that the root gave up is sent, and its report arrives, when both take more than a moment."""
    page, reports = Slow(), Slow()

    def let_go():
        page.begun.wait(HANG)
        reports.begun.wait(HANG)
        threading.Event().wait(1.2)
        page.gate.set()
        reports.gate.set()

    helper = threading.Thread(target=let_go)
    helper.start()
    with pytest.raises(TreeFailed) as caught:
        otpy.run(
            supervisor("app", intensity=2, children=[thread(fail)]),
            on_escalation=page,
            reports=reports,
            log=False,
        )
    helper.join(HANG)

    assert [one.path for one in page.got] == ["app"]
    assert isinstance(reports.got[-1], LimitReached)
    assert (caught.value.report.undelivered, caught.value.report.handlers) == (0, ())


@pytest.mark.parametrize(
    "call", [otpy.Supervisor.wait, otpy.Supervisor.stop, otpy.Supervisor.detach]
)
def test_who_waits_for_the_tree_waits_for_its_handlers(call):
    """So all reports are handled when the call returns, as those of a queue are there."""
    slow = Slow()
    app = otpy.start(
        supervisor("app", intensity=0, children=[thread(fail)]), reports=slow, log=False
    )
    assert slow.begun.wait(HANG)
    wait_until(lambda: not app.alive)
    helper = threading.Timer(0.05, slow.gate.set)
    helper.start()
    call(app)

    assert [type(one) for one in slow.got] == [Progress, ChildTerminated, LimitReached]
    helper.join(HANG)


def test_what_has_not_been_handled_is_counted_and_named():
    """By stop, when the time of the handlers is over; what they do later changes its report no more."""
    slow = Slow()
    app = otpy.start(
        supervisor("app", intensity=2, children=[thread(fail)]), reports=slow, log=False, flush=0.1
    )
    wait_until(lambda: not app.alive)
    report = app.stop()
    slow.gate.set()

    assert report.handlers == ("app (reports)",)
    wait_until(lambda: len(slow.got) == 7)  # of three lives and of the limit
    assert report.undelivered == 7
    assert app.stop() is report


def test_a_stop_with_a_time_limit_does_not_wait_longer_for_handlers():
    """Nor does a wait. The report is that of the moment; there may be more to say later."""
    slow = Slow()
    app = otpy.start(
        supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]),
        reports=slow,
        log=False,
        flush=LONG,
    )
    assert slow.begun.wait(HANG)
    report = app.stop(0.1)
    reason = app.wait(0.1)
    slow.gate.set()

    assert (report.undelivered, report.handlers) == (1, ("app (reports)",))
    assert reason.kind is ExitKind.SHUTDOWN
    assert app.stop().undelivered == 0


def test_all_who_wait_for_the_handlers_hear_of_their_end():
    """However many there are; and they get the same report."""
    slow, waiting, reports = Slow(), threading.Barrier(4), []
    app = otpy.start(
        supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]),
        reports=slow,
        log=False,
        flush=LONG,
    )
    assert slow.begun.wait(HANG)
    app.stop(0.0)
    stoppers = [
        threading.Thread(target=lambda: (waiting.wait(HANG), reports.append(app.stop())))
        for _ in range(3)
    ]
    for one in stoppers:
        one.start()
    waiting.wait(HANG)
    threading.Event().wait(0.1)  # most of them wait by then; the test holds wherever they are
    slow.gate.set()
    for one in stoppers:
        one.join(HANG)

    assert [one is reports[0] for one in reports] == [True] * 3


def test_a_second_signal_ends_the_wait_for_handlers():
    """More than a second after the first."""
    slow = Slow()

    def interrupt():
        for pause in (0.0, 1.2):
            threading.Event().wait(pause)
            os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=lambda: (slow.begun.wait(HANG), interrupt()))
    helper.start()
    report = otpy.run(
        supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]),
        reports=slow,
        log=False,
        flush=LONG,
    )
    helper.join(HANG)
    slow.gate.set()

    assert report.undelivered == 3  # that the child is up, and two stages of the stop
    wait_until(lambda: slow.got)


def test_two_handlers_that_stop_their_tree_do_not_wait_for_each_other():
    """Each of them is one of those that a stop waits for."""
    up, both, ended = threading.Event(), threading.Barrier(2), threading.Barrier(3)

    def stop(value):
        assert up.wait(HANG)
        both.wait(HANG)
        app.stop()
        ended.wait(HANG)

    tree = supervisor(
        "app", children=[supervisor("s", restart="temporary", intensity=0, children=[thread(fail)])]
    )
    app = otpy.start(
        tree,
        on_escalation=stop,
        reports=lambda one: isinstance(one, LimitReached) and stop(one),
        log=False,
        flush=LONG,
    )
    up.set()
    ended.wait(HANG)

    assert app.wait(HANG).kind is ExitKind.SHUTDOWN


@pytest.mark.parametrize("flush", [-1, None, float("nan"), "10"])
def test_flush_must_be_a_number_of_seconds(flush):
    """Any other value is refused, before a thread starts."""
    with pytest.raises(
        SpecError, match=r"app: flush = .*: expected a finite number of seconds >= 0"
    ):
        otpy.start(supervisor("app"), flush=flush)


LOST = """
import threading
from otpy.runtime import at_exit
from otpy import start, supervisor, thread
from otpy.reports import LimitReached

def fail(ctx):
    raise OSError("no route to host")

def slow(report):
    begun.set()
    threading.Event().wait()

at_exit.LAST_WORD, begun = 0.5, threading.Event()
"""


def test_what_is_lost_when_the_interpreter_ends_is_told_in_one_line():
    """Also if the tree has ended long before, by itself."""
    ran = python(
        LOST
        + """
app = start(supervisor("app", intensity=2, children=[thread(fail)]), reports=slow, log=False, flush=0.1)
begun.wait()
app.wait()
"""
    )

    said = ran.out + ran.err  # the log, or stderr, if no thread can be started to log it
    assert re.findall(r"undelivered.*count\W+7.*app \(reports\)", said)
    assert said.count("undelivered") == 1


def test_a_log_that_is_blocked_is_told_on_stderr():
    """Its thread holds the lock of the log, and no process reads what it writes."""
    ran = python(
        LOST
        + """
import os, structlog
structlog.configure(logger_factory=structlog.WriteLoggerFactory(open(os.pipe()[1], "w")))

def wordy(ctx):
    raise OSError("x" * 1_000_000)

start(supervisor("app", intensity=2, children=[thread(wordy)]), flush=0.1).wait()
"""
    )

    assert ran.err.startswith("otpy: undelivered {'path': 'app', 'count': ")
    assert ran.err.count("\n") == 1


def test_a_log_into_a_closed_pipe_is_told_once():
    """For each kind of report, with the first one that is lost; the others are counted."""
    read, write = os.pipe()
    os.close(read)
    ran = python(
        """
        import sys, threading
        import structlog
        from otpy import start, supervisor, thread

        def crash(ctx):
            if ctx.incarnation > 60:
                up.set()
                return ctx.wait_stop()
            raise ValueError("schlecht: \\u00e4\\ud800")

        up = threading.Event()
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(open(int(sys.argv[1]), "w")))
        app = start(supervisor("app", intensity=100, children=[thread(crash)]))
        up.wait()
        app.stop()
        """,
        write,
        pass_fds=[write],
    )
    os.close(write)

    assert ran.err.isascii()
    assert ran.err.count("ValueError: schlecht: \\xe4\\ud800") == 1  # the traceback that is lost
    assert ran.err.count("otpy: handler_failed") == 2  # for the first progress and the first crash
    assert "'given': 'progress path=app/crash incarnation=1'" in ran.err
    assert re.findall("'ChildTerminated'.*: 59 times", ran.err)
    assert len(ran.err.splitlines()) < 80


def test_a_complaint_needs_neither_a_log_nor_stderr(monkeypatch):
    """As in a daemon, or under pythonw."""
    monkeypatch.setattr(log, "logger", None)
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr("sys.stderr", stream)
        log.complain("handler_failed", ValueError("boom"), given="x", handler="h")
        log.forget_complaints()


def test_what_a_handler_was_called_with_is_told_whatever_it_is(monkeypatch, capsys):
    """A report with its traceback; anything else in short."""
    monkeypatch.setattr(log, "logger", None)
    try:
        raise KeyError("gr\u00fcn")
    except KeyError as error:
        reason = ExitReason(ExitKind.CRASHED, error)

    def handler(value):
        raise ValueError(value)

    telemetry.call(handler, ChildTerminated(path="app/a", incarnation=2, reason=reason))
    log.forget_complaints()
    telemetry.call(handler, ["any", "thing"])
    err = capsys.readouterr().err

    assert err.isascii()
    assert "child_terminated path=app/a incarnation=2 reason=crashed: KeyError('gr\\xfcn')" in err
    assert 'raise KeyError("gr' in err
    assert "['any', 'thing']" in err


def test_a_failure_through_many_levels_is_told_in_a_few_lines():
    """What 30 supervisors say, as log, as JSON and as text."""
    reports, tree = [], thread(fail)
    for level in reversed(range(30)):
        tree = supervisor(f"s{level}", intensity=0, children=[tree])
    with pytest.raises(TreeFailed) as caught:
        otpy.run(tree, reports=reports.append, log=False)

    assert sum(isinstance(one, LimitReached) for one in reports) == 30
    assert max(len(json.dumps(fields(one))) for one in reports) < 150_000
    assert max(len(repr(one)) for one in reports) < 150_000
    assert max(len(str(log.fields_of(one))) for one in reports) < 5_000
    assert len(str(caught.value)) < 500
