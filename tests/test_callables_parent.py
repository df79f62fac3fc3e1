"""Callables in processes, and the parent process: its main module, its forks, its end."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import otpy
from tests import callable_stage
from tests.callable_stage import heard, is_gone
from tests.helpers import HANG, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")

stage, where = callable_stage.stage, callable_stage.where


PRELUDE = """
import os, signal, sys
from otpy import process, run, start, supervisor
from tests import callees
"""


@pytest.fixture
def program(tmp_path):
    """Run a parent process, and return its Popen."""
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
def test_all_die_with_a_parent_process_that_is_killed(program, where, name):
    """On Linux even a process that never releases the interpreter's lock."""
    parent = program(ORPHANS.format(name=name, where=where, then="signal.pause()"))
    pids = heard(where)
    parent.kill()

    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))


def test_a_fork_of_the_parent_process_keeps_no_callable_alive(program, where, tmp_path):
    """It closes the near ends of the wires."""
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
    """They are stopped in order, and nothing else holds up the exit."""
    stopped = program(
        ORPHANS.format(name="with_grandchild", where=where, then="callees.say(sys.argv[0] + '.up')")
    )
    pids = heard(where)
    _, errors = stopped.communicate(timeout=HANG)

    assert (stopped.returncode, errors) == (0, "")
    assert all(is_gone(pid) for pid in pids[:1])


def test_a_detached_one_dies_with_the_parent_process(program, where):
    """No supervisor stops it; the end of its lifeline does."""
    detached = program(ORPHANS.format(name="with_grandchild", where=where, then="app.detach()"))
    pids = heard(where)
    _, errors = detached.communicate(timeout=HANG)

    assert (detached.returncode, errors) == (0, "")
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid))


def test_a_target_may_be_in_the_main_module(program, where):
    """The process imports it as ``__mp_main__``; its exceptions arrive with their own
    class.
    """
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
    """A main module without a guard does no harm if the callable and its arguments come
    from elsewhere.
    """
    text = """
print("imported", __name__, file=sys.stderr)
child = process(callees.save, restart="temporary", significant=True)
run(supervisor("app", children=[child], auto_shutdown="any_significant"), log=False)
"""
    parent = program(text)
    _, errors = parent.communicate(timeout=HANG)

    assert (parent.returncode, errors) == (0, "imported __main__\n")


def test_a_main_module_without_a_guard_does_not_start_itself_for_ever(program):
    """It is refused as ``multiprocessing`` refuses it."""
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


def test_a_parent_process_that_dies_of_sigpipe_does_not_die_of_its_children(program):
    """Many tools set SIGPIPE to its default; a process that has just died must not
    cause one.
    """
    parent = program(DIES_OF_SIGPIPE)

    assert parent.communicate(timeout=HANG)[1] == "alive\n"
    assert parent.returncode == 0
