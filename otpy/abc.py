"""The ports: what other packages may provide, and what a kind of child is given.

To write a kind of child, write a class that meets ``Child`` and a callable that makes
one of a ``Birth``. The callable is the ``start`` of a ``ChildSpec``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from otpy.core.messages import Handover, Message
from otpy.reports import ExitReason, Report
from otpy.runtime.threads import Thread
from otpy.specs import ChildSpec
from otpy.values import running

if TYPE_CHECKING:
    from otpy.runtime.handle import Supervisor
    from otpy.runtime.tree import Tree

ReportHandler = Callable[[Report], object]
"""A function that gets the reports. It runs on a thread of its own. What it raises is
logged."""

Deliver = Callable[[Message], None]
"""The function by which a child delivers news to its supervisor. It may be called on
any thread, and never blocks."""


@runtime_checkable
class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Return seconds that never step back. All deadlines are in these."""

    def wall(self) -> float:
        """Return seconds since the epoch, for reports only."""


@runtime_checkable
class Puttable(Protocol):
    """A queue, as far as a report handler is concerned."""

    def put(self, item: Any, /) -> object:
        """Take *item*."""


class Closable(Protocol):
    """What several children share, such as a thread that waits for all of them."""

    def close(self) -> object:
        """End as soon as no child needs it any more. Neither wait nor raise."""


class Stray(Protocol):
    """What could not be stopped: a child, or a loop that was blocked."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""

    def stack(self) -> str:
        """Return what it is doing now."""


@running(kw_only=True)
class Birth:
    """What one incarnation of a child is made from.

    It does not change while the child lives. No field has a default, so that no stage
    of a test swallows a call by mistake.

    Attributes:
        ref: The number that the news of the child must carry.
        path, spec, incarnation: Which child, and which life of it.
        last_exit: Why the incarnation before ended; None if there was none. A kind sets
            it to None at the end of the child, or each life would keep the one before
            alive.
        handover: What the incarnations before have left. A child only reads it.
        spawn: Starts a thread for the child: ``spawn(target, name=…, purpose=…,
            if_lost=…)``. It may raise RuntimeError. The supervisor's thread calls
            *if_lost* if the thread ends in another way than by returning from *target*.
        supervisor: The handle of the child's supervisor.
        tree: What all supervisors of the running tree share.
        shared: What the children of one supervisor share, such as an event loop, each
            under a key of its kind. Only the supervisor's thread may touch it. Each
            value is ``Closable``; the supervisor calls ``close()`` when it ends.
        remind: Has a function called on the supervisor's thread: ``remind(seconds,
            function)``. May be called on any thread. The function must neither block
            nor raise. If the supervisor ends before, the function is not called.
        soon: Has a function called before the supervisor's thread waits again:
            ``soon(function)``. It is for what can be done for many children at once.
            May be called on the supervisor's thread only. The function must neither
            block nor raise.
        returns_in: Returns in how many seconds the supervisor starts the child of an id
            again: ``returns_in(id)``; None: that child waits for no restart. May be
            called on the supervisor's thread only.
        leftovers: Returns a list of what earlier children have left. The child's thread
            clears the list at its end, when it has said its last word. To be called
            once, on the supervisor's thread, and only by a kind that does so.
    """

    ref: int
    path: str
    spec: ChildSpec
    incarnation: int
    last_exit: ExitReason | None
    handover: Handover
    spawn: Callable[..., Thread]
    supervisor: Supervisor
    tree: Tree
    shared: dict[object, Any]
    remind: Callable[[float, Callable[[], object]], object]
    soon: Callable[[Callable[[], object]], object]
    returns_in: Callable[[str], float | None]
    leftovers: Callable[[], list[object]]


class Child(Protocol):
    """One incarnation of something that a supervisor can run.

    The supervisor's thread calls all methods. No method blocks or raises. All news goes
    to *deliver*.
    """

    def start(self, deliver: Deliver) -> None:
        """Start the child.

        Deliver one ChildStarted when the child is up. Deliver one ChildExited at the
        end, always and exactly once. News that is delivered from within this call is
        read before the news of other threads.
        """

    def stop(self) -> None:
        """Ask the child to stop. A second or a late call changes nothing."""

    def kill(self, grace: float) -> bool:
        """Stop the child by force; it has *grace* seconds to end.

        A second call changes nothing.

        Returns:
            False: this kind of child cannot be killed.
        """

    def abandon(self) -> None:
        """Fence off a child that could not be stopped: nothing that it does counts."""

    def stack(self) -> str:
        """Return what it is doing now, as a traceback; "" if nothing runs."""

    def detach(self) -> None:
        """Let the child run on, unsupervised. It still delivers its ChildExited."""

    def pulse(self) -> tuple[float, float]:
        """Return when it checked in last, and until when it may be silent (monotonic).

        Only a child with a heartbeat is asked. To come up counts as a check-in.
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
