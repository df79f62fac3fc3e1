"""Who is restarted together with whom, and in which order. Nothing else in otpy knows the strategies.

The three rules, for children a b c d in start order and c crashed:

    one_for_one     stop nobody         start c
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
    """Return who stops and who starts, each in its order.

    Whoever of them is not running is skipped in the first list, and started in the second.
    """
    members = MEMBERS[strategy](order, crashed)
    return tuple(id for id in reversed(members) if id != crashed), members
