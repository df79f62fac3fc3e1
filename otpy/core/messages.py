"""The messages that a machine takes and the actions that it orders: two closed sets.

1. ``ref`` is the number of one incarnation of one child, unique within its supervisor.
2. A message whose ref is not current is dropped: it is about an incarnation that the
   supervisor has given up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from otpy.reports import Escalation, ExitReason, Report, Stalled, Unstopped
from otpy.specs import ChildSpec
from otpy.values import Value, message, running


@running
class Handover:
    """The state that the incarnations of a child leave to each other.

    It lives as long as the child's spec. Only the thread of the supervisor writes it,
    when an incarnation has ended or been given up. The machine never reads it.

    Attributes:
        state: The state that was saved last.
    """

    state: object = None


SUPERVISOR = 0
"""The ref of the supervisor itself. Its one timer is the total budget of its stop."""


class Message(Value):
    """The base of all messages."""

    __slots__ = ()


class Action(Value):
    """The base of all actions."""

    __slots__ = ()


# From the runtime.


@message
class Begin(Message):
    """Start the children."""


@message
class StopSupervisor(Message):
    """End in order.

    Attributes:
        within: Seconds for the whole subtree; None: as long as the specs allow; 0:
            interrupt all children at once.
        grace: How many of these seconds are for interrupted children; None:
            INTERRUPT_GRACE, or half of a short *within*.
        detach: Stop no worker: let them run on.
        signal: The name of the signal that asks for the stop; "": no signal.
    """

    within: float | None = None
    grace: float | None = None
    detach: bool = False
    signal: str = ""


@message
class TooManyUnstopped(Message):
    """The tree has left more threads behind than it may. The root gets this message.

    Attributes:
        path: The last child that was left behind.
        count: How many there are.
    """

    path: str
    count: int


# From children and timers. Kinds of children may come from outside otpy, so their
# messages are checked where they are made. The two classes have an ``__init__`` of
# their own for that: a validator of attrs would cost two more calls for each restart.


@message(init=False)
class ChildStarted(Message):
    """The child is up.

    Attributes:
        thread: The name of its thread.
    """

    ref: int
    thread: str

    def __init__(self, ref: int, thread: str = "") -> None:
        if not isinstance(ref, int):
            raise TypeError(f"ref = {ref!r}: expected the number of the child's birth")
        self.ref, self.thread = ref, thread  # type: ignore[misc]


@message(init=False)
class ChildExited(Message):
    """The child has ended. Each Start leads to exactly one of these."""

    ref: int
    reason: ExitReason

    def __init__(self, ref: int, reason: ExitReason) -> None:
        if not isinstance(ref, int):
            raise TypeError(f"ref = {ref!r}: expected the number of the child's birth")
        if not isinstance(reason, ExitReason):
            raise TypeError(f"reason = {reason!r}: expected an ExitReason")
        self.ref, self.reason = ref, reason  # type: ignore[misc]


@message
class Due(Message):
    """The timer of *ref* ran out. Its meaning depends on the state of the child.

    Attributes:
        silent_until: The time until which a child with a heartbeat may be silent, after
            its last check-in.
        silent_since: The time of that check-in; None: one heartbeat before
            *silent_until*.
        at: The time for which the timer was set; None: there was no timer, and the
            limit has run out now.
        is_debugged: Whether a debugger is attached. It matters for a silent child.
        hint: The condition that a child which is not ready waits for, if it can be
            seen; a text for people.
    """

    ref: int
    silent_until: float | None = None
    silent_since: float | None = attrs.field(default=None, eq=False)
    at: float | None = attrs.field(default=None, eq=False)
    is_debugged: bool = attrs.field(default=False, eq=False)
    hint: str = attrs.field(default="", eq=False)


@message
class Retry(Message):
    """The machine's message to itself: try again.

    It comes after all messages that were queued before it.
    """

    ref: int


# From callers. The machine hands *reply* back, and never reads it.


@message(kw_only=True)
class Call(Message):
    """The base of all calls. A call is equal to itself only.

    Attributes:
        reply: The object that gets the answer; None: the caller has gone.
        inside: The child in whose subtree the caller runs, if the caller can neither
            end nor become ready before the answer.
    """

    reply: Any
    inside: str | None = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@message(kw_only=True)
class StartChild(Call):
    """Add a child and start it."""

    spec: ChildSpec

    @property
    def id(self) -> str:
        return self.spec.id


@message(kw_only=True)
class TerminateChild(Call):
    """Stop a child. Only a temporary or a dynamic one loses its spec.

    Attributes:
        detach: Whether a supervisor lets its workers run on.
    """

    id: str
    detach: bool = False


@message(kw_only=True)
class RestartChild(Call):
    """Start a child whose spec is there and which is not running."""

    id: str


@message(kw_only=True)
class DeleteChild(Call):
    """Forget the spec of a child that is not running."""

    id: str


@message(kw_only=True)
class GetChildSpec(Call):
    """Ask for a spec."""

    id: str


@message(kw_only=True)
class WhichChildren(Call):
    """Ask for all children in start order."""


@message(kw_only=True)
class CountChildren(Call):
    """Ask for the counts."""


@message(kw_only=True)
class TakeSnapshot(Call):
    """Ask for the supervisor and its children.

    Attributes:
        beats: The time of the last check-in of each child with a heartbeat, by ref.
    """

    beats: Mapping[int, float] = attrs.field(factory=dict)


# Actions. The runtime performs them in their order, and reports the results as
# messages.


@message
class Start(Action):
    """Start an incarnation. One ChildStarted may follow, one ChildExited must."""

    ref: int
    spec: ChildSpec
    incarnation: int
    last_exit: ExitReason | None
    handover: Handover = attrs.field(factory=Handover, eq=False)


@message
class Stop(Action):
    """Ask the child to stop."""

    ref: int


@message
class Kill(Action):
    """Interrupt a thread, or kill a process; give it up after *grace* seconds."""

    ref: int
    grace: float


@message
class Abandon(Action):
    """Fence the child, count it as unstopped, and send *report* with its stack."""

    ref: int
    report: Unstopped


@message
class Detach(Action):
    """Let a worker run on; a supervisor does so with its own workers, and ends."""

    ref: int


@message
class Expose(Action):
    """Send *report* with the current stack of the child."""

    ref: int
    report: Stalled


@message
class Arm(Action):
    """Set the one timer of *ref* to *at*, a monotonic time."""

    ref: int
    at: float


@message
class Disarm(Action):
    """Clear the timer of *ref*."""

    ref: int


@message
class Again(Action):
    """Put a Retry at the end of the supervisor's own queue."""

    ref: int


@message
class Answer(Action):
    """Answer a call."""

    reply: Any
    value: object


@message
class Refuse(Action):
    """Answer a call with an exception."""

    reply: Any
    error: Exception


@message
class Tell(Action):
    """Send a report to the handlers and the log."""

    report: Report


@message
class Escalate(Action):
    """Call the escalation handlers."""

    escalation: Escalation


@message
class Up(Action):
    """Report to the parent that all children are up."""


@message
class End(Action):
    """Report to the parent that no child runs any more, and end the thread.

    Attributes:
        ended: The ids of the children that ended meanwhile, in that order, each with
            whether it had to be interrupted.
        duration: Seconds since the end was decided.
        detached: The ids of the children that run on.
    """

    reason: ExitReason
    ended: tuple[tuple[str, bool], ...] = ()
    duration: float = 0.0
    detached: tuple[str, ...] = ()
