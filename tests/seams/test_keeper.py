"""The end of a callable is reported, whatever is raised in the thread that listens to it."""

import functools
import linecache
import threading

import pytest

from otpy import process
from otpy.children.callable import (
    keeper,
    parcel,
    reading,
    wires,
)
from otpy.children.callable import process as processes
from otpy.runtime import posix
from tests import callable_stage, callees
from tests.callable_stage import context, end_of, is_reaped  # noqa: F401 - fixtures
from tests.helpers import wait_until

stage, where = callable_stage.stage, callable_stage.where


class Alarm(Exception):
    """The exception that a signal handler raises."""


QUICK, SLOW = ("head", "-c", "16"), ("sleep", "1000")
"""Programs that stand for the interpreter: one ends when it has read some bytes, the
other has to be killed.
"""


KEPT = {module.__file__ for module in (keeper, parcel, processes, reading, wires)}
"""The files whose code the keeper's thread runs."""


def raise_at_line(number):
    """Return a trace function that raises Alarm once, at the line *number* of KEPT.

    The interpreter comes to a ``with`` twice. The second time only a trace function can
    raise there, and that would leave the lock locked.
    """
    left = [number]

    def step(frame, event, arg):
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and frame.f_code.co_name != "run" and not text.startswith("with "):
            left[0] -= 1
            if not left[0]:
                raise Alarm
        return step

    return lambda frame, event, arg: step if frame.f_code.co_filename in KEPT else None


def has_a_process_or_ended(child):
    return (child._line.process is not None and child._line.process.pid) or not child.alive


@pytest.mark.parametrize("command", [QUICK, SLOW], ids=lambda command: command[0])
def test_an_exception_at_any_line_of_its_thread_ends_it_and_is_reported(
    command, stage, monkeypatch
):
    """Another thread may raise one there. No process is left, no descriptor, and no
    thread.
    """
    pids, start = [], posix.start_process

    def start_process(*args, **options):
        popen = start(*args, **options)
        pids.append(popen.pid)
        return popen

    processes.tracker_descriptor()
    monkeypatch.setattr(posix, "start_process", start_process)
    monkeypatch.setattr(processes, "_python", lambda *args: list(command))
    spec, number, raised = process(callees.obedient), 0, True
    while raised:
        number += 1
        threading.settrace(raise_at_line(number))
        try:
            scene = stage(spec)
        finally:
            threading.settrace(None)
        if command is SLOW:
            wait_until(functools.partial(has_a_process_or_ended, scene.child))
            scene.child.kill(1.0)
        reason = end_of(scene)
        raised = type(reason.exception) is Alarm
        wait_until(lambda: not scene.child.alive)  # noqa: B023

    assert number > 50
    assert not wires.near_ends
    assert all(is_reaped(pid) for pid in pids)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_a_callable_whose_thread_was_lost_is_reported(stage, monkeypatch):
    """An exception ends the keeper's thread just before its report; another thread
    reports then.
    """
    end, calls = keeper.Keeper.end, []

    def interrupted_twice(child, error):
        calls.append(threading.current_thread())
        if len(calls) < 3:
            raise SystemExit
        end(child, error)

    monkeypatch.setattr(keeper.Keeper, "end", interrupted_twice)
    scene = stage(process(callees.obedient))
    scene.hear()
    scene.child._line.process.kill()
    reason = end_of(scene)

    assert str(reason.exception) == "its thread ended without a word"
    assert calls[0] is calls[1] is not calls[2]
    wait_until(lambda: not calls[2].is_alive())
