"""What a machine is told and what it answers: two closed sets of values.

``ref`` numbers one incarnation of one child, unique within its supervisor. A message whose ref is no longer
current is about an incarnation that is no longer ours, and is dropped.
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
    """What the incarnations of a child leave to each other. It lives as long as the child's spec.

    Only the thread of the supervisor writes it, when an incarnation has ended or been given up; to the machine it
    means nothing.

    Attributes:
        state: What was saved last.
    """

    state: object = None


SUPERVISOR = 0
"""The ref of the supervisor itself: its one timer is the total budget of its stop."""


class Message(Value):
    """Base of everything that a machine may be told."""

    __slots__ = ()


class Action(Value):
    """Base of everything that a machine may order."""

    __slots__ = ()


# Told by the runtime.


@message
class Begin(Message):
    """Start the children."""


@message
class StopSupervisor(Message):
    """End in order.

    Attributes:
        within: Seconds for the whole subtree; None: as long as the specs allow; 0: interrupt at once.
        grace: How many of them are for what has been interrupted; None: INTERRUPT_GRACE, or half of a short *within*.
        detach: Stop no worker: let them run on.
        signal: The name of the signal that asks for it; "": none does.
    """

    within: float | None = None
    grace: float | None = None
    detach: bool = False
    signal: str = ""


@message
class TooManyUnstopped(Message):
    """The tree has left more threads behind than it may; *path* was the last. Told to the root."""

    path: str
    count: int


# Told by children and timers. Kinds of children come from outside, so theirs are checked where they are made.


@message(init=False)
class ChildStarted(Message):
    """The child is up. *thread* is the name of its thread."""

    ref: int
    thread: str

    def __init__(self, ref: int, thread: str = "") -> None:
        if not isinstance(ref, int):
            raise TypeError(f"ref = {ref!r}: expected the number of the child's birth")
        self.ref, self.thread = ref, thread  # type: ignore[misc]


@message(init=False)
class ChildExited(Message):
    """The child has ended. Exactly one for each Start, whatever happened."""

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
    """The timer of *ref* ran out. What that means depends on the state the child is in.

    Attributes:
        silent_until: Until when a child with a heartbeat may be silent, as of its last check-in.
        hint: What a child that is not ready waits for, if that can be seen; for people.
        silent_since: When that was; None: one heartbeat before.
        at: For when the timer was set; None: there was none, what is due is due now.
        is_debugged: Whether a debugger is attached; looked at when the child is silent.
    """

    ref: int
    silent_until: float | None = None
    silent_since: float | None = attrs.field(default=None, eq=False)
    at: float | None = attrs.field(default=None, eq=False)
    is_debugged: bool = attrs.field(default=False, eq=False)
    hint: str = attrs.field(default="", eq=False)


@message
class Retry(Message):
    """The machine's word to itself: everything that was queued before it has been served, try again."""

    ref: int


# Told by callers. *reply* is the caller's and means nothing to the machine.


@message(kw_only=True)
class Call(Message):
    """Base of all calls. Each is one of its own, whatever it asks for.

    Attributes:
        reply: Where the answer goes; None: the caller has gone.
        inside: The child through whose subtree the call comes, if its caller cannot end or start before the answer.
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
    """Stop a child; its spec stays, unless it is temporary or the supervisor dynamic.

    Attributes:
        detach: If it is a supervisor, it lets its workers run on.
    """

    id: str
    detach: bool = False


@message(kw_only=True)
class RestartChild(Call):
    """Start a child that is specified and not running."""

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
        beats: When those with a heartbeat checked in last, by ref.
    """

    beats: Mapping[int, float] = attrs.field(factory=dict)


# Orders. The runtime performs them in order and reports what comes of them as messages.


@message
class Start(Action):
    """Start an incarnation: a ChildStarted may follow, one ChildExited must."""

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
    """Interrupt the child, or kill it where that can be done; after *grace* seconds it is given up."""

    ref: int
    grace: float


@message
class Abandon(Action):
    """Fence the child, count it as unstopped, and tell *report* with its stack."""

    ref: int
    report: Unstopped


@message
class Detach(Action):
    """Let the child go: a worker runs on unsupervised, a supervisor lets its children go and ends."""

    ref: int


@message
class Expose(Action):
    """Tell *report* with the current stack of the child."""

    ref: int
    report: Stalled


@message
class Arm(Action):
    """Set the one timer of *ref* to *at*, monotonic."""

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
    """Send a report to the world."""

    report: Report


@message
class Escalate(Action):
    """Call the escalation handlers."""

    escalation: Escalation


@message
class Up(Action):
    """All children are up: tell the parent."""


@message
class End(Action):
    """Nothing runs any more: tell the parent, and end the thread.

    Attributes:
        ended: The ids of the children that ended on the way, in that order, each with whether it had to be interrupted.
        duration: Seconds since the end was decided.
        detached: The ids of the children that run on.
    """

    reason: ExitReason
    ended: tuple[tuple[str, bool], ...] = ()
    duration: float = 0.0
    detached: tuple[str, ...] = ()
