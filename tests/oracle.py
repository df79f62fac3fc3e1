"""When ``auto_shutdown`` has to end a supervisor: the rule once more, told from outside
the machine.

OTP's supervisor does one thing at a time, and starts and stops block it. So when a
significant child ends by itself while others are being started, the end is read when it
is known what has come of them; and who is being stopped for good has gone when it is
read. Here both go on while messages are read. The oracle looks at the machine before
each message and after it, and says what must have come of it.

For "any_significant" that is simple: the supervisor ends with the first own end. For
"all_significant" it ends

- at once, if every other significant child is down, or is being stopped, and nothing
  starts it again;
- never for this end, if one of the others is up, or waits for its next attempt;
- otherwise when that has been decided: if none of them comes up. ``owed`` remembers
  this. terminate_child never ends the supervisor: a start that it overtakes counts as
  one that came up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from otpy.core import messages, slots
from otpy.core.endings import Phase
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import ChildExited, Due
from otpy.core.slots import LATE, RESTARTING, RUNNING, SILENT, STOPPING
from otpy.reports import AutoShutdownBegun, StartFailed
from otpy.specs import AutoShutdown as Mode
from otpy.specs import OnUnstopped, Restart, Strategy


@attrs.define(eq=False)
class Oracle:
    """Watches one machine.

    Attributes:
        owed: Whether the supervisor ends when no significant child comes up any more.
        significant: Whether a child is significant, by id, for all that there have been.
        terminating: The terminate_child calls so far, by reply.
        served: Those that were being served before the last message.
    """

    check: Callable[[bool, str], None]
    owed: bool = False
    significant: dict[str, bool] = attrs.field(factory=dict)
    terminating: dict[object, str] = attrs.field(factory=dict)
    served: dict[object, str] = attrs.field(factory=dict)
    was: Phase = Phase.BOOTING
    is_own_end: bool = False
    is_due: bool = False

    def copy(self) -> Oracle:
        return Oracle(
            self.check, self.owed, self.significant.copy(), self.terminating.copy(), self.served
        )

    def before(self, machine: SupervisorMachine, message: object) -> None:
        """Look at *machine* before it gets *message*."""
        if isinstance(message, messages.TerminateChild):
            self.terminating[message.reply] = message.id
        self.note(machine)
        self.was, self.served = machine.phase, leavers(machine)
        slot = machine._live.get(message.ref) if isinstance(message, ChildExited | Due) else None
        self.is_own_end = (
            slot is not None and slot.spec.significant and self.ends(machine, slot, message)
        )
        self.is_due = isinstance(message, Due)

    def ends(self, machine: SupervisorMachine, slot: Any, message: Any) -> bool:
        """Whether a significant child has ended by itself, and is not restarted."""
        fails = slot.stopping or slot.held
        has_stalled = fails is not None and fails.why is SILENT and fails.has_failed
        if isinstance(message, Due):
            is_given_up = slot.stopping is not None and slot.stopping.was_interrupted
            is_given_up = is_given_up and slot.spec.unstopped is not OnUnstopped.HOLD
            return (
                has_stalled
                and slot.state is STOPPING
                and is_given_up
                and slot.spec.restart is Restart.TEMPORARY
            )
        if has_stalled:
            return slot.spec.restart is Restart.TEMPORARY
        restarts = slot.spec.restart is Restart.TRANSIENT and not message.reason.is_normal
        return (
            slot.state is RUNNING
            and not is_doomed(machine, slot)
            and not restarts
            and not message.reason.is_ignore
        )

    def note(self, machine: SupervisorMachine) -> None:
        for slot in machine.slots.values():
            self.significant[slot.id] = slot.spec.significant

    def after(self, machine: SupervisorMachine, actions: list[messages.Action]) -> None:
        """Judge what *machine* has made of the message."""
        self.note(machine)
        if self.is_due:  # and was not put off
            self.is_own_end &= any(isinstance(one, messages.Abandon) for one in actions)
        told = [one.report for one in actions if isinstance(one, messages.Tell)]
        has_ended = any(isinstance(one, AutoShutdownBegun) for one in told)
        if self.was is not Phase.UP or (machine.phase is not Phase.UP and not has_ended):
            self.owed = False  # deaths during the boot have tests of their own
            return
        mode = machine.spec.auto_shutdown
        if mode is Mode.ANY_SIGNIFICANT:
            self.check(
                has_ended == self.is_own_end,
                f"any_significant: an own end {self.is_own_end}, ends {has_ended}",
            )
        if mode is not Mode.ALL_SIGNIFICANT:
            return
        if any(self.significant.get(id) for id in self.decided(machine, actions)):
            self.owed = False
        self.owed = self.owed or self.is_own_end
        if has_ended:
            self.check(self.owed, "all_significant: it ends without the end of a significant child")
            return
        others = [slot for slot in machine.slots.values() if slot.spec.significant]
        prospects = {prospect for slot in others for prospect in prospects_of(machine, slot)}
        if "up" in prospects:
            self.owed = False
        self.check(
            not self.owed or "open" in prospects,
            "all_significant: none is left, and it does not end",
        )

    def decided(self, machine: SupervisorMachine, actions: list[messages.Action]) -> Iterator[str]:
        """Yield whose start has been decided meanwhile: its next attempt waits, or
        terminate_child has overtaken it.
        """
        now_served = leavers(machine)
        for action in actions:
            if isinstance(action, messages.Answer) and action.reply in self.terminating:
                now_served[action.reply] = self.terminating[action.reply]
            elif isinstance(action, messages.Tell) and isinstance(action.report, StartFailed):
                yield action.report.path.rpartition("/")[2]
        yield from (id for reply, id in now_served.items() if reply not in self.served)


def leavers(machine: SupervisorMachine) -> dict[object, str]:
    """Return the terminate_child calls that are being served, and about whom they are."""
    return {
        call.reply: slot.id
        for slot in machine.slots.values()
        if slot.stopping
        for call in slot.stopping.leavers
    }


def is_doomed(machine: SupervisorMachine, slot: Any) -> bool:
    return machine._plan is not None and slot.id in machine._plan.stops


def comes(machine: SupervisorMachine, slot: Any) -> bool:
    """Whether a plan starts it, or the next attempt of a child whose group it belongs
    to.
    """
    if slot.spec.restart is Restart.TEMPORARY and not slot.starters:
        return False
    if machine._plan is not None and slot.id in machine._plan.starts:
        return True
    order, strategy = list(machine.slots), machine.spec.strategy
    for one in machine.slots.values():
        is_held_for = one.held is not None and (one.held.is_wanted or one.held.why is LATE)
        if one.state is RESTARTING or is_held_for:
            is_later = strategy is Strategy.REST_FOR_ONE and order.index(one.id) < order.index(
                slot.id
            )
            if one is slot or strategy is Strategy.ONE_FOR_ALL or is_later:
                return True
    return False


def prospects_of(machine: SupervisorMachine, slot: Any) -> Iterator[str]:
    """Yield "up" for a child that is, "open" for one that may come up, and nothing for
    one that has gone for good.
    """
    on_its_way = slot.stopping or slot.held
    fails = on_its_way is not None and on_its_way.has_failed
    match slot.state:
        case slots.RESTARTING:
            yield "up"
        case slots.RUNNING | slots.ENDED if not is_doomed(machine, slot):
            yield "up"
        case slots.STARTING if not is_doomed(machine, slot):
            yield "open"
        case slots.STOPPING | slots.UNSTOPPED if fails:
            yield "open"
        case _ if comes(machine, slot):
            yield "open"
