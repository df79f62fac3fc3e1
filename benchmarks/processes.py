"""Programs, and callables in processes of their own: what it costs to replace one, to start one, and to have many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import otpy
from benchmarks.restarts import UNLIMITED

SAYS_WHO_IT_IS = ("/bin/sh", "-c", 'echo $$ >"$0"; exec sleep 1000')
"""A program whose first act is to write its number to the file *$0*."""


def restart_of_otpy(size: int) -> list[float]:
    with _births() as (path, next_pid):
        tree = otpy.supervisor(
            "app",
            children=[otpy.process(*SAYS_WHO_IT_IS, path, id="x")],
            intensity=UNLIMITED,
            period=1.0,
        )
        with otpy.start(tree, log=False):
            return _kill_again_and_again(next_pid, size)


def restart_of_floor(size: int) -> list[float]:
    with _births() as (path, next_pid):
        keeper = threading.Thread(
            target=_keep_running, args=((*SAYS_WHO_IT_IS, path), size), daemon=True
        )
        keeper.start()
        samples = _kill_again_and_again(next_pid, size, last=True)
        keeper.join()
    return samples


def _keep_running(argv: tuple[str, ...], deaths: int) -> None:
    """Run a program, and start it again after each of so many deaths; then wait for its last one."""
    program = subprocess.Popen(argv)
    for _ in range(deaths):
        program.wait()
        program = subprocess.Popen(argv)
    program.wait()


def _kill_again_and_again(
    next_pid: Callable[[], int], times: int, *, last: bool = False
) -> list[float]:
    """Kill so many of them, and in the end, perhaps, the last one as well."""
    samples = []
    pid = next_pid()
    for _ in range(times):
        killed_at = perf_counter()
        os.kill(pid, signal.SIGKILL)
        pid = next_pid()
        samples.append(perf_counter() - killed_at)
    if last:
        os.kill(pid, signal.SIGKILL)
    return samples


@contextmanager
def _births() -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield a file to which programs write their numbers, and a function that waits for the next one."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "births"))
        os.mkfifo(path)
        fd = os.open(
            path, os.O_RDWR
        )  # for writing, too: or its end would be seen whenever no program has it open
        try:
            yield path, lambda: int(os.read(fd, 32))
        finally:
            os.close(fd)


def say_ready(ctx: otpy.Context) -> None:
    """Be the callable of a child."""
    ctx.ready()
    ctx.wait_stop()


def ready_of_otpy(size: int) -> list[float]:
    samples = []
    with otpy.start(otpy.dynamic_supervisor("app"), log=False) as app:
        for _ in range(size):
            asked_at = perf_counter()
            app.start_child(otpy.process(say_ready, id="x", ready=True))
            samples.append(perf_counter() - asked_at)
            app.terminate_child("x")
    return samples


def say_ready_by_pipe(end: Connection) -> None:
    """Be the callable of a bare process."""
    end.send(True)
    end.recv()


def ready_of_floor(size: int) -> list[float]:
    context = multiprocessing.get_context("spawn")
    return [_start_bare(context) for _ in range(size)]


def _start_bare(context: Any) -> float:
    ours, theirs = context.Pipe()
    asked_at = perf_counter()
    process = context.Process(target=say_ready_by_pipe, args=(theirs,))
    process.start()
    ours.recv()
    took = perf_counter() - asked_at
    ours.send(True)
    process.join()
    process.close()
    ours.close()
    theirs.close()
    return took


def sleepers(size: int) -> otpy.SupervisorSpec:
    """Return a tree of programs that do nothing."""
    return otpy.programs(
        "/", {f"sleeper-{number}": ["sleep", "1000"] for number in range(size)}, id="app"
    )
