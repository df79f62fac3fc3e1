"""``TaskGraph``: declare tasks, register callbacks, run them, look at their shape."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

import otpy
from otpy import SpecError, SupervisorSpec
from otpy.arguments import NO_AWAIT, check_call, check_function, check_result
from otpy.taskgraph import drawing
from otpy.taskgraph.blueprint import Blueprint
from otpy.taskgraph.drawing import Description
from otpy.taskgraph.results import Summary
from otpy.taskgraph.run import UNLIMITED, Scheduler, summary_of, tree_of
from otpy.taskgraph.task import F, Options, Others, Rule, Task, is_count, is_flag, make, path_of

SHOWN = 20
"""How many names an error lists."""

OPTIONS = {
    "workers": Rule(
        lambda count: count is None or (is_count(count) and count >= 1),
        "an int >= 1, or None",
    ),
    "state": Rule(lambda state: state is None or isinstance(state, dict), "a dict, or None"),
    "store_results": Rule(is_flag, "True or False"),
    "clear_results": Rule(is_flag, "True or False"),
    "on_failure": Rule(lambda word: word in ("run", "skip"), "'run' or 'skip'"),
}
"""The rules for the options of a graph."""

LOCK = type(threading.RLock())

FURNITURE: dict[str, tuple[Callable[[], object], Rule]] = {
    "_state_lock": (
        threading.RLock,
        Rule(lambda value: isinstance(value, LOCK), "a threading.RLock"),
    ),
    "results": (dict, Rule(lambda value: isinstance(value, dict), "a dict")),
}
"""What every task finds in the state: how it is made, and its rule."""

TOLD: dict[str, tuple[str, ...]] = {
    "on_start": ("meta",),
    "on_task_start": ("name",),
    "on_task_run": ("name", "thread"),
    "on_task_done": ("name", "outcome"),
    "on_done": ("summary",),
}
"""The arguments that the callbacks of each event get."""


class TaskGraph:
    """Tasks and what must come before each.

    It may be run any number of times, but not twice at once: the results go to the same
    place.

    Attributes:
        state: The dict that the tasks share. ``state["_state_lock"]`` is a re-entrant
            lock; ``state["results"]`` has the results of the tasks, by name.
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
            workers: How many tasks may run at once; None: four more than there are
                processors, but at most 32.
            state: The dict that the tasks share; None: a new one.
            store_results: Whether the results of the tasks are kept.
            clear_results: Whether each run begins with no results.
            on_failure: What to do with the tasks that come after one that did not pass:
                "run" or "skip" them.

        Raises:
            SpecError: An argument is wrong.
        """
        given = {
            "workers": workers,
            "state": state,
            "store_results": store_results,
            "clear_results": clear_results,
            "on_failure": on_failure,
        }
        for option, rule in OPTIONS.items():
            rule.check("tasks", option, given[option])
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
        """Add a task and return its name. The tasks before it may be added later.

        Args:
            function: Called as ``function()``. Whatever it raises is the failure of the
                task, but a SystemExit with code 0 or None is a return. An async
                function gets an event loop of its own.
            name: Default: that of the function.
            after: The names of the tasks that must have ended before.
            **options: *with_state*: call it as ``function(state)``. *retries*: how
                often to try again after a failure. *backoff*: how long to wait before
                that, a ``Backoff``. *timeout*: seconds that an attempt may take. An
                attempt that takes longer has failed as STALLED. Its thread is
                interrupted, or left behind if it is stuck, and replaced. *tags*: words
                for choosing; the graph itself ignores them.

        Raises:
            SpecError: A value is wrong, or there is a task of this name.
        """
        return self.add_task(make(function, {"name": name, "after": after, **options}))

    def add_task(self, task: Task) -> str:
        """Add a task that exists already, and return its name.

        Use it for the tasks that ``marked`` finds.

        Raises:
            SpecError: It is no task, or there is a task of this name.
        """
        if not isinstance(task, Task):
            raise SpecError("tasks", "task", task, "a Task")
        if task.name in self._tasks:
            raise SpecError(path_of(task.name), "name", task.name, "a name that no other task has")
        self._tasks[task.name] = task
        return task.name

    def task(self, **options: Unpack[Options]) -> Callable[[F], F]:
        """Add the decorated function, which stays as it is.

        Args:
            **options: As for ``add``.
        """

        def add(function: F) -> F:
            self.add_task(make(function, options))
            return function

        return add

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the order of declaration."""
        return tuple(self._tasks.values())

    # Callbacks run on the scheduler's thread. While one runs, nothing is dispatched.
    # All of these raise SpecError for a callback that is async, or that cannot be
    # called like this.

    def on_start(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call ``callback(meta, *args, **kwargs)`` when a run begins."""
        self._register("on_start", callback, args, kwargs)

    def on_task_start(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call ``callback(name, *args, **kwargs)`` when a task goes to the workers.

        It is called once for each task, whatever its retries.
        """
        self._register("on_task_start", callback, args, kwargs)

    def on_task_run(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call ``callback(name, thread, *args, **kwargs)`` at the begin of an attempt.

        *thread* is the name of the thread. The attempt does not wait for the call.
        """
        self._register("on_task_run", callback, args, kwargs)

    def on_task_done(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call ``callback(name, outcome, *args, **kwargs)`` when a task is settled.

        It is called for a task that never ran, too.
        """
        self._register("on_task_done", callback, args, kwargs)

    def on_done(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call ``callback(summary, *args, **kwargs)`` when a run has ended."""
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
        """Run all tasks and return what came of them. The summary has every task.

        In the main thread, SIGINT, SIGTERM, SIGHUP and SIGQUIT end the run in order: no
        further task is started, and the running ones may finish. A second signal, more
        than a second later, interrupts these, and they are cancelled, too. An exception
        that a signal handler of your own raises goes on when the run has ended in
        order.

        Raises:
            SpecError: A dependency is unknown, or there is a cycle; nothing has run.
            StartError: The system has no more threads to give; nothing has run.
        """
        scheduler = Scheduler(self._blueprint())
        tree = tree_of("tasks", lambda: scheduler, {})
        otpy.run(tree, log=False, max_unstopped=UNLIMITED)
        return summary_of(scheduler)

    def as_child(self, id: str, **common: Any) -> SupervisorSpec:
        """Describe a child that runs this graph.

        It is a supervisor that ends when all tasks are settled.

        What came of the tasks goes to ``on_done``: a task that fails is no crash of the
        child. When the child is asked to stop, it starts no further task, and the
        running ones may finish within its *shutdown*.

        Args:
            id: Its name among its siblings.
            **common: As for ``thread``; default: ``restart="transient"``,
                ``shutdown="infinity"``.

        Raises:
            SpecError: As for ``run``, or an option is wrong.
        """
        blueprint = self._blueprint()
        common = {"restart": "transient", **common}
        return tree_of(id, functools.partial(Scheduler, blueprint), common)

    # Looking at it

    def describe(self) -> Description:
        """Return the shape of the graph.

        Raises:
            SpecError: A dependency is unknown, or there is a cycle.
        """
        return drawing.describe(self._blueprint())

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        return drawing.mermaid(self.describe())

    def to_dot(self) -> str:
        """Return the graph in the DOT language of Graphviz."""
        return drawing.dot(self.describe())

    def __repr__(self) -> str:
        return f"<TaskGraph of {len(self._tasks)} tasks>"

    def _furnish(self) -> None:
        """Put into the state what every task finds there."""
        for key, (make_one, rule) in FURNITURE.items():
            rule.check("tasks", f"state[{key!r}]", self.state.setdefault(key, make_one()))

    def _blueprint(self) -> Blueprint:
        # once more: the user may have cleared the state
        self._furnish()
        tasks = self.tasks
        places = {task.name: place for place, task in enumerate(tasks)}
        for task in tasks:
            for name in task.after:
                if name not in places:
                    known = ", ".join(itertools.islice(places, SHOWN))
                    if len(places) > SHOWN:
                        known += f", and {len(places) - SHOWN} more"
                    expected = f"one of the tasks: {known}"
                    raise SpecError(path_of(task.name), "after", name, expected)
        blueprint = Blueprint(
            tasks=tasks,
            after=tuple(tuple(places[name] for name in task.after) for task in tasks),
            workers=min(self._workers or min(32, (os.cpu_count() or 1) + 4), len(tasks)),
            skips=self._on_failure == "skip",
            callbacks=dict(self._callbacks),
            state=self.state,
            lock=self.state["_state_lock"],
            results=self.state["results"],
            stores=self._stores,
            clears=self._clears,
        )
        # refuse cycles before anything starts
        blueprint.sorter()
        return blueprint


def _call_with(
    callback: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any], *told: object
) -> None:
    check_result(callback, callback(*told, *args, **kwargs))
