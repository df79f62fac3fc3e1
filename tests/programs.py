"""For tests of programs: programs in one line, and what /proc knows of them."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otpy import ChildSpec, SupervisorSpec, process, supervisor
from otpy.children.program import guard_process
from tests.helpers import wait_until

SEND = """
import os, socket, signal
mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
tell = lambda text: mail.sendto(text, os.environ['NOTIFY_SOCKET'])
"""
"""Gives a Python program ``tell(b"READY=1")``."""


def python(code: str, *args: object, **options: Any) -> ChildSpec:
    """A program in Python."""
    return process(sys.executable, "-S", "-c", code, *map(str, args), **{"id": "x", **options})


def sh(script: str, *args: object, **options: Any) -> ChildSpec:
    """A program for the shell; *args* are $1 and so on."""
    return process("/bin/sh", "-c", script, "sh", *map(str, args), **{"id": "x", **options})


def once(spec: ChildSpec, **options: Any) -> SupervisorSpec:
    """A tree of one program, which ends when that crashes once."""
    return supervisor("app", children=[spec], **{"intensity": 0, **options})


def mark() -> str:
    """A number of seconds for ``sleep`` that no other process has."""
    return f"1{uuid.uuid4().int % 10**12}"


def marked(mark: str) -> set[int]:
    """The processes that have *mark* among their arguments, zombies not among them."""
    return {
        int(path.name) for path in Path("/proc").glob("[0-9]*") if mark.encode() in _arguments(path)
    }


def _arguments(path: Path) -> list[bytes]:
    try:
        return (path / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def stat(pid: int | str) -> tuple[str, int, int, int]:
    """The state, parent, group and session of a process."""
    text = Path(f"/proc/{pid}/stat").read_text("latin-1")  # a name may be no UTF-8
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3])


def members(group: int) -> list[int]:
    """The processes of *group*.

    Zombies count only if they are ours: process number 1 may be slow to reap the others.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, its_group, _ = stat(path.name)
            if its_group == group and (state != "Z" or parent == os.getpid()):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def children(parent: int | None = None) -> list[int]:
    """The child processes of *parent*, by default our own, zombies among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if stat(path.name)[1] == (parent or os.getpid()):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@contextlib.contextmanager
def no_process_left() -> Iterator[None]:
    """Check that no child process of ours outlives the block."""
    before = set(children())
    yield
    assert set(children()) <= before


def guards_of(parent: int) -> set[int]:
    """The guards of the process *parent*."""
    return marked(guard_process.__file__).intersection(children(parent))


def number_in(file: Path) -> int:
    """Wait until a program has written a line with a number to *file*, and return it."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), f"a number in {file}")
    return int(file.read_text())
