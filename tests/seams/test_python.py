"""Not every Python can start another one; one function says how, or why not."""

from __future__ import annotations

import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import otpy
from otpy.children.program import guard
from otpy.runtime import posix
from tests.helpers import wait_until
from tests.programs import guards_of, mark, marked
from tests.seams.kit import python


@pytest.fixture
def facts_of_sys(monkeypatch):
    """Return a function that sets facts of ``sys`` for a test: ``facts_of_sys(executable=…)``."""
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", None)

    def set_facts(**facts: object) -> None:
        for name, value in facts.items():
            monkeypatch.setattr(sys, name, value, raising=False)

    return set_facts


WITHOUT = {
    # what: (facts of sys, the reason)
    "frozen": ({"frozen": True}, "the program is frozen"),
    "no executable": ({"executable": None}, "sys.executable is None"),
    "an empty executable": ({"executable": ""}, "sys.executable is ''"),
    "another program": ({"executable": "/bin/sh", "orig_argv": []}, "it is embedded in /bin/sh"),
    "a missing executable": ({"executable": "/no/such/python"}, "/no/such/python, is not there"),
    "no program": ({"executable": "/etc/passwd"}, "cannot be executed"),
}


@pytest.mark.parametrize(("facts", "reason"), WITHOUT.values(), ids=WITHOUT)
def test_the_reason_is_given_where_no_python_can_be_started(facts_of_sys, facts, reason):
    """A frozen application would start itself again, and so on for ever."""
    facts_of_sys(**facts)
    with pytest.raises(posix.NoPython, match=reason):
        posix.python_command("-c", "")


def test_the_command_has_the_arguments(facts_of_sys):
    """As a rule its first part is ``sys.executable``."""
    assert posix.python_command("-I", "x.py") == [sys.executable, "-I", "x.py"]


def test_what_multiprocessing_was_told_is_believed(facts_of_sys, monkeypatch):
    """An application that is frozen, or embeds Python, may have a Python at hand."""
    facts_of_sys(frozen=True, executable="/opt/application")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", "/opt/python")

    assert posix.python_command("-c", "") == ["/opt/python", "-c", ""]


FROZEN = """
import os, signal, sys
sys.frozen, sys.executable = True, sys.argv[1]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from otpy import process, start, supervisor
app = start(supervisor("app", children=[process("sleep", "1000", id=name) for name in "ab"]))
print(*(child.state.value for child in app.which_children()), file=sys.stderr)
app.stop()
"""


def test_a_frozen_program_runs_programs_and_starts_itself_never(tmp_path):
    """It has no guard then, and signals are inherited as they are.

    Both are reported, the first once.
    """
    application = tmp_path / "application"
    application.write_text(f"#!/bin/sh\necho started >>{tmp_path}/starts\n")
    application.chmod(0o755)
    ran = python(FROZEN, application)

    assert ran.err == "running running\n"
    assert ran.out.count("programs_unguarded") == 1
    assert ran.out.count("signals_inherited") == 2
    assert not (tmp_path / "starts").exists()


ZIPPED = """
import sys
sys.path.insert(0, sys.argv[1])
from otpy import process, start, supervisor
import otpy
assert otpy.__file__.startswith(sys.argv[1])
start(supervisor("app", children=[process("sleep", sys.argv[2])]), log=False)
print("up", flush=True)
sys.stdin.read()
"""


def test_in_a_zip_file_the_guard_is_run_by_its_text(tmp_path):
    """It has no file there, and must end the programs of a parent process that was
    killed.
    """
    archive, package, number = tmp_path / "app.zip", Path(otpy.__file__).parent, mark()
    with zipfile.ZipFile(archive, "w") as file:
        for path in package.rglob("*.py"):
            file.write(path, path.relative_to(package.parent))
    argv = [sys.executable, "-c", ZIPPED, str(archive), number]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        wait_until(lambda: marked(number))
        parent.kill()
    wait_until(lambda: not marked(number), "the end of the program")


def test_a_guard_without_file_and_source_is_none(monkeypatch):
    """That is reported, and programs run without a guard."""

    class Loader:
        def get_source(self, name: str) -> None:
            return None

    spec = importlib_spec(Loader())
    monkeypatch.setattr(guard.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(posix.NoPython, match="no file, and no source"):
        guard.script()


def importlib_spec(loader: object):
    from importlib.machinery import ModuleSpec

    return ModuleSpec("otpy.children.program.guard_process", loader)  # type: ignore[arg-type]


# The guard


def guards() -> set[int]:
    """Return the guards of this process; other processes that run tests have their own."""
    return guards_of(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guard_is_replaced_whenever_it_ends_or_is_suspended(launch, number):
    """It is killed in its first moment, twice: the thread that guards it must not give
    up.
    """
    launch(otpy.supervisor("app", children=[otpy.process("sleep", "1000")]))
    for _ in range(2):
        (one,) = wait_until(lambda: len(found := guards()) == 1 and found)
        os.kill(one, number)
        wait_until(lambda: guards() and one not in guards(), "another guard")  # noqa: B023 - it is called here


def test_a_guard_that_cannot_run_is_tried_less_and_less_often(monkeypatch):
    """It is reported once."""
    waits: list[float] = []
    complaints: list[str] = []
    keeper = guard.Keeper(
        SimpleNamespace(closed=Closing(waits), settled=guard.Once()),  # type: ignore[arg-type]
        lambda event, error: complaints.append(f"{event}: {error}"),
    )
    monkeypatch.setattr(keeper, "be_guarded", lambda: 1)
    keeper.keep_one_after_the_other()

    assert complaints == ["programs_unguarded: the guard ended with 1"]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.0, 60.0)


class Closing:
    """Ends the work of the thread after some pauses."""

    def __init__(self, waits: list[float]) -> None:
        self.waits = waits

    @property
    def has_happened(self) -> bool:
        return len(self.waits) > 20

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
