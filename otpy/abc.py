"""The ports: what outsiders may provide, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import attrs

from otpy.core.messages import Handover, Message
from otpy.reports import ExitReason, Report
from otpy.runtime.threads import Thread
from otpy.specs import ChildSpec
from otpy.values import running

ReportHandler = Callable[[Report], object]
"""What gets the reports. It runs on a thread of its own; what it raises is logged."""

Deliver = Callable[[Message], None]
"""How a child talks to its supervisor. May be called from any thread; never blocks."""


@runtime_checkable
class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Return seconds that never step; all deadlines are in these."""

    def wall(self) -> float:
        """Return seconds since the epoch; for reports only."""


@runtime_checkable
class Puttable(Protocol):
    """A queue, as far as a report handler is concerned."""

    def put(self, item: Any, /) -> object:
        """Take *item*."""


@running(kw_only=True)
class Birth:
    """What a kind of child gets to make one incarnation of it. Nothing of it changes while the child lives.

    Attributes:
        ref: The number that its news must carry.
        path, spec, incarnation: Who it is.
        last_exit: Why the incarnation before ended, None if there was none; also None when this one has ended, or
            each would keep the one before alive.
        handover: What the incarnations before have left; to be read only.
        spawn: Starts a thread for it: ``spawn(target, name=…, purpose=…, if_lost=…)``; may raise RuntimeError. The
            supervisor's thread calls *if_lost* if the thread ends in another way than by returning from *target*.
        supervisor: The handle of its supervisor, None at the root.
        tree: What all supervisors of the running tree share.
        shared: What the children of its supervisor share; only the supervisor's thread may touch it. What they need
            together, such as an event loop, goes there under a key of their kind. When that supervisor ends, it
            calls ``close()`` of each, which must neither block nor raise.
        remind: Has a function called on the supervisor's thread: ``remind(seconds, function)``. May be called on any
            thread. The function must not block or raise; if the supervisor ends before, it is not called.
        soon: Has a function called before the supervisor's thread waits again: ``soon(function)``, for what can be done
            for many children at once. May be called on that thread only. The function must not block or raise.
        returns_in: Returns in how many seconds the supervisor will start a child of this id again, None if it does not
            wait for that: ``returns_in(id)``. May be called on the supervisor's thread only.
        leftovers: Returns a list of what earlier children have left, for a thread that clears it at its end, when it
            has said its last word. To be called on the supervisor's thread, once, and only by a kind that does so.
    """

    ref: int
    path: str
    spec: ChildSpec
    incarnation: int
    last_exit: ExitReason | None
    handover: Handover
    spawn: Callable[..., Thread]
    supervisor: Any
    tree: Any
    shared: dict[object, Any] = attrs.field(factory=dict)
    remind: Callable[[float, Callable[[], object]], object] = lambda seconds, function: None
    soon: Callable[[Callable[[], object]], object] = lambda function: function()
    returns_in: Callable[[str], float | None] = lambda id: None
    leftovers: Callable[[], list[object]] = list


class Child(Protocol):
    """One incarnation of something that a supervisor can run.

    No method blocks or raises; all news goes to *deliver*. All methods are called from the supervisor's thread.
    """

    def start(self, deliver: Deliver) -> None:
        """Start. ChildStarted once it is up; in the end, always, exactly one ChildExited.

        What is delivered from within this call is read before what other threads deliver.
        """

    def stop(self) -> None:
        """Ask it politely to stop. Idempotent; a late call is harmless."""

    def kill(self, grace: float) -> bool:
        """Stop it by force, it has *grace* seconds to end; False: this kind cannot be killed. Idempotent."""

    def abandon(self) -> None:
        """Fence it off: it could not be stopped, and nothing that it does counts any more."""

    def stack(self) -> str:
        """Return what it is doing now, formatted like a traceback; "" if nothing runs."""

    def detach(self) -> None:
        """Run on without a supervisor. Its ChildExited is delivered all the same."""

    def pulse(self) -> tuple[float, float]:
        """Return when it last checked in, and until when it may be silent, both monotonic; asked if it has a heartbeat.

        To come up counts as a check-in.
        """

    @property
    def state(self) -> object:
        """What it has saved last, or else what it was handed over."""

    @property
    def birth(self) -> Birth:
        """What it was made from."""

    @property
    def alive(self) -> bool:
        """Whether something of it still runs."""
