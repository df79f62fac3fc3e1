"""What a registry starts, under which names, and what it lets go."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import warnings

import attrs
import pytest

import otpy
from otpy import registry, supervisor, thread
from otpy.registry import ShutdownStats, ThreadRegistry, ThreadState, TrackedThread
from otpy.runtime import threads
from tests.helpers import HANG
from tests.registry.kit import by_name, names, side_by_side


class TestSpawn:
    """What ``spawn`` starts, and what it refuses."""

    def test_it_runs_the_target_with_its_arguments(self, reg):
        """The thread has the name, is no daemon, and calls the target with args and
        kwargs.
        """
        box = queue.SimpleQueue()
        spawned = reg.spawn(
            lambda *args, **kwargs: box.put((args, kwargs)), name="t", args=[1, 2], kwargs={"a": 3}
        )
        spawned.join(HANG)

        assert box.get(timeout=HANG) == ((1, 2), {"a": 3})
        assert (spawned.name, spawned.daemon) == ("t", False)

    def test_it_is_no_daemon_even_if_its_starter_is(self, reg, gate):
        """Unlike a ``threading.Thread``, it does not inherit ``daemon``."""
        box = queue.SimpleQueue()
        starter = threading.Thread(
            target=lambda: box.put(reg.spawn(gate.wait, name="t")), daemon=True
        )
        starter.start()

        assert box.get(timeout=HANG).daemon is False
        gate.set()
        starter.join(HANG)

    def test_it_is_tracked_while_it_lives(self, reg, gate):
        """``active`` shows the thread from its start to its end."""
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
        # the wall clock may step
        assert before - 60 < one.spawned_at < time.time() + 60
        assert 0 <= one.age < HANG
        assert reg.active()[0].age > one.age
        gate.set()
        spawned.join(HANG)
        assert reg.active() == ()

    def test_it_sees_itself(self, reg):
        """A thread is active from its first line on."""
        box = queue.SimpleQueue()
        for number in range(50):
            reg.spawn(lambda: box.put(names(reg.active())), name=f"t{number}")
            assert f"t{number}" in box.get(timeout=HANG)

    def test_values_are_frozen(self, reg, gate):
        """Values of a registry cannot be changed, and are made by names only."""
        reg.spawn(gate.wait, name="t")
        for value, field in ((reg.active()[0], "name"), (reg.shutdown_all(0), "total")):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(value, field, 1)
        with pytest.raises(TypeError):
            ShutdownStats(1, 1, 0, 0, 0.0, (), (), ())

    def test_a_name_is_required(self, reg):
        """``spawn`` without a name is refused as Python refuses it."""
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
        """A wrong argument is refused before anything starts; the error names thread,
        field and value.
        """
        with pytest.raises(otpy.SpecError) as caught:
            reg.spawn(**{"target": lambda *args, **kwargs: None, "name": "t", **options})

        assert (caught.value.path, caught.value.field) == (path, field)
        assert caught.value.value is options[field] or field == "target"
        assert reg.active() == ()

    def test_a_target_that_would_run_nothing_is_refused(self, reg):
        """Async functions and generator functions are refused."""

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
        """A callable that does not tell its signature is accepted."""
        reg.spawn(min, name="t", args=(2, 1)).join(HANG)

    def test_a_daemon_warns(self, reg, gate):
        """The warning is about the line of the caller, also through the function of the
        package.
        """
        for spawn in (reg.spawn, registry.spawn):
            with pytest.warns(RuntimeWarning, match="t is a daemon thread") as caught:
                spawned = spawn(gate.wait, name="t", daemon=True)
            assert caught[0].filename == __file__
            assert spawned.daemon
            assert [one.daemon for one in (reg.active() or registry.active())] == [True]
        gate.set()

    def test_where_the_warning_is_an_error_nothing_starts(self, reg):
        """A warning filter that raises keeps the daemon from starting."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning):
                reg.spawn(print, name="t", daemon=True)

        assert reg.active() == ()

    def test_the_system_refuses_the_thread(self, reg, gate, monkeypatch):
        """If the system has no thread to give, nothing is tracked, and the name is
        free.
        """

        def refuse(self):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                reg.spawn(gate.wait, name="t")
        assert reg.active() == ()
        reg.spawn(gate.wait, name="t")

    def test_an_interrupted_start(self, reg, gate, monkeypatch):
        """A signal handler may raise while ``spawn`` waits for the new thread.

        The thread runs, so it is tracked.
        """
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
    """No two living threads of one registry have one name."""

    def test_two_threads_of_one_name_are_refused(self, reg, gate):
        """The second thread of a name is refused while the first one lives."""
        reg.spawn(gate.wait, name="t")
        with pytest.raises(otpy.AlreadyStarted, match="t: a thread of this name is running"):
            reg.spawn(gate.wait, name="t")

        assert names(reg.active()) == ["t"]

    def test_of_many_that_spawn_one_name_exactly_one_wins(self, reg):
        """Of sixteen calls at once one starts a thread; the others are refused."""
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

    def test_no_spawn_comes_between_the_look_at_a_name_and_its_entry(self, reg, gate, monkeypatch):
        """Two calls cannot both find the name free."""
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
        """``active`` and ``spawn`` agree on which names are taken."""
        for _ in range(100):
            gate = threading.Event()
            reg.spawn(gate.wait, name="t")
            gate.set()
            while reg.active():
                pass
            reg.spawn(lambda: None, name="t").join(HANG)

    def test_active_never_shows_two_of_one_name(self, reg):
        """Not even while two threads spawn one name as fast as they can."""
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
        """No other registry sees the threads of a private one."""
        other = ThreadRegistry()
        for one in (reg, other, whole):
            one.spawn(gate.wait, name="t")

        assert [names(one.active()) for one in (reg, other, whole)] == [["t"]] * 3
        assert len({one.active()[0].thread for one in (reg, other, whole)}) == 3
        gate.set()
        other.shutdown_all(HANG)

    def test_the_name_of_a_child_is_taken(self, whole, reg, launch, gate):
        """The default registry sees the trees, so the path of a child is taken."""
        launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))
        with pytest.raises(otpy.AlreadyStarted):
            whole.spawn(gate.wait, name="app/a")
        reg.spawn(gate.wait, name="app/a")

    def test_a_renamed_thread_is_tracked_under_its_first_name(self, reg, gate):
        """A change of ``Thread.name`` does not change the record."""
        reg.spawn(gate.wait, name="t").name = "u"

        assert names(reg.active()) == ["t"]
        reg.spawn(gate.wait, name="u")
        assert by_name(reg.shutdown_all(0)) == ((), ("t", "u"), ())


class TestUnregister:
    """What ``unregister`` lets go."""

    def test_it_runs_on_and_is_not_waited_for(self, reg, gate):
        """``shutdown_all`` does not see a thread that was let go."""
        spawned = reg.spawn(gate.wait, name="t")

        assert reg.unregister(spawned) is True
        assert reg.unregister(spawned) is False
        assert reg.active() == ()
        assert reg.shutdown_all(HANG).total == 0
        assert spawned.is_alive()
        gate.set()
        spawned.join(HANG)

    def test_its_end_leaves_the_next_thread_of_its_name(self, reg, gate):
        """The name is free, and the end of the thread drops no other entry."""
        first_may_end = threading.Event()
        first = reg.spawn(first_may_end.wait, name="t")
        reg.unregister(first)
        second = reg.spawn(gate.wait, name="t")
        first_may_end.set()
        first.join(HANG)

        assert [one.thread for one in reg.active()] == [second]

    def test_it_counts_from_the_first_moment(self, reg):
        """A thread can be let go before it has run a line."""
        gate = threading.Event()
        for _ in range(100):
            spawned = reg.spawn(gate.wait, name="t")
            assert reg.unregister(spawned) is True
            assert reg.active() == ()
        gate.set()

    def test_its_crash_is_reported_all_the_same(self, reg, gate):
        """A thread that was let go reports its crash."""
        box = queue.SimpleQueue()
        reg.subscribe(box)

        def crash():
            gate.wait(HANG)
            raise ValueError("boom")

        reg.unregister(reg.spawn(crash, name="t"))
        gate.set()

        assert box.get(timeout=HANG).path == "t"

    def test_a_thread_that_is_not_tracked_here(self, reg, whole, gate):
        """It returns False for a thread that has ended, that is another registry's, or
        that is unknown.
        """
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
        """The threads of a tree are refused: only the tree can let them go."""
        launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))
        for one in whole.active():
            with pytest.raises(otpy.Refusal, match="belongs to a tree"):
                whole.unregister(one.thread)
        assert "app/a" in names(whole.active())

    def test_no_thread_at_all(self, reg):
        """An argument that is no thread raises SpecError."""
        with pytest.raises(otpy.SpecError, match="thread = 't'"):
            reg.unregister("t")
