"""A fresh interpreter for whatever changes a whole process: its signals, descriptors, memory, or its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

HANG = 30.0
"""Seconds after which a fresh interpreter counts as hung. No test depends on the length."""


@attrs.frozen
class Ran:
    """How a fresh interpreter ended.

    Attributes:
        status: Its exit status, or minus the number of the signal that killed it.
        out, err: What it wrote.
        seconds: How long it ran.
    """

    status: int
    out: str
    err: str
    seconds: float


def python(
    source: str,
    *args: object,
    hang: float = HANG,
    signals: Iterable[tuple[float, int]] = (),
    env: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    expect: int | None = 0,
    **popen: Any,
) -> Ran:
    """Run *source* in a fresh interpreter that leads a session of its own, and return how it ended.

    Args:
        signals: Pairs (seconds after the start, number): signals that are sent to that interpreter alone.
        expect: The exit status that it must have; None: the caller looks.
        hang: Seconds after which it is killed, with its session, and the test fails.
    """
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *flags, "-c", textwrap.dedent(source), *map(str, args)],
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "errors": "replace",
            "start_new_session": True,
            "env": {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            **popen,
        },
    )
    sender = threading.Thread(target=_send, args=(child, sorted(signals), began), daemon=True)
    sender.start()
    try:
        out, err = child.communicate(timeout=hang)
    except subprocess.TimeoutExpired:
        kill_session(child.pid)
        out, err = child.communicate(timeout=5)
        raise AssertionError(f"still running after {hang} s; out: {out}; err: {err}") from None
    finally:
        kill_session(child.pid)
        sender.join(HANG)
    ran = Ran(child.returncode, out or "", err or "", time.monotonic() - began)
    assert expect is None or ran.status == expect, (
        f"status {ran.status}; out: {ran.out}; err: {ran.err}"
    )
    return ran


def _send(child: subprocess.Popen[str], signals: Iterable[tuple[float, int]], began: float) -> None:
    for after, number in signals:
        try:
            child.wait(max(0.0, began + after - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.send_signal(number)
        else:
            return


def kill_session(leader: int) -> None:
    """Kill every process of the session that *leader* leads."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(stat.read_text("latin-1").rpartition(")")[2].split()[3])
            if session == leader:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (OSError, IndexError, ValueError):
            continue
