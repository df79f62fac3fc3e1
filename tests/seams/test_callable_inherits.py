"""A callable runs, whatever its parent process has inherited.

It runs also if a library has changed the parent process. Each test starts a fresh
interpreter, ``main.py``, which imports ``jobs.py`` from the same directory.
"""

import _thread
import os
import pathlib
import queue
import subprocess
import sys
import threading
import zipfile
from types import SimpleNamespace

import pytest

import otpy
from otpy.children.callable import far_side, protocol
from tests.helpers import HANG
from tests.seams.kit import python

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need POSIX")

JOBS = """
import os, signal, sys

def idle(ctx):
    ctx.wait_stop()

def look(ctx, where):
    mask = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    ignored = [n for n in (signal.SIGTERM, signal.SIGUSR1) if signal.getsignal(n) is signal.SIG_IGN]
    standard = [os.fstat(n).st_rdev for n in (0, 1, 2)]
    with open(where + ".part", "w") as file:
        file.write(repr((mask, ignored, standard, sys.path)))
    os.rename(where + ".part", where)
    ctx.wait_stop()

def crash_twice(ctx):
    state = (ctx.state or 0) + 1
    ctx.check_in(state)
    print("a line", state, flush=True)
    if state < 3:
        raise ValueError(f"bad luck {state}")
    ctx.wait_stop()

def share(ctx, where):
    from multiprocessing.shared_memory import SharedMemory
    name = SharedMemory(create=True, size=1000).name
    with open(where, "w") as file:
        file.write(name)
    os.kill(os.getpid(), signal.SIGKILL)
"""

RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
runpy.run_module(sys.argv[2].removesuffix(".py"), run_name="__main__", alter_sys=True)
"""

PRELUDE = """
import os, queue, signal, sys
import jobs
from otpy import StartError, process, start, supervisor
from otpy.reports import ChildTerminated, Progress

reports = queue.Queue()

def wait_for(kind, count=1):
    while count:
        report = reports.get(timeout=20)
        count -= isinstance(report, kind)
    return report

def wait_for_file(name):
    import time
    while not os.path.exists(name):
        time.sleep(0.005)
    return open(name).read()

def launch(*args, **options):
    return start(supervisor("app", children=[process(*args, **options)]), reports=reports, log=False)
"""


@pytest.fixture
def program(tmp_path):
    """Run PRELUDE and a text as ``main.py``, with ``jobs.py`` beside it, in a directory
    of its own.
    """
    (tmp_path / "jobs.py").write_text(JOBS)

    def run(text, before="", **options):
        (tmp_path / "main.py").write_text(
            f"{before}\n{PRELUDE}\nif __name__ == '__main__':\n{text}"
        )
        return python(RUN, tmp_path, "main.py", **{"cwd": tmp_path, **options})

    return run


def test_standard_descriptors_that_are_closed(program, tmp_path):
    """What a callable raises, saves and prints does not mix; its own stdin, stdout and
    stderr are there.
    """
    text = """
    app = launch(jobs.crash_twice)
    wait_for(Progress, 3)
    ends = [app.which_children()[0].last_exit, app.which_children()[0].incarnation]
    app.stop()
    launch(jobs.look, "looked")
    looked = wait_for_file("looked")
    with open("result", "w") as file:
        file.write(f"{ends} {looked}")
    os._exit(0)
    """
    (tmp_path / "main.py").write_text(f"{PRELUDE}\nif __name__ == '__main__':\n{text}")
    shell = ["sh", "-c", 'exec "$0" main.py <&- >&- 2>&-', sys.executable]
    subprocess.run(shell, cwd=tmp_path, check=True, timeout=30, start_new_session=True)
    result = (tmp_path / "result").read_text()

    assert "ValueError('bad luck 2')" in result
    assert f"{[pathlib.Path(os.devnull).stat().st_rdev] * 3}" in result


def test_signals_and_the_defaults_of_sockets(program):
    """The callable blocks no signal, and ignores only those that a shell or nohup ignores.

    Neither a patched socketpair, as gevent has it, nor a default timeout makes its
    wires non-blocking.
    """
    ran = program(
        """
    real = socket.socketpair
    def patched(*args, **options):
        pair = real(*args, **options)
        for one in pair:
            os.set_blocking(one.fileno(), False)
        return pair
    socket.socketpair = patched
    socket.setdefaulttimeout(0.01)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with launch(jobs.look, "looked") as app:
        print(wait_for_file("looked"))
        app.terminate_child("look")
        print(reports.qsize(), app.which_children()[0].last_exit)
    """,
        before="import socket",
    )
    looked, end = ran.out.splitlines()

    assert looked.startswith("([], [], ")
    assert end == "1 shutdown"


def test_the_interpreter_ends_with_the_callable(program, monkeypatch):
    """With PYTHONINSPECT an interpreter that runs ``-c`` would read more from stdin,
    and end with 1.
    """
    monkeypatch.setenv("PYTHONINSPECT", "1")
    ran = program(
        """
    with launch(jobs.look, "looked") as app:
        wait_for_file("looked")
        app.terminate_child("look")
        print(reports.qsize(), app.which_children()[0].last_exit)
    os._exit(0)
        """
    )

    assert ran.out == "1 shutdown\n"


class Asked:
    """A context that notes on which thread it was asked to stop."""

    def __init__(self):
        self.by = queue.SimpleQueue()

    def ask(self):
        self.by.put(threading.current_thread())

    fence = ask


@pytest.mark.parametrize("module", ["_thread", "eventlet.green.thread"])
def test_green_threads_are_asked_by_one_of_them(monkeypatch, module):
    """The order thread cannot wake a green thread of eventlet. It asks all others, and
    polls nothing.
    """
    orders = queue.SimpleQueue()
    wire = SimpleNamespace(orders=lambda: orders.get(timeout=HANG))
    monkeypatch.setattr(
        far_side._thread, "start_new_thread", Named(_thread.start_new_thread, module)
    )
    monkeypatch.setattr(far_side.os, "getpgrp", lambda: 0)
    monkeypatch.setattr(far_side.os, "_exit", lambda status: None)
    waiting, asked = far_side.Orders(wire, -1), Asked()
    order_thread = threading.Thread(target=waiting.listen)
    order_thread.start()
    waiting.obey(asked)
    orders.put(protocol.ASK)
    by_order_thread = asked.by.get(timeout=HANG) is order_thread
    orders.put(protocol.FENCE)
    orders.put(b"")
    order_thread.join(HANG)

    assert by_order_thread == (module == "_thread")


class Named:
    """A function that claims to be of another module."""

    def __init__(self, function, module):
        self.function, self.__module__ = function, module

    def __call__(self, *args, **options):
        return self.function(*args, **options)


def test_nothing_is_imported_from_the_working_directory(program, tmp_path):
    """That holds for the callable's interpreter and the resource tracker. The callable
    has the path of its parent process.
    """
    strange = tmp_path / "strange"
    strange.mkdir()
    modules = "socket pickle struct contextlib faulthandler threading signal importlib encodings multiprocessing os io"
    for name in modules.split():
        (strange / f"{name}.py").write_text(f"open({str(strange / 'hit')!r}, 'a').write('{name} ')")
    ran = program(
        """
    sys.path[:] = [entry for entry in sys.path if entry]
    os.chdir(sys.argv[1] + "/strange")
    with launch(jobs.look, sys.argv[1] + "/looked"):
        print(eval(wait_for_file(sys.argv[1] + "/looked"))[3] == sys.path)
    """
    )

    assert ran.out == "True\n"
    assert not (strange / "hit").exists()


def test_the_working_directory_is_removed(program, tmp_path):
    """A callable can be started, and restarted, in a directory that was removed."""
    (tmp_path / "gone").mkdir()
    ran = program("""
    os.chdir("gone")
    os.rmdir(os.getcwd())
    with launch(jobs.crash_twice) as app:
        wait_for(Progress, 3)
        print("lives:", app.which_children()[0].incarnation, flush=True)
    """)

    assert "lives: 3" in ran.out


def test_otpy_in_a_zip_file(tmp_path):
    """As zipapp, pex and shiv have it: the new interpreter loads the far side from the
    archive.
    """
    package, archive = pathlib.Path(otpy.__file__).parent, tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in package.rglob("*.py"):
            file.write(path, path.relative_to(package.parent))
        file.writestr("jobs.py", JOBS)
        file.writestr(
            "main.py",
            f"{PRELUDE}\nwith launch(jobs.look, sys.argv[3]):\n    print(wait_for_file(sys.argv[3]))",
        )
    ran = python(RUN, archive, "main.py", tmp_path / "looked")

    assert str(archive) in ran.out


@pytest.mark.parametrize(
    ("before", "reasons"),
    [
        ("import sys; sys.executable = None", ["sys.executable is None"]),
        (
            "import sys, otpy.children.callable.far_side as far_side; sys.frozen = True",
            ["the program is frozen", "neither in a directory nor in a zip file"],
        ),
    ],
)
def test_where_no_python_can_be_started_a_callable_is_refused_with_the_reason(
    program, before, reasons
):
    """A frozen application is not started as if it were Python: it would start its tree
    again.
    """
    text = """
    try:
        launch(jobs.idle)
    except StartError as error:
        print(error.path, repr(error.__cause__))
    """
    another = "\n    del sys.frozen, far_side.__file__" + text if len(reasons) > 1 else ""
    ran = program(text + another, before=before)

    assert len(ran.out.splitlines()) == len(reasons)
    for line, reason in zip(ran.out.splitlines(), reasons, strict=True):
        assert line.startswith("app/idle NoPython(")
        assert reason in line


def test_a_python_without_waitid_and_without_pidfd(program):
    """macOS has neither in 3.11 and 3.12; each end has its reason all the same."""
    ran = program(
        """
    app = launch(jobs.crash_twice, restart="permanent")
    wait_for(Progress, 3)
    print(app.which_children()[0].last_exit)
    app.terminate_child("crash_twice")
    print("end:", app.which_children()[0].last_exit, flush=True)
    app.stop()
    """,
        before="import os\nfor name in ('waitid', 'P_PID', 'P_PIDFD', 'WNOWAIT', 'pidfd_open'):\n    delattr(os, name)",
    )

    assert "ValueError('bad luck 2')" in ran.out
    assert "end: shutdown" in ran.out


def test_what_a_killed_callable_has_shared_is_removed_when_the_parent_process_ends(
    program, tmp_path
):
    """The resource tracker is that of the parent process: one of the callable would die
    with it.
    """
    ran = program("""
    app = launch(jobs.share, "shared", restart="temporary")
    wait_for(ChildTerminated)
    name = wait_for_file("shared")
    print(name, os.path.exists(f"/dev/shm/{name}"))
    app.stop()
    """)
    name, was_there = ran.out.split()

    assert was_there == "True"
    assert not os.path.exists(f"/dev/shm/{name}")  # noqa: PTH110
    assert "leaked shared_memory" in ran.err
