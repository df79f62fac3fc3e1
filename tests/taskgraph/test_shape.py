"""The shape of a graph, and that of the package."""

from __future__ import annotations

import re
from pathlib import Path

from otpy import taskgraph
from otpy.taskgraph import TaskGraph
from tests.taskgraph.kit import nothing


def diamond():
    graph = TaskGraph()
    graph.add(nothing, "d", ["b", "c"])
    graph.add(nothing, "b", ["a"])
    graph.add(nothing, "c", ["a", "b"])
    graph.add(nothing, "a")
    graph.add(nothing, 'x "y"')
    return graph


def test_describe():
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
    shape = TaskGraph().describe()

    assert (shape.nodes, shape.levels, shape.longest_path, dict(shape.fan_in)) == ((), (), (), {})


def test_to_mermaid_and_to_dot():
    graph = diamond()

    assert graph.to_mermaid().splitlines()[:2] == ["flowchart TD", '    n0["d"]']
    assert '    n4["x #34;y#34;"]' in graph.to_mermaid()
    assert "    n3 --> n1" in graph.to_mermaid()
    assert '    n4 [label="x \\"y\\""];' in graph.to_dot()
    assert "    n3 -> n1;" in graph.to_dot()
    assert graph.to_dot().startswith("digraph tasks {\n")
    assert graph.to_dot().endswith("}\n")


def test_it_uses_the_public_api_and_nothing_of_the_running_system():
    """From inside otpy come words only, and looks at a stack and at the number of forks."""
    words = {
        "otpy.arguments",
        "otpy.core.pauses",
        "otpy.core.restarts",
        "otpy.exceptions",
        "otpy.reports",
        "otpy.specs",
        "otpy.values",
        "otpy.runtime.telemetry",
    }
    looks = {"threads.forks", "threads.stack_of"}
    text = "".join(path.read_text() for path in Path(taskgraph.__file__).parent.glob("*.py"))
    used = set(re.findall(r"^(?:from|import) (otpy[\w.]*)", text, re.MULTILINE))

    assert {one for one in used if not one.startswith("otpy.taskgraph")} == {
        "otpy",
        "otpy.runtime",
        *words,
    }
    assert re.findall(r"^from otpy.runtime import (.*)", text, re.MULTILINE) == ["threads"] * 2
    assert set(re.findall(r"\bthreads\.\w+", text)) == looks
