"""The options of programs: checked here, and kept as one value, the ``Command``.

Laws:
1. Every option is checked when the spec is made, and the error names it. Only the system
   can find out the rest, such as a program that is missing; that is a failed start.
2. Specs are equal if they are made of equal parts. So a check returns its option as the
   spec keeps it: a frozen value, with paths as they are used.
3. No error and no ``repr`` shows a value of an environment: it may be a secret.

Pure: no function here looks at a file, a process or a clock.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from otpy.arguments import check_handler
from otpy.children.program.probes import Health, Line, Notify, Probe
from otpy.exceptions import SpecError
from otpy.specs import CommonButReady
from otpy.values import Value, value

SHUTDOWN = 10.0
"""Seconds that a program may take to stop when asked, if its spec says nothing else."""

Text = str | os.PathLike[str]
Output = Text | Callable[[str], object]


class ProgramOptions(CommonButReady, total=False):
    """The options of a program; see ``process``."""

    cwd: Text | None
    env: Mapping[str, str] | None
    stdout: Output
    stderr: Output
    err_dir: Text | None
    log_size: int
    log_backups: int
    stop_signal: str | int
    stop_to: Literal["group", "leader"]
    success_codes: Iterable[int]
    ready: bool | str | Probe
    health: Health | None


def _names_only(env: tuple[tuple[str, str], ...] | None) -> str:
    return "None" if env is None else f"<{', '.join(name for name, _ in env)}>"


@value(kw_only=True)
class Command(Value):
    """A program as it was described: its arguments and options, checked.

    Attributes:
        argv: The program and its arguments.
        cwd: The directory in which it runs; None: that of the parent process.
        env: All of its environment; None: that of the parent process at each start.
        stdout, stderr: "discard", "inherit", a path, or a callable that takes a line.
        err_dir: The directory of its log of stderr; None: it has no such log.
        log_size, log_backups: See ``LogFile.write``.
        stop_signal, stop_to: The signal that asks it to stop, and which of its processes
            get it: "group" or "leader".
        success_codes: The exit codes of a normal end.
        probe: When it counts as started; None: at once.
        health: How it is asked whether it is well.
        heartbeat: Seconds within which it must send ``WATCHDOG=1``; None: it need not.
    """

    argv: tuple[str, ...]
    cwd: str | None
    env: tuple[tuple[str, str], ...] | None = attrs.field(repr=_names_only)
    stdout: Output
    stderr: Output
    err_dir: str | None
    log_size: int
    log_backups: int
    stop_signal: signal.Signals
    stop_to: str
    success_codes: frozenset[int]
    probe: Probe | None
    health: Health | None
    heartbeat: float | None


# The checks; *path* is the place of the error


def argv_of(path: str, program: Any, args: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the program and its arguments as the system is given them."""
    first = text_of(path, "target", program, "a program (a str or a path) or a callable")
    if not first:
        raise SpecError(path, "target", program, "the name or the path of a program")
    return first, *(text_of(path, f"args[{index}]", arg) for index, arg in enumerate(args))


def text_of(path: str, field: str, value: Any, expected: str = "a str or a path") -> str:
    """Return *value* as a str that the system accepts as an argument or a path."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not is_sayable(text):
        raise SpecError(path, field, value, f"{expected}, without NUL and lone surrogates")
    return text


def is_sayable(text: str) -> bool:
    """Whether the system takes *text*: it takes bytes, and ends them at NUL."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def env_of(path: str, env: Any) -> tuple[tuple[str, str], ...] | None:
    """Return an environment as its pairs."""
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise SpecError(path, "env", Hidden(env), "a dict of str to str, or None")
    pairs = []
    for name, content in env.items():
        if not isinstance(name, str) or not name or "=" in name or not is_sayable(name):
            # what follows a "=" may be a secret
            shown = name.partition("=")[0] if isinstance(name, str) else name
            expected = 'names that are non-empty, without "=", NUL and lone surrogates'
            raise SpecError(path, "env", shown, expected)
        try:
            pairs.append((name, text_of(path, f"env[{name!r}]", content, "a str")))
        except SpecError as error:
            raise SpecError(path, error.field, Hidden(content), error.expected) from None
    return tuple(pairs)


class Hidden:
    """Stands in an error for a value that may be a secret: errors are logged."""

    def __init__(self, value: object) -> None:
        self._kind = type(value).__name__

    def __repr__(self) -> str:
        return f"<{self._kind}>"


def output_of(path: str, field: str, value: Any, cwd: str | None) -> Output:
    """Return where a stream goes; a relative path begins at *cwd*."""
    if callable(value):
        check_handler(path, field, value, ("line",), "a callable that takes a line")
        handler: Callable[[str], object] = value
        return handler
    if value in ("discard", "inherit"):
        return str(value)
    expected = '"discard", "inherit", a path, or a callable'
    return Path(cwd or "", text_of(path, field, value, expected))


def err_dir_of(path: str, id: str, value: Any, cwd: str | None) -> str | None:
    """Return the directory of the log of stderr; *id* is a part of its name."""
    if value is None:
        return None
    text_of(path, "id", id, "a part of a file name")
    return str(Path(cwd or "", text_of(path, "err_dir", value)))


def int_of(path: str, field: str, value: Any, least: int) -> int:
    """Return an int that is not below *least*."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(path, field, value, f"an int >= {least}")
    return value


def signal_of(path: str, value: Any) -> signal.Signals:
    """Return a signal that was given by its name or its number."""
    try:
        return signal.Signals[value] if isinstance(value, str) else signal.Signals(value)
    except (KeyError, ValueError):
        expected = "the name of a signal such as 'SIGTERM'"
        raise SpecError(path, "stop_signal", value, expected) from None


def stop_to_of(path: str, value: Any) -> str:
    """Return which processes get the stop signal."""
    if value not in ("group", "leader"):
        raise SpecError(path, "stop_to", value, "'group' or 'leader'")
    return str(value)


def codes_of(path: str, values: Any) -> frozenset[int]:
    """Return exit codes as a set."""
    is_many = isinstance(values, Iterable) and not isinstance(values, str)
    codes = frozenset(values) if is_many else None
    if codes is None or not all(type(code) is int and 0 <= code < 256 for code in codes):
        raise SpecError(path, "success_codes", values, "ints from 0 to 255")
    return codes


def probe_of(path: str, value: Any) -> Probe | None:
    """Return the probe that ``ready`` means."""
    if isinstance(value, str):
        return Line(value)
    if isinstance(value, bool):
        return Notify() if value else None
    if not isinstance(value, Probe):
        expected = "a bool, a regular expression, a Line, Port, Http or Notify"
        raise SpecError(path, "ready", value, expected)
    return value


def health_of(path: str, value: Any) -> Health | None:
    """Return how the program is asked whether it is well."""
    if value is not None and not isinstance(value, Health):
        raise SpecError(path, "health", value, "a Health, or None")
    return value
