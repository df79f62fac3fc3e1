"""``otpy run``: run a tree until a signal.

The main thread waits for the tree, and is where Python calls the handler of SIGUSR2.
The reports are written on the thread of their handler; only that thread touches the
file, once it has been opened.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import sys
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TextIO

import click

from otpy.cli.target import Problem, load, show_traceback, takes_target
from otpy.cli.terminal import say_line
from otpy.exceptions import printable, traceback_of

if TYPE_CHECKING:
    from otpy.children.program.logfiles import LogFile


class GaveUp(Problem):
    """Raised when the tree did not come up, or its root gave up."""

    exit_code = 70


@click.command(
    epilog="""\b
Examples:
  otpy run app:tree
  otpy run app.py --log-format json --reports reports.jsonl
"""
)
@takes_target
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    help="How the reports on stderr are written; a target that configures structlog itself "
    "has the last word.",
)
@click.option(
    "--reports",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Append each report to FILE as JSON.",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long the stop after a signal may take. Default: as long as the tree allows; "
    "in a container 25.",
)
def run(
    target: str, log_format: str, reports: str | None, stop_timeout: float | None, *, verbose: bool
) -> None:
    """Run the tree TARGET until a signal, or until it ends by itself.

    SIGINT, SIGTERM, SIGHUP and SIGQUIT stop it in order; a second signal, more than a
    second later, shortens all time limits to zero, a third one ends the process at
    once. SIGUSR2 has all log files of programs, and the file of --reports, opened anew
    by their names. What happens in the tree is reported on stderr.

    Exit status: 0, it was stopped or has ended; 70, it did not come up, or its root
    gave up; 2, the target, its tree or an option is wrong.
    """
    configure_log(log_format)
    listen_for_rotation()
    from otpy.children.program.logfiles import LogFile

    file = (
        None if reports is None else LogFile(reports, makes_directory=False)
    )  # the target may change the directory
    tree = load(target, verbose=verbose)
    import otpy

    handler = None if reports is None or file is None else reports_to(reports, file)
    try:
        otpy.run(
            tree,
            reports=handler,
            stop_timeout=in_container() if stop_timeout is None else stop_timeout,
        )
    except (otpy.TreeFailed, otpy.StartError) as error:
        show_traceback(error, verbose=verbose)
        raise GaveUp(f"{error}; the reports above tell why") from error


BEFORE_THE_KILL = 25.0
"""Seconds for a stop in a container: its manager kills it 30 after the signal."""


def in_container() -> float | None:
    """Return how long a stop may take here: as the first process, or in Kubernetes."""
    is_one = os.getpid() == 1 or "KUBERNETES_SERVICE_HOST" in os.environ
    return BEFORE_THE_KILL if is_one else None


def configure_log(form: str) -> None:
    """Have structlog write to stderr; for this process, which is ours."""
    import structlog

    processors: dict[str, Callable[[], list[Any]]] = {
        "console": lambda: [
            clean,
            structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
                exception_formatter=lambda stream, exc_info: write_traceback(stream, exc_info[1]),
            ),
        ],
        "json": lambda: [
            structlog.processors.TimeStamper("iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    }
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *processors[form](),
        ],
        logger_factory=structlog.WriteLoggerFactory(
            sys.stderr
        ),  # a whole line at once: others write there, too
    )


def clean(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return *event* without orders to a terminal; a processor of structlog."""
    return {
        printable(key): value if key == "exc_info" else shown(value) for key, value in event.items()
    }


def shown(value: object) -> object:
    """Return *value* as the console shows it; numbers stay what they are."""
    if value is None or type(value) in (bool, int, float):
        return value
    return printable(value if isinstance(value, str) else text(value))


def write_traceback(stream: TextIO, error: BaseException | None) -> None:
    """Write the traceback that was logged with an event below it."""
    stream.write(f"\n{traceback_of(error).rstrip()}" if error is not None else "")


def listen_for_rotation() -> None:
    """Open all log files anew at SIGUSR2, unless it is ignored or the target handles it."""
    if hasattr(signal, "SIGUSR2") and signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:
        from otpy.children.program.logfiles import reopen_logs

        signal.signal(signal.SIGUSR2, lambda *_: reopen_logs())


def reports_to(path: str, file: LogFile) -> Callable[[object], None]:
    """Open the file *path* of ``--reports``, and return the handler that writes there."""
    try:
        file.open()
    except OSError as error:
        raise Problem(f"--reports {path}: {error.strerror}") from error
    return ReportFile(
        path, file
    ).write  # it is closed by the end of the process: the handler may still write


class ReportFile:
    """Writes reports to a file, one a line.

    While that fails, reports are counted instead, and that is told in one line on
    stderr, once until it works again. Then the file itself says how many are missing.
    """

    def __init__(self, path: str, file: LogFile) -> None:
        self._path, self._file = path, file
        self._lost = 0

    def write(self, report: object) -> None:
        """Write one."""
        rows = [{"report": type(report).__name__, **fields(report)}]
        if self._lost:
            rows.insert(0, {"report": "ReportsLost", "count": self._lost})
        lines = "\n" * self._file.is_in_a_line + "".join(f"{json.dumps(row)}\n" for row in rows)
        try:
            self._file.write(bytearray(lines.encode()), sys.maxsize, 0)
        except OSError as error:
            self._file.close()
            self._lost += 1
            if self._lost == 1:
                line = (
                    f"otpy run: --reports {self._path}: {error.strerror}; "
                    "reports are lost until it can be written"
                )
                say_line(line, err=True)
        else:
            self._lost = 0


def fields(value: Any) -> dict[str, object]:
    """Return the fields of one of otpy's values, as JSON wants them."""
    import attrs

    return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}


def plain(value: Any) -> object:
    """Return *value* for JSON: values of otpy as objects, those of users as text."""
    import otpy

    if isinstance(value, otpy.ExitReason):
        said = {
            "kind": value.kind,
            "exception": value.raised,
            "detail": value.detail,
            "traceback": value.traceback,
        }
        return {name: plain(one) for name, one in said.items()}
    if isinstance(value, otpy.Escalation):
        return {**_flat(value), "chain": [_flat(one) for one in value.chain]}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value if value is None or type(value) in (str, int, float, bool) else text(value)


def _flat(escalation: Any) -> dict[str, object]:
    """Return the fields of *escalation*; the levels below it are in the chain, once."""
    import attrs

    import otpy

    reason = escalation.reason
    if isinstance(reason.detail, otpy.Escalation):
        reason = attrs.evolve(reason, detail=None)
    return fields(attrs.evolve(escalation, reason=reason))


def text(value: object) -> str:
    """Return the repr of *value*, or its type, if that has a bad one."""
    try:
        return repr(value)
    except BaseException:  # a SystemExit would end the thread that calls the handler
        return f"<{type(value).__name__} without a repr>"
