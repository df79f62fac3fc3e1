"""The shape of the house: imports go downwards, and what is public is listed once."""

import ast
import importlib
import pathlib

import pytest

import otpy

ROOT = pathlib.Path(otpy.__file__).parent

FLOORS = [
    {"exceptions", "values", "specs", "messages", "reports"},
    {"restarts", "strategy", "machine"},
    {"abc", "mailbox", "telemetry", "threads"},
    {
        "context",
        "loops",
        "tree",
        "children",
        "children.thread",
        "children.adopted",
        "children.coroutine",
        "children.periodic",
        "supervisors",
        "registry",
    },
    {"aio", "taskgraph"},
    {"lint", "cli", "cli.tasks"},
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}

PUBLIC = 4
"""From this floor on a module may import the package itself: its public names."""

FOREIGN = [
    {"attrs", "copy", "enum", "functools", "math", "reprlib", "traceback", "typing", "collections"},
    {"attrs", "collections", "enum", "itertools", "random", "typing"},
]
"""What floors 0 and 1 may import from outside: nothing that waits, starts, logs or tells the time."""


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (
                f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix("otpy.") in FLOOR else base for a in node.names
            )


def test_every_module_has_its_floor():
    """A new file must be given one here."""
    assert set(modules()) == set(FLOOR)


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_go_downwards(module):
    """Nothing imports from a floor above its own, and the package itself imports nobody's names from the top."""
    own = {name.removeprefix("otpy.") for name in imports(modules()[module]) if name.partition(".")[0] == "otpy"}

    if FLOOR[module] >= PUBLIC:
        own -= {"otpy"}
    assert own <= set(FLOOR)
    assert [name for name in own if FLOOR[name] > FLOOR[module]] == []


@pytest.mark.parametrize("module", sorted(FLOORS[0] | FLOORS[1]))
def test_the_pure_floors_import_nothing_that_acts(module):
    """No thread, no queue, no clock, no log below floor 2."""
    outside = {name.partition(".")[0] for name in imports(modules()[module])} - {"otpy", "__future__"}

    assert outside <= FOREIGN[FLOOR[module]]


def test_only_telemetry_logs_and_only_threads_starts_threads():
    """One place for each."""
    logs = {name for name, path in modules().items() if {"structlog", "logging"} & set(imports(path))}
    starts = {name for name, path in modules().items() if "threading.Thread(" in path.read_text()}

    assert (logs, starts) == ({"telemetry"}, {"threads"})


def test_the_exports_are_sorted_and_real():
    """``__all__`` lists what is public, and there is no other public name but the modules."""
    public = {name for name in vars(otpy) if not name.startswith("_")} - set(FLOOR)

    assert otpy.__all__ == sorted(otpy.__all__)
    assert public | {"abc", "aio", "registry", "reports"} == set(otpy.__all__)


def test_every_public_name_has_a_docstring():
    """Public docstrings are the reference."""
    for name in otpy.__all__:
        assert getattr(otpy, name).__doc__, name
    assert importlib.import_module("otpy").__doc__
