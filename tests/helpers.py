"""What tests of running trees are made of: children under orders, recorded reports, a clock that a test owns.

Nothing here sleeps: tests meet their threads at a rendezvous. Every wait ends with an assertion error after HANG
seconds; that is a limit for hangs, and no test depends on its length.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs

from otpy import ChildSpec, Context, thread
from otpy.reports import Report
from otpy.runtime import threads
from otpy.runtime.threads import Role
from otpy.runtime.tree import Tree

HANG = 20.0


def close(tree: Tree) -> None:
    """Close *tree* as its root does at its end, and wait for what its children have shared."""
    tree.close()
    assert not threads.settle(tree, {Role.HELPER, Role.HANDLER}, HANG)


def wait_until(condition: Callable[[], Any], what: str = "") -> Any:
    """Return the first true value of *condition*: for states that nothing announces. Prefer a report."""
    deadline = time.monotonic() + HANG
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never: {what or condition}"
        threading.Event().wait(0.002)
    return value


class Recorder:
    """A report handler that keeps what it gets, in order, and lets a test wait for something."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._news = threading.Condition()

    def __call__(self, report: Report) -> None:
        with self._news:
            self.reports.append(report)
            self._news.notify_all()

    def of(
        self, kind: type[Report] | tuple[type[Report], ...], path: str | None = None
    ) -> list[Any]:
        """Return the reports of *kind* so far, those about *path* or all."""
        return [
            one for one in list(self.reports) if isinstance(one, kind) and path in (None, one.path)
        ]

    def wait_for(self, kind: type[Report], path: str | None = None, count: int = 1) -> Any:
        """Wait until there are *count* such reports, and return the last of them."""
        with self._news:
            arrived = self._news.wait_for(lambda: len(self.of(kind, path)) >= count, HANG)
        assert arrived, f"no {kind.__name__} number {count} of {path}; there are {self.names()}"
        return self.of(kind, path)[count - 1]

    def names(self) -> list[str]:
        """Return the story so far as lines like "Progress app/a"."""
        return [f"{type(one).__name__} {one.path}" for one in list(self.reports)]


@attrs.define(eq=False)
class Life:
    """One incarnation of a Puppet, waiting for orders in its own thread."""

    ctx: Context
    orders: queue.SimpleQueue[Callable[[], object] | None] = attrs.field(factory=queue.SimpleQueue)
    asked: threading.Event = attrs.field(factory=threading.Event)
    ended: threading.Event = attrs.field(factory=threading.Event)

    def crash(self, error: BaseException | None = None) -> None:
        """Raise *error* (default: a RuntimeError) in the child."""
        self.do(_raiser(error or RuntimeError("ordered to crash")))

    def leave(self) -> None:
        """Return from the target."""
        self.orders.put(None)

    def do(self, order: Callable[[], object]) -> None:
        """Run *order* in the child's thread; what it raises ends the child."""
        self.orders.put(order)

    @property
    def incarnation(self) -> int:
        return self.ctx.incarnation


def _raiser(error: BaseException) -> Callable[[], object]:
    def raise_it() -> None:
        raise error

    return raise_it


class Puppet:
    """A target under orders: ``thread(puppet, id=...)``. Each incarnation comes out of ``next()``.

    Attributes:
        failures: What the next starts raise before they are ready, one each; put None for a start that works.
            Only a spec with ``ready=True`` makes this a failed start.
        when_asked: Called in the child's thread when it has been asked to stop; default: nothing, it returns.
    """

    def __init__(self, when_asked: Callable[[Life], object] = lambda life: None) -> None:
        self.when_asked = when_asked
        self.failures: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.always_fails: BaseException | None = None
        self.starts = 0
        self._lives: queue.SimpleQueue[Life] = queue.SimpleQueue()

    def spec(self, id: str, **options: Any) -> ChildSpec:
        return thread(self, id=id, **options)

    def next(self) -> Life:
        """Wait for the next incarnation to be up."""
        try:
            return self._lives.get(timeout=HANG)
        except queue.Empty:
            raise AssertionError("no further incarnation") from None

    def is_quiet(self) -> bool:
        """Whether there is no incarnation that ``next`` has not returned."""
        return self._lives.empty()

    def __call__(self, ctx: Context) -> None:
        self.starts += 1
        self._maybe_fail()
        life = Life(ctx)
        ctx.on_stop(lambda: life.do(self._raise_asked))
        ctx.ready()
        self._lives.put(life)
        try:
            while (order := life.orders.get()) is not None:
                order()
        except _Asked:
            life.asked.set()
            self.when_asked(life)
        finally:
            life.ended.set()

    def _raise_asked(self) -> None:
        raise _Asked

    def _maybe_fail(self) -> None:
        failure = self.always_fails
        if failure is None and not self.failures.empty():
            failure = self.failures.get()
        if failure is not None:
            raise failure


class _Asked(Exception):
    pass


class ManualClock:
    """Time that stands still until a test moves it. Supervisors look at it when they get their next message."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
