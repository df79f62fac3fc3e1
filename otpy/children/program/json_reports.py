"""A report handler that tells each crash of a program as one JSON text, with what the program has said last."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable

from otpy.arguments import check_handler
from otpy.children.program.child import ProgramExit
from otpy.reports import ChildTerminated, Report, ShutdownError, StartFailed

ENDS = (ChildTerminated, StartFailed, ShutdownError)
"""The reports of ends that somebody should look at; each end is told by one of them."""


def show(_name: str, text: str) -> None:
    """Print *text*."""
    print(text, flush=True)  # noqa: T201 - it is what this handler is for


def json_reports(handler: Callable[[str, str], object] = show) -> Callable[[Report], object]:
    """Make a report handler for ``start(…, reports=…)`` or ``Supervisor.subscribe``.

    It calls ``handler(name, text)`` for each end of a program that is reported: the end of one that nobody has told to
    stop, a start that failed after it ran, and a stop that needed force. *name* is the id of the program, *text* a JSON
    object with

        process: its path;
        timestamp: seconds since the epoch;
        utc_iso: the same as text, such as "2024-05-01T12:00:00.123456+00:00";
        return_code: as in ``subprocess``: the exit code, or minus the number of the signal, or null: nobody knows it;
        data: the last of that run's stderr, at most 64 KiB, in base64.

    Like any report handler it is called on a thread of its own. What it raises is logged, and while it blocks, only its
    own reports wait.

    Args:
        handler: Default: prints *text* to stdout.

    Raises:
        SpecError: *handler* cannot be called like this.
    """
    expected = "a callable that takes a name and a text"
    check_handler("<json_reports>", "handler", handler, ("name", "text"), expected)

    def handle(report: Report) -> object:
        exit = (
            report.reason.detail if isinstance(report, ENDS) and report.reason is not None else None
        )
        if isinstance(exit, ProgramExit):
            return handler(report.path.rpartition("/")[2], json_of(report, exit))
        return None

    return handle


def json_of(report: Report, exit: ProgramExit) -> str:
    """Return the JSON text for the end of a program."""
    at = dt.datetime.fromtimestamp(report.time, dt.UTC)
    fields = {
        "process": report.path,
        "timestamp": report.time,
        "utc_iso": at.isoformat(timespec="microseconds"),
        "data": base64.b64encode(exit.stderr).decode("ascii"),
        "return_code": exit.returncode,
    }
    return json.dumps(fields)
