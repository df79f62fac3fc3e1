"""Root: all that a program has started ends with it, in its time, or is named."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import otpy
from otpy import SpecError, process, supervisor
from otpy.children.program import attendance, guard, guard_process
from otpy.children.program.run import Leader
from otpy.reports import ChildTerminated, Progress, ShutdownError, Unstopped
from otpy.runtime import descendants, posix
from otpy.runtime.descendants import Family, Seen
from tests.helpers import HANG, wait_until
from tests.programs import children, mark, marked, number_in, sh, stat
from tests.programs import python as python_program
from tests.seams.kit import python

# Processes that leave the group


NEW_SESSION = (  # as most Python programs start others: all descriptors but three are closed
    f"{sys.executable} -S -c "
    "'import subprocess, sys; subprocess.Popen([\"sleep\", sys.argv[1]], start_new_session=True)' $1"
)

LEAVERS = {
    # what it gets: a command for a shell that leaves "sleep $1" in the background
    "a group of its own": "timeout 1000 sleep $1 &",
    "a session of its own": "setsid sleep $1 &",
    "a session, and all descriptors closed": NEW_SESSION,
    "a session, of one that has ended": "setsid sh -c 'sleep $1 & :' sh $1 &",
    "a session, and no environment": "setsid env -i sleep $1 &",
}


def sleepers(number: str) -> list[int]:
    """The processes that have become "sleep NUMBER"."""
    return [pid for pid in marked(number) if command(pid) == "sleep\n"]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("leave", LEAVERS.values(), ids=LEAVERS)
def test_nothing_is_left_after_a_stop(launch, leave):
    """A group is not the only trace: there are sessions, marks, parents, a descriptor."""
    number = mark()
    app = launch(supervisor("app", children=[sh(f"{leave}\nsleep 1000; :", number)]))
    wait_until(lambda: sleepers(number))
    report = app.stop()

    assert report.unstopped == ()
    if (
        "env -i" in leave
    ):  # it is known as a program's, but not as whose: so it ends when the tree has ended
        wait_until(lambda: not marked(number))
    assert marked(number) == set()


@pytest.mark.parametrize("leave", list(LEAVERS.values())[:-1], ids=list(LEAVERS)[:-1])
def test_nothing_is_left_after_a_crash(launch, recorder, tmp_path, leave):
    """Before its end is reported: no process holds the port when the replacement starts."""
    number = mark()
    script = f"{leave}\nwhile ! test -e $2; do sleep 0.005; done; exit 3"
    launch(supervisor("app", children=[sh(script, number, tmp_path / "go", restart="temporary")]))
    wait_until(lambda: sleepers(number))
    (tmp_path / "go").touch()

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    assert marked(number) == set()


# The rest of a program whose leader has ended


SAVES = """
import os, signal, sys, time
def save(number, frame):
    while not os.path.exists(sys.argv[1] + ".go"):
        time.sleep(0.005)
    open(sys.argv[1], "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + ".up", "w").close()
while True:
    time.sleep(1000)
"""


@pytest.mark.parametrize("options", [{}, {"interrupt": False}], ids=["", "interrupt=False"])
def test_a_server_below_a_shell_has_its_time(launch, tmp_path, options):
    """The shell ends of the signal at once; the server gets the while that it needs."""
    saved = tmp_path / "saved"
    script = f'{sys.executable} -S -c "$1" "$2"; :'
    app = launch(supervisor("app", children=[sh(script, SAVES, saved, **options)]))
    wait_until((tmp_path / "saved.up").exists)
    (leader,) = [pid for pid in marked(str(saved)) if stat(pid)[1] == os.getpid()]
    stopper = threading.Thread(target=app.terminate_child, args=("x",))
    stopper.start()
    wait_until(lambda: stat(leader)[0] == "Z")
    (tmp_path / "saved.go").touch()
    stopper.join(HANG)

    assert saved.exists()
    assert not stopper.is_alive()


DEAF = "trap '' TERM; sleep {number} & echo $! >$1.new; mv $1.new $1"


def test_a_rest_that_is_deaf_is_killed_when_time_is_up(launch, recorder, tmp_path):
    """The leader hears the signal, what it has started does not."""
    number, pid = mark(), tmp_path / "pid"
    script = f"({DEAF.format(number=number)}); trap 'exit 0' TERM; while :; do sleep 0.01; done"
    app = launch(supervisor("app", children=[sh(script, pid, shutdown=0.3)]))
    wait_until(lambda: number_in(pid) in marked(number), "it is executed")
    report = app.stop()

    assert (report.interrupted, report.unstopped) == (("app/x",), ())
    assert marked(number) == set()
    assert recorder.of(ShutdownError) == []  # the program itself did as it should


def test_a_rest_that_must_not_be_killed_is_named(launch, recorder, tmp_path):
    """``interrupt=False``, and the leader crashes: the rest is asked, then given up."""
    number, pid = mark(), tmp_path / "pid"
    script = f"{DEAF.format(number=number)}; exit 3"
    app = launch(
        supervisor(
            "app", children=[sh(script, pid, interrupt=False, shutdown=0.2, restart="temporary")]
        )
    )
    report = recorder.wait_for(Unstopped, "app/x")
    rest = number_in(pid)

    assert recorder.wait_for(ChildTerminated).reason.detail.returncode == 3
    assert f"process {rest}, S (sleeping): sleep {number}" in report.stack
    assert [one.path for one in app.stop().unstopped] == ["app/x"]
    assert marked(number) == {rest}  # it was not killed when the tree ended, either
    os.kill(rest, signal.SIGKILL)


def test_one_that_was_started_too_late_to_hear_of_the_stop_is_asked_itself():
    """The signal went to the group before."""
    seen = Seen(pid=7, state=b"S", parent=1, group=5, session=5, started=100)
    leader = Leader(SimpleNamespace(stop_signal=signal.SIGTERM, stop_to="group"))  # type: ignore[arg-type]
    leader.popen = SimpleNamespace(pid=5)  # type: ignore[assignment]

    def has_heard(asked_at: int | None) -> bool:
        leader._asked_at = asked_at
        return leader.has_heard(seen)

    assert [has_heard(at) for at in (None, 99, 100, 101)] == [False, False, False, True]


LEADER = """
trap 'echo leader >>$1; wait $!; exit 0' TERM
(trap 'echo worker >>$1; exit' TERM; touch $1.up; while ! test -e $1.go; do sleep 0.005; done; echo finished >>$1) &
while :; do wait $!; done
"""


def test_the_stop_signal_may_go_to_the_leader_only(launch, tmp_path):
    """A job server lets its worker finish the job. (Warm shutdown.)"""
    log = tmp_path / "log"
    app = launch(supervisor("app", children=[sh(LEADER, log, stop_to="leader")]))
    wait_until((tmp_path / "log.up").exists)
    stopper = threading.Thread(target=app.stop)
    stopper.start()
    wait_until(lambda: log.exists() and log.read_text().startswith("leader\n"))
    (tmp_path / "log.go").touch()
    stopper.join(HANG)

    assert log.read_text() == "leader\nfinished\n"


@pytest.mark.parametrize("value", ["process", True, None])
def test_where_the_stop_signal_goes_is_checked(value):
    """Any other value is refused, before a program starts."""
    with pytest.raises(SpecError, match=r"app: stop_to = .*: expected 'group' or 'leader'"):
        process("true", id="app", stop_to=value)


# The stop signal, sent to all at once


@pytest.mark.parametrize(
    "script", ["exec sleep 1000", "trap 'exit 143' TERM; touch $1; while :; do sleep 0.01; done"]
)
def test_an_end_by_the_stop_signal_in_the_moment_of_a_stop_is_that_stop(
    launch, recorder, monkeypatch, tmp_path, script
):
    """A service manager sends it to all at once; the ends of programs may be heard first."""
    monkeypatch.setattr(attendance, "HOLD", HANG)
    app = launch(
        supervisor(
            "app", children=[sh(f"echo $$ >$2; {script}", tmp_path / "up", tmp_path / "pid")]
        )
    )
    pid = number_in(tmp_path / "pid")
    wait_until(lambda: "trap" not in script or (tmp_path / "up").exists())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: stat(pid)[0] == "Z")
    report = app.stop()

    assert (report.stopped, report.interrupted) == (("app/x",), ())
    assert recorder.of((ChildTerminated, ShutdownError)) == []


def test_without_a_stop_it_is_the_end_that_it_is(launch, recorder, tmp_path):
    """Told a moment later."""
    app = launch(
        supervisor(
            "app",
            children=[sh("echo $$ >$1; exec sleep 1000", tmp_path / "pid", restart="temporary")],
        )
    )
    os.kill(number_in(tmp_path / "pid"), signal.SIGTERM)

    assert str(recorder.wait_for(ChildTerminated).reason) == "crashed: killed by SIGTERM"
    assert app.which_children() == ()


# The search


def test_only_descendants_are_found(tmp_path):
    """Not the process itself, nor its siblings, nor what is older."""
    stranger = subprocess.Popen(["sleep", "1000"])
    family = Family(b"token.1.")
    leader = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 1000 & echo $! >$0; wait", tmp_path / "pid"],
        start_new_session=True,
    )
    family.leader = leader.pid
    sibling = subprocess.Popen(["sleep", "1000"], env={"OTPY_MARK": "token.11."})
    below = number_in(tmp_path / "pid")
    found = [one.pid for one in family.living()]
    everywhere = (
        family.has(below),
        family.has(leader.pid),
        family.has(stranger.pid),
        family.has(1 << 22),
    )
    os.killpg(leader.pid, signal.SIGKILL)
    for one in (stranger, leader, sibling):
        one.kill()
        one.wait()

    assert found == [below]
    assert everywhere == (True, True, False, None)


@pytest.mark.parametrize(
    ("newest", "age", "expected"),
    [
        (1003, 0, [1001, 1002, 1003]),
        (5000, 0, "above"),
        (900, 0, "all"),
        (1003, 10**9, "all"),
        (-1, 0, "all"),
    ],
)
def test_numbers_that_began_anew_are_looked_at_as_well(monkeypatch, newest, age, expected):
    """As a rule a descendant has a higher number than its leader, and these are enough."""
    monkeypatch.setattr(descendants, "_newest", lambda: newest)
    monkeypatch.setattr(descendants, "pids", lambda: iter([5, 1000, 1001, os.getpid(), 4000]))
    family = Family(b"x", leader=1000, began=descendants.ticks() - age)
    looked = set(family._candidates())

    assert looked == {
        "above": {pid for pid in (1001, os.getpid(), 4000) if pid > 1000},
        "all": {5, 1001, 4000},
    }.get(expected if isinstance(expected, str) else "", set(expected)) - {os.getpid()}


ITS_FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_lives_as_long_as_one_of_its_threads(launch):
    """When its first thread has ended, it looks like a zombie, and shows less."""
    number = mark()
    script = "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:], start_new_session=True)\ntime.sleep(1000)"
    argv = [sys.executable, "-S", "-c", ITS_FIRST_THREAD_ENDS, number]
    app = launch(supervisor("app", children=[python_program(script, *argv)]))
    (leader,) = wait_until(lambda: [pid for pid in marked(number) if stat(pid)[1] == os.getpid()])
    (below,) = wait_until(lambda: [pid for pid in children(leader) if stat(pid)[0] == "Z"])
    seen = descendants.look(below)
    token = (descendants.environment(seen), guard_process.environment(str(below)))
    session = guard_process.session(str(below))
    app.stop()
    left = descendants.look(below)

    assert seen.lives
    assert left is None or not left.lives  # process number 1 may be slow to reap it
    assert all(b"OTPY_MARK=" in one for one in token)
    assert session == below


SEARCHES = {
    # who looks: by which function it sees a process, and the whole search
    "a tree": (
        descendants,
        "look",
        lambda leader, token: [one.pid for one in Family(token, leader).living()],
    ),
    "the guard": (
        guard_process,
        "session",
        lambda _, token: list(guard_process.left(set(), "pipe:[0]", token)),
    ),
}


@pytest.mark.parametrize("who", SEARCHES)
def test_a_process_that_is_forked_during_the_search_is_found(who, monkeypatch, tmp_path):
    """A daemon is forked by one that ends at once: that may be before it is looked at."""
    number = mark()
    leader = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    go = tmp_path / "go"
    os.mkfifo(go)
    script = "read x <$0; setsid sleep $1 &"
    env = {**os.environ, "OTPY_MARK": f"token.{number}."}
    parent = subprocess.Popen(["/bin/sh", "-c", script, go, number], env=env)
    module, name, search = SEARCHES[who]
    look = getattr(module, name)

    def look_late(pid: int | str) -> object:
        if int(pid) == parent.pid and parent.returncode is None:
            go.write_text("go\n")
            wait_until(lambda: sleepers(number))
            parent.wait(HANG)
        return look(pid)

    monkeypatch.setattr(module, name, look_late)
    found = search(leader.pid, env["OTPY_MARK"].encode())
    expected = sleepers(number)
    for pid in (leader.pid, *expected):
        os.kill(pid, signal.SIGKILL)
    leader.wait()

    assert found == expected


# Process number 1


FIRST = """
import os, subprocess, sys, time
from otpy import process, start, supervisor
from tests.helpers import wait_until
from otpy.runtime import descendants
assert os.getpid() == 1
mine = [subprocess.Popen(["sh", "-c", "exit 7"]), subprocess.Popen(["sh", "-c", "exit 8"], start_new_session=True)]
script = "(sleep 0.01 & sleep 1000 &); setsid sleep 1000 & (setsid sh -c 'sleep 0.01; :' &); sleep 0.05; exit 1"
from otpy.children.program import watch
watch.SWEEP = 0.005  # it is number 1: it looks by itself
app = start(supervisor("app", intensity=1000, children=[process("sh", "-c", script, id="sh")]), log=False)
wait_until(lambda: app.which_children()[0].incarnation >= 6)
app.stop()
known = [one.pid for one in mine]
zombies = lambda: [pid for pid in descendants.pids() if pid not in known and not descendants.look(pid).lives]
wait_until(lambda: not zombies(), "no zombies")
print(*(one.wait() for one in mine), len(list(descendants.pids())))
"""


def can_be_first() -> bool:
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(argv, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not can_be_first(), reason="to be process number 1 needs unshare and root")
def test_process_number_1_reaps_what_it_is_handed_and_takes_no_exit_code():
    """A container without an init: the orphans of programs come to this process."""
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
    ran = python(f"import os, sys; os.execvp('unshare', [*{argv!r}, sys.argv[1]])", FIRST)

    assert ran.out == "7 8 1\n"


# What must not be killed


def test_what_another_thread_is_about_to_execute_is_spared(monkeypatch):
    """It has all descriptors of this process for a moment, the mark among them."""
    one = guard.Guard(None, "test", print)
    one.wait()
    other = subprocess.Popen(["sleep", "1000"], pass_fds=[one.mark])
    one.close(set())
    is_alive = other.poll() is None
    other.kill()
    other.wait()

    assert is_alive


def test_a_killed_process_takes_all_its_descendants_with_it(tmp_path):
    """Those in sessions of their own with all descriptors closed, too: the guard looks."""
    number = mark()
    source = f"""
        import os, signal, sys
        from otpy import process, start, supervisor
        from tests.helpers import wait_until
        start(supervisor("app", children=[process("sh", "-c", sys.argv[1], id="x")]), log=False)
        from tests.seams.test_descendants import sleepers
        wait_until(lambda: len(sleepers({number!r})) == 2)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    script = f"set - sh {number}; shift; {NEW_SESSION}; setsid sleep {number} & sleep 1000; :"
    python(source, script, expect=-signal.SIGKILL)
    wait_until(lambda: not marked(number))


def test_a_callable_that_has_become_a_program_ends_with_a_killed_process():
    """It keeps the lifeline, by which the kernel knows whom to kill."""
    number = mark()
    source = f"""
        import os, signal
        from otpy import process, start, supervisor
        from tests import callees
        from tests.helpers import wait_until
        from tests.seams.test_descendants import sleepers
        start(supervisor("app", children=[process(callees.become, "sleep", {number!r}, id="x")]), log=False)
        wait_until(lambda: sleepers({number!r}))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    python(source, expect=-signal.SIGKILL)
    wait_until(lambda: not marked(number))


def test_python_children_are_found_by_their_environment_alone(launch, tmp_path):
    """A child of a child, whose parent has gone, in a session of its own."""
    code = (
        "import os, signal, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.closerange(3, 100)\n"
        "        os.execvp('sleep', ['sleep', sys.argv[1]])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "open(sys.argv[2], 'w').close()\n"
        "signal.pause()\n"
    )
    number = mark()
    app = launch(otpy.dynamic_supervisor("app"))
    app.start_child(python_program(code, number, tmp_path / "up"))
    wait_until((tmp_path / "up").exists)
    wait_until(lambda: sleepers(number))
    app.terminate_child("x")

    assert marked(number) == set()


# Who may say that a program is ready

SAYS_WHERE = """
import os, signal, sys
with open(sys.argv[1] + "~", "w") as file:
    file.write(os.environ["NOTIFY_SOCKET"])
os.rename(sys.argv[1] + "~", sys.argv[1])
"""

LETS_A_CHILD_SAY_IT = (
    SAYS_WHERE
    + """
while not os.path.exists(sys.argv[1] + ".go"):
    pass
import socket
if os.fork() == 0:
    os.setsid()
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
)


def test_only_a_program_and_its_descendants_can_say_that_it_is_ready(launch, recorder, tmp_path):
    """Its socket is its own: not even this process is believed."""
    app = launch(otpy.dynamic_supervisor("app"))
    where = tmp_path / "where"
    with pytest.raises(otpy.CallTimeout):
        app.start_child(python_program(LETS_A_CHILD_SAY_IT, where, ready=True), timeout=0.01)
    wait_until(where.exists)
    address = where.read_text()
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"READY=1", address)
    ours.close()
    wait_until(lambda: not_read_yet(address) == 0, "the letter is read")
    assert app.which_children()[0].state is otpy.ChildState.STARTING
    (tmp_path / "where.go").touch()
    recorder.wait_for(Progress, "app/x")
    app.stop()

    assert not Path(address).parent.exists()


def not_read_yet(address: str) -> int:
    """How many bytes wait in the socket: it is one of this process."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            one = socket.socket(fileno=os.dup(int(entry.name)))
            with one:
                if one.getsockname() == address:
                    return len(one.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return 0


def test_the_directory_of_sockets_goes_with_a_process_that_is_killed(tmp_path):
    """The guard removes it."""
    source = """
        import os, signal, sys
        from tests.programs import python as python_program
        from otpy import start, supervisor
        from tests.helpers import wait_until
        child = python_program(sys.argv[1] + "signal.pause()", sys.argv[2], heartbeat=1000.0)
        start(supervisor("app", children=[child]), log=False)
        wait_until(lambda: os.path.exists(sys.argv[2]))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    python(source, SAYS_WHERE, tmp_path / "where", expect=-signal.SIGKILL)
    directory = Path((tmp_path / "where").read_text()).parent

    wait_until(lambda: not directory.exists())


def test_nothing_descends_from_what_has_not_been_started():
    """To the system 0 is this process's own group, and 1 stands for all: none may ever be signalled."""
    family = Family(b"token")

    assert family.living() == []
    assert family.has(os.getpid()) is False
    for group in (0, 1, -1):
        with pytest.raises(ValueError, match="no process group of a child"):
            posix.signal_group(group, signal.SIGCONT)
