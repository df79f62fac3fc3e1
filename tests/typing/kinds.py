"""All kinds of children, which mypy compares with the contract ``Child``.

A kind that lacks a method of the contract, or has another signature, fails here. Without
this line it would fail only in a running tree. A new kind is added here.
"""

from __future__ import annotations

from otpy.abc import Child
from otpy.children.callable.child import CalleeChild
from otpy.children.coroutine.child import CoroutineChild
from otpy.children.program.child import Program
from otpy.children.thread import ThreadChild
from otpy.runtime.supervisor import NestedSupervisor

KINDS: tuple[type[Child], ...] = (
    ThreadChild,
    CoroutineChild,
    Program,
    CalleeChild,
    NestedSupervisor,
)
