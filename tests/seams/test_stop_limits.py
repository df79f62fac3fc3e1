"""No wait for the end of a tree is without a limit; the report says what is left."""

from __future__ import annotations

import threading
import time

import attrs
import pytest

import otpy
from otpy import ChildSpec, SpecError, StartError, supervisor, thread
from otpy.reports import ExitKind, Progress
from otpy.runtime import stacks, stopping, threads
from otpy.runtime import tree as trees
from otpy.runtime.waiting import Reply
from tests.helpers import HANG, ManualClock, wait_until
from tests.seams.kit import python

IMPATIENT = 0.1


@attrs.define(eq=False)
class Blocking:
    """A kind of child that breaks its contract: it blocks the supervisor's thread."""

    birth: object
    began: threading.Event
    gate: threading.Event

    def start(self, deliver):
        self.began.set()
        self.gate.wait(HANG)
        raise RuntimeError("it has been let go")


class Stuck:
    """A supervisor that can be made to hang.

    Attributes:
        began: Happens when it hangs.
    """

    def __init__(self):
        self.began, self.gate = threading.Event(), threading.Event()

    def hang(self, handle):
        spec = ChildSpec(
            id="blocks",
            start=lambda birth: Blocking(birth, self.began, self.gate),
            restart="temporary",
        )
        with pytest.raises(otpy.CallTimeout):
            handle.start_child(spec, timeout=0)
        assert self.began.wait(HANG)


@pytest.fixture
def stuck(monkeypatch):
    """A Stuck that goes on at the end of the test, so that its tree ends."""
    monkeypatch.setattr(stopping, "OVERDUE", IMPATIENT)
    one = Stuck()
    yield one
    one.gate.set()
    wait_until(
        lambda: not [entry for entry in threads.entries() if isinstance(entry.owner, trees.Tree)]
    )


def idle(ctx):
    ctx.wait_stop()


def started(**options):
    below = supervisor("below", children=[thread(idle, id="deep")])
    middle = supervisor("middle", children=[thread(idle, id="a"), below])
    return otpy.start(
        supervisor("app", children=[middle, thread(idle, id="b")]), log=False, **options
    )


def test_a_supervisor_that_does_not_answer_holds_up_no_stop(stuck):
    """``stop(t)`` returns.

    Its report names the supervisor, shows where it is stuck, and what still runs.
    """
    app = started()
    stuck.hang(app.find("app/middle"))
    report = app.stop(0.2)

    assert (report.unanswered, report.reason.kind) == (("app/middle",), ExitKind.KILLED)
    assert "app/middle" in str(report.reason)
    stacks = {one.path: one.stack for one in report.unstopped}
    assert set(stacks) == {"app/middle", "app/middle/a"}
    assert "self.gate.wait(HANG)" in stacks["app/middle"]


def test_what_is_below_a_stuck_root_is_stopped_all_the_same(stuck):
    """A stuck root passes no order on. So every supervisor gets the order."""
    app = started()
    stuck.hang(app)
    report = app.stop(0.2)

    assert report.unanswered == ("app",)
    assert {one.path for one in report.unstopped} == {"app", "app/b"}


def test_a_nested_supervisor_that_does_not_answer_holds_up_no_stop(stuck):
    """The same for the stop of a part of the tree. The rest of it runs on."""
    app = started()
    stuck.hang(app.find("app/middle"))

    assert app.find("app/middle").stop(0.2).unanswered == ("app/middle",)
    assert app.which_children()[1].state is otpy.ChildState.RUNNING
    app.stop(0.2)


def test_a_stop_without_a_limit_gives_up_who_leaves_two_questions_unanswered(stuck, monkeypatch):
    """A supervisor never blocks. So one that leaves two questions unanswered is stuck."""
    monkeypatch.setattr(stopping, "TO_ANSWER", IMPATIENT)
    app = started()
    stuck.hang(app.find("app/middle"))

    assert app.stop().unanswered == ("app/middle",)


@pytest.mark.parametrize(("second", "is_stuck"), [([], False), (["app"], True)])
def test_one_question_that_is_left_is_asked_once_more(monkeypatch, second, is_stuck):
    """After a pause of the whole process the first answer is late, and the second one
    is not.
    """
    answers = [["app"], second]
    monkeypatch.setattr(stopping, "_alive", lambda core: ["app"])
    monkeypatch.setattr(stopping, "_ask", lambda core, asked, wait, until: answers.pop(0))

    assert stopping._is_stuck(None, stopping.never, None) is is_stuck
    assert answers == []


class Refuses:
    """A stand-in that refuses each call, as a supervisor does that has closed its
    mailbox.
    """

    def __init__(self, alive):
        self.alive, self.mailbox, self.done = alive, self, Reply()

    def put(self, message):
        message.reply.refuse(otpy.NotAlive("app"))


@pytest.mark.parametrize("alive", [True, False])
def test_a_refusal_is_no_answer_of_a_supervisor_that_does_not_end(alive):
    """Such a supervisor is stuck in its last steps. One that has ended is not."""
    one = Refuses(alive)

    assert stopping._ask(one, [one], lambda reply, until: True, stopping.never) == [one] * alive


def test_a_stop_without_a_limit_waits_as_long_as_supervisors_answer(monkeypatch):
    """The supervisors are asked many times, while a child takes its time."""
    monkeypatch.setattr(stopping, "TO_ANSWER", 0.01)
    asked, take = [], stopping._ask

    def slow(ctx):
        ctx.wait_stop()
        wait_until(lambda: len(asked) > 10)

    def ask(core, those, *more):
        asked.extend(those)
        return take(core, those, *more)

    monkeypatch.setattr(stopping, "_ask", ask)
    app = otpy.start(supervisor("app", children=[thread(slow, shutdown="infinity")]), log=False)

    assert app.stop().stopped == ("app/slow",)


def test_a_start_that_is_late_gives_up_a_stuck_supervisor(stuck, monkeypatch):
    """``start`` raises StartError, and does not wait for ever."""
    monkeypatch.setattr(stopping, "TO_ANSWER", IMPATIENT)
    blocking = ChildSpec(id="blocks", start=lambda birth: Blocking(birth, stuck.began, stuck.gate))

    with pytest.raises(StartError, match="not up after"):
        otpy.start(
            supervisor("app", children=[supervisor("sub", children=[blocking])]),
            log=False,
            timeout=0.1,
        )


def test_a_stop_waits_for_no_handler_beyond_its_limit():
    """The report names the handler that was at work."""
    gate = threading.Event()
    slow = {"reports": lambda report: gate.wait(HANG), "flush": HANG}
    app = otpy.start(supervisor("app", children=[thread(idle)]), log=False, **slow)
    began = time.monotonic()
    report = app.stop(0.2)
    took = time.monotonic() - began
    gate.set()

    assert took < HANG / 2
    assert "app (reports)" in report.handlers
    assert report.unanswered == ()


def test_a_handler_has_its_time_where_there_is_no_limit():
    """A stop without a limit waits for what is queued."""
    got = []

    def slow(report):
        time.sleep(0.05)
        got.append(report)

    otpy.start(supervisor("app", children=[thread(idle)]), log=False, reports=slow).stop()

    assert [type(one) for one in got] == [Progress]


def test_many_stuck_threads_need_few_looks_at_all_threads(monkeypatch):
    """To look at one thread means to look at all. So one look serves for many."""
    looks, look = [], stacks.Look

    def counted():
        looks.append(1)
        return look()

    gate = threading.Event()
    tree = supervisor(
        "app", children=[thread(lambda ctx: gate.wait(HANG), id=f"c{n}") for n in range(200)]
    )
    app = otpy.start(tree, log=False, max_unstopped=1000)
    monkeypatch.setattr(stacks, "Look", counted)
    report = app.stop(0.2)
    gate.set()

    assert len(report.unstopped) == 200
    assert all("gate.wait(HANG)" in one.stack for one in report.unstopped)
    assert 1 <= len(looks) < 50


def test_a_look_at_all_threads_that_had_to_wait_is_not_used_for_longer(monkeypatch):
    """Otherwise a new thread with the number of an ended one would be reported with the
    stack of that one.
    """
    look_now = stacks.frames

    def waits():
        time.sleep(0.2)
        return look_now()

    monkeypatch.setattr(stacks, "frames", waits)
    look = stacks.Look()

    assert look.until < time.monotonic() + 0.2


def test_the_threads_left_behind_are_counted_only_when_there_may_be_too_many():
    """Then they are counted once: the root gives up only once."""

    class Left:
        looks = 0

        @property
        def alive(self):
            Left.looks += 1
            return True

    told = []

    class Box:
        def put(self, message):
            told.append(message.count)

    tree = trees.Tree("app", ManualClock(), max_unstopped=100, seed=0)
    tree.directory["app"] = type("Root", (), {"mailbox": Box()})
    left = [Left() for _ in range(1000)]
    for one in left:
        tree.left_behind(one, otpy.reports.Unstopped(path="app/x"))

    assert (told, Left.looks) == ([101], 101)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_stop_with_thousands_of_stuck_threads_takes_at_most_four_seconds_more():
    """The tree leaves 3,200 threads behind."""
    ran = python(
        """
        import os, threading, time
        from otpy import start, supervisor, thread
        threading.stack_size(256 << 10)
        for_ever = threading.Event()
        children = [thread(lambda ctx: for_ever.wait(), id=f"c{n}") for n in range(3200)]
        app = start(supervisor("app", children=children), log=False, max_unstopped=10_000)
        began = time.monotonic()
        report = app.stop(1.0)
        print(time.monotonic() - began, len(report.unstopped), flush=True)
        os._exit(0)
        """,
        hang=100,
    )
    seconds, count = ran.out.split()

    assert int(count) == 3200
    assert float(seconds) < 1.0 + 1.0 + 4.0


class TestAClockThatStandsStill:
    """The ladder of a stop goes by real time as well."""

    def test_a_stop_with_a_limit_ends(self):
        """A child that is stuck is given up, though no time goes by on the clock of the
        tree.
        """
        gate = threading.Event()
        app = otpy.start(
            supervisor("app", children=[thread(lambda ctx: gate.wait(HANG), id="x")]),
            clock=ManualClock(),
        )
        report = app.stop(0.1)
        gate.set()

        assert [one.path for one in report.unstopped] == ["app/x"]
        assert report.unanswered == ()

    def test_a_child_that_is_terminated_has_its_shutdown_time_and_no_more(self):
        """The shutdown time of a terminated child is due by real time as well."""
        gate = threading.Event()
        child = thread(lambda ctx: gate.wait(HANG), id="x", shutdown=0.05)
        with otpy.start(supervisor("app", children=[child]), log=False, clock=ManualClock()) as app:
            app.terminate_child("x", timeout=HANG)
            gate.set()

            assert app.which_children()[0].state is otpy.ChildState.UNDEFINED

    def test_the_clock_of_the_tree_counts_too(self):
        """An hour passes on that clock, and the stop does not wait for a real hour."""
        gate, clock = threading.Event(), ManualClock()
        child = thread(lambda ctx: gate.wait(HANG), id="x", shutdown=3600.0)
        with otpy.start(supervisor("app", children=[child]), log=False, clock=clock) as app:
            done = threading.Event()
            caller = threading.Thread(target=lambda: (app.terminate_child("x"), done.set()))
            caller.start()
            wait_until(lambda: app.which_children()[0].state is otpy.ChildState.STOPPING)
            clock.advance(3600.0)  # not later: a clock that jumps beyond has paused
            app.which_children()  # it looks at its clock when it gets a message
            clock.advance(1.0)
            app.which_children()
            ended = done.wait(HANG)
            gate.set()
            caller.join(HANG)

            assert ended

    def test_other_deadlines_go_by_the_clock_of_the_tree(self):
        """A heartbeat is no stop: real time never makes it due."""
        stalls = []

        def stalled(report):
            if isinstance(report, otpy.reports.Stalled):
                stalls.append(report)

        tree = supervisor("app", children=[thread(idle, heartbeat=0.05), thread(idle, id="y")])
        with otpy.start(tree, log=False, clock=ManualClock(), reports=stalled) as app:
            for _ in range(3):  # each stop takes longer than the heartbeat in real time
                app.terminate_child("y")
                time.sleep(0.05)
                app.restart_child("y")

        assert stalls == []


CALLS = {
    "start_child": lambda app, timeout: app.start_child(thread(idle, id="new"), timeout),
    "terminate_child": lambda app, timeout: app.terminate_child("a", timeout),
    "restart_child": lambda app, timeout: app.restart_child("down", timeout),
    "delete_child": lambda app, timeout: app.delete_child("down", timeout),
    "get_childspec": lambda app, timeout: app.get_childspec("a", timeout),
    "which_children": lambda app, timeout: app.which_children(timeout),
    "count_children": lambda app, timeout: app.count_children(timeout),
    "snapshot": lambda app, timeout: app.snapshot(timeout),
    "wait": lambda app, timeout: app.wait(timeout),
    "stop": lambda app, timeout: app.stop(timeout),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_with_a_wrong_timeout_is_refused_and_not_served(launch, call):
    """A call that is refused changes nothing."""
    app = launch(supervisor("app", children=[thread(idle, id="a"), thread(idle, id="down")]))
    app.terminate_child("down")
    before = [(one.id, one.state, one.incarnation) for one in app.which_children()]
    for timeout in ("5", float("nan"), True, object()):
        with pytest.raises(SpecError, match="timeout"):
            CALLS[call](app, timeout)

    assert [(one.id, one.state, one.incarnation) for one in app.which_children()] == before


def test_every_call_that_takes_a_timeout_is_tried():
    """A new call that takes a timeout is found missing here."""
    takes = {
        name
        for name, method in vars(otpy.Supervisor).items()
        if not name.startswith("_") and "timeout" in getattr(method, "__annotations__", {})
    }

    assert takes == set(CALLS)


@pytest.mark.parametrize("subject", [None, 5, [], object()])
def test_a_handle_refuses_what_is_no_path_and_no_handler(launch, subject):
    """Any object is refused with an error of otpy's."""
    app = launch(supervisor("app"))
    with pytest.raises(otpy.NotFound):
        app.find(subject)
    with pytest.raises(SpecError, match="handler"):
        app.unsubscribe(subject)


STUBBORN = """
    import os, signal, threading, time
    import otpy
    from otpy.runtime import running, stopping
    from otpy import supervisor, thread

    def killer(*numbers):
        def kill(ctx):
            for number in numbers:
                os.kill(os.getpid(), number)
                ctx.wait_stop()  # the first one
                if number != numbers[-1]:
                    time.sleep(running.SAME + 0.05)
        return thread(kill, id="killer")

    def stuck(ctx):
        threading.Event().wait()

    def handler(report):
        threading.Event().wait()

"""


def test_the_stop_after_a_signal_is_bounded_by_stop_timeout():
    """The limit holds for children without a limit of their own, and for handlers that
    block.
    """
    ran = python(
        STUBBORN
        + """
    app = supervisor("app", children=[thread(stuck, shutdown="infinity"), killer(signal.SIGTERM)])
    report = otpy.run(app, log=False, flush=3600.0, reports=handler, stop_timeout=0.5)
    print([one.path for one in report.unstopped], report.handlers, report.reason)
    """
    )

    assert ran.out.splitlines()[0] == "['app/stuck'] ('app (reports)',) shutdown"


def test_a_second_signal_ends_every_wait():
    """It ends the wait for children, and the wait for handlers."""
    ran = python(
        STUBBORN
        + """
    running.SAME = 0.05
    app = supervisor("app", children=[thread(stuck, shutdown="infinity"), killer(signal.SIGTERM, signal.SIGINT)])
    report = otpy.run(app, log=False, flush=3600.0, reports=handler)
    print([one.path for one in report.unstopped], report.handlers, report.reason)
    """
    )

    assert ran.out.splitlines()[0] == "['app/stuck'] ('app (reports)',) shutdown"


def test_a_second_signal_ends_the_wait_for_handlers():
    """The tree has ended, and one handler blocks."""
    ran = python(
        STUBBORN
        + """
    running.SAME = 0.05
    def late():
        until = time.monotonic() + 20
        while any(one.name.startswith("app/") for one in threading.enumerate()) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=late, daemon=True).start()
    report = otpy.run(supervisor("app", children=[killer(signal.SIGTERM)]), log=False, flush=3600.0, reports=handler)
    print(report.stopped, report.handlers, report.unanswered)
    """
    )

    assert ran.out.splitlines()[0] == "('app/killer',) ('app (reports)',) ()"


def test_a_tree_that_does_not_answer_is_a_failed_program():
    """``run`` names it, and the end of the interpreter does not wait for it again."""
    ran = python(
        STUBBORN
        + """
    class Blocking:
        def __init__(self, birth):
            self.birth = birth
        def start(self, deliver):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
    app = supervisor("app", children=[otpy.ChildSpec(id="blocks", start=Blocking)])
    otpy.run(app, log=False, stop_timeout=0.2)
    """,
        expect=1,
    )

    assert "TreeFailed" in ran.err
    assert "no answer from app" in ran.err


def test_the_end_of_the_interpreter_does_not_wait_for_a_stuck_supervisor():
    """The log names the supervisor that did not answer."""
    ran = python(
        STUBBORN
        + """
    stopping.TO_ANSWER = 0.1
    began = threading.Event()
    class Blocking:
        def __init__(self, birth):
            self.birth = birth
        def start(self, deliver):
            began.set()
            threading.Event().wait()
    app = otpy.start(supervisor("app", children=[supervisor("sub")]))
    try:
        app.find("app/sub").start_child(otpy.ChildSpec(id="blocks", start=Blocking), timeout=0)
    except otpy.CallTimeout:
        began.wait()
    """
    )

    said = ran.out + ran.err  # the log, or stderr where no thread can be started any more
    assert "no_answer" in said
    assert "app/sub" in said.partition("no_answer")[2]


@pytest.mark.parametrize("seconds", ["5", -1, float("inf"), True])
def test_stop_timeout_is_checked(seconds):
    """A wrong value is refused as that of any option."""
    with pytest.raises(SpecError, match="stop_timeout"):
        otpy.run(supervisor("app"), stop_timeout=seconds)
