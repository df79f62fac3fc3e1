"""Whether a program is ready, and whether it is well."""

import http.server
import os
import socket
import threading
import time

import pytest

import otpy
from otpy import Health, Http, Line, Notify, Port, supervisor
from otpy.children.program.watch import Watch
from otpy.core.messages import ChildExited, ChildStarted
from otpy.reports import ChildTerminated, Progress, Stalled, StartFailed
from tests.helpers import HANG, close, wait_until
from tests.programs import SEND, children, guards_of, python, sh, stat
from tests.test_child_contract import Stage


@pytest.fixture
def port():
    """A port that the system gives to no other test: it is bound here, and nothing listens."""
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        yield mine.getsockname()[1]


SERVE = """
import os, socket, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.005)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=True)
while True:
    client, _ = server.accept()
    with client:
        if len(sys.argv) > 3:
            client.recv(1000)
            status = open(sys.argv[3]).read()
            client.sendall(f"HTTP/1.1 {status} Because\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
"""


def starting(spec, file, launch_in_thread):
    """Start a tree on a thread; it is not up before *file* is there."""
    up = launch_in_thread(spec)
    assert not up.wait(0.1)
    file.touch()
    assert up.wait(HANG)


@pytest.fixture
def launch_in_thread(launch):
    starters = []

    def begin(spec):
        up = threading.Event()
        starters.append(threading.Thread(target=lambda: (launch(spec), up.set())))
        starters[-1].start()
        return up

    yield begin
    for one in starters:
        one.join(HANG)


LOOP = "while ! test -e $1; do sleep 0.01; done; {}; exec sleep 1000"
NOTIFY = (
    SEND
    + "import sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.005)\ntell(b'READY=1\\n')\n"
)


@pytest.mark.parametrize(
    "ready", ["line to stdout", "line to stderr", "notify", "True", "port", "http"]
)
def test_it_is_up_when_it_is_ready(launch_in_thread, recorder, tmp_path, port, ready):
    """With each probe a program counts as started when it is ready, and not before."""
    file, status = tmp_path / "go", tmp_path / "status"
    status.write_text("204")
    specs = {
        "line to stdout": lambda: sh(LOOP.format("echo now listening"), file, ready="^now listen"),
        "line to stderr": lambda: sh(
            LOOP.format("echo now listening >&2"), file, ready=Line("^now listen")
        ),
        "notify": lambda: python(NOTIFY + "signal.pause()", file, ready=Notify()),
        "True": lambda: python(NOTIFY + "signal.pause()", file, ready=True),
        "port": lambda: python(SERVE, port, file, ready=Port(port)),
        "http": lambda: python(
            SERVE, port, file, status, ready=Http(f"http://127.0.0.1:{port}/health?a=b")
        ),
    }
    starting(supervisor("app", children=[specs[ready]()]), file, launch_in_thread)

    assert recorder.wait_for(Progress, "app/x").incarnation == 1


def test_one_that_ends_before_it_is_ready_did_not_start(launch):
    """An end before the program is ready is a StartError."""
    with pytest.raises(otpy.StartError, match="exit code 0"):
        launch(supervisor("app", children=[sh("echo almost", ready="^ready")]))


def test_one_that_ends_when_it_has_said_that_it_is_ready_did_start(launch, recorder):
    """``READY=1`` counts, whatever the program has sent before that, and however late
    it is read.
    """
    code = SEND + "tell(b'STATUS=almost')\ntell(b'READY=1')\nos._exit(0)"
    app, go, guards = launch(supervisor("app")), threading.Event(), guards_of(os.getpid())
    app._tree.shared(Watch).post(lambda: go.wait(HANG))
    wait_until(lambda: guards_of(os.getpid()) - guards, "the guard, which is a child as well")
    before = set(children())
    starter = threading.Thread(
        target=app.start_child, args=(python(code, ready=True, restart="temporary"),)
    )
    starter.start()
    pid = wait_until(lambda: next(iter(set(children()) - before), None))
    wait_until(lambda: stat(pid)[0] == "Z")
    go.set()

    assert recorder.wait_for(Progress, "app/x")
    starter.join(HANG)


def test_mail_that_is_seen_together_with_the_end_is_no_failure():
    """The watch may hear of the mail after the end, when the mailbox is closed."""
    scene = Stage(sh("exit 3", heartbeat=1000.0))
    while not isinstance(scene.hear(), ChildExited):
        pass
    scene.child._attendance.read_mail()
    close(scene.tree)


def test_the_one_probe_decides(launch):
    """With ``ready`` set to a pattern, ``READY=1`` does not make a program ready."""
    with pytest.raises(otpy.StartError, match="exit code 0"):
        launch(
            supervisor(
                "app", children=[python(SEND + "tell(b'READY=1')", ready="^up$", heartbeat=1000.0)]
            )
        )


def test_one_that_is_not_ready_in_time_did_not_start(launch, port):
    """A program that is not ready after ``start_timeout`` is a StartError."""
    with pytest.raises(otpy.StartError, match="not ready after"):
        launch(supervisor("app", children=[sh("sleep 1000", ready=Port(port), start_timeout=0.1)]))


def test_one_that_is_waited_for_by_its_lines_may_have_a_buffer(launch):
    """The error of a late line says how to run a program without a buffer."""
    with pytest.raises(otpy.StartError) as caught:
        launch(supervisor("app", children=[sh("exec sleep 1000", ready="^up", start_timeout=0.1)]))

    assert all(
        word in str(caught.value.__cause__)
        for word in ("PYTHONUNBUFFERED=1", "python -u", "stdbuf -oL")
    )


def test_a_restart_that_is_not_ready_is_a_failed_one(launch, recorder, tmp_path):
    """A restart whose program ends before it is ready is a StartError."""
    script = "test -e $1 && exit 7; touch $1; echo ready; exit 1"
    launch(supervisor("app", children=[sh(script, tmp_path / "once", ready="ready")], intensity=1))

    assert recorder.wait_for(StartFailed, "app/x").reason.detail.returncode == 7


def test_watchdog_messages_are_check_ins(launch, recorder, tmp_path):
    """A program gets its heartbeat in WATCHDOG_USEC, and stalls when it is silent for
    longer. The report has what it wrote last.
    """
    code = SEND + (
        "import sys, time\n"
        "print(os.environ['WATCHDOG_USEC'], file=sys.stderr, flush=True)\n"
        "tell(b'READY=1')\n"
        "while not os.path.exists(sys.argv[1]): tell(b'STATUS=fine\\nWATCHDOG=1'); time.sleep(0.02)\n"
        "signal.pause()"
    )
    app = launch(
        supervisor("app", children=[python(code, tmp_path / "hang", ready=Notify(), heartbeat=2.5)])
    )
    for _ in range(10):
        since = time.monotonic()
        wait_until(
            lambda since=since: time.monotonic() - app.snapshot().children[0].heartbeat_age > since
        )
    (tmp_path / "hang").touch()

    assert "2500000" in recorder.wait_for(Stalled, "app/x").stack
    reason = recorder.wait_for(ChildTerminated).reason
    assert str(reason) == "stalled: TimeoutError('it did not check in')"
    assert (reason.detail.signal, reason.detail.stderr) == ("SIGTERM", b"2500000\n")
    assert recorder.wait_for(Progress, count=2).incarnation == 2


def test_so_many_misses_in_a_row_are_a_stall(launch, recorder, tmp_path, port):
    """A program that misses *misses* probes in a row has stalled, and is restarted."""
    go, status = tmp_path / "go", tmp_path / "status"
    go.touch()
    status.write_text("200")
    url = f"http://127.0.0.1:{port}"
    health = Health(Http(url), interval=0.05, misses=2)
    launch(
        supervisor(
            "app",
            children=[
                python(SERVE, port, go, status, ready=Http(url), health=health, heartbeat=None)
            ],
        )
    )
    threading.Event().wait(0.3)  # some probes in which it is well
    assert recorder.of(Stalled) == []
    status.write_text("500")
    recorder.wait_for(Stalled, "app/x")
    status.write_text("200")

    assert recorder.wait_for(Progress, count=2).incarnation == 2


def test_misses_count_in_a_row_only():
    """A good answer sets the number of misses to zero."""
    health = Health(Port(1), interval=1000.0, misses=2)
    scene = Stage(sh("exec sleep 1000", health=health))
    assert isinstance(scene.hear(), ChildStarted)
    for is_well in (False, True, False):
        scene.child._run.vitals.note_health(is_well)
    beat, until = scene.child.pulse()
    scene.child._run.vitals.note_health(False)
    later = scene.child.pulse()
    scene.child.kill(0.0)
    while not isinstance(scene.hear(), ChildExited):
        pass
    close(scene.tree)

    assert until > beat
    assert later == (beat, beat)


def test_health_and_heartbeat_both_count(launch, recorder):
    """A program with an open port that never sends ``WATCHDOG=1`` has stalled."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        health = Health(Port(server.getsockname()[1]), interval=0.05, misses=2)
        launch(
            supervisor(
                "app", children=[sh("exec sleep 1000", heartbeat=0.2, health=health)], intensity=0
            )
        )
        recorder.wait_for(Stalled, "app/x")


@pytest.mark.parametrize("status", [200, 299, 301, 404, 500])
def test_2xx_is_well(status):
    """Only a status from 200 to 299 is a good answer."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args): ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        assert Http(f"http://127.0.0.1:{server.server_port}").check() is (status < 300)
        answering.join()


def test_what_does_not_answer_is_a_miss():
    """A port without a listener, a silent server and an impossible name are misses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert Port(port).check()
        assert not Http(f"http://127.0.0.1:{port}/", timeout=0.05).check()
    assert not Port(port).check()
    assert not Http(f"http://127.0.0.1:{port}/").check()
    assert not Port(port, host="a" * 300).check()


BAD = [
    lambda: Line("("),
    lambda: Line(3),
    lambda: Port(0),
    lambda: Port("80"),
    lambda: Port(80, host=""),
    lambda: Port(80, timeout=0),
    lambda: Http("ftp://a"),
    lambda: Http("http://"),
    lambda: Http("http://a b/"),
    lambda: Http("http://a:port/"),
    lambda: Http(3),
    lambda: Http("http://user:hunter1@a/"),
    lambda: Health(Notify()),
    lambda: Health(Port(80), interval=0),
    lambda: Health(Port(80), misses=0),
]


@pytest.mark.parametrize("make", BAD)
def test_probes_are_checked(make):
    """A wrong field of a probe is a SpecError."""
    with pytest.raises(otpy.SpecError):
        make()


def test_probes_end_with_their_program(launch):
    """The thread of a probe ends with its program, whatever its interval is."""
    app = launch(
        supervisor(
            "app", children=[sh("exec sleep 1000", health=Health(Port(1), interval=60, misses=9))]
        )
    )
    wait_until(lambda: [one for one in otpy.registry.active() if one.purpose == "asks a program"])

    assert app.stop().handlers == ()
