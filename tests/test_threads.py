"""Every thread of ours is known while it lives."""

import threading

import pytest

from otpy.runtime import threads
from otpy.runtime.threads import Role, ThreadState
from tests.helpers import HANG, wait_until


def test_a_thread_is_tracked_while_it_lives():
    """With its name, role, purpose and owner; it is a daemon."""
    owner, gate = object(), threading.Event()
    thread = threads.spawn(
        lambda: gate.wait(HANG), name="t", role=Role.HELPER, purpose="waits", owner=owner
    )
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


def test_one_that_is_about_to_start_is_waited_for(monkeypatch):
    """It cannot be joined yet; settle waits for its start first, and then for its end."""
    owner, go_on, lived = object(), threading.Event(), threading.Event()
    start = threading.Thread.start

    def slow_start(self):
        if self.name == "t":
            go_on.wait(HANG)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", slow_start)
    entry = threads.enlist(lived.set, name="t", role=Role.HELPER, purpose="", owner=owner)
    starter = threading.Thread(target=lambda: threads.launch(entry))
    starter.start()

    assert entry.alive
    assert threads.settle(owner, {Role.HELPER}, 0.0) == ("t",)
    go_on.set()
    assert threads.settle(owner, {Role.HELPER}, HANG) == ()
    assert lived.is_set()
    assert not entry.alive
    starter.join(HANG)


def test_one_that_the_system_refuses(monkeypatch):
    """Its entry is removed, and no thread waits for it."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    entry = threads.enlist(pytest.fail, name="t", role=Role.HELPER, purpose="", owner=threads)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(threading.Thread, "start", refuse)
        threads.launch(entry)

    assert threads.entries(threads) == []
    assert threads.join_all([entry], HANG) == []


def test_a_start_that_is_interrupted_before_the_thread_has_begun(monkeypatch):
    """It is forgotten; the thread comes all the same, later, and runs nothing."""
    start, late, ran = threading.Thread.start, [], []

    def interrupted(self):
        late.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", interrupted)
        threads.spawn(lambda: ran.append(1), name="t", role=Role.HELPER, purpose="", owner=threads)

    assert threads.entries(threads) == []
    start(late[0])
    late[0].join(HANG)
    assert ran == []


def test_a_start_that_is_interrupted_after_the_thread_has_begun(monkeypatch):
    """It runs, so it is known."""
    start, gate, begun = threading.Thread.start, threading.Event(), threading.Event()

    def interrupted(self):
        start(self)
        assert begun.wait(HANG)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", interrupted)
        threads.spawn(
            lambda: (begun.set(), gate.wait(HANG)),
            name="t",
            role=Role.HELPER,
            purpose="",
            owner=threads,
        )

    assert [entry.name for entry in threads.entries(threads)] == ["t"]
    gate.set()
    assert threads.settle(threads, {Role.HELPER}, HANG) == ()


def test_a_renamed_thread_is_known_by_its_first_name():
    """The name of a child is its path."""
    owner, gate = object(), threading.Event()
    thread = threads.spawn(
        lambda: gate.wait(HANG), name="app/a", role=Role.CHILD, purpose="", owner=owner
    )
    thread.name = "mine"

    assert threads.settle(owner, {Role.CHILD}, 0.0) == ("app/a",)
    gate.set()
    thread.join(HANG)


def test_nobody_minds_a_mark_on_a_thread_that_has_just_ended():
    """Its supervisor may not know yet."""
    thread = threads.spawn(lambda: None, name="t", role=Role.HELPER, purpose="", owner=object())
    thread.join(HANG)
    threads.mark(thread, ThreadState.UNSTOPPED)

    assert thread not in [one.thread for one in threads.entries()]
