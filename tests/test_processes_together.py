"""The large cases: many processes, much output, and code that reaps all children.

Children of all kinds run beside them.
"""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import attrs
import pytest

import otpy
from otpy import coroutine, process, supervisor, thread
from otpy.children.program import guard_process, lanes
from otpy.reports import ChildTerminated, Progress
from otpy.runtime import threads
from tests import callees
from tests.helpers import HANG, wait_until
from tests.programs import children, guards_of, mark, marked, python, stat

ROOT = Path(otpy.__file__).parent.parent
MEGABYTE = 1 << 20


async def in_loop(ctx):
    await ctx.wait_stop()


def others(**options):
    """One child of each other kind."""
    return [
        thread(lambda ctx: ctx.wait_stop(), id="thread"),
        coroutine(in_loop, id="coroutine"),
        process(callees.obedient, id="callable"),
        process("sleep", mark(), id="program"),
        supervisor("nested", children=[coroutine(in_loop, id="own", loop="own")]),
    ]


def test_two_hundred_programs_crash_at_once(launch, recorder):
    """Each is reported once and restarted once; children of other kinds run on, and no
    descriptor is lost.
    """
    number, count = mark(), 200
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    specs = [process("sleep", number, id=f"s{index}") for index in range(count)]
    app = launch(supervisor("app", children=[*specs, *others()], intensity=count))
    first = wait_until(lambda: len(found := marked(number)) == count and found)
    beside = set(children()) - first
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    for index in range(count):
        recorder.wait_for(Progress, f"app/s{index}", 2)
    second = wait_until(lambda: len(found := marked(number)) == count and found)
    infos = {info.id: info.incarnation for info in app.which_children(HANG)}

    assert Counter(one.path for one in recorder.of(ChildTerminated)) == Counter(
        f"app/s{n}" for n in range(count)
    )
    assert {one.reason.detail.returncode for one in recorder.of(ChildTerminated)} == {
        -signal.SIGKILL
    }
    assert infos == {**{f"s{n}": 2 for n in range(count)}, **{spec.id: 1 for spec in others()}}
    assert not first & second
    assert beside <= set(children())
    assert app.stop().unstopped == ()
    assert not marked(number)
    wait_until(
        lambda: len(list(Path("/proc/self/fd").iterdir())) <= open_files,
        "the end of the descriptors",
    )


COSTS = {
    # what: (how it is made, (descriptors in this process, threads))
    "a program": (lambda _: talks(), (2, 0)),
    "stdout to a callable": (lambda _: talks(stdout=len), (3, 1)),
    "stdout to a file": (lambda folder: talks(stdout=folder / "out"), (4, 0)),
    "stderr to a file": (lambda folder: talks(err_dir=folder), (3, 0)),
    "its mail": (lambda _: talks(heartbeat=1000.0), (3, 0)),
    "a callable": (lambda _: process(callees.obedient), (5, 1)),
}


def talks(**options):
    return process("sh", "-c", "echo out; echo err >&2; exec sleep 1000", **options)


@pytest.mark.parametrize(("made", "costs"), COSTS.values(), ids=COSTS)
def test_what_each_process_costs(launch, tmp_path, monkeypatch, made, costs):
    """Each option costs so many descriptors and threads, besides those that all
    programs of a tree share.
    """
    # the thread of a log lives a bit longer than it is needed
    monkeypatch.setattr(lanes, "IDLE", 0.01)
    app = launch(supervisor("app", children=[process("sleep", "1000", id="first")]))

    def used():
        return len(list(Path("/proc/self/fd").iterdir())), len(threading.enumerate())

    before = min(used() for _ in range(100))
    for number in range(2):
        app.start_child(attrs.evolve(made(tmp_path / str(number)), id=f"x{number}"))
    after = before[0] + 2 * costs[0], before[1] + 2 * costs[1]
    wait_until(lambda: used() == after, f"{after}, after {before}")


def test_programs_share_three_threads(launch):
    """One thread waits for all programs, one keeps the guard, one starts them."""
    app = launch(supervisor("app"))
    before = {one.name for one in threads.entries(app._tree)}
    for number in range(3):
        app.start_child(process("sleep", "1000", id=f"x{number}"))

    assert {one.name for one in threads.entries(app._tree)} - before == {
        "app (programs)",
        "app (guard)",
        "app (launcher)",
    }


FLOOD = """
import os, sys
for number in range(int(sys.argv[1]) * 16):
    os.write(2, b"%08d" % number + b"x" * 65527 + b"\\n")
os.write(2, b"the end")
os._exit(1)
"""


def memory(field):
    """What /proc says of this process, in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def test_a_flood_of_a_hundred_megabytes(launch, recorder, tmp_path):
    """A flood takes little memory. The reason has the last 64 KiB, the log no more than
    was allowed.
    """
    spec = python(FLOOD, 100, err_dir=tmp_path, log_size=4 * MEGABYTE, log_backups=2)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
    app = launch(supervisor("app", children=[spec, *others()], intensity=0))
    stderr = recorder.wait_for(ChildTerminated, "app/x").reason.detail.stderr
    app.wait(HANG)
    most = memory("VmHWM")
    logs = sorted((tmp_path / "app").iterdir())

    assert stderr == (b"%08d" % 1599 + b"x" * 65527 + b"\nthe end")[-65536:]
    assert most - before < 32 * MEGABYTE
    assert [log.name for log in logs] == ["x.stderr.log", "x.stderr.log.1", "x.stderr.log.2"]
    assert all(log.stat().st_size <= 4 * MEGABYTE for log in logs)
    assert logs[0].read_bytes().endswith(b"\nthe end")


THIEF = """
import os, signal, sys, threading
from otpy import process, start, supervisor
from otpy.reports import ChildTerminated
from tests import callees

stolen, ends, done = [], [], threading.Event()

def steal():
    while True:
        try:
            stolen.append(os.waitpid(-1, 0)[0])
        except ChildProcessError:
            done.wait(0.001)  # there is none now

def reap(number, frame):
    try:
        while (pid := os.waitpid(-1, os.WNOHANG)[0]):
            stolen.append(pid)
    except ChildProcessError:
        pass

def hear(report):
    if isinstance(report, ChildTerminated):
        ends.append((report.path, report.incarnation))
        len(ends) == 40 and done.set()

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, reap)
    threading.Thread(target=steal, daemon=True).start()
    children = [process("sh", "-c", "exit 3", id=f"s{n}", restart="temporary") for n in range(30)]
    children += [process(callees.vanish, 3, id=f"c{n}", restart="temporary") for n in range(5)]
    children += [process(callees.fall_ill, id=f"i{n}", restart="temporary") for n in range(5)]
    app = start(supervisor("app", children=[*children, process("sleep", "1000", id="z")]), log=False, reports=hear)
    while not done.wait(0.01):  # the handler needs the main thread
        pass
    left = [info.id for info in app.which_children()]
    report = app.stop()
    assert len(set(ends)) == len(ends) == 40, ends
    assert left == ["z"], left
    assert (report.stopped, report.unstopped) == (("app/z",), ()), report
    assert stolen
    print("held")
"""


def run_in(tmp_path, text, *args, **options):
    """Start a program of its own."""
    file = tmp_path / "program.py"
    file.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, file, *args], env=environment, text=True, **options)


def test_others_may_wait_for_all_children(tmp_path):
    """A handler of SIGCHLD and a thread may reap every child: no end is lost or
    reported twice, and nothing hangs.
    """
    with run_in(tmp_path, THIEF, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        try:
            said = program.communicate(timeout=HANG)
        finally:
            program.kill()

    assert said == ("held\n", "")


VICTIM = """
import asyncio, os, signal, sys, threading
from otpy import coroutine, process, start, supervisor, thread
from otpy.reports import ChildTerminated
from tests import callees

SHUT = "import os, signal; os.closerange(3, 1000); print('up', flush=True); signal.pause()"  # nothing inherited is left

async def in_loop(ctx):
    await ctx.wait_stop()

if __name__ == "__main__":
    mark, where = sys.argv[1:]
    kinds = [
        process("sleep", mark, id="sleep"),
        process("sh", "-c", f"trap '' TERM; sleep {mark} & sleep {mark}; :", id="deaf"),
        process(sys.executable, "-S", "-c", SHUT, mark, id="shut", ready="up"),
        process(callees.with_grandchild, where + ".one", id="callable", ready=True),
        process(callees.with_lock_held, where + ".two", id="locked", ready=True),
        coroutine(in_loop, id="coroutine"),
        coroutine(in_loop, id="own", loop="own"),
        thread(lambda ctx: ctx.wait_stop(), id="thread"),
    ]
    crashing = [process("sh", "-c", f"sleep {mark} & exit 1", id=f"crash{n}") for n in range(3)]
    nested = supervisor("nested", children=crashing, intensity=10**6)
    start(supervisor("app", children=[*kinds, nested], strategy="rest_for_one"), log=False)
    print("up", flush=True)
    threading.Event().wait()
"""


def test_nothing_survives_a_sigkill_of_the_program(tmp_path):
    """Programs and callables end with the process that runs the tree, also in the
    middle of restarts.
    """
    number, where = mark(), tmp_path / "where"
    with run_in(tmp_path, VICTIM, number, str(where), stdout=subprocess.PIPE) as program:
        said = program.stdout.readline()
        guards = wait_until(lambda: guards_of(program.pid))
        pids = {pid for end in (".one", ".two") for pid in callees.read(f"{where}{end}")}
        program.kill()
        program.wait()

    assert (said, len(guards), len(pids)) == ("up\n", 1, 4)
    wait_until(lambda: guards.isdisjoint(marked(guard_process.__file__)), "the end of the guard")
    assert not marked(number)
    wait_until(lambda: all(is_gone(pid) for pid in pids), "the end of the callables")


def is_gone(pid):
    try:
        return stat(pid)[0] in "ZX"
    except OSError:
        return True
