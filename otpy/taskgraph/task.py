"""Tasks: a function, and when to run it.

A ``Task`` that exists is valid: each field is checked when it is made, and an error
names path, field, value and what would be right.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, TypeVar, Unpack

import attrs

from otpy.arguments import check_call, check_function, is_async
from otpy.exceptions import SpecError, show
from otpy.specs import Backoff, is_number, plain
from otpy.values import Value, report, value

F = TypeVar("F", bound=Callable[..., object])


@value
class Rule(Value):
    """Which values a field may have.

    Attributes:
        is_right: Whether a value is right.
        expected: The values that are right, in words for the error.
    """

    is_right: Callable[[Any], bool]
    expected: str

    def check(self, path: str, field: str, value: object) -> None:
        """Refuse a *value* that is not right.

        Raises:
            SpecError: It is not.
        """
        if not self.is_right(value):
            raise SpecError(path, field, value, self.expected)


def is_count(value: Any) -> bool:
    """Whether *value* is an int >= 0, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_flag(value: Any) -> bool:
    """Whether *value* is True or False."""
    return isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) and one for one in value)


FIELDS = {
    "name": Rule(
        lambda name: isinstance(name, str) and bool(name.strip()),
        "a non-empty str; a lambda needs a name",
    ),
    "after": Rule(_are_names, "an iterable of names of tasks"),
    "with_state": Rule(is_flag, "True or False"),
    "retries": Rule(is_count, "an int >= 0"),
    "backoff": Rule(lambda wait: wait is None or isinstance(wait, Backoff), "a Backoff, or None"),
    "timeout": Rule(
        lambda seconds: seconds is None or (is_number(seconds) and seconds > 0),
        "a finite number of seconds > 0, or None",
    ),
    "tags": Rule(_are_names, "an iterable of str"),
}
"""The rules for the fields of a task, but for the function."""


def path_of(name: object) -> str:
    """Return what an error calls the task *name*."""
    return f"tasks/{name}" if isinstance(name, str) and name else "tasks"


def _check(task: Task, field: Any, value: Any) -> None:
    FIELDS[field.name].check(path_of(task.name), field.name, value)


def _check_function(task: Task, field: Any, value: Any) -> None:
    path, name = path_of(task.name), field.name
    if not is_async(value):
        check_function(path, name, value, "a callable")
    if task.with_state:
        check_call(path, name, value, ("state",), "a callable that takes (state)")
    else:
        expected = "a callable without arguments, or with_state=True"
        check_call(path, name, value, (), expected)


def _to_tuple(value: Any) -> Any:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(plain, value))
    return value


@report
class Task(Value):
    """A function and when to run it.

    Attributes:
        name: Other tasks name it in their ``after``, and its result is stored under it.
        function: Called without arguments, or with the state. An async function is run
            to its end.
        after: The names of the tasks that must have ended before.
        with_state: Whether the function takes the state of the graph.
        retries: How often the task may be tried again after a failure.
        backoff: How long to wait before each retry; None: not at all.
        timeout: Seconds that one attempt may take; None: no limit.
        tags: Words by which tasks are chosen.
    """

    name: str = attrs.field(converter=plain, validator=_check)
    # it stands before the function, whose check looks at it
    with_state: bool = attrs.field(default=False, validator=_check)
    function: Callable[..., object] = attrs.field(validator=_check_function, repr=show)
    after: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple, validator=_check)
    retries: int = attrs.field(default=0, validator=_check)
    backoff: Backoff | None = attrs.field(default=None, validator=_check)
    timeout: float | None = attrs.field(default=None, validator=_check)
    tags: tuple[str, ...] = attrs.field(default=(), converter=_to_tuple, validator=_check)


class Others(TypedDict, total=False):
    """The options of ``TaskGraph.add`` that are given by keyword only; see ``Task``."""

    with_state: bool
    retries: int
    backoff: Backoff | None
    timeout: float | None
    tags: Iterable[str]


class Options(Others, total=False):
    """The options of ``task`` and ``TaskGraph.task``."""

    name: str | None
    after: Iterable[str]


def make(function: Callable[..., object], options: Options) -> Task:
    """Return a task, named after its *function* if the options have no name.

    Raises:
        TypeError: A task has no such option.
        SpecError: An option is wrong, or the function cannot be called so.
    """
    for option in options:
        if option not in Options.__annotations__:
            raise TypeError(
                f"a task has no option {option!r}; there are {', '.join(Options.__annotations__)}"
            )
    given: dict[str, Any] = {**options}
    name: Any = given.pop("name", None)
    if name is None:
        name = getattr(function, "__name__", "")
        name = "" if name == "<lambda>" else str(name)
    return Task(name=name, function=function, **given)


MARK = "__otpy_task__"
"""The attribute of a function that ``task`` has marked."""


def task(**options: Unpack[Options]) -> Callable[[F], F]:
    """Mark a function as a task, and leave it as it is.

    ``marked`` finds it, and so does ``otpy tasks``.

    Args:
        **options: As for ``TaskGraph.add``.

    Raises:
        SpecError: An option is wrong, or the function cannot be called so.
    """

    def mark(function: F) -> F:
        setattr(function, MARK, make(function, options))
        return function

    return mark


def marked(module: types.ModuleType) -> tuple[Task, ...]:
    """Return the tasks that ``@task`` has marked in *module*, in their order there."""
    found: dict[int, Task] = {}
    for thing in list(vars(module).values()):
        # a stand-in for an object that does not exist now, such as a web request,
        # raises
        with contextlib.suppress(Exception):
            mark = getattr(thing, MARK, None)
            if isinstance(mark, Task):
                found[id(mark)] = mark
    return tuple(found.values())
