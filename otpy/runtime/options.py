"""The options of ``start`` and ``run``, and what is right for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from otpy.abc import Clock, Puttable, ReportHandler
from otpy.arguments import check_handler, check_sink
from otpy.exceptions import SpecError
from otpy.reports import Escalation
from otpy.specs import SupervisorSpec, is_number


class Options(TypedDict, total=False):
    """The options of ``start`` and ``run``.

    Attributes:
        reports: Gets every report: a callable, or an object with ``put``.
        on_escalation: Called for every escalation anywhere in the tree, besides the
            supervisor's own handler.
        log: Whether reports also go to structlog; default True.
        timeout: Seconds that the whole tree may take to come up; None, the default: no
            limit.
        max_unstopped: How many threads that could not be stopped the tree may leave
            behind before the root gives up; default 100.
        clock: Where time comes from; default: the clock of the computer.
        heartbeats: Whether children that do not check in, programs that fail their
            ``health``, and blocked event loops count as stalled; default True.
        seed: What the jitter of ``Backoff`` is made from: the same seed gives the same
            waits; None, the default: other waits each time.
        flush: Seconds that the handlers of escalations and reports, and the log, may
            take after the end of the tree, all together; default 10. What is not done
            by then is counted.
    """

    reports: ReportHandler | Puttable | None
    on_escalation: Callable[[Escalation], object] | None
    log: bool
    timeout: float | None
    max_unstopped: int
    clock: Clock | None
    heartbeats: bool
    seed: int | None
    flush: float


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


HANDLERS: dict[str, Callable[[str, str, Any], None]] = {
    # option that may be None: what refuses every other wrong value
    "reports": check_sink,
    "on_escalation": lambda path, field, value: check_handler(
        path, field, value, ("escalation",), "a callable that takes an Escalation, or None"
    ),
}

OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # option: (whether a value is right, what would be right)
    "log": (lambda log: isinstance(log, bool), "True or False"),
    "timeout": (
        lambda seconds: seconds is None or (is_number(seconds) and seconds > 0),
        "a finite number of seconds > 0, or None",
    ),
    "max_unstopped": (lambda count: _is_int(count) and count >= 0, "an int >= 0"),
    "clock": (
        lambda clock: clock is None or isinstance(clock, Clock),
        "an otpy.abc.Clock, or None",
    ),
    "heartbeats": (lambda heartbeats: isinstance(heartbeats, bool), "True or False"),
    "seed": (lambda seed: seed is None or _is_int(seed), "an int or None"),
    "flush": (
        lambda seconds: is_number(seconds) and seconds >= 0,
        "a finite number of seconds >= 0",
    ),
}


def check_options(spec: SupervisorSpec, options: Options) -> None:
    """Check *spec* and *options*.

    Raises:
        SpecError: One of them is wrong.
    """
    if not isinstance(spec, SupervisorSpec):
        raise SpecError("<tree>", "tree", spec, "a supervisor's spec, as supervisor() makes")
    for name, value in options.items():
        if name in HANDLERS:
            if value is not None:
                HANDLERS[name](spec.id, name, value)
            continue
        if name not in OPTIONS:
            raise SpecError(
                spec.id, name, "an option", f"one of {', '.join((*HANDLERS, *OPTIONS))}"
            )
        is_right, expected = OPTIONS[name]
        if not is_right(value):
            raise SpecError(spec.id, name, value, expected)
