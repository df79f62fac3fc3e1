"""The log of otpy: reports, and complaints about code of the user. The only module that logs.

Laws:
1. A complaint never raises. If the log fails, the complaint goes to stderr.
2. The same complaint about the same kind of item is made once in QUIET seconds, with the
   number of those in between.
3. No text that is logged holds a character that a terminal would obey: some texts come
   from children.
4. A fork waits until no thread is inside the log: the locks that such a thread holds
   would stay locked in the forked process for ever.

Any thread may call these functions, and is blocked as long as the log is. So a thread
that others need has ``Telemetry.complain`` call ``complain`` on a helper thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from typing import Any

import structlog

from otpy import reports
from otpy.exceptions import printable, show, traceback_object, traceback_of
from otpy.reports import Cause, Escalation, Report
from otpy.values import running

EVENTS = {
    # report: (log level, event)
    reports.Progress: ("info", "progress"),
    reports.ChildTerminated: ("error", "child_terminated"),
    reports.Stalled: ("error", "stalled"),
    reports.StartFailed: ("error", "start_failed"),
    reports.ShutdownError: ("error", "shutdown_error"),
    reports.LimitReached: ("critical", "limit_reached"),
    reports.Unstopped: ("error", "unstopped"),
    reports.AutoShutdownBegun: ("info", "auto_shutdown_begun"),
    reports.StrayMessage: ("error", "stray_message"),
    reports.OutputLost: ("error", "output_lost"),
    reports.SignalStop: ("info", "signal_stop"),
}

FORK = 1.0
"""Seconds that a fork waits, altogether, for threads that write to the log."""

QUIET = 60.0
"""Seconds in which a complaint that says the same as one before is only counted."""

MANY = 1000
"""How many kinds of complaints are remembered."""


def logger(**bound: object) -> Any:
    """Return a structlog logger of otpy, bound to *bound*."""
    return structlog.get_logger("otpy", **bound)


# Writing, and forks meanwhile

_pens: dict[int, threading.RLock] = {}
"""The lock that each thread holds while it writes, by the number of the thread."""

_held: dict[int, list[threading.RLock]] = {}
"""The locks that are held during a fork, by the number of the thread that forks."""


def _pen() -> threading.RLock:
    """Return the lock of this thread. Only a fork waits for it."""
    number = threading.get_ident()
    return _pens.get(number) or _pens.setdefault(number, threading.RLock())


def write(level: str, event: str, **fields: object) -> None:
    """Write to the log. A fork waits meanwhile."""
    with _pen():
        getattr(logger(), level)(event, **fields)


def mutter(text: str) -> None:
    """Write *text* to stderr, if there is one, in ASCII."""
    with contextlib.suppress(BaseException), _pen():
        sys.stderr.write(text.encode("ascii", "backslashreplace").decode())
        sys.stderr.flush()


def mutter_at_once(text: str) -> None:
    """Write *text* to stderr, if that can take it at once.

    Takes no lock, so a signal handler may call it.
    """
    with contextlib.suppress(BaseException):
        file = sys.stderr.fileno()
        if select.select((), (file,), (), 0)[1]:
            os.write(file, text.encode("ascii", "backslashreplace")[: select.PIPE_BUF])


def _before_fork() -> None:
    """Wait until no thread is inside the log, at most FORK seconds."""
    deadline = time.monotonic() + FORK
    tried: set[threading.RLock] = set()
    held = _held[threading.get_ident()] = []
    # A thread may make its lock during the loop, so look again until there is no new
    # one.
    while new := [pen for pen in list(_pens.values()) if pen not in tried]:
        for pen in new:
            tried.add(pen)
            if pen.acquire(timeout=max(0.0, deadline - time.monotonic())):
                held.append(pen)


def _after_fork() -> None:
    for pen in _held.pop(threading.get_ident()):
        pen.release()


def _after_fork_in_child() -> None:
    _held.clear()
    _pens.clear()  # the threads that own them do not exist here


if hasattr(os, "register_at_fork"):  # not on Windows, where no process forks
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


# Reports


def log_report(report: Report) -> None:
    """Write *report* to structlog.

    The start of a child by a call has the level "debug" (OTP: since 28).
    """
    level, event = EVENTS[type(report)]
    if isinstance(report, reports.Progress) and report.cause is Cause.CALL:
        level = "debug"
    write(level, event, **fields_of(report))


def fields_of(report: Report) -> dict[str, object]:
    """Return the fields of *report* that are logged."""
    fields: dict[str, object] = {"path": report.path}
    if report.incarnation:
        fields["incarnation"] = report.incarnation
    if report.reason is not None:
        fields["reason"] = str(report.reason)
    if report.reason is not None and report.reason.traceback:
        fields["exception"] = report.reason.traceback.rstrip()
    match report:
        case reports.Unstopped() | reports.Stalled():
            fields["stack"] = report.stack
        case reports.LimitReached():
            fields["child"] = report.escalation.child
        case reports.AutoShutdownBegun():
            fields["child"] = report.child
        case reports.StrayMessage():
            fields["item"] = show(report.item)
        case reports.OutputLost():
            fields["file"] = report.file
        case reports.SignalStop():
            fields["detail"] = report.detail
    return _clean(fields)


def _clean(fields: dict[str, object]) -> dict[str, object]:
    """Return *fields* with each text as a terminal may print it."""
    return {
        name: printable(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }


# Complaints


@running
class _Made:
    """A complaint that was logged.

    Attributes:
        event, fields: Its words.
        at: When, monotonic.
        again: How often it was only counted since.
    """

    event: str
    fields: dict[str, object]
    at: float
    again: int = 0


_made: dict[tuple[object, ...], _Made] = {}
"""The complaints of the last time, by their kinds."""


def complain(event: str, error: BaseException, *, given: object = None, **fields: object) -> None:
    """Log an exception of user code where no caller waits for it. Never raises.

    Args:
        event: What has happened.
        error: The exception.
        given: The argument of that code. It is lost, so it is logged as well.
        fields: What else is known.
    """
    try:
        kind = (event, id(type(error)), _place(error), id(type(given)), *map(str, fields.values()))
        named = fields if given is None else fields | {"given": type(given).__name__}
        again = _count(kind, event, named)
        if again is not None:
            _write(event, error, given, fields | ({"again": again} if again else {}))
    except BaseException:  # no memory, or a thread's last moments: no place is left to say it
        return


def _count(kind: tuple[object, ...], event: str, fields: dict[str, object]) -> int | None:
    """Return how often the complaint was only counted since it was logged.

    None: count it.
    """
    now, before = time.monotonic(), _made.get(kind)
    if before is not None and now - before.at < QUIET:
        # Another thread may add one at the same time, and one of the two is lost. No
        # decision depends on this number.
        before.again += 1
        return None
    if len(_made) >= MANY:
        _made.clear()
    _made[kind] = _Made(event, fields, now)
    return before.again if before is not None else 0


def _write(event: str, error: BaseException, given: object, fields: dict[str, object]) -> None:
    text, (line, rest) = traceback_of(error), _words(given)
    said = {**fields, **({"given": line} if line else {})}
    try:
        write("error", event, **_clean(said), exception=text.rstrip())
    except BaseException:
        more = f"it was called with this:\n{rest}" if rest else ""
        mutter(f"otpy: {event} {said}\n{text}{more}")


def take_counts() -> list[str]:
    """Return the complaints that were only counted, in words, and forget them."""
    made = [one for kind in list(_made) if (one := _made.pop(kind, None)) is not None and one.again]
    return [f"{one.event} {show(one.fields)}: {one.again} times" for one in made]


def forget_complaints() -> None:
    """Log the next complaint, whatever was logged before."""
    _made.clear()


def _words(given: object) -> tuple[str, str]:
    """Return the argument of a handler in one line, and its traceback."""
    if given is None:
        return "", ""
    if not isinstance(given, Report) or type(given) not in EVENTS:
        return printable(str(given)) if isinstance(given, Escalation) else show(given), ""
    fields = fields_of(given)
    more = [str(fields.pop(name)) for name in ("exception", "stack") if name in fields]
    line = " ".join(
        [EVENTS[type(given)][1], *(f"{name}={value}" for name, value in fields.items())]
    )
    return printable(line), "".join(f"{one.rstrip()}\n" for one in more)


def _place(error: BaseException) -> tuple[str, int] | None:
    """Return the file and the line that raised *error*. Runs no code of its class."""
    last = traceback_object(error)
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last and (last.tb_frame.f_code.co_filename, last.tb_lineno)
