"""Callables in processes: what they see, how they end, and that nothing of them is left."""

import contextlib
import errno
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

import otpy
from otpy import ExitKind, SpecError, dynamic_supervisor, process, supervisor
from otpy.children.callable import far_side, protocol, wires
from otpy.children.callable import process as processes
from otpy.children.callable.child import MAX_MESSAGE_SIZE
from otpy.children.callable.keeper import Keeper
from otpy.children.callable.reading import Messages
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ChildTerminated, Progress, Stalled, Unstopped
from otpy.runtime import posix
from tests import callees
from tests.helpers import HANG, ManualClock, close, wait_until
from tests.seams import callables
from tests.test_child_contract import Stage

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")


@pytest.fixture
def stage():
    stages = []

    def set_up(spec):
        stages.append(Stage(spec))
        return stages[-1]

    yield set_up
    for one in stages:
        close(one.tree)


@pytest.fixture
def where(tmp_path):
    """A file that does not exist yet."""
    return str(tmp_path / "said")


def heard(where):
    """Wait for what has been said there."""
    wait_until(pathlib.Path(where).exists, f"nothing said in {where}")
    return json.loads(pathlib.Path(where).read_text())


def is_gone(pid):
    """Whether that process runs no more. A zombie does not; some machines have no init that would reap it."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def is_reaped(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def descriptors():
    """How many are open here."""
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def end_of(scene):
    """Return why the child ended."""
    while not isinstance(news := scene.hear(), ChildExited):
        pass
    return news.reason


# What it sees


def test_it_sees_what_a_thread_sees(launch, where):
    launch(supervisor("app", children=[process(callees.tell, where, id="x")]))

    assert heard(where) == ["x", "app/x", 1, True, True, None, None]


def test_it_leads_a_session_and_a_group_of_its_own(launch, where):
    """Its stdin is empty, and it is our child."""
    launch(supervisor("app", children=[process(callees.tell_group, where)]))
    pid, session, group, parent, stdin = heard(where)

    assert pid == session == group
    assert (parent, stdin) == (os.getpid(), "")


def test_all_of_otpy_works_there(launch, where, capfd):
    """The rest is imported when it is asked for: current, log, and refusals; and on_stop is called."""
    app = launch(supervisor("app", children=[process(callees.use_otpy, where)]))
    is_current, refused = heard(where)
    app.stop()

    assert is_current
    assert "no handle of its supervisor" in refused
    assert "hello" in capfd.readouterr().out
    assert heard(f"{where}.stopped") == [True]


def test_the_far_side_is_light():
    """The interpreter loads the files of the far side alone, and nothing slow with them."""
    boot, main, _ = processes.BOOT.partition("module.main(")
    boot = boot.format(modules=processes.MODULES, home=processes._home())
    program = f"import sys; before = set(sys.modules)\n{boot}\nprint(*set(sys.modules) - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()

    assert main
    assert {name for name in loaded if name.startswith("otpy")} == set(processes.MODULES)
    assert not {"attr", "attrs", "structlog", "typing", "json", "traceback"} & set(loaded)


def test_its_replacement_gets_its_state_and_knows_its_end(launch, where, recorder):
    """An unpicklable state is refused where it is saved, and changes nothing."""
    launch(supervisor("app", children=[process(callees.hand_over, where)]))

    assert heard(where) == [{"lines": 3}, False, "bad luck", "crashed"]
    assert "cannot pickle" in recorder.wait_for(ChildTerminated).reason.traceback


def test_what_snapshot_returns_is_saved(stage):
    scene = stage(process(callees.save, "abc", snapshot=callees.shortened, restart="temporary"))
    end_of(scene)

    assert far_side.pickle.loads(scene.child.state.pickled) == "ab"


def test_much_goes_both_ways(launch, where):
    """More than a pipe holds at a time."""
    launch(supervisor("app", children=[process(callees.big, "x" * 3_000_000, where)]))

    assert heard(where) == [3_000_000]


def test_queues_of_multiprocessing_may_be_arguments(launch):
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    launch(supervisor("app", children=[process(callees.put, queue, "hello")]))

    assert queue.get() == "hello"
    queue.close()


# What is refused when the spec is made


def nested():
    def inner(ctx): ...

    return inner


@pytest.mark.parametrize(
    ("function", "args", "options", "field"),
    [
        (lambda ctx: None, (), {"id": "x"}, "target"),
        (nested(), (), {}, "target"),
        (threading.Lock().acquire, (), {"id": "x"}, "target"),
        (callees.tell, (), {}, "target"),
        (callees.tell, (threading.Lock(),), {}, "args[0]"),
        (callees.put, (1, multiprocessing.get_context("fork").SimpleQueue()), {}, "args[1]"),
        (callees.tell, (1,), {"snapshot": lambda state: state}, "snapshot"),
    ],
)
def test_what_cannot_be_sent_is_refused_when_the_spec_is_made(function, args, options, field):
    with pytest.raises(SpecError) as refusal:
        process(function, *args, **options)

    assert refusal.value.field == field
    assert refusal.value.path in ("x", "tell", "inner", "put")
    assert "expected" in str(refusal.value)


def test_a_spec_is_a_value():
    assert process(callees.tell, "a", heartbeat=3) == process(callees.tell, "a", heartbeat=3)
    assert process(callees.tell, "a") != process(callees.tell, "b")
    assert process(callees.tell, "a").id == "tell"
    with pytest.raises(TypeError, match="process"):
        process(callees.tell, "a", strategy="one_for_all")


# How it ends

ENDS = {
    # what it does: kind, what is said
    "returns": (process(callees.save), ExitKind.NORMAL, "normal"),
    "exits": (process(callees.leave, 0), ExitKind.NORMAL, "normal"),
    "exits 3": (process(callees.leave, 3), ExitKind.CRASHED, "SystemExit(3)"),
    "vanishes": (process(callees.vanish, 0), ExitKind.NORMAL, "normal"),
    "vanishes 3": (process(callees.vanish, 3), ExitKind.CRASHED, "exit code 3"),
    "segfault": (process(callees.segfault), ExitKind.CRASHED, "in segfault"),
    "SIGSEGV": (process(callees.segfault), ExitKind.CRASHED, "killed by SIGSEGV"),
    "SIGKILL": (process(callees.kill_itself), ExitKind.CRASHED, "killed by SIGKILL"),
    "raises": (process(callees.fall_ill), ExitKind.CRASHED, "in fall_ill"),
    "Shutdown": (process(callees.raise_word, "Shutdown", "enough"), ExitKind.SHUTDOWN, "enough"),
    "Ignore": (process(callees.raise_word, "Ignore"), ExitKind.NORMAL, "Ignore"),
    "Fatal": (process(callees.raise_word, "Fatal", "fire"), ExitKind.CRASHED, "Fatal: fire"),
    "Shutdown, unpicklable": (
        process(callees.raise_word_with_lock, "Shutdown"),
        ExitKind.SHUTDOWN,
        "lock object",
    ),
    "Killed": (process(callees.raise_word, "Killed"), ExitKind.KILLED, "Killed"),
    "unpicklable": (
        process(callees.raise_word_with_lock, "NotAlive"),
        ExitKind.CRASHED,
        "NotAlive(<unlocked",
    ),
    "awkward": (process(callees.raise_awkward), ExitKind.CRASHED, "Awkward"),
    "exits oddly": (process(callables.leave_oddly), ExitKind.CRASHED, "SystemExit(Odd())"),
    "nasty": (process(callees.raise_nasty), ExitKind.CRASHED, "Nasty()"),
}


@pytest.mark.parametrize(("spec", "kind", "said"), ENDS.values(), ids=ENDS)
def test_each_end_has_its_reason(spec, kind, said, stage):
    reason = end_of(stage(spec))

    assert reason.kind is kind
    assert said in f"{reason} {reason.traceback}"
    assert reason.is_fatal == ("Fatal" in said)
    assert reason.is_ignore == ("Ignore" in said)


def test_death_by_a_signal_is_told_in_full(stage):
    died = end_of(stage(process(callees.segfault))).exception

    assert isinstance(died, otpy.ProcessDied)
    assert (died.returncode, died.signal) == (-signal.SIGSEGV, "SIGSEGV")
    assert "Fatal Python error" in died.stack


def test_it_is_restarted_when_somebody_kills_it(launch, where, recorder):
    launch(supervisor("app", children=[process(callees.tell_group, where)]))
    [pid, *_] = heard(where)
    os.kill(pid, signal.SIGKILL)

    assert str(recorder.wait_for(ChildTerminated).reason.exception) == "killed by SIGKILL"
    assert recorder.wait_for(Progress, "app/tell_group", count=2).incarnation == 2
    assert is_reaped(pid)


def test_what_cannot_be_imported_there_is_a_failed_start(monkeypatch, stage):
    module = types.ModuleType("only_here")
    exec("def run(ctx): ...", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    scene = stage(process(module.run))
    news = scene.hear()

    assert isinstance(news, ChildExited)
    assert isinstance(news.reason.exception, ModuleNotFoundError)


def reaped_by_somebody_else(pid):
    os.waitpid(pid, 0)
    return posix.Ended(None, is_reaped=True)


def test_somebody_else_has_reaped_it(stage, where, monkeypatch):
    """Then its last word still counts, and no number is used that may belong to others by now."""
    scene = stage(process(callees.tell_group, where))
    [pid, *_] = heard(where)
    monkeypatch.setattr(posix, "await_exit", reaped_by_somebody_else)
    scene.child.stop()

    assert end_of(scene).kind is ExitKind.SHUTDOWN
    assert is_reaped(pid)


def test_no_grandchild_is_left_when_somebody_else_has_reaped_it(stage, where, monkeypatch):
    """Its number is free then, but not that of its group, as long as somebody is in it."""
    scene = stage(process(callees.with_grandchild, where))
    _, grandchild = heard(where)
    monkeypatch.setattr(posix, "await_exit", reaped_by_somebody_else)
    scene.child.stop()

    assert end_of(scene).kind is ExitKind.SHUTDOWN
    wait_until(lambda: is_gone(grandchild))


def test_somebody_else_reaps_it_when_its_death_has_been_noticed(stage, monkeypatch):
    """Its exit code is known by then: a crash does not become a normal end, of which nobody would be told."""
    notice = os.waitid

    def lose(kind, pid, options):
        found = notice(kind, pid, options)
        os.waitpid(pid, 0)
        return found

    monkeypatch.setattr(os, "waitid", lose)
    reason = end_of(stage(process(callees.vanish, 3)))

    assert (reason.kind, str(reason.exception)) == (ExitKind.CRASHED, "exit code 3")


# How it is stopped


def test_who_does_not_listen_is_killed_and_reaped(launch, where):
    app = launch(supervisor("app", children=[process(callees.deaf, where, shutdown=0.05)]))
    [pid] = heard(where)
    report = app.stop()

    assert report.interrupted == ("app/deaf",)
    assert report.unstopped == ()
    assert is_reaped(pid)


def test_who_must_not_be_killed_is_given_up(launch, where):
    """With ``interrupt=False``: its process runs on, and is named as a thread is that cannot be stopped."""
    app = launch(
        supervisor("app", children=[process(callees.deaf, where, shutdown=0.05, interrupt=False)])
    )
    [pid] = heard(where)
    report = app.stop()

    assert [one.path for one in report.unstopped] == ["app/deaf"]
    assert report.interrupted == ()
    assert not is_gone(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_reaped(pid))


def test_its_end_is_told_when_the_interpreter_has_ended(stage, where):
    """Threads that are no daemons, and what ``atexit`` calls, come first, as in any program."""
    assert end_of(stage(process(callees.ends_slowly, where))).kind is ExitKind.NORMAL
    assert pathlib.Path(f"{where}.thread").exists()
    assert pathlib.Path(f"{where}.atexit").exists()


def test_a_signal_that_kills_it_on_the_way_is_its_end(stage):
    """It has returned, but its interpreter has not ended."""
    reason = end_of(stage(process(callees.dies_after_its_end)))

    assert (reason.kind, str(reason.exception)) == (ExitKind.CRASHED, "killed by SIGKILL")


def test_brutal_kill_asks_nobody(launch, where):
    app = launch(supervisor("app", children=[process(callees.deaf, where, shutdown="brutal_kill")]))
    [pid] = heard(where)
    app.stop()

    assert is_reaped(pid)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_no_grandchild_is_left(stage, where, how):
    scene = stage(process(callees.with_grandchild, where))
    pid, grandchild = heard(where)
    scene.child.kill(1.0) if how == "kill" else scene.child.stop()
    reason = end_of(scene)

    assert reason.kind is (ExitKind.KILLED if how == "kill" else ExitKind.SHUTDOWN)
    assert is_reaped(pid)
    wait_until(lambda: is_gone(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="they are found in /proc")
@pytest.mark.parametrize("how", ["stop", "kill", "crash"])
def test_nothing_is_left_that_has_left_the_session(stage, where, how):
    """It is found by the mark that it has inherited, and has ended before the end of the callable is told."""
    scene = stage(process(callees.with_daemon, where, how))
    pid, daemon = heard(where)
    if how != "crash":
        scene.child.kill(1.0) if how == "kill" else scene.child.stop()
    end_of(scene)

    assert is_reaped(pid)
    assert is_gone(daemon)


@pytest.mark.skipif(sys.platform != "linux", reason="they are found in /proc")
def test_what_cannot_be_ended_is_told_by_name(stage, where, monkeypatch):
    """And it counts as unstopped for as long as it lives."""
    monkeypatch.setattr(processes, "LINGER", 0.01)
    monkeypatch.setattr(processes.descendants, "send", lambda one, number: None)
    scene = stage(process(callees.with_daemon, where, "stop"))
    told = []
    scene.tree.telemetry.subscribe("root", told.append)
    _, daemon = heard(where)
    scene.child.stop()
    reason = end_of(scene)
    report = wait_until(lambda: told and told[0])

    assert reason.kind is ExitKind.SHUTDOWN
    assert isinstance(report, Unstopped)
    assert f"process {daemon}" in report.stack
    assert "sleep 1000" in report.stack
    assert [one.path for one in scene.tree.unstopped("root")] == ["root/x"]
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not scene.tree.unstopped("root"))


def test_who_is_fenced_can_say_nothing_but_its_end(stage, where):
    scene = stage(process(callees.fenced, where))
    [pid] = heard(where)
    assert str(pid) in scene.child.stack()
    scene.child.abandon()

    assert end_of(scene).kind is ExitKind.KILLED
    assert scene.child.state is None
    assert scene.child.stack() == ""


@pytest.fixture
def slow_spawn(monkeypatch):
    """Processes are only spawned when the test says so."""
    arrived, go, real = threading.Event(), threading.Event(), posix.start_process

    def start_process(*args, **options):
        arrived.set()
        assert go.wait(HANG)
        return real(*args, **options)

    monkeypatch.setattr(posix, "start_process", start_process)
    return arrived, go


@pytest.mark.parametrize(
    ("order", "kind"), [("stop", ExitKind.SHUTDOWN), ("kill", ExitKind.KILLED)]
)
def test_an_order_that_comes_while_it_is_spawned_is_obeyed(stage, slow_spawn, order, kind):
    arrived, go = slow_spawn
    scene = stage(process(callees.obedient))
    assert arrived.wait(HANG)
    scene.child.kill(1.0) if order == "kill" else scene.child.stop()
    go.set()

    assert end_of(scene).kind is kind


def test_what_is_not_wanted_any_more_is_not_spawned(stage, monkeypatch):
    """Stopped before its thread has done anything, it costs no process."""
    spawned, go = [], threading.Event()
    monkeypatch.setattr(posix, "start_process", spawned.append)
    live = Keeper._live
    monkeypatch.setattr(Keeper, "_live", lambda child: (go.wait(HANG), live(child))[1])
    scene = stage(process(callees.obedient))
    scene.child.stop()
    go.set()

    assert end_of(scene).kind is ExitKind.SHUTDOWN
    assert spawned == []


# How it starts


def test_it_is_up_when_it_says_so(stage, where):
    scene = stage(process(callees.ready_then, where, ready=True))

    assert scene.hear() == ChildStarted(7, "root/x")
    assert heard(where) == [True]
    scene.child.stop()
    assert isinstance(scene.hear(), ChildExited)


def test_who_is_not_ready_in_time_is_killed(where):
    late = process(
        callees.never_ready, where, ready=True, start_timeout=1.0, shutdown="brutal_kill"
    )
    with pytest.raises(otpy.StartError):
        otpy.start(supervisor("app", children=[late]), log=False)

    assert is_reaped(heard(where)[0])


@pytest.mark.parametrize("name", ["start_process", "socket_pair", "pipe"])
def test_a_start_that_the_system_refuses_is_a_failed_start(stage, monkeypatch, name):
    def refuse(*args, **options):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(posix, name, refuse)
    scene = stage(process(callees.obedient))
    news = scene.hear()

    assert isinstance(news, ChildExited)
    assert news.reason.exception.errno == errno.EAGAIN


def test_many_start_at_once(launch):
    """Side by side, since no start blocks the supervisor; and no descriptor is left behind."""
    before = descriptors() if sys.platform == "linux" else 0
    app = launch(dynamic_supervisor("app"))
    callers = [
        threading.Thread(target=app.start_child, args=(process(callees.obedient, id=f"c{number}"),))
        for number in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(HANG)
    assert app.count_children().active == 4
    app.stop()

    assert not wires.near_ends
    if before:
        assert descriptors() <= before


# Heartbeats


def test_a_stall_is_noticed(launch, recorder):
    launch(supervisor("app", children=[process(callees.hang_once, heartbeat=1.0, shutdown=0.05)]))
    stall = recorder.wait_for(Stalled)

    assert stall.stack.startswith(
        "process "
    )  # what it was doing follows, if it got a processor in time
    assert recorder.wait_for(ChildTerminated).reason.kind is ExitKind.STALLED
    assert recorder.wait_for(Progress, "app/hang_once", count=2).incarnation == 2


class Ear:
    """A wire that goes nowhere."""

    def __init__(self):
        self.frames = []

    def send(self, kind, content=b""):
        self.frames.append((kind, content))


def context(**facts):
    common = {
        "path": "app/x",
        "incarnation": 1,
        "ready": False,
        "heartbeat": None,
        "snapshot": None,
    }
    common |= {"max_message_size": MAX_MESSAGE_SIZE, "allow_pickle": False}
    return far_side.RemoteContext(
        far_side.Facts(**{**common, "last_exit": None, "state": None, **facts}), Ear()
    )


def test_few_of_many_check_ins_are_sent():
    ctx = context(heartbeat=1000.0)
    for _ in range(1000):
        ctx.check_in()
    assert len(ctx._wire.frames) == 1

    ctx.check_in(allow=5000.0)
    ctx.check_in(allow=5000.0)
    ctx.check_in()
    assert [protocol.ALLOWED.unpack(content) for _, content in ctx._wire.frames] == [
        (0.0,),
        (5000.0,),
        (0.0,),
    ]


def test_without_a_heartbeat_only_state_is_sent():
    ctx = context()
    ctx.check_in()
    ctx.check_in("state")

    assert [kind for kind, _ in ctx._wire.frames] == [protocol.STATE]
    assert ctx.state == "state"


@pytest.mark.parametrize("allow", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_wrong_allowance_is_refused(allow):
    with pytest.raises(ValueError, match="allow"):
        context(heartbeat=1.0).check_in(allow=allow)


def test_a_check_in_that_was_kept_back_is_allowed_for(stage):
    """Of the ones after it some were not sent, so the next may be late by that much."""
    scene = stage(process(callees.obedient, heartbeat=8.0))
    scene.hear()
    before = time.monotonic()
    scene.child._keeper._has_checked_in(protocol.ALLOWED.pack(0.0))
    beat, until = scene.child.pulse()
    scene.child._keeper._has_checked_in(protocol.ALLOWED.pack(100.0))

    assert before <= beat
    assert until == beat + 9.0
    assert scene.child.pulse()[1] == scene.child.pulse()[0] + 101.0
    scene.child.stop()
    end_of(scene)


def test_what_one_did_that_was_late_is_forgotten_when_it_checks_in(stage, where):
    scene = stage(process(callees.late, where, heartbeat=8.0, ready=True))
    scene.hear()
    child = scene.child
    child._keeper._doubt()
    wait_until(lambda: "in late" in child.stack(), "its stack")
    before, again = child.stack(), child.stack()
    child._line.stacks = ""
    child._keeper._doubt()
    wait_until(
        lambda: "in late" in child.stack(),
        "the second answer; one that comes after the check-in is kept",
    )
    pathlib.Path(where).touch()
    wait_until(lambda: not child._keeper._is_doubted)

    assert before == again
    assert re.fullmatch(r"process \d+, which runs .*\n", child.stack())
    assert child._line.running
    child.stop()
    assert end_of(scene).kind is ExitKind.SHUTDOWN


def test_it_is_asked_once_what_it_does_and_a_bit_before_it_has_stalled(stage):
    scene = stage(process(callees.obedient, heartbeat=8.0))
    scene.hear()
    child = scene.child
    scene.tree.clock = ManualClock()
    child._keeper._has_checked_in(protocol.ALLOWED.pack(0.0))
    patience = child._keeper._next_doubt_in()
    child._keeper._is_doubted = True

    assert patience == 8.5
    assert child._keeper._next_doubt_in() is None
    child.stop()
    end_of(scene)


def test_messages_may_come_in_pieces():
    messages = Messages(MAX_MESSAGE_SIZE)
    stream = protocol.HEAD.pack(protocol.STATE, 3) + b"abc" + protocol.HEAD.pack(protocol.UP, 0)
    cut = [one for index in range(len(stream)) for one in messages.cut(stream[index : index + 1])]

    assert cut == [(protocol.STATE, b"abc"), (protocol.UP, b"")]


# Whole programs

PRELUDE = """
import os, signal, sys
from otpy import process, run, start, supervisor
from tests import callees
"""


@pytest.fixture
def program(tmp_path):
    """Run a program of its own, and return its Popen."""
    programs = []
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(otpy.__file__).parent.parent)}

    def begin(text):
        file = tmp_path / "program.py"
        file.write_text(PRELUDE + text)
        programs.append(
            subprocess.Popen(
                [sys.executable, str(file)], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
        return programs[-1]

    yield begin
    for one in programs:
        with contextlib.suppress(ProcessLookupError):
            one.kill()
        one.communicate(timeout=HANG)


ORPHANS = """
if __name__ == "__main__":
    app = start(supervisor("app", children=[process(callees.{name}, {where!r}, ready=True)]), log=False)
    {then}
"""


@pytest.mark.parametrize("name", ["with_grandchild", "with_lock_held"])
def test_all_die_with_a_program_that_is_killed(program, where, name):
    """Even one that never lets go of the interpreter's lock, where the kernel can see to that: Linux."""
    parent = program(ORPHANS.format(name=name, where=where, then="signal.pause()"))
    pids = heard(where)
    parent.kill()

    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))


def test_a_fork_of_the_program_keeps_nobody_alive(program, where, tmp_path):
    fork = "callees.say(sys.argv[0] + '.fork', os.getpid()) if os.fork() == 0 else None; signal.pause()"
    parent = program(ORPHANS.format(name="with_grandchild", where=where, then=fork))
    pids = heard(where)
    [forked] = heard(str(tmp_path / "program.py.fork"))
    parent.kill()

    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))
    assert not is_gone(forked)
    os.kill(forked, signal.SIGKILL)


def test_the_exit_of_the_interpreter_stops_them(program, where):
    """In order, and without waiting for anything else; also those that run on without a supervisor."""
    stopped = program(
        ORPHANS.format(name="with_grandchild", where=where, then="callees.say(sys.argv[0] + '.up')")
    )
    pids = heard(where)
    _, errors = stopped.communicate(timeout=HANG)

    assert (stopped.returncode, errors) == (0, "")
    assert all(is_gone(pid) for pid in pids[:1])


def test_a_detached_one_dies_with_the_program(program, where):
    detached = program(ORPHANS.format(name="with_grandchild", where=where, then="app.detach()"))
    pids = heard(where)
    _, errors = detached.communicate(timeout=HANG)

    assert (detached.returncode, errors) == (0, "")
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))


def test_a_target_may_be_in_the_main_module(program, where):
    text = f"""
class Bad(Exception): ...

def target(ctx):
    callees.say({where!r}, __name__)
    raise Bad("luck")

if __name__ == "__main__":
    child = process(target, restart="temporary", significant=True)
    reports = []
    run(supervisor("app", children=[child], auto_shutdown="any_significant"), reports=reports.append, log=False)
    [crash] = [one.reason.exception for one in reports if type(one).__name__ == "ChildTerminated"]
    assert type(crash) is Bad, crash
"""
    _, errors = program(text).communicate(timeout=HANG)

    assert errors == ""
    assert heard(where) == ["__mp_main__"]


def test_the_main_module_is_imported_only_if_it_is_needed(program):
    """One without a guard does no harm where the callable, and what it gets, come from elsewhere."""
    text = """
print("imported", __name__, file=sys.stderr)
child = process(callees.save, restart="temporary", significant=True)
run(supervisor("app", children=[child], auto_shutdown="any_significant"), log=False)
"""
    parent = program(text)
    _, errors = parent.communicate(timeout=HANG)

    assert (parent.returncode, errors) == (0, "imported __main__\n")


def test_a_main_module_without_a_guard_does_not_start_itself_for_ever(program):
    text = """
def target(ctx): ...

start(supervisor("app", children=[process(target)]), log=False)
"""
    parent = program(text)
    _, errors = parent.communicate(timeout=HANG)

    assert parent.returncode == 1
    assert "bootstrapping phase" in errors


DIES_OF_SIGPIPE = """
import threading
from otpy.children.callable.wires import Wires

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
wires = Wires()
wires.lay()
wires.send_early_orders()
wires.close_far_ends()
thread = threading.Thread(target=wires.hand_over, args=(b"program", b"birth"))
thread.start()
thread.join()
wires.order(b"a")
print("alive", file=sys.stderr)
"""


def test_a_program_that_dies_of_sigpipe_does_not_die_of_its_children(program):
    """As many tools do; then none may come from a process that has just died."""
    parent = program(DIES_OF_SIGPIPE)

    assert parent.communicate(timeout=HANG)[1] == "alive\n"
    assert parent.returncode == 0


def test_a_kill_that_comes_with_the_first_step_is_a_kill(stage, monkeypatch):
    """The thread of the child looks whether it is still wanted just when it is killed."""
    at_work, go_on, over, live = (
        threading.Event(),
        threading.Event(),
        threading.Event(),
        Keeper._live,
    )

    def late(child):
        at_work.set()
        assert go_on.wait(HANG)
        return live(child)

    class Lock:
        """Lets the child's thread go on while the one that kills waits for it."""

        def __enter__(self):
            if threading.current_thread() is threading.main_thread():
                go_on.set()
                assert over.wait(HANG)
            else:
                over.set()

        def __exit__(self, *exc_info):
            pass

    monkeypatch.setattr(Keeper, "_live", late)
    scene = stage(process(callees.obedient, id="x"))
    assert at_work.wait(HANG)
    scene.child._line.lock = Lock()
    scene.child.kill(1.0)
    news = scene.hear()
    while isinstance(news, ChildStarted):
        news = scene.hear()

    assert news.reason.kind is ExitKind.KILLED
