"""How supervisors are declared: ``supervisor`` and ``dynamic_supervisor``.

Both only make a spec. The running supervisor is ``otpy.runtime.supervisor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Unpack

from otpy.reports import Escalation
from otpy.runtime.supervisor import NestedSupervisor
from otpy.specs import AutoShutdown, ChildSpec, Common, Strategy, SupervisorSpec, check_common


def supervisor(
    id: str,
    *,
    children: Iterable[ChildSpec] = (),
    strategy: Strategy | str = "one_for_one",
    intensity: int | Literal["infinity"] = 3,
    period: float = 5.0,
    auto_shutdown: AutoShutdown | str = "never",
    on_escalation: Callable[[Escalation], object] | None = None,
    **common: Unpack[Common],
) -> SupervisorSpec:
    """Describe a supervisor and its children.

    Args:
        id: Its name among its siblings, and the first part of every path if it is the
            root.
        children: Child specs, in start order. They stop in reverse order.
        strategy: "one_for_one", "one_for_all" or "rest_for_one".
        intensity: How many restarts are allowed within *period*. With one more restart
            the supervisor gives up. "infinity": restarts never make it give up; then
            each child that can be restarted, a nested supervisor as well, needs a
            ``backoff``.
        period: The length of the window, in seconds.
        auto_shutdown: "never", "any_significant" or "all_significant".
        on_escalation: Called with an ``Escalation`` when this supervisor gives up.
        **common: As for ``thread``; ``shutdown`` is "infinity" by default.

    Raises:
        SpecError: A field is wrong, or two children have one id.
    """
    check_common("supervisor", common)
    return SupervisorSpec(
        id=id,
        start=NestedSupervisor,
        children=children,
        strategy=strategy,
        intensity=intensity,
        period=period,
        auto_shutdown=auto_shutdown,
        on_escalation=on_escalation,
        **common,
    )


def dynamic_supervisor(
    id: str,
    *,
    intensity: int | Literal["infinity"] = 3,
    period: float = 5.0,
    max_children: int | None = None,
    on_escalation: Callable[[Escalation], object] | None = None,
    **common: Unpack[Common],
) -> SupervisorSpec:
    """Describe a supervisor whose children come by ``start_child``.

    The children are independent of each other (one_for_one) and stop side by side. A
    child that was terminated, or has ended for good, leaves no spec behind. (Elixir:
    DynamicSupervisor.)

    Args:
        max_children: How many children it may have, those that wait for a restart
            included; None: no limit.
        id, intensity, period, on_escalation, **common: As for ``supervisor``.

    Raises:
        SpecError: A field is wrong.
    """
    check_common("dynamic_supervisor", common)
    return SupervisorSpec(
        id=id,
        start=NestedSupervisor,
        dynamic=True,
        intensity=intensity,
        period=period,
        max_children=max_children,
        on_escalation=on_escalation,
        **common,
    )
