"""Trees that run: the calls of the handle, the start, and its failures."""

import queue
import threading
import time

import pytest

import otpy
from otpy import (
    AlreadyPresent,
    AlreadyStarted,
    Backoff,
    CallTimeout,
    ChildState,
    Counts,
    ExitKind,
    Fatal,
    MaxChildren,
    NotAlive,
    NotFound,
    SpecError,
    StartError,
    StillRestarting,
    StillRunning,
    WouldDeadlock,
    dynamic_supervisor,
    supervisor,
    thread,
)
from otpy.reports import Cause, ChildTerminated, Progress, ShutdownError, StartFailed
from tests.helpers import HANG, ManualClock, Puppet, Recorder, wait_until


def idle(ctx):
    ctx.wait_stop()


def never_ready(ctx):
    ctx.wait_stop()


def test_a_supervisor_without_limit_goes_on_restarting(launch, recorder):
    """With intensity="infinity" a supervisor restarts far more often than by default.

    Then start_child refuses a child without a backoff.
    """

    def fail(ctx):
        raise RuntimeError("again")

    app = launch(
        supervisor(
            "app", intensity="infinity", children=[thread(fail, backoff=Backoff(0.001, 0.001))]
        )
    )
    recorder.wait_for(ChildTerminated, "app/fail", count=20)

    assert app.snapshot().budget_left is None
    assert app.snapshot().intensity == "infinity"
    with pytest.raises(SpecError, match="app/idle: backoff = None: expected a Backoff"):
        app.start_child(thread(idle))


class TestStart:
    """``start`` and its failures."""

    def test_it_returns_when_the_whole_tree_is_up(self, launch, recorder):
        """``start`` returns when all children are up, nested ones as well, depth first,
        in order.
        """
        tree = supervisor(
            "app",
            children=[
                thread(idle, id="a"),
                supervisor(
                    "s",
                    children=[
                        thread(idle, id="b"),
                        supervisor("t", children=[thread(idle, id="c")]),
                    ],
                ),
                thread(idle, id="d"),
            ],
        )
        launch(tree)
        wait_until(lambda: len(recorder.reports) == 6)

        assert [report.path for report in recorder.reports] == [
            "app/a",
            "app/s/b",
            "app/s/t/c",
            "app/s/t",
            "app/s",
            "app/d",
        ]
        assert {report.cause for report in recorder.reports} == {Cause.INIT}

    def test_one_spec_may_be_started_twice(self, launch):
        """Two trees of one spec are independent of each other."""
        tree = supervisor("app", children=[thread(idle, id="a")])
        first, second = launch(tree), launch(tree)
        first.stop()

        assert (first.alive, second.alive) == (False, True)
        assert second.which_children()[0].state is ChildState.RUNNING

    def test_a_failure_stops_what_was_started_and_names_the_leaf(self, recorder):
        """The error has the path of the child that failed, and its exception as the
        cause.
        """
        order, boom = [], ValueError("boom")

        def note(ctx):
            ctx.wait_stop()
            order.append(ctx.id)

        def fail(ctx):
            raise boom

        tree = supervisor(
            "app",
            children=[
                thread(note, id="a"),
                supervisor(
                    "s",
                    children=[
                        thread(note, id="b"),
                        thread(fail, id="c", ready=True),
                        thread(note, id="d"),
                    ],
                ),
            ],
        )
        with pytest.raises(StartError) as caught:
            otpy.start(tree, reports=recorder, log=False)

        assert (caught.value.path, caught.value.__cause__) == ("app/s/c", boom)
        assert order == ["b", "a"]
        assert [report.path for report in recorder.of(StartFailed)] == ["app/s/c", "app/s"]

    def test_it_may_take_only_so_long(self):
        """After *timeout* the start fails. The error names the child that is not up."""
        tree = supervisor(
            "app", children=[supervisor("s", children=[thread(never_ready, id="slow", ready=True)])]
        )

        with pytest.raises(StartError, match=r"app/s/slow did not start: not up after 0.05 s"):
            otpy.start(tree, timeout=0.05, log=False)

    def test_a_child_that_is_not_ready_in_time(self):
        """start_timeout is the limit of one child."""
        tree = supervisor(
            "app", children=[thread(never_ready, id="slow", ready=True, start_timeout=0.01)]
        )

        with pytest.raises(StartError) as caught:
            otpy.start(tree, log=False)
        assert caught.value.path == "app/slow"
        assert isinstance(caught.value.__cause__, TimeoutError)


class TestCalls:
    """The calls of the handle and their refusals."""

    def test_the_walk_through_the_calls(self, launch):
        """Each of start, terminate, restart and delete has its result and its refusals."""
        app = launch(supervisor("app"))
        spec = thread(idle, id="a")

        info = app.start_child(spec)
        assert (info.path, info.state, info.incarnation) == ("app/a", ChildState.RUNNING, 1)
        with pytest.raises(AlreadyStarted):
            app.start_child(spec)
        with pytest.raises(StillRunning):
            app.delete_child("a")
        assert app.get_childspec("a") == spec
        assert app.terminate_child("a") is None
        assert app.terminate_child("a") is None
        with pytest.raises(AlreadyPresent):
            app.start_child(spec)
        assert app.restart_child("a").incarnation == 2
        with pytest.raises(StillRunning):
            app.restart_child("a")
        app.terminate_child("a")
        assert app.delete_child("a") is None
        for call in (app.terminate_child, app.restart_child, app.delete_child, app.get_childspec):
            with pytest.raises(NotFound, match="app/a"):
                call("a")
        with pytest.raises(SpecError):
            app.start_child(idle)

    def test_counts_and_lists(self, launch):
        """which_children lists the children in start order, and count_children counts
        them.
        """
        app = launch(
            supervisor(
                "app", children=[thread(idle, id="a"), supervisor("s"), thread(idle, id="b")]
            )
        )
        app.terminate_child("a")

        assert [(info.id, info.state.value) for info in app.which_children()] == [
            ("a", "undefined"),
            ("s", "running"),
            ("b", "running"),
        ]
        assert app.count_children() == Counts(specs=3, active=2, supervisors=1, workers=2)

    def test_a_start_that_fails(self, launch):
        """start_child forgets the child, restart_child keeps it.

        The caller gets the exception.
        """
        puppet = Puppet()
        app = launch(supervisor("app"))
        puppet.failures.put(ValueError("no"))
        with pytest.raises(StartError) as caught:
            app.start_child(puppet.spec("a", ready=True))
        assert str(caught.value.__cause__) == "no"
        assert app.which_children() == ()

        app.start_child(puppet.spec("a", ready=True))
        app.terminate_child("a")
        puppet.failures.put(ValueError("again"))
        with pytest.raises(StartError):
            app.restart_child("a")
        assert app.which_children()[0].state is ChildState.UNDEFINED

    def test_a_restarting_child(self, launch, recorder):
        """A child that is started again is shown as starting."""
        gate = threading.Event()

        def fails_slowly(ctx):
            if ctx.incarnation == 1:
                ctx.ready()
                raise ValueError("crash")
            gate.wait(HANG)
            raise ValueError("no start")

        app = launch(supervisor("app", intensity=1, period=60.0))
        app.start_child(thread(fails_slowly, id="a", ready=True))
        recorder.wait_for(ChildTerminated, "app/a")
        assert app.which_children()[0].state is ChildState.STARTING
        gate.set()
        wait_until(lambda: not app.alive)

    def test_still_restarting(self, launch, recorder):
        """Between two attempts a child refuses a restart. It can be terminated."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a", ready=True)], intensity=100_000))
        puppet.always_fails = ValueError("no")
        puppet.next().crash()
        recorder.wait_for(StartFailed, "app/a", count=3)

        def refusals():
            try:
                app.restart_child("a")
            except (StillRestarting, StillRunning) as error:
                return isinstance(error, StillRestarting)

        wait_until(refusals)
        app.terminate_child("a")
        assert app.which_children()[0].state is ChildState.UNDEFINED

    def test_calls_after_the_end(self, launch):
        """Every call raises NotAlive; ``stop`` returns the same report again."""
        app = launch(supervisor("app", children=[thread(idle, id="a")]))
        report = app.stop()

        assert app.stop() is report
        assert app.wait().kind is ExitKind.SHUTDOWN
        for call in (app.which_children, app.count_children, app.snapshot):
            with pytest.raises(NotAlive):
                call()

    def test_a_call_that_is_not_answered_in_time(self, launch):
        """The caller goes on. The call is served all the same."""
        app = launch(supervisor("app"))
        ready = threading.Event()

        def slow(ctx):
            ready.wait(HANG)
            ctx.ready()
            ctx.wait_stop()

        with pytest.raises(CallTimeout):
            app.start_child(thread(slow, id="a", ready=True), timeout=0.01)
        ready.set()
        wait_until(lambda: app.which_children()[0].state is ChildState.RUNNING)

    def test_a_slow_start_delays_nobody_else(self, launch):
        """Queries and other children are served while a child starts."""
        app = launch(supervisor("app"))
        ready = threading.Event()

        def slow(ctx):
            ready.wait(HANG)
            ctx.ready()
            ctx.wait_stop()

        caller = threading.Thread(
            target=app.start_child, args=(thread(slow, id="slow", ready=True),)
        )
        caller.start()
        wait_until(lambda: app.which_children())
        app.start_child(thread(idle, id="quick"))

        assert [info.state.value for info in app.which_children()] == ["starting", "running"]
        ready.set()
        caller.join(HANG)


class TestInside:
    """Calls from a child of the tree."""

    def ask(self, launch, question, **options):
        """Return what *question(ctx)* returns or raises in a child."""
        answers = queue.SimpleQueue()

        def target(ctx):
            try:
                answers.put(question(ctx))
            except Exception as error:
                answers.put(error)
            ctx.wait_stop()

        launch(
            supervisor(
                "app", children=[supervisor("s", children=[thread(target, id="a", **options)])]
            )
        )
        return answers.get(timeout=HANG)

    def test_a_child_may_manage_its_siblings(self, launch):
        """A child may start a sibling: its supervisor is not blocked."""
        assert (
            self.ask(launch, lambda ctx: ctx.supervisor.start_child(thread(idle, id="b")).path)
            == "app/s/b"
        )

    @pytest.mark.parametrize(
        "question",
        [
            lambda ctx: ctx.supervisor.stop(),
            lambda ctx: ctx.supervisor.wait(),
            lambda ctx: ctx.supervisor.terminate_child("a"),
        ],
    )
    def test_what_could_only_deadlock_is_refused(self, launch, question):
        """A child cannot stop its own tree, nor wait for its own end."""
        assert isinstance(self.ask(launch, question), WouldDeadlock)

    def test_a_child_cannot_wait_for_a_start_that_waits_for_it(self, launch):
        """A child that is not ready cannot start a sibling: the boot waits for the
        child.
        """
        answers = queue.SimpleQueue()

        def early(ctx):
            try:
                ctx.supervisor.start_child(thread(idle, id="b"))
            except WouldDeadlock as error:
                answers.put(error.path)
            ctx.ready()
            ctx.wait_stop()

        launch(supervisor("app", children=[thread(early, id="a", ready=True)]))
        assert answers.get(timeout=HANG) == "app/a"

    def test_a_helper_thread_may_stop_the_tree(self, launch):
        """A thread that a child has started does not keep the child from ending."""
        done = queue.SimpleQueue()

        def target(ctx):
            helper = threading.Thread(target=lambda: done.put(ctx.supervisor.stop()))
            helper.start()
            ctx.wait_stop()

        app = launch(supervisor("app", children=[thread(target, id="a")]))
        assert done.get(timeout=HANG).stopped == ("app/a",)
        assert not app.alive

    def test_fatal_ends_the_supervisor(self, launch):
        """A child that raises Fatal makes its supervisor give up."""
        puppet = Puppet()
        app = launch(supervisor("app", children=[puppet.spec("a")], intensity=100))
        puppet.next().crash(Fatal("disk gone"))

        assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED


class TestHandle:
    """What a handle shows, and how long it is valid."""

    def test_find(self, launch):
        """``find`` returns a nested supervisor by its path.

        The handle outlives restarts.
        """
        puppet = Puppet()
        storage = supervisor("storage", children=[puppet.spec("w")], intensity=0)
        app = launch(supervisor("app", children=[storage]))
        handle = app.find("app/storage")
        puppet.next().crash()
        second = puppet.next()
        wait_until(lambda: handle.alive)

        assert handle.which_children()[0].path == "app/storage/w"
        assert (second.incarnation, handle.path) == (1, "app/storage")
        assert "app/storage" in repr(handle)
        for path in ("app/nowhere", "storage", ""):
            with pytest.raises(NotFound):
                app.find(path)
        with pytest.raises(NotFound):
            handle.find("app")

    def test_a_nested_supervisor_that_is_stopped_comes_back(self, launch, recorder):
        """The parent restarts it, and terminate_child keeps it down.

        Its handle says so.
        """
        app = launch(supervisor("app", children=[supervisor("s", children=[thread(idle, id="a")])]))
        report = app.find("app/s").stop()
        assert report.stopped == ("app/s/a",)
        recorder.wait_for(Progress, "app/s", count=2)
        handle = app.find("app/s")
        app.terminate_child("s")

        assert not handle.alive
        for call in (handle.which_children, handle.stop, handle.wait):
            with pytest.raises(NotAlive):
                call()

    def test_snapshot(self, launch, recorder):
        """A snapshot has the whole subtree as values: states, incarnations, budgets."""
        puppet, clock = Puppet(), ManualClock()
        app = launch(
            supervisor(
                "app",
                children=[
                    supervisor("s", children=[puppet.spec("a"), thread(idle, id="b")]),
                    supervisor("t"),
                ],
            ),
            clock=clock,
        )
        puppet.next().crash()
        recorder.wait_for(Progress, "app/s/a", count=2)
        app.terminate_child("t")
        clock.advance(2.5)
        top = app.snapshot()
        s, t = top.children
        a, b = s.snapshot.children

        assert (top.path, top.budget_left, s.snapshot.budget_left, t.snapshot) == (
            "app",
            3,
            2,
            None,
        )
        assert (a.state, a.incarnation, a.restarts, a.age, a.due) == (
            ChildState.RUNNING,
            2,
            1,
            2.5,
            None,
        )
        assert (a.last_exit.kind, b.last_exit) == (ExitKind.CRASHED, None)

    def test_a_snapshot_takes_no_longer_than_it_may_in_all(self, launch, monkeypatch):
        """The supervisors are asked one after the other. Each has the rest of the time."""
        tree = supervisor(
            "app", children=[supervisor("s", children=[supervisor("t")]), supervisor("u")]
        )
        app, limits, call = launch(tree), [], otpy.Supervisor._call

        def slow_call(self, kind, timeout, **fields):
            limits.append(timeout)
            time.sleep(0.01)
            return call(self, kind, timeout, **fields)

        monkeypatch.setattr(otpy.Supervisor, "_call", slow_call)
        app.snapshot(HANG)

        assert len(limits) == 4
        assert all(limit <= HANG - 0.01 * number for number, limit in enumerate(limits))
        app.snapshot()
        assert limits[4:] == [None] * 4

    def test_subscribers(self, launch):
        """A handler gets the reports of its supervisor and below, until it
        unsubscribes.
        """
        puppet, all_of_it, part, box = Puppet(), Recorder(), Recorder(), queue.Queue()
        app = launch(
            supervisor(
                "app", children=[puppet.spec("a"), supervisor("s", children=[puppet.spec("b")])]
            )
        )
        app.subscribe(all_of_it)
        app.find("app/s").subscribe(part)
        app.subscribe(box)
        lives = {life.ctx.path: life for life in (puppet.next(), puppet.next())}
        lives["app/a"].crash()
        lives["app/s/b"].crash()
        all_of_it.wait_for(Progress, "app/s/b")
        all_of_it.wait_for(Progress, "app/a")
        part.wait_for(Progress, "app/s/b")
        app.unsubscribe(box)
        app.unsubscribe(all_of_it)

        assert part.names() == ["ChildTerminated app/s/b", "Progress app/s/b"]
        assert {box.get(timeout=HANG).path for _ in range(4)} == {"app/a", "app/s/b"}
        with pytest.raises(NotFound):
            app.unsubscribe(box)
        with pytest.raises(SpecError):
            app.subscribe(3)

    def test_wait(self, launch):
        """``wait`` returns None while the supervisor lives, and the reason afterwards."""
        app = launch(supervisor("app"))
        assert app.wait(0.01) is None
        app.stop()

        assert app.wait() == app.stop().reason

    def test_the_report_of_a_stop_says_how_long_it_took(self, launch):
        """``duration`` is in seconds, from the request to the end of the last child."""
        clock = ManualClock()
        puppet = Puppet(when_asked=lambda life: clock.advance(2.5))
        app = launch(supervisor("app", children=[puppet.spec("a")]), clock=clock)
        puppet.next()
        clock.advance(100.0)

        assert app.stop().duration == 2.5

    def test_a_context_manager(self):
        """The end of the block stops the tree, also if the block raises."""
        with pytest.raises(ZeroDivisionError), otpy.start(supervisor("app"), log=False) as app:
            raise ZeroDivisionError
        assert not app.alive

    @pytest.mark.parametrize("timeout", [float("nan"), "1", True])
    def test_a_bad_budget(self, launch, timeout):
        """A wrong timeout is refused before anything stops."""
        app = launch(supervisor("app"))
        with pytest.raises(SpecError):
            app.stop(timeout)
        assert app.alive


class TestDynamic:
    """Dynamic supervisors."""

    def test_children_come_and_go(self, launch):
        """No spec stays behind. An id can be used again at once."""
        app = launch(dynamic_supervisor("app", max_children=2))
        for _ in range(20):
            assert app.start_child(thread(idle, id="a")).incarnation == 1
            app.terminate_child("a")
        app.start_child(thread(idle, id="a"))
        app.start_child(thread(idle, id="b"))

        with pytest.raises(MaxChildren):
            app.start_child(thread(idle, id="c"))
        assert [info.id for info in app.which_children()] == ["a", "b"]

    def test_they_stop_side_by_side(self, launch):
        """Each child waits until all the others have been asked."""
        barrier = threading.Barrier(5)

        def meet(ctx):
            ctx.wait_stop()
            barrier.wait(HANG)

        app = launch(dynamic_supervisor("app"))
        for n in range(5):
            app.start_child(thread(meet, id=f"c{n}", shutdown=HANG))

        assert sorted(app.stop().stopped) == [f"app/c{n}" for n in range(5)]


def test_reports_have_times_and_threads(launch, recorder):
    """A report has the time of day, the name of the thread, and the incarnation."""
    clock, puppet = ManualClock(), Puppet()
    launch(supervisor("app", children=[puppet.spec("a")]), clock=clock)
    clock.advance(5)
    puppet.next().crash()
    report = recorder.wait_for(ChildTerminated, "app/a")

    assert (report.time, report.thread, report.incarnation) == (clock.wall(), "app/a", 1)


def test_a_shutdown_error_names_what_went_wrong(launch, recorder):
    """A permanent child that raises Shutdown when it is asked is reported (OTP)."""

    def say(life):
        raise otpy.Shutdown("bye")

    puppet = Puppet(when_asked=say)
    app = launch(supervisor("app", children=[puppet.spec("a")]))
    puppet.next()
    app.stop()

    assert str(recorder.wait_for(ShutdownError, "app/a").reason) == "shutdown: Shutdown('bye')"
