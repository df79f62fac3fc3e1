"""What a registry shows: living threads as values, and as a table for people."""

from __future__ import annotations

import queue
import threading

import pytest

from otpy import registry, supervisor, thread
from otpy.registry import ThreadState, table
from otpy.runtime import threads
from tests.helpers import HANG, Puppet, wait_until
from tests.registry.kit import by_name, names


class TestView:
    """What ``active`` shows."""

    def test_every_thread_of_a_tree_is_in_it(self, whole, launch, recorder):
        """``active`` has each thread of a tree, with name, path and purpose, and no
        other thread.
        """
        before = set(threading.enumerate())
        puppet = Puppet()
        inner = supervisor(
            "in",
            children=[thread(lambda ctx: ctx.wait_stop(), id="b", purpose="waits for the end")],
        )
        app = launch(
            supervisor("app", children=[puppet.spec("a"), inner]), on_escalation=print, log=True
        )
        app.subscribe(queue.SimpleQueue())
        puppet.next()
        found = whole.active()

        assert {one.thread for one in found} == set(threading.enumerate()) - before
        assert all(one.thread.name == one.name for one in found)
        assert {one.name: one.purpose for one in found if one.path} == {
            "app": "supervises",
            "app/a": "runs a",
            "app/in": "supervises",
            "app/in/b": "waits for the end",
        }
        assert [one.path for one in found if one.path] == [one.name for one in found if one.path]
        helpers = [one for one in found if not one.path]
        # A Python that starts no threads at its end has the helper that wakes a child
        # start with the child.
        early = {"app/a (on_stop)": "calls on_stop"} if threads.STARTS_NONE_LATE else {}
        assert {one.name: one.purpose for one in helpers} == early | dict.fromkeys(
            ["app (reserve)", "app (log)", "app (reports)"], "calls handlers"
        )
        assert all(one.daemon for one in helpers)

    def test_it_is_in_the_order_of_the_starts(self, reg, gate):
        """``active`` is sorted by the starts, not by the names."""
        for name in "cab":
            reg.spawn(gate.wait, name=name)

        assert names(reg.active()) == ["c", "a", "b"]

    def test_it_shows_what_became_of_children(self, whole, launch, gate):
        """It has the state DETACHED or, if it could not be stopped, UNSTOPPED."""
        up = threading.Barrier(3)

        def stuck(ctx):
            up.wait(HANG)
            gate.wait(HANG)

        app = launch(
            supervisor(
                "app", children=[thread(stuck, id="x", shutdown="brutal_kill", interrupt=False)]
            )
        )
        other = launch(supervisor("other", children=[thread(stuck, id="y")]))
        up.wait(HANG)
        app.terminate_child("x")
        other.detach()
        states = {one.path: one.state for one in whole.active()}

        assert states["app/x"] is ThreadState.UNSTOPPED
        assert states["other/y"] is ThreadState.DETACHED
        assert states["app"] is ThreadState.RUNNING
        assert ThreadState("unstopped"), ThreadState("detached")

    def test_the_module_is_the_default_registry(self, gate):
        """The functions of the package are the methods of one object."""
        spawned = registry.spawn(gate.wait, name="t")

        assert names(registry.active()) == names(registry.default().active()) == ["t"]
        assert "t " in registry.dump_status()
        assert registry.shutdown_requested() is registry.default().shutdown_requested is False
        assert registry.wait_shutdown(0) is False
        assert registry.unregister(spawned) is True
        gate.set()
        spawned.join(HANG)

    def test_all_listed_names_exist(self):
        """``__all__`` is sorted, and each of its names exists."""
        assert all(hasattr(registry, name) for name in registry.__all__)
        assert registry.__all__ == sorted(registry.__all__)


ODD_NAMES = [
    "a\nb",
    "tab\there",
    "lone \ud800 surrogate",
    "\x1b[31mred",
    "日本",
    "nul\0",
    "x" * 200,
    " ",
]


class TestDump:
    """What ``dump_status`` prints."""

    def test_it_is_a_table(self, whole, launch, gate):
        """The table is in the order of the starts, with states, ages and purposes."""
        launch(
            supervisor(
                "app", children=[thread(lambda ctx: ctx.wait_stop(), id="a", purpose="sits")]
            ),
            reports=None,
        )
        whole.spawn(gate.wait, name="worker", purpose="works")
        lines = whole.dump_status().split("\n")

        assert lines[0] == "4 threads"
        assert lines[1].split() == ["name", "state", "age", "daemon", "purpose"]
        column = {word: lines[1].index(word) for word in lines[1].split()}
        rows = [
            [line[start:].split("  ")[0].rstrip() for start in column.values()]
            for line in lines[2:]
        ]
        assert [(name, state, daemon, purpose) for name, state, age, daemon, purpose in rows] == [
            ("app", "running", "yes", "supervises"),
            ("app (reserve)", "running", "yes", "calls handlers"),
            ("app/a", "running", "yes", "sits"),
            ("worker", "running", "no", "works"),
        ]
        assert all(float(row[2].removesuffix(" s")) >= 0 for row in rows)

    def test_the_table_of_no_threads(self, reg):
        """It has its headings, and says whether shutdown was requested."""
        assert reg.dump_status() == "0 threads\nname  state  age  daemon  purpose"
        reg.shutdown_all()
        assert reg.dump_status().split("\n")[0] == "0 threads, shutdown requested"

    @pytest.mark.parametrize("name", ODD_NAMES)
    @pytest.mark.parametrize("stacks", [False, True])
    def test_odd_names(self, reg, gate, name, stacks):
        """Each thread has one line, without characters that a terminal would obey."""
        spawned = reg.spawn(gate.wait, name=name, purpose=name)
        text = reg.dump_status(stacks=stacks)

        assert all(char.isprintable() for line in text.split("\n") for char in line)
        assert len([line for line in text.split("\n") if "  running  " in line]) == 1
        assert stacks or text.count("\n") == 2
        text.encode()
        assert reg.active()[0].name == name
        assert by_name(reg.shutdown_all(0)) == ((), (name,), ())
        assert spawned.name == name

    def test_stacks(self, reg, gate):
        """With ``stacks=True`` the stack of each thread stands below its line."""
        up = threading.Event()

        def a_function_with_a_name():
            up.set()
            gate.wait(HANG)

        reg.spawn(a_function_with_a_name, name="t")
        assert up.wait(HANG)
        wait_until(lambda: "gate.wait(HANG)" in reg.dump_status(True))
        lines = reg.dump_status(stacks=True).split("\n")

        assert lines[2].startswith("t ")
        assert any(
            line.startswith("      File") and "in a_function_with_a_name" in line
            for line in lines[3:]
        )
        assert all(line.startswith("    ") for line in lines[3:])
        assert "in a_function_with_a_name" not in reg.dump_status()

    def test_it_does_not_fail_while_threads_come_and_go(self, reg):
        """A table can be made while another thread spawns."""
        over = threading.Event()

        def churn():
            for number in range(60):
                reg.spawn(lambda: None, name=f"t{number}")
            over.set()

        churner = threading.Thread(target=churn)
        churner.start()
        while not over.is_set():
            assert "\nname  " in reg.dump_status(stacks=True)
        churner.join(HANG)

    def test_a_thread_that_has_ended_has_no_stack(self, reg, monkeypatch):
        """The system may have given its number to another thread, whose stack it is
        not.
        """
        gate = threading.Event()
        ended = reg.spawn(gate.wait, name="t")
        (seen,) = reg.active()
        gate.set()
        ended.join(HANG)

        monkeypatch.setattr(table, "stack_of", lambda ident: "another thread's")
        assert table.stacks([seen]) == {ended: ""}
