"""Every thread of ours is known while it lives."""

import threading

from otpy import threads
from otpy.threads import Role, ThreadState
from tests.helpers import HANG, wait_until


def test_a_thread_is_tracked_while_it_lives():
    """With its name, role, purpose and owner; it is a daemon."""
    owner, gate = object(), threading.Event()
    thread = threads.spawn(lambda: gate.wait(HANG), name="t", role=Role.HELPER, purpose="waits", owner=owner)
    (entry,) = wait_until(lambda: threads.entries(owner))

    assert (entry.thread, entry.role, entry.purpose, thread.name, thread.daemon) == (
        thread,
        Role.HELPER,
        "waits",
        "t",
        True,
    )
    assert threads.entries(object()) == []
    assert threads.settle(owner, {Role.HELPER}, 0.0) == ("t",)
    assert threads.settle(owner, {Role.CHILD}, 0.0) == ()
    threads.mark(thread, ThreadState.UNSTOPPED)
    assert threads.settle(owner, {Role.HELPER}, 0.0) == ()
    threads.mark(thread, ThreadState.RUNNING)
    gate.set()
    assert threads.settle(owner, {Role.HELPER}, HANG) == ()
    assert threads.entries(owner) == []


def test_a_thread_does_not_wait_for_itself():
    """A handler may stop the tree that it hears of."""
    owner, left = object(), []
    thread = threads.spawn(
        lambda: left.extend(threads.settle(owner, {Role.HELPER}, 0.0)),
        name="t",
        role=Role.HELPER,
        purpose="",
        owner=owner,
    )
    thread.join(HANG)

    assert left == ["t"]


def test_a_forked_process_forgets_them_all(monkeypatch):
    """None of them exists there."""
    monkeypatch.setattr(threads, "_entries", {threading.current_thread(): None})
    threads.forget_all()

    assert threads._entries == {}
