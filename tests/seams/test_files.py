"""Files that others move, fill, block or replace: logs of programs, reports of ``otpy run``, what commands read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import otpy
from otpy import lint, supervisor
from otpy.children.program import lanes, logfiles
from otpy.children.program.logfiles import LogFile
from otpy.children.program.output import Journal
from otpy.reports import ChildTerminated, OutputLost, Progress
from otpy.runtime import threads
from tests.helpers import HANG, wait_until
from tests.programs import python, sh
from tests.seams import kit

OTPY = [sys.executable, "-m", "otpy"]


@pytest.fixture
def log(tmp_path):
    """A log file that is not written to yet."""
    file = LogFile(str(tmp_path / "log"))
    yield file
    file.close()


def write(file, text, size=1000, backups=0):
    left = bytearray(text.encode())
    file.write(left, size, backups)
    assert not left


@pytest.fixture
def looks_each_time(monkeypatch):
    monkeypatch.setattr(logfiles, "LOOK_AGAIN", 0.0)


# Whose file it is


def test_only_its_owner_may_read_a_log(log, tmp_path):
    """A log file has mode 0600, also the one that a rotation begins."""
    write(log, "1234\n", size=6, backups=1)
    write(log, "5678\n", size=6, backups=1)

    assert [stat.S_IMODE(one.stat().st_mode) for one in sorted(tmp_path.iterdir())] == [
        0o600,
        0o600,
    ]


def test_no_link_to_a_file_is_followed(log, tmp_path):
    """With a link, another user who may write to the directory could have any file of
    ours written to.
    """
    (tmp_path / "precious").write_text("mine\n")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="not followed") as caught:
        write(log, "theirs\n")

    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "precious").read_text() == "mine\n"


def test_no_file_is_made_through_a_link(log, tmp_path):
    """A link to a missing file makes no file."""
    (tmp_path / "log").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        write(log, "theirs\n")

    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("target", ["/dev/null", "/dev/stdout", "/proc/self/fd/1"])
def test_a_link_to_a_device_or_a_descriptor_is_followed(log, tmp_path, capfd, target):
    """Containers have such links: /var/log/x leads to /dev/stdout."""
    (tmp_path / "log").symlink_to(target)
    write(log, "hello\n", size=3)

    assert capfd.readouterr().out == ("" if target == "/dev/null" else "hello\n")
    assert (tmp_path / "log").is_symlink()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_descriptor_may_be_any_file_and_is_never_rotated(tmp_path, name):
    """In ``otpy run app.py > out`` stdout is a regular file, reached by a link."""
    source = f"""
    from otpy.children.program.logfiles import LogFile
    file = LogFile({name!r})
    for number in range(3):
        file.write(bytearray(b"a line\\n"), 10, 1)
    """
    with (tmp_path / "out").open("w") as out:
        kit.python(source, stdout=out)

    assert (tmp_path / "out").read_text() == "a line\n" * 3
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_log_never_takes_the_number_of_a_closed_stream(tmp_path):
    """A log with number 0 or 1 would get what this process prints, and be what it
    reads.
    """
    source = """
    import os, sys
    from otpy.children.program.logfiles import LogFile
    os.dup2(1, 9)
    for number in (0, 1):
        os.close(number)
    files = [LogFile(sys.argv[1]), LogFile("/dev/fd/9")]
    for file in files:
        file.write(bytearray(b"kept\\n"), 1000, 0)
    sys.exit(f"fault: {os.listdir('/proc/self/fd')}" if {"0", "1"} & {*map(str, (f._fd for f in files))} else 0)
    """
    kit.python(source, tmp_path / "log")

    assert (tmp_path / "log").read_text() == "kept\n"


# Others move it


@pytest.mark.parametrize("how", ["moved", "moved, and made anew", "removed", "with its directory"])
def test_a_file_that_others_have_moved_is_made_anew(tmp_path, looks_each_time, how):
    """logrotate moves files in several ways; the directory is made as well."""
    log = LogFile(str(tmp_path / "logs" / "log"))
    write(log, "one\n")
    path = tmp_path / "logs" / "log"
    if how == "removed":
        path.unlink()
    elif how == "with its directory":
        path.parent.rename(tmp_path / "elsewhere")
    else:
        path.rename(tmp_path / "logs" / "log.old")
    if how == "moved, and made anew":
        path.touch()
    write(log, "two\n")
    log.close()

    assert path.read_text() == "two\n"


def test_it_is_looked_for_once_a_second_at_most(log, tmp_path, monkeypatch):
    """A look costs a system call, and on a network drive a message."""
    monkeypatch.setattr(logfiles, "LOOK_AGAIN", 1000.0)
    write(log, "one\n")
    (tmp_path / "log").rename(tmp_path / "old")
    write(log, "two\n")

    assert (tmp_path / "old").read_text() == "one\ntwo\n"


def test_reopen_logs_makes_it_anew_at_once(log, tmp_path, monkeypatch):
    """After ``reopen_logs`` the next write goes to a new file."""
    monkeypatch.setattr(logfiles, "LOOK_AGAIN", 1000.0)
    write(log, "one\n")
    (tmp_path / "log").rename(tmp_path / "old")
    otpy.reopen_logs()
    write(log, "two\n")

    assert (tmp_path / "old").read_text() == "one\n"
    assert (tmp_path / "log").read_text() == "two\n"


@pytest.mark.parametrize("backups", [0, 2])
def test_a_rotation_touches_nothing_that_others_have_moved(log, tmp_path, monkeypatch, backups):
    """A file that was moved keeps its contents. One that was put in its place is
    written to, and neither moved nor emptied.
    """
    monkeypatch.setattr(logfiles, "LOOK_AGAIN", 1000.0)
    write(log, "123456\n", size=10)
    (tmp_path / "log").rename(tmp_path / "moved")
    (tmp_path / "log").write_text("new\n")
    write(log, "78901\n", size=10, backups=backups)

    assert (tmp_path / "moved").read_text() == "123456\n"
    assert (tmp_path / "log").read_text() == "new\n78901\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_rotation_without_backups_leaves_the_old_file_to_its_readers(log, tmp_path):
    """The old file is removed, not truncated: ``tail -F`` and hard links lose nothing."""
    write(log, "123456\n", size=10)
    os.link(tmp_path / "log", tmp_path / "kept")
    write(log, "78901\n", size=10)

    assert (tmp_path / "kept").read_text() == "123456\n"
    assert (tmp_path / "log").read_text() == "78901\n"


def test_a_rotation_looks_at_the_older_files_that_are_there(log, tmp_path):
    """A rotation does not look for a billion names. It stops at a gap: a file behind
    the gap is not in its way.
    """
    for number in range(1, 8):
        write(log, f"{number:05}\n", size=6, backups=10**9)
    (tmp_path / "log.3").unlink()
    write(log, "00008\n", size=6, backups=10**9)
    kept = {one.name: one.read_text() for one in tmp_path.iterdir()}
    assert kept == {
        "log": "00008\n",
        **{f"log.{number}": f"{8 - number:05}\n" for number in (1, 2)},
        "log.3": "00005\n",
        **{f"log.{number}": f"{7 - number:05}\n" for number in (4, 5, 6)},
    }


def test_a_file_that_others_have_emptied_has_room_again(log, tmp_path, looks_each_time):
    """logrotate's copytruncate empties files."""
    write(log, "12345678\n", size=10, backups=1)
    os.truncate(tmp_path / "log", 0)
    write(log, "90\n", size=10, backups=1)

    assert [one.name for one in tmp_path.iterdir()] == ["log"]


def test_one_that_cannot_be_looked_for_any_more_is_written_to(
    log, tmp_path, looks_each_time, monkeypatch
):
    """A process may have given up its rights to the directory of the file."""
    write(log, "one\n")

    def forbidden(path):
        raise PermissionError(errno.EACCES, "no", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", forbidden)
        write(log, "two\n")

    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_output_of_a_program_goes_to_the_new_file(launch, recorder, tmp_path):
    """All lines are in the two files, and no output is reported as lost."""
    script = "echo first; while ! test -e $1; do sleep 0.01; done; n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"
    launch(supervisor("app", children=[sh(script, tmp_path / "go", stdout=tmp_path / "log")]))
    wait_until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text())
    (tmp_path / "log").rename(tmp_path / "old")
    (tmp_path / "go").touch()
    wait_until(
        lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("\n") > 3
    )
    both = (tmp_path / "old").read_text() + (tmp_path / "log").read_text()

    assert both.split()[:10] == ["first", *map(str, range(1, 10))]
    assert recorder.of(OutputLost) == []


# One owner


@pytest.mark.parametrize("name", ["log", "./log", "logs/..//log", "{}/log"])
def test_the_full_name_of_a_file_is_that_of_the_system(tmp_path, monkeypatch, name):
    """Behind a link ``..`` is another directory than it seems; and a later change of
    the current directory has no effect.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "logs").symlink_to("far/away")
    log = LogFile(name.format(tmp_path))
    monkeypatch.chdir("/")
    write(log, "here\n")
    log.close()

    assert (tmp_path / ("far" if ".." in name else "") / "log").read_text() == "here\n"


def running_lanes():
    return [one for one in threads.entries() if one.purpose == "hands output on"]


def test_two_streams_and_two_programs_that_name_one_file_share_its_thread(launch, tmp_path):
    """No line is lost, also while the file is rotated, and each file has its size."""
    code = "import os, sys\nfor n in range(500): os.write(1 + n % 2, b'%s %03d\\n' % (sys.argv[1].encode(), n))"
    options = {"restart": "transient", "significant": True, "log_size": 4000, "log_backups": 9}
    specs = [
        python(code, id, id=id, stdout=tmp_path / "log", stderr=f"{tmp_path}/./log", **options)
        for id in ("one", "two")
    ]
    most = []
    app = launch(supervisor("app", children=specs, auto_shutdown="all_significant"))
    wait_until(lambda: most.append(len(running_lanes())) or not app.alive)
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]

    assert max(most) <= 1
    assert sorted(lines) == [f"{id} {n:03}" for id in ("one", "two") for n in range(500)]
    assert all(file.stat().st_size <= 4000 for file in tmp_path.iterdir())


def test_the_thread_of_a_file_ends_when_there_is_nothing_to_write(launch, tmp_path, monkeypatch):
    """500 silent programs with logs do not need 500 threads."""
    monkeypatch.setattr(lanes, "IDLE", 0.01)
    launch(supervisor("app", children=[sh("echo hello; exec sleep 1000", stdout=tmp_path / "log")]))
    wait_until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() == "hello\n")

    wait_until(lambda: not running_lanes())


def test_without_a_thread_it_is_written_all_the_same(tmp_path, monkeypatch):
    """At the end of the interpreter no thread can be started."""

    def refuse(*args, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "spawn", refuse)
    lane = lanes.lane("key", name="x", owner=None, path=str(tmp_path / "log"))
    journal = Journal(lane.file, 1000, 1, print)
    handout = lanes.Handout(lane, journal, resume=lambda: None, failed=print)
    handout.add(b"hello\n")
    at_once = (tmp_path / "log").read_text()
    handout.close()

    assert at_once == "hello\n"
    assert handout.is_done
    assert "key" not in lanes._lanes


# Files that take nothing


@pytest.fixture
def stuck(tmp_path):
    """A FIFO that is full, with a reader that does not read."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    yield path
    os.close(reader)
    os.close(writer)


BRIEFLY = 0.1
"""How long the end of a tree waits for a file that takes nothing. No test depends on the length."""

FLOOD = "import os\nwhile True: os.write(1, b'x' * 1000 + b'\\n')"


def test_a_stuck_file_holds_up_its_own_program_only(launch, recorder, stuck):
    """The program that writes to it has to wait, as with any pipe. Other programs,
    calls and the stop do not; the loss is reported.
    """
    specs = [python(FLOOD, id="flood", stdout=stuck), sh("exit 1", id="other")]
    app = launch(supervisor("app", children=specs, intensity=10**6), flush=BRIEFLY)
    wait_until(lambda: lanes._lanes[str(stuck)]._waiting > lanes.BACKLOG)
    so_far = len(recorder.of(ChildTerminated, "app/other"))
    recorder.wait_for(ChildTerminated, "app/other", count=so_far + 3)
    began = time.monotonic()
    report = app.stop(2.0)

    assert time.monotonic() - began < 3.0
    assert report.unstopped == ()
    assert recorder.of(OutputLost, "app/flood")[0].file == str(stuck)


def test_restarts_while_a_file_is_stuck_add_no_threads(launch, recorder, stuck):
    """One thread waits for the file; each run reports its loss, and ends."""
    app = launch(
        supervisor("app", children=[sh("echo hello; exit 1", stdout=stuck)], intensity=2),
        flush=BRIEFLY,
    )
    app.wait(HANG)

    assert len(recorder.of(ChildTerminated, "app/x")) == 3
    assert len(recorder.of(OutputLost, "app/x")) == 3
    assert len(running_lanes()) == 1


def test_what_a_stuck_lane_holds_is_bounded(monkeypatch):
    """A lane refuses what exceeds its limits, and each handout reports that once."""
    monkeypatch.setattr(lanes, "FULL", 1000)
    monkeypatch.setattr(lanes, "OVERFULL", 5000)
    go, told, done = threading.Event(), [], []

    class Stuck:
        def add(self, data):
            go.wait(HANG)

        def close(self):
            done.append(self)

    for _ in range(100):
        lane = lanes.lane("stuck", name="stuck", owner=None)
        handout = lanes.Handout(lane, Stuck(), resume=lambda: None, failed=told.append)
        handout.add(b"x" * 600)
        handout.add(b"x" * 600)
        handout.close()
        handout.give_up()
    held = len(lane._calls)
    go.set()
    wait_until(lambda: "stuck" not in lanes._lanes)

    assert held * lanes.EACH <= 6000
    assert len(told) == 100
    assert len(done) < 30


def test_a_fifo_that_nothing_reads_is_not_waited_for(launch, recorder, tmp_path):
    """A FIFO without a reader is reported, and works as soon as it has a reader."""
    os.mkfifo(tmp_path / "fifo")
    script = "echo lost; while ! test -e $1; do sleep 0.01; done; echo kept; exec sleep 1000"
    launch(supervisor("app", children=[sh(script, tmp_path / "go", stdout=tmp_path / "fifo")]))
    report = recorder.wait_for(OutputLost, "app/x")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "go").touch()
    os.set_blocking(reader, True)

    assert "nothing reads" in str(report.reason.exception)
    assert (
        wait_until(lambda: os.read(reader, 1000))
        == b"--- otpy: 5 bytes are missing here ---\nkept\n"
    )
    os.close(reader)


def test_a_directory_that_hangs_holds_up_nothing(launch, recorder, tmp_path, monkeypatch):
    """A network drive may hang: the program is up, the ends of others are reported, and
    the tree stops.
    """
    go, is_asked, open_file = threading.Event(), threading.Event(), logfiles.posix.open_file

    def hang(path, *args):
        if "hangs" in path:
            is_asked.set()
            go.wait(HANG)
        return open_file(path, *args)

    monkeypatch.setattr(logfiles.posix, "open_file", hang)
    specs = [sh("exec sleep 1000", err_dir=tmp_path / "hangs"), sh("exit 1", id="other")]
    app = launch(supervisor("app", children=specs, intensity=2), flush=BRIEFLY)
    assert is_asked.wait(HANG)
    recorder.wait_for(ChildTerminated, "app/other", count=3)
    app.wait(HANG)
    lost = recorder.of(OutputLost, "app/x")
    go.set()

    assert len(recorder.of(Progress, "app/x")) == 1
    assert len(lost) == 1
    assert isinstance(lost[0].reason.exception, TimeoutError)


@pytest.mark.parametrize("number", [1, 2])
def test_every_line_reaches_a_slow_reader_of_a_pipe_that_does_not_block(number):
    """A write to stdout or stderr that cannot go on at once waits until it can."""
    source = """
    import os, sys
    from otpy import process, start, supervisor
    number = int(sys.argv[1])
    os.set_blocking(number, False)
    code = f"import os\\nfor n in range(8000): os.write({number}, b'line %06d of the output\\\\n' % n)"
    where = {"stdout": "/dev/stdout"} if number == 1 else {"stderr": "inherit"}
    spec = process(sys.executable, "-c", code, id="x", restart="temporary", **where)
    app = start(supervisor("app", children=[spec]), log=False)
    sys.stdin.read()
    app.stop(5)
    """
    ours, theirs = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), str(number)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        **{"stdout" if number == 1 else "stderr": theirs},
    )
    os.close(theirs)
    got = b""
    try:
        while got.count(b"\n") < 8000 and (chunk := os.read(ours, 4096)):
            got += chunk
            time.sleep(0.0005)  # it is slow; nothing is waited for
        child.communicate(timeout=HANG)
    finally:
        kit.kill_session(child.pid)
        child.wait(HANG)
        os.close(ours)

    assert got.splitlines() == [b"line %06d of the output" % n for n in range(8000)]


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
