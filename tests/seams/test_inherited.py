"""Root: what was inherited, or a library has changed, is set and not assumed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import otpy
from otpy import process, supervisor
from otpy.reports import Unstopped
from otpy.runtime import posix
from tests.helpers import HANG, wait_until
from tests.programs import mark, marked, sh
from tests.seams.kit import python

# Descriptors


def test_descriptors_are_three_or_more_where_the_first_ones_are_closed(tmp_path):
    """Daemons close 0, 1 and 2.

    What takes their place would be written to by anybody.
    """
    python(
        """
        import os, sys
        for fd in range(3):
            os.close(fd)
        from otpy.runtime import posix
        made = [*posix.pipe(), *(one.fileno() for one in posix.socket_pair()), posix.datagram_socket().fileno()]
        made += [posix.open_file(sys.argv[1], os.O_WRONLY | os.O_CREAT), posix.selector().fileno()]
        made += [posix.open_process(os.getpid())]
        assert not any(os.get_inheritable(fd) for fd in made)
        os.write(made[5], b"%d of %d" % (min(made), len(made)))
        """,
        tmp_path / "made",
        stderr=subprocess.DEVNULL,
    )

    assert (tmp_path / "made").read_text() == "3 of 8"


def test_none_of_a_running_tree_is_stdin_stdout_or_stderr(tmp_path):
    """Neither what the main thread waits at, nor what an event loop makes: C code may write to 2 at any time."""
    python(
        """
        import asyncio, os, signal, sys
        for fd in range(3):
            os.close(fd)
        from otpy import coroutine, run, supervisor

        async def look(ctx):
            taken = [fd for fd in range(3) if os.path.exists(f"/proc/self/fd/{fd}")]
            with open(sys.argv[1], "w") as file:
                file.write(f"{taken}")
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(1000)

        run(supervisor("app", children=[coroutine(look)]), log=False)
        """,
        tmp_path / "taken",
        stderr=subprocess.DEVNULL,
    )

    assert (tmp_path / "taken").read_text() == "[]"


def test_a_program_that_inherits_a_closed_stdout_gets_none_of_ours(tmp_path):
    """Its first file would become its stdout otherwise."""
    python(
        """
        import os, sys
        os.close(1)
        from otpy import process, start, supervisor
        script = "where=$(readlink /proc/$$/fd/1); echo $where >$0"
        job = process("sh", "-c", script, sys.argv[1], stdout="inherit", restart="temporary")
        from tests.helpers import wait_until
        with start(supervisor("app", children=[job]), log=False):
            wait_until(lambda: os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1]))
        """,
        tmp_path / "where",
    )

    assert (tmp_path / "where").read_text() == "/dev/null\n"


def test_sockets_block_whatever_a_library_has_set(monkeypatch):
    """A default timeout, or a patched ``socketpair``, makes sockets that do not block."""
    monkeypatch.setattr(socket, "socketpair", lambda *args: pytest.fail("not this one"))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.5)
    try:
        made = [*posix.socket_pair(), posix.datagram_socket()]
    finally:
        socket.setdefaulttimeout(before)

    assert [os.get_blocking(one.fileno()) for one in made] == [True] * 3
    assert [one.gettimeout() for one in made] == [None] * 3
    for one in made:
        one.close()


def test_a_descriptor_that_cannot_be_lifted_is_closed(monkeypatch):
    """What is made in two steps is undone when the second fails."""
    import fcntl

    def refuse(*args: object) -> int:
        raise OSError("too many")

    read, write = os.pipe()
    monkeypatch.setattr(posix, "LOWEST", 1 << 20)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(OSError, match="too many"):
        posix._pair(read, write)

    for fd in (read, write):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# Signals

SHOW = "grep -E '^Sig(Blk|Ign)' /proc/self/status | tr -d '\\n\\t' >$0.new; mv $0.new $0; exec sleep 1000"


def test_a_program_blocks_and_ignores_nothing(tmp_path):
    """Or its stop would take its whole time, whatever this process does about signals."""
    ran = python(
        """
        import os, signal, sys
        from otpy import process, start, supervisor
        from tests.helpers import wait_until
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGRTMIN})
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        job = process("sh", "-c", sys.argv[2], sys.argv[1], id="job", shutdown=20)
        with start(supervisor("app", children=[job]), log=False) as app:
            wait_until(lambda: os.path.exists(sys.argv[1]))
            print(app.stop().interrupted)
        """,
        tmp_path / "signals",
        SHOW,
    )

    assert (tmp_path / "signals").read_text() == f"SigBlk:{0:016x}SigIgn:{0:016x}"
    assert ran.out == "()\n"
    assert ran.seconds < 15  # it was not SIGKILL after 20 s


def test_what_nohup_ignores_stays_ignored_unless_it_is_the_stop_signal(tmp_path):
    """A shell ignores SIGINT for what it starts in the background, and nohup SIGHUP."""
    python(
        """
        import os, signal, sys
        from otpy import process, start, supervisor
        from tests.helpers import wait_until
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        files = [sys.argv[1] + name for name in ("usual", "hup")]
        jobs = [process("sh", "-c", sys.argv[2], files[0], id="usual"),
                process("sh", "-c", sys.argv[2], files[1], id="hup", stop_signal="SIGHUP")]
        with start(supervisor("app", children=jobs), log=False):
            wait_until(lambda: all(map(os.path.exists, files)))
        """,
        tmp_path / "signals-",
        SHOW,
    )
    ignored = {
        name: int((tmp_path / f"signals-{name}").read_text().partition("SigIgn:")[2], 16)
        for name in ("usual", "hup")
    }

    assert ignored == {
        "usual": 1 << (signal.SIGINT - 1) | 1 << (signal.SIGHUP - 1),
        "hup": 1 << (signal.SIGINT - 1),
    }


@pytest.fixture
def blocked():
    """This thread blocks a signal, and so does what it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


FAILURES = {
    # what: (argv, cwd, the file that is named)
    "missing": (["/no/such/program"], None, "/no/such/program"),
    "not in PATH": (["no-such-program"], None, "no-such-program"),
    "not executable": (["/etc/passwd"], None, "/etc/passwd"),
    "bad cwd": (["true"], "/no/such/place", "/no/such/place"),
}


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(("argv", "cwd", "file"), FAILURES.values(), ids=FAILURES)
def test_errors_are_the_same_where_signals_are_reset(argv, cwd, file):
    """There another process becomes the program, and it has to report what fails."""
    with pytest.raises(OSError, match=r"No such|denied") as caught:
        posix.start_process(argv, cwd=cwd)

    assert caught.value.filename == file


@pytest.mark.usefixtures("blocked")
def test_the_environment_is_the_same_where_signals_are_reset():
    """Python, which becomes the program, adds nothing to it."""
    read, write = posix.pipe()
    popen = posix.start_process(["/usr/bin/env"], env={b"A": b"\xff", b"LANG": b"C"}, stdout=write)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        said = output.read()

    assert (popen.wait(), said) == (0, b"A=\xff\nLANG=C\n")


# The working directory; what libraries replace


def test_a_program_starts_where_the_working_directory_was_removed():
    """Nothing but a relative path needs one."""
    python(
        """
        import os, tempfile
        from otpy import process, start, supervisor
        gone = tempfile.mkdtemp()
        os.chdir(gone)
        os.rmdir(gone)
        start(supervisor("app", children=[process("sleep", "1000")]), log=False).stop()
        """
    )


def test_a_library_that_replaces_popen_and_close_is_stepped_around():
    """gevent's ``Popen`` waits for all children; its ``close`` may come later, or never."""
    ran = python(
        """
        import os, subprocess
        class Popen(subprocess.Popen):
            def __init__(self, *args, **options):
                raise RuntimeError("not this one")
        Popen.__module__ = "green.subprocess"
        subprocess.Popen = Popen
        os.close = lambda fd: None
        from otpy import ExitKind, process, start, supervisor
        from otpy.reports import ChildTerminated
        ends = []
        app = start(supervisor("app", children=[process("sh", "-c", "exit 3", restart="temporary", id="x")]),
                    log=False, reports=lambda one: isinstance(one, ChildTerminated) and ends.append(one.reason))
        from tests.helpers import wait_until
        wait_until(lambda: ends)
        print(*ends)
        app.stop()
        """
    )

    assert ran.out == "crashed: exit code 3\n"


# The supervisor's thread starts nothing


@pytest.fixture
def hung(monkeypatch):
    """Starts of the program "hangs" do not return until the test says so."""
    go, begun, real = threading.Event(), threading.Event(), posix.start_process

    def start_process(argv: Any, **options: Any) -> Any:
        if argv[0] == "hangs":
            begun.set()
            go.wait(HANG)
            argv = argv[1:]
        return real(argv, **options)

    monkeypatch.setattr(posix, "start_process", start_process)
    yield begun, go
    go.set()


def test_a_start_that_hangs_holds_up_nobody(launch, recorder, hung):
    """The supervisor answers, starts and stops others, and gives that one up by name."""
    begun, go = hung
    number = mark()
    app = launch(supervisor("app", children=[process("sleep", "1000")]))
    with pytest.raises(otpy.CallTimeout):
        app.start_child(process("hangs", "sleep", number, id="x"), timeout=0.01)
    assert begun.wait(HANG)
    app.start_child(process("sleep", "1000", id="y"))
    assert [(child.id, child.state.value) for child in app.which_children()] == [
        ("sleep", "running"),
        ("x", "starting"),
        ("y", "running"),
    ]
    report = app.stop(1.0)

    assert [one.path for one in report.unstopped] == ["app/x"]
    assert "it is being started: hangs sleep" in recorder.wait_for(Unstopped, "app/x").stack
    assert "go.wait(HANG)" in recorder.of(Unstopped)[0].stack
    go.set()
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("app ")]
    )
    assert marked(number) == set()


def test_a_stop_overtakes_a_start(launch, hung):
    """What is to stop before it is executed is not executed, or ends at once."""
    begun, go = hung
    app = launch(supervisor("app"))
    with pytest.raises(otpy.CallTimeout):
        app.start_child(process("hangs", "sleep", "1000", id="x"), timeout=0.01)
    assert begun.wait(HANG)
    stopper = threading.Thread(target=app.terminate_child, args=("x",))
    stopper.start()
    wait_until(lambda: app.which_children()[0].state is otpy.ChildState.STOPPING)
    go.set()
    stopper.join(HANG)

    assert not stopper.is_alive()
    assert app.which_children() == ()


def test_starts_share_one_thread(launch):
    """One after the other: a thread is made for a start only if another start hangs."""
    launch(
        supervisor(
            "app", children=[process("sleep", "1000", id=f"s{index}") for index in range(10)]
        )
    )

    assert len([thread for thread in threading.enumerate() if thread.name == "app (launcher)"]) == 1


HUNG = """
import ctypes, os, sys, tempfile, threading, time
folder = tempfile.mkdtemp()
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
assert not ctypes.CDLL(None, use_errno=True).mount(b"hung", folder.encode(), b"fuse", 0, options)
import otpy
from otpy import process, start, supervisor
app = start(supervisor("app"), log=False)
try:
    app.start_child(process("sleep", "1000", id="x", cwd=folder), timeout=0.5)
except otpy.CallTimeout:
    print([child.state.value for child in app.which_children(timeout=5)], app.stop(1.0).interrupted, flush=True)
os._exit(0)
"""


def can_hang() -> bool:
    return (
        os.getuid() == 0
        and Path("/dev/fuse").exists()
        and not subprocess.run(
            ["unshare", "-m", "true"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.skipif(
    not can_hang(), reason="a file system that hangs needs root, unshare and /dev/fuse"
)
def test_a_working_directory_that_hangs_holds_up_nobody():
    """What hangs before it is executed is killed when its time is over."""
    ran = python(
        "import os, sys; os.execvp('unshare', ['unshare', '-m', '--kill-child', sys.executable, '-c', sys.argv[1]])",
        HUNG,
    )

    assert ran.out == "['starting'] ('app/x',)\n"


def test_no_secret_is_in_the_repr_of_a_spec():
    """Specs are printed in logs and debuggers; an environment may hold passwords."""
    spec = sh("true", env={"DB_PASSWORD": "hunter2", "API_TOKEN": "hunter3"})

    assert "hunter" not in repr(supervisor("app", children=[spec])) + repr(spec)
    assert "DB_PASSWORD" in repr(spec.start)
