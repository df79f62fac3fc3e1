"""The ladder of a stop: ask, interrupt, give up; a child that is left is named."""

import contextlib
import socket
import threading
import time

import pytest

import otpy
from otpy import ExitKind, StartError, supervisor, thread
from otpy.children.interrupt import Gate, raise_in
from otpy.reports import LimitReached, Progress, ShutdownError, Unstopped
from tests.helpers import HANG, Puppet, wait_until


class Stuck:
    """A target that blocks where no exception reaches it, until the test opens its
    gate.
    """

    def __init__(self):
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.after = []

    def __call__(self, ctx):
        self.entered.release()
        self.gate.wait()
        self.after.append(use(ctx))

    def wait(self, count=1):
        for _ in range(count):
            assert self.entered.acquire(timeout=HANG)


def use(ctx):
    try:
        return ctx.path
    except otpy.Fenced as fenced:
        return fenced


def loop(ctx):
    """Run Python code that never looks at ``ctx.running``."""
    while True:
        pass


@pytest.fixture
def stucks():
    targets = [Stuck() for _ in range(5)]
    yield targets
    for target in targets:
        target.gate.set()


@pytest.fixture
def stuck(stucks):
    return stucks[0]


@pytest.fixture
def go():
    """An event that ends the children that look at it, at the latest when the test
    ends.
    """
    event = threading.Event()
    yield event
    event.set()


def idle(ctx):
    ctx.wait_stop()


def test_a_python_loop_is_interrupted(launch, recorder):
    """The second rung: the loop ends with Killed, and that is reported."""
    app = launch(
        supervisor("app", children=[thread(loop, id="a", shutdown=0.0), thread(idle, id="b")])
    )
    report = app.stop()

    assert (report.stopped, report.interrupted, report.unstopped) == (("app/b",), ("app/a",), ())
    assert recorder.wait_for(ShutdownError, "app/a").reason.kind is ExitKind.KILLED


def test_brutal_kill_is_what_was_wanted(launch, recorder):
    """With "brutal_kill" the interrupt comes at once, and is no error."""
    app = launch(supervisor("app", children=[thread(loop, id="a", shutdown="brutal_kill")]))

    assert app.stop().interrupted == ("app/a",)
    assert recorder.of(ShutdownError) == []


def test_a_stuck_thread_is_named_with_its_stack(launch, recorder, stuck):
    """The third rung: the child is reported, counted, and in the StopReport while it
    lives.
    """
    app = launch(
        supervisor("app", children=[thread(stuck, id="a", shutdown=0.0), thread(idle, id="b")])
    )
    stuck.wait()
    report = app.stop()

    assert (report.stopped, report.interrupted) == (("app/b",), ())
    assert [(one.path, one.incarnation) for one in report.unstopped] == [("app/a", 1)]
    assert "self.gate.wait()" in report.unstopped[0].stack
    assert "self.gate.wait()" in recorder.wait_for(Unstopped, "app/a").stack


def test_a_stop_with_a_budget_names_all_that_are_stuck(launch, stucks):
    """The tree has one budget, also for children whose own limit is infinity."""
    app = launch(
        supervisor(
            "app",
            children=[
                supervisor(
                    "s",
                    children=[
                        thread(one, id=f"c{n}", shutdown="infinity") for n, one in enumerate(stucks)
                    ],
                ),
                thread(idle, id="z"),
            ],
        )
    )
    for one in stucks:
        one.wait()
    report = app.stop(0.1)

    assert sorted(one.path for one in report.unstopped) == [f"app/s/c{n}" for n in range(5)]
    assert report.stopped == ("app/z",)
    assert report.interrupted == ("app/s",)


def test_a_nested_supervisor_names_what_is_left_of_it(launch, stuck):
    """The stop report of a nested supervisor has the children that are left of it."""
    children = [thread(stuck, id="x", shutdown=0.0), thread(idle, id="a")]
    app = launch(
        supervisor("app", children=[supervisor("s", restart="temporary", children=children)])
    )
    stuck.wait()

    assert [one.path for one in app.find("app/s").stop().unstopped] == ["app/s/x"]


def test_a_stuck_child_is_replaced(launch, stuck):
    """By default the group goes on without it. When it wakes up, its context is fenced."""
    puppet = Puppet()
    app = launch(
        supervisor(
            "app",
            strategy="one_for_all",
            children=[puppet.spec("a"), thread(stuck, id="b", shutdown=0.0, interrupt=False)],
        )
    )
    stuck.wait()
    puppet.next().crash()
    stuck.wait()

    assert [(info.id, info.incarnation) for info in app.which_children()] == [("a", 2), ("b", 2)]
    report = app.stop()
    assert [(one.path, one.incarnation) for one in report.unstopped] == [("app/b", 1), ("app/b", 2)]
    stuck.gate.set()
    wait_until(lambda: len(stuck.after) == 2)
    assert [type(one) for one in stuck.after] == [otpy.Fenced, otpy.Fenced]


def test_a_stuck_child_is_held_for(launch, recorder, stuck):
    """unstopped="hold": the child starts again only when it has really ended."""
    puppet = Puppet()
    app = launch(
        supervisor(
            "app",
            strategy="one_for_all",
            children=[
                puppet.spec("a"),
                thread(stuck, id="b", shutdown=0.0, unstopped="hold"),
                thread(idle, id="c"),
            ],
        )
    )
    stuck.wait()
    puppet.next().crash()
    recorder.wait_for(Unstopped, "app/b")
    puppet.next()
    wait_until(
        lambda: (
            [info.state.value for info in app.which_children()]
            == ["running", "unstopped", "undefined"]
        )
    )
    with pytest.raises(otpy.StillRunning):
        app.restart_child("b")
    stuck.gate.set()
    stuck.wait()

    recorder.wait_for(Progress, "app/c", count=2)
    assert recorder.wait_for(Progress, "app/b", count=2).incarnation == 2


def test_a_stuck_child_is_an_escalation(launch, recorder, stuck):
    """unstopped="escalate": the supervisor gives up."""
    puppet = Puppet()
    app = launch(
        supervisor(
            "app",
            strategy="one_for_all",
            children=[puppet.spec("a"), thread(stuck, id="b", shutdown=0.0, unstopped="escalate")],
        )
    )
    stuck.wait()
    puppet.next().crash()

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert recorder.wait_for(LimitReached, "app").escalation.child == "app/b"


def test_a_tree_may_leave_only_so_many_behind(launch, recorder, stucks):
    """With one more than max_unstopped, anywhere in the tree, the root gives up."""
    workers = [thread(one, id=f"c{n}", shutdown=0.0) for n, one in enumerate(stucks[:3])]
    app = launch(supervisor("app", children=[supervisor("s", children=workers)]), max_unstopped=1)
    for one in stucks[:3]:
        one.wait()
    nested = app.find("app/s")
    nested.terminate_child("c0")
    stucks[0].gate.set()  # one that has ended after all does not count
    wait_until(lambda: "app/s/c0" not in {one.name for one in threading.enumerate()})
    nested.terminate_child("c1")
    assert app.alive
    nested.terminate_child("c2")

    assert app.wait(HANG).kind is ExitKind.LIMIT_REACHED
    assert "2 threads" in str(recorder.wait_for(LimitReached, "app").reason)


def test_the_interrupt_can_be_switched_off(launch, go):
    """interrupt=False: a loop that does not listen is not interrupted, but named."""

    def spin(ctx):
        while not go.is_set():
            time.monotonic()

    app = launch(supervisor("app", children=[thread(spin, id="a", shutdown=0.0, interrupt=False)]))
    report = app.stop()

    assert [one.path for one in report.unstopped] == ["app/a"]


def test_on_stop_wakes_a_child_that_is_blocked_in_the_kernel(launch):
    """An on_stop callback that shuts a socket down ends a read of it."""
    left, right = socket.socketpair()
    up = threading.Event()

    def read(ctx):
        ctx.on_stop(lambda: right.shutdown(socket.SHUT_RDWR))
        up.set()
        assert left.recv(1) == b""

    with left, right:
        app = launch(supervisor("app", children=[thread(read, id="a", shutdown=HANG)]))
        assert up.wait(HANG)
        assert app.stop().stopped == ("app/a",)


def test_a_child_that_swallows_the_interrupt(launch, go):
    """A child is interrupted once. If it goes on, it is given up."""
    is_deaf = threading.Event()

    def work():
        is_deaf.set()
        while not go.is_set():
            time.monotonic()

    def deaf(ctx):
        while not go.is_set():
            with contextlib.suppress(otpy.Killed):
                # CPython 3.13 would not count the jump back of a loop here as a part of
                # the block.
                work()

    app = launch(supervisor("app", children=[thread(deaf, id="a", shutdown=0.0)]))
    assert is_deaf.wait(HANG)
    report = app.stop()

    assert [one.path for one in report.unstopped] == ["app/a"]


def test_a_start_that_hangs_goes_through_the_ladder(recorder, stuck):
    """After start_timeout comes the ladder.

    A child that is given up has failed to start.
    """
    tree = supervisor(
        "app", children=[thread(stuck, id="a", ready=True, start_timeout=0.5, shutdown=0.0)]
    )

    with pytest.raises(StartError) as caught:
        otpy.start(tree, reports=recorder, log=False)
    assert caught.value.path == "app/a"
    assert recorder.wait_for(Unstopped, "app/a").incarnation == 1


def at_once(idents):
    return {one for one in idents if otpy.children.interrupt.raise_in(one, otpy.Killed)}


class TestGate:
    """The gate: an interrupt hits the code of the user, or nothing."""

    def test_an_interrupt_before_the_gate_is_open_is_raised_there(self):
        """The child never runs code of the user."""
        gate = Gate()
        assert Gate.interrupt([gate], at_once) == [gate]

        with pytest.raises(otpy.Killed):
            gate.open()

    def test_after_the_gate_is_closed_nothing_comes(self):
        """Another thread may have the number of the child's by then."""
        gate = Gate()
        gate.open()
        gate.close()

        assert Gate.interrupt([gate], at_once) == [gate]
        assert gate._is_hit is False

    def test_an_interrupt_that_is_on_its_way_is_taken_back(self):
        """An interrupt hits before the gate is closed, or never. It does not hit twice."""
        hits = 0
        for _ in range(300):
            gate, opened = Gate(), threading.Event()
            ended = []

            def body(gate=gate, opened=opened, ended=ended):
                gate.open()
                try:
                    try:
                        opened.set()
                    finally:
                        gate.close()
                except otpy.Killed:
                    ended.append("hit")
                sum(
                    range(200)
                )  # a late one would hit here, and end this thread without its last line
                ended.append("end")

            target = threading.Thread(target=body)
            target.start()
            opened.wait(HANG)
            Gate.interrupt([gate], at_once)
            Gate.interrupt([gate], at_once)
            target.join(HANG)

            assert ended in (["end"], ["hit", "end"])
            hits += len(ended) - 1

    def test_an_interrupt_that_is_lost_is_sent_again(self, monkeypatch):
        """A finalizer that the garbage collector runs may swallow it.

        Without a second one, the thread would wait for ever.
        """
        sent, real = [], raise_in

        def lose_two(ident, exception):
            sent.append(ident)
            return len(sent) < 3 or real(ident, exception)

        monkeypatch.setattr(otpy.children.interrupt, "raise_in", lose_two)
        gate, ended = Gate(), []

        def body():
            gate.open()
            Gate.interrupt([gate], at_once)
            gate.close()
            ended.append("end")

        target = threading.Thread(target=body, daemon=True)
        target.start()
        target.join(HANG)

        assert (ended, len(sent)) == (["end"], 3)

    def test_a_python_that_has_no_interrupts(self, monkeypatch):
        """``raise_in`` returns False."""
        monkeypatch.delattr("ctypes.pythonapi")

        assert raise_in(threading.get_ident(), otpy.Killed) is False

    def test_a_thread_that_is_gone_cannot_be_hit(self):
        """``raise_in`` returns False."""
        gone = threading.Thread(target=int)
        gone.start()
        gone.join()

        assert raise_in(gone.ident, otpy.Killed) is False


def test_a_python_without_interrupts(launch, monkeypatch, go):
    """Such a Python has no second rung, and the grace is not waited for."""
    monkeypatch.delattr("ctypes.pythonapi")
    app = launch(supervisor("app", children=[thread(lambda ctx: go.wait(), id="a", shutdown=0.0)]))
    report = app.stop()

    assert [one.path for one in report.unstopped] == ["app/a"]


def test_an_interrupt_that_is_sent_while_the_gate_closes(monkeypatch):
    """The thread that closes the gate waits for the thread that sends.

    The interrupt hits before the gate is closed, or never.
    """
    sending, closed, hits = threading.Event(), threading.Event(), []
    real = otpy.children.interrupt.raise_in

    def slow(ident, exception):
        if not sending.is_set():
            sending.set()
            closed.wait(0.2)  # always in vain: the gate cannot close meanwhile
        return real(ident, exception)

    monkeypatch.setattr(otpy.children.interrupt, "raise_in", slow)
    gate, opened = Gate(), threading.Event()

    def body():
        gate.open()
        opened.set()
        sending.wait(HANG)
        try:
            gate.close()
        except otpy.Killed:
            hits.append("before")
        closed.set()
        try:
            sum(range(100_000))
        except otpy.Killed:
            hits.append("after")

    target = threading.Thread(target=body)
    target.start()
    opened.wait(HANG)
    Gate.interrupt([gate], at_once)
    target.join(HANG)

    assert "after" not in hits
