"""The shape of a graph: described, and drawn as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from otpy.taskgraph.blueprint import Blueprint
from otpy.values import Value, report


@report
class Description(Value):
    """The shape of a graph. Names are in the order of declaration.

    Attributes:
        nodes: All tasks.
        edges: Pairs of a task and one that comes after it.
        roots: The tasks that come after no other.
        leaves: The tasks that no other comes after.
        levels: The tasks that could run side by side: the roots, then the tasks that
            need only these, and so on.
        longest_path: The longest chain of tasks; the first one of several.
        fan_in, fan_out: How many tasks come before each one, and how many after it.
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    roots: tuple[str, ...]
    leaves: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    longest_path: tuple[str, ...]
    fan_in: Mapping[str, int]
    fan_out: Mapping[str, int]


def describe(blueprint: Blueprint) -> Description:
    """Return the shape of a graph.

    Raises:
        SpecError: There is a cycle.
    """
    names = tuple(task.name for task in blueprint.tasks)
    places = range(len(names))
    # a task may name another one twice
    before = [tuple(dict.fromkeys(after)) for after in blueprint.after]
    fan_out = dict.fromkeys(places, 0)
    for place in itertools.chain(*before):
        fan_out[place] += 1
    levels, sorter = [], blueprint.sorter()
    while level := sorted(sorter.get_ready()):
        levels.append(level)
        sorter.done(*level)
    return Description(
        nodes=names,
        edges=tuple((names[first], names[then]) for then in places for first in before[then]),
        roots=tuple(names[place] for place in places if not before[place]),
        leaves=tuple(names[place] for place in places if not fan_out[place]),
        levels=tuple(tuple(names[place] for place in level) for level in levels),
        longest_path=tuple(names[place] for place in longest_path(levels, before)),
        fan_in={names[place]: len(before[place]) for place in places},
        fan_out={names[place]: fan_out[place] for place in places},
    )


def longest_path(levels: list[list[int]], before: list[tuple[int, ...]]) -> list[int]:
    """Return the longest chain: from the last level back, one task of each level."""
    level_of = {place: number for number, level in enumerate(levels) for place in level}
    path = [levels[-1][0]] if levels else []
    while path and before[path[-1]]:
        above = level_of[path[-1]] - 1
        path.append(min(place for place in before[path[-1]] if level_of[place] == above))
    return path[::-1]


def mermaid(shape: Description) -> str:
    """Return a graph as a Mermaid flowchart."""
    ids = {name: f"n{number}" for number, name in enumerate(shape.nodes)}

    def escape(name: str) -> str:
        return "".join(one if one.isalnum() or one in " _-./:" else f"#{ord(one)};" for one in name)

    nodes = [f'    {ids[name]}["{escape(name)}"]' for name in shape.nodes]
    edges = [f"    {ids[before]} --> {ids[after]}" for before, after in shape.edges]
    return "\n".join(["flowchart TD", *nodes, *edges]) + "\n"


def dot(shape: Description) -> str:
    """Return a graph in the DOT language of Graphviz."""
    ids = {name: f"n{number}" for number, name in enumerate(shape.nodes)}

    def quote(name: str) -> str:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'

    nodes = [f"    {ids[name]} [label={quote(name)}];" for name in shape.nodes]
    edges = [f"    {ids[before]} -> {ids[after]};" for before, after in shape.edges]
    return "\n".join(["digraph tasks {", *nodes, *edges, "}"]) + "\n"
