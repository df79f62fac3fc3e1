"""Which children are restarted together with a child that failed, and in which order.

Law: only this file says which children belong to a group. ``lives`` restarts a child of
one_for_one without a plan, because its group has no other member. ``check.COSTS``
foresees what a group costs; a test compares it with this file.

The three rules, for children a b c d in start order and c crashed:

    one_for_one     stop none           start c
    one_for_all     stop d, b, a        start a, b, c, d
    rest_for_one    stop d              start c, d

Children stop in reverse start order and start in start order, one after the other.
(OTP: restart/2 and restart_multiple_children/3)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import dropwhile

from otpy.specs import Strategy

MEMBERS: dict[Strategy, Callable[[Iterable[str], str], tuple[str, ...]]] = {
    Strategy.ONE_FOR_ONE: lambda order, crashed: (crashed,),
    Strategy.ONE_FOR_ALL: lambda order, crashed: tuple(order),
    Strategy.REST_FOR_ONE: lambda order, crashed: tuple(dropwhile(lambda id: id != crashed, order)),
}
"""Strategy -> (start order, crashed) -> the group that restarts, in start order."""


def restart_group(
    strategy: Strategy, order: Iterable[str], crashed: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the children to stop and those to start, each list in its order.

    The caller skips a child that is not running in the first list, and starts it all
    the same.
    """
    members = MEMBERS[strategy](order, crashed)
    return tuple(id for id in reversed(members) if id != crashed), members
