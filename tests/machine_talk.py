"""A dialogue with a machine: say something, compare the whole answer. No threads, no time but the one that is told."""

from __future__ import annotations

from typing import Any

from otpy.core import messages
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import Action, ChildExited, ChildStarted
from otpy.reports import ChildInfo, ExitKind, ExitReason
from otpy.specs import ChildSpec, SupervisorSpec

NORMAL = ExitReason(ExitKind.NORMAL)
SHUTDOWN = ExitReason(ExitKind.SHUTDOWN)
CRASH = ExitReason(ExitKind.CRASHED, detail="crash")
KILLED = ExitReason(ExitKind.KILLED, detail="interrupted")


def no_start(birth: object) -> None:
    """The start of children that only a machine knows."""
    raise AssertionError("a machine starts nothing")


def child(id: str, **options: Any) -> ChildSpec:
    return ChildSpec(id=id, start=no_start, **options)


def nested(id: str, **options: Any) -> SupervisorSpec:
    return SupervisorSpec(id=id, start=no_start, **options)


def brief(action: Action) -> str:
    """Return an action as a short line, with all of it that matters."""
    match action:
        case messages.Start(ref, spec, incarnation):
            return f"start {spec.id} {incarnation} as {ref}"
        case (
            messages.Stop(ref)
            | messages.Kill(ref)
            | messages.Disarm(ref)
            | messages.Again(ref)
            | messages.Detach(ref)
        ):
            return f"{type(action).__name__.lower()} {ref}"
        case messages.Abandon(ref, report) | messages.Expose(ref, report):
            return f"{type(action).__name__.lower()} {ref}: {report.path} {report.incarnation}"
        case messages.Arm(ref, at):
            return f"arm {ref} at {at:g}"
        case messages.Answer(reply, ChildInfo() as info):
            return f"answer {reply}: {info.id} {info.state.value}"
        case messages.Answer(reply, value):
            return f"answer {reply}: {value}"
        case messages.Refuse(reply, error):
            return f"refuse {reply}: {type(error).__name__}"
        case messages.Tell(report):
            return " ".join(
                [
                    "tell",
                    type(report).__name__,
                    report.path,
                    *([report.reason.kind.value] if report.reason else []),
                ]
            )
        case messages.Escalate(escalation):
            return f"escalate {escalation.path} because of {escalation.child}"
        case messages.End(reason, ended, _, detached):
            names = [id + "!" * hard for id, hard in ended] + [id + "~" for id in detached]
            return " ".join(["end", reason.kind.value, *names])
    return type(action).__name__.lower()


class Talk:
    """A machine and its time; children are addressed by id."""

    def __init__(self, *children: ChildSpec, **flags: Any) -> None:
        self.machine = SupervisorMachine(nested("app", children=children, **flags), "app")
        self.now = 0.0
        self.refs: dict[str, int] = {}

    def hear(self, message: object) -> list[str]:
        actions = self.machine.receive(message, self.now)
        self.refs |= {
            action.spec.id: action.ref for action in actions if isinstance(action, messages.Start)
        }
        return [brief(action) for action in actions]

    def begin(self) -> list[str]:
        return self.hear(messages.Begin())

    def up(self, *ids: str) -> list[str]:
        """Say that these children are up, one after the other; return the last answer."""
        return [self.hear(ChildStarted(self.refs[id])) for id in ids][-1]

    def exit(self, id: str, reason: ExitReason = CRASH) -> list[str]:
        return self.hear(ChildExited(self.refs[id], reason))

    def due(self, id: str, silent_until: float | None = None) -> list[str]:
        """Say that the time of *id* is over; *silent_until* as of its last check-in."""
        return self.hear(messages.Due(self.machine.slots[id].ref, silent_until))

    def states(self) -> dict[str, str]:
        return {slot.id: slot.state.value for slot in self.machine.slots.values()}

    def retry(self) -> list[str]:
        """Say the Retry that the machine has ordered last."""
        return self.hear(messages.Retry(self.machine._last_ref))


def booted(*children: ChildSpec, **flags: Any) -> Talk:
    """Return a talk with a machine whose children are all up."""
    talk = Talk(*children, **flags)
    talk.begin()
    for one in children:
        talk.up(one.id)
    return talk
