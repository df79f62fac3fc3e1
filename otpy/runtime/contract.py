"""What a supervisor asks of a child, and the answers that stand for an exception.

Laws:
1. A child may come from another package and break the contract ``otpy.abc.Child``.
   What it raises is its own crash. It ends no supervisor and hurts no sibling.
2. An answer of the wrong type counts as raised.
3. Memory that is held in reserve is given back before a MemoryError is handled.

All of this runs on the thread of the child's supervisor.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

from otpy.abc import Child
from otpy.core.lives import INTERRUPT_GRACE
from otpy.exceptions import show
from otpy.runtime import spares


def _pulse(child: Child) -> tuple[float, float]:
    last, until = child.pulse()
    return float(last), float(until)


def _stack(child: Child) -> str:
    text = child.stack()
    if not isinstance(text, str):
        raise TypeError(f"the stack of a child is {show(text)}: expected a str")
    return text


UNKNOWN = object()
"""The state of a child that raised when it was asked. Its replacement gets what the
child itself was handed over."""

CONTRACT: dict[str, tuple[Callable[..., Any], Any]] = {
    # question: (how it is put, the answer if the child raises or has raised before)
    "stop": (lambda child: child.stop(), None),
    "kill": (lambda child, grace: child.kill(grace), True),
    "abandon": (lambda child: child.abandon(), None),
    "detach": (lambda child: child.detach(), None),
    "stack": (_stack, ""),
    "pulse": (_pulse, (0.0, math.inf)),
    "state": (lambda child: child.state, UNKNOWN),
}


def asked(child: Child, question: str) -> tuple[Any, BaseException | None]:
    """Ask *child*; return its answer and what it raised, with CONTRACT's answer then."""
    ask, instead = CONTRACT[question]
    try:
        return ask(child), None
    except BaseException as error:
        spares.reserve.spend(error)
        return instead, error


def put_down(child: Child) -> bool:
    """End a child that has broken the contract; return whether any of it still runs.

    A child that cannot say whether it still runs counts as running.
    """
    for act in (lambda: child.kill(INTERRUPT_GRACE), child.abandon):
        with contextlib.suppress(BaseException):
            act()
    try:
        return child.alive
    except BaseException:
        return True
