"""The registry beside hostile code: slow threads, signals in between, odd names.

Rule: a thread is waited for or refused.
"""

from __future__ import annotations

import sys
import threading

import pytest

import otpy
from otpy import registry
from otpy.registry import ThreadRegistry
from otpy.runtime import threads
from otpy.taskgraph import Outcome, TaskGraph
from tests.helpers import HANG

PASSED, FAILED, SKIPPED, CANCELLED = Outcome


def nothing():
    pass


@pytest.fixture
def gate():
    """Opens when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_a_thread_that_was_just_spawned_is_waited_for(monkeypatch):
    """``shutdown_all`` waits for it on the thread that has spawned it, too, however
    slowly it comes to its first line.
    """
    reg, run = ThreadRegistry(), threads.Entry.run

    def slow(entry):
        assert reg.wait_shutdown(HANG)
        run(entry)

    monkeypatch.setattr(threads.Entry, "run", slow)
    reg.spawn(reg.wait_shutdown, name="polite")
    stats = reg.shutdown_all(timeout=HANG)

    assert (stats.joined_names, stats.timeout_names) == (("polite",), ())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_handler_that_shuts_down_in_the_middle_of_spawn(when, monkeypatch):
    """The thread is refused; and it is named, if the handler could see it."""
    reg, enlist, stats = ThreadRegistry(), threads.enlist, []

    def interrupted(*args, **options):
        if when == "before":
            stats.append(reg.shutdown_all(timeout=0))
        entry = enlist(*args, **options)
        if when == "after":
            stats.append(reg.shutdown_all(timeout=0))
        return entry

    monkeypatch.setattr(threads, "enlist", interrupted)
    ran = threading.Event()
    with pytest.raises(otpy.NotAlive, match="t: shutdown_all has been called"):
        reg.spawn(ran.set, name="t")

    assert [one.timeout_names for one in stats] == [() if when == "before" else ("t",)]
    assert reg._entries() == []
    assert reg.shutdown_all(timeout=HANG).total == 0
    assert not ran.is_set()


@pytest.mark.parametrize("fails", [False, True])
def test_an_exception_raised_from_outside_in_the_wrapper_is_one_report(fails):
    """There is one report at whatever line of otpy it hits: before the target, after
    it, or while the failure of the target is handled.
    """

    class Injected(BaseException):
        pass

    def target():
        if fails:
            raise ValueError("its own")

    def trial(chosen):
        """Return the lines of ours that have run, and what was reported; raise in front
        of the line *chosen*.
        """
        reg, told, lines = ThreadRegistry(), [], []
        reg.subscribe(told.append)

        def trace(frame, event, arg):
            if (
                frame.f_code.co_filename != registry.spawned.__file__
                or frame.f_code.co_name
                not in (
                    "run",
                    "_outcome",
                )
            ):
                return None
            if event == "line":
                lines.append((frame.f_code.co_name, frame.f_lineno))
                if len(lines) - 1 == chosen:
                    raise Injected
            return trace

        threading.settrace(trace)
        try:
            spawned = reg.spawn(target, name="t")
        finally:
            threading.settrace(None)
        spawned.join(HANG)
        return lines, [type(report.reason.exception) for report in told]

    lines, reports = trial(None)
    assert reports == [ValueError] * fails
    assert len(lines) >= 4
    # the first one is "try", before which nothing can be caught
    for chosen in range(1, len(lines)):
        _, reports = trial(chosen)
        assert reports == [Injected], lines[chosen]


class Rude(str):
    """A str that does not like to be looked at."""

    __slots__ = ()

    def __eq__(self, other):
        raise RuntimeError("do not compare")

    def __hash__(self):
        raise RuntimeError("do not hash")

    def __str__(self):
        raise RuntimeError("do not print")

    __iter__ = __len__ = __format__ = __repr__ = __ne__ = __eq__


def test_names_are_plain_text_whatever_class_they_were(gate):
    """No user code runs while the registry's lock is held, or where names are compared
    later.
    """
    reg = ThreadRegistry()
    reg.spawn(gate.wait, name=Rude("t"), purpose=Rude("waits"))
    with pytest.raises(otpy.AlreadyStarted):
        reg.spawn(gate.wait, name="t")
    (seen,) = reg.active()

    assert (type(seen.name), type(seen.purpose), seen.thread.name) == (str, str, "t")
    assert "waits" in reg.dump_status()
    graph = TaskGraph()
    graph.add(nothing, Rude("a"))
    graph.add(nothing, Rude("b"), after=[Rude("a")], tags=[Rude("x")])
    assert dict(graph.run().outcomes) == {"a": PASSED, "b": PASSED}
    assert graph.describe().edges == (("a", "b"),)


def test_all_stacks_are_taken_at_once(gate, monkeypatch):
    """One look serves for all threads.

    One look for each thread would take quadratic time.
    """
    reg, look, looks = ThreadRegistry(), sys._current_frames, []
    for number in range(20):
        reg.spawn(gate.wait, name=f"t{number}")
    monkeypatch.setattr(sys, "_current_frames", lambda: looks.append(1) or look())
    text = reg.dump_status(stacks=True)

    assert text.count("in wait") >= 20
    assert len(looks) == 1
