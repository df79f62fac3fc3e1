"""``otpy tasks``: run the functions of a file that ``@task`` marks, in their order."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import attrs

try:
    import click
except ImportError as error:
    raise ImportError("the command line needs click: pip install 'otpy[cli]'") from error

from otpy import ExitReason, SpecError, StartError
from otpy.reports import ExitKind
from otpy.taskgraph import Outcome, Summary, Task, TaskGraph, marked

LETTERS = {Outcome.PASSED: ".", Outcome.FAILED: "f", Outcome.SKIPPED: "s", Outcome.CANCELLED: "c"}

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

SECRET = ("password", "passwd", "secret", "token", "api_key", "apikey", "credential", "private_key")
"""What a key of the state may contain so that its value is not shown."""

LONGEST = 200
"""No value of the state is shown with more characters."""


@attrs.frozen(kw_only=True)
class Order:
    """What the command line says, checked.

    Attributes:
        file: Where the tasks are.
        only: The name of the one to run; None: all.
        tags: Run those with one of these; empty: all.
        seeds: Results that are there before anything runs.
        arguments: What ``setup_state`` gets.
        state_file: JSON that the state begins with.
    """

    file: Path
    only: str | None
    tags: frozenset[str]
    seeds: Mapping[str, str]
    arguments: Mapping[str, str]
    state_file: Path | None


class Refused(click.ClickException):
    """Bad input: one line, and status 2."""

    exit_code = 2


class OneLine(click.Command):
    """A command whose complaints about the command line are one line, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise Refused(f"{error.format_message()} See --help.") from error


@click.command("tasks", cls=OneLine, context_settings={"ignore_unknown_options": True, "max_content_width": 100})
@click.argument("target", metavar="FILE.py[::NAME]")
@click.argument("settings", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY=VALUE]...")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="How many tasks may run at once.")
@click.option(
    "--tags",
    metavar="A,B",
    default="",
    help="Run only the tasks that have one of these tags, and not what they come after.",
)
@click.option("--skip-deps", is_flag=True, help="Skip the tasks that come after one that did not pass.")
@click.option("--graph", "shows_graph", is_flag=True, help="Show what comes after what, and run nothing.")
@click.option("--progress", is_flag=True, help="Show a progress bar instead of a letter per task.")
@click.option(
    "--state-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSON, an object, that the state begins with.",
)
@click.option("--show-state", is_flag=True, help="Print the state at the end, without secrets.")
@click.option("--log", "logs", is_flag=True, help="Say on stderr when each task begins and ends, and on which thread.")
@click.option("--verbose", is_flag=True, help="Show the traceback of an error of the file or of the command line, too.")
def tasks(target: str, settings: tuple[str, ...], workers: int | None, tags: str, **flags: Any) -> None:
    """Run the functions of FILE.py that @otpy.taskgraph.task marks, each after those that it depends on.

    FILE.py::NAME runs one task alone. --KEY=VALUE goes to the file's setup_state, a function that returns the
    state: setup_state(key, ...) takes each as a keyword, all of them str; setup_state(state) takes the dict that the
    state begins with.
    --result-NAME=VALUE stands for the result of a task that is not run.

    \b
    Prints for each task:  . passed   f failed   s skipped   c cancelled
    Exit status: 0 all passed or skipped, 1 some failed, 2 bad input, 130 interrupted.

    \b
    Example:
      otpy tasks build.py --workers 4 --tags fast,unit --target=release
      otpy tasks build.py::link --result-compile=main.o
    """  # noqa: D301
    with _told_in_one_line(verbose=flags["verbose"]), _no_bytecode():
        order = _order(target, settings, tags, flags["state_file"])
        chosen = choose(load(order.file), order)
        graph = build(chosen, order, workers, skips=flags["skip_deps"])
        if flags["shows_graph"]:
            click.echo(drawing(graph), nl=False)
            return
        summary = _run(graph, progress=flags["progress"], logs=flags["logs"])
    _print_end(graph, summary, shows_state=flags["show_state"])
    sys.exit(INTERRUPTED if summary.cancelled else int(summary.failed > 0))


@contextlib.contextmanager
def _told_in_one_line(*, verbose: bool) -> Iterator[None]:
    try:
        yield
    except (SpecError, StartError) as error:
        if verbose:
            click.echo(_traceback(error), err=True, nl=False)
        raise Refused(str(error)) from error
    except Refused as error:
        if verbose and error.__cause__ is not None:
            click.echo(_traceback(error.__cause__), err=True, nl=False)
        raise


def _traceback(error: BaseException) -> str:
    return ExitReason(ExitKind.CRASHED, error).traceback


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Leave no __pycache__ beside the file, nor beside what it imports."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# What the command line says


def _order(target: str, settings: Iterable[str], tags: str, state_file: Path | None) -> Order:
    name, separator, only = target.partition("::")
    if separator and not only:
        raise Refused(f"{target}: name a task after the ::, or leave it out")
    pairs = dict(_pair(one) for one in settings)
    seeds = {key.removeprefix("result-"): value for key, value in pairs.items() if key.startswith("result-")}
    return Order(
        file=_file(name),
        only=only or None,
        tags=frozenset(one.strip() for one in tags.split(",") if one.strip()),
        seeds=seeds,
        arguments={key.replace("-", "_"): value for key, value in pairs.items() if not key.startswith("result-")},
        state_file=state_file,
    )


def _pair(setting: str) -> tuple[str, str]:
    key, separator, value = setting.partition("=")
    if not key.startswith("--") or len(key) < 3:
        raise Refused(f"unexpected argument {setting!r}: arguments of setup_state are written --KEY=VALUE")
    if not separator:
        raise Refused(f"no such option: {setting}; see --help, and write arguments of setup_state as {setting}=VALUE")
    return key[2:], value


def _file(name: str) -> Path:
    file = Path(name)
    if not file.is_file():
        raise Refused(f"{name}: there is no such file")
    if file.suffix != ".py":
        raise Refused(f"{name}: expected a Python file, FILE.py")
    return file


# The file


def load(file: Path) -> ModuleType:
    """Import *file*; what is beside it can be imported from there.

    Raises:
        Refused: It raised; that is the cause.
    """
    name = f"_otpy_tasks_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Refused(f"{file} cannot be imported: {_said(error)}; --verbose shows where") from error
    return module


def _said(error: BaseException) -> str:
    return _traceback(error).splitlines()[-1]


def choose(module: ModuleType, order: Order) -> tuple[Task, ...]:
    """Return the tasks of *module* that are to be run, with those dependencies only that are among them.

    Raises:
        Refused: There are none, or none of that name; or something depends on what does not exist.
    """
    found = {one.name: one for one in marked(module)}
    if not found:
        raise Refused(f"{order.file}: no task in it; mark functions with @otpy.taskgraph.task()")
    _check_names(order, found)
    chosen = {name: one for name, one in found.items() if _is_wanted(one, order)}
    if not chosen:
        tags = sorted({tag for one in found.values() for tag in one.tags})
        raise Refused(f"--tags: no task has one of {', '.join(sorted(order.tags))}; there are: {', '.join(tags)}")
    return tuple(_without(one, found.keys() - chosen.keys()) for one in chosen.values())


def _check_names(order: Order, found: Mapping[str, Task]) -> None:
    names = ", ".join(found)
    if order.only is not None and order.only not in found:
        raise Refused(f"{order.file}: no task {order.only!r}; there are: {names}")
    for name in order.seeds:
        if name not in found:
            raise Refused(f"--result-{name}: no task {name!r}; there are: {names}")
    for name, one in found.items():
        for before in one.after:
            if before not in found:
                raise Refused(f"{order.file}: task {name!r} comes after {before!r}; there are: {names}")


def _is_wanted(one: Task, order: Order) -> bool:
    if order.only is not None:
        return one.name == order.only
    return one.name not in order.seeds and (not order.tags or not order.tags.isdisjoint(one.tags))


def _without(one: Task, left_out: Iterable[str]) -> Task:
    return attrs.evolve(one, after=tuple(name for name in one.after if name not in left_out))


def build(chosen: Iterable[Task], order: Order, workers: int | None, *, skips: bool) -> TaskGraph:
    """Return the graph, with its state set up. Unknown dependencies and cycles are refused here."""
    module = sys.modules[f"_otpy_tasks_{order.file.stem}"]
    state = _set_up(module, order)
    state["results"] = {**order.seeds}
    graph = TaskGraph(workers=workers, state=state, clear_results=False, on_failure="skip" if skips else "run")
    for one in chosen:
        graph.add_task(one)
    graph.describe()
    return graph


def _set_up(module: ModuleType, order: Order) -> dict[str, Any]:
    state = _read_state(order.state_file)
    setup = getattr(module, "setup_state", None)
    if setup is None:
        if order.arguments:
            _refuse_argument(order, next(iter(order.arguments)), "it has no setup_state that could take it")
        return state
    return _call_setup(setup, state, order)


def _call_setup(setup: Callable[..., Any], state: dict[str, Any], order: Order) -> dict[str, Any]:
    if list(inspect.signature(setup).parameters) == ["state"]:
        state |= order.arguments
        made = _guarded(lambda: setup(state), order)
        made = state if made is None else made  # it has changed that
    else:
        _check_arguments(setup, order)
        made = _guarded(lambda: setup(**order.arguments), order)
    if not isinstance(made, dict):
        raise Refused(f"{order.file}: setup_state returned {type(made).__name__}; expected the state, a dict")
    return {**state, **made}


def _guarded(call: Callable[[], Any], order: Order) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise Refused(f"{order.file}: setup_state failed: {_said(error)}; --verbose shows where") from error


def _check_arguments(setup: Callable[..., Any], order: Order) -> None:
    parameters = inspect.signature(setup).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    known = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for name in order.arguments:
        if not takes_all and name not in known:
            taken = ", ".join(f"--{one.replace('_', '-')}" for one in known) or "none"
            _refuse_argument(order, name, f"setup_state does not take it; it takes: {taken}")
    for one in parameters:
        if one.name in known and one.default is one.empty and one.name not in order.arguments:
            _refuse_argument(order, one.name, "setup_state needs it")


def _refuse_argument(order: Order, name: str, why: str) -> NoReturn:
    raise Refused(f"--{name.replace('_', '-')}=VALUE: {why} ({order.file})")


def _read_state(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        state = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"--state-file {file}: expected JSON: {error}") from error
    if not isinstance(state, dict):
        raise Refused(f"--state-file {file}: expected a JSON object, not {type(state).__name__}")
    return state


# What is printed


def drawing(graph: TaskGraph) -> str:
    """Return the graph as text: level by level, and what each task comes after."""
    shape = graph.describe()
    lines = []
    for number, level in enumerate(shape.levels, 1):
        lines.append(f"level {number}")
        for name in level:
            before = [one for one, then in shape.edges if then == name]
            lines.append(f"  {name} <- {', '.join(before)}" if before else f"  {name}")
    lines.append(f"{len(shape.nodes)} tasks; longest path: {' -> '.join(shape.longest_path)}")
    return "\n".join(lines) + "\n"


def _run(graph: TaskGraph, *, progress: bool, logs: bool) -> Summary:
    if logs:
        graph.on_task_run(lambda name, thread: click.echo(f"begin {name} on {thread}", err=True))
        graph.on_task_done(lambda name, outcome: click.echo(f"{outcome.value} {name}", err=True))
    if progress:
        with _bar(graph):
            return graph.run()
    graph.on_task_done(lambda name, outcome: click.echo(LETTERS[outcome], nl=False))
    summary = graph.run()
    click.echo()
    return summary


def _bar(graph: TaskGraph) -> contextlib.AbstractContextManager[object]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise Refused("--progress needs rich: pip install 'otpy[cli]'") from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False)
    row = bar.add_task("tasks", total=len(graph.tasks))
    graph.on_task_done(lambda name, outcome: bar.update(row, advance=1, refresh=True))
    return bar


def _print_end(graph: TaskGraph, summary: Summary, *, shows_state: bool) -> None:
    for name, failure in summary.failures.items():
        click.echo(f"\n---- {name} {ExitReason(failure.kind, failure.exception)}")
        click.echo(failure.traceback, nl=False)
    if shows_state:
        click.echo("\nstate:")
        for key, value in graph.state.items():
            if not key.startswith("_"):
                click.echo(f"  {key} = {_sanitised(key, value)}")
    click.echo(f"==== {summary.text} ====")


def _sanitised(key: object, value: object) -> str:
    """Return a short text for a value of the state, without what looks like a secret."""
    if any(word in str(key).lower() for word in SECRET):
        return "***"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{one!s}: {_sanitised(one, below)}" for one, below in value.items()) + "}"
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__} without a repr>"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
