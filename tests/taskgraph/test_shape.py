"""The shape of a graph, and that of the package."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

from otpy import Backoff, taskgraph
from otpy.taskgraph import TaskGraph
from tests.taskgraph.kit import fail, nothing


def diamond():
    """Return a graph with two ways from its root to its leaf, and a lonely task."""
    graph = TaskGraph()
    graph.add(nothing, "d", ["b", "c"])
    graph.add(nothing, "b", ["a"])
    graph.add(nothing, "c", ["a", "b"])
    graph.add(nothing, "a")
    graph.add(nothing, 'x "y"')
    return graph


def test_describe():
    """The description has nodes, edges, levels, the longest path, and the number of
    neighbours.
    """
    shape = diamond().describe()

    assert shape.nodes == ("d", "b", "c", "a", 'x "y"')
    assert set(shape.edges) == {("b", "d"), ("c", "d"), ("a", "b"), ("a", "c"), ("b", "c")}
    assert shape.roots == ("a", 'x "y"')
    assert shape.leaves == ("d", 'x "y"')
    assert shape.levels == (("a", 'x "y"'), ("b",), ("c",), ("d",))
    assert shape.longest_path == ("a", "b", "c", "d")
    assert shape.fan_in == {"d": 2, "b": 1, "c": 2, "a": 0, 'x "y"': 0}
    assert shape.fan_out == {"d": 0, "b": 2, "c": 1, "a": 2, 'x "y"': 0}


def test_describe_nothing():
    """A graph without tasks has an empty description."""
    shape = TaskGraph().describe()

    assert (shape.nodes, shape.levels, shape.longest_path, dict(shape.fan_in)) == ((), (), (), {})


def test_to_mermaid_and_to_dot():
    """Nodes are numbered, and odd characters in their names are escaped."""
    graph = diamond()

    assert graph.to_mermaid().splitlines()[:2] == ["flowchart TD", '    n0["d"]']
    assert '    n4["x #34;y#34;"]' in graph.to_mermaid()
    assert "    n3 --> n1" in graph.to_mermaid()
    assert '    n4 [label="x \\"y\\""];' in graph.to_dot()
    assert "    n3 -> n1;" in graph.to_dot()
    assert graph.to_dot().startswith("digraph tasks {\n")
    assert graph.to_dot().endswith("}\n")


def test_it_uses_the_public_api_and_nothing_of_the_running_system():
    """From inside otpy come words only, and looks at a stack and at the number of
    forks.
    """
    words = {
        "otpy.arguments",
        "otpy.core.pauses",
        "otpy.core.restarts",
        "otpy.exceptions",
        "otpy.reports",
        "otpy.specs",
        "otpy.values",
        "otpy.runtime.log",
    }
    looks = {"threads.forks", "stacks.stack_of"}
    text = "".join(path.read_text() for path in Path(taskgraph.__file__).parent.glob("*.py"))
    used = set(re.findall(r"^(?:from|import) (otpy[\w.]*)", text, re.MULTILINE))

    assert {one for one in used if not one.startswith("otpy.taskgraph")} == {
        "otpy",
        "otpy.runtime",
        *words,
    }
    assert sorted(re.findall(r"^from otpy.runtime import (.*)", text, re.MULTILINE)) == [
        "stacks",
        "threads",
    ]
    assert set(re.findall(r"\b(?:stacks|threads)\.\w+", text)) == looks


def test_each_class_has_its_thread():
    """Methods of ``Scheduler`` run on one thread, those of a ``Worker`` on its own."""
    seen = set()

    def note(frame, event, arg):
        owner, _, method = frame.f_code.co_qualname.partition(".")
        is_method = owner in ("Scheduler", "Worker") and "<" not in method
        if event == "call" and is_method and method != "__init__":
            me = frame.f_locals["self"]
            path = "tasks/scheduler" if owner == "Scheduler" else me._seat.ctx.path
            seen.add((f"{owner}.{method}", path, threading.current_thread().name))

    async def wait():
        await asyncio.sleep(0)

    threading.setprofile(note)
    try:
        graph = TaskGraph(workers=3)
        graph.add(threading.Lock().acquire)
        graph.add(fail, retries=1, backoff=Backoff(0.001, 0.001))
        graph.add(wait, after=["fail"])
        graph.add(asyncio.Event().wait, "hangs", timeout=0.02)
        graph.on_task_run(lambda *args: None)
        summary = graph.run()
    finally:
        threading.setprofile(None)

    assert (summary.passed, summary.failed) == (2, 2)
    assert [one for one in seen if one[1] != one[2]] == []
    methods = {name for name, _, _ in seen}
    assert {"Scheduler._late", "Scheduler._on_finished", "Worker._run", "Worker._finish"} <= methods
