"""Bad input and bad luck: a clear outcome for each, and nothing lost."""

import contextlib
import queue
import signal
import sys
import threading

import pytest

import otpy
from otpy import (
    ChildSpec,
    ChildState,
    ExitKind,
    InternalError,
    StartError,
    TreeFailed,
    dynamic_supervisor,
    supervisor,
    thread,
)
from otpy.core.messages import ChildStarted, StopSupervisor
from otpy.reports import (
    ChildTerminated,
    Progress,
    ShutdownError,
    StartFailed,
    StrayMessage,
    Unstopped,
)
from otpy.runtime import threads
from tests.helpers import HANG, Puppet, wait_until


def idle(ctx):
    ctx.wait_stop()


def core_of(handle):
    return handle._tree.directory[handle.path]


class Scarce:
    """A system that has only so many threads to give."""

    def __init__(self, monkeypatch):
        self.left = None
        self._real = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self.start(thread))

    def start(self, thread):
        if self.left is not None:
            if self.left == 0:
                raise RuntimeError("can't start new thread")
            self.left -= 1
        self._real(thread)


@pytest.fixture
def scarce(monkeypatch):
    return Scarce(monkeypatch)


class TestNoThreads:
    def test_for_a_restart(self, launch, recorder, scarce):
        """An ordinary failed restart: retried, counted, and a breach if it stays so."""
        puppet = Puppet()
        app = launch(supervisor("app", intensity=2, children=[puppet.spec("a")]))
        life = puppet.next()
        scarce.left = 0
        life.crash()

        assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
        assert [str(one.reason.exception) for one in recorder.of(StartFailed)] == [
            "can't start new thread"
        ] * 2

    def test_for_a_while(self, launch, recorder, scarce):
        """When there are threads again, the child is back."""
        puppet = Puppet()
        app = launch(supervisor("app", intensity=1_000_000, children=[puppet.spec("a")]))
        life = puppet.next()
        scarce.left = 0
        life.crash()
        recorder.wait_for(StartFailed, "app/a", count=3)
        scarce.left = None
        puppet.next()

        wait_until(lambda: app.which_children()[0].state is ChildState.RUNNING)

    @pytest.mark.parametrize("left", range(5))
    def test_for_a_tree(self, scarce, left):
        """Whichever thread is refused, the error says why, and what was started is stopped."""
        scarce.left = left

        with pytest.raises(StartError) as caught:
            otpy.start(
                supervisor(
                    "app",
                    children=[
                        supervisor("s", children=[thread(idle, id="a"), thread(idle, id="b")])
                    ],
                ),
                log=False,
            )
        scarce.left = None
        assert "can't start new thread" in str(caught.value)

    def test_for_the_second_handler_of_a_tree(self, scarce):
        """What was started for the first one ends."""
        scarce.left = 1
        with pytest.raises(StartError):
            otpy.start(supervisor("app"), reports=print)
        scarce.left = None

        wait_until(lambda: not threads.entries())

    def test_for_a_nested_supervisor(self, launch, recorder, scarce):
        """It is a child like any other."""
        app = launch(supervisor("app"))
        scarce.left = 0
        with pytest.raises(StartError):
            app.start_child(supervisor("s"))
        scarce.left = None

        assert app.start_child(supervisor("s")).state is ChildState.RUNNING

    def test_for_a_helper(self, launch, scarce):
        """on_stop callbacks are called all the same, on a thread that is there already."""
        calls, up = [], threading.Event()

        def target(ctx):
            ctx.on_stop(lambda: calls.append(threading.current_thread().name))
            up.set()
            ctx.wait_stop()

        app = launch(supervisor("app", children=[thread(target, id="a")]))
        assert up.wait(HANG)
        scarce.left = 0
        app.stop()
        scarce.left = None

        assert calls == ["app (reserve)"]

    def test_for_a_subscriber(self, launch, scarce):
        """The caller hears of it."""
        app = launch(supervisor("app"))
        scarce.left = 0
        with pytest.raises(RuntimeError, match="can't start new thread"):
            app.subscribe(print)
        scarce.left = None


@pytest.mark.parametrize("item", ["garbage", None, 42, object(), [], {}, ValueError()])
def test_garbage_on_a_mailbox(launch, recorder, item):
    """It is reported, and ignored."""
    app = launch(supervisor("app", children=[thread(idle, id="a")]))
    core_of(app).mailbox.put(item)
    report = recorder.wait_for(StrayMessage, "app")

    assert report.item is item
    assert app.which_children()[0].state is ChildState.RUNNING


def test_a_crash_on_the_first_line_of_ten_thousand_restarts(launch, recorder):
    """Each death is reported once, in order, and each start comes before its death."""
    count = 2000
    puppet = threading.Event()

    def crash(ctx):
        if ctx.incarnation <= count:
            raise ValueError(ctx.incarnation)
        puppet.set()
        ctx.wait_stop()

    launch(supervisor("app", intensity=count, period=3600, children=[thread(crash, id="a")]))
    assert puppet.wait(HANG)
    recorder.wait_for(Progress, "app/a", count=count + 1)

    story = [(type(one).__name__, one.incarnation) for one in recorder.reports]
    assert story == [
        step for n in range(1, count + 1) for step in (("Progress", n), ("ChildTerminated", n))
    ] + [("Progress", count + 1)]
    assert [one.reason.exception.args for one in recorder.of(ChildTerminated)] == [
        (n,) for n in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    "error",
    [
        SystemExit("exit"),
        KeyboardInterrupt(),
        GeneratorExit(),
        BaseException("base"),
        BaseExceptionGroup("g", [KeyboardInterrupt()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_is_reported(launch, recorder, error):
    """No death is silent."""
    puppet = Puppet()
    launch(supervisor("app", children=[puppet.spec("a")]))
    puppet.next().crash(error)

    assert recorder.wait_for(ChildTerminated, "app/a").reason.exception is error
    assert puppet.next().incarnation == 2


def test_an_exception_that_cannot_be_shown(recorder):
    """Its report and the failure of the tree can be shown all the same."""

    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError("no words")

        __repr__ = __str__

    def crash(ctx):
        raise Nasty

    with pytest.raises(TreeFailed) as caught:
        otpy.run(supervisor("app", intensity=0, children=[thread(crash, id="a")]), reports=recorder)
    assert "Nasty" in str(caught.value)
    assert "Nasty" in recorder.of(ChildTerminated)[0].reason.traceback


def test_an_id_that_is_used_again_at_once(launch, recorder):
    """What the old child of this name says is not taken for news of the new one."""
    gate, first_up = threading.Event(), threading.Event()

    def late(ctx):
        first_up.set()
        gate.wait(HANG)
        raise ValueError("from the grave")

    app = launch(dynamic_supervisor("app"))
    app.start_child(thread(late, id="a", shutdown=0.0, interrupt=False))
    assert first_up.wait(HANG)
    app.terminate_child("a")
    app.start_child(thread(idle, id="a"))
    gate.set()
    wait_until(lambda: [one.thread.name for one in threads.entries()].count("app/a") == 1)

    assert app.which_children()[0].state is ChildState.RUNNING
    assert recorder.of(ChildTerminated) == []


def test_no_repr_runs_on_a_supervisors_thread(launch, recorder):
    """It is user code: it may block, and raise anything. Who wants a text makes it on a thread of their own."""
    threads = []

    class Loud:
        def __repr__(self):
            threads.append(threading.current_thread().name)
            raise SystemExit

        __str__ = __repr__

    class LoudError(Loud, Exception):
        pass

    def fails(ctx):
        raise LoudError

    app = launch(supervisor("app", children=[supervisor("s", restart="temporary", intensity=1)]))
    core_of(app).mailbox.put(Loud())
    recorder.wait_for(StrayMessage, "app")
    nested = app.find("app/s")
    with pytest.raises(StartError):
        nested.start_child(thread(fails, id="a", ready=True))
    nested.start_child(thread(fails, id="b"))
    wait_until(lambda: app.which_children() == (), "app/s gave up, and is forgotten")

    assert {"app", "app/s"}.isdisjoint(threads)


class TestBrokenInside:
    """If our own code is wrong, the supervisor crashes as a child does."""

    def test_the_parent_restarts_it(self, launch, recorder, monkeypatch):
        """What ran under it is stopped by force, and its callers are not left waiting."""
        puppet = Puppet()
        app = launch(
            supervisor(
                "app", children=[supervisor("s", children=[puppet.spec("a"), thread(idle, id="b")])]
            )
        )
        puppet.next()
        broken = app.find("app/s")
        monkeypatch.setattr(core_of(broken).machine, "receive", None)
        with pytest.raises(otpy.NotAlive):
            broken.which_children()
        report = recorder.wait_for(ChildTerminated, "app/s")
        puppet.next()

        assert report.reason.kind is ExitKind.CRASHED
        assert isinstance(report.reason.exception, InternalError)
        assert app.find("app/s").which_children()[0].incarnation == 1

    def test_a_child_that_does_not_end_then_is_named(self, monkeypatch):
        """At the root: the stop report has it."""
        monkeypatch.setattr("otpy.runtime.supervisor.INTERRUPT_GRACE", 0.05)
        entered, gate = threading.Event(), threading.Event()

        def stuck(ctx):
            while not gate.is_set():
                with contextlib.suppress(otpy.Killed):  # it may be interrupted before it is stuck
                    entered.set()
                    gate.wait(HANG)

        app = otpy.start(supervisor("app", children=[thread(stuck, id="x")]), log=False)
        assert entered.wait(HANG)
        monkeypatch.setattr(core_of(app).machine, "receive", None)
        core_of(app).mailbox.put(StopSupervisor())
        reason = app.wait(HANG)
        left = app.stop().unstopped
        gate.set()

        assert (reason.kind, [one.path for one in left]) == (ExitKind.CRASHED, ["app/x"])
        assert "gate.wait" in left[0].stack

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_in_its_last_moment(self, monkeypatch):
        """No caller waits for ever."""
        app = otpy.start(supervisor("app"), log=False)
        close = app._tree.close

        def close_and_fail():
            close()
            raise ZeroDivisionError

        monkeypatch.setattr(type(app._tree), "close", lambda tree: close_and_fail())

        assert app.stop().reason.kind is ExitKind.SHUTDOWN

    def test_a_kind_of_child_that_breaks_its_contract(self):
        """It raises where it must not: a failed start."""

        def broken(birth):
            raise ZeroDivisionError

        with pytest.raises(StartError) as caught:
            otpy.start(supervisor("app", children=[ChildSpec(id="x", start=broken)]), log=False)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


class Evil(Exception):
    @property
    def __class__(self):
        raise RuntimeError("no class")


class Undecided:
    """Compares as arrays do."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise ValueError("ambiguous")

    __hash__ = None


@pytest.mark.parametrize("make", [lambda: SystemExit(Undecided()), lambda: SystemExit(0.0), Evil])
def test_an_exception_that_does_not_let_itself_be_looked_at(launch, recorder, make):
    """Its end is reported all the same, and none of its code runs for that."""
    puppet = Puppet()
    launch(supervisor("app", children=[puppet.spec("a")]))
    puppet.next().crash(make())

    assert recorder.wait_for(ChildTerminated, "app/a").reason.kind is ExitKind.CRASHED
    assert puppet.next().incarnation == 2


class TestManyAtOnce:
    def test_nobody_is_given_up_who_has_ended(self, launch, recorder):
        """Found by review: time was up for children whose end was already on the queue."""
        app = launch(dynamic_supervisor("app"), max_unstopped=0)
        for n in range(1000):
            app.start_child(thread(idle, id=f"c{n}", shutdown="brutal_kill"))
        report = app.stop()

        assert recorder.of(Unstopped) == []
        assert len(report.interrupted) == 1000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("rounds", [50, pytest.param(150, marks=pytest.mark.slow)])
def test_an_interrupted_caller_does_not_lock_its_supervisor(launch, rounds):
    """Found by review: interrupted at the wrong bytecode it left a lock locked that the supervisor took to answer."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def ask(ctx):
        while True:
            with contextlib.suppress(otpy.CallTimeout):
                ctx.supervisor.count_children(0)

    try:
        app = launch(dynamic_supervisor("app"), reports=None)
        for n in range(rounds):
            app.start_child(thread(ask, id=f"c{n}", shutdown="brutal_kill"))
            app.terminate_child(f"c{n}", timeout=HANG)
    finally:
        sys.setswitchinterval(before)

    assert app.which_children() == ()


class TestCallersThatHaveToEnd:
    """A child that is told to stop is released from the call that it is blocked in."""

    def test_about_itself(self, launch):
        """It cannot be there to hear the answer."""
        said = queue.SimpleQueue()

        def tidy(ctx):
            ctx.wait_stop()
            try:
                ctx.supervisor.delete_child(ctx.id)
            except otpy.WouldDeadlock as error:
                said.put(error)

        app = launch(supervisor("app", children=[thread(tidy, id="a", shutdown="infinity")]))
        app.terminate_child("a")

        assert said.get(timeout=HANG).path == "app/a"

    def test_about_a_start_that_takes_long(self, launch, recorder):
        """The start goes on, and its answer is dropped."""
        entered = threading.Event()

        def slow(ctx):
            entered.set()
            ctx.wait_stop()

        def ask(ctx):
            ctx.supervisor.start_child(thread(slow, id="slow", ready=True))

        app = launch(supervisor("app", children=[thread(ask, id="a", shutdown="infinity")]))
        assert entered.wait(HANG)
        app.terminate_child("a")

        assert [(one.id, one.state) for one in app.which_children()] == [
            ("a", ChildState.UNDEFINED),
            ("slow", ChildState.STARTING),
        ]

    def test_about_each_other(self, launch):
        """The other one asks the first to stop, and so releases it."""
        both, said = threading.Barrier(2), queue.SimpleQueue()

        def kill(ctx, other):
            both.wait(HANG)
            try:
                ctx.supervisor.terminate_child(other)
            except otpy.WouldDeadlock as error:
                said.put(error.path)

        children = [
            thread(kill, one, id=other, shutdown="infinity")
            for one, other in (("x", "y"), ("y", "x"))
        ]
        app = launch(supervisor("app", children=children))

        assert said.get(timeout=HANG) in ("app/x", "app/y")
        wait_until(lambda: ChildState.STOPPING not in [one.state for one in app.which_children()])


class Odd:
    """A kind of child that is not at all as it should be. It cannot even be put into a set."""

    alive = False
    state = None
    __hash__ = None

    def __init__(self, birth):
        self.birth = birth

    def start(self, deliver):
        deliver(ChildStarted(self.birth.ref))

    def stop(self):
        """Do nothing, and never end."""

    def kill(self, grace):
        raise OSError("no such process")

    def abandon(self):
        """Nothing to fence."""

    def stack(self):
        return ""


PLUGIN = """
def stuck(ctx, gate):
    try:
        ctx.ready()
        gate.get()
    except BaseException:  # the interrupt came before, or comes when the gate is open; there is only one
        gate.get()
"""


class TestOddKinds:
    def test_one_whose_kill_raises(self, launch, recorder):
        """That is its crash: the supervisor and the siblings live on."""
        children = [thread(idle, id="a"), ChildSpec(id="x", start=Odd, shutdown=0)]
        app = launch(supervisor("app", children=children))
        app.terminate_child("x")

        assert isinstance(recorder.wait_for(ShutdownError, "app/x").reason.exception, OSError)
        assert [(one.id, one.incarnation, one.state.value) for one in app.which_children()] == [
            ("a", 1, "running"),
            ("x", 1, "undefined"),
        ]

    def test_one_that_cannot_be_hashed(self, launch, recorder, monkeypatch):
        """It can be given up."""
        monkeypatch.setattr(Odd, "kill", lambda self, grace: False)
        app = launch(supervisor("app", children=[ChildSpec(id="x", start=Odd, shutdown=0)]))
        app.terminate_child("x")

        assert recorder.wait_for(Unstopped, "app/x").stack == ""
        assert app.alive

    def test_one_that_breaks_in_the_middle_of_its_orders(self, launch, monkeypatch):
        """The answers that were still to be given are given."""
        monkeypatch.setattr(Odd, "kill", lambda self, grace: False)
        monkeypatch.setattr(Odd, "abandon", None)
        app = launch(supervisor("app", children=[ChildSpec(id="x", start=Odd, shutdown=0)]))
        app.terminate_child("x")

        assert app.which_children()[0].state is ChildState.UNDEFINED

    def test_code_from_a_loader_that_raises(self, launch, recorder):
        """Its stack cannot be shown; the supervisor goes on."""

        class Loader:
            def get_source(self, name):
                raise KeyError(name)

        names = {"__name__": "plugin", "__loader__": Loader()}
        exec(compile(PLUGIN, "<plugin>.py", "exec"), names)
        gate = queue.SimpleQueue()
        app = launch(
            supervisor(
                "app",
                children=[thread(names["stuck"], gate, id="x", ready=True, shutdown="brutal_kill")],
            )
        )
        app.terminate_child("x")
        report = recorder.wait_for(Unstopped, "app/x")
        gate.put(None)
        gate.put(None)

        assert isinstance(report.stack, str)
        assert app.alive


class TestHandlers:
    @pytest.mark.parametrize("name", ["__notes__", "__cause__"])
    def test_one_whose_exception_cannot_be_shown(self, launch, name):
        """Its next report comes all the same."""

        class Shy(Exception):
            pass

        setattr(Shy, name, property(lambda self: 1 / 0))
        seen = queue.SimpleQueue()

        def handler(report):
            seen.put(report)
            raise Shy

        launch(
            supervisor("app", children=[thread(idle, id="a"), thread(idle, id="b")]),
            reports=handler,
        )

        assert [seen.get(timeout=HANG).path for _ in range(2)] == ["app/a", "app/b"]

    def test_one_that_comes_too_late(self):
        """A tree that has ended takes no more handlers, and starts no thread for them."""
        app = otpy.start(supervisor("app"), log=False)
        app.stop()
        with pytest.raises(otpy.NotAlive):
            app.subscribe(print)

        wait_until(lambda: not threads.entries())

    def test_those_that_come_and_go(self, launch):
        """Nothing of them stays."""
        app = launch(supervisor("app"), reports=None)
        for _ in range(50):
            app.subscribe(print)
            app.unsubscribe(print)

        wait_until(lambda: len(threads.entries()) == 2, "the supervisor and the escalations")


def test_no_signal_handler_is_left_behind_by_a_start_that_fails(monkeypatch):
    """Found by review: without file descriptors Ctrl-C was lost."""

    def no_descriptors():
        raise OSError("too many open files")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("_socket.socketpair", no_descriptors)
    with pytest.raises(otpy.StartError, match="too many"):
        otpy.start(supervisor("app"), log=False)

    assert signal.getsignal(signal.SIGINT) is before


def test_a_tree_of_a_hundred_levels():
    """The most that is allowed works, and stops."""
    tree = supervisor("s0", children=[thread(idle, id="a")])
    for level in range(1, otpy.specs.MAX_DEPTH):
        tree = supervisor(f"s{level}", children=[tree])
    with otpy.start(tree, log=False) as app:
        assert app.snapshot().children[0].snapshot.path == "s99/s98"
    assert len(app.stop().stopped) == 100
