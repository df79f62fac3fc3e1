"""Programs whose tree is gone: the guard kills them with its process, or they were detached."""

import errno
import multiprocessing.spawn
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import otpy
from otpy import (
    dynamic_supervisor,
    process,
    registry,
    supervisor,
)
from otpy.children.program import guard, guard_process
from otpy.children.program.attendance import Attendance
from otpy.children.program.probes import Health, Port
from otpy.reports import ChildTerminated
from otpy.runtime import threads
from otpy.runtime.telemetry import Telemetry
from tests.helpers import HANG, wait_until
from tests.programs import (
    guards_of,
    mark,
    marked,
    no_process_left,
    once,
    sh,
)

ROOT = Path(otpy.__file__).parent.parent


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test():
    with no_process_left():
        yield


# The process that runs the tree is killed


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
    """Return the programs that are left of a process that runs a tree and is killed.

    Args:
        count: How many programs of each kind it has.
        last_line: It is killed when it has printed this; the guard is waited for.
    """
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
        wait_until(lambda: guards.isdisjoint(marked(guard_process.__file__)), "the guard's end")
    return marked(number)


def test_no_program_survives_a_sigkill_of_its_tree():
    """When the process that runs a tree is killed, the guard kills its programs."""
    assert orphans_after(3, "up") == set()


@pytest.mark.parametrize(
    "line", ["app/plain 0", "app/with a child 3", "app/without an environment 5"]
)
def test_not_even_in_the_middle_of_a_start(line):
    """The guard also kills programs that were not reported to it, by their mark."""
    assert orphans_after(9, line) == set()


def test_a_guard_that_dies_is_replaced(launch):
    """A new guard is started when one is killed, and none is left after the stop."""
    app = launch(supervisor("app", children=[process("sleep", "1000")]))

    def guards():
        return guards_of(os.getpid())

    (first,) = wait_until(guards)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: guards() - {first})
    app.stop()
    assert guards() == set()


def test_the_next_guard_is_told_of_all_that_run(launch, tmp_path):
    """A new guard learns which programs still run, and not those that have ended."""
    told = queue.SimpleQueue()
    line = guard.Guard(None, "test", print)
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
    """A fork of this process closes the mark. With it, the guard would kill the fork as
    a program.
    """
    line = guard.Guard(None, "test", print)
    line.wait()
    mark = line.mark
    guard.after_fork()

    assert line.mark == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(mark)
    line.close(set())


def test_without_a_guard_it_is_told_and_programs_run(launch, recorder, monkeypatch, capsys):
    """Where no Python can be started, that is logged, and programs run."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", None)
    launch(once(sh("exit 3")))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    wait_until(lambda: "programs_unguarded" in capsys.readouterr().out)


def test_a_guard_that_cannot_be_replaced_costs_no_program_its_end(launch, recorder, monkeypatch):
    """If no descriptor is left for the next guard, the end of a program is reported all
    the same.
    """
    said = queue.SimpleQueue()
    monkeypatch.setattr(Telemetry, "complain", lambda self, event, error: said.put(event))
    app = launch(dynamic_supervisor("app", intensity=0))
    app.start_child(sh("exec sleep 1000", id="first"))

    def refuse(*args):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(guard.Keeper, "be_guarded", refuse)
    for pid in wait_until(lambda: guards_of(os.getpid())):
        os.kill(pid, signal.SIGKILL)
    app.start_child(sh("exit 3", restart="temporary"))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    assert said.get(timeout=HANG) == "programs_unguarded"


# Detached


def test_a_detached_program_runs_on(launch):
    """The account of threads has the thread that waits for a detached program, and ends
    the program with the others.
    """
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
    """A program that is detached before the watch attends it is in the account of
    threads, and ends with the others.
    """
    number, gate, attend = mark(), threading.Event(), Attendance.attend

    def late(self, parts):
        gate.wait(HANG)
        attend(self, parts)

    monkeypatch.setattr(Attendance, "attend", late)
    app = launch(supervisor("app", children=[process("sleep", number, id="x")]))

    assert app.detach().detached == ("app/x",)
    assert {one.state for one in registry.active()} == {threads.ThreadState.DETACHED}
    gate.set()
    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
    assert marked(number) == set()


def test_a_program_that_was_detached_below_ends_with_the_others(launch):
    """A program that was detached below another supervisor is in the account, although
    its tree runs on.
    """
    number = mark()
    inner = supervisor("in", children=[process("sleep", number, id="x")])
    app = launch(supervisor("app", children=[inner]))
    app.find("app/in").detach()

    assert app.alive
    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
    assert marked(number) == set()


def test_the_helpers_of_a_detached_program_are_let_go_too(launch, monkeypatch):
    """The threads of its output and its probes are no busy handlers: the end of the
    tree does not wait for them.
    """
    monkeypatch.delattr(os, "pidfd_open", raising=False)  # so that a thread waits for it
    spec = process("sleep", "1000", id="x", stdout=print, health=Health(Port(1), interval=1000.0))
    app = launch(supervisor("app", children=[spec]))

    assert app.detach().handlers == ()
    assert {one.state for one in registry.active()} == {threads.ThreadState.DETACHED}
    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
