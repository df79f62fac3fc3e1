"""What programs write: the tail in the exit reason, log files, callables, and reports as JSON."""

import base64
import datetime as dt
import json
import os
import queue
import re
import signal
import threading
import time

import pytest

import otpy
from otpy import (
    ExitKind,
    ExitReason,
    ProcessDied,
    ProgramExit,
    json_reports,
    registry,
    supervisor,
    thread,
)
from otpy.children.program import output
from otpy.children.program.lanes import BACKLOG, Handout, lane
from otpy.children.program.logfiles import LogFile
from otpy.children.program.output import Journal, Lines, Tail
from otpy.reports import ChildTerminated, OutputLost, ShutdownError
from tests.helpers import HANG, wait_until
from tests.programs import once, python, sh

MEGABYTES = """
import os
for _ in range(48):
    os.write(2, b"x" * 65535 + b"\\n")
os.write(2, b"the end")
os._exit(1)
"""


def test_a_flood_leaves_the_last_64_KiB(launch, recorder, tmp_path):
    """Of three megabytes the reason keeps 64 KiB, and the files no more than allowed."""
    launch(once(python(MEGABYTES, err_dir=tmp_path, log_size=1_000_000, log_backups=2)))
    stderr = recorder.wait_for(ChildTerminated).reason.detail.stderr
    logs = sorted((tmp_path / "app").iterdir())

    assert stderr == b"x" * 65528 + b"\nthe end"
    assert [log.name for log in logs] == ["x.stderr.log", "x.stderr.log.1", "x.stderr.log.2"]
    assert all(log.stat().st_size <= 1_000_000 for log in logs)
    assert logs[0].read_bytes().endswith(b"\nthe end")


def test_each_run_has_its_own_stderr_and_the_log_has_all(launch, recorder, tmp_path):
    """A line in the log marks each start, and an exit reason has the output of its own
    run only.
    """
    app = launch(
        once(sh("echo this is $$ >&2; exit 1", err_dir=tmp_path / "made" / "here"), intensity=2)
    )
    app.wait(HANG)
    said = [one.reason.detail.stderr.decode() for one in recorder.of(ChildTerminated)]
    log = (tmp_path / "made" / "here" / "app" / "x.stderr.log").read_text()

    assert len(set(said)) == 3
    assert all(re.fullmatch(r"this is \d+\n", one) for one in said)
    for number, one in enumerate(said, 1):
        assert re.search(
            rf"--- otpy: app/x, incarnation {number}, process \d+, started \S+ ---\n{one}", log
        )


def test_the_log_can_be_read_while_the_program_runs(launch, tmp_path):
    """Output is written to the log as it comes."""
    launch(once(sh("echo hello >&2; exec sleep 1000", err_dir="logs", cwd=tmp_path)))
    log = tmp_path / "logs" / "app" / "x.stderr.log"

    wait_until(lambda: log.exists() and log.read_text().endswith("hello\n"))


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_output_to_a_file(launch, recorder, tmp_path, where):
    """Output is appended to the file, whose path begins at the program's directory."""
    (tmp_path / "out").write_text("before\n")
    app = launch(once(sh("echo out; echo err >&2", cwd=tmp_path, **{where: "out"})))
    app.wait(HANG)

    assert (tmp_path / "out").read_text() == f"before\n{where[3:]}\n"


@pytest.mark.parametrize("where", ["full", "no directory"])
def test_what_cannot_be_written_is_told_once_and_ends_nothing(launch, recorder, tmp_path, where):
    """With a full disk or without a directory a program runs on, and each run reports
    the loss once.
    """
    (tmp_path / "file").write_text("")
    options = (
        {"stderr": "/dev/full"} if where == "full" else {"err_dir": tmp_path / "file" / "below"}
    )
    launch(
        once(sh("for n in 1 2 3; do echo $n >&2; sleep 0.01; done; exit 1", **options), intensity=1)
    )
    first = recorder.wait_for(OutputLost, "app/x")
    end = recorder.wait_for(ChildTerminated, "app/x", count=2)

    assert isinstance(first.reason.exception, OSError)
    assert first.file in (str(tmp_path / "file" / "below" / "app" / "x.stderr.log"), "/dev/full")
    assert end.reason.detail.stderr == b"1\n2\n3\n"
    assert len(recorder.of(OutputLost)) == 2  # one for each run


def test_a_file_tells_what_is_missing_in_it(tmp_path):
    """A line in the file says how many bytes were lost before it."""
    failures = []
    file = LogFile(str(tmp_path / "dir" / "log"))
    journal = Journal(file, 1000, 1, failures.append)
    (tmp_path / "dir").write_text("in the way")
    journal.add(b"lost\n")
    journal.add(b"lost too\n")
    (tmp_path / "dir").unlink()
    journal.add(b"kept\n")
    file.close()

    assert len(failures) == 1
    assert (
        tmp_path / "dir" / "log"
    ).read_text() == "--- otpy: 14 bytes are missing here ---\nkept\n"


def test_what_was_written_before_a_failure_does_not_count_as_missing(tmp_path, monkeypatch):
    """If the disk is full in the middle of a line, only the rest of the line counts as
    missing.
    """
    told, path = [], tmp_path / "log"
    file, write = LogFile(str(path)), os.write
    journal = Journal(file, 1000, 1, told.append)
    calls = iter(
        [
            lambda fd, data: write(fd, data[:4]),
            lambda fd, data: (_ for _ in ()).throw(OSError(28, "full")),
        ]
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: next(calls)(fd, data))
        journal.add(b"one, two\n")
    journal.add(b"three\n")
    file.close()

    assert path.read_text() == "one,\n--- otpy: 5 bytes are missing here ---\nthree\n"
    assert len(told) == 1


def test_what_is_missing_at_the_end_is_noted_at_the_end(tmp_path):
    """The end of a run notes in the file what is still missing."""
    told = []
    file = LogFile(str(tmp_path / "dir" / "log"))
    journal = Journal(file, 1000, 1, told.append)
    (tmp_path / "dir").write_text("in the way")
    journal.add(b"lost\n")
    (tmp_path / "dir").unlink()
    journal.close()
    file.close()

    assert (tmp_path / "dir" / "log").read_text() == "--- otpy: 5 bytes are missing here ---\n"
    assert len(told) == 1


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_rotation_cuts_at_lines_and_keeps_so_many(tmp_path, backups):
    """Files are cut at the ends of lines, and only *backups* older ones are kept."""
    log = LogFile(str(tmp_path / "log"))
    for number in range(8):
        log.write(bytearray(b"%04d\n" % number), 10, backups)
    log.write(bytearray(b"a line that is longer than a file\n"), 10, backups)
    log.close()
    files = [tmp_path / "log", *(tmp_path / f"log.{n}" for n in range(1, backups + 1))]

    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 10 for file in files)
    assert (tmp_path / "log").read_text() == "ile\n"


def test_what_is_no_file_is_not_rotated(tmp_path):
    """A FIFO or a device is never renamed: root would move /dev/null away."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(str(fifo))
    for _ in range(3):
        log.write(bytearray(b"12345678\n"), 10, 1)
    log.close()

    assert os.read(reader, 100) == b"12345678\n" * 3
    assert [one.name for one in tmp_path.iterdir()] == ["fifo"]
    os.close(reader)


def test_the_tail_is_bounded():
    """A tail keeps the last bytes, and never more than twice as many."""
    tail = Tail()
    for _ in range(100):
        tail.add(b"x" * 10_000)
    tail.close()

    assert bytes(tail) == b"x" * output.TAIL
    assert len(tail._data) <= 2 * output.TAIL


def test_lines_are_cut_wherever_the_bytes_are():
    """Lines and characters may come in any pieces; bytes that are no UTF-8 are
    replaced.
    """
    seen = []
    lines = Lines(seen.append)
    for byte in "ä\nbc\r\n\nd".encode() + b"\xff":
        lines.add(bytes([byte]))
    lines.close()
    lines.close()

    assert seen == ["ä", "bc", "", "d\ufffd"]


def test_a_line_without_end_is_cut():
    """A line that is too long comes in pieces of LONG characters."""
    seen = []
    lines = Lines(seen.append)
    for _ in range(3):
        lines.add(b"x" * output.LONG)

    assert list(map(len, seen)) == [output.LONG] * 2


def test_a_callable_gets_each_line(launch, capsys):
    """If a callable raises, that is logged, and it gets the next line all the same."""
    out, err = queue.SimpleQueue(), queue.SimpleQueue()

    def grumble(line):
        err.put(line)
        raise ValueError(line)

    launch(
        once(
            sh("echo one; echo two; echo three >&2; echo four >&2", stdout=out.put, stderr=grumble)
        )
    )

    assert [out.get(timeout=HANG), out.get(timeout=HANG)] == ["one", "two"]
    assert [err.get(timeout=HANG), err.get(timeout=HANG)] == ["three", "four"]
    wait_until(lambda: capsys.readouterr().out.count("output_handler_failed") >= 1)


def test_a_callable_that_blocks_holds_up_its_own_program_only(launch, recorder):
    """A program waits when enough of its output is queued, as with any pipe. Other
    programs and the stop do not wait.
    """
    go = threading.Event()
    flood = "import os\nwhile True: os.write(1, b'x' * 1000 + b'\\n')"
    specs = [python(flood, stdout=lambda line: go.wait(HANG)), sh("exit 1", id="y")]
    app = launch(supervisor("app", children=specs, intensity=1), flush=0.1)
    recorder.wait_for(ChildTerminated, "app/y", count=2)
    app.wait(HANG)
    go.set()

    assert recorder.of(ShutdownError) == []


class Slow:
    """A sink that takes nothing before it may."""

    def __init__(self):
        self.go, self.got = threading.Event(), []

    def add(self, data):
        self.go.wait(HANG)
        self.got.append(len(data))

    def close(self):
        raise OSError("it is gone")


def slow(key=None, resume=lambda: None, failed=print):
    sink = Slow()
    return sink, Handout(lane(key, name="slow", owner=None), sink, resume=resume, failed=failed)


def test_a_slow_sink_is_fed_again_when_it_has_caught_up(capsys):
    """A full handout wants no more, and calls *resume* when there is room. An exception
    of its sink is logged.
    """
    resumed = threading.Event()
    sink, handout = slow(resume=resumed.set)
    assert handout.wants_more()
    handout.add(b"x" * (BACKLOG + 1))
    assert not handout.wants_more()
    sink.go.set()
    assert resumed.wait(HANG)
    assert handout.wants_more()
    handout.close()
    wait_until(lambda: "output_lost" in capsys.readouterr().out)


def test_inherited_output_is_ours(launch, recorder, capfd):
    """With "inherit" output goes to the streams of this process, and stderr to the
    reason, too.
    """
    app = launch(once(sh("echo out; echo err >&2; exit 1", stdout="inherit", stderr="inherit")))
    app.wait(HANG)
    app.stop()

    assert capfd.readouterr() == ("out\n", "err\n")
    assert recorder.of(ChildTerminated)[0].reason.detail.stderr == b"err\n"


def test_a_crash_as_json(launch, recorder):
    """The JSON text of a crash has the fields that the documentation names."""
    told = queue.SimpleQueue()
    spec = supervisor(
        "app", children=[sh("printf 'caf\\351\\n' >&2; exit 3"), thread(crash, restart="temporary")]
    )
    before = time.time()
    launch(spec, reports=json_reports(lambda name, text: told.put((name, json.loads(text)))))
    name, fields = told.get(timeout=HANG)

    assert name == "x"
    assert list(fields) == ["process", "timestamp", "utc_iso", "data", "return_code"]
    assert (fields["process"], fields["return_code"]) == ("app/x", 3)
    assert base64.b64decode(fields["data"]) == b"caf\xe9\n"
    assert before <= fields["timestamp"] <= time.time()
    at = dt.datetime.fromisoformat(fields["utc_iso"])
    assert at.utcoffset() == dt.timedelta(0)
    assert at.timestamp() == pytest.approx(fields["timestamp"], abs=1e-5)


def test_one_that_hangs_as_json(launch):
    """A program that has stalled is reported with its signal and its last words."""
    told = queue.SimpleQueue()
    spec = once(sh("echo stuck >&2; sleep 1000", ready="stuck", heartbeat=0.1))
    launch(spec, reports=json_reports(lambda name, text: told.put(json.loads(text))))
    fields = told.get(timeout=HANG)

    assert fields["return_code"] == -signal.SIGTERM
    assert base64.b64decode(fields["data"]) == b"stuck\n"


def test_one_that_was_not_ready_in_time_as_json(launch):
    """A start that failed after the program ran is reported as JSON."""
    told = queue.SimpleQueue()
    with pytest.raises(otpy.StartError, match="not ready after"):
        launch(
            once(sh("sleep 1000", ready="never", start_timeout=0.1)),
            reports=json_reports(lambda name, text: told.put(json.loads(text))),
        )

    assert told.get(timeout=HANG)["return_code"] == -signal.SIGTERM


def crash(ctx):
    raise ValueError("not a program")


def test_json_is_printed_by_default(launch, capsys):
    """Without a handler the JSON text is printed."""
    app = launch(once(sh("exit 3")), reports=json_reports())
    app.wait(HANG)
    app.stop()

    assert json.loads(capsys.readouterr().out)["return_code"] == 3


def test_a_json_handler_that_raises_or_blocks_harms_nothing(launch, recorder, tmp_path):
    """Restarts go on while the handler blocks, and after it has raised."""
    go, seen = threading.Event(), queue.SimpleQueue()

    def fail(name, text):
        seen.put(name)
        go.wait(HANG)
        raise RuntimeError("a bad handler")

    listened_to = tmp_path / "listened to"
    app = launch(
        once(sh('until test -e "$1"; do sleep 0.01; done; exit 1', listened_to), intensity=3)
    )
    app.subscribe(json_reports(fail))
    listened_to.touch()
    recorder.wait_for(ChildTerminated, count=4)
    go.set()
    app.wait(HANG)


@pytest.mark.parametrize("handler", [None, "print", lambda text: None])
def test_a_json_handler_that_cannot_be_called_is_refused(handler):
    """A handler must take a name and a text."""
    with pytest.raises(otpy.SpecError, match="<json_reports>: handler"):
        json_reports(handler)


def test_a_failure_reads_like_its_exit():
    """ProcessDied, ProgramExit and the exit reason use the same words."""
    died = ProcessDied(-11, "SIGSEGV")

    assert str(died) == repr(died) == str(ProgramExit(-11, b"a\n")) == "killed by SIGSEGV"
    assert str(ExitReason(ExitKind.CRASHED, died)) == "crashed: killed by SIGSEGV"


def test_output_that_a_detached_program_loses_is_told(launch, recorder):
    """The handlers of a tree hear of the loss, although the tree has ended."""
    up = queue.SimpleQueue()
    script = "trap 'echo late; exit' TERM; echo up >&2; while :; do sleep 0.01; done"
    app = launch(supervisor("app", children=[sh(script, stdout="/dev/full", stderr=up.put)]))
    assert up.get(timeout=HANG) == "up"
    app.detach()

    assert registry.registry.DefaultRegistry().shutdown_all(HANG).timeout == 0
    assert [one.file for one in recorder.of(OutputLost)] == ["/dev/full"]
