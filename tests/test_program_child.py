"""Children that are programs: how they start and end, and what may go wrong around them."""

import errno
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
    supervisor,
)
from otpy.children.program import guard_process, probes, run
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ChildTerminated, Progress, ShutdownError, StartFailed
from otpy.runtime import descendants, posix, threads
from tests.helpers import HANG, close, wait_until
from tests.programs import (
    children,
    mark,
    marked,
    members,
    no_process_left,
    number_in,
    once,
    python,
    sh,
    stat,
)
from tests.test_child_contract import Stage


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test():
    with no_process_left():
        yield


def descriptors():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


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
    """The exit reason has the kind, the code, the signal and the last of stderr."""
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
    """A program reads the end of its stdin at once."""
    assert lines_of(launch, "sh", "-c", "cat; echo end") == ["end"]


def test_no_shell_looks_at_its_arguments(launch):
    """Arguments are handed over as they are."""
    assert lines_of(launch, "printf", "%s\\n", "$HOME * ; 'x'") == ["$HOME * ; 'x'"]


def test_a_relative_program_is_that_of_its_directory(launch, tmp_path):
    """A relative program is looked for in ``cwd``, not in the directory of this
    process.
    """
    (tmp_path / "mine").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "mine").chmod(0o700)

    assert lines_of(launch, "./mine", cwd=tmp_path) == [str(tmp_path)]


def test_its_environment_is_what_was_given_and_a_mark(launch):
    """The mark is added, by which the descendants of a program are found."""
    lines = lines_of(launch, "/usr/bin/env", env={"A": "1", "B": "x y"})

    assert sorted(line.partition("=")[0] for line in lines) == ["A", "B", "OTPY_MARK"]
    assert "B=x y" in lines


def test_it_gets_ours_but_for_what_systemd_has_told_us(launch, monkeypatch):
    """A program inherits the environment of this process at its start, without the
    variables that systemd has set for this process. With these it would report to
    systemd that this process is ready, or well.
    """
    monkeypatch.setenv("OTPY_TEST", "inherited")
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    lines = lines_of(launch, "/usr/bin/env")

    assert "OTPY_TEST=inherited" in lines
    assert not [line for line in lines if line.startswith(("NOTIFY_", "WATCHDOG_"))]


def test_it_gets_one_descriptor_more(launch):
    """A program inherits the mark, and no other descriptor of this process."""
    lines = lines_of(launch, "sh", "-c", "exec ls /proc/$$/fd")

    assert len(set(lines) - {"0", "1", "2"}) == 2  # one is that of ls itself, for the directory


def test_it_leads_a_session_and_a_group_of_its_own(launch, tmp_path):
    """A program leads a session and a group, and nothing of the group is left after a
    stop.
    """
    app = launch(once(sh("echo $$ >$1; exec sleep 1000", tmp_path / "pid")))
    pid = number_in(tmp_path / "pid")
    assert stat(pid)[1:] == (os.getpid(), pid, pid)
    report = app.stop()

    assert report.stopped == ("app/x",)
    assert members(pid) == []


def test_one_that_ignores_the_signal_is_killed(launch, recorder, tmp_path):
    """The group gets the stop signal, and SIGKILL when the budget is over."""
    script = "trap 'echo asked >>$1' TERM; echo $$ >$2; while :; do sleep 0.01; done"
    app = launch(once(sh(script, tmp_path / "asked", tmp_path / "pid", shutdown=0.1)))
    pid = number_in(tmp_path / "pid")
    report = app.stop()

    assert report.interrupted == ("app/x",)
    assert recorder.wait_for(ShutdownError).reason.kind is ExitKind.KILLED
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert members(pid) == []


def test_a_brutal_kill_needs_no_words(launch, recorder):
    """A kill that the spec asks for is no ShutdownError."""
    launch(once(process("sleep", "1000", shutdown="brutal_kill"))).stop()

    assert recorder.of(ShutdownError) == []


def test_the_stop_signal_may_be_another_one(launch, recorder, tmp_path):
    """With any exit code after its stop signal, a program has stopped when it was asked
    to.
    """
    script = "trap 'echo bye >$1; exit 9' INT; echo $$ >$2; while :; do sleep 0.01; done"
    app = launch(once(sh(script, tmp_path / "bye", tmp_path / "pid", stop_signal=signal.SIGINT)))
    number_in(tmp_path / "pid")
    app.stop()

    assert (tmp_path / "bye").read_text() == "bye\n"
    assert recorder.of(ShutdownError) == []


def test_its_number_is_used_under_the_lock_and_not_after_it_was_reaped(monkeypatch):
    """The supervisor signals and the watch reaps under the same lock, and no signal
    follows the reaping: the number may be another process's then.
    """
    scene = Stage(process("sleep", "1000"))
    assert isinstance(scene.hear(), ChildStarted)
    child, used = scene.child, []
    lock = child._run.leader._lock
    reap, signal_group = posix.reap, run.signal_group
    monkeypatch.setattr(posix, "reap", lambda pid: (used.append(lock.locked()), reap(pid))[1])
    monkeypatch.setattr(
        run,
        "signal_group",
        lambda *args: (used.append(lock.locked()), signal_group(*args))[1],
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
    """The group gets SIGCONT with the stop signal."""
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
    """Children and grandchildren that ignore the signal and hold the pipe end with a
    program; at once if it has crashed.
    """
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
    """A daemon has left the group and the session, and ends with the program that it
    comes from all the same.
    """
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
    """Fifty programs that crash in one moment are restarted once each, and need a
    handful of threads.
    """
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


def test_idle_programs_wake_no_thread(launch):
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
    """The error has errno and path, and children that run already go on."""
    app = launch(supervisor("app", children=[process("sleep", "1000")]))
    with pytest.raises(otpy.StartError) as caught:
        app.start_child(process(*argv, id="x", cwd=cwd))

    assert caught.value.path == "app/x"
    assert (caught.value.__cause__.errno, caught.value.__cause__.filename) == (number, file)
    assert [child.id for child in app.which_children()] == ["sleep"]


def test_a_program_that_vanishes_is_a_failed_restart(launch, recorder, tmp_path):
    """A program whose file is gone at its restart is a StartError."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nrm $0; exit 1\n")
    script.chmod(0o755)
    launch(supervisor("app", children=[process("./script", id="x", cwd=tmp_path)], intensity=2))

    assert recorder.wait_for(ChildTerminated, "app/x").reason.detail.returncode == 1
    assert recorder.wait_for(StartFailed, "app/x", count=2).reason.exception.errno == errno.ENOENT


def test_a_start_that_breaks_off_leaves_nothing(launch, monkeypatch):
    """A program that runs already is killed when the system refuses the thread of its
    probe.
    """

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
    """Without descriptors or threads no program can be started; nothing is left of the
    attempt, and the next start tries again.
    """
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


@pytest.mark.parametrize(("is_undone", "code"), [(False, -signal.SIGKILL), (True, -signal.SIGTERM)])
def test_a_late_kill_spares_the_next_program_of_its_launcher(is_undone, code):
    """After a failed start the launcher may start another program, which is not killed.

    Before that, the child of its thread is the program itself, which may hang.
    """
    codes = []

    def launch():
        leader = run.Leader(sh("").start.command)
        if is_undone:
            leader.undo()
        with subprocess.Popen(["sleep", "1000"]) as child:
            leader.kill(threading.current_thread())
            child.terminate()
            codes.append(child.wait(HANG))

    launcher = threading.Thread(target=launch)
    launcher.start()
    launcher.join(HANG)

    assert codes == [code]


def test_a_start_that_fails_just_after_the_fork_is_undone():
    """The leader does not know its group yet; its process is killed all the same."""
    leader = run.Leader(sh("").start.command)
    leader.popen = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    undoer = threading.Thread(target=leader.undo, daemon=True)
    undoer.start()
    undoer.join(HANG)
    is_undone = not undoer.is_alive()
    if not is_undone:
        leader.popen.kill()

    assert (is_undone, leader.code) == (True, -signal.SIGKILL)


def test_one_descriptor_that_is_closed_meanwhile_hides_no_other(monkeypatch):
    """The mark may be the next one."""
    readlink, closed = os.readlink, []

    def close_first(path, *args, **options):
        if not closed:
            closed.append(path)
            raise FileNotFoundError(path)
        return readlink(path, *args, **options)

    monkeypatch.setattr(os, "readlink", close_first)
    seen = list(guard_process.descriptors(str(os.getpid())))

    assert closed
    assert len(seen) >= 3


# Others in the same process


def test_the_kernel_may_reap_it(launch, recorder):
    """Where SIGCHLD is ignored, the exit code is lost, and the end is noticed all the
    same.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        launch(once(sh("echo hello >&2; exit 3")))
        reason = recorder.wait_for(ChildTerminated).reason
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert reason.kind is ExitKind.CRASHED
    assert reason.detail == ProgramExit(None, b"hello\n")
    assert "something else in this program has reaped it" in str(reason)


def test_other_code_may_wait_for_all_children(launch, recorder):
    """A handler of SIGCHLD may reap every child, as in many processes: no end is
    missed.
    """

    def reap(signum, frame):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        app = launch(
            supervisor(
                "app", children=[sh("exit 3", id=f"s{index}") for index in range(10)], intensity=20
            )
        )
        wait_until(lambda: len(recorder.of(ChildTerminated)) >= 20)
        # A child that dies while the handler is put back makes CPython report a signal
        # that it ignores. So no child is left by then.
        app.stop()
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert {one.reason.detail.returncode for one in recorder.of(ChildTerminated)} <= {3, None}


def test_a_stranger_with_its_number_is_left_alone(monkeypatch):
    """A child that was reaped elsewhere is recognised: its number may be another
    process's.
    """
    stranger = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setattr(os, "waitid", lambda *args: (_ for _ in ()).throw(ChildProcessError))
    is_strange = posix.is_strange(stranger.pid)
    stranger.kill()
    stranger.wait()

    assert is_strange
    assert not posix.is_strange(stranger.pid)


@pytest.mark.parametrize("error", [OSError(errno.ENOSYS, "no pidfd"), AttributeError("pidfd_open")])
def test_without_pidfds_a_thread_waits(launch, recorder, monkeypatch, error):
    """Without pidfds a thread waits for each program, and nothing else changes."""

    def refuse(pid):
        raise error

    monkeypatch.setattr(os, "pidfd_open", refuse)
    app = launch(supervisor("app", children=[sh("exit 3"), process("sleep", "1000")], intensity=3))

    assert recorder.wait_for(ChildTerminated, "app/x").reason.detail.returncode == 3
    assert "app/sleep" in app.stop().stopped


def test_dynamic_programs(launch):
    """A dynamic supervisor starts and terminates programs."""
    app = launch(dynamic_supervisor("app"))
    app.start_child(process("sleep", "1000", id="a"))
    app.start_child(process("sleep", "1000", id="b"))
    app.terminate_child("a")

    assert [child.id for child in app.which_children()] == ["b"]


def test_what_it_does_is_what_the_system_says(launch, tmp_path):
    """``stack`` has the process number, its state in /proc, and the last of stderr."""
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
    """A search through all processes also meets names that are no text."""
    odd = tmp_path / os.fsdecode(b"\xff) Z")
    odd.symlink_to(shutil.which("sleep"))
    with subprocess.Popen([odd, "1000"]) as process:
        try:
            seen = descendants.look(process.pid)
        finally:
            process.kill()

    assert (seen.group, seen.parent, seen.lives) == (os.getpgrp(), os.getpid(), True)


def test_a_program_that_cannot_be_looked_at_has_ended(launch, recorder, monkeypatch, capsys):
    """If the search for the rest fails, that is logged, and the end is reported."""
    monkeypatch.setattr(descendants.Family, "living", lambda self: 1 / 0)
    launch(once(sh("exit 3")))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    wait_until(lambda: "watch_failed" in capsys.readouterr().out)
