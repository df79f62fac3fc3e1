"""The shape of the house: imports go downwards, and what is public is listed once."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import otpy
from otpy import api

ROOT = pathlib.Path(otpy.__file__).parent

FLOORS = [
    {"exceptions", "values", "arguments", "specs", "reports"},
    {"core"},
    {"abc", "runtime"},
    {"children", "registry"},
    {"aio", "api", "check", "taskgraph"},
    {"lint", "cli", "__main__"},
]
FLOOR = {place: number for number, places in enumerate(FLOORS) for place in places}
"""The floor of each folder, or of a module that lies in none."""


def floor(module):
    return FLOOR[module.partition(".")[0]]


FOREIGN = [
    {
        "annotationlib",
        "attrs",
        "collections",
        "contextlib",
        "copy",
        "enum",
        "functools",
        "inspect",
        "math",
        "reprlib",
        "sys",
        "traceback",
        "types",
        "typing",
    },
    {"attrs", "bisect", "collections", "enum", "itertools", "random", "typing"},
]
"""What floors 0 and 1 may import from outside: nothing that waits, starts, logs or tells the time."""


STARTS_THREADS = re.compile(r"threading\.Thread\(|\(threading\.Thread\)")


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


ALL = set(modules())


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield from (
                f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix("otpy.") in ALL else base
                for a in node.names
            )


def test_every_module_has_its_floor():
    """A new file must be given one here."""
    assert {name.partition(".")[0] for name in modules()} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(ALL))
def test_imports_go_downwards(module):
    """Nothing imports from a floor above its own; ``import otpy`` means all public names."""
    used = [name for name in imports(modules()[module]) if name.partition(".")[0] == "otpy"]
    own = {"api" if name == "otpy" else name.removeprefix("otpy.") for name in used}

    assert own <= ALL
    assert [name for name in own if floor(name) > floor(module)] == []


@pytest.mark.parametrize("module", sorted(module for module in ALL if floor(module) < 2))
def test_the_pure_floors_import_nothing_that_acts(module):
    """No thread, no queue, no clock, no log below floor 2."""
    outside = {name.partition(".")[0] for name in imports(modules()[module])} - {
        "otpy",
        "__future__",
    }

    assert outside <= FOREIGN[floor(module)]


def test_only_log_logs_and_only_threads_starts_threads():
    """One place for each. ``otpy run`` says where the log goes; a process of its own starts its own threads."""
    logs = {
        name for name, path in modules().items() if {"structlog", "logging"} & set(imports(path))
    }
    starts = {name for name, path in modules().items() if STARTS_THREADS.search(path.read_text())}

    assert (logs, starts) == (
        {"runtime.log", "cli.run"},
        {"runtime.threads", "children.callable.far_side"},
    )


def test_the_exports_are_sorted_and_real():
    """``__all__`` lists what is public, and there is no other public name but what the table of names needs."""
    here = {name for name in vars(api) if not name.startswith("_")} - {
        "LATER",
        "TYPE_CHECKING",
        "importlib",
    }

    assert otpy.__all__ == sorted(otpy.__all__)
    assert here | set(api.LATER) == set(otpy.__all__)
    assert [getattr(otpy, name) for name in otpy.__all__]
    with pytest.raises(AttributeError, match="module 'otpy' has no attribute 'proces'"):
        _ = otpy.proces


def test_what_few_programs_need_is_not_imported_by_all():
    """To import it takes longer than all the rest."""
    code = "import sys, otpy.api; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert not {
        "otpy.aio",
        "otpy.children.coroutine.loop",
        "otpy.children.processes",
        "multiprocessing",
    } & set(loaded)


def test_every_module_can_be_the_first_one_that_is_imported():
    """Nobody needs the order in which ``otpy`` loads them: a module that is imported alone finds what it needs."""
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [one for one in sys.modules if one.partition(".")[0] == "otpy"]:
        del sys.modules[loaded]
    importlib.import_module(f"otpy.{name}")
    wants_api = name.partition(".")[0] in ("api", "check", "taskgraph") or name == "cli.taskfile"
    assert "otpy.api" not in sys.modules or wants_api, name
"""
    names = sorted(ALL - {"__main__"})
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_loads_its_names_when_they_are_asked_for():
    """``from otpy import *``, ``dir`` and unknown names are as in any package."""
    code = """
import sys, otpy
assert not any(name.startswith("otpy.") for name in sys.modules)
assert otpy.reports.__name__ == "otpy.reports" and "otpy.api" not in sys.modules
assert otpy.run.__module__ == "otpy.runtime.running"
assert "run" in vars(otpy) and set(otpy.__all__) <= set(dir(otpy))
assert not hasattr(otpy, "superviser")
from otpy import *
assert supervisor is otpy.supervisor
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_has_a_docstring():
    """Public docstrings are the reference."""
    for name in otpy.__all__:
        assert getattr(otpy, name).__doc__, name
    assert importlib.import_module("otpy").__doc__
