"""Describing processes: ``process`` and ``programs``, and what they refuse of programs.

Each check returns the value as the spec keeps it: specs are equal when they are made of equal parts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import attrs

from otpy.arguments import check_handler
from otpy.children.callable import child as callee
from otpy.children.names import path_of
from otpy.children.program.child import Output, ProgramStart, Text
from otpy.children.program.probes import Health, Line, Notify, Probe
from otpy.exceptions import SpecError
from otpy.runtime.supervisor import supervisor
from otpy.specs import ChildSpec, CommonButReady, SupervisorSpec, check_common

SHUTDOWN = 10.0
"""How long a program may take to stop when asked, in seconds, if nothing else is said."""


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


@overload
def process(
    target: Text, /, *args: Text, id: str | None = None, **options: Unpack[ProgramOptions]
) -> ChildSpec: ...


@overload
def process(
    target: Callable[..., object],
    /,
    *args: Any,
    id: str | None = None,
    **options: Unpack[callee.CalleeOptions],
) -> ChildSpec: ...


def process(target: Any, /, *args: Any, id: str | None = None, **options: Any) -> ChildSpec:
    """Describe a child that is a program, or a Python callable in a process of its own.

    Either way it leads a session and a process group of its own. When it has not stopped in its ``shutdown`` seconds,
    the group is killed, and so it is if this process dies, however that happens. What has died without a word is told
    as a ``ProcessDied``.

    A program has an empty stdin. It blocks no signal, and ignores none but what a shell or nohup
    ignores. To stop it, its group gets *stop_signal*. What it has started ends with it, and has
    what is left of ``shutdown``; if the program ends by itself, it is killed at once. The exit
    reason has a ``ProgramExit`` as ``detail``, with the last that it has written to stderr.

    A callable runs in the main thread of a fresh interpreter, which imports it: the process is spawned, never forked.
    It is started when that has been done. To stop it, it is asked as a thread is.

    Args:
        target: A program: a name that is looked for in ``PATH``, or a path. Or a callable of a module; it is called as
            ``target(ctx, *args)``, where ``ctx`` has what the context of a thread has, but no ``supervisor``.
        args: Its arguments. Those of a callable are pickled at each start; queues and locks of ``multiprocessing`` may
            be among them, if they are from its context "spawn".
        id: Its name among its siblings; default: the last part of the program's path, or the name of the callable.
        **options: As for ``thread``. ``interrupt=False``: it is never killed, but given up. A callable's state, or what
            its ``snapshot`` returns, is pickled. Of a program ``shutdown`` is 10.0 by default, with a ``heartbeat`` it
            must send ``WATCHDOG=1`` to its ``NOTIFY_SOCKET`` at least that often, and there are more:

    Options of programs:
        cwd: The directory in which it runs; relative paths start there, those of the following options too. None: the
            one of this process.
        env: All of its environment, at each start the same; None: that of this process at that
            time. ``OTPY_MARK`` is added, by which its descendants are found.
        stdout: "discard"; "inherit": where ours goes; a path: that file is appended to, see
            docs/how-to/programs.md; or a callable: it is called with each line, without its end,
            on a thread of its own. It may block: then the program has to wait.
        stderr: The same. The last 64 KiB are in the exit reason anyway.
        err_dir: stderr also goes to ``{err_dir}/{path}.stderr.log``, where *path* is the child's, with
            a line that marks each start. Directories are made if they are missing.
        log_size: How many bytes a file may have before a new one is begun, >= 1.
        log_backups: How many older ones are kept, as ``file.1`` (the youngest), ``file.2``, …, >= 0.
        stop_signal: A name or a number.
        stop_to: Who gets it: "group", or "leader": the program itself only, for servers whose
            workers finish their work.
        success_codes: The exit codes that mean a normal end, from 0 to 255.
        ready: It counts as started when this is so: a regular expression, or ``Line``, for a line that it writes;
            ``Port``; ``Http``; ``Notify`` or True: it sends ``READY=1`` to its ``NOTIFY_SOCKET``. False: at once.
        health: It has stalled if it misses so many probes in a row.

    Options of callables:
        max_message_size: The most bytes that a message of it may have: a saved state,
            pickled, or what it raises. One that sends more is killed;
            ``ctx.check_in(state)`` refuses it before.
        allow_pickle: Whether what it raises is unpickled here when a reader asks for
            it. By default it is made of plain values, and no code of the child's choice
            runs.

    Raises:
        SpecError: A field is wrong; a callable cannot be called with these arguments, or cannot be sent to a process;
            this is Windows. That a program is missing is found out at the start.
    """
    if os.name != "posix":
        raise SpecError(
            path_of(id or "", "process"),
            "platform",
            sys.platform,
            "a POSIX system, such as Linux or macOS",
        )
    if callable(target):
        return callee.describe(target, *args, id=id, **options)
    return _program(_argv(path_of(id or "", "process"), (target, *args)), id, **options)


def _program(
    argv: tuple[str, ...],
    id: str | None,
    *,
    cwd: Text | None = None,
    env: Mapping[str, str] | None = None,
    stdout: Output = "discard",
    stderr: Output = "discard",
    err_dir: Text | None = None,
    log_size: int = 10_000_000,
    log_backups: int = 3,
    stop_signal: str | int = "SIGTERM",
    stop_to: Literal["group", "leader"] = "group",
    success_codes: Iterable[int] = (0,),
    ready: bool | str | Probe = False,
    health: Health | None = None,
    **common: Unpack[CommonButReady],
) -> ChildSpec:
    check_common("process", common)
    name = id if id is not None else Path(argv[0]).name
    path = path_of(name, "process")
    place = _place(path, cwd)
    options: dict[str, Any] = {"shutdown": SHUTDOWN, **common}
    start = ProgramStart(
        argv=argv,
        cwd=place,
        env=_environment(path, env),
        stdout=_output(path, "stdout", stdout, place),
        stderr=_output(path, "stderr", stderr, place),
        err_dir=None if err_dir is None else _err_dir(path, name, err_dir, place),
        log_size=_int(path, "log_size", log_size, 1),
        log_backups=_int(path, "log_backups", log_backups, 0),
        stop_signal=_signal(path, stop_signal),
        stop_to=_stop_to(path, stop_to),
        success_codes=_codes(path, success_codes),
        probe=_probe(path, ready),
        health=_health(path, health),
        watchdog=common.get("heartbeat"),
    )
    spec = ChildSpec(id=name, start=start, ready=start.probe is not None, **options)
    return (
        spec
        if health is None
        else attrs.evolve(spec, heartbeat=_shortest(spec.heartbeat, health.interval))
    )


def programs(
    base_dir: Text,
    commands: Mapping[str, Iterable[Text]],
    *,
    id: str = "programs",
    err_dir: Text | None = None,
    supervision: Mapping[str, Any] | None = None,
    **options: Any,
) -> SupervisorSpec:
    """Describe a supervisor of programs.

    Args:
        base_dir: The directory in which all of them run.
        commands: Name to program and arguments: ``{"web": ["node", "service.js"]}``. They start in this order.
        id: The id of the supervisor.
        err_dir: As for ``process``; relative to *base_dir*.
        supervision: Options of the supervisor: ``strategy``, ``intensity``, ``period``, …; see ``supervisor``.
        **options: Options of each program, see ``process``.

    Raises:
        SpecError: A field is wrong.
    """
    where = path_of(id, "programs")
    if not isinstance(commands, Mapping):
        raise SpecError(
            where, "commands", commands, 'a dict such as {"web": ["node", "service.js"]}'
        )
    children = [
        process(*_command(where, name, argv), id=name, cwd=base_dir, err_dir=err_dir, **options)
        for name, argv in commands.items()
    ]
    return supervisor(id, children=children, **(supervision or {}))


# What may be given


def _command(path: str, name: object, argv: Any) -> tuple[Any, ...]:
    if (
        isinstance(argv, str | bytes | Mapping)
        or not isinstance(argv, Iterable)
        or not (parts := tuple(argv))
    ):
        raise SpecError(path, f"commands[{name!r}]", argv, "a list: the program and its arguments")
    return parts


def _text(path: str, field: str, value: Any, expected: str = "a str or a path") -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not _is_sayable(text):
        raise SpecError(path, field, value, f"{expected}, without NUL and lone surrogates")
    return text


def _is_sayable(text: str) -> bool:
    """Whether the system can be told *text*: later nobody would get the error."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _argv(path: str, values: tuple[Any, ...]) -> tuple[str, ...]:
    program, *args = values
    first = _text(path, "target", program, "a program (a str or a path) or a callable")
    if not first:
        raise SpecError(path, "target", program, "the name or the path of a program")
    return first, *(_text(path, f"args[{index}]", arg) for index, arg in enumerate(args))


def _place(path: str, cwd: Any) -> str | None:
    return None if cwd is None else _text(path, "cwd", cwd)


def _err_dir(path: str, id: str, value: Any, cwd: str | None) -> str:
    _text(path, "id", id, "a part of a file name")
    return str(Path(cwd or "", _text(path, "err_dir", value)))


def _environment(path: str, env: Any) -> tuple[tuple[str, str], ...] | None:
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise SpecError(path, "env", Hidden(env), "a dict of str to str, or None")
    return tuple((_name(path, name), _value(path, name, value)) for name, value in env.items())


def _name(path: str, name: Any) -> str:
    if not isinstance(name, str) or not name or "=" in name or not _is_sayable(name):
        shown = (
            name.partition("=")[0] if isinstance(name, str) else name
        )  # after it may be a secret
        raise SpecError(
            path, "env", shown, 'names that are non-empty, without "=", NUL and lone surrogates'
        )
    return name


def _value(path: str, name: str, value: Any) -> str:
    try:
        return _text(path, f"env[{name!r}]", value, "a str")
    except SpecError as error:
        raise SpecError(path, error.field, Hidden(value), error.expected) from None


class Hidden:
    """Stands for a value that may be a secret: errors are logged."""

    def __init__(self, value: object) -> None:
        self._kind = type(value).__name__

    def __repr__(self) -> str:
        return f"<{self._kind}>"


def _output(path: str, field: str, value: Any, cwd: str | None) -> Output:
    if callable(value):
        check_handler(path, field, value, ("line",), "a callable that takes a line")
        handler: Callable[[str], object] = value
        return handler
    if value in ("discard", "inherit"):
        return str(value)
    return Path(cwd or "", _text(path, field, value, '"discard", "inherit", a path, or a callable'))


def _int(path: str, field: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(path, field, value, f"an int >= {least}")
    return value


def _signal(path: str, value: Any) -> signal.Signals:
    try:
        return signal.Signals[value] if isinstance(value, str) else signal.Signals(value)
    except (KeyError, ValueError):
        raise SpecError(
            path, "stop_signal", value, "the name of a signal such as 'SIGTERM'"
        ) from None


def _stop_to(path: str, value: Any) -> str:
    if value not in ("group", "leader"):
        raise SpecError(path, "stop_to", value, "'group' or 'leader'")
    return str(value)


def _codes(path: str, values: Any) -> frozenset[int]:
    codes = (
        frozenset(values) if isinstance(values, Iterable) and not isinstance(values, str) else None
    )
    if codes is None or not all(type(code) is int and 0 <= code < 256 for code in codes):
        raise SpecError(path, "success_codes", values, "ints from 0 to 255")
    return codes


def _probe(path: str, value: Any) -> Probe | None:
    if isinstance(value, str):
        return Line(value)
    if isinstance(value, bool):
        return Notify() if value else None
    if not isinstance(value, Probe):
        raise SpecError(
            path, "ready", value, "a bool, a regular expression, a Line, Port, Http or Notify"
        )
    return value


def _health(path: str, value: Any) -> Health | None:
    if value is not None and not isinstance(value, Health):
        raise SpecError(path, "health", value, "a Health, or None")
    return value


def _shortest(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
