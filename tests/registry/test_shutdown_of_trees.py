"""``shutdown_all`` of the default registry: trees are asked, and waited for first."""

from __future__ import annotations

import contextlib
import queue
import threading

import pytest
import structlog

import otpy
from otpy import registry, supervisor, thread
from otpy.children.thread import ThreadChild
from otpy.core.messages import StopSupervisor
from otpy.registry import ThreadState, shutdown
from otpy.registry.shutdown import Shutdown
from otpy.runtime import threads
from tests.helpers import HANG
from tests.registry.kit import SOON, Boom, by_name, names, raiser


class TestShutdownOfTrees:
    """``shutdown_all`` of a registry that sees the trees."""

    def test_trees_are_stopped_in_order_and_waited_for_first(self, whole, launch, monkeypatch):
        """Children end in reverse order; threads are joined after the trees."""
        ended, alive_at_join = [], []

        def child(ctx):
            ctx.wait_stop()
            ended.append(ctx.path)

        inner = supervisor("in", children=[thread(child, id=id) for id in "bc"])
        app = launch(supervisor("app", children=[thread(child, id="a"), inner]))
        whole.spawn(whole.wait_shutdown, name="t")
        join_all = threads.join_all

        def look_and_join(waited_for, timeout):
            alive_at_join.append(app.alive)
            return join_all(waited_for, timeout)

        monkeypatch.setattr(threads, "join_all", look_and_join)
        stats = whole.shutdown_all(HANG)

        assert ended == ["app/in/c", "app/in/b", "app/a"]
        assert alive_at_join[-1] is False
        assert by_name(stats)[1:] == ((), ())
        assert {"app", "app/a", "app/in", "app/in/b", "app/in/c", "app (reports)", "t"} <= set(
            stats.joined_names
        )
        assert stats.duration < SOON

    def test_all_kinds_are_asked_before_any_is_waited_for(self, whole, launch):
        """Trees, detached children and spawned threads are asked before the call waits
        for any.
        """
        together = threading.Barrier(4)

        def child(ctx):
            ctx.wait_stop()
            together.wait(HANG)

        let_go = launch(supervisor("go", children=[thread(child, id="d")]))
        let_go.detach()
        for id in ("one", "two"):
            launch(supervisor(id, children=[thread(child, id="a", shutdown="infinity")]))
        whole.spawn(lambda: (whole.wait_shutdown(), together.wait(HANG)), name="t")
        stats = whole.shutdown_all(HANG)

        assert by_name(stats)[1:] == ((), ())
        assert {"go/d", "one/a", "two/a", "t"} <= set(stats.joined_names)
        assert stats.duration < SOON

    def test_a_child_that_a_tree_lets_go_while_it_ends_is_asked(self, whole, launch, monkeypatch):
        """The tree detaches its child only after the call has asked all others."""
        app = launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))
        all_asked, wait, detach = threading.Event(), Shutdown.wait, ThreadChild.detach

        def late(child):
            assert all_asked.wait(HANG)
            detach(child)

        monkeypatch.setattr(ThreadChild, "detach", late)
        monkeypatch.setattr(Shutdown, "wait", lambda call: (all_asked.set(), wait(call)))
        app._core().mailbox.put(StopSupervisor(detach=True))
        stats = whole.shutdown_all(HANG)

        assert by_name(stats)[1:] == ((), ())
        assert "app/a" in stats.joined_names

    def test_a_child_that_cannot_be_stopped_is_given_up_within_the_budget(
        self, whole, launch, gate, monkeypatch
    ):
        """The tree gives its child up in time, so the tree ends and the child is an
        orphan. One budget serves for all.
        """
        up, budgets, join_all = threading.Barrier(3), [], threads.join_all

        def stuck(ctx):
            up.wait(HANG)
            gate.wait(HANG)

        apps = [
            launch(
                supervisor(
                    id, children=[thread(stuck, id="x", shutdown="infinity", interrupt=False)]
                )
            )
            for id in ("one", "two")
        ]
        up.wait(HANG)
        whole.spawn(gate.wait, name="t")
        monkeypatch.setattr(
            threads,
            "join_all",
            lambda those, left: budgets.append(left) or join_all(those, left),
        )
        # so small that a slow machine does not matter
        monkeypatch.setattr(shutdown, "TREES_SHARE", 0.25)
        stats = whole.shutdown_all(1.0)

        assert 0 <= budgets[-1] <= 0.75  # what the trees have left
        assert by_name(stats)[1:] == (("one/x", "two/x", "t"), ("one/x", "two/x"))
        assert 1.0 <= stats.duration < 2.9
        assert [app.alive for app in apps] == [False, False]
        assert {one.path: one.state for one in whole.active() if one.path} == {
            "one/x": ThreadState.UNSTOPPED,
            "two/x": ThreadState.UNSTOPPED,
        }

    def test_trees_get_nine_tenths_of_the_budget(self, whole, monkeypatch):
        """So it is known before the end of the budget which children they give up."""
        budgets = []
        monkeypatch.setattr(
            registry.registry, "ask_all", lambda within: budgets.append(within) or {}
        )
        for timeout in (10, 0):
            whole.shutdown_all(timeout)

        assert budgets == [9.0, 0.0]

    def test_a_tree_that_is_not_over_still_has_its_children(self, whole, launch):
        """Children of a tree that runs are no orphans: the tree waits for them."""
        slow, up = threading.Event(), threading.Event()

        def child(ctx):
            # an interrupt may come before it waits
            with contextlib.suppress(BaseException):
                up.set()
                slow.wait(HANG)
            slow.wait(HANG)

        app = launch(supervisor("app", children=[thread(child, id="a")]))
        assert up.wait(HANG)
        joined, left, orphaned = by_name(whole.shutdown_all(0))
        slow.set()

        assert joined == ()
        assert {"app", "app/a"} <= set(left)
        assert orphaned == ()
        app.wait(HANG)

    def test_a_child_that_was_given_up_before_is_not_waited_for(self, whole, launch, gate):
        """A thread that its supervisor has given up is named, and not waited for."""
        up = threading.Event()

        def stuck(ctx):
            up.set()
            gate.wait(HANG)

        app = launch(
            supervisor(
                "app", children=[thread(stuck, id="x", shutdown="brutal_kill", interrupt=False)]
            )
        )
        assert up.wait(HANG)
        app.terminate_child("x")
        stats = whole.shutdown_all(HANG)

        assert by_name(stats)[1:] == (("app/x",), ("app/x",))
        assert stats.duration < SOON

    def test_a_detached_child_that_does_not_listen(self, whole, launch, gate):
        """It is waited for, and is an orphan when the budget is over."""
        up = threading.Event()

        def deaf(ctx):
            up.set()
            gate.wait(HANG)

        app = launch(supervisor("app", children=[thread(deaf, id="x")]))
        assert up.wait(HANG)
        app.detach()

        assert by_name(whole.shutdown_all(0.2)) == ((), ("app/x",), ("app/x",))

    def test_a_detached_child_that_cannot_be_asked(self, whole, gate):
        """The exception is logged, and the others are asked all the same."""
        asked = []
        for name, ask in (("a", raiser(Boom())), ("b", lambda: asked.append("b"))):
            spawned = threads.spawn(
                gate.wait, name=name, role=threads.Role.CHILD, purpose="", owner=None
            )
            threads.mark(spawned, ThreadState.DETACHED, ask)
        with structlog.testing.capture_logs() as logs:
            stats = whole.shutdown_all(0)

        assert by_name(stats) == ((), ("a", "b"), ("a", "b"))
        assert asked == ["b"]
        assert [(one["event"], one["path"]) for one in logs] == [("ask_failed", "a")]

    def test_a_child_may_call(self, whole, launch):
        """Its tree is asked but not waited for, since the tree waits for the caller.

        All others are waited for.
        """
        go_on, box = threading.Event(), queue.SimpleQueue()

        def caller(ctx):
            go_on.wait(HANG)
            box.put(whole.shutdown_all(HANG))
            ctx.wait_stop()

        def other(ctx):
            ctx.wait_stop()

        launch(supervisor("other", children=[thread(other, id="a")]))
        whole.spawn(whole.wait_shutdown, name="t")
        inner = supervisor("in", children=[thread(caller, id="c", shutdown="infinity")])
        app = launch(supervisor("app", children=[thread(other, id="a"), inner]))
        go_on.set()
        stats = box.get(timeout=HANG)

        assert stats.duration < SOON
        joined, left, orphaned = by_name(stats)
        assert {"other", "other/a", "t"} <= set(joined)
        assert {"app", "app/a", "app/in"} <= set(left)
        assert not {"app/in/c"} & {*joined, *left}
        assert orphaned == ()
        assert str(app.wait(HANG)) == "shutdown"

    @pytest.mark.parametrize("where", ["handler", "on_stop"])
    def test_a_helper_of_a_tree_may_call(self, whole, launch, where):
        """The tree waits for its handlers and for ``on_stop`` callbacks, so it is not
        waited for.
        """
        box = queue.SimpleQueue()

        def shut(*args):
            if box.empty():
                box.put(whole.shutdown_all(HANG))

        def child(ctx):
            if where == "on_stop":
                ctx.on_stop(shut)
            ctx.ready()
            ctx.wait_stop()

        app = launch(supervisor("app", children=[thread(child, id="a", ready=True)]))
        if where == "handler":
            app.subscribe(shut)
            app.terminate_child("a")
            app.restart_child("a")  # which is told, also if shut down meanwhile
        else:
            app.stop()
        stats = box.get(timeout=HANG)

        assert stats.duration < SOON
        assert by_name(stats)[2] == ()
        app.wait(HANG)

    def test_children_of_two_trees_may_call_at_once(self, whole, launch):
        """Neither call waits for the other until its budget is over."""
        together, box = threading.Barrier(3), queue.SimpleQueue()

        def caller(ctx):
            together.wait(HANG)
            box.put(whole.shutdown_all(HANG))

        for id in ("one", "two"):
            launch(
                supervisor(
                    id, children=[thread(caller, id="c", shutdown="infinity", restart="temporary")]
                )
            )
        together.wait(HANG)  # both are up
        results = [box.get(timeout=HANG) for _ in range(2)]

        assert all(stats.duration < SOON for stats in results)

    def test_a_detached_child_may_call(self, whole, launch):
        """No tree waits for it, so the call may wait for all trees."""
        go_on, up, box = threading.Event(), threading.Event(), queue.SimpleQueue()

        def caller(ctx):
            up.set()
            go_on.wait(HANG)
            box.put(whole.shutdown_all(HANG))

        inner = supervisor("in", children=[thread(caller, id="c")])
        launch(
            supervisor("app", children=[inner, thread(lambda ctx: ctx.wait_stop(), id="a")])
        ).find("app/in").detach()
        assert up.wait(HANG)
        go_on.set()
        stats = box.get(timeout=HANG)

        assert by_name(stats)[1:] == ((), ())
        assert {"app", "app/a"} <= set(stats.joined_names)

    def test_a_private_registry_leaves_trees_alone(self, reg, launch):
        """``shutdown_all`` of a private registry asks no tree."""
        app = launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))

        assert reg.shutdown_all(HANG).total == 0
        assert app.alive
        assert app.which_children()[0].incarnation == 1

    def test_the_default_one_leaves_private_ones_alone(self, whole, reg, gate):
        """``shutdown_all`` of the default registry asks no thread of a private one."""
        reg.spawn(gate.wait, name="t")

        assert whole.shutdown_all(HANG).total == 0
        assert reg.shutdown_requested is False
        assert names(reg.active()) == ["t"]

    def test_trees_may_be_started_afterwards(self, whole, launch):
        """The flag refuses ``spawn`` only."""
        whole.shutdown_all(HANG)
        app = launch(supervisor("app", children=[thread(lambda ctx: ctx.wait_stop(), id="a")]))

        assert app.alive
        assert by_name(whole.shutdown_all(HANG))[1:] == ((), ())
        assert not app.alive

    def test_a_tree_that_starts_is_stopped(self, whole):
        """A tree that is not up yet is stopped, and its start fails."""
        starting, box = threading.Event(), queue.SimpleQueue()

        def slow(ctx):
            starting.set()
            ctx.wait_stop()

        def start():
            try:
                otpy.start(
                    supervisor("app", children=[thread(slow, id="a", ready=True)]), log=False
                )
            except otpy.StartError as error:
                box.put(error)

        starter = threading.Thread(target=start)
        starter.start()
        assert starting.wait(HANG)
        stats = whole.shutdown_all(HANG)
        starter.join(HANG)

        assert by_name(stats)[1:] == ((), ())
        assert isinstance(box.get(timeout=HANG), otpy.StartError)
