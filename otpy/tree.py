"""What all supervisors of one running tree share, and the end of trees whose program ends without stopping them.

Who owns what: the directory entry of a path is written by the thread of that supervisor's parent (added before it
starts) and by its own (removed when it has ended); an entry of the strays is written by the thread
of its supervisor. Readers
may come from any thread, and take copies.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs

from otpy import threads
from otpy.abc import Clock
from otpy.mailbox import Bell, Reply
from otpy.messages import StopSupervisor, TooManyUnstopped
from otpy.reports import Unstopped
from otpy.telemetry import Telemetry
from otpy.threads import Role

FLUSH = 1.0
"""How long the end of a tree waits for handlers and callbacks to finish, in seconds, all together."""

SETTLE = 1.0
"""How long a thread that has said its last word may take to end, in seconds; only a starved machine needs more."""


class Stray(Protocol):
    """What could not be stopped: a child, or a loop that was blocked."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""

    def stack(self) -> str:
        """Return what it is doing now."""


class Closable(Protocol):
    """What the children of one kind share in a tree, such as a thread that waits for all of them."""

    def close(self) -> object:
        """End as soon as nothing needs it any more; neither wait nor raise."""


C = TypeVar("C", bound=Closable)


@attrs.define(eq=False, repr=False)
class Tree:
    """One running tree.

    Attributes:
        root: The path of the root supervisor.
        clock: Where time comes from.
        max_unstopped: How many threads may be left behind before the root gives up.
        seed: What the chance of each supervisor is made from, together with its path.
        launch: Starts the thread of a supervisor: ``launch(main, name)``.
        telemetry: The handlers.
        directory: The supervisors that live, by path; the root stays in it when it has ended.
        is_foreign: Whether this process is a fork of the one in which the tree runs.
    """

    root: str
    clock: Clock
    max_unstopped: int
    seed: int
    telemetry: Telemetry = attrs.field(init=False)
    launch: Callable[[Callable[[], None], str], object] = attrs.field(init=False)
    directory: dict[str, Any] = attrs.field(factory=dict)
    is_foreign: bool = False
    _strays: dict[int, tuple[Stray, Unstopped]] = attrs.field(factory=dict)
    _shared: dict[object, Any] = attrs.field(factory=dict)
    _door: threading.Lock = attrs.field(factory=threading.Lock)  # two supervisors may be the first at the same time

    def __attrs_post_init__(self) -> None:
        self.launch = self._launch

    def _launch(self, main: Callable[[], None], name: str) -> object:
        return threads.spawn(main, name=name, role=Role.SUPERVISOR, purpose="supervises", owner=self)

    def shared(self, kind: Callable[[Tree], C]) -> C:
        """Return what all children of a kind share in this tree: made when first asked for, closed at the end.

        Raises:
            Exception: What *kind* raises; the next one who asks tries again.
        """
        if kind not in self._shared:
            with self._door:
                if kind not in self._shared:
                    self._shared[kind] = kind(self)
        one: C = self._shared[kind]
        return one

    def left_behind(self, stray: Stray, report: Unstopped) -> None:
        """Count *stray* as unstopped; if there are too many such that are still alive, the root gives up."""
        self._strays[id(stray)] = stray, report
        count = len(self.strays())
        if count > self.max_unstopped:
            self.directory[self.root].mailbox.put(TooManyUnstopped(report.path, count))

    def strays(self) -> list[tuple[Stray, Unstopped]]:
        """Return those that were given up and are still alive; forget the others."""
        for key, (child, _) in list(self._strays.items()):
            if not child.alive:
                self._strays.pop(key, None)
        return list(self._strays.values())

    def unstopped(self, path: str) -> tuple[Unstopped, ...]:
        """Return a report of each stray below *path*, with its stack as it is now."""
        strays = [(child, one) for child, one in self.strays() if one.path.startswith(f"{path}/")]
        return tuple(attrs.evolve(one, stack=child.stack()) for child, one in strays)

    def close(self) -> tuple[str, ...]:
        """End the handlers when the root has ended; return the names of the helper threads that are still busy."""
        for one in self._shared.values():
            one.close()
        self.telemetry.close()
        return threads.settle(self, {Role.HELPER}, FLUSH)

    def is_over(self) -> None:
        """Take it from the guardian's list: all is done, and everybody has been told."""
        _running.pop(self, None)

    def settle(self) -> None:
        """Wait until the threads that have said their last word have ended."""
        threads.settle(self, {Role.CHILD, Role.SUPERVISOR, Role.SPARE, Role.LOOP}, SETTLE)


# The guardian. Trees that still run when the interpreter exits are stopped in order: atexit comes after the main thread
# and all non-daemon threads have ended, and before daemon threads are frozen. A thread cannot be started any more then
# (Python 3.12 and newer), see Telemetry.run_soon for what this means for on_stop callbacks.

_running: dict[Tree, tuple[Callable[[object], None], Reply]] = {}  # tree -> (post to its root, the root's end)


def guard(tree: Tree, post: Callable[[object], None], done: Reply) -> None:
    """Stop *tree* when the interpreter exits, if it still runs then."""
    _running[tree] = (post, done)


def ask_all(within: float | None) -> dict[Tree, Reply]:
    """Ask all running trees to stop, side by side and each in order; return their ends, to be waited for.

    Args:
        within: Seconds for each of them; None: as long as its specs allow.
    """
    running = dict(_running)
    for post, _ in running.values():
        post(StopSupervisor(within))
    return {tree: done for tree, (_, done) in running.items()}


def _stop_all() -> None:
    """Stop all trees; an interrupt from the keyboard shortens all budgets to zero.

    It waits at a bell: a signal that came just before this thread began to wait for a lock would be heard too late.
    """
    if not _running:
        return
    try:
        bell = Bell()
    except (OSError, ValueError):  # no descriptors are left, or this is not the main thread
        bell = None
    for within in (None, 0.0):
        try:
            for tree, done in ask_all(within).items():
                bell.wait(done, None, tree.root) if bell else done.wait(None, tree.root)
        except KeyboardInterrupt:
            continue
        break
    if bell:
        bell.close()


def _after_fork() -> None:
    """Leave the parent's trees alone: none of their threads exists in this process."""
    for tree in _running:
        tree.is_foreign = True
    _running.clear()
    threads.forget_all()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
