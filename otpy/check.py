"""Finds what will surprise the author of a tree, before the tree is started.

``otpy check`` prints the findings.

Laws:
1. Nothing is started and nothing is called. Of a target, only the source is read.
2. An error is certain: a part of the spec can never have its effect, or must go wrong.
   A warning is probably a mistake. A note is what the author should know.
3. One cause gives one finding, at the path where it can be mended.
4. Every strategy has a row in ``COSTS``.

A rule is a function from a place in the tree to messages. ``RULES`` is the table of all
rules. What the codes mean for users is in docs/how-to/check.md.

Not proud of: how sleeps are found. They are known by the names ``sleep`` and
``wait_stop``, in the target's own lines, with a number or the name of a global number.
"""

from __future__ import annotations

import ast
import collections
import enum
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from otpy import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Restart,
    Service,
    Strategy,
    SupervisorSpec,
)
from otpy.specs import INFINITY
from otpy.values import Value, report, value

MANY = 10
"""From how many children on a root has many."""

FAR = 1000
"""Up to how many restarts of one child are counted. More of them reach any limit."""


def _all_but_the_slowest(times: list[float], crashes: list[int]) -> float:
    at = max(crashes, key=times.__getitem__)
    return sum(times[:at]) + sum(times[at + 1 :])


@value
class Cost(Value):
    """What a failure costs, by the strategy of the supervisor.

    Attributes:
        stops: How long the other children may take to stop after a failure, in seconds,
            for the child for which that is least. It gets the stop time of each child,
            and the places of the children that can be restarted.
        is_shared: Whether one restart mends the failures of all children at once.
    """

    stops: Callable[[list[float], list[int]], float]
    is_shared: bool


COSTS = {
    Strategy.ONE_FOR_ONE: Cost(lambda times, crashes: 0.0, is_shared=False),
    Strategy.REST_FOR_ONE: Cost(
        lambda times, crashes: sum(times[crashes[-1] + 1 :]), is_shared=False
    ),
    Strategy.ONE_FOR_ALL: Cost(_all_but_the_slowest, is_shared=True),
}


class Level(enum.Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@report
class Finding(Value):
    """A finding, to be looked at before the tree is started.

    Attributes:
        code: The rule, such as "TREE101"; docs/how-to/check.md explains it.
        level: How bad it is.
        path: The place in the tree.
        message: What was found there, in one sentence.
    """

    code: str
    level: Level
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.level.value} {self.code} {self.message}"


def check(tree: SupervisorSpec) -> tuple[Finding, ...]:
    """Look at a tree without starting it.

    Args:
        tree: The spec of its root.

    Returns:
        The findings, from the root downwards, children in start order.
    """
    return tuple(
        Finding(code=code, level=level, path=place.path, message=message)
        for place in walk(tree)
        for code, (level, rule) in RULES.items()
        for message in rule(place)
    )


@value(kw_only=True)
class Place(Value):
    """A spec with its path, and the place of its supervisor; None for the root."""

    path: str
    spec: ChildSpec
    above: Place | None = None

    @property
    def children(self) -> list[Place]:
        """The places of its children, in start order.

        A task graph has none, because its user can mend nothing in it.
        """
        spec = self.spec
        below = (
            spec.children if isinstance(spec, SupervisorSpec) and spec.kind != "task_graph" else ()
        )
        return [Place(path=f"{self.path}/{child.id}", spec=child, above=self) for child in below]


def walk(tree: ChildSpec) -> Iterator[Place]:
    """Yield every place of a tree: parents before their children, in start order."""
    return descend(Place(path=tree.id, spec=tree))


def descend(place: Place) -> Iterator[Place]:
    """Yield *place* and every place below it: parents before their children, in start order."""
    left = [place]
    while left:
        yield (one := left.pop())
        left += reversed(one.children)


# Limits


def _restartable(spec: SupervisorSpec) -> list[ChildSpec]:
    return [child for child in spec.children if child.restart is not Restart.TEMPORARY]


def _spends(spec: SupervisorSpec) -> bool:
    """Whether the supervisor has children, now or later, whose restarts count."""
    has_some = spec.dynamic or (spec.kind != "task_graph" and bool(_restartable(spec)))
    return has_some and spec.intensity != INFINITY


def _most(spec: SupervisorSpec) -> float:
    """Return the intensity of a supervisor as a number."""
    return math.inf if spec.intensity == INFINITY else spec.intensity


def _limit(spec: SupervisorSpec) -> str:
    return f"{spec.intensity} restart{'s' * (spec.intensity != 1)} in {spec.period:g} s"


def unreachable_by_backoff(place: Place) -> Iterator[str]:
    """Find a limit that the back-off of the children keeps them from ever reaching."""
    spec = place.spec
    if not isinstance(spec, SupervisorSpec) or spec.dynamic or not _spends(spec):
        return
    most = sum(most_restarts(child.backoff, spec.period) for child in _restartable(spec))
    if most <= _most(spec):
        yield (
            f"the limit, {_limit(spec)}, can never be reached: with the waits of their back-off, "
            f"the children are restarted at most {most:g} times in {spec.period:g} s; a child that "
            f"never recovers is tried for ever (if that is meant, say intensity={INFINITY!r})"
        )


@functools.cache
def most_restarts(backoff: Backoff | None, period: float) -> float:
    """Return how many restarts of one child fit into *period* seconds.

    The child fails as soon as its wait is over.
    """
    if backoff is None:
        return math.inf
    waits = _waits(backoff)
    # A child that has failed has two ways on. It fails again at once, and waits one
    # step longer; or it stays up for ``reset_after``, and its waits begin anew. For
    # each step, *spent* holds the least time in which *count* restarts lead to it, as
    # far as that is within the period.
    spent, count = {0: 0.0}, 0
    while spent and count < FAR:
        count += 1
        later = {0: min(spent.values()) + backoff.reset_after + waits[0]}
        for step, seconds in spent.items():
            after = min(step + 1, len(waits) - 1)
            later[after] = min(later.get(after, math.inf), seconds + waits[after])
        spent = {step: seconds for step, seconds in later.items() if seconds <= period}
    return math.inf if spent else count


def _waits(backoff: Backoff) -> list[float]:
    """Return the shortest first wait, the shortest second one, and so on.

    The last one stands for all further ones.
    """
    waits = [backoff.initial]
    while waits[-1] < backoff.maximum and backoff.factor > 1 and len(waits) < FAR:
        waits.append(min(backoff.maximum, waits[-1] * backoff.factor))
    return [wait * (1 - backoff.jitter) for wait in waits]


def unreachable_by_stops(place: Place) -> Iterator[str]:
    """Find a limit that is out of reach while the children need all their time to stop."""
    spec = place.spec
    if not isinstance(spec, SupervisorSpec) or spec.dynamic or not _spends(spec):
        return
    times = [stop_time(child) for child in spec.children]
    crashes = [
        at for at, child in enumerate(spec.children) if child.restart is not Restart.TEMPORARY
    ]
    least = COSTS[spec.strategy].stops(times, crashes)
    if least > 0 and _most(spec) * least > spec.period:
        yield (
            f"the limit, {_limit(spec)}, cannot be reached while the children need all their time "
            f"to stop: each restart of the group may take {_seconds(least)}"
        )


def stop_time(spec: ChildSpec) -> float:
    """Return how many seconds a child may take to stop.

    A supervisor takes the sum of the times of its children, which stop one after the
    other.
    """
    if not isinstance(spec.shutdown, Budget):
        return spec.shutdown
    if spec.shutdown is Budget.BRUTAL_KILL:
        return 0.0
    return sum(map(stop_time, spec.children)) if isinstance(spec, SupervisorSpec) else math.inf


def _seconds(seconds: float) -> str:
    return "for ever" if seconds == math.inf else f"{seconds:g} s"


def multiplied(place: Place) -> Iterator[str]:
    """Find levels whose limits multiply: a supervisor that is restarted counts from zero."""
    chain = _levels(place)
    if sum(_most(spec) > 0 for _, spec in chain) < 2 or not _spends(chain[0][1]):
        return
    longest = min(slowest([spec for _, spec in chain]))
    if longest > _shortest_wait(place):
        starts = math.prod(int(_most(spec)) + 1 for _, spec in chain)
        levels = " × ".join(  # noqa: RUF001  # it is no x
            f"{int(_most(spec)) + 1} in {path}" for path, spec in reversed(chain)
        )
        yield (
            f"a child here is started {starts:,} times before {chain[-1][0]} gives up, if each "
            f"start follows the one before within {longest:.3g} s: {levels}"
        )


def out_of_reach(place: Place) -> Iterator[str]:
    """Find a level below that gives up too rarely to reach this limit."""
    spec = place.spec
    found = (
        min(_too_slow(place), default=None)
        if isinstance(spec, SupervisorSpec) and spec.intensity
        else None
    )
    if isinstance(spec, SupervisorSpec) and found is not None:
        longest, below = found
        seconds = (
            f"that ends later than {longest:.3g} s after its start"
            if longest > 0
            else "with this back-off"
        )
        yield (
            f"the limit, {_limit(spec)}, is never reached by a child of {below} {seconds}: what "
            f"gives up below is restarted, and the child is tried for ever"
        )


def _too_slow(place: Place) -> Iterator[tuple[float, str]]:
    """Yield the supervisors below that can give up without *place* ever giving up.

    The number with each is how long its child may live, in seconds, to reach the limit
    of *place*. A level with the limit 0 restarts nothing, so its parent sees every
    failure. Hence at least one level in between must restart a child.
    """
    for below in descend(place):
        levels = _levels(below) if below is not place else []
        paths = [path for path, _ in levels]
        if place.path not in paths:
            continue
        chain = [spec for _, spec in levels[: paths.index(place.path) + 1]]
        *lower, here = slowest(chain, _shortest_wait(below))
        if (
            here < min(lower) < math.inf
            and _spends(chain[0])
            and not any(unreachable_by_backoff(below))
        ):
            yield here, below.path


def slowest(chain: list[SupervisorSpec], wait: float = 0.0) -> list[float]:
    """Return how long a child may live to reach the limit of each supervisor, in seconds.

    A supervisor that gives up every *c* seconds reaches the limit of its parent if
    ``intensity * c <= period``.

    Args:
        chain: The supervisor of the child and those above it. Each is restarted by the
            next when it has given up.
        wait: The shortest wait before a restart of the child, in seconds.
    """
    longest: list[float] = []
    # What one failure of the level in hand costs the child: so many starts, so long a
    # wait.
    starts, waits = 1.0, 0.0
    for spec in chain:
        cost = waits + wait
        count = _most(spec)
        longest.append((spec.period / count - cost) / starts if count else math.inf)
        starts, waits = starts * (count + 1), (count + 1) * cost
        wait = 0.0 if spec.backoff is None else _waits(spec.backoff)[0]
    return longest


def _shortest_wait(place: Place) -> float:
    """Return the shortest wait before a restart of any known child, in seconds."""
    children = _restartable(place.spec) if isinstance(place.spec, SupervisorSpec) else []
    return min(
        (_waits(child.backoff)[0] if child.backoff is not None else 0.0 for child in children),
        default=0.0,
    )


def _levels(place: Place | None) -> list[tuple[str, SupervisorSpec]]:
    """Return the supervisor at *place* and those above it, with their paths.

    The list ends with the first one that never gives up, or is not restarted by the
    next.
    """
    chain = []
    while (
        place is not None
        and isinstance(place.spec, SupervisorSpec)
        and place.spec.intensity != INFINITY
    ):
        chain.append((place.path, place.spec))
        place = place.above if place.spec.restart is Restart.PERMANENT else None
    return chain


def default_budget(place: Place) -> Iterator[str]:
    """Find a root with the default limit and many children.

    A cause that hits all children at once, such as a network that is down, would end
    it.
    """
    spec = place.spec
    if (
        place.above is not None
        or not isinstance(spec, SupervisorSpec)
        or COSTS[spec.strategy].is_shared
    ):
        return
    fields = attrs.fields(SupervisorSpec)
    if (spec.intensity, spec.period) != (fields.intensity.default, fields.period.default):
        return
    count = _most_children(spec)
    if count >= MANY:
        yield (
            f"the root has the default limit, {_limit(spec)}, for {_number(count)} children: when "
            f"more than {spec.intensity} of them fail at the same time, the whole tree ends"
        )


def _number(count: float) -> str:
    return "any number of" if count == math.inf else f"{count:g}"


def _most_children(spec: SupervisorSpec) -> float:
    if spec.dynamic:
        return math.inf if spec.max_children is None else spec.max_children
    return len(_restartable(spec))


def unnoticed(place: Place) -> Iterator[str]:
    """Find a supervisor that can give up without a trace for its parent.

    To give up is an end of the normal class, so only a permanent supervisor is
    restarted.
    """
    spec, above = place.spec, place.above
    if not isinstance(spec, SupervisorSpec) or above is None or not _spends(spec):
        return
    if (
        spec.restart is not Restart.PERMANENT
        and spec.on_escalation is None
        and not spec.significant
    ):
        yield (
            f"when this {spec.restart.value} supervisor gives up, {above.path} goes on without it, "
            "and no handler is called"
        )


# Children


def infinite_shutdown(place: Place) -> Iterator[str]:
    """Find a worker that can hold up the stop of the whole tree."""
    if not isinstance(place.spec, SupervisorSpec) and place.spec.shutdown is Budget.INFINITY:
        yield "shutdown='infinity' in a worker: if it does not listen, the tree never stops"


def sleeps_too_long(place: Place) -> Iterator[str]:
    """Find a child that sleeps longer than its heartbeat: it cannot check in meanwhile."""
    heartbeat = place.spec.heartbeat
    longest = max(sleeps(_target(place.spec)), default=0.0) if heartbeat is not None else 0.0
    if heartbeat is not None and longest >= heartbeat:
        yield (
            f"it sleeps {_seconds(longest)} in one piece, but must check in every "
            f"{heartbeat:g} s: it will stall"
        )


def _target(spec: ChildSpec) -> Any:
    """Return the function that a worker runs; None if its kind does not show it."""
    target = getattr(spec.start, "target", None) or getattr(spec.start, "function", None)
    if isinstance(target, type):
        target = target.run if issubclass(target, Service) else None
    while isinstance(target, functools.partial):
        target = target.func
    try:
        return inspect.unwrap(target) if callable(target) else None
    except ValueError:
        # The function wraps itself, or seems to: a proxy has every attribute.
        return None


def sleeps(function: Any) -> list[float]:
    """Return the seconds of each sleep that the source of *function* shows."""
    source = _source(function)
    if source is None or any(
        isinstance(node, ast.keyword) and node.arg == "allow" for node in ast.walk(source)
    ):
        return []
    names = getattr(function, "__globals__", {})
    return [seconds for node in _own_nodes(source) if (seconds := _slept(node, names)) is not None]


def _source(function: Any) -> ast.AST | None:
    try:
        [source] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        # The function has no source, or its source is only a part of a statement.
        return None
    return source if isinstance(source, ast.FunctionDef | ast.AsyncFunctionDef) else None


def _own_nodes(source: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of *source*, without those of the functions defined in it."""
    left = list(ast.iter_child_nodes(source))
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            left += ast.iter_child_nodes(node)


def _slept(node: ast.AST, names: dict[str, Any]) -> float | None:
    """Return how long a call sleeps, in seconds; None: no call that sleeps, or no number."""
    name = _name(node.func) if isinstance(node, ast.Call) else ""
    if not isinstance(node, ast.Call) or name not in ("sleep", "wait_stop"):
        return None
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    if not given:
        return math.inf if name == "wait_stop" else None
    value = (
        names.get(given[0].id)
        if isinstance(given[0], ast.Name)
        else getattr(given[0], "value", None)
    )
    return value if isinstance(value, int | float) else None


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def never_ends(place: Place) -> Iterator[str]:
    """Find a significant periodic child that never ends.

    A periodic child does not return, and a transient one is restarted after a crash.
    """
    spec = place.spec
    if (
        spec.significant
        and spec.kind == "periodic"
        and spec.restart is Restart.TRANSIENT
        and not _leaves(spec)
    ):
        yield (
            "it is significant but never ends: a periodic child does not return, and a transient "
            "one is restarted when it crashes"
        )


def _leaves(spec: ChildSpec) -> bool:
    """Whether the function of a child names an end of the normal class, or cannot be read."""
    source = _source(_target(spec))
    return source is None or any(
        _name(node) in ("Shutdown", "SystemExit", "exit") for node in ast.walk(source)
    )


def none_significant(place: Place) -> Iterator[str]:
    """Find an automatic shutdown without a significant child."""
    spec = place.spec
    if not isinstance(spec, SupervisorSpec) or spec.auto_shutdown is AutoShutdown.NEVER:
        return
    if not any(child.significant for child in spec.children):
        yield f"auto_shutdown={spec.auto_shutdown.value!r} has no effect: no child is significant"


# The whole tree


def same_names(place: Place) -> Iterator[str]:
    """Find an id that several children have; it is reported at the root."""
    if place.above is not None:
        return
    paths: dict[str, list[str]] = collections.defaultdict(list)
    for one in walk(place.spec):
        paths[one.spec.id].append(one.path)
    for id, where in paths.items():
        if len(where) > 1:
            shown = ", ".join(where[:3]) + (", …" if len(where) > 3 else "")
            yield f"{len(where)} children are called {id!r}, tell them apart by path: {shown}"


RULES: dict[str, tuple[Level, Callable[[Place], Iterator[str]]]] = {
    # code: (level, rule)                               explained in docs/how-to/check.md
    "TREE101": (Level.ERROR, unreachable_by_backoff),
    "TREE102": (Level.NOTE, unreachable_by_stops),
    "TREE103": (Level.NOTE, multiplied),
    "TREE104": (Level.WARNING, default_budget),
    "TREE105": (Level.WARNING, unnoticed),
    "TREE106": (Level.WARNING, out_of_reach),
    "TREE201": (Level.WARNING, infinite_shutdown),
    "TREE202": (Level.ERROR, sleeps_too_long),
    "TREE301": (Level.NOTE, same_names),
    "TREE302": (Level.ERROR, never_ends),
    "TREE303": (Level.WARNING, none_significant),
}
