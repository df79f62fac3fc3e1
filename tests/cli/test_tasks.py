"""``otpy tasks``: what it runs, what it prints, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from otpy.cli.group import otpy as group
from tests.helpers import HANG

BUILD = """
from otpy.taskgraph import task
import beside

def setup_state(target="debug", jobs="1"):
    return {"target": target, "jobs": int(jobs), "api_token": "s3cret"}

@task(after=["compile"], with_state=True)
def link(state):
    return state["results"]["compile"] + "+" + state["target"]

@task(tags=["fast"])
def compile():
    return beside.NAME

@task(after=["link"], tags=["slow"])
def test():
    raise ValueError("ordered to fail")

@task(after=["test"])
def ship():
    return object()
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    (tmp_path / "build.py").write_text(BUILD)
    (tmp_path / "beside.py").write_text("NAME = 'main.o'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def write(text):
    Path("other.py").write_text("from otpy.taskgraph import task\n" + text)


def call(*args):
    return CliRunner().invoke(group, ["tasks", *args], prog_name="otpy")


def spawn(*args, **options):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [sys.executable, "-m", "otpy", "tasks", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def last(result):
    return result.output.splitlines()[-1]


def test_it_runs_all_and_says_what_came_of_it(build):
    result = call("build.py")

    assert result.exit_code == 1
    assert result.output.splitlines()[0] == "..f."
    assert "---- test crashed: ValueError('ordered to fail')" in result.output
    assert 'raise ValueError("ordered to fail")' in result.output
    assert re.fullmatch(r"==== 3 passed, 1 failed, 0 skipped in \d+\.\ds ====", last(result))


def test_skip_deps(build):
    result = call("build.py", "--skip-deps", "--workers", "1")

    assert result.output.splitlines()[0] == "..fs"
    assert last(result).startswith("==== 2 passed, 1 failed, 1 skipped in ")


def test_status_0_if_nothing_failed(build):
    result = call("build.py", "--tags", "fast")

    assert result.exit_code == 0
    assert last(result).startswith("==== 1 passed, 0 failed, 0 skipped in ")


def test_tags_choose_tasks_and_not_what_they_come_after(build):
    """A task that has any of the tags is run, and finds no results of those before it."""
    assert last(call("build.py", "--tags", "slow")).startswith(
        "==== 0 passed, 1 failed, 0 skipped in "
    )
    assert last(call("build.py", "--tags", "slow,fast")).startswith(
        "==== 1 passed, 1 failed, 0 skipped in "
    )


def test_one_task_alone_with_a_result_that_is_given(build):
    result = call("build.py::link", "--result-compile=x.o", "--target=release", "--show-values")

    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "."
    assert "  target = 'release'\n" in result.output
    assert "  results = {compile: 'x.o', link: 'x.o+release'}\n" in result.output


def test_a_result_that_is_given_is_not_made(build):
    result = call("build.py", "--result-compile=x.o", "--show-values")

    assert result.output.splitlines()[0] == ".f."
    assert "link: 'x.o+debug'" in result.output


def test_the_values_of_the_state_are_shown_without_secrets(build):
    write("""
class Odd:
    def __repr__(self):
        raise ValueError
def setup_state(state):
    circle = {}
    circle["again"] = circle
    state.update(circle=circle, dbs=[{"password": "p4ss"}], pairs={3: ("x", "y" * 1000)})
    state[("a", "tuple")] = 1
    state.update(db={"password": "p4ss", "user": "u"}, long="x" * 1000, odd=Odd(), _private="hidden")
    state.update(pwd="p4ss", url="postgres://me:p4ss@host/db", urls=["x http://p4ss@host"], DB_AUTH="p4ss", monkey="m")
@task()
def one(): pass
""")
    result = call("other.py", "--show-values", "--AUTH_TOKEN=t0ken")

    assert result.exit_code == 0, result.output
    assert "  db = {password: ***, user: 'u'}\n" in result.output
    assert "  odd = <Odd without a repr>\n" in result.output
    assert "  AUTH_TOKEN = ***\n" in result.output
    assert "  dbs = [{password: ***}]\n" in result.output
    assert "  pairs = {3: ['x', 'yyy" in result.output
    assert "  ('a', 'tuple') = 1\n" in result.output
    assert "  circle = {again: …}\n" in result.output
    assert "  url = 'postgres://***@host/db'\n" in result.output
    assert "  urls = ['x http://***@host']\n" in result.output
    assert "  monkey = 'm'\n" in result.output
    assert not re.search("p4ss|t0ken|hidden|x{300}|y{300}", result.output)


def test_the_state_file(build):
    Path("state.json").write_text(json.dumps({"jobs": 3, "extra": [1]}))
    result = call("build.py::compile", "--state-file", "state.json", "--jobs=4", "--show-values")

    assert "  jobs = 4\n" in result.output
    assert "  extra = [1]\n" in result.output


def test_the_graph(build):
    result = call("build.py", "--graph")

    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "level 1",
        "  compile",
        "level 2",
        "  link <- compile",
        "level 3",
        "  test <- link",
        "level 4",
        "  ship <- test",
        "4 tasks; longest path: compile -> link -> test -> ship",
    ]


def test_the_progress_bar_and_the_log(build):
    result = call("build.py", "--progress", "--log")

    assert "4/4" in result.output
    assert "begin compile on tasks/workers/worker-1\n" in result.stderr
    assert "failed test\n" in result.stderr
    assert "..f." not in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument"),
        (["nowhere.py"], "nowhere.py: there is no such file"),
        (["state.txt"], "state.txt: expected a Python file"),
        (["empty.py"], "empty.py: no task in it; mark functions with"),
        (["broken.py"], "broken.py: SyntaxError: "),
        (["raises.py"], "; --verbose shows the traceback"),
        (["exits.py"], "exits.py: SystemExit: 0"),
        (["unknown.py"], "unknown.py: task 'a' comes after 'b'; there are: a"),
        (["cycle.py"], "no cycle"),
        (["twice.py"], "twice.py: two tasks are called 'x'"),
        (["setup.py"], "setup.py: setup_state: expected a plain function, which returns the state"),
        (["later.py"], "later.py: setup_state: expected a plain function, which returns the state"),
        (["builtin.py"], "builtin.py: setup_state failed: "),
        (["lock.py"], "state['_state_lock'] = 3: expected a threading.RLock"),
        (["n" * 300 + ".py"], "n.py: there is no such file"),
        (
            ["build.py", "--tags", "fast,"],
            "--tags 'fast,': expected names with commas between them",
        ),
        (["build.py", "--tags="], "--tags '': expected names"),
        (
            ["build.py::link", "--tags", "fast"],
            "--tags fast: ::link has chosen already what to run",
        ),
        (
            ["cycle.py", "--result-a=1"],
            "cycle.py: there is a result for each task, and nothing to be run",
        ),
        (["build.py::"], "name a task after the ::"),
        (["build.py::nix"], "build.py: no task 'nix'; there are: link, compile, test, ship"),
        (["build.py", "--workers", "0"], "'--workers': 0 is not in the range"),
        (["build.py", "--workers", "many"], "'--workers': 'many' is not a valid integer"),
        (["build.py", "--tags", "nix"], "--tags: no task has one of nix; there are: fast, slow"),
        (["build.py", "--unknown"], "no such option: --unknown; see --help"),
        (["build.py", "extra"], "unexpected argument 'extra'"),
        (
            ["build.py", "--nix=1"],
            "--nix=VALUE: setup_state does not take it; it takes: --target, --jobs",
        ),
        (["plain.py", "--nix=1"], "--nix=VALUE: it has no setup_state that could take it"),
        (["needs.py"], "--host-name=VALUE: setup_state needs it"),
        (["nodict.py"], "nodict.py: setup_state returned int; expected the state, a dict"),
        (["build.py", "--jobs=many"], "setup_state failed: ValueError: invalid literal"),
        (["build.py", "--result-nix=1"], "--result-nix: no task 'nix'"),
        (["build.py::link", "--result-link=1"], "--result-link: 'link' is the task to run"),
        (["build.py", "--state-file", "nowhere.json"], "'--state-file'"),
        (["build.py", "--state-file", "broken.py"], "--state-file broken.py: expected JSON"),
        (["build.py", "--state-file", "list.json"], "expected a JSON object, not list"),
    ],
)
def test_bad_input_is_refused_in_one_line_with_status_2(build, args, message):
    one = "from otpy.taskgraph import task\n@task()\ndef a(): raise SystemError\n"
    files = {
        "state.txt": "",
        "empty.py": "",
        "list.json": "[]",
        "broken.py": "def (",
        "raises.py": "1 / 0",
        "exits.py": "raise SystemExit(0)",
        "unknown.py": one.replace("task()", "task(after=['b'])"),
        "cycle.py": one.replace("task()", "task(after=['a'])"),
        "plain.py": one,
        "needs.py": one + "def setup_state(host_name): return {}\n",
        "twice.py": one.replace("()", "(name='x')", 1) + "@task(name='x')\ndef b(): pass\n",
        "setup.py": one + "setup_state = 3\n",
        "later.py": one + "async def setup_state(): return {}\n",
        "builtin.py": one + "setup_state = dict\n",
        "lock.py": one + "def setup_state(): return {'_state_lock': 3}\n",
        "nodict.py": one + "def setup_state(): return 3\n",
    }
    for name, text in files.items():
        Path(name).write_text(text)
    result = call(*args)

    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.count("\n") == 1
    assert result.stdout == ""


def test_verbose_shows_where(build):
    write("def inner():\n    1 / 0\ninner()\n")
    result = call("other.py", "--verbose")

    assert result.exit_code == 2
    assert "in inner" in result.stderr


def test_the_help_has_an_example():
    result = call("--help")

    assert result.exit_code == 0
    assert re.search(r"\n  Examples:\n    otpy tasks build\.py --workers 4", result.output)
    for option in (
        "--workers",
        "--tags",
        "--skip-deps",
        "--graph",
        "--progress",
        "--state-file",
        "--log",
        "--show-state",
        "--show-values",
    ):
        assert option in result.output


def test_a_process_leaves_nothing_in_the_directory(build, tmp_path):
    """No __pycache__ either, nor of what the file imports, also while it runs."""
    write("@task()\ndef one():\n    import beside\n    return beside.NAME\n")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    process = spawn("other.py", "--log", "--show-values")
    out, err = process.communicate(timeout=HANG)

    assert process.returncode == 0, err
    assert "one: 'main.o'" in out
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_status_of_a_process(build):
    process = spawn("build.py")
    out, err = process.communicate(timeout=HANG)

    assert process.returncode == 1, err
    assert out.startswith("..f.\n")
    assert err == ""


def test_a_reader_that_has_gone_is_no_error_of_each_task(build):
    """As with ``| head``: all tasks run, and nobody gets a traceback for each letter."""
    write("from pathlib import Path\n@task()\ndef one(): Path('done').touch()\n")
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "otpy", "tasks", "other.py"],
        stdout=written,
        stderr=subprocess.PIPE,
        text=True,
        timeout=HANG,
        check=False,
    )
    os.close(written)

    assert (done.returncode, done.stderr) == (1, "")
    assert Path("done").exists()


def test_ctrl_c_cancels_the_rest_and_prints_the_summary(build):
    """Twice: what runs is cancelled as well."""
    write("""
import os, signal, threading, time, otpy

def interrupt(times):
    otpy.runtime.running.SAME = -1.0  # each signal counts, however soon it comes
    launch = signal.getsignal(signal.SIGINT)._request.__self__
    for count in range(1, times + 1):
        os.kill(os.getpid(), signal.SIGINT)
        while launch._requests < count:
            time.sleep(0.001)

@task()
def twice():
    interrupt(2)
    while True:
        time.sleep(0.001)

@task(after=["twice"])
def after(): pass
""")
    process = spawn("other.py")
    out, err = process.communicate(timeout=HANG)

    assert process.returncode == 130, err
    assert out.splitlines()[0] == "cc"
    assert "==== 0 passed, 0 failed, 0 skipped, 2 cancelled in " in out.splitlines()[-1]
