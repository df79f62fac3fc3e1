"""A handler that blocks delays itself, and nothing else of its tree."""

from __future__ import annotations

import gc
import threading

import otpy
from otpy import Context, supervisor, thread
from otpy.reports import ChildTerminated, ExitKind, ExitReason
from otpy.runtime import threads
from otpy.runtime.telemetry import Telemetry
from tests.helpers import HANG, Puppet, wait_until

CRASH = ChildTerminated(path="app/a", reason=ExitReason(ExitKind.CRASHED, ValueError("boom")))


def fail(ctx):
    raise OSError("no route to host")


def test_an_escalation_handler_that_blocks_delays_no_other():
    """Neither that of another supervisor nor that of the tree, not even for the same escalation."""
    gate, own, tree = threading.Event(), threading.Event(), threading.Semaphore(0)
    children = [
        supervisor(
            "first",
            intensity=0,
            restart="temporary",
            on_escalation=lambda _: gate.wait(HANG),
            children=[thread(fail)],
        ),
        supervisor(
            "second",
            intensity=0,
            restart="temporary",
            on_escalation=lambda _: own.set(),
            children=[thread(fail)],
        ),
    ]
    app = otpy.start(
        supervisor("app", children=children), log=False, on_escalation=lambda _: tree.release()
    )
    heard = own.wait(HANG) and tree.acquire(timeout=HANG) and tree.acquire(timeout=HANG)
    gate.set()
    app.stop()

    assert heard


def test_escalations_reach_a_handler_in_order_and_its_thread_ends():
    """One after the other; when there is nothing to call, there is no thread for it."""
    gate, heard, puppet = threading.Event(), [], Puppet()

    def handler(escalation):
        gate.wait(HANG)
        heard.append((escalation, threading.current_thread().name))

    tree = supervisor(
        "app", intensity=9, children=[supervisor("s", intensity=0, children=[puppet.spec("x")])]
    )
    app = otpy.start(tree, log=False, on_escalation=handler)
    for number in range(3):
        puppet.next().crash(ValueError(number))
    puppet.next()
    gate.set()
    wait_until(lambda: len(heard) == 3)
    wait_until(
        lambda: not [one for one in threads.entries(app._tree) if one.name == "app (on_escalation)"]
    )
    app.stop()

    assert [one.reason.exception.args for one, _ in heard] == [(0,), (1,), (2,)]
    assert {name for _, name in heard} == {"app (on_escalation)"}


class Scarce:
    """A system that refuses threads, those of some names only."""

    def __init__(self, monkeypatch, *names):
        self.names = names
        real = threading.Thread.start
        monkeypatch.setattr(
            threading.Thread,
            "start",
            lambda one: self.refuse() if one.name in self.names else real(one),
        )

    def refuse(self):
        raise RuntimeError("can't start new thread")


def test_a_handler_that_gets_no_thread_is_called_by_the_reserve(monkeypatch):
    """And one more by the next helper thread that is free, here that of the reports, at the end."""
    Scarce(monkeypatch, "app (on_escalation)", "app/s (on_escalation)")
    gate, heard = threading.Event(), []

    def first(escalation):
        heard.append(threading.current_thread().name)
        gate.wait(HANG)

    def second(escalation):
        heard.append(threading.current_thread().name)
        gate.set()

    tree = supervisor(
        "app",
        children=[
            supervisor(
                "s", intensity=0, restart="temporary", on_escalation=first, children=[thread(fail)]
            )
        ],
    )
    app = otpy.start(tree, log=False, on_escalation=second, reports=lambda report: None)
    wait_until(lambda: heard)
    report = app.stop()

    assert heard == ["app (reserve)", "app (reports)"]
    assert (report.undelivered, report.handlers) == (0, ())


def test_a_callback_that_gets_no_thread_is_called_when_there_is_one_again(monkeypatch):
    """The reserve is blocked by another callback meanwhile."""
    scarce = Scarce(monkeypatch, "app/a (on_stop)", "app/b (on_stop)")
    gate, called, ready = threading.Event(), threading.Event(), threading.Barrier(3)

    def child(ctx, callback):
        ctx.on_stop(callback)
        ready.wait(HANG)
        called.wait(HANG)
        gate.wait(HANG)

    def block():
        scarce.names = ("app/a (on_stop)",)
        gate.wait(HANG)

    def hang_up():
        called.set()
        gate.set()

    tree = supervisor(
        "app", children=[thread(child, hang_up, id="a"), thread(child, block, id="b", shutdown=0.2)]
    )
    app = otpy.start(tree, log=False)
    ready.wait(HANG)
    helper = threading.Thread(
        target=lambda: wait_until(lambda: scarce.names == ("app/a (on_stop)",))
    )
    helper.start()
    stopper = threading.Thread(target=app.stop)
    stopper.start()
    helper.join(HANG)
    app._tree.telemetry.helpers.run(lambda: setattr(scarce, "names", ()), "any")
    stopper.join(HANG)

    assert called.is_set()


def test_a_late_report_is_handled_on_a_thread_of_its_own():
    """The thread that reports it serves others, as that which waits for detached programs does."""
    got = []
    telemetry = Telemetry("app", None, None)
    telemetry.subscribe("app", lambda report: got.append((report, threading.current_thread())))
    telemetry.close()
    telemetry.tell_late(CRASH)
    wait_until(lambda: got)

    assert got[0][0] is CRASH
    assert got[0][1] is not threading.current_thread()


def test_where_no_thread_starts_late_the_helper_is_there_from_the_beginning(monkeypatch):
    """Python 3.12.0 to 3.12.2: it waits until the child is asked to stop, or has ended."""
    monkeypatch.setattr(threads, "STARTS_NONE_LATE", True)
    calls, puppet = [], Puppet()
    app = otpy.start(supervisor("app", children=[puppet.spec("a")]), log=False)
    life = puppet.next()
    life.ctx.on_stop(lambda: calls.append(threading.current_thread().name))

    def helpers():
        return [one.thread for one in threads.entries(app._tree) if one.name == "app/a (on_stop)"]

    (first,) = helpers()
    life.crash()
    life = puppet.next()
    life.ctx.on_stop(lambda: calls.append(threading.current_thread()))
    first.join(HANG)
    (second,) = helpers()
    app.stop()

    assert calls == [second]


def test_where_no_thread_starts_late_a_forgotten_context_frees_its_helper(monkeypatch):
    """A callback may be registered from another thread: then the child's is not known."""
    monkeypatch.setattr(threads, "STARTS_NONE_LATE", True)
    puppet = Puppet()
    app = otpy.start(supervisor("app", children=[puppet.spec("a", restart="temporary")]), log=False)
    life = puppet.next()
    ctx = Context(life.ctx._birth, lambda message: None)
    ctx.on_stop(print)
    helper = next(
        one.thread for one in reversed(threads.entries(app._tree)) if one.name == "app/a (on_stop)"
    )
    del ctx
    gc.collect()
    helper.join(HANG)
    app.stop()

    assert not helper.is_alive()
