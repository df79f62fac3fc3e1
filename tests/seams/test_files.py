"""Logs of programs that other processes move, fill, block or replace."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import otpy
from otpy import supervisor
from otpy.children.program import lanes, logfiles
from otpy.children.program.logfiles import LogFile
from otpy.children.program.output import Journal
from otpy.reports import ChildTerminated, OutputLost, Progress
from otpy.runtime import threads
from tests.helpers import HANG, wait_until
from tests.programs import python, sh
from tests.seams import kit


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


def test_a_call_that_its_own_thread_makes_for_want_of_another_does_not_stay():
    """It would wait for the one thread that could end the wait: itself."""
    lane = lanes.Lane(None, None)
    lane._users, lane._stays = 1, True
    caller = threading.Thread(target=lane._run, args=(0.0,), daemon=True)
    caller.start()
    caller.join(HANG / 4)
    has_ended = not caller.is_alive()
    with lanes._door:
        lane._users = 0
        lane._news.notify_all()

    assert has_ended
