"""Root: what a system lacks is done otherwise there, or refused with its name."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from otpy import supervisor
from otpy.children.program import guard_process as guard
from otpy.children.program import notify
from otpy.reports import ChildTerminated
from otpy.runtime import descendants, posix, threads
from tests import pages
from tests.helpers import wait_until
from tests.programs import SEND, mark, marked, number_in, sh
from tests.programs import python as python_program
from tests.seams.kit import python

WITHOUT_WAITING = """
import os, signal
for name in ("waitid", "waitid_result", "P_PID", "P_PIDFD", "P_ALL", "WNOWAIT", "WEXITED", "WSTOPPED", "pidfd_open"):
    vars(os).pop(name, None)
vars(signal).pop("pidfd_send_signal", None)
"""
"""macOS with Python 3.11 and 3.12, and PyPy, have none of these."""


def test_ends_are_told_without_waitid_and_pidfds():
    """The exit code comes from a thread per program, which waits with what there is."""
    ran = python(
        WITHOUT_WAITING
        + """
import queue
from otpy import process, start, supervisor
from otpy.reports import ChildTerminated
ends = queue.Queue()
children = [process("sh", "-c", "exit 3", id="a", restart="temporary"), process("sleep", "1000", id="b"),
            process("sh", "-c", "trap '' TERM; echo up; exec sleep 1000", id="c", ready="up", shutdown=0.1)]
app = start(supervisor("app", children=children), reports=ends, log=False)
while not isinstance(end := ends.get(timeout=20), ChildTerminated):
    pass
report = app.stop()
print(end.reason, report.stopped, report.interrupted, report.unstopped)
"""
    )

    assert ran.out == "crashed: exit code 3 ('app/b',) ('app/c',) ()\n"


def test_without_waitid_the_end_is_waited_for_by_kqueue(monkeypatch):
    """Where there is one, as on macOS: it leaves the process to be reaped."""
    asked: list[tuple[object, ...]] = []

    class Queue:
        def control(self, changes: list[object], most: int, timeout: float | None) -> None:
            asked.append((*changes, most, timeout))

        def close(self) -> None:
            asked.append(("closed",))

    names = {"KQ_FILTER_PROC": "proc", "KQ_EV_ADD": 1, "KQ_EV_ONESHOT": 16, "KQ_NOTE_EXIT": "exit"}
    kevent = lambda *event: event
    for name, value in {**names, "kqueue": Queue, "kevent": kevent}.items():
        monkeypatch.setattr(select, name, value, raising=False)
    monkeypatch.delattr(os, "waitid")
    with subprocess.Popen(["true"]) as child:
        assert posix.await_exit(child.pid) == posix.Ended(None, is_reaped=False)

    assert asked == [((child.pid, "proc", 17, "exit"), 1, None), ("closed",)]


def test_without_waitid_a_blocking_wait_reaps(monkeypatch):
    monkeypatch.delattr(os, "waitid")
    child = subprocess.Popen(["sh", "-c", "exit 3"])

    assert posix.await_exit(child.pid) == posix.Ended(3, is_reaped=True)
    assert posix.await_exit(child.pid) == posix.Ended(None, is_reaped=True)
    assert posix.reap(child.pid) == posix.Ended(None, is_reaped=True)
    child.wait()


def test_green_threads_never_wait_in_the_system(monkeypatch):
    """gevent and eventlet have all threads in one of the system: if that waits, all do."""
    monkeypatch.setattr(posix._thread, "start_new_thread", lambda *args: None)
    turns: list[float] = []
    child = subprocess.Popen(["sleep", "1000"])

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(posix.time, "sleep", sleep)

    assert posix.await_exit(child.pid) == posix.Ended(-9, is_reaped=False)
    assert turns == [posix.TURN]
    child.wait()


# What is taken away, alone and together

LACKS = {
    "waitid": """
for name in ("waitid", "waitid_result", "P_PID", "P_PIDFD", "P_ALL", "WNOWAIT", "WEXITED", "WSTOPPED"):
    vars(os).pop(name, None)
""",
    "pidfds": "vars(os).pop('pidfd_open', None); vars(signal).pop('pidfd_send_signal', None)",
    "proc": """
def refuse(event, args):
    if event in ("open", "os.listdir", "os.scandir") and str(args[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(args[0]))
def readlink(path, *, dir_fd=None, readlink=os.readlink):
    refuse("open", (path,))
    return readlink(path, dir_fd=dir_fd)
os.readlink = readlink
sys.addaudithook(refuse)
""",
    "abstract sockets": """
def refuse_abstract(event, args):
    if event == "socket.bind" and args[1][:1] in (b"\\0", "\\0"):
        raise OSError(2, "No such file or directory")
sys.addaudithook(refuse_abstract)
""",
    "known senders": "import socket; del socket.SO_PASSCRED, socket.SCM_CREDENTIALS, socket.MSG_NOSIGNAL",
    "resource": "sys.modules['resource'] = None",
    "O_CLOEXEC": "del os.O_CLOEXEC",
    "masks of threads": "del signal.pthread_sigmask",
    "epoll": "import select; del select.epoll",
    "what only Linux has": "import fcntl, time; del fcntl.F_SETSIG, time.CLOCK_BOOTTIME; vars(os).pop('O_ASYNC', 0)",
    "interrupts": "import ctypes; del ctypes.pythonapi, sys._current_frames",
}
"""Python that takes something away; run first in each Python of a trial, but in the guard."""

POSIX = tuple(name for name in LACKS if name != "interrupts")

TOGETHER = {
    "macOS 3.11": (
        "waitid",
        "pidfds",
        "proc",
        "abstract sockets",
        "known senders",
        "epoll",
        "what only Linux has",
    ),
    "another POSIX system": POSIX,
    "PyPy": ("waitid", "pidfds", "interrupts"),
}

TOLD = """
threads: crashed app/b app/a
{interrupt}
programs: 3 app/writes app/notifies killed: app/stays
log files: hello 0o600
callables: exit code 7 app/c app/a
signals: shutdown
"""


def try_without(names, tmp_path):
    """One of everything, where all of *names* are missing."""
    lacking = "import os, signal, sys\n" + "\n".join(LACKS[name] for name in names)
    (tmp_path / "sitecustomize.py").write_text(lacking)
    root = Path(__file__).parents[2]
    ran = python(
        "from tests.seams import trial; trial.main()",
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
    )
    can_interrupt = "interrupts" not in names and sys.implementation.name == "cpython"
    interrupt = "interrupt: app/a" if can_interrupt else "interrupt: app/a unstopped"
    assert ran.out == TOLD.lstrip().format(interrupt=interrupt)


@pytest.mark.parametrize("platform", TOGETHER)
def test_one_of_everything_works_where_a_platform_lacks(platform, tmp_path):
    """What docs/reference/platforms.md says of these platforms."""
    try_without(TOGETHER[platform], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LACKS)
def test_one_of_everything_works_without(name, tmp_path):
    try_without([name], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="there are no subinterpreters")
def test_one_of_everything_but_signals_works_in_a_subinterpreter():
    """It shares the lock. Callables are started by it, too."""
    source = """
    import sys
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    one = interpreters.create("legacy") if sys.version_info >= (3, 13) else interpreters.create(isolated=False)
    interpreters.run_string(one, '''if True:
        import os
        from tests.seams import trial
        for part in (trial.threads_and_coroutines, trial.interrupts, trial.programs, trial.callables):
            part()
        os._exit(0)
    ''')
    """
    ran = python(source, flags=["-W", "ignore"], env={"PYTHONPATH": str(Path(__file__).parents[2])})
    *all_but_signals, _ = TOLD.lstrip().format(interrupt="interrupt: app/a").splitlines()
    assert ran.out.splitlines() == all_but_signals


# Without /proc


@pytest.fixture
def without_proc(monkeypatch):
    """Nothing is known of a program but its group."""
    monkeypatch.setattr(descendants, "is_possible", lambda: False)


@pytest.mark.usefixtures("without_proc")
def test_without_proc_the_group_ends_with_its_leader(launch, recorder):
    number = mark()
    launch(supervisor("app", children=[sh(f"sleep {number} & exit 3", restart="temporary")]))

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    wait_until(lambda: not marked(number))


@pytest.mark.usefixtures("without_proc")
def test_without_proc_a_group_has_its_time(launch, tmp_path):
    """Its leader has been reaped; the rest of the group is waited for, or killed."""
    number = mark()
    script = "trap '' TERM; sleep $2 & echo $! >$1.new; mv $1.new $1; trap - TERM; wait"
    app = launch(supervisor("app", children=[sh(script, tmp_path / "pid", number, shutdown=0.2)]))
    assert number_in(tmp_path / "pid") in marked(number)
    report = app.stop()

    assert (report.interrupted, report.unstopped) == (("app/x",), ())
    wait_until(lambda: not marked(number))


# The guard


def test_a_guard_without_pidfds_holds_programs_by_their_numbers(launch, monkeypatch, tmp_path):
    """It is told of their ends, too."""
    source = f"""
{WITHOUT_WAITING}
import runpy, sys
sys.argv[0] = {guard.__file__!r}
sys.path.insert(0, {str(tmp_path)!r})
runpy.run_path({guard.__file__!r}, run_name="__main__")
"""
    number = mark()
    program_text = f"""
        import os, sys
        from otpy.children.program import guard
        guard.script = lambda: ["-c", {source!r}]
        del os.pidfd_open
        from otpy import process, start, supervisor
        children = [process("sh", "-c", "sleep {number} & sleep {number}", id="a"),
                    process("true", id="b", restart="temporary")]
        start(supervisor("app", children=children), log=False)
        from tests.helpers import wait_until
        from tests.programs import marked
        wait_until(lambda: len(marked({number!r})) == 2)
        os.kill(os.getpid(), 9)
        """
    python(program_text, expect=-signal.SIGKILL)
    wait_until(lambda: not marked(number))


def test_a_guard_takes_what_limit_it_gets(monkeypatch):
    """macOS accepts no infinite limit; a guard that died of that guarded nobody."""
    import resource

    def refuse(*args: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    guard.raise_limit()
    monkeypatch.setitem(sys.modules, "resource", None)
    guard.raise_limit()


def test_a_guard_waits_by_kqueue_where_there_is_one(monkeypatch):
    made: list[object] = []
    news = (
        [SimpleNamespace(filter="proc")],
        [SimpleNamespace(filter="proc"), SimpleNamespace(filter="read")],
    )
    told = iter(news)

    class Queue:
        def control(self, changes: object, most: int) -> object:
            if changes is None:
                return next(told)
            made.append(changes)
            return []

    facts = {
        "KQ_FILTER_READ": "read",
        "KQ_FILTER_PROC": "proc",
        "KQ_EV_ADD": 1,
        "KQ_NOTE_EXIT": "exit",
    }
    for name, value in {**facts, "kqueue": Queue, "kevent": lambda *event: event}.items():
        monkeypatch.setattr(select, name, value, raising=False)
    wait = guard.waiter(123)

    assert made == [[(0, "read", 1)], [(123, "proc", 1, "exit")]]
    assert [wait(), wait()] == [False, True]


def test_a_guard_told_of_ends_forgets_programs():
    """Where it cannot notice them."""
    programs = guard.Programs()
    programs.held = {5: -1, 6: -1}
    programs.note(b"-5\n!/no/such/direc")
    programs.note(b"tory\n-7\n")

    assert (programs.held, programs.litter) == ({6: -1}, ["/no/such/directory"])
    programs.clean_up()


# Sockets


def test_where_senders_are_not_known_letters_are_taken(launch, monkeypatch):
    """There a socket is protected by its directory, which only this user may enter."""
    monkeypatch.delattr(socket, "SO_PASSCRED")
    app = launch(
        supervisor(
            "app", children=[python_program(SEND + "tell(b'READY=1')\nsignal.pause()", ready=True)]
        )
    )

    assert app.which_children()[0].state.value == "running"


def test_an_address_leads_there_from_any_directory(monkeypatch, tmp_path):
    """The program may run in another one, and this process may go elsewhere."""
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    monkeypatch.setattr(notify.tempfile, "gettempdir", lambda: "here")
    monkeypatch.setattr(notify, "LONGEST", 1000)
    room = notify.Mailroom(None)
    monkeypatch.setattr(notify.posix, "datagram_socket", lambda: Bound())
    box = room.open(SimpleNamespace(add_litter=lambda directory: None))
    box.close()
    room.close()

    assert box.address.startswith(f"{tmp_path}/here/")


class Bound(SimpleNamespace):
    """A socket that can be bound to a path of any length."""

    def bind(self, address):
        Path(address).touch()

    def setblocking(self, flag):
        pass

    setsockopt = close = lambda *args: None


def test_an_address_is_never_too_long(monkeypatch, tmp_path):
    """The system takes about a hundred bytes."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(notify.tempfile, "gettempdir", lambda: str(deep))
    line = SimpleNamespace(add_litter=lambda directory: None)
    room = notify.Mailroom(None)
    box = room.open(line)
    again = room.open(line)
    assert not any(one.address.startswith(str(deep)) for one in (box, again))
    assert Path(room.directory).stat().st_mode & 0o066 == 0
    for one in (box, again):
        one.close()
    room.close()

    assert not Path(room.directory).exists()


# Interpreters


def test_green_threads_have_no_main_thread_and_signals_stop_the_tree():
    """eventlet replaces ``current_thread``; the system knows where signals are handled."""
    ran = python(
        """
import os, signal, threading, _thread
begin = _thread.start_new_thread
_thread.start_new_thread = lambda *args: begin(*args)
green = threading.Thread(name="green")
threading.current_thread = lambda: green
from otpy import run, supervisor, thread
def job(ctx):
    os.kill(os.getpid(), signal.SIGTERM)
    ctx.wait_stop()
print(run(supervisor("app", children=[thread(job, id="a")]), log=False).reason)
"""
    )

    assert ran.out == "shutdown\n"


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="it is older Pythons that pretend to be 3.13t"
)
def test_free_threaded_3_13_is_refused_by_its_name():
    """It would crash; with the lock, and from 3.14 on, it would not."""
    ran = python(
        """
import sys
import attrs, asyncio, structlog
for version, has_lock in (((3, 14), False), ((3, 13), True), ((3, 13), False)):
    sys.version_info, sys._is_gil_enabled = version, lambda: has_lock
    for name in [name for name in sys.modules if name.split(".")[0] == "otpy"]:
        del sys.modules[name]
    try:
        import otpy.runtime.stacks
        print("imported")
    except ImportError as error:
        print(str(error)[:50])
"""
    )

    assert ran.out == "imported\nimported\notpy does not run on free-threaded Python 3.13: it\n"


def test_the_page_quotes_what_is_said():
    """Each refusal in docs/reference/platforms.md is in the code, or is tested here."""
    root = Path(__file__).parents[2]
    page = pages.read("platforms.md")
    code = "".join(path.read_text() for path in (root / "otpy").rglob("*.py"))
    code = re.sub(r'"\n +"', "", code)  # a text may go over several lines
    told = (
        "a POSIX system, such as Linux or macOS",
        "no Python can be started: the program is frozen, and sys.executable is the program itself",
        "it crashes when the stacks of threads are looked at; use 3.14t, or set PYTHON_GIL=1",
        "programs_unguarded",
        "signals_inherited",
    )

    assert [text for text in told if text not in page] == []
    assert [text for text in told if text not in code] == []


def test_a_start_that_a_keyboard_interrupt_ends_leaves_no_thread(monkeypatch):
    """``Thread.start`` itself forgets the thread at an Exception only."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threads.Witness, "__init__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        threads.spawn(print, name="x", role=threads.Role.HELPER, purpose="none", owner=object())

    assert not [one for one in threading.enumerate() if one.name == "x"]


# Windows

WINDOWS = """
import asyncio, ctypes, faulthandler, multiprocessing.spawn, multiprocessing.resource_tracker, os, pathlib, signal, sys
import logging.handlers, sqlite3, ssl, structlog, attrs, subprocess, tempfile, urllib.request
pathlib.Path = pathlib.WindowsPath = pathlib.PosixPath  # what comes with the true system works there
signal.SIGBREAK = signal.SIGUSR2
for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "register_at_fork", "fork", "waitid", "pidfd_open", "killpg",
             "getpgrp", "setsid", "WNOWAIT", "P_PID", "WEXITED", "sysconf", "getsid", "geteuid", "getuid"):
    vars(os).pop(name, None)
for name in ("SIGHUP", "SIGQUIT", "SIGKILL", "SIGCONT", "SIGPIPE", "pthread_sigmask"):
    vars(signal).pop(name, None)
for name in ("resource", "fcntl"):
    sys.modules[name] = None
sys.platform, os.name = "win32", "nt"
"""


def test_on_windows_all_names_are_there_and_processes_are_refused_by_the_platform():
    """Threads work; what is refused says why."""
    ran = python(
        WINDOWS
        + """
from otpy import *
import otpy
for target in ("sleep", print):
    try:
        process(target, id="x")
    except SpecError as error:
        print(error)
run(supervisor("app", auto_shutdown="any_significant",
               children=[thread(lambda ctx: None, id="job", restart="transient", significant=True)]), log=False)
json_reports(lambda name, text: None)
"""
    )

    assert ran.out == "x: platform = 'win32': expected a POSIX system, such as Linux or macOS\n" * 2
