"""The specs of a tree: frozen values, validated field by field when they are made.

Laws:
1. A spec that exists is valid, and is never checked again. Its texts and numbers are
   plain.
2. One validator per field; each names path, field, value and what would be right.
3. Specs know no kind of child: ``start`` is the callable that makes a running one, and
   the kind's own file provides it.
"""

from __future__ import annotations

import copy
import enum
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypedDict

import attrs

from otpy.arguments import check_call, check_function, check_handler
from otpy.exceptions import SpecError
from otpy.values import Value, Word, value

MAX_DEPTH = 100
"""How many supervisors may be nested. Each costs a thread; a deeper tree is a mistake."""

MAX_INTENSITY = 10**9
"""The highest limit on restarts. Floats count no further, and no period needs more."""


INFINITY: Literal["infinity"] = "infinity"
"""The intensity of a supervisor that never gives up because of restarts."""


class Strategy(Word):
    """Who is restarted together with a child that failed (OTP: restart strategy)."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


class Restart(Word):
    """Which exits of a child lead to a restart (OTP: restart type)."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class AutoShutdown(Word):
    """Whether the end of significant children ends the supervisor (OTP: auto_shutdown)."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    ALL_SIGNIFICANT = "all_significant"


class Budget(Word):
    """The shutdown values that are not a number of seconds (OTP: shutdown)."""

    INFINITY = "infinity"
    BRUTAL_KILL = "brutal_kill"


class OnUnstopped(Word):
    """What happens after a child could not be stopped: go on, wait, or give up."""

    REPLACE = "replace"
    HOLD = "hold"
    ESCALATE = "escalate"


class ChildType(Word):
    """Worker or supervisor (OTP: type)."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


def plain(value: Any) -> Any:
    """Return *value*, or an equal str, int or float if its class derives from one.

    A derived class may have a ``__hash__``, an ``__eq__`` or a ``__radd__`` that blocks
    or raises, and the values of a spec are used on supervisors' threads.
    """
    kind = next((kind for kind in PLAIN if isinstance(value, kind)), None)
    return value if kind is None or type(value) in (kind, bool) else PLAIN[kind](value)


PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}
"""Class -> how to make a plain object of one of a derived class, without its code."""


# Converters turn the spelling of a choice into the choice, and leave what is no
# spelling to the validator.


def _choice(choices: type[enum.Enum], value: Any) -> Any:
    return next(
        (choice for choice in choices if isinstance(value, str) and choice.value == value), value
    )


def _to_strategy(value: Strategy | str) -> Strategy:
    return _choice(Strategy, value)  # type: ignore[no-any-return]


def _to_restart(value: Restart | str) -> Restart:
    return _choice(Restart, value)  # type: ignore[no-any-return]


def _to_auto_shutdown(value: AutoShutdown | str) -> AutoShutdown:
    return _choice(AutoShutdown, value)  # type: ignore[no-any-return]


def _to_shutdown(value: float | Budget | str) -> float | Budget:
    return _choice(Budget, plain(value))  # type: ignore[no-any-return]


def _to_unstopped(value: OnUnstopped | str) -> OnUnstopped:
    return _choice(OnUnstopped, value)  # type: ignore[no-any-return]


def _to_tuple(value: Iterable[ChildSpec]) -> tuple[ChildSpec, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def spelled(choices: type[enum.Enum]) -> str:
    """Return the spellings of *choices*, for an error message."""
    return ", ".join(repr(choice.value) for choice in choices)


def is_number(value: object) -> bool:
    """Whether *value* is a finite number that a float can hold, and no bool."""
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an int with more than 308 digits
        return False


# One validator per field. Each is called by attrs with (instance, attribute, value).


def _is_sayable(text: str) -> bool:
    """Whether the system takes *text* as a part of a name."""
    return not any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text)


def _where(spec: Any) -> str:
    id = getattr(spec, "id", None)
    return id if isinstance(id, str) and id and _is_sayable(id) else f"<{type(spec).__name__}>"


def _refuse(spec: Any, field: Any, value: object, expected: str) -> None:
    raise SpecError(_where(spec), field.name, value, expected)


def _id(spec: Any, field: Any, value: Any) -> None:
    """Check an id: threads, log files and marks of programs are named after it."""
    if not isinstance(value, str) or not value or "/" in value:
        _refuse(spec, field, value, 'a non-empty str without "/"')
    if not _is_sayable(value):
        _refuse(spec, field, value, "a str without NUL and lone surrogates")


def _one_of(choices: type[enum.Enum]) -> Callable[[Any, Any, object], None]:
    def validate(spec: Any, field: Any, value: object) -> None:
        if not isinstance(value, choices):
            _refuse(spec, field, value, f"one of {spelled(choices)}")

    return validate


def _bool(spec: Any, field: Any, value: object) -> None:
    if not isinstance(value, bool):
        _refuse(spec, field, value, "True or False")


def _text(spec: Any, field: Any, value: object) -> None:
    if not isinstance(value, str):
        _refuse(spec, field, value, "a str")


def _callable(spec: Any, field: Any, value: Any) -> None:
    if not callable(value):
        _refuse(spec, field, value, "a callable")


def _on_escalation(spec: Any, field: Any, value: Any) -> None:
    if value is not None:
        expected = "a callable that takes an Escalation, or None"
        check_handler(_where(spec), field.name, value, ("escalation",), expected)


def _snapshot(spec: Any, field: Any, value: Any) -> None:
    """Unlike a handler it may be a class: ``dict`` makes copies."""
    if value is None or value is copy.deepcopy:
        return
    expected = "a callable that takes the state and returns a copy, or None"
    if not isinstance(value, type):
        check_function(
            _where(spec), field.name, value, expected, "it is called where the child checks in"
        )
    check_call(_where(spec), field.name, value, ("state",), expected)


def _positive(spec: Any, field: Any, value: Any) -> None:
    if not is_number(value) or value <= 0:
        _refuse(spec, field, value, "a finite number of seconds > 0")


def _positive_or_none(spec: Any, field: Any, value: Any) -> None:
    if value is not None and (not is_number(value) or value <= 0):
        _refuse(spec, field, value, "a finite number of seconds > 0, or None")


def _not_negative(spec: Any, field: Any, value: Any) -> None:
    if not is_number(value) or value < 0:
        _refuse(spec, field, value, "a finite number of seconds >= 0")


def _factor(spec: Any, field: Any, value: Any) -> None:
    if not is_number(value) or value < 1:
        _refuse(spec, field, value, "a finite number >= 1")


def _fraction(spec: Any, field: Any, value: Any) -> None:
    if not is_number(value) or not 0 <= value <= 1:
        _refuse(spec, field, value, "a number from 0 to 1")


def _count(spec: Any, field: Any, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        _refuse(spec, field, value, "an int >= 0")


def _count_or_none(spec: Any, field: Any, value: Any) -> None:
    if value is not None:
        _count(spec, field, value)


def _intensity(spec: Any, field: Any, value: Any) -> None:
    if value != INFINITY and (type(value) is not int or not 0 <= value <= MAX_INTENSITY):
        _refuse(spec, field, value, f"an int from 0 to {MAX_INTENSITY}, or {INFINITY!r}")


def _shutdown(spec: Any, field: Any, value: Any) -> None:
    if not isinstance(value, Budget) and (not is_number(value) or value < 0):
        _refuse(spec, field, value, f"a finite number of seconds >= 0, or one of {spelled(Budget)}")


def _significant(spec: Any, field: Any, value: object) -> None:
    _bool(spec, field, value)
    if value and spec.restart is Restart.PERMANENT:
        _refuse(
            spec,
            field,
            value,
            "False, or restart='transient' or 'temporary': a permanent child never ends by itself",
        )


def _maximum(spec: Any, field: Any, value: Any) -> None:
    _positive(spec, field, value)
    if value < spec.initial:
        _refuse(spec, field, value, f"at least the initial delay, {spec.initial} s")


@value
class Backoff(Value):
    """The waits of a child before its restarts: longer after each failure in a row.

    The first restart of a calm child waits *initial*. Each further failure multiplies
    that by *factor*, up to *maximum*; once the child has been up for *reset_after* it
    is calm again. Only time spent up counts for that, not waiting, nor starting. The
    intensity window knows nothing of all this, so choose the two together: with the
    default limit, 3 restarts in 5 seconds, a child that fails at once with
    ``Backoff(0.1, 30)`` makes its supervisor give up after 1.5 seconds
    (docs/how-to/health.md has the rule).

    Attributes:
        initial: Seconds, > 0.
        maximum: Seconds; no wait is longer, jitter included.
        factor: From one failure in a row to the next, >= 1.
        jitter: By what part of itself a wait may be longer or shorter, at random, so
            that children that failed together do not come back together: 0.1 means up
            to a tenth. see the option ``seed`` of ``start``.
        reset_after: Seconds.
    """

    initial: float = attrs.field(converter=plain, validator=_positive)
    maximum: float = attrs.field(converter=plain, validator=_maximum)
    factor: float = attrs.field(default=2.0, converter=plain, validator=_factor)
    jitter: float = attrs.field(default=0.1, converter=plain, validator=_fraction)
    reset_after: float = attrs.field(default=60.0, converter=plain, validator=_not_negative)


def _backoff(spec: Any, field: Any, value: object) -> None:
    if value is not None and not isinstance(value, Backoff):
        _refuse(spec, field, value, "a Backoff, or None")


def _default_shutdown(spec: Any) -> Any:
    return 5.0 if spec.type is ChildType.WORKER else Budget.INFINITY


@value(kw_only=True)
class ChildSpec(Value):
    """One child of a supervisor (OTP: child specification).

    Made by the builders (``thread``, ``supervisor``, …); all times are in seconds.

    Attributes:
        id: Its name among its siblings: a non-empty str without "/".
        start: Makes the running child: ``start(birth) -> Child``.
        restart: Which exits lead to a restart.
        shutdown: How long it may take to stop when asked, before it is interrupted;
            "infinity"; or "brutal_kill": interrupted at once. Default 5.0 for workers,
            "infinity" for supervisors (OTP: shutdown).
        interrupt: Whether ``Killed`` may be raised inside it when it does not stop in
            time.
        significant: Whether its own end may end the supervisor, see ``auto_shutdown``.
        ready: Whether it counts as started only when it says so with ``ctx.ready()``.
        start_timeout: How long it may take to become ready; None: no limit.
        heartbeat: How long it may run without ``ctx.check_in()`` before it counts as
            stalled; None: for ever.
        backoff: How long it waits before a restart; None: not at all.
        snapshot: Makes the copy of what ``ctx.check_in(state)`` saves; None: it is
            saved as it is. The default copies deeply, and ``ctx.state`` hands out
            copies as well.
        unstopped: What to do if it cannot be stopped.
        purpose: A line for people.
    """

    id: str = attrs.field(converter=plain, validator=_id)
    start: Callable[[Any], Any] = attrs.field(validator=_callable)
    restart: Restart = attrs.field(
        default=Restart.PERMANENT, converter=_to_restart, validator=_one_of(Restart)
    )
    shutdown: float | Budget = attrs.field(
        default=attrs.Factory(_default_shutdown, takes_self=True),
        converter=_to_shutdown,
        validator=_shutdown,
    )
    interrupt: bool = attrs.field(default=True, validator=_bool)
    significant: bool = attrs.field(default=False, validator=_significant)
    ready: bool = attrs.field(default=False, validator=_bool)
    start_timeout: float | None = attrs.field(
        default=None, converter=plain, validator=_positive_or_none
    )
    heartbeat: float | None = attrs.field(
        default=None, converter=plain, validator=_positive_or_none
    )
    backoff: Backoff | None = attrs.field(default=None, validator=_backoff)
    snapshot: Callable[[Any], Any] | None = attrs.field(default=copy.deepcopy, validator=_snapshot)
    unstopped: OnUnstopped = attrs.field(
        default=OnUnstopped.REPLACE, converter=_to_unstopped, validator=_one_of(OnUnstopped)
    )
    purpose: str = attrs.field(default="", converter=plain, validator=_text)

    @property
    def type(self) -> ChildType:
        """Worker or supervisor."""
        return ChildType.WORKER

    @property
    def kind(self) -> str:
        """The kind: "thread", "coroutine", "process", …; or the name of ``start``."""
        name: str = getattr(self.start, "__name__", type(self.start).__name__)
        return name.removesuffix("Start").lower() or name

    @property
    def depth(self) -> int:
        """How many supervisors are nested here: none in a worker."""
        return 0


def _children(spec: SupervisorSpec) -> None:
    """Check the list from left to right (OTP: check_startspec)."""
    if not isinstance(spec.children, tuple):
        raise SpecError(_where(spec), "children", spec.children, "an iterable of child specs")
    seen: set[str] = set()
    for index, child in enumerate(spec.children):
        _member(spec, f"children[{index}]", child)
        if child.id in seen:
            raise SpecError(
                f"{_where(spec)}/{child.id}", "id", child.id, "an id that no sibling has"
            )
        seen.add(child.id)


def _member(spec: Any, field: str, child: object) -> None:
    if not isinstance(child, ChildSpec):
        raise SpecError(
            _where(spec), field, child, "a child spec, as thread() or supervisor() make"
        )
    check_member(spec, child, _where(spec))


def check_member(supervisor: SupervisorSpec, child: ChildSpec, path: str) -> None:
    """Refuse a *child* that cannot belong to the *supervisor* at *path*.

    Raises:
        SpecError: It is significant, where that could never have an effect (OTP:
            bad_combination); it would be restarted without limit and without a wait; or
            supervisors would be nested too deep.
    """
    levels = path.count("/") + 1 + child.depth
    if levels > MAX_DEPTH:
        raise SpecError(path, "children", f"{levels} nested levels", f"at most {MAX_DEPTH}")
    if (
        supervisor.intensity == INFINITY
        and child.restart is not Restart.TEMPORARY
        and child.backoff is None
    ):
        expected = "a Backoff, or restart='temporary': the supervisor has intensity='infinity'"
        raise SpecError(f"{path}/{child.id}", "backoff", None, expected)
    if child.significant and supervisor.auto_shutdown is AutoShutdown.NEVER:
        raise SpecError(
            f"{path}/{child.id}",
            "significant",
            True,
            "False: the supervisor has auto_shutdown='never'",
        )


@value(kw_only=True)
class SupervisorSpec(ChildSpec):
    """A supervisor and its children (OTP: supervisor flags). Supervisors nest.

    Attributes:
        children: The child specs in start order.
        strategy: Who is restarted together with a child that failed.
        intensity: How many restarts are allowed within *period*; one more, and the
            supervisor gives up. "infinity": it never gives up because of restarts; each
            child that may be restarted then has a ``backoff``.
        period: The length of the window in seconds.
        auto_shutdown: Whether the end of significant children ends the supervisor.
        on_escalation: Called with an ``Escalation`` when this supervisor gives up.
        dynamic: Whether children come by ``start_child``, stop in parallel and leave no
            spec behind.
        max_children: How many children a dynamic supervisor may have; None: no limit.
    """

    children: tuple[ChildSpec, ...] = attrs.field(default=(), converter=_to_tuple)
    strategy: Strategy = attrs.field(
        default=Strategy.ONE_FOR_ONE, converter=_to_strategy, validator=_one_of(Strategy)
    )
    intensity: int | Literal["infinity"] = attrs.field(
        default=3, converter=plain, validator=_intensity
    )
    period: float = attrs.field(default=5.0, converter=plain, validator=_positive)
    auto_shutdown: AutoShutdown = attrs.field(
        default=AutoShutdown.NEVER, converter=_to_auto_shutdown, validator=_one_of(AutoShutdown)
    )
    on_escalation: Callable[[Any], object] | None = attrs.field(
        default=None, validator=_on_escalation
    )
    dynamic: bool = attrs.field(default=False, validator=_bool)
    max_children: int | None = attrs.field(default=None, converter=plain, validator=_count_or_none)

    def __attrs_post_init__(self) -> None:
        # After the flags: what children may be depends on them.
        _children(self)
        for field, (only, expected) in _only(self).items():
            if getattr(self, field) != only:
                raise SpecError(_where(self), field, getattr(self, field), expected)

    @property
    def type(self) -> ChildType:
        """Worker or supervisor."""
        return ChildType.SUPERVISOR

    @property
    def kind(self) -> str:
        """What its builder is called: "supervisor" or "dynamic_supervisor"."""
        return "dynamic_supervisor" if self.dynamic else "supervisor"

    @property
    def depth(self) -> int:
        """How many supervisors are nested, this one included; at most MAX_DEPTH."""
        return 1 + max((child.depth for child in self.children), default=0)


OF_WORKERS: dict[str, tuple[object, str]] = {
    # what only a worker can choose: the only value in a supervisor, and in words
    "heartbeat": (None, "None: a supervisor never stalls, its children do"),
    "snapshot": (copy.deepcopy, "nothing: a supervisor saves no state"),
}

OF_DYNAMIC: dict[str, tuple[object, str]] = {
    # what a dynamic supervisor cannot choose
    "strategy": (
        Strategy.ONE_FOR_ONE,
        "'one_for_one': children of a dynamic supervisor are independent",
    ),
    "auto_shutdown": (AutoShutdown.NEVER, "'never' in a dynamic supervisor"),
    "children": ((), "no children: those of a dynamic supervisor come by start_child"),
}

OF_OTHERS: dict[str, tuple[object, str]] = {
    # what only a dynamic supervisor can choose
    "max_children": (None, "None: only a dynamic supervisor has a limit"),
}


def _only(spec: SupervisorSpec) -> dict[str, tuple[object, str]]:
    """Return the fields in which this kind of supervisor has no choice."""
    return OF_WORKERS | (OF_DYNAMIC if spec.dynamic else OF_OTHERS)


class CommonButReady(TypedDict, total=False):
    """Those options that mean the same to every builder."""

    restart: Restart | Literal["permanent", "transient", "temporary"]
    shutdown: float | Budget | Literal["infinity", "brutal_kill"]
    interrupt: bool
    significant: bool
    start_timeout: float | None
    heartbeat: float | None
    backoff: Backoff | None
    snapshot: Callable[[Any], Any] | None
    unstopped: OnUnstopped | Literal["replace", "hold", "escalate"]
    purpose: str


class Common(CommonButReady, total=False):
    """The options that every builder takes; see ``ChildSpec``."""

    ready: bool


def check_common(builder: str, common: Common | CommonButReady) -> None:
    """Refuse options that are not common, as Python refuses unknown keyword arguments.

    Raises:
        TypeError: There is one.
    """
    for option in common:
        if option not in Common.__annotations__:
            raise TypeError(f"{builder}() got an unexpected keyword argument {option!r}")
