"""One of everything, run in a fresh interpreter from which something was taken away."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import tempfile
import time
from pathlib import Path

from otpy import (
    ChildSpec,
    ProcessDied,
    Supervisor,
    coroutine,
    process,
    run,
    start,
    supervisor,
    thread,
)
from otpy.reports import ChildTerminated, StopReport

HANG = 30.0

SEND_READY = """
import os, signal, socket
mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
mail.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""


class Heard:
    """The reports of a tree, as they come."""

    def __init__(self) -> None:
        self.reports: queue.Queue[object] = queue.Queue()

    def tree(self, *children: ChildSpec, intensity: int = 3) -> Supervisor:
        """Start a tree of these children."""
        return start(
            supervisor("app", children=children, intensity=intensity),
            reports=self.reports.put,
            log=False,
        )

    def first(self, kind: type) -> object:
        """Wait for a report of this kind, and return it."""
        while not isinstance(report := self.reports.get(timeout=HANG), kind):
            pass
        return report


def crashes_once(ctx: object) -> None:
    """Crash, and then wait for the stop."""
    if ctx.incarnation == 1:
        raise ValueError("once")
    ctx.wait_stop()


def never_stops(ctx: object) -> None:
    """Do not listen."""
    until = time.monotonic() + HANG
    while time.monotonic() < until:
        time.sleep(0.001)


async def waits(ctx: object) -> None:
    """Be a task."""
    await asyncio.sleep(HANG)


def says_ready(ctx: object) -> None:
    """Be a process."""
    ctx.ready()
    ctx.wait_stop()


def dies(ctx: object) -> None:
    """Be a process that is not there for long."""
    os._exit(7)


def threads_and_coroutines() -> None:
    heard = Heard()
    app = heard.tree(thread(crashes_once, id="a"), coroutine(waits, id="b"))
    ended = heard.first(ChildTerminated)
    while app.which_children()[0].incarnation == 1:
        time.sleep(0.001)
    print("threads:", ended.reason.kind.value, *app.stop(HANG).stopped)


def interrupts() -> None:
    report: StopReport = Heard().tree(thread(never_stops, id="a", shutdown=0.1)).stop()
    print("interrupt:", *report.interrupted, *(f"{one.path} unstopped" for one in report.unstopped))


def programs() -> None:
    heard = Heard()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "log"
        app = heard.tree(
            process("sh", "-c", "exit 3", id="exits", restart="temporary"),
            process(
                sys.executable, "-S", "-c", SEND_READY, id="notifies", ready=True, shutdown=HANG
            ),
            process(
                "sh", "-c", "echo hello; exec sleep 1000", id="writes", stdout=file, shutdown=HANG
            ),
            process(
                "sh",
                "-c",
                "trap '' TERM; echo up; sleep 1000",
                id="stays",
                ready="up",
                shutdown=0.1,
            ),
        )
        while not file.exists() or not file.read_text():
            time.sleep(0.001)
        report = app.stop()
        ended = heard.first(ChildTerminated)
        print(
            "programs:",
            ended.reason.detail.returncode,
            *report.stopped,
            "killed:",
            *report.interrupted,
        )
        print("log files:", file.read_text().strip(), oct(file.stat().st_mode & 0o777))


def callables() -> None:
    heard = Heard()
    app = heard.tree(
        process(says_ready, id="a", ready=True),
        process(dies, id="b", restart="temporary"),
        process(crashes_once, id="c"),
    )
    while True:
        ended = heard.first(ChildTerminated)
        if ended.path == "app/b":
            break
    assert isinstance(ended.reason.exception, ProcessDied)
    print("callables:", ended.reason.exception, *app.stop(HANG).stopped)


def signals() -> None:
    def job(ctx: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ctx.wait_stop()

    print("signals:", run(supervisor("app", children=[thread(job, id="a")]), log=False).reason)


def main() -> None:
    """Run all, and print a line of each."""
    for one in (threads_and_coroutines, interrupts, programs, callables, signals):
        one()


if __name__ == "__main__":
    main()
