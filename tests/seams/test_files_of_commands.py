"""Files that commands read and write: reports of ``otpy run``, and what the others are given."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import otpy
from otpy import lint
from otpy.children.program.logfiles import LogFile
from tests.helpers import HANG, wait_until
from tests.seams import kit

OTPY = [sys.executable, "-m", "otpy"]


# otpy run

APP = """
import time
from otpy import process, supervisor, thread
def end(ctx): pass
def fail(ctx): raise OSError("no network")
def wait(ctx): ctx.wait_stop()
once = dict(restart="transient", significant=True)
good = supervisor("app", auto_shutdown="any_significant", children=[thread(end, **once)])
bad = supervisor("app", intensity=1, children=[thread(fail)])
tree = supervisor("app", intensity=10**6, children=[
    process("sh", "-c", "while :; do echo line; sleep 0.02; done", id="writes", stdout="log"),
    process("sh", "-c", "sleep 0.02; exit 1", id="crashes"),
])
"""


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def otpy_command(*args, cwd, timeout=HANG, **options):
    """Run ``otpy`` as a process of its own."""
    return subprocess.run(
        [*OTPY, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


@pytest.mark.parametrize(("target", "status"), [("app:good", 0), ("app:bad", 70)])
def test_reports_that_cannot_be_written_do_not_change_the_status(app, target, status):
    """With a full disk one line says so, once, without a traceback."""
    done = otpy_command("run", target, "--reports", "/dev/full", cwd=app)
    told = [line for line in done.stderr.splitlines() if "--reports" in line]

    assert done.returncode == status
    expected = "No space left on device; reports are lost until it can be written"
    assert told == [f"otpy run: --reports /dev/full: {expected}"]
    assert "Traceback" not in done.stderr.replace("no network", "") or status == 70


def test_reports_into_a_fifo_that_nothing_reads_are_refused_in_one_line(app):
    """``--reports`` with a FIFO without a reader is a usage error."""
    os.mkfifo(app / "fifo")
    done = otpy_command("run", "app:good", "--reports", "fifo", cwd=app)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "otpy run: --reports fifo: a FIFO that nothing reads, or a socket\n"


def test_reports_go_to_the_directory_of_the_call(app):
    """The target may change the directory while it is imported."""
    (app / "elsewhere").mkdir()
    (app / "goes.py").write_text("import os\nfrom app import good as tree\nos.chdir('elsewhere')\n")
    done = otpy_command("run", "goes.py", "--reports", "reports", cwd=app)
    assert (done.returncode, list((app / "elsewhere").iterdir())) == (0, [])
    assert (app / "reports").read_text().count("\n") > 0


def test_the_file_says_how_many_reports_are_missing_in_it(tmp_path, capsys):
    """Each line is JSON, also the one after a line that was cut off."""
    from otpy.cli.run import ReportFile

    file = LogFile(str(tmp_path / "reports"), makes_directory=False)
    writer, write = ReportFile("reports", file), os.write
    report = otpy.reports.Stalled(path="app/x", incarnation=1, thread="x", reason=None, stack="")
    calls = iter(
        [
            lambda fd, data: write(fd, data[:9]),
            lambda fd, data: (_ for _ in ()).throw(OSError(28, "full")),
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: next(calls)(fd, data))
        writer.write(report)
    writer.write(report)
    file.close()
    cut, *lines = (tmp_path / "reports").read_text().splitlines()

    assert cut == '{"report"'
    assert [json.loads(line)["report"] for line in lines] == ["ReportsLost", "Stalled"]
    assert json.loads(lines[0])["count"] == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_sigusr2_has_all_files_of_otpy_run_opened_anew(app):
    """Logs of programs and the reports are opened anew at once; the signal does not end
    the command.
    """
    (app / "slow.py").write_text(
        "from otpy.children.program import logfiles\nlogfiles.LOOK_AGAIN = 1000.0\nfrom app import tree\n"
    )
    child = subprocess.Popen(
        [*OTPY, "run", "slow.py", "--reports", "reports"],
        cwd=app,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def are_there():
        return all(
            (app / name).exists() and (app / name).read_text().count("\n") > 1
            for name in ("log", "reports")
        )

    try:
        wait_until(are_there)
        for name in ("log", "reports"):
            (app / name).rename(app / f"{name}.1")
        child.send_signal(signal.SIGUSR2)
        wait_until(are_there)
        child.terminate()
        assert child.wait(HANG) == 0
    finally:
        kit.kill_session(child.pid)
        child.wait(HANG)


# otpy lint, and what the commands read


def test_lint_passes_by_what_is_no_file(tmp_path):
    """A FIFO and a device would be read for ever, or until no memory is left."""
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    (tmp_path / "good.py").write_text("import threading\nthreading.Thread()\n")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket.py"))
        done = otpy_command("lint", ".", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (1, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["good.py"]


@pytest.mark.parametrize("name", ["fifo.py", "/dev/zero", "loop.py", "large.py", "kmsg.py"])
def test_what_is_named_and_cannot_be_read_is_a_finding(tmp_path, monkeypatch, name):
    """A path that is named is a finding if it is no readable file; it is never waited
    for.
    """
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.py")
    Path("loop.py").symlink_to("loop.py")
    Path("kmsg.py").symlink_to("/proc/kmsg")
    with Path("large.py").open("wb") as file:
        file.truncate(lint.LARGEST + 1)
    [finding] = lint.check(name, lint.Config(tmp_path))

    assert finding.code == "OTP901"


def test_a_line_with_any_number_of_findings_is_read_once(tmp_path):
    """To read the line once for each finding would take minutes here."""
    text = (
        "import threading\n"
        + "threading.Thread();" * 6000
        + f"'{'ä' * 4_000_000}'; threading.Thread()\n"
    )
    (tmp_path / "one.py").write_text(text, "utf-8")
    found = lint.check(str(tmp_path / "one.py"), lint.Config(tmp_path))
    assert [one.col for one in (found[0], found[1], found[-1])] == [1, 20, 6000 * 19 + 4_000_005]
    assert len(found) == 6001


def test_a_glob_is_compared_in_one_way_through_it():
    """A regular expression that tries all ways would take years here."""
    assert not lint.matches("a/" * 100 + "c", "**/a" * 50 + "/*b")
    assert lint.matches("a/" * 100 + "c", "**/a" * 50 + "/*c")


CALL_ALL = """
import json, os, sys
from click.testing import CliRunner
from otpy.cli.group import otpy
os.chdir(sys.argv[1])
if "gone" in sys.argv[1]:
    os.rmdir(sys.argv[1])
for args in json.loads(sys.argv[2]):
    done = CliRunner().invoke(otpy, args, prog_name="otpy")
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


def call_all(directory, calls):
    """Call ``otpy`` in *directory*, and yield each call with its status, stdout and stderr."""
    ran = kit.python(
        CALL_ALL, directory, json.dumps(calls), flags=["-P"]
    )  # 3.13.0 errs about a removed sys.path[0]
    done = [json.loads(line) for line in ran.out.splitlines()]
    yield from zip(calls, *zip(*done, strict=True), strict=True)


def test_in_a_directory_that_was_removed_each_command_ends_with_one_line(tmp_path):
    """The line begins with the name of the command, and the status is 2."""
    (tmp_path / "gone").mkdir()
    calls = [["run", "app"], ["check", "app.py"], ["show", "app"], ["lint", "."], ["tasks", "a.py"]]
    for args, status, out, err in call_all(tmp_path / "gone", calls):
        assert (status, out, err.count("\n")) == (2, "", 1), args
        assert err.startswith("otpy"), args


WRITTEN = [
    ["check", "app"],
    ["show", "app"],
    ["tasks", "build.py", "--progress"],
    ["lint", "."],
    ["run", "--help"],
]
"""By the commands themselves, by rich, and by click."""


def test_a_stdout_whose_disk_is_full_is_told_in_one_line(app):
    """The status says that the output is missing. No traceback is printed, also not at
    the end of the interpreter.
    """
    (app / "build.py").write_text(
        "import threading\nfrom otpy.taskgraph import task\n@task()\ndef one(): pass\n"
    )
    (app / "raw.py").write_text("import threading\nthreading.Thread()\n")
    source = """
    import json, os, sys
    import rich.console, rich.tree
    from otpy import process, supervisor
    from otpy.cli.group import otpy
    os.chdir(sys.argv[1])
    for args in json.loads(sys.argv[2]):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            otpy.main(args, prog_name="otpy")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
    ran = kit.python(source, app, json.dumps(WRITTEN), env={"PYTHONUNBUFFERED": ""})
    assert ran.out.split() == ["74"] * len(WRITTEN)
    assert ran.err == "otpy: cannot write: No space left on device\n" * len(WRITTEN)


def test_whatever_is_nested_deeply_is_refused_in_one_line(tmp_path):
    """A parser's RecursionError or MemoryError is an error of its input."""
    (tmp_path / "tasks.py").write_text(
        "from otpy.taskgraph import task\n@task()\ndef one(): pass\n"
    )
    (tmp_path / "deep.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    (tmp_path / "deep.py").write_text("x = " + "-" * 200_000 + "1\n")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000 + "]" * 100_000)
    calls = [
        ["tasks", "tasks.py", "--state-file", "deep.json"],
        ["check", "deep.py"],
        ["tasks", "deep.py"],
        ["run", ".".join(["a"] * 10_000)],
        ["lint", "tasks.py", "--config", "deep.toml"],
    ]
    for args, status, out, err in call_all(tmp_path, calls):
        assert (status, out, err.count("\n")) == (2, "", 1), args


def test_a_state_file_without_end_is_refused(tmp_path, monkeypatch):
    """A state file is read up to LARGEST bytes."""
    from otpy.cli import taskfile

    monkeypatch.setattr(taskfile, "LARGEST", 1000)
    with pytest.raises(taskfile.Problem, match="more than 1000 bytes"):
        taskfile._read_state(Path("/dev/zero"))


def test_results_that_are_given_are_kept(tmp_path):
    """Results may come from the state file and from ``setup_state``; a task that runs
    replaces its own.
    """
    (tmp_path / "build.py").write_text("""
from otpy.taskgraph import task

def setup_state(state):
    state["results"] = {**state.get("results", {}), "compile": "given.o", "pack": "old"}

@task()
def compile(): return "main.o"

@task(after=["compile"], with_state=True)
def link(state): print("SEES", sorted(state["results"].items()))

@task(after=["link"])
def pack(): return "new"
""")
    (tmp_path / "state.json").write_text('{"results": {"fetch": 3}}')
    (tmp_path / "wrong.json").write_text('{"results": 3}')
    one = otpy_command("tasks", "build.py::link", "--state-file", "state.json", cwd=tmp_path)
    seeded = otpy_command("tasks", "build.py::link", "--result-compile=mine.o", cwd=tmp_path)
    (tmp_path / "wrong.py").write_text(
        "from otpy.taskgraph import task\n@task()\ndef one(): pass\n"
    )
    wrong = otpy_command("tasks", "wrong.py", "--state-file", "wrong.json", cwd=tmp_path)

    assert "SEES [('compile', 'given.o'), ('fetch', 3), ('pack', 'old')]" in one.stdout
    assert "SEES [('compile', 'mine.o'), ('pack', 'old')]" in seeded.stdout
    expected = "expected a dict, from names of tasks to their results"
    assert wrong.stderr == f"otpy tasks: wrong.py: state['results'] is int; {expected}\n"
