"""The one long operation of a supervisor: stop some children, then start some.

Booting is a plan (start all), a group restart is a plan (stop some, start some), ending
is a plan (stop all). A supervisor has at most one plan. A group restart that begins
while another plan is under way makes a plan of its own, and that does what the old one
has still to do with other children (``take_along``).

Lemma: with OTP's strategies a group restart that fails leaves nothing to be taken
along. The child that fails while its group starts is a member, and its own group
contains all members that have not been started yet: a group is a suffix of the start
order, or all of it. So the new plan could overwrite the old one, as OTP's supervisor
does by calling ``restart`` once more. It is not so for a plan that starts what callers
have asked for, and not for a strategy whose groups are no suffixes; for these
``take_along`` merges.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import attrs

from otpy.core.slots import Slot
from otpy.values import running


@running
class Plan:
    """Stop these, release the temporary ones among them, then start those.

    Attributes:
        stops, bystanders, starts: What is left of each step, in order.
        width: How many may stop at the same time.
        awaiting: The children whose stop or start is under way.
        hastened: The child whose wait restart_child has ended. If the plan fails before
            it is up, so does the call.
    """

    stops: OrderedDict[str, None]
    bystanders: tuple[str, ...]
    starts: OrderedDict[str, None]
    width: float
    awaiting: set[str] = attrs.field(factory=set)
    hastened: Slot | None = None

    @classmethod
    def of(
        cls,
        stops: Iterable[str],
        starts: Iterable[str],
        *,
        width: float = 1,
        bystanders: Iterable[str] = (),
    ) -> Plan:
        """Return a new plan; *stops* and *starts* are in the order of their turns."""
        return cls(
            OrderedDict.fromkeys(stops), tuple(bystanders), OrderedDict.fromkeys(starts), width
        )

    def take_along(self, old: Plan, members: AbstractSet[str], order: Iterable[str]) -> None:
        """Do as well what *old* has still to do with children that are no *members*.

        Args:
            members: The children that this plan is about: all that *old* had to do with
                them is overtaken.
            order: All children, in start order. Stops go in reverse.
        """
        self.awaiting = old.awaiting - members
        self.bystanders += tuple(id for id in old.bystanders if id not in members)
        places = list(order)
        self.stops = _merged(self.stops, old.stops.keys() - members, reversed(places))
        self.starts = _merged(self.starts, old.starts.keys() - members, places)
        if old.hastened is not None and old.hastened.id not in members:
            self.hastened = old.hastened


def _merged(
    ours: OrderedDict[str, None], others: AbstractSet[str], order: Iterable[str]
) -> OrderedDict[str, None]:
    if not others:
        return ours
    union = ours.keys() | others
    return OrderedDict.fromkeys(id for id in order if id in union)
