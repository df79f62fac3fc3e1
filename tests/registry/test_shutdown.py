"""``shutdown_all`` of a private registry: its budget, its numbers, its callers."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import threading

import attrs
import pytest
import structlog

import otpy
from otpy.registry import ShutdownStats, ThreadRegistry
from otpy.registry.shutdown import Shutdown
from otpy.runtime import stacks, threads
from tests.helpers import HANG, wait_until
from tests.registry.kit import SOON, by_name, names, raiser, side_by_side


class TestShutdown:
    """``shutdown_all`` of a private registry."""

    def test_all_are_asked_before_any_is_waited_for(self, reg):
        """All threads see the request before the call waits for any of them."""
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
        """Ended threads are joined, others have timed out, and of these only daemons
        are orphaned.
        """
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
        """With a budget of 0 the call returns at once, and names all threads."""
        reg.spawn(gate.wait, name="t")
        stats = reg.shutdown_all(0)

        assert by_name(stats) == ((), ("t",), ())
        assert stats.duration < SOON

    def test_afterwards_nothing_is_spawned(self, reg):
        """After it ``spawn`` is refused, and ``wait_shutdown`` returns at once."""
        assert reg.shutdown_requested is False
        reg.shutdown_all()

        assert reg.shutdown_requested is True
        with pytest.raises(otpy.NotAlive, match="t: shutdown_all has been called"):
            reg.spawn(print, name="t")
        assert reg.wait_shutdown() is True

    def test_it_is_idempotent(self, reg, gate):
        """A second call waits again with its own budget, and returns what it saw."""
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

    def test_many_calls_at_once(self, reg):
        """All calls wait, and return the same names."""
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

    def test_a_tracked_thread_may_call(self, reg):
        """The call skips the calling thread, and waits for the others."""
        box = queue.SimpleQueue()
        reg.spawn(reg.wait_shutdown, name="other")
        reg.spawn(lambda: box.put(reg.shutdown_all(HANG)), name="caller").join(HANG)
        stats = box.get(timeout=HANG)

        assert by_name(stats) == (("other",), (), ())
        assert stats.duration < SOON

    def test_a_call_from_outside_waits_for_a_tracked_caller(self, reg, monkeypatch):
        """A thread that waits in a call of its own is waited for like others."""
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

    def test_tracked_threads_that_call_at_once_do_not_wait_for_each_other(self, reg):
        """The earlier call waits for the later ones; no call waits until its budget is
        over.
        """
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

    def test_a_spawn_during_the_shutdown_is_refused_or_waited_for(self):
        """However many threads spawn meanwhile, no spawned thread is overlooked."""
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

    def test_a_spawn_that_was_admitted_is_waited_for(self, reg, monkeypatch):
        """The door closes after a spawn that is under way, not before."""
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

    def test_a_spawn_after_the_look_is_refused(self, reg, monkeypatch):
        """No spawn comes between the look at the threads and the flag."""
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
        """A thread that ends in the moment of the request is counted, too."""
        look, spawned = Shutdown.look, reg.spawn(reg.wait_shutdown, name="t")

        def slow_look(call, entries):
            spawned.join(0.1)
            look(call, entries)

        monkeypatch.setattr(Shutdown, "look", slow_look)

        assert by_name(reg.shutdown_all(HANG)) == (("t",), (), ())

    def test_of_two_tracked_callers_only_the_later_one_skips_the_other(self, reg, gate):
        """The order of the list decides, not that of their looks at each other."""
        for name in "ab":
            reg.spawn(gate.wait, name=name)
        first, second, outsider = (Shutdown(reg._calls, HANG) for _ in range(3))
        first.caller, second.caller = reg._entries()
        reg._calls += [first, second, outsider]
        for call in (second, first, outsider):
            call.queue_up()
        reg._calls.clear()

        assert (first.earlier, second.earlier, outsider.earlier) == ([], [first], [])

    def test_a_call_in_the_list_has_its_caller(self, reg, monkeypatch):
        """A call knows its caller before other calls can see it.

        Otherwise two calls could wait for each other.
        """
        look, visible = Shutdown.look, []

        def look_and_note(call, entries):
            visible.append(call in reg._calls)
            look(call, entries)

        monkeypatch.setattr(Shutdown, "look", look_and_note)
        reg.shutdown_all(HANG)

        assert visible == [False]

    def test_a_thread_that_the_caller_is_about_to_start_is_not_waited_for(self, reg):
        """A signal handler may call in the middle of ``spawn``.

        The thread does not start before the handler returns.
        """
        role = threads.Role.SPAWNED
        entry = threads.enlist(
            lambda: None, name="t", role=role, purpose="", owner=reg, daemon=False
        )
        stats = reg.shutdown_all(HANG)
        threads.launch(entry)

        assert by_name(stats) == ((), ("t",), ())
        assert stats.duration < SOON

    def test_a_thread_that_is_about_to_start_is_waited_for(self, reg, monkeypatch):
        """A thread that was admitted and does not run yet is waited for."""
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
        """A wrong *timeout* raises SpecError, and nothing is shut down."""
        with pytest.raises(
            otpy.SpecError, match=r"<registry>: timeout = .*: expected a finite number"
        ):
            reg.shutdown_all(timeout)
        assert reg.shutdown_requested is False

    def test_a_budget_beyond_all_clocks(self, reg):
        """A budget that no clock can hold means to wait until all have ended."""
        reg.spawn(reg.wait_shutdown, name="t")

        assert by_name(reg.shutdown_all(1e300)) == (("t",), (), ())

    def test_wait_shutdown(self, reg):
        """It returns whether ``shutdown_all`` has been called; the call wakes all
        waiters.
        """
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
        """A wrong *timeout* of ``wait_shutdown`` raises SpecError."""
        with pytest.raises(otpy.SpecError, match="<registry>: timeout"):
            reg.wait_shutdown(timeout)

    def test_as_a_context_manager(self):
        """Leaving the block shuts down and waits, also by an exception."""
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

    def test_a_context_manager_logs_what_it_leaves(self, gate, monkeypatch):
        """The caller does not get the stats, so the names of the threads are logged."""
        monkeypatch.setattr(ThreadRegistry.shutdown_all, "__defaults__", (0.05,))
        with structlog.testing.capture_logs() as logs, ThreadRegistry() as reg:
            reg.spawn(gate.wait, name="t")

        assert logs == [{"event": "threads_left", "log_level": "error", "names": ["t"]}]
        gate.set()
        reg.shutdown_all(HANG)

    def test_an_interrupt_while_it_waits(self, reg, gate, monkeypatch):
        """An interrupted call leaves nothing behind that would confuse the next one."""
        reg.spawn(gate.wait, name="t")
        with monkeypatch.context() as patch:
            patch.setattr(threads, "join_all", lambda *args: raiser(KeyboardInterrupt())())
            with pytest.raises(KeyboardInterrupt):
                reg.shutdown_all(HANG)

        assert reg._calls == []
        assert reg.shutdown_requested

    def test_an_interrupted_wait_takes_no_thread_for_dead(self, reg, gate):
        """CPython before 3.13 takes a thread for dead whose join is interrupted; the
        registry does not.
        """
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
