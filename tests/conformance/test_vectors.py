"""Sixteen dialogues that were observed with OTP, replayed with the machine alone: messages in, actions out."""

import collections

import pytest

from otpy import ExitKind, ExitReason, Ignore, Shutdown
from otpy.core import messages
from otpy.core.machine import SupervisorMachine
from tests.machine_talk import CRASH, NORMAL, SHUTDOWN, child, nested

FAILED = ExitReason(ExitKind.CRASHED, RuntimeError("no start"))
IGNORED = ExitReason(ExitKind.NORMAL, Ignore())
LEFT = ExitReason(ExitKind.SHUTDOWN, Shutdown("x"))
LIMIT = ExitReason(ExitKind.LIMIT_REACHED)


class World:
    """A machine, and a world that obeys it at once: what starts is up, what is told to stop has stopped.

    Attributes:
        failures: How many of the next starts of a child fail.
        ignores: The children that decline to start.
        log: What the machine ordered, timers left out, since it was last told something.
    """

    def __init__(self, *children, **flags):
        specs = [child(one) if isinstance(one, str) else one for one in children]
        self.machine = SupervisorMachine(nested("app", children=specs, **flags), "app")
        self.failures = collections.Counter()
        self.ignores = set()
        self.log = []
        self.end = None
        self._refs = {}
        self._queue = collections.deque()

    def boot(self):
        """Start the children; return what was ordered."""
        return self.tell(messages.Begin())

    def die(self, *deaths):
        """Let children end, all before the machine looks; each is an id, or an id with a reason."""
        pairs = [death if isinstance(death, tuple) else (death, CRASH) for death in deaths]
        return self.tell(
            *(messages.ChildExited(self._refs.pop(id), reason) for id, reason in pairs)
        )

    def call(self, kind, **fields):
        return self.tell(kind(reply="reply", **fields))

    def tell(self, *news):
        """Have the machine read the messages, and all that comes of them; return what was ordered."""
        self.log = []
        self._queue.extend(news)
        while self._queue:
            for action in self.machine.receive(self._queue.popleft(), 0.0):
                OBEY.get(type(action), World._pass)(self, action)
        return self.log

    @property
    def ids(self):
        """The children that are specified."""
        return list(self.machine.slots)

    @property
    def spent(self):
        """How many units of the window are gone."""
        return self.machine.window.count(0.0)

    def _start(self, action):
        id = action.spec.id
        self.log.append(f"start {id}")
        if id in self.ignores:
            self._queue.append(messages.ChildExited(action.ref, IGNORED))
        elif self.failures[id]:
            self.failures[id] -= 1
            self._queue.append(messages.ChildExited(action.ref, FAILED))
        else:
            self._refs[id] = action.ref
            self._queue.append(messages.ChildStarted(action.ref))

    def _stop(self, action):
        id = self.machine._live[action.ref].id
        self.log.append(f"stop {id}")
        if self._refs.pop(id, None) is not None:  # otherwise its exit is on the queue already
            self._queue.append(messages.ChildExited(action.ref, SHUTDOWN))

    def _again(self, action):
        self._queue.append(messages.Retry(action.ref))

    def _tell(self, action):
        self.log.append(f"{type(action.report).__name__} {action.report.path.rpartition('/')[2]}")

    def _answer(self, action):
        self.log.append("answer")

    def _refuse(self, action):
        self.log.append(f"refuse {type(action.error).__name__}")

    def _up(self, action):
        self.log.append("up")

    def _end(self, action):
        self.end = action.reason
        self.log.append(f"end {action.reason.kind.value}")

    def _pass(self, action):
        pass


OBEY = {
    messages.Start: World._start,
    messages.Stop: World._stop,
    messages.Again: World._again,
    messages.Tell: World._tell,
    messages.Answer: World._answer,
    messages.Refuse: World._refuse,
    messages.Up: World._up,
    messages.End: World._end,
}


def world(*children, **flags):
    """Return a supervisor that is up; ids stand for permanent children."""
    up = World(*children, **flags)
    up.boot()
    return up


def test_vector_01_a_failed_start_is_rolled_back():
    """The first failure ends the start: what is up is stopped in reverse, what comes after is never started."""
    app = World("a", "b", "X", "d")
    app.failures["X"] = 1

    assert app.boot() == [
        *("start a", "Progress a", "start b", "Progress b", "start X"),
        *("StartFailed X", "stop b", "stop a", "end shutdown"),
    ]
    assert (app.end.exception.path, app.end.exception.__cause__) == ("app/X", FAILED.exception)


def test_vector_02_one_for_all_brings_back_all_that_are_specified():
    """Terminated, ignored and finished children are started too; temporary ones are gone; all for one unit."""
    ending = [child("tr", restart="transient"), child("tmp", restart="temporary")]
    app = World("a", "b", "ig", *ending, "e", "f", strategy="one_for_all")
    app.ignores = {"ig"}
    app.boot()
    app.call(messages.TerminateChild, id="b")
    app.die(("tr", NORMAL))
    log = app.die("e")

    assert [line for line in log if not line.startswith("Progress")] == [
        *("ChildTerminated e", "stop f", "stop tmp", "stop a"),
        *("start a", "start b", "start ig", "start tr", "start e", "start f"),
    ]
    assert app.ids == ["a", "b", "ig", "tr", "e", "f"]
    assert app.spent == 1


def test_vector_03_rest_for_one_restarts_from_the_crashed_one_on():
    """Those before the crashed child are left alone, those after it stop in reverse and start in order."""
    app = world("a", "b", child("tmp", restart="temporary"), "d", "e", strategy="rest_for_one")
    app.call(messages.TerminateChild, id="e")

    assert app.die("b") == [
        *("ChildTerminated b", "stop d", "stop tmp"),
        *("start b", "Progress b", "start d", "Progress d", "start e", "Progress e"),
    ]
    assert app.ids == ["a", "b", "d", "e"]


@pytest.mark.parametrize(
    ("restart", "reason"),
    [("permanent", CRASH), ("permanent", NORMAL), ("permanent", LEFT), ("transient", CRASH)],
)
def test_vector_04_intensity_zero(restart, reason):
    """Any end that would lead to a restart is one too many."""
    app = world(child("a", restart=restart), intensity=0)

    assert app.die(("a", reason)) == ["ChildTerminated a", "LimitReached app", "end limit_reached"]


def test_vector_05_the_window_is_the_supervisors():
    """One crash each of two children is two units."""
    app = world("a", "b", intensity=1)

    assert app.die("a") == ["ChildTerminated a", "start a", "Progress a"]
    assert app.die("b") == ["ChildTerminated b", "LimitReached app", "stop a", "end limit_reached"]


def test_vector_06_what_costs_nothing():
    """A temporary child's crash, a transient child's normal end, and calls that fail, cost nothing."""
    app = world(
        child("tmp", restart="temporary"), child("tr", restart="transient"), "a", intensity=0
    )
    app.failures.update(new=1, a=1)

    assert app.die("tmp") == ["ChildTerminated tmp"]
    assert app.die(("tr", LEFT)) == []
    assert app.call(messages.StartChild, spec=child("new")) == ["start new", "refuse StartError"]
    assert app.call(messages.TerminateChild, id="a") == ["stop a", "answer"]
    assert app.call(messages.RestartChild, id="a") == ["start a", "refuse StartError"]
    assert (app.ids, app.spent) == (["tr", "a"], 0)


def test_vector_07_intensity_is_the_number_of_attempts():
    """With intensity 3 a child that never starts again is tried three times."""
    app = world("a", intensity=3)
    app.failures["a"] = 99

    assert app.die("a") == [
        "ChildTerminated a",
        *["start a", "StartFailed a"] * 3,
        *("LimitReached app", "end limit_reached"),
    ]


def test_vector_08_one_for_all_starts_over_at_each_attempt():
    """What had started before the child that failed is stopped, and started again."""
    app = world("a", "b", "d", strategy="one_for_all", intensity=3)
    app.failures["b"] = 2

    assert app.die("a") == [
        *(
            "ChildTerminated a",
            "stop d",
            "stop b",
            "start a",
            "Progress a",
            "start b",
            "StartFailed b",
        ),
        *("stop a", "start a", "Progress a", "start b", "StartFailed b"),
        *("stop a", "start a", "Progress a", "start b", "Progress b", "start d", "Progress d"),
    ]
    assert app.spent == 3


def test_vector_09_rest_for_one_goes_on_from_the_one_that_failed():
    """What had started before the child that failed stays up."""
    app = world("a", "b", "d", strategy="rest_for_one", intensity=3)
    app.failures["b"] = 2

    assert app.die("a") == [
        *(
            "ChildTerminated a",
            "stop d",
            "stop b",
            "start a",
            "Progress a",
            "start b",
            "StartFailed b",
        ),
        *("start b", "StartFailed b"),
        *("start b", "Progress b", "start d", "Progress d"),
    ]
    assert app.spent == 3


def test_vector_10_one_for_all_absorbs_a_second_death():
    """Two dead before the supervisor looks: the first is a death, the second a bad stop; one unit."""
    app = world("a", "b", strategy="one_for_all", intensity=1)

    assert app.die("a", "b") == [
        *("ChildTerminated a", "stop b", "ShutdownError b"),
        *("start a", "Progress a", "start b", "Progress b"),
    ]
    assert app.spent == 1


def test_vector_11_rest_for_one_counts_an_earlier_siblings_death():
    """The later child's restart does not touch the earlier one, whose death is one of its own: two units."""
    app = world("a", "d", strategy="rest_for_one", intensity=1)
    log = app.die("d", "a")

    assert [line for line in log if "Progress" not in line] == [
        *(
            "ChildTerminated d",
            "start d",
            "ChildTerminated a",
            "LimitReached app",
            "stop d",
            "end limit_reached",
        ),
    ]


def test_vector_12_the_limit_stops_the_others_in_reverse():
    """No start is attempted at the limit, and the others stop in reverse start order."""
    app = world("a", "b", "c", "e", intensity=0)

    assert app.die("b") == [
        *(
            "ChildTerminated b",
            "LimitReached app",
            "stop e",
            "stop c",
            "stop a",
            "end limit_reached",
        ),
    ]


@pytest.mark.parametrize(
    ("restart", "log", "ids"),
    [
        ("permanent", ["ChildTerminated sub", "start sub", "Progress sub"], ["sub"]),
        ("transient", [], ["sub"]),
        ("temporary", [], []),
    ],
)
def test_vector_13_a_child_supervisor_at_its_limit(restart, log, ids):
    """For its parent it has ended normally: restarted, kept or removed by its restart type."""
    app = world(nested("sub", restart=restart))

    assert app.die(("sub", LIMIT)) == log
    assert app.ids == ids


def test_vector_14_a_significant_child_supervisor_at_its_limit():
    """It counts as a normal end, so a parent with any_significant ends."""
    app = world(
        "a", nested("sub", restart="transient", significant=True), auto_shutdown="any_significant"
    )

    assert app.die(("sub", LIMIT)) == ["AutoShutdownBegun app", "stop a", "end shutdown"]


def test_vector_15_terminate_child_is_no_group_restart():
    """A terminated child's siblings are left alone, whatever the strategy."""
    app = world("a", "b", strategy="one_for_all")

    assert app.call(messages.TerminateChild, id="a") == ["stop a", "answer"]


def test_vector_16_a_foreign_exit():
    """The end of somebody who is no child is ignored, and not reported."""
    app = world("a", intensity=0)

    assert app.tell(messages.ChildExited(77, SHUTDOWN), messages.ChildExited(77, CRASH)) == []
