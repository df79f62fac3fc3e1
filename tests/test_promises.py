"""What the documents promise and no other test holds: one section for each page.

A promise with a subject of its own is tested beside that subject. Here is what belongs to
a page as a whole: its tables of defaults, signatures and attributes, the numbers in its
sentences, and the output that it shows.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import random
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import structlog
from click.testing import CliRunner

import otpy
from otpy import coroutine, lint, process, registry, reports, supervisor, taskgraph, thread
from otpy.children.callable.child import CalleeOptions, describe
from otpy.children.program import child as program
from otpy.children.program.options import ProgramOptions
from otpy.cli.group import otpy as command
from otpy.core import lives
from otpy.core.restarts import ACCEPTABLE, VERDICTS, Delays, Fate, Final, Verdict, Window
from otpy.core.strategy import restart_group
from otpy.reports import Cause, ExitKind, ExitReason
from otpy.runtime import log, threads
from otpy.runtime import stopping as ending
from otpy.runtime.options import Options
from otpy.runtime.running import Launch
from otpy.specs import ChildSpec, Common, Restart, Strategy
from tests import callees, pages, test_layers
from tests.helpers import ManualClock, wait_until
from tests.pages import read as page

ROOT = Path(__file__).parent.parent


def section(text: str, heading: str) -> str:
    """Return what stands below the line that begins with *heading*, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    (match,) = re.finditer(rf"^{re.escape(heading)}.*$", text, re.MULTILINE)
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{level}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str, first: str) -> list[list[str]]:
    """Return the rows of all tables in *text* whose first column is called *first*: their cells."""
    found, is_inside = [], False
    for line in text.splitlines():
        if line.startswith(f"| {first} |"):
            is_inside = True
        elif not line.startswith("|"):
            is_inside = False
        elif is_inside and not line.startswith("|-"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found.append([cell.strip().replace(r"\|", "|") for cell in cells])
    assert found, first
    return found


def code(cell: str) -> list[str]:
    """Return what is in backticks."""
    return re.findall(r"`([^`]*)`", cell)


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory to be in; what a command does to this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    before = set(sys.modules)
    yield tmp_path
    structlog.reset_defaults()
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


# README.md


async def rest(ctx):
    await ctx.wait_stop()


def flap(ctx):
    if ctx.incarnation == 1:
        raise OSError("once")
    ctx.wait_stop()


def limits_of(ident):
    """Return the time limits with which the thread waits just now."""
    frame, limits = sys._current_frames().get(ident), []
    while frame is not None and (
        frame.f_code.co_name != "run" or "runtime.threads.py" not in frame.f_code.co_filename
    ):
        values = (frame.f_locals.get(name) for name in ("timeout", "seconds", "left"))
        limits += [value for value in values if isinstance(value, int | float) and value >= 0]
        frame = frame.f_back
    return limits


def test_no_thread_of_an_idle_tree_waits_with_a_time_limit(launch, recorder):
    """No polling: what has no limit is woken by news only. All kinds of children, and what serves them."""
    clock = ManualClock()
    children = [
        thread(work),
        thread(flap),  # so there is a spare thread, too
        supervisor("nested", children=[thread(work, heartbeat=None)]),
        coroutine(rest),
        process(callees.obedient),
        *([process("sleep", "1000")] if sys.platform == "linux" else []),
    ]
    app = launch(supervisor("app", children=children), clock=clock, on_escalation=print)
    recorder.wait_for(reports.Progress, "app/flap", 2)

    def limits():
        clock.advance(10.0)  # a loop that has worked is looked at once more, five seconds later
        app.count_children()
        return {one.name: limits_of(one.thread.ident) for one in threads.entries(app._tree)}

    wait_until(lambda: not any(limits().values()), "all wait without a limit")
    assert {
        "app",
        "app/nested",
        "app (spare)",
        "app (loop)",
        "app (programs)",
        "app/obedient",
    } <= limits().keys()


# docs/how-to/health.md

ORDINALS = {"fourth": 4, "eleventh": 11}
SECONDS = {"s": 1, "minutes": 60}


def gives_up(backoff, intensity, period):
    """Return which restart of a child that fails at once is refused, and when; None: it is tried for ever."""
    delays, window, now = Delays(backoff, random.Random(0)), Window(intensity, period), 0.0
    for number in range(1, 1000):
        now += delays.next_wait()
        if not window.spend(now):
            return number, now
    return None


@pytest.mark.parametrize("row", rows(page("health.md"), "Backoff"), ids=str)
def test_the_table_of_waits_and_limits_is_right(row):
    """What becomes of a child that fails at once each time, by the rule of the page and by the code."""
    (initial, maximum) = map(float, re.findall(r"Backoff\(([\d.]+), maximum=([\d.]+)\)", row[0])[0])
    intensity, period = map(int, re.findall(r"\d+", row[1]))
    end = gives_up(otpy.Backoff(initial, maximum, jitter=0), intensity, period)
    waits = [
        min(maximum, initial * 2**number) for number in range(1, intensity + 1)
    ]  # from the second one on

    assert (
        (end is not None)
        == (sum(waits) <= period)
        == ("gives up" in row[2])
        != ("tried for ever" in row[2])
    )
    if end is not None:
        (ordinal, count, unit) = re.findall(
            r"at the (\w+) restart, after ([\d.]+) (s|minutes)\.", row[2]
        )[0]
        assert end == (ORDINALS[ordinal], pytest.approx(float(count) * SECONDS[unit], rel=0.01))
    if row[1].endswith("(the defaults)"):
        assert (intensity, period) == (supervisor("app").intensity, supervisor("app").period)


# docs/reference/reference.md

REFERENCE = page("reference.md")


def work(ctx: otpy.Context) -> None:
    ctx.wait_stop()


def of_parameters(what: Callable[..., object]) -> dict[str, Any]:
    return {one.name: one.default for one in inspect.signature(what).parameters.values()}


def of_fields(what: type[Any]) -> dict[str, Any]:
    return {field.name: field.default for field in attrs.fields(what)}


def of_children() -> dict[str, Any]:
    return of_fields(ChildSpec) | {"shutdown": otpy.thread(work).shutdown}


def of_processes() -> dict[str, Any]:
    return (
        of_children()
        | of_parameters(program.describe)
        | of_parameters(describe)
        | {"shutdown": otpy.process("x").shutdown}
    )


def of_starts() -> dict[str, Any]:
    """Return what a tree takes where nothing is said."""
    launch = Launch(otpy.supervisor("app"), {})
    tree = launch._tree
    taken = {
        "max_unstopped": tree.max_unstopped,
        "flush": tree.flush,
        "heartbeats": tree.heartbeats,
    }
    return (
        dict.fromkeys(Options.__annotations__)
        | taken
        | {"log": launch._logs, "timeout": launch._timeout}
    )


def as_value(default: Any) -> Any:
    """Return *default* as a reader of the page would write it: a choice is its spelling, a function its name."""
    if callable(default):
        return f"{default.__module__}.{default.__qualname__}"
    return getattr(default, "value", default)


def read(cell: str) -> Any:
    """Return the value that a cell of the column "Default" has first."""
    if size := re.fullmatch(r"(\d+) MiB", cell):
        return int(size[1]) << 20
    text = code(cell)[0]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


@pytest.mark.parametrize(
    ("what", "heading"),
    [
        (what, f"### `{what.__name__}(")
        for what in (
            otpy.adopt,
            otpy.periodic,
            otpy.coroutine,
            otpy.process,
            otpy.programs,
            otpy.thread,
            otpy.Backoff,
            taskgraph.TaskGraph,
        )
    ],
)
def test_the_signatures_in_the_reference_are_those_of_the_code(what, heading):
    """Names, order and defaults of all parameters."""
    (line,) = [line for line in REFERENCE.splitlines() if line.startswith(heading)]
    text = line.removeprefix(heading)[: line.removeprefix(heading).rindex(")")]
    parameters = {
        one.name.replace("common", "options"): one
        for one in inspect.signature(what).parameters.values()
    }
    written = dict(
        part.partition("=")[::2] for part in text.replace("*, ", "").replace("*", "").split(", ")
    )

    assert list(written) == list(parameters)
    assert {name: ast.literal_eval(default) for name, default in written.items() if default} == {
        name: as_value(one.default)
        for name, one in parameters.items()
        if one.default is not one.empty
    }


@pytest.mark.parametrize(
    ("heading", "known", "names"),
    [
        ("### `periodic(", of_parameters(otpy.periodic), {"interval", "retry_interval", "retries"}),
        ("### `coroutine(", of_parameters(otpy.coroutine), {"loop", "uvloop"}),
        (
            "### `process(",
            of_processes(),
            {
                *ProgramOptions.__annotations__.keys() - Common.__annotations__.keys() | {"ready"},
                *CalleeOptions.__annotations__.keys() - Common.__annotations__.keys(),
                "shutdown",
                "heartbeat",
            },
        ),
        (
            "### `supervisor(",
            of_parameters(otpy.supervisor),
            of_parameters(otpy.supervisor).keys() - {"id", "common"},
        ),
        ("### Options of all children", of_children(), Common.__annotations__.keys()),
        ("### Options of `start` and `run`", of_starts(), Options.__annotations__.keys()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_defaults_in_the_reference_are_those_of_the_code(heading, known, names):
    """Each option is in its table, with the default that it has."""
    table = rows(section(REFERENCE, heading), "Option")
    written = {name: read(default) for option, default, _ in table for name in code(option)}

    assert written == {name: as_value(known[name]) for name in names}


def test_the_defaults_of_graphs_and_of_supervisors_are_those_of_the_code():
    """Those whose tables have other columns, or share a row."""
    graph = section(REFERENCE, "### `TaskGraph(")
    dynamic = rows(section(REFERENCE, "### `dynamic_supervisor("), "Option")
    task = of_fields(taskgraph.Task)
    same = "intensity", "period", "on_escalation"

    assert {
        code(name)[0]: read(default) for name, default, _ in rows(graph, "Argument")
    } == of_parameters(taskgraph.TaskGraph)
    assert {
        code(name)[0]: read(default) for name, default, _ in rows(graph, "Option of a task")
    } == {name: task[name] for name in ("with_state", "retries", "backoff", "timeout", "tags")}
    assert [code(option) for option, _, _ in dynamic] == [["max_children"], [*same]]
    assert of_parameters(otpy.dynamic_supervisor) == of_parameters(otpy.dynamic_supervisor) | {
        "max_children": read(dynamic[0][1]),
        **{name: of_parameters(otpy.supervisor)[name] for name in same},
    }
    assert '`5.0` s; supervisors `"infinity"`' in section(REFERENCE, "### Options of all children")
    assert (
        otpy.supervisor("app").shutdown
        is otpy.dynamic_supervisor("app").shutdown
        is otpy.Budget.INFINITY
    )
    child = taskgraph.TaskGraph().as_child("graph")
    assert 'by default `restart="transient"`, `shutdown="infinity"`' in graph
    assert (child.restart.value, child.shutdown.value) == ("transient", "infinity")


def test_the_probes_have_the_parameters_that_the_reference_names():
    """And their defaults."""
    names = ["Line", "Port", "Http", "Notify", "Health"]

    assert written_calls(row[0] for row in rows(section(REFERENCE, "### Probes"), "Value")) == {
        name: called(getattr(otpy, name)) for name in names
    }


def called(what: Callable[..., object]) -> list[str]:
    """Return the parameters of a method as the tables write them."""
    parameters = [one for one in inspect.signature(what).parameters.values() if one.name != "self"]
    return [
        str(one.replace(annotation=one.empty)).replace("'", '"').replace("**common", "**options")
        for one in parameters
    ]


def written_calls(cells: Iterable[str]) -> dict[str, list[str]]:
    """Return the calls in backticks, such as ``find(path) -> Supervisor``: name and parameters."""
    calls = (
        re.match(r"(?:await )?(\w+)\((.*?)\)(?: -> .*)?$", text)
        for cell in cells
        for text in code(cell)
    )
    return {
        call[1]: [part for part in call[2].split(", ") if part not in ("", "*")]
        for call in calls
        if call is not None
    }


def test_the_calls_of_a_supervisor_have_the_parameters_that_the_reference_names():
    """All calls, with their defaults; and what they return."""
    table = rows(section(REFERENCE, "### `Supervisor`"), "Member")
    calls = {
        name: value
        for name, value in vars(otpy.Supervisor).items()
        if name[0] != "_" and callable(value)
    }
    returns = {name: str(value.__annotations__["return"]) for name, value in calls.items()}

    assert written_calls(row[0] for row in table) == {
        name: called(value) for name, value in calls.items()
    }
    assert {
        match[1]: match[2] or "None"
        for row in table
        for match in re.finditer(r"`(\w+)\([^`]*?\)(?: -> ([^`]*))?`", row[0])
    } == returns


def test_the_calls_of_a_graph_have_the_parameters_that_the_reference_names():
    """But for those of callbacks, which are described once, and the options, which have a table."""
    written = written_calls(row[0] for row in rows(section(REFERENCE, "### `TaskGraph("), "Member"))
    callbacks = {name: parameters for name, parameters in written.items() if name.startswith("on_")}
    others = written.keys() - callbacks.keys() - {"task"}

    assert written["task"] == ["name=None", "after=()", *called(taskgraph.TaskGraph.task)]
    assert "`task(*, " in REFERENCE
    assert called(taskgraph.TaskGraph.add)[1:] == written["task"]
    assert callbacks["on_start"] == called(taskgraph.TaskGraph.on_start)
    assert all(
        called(getattr(taskgraph.TaskGraph, name)) == callbacks["on_start"] for name in callbacks
    )
    assert {name: written[name] for name in others} == {
        name: called(getattr(taskgraph.TaskGraph, name)) for name in others
    }


def test_the_members_of_a_context_have_the_parameters_that_the_reference_names():
    """With their defaults; that of a state is what cannot be given."""
    written = written_calls(row[0] for row in rows(section(REFERENCE, "### `Context`"), "Member"))
    calls = {name: called(getattr(otpy.Context, name)) for name in written}

    assert written == calls | {"check_in": ["state=…", "allow=None"]}
    assert [name.partition("=")[0] for name in calls["check_in"]] == ["state", "allow"]


VALUES = [
    otpy.ChildInfo,
    otpy.Counts,
    otpy.Snapshot,
    otpy.StopReport,
    otpy.Escalation,
    taskgraph.Summary,
    taskgraph.TaskFailure,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_the_reference_has_the_attributes_of_values(value):
    """All that there are, and no others."""
    (cell,) = [
        row[1]
        for row in rows(REFERENCE, "Value")
        if code(row[0]) == [value.__name__] and len(row) == 2
    ]
    names = code(re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", cell))
    properties = {
        name for name, one in vars(value).items() if isinstance(one, property) and name[0] != "_"
    }

    assert (
        set(names)
        == {field.name for field in attrs.fields(value) if field.name[0] != "_"} | properties
    )


def test_the_reference_has_the_levels_of_reports():
    """And all reports are in the table."""
    written = {
        code(name)[0]: level for name, _, level in rows(section(REFERENCE, "## Reports"), "Report")
    }

    assert written.pop("Progress") == f"info; `{Cause.CALL.name}`: debug"
    assert written == {
        one.__name__: level for one, (level, _) in log.EVENTS.items() if one is not reports.Progress
    }


def test_the_reference_has_the_bases_of_exceptions():
    """So what catches a base catches them."""
    for names, bases, _ in rows(section(REFERENCE, "## Exceptions"), "Exception"):
        (name,) = code(names)
        assert [base.__name__ for base in getattr(otpy, name).__bases__] == code(bases), name


def test_the_reference_has_the_class_of_each_kind_of_exit():
    """The column "Normal class" is ``is_normal``, and all kinds are there."""
    table = rows(section(REFERENCE, "## Exit reasons"), "`ExitKind`")

    assert {code(row[0])[0]: row[-1] == "yes" for row in table} == {
        kind.name: ExitReason(kind).is_normal for kind in ExitKind
    }


def test_the_reference_has_all_choices():
    """Each enum with all its values; the spelling of a value is its name in lower case."""
    table = {
        code(row[0])[0]: code(row[1]) for row in rows(section(REFERENCE, "### Choices"), "Enum")
    }

    for name, values in table.items():
        assert values == [value.name for value in getattr(otpy, name)], name
        assert [value.value for value in getattr(otpy, name)] == [value.lower() for value in values]
    assert len(table) == 6


# The numbers in the sentences of the pages

NUMBERS = [
    # page, the sentence as it stands there, what the code uses, what the sentence says
    (
        "tasks.md",
        "after 0.1 s interrupted, and after another 0.5 s given up",
        "taskgraph.run.FAREWELL",
        0.1,
    ),
    (
        "tasks.md",
        "after 0.1 s interrupted, and after another 0.5 s given up",
        "core.lives.INTERRUPT_GRACE",
        0.5,
    ),
    (
        "tasks.md",
        "a JSON object that the state begins with, of at most 64 MiB",
        "cli.taskfile.LARGEST",
        64 << 20,
    ),
    (
        "recipes.md",
        "After another half second it gives the thread up",
        "core.lives.INTERRUPT_GRACE",
        0.5,
    ),
    ("recipes.md", "Signals within one second are one request", "runtime.running.SAME", 1.0),
    (
        "recipes.md",
        "`flush` seconds for all handlers together, 10 by default",
        "runtime.tree.FLUSH",
        10.0,
    ),
    (
        "health.md",
        "in vain, and half a second later it is given up",
        "core.lives.INTERRUPT_GRACE",
        0.5,
    ),
    (
        "health.md",
        "by a second, or by a quarter of the heartbeat, if that is less",
        "core.pauses.PAUSE",
        1.0,
    ),
    (
        "health.md",
        "have a twentieth of a second to check in before it counts",
        "runtime.agenda.BREATH",
        1 / 20,
    ),
    (
        "async.md",
        "They have half a second. A task that still runs then is logged as `tasks_left`",
        "children.coroutine.cancelling.CLEAN_UP",
        0.5,
    ),
    (
        "async.md",
        "does not come back to its selector for five seconds is blocked",
        "children.coroutine.blockage.BLOCKED_AFTER",
        5.0,
    ),
    (
        "programs.md",
        "`stderr`, the last 64 KiB that this run has written",
        "children.program.output.TAIL",
        64 << 10,
    ),
    (
        "programs.md",
        "Lines of more than 64 Ki characters are cut",
        "children.program.output.LONG",
        64 << 10,
    ),
    ("programs.md", "(mode 0600)", "children.program.logfiles.OURS", 0o600),
    (
        "programs.md",
        "before it writes, at most once a second",
        "children.program.logfiles.LOOK_AGAIN",
        1.0,
    ),
    (
        "programs.md",
        "otpy waits up to half a second until the last of its output is in the file",
        "children.program.attendance.LINGER",
        0.5,
    ),
    (
        "programs.md",
        "So is one of more than 1,000 steps",
        "children.program.patterns.LONGEST",
        1000,
    ),
    (
        "programs.md",
        "When `shutdown` seconds are over (10 by default)",
        "children.program.options.SHUTDOWN",
        10.0,
    ),
    (
        "programs.md",
        "with 128 plus its number as its exit code, is judged 0.2 s later",
        "children.program.attendance.HOLD",
        0.2,
    ),
    (
        "programs.md",
        "cost one while they are written, and a second longer",
        "children.program.lanes.IDLE",
        1.0,
    ),
    (
        "processes.md",
        "A state may have 64 MiB, pickled",
        "children.callable.child.MAX_MESSAGE_SIZE",
        64 << 20,
    ),
    ("processes.md", "only eight per heartbeat are sent", "children.callable.protocol.BEATS", 8),
    (
        "processes.md",
        "together at most 10,000, and 256 KiB as JSON",
        "children.callable.protocol.MOST",
        10_000,
    ),
    (
        "processes.md",
        "together at most 10,000, and 256 KiB as JSON",
        "children.callable.protocol.LARGEST",
        256 << 10,
    ),
    (
        "processes.md",
        "What is still there half a second after SIGKILL",
        "children.callable.process.LINGER",
        0.5,
    ),
    ("platforms.md", "ends are noticed within 0.05 s", "runtime.posix.TURN", 0.05),
    ("cli.md", "the whole stop takes at most 25 seconds", "cli.run.BEFORE_THE_KILL", 25.0),
    ("cli.md", "Signals within one second are one request", "runtime.running.SAME", 1.0),
    ("lint.md", "it must be a regular one of at most 10 MB", "lint.LARGEST", 10_000_000),
    ("registry.md", "Trees get nine tenths of the budget", "registry.shutdown.TREES_SHARE", 0.9),
    ("reference.md", "At most 100 supervisors may be nested", "specs.MAX_DEPTH", 100),
    (
        "reference.md",
        "does not come back to its selector within 5 s is blocked",
        "children.coroutine.blockage.BLOCKED_AFTER",
        5.0,
    ),
    (
        "reference.md",
        "Any of them within one second of the last one that counted",
        "runtime.running.SAME",
        1.0,
    ),
    ("design.md", "The thread has half a second", "core.lives.INTERRUPT_GRACE", 0.5),
    ("design.md", "and get three seconds more", "runtime.stopping.BUSY", 3.0),
    (
        "design.md",
        "otpy keeps 256 kB of address space in reserve",
        "runtime.spares.Reserve.SIZE",
        256 << 10,
    ),
    ("design.md", "in the first calm millisecond after that", "runtime.supervisor.CALM", 0.001),
    (
        "design.md",
        "in a calm moment, at most a tenth of a second later",
        "runtime.remains.RELEASE_AFTER",
        0.1,
    ),
    ("design.md", "a fork waits, for a second at most", "runtime.log.FORK", 1.0),
    ("design.md", "The same complaint is told once in a minute", "runtime.log.QUIET", 60.0),
    (
        "design.md",
        "to look at it five seconds later",
        "children.coroutine.blockage.BLOCKED_AFTER",
        5.0,
    ),
    (
        "otp.md",
        "later than it was set for, by a second, or for a heartbeat by a quarter",
        "core.pauses.PAUSE",
        1.0,
    ),
]


def says(name, sentence):
    """Whether the page has the sentence, wherever its lines break."""
    return sentence in " ".join(page(name).split())


@pytest.mark.parametrize(("name", "sentence", "constant", "said"), NUMBERS)
def test_the_numbers_in_the_pages_are_those_of_the_code(name, sentence, constant, said):
    """A number that changes, changes in its sentence as well."""
    assert says(name, sentence)
    assert pkgutil.resolve_name(f"otpy.{constant}") == said


def test_the_numbers_about_supervisors_that_do_not_answer_are_those_of_the_code():
    """They are sums: what is interrupted at the deadline has its grace, then all are asked."""
    assert says("reference.md", "A supervisor that does not answer costs up to one second more")
    assert says("reference.md", "thousands of children that cannot be stopped up to four")
    assert says("design.md", "Within a second `stop` returns")
    assert says("design.md", "and get three seconds more")
    assert says(
        "design.md", "A supervisor that does not answer for 10 to 15 seconds is named and left"
    )
    assert 0.9 < ending.OVERDUE + ending.PROMPT <= 1.0
    assert ending.OVERDUE > lives.INTERRUPT_GRACE
    assert ending.BUSY == 3.0
    assert (
        ending.TO_ANSWER == 5.0
    )  # it is asked twice, and the first question comes within so many seconds


# The output that the pages show


def shown(name, beginning):
    """Return the block of text in the page that begins so."""
    (block,) = [
        text
        for text in re.findall(r"```text\n(.*?)```", page(name), re.DOTALL)
        if text.startswith(beginning)
    ]
    return block


def matches(block, text):
    """Whether *text* is what is shown; "…" stands for the rest of a line."""
    return re.fullmatch(re.escape(block).replace("…", ".*"), text) is not None


def fail(ctx):
    raise OSError("the disk is gone")


def test_the_tutorial_shows_the_failure_of_a_tree():
    """As its last example prints it."""
    storage = supervisor("storage", intensity=2, children=[thread(fail, id="database")])
    with pytest.raises(otpy.TreeFailed) as caught:
        otpy.run(supervisor("station", intensity=1, children=[storage]), log=False)

    assert shown("tutorial.md", "station gave up") == f"{caught.value}\n"


def test_the_page_of_the_registry_shows_its_table(launch):
    """But for the ages."""
    launch(
        supervisor("app", children=[thread(work, id="poll", purpose="asks the sensors")]),
        reports=None,
    )
    table = registry.dump_status()

    assert shown("registry.md", "3 threads") == re.sub(r"\d\.\d s", "0.0 s", table) + "\n"


def test_the_page_of_the_guard_shows_its_findings(here, capsys):
    """Place, code and words of each."""
    (here / "src").mkdir()
    thread_is_made = "    worker = threading.Thread(target=run, daemon=True)\n"
    (here / "src" / "feed.py").write_text(
        "import threading\n\n\ndef feed(run):\n" + 7 * "    #\n" + thread_is_made
    )

    assert lint.main(["src"]) == 1
    assert shown("lint.md", "src/feed.py") == capsys.readouterr().out


def test_the_page_of_checks_shows_its_findings(here):
    """And what the command says at the end."""
    (here / "app.py").write_text(
        "from otpy import Backoff, supervisor, thread\n\n\n"
        "def flush(ctx):\n    ctx.wait_stop()\n\n\n"
        'slow = thread(flush, backoff=Backoff(1, 30), shutdown="infinity")\n'
        'tree = supervisor("app", intensity=0, children=[supervisor("storage", children=[slow])])\n'
    )
    done = CliRunner().invoke(command, ["check", "app.py"])

    assert done.exit_code == 1
    assert matches(shown("check.md", "app/storage: error"), done.output)


def test_the_page_of_the_command_line_shows_an_error(here):
    """One line on stderr."""
    (here / "app.py").write_text('from otpy import supervisor\n\nshop = supervisor("shop")\n')
    done = CliRunner().invoke(command, ["run", "app.py"], prog_name="otpy")

    assert (done.exit_code, done.stderr) == (2, shown("cli.md", "otpy run:"))


# docs/explanation/otp.md

OTP = page("otp.md")

FATES = {
    # verdict: what the page says of it
    Verdict(Fate.RESTART, report=True): "`ChildTerminated`, restart",
    Verdict(Fate.KEEP, report=False): "the spec stays, nothing runs",
    Verdict(Fate.FORGET, report=False): "the spec is removed",
    Verdict(Fate.FORGET, report=True): "`ChildTerminated`, the spec is removed",
}


def test_the_restart_table_is_that_of_the_code():
    """Row by row; and a supervisor at its limit is in the column of the normal class."""
    table = {row[0]: row[1:] for row in rows(section(OTP, "## The restart table"), "restart")}
    limits = {row[0]: row[1] for row in rows(OTP, "the supervisor's restart type")}

    assert table == {
        restart.value: [FATES[VERDICTS[restart, True]], FATES[VERDICTS[restart, False]]]
        for restart in Restart
    }
    assert all(limits[name].startswith(normal) for name, (normal, _) in table.items())


def test_the_normal_class_is_that_of_the_code():
    """The kinds that the page lists, and no others."""
    kinds = {row[-1] for row in rows(OTP, "what the child does")}

    assert kinds == {kind.name for kind in ExitKind if ExitReason(kind).is_normal}


ENDS = {
    # end, as the page says it: in OTP's words
    "stopped when asked": Final.SHUTDOWN,
    "raised `Shutdown`, or a group of nothing else": Final.SHUTDOWN_REASON,
    "had ended normally before it was asked": Final.NORMAL,
    "interrupted": Final.KILLED,
    "raised anything else": Final.OTHER,
}


def test_the_table_of_acceptable_ends_is_that_of_the_code():
    """Row by row, for both ways to stop."""
    table = {row[0]: row[1:] for row in rows(section(OTP, "## Acceptable ends"), "end")}

    def written(restarts):
        names = [restart.value for restart in Restart if restart in restarts]
        return {0: "none", len(Restart): "all"}.get(len(names), ", ".join(names))

    assert table == {
        end: [written(ACCEPTABLE[final, False]), written(ACCEPTABLE[final, True])]
        for end, final in ENDS.items()
    }


def test_the_table_of_strategies_is_that_of_the_code():
    """For the children a b c d, and c crashed."""
    assert {row[0]: row[1:] for row in rows(section(OTP, "## Strategies"), "strategy")} == {
        strategy.value: [" ".join(ids) or "none" for ids in restart_group(strategy, "abcd", "c")]
        for strategy in Strategy
    }


# docs/how-to/registry.md


def test_the_calls_of_the_registry_have_the_parameters_that_its_page_names():
    """Those of the module and those of a ``ThreadRegistry`` are the same, but for what is one or the other's only."""
    table = rows(section(page("registry.md"), "## Reference"), "Name")
    written = written_calls(row[0] for row in table)
    of_module = {"report_crashes_elsewhere": [], "default": []}
    methods = {
        name: value for name, value in vars(registry.ThreadRegistry).items() if name[0] != "_"
    }
    calls = {name: called(value) for name, value in methods.items() if callable(value)}

    assert written == calls | of_module
    assert {name: called(getattr(registry, name)) for name in written} == written
    assert isinstance(methods["shutdown_requested"], property)
    assert not registry.shutdown_requested()


@pytest.mark.parametrize(
    "value", [registry.TrackedThread, registry.ShutdownStats], ids=lambda value: value.__name__
)
def test_the_page_of_the_registry_has_the_attributes_of_values(value):
    """All that there are, and no others."""
    (cell,) = [
        row[1] for row in rows(page("registry.md"), "Value") if code(row[0]) == [value.__name__]
    ]
    properties = {
        name for name, one in vars(value).items() if isinstance(one, property) and name[0] != "_"
    }

    assert (
        set(code(re.sub(r"\([^)]*\)", "", cell)))
        == {field.name for field in attrs.fields(value)} | properties
    )


# docs/explanation/design.md


def test_the_floors_of_the_page_are_those_of_the_code():
    """As ``tests/test_layers.py`` holds imports to them; the package of the children is one entry."""
    floors = [
        {name.rstrip("/") for name in code(row[1])} for row in rows(page("design.md"), "Floor")
    ]

    assert floors == [{name for name in floor if "." not in name} for floor in test_layers.FLOORS]


# All pages

OTHERS = {
    # names with an underscore that the pages mention and that are not otpy's
    "__pycache__",
    "create_connection",
    "create_subprocess_exec",
    "get_context",
    "is_daemon",
    "max_restarts_per_hour",
    "send_page",
    "simple_one_for_one",
    "start_link",
    "supervisor_SUITE",
}

PAGES = [
    "README.md",
    *sorted({path.name for path in pages.PAGES} - {"changelog.md", "benchmarks.md"}),
]


@pytest.fixture(scope="module")
def words():
    """All names in the source of the package."""
    return {
        word
        for path in (ROOT / "otpy").rglob("*.py")
        for word in re.findall(r"\w+", path.read_text("utf-8"))
    }


@pytest.mark.parametrize("name", PAGES)
def test_the_names_in_the_sentences_of_the_pages_are_those_of_the_code(name, words):
    """An option that is called otherwise now has another name in the pages, too.

    Not looked at are blocks of code, which are run, and tables, where names of other libraries stand.
    """
    text = re.sub(r"^```.*?^```|^\|.*?$", "", page(name), flags=re.DOTALL | re.MULTILINE)
    spans = [span for span in code(text) if not span.startswith("test_")]
    names = {word for span in spans for word in re.findall(r"\b[a-z]\w*_\w+\b", span)}

    assert names - words - OTHERS == set()


# docs/how-to/tasks.md and docs/how-to/lint.md


def options_of(name):
    """Return the long options of a command, as they are written on the command line."""
    found = command.get_command(click.Context(command), name)
    return {text for option in found.params for text in option.opts if text.startswith("--")}


def test_the_page_of_graphs_has_the_options_of_the_command():
    """All of them, and what stands for results and for the state."""
    table = rows(section(page("tasks.md"), "## Run the tasks of a file"), "Option")
    written = {re.match(r"--[\w-]+", text)[0] for row in table for text in code(row[0])}

    assert written == options_of("tasks") | {"--result-NAME", "--KEY"}


def test_the_page_of_the_guard_has_the_options_of_the_command():
    """All of them."""
    written = {
        re.match(r"--\w+", text)[0]
        for row in rows(page("lint.md"), "Option")
        for text in code(row[0])
    }

    assert written == options_of("lint")


def test_the_calls_on_the_page_of_graphs_work(here):
    """Each line of its shell block, with the file of the block before."""
    (build,) = [text for text in blocks("tasks.md", "python") if "def setup_state" in text]
    (here / "build.py").write_text(build)
    lines = [
        line
        for text in blocks("tasks.md", "sh")
        for line in text.splitlines()
        if line.startswith("otpy tasks")
    ]

    assert len(lines) == 4
    for line in lines:
        done = CliRunner().invoke(command, shlex.split(line, comments=True)[1:], prog_name="otpy")
        assert done.exit_code == 0, (line, done.output)


def test_the_configuration_on_the_page_of_the_guard_is_taken(here, capsys):
    """Its globs exempt files, and timers are found with it."""
    (toml,) = blocks("lint.md", "toml")
    (here / "pyproject.toml").write_text(toml)
    for name in ("tests/a.py", "examples/legacy_a.py", "x/vendored/y/a.py", "examples/a.py"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("import threading\nthreading.Timer(1, print)\n")

    assert lint.main(["."]) == 1
    assert re.findall(r"^(\S+?):\d+:\d+: (\w+)", capsys.readouterr().out, re.MULTILINE) == [
        ("examples/a.py", "OTP004")
    ]


def test_the_hooks_on_the_page_of_the_guard_are_those_of_the_repository():
    """By their ids."""
    (yaml,) = blocks("lint.md", "yaml")
    offered = (ROOT / ".pre-commit-hooks.yaml").read_text("utf-8")

    assert re.findall(r"- id: (\S+)", yaml) == re.findall(r"- id: (\S+)", offered)
