"""``otpy run``: run a tree until a signal."""

from __future__ import annotations

import contextlib
import enum
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

import click

from otpy.cli.target import Problem, load, show_traceback, takes_target


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
    help="How the reports on stderr are written; a target that configures structlog itself has the last word.",
)
@click.option("--reports", type=click.Path(dir_okay=False), metavar="FILE", help="Append each report to FILE as JSON.")
def run(target: str, log_format: str, reports: str | None, *, verbose: bool) -> None:
    """Run the tree TARGET until a signal, or until it ends by itself.

    SIGINT and SIGTERM stop it in order; a second signal shortens all time limits to zero, a third one ends the process
    at once. What happens in the tree is reported on stderr.

    Exit status: 0, it was stopped or has ended; 70, it did not come up, or its root gave up; 2, the target, its tree or
    an option is wrong.
    """
    configure_log(log_format)
    tree = load(target, verbose=verbose)
    import otpy

    with writer(reports) as handler:
        try:
            otpy.run(tree, reports=handler)
        except (otpy.TreeFailed, otpy.StartError) as error:
            show_traceback(error, verbose=verbose)
            raise GaveUp(f"{error}; the reports above tell why") from error


def configure_log(form: str) -> None:
    """Have structlog write to stderr; for this process, which is ours."""
    import structlog

    processors: dict[str, Callable[[], list[Any]]] = {
        "console": lambda: [
            structlog.processors.TimeStamper("%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
        "json": lambda: [
            structlog.processors.TimeStamper("iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    }
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *processors[form]()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@contextlib.contextmanager
def writer(path: str | None) -> Iterator[Callable[[object], None] | None]:
    """Open the file for ``--reports``, and yield the handler that writes there, None without a file."""
    if path is None:
        yield None
        return
    try:
        file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115  # it is closed below
    except OSError as error:
        raise Problem(f"--reports {path}: {error.strerror}") from error
    with file:
        yield lambda report: write(file, report)


def write(file: IO[str], report: object) -> None:
    """Write one line."""
    import json

    file.write(json.dumps({"report": type(report).__name__, **fields(report)}) + "\n")


def fields(value: Any) -> dict[str, object]:
    """Return the fields of one of otpy's values, as JSON wants them."""
    import attrs

    return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}


def plain(value: Any) -> object:
    """Return *value* as JSON wants it: values of otpy as objects, what is the user's own as text."""
    import otpy

    if isinstance(value, otpy.ExitReason):
        return {**fields(value), "traceback": value.traceback}
    if isinstance(value, otpy.Escalation):
        return fields(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value if value is None or type(value) in (str, int, float, bool) else text(value)


def text(value: object) -> str:
    """Return the repr of *value*, or its type, if that has a bad one."""
    try:
        return repr(value)
    except BaseException:  # a SystemExit would end the thread that calls the handler
        return f"<{type(value).__name__} without a repr>"
