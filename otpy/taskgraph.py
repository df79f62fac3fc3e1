"""Functions with dependencies, run on threads under supervision.

A run is an ordinary tree, made by the public API. From inside otpy come only words: the
checks of arguments, what an exception means, the arithmetic of ``Backoff``, and how a
failed callback is reported.

Laws:
1. All that is known of a run belongs to its scheduler, which is one thread: it alone decides what is ready, and what
   became of a task. Workers and timers only put messages into its inbox, and it waits for nothing else.
2. An attempt is accounted for once. Who takes its token decides what became of it: the worker that has finished it, or
   the scheduler whose patience is over. What the other one says changes nothing.
3. A worker that has lost a token takes no further task: it is about to be stopped, and nobody else shall be hit.
4. What a worker has taken is in its seat, whatever happens to its thread. So the task of a dead one is known.
5. User code runs on workers (tasks, and what their exceptions say) and on the
   scheduler's thread (callbacks), and nothing that it raises hurts either. A callback
   that never returns keeps ``run`` from returning until the second signal.
6. Each attempt has a context of its own: what it sets in context variables, no other
   task sees.

Theory of operation. A run is a tree: a dynamic supervisor ``workers``, and after it the ``scheduler``, which starts the
workers as they are needed. It puts what is ready into one queue; the workers take it from there, run it, and put what
came of it into the inbox. When all is settled the scheduler ends, and since it is significant, so does the tree. When
the tree is asked to stop, the scheduler is asked first: it dispatches nothing more, and ends when the tasks that run
are done; then the workers are stopped. A second signal stops all of them at once: a worker that is asked says so, also
if its thread is stuck, and its task is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import graphlib
import heapq
import itertools
import os
import queue
import random
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import attrs

import otpy
from otpy import (
    Backoff,
    ChildSpec,
    Context,
    ExitKind,
    ExitReason,
    Fenced,
    InternalError,
    Killed,
    Refusal,
    SpecError,
    StartError,
    Supervisor,
    SupervisorSpec,
)
from otpy.arguments import (
    NO_AWAIT,
    check_call,
    check_function,
    check_result,
    is_async,
    is_coroutine,
)
from otpy.core.restarts import Delays
from otpy.exceptions import meaning_of, means_success, show
from otpy.runtime.log import complain
from otpy.specs import is_number

__all__ = [
    "Description",
    "Meta",
    "Outcome",
    "Summary",
    "Task",
    "TaskFailure",
    "TaskGraph",
    "marked",
    "task",
]

F = TypeVar("F", bound=Callable[..., object])

UNLIMITED = 1_000_000_000
"""How often the tasks of a run may kill their workers, and how many stuck threads they
may leave behind.
"""

LAST_WORD = 1.0
"""How long ``run`` waits for the summary of a scheduler that was given up in a
callback, in seconds.
"""

SHOWN = 20
"""How many names an error lists."""

FAREWELL = 0.1
"""How long a worker whose task is dropped may take to end by itself, in seconds, before it is interrupted."""

PAUSED = 1.0
"""How late a timeout is noticed, at least, when the whole program could not run, in seconds."""

SOON = 1.0
"""How long a worker may take to come, in seconds, before it is ordered again."""

PAUSE = Backoff(0.001, 1.0, reset_after=0.1)
"""Between the lives of a worker whose thread dies at once, again and again."""


class Outcome(Enum):
    """What became of a task."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


PASSED, FAILED, SKIPPED, CANCELLED = Outcome


# Tasks


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) and one for one in value)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # field of a task: (whether a value is right, what would be right)
    "name": (
        lambda name: isinstance(name, str) and bool(name.strip()),
        "a non-empty str; a lambda needs a name",
    ),
    "after": (_names, "an iterable of names of tasks"),
    "with_state": (_is_flag, "True or False"),
    "retries": (_count, "an int >= 0"),
    "backoff": (lambda wait: wait is None or isinstance(wait, Backoff), "a Backoff, or None"),
    "timeout": (
        lambda seconds: seconds is None or (is_number(seconds) and seconds > 0),
        "a finite number of seconds > 0, or None",
    ),
    "tags": (_names, "an iterable of str"),
}


def _check(instance: Task, field: Any, value: Any) -> None:
    is_right, expected = FIELDS[field.name]
    if not is_right(value):
        raise SpecError(_path(instance.name), field.name, value, expected)


def _check_function(instance: Task, field: Any, value: Any) -> None:
    path, name = _path(instance.name), field.name
    if not is_async(value):
        check_function(path, name, value, "a callable")
    args = ("state",) if instance.with_state else ()
    expected = (
        "a callable that takes (state)"
        if args
        else "a callable without arguments, or with_state=True"
    )
    check_call(path, name, value, args, expected)


def _path(name: object) -> str:
    return f"tasks/{name}" if isinstance(name, str) and name else "tasks"


def _to_str(value: Any) -> Any:
    """Return a plain str: one of the user's own class could run code wherever it is
    compared.
    """
    return str.__str__(value) if isinstance(value, str) else value


def _to_tuple(value: Any) -> Any:
    return (
        tuple(map(_to_str, value))
        if isinstance(value, Iterable) and not isinstance(value, str)
        else value
    )


@attrs.frozen(kw_only=True)
class Task:
    """A function and when to run it.

    Attributes:
        name: What others name in their ``after``, and under which the result is stored.
        function: Called without arguments, or with the state; an async function is run to its end.
        after: The names of the tasks that must have ended before.
        with_state: Whether the function takes the state of the graph.
        retries: How often it may be tried again after it failed.
        backoff: How long to wait before that; None: not at all.
        timeout: Seconds that one attempt may take; None: no limit.
        tags: For choosing.
    """

    name: str = attrs.field(converter=_to_str, validator=_check)
    with_state: bool = attrs.field(
        default=False, validator=_check
    )  # before the function, whose check needs it
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


def _make(function: Callable[..., object], options: Options) -> Task:
    for option in options:
        if option not in Options.__annotations__:
            raise TypeError(
                f"a task has no option {option!r}; there are {', '.join(Options.__annotations__)}"
            )
    given: dict[str, Any] = {**options}
    name = given.pop("name", None)
    return Task(name=_name_of(function) if name is None else name, function=function, **given)


def _name_of(function: object) -> str:
    name = getattr(function, "__name__", "")
    return "" if name == "<lambda>" else str(name)


MARK = "__otpy_task__"


def task(**options: Unpack[Options]) -> Callable[[F], F]:
    """Mark a function as a task, and leave it as it is. ``marked`` finds it, and so does ``otpy tasks``.

    Args:
        **options: As for ``TaskGraph.add``.

    Raises:
        SpecError: An option is wrong, or the function cannot be called so.
    """

    def mark(function: F) -> F:
        setattr(function, MARK, _make(function, options))
        return function

    return mark


def marked(module: types.ModuleType) -> tuple[Task, ...]:
    """Return the tasks that ``@task`` has marked in *module*, in the order of their definition."""
    found = [_mark_of(value) for value in list(vars(module).values())]
    return tuple({id(one): one for one in found if isinstance(one, Task)}.values())


def _mark_of(value: object) -> object:
    try:
        return getattr(value, MARK, None)
    except Exception:  # a stand-in for something that is not there now
        return None


# What a run tells


@attrs.frozen(kw_only=True)
class TaskFailure:
    """Why a task failed, the last time that it was tried.

    Attributes:
        name: Which task.
        kind: CRASHED: it raised; STALLED: it took longer than its timeout; KILLED: its worker died of something else.
        exception: What it raised; a ``TimeoutError`` if it stalled.
        traceback: That formatted, always printable; of a task that stalled, what its thread was doing then.
        attempts: How often it was tried.
    """

    name: str
    kind: ExitKind
    exception: BaseException = attrs.field(eq=id, repr=show)
    traceback: str
    attempts: int


@attrs.frozen(kw_only=True)
class Meta:
    """What a run is about to do; for ``on_start``.

    Attributes:
        tasks: The names, in the order of declaration.
        workers: How many threads run them.
        started_at: Seconds since the epoch.
    """

    tasks: tuple[str, ...]
    workers: int
    started_at: float


@attrs.frozen(kw_only=True)
class Summary:
    """What came of a run.

    Attributes:
        outcomes: What became of each task, by name, in the order of declaration.
        failures: Why those failed that did, by name.
        started_at, finished_at: Seconds since the epoch.
        duration: Seconds, measured with a clock that does not step.
    """

    outcomes: Mapping[str, Outcome]
    failures: Mapping[str, TaskFailure]
    started_at: float
    finished_at: float
    duration: float

    @property
    def passed(self) -> int:
        """How many tasks returned."""
        return self._count(PASSED)

    @property
    def failed(self) -> int:
        """How many tasks failed, each time that they were tried."""
        return self._count(FAILED)

    @property
    def skipped(self) -> int:
        """How many tasks were not run because one that they depend on did not pass."""
        return self._count(SKIPPED)

    @property
    def cancelled(self) -> int:
        """How many tasks were not run, or not to their end, because the run was interrupted."""
        return self._count(CANCELLED)

    @property
    def ok(self) -> bool:
        """Whether all passed."""
        return self.passed == len(self.outcomes)

    @property
    def text(self) -> str:
        """The summary in one line."""
        counts = [f"{self.passed} passed", f"{self.failed} failed", f"{self.skipped} skipped"]
        if self.cancelled:
            counts.append(f"{self.cancelled} cancelled")
        return f"{', '.join(counts)} in {self.duration:.1f}s"

    def _count(self, outcome: Outcome) -> int:
        return sum(one is outcome for one in self.outcomes.values())

    def __str__(self) -> str:
        return self.text


@attrs.frozen(kw_only=True)
class Description:
    """The shape of a graph. Names are in the order of declaration.

    Attributes:
        nodes: All tasks.
        edges: Pairs: a task, and one that comes after it.
        roots: The tasks that come after no other.
        leaves: The tasks that no other comes after.
        levels: What could run side by side: the roots, then what needs only these, and so on.
        longest_path: The longest chain of tasks, the first of these if there are several.
        fan_in, fan_out: After how many tasks each comes, and how many come after it.
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    roots: tuple[str, ...]
    leaves: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    longest_path: tuple[str, ...]
    fan_in: Mapping[str, int]
    fan_out: Mapping[str, int]


# The graph


class TaskGraph:
    """Tasks and what must come before each.

    May be run any number of times, but not twice at once: the results go to the same place.

    Attributes:
        state: What the tasks share: ``state["_state_lock"]`` is a re-entrant lock, ``state["results"]`` has what the
            tasks returned, by name.
    """

    def __init__(
        self,
        workers: int | None = None,
        state: dict[str, Any] | None = None,
        store_results: bool = True,
        clear_results: bool = True,
        on_failure: Literal["run", "skip"] = "run",
    ) -> None:
        """Make a graph without tasks.

        Args:
            workers: How many tasks may run at once; None: four more than there are processors, but at most 32.
            state: The dict that the tasks share; None: a new one.
            store_results: Whether what the tasks return is kept.
            clear_results: Whether each run begins with no results.
            on_failure: What to do with the tasks that come after one that did not pass: "run" or "skip" them.

        Raises:
            SpecError: An argument is wrong.
        """
        _check_options(
            workers=workers,
            state=state,
            store_results=store_results,
            clear_results=clear_results,
            on_failure=on_failure,
        )
        self.state: dict[str, Any] = {} if state is None else state
        self._furnish()
        self._workers, self._on_failure = workers, on_failure
        self._stores, self._clears = store_results, clear_results
        self._tasks: dict[str, Task] = {}
        self._callbacks: dict[str, tuple[Callable[..., object], ...]] = {}

    # Declaring

    def add(
        self,
        function: Callable[..., object],
        name: str | None = None,
        after: Iterable[str] = (),
        **options: Unpack[Others],
    ) -> str:
        """Add a task and return its name. The tasks that it comes after may be added later.

        Args:
            function: Called as ``function()``. What it raises, whatever that is, is the failure of the task, except a
                SystemExit with code 0 or None: that is a return. An async function gets an event loop of its own.
            name: Default: that of the function.
            after: The names of the tasks that must have ended before.
            **options: *with_state*: call it as ``function(state)``. *retries*: how often to try again after a failure;
                *backoff*: how long to wait before that, a ``Backoff``. *timeout*: seconds that an attempt may take; one
                that takes longer has failed as STALLED, its thread is interrupted, or left behind if it is stuck, and
                replaced. *tags*: for choosing; the graph itself ignores them.

        Raises:
            SpecError: A value is wrong, or there is a task of this name.
        """
        return self.add_task(_make(function, {"name": name, "after": after, **options}))

    def add_task(self, task: Task) -> str:
        """Add a task that has been made already, such as one that ``marked`` found; return its name.

        Raises:
            SpecError: It is none, or there is a task of this name.
        """
        if not isinstance(task, Task):
            raise SpecError("tasks", "task", task, "a Task")
        if task.name in self._tasks:
            raise SpecError(_path(task.name), "name", task.name, "a name that no other task has")
        self._tasks[task.name] = task
        return task.name

    def task(self, **options: Unpack[Options]) -> Callable[[F], F]:
        """Add the decorated function, which stays as it is. The options are those of ``add``."""

        def add(function: F) -> F:
            self.add_task(_make(function, options))
            return function

        return add

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the order of declaration."""
        return tuple(self._tasks.values())

    # Callbacks. They run on the scheduler's thread: while one runs, nothing is
    # dispatched. All of these raise SpecError for a callback that is async, or that
    # cannot be called like this

    def on_start(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have ``callback(meta, *args, **kwargs)`` called when a run begins."""
        self._register("on_start", callback, args, kwargs)

    def on_task_start(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have ``callback(name, *args, **kwargs)`` called when a task is handed to the workers, once per task."""
        self._register("on_task_start", callback, args, kwargs)

    def on_task_run(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have ``callback(name, thread, *args, **kwargs)`` called when a thread begins an attempt; *thread*: its name.

        The attempt does not wait for that.
        """
        self._register("on_task_run", callback, args, kwargs)

    def on_task_done(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have ``callback(name, outcome, *args, **kwargs)`` called when a task is settled, also one that never ran."""
        self._register("on_task_done", callback, args, kwargs)

    def on_done(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Have ``callback(summary, *args, **kwargs)`` called when a run has ended."""
        self._register("on_done", callback, args, kwargs)

    def _register(
        self, event: str, callback: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        expected = f"a callable that takes ({', '.join(TOLD[event])}) and what is passed on"
        check_function("tasks", event, callback, expected, NO_AWAIT)
        check_call("tasks", event, callback, (*TOLD[event], *args), expected, kwargs=kwargs)
        bound = functools.partial(_call_with, callback, args, kwargs)
        self._callbacks[event] = (*self._callbacks.get(event, ()), bound)

    # Running

    def run(self) -> Summary:
        """Run all tasks and return what came of them.

        In the main thread, SIGINT, SIGTERM, SIGHUP and SIGQUIT end the run in order:
        nothing more is started, and what runs may finish. A second signal, more than a
        second later, interrupts what still runs, and these tasks are cancelled, too.
        The summary has every task. What a signal handler of the program raises goes on
        when the run has ended in order.

        Raises:
            SpecError: A dependency is unknown, or there is a cycle; nothing has run.
            StartError: The system has no more threads to give; nothing has run.
        """
        run = _Run(self._plan())
        otpy.run(run.plan.tree("tasks", lambda: run, {}), log=False, max_unstopped=UNLIMITED)
        return run.summarise()

    def as_child(self, id: str, **common: Any) -> SupervisorSpec:
        """Describe a child that runs this graph; a supervisor, which ends when all tasks are settled.

        What came of them goes to ``on_done``: tasks that fail are no crash of the child. When it is asked to stop, it
        starts no more tasks, and the tasks that run may finish within its *shutdown*.

        Args:
            id: Its name among its siblings.
            **common: As for ``thread``; default: ``restart="transient"``, ``shutdown="infinity"``.

        Raises:
            SpecError: As for ``run``, or an option is wrong.
        """
        plan = self._plan()
        return plan.tree(id, lambda: _Run(plan), {"restart": "transient", **common})

    def _furnish(self) -> None:
        """Put into the state what every task finds there."""
        for key, (make, is_right, expected) in FURNITURE.items():
            if not is_right(self.state.setdefault(key, make())):
                raise SpecError("tasks", f"state[{key!r}]", self.state[key], expected)

    def _plan(self) -> _Plan:
        self._furnish()  # again: the user may have cleared it
        tasks = self.tasks
        places = {one.name: place for place, one in enumerate(tasks)}
        for one in tasks:
            for name in one.after:
                if name not in places:
                    raise SpecError(
                        _path(one.name), "after", name, f"one of the tasks: {_listed(places)}"
                    )
        plan = _Plan(
            tasks=tasks,
            after=tuple(tuple(places[name] for name in one.after) for one in tasks),
            workers=min(self._workers or min(32, (os.cpu_count() or 1) + 4), len(tasks)),
            skips=self._on_failure == "skip",
            callbacks=dict(self._callbacks),
            state=self.state,
            lock=self.state["_state_lock"],
            results=self.state["results"],
            stores=self._stores,
            clears=self._clears,
        )
        plan.sorter()  # refuses cycles
        return plan

    # Looking at it

    def describe(self) -> Description:
        """Return the shape of the graph.

        Raises:
            SpecError: A dependency is unknown, or there is a cycle.
        """
        return _describe(self._plan())

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        shape, ids = self.describe(), self._ids()
        nodes = [f'    {ids[name]}["{_escape(name)}"]' for name in shape.nodes]
        edges = [f"    {ids[before]} --> {ids[after]}" for before, after in shape.edges]
        return "\n".join(["flowchart TD", *nodes, *edges]) + "\n"

    def to_dot(self) -> str:
        """Return the graph in the DOT language of Graphviz."""
        shape, ids = self.describe(), self._ids()
        nodes = [f"    {ids[name]} [label={_quote(name)}];" for name in shape.nodes]
        edges = [f"    {ids[before]} -> {ids[after]};" for before, after in shape.edges]
        return "\n".join(["digraph tasks {", *nodes, *edges, "}"]) + "\n"

    def _ids(self) -> dict[str, str]:
        return {name: f"n{number}" for number, name in enumerate(self._tasks)}

    def __repr__(self) -> str:
        return f"<TaskGraph of {len(self._tasks)} tasks>"


TOLD: dict[str, tuple[str, ...]] = {
    # event: what its callbacks get
    "on_start": ("meta",),
    "on_task_start": ("name",),
    "on_task_run": ("name", "thread"),
    "on_task_done": ("name", "outcome"),
    "on_done": ("summary",),
}

LOCK = type(threading.RLock())

FURNITURE: dict[str, tuple[Callable[[], object], Callable[[Any], bool], str]] = {
    # key of the state: (what makes it, whether a value is right, what would be right)
    "_state_lock": (threading.RLock, lambda value: isinstance(value, LOCK), "a threading.RLock"),
    "results": (dict, lambda value: isinstance(value, dict), "a dict"),
}


OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # option of a graph: (whether a value is right, what would be right)
    "workers": (
        lambda count: count is None or (_count(count) and count >= 1),
        "an int >= 1, or None",
    ),
    "state": (lambda state: state is None or isinstance(state, dict), "a dict, or None"),
    "store_results": (_is_flag, "True or False"),
    "clear_results": (_is_flag, "True or False"),
    "on_failure": (lambda word: word in ("run", "skip"), "'run' or 'skip'"),
}


def _check_options(**options: Any) -> None:
    for option, value in options.items():
        is_right, expected = OPTIONS[option]
        if not is_right(value):
            raise SpecError("tasks", option, value, expected)


def _call_with(
    callback: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any], *told: object
) -> None:
    check_result(callback, callback(*told, *args, **kwargs))


def _listed(names: Mapping[str, object]) -> str:
    shown = ", ".join(itertools.islice(names, SHOWN))
    return shown if len(names) <= SHOWN else f"{shown}, and {len(names) - SHOWN} more"


def _escape(name: str) -> str:
    return "".join(one if one.isalnum() or one in " _-./:" else f"#{ord(one)};" for one in name)


def _quote(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _describe(plan: _Plan) -> Description:
    names, ways = tuple(one.name for one in plan.tasks), range(len(plan.tasks))
    before = [tuple(dict.fromkeys(one)) for one in plan.after]
    fan_out = dict.fromkeys(ways, 0)
    for place in itertools.chain(*before):
        fan_out[place] += 1
    levels = tuple(_levels(plan.sorter()))
    return Description(
        nodes=names,
        edges=tuple((names[first], names[then]) for then in ways for first in before[then]),
        roots=tuple(names[place] for place in ways if not before[place]),
        leaves=tuple(names[place] for place in ways if not fan_out[place]),
        levels=tuple(tuple(names[place] for place in level) for level in levels),
        longest_path=tuple(names[place] for place in _longest_path(levels, before)),
        fan_in={names[place]: len(before[place]) for place in ways},
        fan_out={names[place]: fan_out[place] for place in ways},
    )


def _levels(sorter: graphlib.TopologicalSorter[int]) -> Iterator[list[int]]:
    while level := sorted(sorter.get_ready()):
        yield level
        sorter.done(*level)


def _longest_path(levels: tuple[list[int], ...], before: list[tuple[int, ...]]) -> list[int]:
    """Go back from the first task of the last level, each time to one of the level above."""
    level_of = {place: number for number, level in enumerate(levels) for place in level}
    path = [levels[-1][0]] if levels else []
    while path and before[path[-1]]:
        path.append(min(one for one in before[path[-1]] if level_of[one] == level_of[path[-1]] - 1))
    return path[::-1]


@attrs.frozen(kw_only=True, eq=False)
class _Plan:
    """What a run is made from; the graph may change meanwhile. Tasks are known by their places."""

    tasks: tuple[Task, ...]
    after: tuple[tuple[int, ...], ...]
    workers: int
    skips: bool
    callbacks: Mapping[str, tuple[Callable[..., object], ...]]
    state: dict[str, Any]
    lock: threading.RLock  # as it was: a task may change whatever is in the state
    results: dict[str, Any]  # so is this
    stores: bool
    clears: bool

    def sorter(self) -> graphlib.TopologicalSorter[int]:
        sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter(
            dict(enumerate(self.after))
        )
        try:
            sorter.prepare()
        except graphlib.CycleError as error:
            names = [self.tasks[place].name for place in error.args[1]]
            raise SpecError(_path(names[-1]), "after", " -> ".join(names), "no cycle") from None
        return sorter

    def tree(self, id: str, make: Callable[[], _Run], common: Any) -> SupervisorSpec:
        """Return the tree of a run; see the head of this file."""
        alone: dict[str, Any] = {"restart": "temporary", "shutdown": "infinity", "interrupt": False}
        made = otpy.supervisor(
            id,
            children=[
                otpy.dynamic_supervisor("workers", intensity=UNLIMITED),
                otpy.thread(
                    lambda ctx: make().schedule(ctx),
                    id="scheduler",
                    significant=True,
                    ready=True,
                    **alone,
                ),
            ],
            auto_shutdown="any_significant",
            **common,
        )
        return _RunSpec(
            **{field.name: getattr(made, field.name) for field in attrs.fields(SupervisorSpec)}
        )


@attrs.frozen(kw_only=True, repr=False, eq=False)
class _RunSpec(SupervisorSpec):
    """The tree of a run: what is in it is not the user's, and ``otpy check`` does not look there."""

    @property
    def kind(self) -> str:
        return "task_graph"


# A run


@attrs.define(eq=False)
class _Attempt:
    """One try of a task. The token is a lock that nobody gives back."""

    task: Task
    place: int
    number: int
    call: Callable[[], object]
    token: threading.Lock = attrs.field(factory=threading.Lock)


@attrs.define(eq=False)
class _Seat:
    """What a worker's thread leaves behind when it dies.

    Attributes:
        held: The attempt that it has taken last.
        error: What it died of.
        text: The traceback of that.
        cancel: Cancels the coroutine that it runs.
        loop: Runs that coroutine.
        is_dismissed: Whether it has lost a token.
    """

    ctx: Context
    number: int
    held: list[_Attempt] = attrs.field(factory=list)
    error: BaseException | None = None
    text: str = ""
    cancel: Callable[[], object] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    is_dismissed: bool = False


def _is_stop(error: BaseException) -> bool:
    """Whether a worker that is asked to stop lets this pass."""
    return meaning_of(error) in (Killed, Fenced) or issubclass(type(error), asyncio.CancelledError)


class _Run:
    """One run of a plan. What has no comment belongs to the scheduler's thread."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = (
            queue.SimpleQueue()
        )  # (what to call, its arguments …)
        self._work: queue.SimpleQueue[_Attempt | None] = (
            queue.SimpleQueue()
        )  # None sends a worker home
        self._seats: dict[int, _Seat] = {}  # each entry is written by the worker of that number
        self._sorter = plan.sorter()
        self._outcomes: dict[int, Outcome] = {}
        self._failures: dict[str, TaskFailure] = {}
        self._open: set[_Attempt] = set()
        self._delays: dict[int, Delays] = {}
        self._timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._is_begun = (
            threading.Lock()
        )  # whoever takes it runs the graph, and nobody gives it back
        self._ctx: Context | None = None
        self._was_stopped = False
        self._hired = 0
        self._announces = "on_task_run" in plan.callbacks
        self._pool: Supervisor | None = None
        self._process = os.getpid()
        self._is_over = False  # written by the caller of run
        self._summary: queue.SimpleQueue[Summary | BaseException] = queue.SimpleQueue()
        self._started_at, self._began = time.time(), time.monotonic()

    def summarise(self) -> Summary:
        """Return the summary, when the tree has ended; on the thread of the caller."""
        has_begun = not self._is_begun.acquire(blocking=False)
        try:
            said = self._summary.get(timeout=LAST_WORD if has_begun else 0.0)
        except queue.Empty:
            said = Killed()
        if isinstance(said, Summary):
            return said
        if not _is_stop(said):
            raise InternalError(f"the scheduler of a graph has crashed: {said!r}") from said
        if has_begun:
            return self._without_scheduler()
        # the scheduler was given up before: this thread is it now
        self._was_stopped = True
        return self._go()

    def _without_scheduler(self) -> Summary:
        """Sum up what is known: the scheduler was given up, and hangs in a callback.
        Nothing that ends later counts.
        """
        self._is_over = True
        for attempt in list(self._open):
            attempt.token.acquire(blocking=False)
        return self._sum_up()

    # Workers; all of this runs on theirs

    def work(self, ctx: Context, number: int) -> None:
        """Run one task after the other, until sent home or asked to stop."""
        seat = _Seat(ctx, number)
        former, self._seats[seat.number] = self._seats.get(seat.number), seat
        self._inbox.put((self._seated, former))
        try:
            seat.ctx.on_stop(functools.partial(self._wake, seat))
            self._serve(seat)
        except BaseException as error:
            seat.error = error
            if not ctx.running:
                raise
            seat.text = ExitReason(ExitKind.KILLED, error).traceback
            raise RuntimeError(
                "the worker has died"
            ) from error  # SystemExit could mean that all is well
        finally:
            self._inbox.put((self._gone, seat))

    def _serve(self, seat: _Seat) -> None:
        ctx, taken = seat.ctx, iter(self._work.get, None)
        while ctx.running:
            # in one step of C: an exception that is raised in this thread from outside cannot lose what was taken
            seat.held[:] = itertools.islice(taken, 1)
            if not seat.held or not ctx.running or not self._try(seat, seat.held[0]):
                return

    def _try(self, seat: _Seat, attempt: _Attempt) -> bool:
        """Run a task; return whether the worker may go on."""
        if self._announces or attempt.task.timeout is not None:
            self._inbox.put(
                (self._begun, attempt, seat, threading.current_thread(), time.monotonic())
            )
        result: object = None
        try:
            result = contextvars.copy_context().run(_call_task, seat, attempt.call)
        except BaseException as error:
            if not seat.ctx.running and _is_stop(error):
                raise
            if not means_success(error):
                return self._is_here() and self._finish(attempt, error)
        return self._is_here() and self._finish(attempt, None, result)

    def _is_here(self) -> bool:
        """Whether this is the process of the run, and not one that a task has forked
        and let return.
        """
        return os.getpid() == self._process

    def _finish(
        self, attempt: _Attempt, error: BaseException | None, result: object = None
    ) -> bool:
        text = _text_of(error)  # made here: it may run code of the exception's
        keeps = self.plan.stores and error is None
        is_ours = self._keep(attempt, result) if keeps else attempt.token.acquire(blocking=False)
        if is_ours:  # the scheduler wakes up here: what this thread has to do before it waits again holds it up
            self._inbox.put((self._finished, attempt, error, text))
        return is_ours

    def _keep(self, attempt: _Attempt, result: object) -> bool:
        with self.plan.lock:  # before the token: whoever has that must not be kept from telling
            is_ours = attempt.token.acquire(blocking=False)
            if is_ours:
                self.plan.results[attempt.task.name] = result
        return is_ours

    def _wake(self, seat: _Seat) -> None:
        """Called on a helper thread when the worker is asked to stop."""
        if (cancel := seat.cancel) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                cancel()
        if not seat.is_dismissed:  # or it never waits again, and another one would be sent home
            self._inbox.put((self._asked, seat))
            self._work.put(None)

    # The scheduler

    def schedule(self, ctx: Context) -> None:
        """Run the graph."""
        try:
            self._ctx = ctx
            ctx.on_stop(lambda: self._inbox.put((self._stop,)))
            self._set_up(ctx.supervisor)
            ctx.ready()
            if self._is_begun.acquire(blocking=False):
                self._summary.put(self._go())
        except BaseException as error:
            self._summary.put(error)
            raise
        finally:
            for _ in range(self._hired):
                self._work.put(None)

    def _set_up(self, supervisor: Supervisor) -> None:
        """Start the first worker; if the system has no thread for it, nothing has run."""
        try:
            self._pool = supervisor.find(f"{supervisor.path}/workers")
            if self.plan.workers:
                self._pool.start_child(self._hire())
        except Refusal:  # the tree is stopped while it starts
            self._was_stopped = True

    @property
    def _is_stopping(self) -> bool:
        """Whether nothing more is started. What workers say who were asked may come before the message about this."""
        return self._was_stopped or (self._ctx is not None and not self._ctx.running)

    def _go(self) -> Summary:
        self._begin()
        self._advance()
        while self._goes_on() and self._is_here():
            call, *arguments = self._next()
            call(*arguments)
        return self._close()

    def _goes_on(self) -> bool:
        return bool(self._open) or (
            not self._is_stopping and len(self._outcomes) < len(self.plan.tasks)
        )

    def _begin(self) -> None:
        if self.plan.clears:
            self.plan.results.clear()
        names = tuple(one.name for one in self.plan.tasks)
        self._tell(
            "on_start", Meta(tasks=names, workers=self.plan.workers, started_at=self._started_at)
        )

    def _close(self) -> Summary:
        for place in range(len(self.plan.tasks)):
            if place not in self._outcomes:
                self._settle(place, CANCELLED)
        summary = self._sum_up()
        self._tell("on_done", summary)
        return summary

    def _sum_up(self) -> Summary:
        outcomes = {
            one.name: self._outcomes.get(place, CANCELLED)
            for place, one in enumerate(self.plan.tasks)
        }
        return Summary(
            outcomes=types.MappingProxyType(outcomes),
            failures=types.MappingProxyType(
                {name: self._failures[name] for name in outcomes if name in self._failures}
            ),
            started_at=self._started_at,
            finished_at=time.time(),
            duration=time.monotonic() - self._began,
        )

    def _next(self) -> tuple[Any, ...]:
        """Wait for the next message, or until somebody's time is up."""
        while self._timers:
            at = self._timers[0][0] - time.monotonic()
            if at <= 0:
                _, _, call, arguments = heapq.heappop(self._timers)
                return (call, *arguments)
            try:
                return self._inbox.get(timeout=min(at, threading.TIMEOUT_MAX))
            except queue.Empty:
                continue
        return self._inbox.get()

    def _arm(self, at: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._timers, (at, next(self._numbers), call, arguments))

    def _tell(self, event: str, *told: object) -> None:
        for callback in self.plan.callbacks.get(event, ()):
            if self._is_over:
                return
            try:
                callback(*told)
            except BaseException as error:
                complain("callback_failed", error, callback=event)

    # What is ready, and what became of it

    def _advance(self) -> None:
        """Dispatch what is ready, in the order of declaration."""
        while not self._is_stopping and (ready := self._sorter.get_ready()):
            for place in sorted(ready):
                if self._is_pointless(place):
                    self._settle(place, SKIPPED)
                else:
                    self._tell("on_task_start", self.plan.tasks[place].name)
                    self._dispatch(place, 1)

    def _is_pointless(self, place: int) -> bool:
        return self.plan.skips and any(
            self._outcomes[one] is not PASSED for one in self.plan.after[place]
        )

    def _dispatch(self, place: int, number: int) -> None:
        task = self.plan.tasks[place]
        call = (
            functools.partial(task.function, self.plan.state) if task.with_state else task.function
        )
        attempt = _Attempt(task, place, number, call)
        self._open.add(attempt)
        if self._hired < self.plan.workers and self._hired < len(self._open):
            self._order("start_child", self._hire())
        self._work.put(attempt)

    def _settle(self, place: int, outcome: Outcome) -> None:
        self._outcomes[place] = outcome
        if not self._is_stopping:
            self._sorter.done(place)
        if "on_task_done" in self.plan.callbacks:
            self._tell("on_task_done", self.plan.tasks[place].name, outcome)

    def _finished(self, attempt: _Attempt, error: BaseException | None, text: str) -> None:
        self._open.discard(attempt)
        if error is None:
            self._settle(attempt.place, PASSED)
            self._advance()
        else:
            self._fail(attempt, ExitKind.CRASHED, error, text)

    def _fail(self, attempt: _Attempt, kind: ExitKind, error: BaseException, text: str) -> None:
        task = attempt.task
        if attempt.number <= task.retries and not self._is_stopping:
            self._retry(attempt)
            return
        self._failures[task.name] = TaskFailure(
            name=task.name, kind=kind, exception=error, traceback=text, attempts=attempt.number
        )
        self._settle(attempt.place, FAILED)
        self._advance()

    def _retry(self, attempt: _Attempt) -> None:
        if (delays := self._delays.get(attempt.place)) is None:
            delays = self._delays[attempt.place] = Delays(attempt.task.backoff, random.Random())
        if (wait := delays.next_wait()) is None:
            self._dispatch(attempt.place, attempt.number + 1)
        else:
            self._arm(time.monotonic() + wait, self._try_again, attempt)

    def _try_again(self, attempt: _Attempt) -> None:
        if not self._is_stopping:
            self._dispatch(attempt.place, attempt.number + 1)

    # What workers say

    def _seated(self, former: _Seat | None) -> None:
        """A worker has come, perhaps in place of one whose end nobody has told."""
        if former is not None:
            self._bury(former)

    def _begun(self, attempt: _Attempt, seat: _Seat, thread: threading.Thread, at: float) -> None:
        if attempt.task.timeout is not None:
            due = at + attempt.task.timeout
            self._arm(due, self._late, attempt, seat, thread, due)
        self._tell("on_task_run", attempt.task.name, thread.name)

    def _late(
        self, attempt: _Attempt, seat: _Seat, thread: threading.Thread, due: float | None
    ) -> None:
        now, timeout = time.monotonic(), attempt.task.timeout
        if due is not None and timeout is not None and now - due >= PAUSED:
            self._arm(
                now + timeout, self._late, attempt, seat, thread, None
            )  # the task could not run either: once more
            return
        if attempt not in self._open or not attempt.token.acquire(blocking=False):
            return  # it is done, and has said so, or is about to
        self._open.remove(attempt)
        seat.is_dismissed = True
        self._replace(seat)
        error = TimeoutError(f"{attempt.task.name} was not done after {attempt.task.timeout} s")
        self._fail(attempt, ExitKind.STALLED, error, _stack_of(thread))

    def _gone(self, seat: _Seat) -> None:
        """A worker has ended. One that crashed, its supervisor restarts."""
        self._bury(seat)
        is_restarted = seat.error is not None and seat.ctx.running
        if not is_restarted and not seat.is_dismissed:
            self._replace(seat)

    def _asked(self, seat: _Seat) -> None:
        """Somebody stops this worker. Its task is cancelled, whether or not the thread ever ends."""
        for attempt in self._open.intersection(seat.held):
            if attempt.token.acquire(blocking=False):  # or it is done, and about to say so
                self._cancel(attempt)

    def _cancel(self, attempt: _Attempt) -> None:
        self._open.remove(attempt)
        self._settle(attempt.place, CANCELLED)
        self._advance()

    def _bury(self, seat: _Seat) -> None:
        """Account for what a worker held that has ended; what it had done, it has told before."""
        for attempt in self._open.intersection(seat.held):
            attempt.token.acquire(blocking=False)
            if seat.ctx.running:
                self._open.remove(attempt)
                error = seat.error or Killed()
                self._fail(
                    attempt,
                    ExitKind.KILLED,
                    error,
                    seat.text or ExitReason(ExitKind.KILLED, error).traceback,
                )
            else:  # somebody has stopped it
                self._cancel(attempt)

    # Orders to the supervisor of the workers. Nobody waits for the answer: who gets them keeps them in order

    def _hire(self) -> ChildSpec:
        self._hired += 1
        return self._worker(self._hired)

    def _worker(self, number: int) -> ChildSpec:
        id = f"worker-{number}"
        return otpy.thread(
            self.work, number, id=id, restart="transient", shutdown=FAREWELL, backoff=PAUSE
        )

    def _replace(self, seat: _Seat) -> None:
        self._order("terminate_child", f"worker-{seat.number}")
        self._insist(seat)

    def _insist(self, seat: _Seat) -> None:
        """Order a replacement, and again if it has not come in a while: the system may have had no thread for it."""
        if self._seats[seat.number] is seat and not self._is_stopping:
            self._order("start_child", self._worker(seat.number))
            self._arm(time.monotonic() + SOON, self._insist, seat)

    def _order(self, call: str, about: object) -> None:
        if not self._is_stopping:
            with contextlib.suppress(Refusal, StartError):
                getattr(self._pool, call)(about, timeout=0)

    # The end

    def _stop(self) -> None:
        """Start nothing more."""
        self._was_stopped = True
        with contextlib.suppress(queue.Empty):
            while True:
                attempt = self._work.get_nowait()
                if attempt is not None:
                    self._open.discard(attempt)


def _call_task(seat: _Seat, call: Callable[[], object]) -> object:
    result = call()
    return _run_coroutine(seat, result) if is_coroutine(result) else result


def _run_coroutine(seat: _Seat, coroutine: Coroutine[Any, Any, object]) -> object:
    try:
        return asyncio.run(_cancellable(seat, coroutine))
    finally:  # an interrupt may have hit while asyncio was closing the loop
        loop, seat.loop = seat.loop, None
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(Exception):  # half closed
                loop.close()


async def _cancellable(seat: _Seat, coroutine: Coroutine[Any, Any, object]) -> object:
    this = asyncio.current_task()
    assert this is not None
    loop = seat.loop = asyncio.get_running_loop()
    seat.cancel = functools.partial(loop.call_soon_threadsafe, this.cancel)
    try:
        if not seat.ctx.running:  # asked before: nobody has seen what to cancel
            this.cancel()
        return await coroutine
    finally:
        seat.cancel = None


_TRACEBACK: Any = vars(BaseException)["__traceback__"]
"""To get and set it without any code of the exception's class."""


def _text_of(error: BaseException | None) -> str:
    """Return the traceback of what a task raised; it begins with the task's own line,
    if it has got so far.
    """
    if error is None:
        return ""
    here = _TRACEBACK.__get__(error)
    while here is not None and here.tb_next is not None:
        if here.tb_frame.f_code.co_filename == __file__:
            _TRACEBACK.__set__(error, here.tb_next)
        here = here.tb_next
    return ExitReason(ExitKind.CRASHED, error).traceback


def _stack_of(thread: threading.Thread) -> str:
    """Return what a thread is doing now, formatted like a traceback; "" if it has ended."""
    try:
        return "".join(traceback.format_stack(sys._current_frames().get(thread.ident or 0)))
    except Exception:
        return ""
