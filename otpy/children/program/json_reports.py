"""A report handler that makes one JSON text of each crash of a program."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable

from otpy.arguments import check_handler
from otpy.children.program.exit import ProgramExit
from otpy.reports import ChildTerminated, Report, ShutdownError, StartFailed

ENDS = (ChildTerminated, StartFailed, ShutdownError)
"""The reports of ends that people should look at; one of them reports each end."""


def show(_name: str, text: str) -> None:
    """Print *text*."""
    print(text, flush=True)  # noqa: T201 - it is what this handler is for


def json_reports(handler: Callable[[str, str], object] = show) -> Callable[[Report], object]:
    """Make a report handler for ``start(…, reports=…)`` or ``Supervisor.subscribe``.

    It calls ``handler(name, text)`` for each end of a program that is reported: an end
    without a request to stop, a start that failed after the program ran, and a stop that
    needed force. *name* is the id of the program, *text* a JSON object with

    - process: its path;
    - timestamp: seconds since the epoch;
    - utc_iso: the same as text, such as "2024-05-01T12:00:00.123456+00:00";
    - return_code: as in ``subprocess``: the exit code, or minus the number of the signal;
      null if it is not known;
    - data: the last of that run's stderr, at most 64 KiB, in base64.

    Like any report handler it is called on a thread of its own. If it raises, that is logged,
    and while it blocks, only its own reports wait.

    Args:
        handler: Default: prints *text* to stdout.

    Raises:
        SpecError: *handler* cannot be called like this.
    """
    expected = "a callable that takes a name and a text"
    check_handler("<json_reports>", "handler", handler, ("name", "text"), expected)

    def handle(report: Report) -> object:
        if not isinstance(report, ENDS) or report.reason is None:
            return None
        exit = report.reason.detail
        if not isinstance(exit, ProgramExit):
            return None
        return handler(report.path.rpartition("/")[2], json_of(report, exit))

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
