"""Crashes of spawned threads, and of threads that otpy has not started."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref

import pytest
import structlog

import otpy
from otpy import registry
from otpy.reports import ChildTerminated, ExitKind
from otpy.runtime import log
from tests.helpers import HANG
from tests.registry.kit import Boom, Odd, names, raiser, side_by_side

DEATHS = [
    ValueError("boom"),
    KeyboardInterrupt(),
    GeneratorExit(),
    SystemExit(3),
    SystemExit("a text"),
    SystemExit(Odd()),
    Boom(),
    otpy.Killed(),
    otpy.Shutdown("of no tree"),
]


class TestCrashes:
    """Crashes of spawned threads."""

    @pytest.mark.parametrize("error", DEATHS, ids=repr)
    def test_exactly_one_report(self, reg, error, monkeypatch):
        """The log and each sink get one report of each death; Python's own hook gets
        none.
        """
        hooked, first, second = [], queue.SimpleQueue(), []
        monkeypatch.setattr(threading, "excepthook", hooked.append)
        reg.subscribe(first)
        reg.subscribe(second.append)
        before = time.time()
        with structlog.testing.capture_logs() as logs:
            reg.spawn(raiser(error), name="t").join(HANG)

        report = first.get_nowait()
        assert first.empty()
        assert second == [report]
        assert type(report) is ChildTerminated
        assert (report.path, report.thread, report.incarnation) == ("t", "t", 0)
        assert report.reason.kind is ExitKind.CRASHED
        assert report.reason.exception is error
        assert "in target" in report.reason.traceback
        assert before - 60 < report.time < time.time() + 60
        assert [(one["event"], one["log_level"], one["path"]) for one in logs] == [
            ("child_terminated", "error", "t")
        ]
        assert "in target" in logs[0]["exception"]
        assert hooked == []
        assert reg.active() == ()

    @pytest.mark.parametrize("error", [SystemExit(), SystemExit(0), SystemExit(False)], ids=repr)
    def test_a_normal_end_is_not_reported(self, reg, error):
        """A return and a SystemExit with code 0 or None are no crash."""
        box = queue.SimpleQueue()
        reg.subscribe(box)
        with structlog.testing.capture_logs() as logs:
            reg.spawn(raiser(error), name="t").join(HANG)
            reg.spawn(lambda: None, name="t").join(HANG)

        assert (box.empty(), logs) == (True, [])

    def test_sinks_are_called_in_the_dying_thread(self, reg):
        """The thread is still active while its sinks are called."""
        seen = queue.SimpleQueue()
        reg.subscribe(
            lambda report: seen.put((threading.current_thread().name, names(reg.active())))
        )
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert seen.get_nowait() == ("t", ["t"])

    def test_a_sink_that_raises_is_logged(self, reg):
        """The exception of a sink, a SystemExit too, is logged.

        The next sink gets its report.
        """
        box = queue.SimpleQueue()

        def bad(report):
            raise SystemExit("bad sink")

        reg.subscribe(bad)
        reg.subscribe(box)
        with structlog.testing.capture_logs() as logs:
            reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert box.get_nowait().path == "t"
        assert [one["event"] for one in logs] == ["child_terminated", "handler_failed"]
        assert "bad sink" in logs[1]["exception"]

    def test_a_broken_log_keeps_no_report_from_the_sinks(self, reg, monkeypatch, capsys):
        """The sinks get the report even if the log raises."""
        box = queue.SimpleQueue()
        reg.subscribe(box)
        monkeypatch.setattr(log, "logger", raiser(OSError("disk full")))
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert box.get_nowait().path == "t"

    def test_unsubscribe(self, reg):
        """Each call of ``unsubscribe`` ends one subscription of an equal sink, and
        refuses a sink that has none.
        """
        box, got = queue.Queue(), []
        for sink in (box, box, got.append):
            reg.subscribe(sink)
        reg.unsubscribe(box)
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert (box.qsize(), len(got)) == (1, 1)
        reg.unsubscribe(box)
        reg.unsubscribe(got.append)
        reg.spawn(raiser(ValueError()), name="t").join(HANG)
        assert (box.qsize(), len(got)) == (1, 1)
        for sink in (box, got.append, print, None, 7):
            with pytest.raises(otpy.NotFound):
                reg.unsubscribe(sink)

    def test_many_unsubscribe_at_once(self, reg):
        """Of many calls at once each ends another subscription; the surplus ones are
        refused.
        """
        box = queue.Queue()
        for _ in range(8):
            reg.subscribe(box)
        results = side_by_side(12, lambda: reg.unsubscribe(box))

        assert sum(one is None for one in results) == 8
        assert sum(isinstance(one, otpy.NotFound) for one in results) == 4

    def test_two_unsubscribe_one_at_once(self, reg):
        """Of two calls for one subscription, one is refused.

        Here the second call comes while the first one compares sinks.
        """

        class Sink:
            was_compared = True  # inspect.signature compares it, too

            def __call__(self, report):
                pass

            def __eq__(self, other):
                if not self.was_compared:
                    self.was_compared = True
                    reg.unsubscribe(self)
                return self is other

            __hash__ = None

        sink = Sink()
        reg.subscribe(sink)
        sink.was_compared = False
        with pytest.raises(otpy.NotFound):
            reg.unsubscribe(sink)

    @pytest.mark.parametrize("sink", [None, 7, "print"])
    def test_an_object_that_cannot_be_a_sink_is_refused(self, reg, sink):
        """A sink is a callable that takes a report, or has ``put``."""
        with pytest.raises(
            otpy.SpecError, match=r"<registry>: sink = .*: expected a callable that takes a report"
        ):
            reg.subscribe(sink)

    def test_a_private_crash_is_private(self, reg, whole):
        """The default registry does not report the crashes of a private one."""
        box = queue.SimpleQueue()
        whole.subscribe(box)
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert box.empty()

    def test_nothing_is_kept_alive(self, reg):
        """A crash keeps neither the arguments nor the exception nor its frames, without
        the help of the garbage collector.
        """
        alive = []

        class Thing:
            pass

        def crash(thing):
            alive.append(weakref.ref(thing))
            raise ValueError(thing)

        gc.disable()
        try:
            spawned = reg.spawn(crash, name="t", args=(Thing(),))
            spawned.join(HANG)
            assert [ref() for ref in alive] == [None]
        finally:
            gc.enable()


class TestBridge:
    """Crashes of threads that otpy has not started."""

    @pytest.fixture
    def box(self, hook):
        box = queue.SimpleQueue()
        registry.subscribe(box)
        yield box
        registry.unsubscribe(box)

    @staticmethod
    def crash(error, name="elsewhere"):
        one = threading.Thread(target=raiser(error), name=name)
        one.start()
        one.join(HANG)

    def test_without_it_nothing_is_reported(self, box, capsys):
        """Without a bridge the interpreter prints the crash, and the sinks get no
        report.
        """
        self.crash(ValueError("boom"))

        assert box.empty()
        assert "ValueError: boom" in capsys.readouterr().err

    def test_a_crash_is_reported_once(self, box, capsys):
        """The log and the sinks get one report; the interpreter does not print the
        traceback.
        """
        error = ValueError("boom")
        with structlog.testing.capture_logs() as logs, registry.report_crashes_elsewhere():
            self.crash(error)
        report = box.get_nowait()

        assert box.empty()
        assert type(report) is ChildTerminated
        assert (report.path, report.thread) == ("elsewhere", "elsewhere")
        assert report.reason.exception is error
        assert "in target" in report.reason.traceback
        assert [one["event"] for one in logs] == ["child_terminated"]
        assert capsys.readouterr().err == ""
        assert threading.excepthook is threading.__excepthook__

    def test_a_spawned_thread_is_not_reported_twice(self, box, reg):
        """The bridge does not report threads that a registry has spawned."""
        with registry.report_crashes_elsewhere():
            registry.spawn(raiser(ValueError()), name="ours").join(HANG)
            reg.spawn(raiser(ValueError()), name="private").join(HANG)

        assert box.get_nowait().path == "ours"
        assert box.empty()

    def test_the_hook_that_was_there_is_called_too(self, box, monkeypatch):
        """A hook of the user gets the crash as well, and is back when the bridge is
        closed.
        """
        hooked = []
        monkeypatch.setattr(threading, "excepthook", lambda args: hooked.append(args.exc_value))
        before, error = threading.excepthook, ValueError()
        with registry.report_crashes_elsewhere():
            self.crash(error)

        assert hooked == [error]
        assert box.get_nowait().reason.exception is error
        assert threading.excepthook is before

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
    def test_several_bridges_report_a_crash_once(self, box, capsys, order):
        """There is one report as long as one bridge is open, whatever the order of the
        closes.
        """
        bridges = [registry.report_crashes_elsewhere() for _ in range(3)]
        for number in order:
            self.crash(ValueError())
            assert box.get_nowait().path == "elsewhere"
            assert box.empty()
            bridges[number].close()
            bridges[number].close()

        assert capsys.readouterr().err == ""
        assert threading.excepthook is threading.__excepthook__
        self.crash(ValueError("boom"))
        assert box.empty()
        assert capsys.readouterr().err.count("ValueError: boom") == 1

    def test_a_foreign_hook_on_top_stays(self, box, capsys):
        """Below a foreign hook, an open bridge reports, and a closed one passes on."""
        bridge = registry.report_crashes_elsewhere()
        hooked, below = [], threading.excepthook

        def theirs(args):
            hooked.append(args.exc_type)
            below(args)

        threading.excepthook = theirs
        self.crash(ValueError("boom"))
        assert box.get_nowait().path == "elsewhere"
        # on top of the foreign hook, and so of the first bridge, too
        with registry.report_crashes_elsewhere():
            self.crash(ValueError("boom"))
        assert box.get_nowait().path == "elsewhere"
        assert box.empty()
        assert capsys.readouterr().err == ""
        bridge.close()

        assert threading.excepthook is theirs
        self.crash(ValueError("boom"))
        assert hooked == [ValueError] * 3
        assert box.empty()
        assert capsys.readouterr().err.count("ValueError: boom") == 1

    def test_system_exit_is_no_crash(self, box, capsys):
        """The bridge ignores SystemExit, as the interpreter does."""
        with registry.report_crashes_elsewhere():
            self.crash(SystemExit(3))

        assert box.empty()
        assert capsys.readouterr().err == ""

    def test_a_crash_without_a_thread_or_an_exception_is_reported(self, box):
        """The report has a name and a text even if the hook gets neither thread nor
        exception.
        """
        with registry.report_crashes_elsewhere():
            threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, None)))
        report = box.get_nowait()

        assert (report.path, str(report.reason)) == ("<unknown thread>", "crashed: ValueError")

    def test_a_sink_that_raises_does_not_end_the_bridge(self, box, hook):
        """The exception of a sink is logged, and the next crash is reported as well."""
        bad = raiser(SystemExit("bad sink"))
        registry.subscribe(lambda report: bad())
        bad_sink = list(registry.default()._sinks.values())[-1]
        with structlog.testing.capture_logs() as logs, registry.report_crashes_elsewhere():
            self.crash(ValueError())
            self.crash(ValueError())
        registry.unsubscribe(bad_sink)

        assert [one["event"] for one in logs] == [
            "child_terminated",
            "handler_failed",
            "child_terminated",
        ]
        assert [box.get_nowait().path for _ in range(2)] == ["elsewhere"] * 2

    def test_nothing_is_kept_alive(self, hook):
        """The bridge keeps neither the exception nor the thread."""
        alive = []

        class Telltale(Exception):
            def __init__(self):
                alive.append(weakref.ref(self))

        def crash():
            raise Telltale

        gc.disable()
        try:
            with registry.report_crashes_elsewhere():
                one = threading.Thread(target=crash, name="elsewhere")
                alive.append(weakref.ref(one))
                one.start()
                one.join(HANG)
                del one
                assert [ref() for ref in alive] == [None, None]
        finally:
            gc.enable()
