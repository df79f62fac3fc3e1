"""Stalls, hand-over of state, waits before restarts and detaching, in running trees."""

import contextlib
import gc
import pathlib
import queue
import socket
import threading

import pytest

from otpy import (
    Backoff,
    ChildState,
    ExitKind,
    Fenced,
    NotAlive,
    dynamic_supervisor,
    supervisor,
    thread,
)
from otpy.reports import ChildTerminated, Progress, Stalled, Unstopped
from otpy.runtime import threads
from otpy.runtime.threads import ThreadState
from otpy.runtime.waiting import SystemClock
from tests.helpers import HANG, ManualClock, Puppet, wait_until

SOON = 0.05
"""A heartbeat in seconds, short enough to wait for."""


def idle(ctx):
    ctx.wait_stop()


def silent(ctx):
    """Stall once, then live."""
    if ctx.incarnation > 1:
        ctx.check_in(allow=3600)
    ctx.wait_stop()


def in_child(life, function):
    """Run *function* in the child's thread and return what it returns, or raises."""
    said = queue.SimpleQueue()

    def run():
        try:
            said.put(function())
        except BaseException as error:
            said.put(error)

    life.do(run)
    return said.get(timeout=HANG)


def only_child(app):
    (info,) = app.snapshot().children
    return info


class TestStalls:
    def test_a_silent_child_is_found_and_replaced(self, launch, recorder):
        """Reported with its stack, judged as STALLED, restarted; the replacement knows the reason."""
        reasons = queue.SimpleQueue()

        def worker(ctx):
            reasons.put(ctx.last_exit)
            ctx.ready()
            silent(ctx)

        launch(supervisor("app", children=[thread(worker, id="a", ready=True, heartbeat=SOON)]))
        stalled = recorder.wait_for(Stalled, "app/a")
        ended = recorder.wait_for(ChildTerminated, "app/a")
        recorder.wait_for(Progress, "app/a", 2)

        assert "ctx.wait_stop()" in stalled.stack
        assert (stalled.reason.kind, ended.reason.kind) == (ExitKind.STALLED, ExitKind.STALLED)
        assert [reasons.get(timeout=HANG) for _ in range(2)] == [None, ended.reason]

    @pytest.mark.parametrize("block", ["lock", "socket"])
    def test_a_child_that_is_blocked_in_c_is_replaced(self, launch, recorder, block):
        """It cannot be interrupted there: it is given up, and its late return changes nothing."""
        lock, (ours, theirs) = threading.Lock(), socket.socketpair()
        lock.acquire()
        wait, wake = {
            "lock": (lock.acquire, lock.release),
            "socket": (lambda: ours.recv(1), lambda: theirs.send(b"x")),
        }[block]
        late = queue.SimpleQueue()

        def worker(ctx):
            if ctx.incarnation > 1:
                silent(ctx)
                return
            ctx.check_in("first")
            try:
                wait()
                ctx.check_in("too late")
            finally:
                late.put(ctx.running)

        app = launch(
            supervisor("app", children=[thread(worker, id="a", heartbeat=SOON, shutdown=SOON)])
        )
        recorder.wait_for(Unstopped, "app/a")
        recorder.wait_for(Progress, "app/a", 2)
        (stray,) = [one for one in threads.entries() if one.state is ThreadState.UNSTOPPED]
        told = len(recorder.of(ChildTerminated))
        wake()
        stray.thread.join(HANG)
        ours.close()
        theirs.close()

        assert late.get(timeout=HANG) is False
        assert (told, len(recorder.of(ChildTerminated))) == (1, 1)
        assert only_child(app).incarnation == 2
        assert app.find("app").snapshot().children[0].state is ChildState.RUNNING

    def test_it_is_found_while_a_sibling_takes_for_ever_to_start(self, launch, recorder):
        """No thread waits for another one."""
        gate = threading.Event()

        def slow(ctx):
            gate.wait(HANG)
            ctx.ready()
            ctx.wait_stop()

        children = [thread(silent, id="a", heartbeat=SOON)]
        app = launch(supervisor("app", children=children))
        starter = threading.Thread(
            target=app.start_child, args=(thread(slow, id="slow", ready=True),)
        )
        starter.start()
        wait_until(lambda: len(app.which_children()) == 2)
        recorder.wait_for(Stalled, "app/a")
        recorder.wait_for(Progress, "app/a", 2)

        assert app.which_children()[1].state is ChildState.STARTING
        gate.set()
        starter.join(HANG)

    def test_it_is_found_while_the_tree_is_still_starting(self, recorder, launch):
        """And restarted when all are up."""
        up = threading.Event()

        def slow(ctx):
            recorder.wait_for(Stalled, "app/a")
            up.set()
            ctx.ready()
            ctx.wait_stop()

        children = [thread(silent, id="a", heartbeat=SOON), thread(slow, id="slow", ready=True)]
        launch(supervisor("app", children=children))

        assert up.is_set()
        assert recorder.wait_for(Progress, "app/a", 2).incarnation == 2

    def test_who_checks_in_lives(self, launch, recorder):
        """Through many heartbeats, beside one that does not."""
        beats = threading.Semaphore(0)

        def lively(ctx):
            while ctx.running:
                ctx.check_in()
                beats.release()
                ctx.sleep(SOON / 5)

        app = launch(supervisor("app", children=[thread(lively, id="a", heartbeat=HANG / 4)]))
        for _ in range(20):
            assert beats.acquire(timeout=HANG)

        assert only_child(app).heartbeat_age < HANG / 4
        assert recorder.of(Stalled) == []

    def test_allow_extends_the_limit_once(self, launch, recorder):
        """The next check-in is due at the usual time again."""
        clock = ManualClock()
        app = launch(
            supervisor("app", children=[(puppet := Puppet()).spec("a", heartbeat=SOON)]),
            clock=clock,
        )
        core = app._tree.directory["app"]
        life = puppet.next()
        ctx = life.ctx
        in_child(life, lambda: ctx.check_in(allow=3600))
        beat, until = ctx.pulse()
        assert until == beat + 3600
        in_child(life, ctx.check_in)
        beat, until = ctx.pulse()

        assert until == beat + SOON
        clock.advance(SOON)
        app.count_children()  # it looks at the clock when it gets a message
        assert recorder.wait_for(Stalled, "app/a").incarnation == life.incarnation
        assert core.alive

    def test_an_allowance_ends_with_the_next_check_in_even_if_that_comes_at_once(self, launch):
        """A clock may stand still between two lines."""

        class Still(SystemClock):
            monotonic = staticmethod(lambda: 1000.0)

        launch(
            supervisor("app", children=[(puppet := Puppet()).spec("a", heartbeat=10.0)]),
            clock=Still(),
        )
        life = puppet.next()
        in_child(life, lambda: (life.ctx.check_in(allow=3600), life.ctx.check_in()))

        assert life.ctx.pulse() == (1000.0, 1010.0)

    @pytest.mark.parametrize("allow", [0, -1, float("inf"), float("nan"), "60", True])
    def test_a_bad_allowance(self, launch, allow):
        """The child's own mistake."""
        launch(supervisor("app", children=[(puppet := Puppet()).spec("a", heartbeat=3600)]))
        life = puppet.next()

        assert isinstance(in_child(life, lambda: life.ctx.check_in(allow=allow)), ValueError)

    def test_who_is_not_up_is_not_watched(self, launch, recorder):
        """A start has its own limit, and so has a stop."""
        gate, asked = threading.Event(), threading.Event()

        def worker(ctx):
            if ctx.incarnation == 1:
                gate.wait(HANG)
                ctx.ready()
                ctx.wait_stop()
                asked.set()
                gate.wait(HANG)

        app = launch(supervisor("app"))
        spec = thread(
            worker, id="a", heartbeat=SOON, ready=True, shutdown="infinity", restart="temporary"
        )
        starter = threading.Thread(target=app.start_child, args=(spec,))
        starter.start()
        wait_until(lambda: app.which_children())
        app.start_child(thread(silent, id="watch", heartbeat=2 * SOON))
        recorder.wait_for(
            Stalled, "app/watch"
        )  # by now "a" has been silent for longer than its heartbeat

        assert recorder.of(Stalled, "app/a") == []
        gate.set()
        starter.join(HANG)
        assert asked.wait(HANG)  # it stalls now, once
        recorder.wait_for(ChildTerminated, "app/a")
        assert len(recorder.of(Stalled, "app/a")) == 1

    def test_steps_of_the_wall_clock_change_nothing(self, launch, recorder):
        """Deadlines are monotonic."""

        class Stepping(SystemClock):
            @staticmethod
            def wall():
                steps.append(3600.0)
                return 1e9 + sum(steps)

        steps = []
        children = [
            (puppet := Puppet()).spec("a", heartbeat=600.0),
            thread(silent, id="b", heartbeat=SOON),
        ]
        app = launch(supervisor("app", children=children), clock=Stepping())
        recorder.wait_for(Progress, "app/b", 2)
        life = puppet.next()

        assert sum(steps) > 600
        assert recorder.of(Stalled, "app/a") == []
        assert (life.ctx.running, app.alive) == (True, True)

    @pytest.mark.parametrize("said_with", [(), ("too late",)])
    def test_a_fenced_child_may_not_check_in(self, launch, recorder, said_with):
        """An exception says so."""
        gate, up, said = threading.Event(), threading.Event(), queue.SimpleQueue()

        def stuck(ctx):
            while not gate.is_set():
                try:
                    up.set()
                    gate.wait(HANG)
                except BaseException:
                    continue
            try:
                ctx.check_in(*said_with)
            except BaseException as error:
                said.put(error)

        app = launch(supervisor("app", children=[thread(stuck, id="a", shutdown="brutal_kill")]))
        assert up.wait(HANG)
        app.terminate_child("a")
        recorder.wait_for(Unstopped, "app/a")
        gate.set()

        assert isinstance(said.get(timeout=HANG), Fenced)


class TestState:
    def child(self, launch, **options):
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a", **options)]))
        return app, puppet

    def test_it_survives_a_crash(self, launch):
        """None at first, then the last that was saved."""
        _, puppet = self.child(launch)
        first = puppet.next()
        assert in_child(first, lambda: first.ctx.state) is None
        in_child(
            first,
            lambda: (first.ctx.check_in(1), first.ctx.check_in({"line": 2}), first.ctx.check_in()),
        )
        first.crash()
        second = puppet.next()

        assert in_child(second, lambda: second.ctx.state) == {"line": 2}
        second.crash()
        third = puppet.next()
        assert in_child(third, lambda: third.ctx.state) == {"line": 2}

    def test_it_is_saved_as_it_was(self, launch):
        """Neither the child that saved it nor the one that got it changes it afterwards."""
        _, puppet = self.child(launch)
        first, value = puppet.next(), [[1]]
        in_child(
            first,
            lambda: (first.ctx.check_in(value), value[0].append(2), first.ctx.state[0].append(3)),
        )
        first.crash()
        second = puppet.next()
        in_child(second, lambda: second.ctx.state[0].append(4))
        second.crash()
        third = puppet.next()

        assert in_child(third, lambda: third.ctx.state) == [[1]]

    @pytest.mark.parametrize("value", [1, 1.5, "text", b"bytes", True, None, 1j])
    def test_plain_values_are_not_copied(self, launch, value):
        """They cannot change."""
        _, puppet = self.child(launch)
        life = puppet.next()
        in_child(life, lambda: life.ctx.check_in(value))

        assert life.ctx.saved is value

    def test_another_way_to_copy(self, launch):
        """What it returns is saved, and handed over as it is."""
        _, puppet = self.child(launch, snapshot=tuple)
        first = puppet.next()
        in_child(first, lambda: first.ctx.check_in([1, 2]))
        first.crash()
        second = puppet.next()

        assert in_child(second, lambda: second.ctx.state) == (1, 2)

    def test_no_copy(self, launch):
        """The very object."""
        _, puppet = self.child(launch, snapshot=None)
        first, value = puppet.next(), [1]
        in_child(first, lambda: first.ctx.check_in(value))
        first.crash()
        second = puppet.next()

        assert in_child(second, lambda: second.ctx.state) is value

    def test_a_copy_that_fails_is_the_childs_own_exception(self, launch, recorder):
        """And what was saved before stays."""
        _, puppet = self.child(launch)
        first = puppet.next()
        in_child(first, lambda: first.ctx.check_in("before"))
        first.do(lambda: first.ctx.check_in(threading.Lock()))
        second = puppet.next()

        assert isinstance(recorder.wait_for(ChildTerminated, "app/a").reason.exception, TypeError)
        assert in_child(second, lambda: second.ctx.state) == "before"

    def test_it_survives_a_stall(self, launch, recorder):
        """Also of a child that could not be stopped, which cannot save any more."""
        gate, states = threading.Event(), queue.SimpleQueue()

        def worker(ctx):
            states.put(ctx.state)
            if ctx.incarnation == 1:
                ctx.check_in("saved")
                with contextlib.suppress(BaseException):  # the one interrupt
                    ctx.ready()
                    gate.wait(HANG)
                gate.wait(HANG)
            ctx.ready()
            silent(ctx)

        launch(
            supervisor(
                "app", children=[thread(worker, id="a", ready=True, heartbeat=SOON, shutdown=0)]
            )
        )
        recorder.wait_for(Unstopped, "app/a")
        gate.set()

        assert [states.get(timeout=HANG) for _ in range(2)] == [None, "saved"]

    def test_it_survives_a_group_restart_and_restart_child(self, launch):
        """By a call, or by its supervisor."""
        one, other = Puppet(), Puppet()
        app = launch(
            supervisor("app", strategy="one_for_all", children=[one.spec("a"), other.spec("b")])
        )
        first = one.next()
        in_child(first, lambda: first.ctx.check_in("saved"))
        other.next().crash()
        second = one.next()
        assert in_child(second, lambda: second.ctx.state) == "saved"
        app.terminate_child("a")
        app.restart_child("a")
        third = one.next()

        assert in_child(third, lambda: third.ctx.state) == "saved"

    def test_it_goes_with_the_child(self, launch):
        """A new child of the same id begins with nothing."""
        app, puppet = self.child(launch)
        first = puppet.next()
        in_child(first, lambda: first.ctx.check_in("saved"))
        app.terminate_child("a")
        app.delete_child("a")
        app.start_child(puppet.spec("a"))
        second = puppet.next()

        assert in_child(second, lambda: second.ctx.state) is None

    def test_it_goes_with_the_supervisor(self, launch):
        """A supervisor that is restarted begins with new children; what must survive that belongs into a file."""
        puppet = Puppet()
        launch(
            supervisor("app", children=[supervisor("s", intensity=0, children=[puppet.spec("a")])])
        )
        first = puppet.next()
        in_child(first, lambda: first.ctx.check_in("saved"))
        first.crash()
        second = puppet.next()

        assert (second.incarnation, in_child(second, lambda: second.ctx.state)) == (1, None)


class TestWaits:
    def test_the_wait_is_a_state(self, launch, recorder):
        """With the time that is left; restart_child ends it at once."""
        puppet = Puppet()
        app = launch(
            supervisor("app", children=[puppet.spec("a", backoff=Backoff(3600, 3600, jitter=0))])
        )
        puppet.next().crash()
        recorder.wait_for(ChildTerminated, "app/a")
        info = only_child(app)

        assert (info.state, 3500 < info.due <= 3600) == (ChildState.RESTARTING, True)
        app.restart_child("a")
        assert puppet.next().incarnation == 2
        assert only_child(app).restarts == 0

    def test_it_is_over_when_it_is_due(self, launch, recorder):
        """By itself."""
        puppet = Puppet()
        launch(
            supervisor(
                "app", intensity=9, children=[puppet.spec("a", backoff=Backoff(0.001, 0.002))]
            )
        )
        for _ in range(5):
            puppet.next().crash()

        assert puppet.next().incarnation == 6

    def test_a_stop_does_not_wait_for_it(self, launch, recorder):
        """The tree ends at once."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a", backoff=Backoff(3600, 3600))]))
        puppet.next().crash()
        recorder.wait_for(ChildTerminated, "app/a")

        assert app.stop().stopped == ()

    def test_the_same_seed_waits_the_same(self, launch):
        """And another one does not, nor does none."""

        class Still(SystemClock):
            monotonic = staticmethod(lambda: 0.0)

        dues = []
        for seed in (7, 7, 8, None, None):
            puppet = Puppet()
            children = [puppet.spec("a", backoff=Backoff(1000, 2000, jitter=1.0))]
            app = launch(supervisor("app", children=children), seed=seed, clock=Still())
            puppet.next().crash()
            wait_until(lambda app=app: only_child(app).due)
            dues.append(only_child(app).due)
            app.stop()

        assert dues[0] == dues[1]
        assert len(set(dues)) == 4


class TestDetach:
    def test_children_run_on(self, launch):
        """The supervisor ends; its children are in the record as detached, until they end."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a")]))
        life = puppet.next()
        report = app.detach()

        assert (report.detached, report.stopped, report.reason.detail) == (
            ("app/a",),
            (),
            "detached",
        )
        assert not app.alive
        assert app.stop() == app.detach() == report
        (entry,) = [one for one in threads.entries() if one.thread.name == "app/a"]
        assert (entry.state, life.ctx.running) == (ThreadState.DETACHED, True)
        entry.ask()
        assert life.asked.wait(HANG)
        entry.thread.join(HANG)

    def test_a_context_is_of_use_still(self, launch):
        """Checking in and saving do no harm; the supervisor is gone, and says so."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a", heartbeat=3600)]))
        life = puppet.next()
        app.detach()

        assert in_child(life, lambda: (life.ctx.check_in([1]), life.ctx.state)[1]) == [1]
        assert isinstance(in_child(life, life.ctx.supervisor.which_children), NotAlive)
        life.leave()

    def test_on_stop_is_called_where_no_thread_can_be_started_any_more(self, launch, monkeypatch):
        """As when the interpreter exits: its tree has ended, and has no thread that could do it either."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a")]))
        life = puppet.next()
        app.detach()
        [entry] = threads.entries()

        def refuse(*args, **options):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        with monkeypatch.context() as patch:
            patch.setattr(threads, "spawn", refuse)
            entry.ask()
        assert life.asked.wait(HANG)
        entry.thread.join(HANG)

    def test_the_crash_of_a_detached_child(self, launch, recorder):
        """Once, with its exception."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a")]))
        life = puppet.next()
        app.detach()
        life.crash()
        thread_name, exception, text = recorder.wait_for(ChildTerminated, "app/a")

        assert (thread_name, str(exception)) == ("app/a", "ordered to crash")
        assert "RuntimeError: ordered to crash" in text

    def test_a_nested_supervisor_stays_down(self, launch, recorder):
        """Its parent does not restart it, and goes on; a crash that comes later is reported."""
        puppet, other = Puppet(), Puppet()
        nested = supervisor(
            "s", children=[puppet.spec("a"), supervisor("deep", children=[puppet.spec("b")])]
        )
        app = launch(supervisor("app", children=[nested, other.spec("c")]))
        lives = {life.ctx.id: life for life in (puppet.next(), puppet.next())}
        report = app.find("app/s").detach()

        assert set(report.detached) == {"app/s/a", "app/s/deep/b"}
        assert [one.state for one in app.which_children()] == [
            ChildState.UNDEFINED,
            ChildState.RUNNING,
        ]
        lives["a"].crash()
        recorder.wait_for(ChildTerminated, "app/s/a")
        lives["b"].leave()
        app.restart_child("s")
        assert {puppet.next().ctx.path, puppet.next().ctx.path} == {"app/s/a", "app/s/deep/b"}

    def test_from_inside(self, launch):
        """A child may end its own supervisor this way, and go on."""
        puppet = Puppet()
        launch(supervisor("app", children=[supervisor("s", children=[puppet.spec("a")])]))
        life = puppet.next()

        assert in_child(life, lambda: life.ctx.supervisor.detach().detached) == ("app/s/a",)
        assert life.ctx.running
        life.leave()


def descriptors():
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_restarts_leave_nothing(launch, recorder, count):
    """Threads, descriptors and objects are as many as before, but for the child and its supervisor's spare thread."""
    done = threading.Event()

    def crash(ctx):
        ctx.check_in([ctx.incarnation])
        if ctx.incarnation <= count:
            raise ValueError
        ctx.check_in(allow=3600)
        done.set()
        ctx.wait_stop()

    app = launch(dynamic_supervisor("app", intensity=10**6), reports=None)
    app.start_child(thread(idle, id="x"))
    gc.collect()
    before = (len(threading.enumerate()), descriptors(), len(gc.get_objects()))
    app.start_child(thread(crash, id="a", heartbeat=600.0))
    assert done.wait(HANG * 2)
    core = app._tree.directory["app"]

    def is_flat():
        gc.collect()
        after = (len(threading.enumerate()), descriptors(), len(gc.get_objects()))
        return after[0] == before[0] + 2 and after[1] == before[1] and after[2] < before[2] + 1000

    wait_until(is_flat)
    assert (len(core.timers), len(core.timers._heap) < 200) == (1, True)
