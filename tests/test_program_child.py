"""Children that are programs: how they end, what is left of them, and what may go wrong around them."""

import errno
import multiprocessing.spawn
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import otpy
from otpy import (
    ExitKind,
    ProcessDied,
    ProgramExit,
    dynamic_supervisor,
    process,
    registry,
    supervisor,
)
from otpy.children.program import child as program
from otpy.children.program import guard as lifeline
from otpy.children.program import guard_process as guard
from otpy.children.program import probes
from otpy.children.program.probes import Health, Port
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ChildTerminated, Progress, ShutdownError, StartError
from otpy.runtime import descendants, posix, threads
from otpy.runtime.telemetry import Telemetry
from tests.helpers import HANG, close, wait_until
from tests.programs import children, guards_of, mark, marked, members, number_in, python, sh, stat
from tests.test_child_contract import Stage

ROOT = Path(otpy.__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test():
    before = set(children())
    yield
    assert set(children()) <= before


def descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def once(spec, **options):
    """A tree that ends when its one program does."""
    return supervisor("app", children=[spec], intensity=0, **options)


ENDS = {
    # script: (options, kind, returncode, signal, str(reason))
    "success": ("exit 0", {}, ExitKind.NORMAL, 0, None, "normal: exit code 0"),
    "failure": ("exit 3", {}, ExitKind.CRASHED, 3, None, "crashed: exit code 3"),
    "declared a success": (
        "exit 3",
        {"success_codes": [3]},
        ExitKind.NORMAL,
        3,
        None,
        "normal: exit code 3",
    ),
    "no success": (
        "exit 0",
        {"success_codes": [3]},
        ExitKind.CRASHED,
        0,
        None,
        "crashed: exit code 0",
    ),
    "signal": ("kill -SEGV $$", {}, ExitKind.CRASHED, -11, "SIGSEGV", "crashed: killed by SIGSEGV"),
    "killed by another": (
        "kill -KILL $$",
        {},
        ExitKind.CRASHED,
        -9,
        "SIGKILL",
        "crashed: killed by SIGKILL",
    ),
    "real-time signal": (
        "kill -40 $$",
        {},
        ExitKind.CRASHED,
        -40,
        "signal 40",
        "crashed: killed by signal 40",
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_reason_tells_code_signal_and_stderr(launch, recorder, how):
    script, options, kind, code, name, text = ENDS[how]
    launch(once(sh(f"echo last words >&2; {script}", **options)))
    reason = recorder.wait_for(ChildTerminated, "app/x").reason

    assert (reason.kind, str(reason)) == (kind, text)
    assert reason.detail == ProgramExit(code, b"last words\n")
    assert reason.detail.signal == name
    assert isinstance(reason.exception, ProcessDied) is (kind is ExitKind.CRASHED)
    assert ("last words" in reason.traceback) is (kind is ExitKind.CRASHED)


def lines_of(launch, *command, **options):
    """Run a program to its end, and return what it has written."""
    lines = []
    spec = process(
        *command, id="x", restart="transient", significant=True, stdout=lines.append, **options
    )
    app = launch(supervisor("app", children=[spec], auto_shutdown="any_significant"))
    assert app.wait(HANG)
    return lines


def test_its_stdin_is_empty(launch):
    """It reads to the end at once."""
    assert lines_of(launch, "sh", "-c", "cat; echo end") == ["end"]


def test_no_shell_looks_at_its_arguments(launch):
    """They are handed over as they are."""
    assert lines_of(launch, "printf", "%s\\n", "$HOME * ; 'x'") == ["$HOME * ; 'x'"]


def test_a_relative_program_is_that_of_its_directory(launch, tmp_path):
    """Not of ours."""
    (tmp_path / "mine").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "mine").chmod(0o700)

    assert lines_of(launch, "./mine", cwd=tmp_path) == [str(tmp_path)]


def test_its_environment_is_what_was_given_and_a_mark(launch):
    """By which its descendants are found."""
    lines = lines_of(launch, "/usr/bin/env", env={"A": "1", "B": "x y"})

    assert sorted(line.partition("=")[0] for line in lines) == ["A", "B", "OTPY_MARK"]
    assert "B=x y" in lines


def test_it_gets_ours_but_for_what_systemd_has_told_us(launch, monkeypatch):
    """At the time of the start. Else it would say to systemd that this process is ready, or well."""
    monkeypatch.setenv("OTPY_TEST", "inherited")
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    lines = lines_of(launch, "/usr/bin/env")

    assert "OTPY_TEST=inherited" in lines
    assert not [line for line in lines if line.startswith(("NOTIFY_", "WATCHDOG_"))]


def test_it_gets_one_descriptor_more(launch):
    """The mark; nothing else of this process is open there."""
    lines = lines_of(launch, "sh", "-c", "exec ls /proc/$$/fd")

    assert len(set(lines) - {"0", "1", "2"}) == 2  # one is that of ls itself, for the directory


def test_it_leads_a_session_and_a_group_of_its_own(launch, tmp_path):
    app = launch(once(sh("echo $$ >$1; exec sleep 1000", tmp_path / "pid")))
    pid = number_in(tmp_path / "pid")
    assert stat(pid)[1:] == (os.getpid(), pid, pid)
    report = app.stop()

    assert report.stopped == ("app/x",)
    assert members(pid) == []


def test_one_that_ignores_the_signal_is_killed(launch, recorder, tmp_path):
    """The group gets the signal, and when the budget is over SIGKILL."""
    script = "trap 'echo asked >>$1' TERM; echo $$ >$2; while :; do sleep 0.01; done"
    app = launch(once(sh(script, tmp_path / "asked", tmp_path / "pid", shutdown=0.1)))
    pid = number_in(tmp_path / "pid")
    report = app.stop()

    assert report.interrupted == ("app/x",)
    assert recorder.wait_for(ShutdownError).reason.kind is ExitKind.KILLED
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert members(pid) == []


def test_a_brutal_kill_needs_no_words(launch, recorder):
    launch(once(process("sleep", "1000", shutdown="brutal_kill"))).stop()

    assert recorder.of(ShutdownError) == []


def test_the_stop_signal_may_be_another_one(launch, recorder, tmp_path):
    """What it does then is its own affair: whatever the exit code, it was asked to stop."""
    script = "trap 'echo bye >$1; exit 9' INT; echo $$ >$2; while :; do sleep 0.01; done"
    app = launch(once(sh(script, tmp_path / "bye", tmp_path / "pid", stop_signal=signal.SIGINT)))
    number_in(tmp_path / "pid")
    app.stop()

    assert (tmp_path / "bye").read_text() == "bye\n"
    assert recorder.of(ShutdownError) == []


def test_its_number_is_used_under_the_lock_and_not_after_it_was_reaped(monkeypatch):
    """Then it may be anybody's. Whoever reaps and whoever signals must not do so at the same time."""
    scene = Stage(process("sleep", "1000"))
    assert isinstance(scene.hear(), ChildStarted)
    child, used = scene.child, []
    reap, signal_group = posix.reap, program.signal_group
    monkeypatch.setattr(
        posix, "reap", lambda pid: (used.append(child._lock.locked()), reap(pid))[1]
    )
    monkeypatch.setattr(
        program,
        "signal_group",
        lambda *args: (used.append(child._lock.locked()), signal_group(*args))[1],
    )
    child.stop()
    while not isinstance(scene.hear(), ChildExited):
        pass
    before = len(used)
    child.stop()
    child.kill(0.0)
    close(scene.tree)

    assert before >= 3
    assert all(used)
    assert len(used) == before


def test_a_suspended_program_hears_of_the_stop(launch, tmp_path):
    app = launch(once(sh("echo $$ >$1; kill -STOP $$; sleep 1000", tmp_path / "pid")))
    wait_until(lambda: stat(number_in(tmp_path / "pid"))[0] == "T")

    assert app.stop().stopped == ("app/x",)


FORKS = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        with open(sys.argv[1] + "~", "w") as file:
            file.write(f"{os.getppid()}\\n")
        os.rename(sys.argv[1] + "~", sys.argv[1])
        signal.pause()
    signal.pause()
while not os.path.exists(sys.argv[1]):
    pass
os._exit(5) if sys.argv[2] == "crash" else signal.pause()
"""


@pytest.mark.parametrize("how", ["crash", "stop", "kill"])
def test_nothing_of_its_group_is_left(launch, recorder, tmp_path, how):
    """Children and grandchildren that ignore the signal, and hold the pipe, go with it; at once when it crashes."""
    file = tmp_path / "pid"
    app = launch(once(python(FORKS, file, how, shutdown=0.1 if how == "stop" else "brutal_kill")))
    group = stat(number_in(file))[2] if how != "crash" else None
    if how == "crash":
        assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 5
        assert number_in(file)
    else:
        app.stop()

    assert group is None or members(group) == []
    assert marked(str(file)) == set()


def test_a_daemon_that_holds_the_pipe_delays_nothing(launch, recorder, tmp_path):
    """It has left group and session, and goes with the program that it comes from all the same."""
    number = mark()
    launch(
        once(
            sh(
                'setsid sleep $1 & while ! pgrep -f "sleep $1" >/dev/null; do :; done; exit 4',
                number,
            )
        )
    )

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 4
    assert marked(number) == set()


def test_many_may_crash_at_once(launch, recorder):
    """Fifty programs die in one moment; each is restarted once, and all of them need a handful of threads."""
    number, count = mark(), 50
    specs = [process("sleep", number, id=f"s{index}") for index in range(count)]
    app = launch(supervisor("app", children=specs, intensity=count))
    assert len(threads.entries()) < 10
    first = wait_until(
        lambda: len(found := marked(number)) == count and found
    )  # a moment ago they were no sleep yet
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    recorder.wait_for(Progress, count=2 * count)

    assert len(recorder.of(ChildTerminated)) == count
    assert not wait_until(lambda: len(found := marked(number)) == count and found) & first
    app.stop()
    assert marked(number) == set()


def test_idle_programs_wake_nobody(launch):
    """No thread of ours runs while nothing happens."""
    launch(
        supervisor(
            "app", children=[process("sleep", "1000", id=f"s{index}") for index in range(20)]
        )
    )

    def switches():
        tasks = {entry.thread.native_id: entry.name for entry in threads.entries()}
        lines = {
            name: Path(f"/proc/self/task/{id}/status").read_text() for id, name in tasks.items()
        }
        return {name: text.partition("nonvoluntary")[0].split()[-1] for name, text in lines.items()}

    def rest():
        before = switches()
        threading.Event().wait(0.1)  # the guard and the reports come to rest in the first of these
        return before == switches()

    wait_until(rest)


# Starts that fail


MISSING = {
    # program: (argv, cwd, errno, the file that is named)
    "missing": (["/no/such/program"], None, errno.ENOENT, "/no/such/program"),
    "not in PATH": (["no-such-program"], None, errno.ENOENT, "no-such-program"),
    "not executable": (["/etc/passwd"], None, errno.EACCES, "/etc/passwd"),
    "bad cwd": (["/bin/true"], "/no/such/place", errno.ENOENT, "/no/such/place"),
    "cwd is a file": (["/bin/true"], "/etc/passwd", errno.ENOTDIR, "/etc/passwd"),
}


@pytest.mark.parametrize(("argv", "cwd", "number", "file"), MISSING.values(), ids=MISSING)
def test_what_cannot_be_started_is_a_start_error(launch, argv, cwd, number, file):
    """It tells errno and path, and what runs already goes on."""
    app = launch(supervisor("app", children=[process("sleep", "1000")]))
    with pytest.raises(otpy.StartError) as caught:
        app.start_child(process(*argv, id="x", cwd=cwd))

    assert caught.value.path == "app/x"
    assert (caught.value.__cause__.errno, caught.value.__cause__.filename) == (number, file)
    assert [child.id for child in app.which_children()] == ["sleep"]


def test_a_program_that_vanishes_is_a_failed_restart(launch, recorder, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nrm $0; exit 1\n")
    script.chmod(0o755)
    launch(supervisor("app", children=[process("./script", id="x", cwd=tmp_path)], intensity=2))

    assert recorder.wait_for(ChildTerminated, "app/x").reason.detail.returncode == 1
    assert recorder.wait_for(StartError, "app/x", count=2).reason.exception.errno == errno.ENOENT


def test_a_start_that_breaks_off_leaves_nothing(launch, monkeypatch):
    """The program runs already when the system refuses the thread of its probe."""

    def refuse(*args, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(probes, "ask", refuse)
    number = mark()
    app = launch(supervisor("app"))
    with pytest.raises(otpy.StartError, match="can't start new thread"):
        app.start_child(process("sleep", number, id="x", ready=otpy.Port(1)))

    assert marked(number) == set()


BREAKS = {
    # what the system refuses: (where, what is made before it)
    "a socket": ("otpy.runtime.posix.socket_pair", 0),
    "the thread of the watch": ("otpy.runtime.threads.spawn", 1),
    "the thread of the launcher": ("otpy.runtime.threads.spawn", 2),
}


@pytest.mark.parametrize(("call", "before"), BREAKS.values(), ids=BREAKS)
def test_what_breaks_off_leaves_nothing(launch, monkeypatch, call, before):
    """Nobody can start or wait for programs while there are no descriptors or threads; each start tries again."""
    app = launch(supervisor("app"))
    descriptors_before, children_before = descriptors(), children()
    module, _, name = call.rpartition(".")
    real, calls = getattr(sys.modules[module], name), []

    def refuse(*args, **options):
        calls.append(call)
        if len(calls) <= before:
            return real(*args, **options)
        raise OSError(errno.EMFILE, "too many") if before == 0 else RuntimeError("too many")

    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        with pytest.raises(otpy.StartError, match="too many"):
            app.start_child(sh("exit 3"))
    if before < 2:
        wait_until(lambda: (descriptors(), children()) == (descriptors_before, children_before))
    app.start_child(process("sleep", "1000"))


# Others in the same process


def test_the_kernel_may_reap_it(launch, recorder):
    """Where SIGCHLD is ignored, nobody learns the exit code; the end is noticed all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        launch(once(sh("echo hello >&2; exit 3")))
        reason = recorder.wait_for(ChildTerminated).reason
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert reason.kind is ExitKind.CRASHED
    assert reason.detail == ProgramExit(None, b"hello\n")
    assert "something else in this program has reaped it" in str(reason)


def test_somebody_else_may_wait_for_all(launch, recorder):
    """A handler of SIGCHLD that reaps whatever it finds, as many programs have one."""

    def reap(signum, frame):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        launch(
            supervisor(
                "app", children=[sh("exit 3", id=f"s{index}") for index in range(10)], intensity=20
            )
        )
        wait_until(lambda: len(recorder.of(ChildTerminated)) >= 20)
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert {one.reason.detail.returncode for one in recorder.of(ChildTerminated)} <= {3, None}


def test_a_stranger_with_its_number_is_left_alone(monkeypatch):
    """Once something else has reaped a program, its number may be anybody's."""
    stranger = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setattr(os, "waitid", lambda *args: (_ for _ in ()).throw(ChildProcessError))
    is_strange = posix.is_strange(stranger.pid)
    stranger.kill()
    stranger.wait()

    assert is_strange
    assert not posix.is_strange(stranger.pid)


@pytest.mark.parametrize("error", [OSError(errno.ENOSYS, "no pidfd"), AttributeError("pidfd_open")])
def test_without_pidfds_a_thread_waits(launch, recorder, monkeypatch, error):
    def refuse(pid):
        raise error

    monkeypatch.setattr(os, "pidfd_open", refuse)
    app = launch(supervisor("app", children=[sh("exit 3"), process("sleep", "1000")], intensity=3))

    assert recorder.wait_for(ChildTerminated, "app/x").reason.detail.returncode == 3
    assert "app/sleep" in app.stop().stopped


# The end of the process that runs the tree


PARENT = """
import os, sys
from otpy import process, start, supervisor
say = lambda line: os.write(1, f"{line}\\n".encode())  # at once: two threads do
mark = sys.argv[1]
kinds = {
    "plain": ["sleep", mark],
    "with a child": ["/bin/sh", "-c", f"sleep {mark} & sleep {mark}; :"],
    "without an environment": ["env", "-i", "sleep", mark],
}
specs = [process(*argv, id=f"{name} {n}") for n in range(int(sys.argv[2])) for name, argv in kinds.items()]
start(supervisor("app", children=specs), log=False, reports=lambda report: say(report.path))
say("up")
sys.stdin.read()
"""


def orphans_after(count, last_line):
    """Start a program with a tree, kill it when it has said *last_line*, and return what is left after its guard."""
    number = mark()
    argv = [sys.executable, "-c", PARENT, number, str(count)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        for line in parent.stdout:
            if line.strip() == last_line:
                break
        guards = wait_until(
            lambda: guards_of(parent.pid)
        )  # in its first moment it has no arguments yet
        parent.kill()
        parent.wait()
        wait_until(lambda: guards.isdisjoint(marked(guard.__file__)), "the guard's end")
    return marked(number)


def test_no_program_survives_a_sigkill_of_its_tree():
    assert orphans_after(3, "up") == set()


@pytest.mark.parametrize(
    "line", ["app/plain 0", "app/with a child 3", "app/without an environment 5"]
)
def test_not_even_in_the_middle_of_a_start(line):
    assert orphans_after(9, line) == set()


def test_a_guard_that_dies_is_replaced(launch):
    app = launch(supervisor("app", children=[process("sleep", "1000")]))

    def guards():
        return guards_of(os.getpid())

    (first,) = wait_until(guards)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: guards() - {first})
    app.stop()
    assert guards() == set()


def test_the_next_guard_is_told_of_all_that_run(launch, tmp_path):
    """What the one before knew must not be lost with it."""
    told = queue.SimpleQueue()
    line = lifeline.Lifeline(None, "test", print)
    line.wait()
    line.add(12345678)
    line.add(12345679)
    line.drop(12345678)
    say = line._say
    line._say = lambda data: (told.put(data), say(data))
    os.kill(line._pid, signal.SIGKILL)
    assert told.get(timeout=HANG) == b"+12345679\n"
    line.close(set())


def test_a_fork_has_no_mark():
    """It would be killed as a program, when the process that it comes from has died."""
    line = lifeline.Lifeline(None, "test", print)
    line.wait()
    mark = line.mark
    lifeline._after_fork()

    assert line.mark == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(mark)
    line.close(set())


def test_without_a_guard_it_is_told_and_programs_run(launch, recorder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", None)
    launch(once(sh("exit 3")))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    wait_until(lambda: "programs_unguarded" in capsys.readouterr().out)


def test_a_guard_that_cannot_be_replaced_costs_no_program_its_end(launch, recorder, monkeypatch):
    """The guard has ended, and there are no descriptors for another one just when a program is started."""
    said = queue.SimpleQueue()
    monkeypatch.setattr(Telemetry, "complain", lambda self, event, error: said.put(event))
    app = launch(dynamic_supervisor("app", intensity=0))
    app.start_child(sh("exec sleep 1000", id="first"))

    def refuse(*args):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(lifeline.Lifeline, "_be_guarded", refuse)
    for pid in wait_until(lambda: guards_of(os.getpid())):
        os.kill(pid, signal.SIGKILL)
    app.start_child(sh("exit 3", restart="temporary"))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    assert said.get(timeout=HANG) == "programs_unguarded"


def test_a_detached_program_runs_on(launch):
    """It is in the account of all threads, by the thread that waits for it, and ends with the others."""
    number = mark()
    app = launch(supervisor("app", children=[process("sleep", number, id="x")]))

    wait_until(lambda: marked(number))
    assert app.detach().detached == ("app/x",)
    assert len(marked(number)) == 1
    wait_until(lambda: {one.state for one in registry.active()} == {threads.ThreadState.DETACHED})
    assert {one.name for one in registry.active()} == {
        "app (programs)",
        "app (guard)",
    }  # no other thread is left
    assert (
        registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
    )  # the one of this process serves other tests
    assert marked(number) == set()


def test_a_program_is_let_go_before_the_watch_has_seen_it(launch, monkeypatch):
    """It is in the account all the same, or nobody could end it."""
    number, gate, attend = mark(), threading.Event(), program.Program._attend

    def late(self):
        gate.wait(HANG)
        attend(self)

    monkeypatch.setattr(program.Program, "_attend", late)
    app = launch(supervisor("app", children=[process("sleep", number, id="x")]))

    assert app.detach().detached == ("app/x",)
    assert {one.state for one in registry.active()} == {threads.ThreadState.DETACHED}
    gate.set()
    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
    assert marked(number) == set()


def test_a_program_that_was_detached_below_ends_with_the_others(launch):
    """Its tree runs on then, and the thread that waits for it is nobody's until that has ended."""
    number = mark()
    inner = supervisor("in", children=[process("sleep", number, id="x")])
    app = launch(supervisor("app", children=[inner]))
    app.find("app/in").detach()

    assert app.alive
    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
    assert marked(number) == set()


def test_dynamic_programs(launch):
    app = launch(dynamic_supervisor("app"))
    app.start_child(process("sleep", "1000", id="a"))
    app.start_child(process("sleep", "1000", id="b"))
    app.terminate_child("a")

    assert [child.id for child in app.which_children()] == ["b"]


def test_the_helpers_of_a_detached_program_are_let_go_too(launch, monkeypatch):
    """They run as long as the program: they are not busy handlers, and the end of the tree does not wait for them."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)  # so that a thread waits for it
    spec = process("sleep", "1000", id="x", stdout=print, health=Health(Port(1), interval=1000.0))
    app = launch(supervisor("app", children=[spec]))

    assert app.detach().handlers == ()
    assert {one.state for one in registry.active()} == {threads.ThreadState.DETACHED}
    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0


def test_what_it_does_is_what_the_system_says(launch, tmp_path):
    news = queue.SimpleQueue()
    app = launch(
        once(
            sh(
                "echo working hard >&2; echo $$ >$1; exec sleep 1000",
                tmp_path / "pid",
                stderr=news.put,
            )
        )
    )
    assert news.get(timeout=HANG) == "working hard"
    pid = number_in(tmp_path / "pid")
    child = next(iter(app._core()._children.values()))

    assert f"process {pid}" in child.stack()
    wait_until(lambda: "sleeping" in child.stack())
    assert "working hard" in child.stack()
    app.stop()
    assert child.stack() == ""


def test_the_name_of_a_process_may_be_any_bytes(tmp_path):
    """Who looks through all processes for those of a group meets them all."""
    odd = tmp_path / os.fsdecode(b"\xff) Z")
    odd.symlink_to(shutil.which("sleep"))
    with subprocess.Popen([odd, "1000"]) as process:
        try:
            seen = descendants.look(process.pid)
        finally:
            process.kill()

    assert (seen.group, seen.parent, seen.lives) == (os.getpgrp(), os.getpid(), True)


def test_a_program_that_cannot_be_looked_at_has_ended(launch, recorder, monkeypatch, capsys):
    """Or nobody would ever hear of its end."""
    monkeypatch.setattr(descendants.Family, "living", lambda self: 1 / 0)
    launch(once(sh("exit 3")))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    wait_until(lambda: "watch_failed" in capsys.readouterr().out)
