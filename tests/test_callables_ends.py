"""Callables in processes: how they end and are stopped, and that nothing of them is left."""

import os
import pathlib
import signal
import sys
import threading
import types

import pytest

import otpy
from otpy import ExitKind, process, supervisor
from otpy.children.callable import process as processes
from otpy.children.callable.keeper import Keeper
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ChildTerminated, Progress, Unstopped
from otpy.runtime import posix
from tests import callable_stage, callees
from tests.callable_stage import end_of, heard, is_gone, is_reaped
from tests.helpers import HANG, wait_until
from tests.seams import callables

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")

stage, where = callable_stage.stage, callable_stage.where


ENDS = {
    # what it does: its spec, the kind of its end, a part of the text of its reason
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
    """The kind, the text and the meaning of a reason follow from how the process ended."""
    reason = end_of(stage(spec))

    assert reason.kind is kind
    assert said in f"{reason} {reason.traceback}"
    assert reason.is_fatal == ("Fatal" in said)
    assert reason.is_ignore == ("Ignore" in said)


def test_death_by_a_signal_is_reported_in_full(stage):
    """ProcessDied has the code, the name of the signal, and the stack."""
    died = end_of(stage(process(callees.segfault))).exception

    assert isinstance(died, otpy.ProcessDied)
    assert (died.returncode, died.signal) == (-signal.SIGSEGV, "SIGSEGV")
    assert "Fatal Python error" in died.stack


def test_it_is_restarted_when_another_process_kills_it(launch, where, recorder):
    """A SIGKILL from outside is a crash, and the number is reaped."""
    launch(supervisor("app", children=[process(callees.tell_group, where)]))
    [pid, *_] = heard(where)
    os.kill(pid, signal.SIGKILL)

    assert str(recorder.wait_for(ChildTerminated).reason.exception) == "killed by SIGKILL"
    assert recorder.wait_for(Progress, "app/tell_group", count=2).incarnation == 2
    assert is_reaped(pid)


def test_what_cannot_be_imported_there_is_a_failed_start(monkeypatch, stage):
    """The process cannot import the module of the callable."""
    module = types.ModuleType("only_here")
    exec("def run(ctx): ...", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    scene = stage(process(module.run))
    news = scene.hear()

    assert isinstance(news, ChildExited)
    assert isinstance(news.reason.exception, ModuleNotFoundError)


def reaped_by_other_code(pid):
    os.waitpid(pid, 0)
    return posix.Ended(None, is_reaped=True)


def test_other_code_has_reaped_it(stage, where, monkeypatch):
    """Its EXIT still counts, and its number, which may belong to another process, is
    not used.
    """
    scene = stage(process(callees.tell_group, where))
    [pid, *_] = heard(where)
    monkeypatch.setattr(posix, "await_exit", reaped_by_other_code)
    scene.child.stop()

    assert end_of(scene).kind is ExitKind.SHUTDOWN
    assert is_reaped(pid)


def test_no_grandchild_is_left_when_other_code_has_reaped_it(stage, where, monkeypatch):
    """The number of the process is free then; that of its group is not, while the group
    has members.
    """
    scene = stage(process(callees.with_grandchild, where))
    _, grandchild = heard(where)
    monkeypatch.setattr(posix, "await_exit", reaped_by_other_code)
    scene.child.stop()

    assert end_of(scene).kind is ExitKind.SHUTDOWN
    wait_until(lambda: is_gone(grandchild))


def test_other_code_reaps_it_when_its_death_has_been_noticed(stage, monkeypatch):
    """Its exit code is known by then, so a crash does not become a normal end."""
    notice = os.waitid

    def lose(kind, pid, options):
        found = notice(kind, pid, options)
        os.waitpid(pid, 0)
        return found

    monkeypatch.setattr(os, "waitid", lose)
    reason = end_of(stage(process(callees.vanish, 3)))

    assert (reason.kind, str(reason.exception)) == (ExitKind.CRASHED, "exit code 3")


@pytest.fixture
def slow_spawn(monkeypatch):
    """Have processes start only when the test says so."""
    arrived, go, real = threading.Event(), threading.Event(), posix.start_process

    def start_process(*args, **options):
        arrived.set()
        assert go.wait(HANG)
        return real(*args, **options)

    monkeypatch.setattr(posix, "start_process", start_process)
    return arrived, go


def test_a_deaf_child_is_killed_and_reaped(launch, where):
    """A callable that does not stop when asked is killed after ``shutdown`` seconds."""
    app = launch(supervisor("app", children=[process(callees.deaf, where, shutdown=0.05)]))
    [pid] = heard(where)
    report = app.stop()

    assert report.interrupted == ("app/deaf",)
    assert report.unstopped == ()
    assert is_reaped(pid)


def test_a_deaf_child_that_must_not_be_killed_is_given_up(launch, where):
    """With ``interrupt=False`` its process runs on, and is reported as unstopped."""
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


def test_its_end_is_reported_when_the_interpreter_has_ended(stage, where):
    """Threads that are no daemons, and the handlers of ``atexit``, come first."""
    assert end_of(stage(process(callees.ends_slowly, where))).kind is ExitKind.NORMAL
    assert pathlib.Path(f"{where}.thread").exists()
    assert pathlib.Path(f"{where}.atexit").exists()


def test_a_signal_that_kills_it_on_the_way_is_its_end(stage):
    """The callable has returned, but its interpreter has not ended."""
    reason = end_of(stage(process(callees.dies_after_its_end)))

    assert (reason.kind, str(reason.exception)) == (ExitKind.CRASHED, "killed by SIGKILL")


def test_brutal_kill_does_not_ask(launch, where):
    """The process is killed at once."""
    app = launch(supervisor("app", children=[process(callees.deaf, where, shutdown="brutal_kill")]))
    [pid] = heard(where)
    app.stop()

    assert is_reaped(pid)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_no_grandchild_is_left(stage, where, how):
    """A stop and a kill end all processes that the child has started."""
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
    """Such a process is found by its mark, and has ended before the end is reported."""
    scene = stage(process(callees.with_daemon, where, how))
    pid, daemon = heard(where)
    if how != "crash":
        scene.child.kill(1.0) if how == "kill" else scene.child.stop()
    end_of(scene)

    assert is_reaped(pid)
    assert is_gone(daemon)


@pytest.mark.skipif(sys.platform != "linux", reason="they are found in /proc")
def test_what_cannot_be_ended_is_reported_by_name(stage, where, monkeypatch):
    """It counts as unstopped for as long as it lives."""
    monkeypatch.setattr(processes, "LINGER", 0.01)
    monkeypatch.setattr(processes.descendants, "send", lambda one, number: None)
    scene = stage(process(callees.with_daemon, where, "stop"))
    reports = []
    scene.tree.telemetry.subscribe("root", reports.append)
    _, daemon = heard(where)
    scene.child.stop()
    reason = end_of(scene)
    report = wait_until(lambda: reports and reports[0])

    assert reason.kind is ExitKind.SHUTDOWN
    assert isinstance(report, Unstopped)
    assert f"process {daemon}" in report.stack
    assert "sleep 1000" in report.stack
    assert [one.path for one in scene.tree.unstopped("root")] == ["root/with_daemon"]
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not scene.tree.unstopped("root"))


def test_of_a_fenced_child_only_the_end_counts(stage, where):
    """What it saves after ``abandon`` is dropped."""
    scene = stage(process(callees.fenced, where))
    [pid] = heard(where)
    assert str(pid) in scene.child.stack()
    scene.child.abandon()

    assert end_of(scene).kind is ExitKind.KILLED
    assert scene.child.state is None
    assert scene.child.stack() == ""


@pytest.mark.parametrize(
    ("order", "kind"), [("stop", ExitKind.SHUTDOWN), ("kill", ExitKind.KILLED)]
)
def test_an_order_that_comes_while_it_is_spawned_is_obeyed(stage, slow_spawn, order, kind):
    """The order is kept until the process is there."""
    arrived, go = slow_spawn
    scene = stage(process(callees.obedient))
    assert arrived.wait(HANG)
    scene.child.kill(1.0) if order == "kill" else scene.child.stop()
    go.set()

    assert end_of(scene).kind is kind


def test_what_is_not_wanted_any_more_is_not_spawned(stage, monkeypatch):
    """A child that is stopped before its thread has done anything costs no process."""
    spawned, go = [], threading.Event()
    monkeypatch.setattr(posix, "start_process", spawned.append)
    live = Keeper._live
    monkeypatch.setattr(Keeper, "_live", lambda child: (go.wait(HANG), live(child))[1])
    scene = stage(process(callees.obedient))
    scene.child.stop()
    go.set()

    assert end_of(scene).kind is ExitKind.SHUTDOWN
    assert spawned == []


def test_a_kill_that_comes_with_the_first_step_is_a_kill(stage, monkeypatch):
    """The keeper looks whether the child is still wanted just when it is killed."""
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
        """Lets the keeper go on while the thread that kills waits for it."""

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
