"""A fork that the user's code makes on a thread of otpy has nothing of the tree."""

from __future__ import annotations

import threading

from otpy import process, supervisor
from otpy.children.callable.wires import fork_lock
from otpy.reports import Progress
from tests.callees import obedient
from tests.helpers import HANG, wait_until
from tests.seams.kit import python

FORKS = """
import asyncio, os, threading, time
from otpy import coroutine, periodic, process, registry, start, supervisor, thread

HANG = 20.0
made, forked, threads = {}, threading.Event(), threading.Semaphore(0)

def fork(who, *told):
    if who in made:
        return
    made[who] = pid = os.fork()
    if pid:
        made[who] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        threads.release()
    else:
        signal_after(HANG)

def signal_after(seconds):
    import signal
    signal.alarm(int(seconds))  # ends a fork that goes on, and its status shows it
"""

RETURNS = (
    FORKS
    + """
def stops(ctx):
    ctx.on_stop(lambda: fork("on_stop"))
    ctx.wait_stop()

async def works(ctx):
    await asyncio.to_thread(fork, "to_thread")
    await asyncio.sleep(HANG)

def crashes(ctx):
    raise ValueError

children = [
    thread(stops),
    coroutine(works),
    periodic(fork, "periodic", interval=0.01),
    process("sh", "-c", "echo a line; exec sleep 1000", id="p", stdout=lambda line: fork("line")),
    supervisor("s", intensity=0, restart="temporary", children=[thread(crashes)], on_escalation=lambda _: fork("esc")),
]
app = start(supervisor("app", children=children), log=False, reports=lambda report: fork("reports"))
for _ in range(5):
    assert threads.acquire(timeout=HANG)
app.stop()
print(*sorted(made), set(made.values()))
"""
)

LOOP = (
    FORKS
    + """
steps = []

async def sibling(ctx):
    while True:
        if "coroutine" in made and os.getppid() == parent:
            os.write(1, b"a step in the fork\\n")
        steps.append(1)
        await asyncio.sleep(0)

async def forks(ctx):
    await asyncio.sleep(0.01)
    fork("coroutine")
    await asyncio.sleep(HANG)

parent = os.getpid()
app = start(supervisor("app", children=[coroutine(sibling), coroutine(forks), coroutine(sibling, id="b")]), log=False)
assert threads.acquire(timeout=HANG)
count = len(steps)
while len(steps) < count + 10:
    time.sleep(0.001)
app.stop()
print(made)
"""
)


def test_a_fork_that_a_handler_lets_return_ends_there():
    """It calls no other handler, waits for no other report, and runs nothing
    periodically.
    """
    ran = python(RETURNS)

    assert ran.out == "esc line on_stop periodic reports to_thread {0}\n"


def test_a_fork_of_a_coroutine_that_goes_on_ends_at_its_next_wait():
    """Its siblings take no step in the fork: they run in the other process."""
    ran = python(LOOP)

    assert ran.out == "{'coroutine': 0}\n"


def test_no_supervisor_waits_for_a_fork(launch, recorder):
    """Hooks of the user run before a fork, for as long as they like. Only callables
    that start or end wait for it.
    """
    app = launch(supervisor("app", children=[process(obedient, id="a")]))
    recorder.wait_for(Progress, "app/a")
    calls = [
        threading.Thread(target=app.terminate_child, args=("a",)),
        threading.Thread(target=app.start_child, args=(process(obedient, id="b"),)),
    ]
    with fork_lock:
        for call in calls:
            call.start()
        wait_until(
            lambda: (
                [one.state.value for one in app.which_children(HANG)] == ["stopping", "starting"]
            )
        )
    for call in calls:
        call.join(HANG)

    assert [one.state.value for one in app.which_children()] == ["undefined", "running"]
