"""Parts of otpy on their own: the machine without threads, the way of a report, and the import."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter

import otpy
from benchmarks.restarts import UNLIMITED
from benchmarks.trees import resident
from otpy.core.machine import SupervisorMachine
from otpy.core.messages import Begin, ChildExited, ChildStarted, Message, Start
from otpy.reports import ChildTerminated, ExitKind, ExitReason
from otpy.runtime.telemetry import Telemetry

CHILDREN = 100


def machine(size: int) -> list[float]:
    """Return the seconds per message, *size* samples, in each of which every child crashes once and comes up again.

    The messages are made beforehand, and the orders are looked at afterwards.
    """
    children = [otpy.thread(_never_run, id=f"child-{number}") for number in range(CHILDREN)]
    machine = SupervisorMachine(
        otpy.supervisor("app", children=children, intensity=UNLIMITED, period=1.0), "app"
    )
    refs = _boot(machine)
    crash = ExitReason(ExitKind.CRASHED, RuntimeError())
    samples = []
    for turn in range(size):
        crashing, refs = _tell(machine, [ChildExited(ref, crash) for ref in refs], float(turn))
        starting, _ = _tell(machine, [ChildStarted(ref, "app/child") for ref in refs], float(turn))
        samples.append((crashing + starting) / (2 * CHILDREN))
    return samples


def _never_run(ctx: otpy.Context) -> None:
    raise AssertionError("a machine starts nothing")


def _boot(machine: SupervisorMachine) -> list[int]:
    """Start all children, one after the other, and return their numbers."""
    _, started = _tell(machine, [Begin()], 0.0)
    refs = list(started)
    while started:
        _, started = _tell(machine, [ChildStarted(ref, "app/child") for ref in started], 0.0)
        refs += started
    return refs


def _tell(
    machine: SupervisorMachine, letters: list[Message], now: float
) -> tuple[float, list[int]]:
    """Return the seconds that it took, and the numbers of the children that are to be started."""
    orders = []
    began = perf_counter()
    for letter in letters:
        orders.append(machine.receive(letter, now))
    took = perf_counter() - began
    return took, [order.ref for answer in orders for order in answer if isinstance(order, Start)]


# Reports: one thread sends them, another one gets them. That the machine makes them is in its own figure.


def reports_of_otpy(size: int) -> list[float]:
    """Send *size* reports of crashes as a supervisor does, and wait until the handler has had the last."""
    reports = _reports(size)
    last, done = reports[-1], threading.Event()

    def handle(report: ChildTerminated) -> None:
        if report is last:
            done.set()

    telemetry = Telemetry("app", None, None)
    telemetry.subscribe("app", handle)
    began = perf_counter()
    for report in reports:
        telemetry.tell(report)
    done.wait()
    took = perf_counter() - began
    telemetry.close()
    return [took / size]


def reports_of_floor(size: int) -> list[float]:
    reports = _reports(size)
    last, done = reports[-1], threading.Event()
    queue: SimpleQueue[ChildTerminated] = SimpleQueue()

    def get_all() -> None:
        while queue.get() is not last:
            pass
        done.set()

    reader = threading.Thread(target=get_all, daemon=True)
    reader.start()
    began = perf_counter()
    for report in reports:
        queue.put(report)
    done.wait()
    took = perf_counter() - began
    reader.join()
    return [took / size]


def _reports(size: int) -> list[ChildTerminated]:
    reason = ExitReason(ExitKind.CRASHED, RuntimeError())
    reports = [
        ChildTerminated(path="app/child", incarnation=number, reason=reason)
        for number in range(size)
    ]
    gc.collect()
    return reports


def memory_of_reports(size: int) -> list[float]:
    """Crash a child *size* times, and return by how much the process has grown since a tenth of that."""
    counted = 0
    early, late = threading.Event(), threading.Event()
    go_on = threading.Event()

    def child(ctx: otpy.Context) -> None:
        if ctx.incarnation == size // 10:
            early.set()
            go_on.wait()
        if ctx.incarnation > size:
            late.set()
            ctx.wait_stop()
            return
        raise RuntimeError

    def handle(report: object) -> None:
        nonlocal counted
        counted += 1

    spec = otpy.supervisor("app", children=[otpy.thread(child)], intensity=UNLIMITED, period=1.0)
    with otpy.start(spec, log=False, reports=handle):
        early.wait()
        before = resident()
        go_on.set()
        late.wait()
        after = resident()
    assert counted == 2 * size + 1, "a report of each crash, and one of each start"
    return [max(0.0, float(after - before))]


# In a fresh interpreter each. The first one is not counted: it may have to compile and to write bytecode.

HELP = """
import sys
sys.argv = ["otpy", "--help"]
try:
    from otpy.cli import main
    main()
except SystemExit:
    pass
"""


def import_of(modules: str) -> Callable[[int], list[float]]:
    return fresh(f"import {modules}")


def fresh(code: str) -> Callable[[int], list[float]]:
    """Return a side that runs *code*, each time as the first thing that its interpreter does."""
    timed = f"from time import perf_counter; began = perf_counter()\n{code}\nprint(perf_counter() - began)"

    def run(size: int) -> list[float]:
        return [_run(timed) for _ in range(size + 1)][1:]

    return run


def _run(code: str) -> float:
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout.splitlines()[-1])
