"""The account of the trees that run in this process.

The root's thread enters its tree before anything else, and takes it out when it has
said its last word. The interpreter's end and ``registry.shutdown_all`` read the
account, on any thread, and take a copy.

A forked process has none of the threads of its parent, so it begins with an empty
account.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from otpy.core.messages import StopSupervisor
from otpy.runtime import threads
from otpy.runtime.waiting import Reply

if TYPE_CHECKING:
    from otpy.runtime.tree import Tree

_running: dict[Tree, tuple[Callable[[object], None], Reply]] = {}
"""For each tree, the function that puts a message into its root's mailbox, and the
reply that is given at the root's end."""


def enter(tree: Tree, put: Callable[[object], None], done: Reply) -> None:
    """Have *tree* stopped when the interpreter ends, if it still runs then."""
    _running[tree] = (put, done)


def leave(tree: Tree) -> None:
    """Take *tree* out of the account, if it is there."""
    _running.pop(tree, None)


def ask_all(within: float | None) -> dict[Tree, Reply]:
    """Ask all running trees to stop, side by side and each in order.

    Args:
        within: Seconds for each tree; None: as long as its specs allow.

    Returns:
        For each tree, the reply that is given at its end.
    """
    running = dict(_running)
    for put, _ in running.values():
        put(StopSupervisor(within))
    return {tree: done for tree, (_, done) in running.items()}


def _after_fork() -> None:
    """Leave the trees of the parent process alone."""
    _running.clear()
    threads.forget_all()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
