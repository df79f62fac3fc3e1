"""``otpy tasks``: find the functions that ``@task`` marks, and run them in order."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import attrs

from otpy import ExitReason, SpecError, StartError
from otpy.cli.run import text
from otpy.cli.target import Problem, load_file, show_traceback, told_in_one_line
from otpy.cli.terminal import say
from otpy.taskgraph import Outcome, Summary, Task, TaskGraph, marked
from otpy.values import Value, value

LETTERS = {Outcome.PASSED: ".", Outcome.FAILED: "f", Outcome.SKIPPED: "s", Outcome.CANCELLED: "c"}

SECRET = re.compile(
    "passw|passphrase|(?:^|_)pass(?:$|_)|pwd|secret|token|auth(?!or)|"
    "api_?key|private_?key|access_?key|credential|cookie"
    "|session|signature|dsn|(?:^|_)(?:salt|pin)$",
    re.IGNORECASE,
)
"""What a key of the state may have in it so that its value is never shown."""

IN_A_URL = re.compile(r"(?<=://)[^/\s'\"]*@")
"""The user and the password that a URL may have."""

LARGEST = 64 * 1024 * 1024
"""How many bytes a state file may have."""

PARTED: tuple[Any, ...] = (dict, list, tuple, set, frozenset)
"""What is shown part by part."""

LONGEST = 200
"""No value of the state is shown with more characters, and no list."""

DEEPEST = 6
"""So many levels of dicts and lists are shown."""


@value(kw_only=True)
class Order(Value):
    """What the command line says, checked.

    Attributes:
        file: Where the tasks are.
        only: The name of the one to run; None: all.
        tags: Run those with one of these; empty: all.
        seeds: Results that are there before anything runs.
        arguments: What ``setup_state`` gets.
        state_file: JSON that the state begins with.
        verbose: Whether tracebacks are shown.
    """

    file: Path
    only: str | None
    tags: frozenset[str]
    seeds: Mapping[str, str]
    arguments: Mapping[str, str]
    state_file: Path | None
    verbose: bool


@contextlib.contextmanager
def refused_in_one_line(*, verbose: bool) -> Iterator[None]:
    """Make a problem of an error in the tasks, or of a lack of threads."""
    try:
        yield
    except (SpecError, StartError) as error:
        show_traceback(error, verbose=verbose)
        raise Problem(str(error)) from error


# What the command line says


def order_of(
    target: str,
    settings: Iterable[str],
    tags: str | None,
    state_file: Path | None,
    *,
    verbose: bool,
) -> Order:
    """Return what the command line says.

    Raises:
        Problem: It says what cannot be.
    """
    name, separator, only = target.partition("::")
    if separator and not only:
        raise Problem(f"{target}: name a task after the ::, or leave it out")
    pairs = dict(_pair(one) for one in settings)
    seeds = {
        key.removeprefix("result-"): value
        for key, value in pairs.items()
        if key.startswith("result-")
    }
    return Order(
        file=_file(name),
        only=only or None,
        tags=_tags(tags, only),
        seeds=seeds,
        arguments={
            key.replace("-", "_"): value
            for key, value in pairs.items()
            if not key.startswith("result-")
        },
        state_file=state_file,
        verbose=verbose,
    )


def _pair(setting: str) -> tuple[str, str]:
    key, separator, value = setting.partition("=")
    if not key.startswith("--") or len(key) < 3:
        raise Problem(
            f"unexpected argument {setting!r}: arguments of setup_state are written --KEY=VALUE"
        )
    if not separator:
        raise Problem(
            f"no such option: {setting}; see --help, "
            f"and write arguments of setup_state as {setting}=VALUE"
        )
    return key[2:], value


def _tags(tags: str | None, only: str) -> frozenset[str]:
    if tags is None:
        return frozenset()
    if only:
        raise Problem(f"--tags {tags}: ::{only} has chosen already what to run")
    names = frozenset(one.strip() for one in tags.split(","))
    if "" in names:
        raise Problem(f"--tags {tags!r}: expected names with commas between them")
    return names


def _file(name: str) -> Path:
    file = Path(name)
    if not os.path.isfile(file):  # noqa: PTH113  # the other one raises if the name is too long
        raise Problem(f"{name}: there is no such file")
    if file.suffix != ".py":
        raise Problem(f"{name}: expected a Python file, FILE.py")
    return file


# The file


def load(order: Order) -> ModuleType:
    """Import the file; nothing is written to disk, no bytecode either.

    Raises:
        Problem: It raised; that is the cause.
    """
    with told_in_one_line(str(order.file), verbose=order.verbose):
        return load_file(str(order.file))


def choose(module: ModuleType, order: Order) -> tuple[Task, ...]:
    """Return the tasks of *module* to be run, with their dependencies among them.

    Raises:
        Problem: There are none, or none of that name; or something depends on what does
            not exist.
    """
    found = _found(module, order)
    _check_names(order, found)
    chosen = {name: one for name, one in found.items() if _is_wanted(one, order)}
    if not chosen and not order.tags:
        raise Problem(f"{order.file}: there is a result for each task, and nothing to be run")
    if not chosen:
        tags = sorted({tag for one in found.values() for tag in one.tags})
        raise Problem(
            f"--tags: no task has one of {', '.join(sorted(order.tags))}; "
            f"there are: {', '.join(tags)}"
        )
    return tuple(_within(one, chosen) for one in chosen.values())


def _found(module: ModuleType, order: Order) -> dict[str, Task]:
    found: dict[str, Task] = {}
    for one in marked(module):
        if found.setdefault(one.name, one) is not one:
            raise Problem(f"{order.file}: two tasks are called {one.name!r}")
    if not found:
        raise Problem(f"{order.file}: no task in it; mark functions with @otpy.taskgraph.task()")
    return found


def _check_names(order: Order, found: Mapping[str, Task]) -> None:
    names = ", ".join(found)
    if order.only is not None and order.only not in found:
        raise Problem(f"{order.file}: no task {order.only!r}; there are: {names}")
    if order.only in order.seeds:
        raise Problem(
            f"--result-{order.only}: {order.only!r} is the task to run; give the results of others"
        )
    for name in order.seeds:
        if name not in found:
            raise Problem(f"--result-{name}: no task {name!r}; there are: {names}")
    for name, one in found.items():
        for before in one.after:
            if before not in found:
                raise Problem(
                    f"{order.file}: task {name!r} comes after {before!r}; there are: {names}"
                )


def _is_wanted(one: Task, order: Order) -> bool:
    if order.only is not None:
        return one.name == order.only
    return one.name not in order.seeds and (not order.tags or not order.tags.isdisjoint(one.tags))


def _within(one: Task, chosen: Container[str]) -> Task:
    return attrs.evolve(one, after=tuple(name for name in one.after if name in chosen))


def build(module: ModuleType, order: Order, workers: int | None, *, skips: bool) -> TaskGraph:
    """Return the graph with its state; refuse unknown dependencies and cycles."""
    chosen = choose(module, order)
    state = _set_up(module, order)
    state["results"] = {**_results_in(state, order), **order.seeds}
    graph = TaskGraph(
        workers=workers, state=state, clear_results=False, on_failure="skip" if skips else "run"
    )
    for one in chosen:
        graph.add_task(one)
    graph.describe()
    return graph


def _results_in(state: dict[str, Any], order: Order) -> dict[Any, Any]:
    """Return the results of the state file and ``setup_state``; a run replaces its own."""
    results = state.get("results", {})
    if not isinstance(results, dict):
        where = f"{order.file}: state['results']"
        raise Problem(
            f"{where} is {type(results).__name__}; "
            "expected a dict, from names of tasks to their results"
        )
    return results


def _set_up(module: ModuleType, order: Order) -> dict[str, Any]:
    state = _read_state(order.state_file)
    setup = getattr(module, "setup_state", None)
    if setup is None:
        if order.arguments:
            _refuse_argument(
                order, next(iter(order.arguments)), "it has no setup_state that could take it"
            )
        return state
    return _call_setup(setup, state, order)


def _call_setup(setup: Callable[..., Any], state: dict[str, Any], order: Order) -> dict[str, Any]:
    if not callable(setup) or inspect.iscoroutinefunction(setup):
        raise Problem(
            f"{order.file}: setup_state: expected a plain function, which returns the state"
        )
    with told_in_one_line(f"{order.file}: setup_state failed", verbose=order.verbose):
        call = _bind(setup, state, order)
        made = call()
    made = call.args[0] if made is None and call.args else made  # it has changed that
    if not isinstance(made, dict):
        raise Problem(
            f"{order.file}: setup_state returned {type(made).__name__}; expected the state, a dict"
        )
    return {**state, **made}


def _bind(setup: Callable[..., Any], state: dict[str, Any], order: Order) -> functools.partial[Any]:
    if list(inspect.signature(setup).parameters) == ["state"]:
        return functools.partial(setup, {**state, **order.arguments})
    _check_arguments(setup, order)
    return functools.partial(setup, **order.arguments)


def _check_arguments(setup: Callable[..., Any], order: Order) -> None:
    parameters = inspect.signature(setup).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    known = [
        one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    for name in order.arguments:
        if not takes_all and name not in known:
            taken = ", ".join(f"--{one.replace('_', '-')}" for one in known) or "none"
            _refuse_argument(order, name, f"setup_state does not take it; it takes: {taken}")
    for one in parameters:
        if one.name in known and one.default is one.empty and one.name not in order.arguments:
            _refuse_argument(order, one.name, "setup_state needs it")


def _refuse_argument(order: Order, name: str, why: str) -> NoReturn:
    raise Problem(f"--{name.replace('_', '-')}=VALUE: {why} ({order.file})")


def _read_state(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        state = json.loads(content.decode("utf-8")) if len(content) <= LARGEST else None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise Problem(f"--state-file {file}: expected JSON: {error}") from error
    if len(content) > LARGEST:
        raise Problem(f"--state-file {file}: it has more than {LARGEST} bytes")
    if not isinstance(state, dict):
        raise Problem(f"--state-file {file}: expected a JSON object, not {type(state).__name__}")
    return state


# What is printed


def drawing(graph: TaskGraph) -> str:
    """Return the graph as text: level by level, and what each task comes after."""
    shape, lines = graph.describe(), []
    before = {one.name: tuple(dict.fromkeys(one.after)) for one in graph.tasks}
    for number, level in enumerate(shape.levels, 1):
        lines.append(f"level {number}")
        lines += [
            f"  {name} <- {', '.join(before[name])}" if before[name] else f"  {name}"
            for name in level
        ]
    lines.append(f"{len(shape.nodes)} tasks; longest path: {' -> '.join(shape.longest_path)}")
    return "\n".join(lines) + "\n"


def run(graph: TaskGraph, *, progress: bool, logs: bool) -> Summary:
    """Run it, and print how it goes."""
    if logs:
        graph.on_task_run(lambda name, thread: _say(f"begin {name} on {thread}", err=True))
        graph.on_task_done(lambda name, outcome: _say(f"{outcome.value} {name}", err=True))
    if progress:
        with _bar(graph):
            return graph.run()
    graph.on_task_done(lambda name, outcome: _say(LETTERS[outcome], nl=False))
    summary = graph.run()
    say()
    return summary


def _say(words: str, **options: Any) -> None:
    """Print *words*. If stdout is closed, the command reports that once, at its end."""
    with contextlib.suppress(OSError):
        say(words, **options)


def _bar(graph: TaskGraph) -> contextlib.AbstractContextManager[object]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False)
    row = bar.add_task("tasks", total=len(graph.tasks))
    graph.on_task_done(lambda name, outcome: bar.update(row, advance=1, refresh=True))
    return bar


def print_end(graph: TaskGraph, summary: Summary, *, shows_state: bool, shows_values: bool) -> None:
    """Print what has failed, the state, if that is asked for, and the summary."""
    for name, failure in summary.failures.items():
        say(f"\n---- {name} {ExitReason(failure.kind, failure.exception)}")
        say(failure.traceback, nl=False)
    if shows_state or shows_values:
        say("\nstate:")
        for key, value in [
            *graph.state.items()
        ]:  # a task that could not be stopped may still change it
            if not _key(key).startswith("_"):
                say(
                    f"  {_key(key)} = {_sanitised(key, value)}"
                    if shows_values
                    else f"  {_key(key)}: {_type_of(value)}"
                )
    say(f"==== {summary.text} ====")


def _type_of(value: object) -> str:
    """Return the type of a value of the state, and its size; never its content."""
    is_sized = type(value) in (dict, list, tuple, set, frozenset, str, bytes)
    size = f", {len(value)}" if is_sized else ""  # type: ignore[arg-type]
    return f"{type(value).__name__}{size}"


def _sanitised(key: object, value: object, around: tuple[int, ...] = ()) -> str:
    """Return a text for a value of the state, without secrets; *around* holds the value.

    Of dicts and lists no code of a derived class is run, and a copy is shown: they may
    still be changed.
    """
    if SECRET.search(str.__str__(key) if isinstance(key, str) else text(key)):
        return "***"
    kind = next((kind for kind in PARTED if issubclass(type(value), kind)), None)
    if kind is None:
        return _cut(IN_A_URL.sub("***@", text(value)))
    if id(value) in around or len(around) == DEEPEST:
        return "…"
    around = (*around, id(value))
    if hasattr(kind, "items"):
        items = [*kind.items(value)]
        shown = (f"{_key(one)}: {_sanitised(one, below, around)}" for one, below in items)
        return f"{{{', '.join(shown)}}}"
    return f"[{_cut(', '.join(_sanitised('', one, around) for one in [*kind.__iter__(value)]))}]"


def _key(key: object) -> str:
    return str.__str__(key) if isinstance(key, str) else _cut(text(key))


def _cut(words: str) -> str:
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}…"
