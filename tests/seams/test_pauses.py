"""Time in which the whole program could not run is not silence, and hits no other limit
either.

First the rules, as dialogues with a machine; then real pauses: of the process, of the
interpreter, of a test's clock. Then the ways to switch heartbeats off: the option, and
a debugger. And a clock that fails.
"""

from __future__ import annotations

import asyncio
import bdb
import ctypes
import sys
import threading
import time
import types

import pytest
import structlog

import otpy
from otpy import Backoff, coroutine, start, supervisor, taskgraph, thread
from otpy.children.coroutine import blockage
from otpy.children.program import probes
from otpy.core import messages, pauses
from otpy.core.messages import Due, StopSupervisor
from otpy.reports import ExitKind, Progress, Stalled
from otpy.runtime import debugger, running
from otpy.runtime.waiting import Once
from tests import pausing
from tests.helpers import HANG, ManualClock, Puppet, wait_until
from tests.machine_talk import Talk, booted, brief, child
from tests.seams import kit


class Clocked:
    """A talk in which each deadline is read at a time of the test's."""

    def __init__(self, *children, **flags):
        self.talk = booted(*children, **flags)

    def reads(self, id, *, at, set_for, beat=None, allow=None, debugged=False):
        """Say that the deadline of *id*, which was set for a time, is read at another;
        return the answer.
        """
        slot = self.talk.machine.slots[id]
        until = None if beat is None else beat + (allow or slot.heartbeat)
        return self.hears(Due(slot.ref, until, beat, set_for, is_debugged=debugged), at=at)

    def hears(self, message, *, at):
        return [brief(action) for action in self.talk.machine.receive(message, at)]


STALL = ["expose 1: app/a 1", "stop 1"]


class TestHeartbeats:
    @pytest.mark.parametrize(("heartbeat", "least"), [(2.0, 0.5), (4.0, 1.0), (100.0, 1.0)])
    def test_what_is_a_pause(self, heartbeat, least):
        """A deadline that is read later than it was set for, by a second or a quarter
        of the heartbeat.
        """
        for late, is_stall in ((least - 0.01, True), (least, False)):
            told = Clocked(child("a", heartbeat=heartbeat)).reads(
                "a", at=heartbeat + late, set_for=heartbeat, beat=0.0
            )

            assert (told[:2] == STALL) is is_stall
            assert is_stall or told == [f"arm 1 at {2 * heartbeat + late:g}"]

    def test_the_next_missed_deadline_counts(self):
        """Without a second grace, also if it is read after one more pause."""
        for late in (0.0, 50.0):
            talk = Clocked(child("a", heartbeat=4.0))
            assert talk.reads("a", at=10.0, set_for=4.0, beat=0.0) == ["arm 1 at 14"]

            assert talk.reads("a", at=14.0 + late, set_for=14.0, beat=0.0)[:2] == STALL

    def test_who_has_checked_in_since_is_excused_again(self):
        """As often as there are pauses."""
        talk = Clocked(child("a", heartbeat=4.0))
        for end in (10.0, 20.0, 30.0):
            assert talk.reads("a", at=end, set_for=end - 5.0, beat=end - 9.0) == [
                f"arm 1 at {end + 4:g}"
            ]

    def test_a_pause_is_known_to_all(self):
        """Each deadline may show it; a deadline that is read in time after it does not
        count either.
        """
        talk = Clocked(child("a", heartbeat=4.0), child("b", heartbeat=4.0))
        talk.reads("a", at=10.0, set_for=4.0, beat=0.0)

        assert talk.reads("b", at=10.0, set_for=9.9, beat=5.9) == ["arm 2 at 14"]

    def test_a_check_in_after_the_pause_is_one(self):
        """The deadline moves to where it belongs."""
        talk = Clocked(child("a", heartbeat=4.0))

        assert talk.reads("a", at=10.0, set_for=4.0, beat=0.0) == ["arm 1 at 14"]
        assert talk.reads("a", at=14.0, set_for=14.0, beat=11.0) == ["arm 1 at 15"]
        assert talk.reads("a", at=15.0, set_for=15.0, beat=11.0)[:2] == STALL

    def test_what_was_allowed_for_once_is_left(self):
        """As much of it as was left when the supervisor ran for the last time, and at
        least a heartbeat.
        """
        for looked, left in ((10.0, 90.0), (99.0, 4.0)):
            talk = Clocked(child("a", heartbeat=4.0))
            talk.hears(messages.CountChildren(reply="c"), at=looked)

            assert talk.reads("a", at=200.0, set_for=100.0, beat=0.0, allow=100.0) == [
                f"arm 1 at {200 + left:g}"
            ]

    def test_under_a_debugger_nobody_stalls(self):
        """Each heartbeat it is looked at again; without the debugger it counts."""
        talk = Clocked(child("a", heartbeat=4.0))

        assert talk.reads("a", at=4.0, set_for=4.0, beat=0.0, debugged=True) == ["arm 1 at 8"]
        assert talk.reads("a", at=8.0, set_for=8.0, beat=0.0, debugged=True) == ["arm 1 at 12"]
        assert talk.reads("a", at=12.0, set_for=12.0, beat=0.0)[:2] == STALL

    def test_switched_off_there_is_no_deadline(self):
        """And the one of the start is cleared as for any child."""
        talk = Talk(child("a", heartbeat=4.0, start_timeout=1.0))
        talk.machine = otpy.core.machine.SupervisorMachine(
            talk.machine.spec, "app", heartbeats=False
        )

        assert talk.begin() == ["start a 1 as 1", "arm 1 at 1"]
        assert talk.up("a") == ["disarm 1", "tell Progress app/a", "up"]
        assert talk.exit("a") == [
            "tell ChildTerminated app/a crashed",
            "start a 2 as 2",
            "arm 2 at 1",
        ]


class TestOtherLimits:
    """A start or a stop that a pause has hit has its whole time again, once."""

    def test_a_start(self):
        """A start has its whole time again, counted from the end of the pause."""
        talk = Talk(child("a", start_timeout=3.0))
        talk.begin()
        clocked = Clocked()
        clocked.talk = talk

        assert clocked.reads("a", at=60.0, set_for=3.0) == ["arm 1 at 63"]
        assert clocked.reads("a", at=70.0, set_for=63.0) == ["stop 1", "arm 1 at 75"]

    def test_the_ladder_of_a_stop(self):
        """Each rung for itself."""
        talk = Clocked(child("a", shutdown=5.0))
        talk.hears(StopSupervisor(), at=10.0)

        assert talk.reads("a", at=60.0, set_for=15.0) == ["arm 1 at 65"]
        assert talk.reads("a", at=65.0, set_for=65.0) == ["kill 1", "arm 1 at 65.5"]
        assert talk.reads("a", at=90.0, set_for=65.5) == ["arm 1 at 90.5"]
        assert talk.reads("a", at=90.5, set_for=90.5) == [
            "disarm 1",
            "abandon 1: app/a 1",
            "end shutdown",
        ]

    def test_the_budget_of_a_stop(self):
        """It is the caller's, who could not run either; a later stop can still shorten
        it.
        """
        talk = Clocked(child("a", shutdown="infinity"))
        assert talk.hears(StopSupervisor(within=2.0), at=10.0) == [
            "arm 0 at 11.5",
            "stop 1",
            "disarm 1",
        ]

        assert talk.hears(Due(messages.SUPERVISOR, at=11.5), at=60.0) == ["arm 0 at 61.5"]
        assert talk.hears(StopSupervisor(within=9.0), at=60.0) == []
        assert talk.hears(Due(messages.SUPERVISOR, at=61.5), at=61.5) == ["kill 1", "arm 1 at 62"]

    def test_a_grace_that_begins_anew_can_be_shortened(self):
        """Found by the walks: a stop within less time comes while it goes on."""
        talk = Clocked(child("a"))
        talk.hears(StopSupervisor(within=0.0, grace=0.5), at=10.0)
        assert talk.reads("a", at=60.0, set_for=10.5) == ["arm 1 at 60.5"]

        said = talk.hears(StopSupervisor(within=0.0, grace=0.1), at=60.0)
        assert said == ["disarm 0", "kill 1", "arm 1 at 60.1"]

    def test_what_cannot_be_killed_is_given_up_at_once(self):
        """There is no deadline in this."""
        talk = Clocked(child("a", shutdown="brutal_kill"))
        talk.hears(StopSupervisor(), at=10.0)
        talk.reads("a", at=60.0, set_for=10.5)

        assert talk.hears(Due(1), at=60.0) == ["disarm 1", "abandon 1: app/a 1", "end shutdown"]

    def test_a_wait_is_over_when_it_is_over(self):
        """A back-off is no limit."""
        talk = Clocked(child("a", backoff=Backoff(2.0, 8.0, jitter=0.0)))
        talk.talk.exit("a")

        assert talk.reads("a", at=60.0, set_for=2.0) == ["disarm 2", "start a 2 as 3"]


def test_pauses_are_kept_and_forgotten():
    """The first one after a time is found; very old ones go."""
    ledger = pauses.Pauses()
    for second in range(5000):
        ledger.note(second, second + 0.5)
        ledger.note(second, second + 0.5)

    assert ledger.after(4000.0).end == 4000.5
    assert ledger.after(4000.5).end == 4001.5
    assert ledger.after(4999.5) is None
    assert ledger.after(0.0).end > 2000
    assert len(ledger._pauses) <= 2 * pauses.REMEMBERED


# Real pauses

SUSPENDED = """
import subprocess, sys, time
from otpy import coroutine, process, start, supervisor, thread
from otpy.reports import Stalled
from tests import pausing

many, rounds, seconds, between = int(sys.argv[1]), *map(float, sys.argv[2:])
stalls, healthy = [], {"heartbeat": 1.0}
children = [
    spec
    for n in range(many)
    for spec in (
        thread(pausing.work, id=f"thread-{n}", **healthy),
        coroutine(pausing.awork, id=f"coroutine-{n}", **healthy),
        process(sys.executable, "-c", pausing.PROGRAM, id=f"program-{n}", **healthy),
        process(pausing.work, id=f"callable-{n}", **healthy),
    )
]
children.append(thread(pausing.hang, rounds * (seconds + between), id="hangs", **healthy))
app = start(
    supervisor("app", intensity=10000, children=children),
    log=False,
    reports=lambda report: isinstance(report, Stalled) and stalls.append(report.path),
)
again = f"kill -STOP $PPID; sleep {seconds}; kill -CONT $PPID; sleep {between}"
subprocess.run(["sh", "-c", f"sleep {between}; for n in $(seq {rounds:.0f}); do {again}; done"], check=True)
deadline = time.monotonic() + 20
while not stalls and time.monotonic() < deadline:
    time.sleep(0.05)
app.stop(10)
print(sorted(set(stalls)))
"""


def test_a_suspended_process_has_no_stalls():
    """All kinds of children are healthy after SIGSTOP and SIGCONT; and one that really
    hangs is found.
    """
    assert kit.python(SUSPENDED, 2, 2, 1.6, 0.5, hang=120.0).out == "['app/hangs']\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [3.0, 1.1])
def test_a_process_that_is_suspended_twenty_times_has_no_stalls(seconds):
    """Ten children of each kind; pauses that are as long as a heartbeat, too."""
    assert kit.python(SUSPENDED, 10, 20, seconds, 1.2, hang=250.0).out == "['app/hangs']\n"


STOPPING = """
import os, subprocess, time
from otpy import start, supervisor, thread

def slow(ctx):
    ctx.wait_stop()
    time.sleep(0.3)  # what it needs to put its things in order

app = start(supervisor("app", children=[thread(slow, shutdown=1.0)]), log=False)
subprocess.Popen(["sh", "-c", "sleep 0.1; kill -STOP $PPID; sleep 2.2; kill -CONT $PPID"])
time.sleep(0.05)
print(app.stop().interrupted)
"""


def test_a_child_that_was_asked_before_the_pause_has_its_time_after_it():
    """It is not interrupted in the first moment after SIGCONT."""
    assert kit.python(STOPPING).out == "()\n"


def test_a_call_that_holds_the_interpreter_is_a_pause(launch, recorder):
    """No thread runs while it lasts. Here it is usleep, called without letting go of
    the interpreter's lock.
    """
    app = launch(
        supervisor(
            "app", children=[thread(pausing.work, id=f"c{n}", heartbeat=0.6) for n in range(5)]
        )
    )
    ctypes.PyDLL(None).usleep(900_000)
    time.sleep(0.7)  # long enough for a stall to be found

    assert recorder.of(Stalled) == []
    assert [one.incarnation for one in app.which_children()] == [1] * 5


def test_the_clock_of_a_test_jumps(launch, recorder):
    """That is a pause, however often."""
    clock, puppet = ManualClock(), Puppet()
    app = launch(supervisor("app", children=[puppet.spec("a", heartbeat=10.0)]), clock=clock)
    life = puppet.next()
    for _ in range(3):
        clock.advance(60.0)
        for _ in range(
            3
        ):  # the first wakes it, the second may be read with the deadline, the third comes after
            app.count_children()
        checked_in = threading.Event()
        life.do(lambda done=checked_in: (life.ctx.check_in(), done.set()))
        assert checked_in.wait(HANG)
    assert recorder.of(Stalled) == []

    clock.advance(60.0)
    for _ in range(3):
        app.count_children()
    clock.advance(10.0)
    app.count_children()
    assert recorder.wait_for(Stalled, "app/a").incarnation == 1


class Blocker:
    """A coroutine child that blocks its loop when it is told to, until it is released."""

    def __init__(self):
        self.go, self.blocked, self.release = asyncio.Event(), threading.Event(), threading.Event()
        self.loop = None

    async def __call__(self, ctx):
        if ctx.incarnation == 1:
            self.loop = asyncio.get_running_loop()
            await self.go.wait()
            self.blocked.set()
            self.release.wait(HANG)  # blocks the loop
        await ctx.wait_stop()

    def block(self):
        wait_until(lambda: self.loop)
        self.loop.call_soon_threadsafe(self.go.set)
        assert self.blocked.wait(HANG)


@pytest.fixture
def blocker():
    one = Blocker()
    yield one
    one.release.set()


def pass_time(app, clock, seconds):
    clock.advance(seconds)
    for _ in range(3):
        app.count_children()


def test_a_loop_that_could_not_run_is_not_blocked(launch, recorder, blocker):
    """It has BLOCKED_AFTER once more; if it is still blocked then, it is given up."""
    clock = ManualClock()
    app = launch(supervisor("app", children=[coroutine(blocker, id="a")]), clock=clock)
    blocker.block()
    app.count_children()  # the watch has begun
    pass_time(app, clock, 3 * blockage.BLOCKED_AFTER)
    assert recorder.of(Stalled) == []
    assert [one.incarnation for one in app.which_children()] == [1]

    wait_until(lambda: (pass_time(app, clock, blockage.BLOCKED_AFTER), recorder.of(Stalled))[1])
    assert recorder.wait_for(Progress, "app/a", count=2).incarnation == 2


def test_a_probe_that_was_suspended_has_not_failed(monkeypatch):
    """An attempt that took longer than it may says nothing; one that failed in time
    does.
    """
    now, over, answers = [0.0], Once(), []
    took = iter([0.5, 60.0, 0.5])

    class Fails:
        timeout = 1.0

        def check(self, over):
            now[0] += next(took)
            return False

    def answer(is_well):
        answers.append((now[0], is_well))
        if len(answers) == 2:
            over.happen()

    monkeypatch.setattr(probes, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    probes.while_alive(types.SimpleNamespace(probe=Fails(), interval=0.0), over, answer)

    assert answers == [(0.5, False), (61.0, False)]


def test_a_task_that_could_not_run_has_its_timeout_once_more(monkeypatch):
    """As if the whole program had been suspended when its timeout came."""
    monkeypatch.setattr(taskgraph.run, "PAUSE", -1.0)
    graph, release = taskgraph.TaskGraph(), threading.Event()
    graph.add(release.wait, name="hangs", timeout=0.1)
    began = time.monotonic()
    failure = graph.run().failures["hangs"]
    release.set()

    assert failure.kind is ExitKind.STALLED
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize(("pause", "times"), [(-1.0, 2), (1.0, 1)], ids=["a pause", "none"])
def test_a_tree_that_could_not_come_up_has_its_timeout_once_more(monkeypatch, pause, times):
    """As if the whole program had been suspended when the time was over; then it counts."""
    monkeypatch.setattr(running, "PAUSE", pause)
    began = time.monotonic()
    with pytest.raises(otpy.StartError, match=r"app/wait did not start: not up after 0\.1 s"):
        start(
            supervisor("app", children=[thread(pausing.hang, HANG, id="wait", ready=True)]),
            log=False,
            timeout=0.1,
        )

    assert time.monotonic() - began >= 0.1 * times


# Heartbeats off


def test_without_heartbeats_nobody_stalls(launch, recorder, blocker):
    """A silent child and a blocked loop are left alone; all else is as ever."""
    clock, puppet = ManualClock(), Puppet()
    children = [puppet.spec("a", heartbeat=10.0), coroutine(blocker, id="b")]
    app = launch(supervisor("app", children=children), clock=clock, heartbeats=False)
    blocker.block()
    for _ in range(4):
        pass_time(app, clock, 100.0)
        pass_time(app, clock, blockage.BLOCKED_AFTER)
    assert [one.incarnation for one in app.which_children()] == [1, 1]
    assert recorder.of(Stalled) == []

    puppet.next().crash()
    assert recorder.wait_for(Progress, "app/a", count=2).incarnation == 2
    blocker.release.set()


@pytest.mark.parametrize("value", [None, 0, 1, "no"])
def test_the_option_is_a_bool(value):
    """Refused with option and value."""
    with pytest.raises(otpy.SpecError, match=r"app: heartbeats = .*: expected True or False"):
        start(supervisor("app"), heartbeats=value)


class Quiet(bdb.Bdb):
    """A debugger that looks on."""

    def trace_dispatch(self, frame, event, arg):
        return None


class TestDebuggers:
    """A debugger is told from a coverage tool, and looked for only when a child is
    silent.
    """

    @pytest.fixture(autouse=True)
    def _no_trace(self):
        before = sys.gettrace(), threading.gettrace()
        yield
        sys.settrace(before[0])
        threading.settrace(before[1])

    def test_there_is_none(self):
        """Also under coverage, if that measures these tests."""
        assert not debugger.is_attached()

    def test_a_tracer_is_none(self):
        """What coverage tools do."""

        def trace(frame, event, arg):
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        assert not debugger.is_attached()

    def test_bdb_traces_this_thread(self):
        """pdb and its kin."""
        sys.settrace(Quiet().trace_dispatch)
        assert debugger.is_attached()

    def test_bdb_traces_all_new_threads(self):
        """As a debugger that follows threads does."""
        threading.settrace(Quiet().trace_dispatch)
        assert debugger.is_attached()

    def test_bdb_traces_another_thread(self):
        """A breakpoint in a child."""
        inside, done = threading.Event(), threading.Event()

        def traced():
            sys._getframe().f_trace = Quiet().trace_dispatch
            inside.set()
            done.wait(HANG)

        other = threading.Thread(target=traced)
        other.start()
        assert inside.wait(HANG)
        try:
            assert debugger.is_attached()
        finally:
            done.set()
            other.join(HANG)
        assert not debugger.is_attached()

    def test_a_thread_stands_in_bdb(self):
        """It waits for a command, wherever the trace functions are."""
        inside, done = threading.Event(), threading.Event()

        class Waiting(bdb.Bdb):
            def user_line(self, frame):
                inside.set()
                done.wait(HANG)

        other = threading.Thread(target=lambda: Waiting().run("pass", {}))
        other.start()
        assert inside.wait(HANG)
        try:
            assert debugger.is_attached()
        finally:
            done.set()
            other.join(HANG)

    def test_pydevd_is_one(self, monkeypatch):
        """It says itself whether it is at work."""
        constants, attached = types.ModuleType("_pydevd_bundle.pydevd_constants"), [object()]
        constants.get_global_debugger = lambda: attached[0]
        monkeypatch.setitem(sys.modules, constants.__name__, constants)
        assert debugger.is_attached()
        attached[0] = None
        assert not debugger.is_attached()

    def test_debugpy_is_one_if_a_client_is_connected(self, monkeypatch):
        """A program may listen for one as long as it runs."""
        debugpy, constants, connected = (
            types.ModuleType("debugpy"),
            types.ModuleType("constants"),
            [False],
        )
        debugpy.is_client_connected = lambda: connected[0]
        constants.get_global_debugger = object
        monkeypatch.setitem(sys.modules, "debugpy", debugpy)
        monkeypatch.setitem(sys.modules, "_pydevd_bundle.pydevd_constants", constants)
        assert not debugger.is_attached()
        connected[0] = True
        assert debugger.is_attached()

    def test_one_that_fails_to_answer_is_none(self, monkeypatch):
        """What it raises goes no further."""
        constants = types.ModuleType("_pydevd_bundle.pydevd_constants")
        constants.get_global_debugger = lambda: 1 / 0
        monkeypatch.setitem(sys.modules, constants.__name__, constants)
        assert not debugger.is_attached()

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is newer")
    def test_a_tool_has_the_number_of_debuggers(self):
        """Whatever its name is; the number of coverage tools is another one."""
        for number, is_one in (
            (sys.monitoring.DEBUGGER_ID, True),
            (sys.monitoring.PROFILER_ID, False),
        ):
            if sys.monitoring.get_tool(number) is None:
                sys.monitoring.use_tool_id(number, "test")
                try:
                    assert debugger.is_attached() is is_one
                finally:
                    sys.monitoring.free_tool_id(number)

    def test_a_silent_child_is_left_alone(self, launch, recorder, monkeypatch):
        """While the debugger is attached. It is looked for when a child is silent, and
        at no other time.
        """
        looks, attached, clock, puppet = [], [True], ManualClock(), Puppet()
        monkeypatch.setattr(debugger, "is_attached", lambda: looks.append(1) or attached[0])
        app = launch(supervisor("app", children=[puppet.spec("a", heartbeat=10.0)]), clock=clock)
        life = puppet.next()
        checked_in = threading.Event()
        clock.advance(9.0)
        life.do(lambda: (life.ctx.check_in(), checked_in.set()))
        assert checked_in.wait(HANG)
        pass_time(app, clock, 1.0)
        assert looks == []

        pass_time(app, clock, 9.0)
        wait_until(lambda: len(looks) == 1)
        assert [one.incarnation for one in app.which_children()] == [1]
        attached[0] = False
        pass_time(app, clock, 10.0)
        assert recorder.wait_for(Stalled, "app/a").incarnation == 1


# A clock that fails


class Moody(ManualClock):
    """Fails when it is told to."""

    mood = None

    def monotonic(self):
        if isinstance(self.mood, Exception):
            raise self.mood
        return super().monotonic() if self.mood is None else self.mood


@pytest.mark.parametrize("mood", [OSError("no time today"), "noon", float("nan"), True], ids=repr)
def test_a_clock_that_fails_ends_nothing(launch, recorder, mood):
    """Time stands still until it works again; that is logged once."""
    clock, puppet = Moody(), Puppet()
    app = launch(supervisor("app", children=[puppet.spec("a", heartbeat=10.0)]), clock=clock)
    life = puppet.next()
    with structlog.testing.capture_logs() as logs:
        clock.mood = mood
        assert [one.incarnation for one in app.which_children()] == [1]
        life.crash()
        assert recorder.wait_for(Progress, "app/a", count=2).incarnation == 2
        clock.mood = None
        app.count_children()
        wait_until(lambda: logs)

    assert [one["event"] for one in logs] == ["clock_failed"]
    assert app.alive


def test_a_clock_that_fails_from_the_beginning_is_refused():
    """Before anything starts."""
    clock = Moody()
    clock.mood = OSError("no time today")

    with pytest.raises(
        otpy.SpecError, match=r"app: clock = .*a clock that tells the time .*no time today"
    ):
        start(supervisor("app"), clock=clock)


def test_its_time_is_handed_on(launch):
    """The clock is asked each time, by children as well."""
    clock, puppet = ManualClock(), Puppet()
    app = launch(supervisor("app", children=[puppet.spec("a", heartbeat=10.0)]), clock=clock)
    puppet.next()
    clock.advance(3.0)

    assert app.snapshot().children[0].heartbeat_age == 3.0
