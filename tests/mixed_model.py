"""The model of the mixed walks (mixed.py): the rules of OTP in its own words, and what the system says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

import otpy
from otpy.reports import (
    Progress,
    Report,
)

PATIENT = 100_000
"""An intensity that is never spent."""


# The model


@attrs.define(eq=False)
class Node:
    """A child as it should be."""

    id: str
    kind: str
    restart: str
    spec: otpy.ChildSpec
    parent: Group | None = None
    mark: str = ""
    beats: bool = False
    is_up: bool = False
    incarnation: int = 0

    @property
    def path(self) -> str:
        return f"{self.parent.path}/{self.id}" if self.parent else self.id

    def fresh(self, parent: Group) -> Node:
        return attrs.evolve(self, parent=parent, is_up=False, incarnation=0)


@attrs.define(eq=False)
class Group(Node):
    """A supervisor as it should be; *plan* is what its spec says, *members* what is there."""

    strategy: str = "one_for_one"
    intensity: int = PATIENT
    dynamic: bool = False
    plan: tuple[Node, ...] = ()
    members: list[Node] = attrs.field(factory=list)
    spent: int = 0

    def fresh(self, parent: Group) -> Node:
        return attrs.evolve(self, parent=parent, is_up=False, incarnation=0, members=[], spent=0)

    def everybody(self) -> Iterator[Node]:
        for member in self.members:
            yield member
            if isinstance(member, Group):
                yield from member.everybody()


class Model:
    """What must come of an order: reports and ends, in order."""

    def __init__(self, root: Group) -> None:
        self.root = root
        self.reports: list[tuple[Any, ...]] = []
        self.ends: list[tuple[str, int]] = []
        self.is_ordered = True

    def start(self, node: Node, cause: str) -> None:
        node.is_up, node.incarnation = True, node.incarnation + 1
        if isinstance(node, Group):
            node.members, node.spent = [child.fresh(node) for child in node.plan], 0
            for member in node.members:
                self.start(member, "init")
        if node is not self.root:
            self.reports.append(("Progress", node.path, node.incarnation, cause))

    def stop(self, node: Node) -> None:
        node.is_up = False
        if isinstance(node, Group):
            running = [member for member in reversed(node.members) if member.is_up]
            self.is_ordered &= not node.dynamic or len(running) < 2
            for member in running:
                self.stop(member)
        else:
            self.ends.append((node.path, node.incarnation))

    def end(self, node: Node, *, normal: bool) -> None:
        """A child has ended by itself."""
        if not isinstance(node, Group):
            self.ends.append((node.path, node.incarnation))
        node.is_up = False
        if node.restart == "permanent" or not normal:
            self.reports.append(("ChildTerminated", node.path, node.incarnation))
        if node.restart == "permanent" or (node.restart == "transient" and not normal):
            self.restart(node)
        else:
            self.forget(node)

    def forget(self, node: Node) -> None:
        assert node.parent
        if node.restart == "temporary" or node.parent.dynamic:
            node.parent.members.remove(node)

    def restart(self, node: Node) -> None:
        parent = node.parent
        assert parent
        parent.spent += 1
        if parent.spent > parent.intensity:
            self.give_up(parent)
            return
        together = self.together(node)
        for member in reversed(together):
            if member.is_up:
                self.stop(member)
        for member in together:
            if member.restart == "temporary":
                parent.members.remove(member)
            else:
                self.start(member, "restart")

    def together(self, node: Node) -> list[Node]:
        assert node.parent
        members = node.parent.members
        first, last = {
            "one_for_one": (members.index(node), members.index(node) + 1),
            "one_for_all": (0, len(members)),
            "rest_for_one": (members.index(node), len(members)),
        }[node.parent.strategy]
        return members[first:last]

    def give_up(self, group: Group) -> None:
        self.reports.append(("LimitReached", group.path, 0))
        self.stop(group)
        self.end(group, normal=True)

    def touched_by(self, node: Node) -> set[str]:
        """The paths that the end of *node* may change, at most: with all that are above, if those may give up."""
        paths = {node.path}
        while node.parent is not None:
            together = self.together(node)
            for one in together:
                paths |= (
                    {one.path, *(below.path for below in one.everybody())}
                    if isinstance(one, Group)
                    else {one.path}
                )
            if node.parent.intensity == PATIENT:
                break
            node = node.parent
        return paths


def told(report: Report) -> tuple[Any, ...]:
    """Return *report* as the model writes it."""
    line = (type(report).__name__, report.path, report.incarnation)
    return (*line, report.cause.value) if isinstance(report, Progress) else line


# What the system says


@attrs.frozen
class Process:
    pid: int
    parent: int
    words: list[bytes]


def processes() -> list[Process]:
    """All that run; zombies only if they are ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, *_ = (path / "stat").read_bytes().rpartition(b")")[2].split()
            if state not in b"ZX" or int(parent) == os.getpid():
                found.append(
                    Process(
                        int(path.name), int(parent), (path / "cmdline").read_bytes().split(b"\0")
                    )
                )
    return found


def members(node: Node, there: list[Process] | None = None) -> list[Process]:
    """The processes of a program."""
    return [one for one in there or processes() if node.mark.encode() in one.words]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}
