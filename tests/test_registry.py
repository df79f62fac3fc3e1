"""The registry: who lives, who is stopped, who is left, and who died of what."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref

import attrs
import pytest
import structlog

import otpy
from otpy import registry, supervisor, thread
from otpy.children.thread import ThreadChild
from otpy.registry import ShutdownStats, ThreadRegistry, ThreadState, TrackedThread, shutdown, table
from otpy.registry.shutdown import Shutdown
from otpy.reports import ChildTerminated, ExitKind
from otpy.runtime import log, stacks, threads
from tests.helpers import HANG, Puppet, wait_until

SOON = HANG / 2
"""Far more than anything takes that does not wait for what it must not wait for, and less than a budget of HANG."""


@pytest.fixture
def reg():
    """A private registry."""
    one = ThreadRegistry()
    yield one
    one.shutdown_all(HANG)


@pytest.fixture
def whole():
    """A registry that sees all that the default one sees, and can be shut down by a test."""
    one = registry.registry.DefaultRegistry()
    yield one
    one.shutdown_all(HANG)


@pytest.fixture
def gate():
    """What stuck threads wait for; opened when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def hook(monkeypatch):
    """The interpreter's own hook for crashed threads, instead of pytest's."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)


def names(found):
    return [one.name for one in found]


def by_name(stats):
    """Return stats as (joined, timed out, orphaned) names, after a look at the numbers."""
    assert (stats.joined, stats.timeout, stats.orphaned) == tuple(
        map(len, (stats.joined_names, stats.timeout_names, stats.orphaned_names))
    )
    assert stats.total == stats.joined + stats.timeout
    assert set(stats.orphaned_names) <= set(stats.timeout_names)
    return stats.joined_names, stats.timeout_names, stats.orphaned_names


def side_by_side(count, function):
    """Call *function* on so many threads at one moment; return what they returned, or raised."""
    together, results = threading.Barrier(count), queue.SimpleQueue()

    def call():
        together.wait(HANG)
        try:
            results.put(function())
        except Exception as error:
            results.put(error)

    callers = [threading.Thread(target=call) for _ in range(count)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(HANG)
    return [results.get_nowait() for _ in range(count)]


class TestSpawn:
    def test_it_runs_the_target_with_its_arguments(self, reg):
        box = queue.SimpleQueue()
        spawned = reg.spawn(
            lambda *args, **kwargs: box.put((args, kwargs)), name="t", args=[1, 2], kwargs={"a": 3}
        )
        spawned.join(HANG)

        assert box.get(timeout=HANG) == ((1, 2), {"a": 3})
        assert (spawned.name, spawned.daemon) == ("t", False)

    def test_it_is_no_daemon_even_if_its_starter_is(self, reg, gate):
        """As threads are where nobody says otherwise."""
        box = queue.SimpleQueue()
        starter = threading.Thread(
            target=lambda: box.put(reg.spawn(gate.wait, name="t")), daemon=True
        )
        starter.start()

        assert box.get(timeout=HANG).daemon is False
        gate.set()
        starter.join(HANG)

    def test_it_is_tracked_while_it_lives(self, reg, gate):
        before = time.time()
        spawned = reg.spawn(gate.wait, name="t", purpose="waits")
        [one] = reg.active()

        assert one == TrackedThread(
            thread=spawned,
            name="t",
            path=None,
            purpose="waits",
            spawned_at=one.spawned_at,
            age=one.age,
            daemon=False,
            state=ThreadState.RUNNING,
        )
        assert before - 60 < one.spawned_at < time.time() + 60  # the wall clock may step
        assert 0 <= one.age < HANG
        assert reg.active()[0].age > one.age
        gate.set()
        spawned.join(HANG)
        assert reg.active() == ()

    def test_it_sees_itself(self, reg):
        """From its first line on."""
        box = queue.SimpleQueue()
        for number in range(50):
            reg.spawn(lambda: box.put(names(reg.active())), name=f"t{number}")
            assert f"t{number}" in box.get(timeout=HANG)

    def test_values_are_frozen(self, reg, gate):
        reg.spawn(gate.wait, name="t")
        for value, field in ((reg.active()[0], "name"), (reg.shutdown_all(0), "total")):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(value, field, 1)
        with pytest.raises(TypeError):
            ShutdownStats(1, 1, 0, 0, 0.0, (), (), ())

    def test_a_name_is_required(self, reg):
        with pytest.raises(TypeError):
            reg.spawn(print)

    @pytest.mark.parametrize(
        ("path", "field", "options"),
        [
            ("<thread>", "name", {"name": ""}),
            ("<thread>", "name", {"name": None}),
            ("<thread>", "name", {"name": 7}),
            ("t", "target", {"target": None}),
            ("t", "target", {"target": "print"}),
            ("t", "target", {"target": lambda a: None}),
            ("t", "target", {"target": lambda: None, "args": (1,)}),
            ("t", "target", {"target": lambda: None, "kwargs": {"a": 1}}),
            ("t", "args", {"args": 5}),
            ("t", "args", {"args": "words"}),
            ("t", "args", {"args": b"words"}),
            ("t", "kwargs", {"kwargs": [1]}),
            ("t", "kwargs", {"kwargs": {1: 2}}),
            ("t", "daemon", {"daemon": 1}),
            ("t", "daemon", {"daemon": None}),
            ("t", "purpose", {"purpose": None}),
        ],
    )
    def test_bad_input_is_refused(self, reg, path, field, options):
        """Before anything starts, naming thread, field and value."""
        with pytest.raises(otpy.SpecError) as caught:
            reg.spawn(**{"target": lambda *args, **kwargs: None, "name": "t", **options})

        assert (caught.value.path, caught.value.field) == (path, field)
        assert caught.value.value is options[field] or field == "target"
        assert reg.active() == ()

    def test_what_would_run_nothing_is_refused(self, reg):
        async def coroutine():
            pass

        async def async_generator():
            yield

        def generator():
            yield

        for target in (coroutine, async_generator, generator):
            with pytest.raises(otpy.SpecError, match="would run nothing"):
                reg.spawn(target, name="t")

    def test_a_builtin_without_a_signature(self, reg):
        reg.spawn(min, name="t", args=(2, 1)).join(HANG)

    def test_a_daemon_warns(self, reg, gate):
        """At the line of the caller, also through the function of the module."""
        for spawn in (reg.spawn, registry.spawn):
            with pytest.warns(RuntimeWarning, match="t is a daemon thread") as caught:
                spawned = spawn(gate.wait, name="t", daemon=True)
            assert caught[0].filename == __file__
            assert spawned.daemon
            assert [one.daemon for one in (reg.active() or registry.active())] == [True]
        gate.set()

    def test_where_the_warning_is_an_error_nothing_starts(self, reg):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning):
                reg.spawn(print, name="t", daemon=True)

        assert reg.active() == ()

    def test_the_system_refuses_the_thread(self, reg, gate, monkeypatch):
        """Nothing is tracked, and the name is free."""

        def refuse(self):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                reg.spawn(gate.wait, name="t")
        assert reg.active() == ()
        reg.spawn(gate.wait, name="t")

    def test_an_interrupted_start(self, reg, gate, monkeypatch):
        """A signal handler raises while the new thread is waited for: it runs, so it is tracked."""
        start, box = threading.Thread.start, queue.SimpleQueue()

        def start_and_raise(self):
            start(self)
            assert box.get(timeout=HANG) == "it runs"
            raise KeyboardInterrupt

        def target():
            box.put("it runs")
            gate.wait(HANG)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_and_raise)
            with pytest.raises(KeyboardInterrupt):
                reg.spawn(target, name="t")

        assert names(reg.active()) == ["t"]


class TestNames:
    def test_two_threads_of_one_name_are_refused(self, reg, gate):
        reg.spawn(gate.wait, name="t")
        with pytest.raises(otpy.AlreadyStarted, match="t: a thread of this name is running"):
            reg.spawn(gate.wait, name="t")

        assert names(reg.active()) == ["t"]

    def test_of_many_that_spawn_one_name_exactly_one_wins(self, reg):
        for number in range(30):
            gate = threading.Event()
            results = side_by_side(
                16, lambda gate=gate, name=f"t{number}": reg.spawn(gate.wait, name=name)
            )
            winners = [one for one in results if isinstance(one, threading.Thread)]

            assert len(winners) == 1
            assert sum(isinstance(one, otpy.AlreadyStarted) for one in results) == 15
            assert names(reg.active()) == [f"t{number}"]
            gate.set()
            winners[0].join(HANG)

    def test_nobody_comes_in_between_the_look_at_a_name_and_its_entry(self, reg, gate, monkeypatch):
        """Two that would both find the name free do not meet there."""
        enlist, both_inside = threads.enlist, threading.Barrier(2)

        def slow_enlist(*args, **options):
            with contextlib.suppress(threading.BrokenBarrierError):
                both_inside.wait(0.2)
            return enlist(*args, **options)

        monkeypatch.setattr(threads, "enlist", slow_enlist)
        results = side_by_side(2, lambda: reg.spawn(gate.wait, name="t"))

        assert sorted(type(one).__name__ for one in results) == ["AlreadyStarted", "Thread"]
        assert both_inside.broken

    def test_a_name_is_free_as_soon_as_its_thread_is_not_active(self, reg):
        """What active() says and what spawn() does never differ."""
        for _ in range(100):
            gate = threading.Event()
            reg.spawn(gate.wait, name="t")
            gate.set()
            while reg.active():
                pass
            reg.spawn(lambda: None, name="t").join(HANG)

    def test_no_one_ever_sees_two_of_one_name(self, reg):
        """While two threads spawn the same name as fast as they can."""
        over = threading.Event()

        def churn():
            for _ in range(300):
                with contextlib.suppress(otpy.AlreadyStarted):
                    reg.spawn(lambda: None, name="t")
            over.set()

        churners = [threading.Thread(target=churn) for _ in range(2)]
        for one in churners:
            one.start()
        while not over.is_set():
            assert len(reg.active()) <= 1
        for one in churners:
            one.join(HANG)

    def test_private_registries_have_names_of_their_own(self, reg, whole, gate):
        """Nobody sees the threads of a private one but itself."""
        other = ThreadRegistry()
        for one in (reg, other, whole):
            one.spawn(gate.wait, name="t")

        assert [names(one.active()) for one in (reg, other, whole)] == [["t"]] * 3
        assert len({one.active()[0].thread for one in (reg, other, whole)}) == 3
        gate.set()
        other.shutdown_all(HANG)

    def test_the_name_of_a_child_is_taken(self, whole, reg, launch, gate):
        """In the default registry, which sees the trees."""
        launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))
        with pytest.raises(otpy.AlreadyStarted):
            whole.spawn(gate.wait, name="app/a")
        reg.spawn(gate.wait, name="app/a")

    def test_a_renamed_thread_is_tracked_under_its_first_name(self, reg, gate):
        reg.spawn(gate.wait, name="t").name = "u"

        assert names(reg.active()) == ["t"]
        reg.spawn(gate.wait, name="u")
        assert by_name(reg.shutdown_all(0)) == ((), ("t", "u"), ())


class TestView:
    def test_every_thread_of_a_tree_is_in_it(self, whole, launch, recorder):
        """With name, path and purpose; and nobody else is."""
        before = set(threading.enumerate())
        puppet = Puppet()
        inner = supervisor(
            "in",
            children=[thread(lambda ctx: ctx.wait_stop(), id="b", purpose="waits for the end")],
        )
        app = launch(
            supervisor("app", children=[puppet.spec("a"), inner]), on_escalation=print, log=True
        )
        app.subscribe(queue.SimpleQueue())
        puppet.next()
        found = whole.active()

        assert {one.thread for one in found} == set(threading.enumerate()) - before
        assert all(one.thread.name == one.name for one in found)
        assert {one.name: one.purpose for one in found if one.path} == {
            "app": "supervises",
            "app/a": "runs a",
            "app/in": "supervises",
            "app/in/b": "waits for the end",
        }
        assert [one.path for one in found if one.path] == [one.name for one in found if one.path]
        helpers = [one for one in found if not one.path]
        assert {one.name for one in helpers} == {"app (reserve)", "app (log)", "app (reports)"}
        assert all(one.purpose == "calls handlers" and one.daemon for one in helpers)

    def test_it_is_in_the_order_of_the_starts(self, reg, gate):
        for name in "cab":
            reg.spawn(gate.wait, name=name)

        assert names(reg.active()) == ["c", "a", "b"]

    def test_it_tells_what_became_of_children(self, whole, launch, gate):
        """Detached ones and those that could not be stopped."""
        up = threading.Barrier(3)

        def stuck(ctx):
            up.wait(HANG)
            gate.wait(HANG)

        app = launch(
            supervisor(
                "app", children=[thread(stuck, id="x", shutdown="brutal_kill", interrupt=False)]
            )
        )
        other = launch(supervisor("other", children=[thread(stuck, id="y")]))
        up.wait(HANG)
        app.terminate_child("x")
        other.detach()
        states = {one.path: one.state for one in whole.active()}

        assert states["app/x"] is ThreadState.UNSTOPPED
        assert states["other/y"] is ThreadState.DETACHED
        assert states["app"] is ThreadState.RUNNING
        assert ThreadState("unstopped"), ThreadState("detached")

    def test_the_module_is_the_default_registry(self, gate):
        """Its functions are the methods of one object."""
        spawned = registry.spawn(gate.wait, name="t")

        assert names(registry.active()) == names(registry.default().active()) == ["t"]
        assert "t " in registry.dump_status()
        assert registry.shutdown_requested() is registry.default().shutdown_requested is False
        assert registry.wait_shutdown(0) is False
        assert registry.unregister(spawned) is True
        gate.set()
        spawned.join(HANG)

    def test_what_is_listed_is_there(self):
        assert all(hasattr(registry, name) for name in registry.__all__)
        assert registry.__all__ == sorted(registry.__all__)


class TestUnregister:
    def test_it_runs_on_and_nobody_waits_for_it(self, reg, gate):
        spawned = reg.spawn(gate.wait, name="t")

        assert reg.unregister(spawned) is True
        assert reg.unregister(spawned) is False
        assert reg.active() == ()
        assert reg.shutdown_all(HANG).total == 0
        assert spawned.is_alive()
        gate.set()
        spawned.join(HANG)

    def test_its_name_is_free_and_its_end_takes_nobody_with_it(self, reg, gate):
        """The entry of the next one of this name stays."""
        first_may_end = threading.Event()
        first = reg.spawn(first_may_end.wait, name="t")
        reg.unregister(first)
        second = reg.spawn(gate.wait, name="t")
        first_may_end.set()
        first.join(HANG)

        assert [one.thread for one in reg.active()] == [second]

    def test_it_counts_from_the_first_moment(self, reg):
        """Even before the thread has run a line."""
        gate = threading.Event()
        for _ in range(100):
            spawned = reg.spawn(gate.wait, name="t")
            assert reg.unregister(spawned) is True
            assert reg.active() == ()
        gate.set()

    def test_its_crash_is_reported_all_the_same(self, reg, gate):
        box = queue.SimpleQueue()
        reg.subscribe(box)

        def crash():
            gate.wait(HANG)
            raise ValueError("boom")

        reg.unregister(reg.spawn(crash, name="t"))
        gate.set()

        assert box.get(timeout=HANG).path == "t"

    def test_one_that_is_not_there(self, reg, whole, gate):
        """Ended, somebody else's, or never known: whoever lost the race against its end is not hurt."""
        ended = reg.spawn(lambda: None, name="t")
        ended.join(HANG)
        private = reg.spawn(gate.wait, name="u")

        assert [reg.unregister(one) for one in (ended, threading.current_thread())] == [
            False,
            False,
        ]
        assert whole.unregister(private) is False
        assert names(reg.active()) == ["u"]

    def test_a_trees_thread_cannot_be_let_go(self, whole, launch):
        launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))
        for one in whole.active():
            with pytest.raises(otpy.Refusal, match="belongs to a tree"):
                whole.unregister(one.thread)
        assert "app/a" in names(whole.active())

    def test_no_thread_at_all(self, reg):
        with pytest.raises(otpy.SpecError, match="thread = 't'"):
            reg.unregister("t")


class Boom(BaseException):
    """Something that user code made up."""


class Odd:
    """An exit code that cannot be compared."""

    def __eq__(self, other):
        raise ValueError("incomparable")

    __hash__ = None

    def __repr__(self):
        return "Odd()"  # no address: test ids are the same in every process of a run


def raiser(error):
    def target():
        raise error

    return target


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
    @pytest.mark.parametrize("error", DEATHS, ids=repr)
    def test_exactly_one_report(self, reg, error, monkeypatch):
        """To the log and to each sink; Python's own hook is not called in addition."""
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
        box = queue.SimpleQueue()
        reg.subscribe(box)
        with structlog.testing.capture_logs() as logs:
            reg.spawn(raiser(error), name="t").join(HANG)
            reg.spawn(lambda: None, name="t").join(HANG)

        assert (box.empty(), logs) == (True, [])

    def test_sinks_are_called_in_the_dying_thread(self, reg):
        """Which is not over before."""
        seen = queue.SimpleQueue()
        reg.subscribe(
            lambda report: seen.put((threading.current_thread().name, names(reg.active())))
        )
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert seen.get_nowait() == ("t", ["t"])

    def test_a_sink_that_raises_is_logged(self, reg):
        """The next one gets its report all the same; SystemExit, too."""
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

    def test_a_broken_log_does_not_matter(self, reg, monkeypatch, capsys):
        box = queue.SimpleQueue()
        reg.subscribe(box)
        monkeypatch.setattr(log, "logger", raiser(OSError("disk full")))
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert box.get_nowait().path == "t"

    def test_unsubscribe(self, reg):
        """One subscription each; a queue is the same queue again."""
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
        """Each takes one away."""
        box = queue.Queue()
        for _ in range(8):
            reg.subscribe(box)
        results = side_by_side(12, lambda: reg.unsubscribe(box))

        assert sum(one is None for one in results) == 8
        assert sum(isinstance(one, otpy.NotFound) for one in results) == 4

    def test_two_unsubscribe_one_at_once(self, reg):
        """The one who comes second finds none: here that is while the first one compares."""

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
    def test_what_cannot_be_a_sink_is_refused(self, reg, sink):
        with pytest.raises(
            otpy.SpecError, match=r"<registry>: sink = .*: expected a callable that takes a report"
        ):
            reg.subscribe(sink)

    def test_a_private_crash_is_private(self, reg, whole):
        box = queue.SimpleQueue()
        whole.subscribe(box)
        reg.spawn(raiser(ValueError()), name="t").join(HANG)

        assert box.empty()

    def test_nothing_is_kept_alive(self, reg):
        """Neither the arguments nor the exception nor what it has seen, without the help of the collector."""
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


class TestShutdown:
    def test_all_are_asked_before_any_is_waited_for(self, reg):
        """None of them ends before all have heard of it."""
        together = threading.Barrier(5)

        def obey():
            reg.wait_shutdown()
            together.wait(HANG)

        for number in range(5):
            reg.spawn(obey, name=f"t{number}")
        stats = reg.shutdown_all(HANG)

        assert by_name(stats) == (("t0", "t1", "t2", "t3", "t4"), (), ())
        assert stats.duration < SOON

    def test_one_budget_for_all(self, reg, gate):
        """Five stuck threads take as long as one."""
        for number in range(5):
            reg.spawn(gate.wait, name=f"t{number}")
        stats = reg.shutdown_all(0.5)

        assert by_name(stats) == ((), ("t0", "t1", "t2", "t3", "t4"), ())
        assert 0.5 <= stats.duration < 2.0

    def test_the_numbers_are_true(self, reg, gate):
        """Joined, timed out, and of these orphaned: a daemon is cut off by the interpreter, others are waited for."""
        reg.spawn(reg.wait_shutdown, name="obeys")
        reg.spawn(gate.wait, name="stuck")
        with pytest.warns(RuntimeWarning):
            reg.spawn(gate.wait, name="stuck daemon", daemon=True)
        with pytest.warns(RuntimeWarning):
            reg.spawn(reg.wait_shutdown, name="daemon", daemon=True)
        assert by_name(reg.shutdown_all(0.5)) == (
            ("obeys", "daemon"),
            ("stuck", "stuck daemon"),
            ("stuck daemon",),
        )

        gate.set()
        assert by_name(reg.shutdown_all(HANG))[1:] == ((), ())

    def test_no_budget_at_all(self, reg, gate):
        reg.spawn(gate.wait, name="t")
        stats = reg.shutdown_all(0)

        assert by_name(stats) == ((), ("t",), ())
        assert stats.duration < SOON

    def test_afterwards_nothing_is_spawned(self, reg):
        assert reg.shutdown_requested is False
        reg.shutdown_all()

        assert reg.shutdown_requested is True
        with pytest.raises(otpy.NotAlive, match="t: shutdown_all has been called"):
            reg.spawn(print, name="t")
        assert reg.wait_shutdown() is True

    def test_it_is_idempotent(self, reg, gate):
        """A second call waits again, with its own budget, and says what it saw."""
        reg.spawn(gate.wait, name="t")

        assert [by_name(reg.shutdown_all(0.05))[1] for _ in range(2)] == [("t",), ("t",)]
        gate.set()
        assert reg.shutdown_all(HANG).timeout == 0
        assert attrs.evolve(reg.shutdown_all(HANG), duration=0.0) == ShutdownStats(
            total=0,
            joined=0,
            timeout=0,
            orphaned=0,
            duration=0.0,
            joined_names=(),
            timeout_names=(),
            orphaned_names=(),
        )

    def test_many_at_once(self, reg):
        """All of them wait, and see the same."""
        all_wait = threading.Event()
        reg.spawn(all_wait.wait, name="t")
        opener = threading.Thread(
            target=lambda: (wait_until(lambda: len(reg._calls) == 8), all_wait.set())
        )
        opener.start()
        results = side_by_side(8, lambda: by_name(reg.shutdown_all(HANG)))
        opener.join(HANG)

        assert results == [(("t",), (), ())] * 8
        assert reg._calls == []

    def test_from_a_tracked_thread(self, reg):
        """It skips itself, and waits for the others."""
        box = queue.SimpleQueue()
        reg.spawn(reg.wait_shutdown, name="other")
        reg.spawn(lambda: box.put(reg.shutdown_all(HANG)), name="caller").join(HANG)
        stats = box.get(timeout=HANG)

        assert by_name(stats) == (("other",), (), ())
        assert stats.duration < SOON

    def test_from_outside_while_a_tracked_thread_is_at_it(self, reg, monkeypatch):
        """That one is waited for."""
        waited_for, join_all = [], threads.join_all
        monkeypatch.setattr(
            threads,
            "join_all",
            lambda those, left: (waited_for.append(those), join_all(those, left)),
        )
        at_it, go_on, box = threading.Event(), threading.Event(), queue.SimpleQueue()
        reg.spawn(lambda: (reg.wait_shutdown(), at_it.set(), go_on.wait(HANG)), name="other")
        reg.spawn(lambda: box.put(reg.shutdown_all(HANG)), name="caller")
        assert at_it.wait(HANG)
        opener = threading.Thread(
            target=lambda: (wait_until(lambda: len(reg._calls) == 2), go_on.set())
        )
        opener.start()
        stats = reg.shutdown_all(HANG)
        opener.join(HANG)

        assert by_name(stats) == (("other", "caller"), (), ())
        assert sorted(names(those) for those in waited_for) == [["other"], ["other", "caller"]]
        assert by_name(box.get(timeout=HANG)) == (("other",), (), ())

    def test_tracked_threads_that_call_it_at_once_do_not_wait_for_each_other(self, reg):
        """Whoever came first waits for the later ones; none waits until its budget is over."""
        together, box = threading.Barrier(4), queue.SimpleQueue()

        def call():
            together.wait(HANG)
            box.put(reg.shutdown_all(HANG))

        spawned = [reg.spawn(call, name=f"t{number}") for number in range(4)]
        for one in spawned:
            one.join(HANG)
        results = [box.get(timeout=HANG) for _ in range(4)]

        assert all(stats.duration < SOON for stats in results)
        assert [by_name(stats)[2] for stats in results] == [()] * 4
        assert reg._calls == []

    def test_whoever_spawns_while_all_is_shut_down_is_refused_or_waited_for(self):
        """None slips through."""
        for _ in range(20):
            reg, numbers, started = ThreadRegistry(), itertools.count(), []

            def spawn_on(reg=reg, numbers=numbers, started=started):
                while True:
                    started.append(reg.spawn(reg.wait_shutdown, name=f"t{next(numbers)}"))

            def shut(reg=reg, started=started):
                wait_until(lambda: len(started) > 20)
                return reg.shutdown_all(HANG)

            parts = iter([spawn_on, spawn_on, spawn_on, shut])
            results = side_by_side(4, lambda parts=parts: next(parts)())
            [stats] = [one for one in results if isinstance(one, ShutdownStats)]

            assert sum(isinstance(one, otpy.NotAlive) for one in results) == 3
            assert stats.total == stats.joined == len(started)
            assert not [one for one in started if one.is_alive()]

    def test_whoever_has_been_let_in_is_waited_for(self, reg, monkeypatch):
        """The door is closed behind one who is just in it, not before."""
        enlist, inside, shut = threads.enlist, threading.Event(), threading.Event()

        def slow_enlist(*args, **options):
            inside.set()
            shut.wait(0.2)
            return enlist(*args, **options)

        monkeypatch.setattr(threads, "enlist", slow_enlist)
        spawner = threading.Thread(target=lambda: reg.spawn(reg.wait_shutdown, name="t"))
        spawner.start()
        assert inside.wait(HANG)
        stats = reg.shutdown_all(HANG)
        shut.set()
        spawner.join(HANG)

        assert by_name(stats) == (("t",), (), ())

    def test_whoever_comes_after_the_look_is_refused(self, reg, monkeypatch):
        """Nobody gets in between the look and the flag."""
        look, results, spawners = Shutdown.look, queue.SimpleQueue(), []

        def spawn_late():
            try:
                results.put(reg.spawn(print, name="late"))
            except otpy.NotAlive as error:
                results.put(error)

        def look_and_spawn(call, entries):
            look(call, entries)
            spawners.append(threading.Thread(target=spawn_late))
            spawners[0].start()
            spawners[0].join(0.1)

        monkeypatch.setattr(Shutdown, "look", look_and_spawn)

        assert reg.shutdown_all(HANG).total == 0
        assert isinstance(results.get(timeout=HANG), otpy.NotAlive)
        spawners[0].join(HANG)

    def test_all_that_ran_are_counted(self, reg, monkeypatch):
        """Also those that end in the moment in which they are asked."""
        look, spawned = Shutdown.look, reg.spawn(reg.wait_shutdown, name="t")

        def slow_look(call, entries):
            spawned.join(0.1)
            look(call, entries)

        monkeypatch.setattr(Shutdown, "look", slow_look)

        assert by_name(reg.shutdown_all(HANG)) == (("t",), (), ())

    def test_of_two_tracked_callers_only_the_later_one_skips_the_other(self, reg, gate):
        """In whatever order they get to look at each other."""
        for name in "ab":
            reg.spawn(gate.wait, name=name)
        first, second, outsider = (Shutdown(reg._calls, HANG) for _ in range(3))
        first.caller, second.caller = reg._entries()
        reg._calls += [first, second, outsider]
        for call in (second, first, outsider):
            call.queue_up()
        reg._calls.clear()

        assert (first.earlier, second.earlier, outsider.earlier) == ([], [first], [])

    def test_whoever_sees_a_call_knows_who_its_caller_is(self, reg, monkeypatch):
        """Otherwise two could wait for each other."""
        look, visible = Shutdown.look, []

        def look_and_note(call, entries):
            visible.append(call in reg._calls)
            look(call, entries)

        monkeypatch.setattr(Shutdown, "look", look_and_note)
        reg.shutdown_all(HANG)

        assert visible == [False]

    def test_one_that_the_caller_itself_is_about_to_start_is_not(self, reg):
        """A signal handler amidst a spawn: nothing starts before it returns."""
        role = threads.Role.SPAWNED
        entry = threads.enlist(
            lambda: None, name="t", role=role, purpose="", owner=reg, daemon=False
        )
        stats = reg.shutdown_all(HANG)
        threads.launch(entry)

        assert by_name(stats) == ((), ("t",), ())
        assert stats.duration < SOON

    def test_a_thread_that_is_about_to_start_is_waited_for(self, reg, monkeypatch):
        """It was let in before; that it does not run yet makes no difference."""
        start, starting, go_on, box = (
            threading.Thread.start,
            threading.Event(),
            threading.Event(),
            queue.SimpleQueue(),
        )

        def slow_start(self):
            if self.name == "t":
                starting.set()
                go_on.wait(HANG)
            start(self)

        monkeypatch.setattr(threading.Thread, "start", slow_start)
        spawner = threading.Thread(target=lambda: reg.spawn(lambda: box.put("it ran"), name="t"))
        spawner.start()
        assert starting.wait(HANG)
        assert reg.active() == ()
        with pytest.raises(otpy.AlreadyStarted):
            reg.spawn(print, name="t")
        opener = threading.Thread(target=lambda: (wait_until(lambda: reg._calls), go_on.set()))
        opener.start()

        assert by_name(reg.shutdown_all(HANG)) == (("t",), (), ())
        assert box.get_nowait() == "it ran"
        spawner.join(HANG)
        opener.join(HANG)

    @pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), None, "1", True])
    def test_a_bad_budget_is_refused(self, reg, timeout):
        """And nothing is shut down."""
        with pytest.raises(
            otpy.SpecError, match=r"<registry>: timeout = .*: expected a finite number"
        ):
            reg.shutdown_all(timeout)
        assert reg.shutdown_requested is False

    def test_a_budget_beyond_all_clocks(self, reg):
        reg.spawn(reg.wait_shutdown, name="t")

        assert by_name(reg.shutdown_all(1e300)) == (("t",), (), ())

    def test_wait_shutdown(self, reg):
        """Returns whether it has been called; wakes all."""
        assert reg.wait_shutdown(0) is reg.wait_shutdown(0.001) is False
        box = queue.SimpleQueue()
        for number, timeout in enumerate((None, HANG, float("inf"), 1e300)):
            reg.spawn(
                lambda timeout=timeout: box.put(reg.wait_shutdown(timeout)), name=f"t{number}"
            )
        reg.shutdown_all(HANG)

        assert [box.get(timeout=HANG) for _ in range(4)] == [True] * 4

    @pytest.mark.parametrize("timeout", [-1, float("nan"), float("-inf"), "1", True])
    def test_a_bad_wait_is_refused(self, reg, timeout):
        with pytest.raises(otpy.SpecError, match="<registry>: timeout"):
            reg.wait_shutdown(timeout)

    def test_as_a_context_manager(self):
        """Leaving it shuts down and waits, also by an exception."""
        with (
            pytest.raises(ZeroDivisionError),
            structlog.testing.capture_logs() as logs,
            ThreadRegistry() as reg,
        ):
            spawned = reg.spawn(reg.wait_shutdown, name="t")
            _ = 1 / 0

        assert not spawned.is_alive()
        assert reg.shutdown_requested
        assert logs == []

    def test_a_context_manager_says_what_it_leaves(self, gate, monkeypatch):
        """Nobody sees its stats."""
        monkeypatch.setattr(ThreadRegistry.shutdown_all, "__defaults__", (0.05,))
        with structlog.testing.capture_logs() as logs, ThreadRegistry() as reg:
            reg.spawn(gate.wait, name="t")

        assert logs == [{"event": "threads_left", "log_level": "error", "names": ["t"]}]
        gate.set()
        reg.shutdown_all(HANG)

    def test_an_interrupt_while_it_waits(self, reg, gate, monkeypatch):
        """It leaves nothing behind that would confuse the next call."""
        reg.spawn(gate.wait, name="t")
        with monkeypatch.context() as patch:
            patch.setattr(threads, "join_all", lambda *args: raiser(KeyboardInterrupt())())
            with pytest.raises(KeyboardInterrupt):
                reg.shutdown_all(HANG)

        assert reg._calls == []
        assert reg.shutdown_requested

    def test_an_interrupted_wait_takes_nobody_for_dead(self, reg, gate):
        """As CPython before 3.13 does where a join is interrupted."""
        reg.spawn(gate.wait, name="t")
        waiting = threading.get_ident()

        def interrupt():
            wait_until(lambda: ", in join\n" in stacks.stack_of(waiting))
            os.kill(os.getpid(), signal.SIGINT)

        other = threading.Thread(target=interrupt)
        other.start()
        with pytest.raises(KeyboardInterrupt):
            reg.shutdown_all(HANG)
        other.join()

        assert reg.shutdown_all(0).timeout_names == ("t",)
        gate.set()
        assert reg.shutdown_all(HANG).timeout == 0


class TestShutdownOfTrees:
    def test_trees_are_stopped_in_order_and_waited_for_first(self, whole, launch, monkeypatch):
        """Children in reverse order; threads are joined when the trees have ended."""
        ended, alive_at_join = [], []

        def child(ctx):
            ctx.wait_stop()
            ended.append(ctx.path)

        inner = supervisor("in", children=[thread(child, id=id) for id in "bc"])
        app = launch(supervisor("app", children=[thread(child, id="a"), inner]))
        whole.spawn(whole.wait_shutdown, name="t")
        join_all = threads.join_all

        def look_and_join(waited_for, timeout):
            alive_at_join.append(app.alive)
            return join_all(waited_for, timeout)

        monkeypatch.setattr(threads, "join_all", look_and_join)
        stats = whole.shutdown_all(HANG)

        assert ended == ["app/in/c", "app/in/b", "app/a"]
        assert alive_at_join[-1] is False
        assert by_name(stats)[1:] == ((), ())
        assert {"app", "app/a", "app/in", "app/in/b", "app/in/c", "app (reports)", "t"} <= set(
            stats.joined_names
        )
        assert stats.duration < SOON

    def test_trees_detached_ones_and_spawned_ones_are_asked_before_any_is_waited_for(
        self, whole, launch
    ):
        """None of them ends before all have been asked."""
        together = threading.Barrier(4)

        def child(ctx):
            ctx.wait_stop()
            together.wait(HANG)

        let_go = launch(supervisor("go", children=[thread(child, id="d")]))
        let_go.detach()
        for id in ("one", "two"):
            launch(supervisor(id, children=[thread(child, id="a", shutdown="infinity")]))
        whole.spawn(lambda: (whole.wait_shutdown(), together.wait(HANG)), name="t")
        stats = whole.shutdown_all(HANG)

        assert by_name(stats)[1:] == ((), ())
        assert {"go/d", "one/a", "two/a", "t"} <= set(stats.joined_names)
        assert stats.duration < SOON

    def test_what_a_tree_lets_go_while_it_ends_is_asked(self, whole, launch, monkeypatch):
        """The tree was told to detach before, and has not come to that when the others are asked."""
        app = launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))
        all_asked, wait, detach = threading.Event(), Shutdown.wait, ThreadChild.detach

        def late(child):
            assert all_asked.wait(HANG)
            detach(child)

        monkeypatch.setattr(ThreadChild, "detach", late)
        monkeypatch.setattr(Shutdown, "wait", lambda call: (all_asked.set(), wait(call)))
        app._core().detach()
        stats = whole.shutdown_all(HANG)

        assert by_name(stats)[1:] == ((), ())
        assert "app/a" in stats.joined_names

    def test_what_cannot_be_stopped_is_given_up_within_the_budget(
        self, whole, launch, gate, monkeypatch
    ):
        """The tree knows it in time, so it is over, and the child an orphan; one budget for all."""
        up, budgets, join_all = threading.Barrier(3), [], threads.join_all

        def stuck(ctx):
            up.wait(HANG)
            gate.wait(HANG)

        apps = [
            launch(
                supervisor(
                    id, children=[thread(stuck, id="x", shutdown="infinity", interrupt=False)]
                )
            )
            for id in ("one", "two")
        ]
        up.wait(HANG)
        whole.spawn(gate.wait, name="t")
        monkeypatch.setattr(
            threads,
            "join_all",
            lambda those, left: budgets.append(left) or join_all(those, left),
        )
        monkeypatch.setattr(shutdown, "TREES_SHARE", 0.25)  # so that a slow machine does not matter
        stats = whole.shutdown_all(1.0)

        assert 0 <= budgets[-1] <= 0.75  # what the trees have left
        assert by_name(stats)[1:] == (("one/x", "two/x", "t"), ("one/x", "two/x"))
        assert 1.0 <= stats.duration < 2.9
        assert [app.alive for app in apps] == [False, False]
        assert {one.path: one.state for one in whole.active() if one.path} == {
            "one/x": ThreadState.UNSTOPPED,
            "two/x": ThreadState.UNSTOPPED,
        }

    def test_trees_get_nine_tenths_of_the_budget(self, whole, monkeypatch):
        """What they cannot stop must be known before all of it is over."""
        budgets = []
        monkeypatch.setattr(
            registry.registry, "ask_all", lambda within: budgets.append(within) or {}
        )
        for timeout in (10, 0):
            whole.shutdown_all(timeout)

        assert budgets == [9.0, 0.0]

    def test_a_tree_that_is_not_over_still_has_its_children(self, whole, launch):
        """They are no orphans: their tree waits for them."""
        slow, up = threading.Event(), threading.Event()

        def child(ctx):
            with contextlib.suppress(BaseException):  # an interrupt may come before it waits
                up.set()
                slow.wait(HANG)
            slow.wait(HANG)

        app = launch(supervisor("app", children=[thread(child, id="a")]))
        assert up.wait(HANG)
        joined, left, orphaned = by_name(whole.shutdown_all(0))
        slow.set()

        assert joined == ()
        assert {"app", "app/a"} <= set(left)
        assert orphaned == ()
        app.wait(HANG)

    def test_what_was_given_up_before_is_not_waited_for(self, whole, launch, gate):
        up = threading.Event()

        def stuck(ctx):
            up.set()
            gate.wait(HANG)

        app = launch(
            supervisor(
                "app", children=[thread(stuck, id="x", shutdown="brutal_kill", interrupt=False)]
            )
        )
        assert up.wait(HANG)
        app.terminate_child("x")
        stats = whole.shutdown_all(HANG)

        assert by_name(stats)[1:] == (("app/x",), ("app/x",))
        assert stats.duration < SOON

    def test_a_detached_child_that_does_not_listen(self, whole, launch, gate):
        """It is waited for, and then nobody does any more."""
        up = threading.Event()

        def deaf(ctx):
            up.set()
            gate.wait(HANG)

        app = launch(supervisor("app", children=[thread(deaf, id="x")]))
        assert up.wait(HANG)
        app.detach()

        assert by_name(whole.shutdown_all(0.2)) == ((), ("app/x",), ("app/x",))

    def test_a_detached_child_that_cannot_be_asked(self, whole, gate):
        """What goes wrong is logged, and the others are asked all the same."""
        asked = []
        for name, ask in (("a", raiser(Boom())), ("b", lambda: asked.append("b"))):
            spawned = threads.spawn(
                gate.wait, name=name, role=threads.Role.CHILD, purpose="", owner=None
            )
            threads.mark(spawned, ThreadState.DETACHED, ask)
        with structlog.testing.capture_logs() as logs:
            stats = whole.shutdown_all(0)

        assert by_name(stats) == ((), ("a", "b"), ("a", "b"))
        assert asked == ["b"]
        assert [(one["event"], one["path"]) for one in logs] == [("ask_failed", "a")]

    def test_from_inside_a_tree(self, whole, launch):
        """The tree is asked, but not waited for: it waits for the caller. All others are."""
        go_on, box = threading.Event(), queue.SimpleQueue()

        def caller(ctx):
            go_on.wait(HANG)
            box.put(whole.shutdown_all(HANG))
            ctx.wait_stop()

        def other(ctx):
            ctx.wait_stop()

        launch(supervisor("other", children=[thread(other, id="a")]))
        whole.spawn(whole.wait_shutdown, name="t")
        inner = supervisor("in", children=[thread(caller, id="c", shutdown="infinity")])
        app = launch(supervisor("app", children=[thread(other, id="a"), inner]))
        go_on.set()
        stats = box.get(timeout=HANG)

        assert stats.duration < SOON
        joined, left, orphaned = by_name(stats)
        assert {"other", "other/a", "t"} <= set(joined)
        assert {"app", "app/a", "app/in"} <= set(left)
        assert not {"app/in/c"} & {*joined, *left}
        assert orphaned == ()
        assert str(app.wait(HANG)) == "shutdown"

    @pytest.mark.parametrize("where", ["handler", "on_stop"])
    def test_from_a_helper_of_a_tree(self, whole, launch, where):
        """Its tree waits for it, too."""
        box = queue.SimpleQueue()

        def shut(*args):
            if box.empty():
                box.put(whole.shutdown_all(HANG))

        def child(ctx):
            if where == "on_stop":
                ctx.on_stop(shut)
            ctx.ready()
            ctx.wait_stop()

        app = launch(supervisor("app", children=[thread(child, id="a", ready=True)]))
        if where == "handler":
            app.subscribe(shut)
            app.terminate_child("a")
            app.restart_child("a")  # which is told, also if shut down meanwhile
        else:
            app.stop()
        stats = box.get(timeout=HANG)

        assert stats.duration < SOON
        assert by_name(stats)[2] == ()
        app.wait(HANG)

    def test_from_inside_two_trees_at_once(self, whole, launch):
        """None of them waits for the other until its budget is over."""
        together, box = threading.Barrier(3), queue.SimpleQueue()

        def caller(ctx):
            together.wait(HANG)
            box.put(whole.shutdown_all(HANG))

        for id in ("one", "two"):
            launch(
                supervisor(
                    id, children=[thread(caller, id="c", shutdown="infinity", restart="temporary")]
                )
            )
        together.wait(HANG)  # both are up
        results = [box.get(timeout=HANG) for _ in range(2)]

        assert all(stats.duration < SOON for stats in results)

    def test_from_a_detached_child(self, whole, launch):
        """No tree waits for it, so it may wait for all of them."""
        go_on, up, box = threading.Event(), threading.Event(), queue.SimpleQueue()

        def caller(ctx):
            up.set()
            go_on.wait(HANG)
            box.put(whole.shutdown_all(HANG))

        inner = supervisor("in", children=[thread(caller, id="c")])
        launch(
            supervisor("app", children=[inner, thread(lambda ctx: ctx.wait_stop(), id="a")])
        ).find("app/in").detach()
        assert up.wait(HANG)
        go_on.set()
        stats = box.get(timeout=HANG)

        assert by_name(stats)[1:] == ((), ())
        assert {"app", "app/a"} <= set(stats.joined_names)

    def test_a_private_registry_leaves_trees_alone(self, reg, launch):
        app = launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))

        assert reg.shutdown_all(HANG).total == 0
        assert app.alive
        assert app.which_children()[0].incarnation == 1

    def test_the_default_one_leaves_private_ones_alone(self, whole, reg, gate):
        reg.spawn(gate.wait, name="t")

        assert whole.shutdown_all(HANG).total == 0
        assert reg.shutdown_requested is False
        assert names(reg.active()) == ["t"]

    def test_trees_may_be_started_afterwards(self, whole, launch):
        """The flag is about spawn."""
        whole.shutdown_all(HANG)
        app = launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))

        assert app.alive
        assert by_name(whole.shutdown_all(HANG))[1:] == ((), ())
        assert not app.alive

    def test_a_tree_that_starts(self, whole):
        """It is stopped before it is up."""
        starting, box = threading.Event(), queue.SimpleQueue()

        def slow(ctx):
            starting.set()
            ctx.wait_stop()

        def start():
            try:
                otpy.start(
                    supervisor("app", children=[thread(slow, id="a", ready=True)]), log=False
                )
            except otpy.StartError as error:
                box.put(error)

        starter = threading.Thread(target=start)
        starter.start()
        assert starting.wait(HANG)
        stats = whole.shutdown_all(HANG)
        starter.join(HANG)

        assert by_name(stats)[1:] == ((), ())
        assert isinstance(box.get(timeout=HANG), otpy.StartError)


ODD_NAMES = [
    "a\nb",
    "tab\there",
    "lone \ud800 surrogate",
    "\x1b[31mred",
    "日本",
    "nul\0",
    "x" * 200,
    " ",
]


class TestDump:
    def test_it_is_a_table(self, whole, launch, gate):
        """In the order of the starts, with ages and purposes."""
        launch(
            supervisor(
                "app", children=[thread(lambda ctx: ctx.wait_stop(), id="a", purpose="sits")]
            ),
            reports=None,
        )
        whole.spawn(gate.wait, name="worker", purpose="works")
        lines = whole.dump_status().split("\n")

        assert lines[0] == "4 threads"
        assert lines[1].split() == ["name", "state", "age", "daemon", "purpose"]
        column = {word: lines[1].index(word) for word in lines[1].split()}
        rows = [
            [line[start:].split("  ")[0].rstrip() for start in column.values()]
            for line in lines[2:]
        ]
        assert [(name, state, daemon, purpose) for name, state, age, daemon, purpose in rows] == [
            ("app", "running", "yes", "supervises"),
            ("app (reserve)", "running", "yes", "calls handlers"),
            ("app/a", "running", "yes", "sits"),
            ("worker", "running", "no", "works"),
        ]
        assert all(float(row[2].removesuffix(" s")) >= 0 for row in rows)

    def test_nobody_lives(self, reg):
        assert reg.dump_status() == "0 threads\nname  state  age  daemon  purpose"
        reg.shutdown_all()
        assert reg.dump_status().split("\n")[0] == "0 threads, shutdown requested"

    @pytest.mark.parametrize("name", ODD_NAMES)
    @pytest.mark.parametrize("stacks", [False, True])
    def test_odd_names(self, reg, gate, name, stacks):
        """One line each, without anything that a terminal would obey; names and purposes."""
        spawned = reg.spawn(gate.wait, name=name, purpose=name)
        text = reg.dump_status(stacks=stacks)

        assert all(char.isprintable() for line in text.split("\n") for char in line)
        assert len([line for line in text.split("\n") if "  running  " in line]) == 1
        assert stacks or text.count("\n") == 2
        text.encode()
        assert reg.active()[0].name == name
        assert by_name(reg.shutdown_all(0)) == ((), (name,), ())
        assert spawned.name == name

    def test_stacks(self, reg, gate):
        """Under each thread what it is doing now."""
        up = threading.Event()

        def a_function_with_a_name():
            up.set()
            gate.wait(HANG)

        reg.spawn(a_function_with_a_name, name="t")
        assert up.wait(HANG)
        wait_until(lambda: "gate.wait(HANG)" in reg.dump_status(True))
        lines = reg.dump_status(stacks=True).split("\n")

        assert lines[2].startswith("t ")
        assert any(
            line.startswith("      File") and "in a_function_with_a_name" in line
            for line in lines[3:]
        )
        assert all(line.startswith("    ") for line in lines[3:])
        assert "in a_function_with_a_name" not in reg.dump_status()

    def test_it_does_not_fail_while_threads_come_and_go(self, reg):
        over = threading.Event()

        def churn():
            for number in range(60):
                reg.spawn(lambda: None, name=f"t{number}")
            over.set()

        churner = threading.Thread(target=churn)
        churner.start()
        while not over.is_set():
            assert "\nname  " in reg.dump_status(stacks=True)
        churner.join(HANG)

    def test_the_stack_of_one_that_has_ended(self, reg, monkeypatch):
        """Its number may be another thread's by now."""
        gate = threading.Event()
        ended = reg.spawn(gate.wait, name="t")
        (seen,) = reg.active()
        gate.set()
        ended.join(HANG)

        monkeypatch.setattr(table, "stack_of", lambda ident: "another thread's")
        assert table.stacks([seen]) == {ended: ""}


class TestBridge:
    """Crashes of threads that were started elsewhere."""

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
        self.crash(ValueError("boom"))

        assert box.empty()
        assert "ValueError: boom" in capsys.readouterr().err

    def test_a_crash_is_reported_once(self, box, capsys):
        """To the log and to the sinks; the interpreter does not print it once more."""
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
        with registry.report_crashes_elsewhere():
            registry.spawn(raiser(ValueError()), name="ours").join(HANG)
            reg.spawn(raiser(ValueError()), name="private").join(HANG)

        assert box.get_nowait().path == "ours"
        assert box.empty()

    def test_the_hook_that_was_there_is_called_too(self, box, monkeypatch):
        hooked = []
        monkeypatch.setattr(threading, "excepthook", lambda args: hooked.append(args.exc_value))
        before, error = threading.excepthook, ValueError()
        with registry.report_crashes_elsewhere():
            self.crash(error)

        assert hooked == [error]
        assert box.get_nowait().reason.exception is error
        assert threading.excepthook is before

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
    def test_installed_more_than_once(self, box, capsys, order):
        """One report, as long as one of them is open; in whatever order they are closed."""
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

    def test_somebody_elses_hook_on_top(self, box, capsys):
        """It stays; below it, an open bridge reports and a closed one passes on."""
        bridge = registry.report_crashes_elsewhere()
        hooked, below = [], threading.excepthook

        def theirs(args):
            hooked.append(args.exc_type)
            below(args)

        threading.excepthook = theirs
        self.crash(ValueError("boom"))
        assert box.get_nowait().path == "elsewhere"
        with registry.report_crashes_elsewhere():  # on top of theirs, and so of the first one, too
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
        """As for the interpreter."""
        with registry.report_crashes_elsewhere():
            self.crash(SystemExit(3))

        assert box.empty()
        assert capsys.readouterr().err == ""

    def test_what_is_not_known(self, box):
        """The thread, or the exception object."""
        with registry.report_crashes_elsewhere():
            threading.excepthook(threading.ExceptHookArgs((ValueError, None, None, None)))
        report = box.get_nowait()

        assert (report.path, str(report.reason)) == ("<unknown thread>", "crashed: ValueError")

    def test_a_sink_that_raises(self, box, hook):
        """It is logged, and the next crash is reported as well."""
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
        """Neither the exception nor the thread."""
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


def program(body, timeout=60):
    """Run *body* in a process of its own; return (exit status, lines of stdout, stderr)."""
    prelude = """
    import os, signal, sys, threading, time, warnings
    import otpy
    from otpy import registry, supervisor, thread

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece
    """
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        textwrap.dedent(prelude) + textwrap.dedent(body),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


class TestPrograms:
    def test_the_end_of_a_main_function(self):
        """Trees and threads end, nothing is left, and the default registry is closed for ever."""
        status, out, err = program(
            """
            def work():
                while not registry.shutdown_requested():
                    registry.wait_shutdown(3600)
                say("down work")

            def child(ctx):
                ctx.wait_stop()
                say("down", ctx.path)

            def main():
                registry.spawn(work, name="work")
                app = otpy.start(supervisor("app", children=[thread(child, id=id) for id in "ab"]), log=False)
                try:
                    pass  # the program
                finally:
                    stats = registry.shutdown_all()
                    say(stats.total, stats.joined, stats.timeout, stats.orphaned, sorted(stats.joined_names))
                try:
                    registry.spawn(work, name="late")
                except otpy.NotAlive:
                    say("refused", registry.shutdown_requested(), registry.wait_shutdown())
                say(app.alive, registry.dump_status().split(chr(10))[0])

            main()
            """
        )

        assert (status, err) == (0, "")
        assert sorted(out[:3]) == ["down app/a", "down app/b", "down work"]
        assert out.index("down app/b") < out.index("down app/a")
        assert out[3:] == [
            "5 5 0 0 ['app', 'app (reserve)', 'app/a', 'app/b', 'work']",
            "refused True True",
            "False 0 threads, shutdown requested",
        ]

    def test_a_signal_handler_may_shut_down(self):
        """At any moment: also when the main thread is just about to wait, or to spawn."""
        status, out, err = program(
            """
            import random
            reg = None
            def handler(*args):
                if reg is not None:
                    reg.shutdown_all(10.0)
                    reg.active()
            signal.signal(signal.SIGALRM, handler)
            for number in range(3000):
                reg = registry.ThreadRegistry()
                signal.setitimer(signal.ITIMER_REAL, random.random() * 1e-4 + 1e-6, 0.01)  # again: Python may miss one
                if number % 10 == 0:
                    try:
                        for n in range(1000):
                            reg.spawn(reg.wait_shutdown, name=str(n))
                    except otpy.NotAlive:
                        pass
                reg.wait_shutdown()
                reg.shutdown_all(10.0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            say("done", threading.active_count())
            """
        )

        assert (status, out, err) == (0, ["done 1"], "")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_fork(self):
        """The copy knows none of the threads, and can spawn, under the same names; a lock that was held is not."""
        status, out, err = program(
            """
            warnings.simplefilter("ignore", DeprecationWarning)
            gate, held = threading.Event(), threading.Event()
            private = registry.ThreadRegistry()
            from otpy.registry.door import door
            for reg in (registry.default(), private):
                reg.spawn(gate.wait, name="t")
            def hold():
                with door():
                    held.set()
                    gate.wait()
            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            child = os.fork()
            if child == 0:
                for reg in (registry.default(), private):
                    say(reg.active(), reg.shutdown_requested)
                    reg.spawn(reg.wait_shutdown, name="t")
                    stats = reg.shutdown_all(10)
                    say(stats.joined_names, stats.timeout_names)
                os._exit(3)
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            gate.set()
            holder.join()
            for reg in (registry.default(), private):
                say(reg.shutdown_requested)
            """
        )

        assert (status, err) == (0, "")
        assert out == ["() False", "('t',) ()"] * 2 + ["3", "False", "False"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_spawned_thread_that_forks(self):
        """The copy inherits the flag; its copy of the thread is the main thread there, and its end hurts nobody."""
        status, out, err = program(
            """
            warnings.simplefilter("ignore", DeprecationWarning)
            reg, gate = registry.ThreadRegistry(), threading.Event()
            children = []
            def forks():
                reg.wait_shutdown()
                child = os.fork()
                if child == 0:
                    say(reg.active(), reg.shutdown_requested)
                    try:
                        reg.spawn(print, name="late")
                    except otpy.NotAlive:
                        say("refused")
                    say(reg.shutdown_all(10).total)
                    raise ValueError("in the copy")
                children.append(child)
            def sink(report):
                say("report", report.path, os.getpid() != parent)
                os._exit(5)
            parent = os.getpid()
            reg.subscribe(sink)
            registry.otpy = None
            reg.spawn(forks, name="t")
            say(reg.shutdown_all(30).joined_names)
            say(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
            """
        )

        assert (status, err) == (0, "")
        assert [
            line
            for line in out
            if line in ("() True", "refused", "0", "report t True", "('t',)", "5")
        ]
        assert {"() True", "refused", "0", "report t True", "('t',)", "5"} <= set(out)
